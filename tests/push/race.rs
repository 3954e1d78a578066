//! Collections while eight push, delete and share layers: what was acknowledged is whole.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::plain;
use super::support::full;
use super::support::hosting::{LEASE, SHORT_LEASE, hosting, try_collect};
use super::support::image::{Image, random_bytes};
use super::support::repository::Repository;

const SEED: u64 = 20_260_102;
const PUSHERS: u64 = 8;
/// Layers that all images are made of: few, so that what one forgets another one wants.
const LAYERS: u64 = 6;

/// An image of two of the shared layers and a configuration of its own.
fn image(random: &mut StdRng, note: &str) -> Image {
    let layers: Vec<u64> = (0..LAYERS).collect();
    let chosen = layers.choose_multiple(random, 2).map(|layer| random_bytes(*layer, 20_000));
    plain(&chosen.collect::<Vec<_>>(), note)
}

/// What a client does: asks for each blob, uploads what is missing, then, after a `pause`, puts the
/// manifest. False where the registry says that something is missing: the client would begin anew.
async fn push(repository: &Repository, image: &Image, tag: &str, pause: Duration) -> bool {
    for blob in &image.blobs {
        if repository.status(&format!("blobs/{}", blob.digest)).await != 200 {
            repository.push_blob(blob.bytes.clone()).await;
        }
    }
    tokio::time::sleep(pause).await;
    let answer = repository.try_manifest(tag, &image.index).await.unwrap();
    let said = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(answer.status == 201 || said.contains("MANIFEST_BLOB_UNKNOWN"), "{}: {said}", answer.status);
    answer.status == 201
}

/// Pushes and deletes until `end`; the tags that are there at last, and their images.
async fn pusher(
    url: String,
    number: u64,
    end: Instant,
    refused: &AtomicU64,
) -> Vec<(Repository, String, Image)> {
    let mut random = StdRng::seed_from_u64(SEED + number);
    // Two pushers to a repository.
    let repository = Repository::new(&url, &format!("app{}", number / 2));
    let mut held: Vec<(Repository, String, Image)> = Vec::new();
    for round in 0.. {
        if Instant::now() >= end {
            break;
        }
        let tag = format!("p{number}-{round}");
        let image = image(&mut random, &tag);
        // Some dawdle until their leases have ended. What is missing then is refused, and no more.
        let pause = if random.random_bool(0.1) { LEASE + LEASE / 2 } else { Duration::ZERO };
        match push(&repository, &image, &tag, pause).await {
            true => held.push((repository.clone(), tag, image)),
            false => _ = refused.fetch_add(1, Ordering::Relaxed),
        }
        // Most go again, so that the layers are mostly nobody's.
        while held.len() > 1 && random.random_bool(0.7) {
            let (repository, tag, image) = held.swap_remove(random.random_range(0..held.len()));
            let path = if random.random_bool(0.5) { &tag } else { image.digest() };
            repository.delete(&format!("manifests/{path}")).await.expect(202);
            assert_eq!(repository.status(&format!("manifests/{path}")).await, 404);
        }
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collections_race_with_pushers() {
    let directory = tempfile::tempdir().unwrap();
    let config = format!("{SHORT_LEASE}untagged = \"1s\"\n");
    let mirror = hosting(directory.path(), &config).await;
    let seconds = if full() { 60 } else { 6 };
    let end = Instant::now() + Duration::from_secs(seconds);
    let (refused, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let pushes = async {
        let pushers = (0..PUSHERS).map(|number| pusher(mirror.url(), number, end, &refused));
        let held = futures_util::future::join_all(pushers).await;
        done.store(true, Ordering::Relaxed);
        held.concat()
    };
    let collections = async {
        let (mut passes, mut removed) = (0, 0);
        while !done.load(Ordering::Relaxed) {
            // A pass that took longer than a lease ends unfinished, and says so.
            if let Ok(said) = try_collect(&mirror).await {
                removed += said.matches("sha256:").count();
                passes += 1;
            }
        }
        (passes, removed)
    };
    let (held, (passes, removed)) = tokio::join!(pushes, collections);
    eprintln!(
        "{passes} collections removed {removed}; {} images left, {} pushes refused",
        held.len(),
        refused.load(Ordering::Relaxed)
    );
    assert!(passes > 1 && removed > 0, "nothing raced");
    assert!(held.len() >= PUSHERS as usize, "nothing was pushed");
    for (repository, tag, image) in held {
        let whole = repository.whole(&tag).await.unwrap();
        assert_eq!(whole.len(), 1 + image.blobs.len(), "{tag}");
        assert!(whole.contains_key(image.digest()), "{tag}");
    }
}
