//! Blobs that begin to come before a client asks: they keep nobody from a place upstream, and nobody
//! waits for what has become of them.

use forebay::answer::BlobAnswer;
use forebay::oci::Digest;
use futures_util::future::join_all;
use serde_json::json;

use super::support::image::{CONFIG, Content, LAYER, MANIFEST, random_bytes};
use super::support::process::{PATIENCE, Wait};
use super::*;

const APP: &str = "library/app";
const OTHER: &str = "library/other";
const LAYERS: u64 = 4;
const MAX_FILLS: usize = 8;

impl Rig {
    async fn guessing(queue_timeout: Duration) -> Self {
        let setting = Setting { prefetch: true, max_fills: MAX_FILLS, queue_timeout, ..Setting::default() };
        let (upstream, dir) = (faulty::Upstream::start().await, Arc::new(tempfile::tempdir().unwrap()));
        Self::with(upstream, dir, Clock::default(), &["docker.io"], setting).await
    }

    /// A client looks at the manifest of an image. Its layers begin to come, and wait for their client:
    /// they hold half of the places.
    async fn guesses(&self) -> Vec<String> {
        let config = Content::new(CONFIG, "{}");
        let layers: Vec<Content> =
            (0..LAYERS).map(|seed| Content::new(LAYER, random_bytes(seed, 4 << 20))).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(),
            "layers": layers.iter().map(Content::descriptor).collect::<Vec<_>>(),
        });
        self.upstream.put_manifest(APP, "x", MANIFEST, manifest.to_string());
        for blob in layers.iter().chain([&config]) {
            self.upstream.put_blob(APP, blob.bytes.clone());
        }
        self.get("x").await.unwrap();
        let wait = Wait::for_("the guesses to be all that is under way");
        let begun = |layer: &Content| {
            let asked = self.upstream.requests_for("GET", &format!("/blobs/{}", layer.digest));
            asked.iter().any(|asked| asked.sent() >= 1 << 20)
        };
        while !layers.iter().all(begun) || self.metrics.fills_in_flight.get() != LAYERS as i64 {
            wait.a_little().await;
        }
        layers.into_iter().map(|layer| layer.digest).collect()
    }

    async fn open(&self, name: &str, digest: &str) -> Result<BlobAnswer, Error> {
        let digest: Digest = digest.parse().unwrap();
        self.mirror.blob(self.asker(), &repository("docker.io", name), &digest, BlobWant::Whole).await
    }

    /// Takes every place for clients, whose blobs come so.
    async fn crowd(&self, fault: Fault) -> Vec<BlobAnswer> {
        self.upstream.on("GET", "/library/other/blobs/").then(fault);
        let digests = (100..).map(|seed| self.upstream.put_blob(OTHER, random_bytes(seed, 100_000)));
        let mut opened = Vec::new();
        for digest in digests.take(MAX_FILLS) {
            opened.push(self.open(OTHER, &digest).await.expect("clients have every place"));
        }
        opened
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_give_their_places_to_who_waits_for_one() {
    let rig = Rig::guessing(Duration::from_secs(1)).await;
    rig.guesses().await;
    assert_eq!(rig.crowd(Fault::Rate(10_000)).await.len(), MAX_FILLS);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_fill_that_follows_a_guess() {
    let rig = Rig::guessing(MINUTE).await;
    let layers = rig.guesses().await;
    let _others = rig.crowd(Fault::Rate(100_000)).await;
    // The guesses have just ended: who asks now begins anew, and waits for a place.
    rig.upstream.on("GET", "/library/app/blobs/").then(Fault::Stall { after: 1 << 20 });
    let pulls = layers.iter().map(|layer| async {
        let first = rig.open(APP, layer).await.unwrap();
        let second = tokio::time::timeout(PATIENCE, rig.open(APP, layer)).await.unwrap().unwrap();
        assert_eq!((first.served.clone(), second.served.clone()), (Served::Miss, Served::Joined));
        (first, second)
    });
    join_all(pulls).await;
}
