//! A repository by the bare API: what a client does, one request at a time.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;
use sha2::Digest as _;

use super::image::{Content, INDEX, Image, MANIFEST};
use super::{http, sha256};

const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A repository of a registry, and who asks.
#[derive(Clone)]
pub struct Repository {
    /// `http://host:port/v2/name`
    pub base: String,
    pub name: String,
    client: reqwest::Client,
    login: Option<(String, String)>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Panics, with what was said, unless it has this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }
}

impl Repository {
    /// Of the registry at `url`, by somebody unknown.
    pub fn new(url: &str, name: &str) -> Self {
        Self { base: format!("{url}/v2/{name}"), name: name.to_owned(), client: http(), login: None }
    }

    /// The same, by `user`.
    pub fn by(mut self, user: &str, password: &str) -> Self {
        self.login = Some((user.to_owned(), password.to_owned()));
        self
    }

    /// A request for a path of this repository or, as a `Location` may be, of the host, or any URL.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let base = url::Url::parse(&format!("{}/", self.base)).unwrap();
        let request = self.client.request(method, base.join(path).unwrap());
        match &self.login {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }

    /// The same, sent.
    pub async fn send(&self, method: Method, path: &str) -> Answer {
        finish(self.request(method, path)).await.unwrap()
    }

    /// A manifest or blob (`manifests/1`), as any client accepts it.
    pub async fn get(&self, path: &str) -> Answer {
        finish(self.request(Method::GET, path).header("Accept", accepted())).await.unwrap()
    }

    pub async fn status(&self, path: &str) -> u16 {
        let head = self.request(Method::HEAD, path).header("Accept", accepted());
        head.send().await.unwrap().status().as_u16()
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path).await
    }

    /// Begins an upload; its `Location`.
    pub async fn begin(&self) -> String {
        let answer = self.send(Method::POST, "blobs/uploads/").await.expect(202);
        answer.header("location").expect("a Location").to_owned()
    }

    /// Uploads a blob in one piece. `Err` when the registry has gone.
    pub async fn try_blob(&self, digest: &str, bytes: Bytes) -> Result<Answer, reqwest::Error> {
        let begun = finish(self.request(Method::POST, "blobs/uploads/")).await?.expect(202);
        let location = begun.header("location").expect("a Location");
        finish(self.request(Method::PUT, &ending(location, digest)).body(bytes)).await
    }

    pub async fn push_blob(&self, bytes: impl Into<Bytes>) -> String {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        self.try_blob(&digest, bytes).await.unwrap().expect(201);
        digest
    }

    /// Puts a manifest under a tag or digest. `Err` when the registry has gone.
    pub async fn try_manifest(&self, reference: &str, manifest: &Content) -> Result<Answer, reqwest::Error> {
        let put = self.request(Method::PUT, &format!("manifests/{reference}"));
        finish(put.header("Content-Type", manifest.media_type).body(manifest.bytes.clone())).await
    }

    pub async fn push_manifest(&self, reference: &str, manifest: &Content) {
        let done = self.try_manifest(reference, manifest).await.unwrap().expect(201);
        assert_eq!(done.header("docker-content-digest"), Some(manifest.digest.as_str()));
    }

    /// Pushes everything, the tag last.
    pub async fn push(&self, image: &Image, tag: &str) {
        for blob in &image.blobs {
            self.push_blob(blob.bytes.clone()).await;
        }
        for manifest in &image.manifests {
            self.push_manifest(&manifest.digest, manifest).await;
        }
        self.push_manifest(tag, &image.index).await;
    }

    /// Pulls everything that `reference` leads to, checked against its digests.
    pub async fn whole(&self, reference: &str) -> Result<BTreeMap<String, Bytes>, String> {
        let (mut held, mut asked) = (BTreeMap::new(), BTreeSet::new());
        let mut paths = vec![format!("manifests/{reference}")];
        while let Some(path) = paths.pop() {
            if !asked.insert(path.clone()) {
                continue;
            }
            let request = self.request(Method::GET, &path).header("Accept", accepted());
            let answer = finish(request).await.map_err(|e| format!("{path}: {e}"))?;
            if answer.status != 200 {
                let said = String::from_utf8_lossy(&answer.body);
                return Err(format!("{}/{path}: {}: {said}", self.name, answer.status));
            }
            let digest = match path.split_once('/') {
                Some((_, named)) if named.contains(':') => named,
                _ => answer.header("docker-content-digest").ok_or("no Docker-Content-Digest")?,
            };
            if digest_as(digest, &answer.body) != digest {
                return Err(format!("{}/{path}: other bytes", self.name));
            }
            if path.starts_with("manifests/") {
                paths.extend(below(&answer.body));
            }
            held.insert(digest.to_owned(), answer.body);
        }
        Ok(held)
    }

    /// All tags, in the order in which they come, page by page of at most `n`.
    pub async fn tags(&self, n: Option<usize>) -> Vec<String> {
        let query = n.map_or(String::new(), |n| format!("?n={n}"));
        pages(self, &format!("tags/list{query}"), "tags").await
    }
}

/// A paged list, from page to page by `Link`.
pub async fn pages(repository: &Repository, path: &str, key: &str) -> Vec<String> {
    let (mut all, mut next) = (Vec::new(), Some(path.to_owned()));
    while let Some(path) = next {
        let answer = repository.send(Method::GET, &path).await.expect(200);
        next = answer.header("link").map(|link| {
            let (target, relation) = link.split_once(';').unwrap();
            assert_eq!(relation.trim(), "rel=\"next\"");
            target.trim_matches(['<', '>']).to_owned()
        });
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        let entries = body[key].as_array().into_iter().flatten();
        let before = all.len();
        all.extend(entries.map(|entry| entry.as_str().unwrap().to_owned()));
        assert!(next.is_none() || all.len() > before, "an empty page leads on: {path}");
    }
    all
}

/// `location`, told the digest of what was uploaded there.
pub fn ending(location: &str, digest: &str) -> String {
    let separator = if location.contains('?') { '&' } else { '?' };
    format!("{location}{separator}digest={digest}")
}

/// The digest of `bytes` by the algorithm of `like`.
pub fn digest_as(like: &str, bytes: &[u8]) -> String {
    match like.split_once(':').unwrap().0 {
        "sha512" => format!("sha512:{}", hex::encode(sha2::Sha512::digest(bytes))),
        _ => sha256(bytes),
    }
}

async fn finish(request: RequestBuilder) -> Result<Answer, reqwest::Error> {
    let answer: Response = request.send().await?;
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    Ok(Answer { status, headers, body: answer.bytes().await? })
}

fn accepted() -> String {
    [INDEX, MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, "*/*"].join(", ")
}

/// The paths of all that a manifest or an index names.
fn below(manifest: &[u8]) -> Vec<String> {
    let manifest: Value = serde_json::from_slice(manifest).unwrap();
    let paths = |key: &str, kind: &str| -> Vec<String> {
        let entries = manifest[key].as_array().into_iter().flatten();
        entries.map(|entry| format!("{kind}/{}", entry["digest"].as_str().unwrap())).collect()
    };
    let config = manifest["config"]["digest"].as_str().map(|digest| format!("blobs/{digest}"));
    paths("manifests", "manifests").into_iter().chain(config).chain(paths("layers", "blobs")).collect()
}
