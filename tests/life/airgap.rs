//! `forebay export` and `forebay import`: from a site with a way out to one without, by a directory that
//! other programs read and write too.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use serde_json::{Value, json};

use super::support::faulty::Upstream;
use super::support::image::{Content, EMPTY, INDEX, Image, LAYER, MANIFEST};
use super::support::mirror::{Mirror, MirrorOptions, forebay};
use super::support::process::{PATIENCE, attempt, command, free_port, run};
use super::support::repository::Repository;
use super::support::stored_blobs;

fn with_data(command: &str, mirror: &Mirror, arguments: &[&str]) -> Command {
    let mut forebay = forebay([command, "--data", mirror.data().to_str().unwrap()]);
    forebay.args(arguments);
    forebay
}

/// `forebay export` of this server's images to a directory.
fn export(mirror: &Mirror, to: &Path, arguments: &[&str]) -> Command {
    with_data("export", mirror, &[&["-o", to.to_str().unwrap()], arguments].concat())
}

fn import(mirror: &Mirror, from: &Path, arguments: &[&str]) -> Command {
    with_data("import", mirror, &[&[from.to_str().unwrap()], arguments].concat())
}

/// A Forebay without a way out.
async fn site(directory: &Path) -> Mirror {
    let upstream = format!("http://127.0.0.1:{}", free_port());
    let arguments = vec!["--offline".to_owned()];
    Mirror::with(directory, MirrorOptions { upstream, arguments, ..Default::default() }).await
}

/// A Forebay that mirrors a scripted upstream.
async fn connected(directory: &Path, upstream: &Upstream) -> Mirror {
    Mirror::start(directory, &upstream.url()).await
}

fn totals(said: &str) -> Value {
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    last["totals"].clone()
}

/// All files below a directory, but for who reads it.
fn files(directory: &Path) -> BTreeMap<String, Bytes> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let (path, name) = {
            let entry = entry.unwrap();
            (entry.path(), entry.file_name().into_string().unwrap())
        };
        match path.is_dir() {
            true => found.extend(files(&path).into_iter().map(|(below, it)| (format!("{name}/{below}"), it))),
            false => drop(found.insert(name, std::fs::read(&path).unwrap().into())),
        }
    }
    found
}

fn blob(layout: &Path, digest: &str) -> std::path::PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

