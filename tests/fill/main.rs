//! Blobs through the real binary: fetched once whoever asks, whole or by range, and passed on where
//! the disk does not take them.

#[path = "../support/mod.rs"]
mod support;

mod confined;
mod disk;
mod held;
mod lazy;
mod once;
mod parallel;
mod ranges;
mod sharing;
mod slow;
mod space;
mod stream;
mod trouble;

use bytes::Bytes;
use reqwest::Response;

use support::faulty::{Seen, Upstream};
use support::image::random_bytes;
use support::mirror::{Mirror, MirrorOptions};

const MIB: usize = 1 << 20;

/// A scripted upstream and a mirror of it.
struct Rig {
    upstream: Upstream,
    mirror: Mirror,
    _directory: tempfile::TempDir,
}

/// A blob that upstream holds.
struct Blob {
    bytes: Bytes,
    digest: String,
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

    fn blob(&self, seed: u64, size: usize) -> Blob {
        let bytes = Bytes::from(random_bytes(seed, size));
        Blob { digest: self.upstream.put_blob("library/x", bytes.clone()), bytes }
    }

    fn url(&self, blob: &Blob) -> String {
        blob_url(&self.mirror, "library/x", &blob.digest)
    }

    /// The downloads of a blob that upstream has seen.
    fn gets(&self, blob: &Blob) -> Vec<Seen> {
        self.upstream.requests_for("GET", &blob.digest)
    }
}

fn blob_url(mirror: &Mirror, repository: &str, digest: &str) -> String {
    format!("{}/v2/{repository}/blobs/{digest}", mirror.url())
}

/// Reads at least `count` bytes of a body, which must be those that `expected` begins with, and
/// gives the number read.
async fn read_some(answer: &mut Response, expected: &[u8], count: usize) -> usize {
    let mut at = 0;
    while at < count {
        let chunk = answer.chunk().await.unwrap().expect("more of the body");
        assert!(expected[at..].starts_with(&chunk), "wrong bytes behind byte {at}");
        at += chunk.len();
    }
    at
}

/// Reads a body to its end: exactly `expected`, of which `from` bytes are read already.
async fn read_rest(answer: &mut Response, expected: &[u8], from: usize) {
    let mut at = from;
    while let Some(chunk) = answer.chunk().await.unwrap() {
        assert!(expected[at..].starts_with(&chunk), "wrong bytes behind byte {at}");
        at += chunk.len();
    }
    assert_eq!(at, expected.len(), "the body ends early");
}
