//! An upstream that does what a script says, byte by byte, and remembers what it was asked.

mod content;
mod serve;
pub mod tls;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};

use super::http1::{Headers, Server};
use super::image::{Content, INDEX, Image};
use super::token::{SERVICE, TokenServer};
use content::Library;

/// A registry in memory that answers as it should wherever no rule says otherwise.
pub struct Upstream {
    server: Server,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    library: Mutex<Library>,
    rules: Mutex<Vec<Rule>>,
    requests: Mutex<Vec<Seen>>,
    /// Connections still to be reset when they are accepted.
    refusals: AtomicU64,
    quota: Mutex<Option<Quota>>,
    guard: Mutex<Option<Guard>>,
}

/// Lets in whoever brings a bearer token that is not revoked.
struct Guard {
    challenge: String,
    accepted: HashSet<String>,
    revoked: HashSet<String>,
    /// Whether the token has to say that the repository may be pulled.
    reads: bool,
}

/// What goes wrong. A rule holds any number of them; they apply in their order.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection is reset in place of an answer.
    Reset,
    /// The answer begins so much later. `Duration::MAX`: never.
    Delay(Duration),
    /// This is the answer, whatever was asked.
    Answer { status: u16, headers: Vec<(&'static str, String)>, body: Bytes },
    /// 307 to the same path and query at this base URL.
    Redirect(String),
    /// The normal answer with this header added or replaced.
    Header(&'static str, String),
    /// The normal answer without this header.
    WithoutHeader(&'static str),
    /// 200 and the whole body, whatever range was asked for.
    IgnoreRange,
    /// The body really compressed, with `Content-Encoding: gzip`.
    Gzip,
    /// One bit of the body's byte at this offset is wrong.
    Flip(usize),
    /// The body followed by this many bytes too many, with a Content-Length to match.
    Append(usize),
    /// Content-Length says so; the body is sent whole, and the connection closed after it.
    Length(u64),
    /// No Content-Length, `Transfer-Encoding: chunked`.
    Chunked,
    /// No Content-Length; the body ends with the connection.
    CloseDelimited,
    /// After so many bytes of the body the connection ends.
    Cut { after: u64, how: Cut },
    /// After so many bytes of the body nothing more comes.
    Stall { after: u64 },
    /// Bytes of body per second.
    Rate(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Fin,
    Reset,
}

impl Fault {
    /// An answer with a status, a body in OCI's error form and no more.
    pub fn status(status: u16) -> Self {
        let body = format!(r#"{{"errors":[{{"code":"UNKNOWN","message":"told to answer {status}"}}]}}"#);
        let headers = vec![("Content-Type", "application/json".to_owned())];
        Self::Answer { status, headers, body: Bytes::from(body) }
    }

    /// `status` with one more header, such as Retry-After, Location, or WWW-Authenticate.
    pub fn status_with(status: u16, name: &'static str, value: impl ToString) -> Self {
        let Self::Answer { status, mut headers, body } = Self::status(status) else { unreachable!() };
        headers.push((name, value.to_string()));
        Self::Answer { status, headers, body }
    }

    /// What a captive portal says to everything.
    pub fn login_page() -> Self {
        let headers = vec![("Content-Type", "text/html".to_owned())];
        Self::Answer { status: 200, headers, body: Bytes::from_static(b"<html>Please log in.</html>") }
    }
}

struct Rule {
    method: &'static str,
    path_contains: String,
    /// How often it still applies; `None` is for ever.
    left: Option<u64>,
    faults: Vec<Fault>,
}

/// A rule to be filled in. Until a fault is added its requests are answered normally.
pub struct RuleHandle {
    state: Arc<State>,
    number: usize,
}

impl RuleHandle {
    /// The rule ends after so many requests, and the next that matches takes its place.
    pub fn times(self, times: u64) -> Self {
        self.state.rules.lock().unwrap()[self.number].left = Some(times);
        self
    }

    pub fn then(self, fault: Fault) -> Self {
        self.state.rules.lock().unwrap()[self.number].faults.push(fault);
        self
    }
}

/// A pull limit as Docker Hub has it: manifest GETs spend it, and HEADs only tell of it.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    pub limit: u64,
    pub remaining: u64,
    /// Seconds.
    pub window: u64,
}

/// A request as it came, and what became of its answer.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Headers,
    came: Instant,
    /// Shared with the connection that answers: `sent` reads it.
    sent: Arc<AtomicU64>,
    /// When the answer's last byte was handed to the network, or its connection ended.
    ended: Arc<OnceLock<Instant>>,
}

impl Seen {
    /// Bytes of the answer's body that have been handed to the network so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    fn is_under_way_at(&self, moment: Instant) -> bool {
        self.came <= moment && self.ended.get().is_none_or(|ended| moment < *ended)
    }
}

/// How many of these requests were under way at the same time, at most. Exact on a runtime of one
/// thread only: with more, an answer may be with its client before its end is noted.
pub fn most_at_once(requests: &[Seen]) -> usize {
    let at = |moment| requests.iter().filter(|request| request.is_under_way_at(moment)).count();
    requests.iter().map(|request| at(request.came)).max().unwrap_or(0)
}

impl Upstream {
    pub async fn start() -> Self {
        let state = Arc::<State>::default();
        Self { server: serve::start(state.clone(), 0).await, state }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Closes the port and every connection: from now on connections are refused.
    pub async fn stop(&mut self) {
        self.server.stop().await;
    }

    /// Listens again, after `stop`, on the same port with the same content and rules.
    pub async fn restart(&mut self) {
        self.server = serve::start(self.state.clone(), self.server.address.port()).await;
    }

    /// A new rule for requests with this method and a path that contains `path_contains`. The first
    /// rule that matches and is not used up decides.
    pub fn on(&self, method: &'static str, path_contains: &str) -> RuleHandle {
        let mut rules = self.state.rules.lock().unwrap();
        rules.push(Rule { method, path_contains: path_contains.to_owned(), left: None, faults: Vec::new() });
        RuleHandle { state: self.state.clone(), number: rules.len() - 1 }
    }

    /// Ends every rule: all is well again.
    pub fn clear_rules(&self) {
        for rule in self.state.rules.lock().unwrap().iter_mut() {
            rule.left = Some(0);
        }
    }

    /// Resets the next `connections` as soon as they are accepted.
    pub fn refuse(&self, connections: u64) {
        self.state.refusals.store(connections, Ordering::SeqCst);
    }

    /// From now on asks for bearer tokens of `tokens`, whatever they say.
    pub fn protect(&self, tokens: &TokenServer) {
        let challenge = format!("Bearer realm=\"{}\",service=\"{SERVICE}\"", tokens.realm());
        let guard = Guard { challenge, accepted: HashSet::new(), revoked: HashSet::new(), reads: false };
        *self.state.guard.lock().unwrap() = Some(guard);
    }

    /// The same, and what they say counts.
    pub fn protect_each(&self, tokens: &TokenServer) {
        self.protect(tokens);
        self.state.guard.lock().unwrap().iter_mut().for_each(|guard| guard.reads = true);
    }

    /// Every token that was accepted so far has expired.
    pub fn expire_tokens(&self) {
        if let Some(guard) = self.state.guard.lock().unwrap().as_mut() {
            guard.revoked.extend(guard.accepted.drain());
        }
    }

    pub fn set_quota(&self, quota: Option<Quota>) {
        *self.state.quota.lock().unwrap() = quota;
    }

    pub fn quota(&self) -> Option<Quota> {
        *self.state.quota.lock().unwrap()
    }

    /// Holds a blob; gives back its digest.
    pub fn put_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> String {
        self.put(repository, "blobs", None, Content::new("application/octet-stream", bytes))
    }

    /// Holds a manifest under its digest and under `tag`; gives back its digest.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        kind: &'static str,
        bytes: impl Into<Bytes>,
    ) -> String {
        self.put(repository, "manifests", Some(tag), Content::new(kind, bytes))
    }

    pub fn put_image(&self, repository: &str, tag: &str, image: &Image) {
        for blob in &image.blobs {
            self.put(repository, "blobs", None, blob.clone());
        }
        for manifest in &image.manifests {
            self.put(repository, "manifests", None, manifest.clone());
        }
        self.put(repository, "manifests", Some(tag), image.index.clone());
    }

    /// From now on the referrers API lists these descriptors for `subject`.
    pub fn put_referrers(&self, repository: &str, subject: &str, referrers: &[Value]) {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": referrers });
        let path = format!("/v2/{repository}/referrers/{subject}");
        self.state.library.lock().unwrap().insert(path, Content::new(INDEX, index.to_string()));
    }

    /// From now on there is no referrers API, as CNCF distribution 2.8 has none.
    pub fn without_referrers(&self) {
        let headers = vec![("Content-Type", "text/plain; charset=utf-8".to_owned())];
        let body = Bytes::from_static(b"404 page not found\n");
        self.on("GET", "/referrers/").then(Fault::Answer { status: 404, headers, body });
    }

    /// Forgets what is under `reference` (a digest or a tag), manifest or blob.
    pub fn remove(&self, repository: &str, reference: &str) {
        let mut library = self.state.library.lock().unwrap();
        for kind in ["blobs", "manifests"] {
            library.remove(&format!("/v2/{repository}/{kind}/{reference}"));
        }
    }

    /// Every request so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Seen> {
        self.state.requests.lock().unwrap().clone()
    }

    /// The requests with this method and a path that contains `path_contains`.
    pub fn requests_for(&self, method: &str, path_contains: &str) -> Vec<Seen> {
        let mut requests = self.requests();
        requests.retain(|seen| seen.method == method && seen.path.contains(path_contains));
        requests
    }

    fn put(&self, repository: &str, kind: &str, tag: Option<&str>, content: Content) -> String {
        let digest = content.digest.clone();
        let mut library = self.state.library.lock().unwrap();
        for reference in tag.into_iter().chain([digest.as_str()]) {
            library.insert(format!("/v2/{repository}/{kind}/{reference}"), content.clone());
        }
        digest
    }
}
