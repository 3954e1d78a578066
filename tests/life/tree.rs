//! The tree on disk is CNCF distribution's: either serves what the other wrote.

use std::path::Path;

use super::pull;
use super::support::clients::{Client, Skopeo};
use super::support::faulty::Upstream;
use super::support::hosting::{LEASE, SHORT_LEASE, collect};
use super::support::image::{Content, Image};
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::process::{PATIENCE, Wait};
use super::support::pushers::Pusher;
use super::support::registry::{Registry, RegistryOptions};
use super::support::repository::Repository;
use super::support::{http, stored_blobs};

/// Lets a mirror begin with what a registry has stored. No upstream answers it.
async fn mirror_over(directory: &Path, storage: &Path, arguments: &[&str]) -> Mirror {
    let mut nowhere = Upstream::start().await;
    nowhere.stop().await;
    std::fs::create_dir_all(directory).unwrap();
    std::fs::rename(storage, directory.join("data")).unwrap();
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let config = Some(SHORT_LEASE.to_owned());
    let options = MirrorOptions { upstream: nowhere.url(), config, arguments, ..Default::default() };
    Mirror::with(directory, options).await
}

/// Ends a mirror and lets a registry begin with what it has stored.
async fn registry_over(directory: &Path, mut mirror: Mirror, options: RegistryOptions) -> Registry {
    let ended = mirror.terminate(PATIENCE).expect("it ends by itself");
    assert!(ended.success());
    std::fs::create_dir_all(directory).unwrap();
    std::fs::rename(mirror.data(), directory.join("storage")).unwrap();
    Registry::start(directory, options).await
}

#[tokio::test]
async fn what_was_pushed_to_distribution_is_hosted() {
    let directory = tempfile::tempdir().unwrap();
    let mut registry = Registry::start(&directory.path().join("registry"), RegistryOptions::default()).await;
    let (app, other) = (Image::random(1, 1, 100_000), Image::random(2, 1, 100_000));
    app.push(&registry, "myapp", "1").await;
    other.push(&registry, "library/x", "1").await;
    registry.stop();
    let mirror = mirror_over(&directory.path().join("mirror"), &registry.storage(), &[]).await;
    pull(&(mirror.url() + "/v2/myapp"), "1", &app).await;

    // Whose this one is nothing says: it is not taken for Docker Hub's, and the log names the remedy.
    for path in ["manifests/1", &format!("blobs/{}", other.blobs[0].digest)] {
        let answer = http().get(format!("{}/v2/library/x/{path}", mirror.url())).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{path}");
        let told = answer.text().await.unwrap();
        assert!(told.contains("--adopt docker.io"), "{told}");
    }
    assert!(mirror.log().contains("--adopt docker.io"));
    assert!(stored_blobs(&mirror.data()).contains(&other.blobs[0].digest), "what is not served is kept");
}

#[tokio::test]
async fn what_distribution_mirrored_is_adopted() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let image = Image::random(1, 1, 100_000);
    upstream.put_image("library/x", "1", &image);
    let options = RegistryOptions { proxy: Some(upstream.url()), ..Default::default() };
    let mut cache = Registry::start(&directory.path().join("cache"), options).await;
    pull(&(cache.url() + "/v2/library/x"), "1", &image).await;
    stored(&cache, "library/x", &image).await;
    cache.stop();
    let place = directory.path().join("mirror");
    let mut mirror = mirror_over(&place, &cache.storage(), &["--adopt", "docker.io"]).await;
    let base = mirror.url() + "/v2/library/x";
    pull(&base, "1", &image).await;
    mirror.kill();
    mirror.restart().await;
    pull(&base, "1", &image).await;
}

#[tokio::test]
async fn distribution_serves_what_was_mirrored() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let image = Image::random(1, 2, 100_000);
    upstream.put_image("library/x", "1", &image);
    let mirror = Mirror::start(&directory.path().join("mirror"), &upstream.url()).await;
    pull(&(mirror.url() + "/v2/library/x"), "1", &image).await;
    let place = directory.path().join("registry");
    let registry = registry_over(&place, mirror, RegistryOptions::default()).await;
    pull(&(registry.url() + "/v2/library/x"), "1", &image).await;
    let skopeo = Skopeo::new(&directory.path().join("copy"), &registry.url());
    skopeo.pull("x:1").await;
    let copied = skopeo.held("x:1").await;
    assert!(image.blobs.iter().all(|blob| copied.contains(&blob.digest)), "{copied:?}");
}

/// Pushes with skopeo: an index, its manifests, and all that they name.
async fn push(directory: &Path, image: &Image, target: &str) {
    let layout = directory.join(format!("layout-{}", &image.digest()["sha256:".len()..]));
    image.write_layout(&layout, "1");
    let skopeo = Skopeo::new(&directory.join("skopeo"), "");
    skopeo.load(&layout, target).await;
    assert_eq!(skopeo.push(target).await, image.digest());
}

