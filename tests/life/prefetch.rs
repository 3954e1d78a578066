//! Blobs that begin to come while a client still reads its manifest: a guess that stands behind all else.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use serde_json::Value;

use super::support::faulty::{Fault, Upstream};
use super::support::image::{CONFIG, Content, LAYER, MANIFEST, random_bytes};
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::narrow::Narrow;
use super::support::process::Wait;
use super::support::{full, http_client, stored_blobs};

/// An image of one platform.
struct Flat {
    name: String,
    manifest: Content,
    blobs: Vec<Content>,
}

impl Flat {
    fn put(upstream: &Upstream, name: &str, seed: u64, layers: u64, size: usize) -> Self {
        let config = Content::new(CONFIG, format!("{{\"seed\":{seed}}}"));
        let layers = (0..layers).map(|layer| Content::new(LAYER, random_bytes(seed * 1000 + layer, size)));
        let layers: Vec<Content> = layers.collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(),
            "layers": layers.iter().map(Content::descriptor).collect::<Vec<Value>>(),
        });
        let manifest = Content::new(MANIFEST, manifest.to_string());
        upstream.put_manifest(&format!("library/{name}"), "1", MANIFEST, manifest.bytes.clone());
        let blobs: Vec<Content> = std::iter::once(config).chain(layers).collect();
        for blob in &blobs {
            upstream.put_blob(&format!("library/{name}"), blob.bytes.clone());
        }
        Self { name: name.to_owned(), manifest, blobs }
    }
}

async fn mirror(directory: &std::path::Path, upstream: String, prefetch: bool) -> Mirror {
    let config = format!("[prefetch]\nlayers = {prefetch}\n[log]\naccess = false\n");
    Mirror::with(directory, MirrorOptions { upstream, config: Some(config), ..Default::default() }).await
}

/// Pulls as dockerd does: the manifest, then its configuration and three layers at a time.
async fn pull(mirror: &Mirror, image: &Flat) -> Duration {
    let client = http_client().pool_max_idle_per_host(8).build().unwrap();
    let begun = Instant::now();
    let base = format!("{}/v2/library/{}", mirror.url(), image.name);
    let manifest = client.get(format!("{base}/manifests/1")).header("Accept", MANIFEST).send().await.unwrap();
    assert_eq!(manifest.bytes().await.unwrap(), image.manifest.bytes);
    // A client takes its time to look at it.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let blobs = image.blobs.iter().map(|blob| {
        let (client, url) = (client.clone(), format!("{base}/blobs/{}", blob.digest));
        async move {
            let bytes = client.get(url).send().await.unwrap().bytes().await.unwrap();
            assert_eq!(bytes, blob.bytes);
        }
    });
    stream::iter(blobs.collect::<Vec<_>>()).buffer_unordered(3).collect::<Vec<()>>().await;
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_come_once_whoever_is_first() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let image = Flat::put(&upstream, "app", 1, 6, 300_000);
    let mirror = mirror(directory.path(), upstream.url(), true).await;
    // A HEAD asks for nothing more, nor does what is held.
    let url = format!("{}/v2/library/app/manifests/1", mirror.url());
    http_client().build().unwrap().head(&url).header("Accept", MANIFEST).send().await.unwrap();
    assert_eq!(upstream.requests_for("GET", "/blobs/").len(), 0);
    pull(&mirror, &image).await;
    pull(&mirror, &image).await;
    for blob in &image.blobs {
        let fetched = upstream.requests_for("GET", &format!("blobs/{}", blob.digest)).len();
        assert_eq!(fetched, 1, "{}", blob.digest);
    }
    mirror.committed(image.blobs.len()).await;
    let held = stored_blobs(&mirror.data());
    assert!(image.blobs.iter().all(|blob| held.contains(&blob.digest)));
}

/// Somebody who only looks at manifests has no more than the beginnings fetched.
#[tokio::test(flavor = "multi_thread")]
async fn a_guess_that_nobody_comes_for_ends() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let image = Flat::put(&upstream, "app", 1, 2, 40 << 20);
    let mirror = mirror(directory.path(), upstream.url(), true).await;
    let url = format!("{}/v2/library/app/manifests/1", mirror.url());
    http_client().build().unwrap().get(&url).header("Accept", MANIFEST).send().await.unwrap();
    let wait = Wait::for_("the guesses to end");
    while mirror.metric("forebay_fills_total{result=\"failed\"}").await < 2.0 {
        wait.a_little().await;
    }
    let whole = (40 << 20) * 2;
    let came = mirror.metric("forebay_upstream_received_bytes_total{upstream=\"docker.io\"}").await;
    assert!(came < f64::from(whole) / 2.0, "{came} bytes");
    // Whoever comes later has it all.
    pull(&mirror, &image).await;
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// What it does for who pulls, and to who pulls something else at the time (`FOREBAY_FULL=1`): figures,
/// to be read by people.
#[tokio::test(flavor = "multi_thread")]
async fn measured() {
    let (rounds, size) = if full() { (7, 1 << 20) } else { (1, 20_000) };
    for (line, per_connection, shared) in
        [("8 MiB/s in all", u64::MAX, 8 << 20), ("1 MiB/s a connection", 1 << 20, 200 << 20)]
    {
        let ways: &[bool] = if full() { &[false, true, false, true] } else { &[true] };
        for &prefetch in ways {
            let (mut alone, mut first, mut second) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..rounds {
                let upstream = Upstream::start().await;
                if per_connection < u64::MAX {
                    upstream.on("GET", "/blobs/").then(Fault::Rate(per_connection));
                }
                let narrow =
                    Narrow::start(upstream.address().port(), shared, Duration::from_millis(20)).await;
                let images = [1, 2, 3].map(|seed| Flat::put(&upstream, &format!("app{seed}"), seed, 9, size));
                let directory = tempfile::tempdir().unwrap();
                let mirror = mirror(directory.path(), narrow.url(), prefetch).await;
                alone.push(pull(&mirror, &images[0]).await);
                let later = async {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    pull(&mirror, &images[2]).await
                };
                let (one, two) = tokio::join!(pull(&mirror, &images[1]), later);
                first.push(one);
                second.push(two);
            }
            println!(
                "{line}, prefetch {}: alone {} ms; two at once {} ms and {} ms",
                if prefetch { "on" } else { "off" },
                median(alone).as_millis(),
                median(first).as_millis(),
                median(second).as_millis()
            );
        }
    }
}
