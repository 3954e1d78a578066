//! Pushed content: an acknowledgement is a promise, and an upload goes on where it broke off.

use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::Method;

use super::support::hosting::hosting;
use super::support::image::{CONFIG, Content, LAYER, MANIFEST, random_bytes};
use super::support::mirror::Mirror;
use super::support::repository::{Repository, ending};
use super::support::{full, sha256, stored_blobs};
use super::{SEED, get};

/// A manifest with a layer and a configuration that no other round has, and these.
fn image(seed: u64) -> (Content, [Content; 2]) {
    let layer = Content::new(LAYER, random_bytes(seed, 50_000));
    let config = Content::new(CONFIG, format!("{{\"round\":{seed}}}"));
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": config.descriptor(), "layers": [layer.descriptor()],
    });
    (Content::new(MANIFEST, manifest.to_string()), [layer, config])
}

/// Kills it in the moment in which a manifest's 201 is there; the whole image must be there after.
async fn acknowledged(mirror: &mut Mirror, round: u64) {
    let repository = Repository::new(&mirror.url(), "app");
    let (manifest, blobs) = image(round);
    for blob in &blobs {
        repository.push_blob(blob.bytes.clone()).await;
    }
    // One tag of its own, and one that each round moves.
    let tag = format!("round-{round}");
    let reference = if round.is_multiple_of(2) { &tag } else { "latest" };
    let answer = repository.try_manifest(reference, &manifest).await.unwrap();
    mirror.kill();
    answer.expect(201);
    stored_blobs(&mirror.data());
    mirror.restart().await;
    let whole = repository.whole(reference).await.unwrap();
    assert_eq!(whole.len(), 3);
    assert_eq!(whole.get(&manifest.digest), Some(&manifest.bytes), "{reference} leads elsewhere");
    assert_eq!(
        repository.get(&format!("manifests/{}", manifest.digest)).await.expect(200).body,
        manifest.bytes
    );
    assert!(repository.tags(None).await.contains(&reference.to_owned()));
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_in_the_same_moment() {
    let directory = tempfile::tempdir().unwrap();
    let mut mirror = hosting(directory.path(), "").await;
    let rounds = if full() { 200 } else { 12 };
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        acknowledged(&mut mirror, round).await;
    }
    // And none of them took anything from those before.
    let repository = Repository::new(&mirror.url(), "app");
    for round in 1..=rounds {
        assert_eq!(repository.whole(&image(round).0.digest).await.unwrap().len(), 3, "round {round}");
    }
}

/// A blob alone, whose 201 says that it may be counted on.
#[tokio::test]
async fn an_acknowledged_blob_survives_a_kill_in_the_same_moment() {
    let directory = tempfile::tempdir().unwrap();
    let mut mirror = hosting(directory.path(), "").await;
    let repository = Repository::new(&mirror.url(), "app");
    let rounds = if full() { 50 } else { 6 };
    for round in 1..=rounds {
        let bytes = Bytes::from(random_bytes(round, 200_000));
        let digest = sha256(&bytes);
        let answer = repository.try_blob(&digest, bytes.clone()).await.unwrap();
        mirror.kill();
        answer.expect(201);
        mirror.restart().await;
        assert_eq!(get(&format!("{}/blobs/{digest}", repository.base)).await, (200, bytes));
    }
}

/// A client whose connection broke asks where it stands and goes on from there.
async fn finish(repository: &Repository, location: &str, bytes: &Bytes) {
    let digest = sha256(bytes);
    let answer = repository.send(Method::GET, location).await.expect(204);
    let (_, last) = answer.header("range").unwrap().split_once('-').unwrap();
    let last: usize = last.parse().unwrap();
    // `0-0` is no byte or one: an upload of which nothing came begins anew.
    let from = if last == 0 { 0 } else { last + 1 };
    assert!(from <= bytes.len(), "{from} of {}", bytes.len());
    let mut location = answer.header("location").unwrap().to_owned();
    if from < bytes.len() {
        let patch = repository.request(Method::PATCH, &location).body(bytes.slice(from..));
        let patch = patch.header("Content-Range", format!("{from}-{}", bytes.len() - 1));
        let answer = patch.send().await.unwrap();
        assert_eq!(answer.status(), 202, "from {from}");
        location = answer.headers()["location"].to_str().unwrap().to_owned();
    }
    repository.send(Method::PUT, &ending(&location, &digest)).await.expect(201);
    assert_eq!(get(&format!("{}/blobs/{digest}", repository.base)).await, (200, bytes.clone()));
}

#[tokio::test]
async fn an_upload_goes_on_after_a_kill_at_any_point() {
    let directory = tempfile::tempdir().unwrap();
    let mut mirror = hosting(directory.path(), "").await;
    let repository = Repository::new(&mirror.url(), "app");
    let mut random = StdRng::seed_from_u64(SEED);
    let rounds = if full() { 60 } else { 8 };
    for round in 1..=rounds {
        let bytes = Bytes::from(random_bytes(round, 4 << 20));
        let location = repository.begin().await;
        let patch = repository.request(Method::PATCH, &location).body(bytes.clone());
        let moment = random.random_range(0..20_000);
        eprintln!("round {round} of {rounds}: killed after {moment} us");
        let sending = tokio::spawn(patch.send());
        tokio::time::sleep(Duration::from_micros(moment)).await;
        mirror.kill();
        let _ = sending.await.unwrap();
        stored_blobs(&mirror.data());
        mirror.restart().await;
        finish(&repository, &location, &bytes).await;
    }
}

/// What was taken by a finished PATCH is not asked for again.
#[tokio::test]
async fn an_acknowledged_chunk_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let mut mirror = hosting(directory.path(), "").await;
    let repository = Repository::new(&mirror.url(), "app");
    let bytes = Bytes::from(random_bytes(1, 1 << 20));
    let location = repository.begin().await;
    let half = bytes.len() / 2;
    let patch = repository.request(Method::PATCH, &location).body(bytes.slice(..half));
    let answer = patch.header("Content-Range", format!("0-{}", half - 1)).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    mirror.kill();
    mirror.restart().await;
    let answer = repository.send(Method::GET, &location).await.expect(204);
    assert_eq!(answer.header("range"), Some(format!("0-{}", half - 1).as_str()));
    finish(&repository, &location, &bytes).await;
}
