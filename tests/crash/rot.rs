//! What the disk lied about is caught at the first read after a stop without notice.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::get;
use super::support::faulty::Upstream;
use super::support::hosting::hosting;
use super::support::http;
use super::support::image::random_bytes;
use super::support::mirror::{Mirror, forebay};
use super::support::process::{PATIENCE, run};
use super::support::repository::Repository;

const SIZE: usize = 4 << 20;

fn data(mirror: &Mirror, digest: &str) -> PathBuf {
    let hex = digest.strip_prefix("sha256:").unwrap();
    mirror.data().join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
}

/// The end that was not written when the power went.
fn lose_tail(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[SIZE - 100_000..].fill(0);
    fs::write(path, bytes).unwrap();
}

fn shorten(path: &Path) {
    fs::File::options().write(true).open(path).unwrap().set_len(SIZE as u64 / 2).unwrap();
}

/// What comes of a GET, and whether it ended as a whole one does.
async fn first(url: &str, range: Option<&str>) -> (u16, bool) {
    let mut request = http().get(url);
    if let Some(range) = range {
        request = request.header("range", range);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.bytes().await.is_ok())
}

#[tokio::test]
async fn a_mirrored_blob_that_is_bad_after_a_kill_is_cut_and_fetched_again() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let mut mirror = Mirror::start(directory.path(), &upstream.url()).await;
    let mut seed = 0;
    for damage in [lose_tail as fn(&Path), shorten] {
        for range in [None, Some("bytes=100-199")] {
            seed += 1;
            let bytes = Bytes::from(random_bytes(seed, SIZE));
            let digest = upstream.put_blob("library/x", bytes.clone());
            let url = format!("{}/v2/library/x/blobs/{digest}", mirror.url());
            assert_eq!(get(&url).await, (200, bytes.clone()));
            mirror.linked(&format!("library/x/_layers/{}/link", digest.replace(':', "/"))).await;
            mirror.kill();
            damage(&data(&mirror, &digest));
            mirror.restart().await;
            let (status, whole) = first(&url, range).await;
            assert!(matches!(status, 200 | 206) && !whole, "{status} {whole}");
            assert_eq!(get(&url).await, (200, bytes.clone()));
            assert_eq!(upstream.requests_for("GET", &digest).len(), 2, "fetched once more");
        }
    }
    assert!(mirror.log().contains("data is bad"));
}

#[tokio::test]
async fn doubt_ends_once_all_was_verified() {
    let directory = tempfile::tempdir().unwrap();
    let mut registry = hosting(directory.path(), "").await;
    let app = Repository::new(&registry.url(), "app");
    let digest = app.push_blob(random_bytes(9, SIZE)).await;
    registry.kill();
    shorten(&data(&registry, &digest));
    registry.restart().await;
    let url = format!("{}/v2/app/blobs/{digest}", registry.url());
    assert_eq!(first(&url, None).await, (200, false));
    let (status, body) = get(&url).await;
    assert_eq!(status, 500, "{body:?}");
    assert_eq!(app.push_blob(random_bytes(9, SIZE)).await, digest);
    assert_eq!(get(&url).await.1, random_bytes(9, SIZE));
    let running = registry.data().join("forebay/running");
    assert!(running.exists());
    run({
        let mut verify = forebay(["verify", "--data"]);
        verify.arg(registry.data());
        verify
    })
    .await;
    assert!(registry.terminate(PATIENCE).unwrap().success());
    assert!(!running.exists());
    registry.restart().await;
    let warned = "was stopped without notice";
    assert_eq!(registry.log().matches(warned).count(), 1, "the second start trusts what it finds");
}
