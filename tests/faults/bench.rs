//! A mirror in front of a scripted upstream, and what must hold whatever the upstream does.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::faulty::Upstream;
use crate::support::image::{CONFIG, Content, LAYER, MANIFEST, random_bytes};
use crate::support::mirror::{Mirror, MirrorOptions};
use crate::support::process::Wait;
use crate::support::{http, sha256, stored_blobs};

/// Short waits, tags that are asked for anew each time, and refusals that are soon forgotten.
pub const SHORT: &str = r#"
[log]
access = false
[cache]
resumes = 2
[freshness]
others = "1ms"
jitter = 0.0
[negative]
not_found = "1s"
denied = "1s"
[upstream."docker.io"]
header_timeout = "2s"
idle_timeout = "2s"
"#;

pub struct Bench {
    pub mirror: Mirror,
    pub upstream: Upstream,
    _directory: TempDir,
}

impl Bench {
    pub async fn start() -> Self {
        Self::with(SHORT).await
    }

    pub async fn with(config: impl Into<String>) -> Self {
        let upstream = Upstream::start().await;
        let url = upstream.url();
        Self::at(upstream, url, config, tempfile::tempdir().unwrap()).await
    }

    /// A mirror of what is at `url`, which leads to `upstream`.
    pub async fn at(upstream: Upstream, url: String, config: impl Into<String>, directory: TempDir) -> Self {
        let options = MirrorOptions { upstream: url, config: Some(config.into()), ..Default::default() };
        let mirror = Mirror::with(&directory.path().join("mirror"), options).await;
        Self { mirror, upstream, _directory: directory }
    }

    /// The same data, mirrored from `url` from now on.
    pub async fn moved_to(self, url: &str) -> Self {
        let Self { mut mirror, upstream, _directory } = self;
        mirror.kill();
        drop(mirror);
        Self::at(upstream, url.to_owned(), SHORT, _directory).await
    }

    /// `path` follows `/v2/`.
    pub async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[]).await
    }

    pub async fn head(&self, path: &str) -> Reply {
        self.ask("HEAD", path, &[]).await
    }

    pub async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = http().request(method.clone(), format!("{}/v2/{path}", self.mirror.url()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let mut body = Vec::new();
        let whole = loop {
            match answer.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        let reply = Reply { what: format!("{method} {path}"), status, headers, body, whole };
        reply.check(path);
        reply
    }

    /// Asks until upstream's refusal is forgotten and the answer is a 200.
    pub async fn get_at_last(&self, path: &str) -> Reply {
        let wait = Wait::for_("an answer after the trouble");
        loop {
            let reply = self.get(path).await;
            if reply.status == 200 {
                return reply;
            }
            wait.a_little().await;
        }
    }

    /// The value of one time series.
    pub async fn metric(&self, series: &str) -> f64 {
        let metrics = http().get(self.mirror.url() + "/metrics").send().await.unwrap().text().await.unwrap();
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in\n{metrics}")).parse().unwrap()
    }

    /// How many requests of this method upstream has seen at paths that contain `path`.
    pub fn asked(&self, method: &str, path: &str) -> usize {
        self.upstream.requests_for(method, path).len()
    }

    /// Waits until nothing is being fetched. What the disk holds then: whole blobs and no leftovers.
    pub async fn held(&mut self) -> BTreeSet<String> {
        let fills = self.mirror.data().join("forebay/fills");
        let wait = Wait::for_("an idle mirror without staged files");
        while self.metric("forebay_fills_in_flight").await > 0.0
            || std::fs::read_dir(&fills).is_ok_and(|entries| entries.count() > 0)
        {
            wait.a_little().await;
        }
        self.mirror.process().assert_running();
        assert!(!self.mirror.process().log().contains("panicked"), "{}", self.mirror.process().log());
        stored_blobs(&self.mirror.data())
    }

    /// Waits until the disk holds all of `digests`: what has been answered is kept a moment later.
    pub async fn keeps(&mut self, digests: &[impl AsRef<str>]) {
        let wait = Wait::for_("blobs to be kept");
        loop {
            let held = self.held().await;
            if digests.iter().all(|digest| held.contains(digest.as_ref())) {
                return;
            }
            wait.a_little().await;
        }
    }

    /// An image of one manifest, a configuration and a layer, that upstream has under `tag`.
    pub fn put_image(&self, repository: &str, tag: &str, seed: u64) -> Small {
        let config = Content::new(CONFIG, random_bytes(seed, 1000));
        let layer = Content::new(LAYER, random_bytes(seed + 1_000_000, 200_000));
        let descriptor =
            |of: &Content| json!({ "mediaType": of.media_type, "digest": of.digest, "size": of.bytes.len() });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(&config), "layers": [descriptor(&layer)],
        });
        let manifest = Content::new(MANIFEST, manifest.to_string());
        self.upstream.put_blob(repository, config.bytes.clone());
        self.upstream.put_blob(repository, layer.bytes.clone());
        self.upstream.put_manifest(repository, tag, MANIFEST, manifest.bytes.clone());
        Small { repository: repository.to_owned(), tag: tag.to_owned(), manifest, config, layer }
    }

    /// Pulls all of an image as a client would, and waits until it is kept.
    pub async fn pull(&mut self, image: &Small) {
        for path in [image.by_tag(), image.blob(&image.config), image.blob(&image.layer)] {
            let reply = self.get(&path).await;
            assert_eq!((reply.status, reply.whole), (200, true), "{reply}");
        }
        self.keeps(&[&image.manifest.digest, &image.config.digest, &image.layer.digest]).await;
        let tag =
            format!("docker/registry/v2/repositories/{}/_manifests/tags/{}", image.repository, image.tag);
        let wait = Wait::for_("the tag to be kept");
        while !self.mirror.data().join(&tag).join("current/link").exists() {
            wait.a_little().await;
        }
    }
}

