//! Limits in front and behind, the upstream's quota, and what is private there.

#[path = "../support/mod.rs"]
mod support;

mod budget;
mod clients;
mod private;
mod quota;
mod upstream;

use reqwest::{Client, Response};
use serde_json::{Value, json};

use support::faulty::Upstream;
use support::http;
use support::image::{CONFIG, Content, INDEX, LAYER, MANIFEST};
use support::mirror::{Mirror, MirrorOptions};

/// A scripted upstream and a mirror of it.
struct Rig {
    upstream: Upstream,
    mirror: Mirror,
    client: Client,
    _directory: tempfile::TempDir,
}

impl Rig {
    async fn with(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let upstream = Upstream::start().await;
        let config = Some(config.to_owned());
        let options = MirrorOptions { upstream: upstream.url(), config, ..Default::default() };
        let mirror = Mirror::with(directory.path(), options).await;
        Self { upstream, mirror, client: http(), _directory: directory }
    }

    async fn get(&self, path: &str) -> Response {
        self.client.get(self.mirror.url() + path).send().await.unwrap()
    }

    async fn status(&self, path: &str) -> u16 {
        self.get(path).await.status().as_u16()
    }
}

/// An image of one architecture in an index: as small as can be, and real.
struct Tiny {
    index: Content,
    manifest: Content,
    blobs: [Content; 2],
}

impl Tiny {
    fn new(note: &str) -> Self {
        let blobs =
            [Content::new(CONFIG, format!("{{\"note\":\"{note}\"}}")), Content::new(LAYER, note.to_owned())];
        let entry = |content: &Content| -> Value {
            json!({ "mediaType": content.media_type, "digest": content.digest, "size": content.bytes.len() })
        };
        let [config, layer] = &blobs;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": entry(config), "layers": [entry(layer)],
        });
        let manifest = Content::new(MANIFEST, manifest.to_string());
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(&manifest)] });
        Self { index: Content::new(INDEX, index.to_string()), manifest, blobs }
    }

    /// Lets upstream hold it in `repository`, tagged `1`.
    fn put(&self, upstream: &Upstream, repository: &str) {
        for blob in &self.blobs {
            upstream.put_blob(repository, blob.bytes.clone());
        }
        upstream.put_manifest(repository, &self.manifest.digest, MANIFEST, self.manifest.bytes.clone());
        upstream.put_manifest(repository, "1", INDEX, self.index.bytes.clone());
    }

    /// The same without the index, as images of one architecture often are.
    fn put_alone(&self, upstream: &Upstream, repository: &str) {
        for blob in &self.blobs {
            upstream.put_blob(repository, blob.bytes.clone());
        }
        upstream.put_manifest(repository, "1", MANIFEST, self.manifest.bytes.clone());
    }

    /// What a client asks for, in its order, with the bytes that it must get.
    fn requests(&self, repository: &str) -> Vec<(String, &Content)> {
        let at = |kind: &str, reference: &str| format!("/v2/{repository}/{kind}/{reference}");
        let mut requests = vec![
            (at("manifests", "1"), &self.index),
            (at("manifests", &self.index.digest), &self.index),
            (at("manifests", &self.manifest.digest), &self.manifest),
        ];
        requests.extend(self.blobs.iter().map(|blob| (at("blobs", &blob.digest), blob)));
        requests
    }
}
