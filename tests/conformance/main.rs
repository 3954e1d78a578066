//! The registry's API as the OCI distribution-spec has it, row by row, over a real server: what it
//! answers to those who keep to the specification, and to those who do not.

#[path = "../support/mod.rs"]
mod support;

mod delete;
mod input;
mod lists;
mod manifests;
mod referrers;
mod sessions;
mod uploads;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use sha2::Digest;

use support::image::{INDEX, MANIFEST};
use support::mirror::{Mirror, MirrorOptions};
use support::{http, sha256};

/// Nobody listens there: nothing of this needs an upstream.
const NO_UPSTREAM: &str = "http://127.0.0.1:9";

struct Rig {
    forebay: Mirror,
    _directory: tempfile::TempDir,
}

/// An answer, whole.
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Rig {
    async fn start() -> Self {
        Self::with("").await
    }

    /// With this configuration file.
    async fn with(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = MirrorOptions {
            upstream: NO_UPSTREAM.to_owned(),
            config: Some(config.to_owned()),
            ..Default::default()
        };
        Self { forebay: Mirror::with(directory.path(), options).await, _directory: directory }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let mut request = http().request(method.parse().unwrap(), self.forebay.url() + path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body: Bytes = body.into();
        let answer = request.body(body).send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Reply { status, headers, body: answer.bytes().await.unwrap() }
    }

    async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], "").await
    }

    async fn head(&self, path: &str) -> Reply {
        self.send("HEAD", path, &[], "").await
    }

    async fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, &[], "").await
    }

    /// Begins an upload; its location.
    async fn begin(&self, repository: &str) -> String {
        let reply = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], "").await;
        assert_eq!(reply.status, 202, "{reply}");
        reply.header("location").to_owned()
    }

    /// Uploads a blob; its digest.
    async fn blob(&self, repository: &str, bytes: impl Into<Bytes>) -> String {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        assert_eq!(self.send("POST", &path, &[], bytes).await.status, 201);
        digest
    }

    /// Puts a manifest under a tag or a digest.
    async fn put(&self, repository: &str, reference: &str, kind: &str, manifest: impl Into<Bytes>) -> Reply {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.send("PUT", &path, &[("Content-Type", kind)], manifest).await
    }

    /// Pushes a small image, which `note` tells from others, under a tag; its digest.
    async fn image(&self, repository: &str, tag: &str, note: &str) -> String {
        let manifest = self.manifest(repository, note).await.to_string();
        let reply = self.put(repository, tag, MANIFEST, manifest.clone()).await;
        assert_eq!(reply.status, 201, "{reply}");
        sha256(manifest.as_bytes())
    }

    /// A manifest whose blobs are pushed.
    async fn manifest(&self, repository: &str, note: &str) -> Value {
        let (config, layer) = (format!("{{\"note\":\"{note}\"}}"), format!("layer {note}"));
        self.blob(repository, config.clone()).await;
        self.blob(repository, layer.clone()).await;
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer.as_bytes())],
        })
    }

    async fn open_uploads(&self) -> f64 {
        self.forebay.metric("forebay_uploads_open").await
    }
}

impl Reply {
    /// A header's text, empty where there is none.
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// Asserts an error of the specification, whose message holds all of `words`.
    #[track_caller]
    fn refuses(&self, status: u16, code: &str, words: &[&str]) {
        assert_eq!(self.status, status, "{self}");
        assert_eq!(self.header("content-type"), "application/json", "{self}");
        let error = &self.json()["errors"][0];
        assert_eq!(error["code"], code, "{self}");
        let message = error["message"].as_str().unwrap();
        for word in words {
            assert!(message.contains(word), "`{word}` in: {message}");
        }
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(400)]);
        write!(f, "{} {:?} {body}", self.status, self.headers)
    }
}

fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex::encode(sha2::Sha512::digest(bytes)))
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": sha256(bytes), "size": bytes.len() })
}

fn index(manifests: &[Value]) -> String {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string()
}

/// Where a list goes on, from its `Link`.
fn next(reply: &Reply) -> Option<String> {
    let link = reply.headers.get("link")?.to_str().unwrap();
    Some(link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned())
}
