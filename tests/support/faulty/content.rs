//! What the scripted upstream would answer if nothing went wrong.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::json;

use super::super::http1::{Headers, Request};
use super::super::image::Content;
use super::Quota;

/// Content by path.
pub type Library = BTreeMap<String, Content>;

pub struct Answer {
    pub status: u16,
    pub headers: Headers,
    pub body: Bytes,
}

impl Answer {
    pub fn new(status: u16, headers: Vec<(&str, String)>, body: impl Into<Bytes>) -> Self {
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { status, headers: Headers(headers), body: body.into() }
    }

    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = json!({ "errors": [{ "code": code, "message": message }] });
        Self::new(status, vec![("Content-Type", "application/json".to_owned())], body.to_string())
    }

    /// The right answer to `request`. A `Range` is honoured unless `whole`.
    pub fn normal(library: &Library, request: &Request, whole: bool) -> Self {
        if request.path == "/v2/" {
            return Self::new(200, vec![("Content-Type", "application/json".to_owned())], "{}");
        }
        if let Some(repository) = request.path.strip_suffix("/tags/list") {
            return tags(library, repository);
        }
        let Some(content) = library.get(&request.path) else {
            let kind = if request.path.contains("/blobs/") { "BLOB_UNKNOWN" } else { "MANIFEST_UNKNOWN" };
            return Self::error(404, kind, "not held here");
        };
        let headers = vec![
            ("Content-Type", content.media_type.to_owned()),
            ("Docker-Content-Digest", content.digest.clone()),
            ("ETag", format!("\"{}\"", content.digest)),
        ];
        let answer = Self::new(200, headers, content.bytes.clone());
        match request.headers.get("range") {
            Some(range) if !whole => answer.ranged(range),
            _ => answer,
        }
    }

    /// The part of a whole answer that `range` (`bytes=a-`, `bytes=a-b`, `bytes=-n`) asks for.
    fn ranged(mut self, range: &str) -> Self {
        let size = self.body.len();
        let Some((first, last)) = range.strip_prefix("bytes=").and_then(|spec| spec.split_once('-')) else {
            return self;
        };
        let (start, end) = match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) => (first, size.min(last + 1)),
            (Ok(first), Err(_)) => (first, size),
            (Err(_), Ok(suffix)) => (size.saturating_sub(suffix), size),
            (Err(_), Err(_)) => return self,
        };
        if start >= end {
            let mut refusal = Self::error(416, "UNSUPPORTED", "beyond the end");
            refusal.headers.set("Content-Range", format!("bytes */{size}"));
            return refusal;
        }
        self.status = 206;
        self.headers.set("Content-Range", format!("bytes {start}-{}/{size}", end - 1));
        self.body = self.body.slice(start..end);
        self
    }

    /// This answer, or a refusal, under a pull limit.
    pub fn limited(self, quota: &mut Quota, request: &Request) -> Self {
        let spends = request.method == "GET";
        let mut answer = match quota.remaining {
            0 if spends => Self::error(429, "TOOMANYREQUESTS", "the pull limit is reached"),
            _ => self,
        };
        quota.remaining -= u64::from(spends && quota.remaining > 0);
        answer.headers.set("ratelimit-limit", format!("{};w={}", quota.limit, quota.window));
        answer.headers.set("ratelimit-remaining", format!("{};w={}", quota.remaining, quota.window));
        answer.headers.set("docker-ratelimit-source", "192.0.2.1");
        answer
    }
}

fn tags(library: &Library, repository: &str) -> Answer {
    let prefix = format!("{repository}/manifests/");
    let references = library.keys().filter_map(|path| path.strip_prefix(&prefix));
    let tags: Vec<&str> = references.filter(|reference| !reference.contains(':')).collect();
    if tags.is_empty() {
        return Answer::error(404, "NAME_UNKNOWN", "not held here");
    }
    let name = repository.trim_start_matches("/v2/");
    let body = json!({ "name": name, "tags": tags });
    Answer::new(200, vec![("Content-Type", "application/json".to_owned())], body.to_string())
}