/// All of an image, pulled.
async fn pulled(mirror: &Mirror, repository: &str, reference: &str) -> BTreeMap<String, Bytes> {
    Repository::new(&mirror.url(), repository).whole(reference).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_to_a_site_without_a_way_out_byte_for_byte() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let upstream = Upstream::start().await;
    let [one, two, own] = [1, 2, 3].map(|seed| Image::random(seed, 2, 300_000));
    upstream.put_image("library/one", "1", &one);
    upstream.put_image("org/two", "latest", &two);
    let here = connected(&at("here"), &upstream).await;
    Repository::new(&here.url(), "own").push(&own, "1.0").await;
    let own_name = format!("{}/own:1.0", here.host());
    let by_digest = format!("one@{}", one.digest());

    let images = ["one:1", "org/two", &own_name, &by_digest, "--platform", "all"];
    let said = run(export(&here, &at("disk"), &images)).await;
    assert_eq!(said.lines().filter(|line| line.starts_with("exported  ")).count(), 4, "{said}");
    assert!(said.contains("4 images exported: ") && said.contains("; linux/amd64, linux/arm64"), "{said}");
    // Others read it by the names that it has.
    let local = format!("localhost:{}/own:1.0", here.port);
    for (name, image) in [
        ("docker.io/library/one:1", &one),
        ("docker.io/org/two:latest", &two),
        (&local, &own),
        (&format!("docker.io/library/one@{}", one.digest()), &one),
    ] {
        let to = tempfile::tempdir_in(directory.path()).unwrap();
        let mut skopeo = command("skopeo", ["--insecure-policy", "copy", "--all", "--preserve-digests"]);
        skopeo.arg(format!("oci:{}:{name}", at("disk").display()));
        skopeo.arg(format!("dir:{}", to.path().join("image").display()));
        run(skopeo).await;
        assert_eq!(
            std::fs::read(to.path().join("image/manifest.json")).unwrap(),
            image.index.bytes,
            "{name}"
        );
    }

    let there = site(&at("there")).await;
    let said = run(import(&there, &at("disk"), &[])).await;
    assert!(said.contains("4 images imported: "), "{said}");
    for (repository, reference, from) in [
        ("library/one", "1", &one),
        ("library/one", one.digest(), &one),
        ("org/two", "latest", &two),
        ("own", "1.0", &own),
    ] {
        assert_eq!(pulled(&there, repository, reference).await, pulled(&here, repository, reference).await);
        assert!(stored_blobs(&there.data()).contains(from.digest()));
    }
    assert_eq!(stored_blobs(&there.data()), stored_blobs(&here.data()));

    // What is there is neither written nor brought again; and back it is the same.
    let said = run(export(&here, &at("disk"), &[&["--json"], &images[..]].concat())).await;
    assert_eq!((&totals(&said)["exported"], &totals(&said)["bytes_moved"]), (&json!(4), &json!(0)), "{said}");
    let said = run(import(&there, &at("disk"), &["--json"])).await;
    assert_eq!((&totals(&said)["imported"], &totals(&said)["bytes_moved"]), (&json!(4), &json!(0)), "{said}");
    let own_name = format!("{}/own:1.0", there.host());
    run(export(&there, &at("back"), &["one:1", "org/two", &own_name, &by_digest, "--held-only"])).await;
    let (mut sent, mut back) = (files(&at("disk")), files(&at("back")));
    let renamed = |index: Bytes| {
        let text = String::from_utf8(index.to_vec()).unwrap();
        text.replace(&format!("localhost:{}", there.port), &format!("localhost:{}", here.port))
    };
    let indexes = [sent.remove("index.json").unwrap(), back.remove("index.json").unwrap()];
    let entries = indexes.map(|index| {
        let index: Value = serde_json::from_str(&renamed(index)).unwrap();
        let mut entries: Vec<String> =
            index["manifests"].as_array().unwrap().iter().map(Value::to_string).collect();
        entries.sort();
        entries
    });
    assert_eq!(entries[0], entries[1]);
    assert_eq!(sent, back);

    // It survives a restart: all of it is on disk.
    let mut there = there;
    there.kill();
    there.restart().await;
    assert_eq!(pulled(&there, "library/one", "1").await, pulled(&here, "library/one", "1").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_goes_with_the_platforms_that_are_held_or_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let upstream = Upstream::start().await;
    let image = Image::random(1, 1, 50_000);
    upstream.put_image("library/app", "1", &image);
    let here = connected(&at("here"), &upstream).await;
    let has = |layout: &str, content: &Content| blob(&at(layout), &content.digest).exists();

    // Nothing is fetched, so there is nothing.
    let said = attempt(export(&here, &at("none"), &["app:1", "--held-only"])).await.unwrap_err();
    assert!(said.contains("docker.io/library/app:1 is not held whole, it lacks the tag"), "{said}");
    assert!(said.contains("--held-only"), "{said}");
    // By itself the server's own.
    run(export(&here, &at("own"), &["app:1"])).await;
    assert!(has("own", &image.manifests[0]) && !has("own", &image.manifests[1]));
    let arm = ["app:1", "--platform", "linux/arm64", "--held-only"];
    let said = attempt(export(&here, &at("arm"), &arm)).await.unwrap_err();
    assert!(said.contains("it lacks manifest ") && said.contains(&image.manifests[1].digest), "{said}");
    run(export(&here, &at("arm"), &arm[..3])).await;
    assert!(!has("arm", &image.manifests[0]) && has("arm", &image.manifests[1]));
    // By now both are held.
    run(export(&here, &at("both"), &["app:1"])).await;
    assert!(image.manifests.iter().chain(&image.blobs).all(|content| has("both", content)));
    let said =
        attempt(export(&here, &at("s390x"), &["app:1", "--platform", "linux/s390x"])).await.unwrap_err();
    assert!(said.contains("is not for linux/s390x"), "{said}");

    // A part of an index is taken for a mirrored image, under its own digest, and pulled.
    let wrong =
        attempt(export(&here, &at("none at all"), &["app:1", "--platform", "foo"])).await.unwrap_err();
    assert!(wrong.contains("exit status: 2") && !at("none at all").exists(), "{wrong}");
    let there = site(&at("there")).await;
    let said = run(import(&there, &at("own"), &[])).await;
    assert!(said.contains("; linux/amd64, 1 more of the index left out"), "{said}");
    let mut skopeo = command("skopeo", ["--insecure-policy", "--override-arch", "amd64", "copy"]);
    skopeo.args(["--src-tls-verify=false", &format!("docker://{}/library/app:1", there.host())]);
    skopeo.arg(format!("dir:{}", at("pulled").display()));
    run(skopeo).await;
    assert_eq!(std::fs::read(at("pulled/manifest.json")).unwrap(), image.manifests[0].bytes);
    // A registry takes no index without its images.
    let hosted = format!("{}/app:1", there.host());
    let said = attempt(import(&there, &at("own"), &["--as", &hosted])).await.unwrap_err();
    assert!(said.contains("`--platform all`"), "{said}");
    // The rest of it comes later.
    run(import(&there, &at("both"), &[])).await;
    assert_eq!(pulled(&there, "library/app", "1").await, pulled(&here, "library/app", "1").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_programs_write_is_taken_under_a_name() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let image = Image::random(1, 2, 100_000);
    image.write_layout(&at("plain"), "2.0");
    let mut skopeo = command("skopeo", ["--insecure-policy", "copy", "--all"]);
    skopeo.arg(format!("oci:{}:2.0", at("plain").display()));
    skopeo.arg(format!("oci:{}:3.0", at("skopeo").display()));
    run(skopeo).await;
    let config = "[upstream.\"ghcr.io\"]\n[hosted]\nrepositories = [\"*\"]\nimmutable_tags = [\"fixed:*\"]\n";
    let options = MirrorOptions {
        upstream: format!("http://127.0.0.1:{}", free_port()),
        config: Some(config.to_owned()),
        arguments: vec!["--offline".to_owned()],
        ..Default::default()
    };
    let site = Mirror::with(&at("site"), options).await;
    let said = attempt(import(&site, &at("skopeo"), &[])).await.unwrap_err();
    assert!(said.contains("its images are called `3.0` alone") && said.contains("--as"), "{said}");
    let said = attempt(import(&site, &at("skopeo"), &["--as", "quay.io/org/app"])).await.unwrap_err();
    assert!(said.contains("`quay.io` is not mirrored here; start with `--upstream quay.io`"), "{said}");
    let (bare, mut noted) = (at("bare"), import(&site, &at("plain"), &["--as", "bare:1"]));
    noted.stderr(std::fs::File::create(&bare).unwrap());
    assert!(noted.status().unwrap().success());
    let noted = std::fs::read_to_string(&bare).unwrap();
    let own = format!(
        "means docker.io/library/bare:1; as an image of your own it is `localhost:{}/bare:1`",
        site.port
    );
    assert!(noted.contains(&own), "{noted}");
    run(import(&site, &at("skopeo"), &["--as", "ghcr.io/org/app"])).await;
    assert_eq!(pulled(&site, "ghcr.io/org/app", "3.0").await.len(), 11);
    // What one repository of a registry has, another need not be sent.
    let said = run(import(&site, &at("plain"), &["--as", "ghcr.io/org/again:1", "--json"])).await;
    assert_eq!(totals(&said)["bytes_moved"], 0, "{said}");
    assert!(pulled(&site, "ghcr.io/org/again", "1").await.contains_key(image.digest()));
    let hosted = format!("{}/fixed", site.host());
    run(import(&site, &at("plain"), &["--as", &hosted])).await;
    assert!(pulled(&site, "fixed", "2.0").await.contains_key(image.digest()));

    // What may not be moved stays.
    let other = Image::random(2, 1, 1000);
    other.write_layout(&at("other"), "2.0");
    let said = attempt(import(&site, &at("other"), &["--as", &hosted])).await.unwrap_err();
    assert!(said.contains("tag `2.0` of fixed may not be changed"), "{said}");
    assert!(pulled(&site, "fixed", "2.0").await.contains_key(image.digest()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_with_a_fault_is_refused_and_taken_up_once_it_is_mended() {
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().join("layout");
    let image = Image::random(1, 3, 400_000);
    image.write_layout(&layout, "docker.io/library/app:1");
    let site = site(&directory.path().join("site")).await;
    let broken = &image.blobs[2];
    let path = blob(&layout, &broken.digest);
    let mut wrong = broken.bytes.to_vec();
    *wrong.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &wrong).unwrap();
    let said = attempt(import(&site, &layout, &[])).await.unwrap_err();
    assert!(said.contains(&format!("{}: its digest is sha256:", path.display())), "{said}");
    // As long as it is not whole, there is no such image.
    let repository = Repository::new(&site.url(), "library/app");
    assert_eq!(repository.status("manifests/1").await, 404);
    assert!(!stored_blobs(&site.data()).contains(&broken.digest));
    std::fs::write(&path, &wrong[1..]).unwrap();
    let said = attempt(import(&site, &layout, &[])).await.unwrap_err();
    assert!(said.contains(path.to_str().unwrap()) && said.contains(" bytes, and "), "{said}");
    std::fs::write(&path, &broken.bytes).unwrap();
    let said = run(import(&site, &layout, &["--json"])).await;
    let whole: u64 = image.blobs.iter().map(|blob| blob.bytes.len() as u64).sum();
    let moved = totals(&said)["bytes_moved"].as_u64().unwrap();
    assert!(moved < whole && moved >= broken.bytes.len() as u64, "{moved} of {whole}: {said}");
    assert!(pulled(&site, "library/app", "1").await.contains_key(image.digest()));

    // What an export writes is checked the same way; what is there and whole stays.
    let again = directory.path().join("again");
    run(export(&site, &again, &["app:1"])).await;
    let path = blob(&again, &broken.digest);
    std::fs::write(&path, "short").unwrap();
    std::fs::write(again.join(".forebay-unfinished-7"), "left behind").unwrap();
    std::fs::remove_file(again.join("index.json")).unwrap();
    let said = run(export(&site, &again, &["app:1", "--json"])).await;
    assert_eq!(totals(&said)["bytes_moved"], broken.bytes.len(), "{said}");
    assert_eq!(std::fs::read(path).unwrap(), broken.bytes);
    assert!(!again.join(".forebay-unfinished-7").exists());
    // Elsewhere nothing is written.
    std::fs::write(directory.path().join("precious"), "").unwrap();
    let said = attempt(export(&site, directory.path(), &["app:1"])).await.unwrap_err();
    assert!(said.contains("neither empty nor an OCI image layout"), "{said}");
    assert!(!directory.path().join("blobs").exists());
}

/// What is imported is as good as pulled: a registry that can be asked is asked as usual.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_can_ask_does_so_once_what_was_imported_is_no_longer_fresh() {
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().join("layout");
    let (old, new) = (Image::random(1, 1, 10_000), Image::random(2, 1, 10_000));
    old.write_layout(&layout, "docker.io/library/app:1");
    let upstream = Upstream::start().await;
    let config = "[freshness]\nversions = \"1s\"\nothers = \"1s\"\n".to_owned();
    let options = MirrorOptions { upstream: upstream.url(), config: Some(config), ..Default::default() };
    let mirror = Mirror::with(&directory.path().join("mirror"), options).await;
    let repository = Repository::new(&mirror.url(), "library/app");
    // That there is no such image is forgotten.
    assert_eq!(repository.status("manifests/1").await, 404);
    run(import(&mirror, &layout, &[])).await;
    upstream.put_image("library/app", "1", &new);
    let digest = async || {
        repository.get("manifests/1").await.expect(200).header("docker-content-digest").unwrap().to_owned()
    };
    assert_eq!(digest().await, old.digest());
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(digest().await, new.digest());
    // The operator's word counts again.
    run(import(&mirror, &layout, &[])).await;
    assert_eq!(digest().await, old.digest());
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_go_along() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (here, there) = (site(&at("here")).await, site(&at("there")).await);
    let own = Repository::new(&here.url(), "own");
    let image = Image::random(1, 1, 10_000);
    own.push(&image, "1").await;
    let artifact = async |subject: Option<&Content>, note: &str| {
        let blobs = [Content::new(EMPTY, "{}"), Content::new(LAYER, note.to_owned())];
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "text/x",
            "config": blobs[0].descriptor(), "layers": [blobs[1].descriptor()], "annotations": { "note": note },
        });
        if let Some(subject) = subject {
            manifest["subject"] = subject.descriptor();
        }
        for blob in &blobs {
            own.push_blob(blob.bytes.clone()).await;
        }
        Content::new(MANIFEST, manifest.to_string())
    };
    let signature = artifact(Some(&image.manifests[0]), "signature").await;
    let about_it = artifact(Some(&signature), "about it").await;
    let beside = artifact(None, "by its tag").await;
    own.push_manifest(&signature.digest, &signature).await;
    own.push_manifest(&about_it.digest, &about_it).await;
    let tag = format!("{}.sig", image.digest().replace(':', "-"));
    own.push_manifest(&tag, &beside).await;
    let name = format!("{}/own:1", here.host());
    run(export(&here, &at("bare"), &[&name, "--no-referrers"])).await;
    run(export(&here, &at("all"), &[&name])).await;
    for content in [&signature, &about_it, &beside] {
        assert!(!blob(&at("bare"), &content.digest).exists() && blob(&at("all"), &content.digest).exists());
    }

    // As hosted images, and as those of a registry that is mirrored.
    run(import(&there, &at("all"), &[])).await;
    run(import(&there, &at("all"), &["--as", "docker.io/org/app"])).await;
    for name in ["own", "org/app"] {
        let taken = Repository::new(&there.url(), name);
        for (subject, referrer) in [(&image.manifests[0], &signature), (&signature, &about_it)] {
            let list = taken.get(&format!("referrers/{}", subject.digest)).await.expect(200);
            let list: Value = serde_json::from_slice(&list.body).unwrap();
            let listed = list["manifests"].as_array().unwrap();
            assert_eq!(listed.len(), 1, "{name} {list}");
            assert_eq!(listed[0]["digest"], referrer.digest);
            assert_eq!(listed[0]["artifactType"], "text/x");
            assert!(taken.whole(&referrer.digest).await.is_ok());
        }
        assert_eq!(taken.get(&format!("manifests/{tag}")).await.expect(200).body, beside.bytes);
    }
    // An index may refer to what it has, and is taken once.
    let mut index = json!({
        "schemaVersion": 2, "mediaType": INDEX, "artifactType": "text/x",
        "subject": image.manifests[0].descriptor(), "manifests": [image.manifests[0].descriptor()],
    });
    index["annotations"] = json!({ "note": "circle" });
    let circle = Content::new(INDEX, index.to_string());
    own.push_manifest(&circle.digest, &circle).await;
    run(export(&here, &at("circle"), &[&name])).await;
    run(import(&there, &at("circle"), &["--as", "docker.io/org/circle"])).await;
    assert!(Repository::new(&there.url(), "org/circle").whole(&circle.digest).await.is_ok());
    // And on from there, though nothing of it was ever pulled.
    run(export(&there, &at("on"), &["org/app:1"])).await;
    assert!([&signature, &about_it, &beside].iter().all(|content| blob(&at("on"), &content.digest).exists()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_for_everybody_is_neither_given_out_nor_opened() {
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().join("layout");
    let image = Image::random(1, 1, 10_000);
    image.write_layout(&layout, "docker.io/library/app:1");
    let mut mirror = site(&directory.path().join("site")).await;
    run(import(&mirror, &layout, &[])).await;
    assert!(mirror.terminate(PATIENCE).unwrap().success());
    // As if it had been pulled with a login.
    let origins = files(&mirror.data().join("forebay"));
    let origin = origins.iter().find(|(_, text)| text.windows(8).any(|part| part == b"\"public\"")).unwrap();
    let path = mirror.data().join("forebay").join(origin.0);
    let text = String::from_utf8(origin.1.to_vec()).unwrap().replace("\"public\"", "\"per-caller\"");
    std::fs::write(&path, text).unwrap();
    mirror.restart().await;
    for refused in [export(&mirror, &directory.path().join("out"), &["app:1"]), import(&mirror, &layout, &[])]
    {
        let said = attempt(refused).await.unwrap_err();
        assert!(said.contains("was pulled with a login"), "{said}");
    }
    assert!(std::fs::read_to_string(path).unwrap().contains("per-caller"));
}