/// An image as small as they come.
pub struct Small {
    pub repository: String,
    pub tag: String,
    pub manifest: Content,
    pub config: Content,
    pub layer: Content,
}

impl Small {
    pub fn by_tag(&self) -> String {
        format!("{}/manifests/{}", self.repository, self.tag)
    }

    pub fn by_digest(&self) -> String {
        format!("{}/manifests/{}", self.repository, self.manifest.digest)
    }

    pub fn blob(&self, content: &Content) -> String {
        format!("{}/blobs/{}", self.repository, content.digest)
    }
}

/// What a client sees.
pub struct Reply {
    what: String,
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Vec<u8>,
    /// Whether the body ended as a whole one does.
    pub whole: bool,
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, status, headers, body, whole } = self;
        let start = String::from_utf8_lossy(&body[..body.len().min(600)]);
        let start = if headers.get("content-type").is_some_and(|kind| kind == "application/json") {
            start.into_owned()
        } else {
            format!("{} bytes", body.len())
        };
        write!(f, "{what}: {status}, whole: {whole}, {start}, {headers:?}")
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// `code: message` of an error.
    pub fn error(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self}"));
        let error = &body["errors"][0];
        format!("{}: {}", error["code"].as_str().unwrap(), error["message"].as_str().unwrap())
    }

    /// Asserts an error with this status and code, whose message holds each of `says`.
    pub fn refuses(&self, status: u16, code: &str, says: &[&str]) {
        assert_eq!(self.status, status, "{self}");
        let error = self.error();
        assert!(error.starts_with(&format!("{code}: ")), "{error}");
        for part in says {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    }

    /// Asserts a whole body of these bytes.
    pub fn gives(&self, bytes: &Bytes) {
        assert_eq!((self.status, self.whole), (200, true), "{self}");
        assert!(self.body == *bytes, "other bytes: {self}");
    }

    /// Asserts that the body was broken off.
    pub fn breaks(&self) {
        assert_eq!((self.status, self.whole), (200, false), "{self}");
    }

    pub fn is_stale(&self) -> bool {
        let stale = self.header("cache-status") == "forebay; hit; detail=stale";
        assert_eq!(stale, self.header("warning").starts_with("299 - \"stale: "), "{self}");
        stale
    }

    /// Asserts content that is held and marked stale, for a reason that holds `why`.
    pub fn is_held_stale(&self, why: &str) {
        assert_eq!((self.status, self.whole), (200, true), "{self}");
        assert!(self.is_stale(), "{self}");
        assert!(self.header("warning").contains(why), "`{why}` is not in {}", self.header("warning"));
    }

    /// What holds of every answer.
    fn check(&self, path: &str) {
        assert_ne!(self.status, 401, "a challenge on the mirror's face: {self}");
        assert!(!self.headers.contains_key("www-authenticate"), "{self}");
        assert!(self.status < 500 || !path.contains("/blobs/"), "a 5xx for a mirrored blob: {self}");
        let is_get = self.what.starts_with("GET ");
        if self.status >= 400 && is_get {
            assert_eq!(self.header("content-type"), "application/json", "{self}");
            assert!(self.whole, "{self}");
            assert!(!self.error().ends_with(": "), "no message: {self}");
        }
        if self.status == 429 {
            assert!(self.header("retry-after").parse::<u64>().is_ok_and(|wait| wait > 0), "{self}");
        }
        if self.status == 200 && is_get && self.whole && self.headers.contains_key("etag") {
            let digest = sha256(&self.body);
            assert_eq!(self.header("docker-content-digest"), digest, "wrong bytes, cleanly ended: {self}");
            if let Some((_, asked)) = path.split_once("sha256:") {
                assert_eq!(digest, format!("sha256:{asked}"), "{self}");
            }
        }
    }
}
