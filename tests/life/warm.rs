//! `forebay warm` against a running server, real registries and real clients.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::support::faulty::{Fault, Upstream};
use super::support::image::{CONFIG, Content, INDEX, Image, LAYER, MANIFEST, random_bytes};
use super::support::mirror::{Mirror, MirrorOptions, forebay};
use super::support::process::{Wait, attempt, command, run};
use super::support::registry::{Registry, RegistryOptions};
use super::support::{http, stored_blobs};

/// `forebay warm` of this server's, with these arguments.
fn warm(mirror: &Mirror, arguments: &[&str]) -> Command {
    let mut command = forebay(["warm", "--data", mirror.data().to_str().unwrap()]);
    command.args(arguments);
    command
}

fn lines(said: &str) -> Vec<Value> {
    said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn totals(said: &str) -> Value {
    lines(said).pop().unwrap()["totals"].clone()
}

/// Copies an image of the mirror's by skopeo: all of it, or one architecture.
async fn pull(mirror: &Mirror, directory: &std::path::Path, image: &str, all: bool) {
    let to = tempfile::tempdir_in(directory).unwrap();
    let mut skopeo = command("skopeo", ["--insecure-policy", "--override-arch", "amd64", "copy"]);
    if all {
        skopeo.arg("--all");
    }
    skopeo.args(["--src-tls-verify=false", &format!("docker://{}/{image}", mirror.host())]);
    skopeo.arg(format!("dir:{}", to.path().join("image").display()));
    run(skopeo).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_warmed_is_pulled_though_the_registry_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mut hub = Registry::start(&at("hub"), RegistryOptions::default()).await;
    let mut other = Registry::start(&at("other"), RegistryOptions::default()).await;
    let [one, two, three, four] = [1, 2, 3, 4].map(|seed| Image::random(seed, 2, 300_000));
    one.push(&hub, "library/one", "1").await;
    two.push(&hub, "library/two", "latest").await;
    four.push(&hub, "team/four", "x").await;
    three.push(&other, "org/three", "main").await;
    let config =
        format!("[upstream.\"ghcr.io\"]\nurl = {:?}\n[hosted]\nrepositories = [\"*\"]\n", other.url());
    let options = MirrorOptions { upstream: hub.url(), config: Some(config), ..Default::default() };
    let mirror = Mirror::with(&at("mirror"), options).await;

    // From every kind of file, each spelling its own.
    std::fs::write(at("images.txt"), "# ours\none:1 # the first\n").unwrap();
    std::fs::write(at(".env"), "ORG=org\n").unwrap();
    let compose =
        "services:\n  a: {image: 'ghcr.io/${ORG}/three:${TAG:-main}'}\n  b: {build: ., image: own}\n";
    std::fs::write(at("compose.yaml"), compose).unwrap();
    std::fs::create_dir(at("manifests")).unwrap();
    let pod = "kind: Pod\nspec: {containers: [{image: docker.io/library/two}]}\n---\n";
    std::fs::write(at("manifests/pod.yaml"), pod).unwrap();
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    let (list, compose, manifests) = (text("images.txt"), text("compose.yaml"), text("manifests"));
    let files = ["--file", &list, "--compose", &compose, "--kubernetes", &manifests];
    let said = run(warm(&mirror, &[&files[..], &["team/four:x", "--platform", "all"]].concat())).await;
    assert_eq!(said.lines().filter(|line| line.starts_with("held ")).count(), 4, "{said}");
    assert!(said.lines().last().unwrap().starts_with("4 images held: "), "{said}");
    let blobs = [&one, &two, &three, &four].into_iter().flat_map(|image| {
        image.blobs.iter().chain(&image.manifests).chain([&image.index]).map(|content| content.digest.clone())
    });
    assert_eq!(stored_blobs(&mirror.data()), blobs.collect::<BTreeSet<_>>());

    // Held things are not fetched again.
    let before = hub.content_requests().await.len();
    let said = run(warm(&mirror, &["one:1", "two", "--platform", "all", "--json"])).await;
    assert_eq!(totals(&said)["bytes_fetched"], 0, "{said}");
    assert_eq!(hub.content_requests().await.len(), before);

    // The registries are gone; so is what the process had in memory.
    let mut mirror = mirror;
    mirror.kill();
    hub.stop();
    other.stop();
    mirror.restart().await;
    for image in ["library/one:1", "library/two:latest", "team/four:x", "ghcr.io/org/three:main"] {
        pull(&mirror, directory.path(), image, true).await;
    }
    let digest = format!("library/one@{}", one.digest());
    pull(&mirror, directory.path(), &digest, true).await;
    // What is held is told so, with why it may not be current.
    let said = run(warm(&mirror, &["one:1", "--json"])).await;
    assert!(lines(&said)[0]["progress"].is_object() || lines(&said)[0]["held"].is_object(), "{said}");
    let held = lines(&said).into_iter().find_map(|line| line.get("held").cloned()).unwrap();
    assert_eq!(held["digest"], one.digest());
    assert!(held["stale"].as_str().unwrap().contains("HEAD manifest"), "{held}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_platform_is_fetched_unless_others_are_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::start(&directory.path().join("hub"), RegistryOptions::default()).await;
    let image = Image::random(7, 1, 50_000);
    image.push(&registry, "library/app", "1").await;
    // An attestation beside an image, as BuildKit makes them.
    let layer = Content::new(LAYER, random_bytes(8, 1000));
    let config = Content::new(CONFIG, "{\"attestation\":true}");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(), "layers": [layer.descriptor()],
    });
    let attestation = Content::new(MANIFEST, manifest.to_string());
    let mut entry = attestation.descriptor();
    entry["platform"] = json!({ "architecture": "unknown", "os": "unknown" });
    let mut index: Value = serde_json::from_slice(&image.index.bytes).unwrap();
    index["manifests"].as_array_mut().unwrap().push(entry);
    registry.push_blob("library/app", layer.bytes.clone()).await;
    registry.push_blob("library/app", config.bytes.clone()).await;
    registry.push_manifest("library/app", &attestation.digest, MANIFEST, &attestation.bytes).await;
    let digest = registry.push_manifest("library/app", "2", INDEX, index.to_string().as_bytes()).await;

    let mirror = Mirror::start(&directory.path().join("mirror"), &registry.url()).await;
    let held = |content: &Content| stored_blobs(&mirror.data()).contains(&content.digest);
    run(warm(&mirror, &["app:2", "--platform", "linux/amd64"])).await;
    assert!(held(&image.manifests[0]) && !held(&image.manifests[1]) && !held(&attestation));
    // All that the image has is told, and what it has of the rest is fetched.
    let platforms = ["app:2", "--platform", "linux/arm64,linux/s390x"];
    let said = attempt(warm(&mirror, &platforms)).await.unwrap_err();
    assert!(said.contains("exit status: 1"), "{said}");
    assert!(said.contains("is not for linux/s390x: it is for linux/amd64, linux/arm64"), "{said}");
    assert!(held(&image.manifests[1]) && !held(&attestation));
    run(warm(&mirror, &["app:2", "--platform", "all"])).await;
    assert!(held(&attestation) && held(&layer));
    let said = run(warm(&mirror, &[&format!("app@{digest}"), "--platform", "all"])).await;
    assert!(said.contains("held already"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_named_and_the_rest_is_held() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let (good, broken) = (Image::random(1, 1, 10_000), Image::random(2, 1, 10_000));
    upstream.put_image("library/good", "1", &good);
    upstream.put_image("library/broken", "1", &broken);
    upstream.on("GET", &format!("blobs/{}", broken.blobs[2].digest)).then(Fault::Flip(100));
    let options = MirrorOptions { upstream: upstream.url(), ..Default::default() };
    let mirror = Mirror::with(directory.path(), options).await;
    let own = format!("{}/good:1", mirror.host());
    let library = format!("{}/library/good:1", mirror.host());
    let images = ["broken:1", "absent:1", "quay.io/a/b", &own, &library, "good:1", "Bad"];
    let output = tokio::process::Command::from(warm(&mirror, &images)).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for part in [
        "failed  broken:1  ",
        "failed  absent:1  ",
        "`quay.io` is not mirrored here",
        "`good` is hosted here",
        "`Bad`",
    ] {
        assert!(err.contains(part), "{part} in {err}");
    }
    assert!(out.contains("held    good:1") && out.contains("2 images held, 5 failed: "), "{out}");
    let metric = |result: &str| format!("forebay_warm_images_total{{result=\"{result}\"}}");
    assert_eq!(mirror.metric(&metric("held")).await, 2.0);
    assert_eq!(mirror.metric(&metric("failed")).await, 2.0);
    // What is wrong with the command line is told before the server is asked.
    let refused = async |arguments: &[&str]| attempt(warm(&mirror, arguments)).await.unwrap_err();
    assert!(refused(&[]).await.contains("exit status: 2"));
    assert!(refused(&["--file", "/nonexistent"]).await.contains("/nonexistent: No such file"));
    assert!(refused(&["good:1", "--platform", "amd64"]).await.contains("`amd64` is no platform"));
}

/// Ctrl-C loses nothing: what came is held, and the next run goes on from there.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_is_taken_up_where_it_stood() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let image = Image::random(3, 6, 200_000);
    upstream.put_image("library/app", "1", &image);
    let arm = &image.blobs[8..];
    // The last layer hangs until the rule ends.
    upstream.on("GET", &format!("blobs/{}", image.blobs[7].digest)).then(Fault::Delay(Duration::MAX));
    let config =
        Some("[upstream.\"docker.io\"]\nheader_timeout = \"1s\"\n[cache]\nresumes = 1000\n".to_owned());
    let options = MirrorOptions { upstream: upstream.url(), config, ..Default::default() };
    let mirror = Mirror::with(directory.path(), options).await;
    let mut running = warm(&mirror, &["app:1", "--platform", "linux/amd64", "--json"]);
    let mut running = running.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let wait = Wait::for_("all blobs but one");
    while mirror.metric(r#"forebay_fills_total{result="committed"}"#).await < 7.0 {
        wait.a_little().await;
    }
    let pid = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(!running.wait().unwrap().success());
    let fetched = |blob: &Content| upstream.requests_for("GET", &format!("blobs/{}", blob.digest)).len();
    upstream.clear_rules();
    // What it waited for goes on without it, and fails once more.
    let wait = Wait::for_("the fetch to end");
    while mirror.metric("forebay_fills_in_flight").await > 0.0 {
        wait.a_little().await;
    }
    let wait = Wait::for_("the next run");
    let said = loop {
        match attempt(warm(&mirror, &["app:1", "--platform", "linux/amd64", "--json"])).await {
            Ok(said) => break said,
            // It may have come to a request that began before the rule ended.
            Err(_) => wait.a_little().await,
        }
    };
    let totals = totals(&said);
    assert_eq!((&totals["held"], &totals["failed"]), (&json!(1), &json!(0)), "{said}");
    for blob in &image.blobs[..7] {
        assert_eq!(fetched(blob), 1, "{}", blob.digest);
    }
    assert!(arm.iter().all(|blob| fetched(blob) == 0), "the other platform");
    let held = stored_blobs(&mirror.data());
    assert!(image.blobs[..8].iter().all(|blob| held.contains(&blob.digest)));
}

/// What is left of a quota that becomes scarce is for clients, who are held up by nothing that runs beside them.
#[tokio::test(flavor = "multi_thread")]
async fn clients_keep_the_last_of_the_quota() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let images: Vec<Image> = (0..20).map(|seed| Image::random(seed, 1, 100)).collect();
    for (number, image) in images.iter().enumerate() {
        upstream.put_manifest("library/app", &number.to_string(), MANIFEST, image.manifests[0].bytes.clone());
        for blob in &image.blobs {
            upstream.put_blob("library/app", blob.bytes.clone());
        }
    }
    let quota = super::support::faulty::Quota { limit: 100, remaining: 100, window: 3600 };
    upstream.set_quota(Some(super::support::faulty::Quota { remaining: 45, ..quota }));
    let options = MirrorOptions { upstream: upstream.url(), ..Default::default() };
    let mirror = Mirror::with(directory.path(), options).await;
    let names: Vec<String> = (0..20).map(|number| format!("app:{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let said = attempt(warm(&mirror, &names)).await.unwrap_err();
    assert!(said.contains("background work leaves the last 37 of the upstream's 100 pulls"), "{said}");
    let left = upstream.quota().unwrap().remaining;
    assert!((37..=38).contains(&left), "{left} left");
    // A client still gets what was not warmed.
    let url = format!("{}/v2/library/app/manifests/19", mirror.url());
    let wait = Wait::for_("a client's manifest");
    while http().get(&url).header("Accept", MANIFEST).send().await.unwrap().status() != 200 {
        wait.a_little().await;
    }
}

/// What is pinned is held from the start on, follows its upstream, and fails loudly once.
#[tokio::test(flavor = "multi_thread")]
async fn pinned_images_are_kept_warm() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let [one, two, three] = [1, 2, 3].map(|seed| Image::random(seed, 1, 1000));
    upstream.put_image("library/one", "1", &one);
    upstream.put_image("library/two", "1", &two);
    let pinned = |images: &str| {
        Some(format!(
            "[[warm]]\nimages = [{images}]\nplatforms = [\"all\"]\nevery = \"10s\"\n[log]\naccess = false\n"
        ))
    };
    let options = MirrorOptions {
        upstream: upstream.url(),
        config: pinned("\"one:1\", \"absent:1\""),
        ..Default::default()
    };
    let mut mirror = Mirror::with(directory.path(), options).await;
    let holds = |mirror: &Mirror, image: &Image| {
        let held = stored_blobs(&mirror.data());
        image.blobs.iter().chain(&image.manifests).all(|content| held.contains(&content.digest))
    };
    let wait = Wait::for_("the pinned image");
    while !holds(&mirror, &one) {
        wait.a_little().await;
    }
    assert!(!holds(&mirror, &two));
    // A reload pins another one, with nobody asking for it; the tag of the first moves.
    mirror.configure(&pinned("\"one:1\", \"two:1\", \"absent:1\"").unwrap());
    mirror.process().signal(rustix::process::Signal::HUP);
    upstream.put_image("library/one", "1", &three);
    let wait = Wait::for_("the new image and the moved tag");
    while !holds(&mirror, &two) || !holds(&mirror, &three) {
        wait.a_little().await;
    }
    let wait = Wait::for_("the failure to be counted again");
    while mirror.metric("forebay_warm_images_total{result=\"failed\"}").await < 2.0 {
        wait.a_little().await;
    }
    assert_eq!(mirror.metric("forebay_warm_pins").await, 3.0);
    assert_eq!(mirror.metric("forebay_warm_pins_failing").await, 1.0);
    let told = |log: &str, part: &str| {
        log.lines().filter(|line| line.contains(part) && line.contains("absent:1")).count()
    };
    let told_once = async |part: &str| {
        let wait = Wait::for_("what the log says of it");
        while told(&mirror.log(), part) == 0 {
            wait.a_little().await;
        }
        assert_eq!(told(&mirror.log(), part), 1, "{}", mirror.log());
    };
    told_once("that is to be kept warm is not held").await;
    // It is there at last.
    upstream.put_image("library/absent", "1", &one);
    let wait = Wait::for_("the absent image");
    while mirror.metric("forebay_warm_pins_failing").await > 0.0 {
        wait.a_little().await;
    }
    told_once("an image is kept warm").await;
}

/// Clients that ask for a tag all the time never wait for its confirmation.
#[tokio::test(flavor = "multi_thread")]
async fn tags_that_are_asked_for_often_are_confirmed_ahead() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let image = Image::random(1, 1, 1000);
    upstream.put_image("library/hot", "1", &image);
    upstream.put_image("library/cold", "1", &image);
    let config = "[freshness]\nothers = \"12s\"\njitter = 0.0\n[log]\naccess = false\n".to_owned();
    let options = MirrorOptions { upstream: upstream.url(), config: Some(config), ..Default::default() };
    let mirror = Mirror::with(directory.path(), options).await;
    let ask = async |name: &str| {
        let url = format!("{}/v2/library/{name}/manifests/1", mirror.url());
        http().get(url).header("Accept", INDEX).send().await.unwrap().headers()["cache-status"].clone()
    };
    ask("hot").await;
    ask("cold").await;
    // A machine that stands still for seconds may be too late for one: then a client asks for it.
    let mut waited = 0;
    let wait = Wait::for_("two confirmations that nobody asked for");
    while mirror.metric("forebay_refreshed_tags_total{result=\"same\"}").await < 2.0 {
        waited += usize::from(!ask("hot").await.to_str().unwrap().contains("hit"));
        wait.a_little().await;
    }
    let heads = |name: &str| upstream.requests_for("HEAD", &format!("library/{name}/manifests")).len();
    assert_eq!((heads("hot"), heads("cold")), (3 + waited, 1));
    assert_eq!(mirror.metric("forebay_refreshed_tags_total{result=\"failed\"}").await, 0.0);
}
