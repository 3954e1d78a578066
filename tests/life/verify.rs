//! `forebay verify` and the scrub, on files that are damaged under a running server.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::support::clients::Skopeo;
use super::support::hosting::hosting;
use super::support::image::{Content, Image};
use super::support::mirror::{Mirror, MirrorOptions, forebay};
use super::support::process::{Wait, attempt, command, run};
use super::support::pushers::Pusher;
use super::support::registry::{Registry, RegistryOptions};
use super::support::repository::Repository;
use super::support::stored_blobs;

/// Only on command.
const OFF: &str = "[scrub]\ninterval = \"off\"\n";

fn verify(mirror: &Mirror, arguments: &[&str]) -> Command {
    let mut command = forebay(["verify", "--data", mirror.data().to_str().unwrap()]);
    command.args(arguments);
    command
}

fn lines(said: &str) -> Vec<Value> {
    said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Where the bytes of a digest are.
fn data(mirror: &Mirror, digest: &str) -> PathBuf {
    let hex = digest.strip_prefix("sha256:").unwrap();
    mirror.data().join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
}

fn link(mirror: &Mirror, repository: &str, part: &str, digest: &str) -> PathBuf {
    let path =
        format!("docker/registry/v2/repositories/{repository}/{part}/{}/link", digest.replace(':', "/"));
    mirror.data().join(path)
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn zero_tail(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].fill(0);
    fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

fn extend(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, [&bytes[..], b"more"].concat()).unwrap();
}

fn to_directory(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::create_dir(path).unwrap();
}

fn to_symlink(path: &Path) {
    fs::remove_file(path).unwrap();
    symlink("/etc/passwd", path).unwrap();
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

const DAMAGES: [fn(&Path); 7] = [flip, zero_tail, truncate, extend, to_directory, to_symlink, remove];

/// One that is no program, which all images share.
fn a_layer(image: &Image) -> &Content {
    image.blobs.iter().find(|blob| (100_000..1_000_000).contains(&blob.bytes.len())).unwrap()
}

async fn pull(directory: &Path, mirror: &Mirror, image: &str) {
    let to = tempfile::tempdir_in(directory).unwrap();
    let mut skopeo = command("skopeo", ["--insecure-policy", "copy", "--all", "--src-tls-verify=false"]);
    skopeo.arg(format!("docker://{}/{image}", mirror.host()));
    skopeo.arg(format!("dir:{}", to.path().join("image").display()));
    run(skopeo).await;
}

fn all(image: &Image) -> Vec<&Content> {
    image.blobs.iter().chain(&image.manifests).chain([&image.index]).collect()
}

/// A registry with an image of many parts, and a mirror that holds all of it.
async fn mirrored(directory: &Path, config: &str) -> (Registry, Mirror, Image) {
    let hub = Registry::start(&directory.join("hub"), RegistryOptions::default()).await;
    let image = Image::random(3, 4, 300_000);
    image.push(&hub, "library/app", "1").await;
    let config = Some(config.to_owned());
    let options = MirrorOptions { upstream: hub.url(), config, ..Default::default() };
    let mirror = Mirror::with(&directory.join("mirror"), options).await;
    run({
        let mut warm = forebay(["warm", "--data", mirror.data().to_str().unwrap()]);
        warm.args(["app:1", "--platform", "all"]);
        warm
    })
    .await;
    (hub, mirror, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_mirrored_is_found_bad_and_fetched_again() {
    let directory = tempfile::tempdir().unwrap();
    let (mut hub, mirror, image) = mirrored(directory.path(), OFF).await;
    let said = run(verify(&mirror, &[])).await;
    assert!(said.starts_with("nothing is wrong: "), "{said}");
    let parts = all(&image);
    let digests: BTreeSet<String> = parts.iter().map(|content| content.digest.clone()).collect();
    // Every part is damaged, in one way or another: blobs, manifests and the index.
    for (number, content) in parts.iter().enumerate() {
        DAMAGES[number % DAMAGES.len()](&data(&mirror, &content.digest));
    }
    assert!(parts.len() > DAMAGES.len());
    let said = run(verify(&mirror, &["--repair", "--json"])).await;
    let found: Vec<Value> = lines(&said).iter().filter_map(|line| line.get("found").cloned()).collect();
    let subjects: BTreeSet<String> =
        found.iter().map(|one| one["subject"].as_str().unwrap().to_owned()).collect();
    assert!(digests.is_subset(&subjects), "{said}");
    for one in &found {
        assert_eq!((&one["repaired"], &one["done"]), (&true.into(), &"fetched again".into()), "{one}");
        assert_eq!(one["repositories"], serde_json::json!(["docker.io/library/app"]), "{one}");
    }
    let totals = lines(&said).pop().unwrap()["totals"].clone();
    assert_eq!(totals["wrong"], totals["repaired"], "{said}");
    assert_eq!(stored_blobs(&mirror.data()), digests);
    let said = run(verify(&mirror, &["--rate", "100MiB"])).await;
    assert!(said.starts_with("nothing is wrong: "), "{said}");
    // With no restart, and nobody to ask.
    hub.stop();
    pull(directory.path(), &mirror, "library/app:1").await;
    let bad = mirror.metric(r#"forebay_corrupt_blobs_total{damage="zeros"}"#).await;
    assert!(bad >= 1.0, "{bad}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_bad_is_not_served_before_it_is_repaired() {
    let directory = tempfile::tempdir().unwrap();
    let (_hub, mirror, image) = mirrored(directory.path(), OFF).await;
    let layer = a_layer(&image);
    flip(&data(&mirror, &layer.digest));
    let said = attempt(verify(&mirror, &[])).await.unwrap_err();
    assert!(said.contains("exit status: 1") && said.contains("1 found wrong, 0 repaired"), "{said}");
    assert!(
        said.contains(&format!(
            "data      {} of docker.io/library/app: its {} bytes",
            layer.digest,
            layer.bytes.len()
        )),
        "{said}"
    );
    assert!(!data(&mirror, &layer.digest).exists());
    let name = layer.digest.replace(':', "-");
    assert!(mirror.data().join("forebay/quarantine").join(name).exists());
    // Told again as what it is now.
    let said = attempt(verify(&mirror, &[])).await.unwrap_err();
    assert!(
        said.contains(&format!(
            "blob      docker.io/library/app@{}: linked, and its data is missing",
            layer.digest
        )),
        "{said}"
    );
    // Whoever asks has it fetched.
    pull(directory.path(), &mirror, "library/app:1").await;
    assert!(run(verify(&mirror, &[])).await.starts_with("nothing is wrong: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_has_no_more_is_lost_and_an_image_without_it_told_until_it_goes() {
    let directory = tempfile::tempdir().unwrap();
    let (mut hub, mirror, image) = mirrored(directory.path(), OFF).await;
    let layer = &a_layer(&image).digest;
    let shard = hub.storage().join("docker/registry/v2");
    let theirs = |path: &str| shard.join(path);
    let hex = layer.strip_prefix("sha256:").unwrap();
    fs::remove_dir_all(theirs(&format!("blobs/sha256/{}/{hex}", &hex[..2]))).unwrap();
    fs::remove_dir_all(theirs(&format!("repositories/library/app/_layers/sha256/{hex}"))).unwrap();
    // It remembers what it has had.
    hub.stop();
    hub.restart().await;
    truncate(&data(&mirror, layer));
    // A link that is none, and one to what never was.
    let rubbish = &image.blobs.iter().find(|blob| blob.digest != *layer).unwrap().digest;
    let (rubbish, stray) = (rubbish, format!("sha256:{}", "0".repeat(64)));
    fs::write(link(&mirror, "library/app", "_layers", rubbish), "rubbish").unwrap();
    let stray = link(&mirror, "library/app", "_layers", &stray);
    fs::create_dir_all(stray.parent().unwrap()).unwrap();
    fs::write(&stray, format!("sha256:{}", "0".repeat(64))).unwrap();
    let said = attempt(verify(&mirror, &["--repair"])).await.unwrap_err();
    assert!(said.contains("exit status: 1") && said.contains("3 found wrong, 2 repaired"), "{said}");
    let told = format!("data      {layer} of docker.io/library/app: its ");
    assert!(said.contains(&told) && said.contains("lost: the registry has it no more"), "{said}");
    // What nothing needs is taken away; the image is not to look whole.
    assert!(link(&mirror, "library/app", "_layers", layer).exists() && !stray.exists());
    for arguments in [&["--repair"][..], &[]] {
        let said = attempt(verify(&mirror, arguments)).await.unwrap_err();
        let told = format!(
            "blob      docker.io/library/app@{layer}: linked, and its data is missing: lost: the registry has it no more"
        );
        assert!(said.contains(&told) && said.contains("(needed by docker.io/library/app:1)"), "{said}");
        assert!(said.contains("1 found wrong, 0 repaired"), "{said}");
    }
    let lost = mirror.metric(r#"forebay_corrupt_repairs_total{repair="lost"}"#).await;
    assert_eq!(lost, 1.0);
    run(forebay(["evict", "--data", mirror.data().to_str().unwrap(), "library/app:1"])).await;
    assert!(run(verify(&mirror, &[])).await.starts_with("nothing is wrong: "));
    assert!(!link(&mirror, "library/app", "_layers", layer).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_whose_link_is_broken_is_pointed_again_while_its_registry_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut hub, mirror, image) = mirrored(directory.path(), OFF).await;
    let link =
        mirror.data().join("docker/registry/v2/repositories/library/app/_manifests/tags/1/current/link");
    let is_whole = || fs::read_to_string(&link).is_ok_and(|text| text == image.index.digest);
    assert!(is_whole());
    // A pull mends it, as is said.
    fs::write(&link, "").unwrap();
    let said = attempt(verify(&mirror, &[])).await.unwrap_err();
    assert!(
        said.contains(
            "tag       docker.io/library/app:1: its link names no digest: it is fetched again when"
        ),
        "{said}"
    );
    pull(directory.path(), &mirror, "library/app:1").await;
    let wait = Wait::for_("the tag to be written anew");
    while !is_whole() {
        wait.a_little().await;
    }
    fs::write(&link, "").unwrap();
    let said = run(verify(&mirror, &["--repair"])).await;
    assert!(said.contains("names no digest: fetched again") && is_whole(), "{said}");
    // Nobody can say that it is gone.
    hub.stop();
    fs::write(&link, "").unwrap();
    let said = attempt(verify(&mirror, &["--repair"])).await.unwrap_err();
    assert!(said.contains("not fetched again: ") && said.contains("1 found wrong, 0 repaired"), "{said}");
    assert!(link.exists());
    // The registry says so.
    let theirs = hub.storage().join("docker/registry/v2/repositories/library/app/_manifests/tags/1");
    fs::remove_dir_all(theirs).unwrap();
    hub.restart().await;
    let wait = Wait::for_("the registry to be asked again, and the tag to go");
    while link.exists() {
        let _ = attempt(verify(&mirror, &["--repair"])).await;
        wait.a_little().await;
    }
    assert!(run(verify(&mirror, &[])).await.starts_with("nothing is wrong: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_is_told_as_lost_until_it_is_pushed_again() {
    let directory = tempfile::tempdir().unwrap();
    let mirror = hosting(&directory.path().join("forebay"), OFF).await;
    let image = Image::random(5, 2, 200_000);
    let layout = directory.path().join("layout");
    image.write_layout(&layout, "1");
    let (skopeo, name) =
        (Skopeo::new(&directory.path().join("skopeo"), ""), format!("{}/app:1", mirror.host()));
    skopeo.load(&layout, &name).await;
    skopeo.push(&name).await;
    assert!(run(verify(&mirror, &[])).await.starts_with("nothing is wrong: "));
    let (layer, manifest) = (a_layer(&image), &image.manifests[1]);
    zero_tail(&data(&mirror, &layer.digest));
    remove(&data(&mirror, &manifest.digest));
    let said = attempt(verify(&mirror, &["--repair"])).await.unwrap_err();
    for told in [
        format!(
            "data      {} of app: its {} bytes are not those of its digest: the last ",
            layer.digest,
            layer.bytes.len()
        ),
        format!("manifest  app@{}: linked, and its data is missing: push it again", manifest.digest),
        format!(
            "image     app@{}: 1 of the things that it names are missing: {}",
            image.index.digest, manifest.digest
        ),
        // Faults, not lines.
        "2 found wrong, 0 repaired".to_owned(),
        "push it again (needed by app:1)".to_owned(),
    ] {
        assert!(said.contains(&told), "{told} in\n{said}");
    }
    // The example of `verify --help` names what to push, each time anew.
    let help = run(forebay(["verify", "--help"])).await;
    let example = help.lines().find_map(|line| line.split_once("| jq ")).expect("an example with jq").1;
    for _ in 0..2 {
        let json = attempt(verify(&mirror, &["--json"])).await.unwrap_err();
        let shell = format!("printf '%s\\n' \"$1\" | sed -n '/^{{/p' | jq {example}");
        assert_eq!(run(command("sh", ["-c", &shell, "sh", &json])).await, "app:1\n", "{json}");
    }
    let lost = mirror.metric(r#"forebay_corrupt_repairs_total{repair="lost"}"#).await;
    assert_eq!(lost, 2.0);
    // Nothing of it is taken away, and nobody is told that it never was.
    let app = Repository::new(&mirror.url(), "app");
    for path in [format!("blobs/{}", layer.digest), format!("manifests/{}", manifest.digest)] {
        let answer = app.get(&path).await.expect(500);
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(body.contains("push it again"), "{body}");
        assert_eq!(app.send(reqwest::Method::HEAD, &path).await.status, 404, "a pusher is to send it");
    }
    skopeo.push(&name).await;
    assert!(run(verify(&mirror, &[])).await.starts_with("nothing is wrong: "));
    pull(directory.path(), &mirror, "app:1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scrub_finds_what_is_bad_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let config = "[scrub]\ninterval = \"1s\"\nrate = \"1GiB\"\n";
    let (_hub, mirror, image) = mirrored(directory.path(), config).await;
    for (content, damage) in all(&image).iter().zip(DAMAGES) {
        // What is missing has no data to be found bad.
        if damage as usize != remove as fn(&Path) as usize {
            damage(&data(&mirror, &content.digest));
        }
    }
    let wait = Wait::for_("the scrub to have fetched all again");
    while mirror.metric(r#"forebay_corrupt_repairs_total{repair="fetched"}"#).await < 6.0 {
        wait.a_little().await;
    }
    assert_eq!(stored_blobs(&mirror.data()).len(), all(&image).len());
    let log = mirror.log();
    assert!(log.contains("data is bad, and was put aside") && log.contains(&image.blobs[0].digest), "{log}");
    let wait = Wait::for_("a round to end");
    while mirror.metric("forebay_scrub_rounds_total").await < 1.0 {
        wait.a_little().await;
    }
    assert!(mirror.metric("forebay_scrub_last_round_timestamp_seconds").await > 0.0);
}
