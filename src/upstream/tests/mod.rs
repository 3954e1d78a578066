//! The upstream module against a scripted server on loopback.

mod auth;
mod callers;
mod content;
mod credentials;
mod hops;
mod limits;
mod mirrors;
mod proxy;
mod quirks;
mod referrers;
mod refused;
mod weather;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use super::*;
use crate::metrics::UpstreamMetrics;
use crate::oci::{Reference, Tag};
use crate::tasks::lock;

/// A request as the server saw it.
#[derive(Clone, Debug)]
struct Seen {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: String,
}

impl Seen {
    fn path(&self) -> &str {
        self.uri.path()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn query(&self, key: &str) -> Vec<String> {
        let query = self.uri.query().unwrap_or_default().as_bytes();
        url::form_urlencoded::parse(query).filter(|(k, _)| k == key).map(|(_, v)| v.into_owned()).collect()
    }
}

/// What a script answers.
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    chunks: Vec<Bytes>,
    /// After the chunks: nothing more, without an end.
    stalls: bool,
    /// Before the head.
    delay: Duration,
}

fn reply(status: u16, body: impl Into<Bytes>) -> Reply {
    Reply { status, headers: Vec::new(), chunks: vec![body.into()], stalls: false, delay: Duration::ZERO }
}

impl Reply {
    fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}

fn redirect_to(url: impl ToString) -> Reply {
    reply(307, "").with("location", url)
}

/// A server that answers by script and remembers what it was asked. Ends when dropped.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    listening: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Server {
    async fn new(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::with_streams(script, |stream| async { Ok(stream) }).await
    }

    /// `wrap` makes of a connection what HTTP is spoken over: TLS, for example.
    async fn with_streams<S, F>(
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
        wrap: impl Fn(tokio::net::TcpStream) -> F + Send + Sync + 'static,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let (script, log) = (Arc::new(script), seen.clone());
        let listening = tokio::spawn(async move {
            loop {
                let stream = wrap(listener.accept().await.unwrap().0);
                let (script, log) = (script.clone(), log.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(script.clone(), log.clone(), request));
                    if let Ok(stream) = stream.await {
                        let http = hyper::server::conn::http1::Builder::new();
                        let _ = http.serve_connection(TokioIo::new(stream), service).await;
                    }
                });
            }
        });
        Self { address, seen, listening }
    }

    fn url(&self, path: &str) -> Url {
        Url::parse(&format!("http://{}{path}", self.address)).unwrap()
    }

    fn seen(&self) -> Vec<Seen> {
        lock(&self.seen).clone()
    }

    /// How often a path that starts so was asked for.
    fn count(&self, path: &str) -> usize {
        lock(&self.seen).iter().filter(|seen| seen.path().starts_with(path)).count()
    }
}

async fn answer(
    script: Arc<impl Fn(&Seen) -> Reply>,
    log: Arc<Mutex<Vec<Seen>>>,
    request: Request<Incoming>,
) -> Result<Response<UnsyncBoxBody<Bytes, io::Error>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = http_body_util::BodyExt::collect(body).await.map(|body| body.to_bytes()).unwrap_or_default();
    let body = String::from_utf8_lossy(&body).into_owned();
    let seen = Seen { method: head.method, uri: head.uri, headers: head.headers, body };
    lock(&log).push(seen.clone());
    let reply = script(&seen);
    tokio::time::sleep(reply.delay).await;
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    let chunks = stream::iter(reply.chunks).map(|chunk| Ok(Frame::data(chunk)));
    let rest: BoxStream<'static, io::Result<Frame<Bytes>>> =
        if reply.stalls { stream::pending().boxed() } else { stream::empty().boxed() };
    let body = UnsyncBoxBody::new(StreamBody::new(chunks.chain(rest)));
    Ok(response.body(body).unwrap())
}

/// An upstream under test, and what is around it.
struct Bench {
    upstream: Arc<Upstream>,
    clock: Clock,
    tasks: Tasks,
    metrics: UpstreamMetrics,
}

pub(super) fn options(url: Url) -> Options {
    Options {
        host: "docker.io".parse().unwrap(),
        url,
        credential: None,
        ca_file: None,
        proxy: Proxy::Environment,
        mirrors: Vec::new(),
        private: PrivatePolicy::Refuse,
        redirect_hosts: Vec::new(),
        realm_hosts: Vec::new(),
        connect_timeout: Duration::from_secs(5),
        header_timeout: Duration::from_secs(20),
        idle_timeout: Duration::from_secs(20),
        deadline: Duration::from_secs(60),
        max_requests: 64,
        max_fills: 32,
        queue_timeout: Duration::from_secs(20),
        queue_length: 100,
        requests_per_minute: None,
        budget: BudgetOptions::default(),
    }
}

fn bench(options: Options) -> Bench {
    let (metrics, clock, tasks) = (Metrics::new(), Clock::default(), Tasks::default());
    let host = options.host.clone();
    let upstream = Upstream::new(options, &metrics, clock.clone(), tasks.clone()).unwrap();
    let metrics = metrics.upstream(host.as_str());
    Bench { upstream, clock, tasks, metrics }
}

/// A password file, and options that use it.
fn with_credential(options: Options, password: &str) -> (Options, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let password_file: PathBuf = dir.path().join("password");
    std::fs::write(&password_file, password).unwrap();
    let password = Password::File(password_file);
    let credential = Some(Credential::Password { username: "ci-bot".into(), password });
    (Options { credential, ..options }, dir)
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn tag(text: &str) -> Reference {
    Reference::Tag(text.parse::<Tag>().unwrap())
}

fn anybody() -> Spender {
    Spender { purpose: Purpose::Miss, client: None }
}

impl Bench {
    async fn get(&self, repository: &str) -> Result<FetchedManifest, Error> {
        self.upstream.manifest_get(Identity::Configured, &anybody(), &name(repository), &tag("latest")).await
    }

    async fn head(&self, repository: &str) -> Result<ManifestHead, Error> {
        self.upstream.manifest_head(Identity::Configured, &name(repository), &tag("latest")).await
    }

    async fn blob(&self, start: u64, end: Option<u64>) -> Result<BlobStream, Error> {
        let (name, digest) = (name("a/b"), Digest::sha256(b"x"));
        self.blob_of(Identity::Configured, &name, &digest, start, end).await
    }

    async fn blob_of(
        &self,
        identity: Identity,
        name: &Name,
        digest: &Digest,
        start: u64,
        end: Option<u64>,
    ) -> Result<BlobStream, Error> {
        let place = Arc::new(self.upstream.fill_place(name, digest).await?);
        self.upstream.blob_get(identity, name, digest, place, start, end).await
    }
}

async fn collect(blob: BlobStream) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let mut stream = blob.stream;
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}

/// Waits, a while at most, for what another task is about to do.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what}");
}
