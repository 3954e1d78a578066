//! The tree on disk is CNCF distribution's: either serves what the other wrote.

use std::path::Path;

use super::pull;
use super::support::clients::{Client, Skopeo};
use super::support::faulty::Upstream;
use super::support::image::{Content, Image};
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::process::{PATIENCE, Wait, free_port};
use super::support::registry::{Registry, RegistryOptions};
use super::support::{http, stored_blobs};

/// Lets a mirror begin with what a registry has stored.
pub async fn mirror_over(directory: &Path, storage: &Path, options: MirrorOptions) -> Mirror {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::rename(storage, directory.join("data")).unwrap();
    Mirror::with(directory, options).await
}

/// No upstream answers.
pub fn nowhere() -> MirrorOptions {
    MirrorOptions { upstream: format!("http://127.0.0.1:{}", free_port()), ..Default::default() }
}

/// What is of unknown origin is Docker Hub's.
pub fn adopting() -> Vec<String> {
    ["--adopt", "docker.io"].map(str::to_owned).to_vec()
}

/// Ends a mirror and lets a registry begin with what it has stored.
pub async fn registry_over(directory: &Path, mut mirror: Mirror, options: RegistryOptions) -> Registry {
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
    let mirror = mirror_over(&directory.path().join("mirror"), &registry.storage(), nowhere()).await;
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
    let options = MirrorOptions { arguments: adopting(), ..nowhere() };
    let mut mirror = mirror_over(&place, &cache.storage(), options).await;
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

/// Waits until a registry that mirrors has stored all blobs: it does so behind its answers.
pub async fn stored(cache: &Registry, repository: &str, image: &Image) {
    let layers = cache.storage().join("docker/registry/v2/repositories").join(repository).join("_layers");
    let is_linked = |blob: &Content| layers.join(blob.digest.replace(':', "/")).join("link").exists();
    let wait = Wait::for_("docker-registry to store the blobs");
    while !image.blobs.iter().all(is_linked) {
        wait.a_little().await;
    }
}
