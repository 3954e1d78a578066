//! What is being read does not go, and counts: nobody is cut off or held up because there is no room.

use std::time::Duration;

use futures_util::future::join_all;

use super::MIB;
use super::slow::Slow;
use super::space::{Sampler, tmpfs};
use super::support::faulty::Upstream;
use super::support::full;
use super::support::hosting::{LEASE, SHORT_LEASE, collect};
use super::support::image::{Content, Image, LAYER, random_bytes};
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::namespace::isolated;
use super::support::process::Wait;
use super::support::repository::Repository;

const CAP: usize = 64 * MIB;
const MIN_FREE: usize = 4 * MIB;
/// Together they fill the cap but for 1 MiB.
const HELD: usize = 18;
const HELD_SIZE: usize = 7 * MIB / 2;
const READERS: usize = 200;
const COLD_SIZE: usize = 3 * MIB;

/// A mirror on 80 MiB of which it may have 64.
async fn mirror(directory: &std::path::Path, upstream: &Upstream) -> (Mirror, Sampler) {
    tmpfs(&directory.join("data"), 80 << 20).await;
    let config = format!(
        "{SHORT_LEASE}[limits]\ncold_misses = \"unlimited\"\n[cache]\nmax_size = \"{CAP}B\"\nmin_free = \"{MIN_FREE}B\"\n"
    );
    let options = MirrorOptions { upstream: upstream.url(), config: Some(config), ..Default::default() };
    let mirror = Mirror::with(directory, options).await;
    let sampler = Sampler::start(mirror.data());
    (mirror, sampler)
}

fn put(upstream: &Upstream, name: &str, seed: u64, size: usize) -> Image {
    let image = Image::plain(&[Content::new(LAYER, random_bytes(seed, size))], name);
    upstream.put_image(name, "1", &image);
    image
}

async fn pull(mirror: &Mirror, name: &str) {
    Repository::new(&mirror.url(), name).whole("1").await.unwrap();
}

/// Whether it stands on the disk.
fn is_stored(mirror: &Mirror, blob: &Content) -> bool {
    let hex = blob.digest.trim_start_matches("sha256:");
    let shard = mirror.data().join("docker/registry/v2/blobs/sha256").join(&hex[..2]);
    shard.join(hex).join("data").exists()
}

/// Blob downloads that upstream has seen of an image.
fn layer_gets(upstream: &Upstream, image: &Image) -> usize {
    upstream.requests_for("GET", &image.blobs[0].digest).len()
}

#[test]
fn slow_readers_of_all_that_could_go_are_not_cut_and_hold_up_nobody() {
    isolated(async |directory| {
        let upstream = Upstream::start().await;
        let (mirror, sampler) = mirror(&directory, &upstream).await;
        let held: Vec<Image> = (0..HELD as u64)
            .map(|number| put(&upstream, &format!("library/held{number}"), number, HELD_SIZE))
            .collect();
        for number in 0..HELD {
            pull(&mirror, &format!("library/held{number}")).await;
        }
        mirror.committed(2 * HELD).await;

        let mut readers = Slow::new(mirror.port);
        for reader in 0..READERS {
            let number = reader % HELD;
            let layer = &held[number].blobs[0];
            readers.read(&format!("library/held{number}"), &layer.digest, &layer.bytes);
        }
        readers.begun().await;

        let rounds = if full() { 10 } else { 2 };
        let cold: Vec<Image> = (0..16)
            .map(|number| put(&upstream, &format!("library/cold{number}"), 100 + number, COLD_SIZE))
            .collect();
        for _ in 0..rounds {
            let names: Vec<String> = (0..cold.len()).map(|number| format!("library/cold{number}")).collect();
            join_all(names.iter().map(|name| pull(&mirror, name))).await;
        }
        for image in &cold {
            assert_eq!(layer_gets(&upstream, image), rounds, "there is no room for it");
        }
        assert!(mirror.metric("forebay_fill_relays_total").await >= (rounds * cold.len()) as f64);
        assert_eq!(mirror.metric("forebay_store_evictions_total").await, 0.0);
        assert!(readers.all_read(), "slower readers are needed");
        sampler.assert_kept_to(CAP as u64, MIN_FREE as u64);

        readers.hurry().await;
        for (number, image) in cold.iter().enumerate() {
            let name = format!("library/cold{number}");
            let wait = Wait::for_("room to be made again");
            while !is_stored(&mirror, &image.blobs[0]) {
                pull(&mirror, &name).await;
                wait.a_little().await;
            }
        }
        assert!(mirror.metric("forebay_store_evictions_total").await >= 4.0);
        sampler.assert_kept_to(CAP as u64, MIN_FREE as u64);
    });
}

/// Deleted content takes its place for as long as somebody reads it.
#[test]
fn what_is_gone_counts_while_it_is_read() {
    isolated(async |directory| {
        let upstream = Upstream::start().await;
        let (mirror, sampler) = mirror(&directory, &upstream).await;
        let app = Repository::new(&mirror.url(), "app");
        let own = Image::plain(&[Content::new(LAYER, random_bytes(1, 24 * MIB))], "own");
        let layer = &own.blobs[0];
        app.push(&own, "1").await;
        let mut reader = Slow::new(mirror.port);
        reader.read("app", &layer.digest, &layer.bytes);
        reader.begun().await;
        app.delete(&format!("manifests/{}", own.digest())).await.expect(202);
        tokio::time::sleep(LEASE + Duration::from_millis(200)).await;
        let wait = Wait::for_("it to be collected");
        while is_stored(&mirror, layer) {
            collect(&mirror).await;
            wait.a_little().await;
        }
        assert_eq!(app.status(&format!("blobs/{}", layer.digest)).await, 404);

        for number in 0..30 {
            let image = put(&upstream, &format!("library/x{number}"), 10 + number, COLD_SIZE);
            pull(&mirror, &format!("library/x{number}")).await;
            mirror.linked(&format!("library/x{number}/_manifests/tags/1/current/link")).await;
            pull(&mirror, &format!("library/x{number}")).await;
            assert_eq!(layer_gets(&upstream, &image), 1, "it is kept");
        }
        assert!(mirror.metric("forebay_store_evictions_total").await >= 10.0);
        assert!(reader.all_read());
        sampler.assert_kept_to(CAP as u64, MIN_FREE as u64);
        reader.hurry().await;
    });
}

/// A push is not held to the cap, but what is mirrored gives way to it as it comes, not half a minute later.
#[test]
fn what_is_mirrored_gives_way_to_a_push_under_way() {
    isolated(async |directory| {
        let (upstream, data) = (Upstream::start().await, directory.join("data"));
        tmpfs(&data, 300 << 20).await;
        let config =
            "[cache]\nmin_free = \"80MiB\"\n[hosted]\nrepositories = [\"corp.internal/**\"]\n".to_owned();
        let options = MirrorOptions { upstream: upstream.url(), config: Some(config), ..Default::default() };
        let mirror = Mirror::with(&directory, options).await;
        let images = 20;
        for number in 0..images {
            let name = format!("library/held{number}");
            put(&upstream, &name, number, 10 * MIB);
            pull(&mirror, &name).await;
        }
        mirror.committed(2 * images as usize).await;
        let large = random_bytes(1000, 200 * MIB);
        Repository::new(&mirror.url(), "corp.internal/large").push_blob(large).await;
        assert!(mirror.metric("forebay_store_evictions_total").await >= 12.0);
    });
}
