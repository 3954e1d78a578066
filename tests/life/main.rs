//! The life of the server: configuration, start, reload, end, and what an operator sees of it.

#[path = "../support/mod.rs"]
mod support;

mod addresses;
mod airgap;
mod chain;
mod configuration;
mod control;
mod cut;
mod directory;
mod dropin;
mod events;
mod holding;
mod listeners;
mod lists;
mod operations;
mod prefetch;
mod proxy;
mod referrers;
mod round_trip;
mod signals;
mod tls;
mod tree;
mod verify;
mod warm;

use bytes::Bytes;
use serde_json::Value;

use support::faulty::Upstream;
use support::http;
use support::image::{INDEX, Image, MANIFEST};
use support::mirror::{Mirror, MirrorOptions};

/// A scripted upstream and a mirror of it.
struct Rig {
    upstream: Upstream,
    mirror: Mirror,
    _directory: tempfile::TempDir,
}

impl Rig {
    async fn start() -> Self {
        Self::with(MirrorOptions::default()).await
    }

    async fn with(options: MirrorOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let upstream = Upstream::start().await;
        let options = MirrorOptions { upstream: upstream.url(), ..options };
        let mirror = Mirror::with(directory.path(), options).await;
        Self { upstream, mirror, _directory: directory }
    }

    /// What the mirror answers at this path: status and body.
    async fn get(&self, path: &str) -> (u16, Bytes) {
        get(&(self.mirror.url() + path)).await
    }
}

async fn get(url: &str) -> (u16, Bytes) {
    let accept = format!("{INDEX}, {MANIFEST}, */*");
    let answer = http().get(url).header("Accept", accept).send().await.unwrap();
    (answer.status().as_u16(), answer.bytes().await.unwrap())
}

/// Lets upstream hold a manifest with no content of its own, which `note` tells from others.
fn put_empty(upstream: &Upstream, repository: &str, tag: &str, note: &str) -> String {
    upstream.put_manifest(repository, tag, INDEX, empty_index(note))
}

fn empty_index(note: &str) -> String {
    serde_json::json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": { "note": note },
    })
    .to_string()
}

/// Pulls all of an image, by `tag` and by digests, from the repository at `base`.
async fn pull(base: &str, tag: &str, image: &Image) {
    assert_eq!(get(&format!("{base}/manifests/{tag}")).await, (200, image.index.bytes.clone()));
    for manifest in image.manifests.iter().chain([&image.index]) {
        assert_eq!(
            get(&format!("{base}/manifests/{}", manifest.digest)).await,
            (200, manifest.bytes.clone())
        );
    }
    for blob in &image.blobs {
        assert_eq!(get(&format!("{base}/blobs/{}", blob.digest)).await, (200, blob.bytes.clone()));
    }
}

/// The lines of a log in JSON; every one of them must be that.
fn json_lines(log: &str) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    log.lines().map(parse).collect()
}
