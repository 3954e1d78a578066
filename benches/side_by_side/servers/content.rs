//! What is held and asked for.

use serde_json::json;
use tokio::runtime::Handle;

use crate::support::faulty::Upstream;
use crate::support::image::{CONFIG, Content as Held, LAYER, MANIFEST, random_bytes};

pub const REPOSITORY: &str = "library/bench";
pub const TAG: &str = "1.0.0";

pub const SMALL: usize = 10 << 10;
pub const MEDIUM: usize = 1 << 20;
pub const LARGE: usize = 64 << 20;
pub const HUGE: usize = 1 << 30;

/// A manifest of about 3 KiB and its blobs.
pub struct Content {
    manifest: Held,
    blobs: Vec<Held>,
}

impl Content {
    /// With blobs of these sizes.
    pub fn of(sizes: &[usize]) -> Self {
        let blob = |(seed, size): (usize, &usize)| {
            let kind = if seed == 0 { CONFIG } else { LAYER };
            Held::new(kind, random_bytes(seed as u64, *size))
        };
        let blobs: Vec<Held> = sizes.iter().enumerate().map(blob).collect();
        let descriptors: Vec<_> = blobs.iter().map(Held::descriptor).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptors[0], "layers": descriptors[1..],
            "annotations": { "org.example.filling": "x".repeat(2900 - 200 * blobs.len()) },
        });
        Self { manifest: Held::new(MANIFEST, manifest.to_string()), blobs }
    }

    /// Path and bytes of everything that is asked for.
    pub fn paths(&self) -> Vec<(String, &Held)> {
        let blobs = self.blobs.iter().map(|blob| (blob_path(&blob.digest), blob));
        let manifest = [tag_path(), self.manifest_path()].map(|path| (path, &self.manifest));
        manifest.into_iter().chain(blobs).collect()
    }

    pub fn manifest(&self) -> &Held {
        &self.manifest
    }

    /// The manifest's by its digest.
    pub fn manifest_path(&self) -> String {
        format!("/v2/{REPOSITORY}/manifests/{}", self.manifest.digest)
    }

    /// The path of the first blob of this size.
    pub fn blob_path(&self, size: usize) -> String {
        let blob = self.blobs.iter().find(|blob| blob.bytes.len() == size);
        blob_path(&blob.expect("content without a blob that is asked for").digest)
    }

    pub fn digests(&self) -> impl Iterator<Item = &str> {
        self.blobs.iter().map(|blob| blob.digest.as_str())
    }

    /// The registry that the mirrors mirror. It takes as little of the machine as can be.
    pub async fn upstream(&self, upstreams: &Handle) -> Upstream {
        let upstream = upstreams.spawn(Upstream::start()).await.unwrap();
        for blob in &self.blobs {
            upstream.put_blob(REPOSITORY, blob.bytes.clone());
        }
        upstream.put_manifest(REPOSITORY, TAG, MANIFEST, self.manifest.bytes.clone());
        upstream
    }
}

pub fn tag_path() -> String {
    format!("/v2/{REPOSITORY}/manifests/{TAG}")
}

pub fn blob_path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}