#[tokio::test]
async fn what_distribution_wrote_and_forebay_changed_is_distributions_again() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mut registry = Registry::start(&at("first"), RegistryOptions::default()).await;
    let images: Vec<Image> = (1..=5).map(|seed| Image::random(seed, 1, 50_000)).collect();
    let [kept, moved, untagged, deleted, added] = &images[..] else { unreachable!() };
    for (image, name) in [(kept, "kept:1"), (moved, "app:1"), (untagged, "app:2"), (deleted, "gone:1")] {
        push(directory.path(), image, &format!("{}/{name}", registry.host())).await;
    }
    registry.stop();

    let mirror = mirror_over(&at("mirror"), &registry.storage(), &[]).await;
    let (url, host) = (mirror.url(), mirror.host());
    let of = |name: &str| Repository::new(&url, name);
    pull(&of("kept").base, "1", kept).await;
    pull(&of("app").base, "2", untagged).await;
    // A new image, a tag that moves, one that goes and leaves its manifest, and a manifest that goes.
    push(directory.path(), added, &format!("{host}/added:1")).await;
    push(directory.path(), added, &format!("{host}/app:1")).await;
    of("app").delete("manifests/2").await.expect(202);
    of("gone").delete(&format!("manifests/{}", deleted.digest())).await.expect(202);
    for manifest in &deleted.manifests {
        of("gone").delete(&format!("manifests/{}", manifest.digest)).await.expect(202);
    }
    tokio::time::sleep(LEASE * 2).await;
    collect(&mirror).await;
    let kept_by_forebay = stored_blobs(&mirror.data());
    let only_in_deleted = |digest: &String| !kept.blobs.iter().any(|blob| blob.digest == *digest);
    for blob in deleted.blobs.iter().filter(|blob| only_in_deleted(&blob.digest)) {
        assert!(!kept_by_forebay.contains(&blob.digest), "{} was nobody's", blob.digest);
    }

    let registry = registry_over(&at("second"), mirror, RegistryOptions::default()).await;
    let of = |name: &str| Repository::new(&registry.url(), name);
    pull(&of("kept").base, "1", kept).await;
    pull(&of("added").base, "1", added).await;
    pull(&of("app").base, "1", added).await;
    // Without its tag, an image is still there by its digest.
    pull(&of("app").base, untagged.digest(), untagged).await;
    pull(&of("app").base, moved.digest(), moved).await;
    assert_eq!(of("app").tags(None).await, ["1"]);
    for path in ["manifests/1".to_owned(), format!("manifests/{}", deleted.digest())] {
        assert_eq!(of("gone").status(&path).await, 404, "{path}");
    }
    // And it is changed by its first owner as before.
    push(directory.path(), deleted, &format!("{}/gone:1", registry.host())).await;
    pull(&of("gone").base, "1", deleted).await;
    assert_eq!(stored_blobs(&registry.storage()), {
        let all = images.iter().flat_map(|image| {
            image
                .blobs
                .iter()
                .chain(&image.manifests)
                .chain([&image.index])
                .map(|content| content.digest.clone())
        });
        all.collect()
    });
}

#[tokio::test]
async fn what_distribution_mirrored_is_its_own_again() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let (first, second) = (Image::random(1, 1, 50_000), Image::random(2, 1, 50_000));
    upstream.put_image("library/first", "1", &first);
    upstream.put_image("library/second", "1", &second);
    let proxy = || RegistryOptions { proxy: Some(upstream.url()), ..Default::default() };
    let mut cache = Registry::start(&directory.path().join("cache"), proxy()).await;
    pull(&(cache.url() + "/v2/library/first"), "1", &first).await;
    stored(&cache, "library/first", &first).await;
    cache.stop();

    // Forebay adds an image of the same upstream's, and collects: what is mirrored is no garbage.
    let place = directory.path().join("mirror");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::rename(cache.storage(), place.join("data")).unwrap();
    let arguments = vec!["--adopt".to_owned(), "docker.io".to_owned()];
    let config = Some(SHORT_LEASE.to_owned());
    let options = MirrorOptions { upstream: upstream.url(), config, arguments, ..Default::default() };
    let mirror = Mirror::with(&place, options).await;
    pull(&(mirror.url() + "/v2/library/second"), "1", &second).await;
    for (name, image) in [("first", &first), ("second", &second)] {
        for content in image.manifests.iter().chain([&image.index]) {
            let revision = content.digest.replace(':', "/");
            if name == "second" {
                mirror.linked(&format!("library/{name}/_manifests/revisions/{revision}/link")).await;
            }
        }
    }
    mirror.committed(second.blobs.len() - 2).await;
    tokio::time::sleep(LEASE * 2).await;
    collect(&mirror).await;
    let asked = upstream.requests_for("GET", "/blobs/").len();

    let place = directory.path().join("again");
    let registry = registry_over(&place, mirror, proxy()).await;
    pull(&(registry.url() + "/v2/library/first"), "1", &first).await;
    pull(&(registry.url() + "/v2/library/second"), "1", &second).await;
    assert_eq!(upstream.requests_for("GET", "/blobs/").len(), asked, "what was held was fetched again");
}

/// Waits until a registry that mirrors has stored all blobs: it does so behind its answers.
async fn stored(cache: &Registry, repository: &str, image: &Image) {
    let layers = cache.storage().join("docker/registry/v2/repositories").join(repository).join("_layers");
    let is_linked = |blob: &Content| layers.join(blob.digest.replace(':', "/")).join("link").exists();
    let wait = Wait::for_("docker-registry to store the blobs");
    while !image.blobs.iter().all(is_linked) {
        wait.a_little().await;
    }
}
