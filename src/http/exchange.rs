//! One request and its answer, from the first byte of one to the last of the other: what is counted
//! of it and what the access log says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, Version, header, request};

use super::body::{Body, BodyError, Payload};
use super::connection::Arrival;
use super::respond::header_value;
use super::watch::Busy;
use crate::access::{Caller, Client, External, Identity};
use crate::events::{self, Event, Events, Target};
use crate::metrics::{Face, Kind, Label, Metrics, Outcome};
use crate::oci::{Owner, Reference, Repository};
use crate::telemetry::{AccessLine, AccessLog};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// What nginx logs for a client that left before its answer. Never sent.
const CLIENT_LEFT: u16 = 499;

/// Where exchanges report to.
#[derive(Clone)]
pub struct Reports {
    pub metrics: Arc<Metrics>,
    /// None: no line for each request.
    pub access_log: Option<Arc<AccessLog>>,
}

/// Ids for requests that bring none: a prefix of this process and a number.
pub struct RequestIds {
    prefix: String,
    next: AtomicU64,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self { prefix: format!("{:08x}-", rand::random::<u32>()), next: AtomicU64::new(1) }
    }
}

impl RequestIds {
    /// The client's own id where it is 1 to 64 characters that are safe in any log.
    pub fn of(&self, headers: &HeaderMap) -> HeaderValue {
        let safe = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        match headers.get(X_REQUEST_ID) {
            Some(id) if (1..=64).contains(&id.len()) && id.as_bytes().iter().all(safe) => id.clone(),
            _ => {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                header_value([&self.prefix, itoa::Buffer::new().format(number)].concat())
            }
        }
    }
}

/// A request under way. Dropping it, with its answer's body or before, ends it.
pub struct Exchange {
    reports: Reports,
    id: HeaderValue,
    pub client: Client,
    /// How the client came here, as far as it was seen through proxies.
    pub external: External,
    peer: SocketAddr,
    /// Who is logged in.
    actor: Option<String>,
    method: Method,
    uri: Uri,
    user_agent: Option<HeaderValue>,
    face: Face,
    kind: Kind,
    repository: Option<Repository>,
    reference: Option<Reference>,
    outcome: Outcome,
    /// Once the head was ready.
    status: Option<StatusCode>,
    started: Instant,
    sent: u64,
    complete: bool,
    /// Whether the answer may have [`crate::store::window`]s: over HTTP/2, bytes are put into frames.
    pub takes_windows: bool,
    busy: Busy,
}

impl Exchange {
    pub fn begin(
        reports: Reports,
        id: HeaderValue,
        client: Client,
        external: External,
        request: &request::Parts,
        arrival: &Arrival,
    ) -> Self {
        reports.metrics.requests_in_flight.inc();
        Self {
            reports,
            id,
            client,
            external,
            peer: arrival.peer,
            actor: None,
            method: request.method.clone(),
            uri: request.uri.clone(),
            user_agent: request.headers.get(header::USER_AGENT).cloned(),
            face: Face::Registry,
            kind: Kind::Other,
            repository: None,
            reference: None,
            outcome: Outcome::Refused,
            status: None,
            started: Instant::now(),
            sent: 0,
            complete: false,
            takes_windows: arrival.takes_windows && request.version < Version::HTTP_2,
            busy: arrival.activity.begin(request.version),
        }
    }

    /// The request concerns the operator.
    pub fn of_operations(&mut self) {
        self.face = Face::Operations;
    }

    /// The request concerns a list of repositories.
    pub fn of_list(&mut self, kind: Kind) {
        self.kind = kind;
    }

    /// The request concerns this repository.
    pub fn of_repository(&mut self, kind: Kind, repository: &Repository, reference: Option<Reference>) {
        self.face = match repository.owner {
            Owner::Upstream(_) => Face::Mirror,
            Owner::Hosted => Face::Registry,
        };
        self.kind = kind;
        self.repository = Some(repository.clone());
        self.reference = reference;
    }

    /// The request is this caller's.
    pub fn of_caller(&mut self, caller: &Caller) {
        self.actor = (caller.identity != Identity::Anonymous).then(|| caller.identity.to_string());
    }

    /// Tells those who want to know what the request did.
    pub fn tell(&self, events: &Events, action: events::Action, target: impl FnOnce() -> Target) {
        if !events.wants(action) {
            return;
        }
        let direct = self.peer.ip().to_canonical() == self.client.address;
        let origin = events::Origin {
            id: self.id.to_str().unwrap_or_default().to_owned(),
            addr: if direct { self.peer.to_string() } else { self.client.address.to_string() },
            host: self.external.authority.clone(),
            method: self.method.to_string(),
            useragent: self.user_agent().to_owned(),
        };
        events.emit(Event::new(action, target(), &self.external.base(), self.actor.clone(), origin));
    }

    fn user_agent(&self) -> &str {
        self.user_agent.as_ref().and_then(|agent| agent.to_str().ok()).unwrap_or_default()
    }

    /// Counts the answer, gives it the headers that every answer has, and follows its body.
    pub fn deliver(mut self, response: Response<Payload>, outcome: Outcome) -> Response<Body> {
        let (mut head, mut payload) = response.into_parts();
        head.headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        head.headers.insert(X_REQUEST_ID, self.id.clone());
        prefixed(&mut head.headers, &self.external.prefix);
        if let Some(length) = payload.length() {
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        if self.method == Method::HEAD {
            payload = Payload::Absent(payload.length());
        }
        (self.outcome, self.status) = (outcome, Some(head.status));
        let metrics = &self.reports.metrics;
        metrics.request(self.face, self.kind, outcome).inc();
        metrics.request_seconds[self.kind.index()].observe(self.started.elapsed().as_secs_f64());
        Response::from_parts(head, Body::new(payload, Box::new(self)))
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
        self.busy.fed();
        self.reports.metrics.sent_bytes.cell(self.kind).inc_by(bytes);
    }

    pub(super) fn complete(&mut self) {
        self.complete = true;
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(super) fn broke(&self, error: &BodyError) {
        let (id, path) = (self.id.to_str().unwrap_or_default(), self.uri.path());
        tracing::warn!(request_id = id, path, sent = self.sent, %error, "an answer was broken off");
    }

    fn write(&self, log: &AccessLog) {
        let repository = self.repository.as_ref().map(Repository::to_string);
        let reference = self.reference.as_ref().map(Reference::to_string);
        log.write(&self.line(repository.as_deref(), reference.as_deref()));
    }

    fn line<'a>(&'a self, repository: Option<&'a str>, reference: Option<&'a str>) -> AccessLine<'a> {
        AccessLine {
            request_id: self.id.to_str().unwrap_or_default(),
            client: self.client.address,
            method: self.method.as_str(),
            path: self.uri.path(),
            repository,
            reference,
            status: self.status.map_or(CLIENT_LEFT, |status| status.as_u16()),
            bytes: self.sent,
            duration: self.started.elapsed(),
            outcome: self.outcome.text(),
            cut: !self.complete,
            user_agent: self.user_agent(),
        }
    }
}

/// A proxy that takes a prefix off paths knows nothing of those in answers: they get it back here,
/// once for all answers. What is relative to the path or names a host stays as it is.
fn prefixed(headers: &mut HeaderMap, prefix: &str) {
    if prefix.is_empty() {
        return;
    }
    for (name, value) in headers.iter_mut() {
        let front = match *name {
            header::LOCATION | header::CONTENT_LOCATION => "/",
            header::LINK => "</",
            _ => continue,
        };
        let path = value.to_str().ok().and_then(|value| value.strip_prefix(front));
        if let Some(path) = path.filter(|path| !path.starts_with('/')) {
            *value = header_value(format!("{}{prefix}/{path}", front.trim_end_matches('/')));
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.reports.metrics.requests_in_flight.dec();
        if let Some(log) = self.reports.access_log.take() {
            self.write(&log);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::http::connection::Door;
    use http::Request;
    use http_body_util::BodyExt;

    fn begun(request: Request<()>, metrics: Arc<Metrics>) -> Exchange {
        let (parts, ()) = request.into_parts();
        let arrival = Arrival::new("192.0.2.1:4711".parse().unwrap(), Door::All, false);
        let id = RequestIds::default().of(&parts.headers);
        let client = Client { address: arrival.peer.ip() };
        let external = External::seen(
            arrival.peer.ip(),
            &parts.headers,
            parts.headers.get("host").and_then(|host| host.to_str().ok()),
            arrival.tls,
            &["192.0.2.0/24".parse().unwrap()],
        );
        Exchange::begin(Reports { metrics, access_log: None }, id, client, external, &parts, &arrival)
    }

    pub fn exchange() -> Exchange {
        begun(Request::new(()), Arc::new(Metrics::new()))
    }

    #[test]
    fn a_safe_request_id_is_kept_and_another_replaced() {
        let ids = RequestIds::default();
        let id = |own: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_str(own).unwrap());
            ids.of(&headers).to_str().unwrap().to_owned()
        };
        let longest = "a".repeat(64);
        for good in ["a", "0198-AB.c_d", &longest] {
            assert_eq!(id(good), good);
        }
        for bad in ["", "a b", "a\"b", "a\u{e9}", &"a".repeat(65)] {
            let made = id(bad);
            assert!(made != bad && made.len() <= 64, "{bad} {made}");
        }
        assert_ne!(id(""), id(""));
    }

    #[tokio::test]
    async fn counts_and_the_line_follow_the_body() {
        let metrics = Arc::new(Metrics::new());
        let request = Request::get("/v2/app/manifests/1?secret=1").header("user-agent", "test/1").body(());
        let mut exchange = begun(request.unwrap(), metrics.clone());
        assert_eq!(metrics.requests_in_flight.get(), 1);
        let line = exchange.line(None, None);
        assert_eq!((line.status, line.cut), (499, true));
        let repository = Repository { owner: Owner::Hosted, name: "app".parse().unwrap() };
        exchange.of_repository(Kind::Manifest, &repository, "1".parse().ok());
        exchange.status = Some(StatusCode::OK);
        exchange.sent(5);
        exchange.complete();
        let line = exchange.line(Some("app"), Some("1"));
        assert_eq!((line.path, line.user_agent, line.bytes), ("/v2/app/manifests/1", "test/1", 5));
        assert_eq!((line.reference, line.status, line.cut), (Some("1"), 200, false));
        assert_eq!(metrics.sent_bytes.cell(Kind::Manifest).get(), 5);
        let response = exchange.deliver(Response::new(Payload::Full("hello".into())), Outcome::Hit);
        assert_eq!(metrics.request(Face::Registry, Kind::Manifest, Outcome::Hit).get(), 1);
        assert_eq!(metrics.requests_in_flight.get(), 1);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
        assert_eq!(metrics.requests_in_flight.get(), 0);
    }

    #[test]
    fn paths_in_answers_get_the_prefix_back() {
        let delivered = |prefix: &str, name: &'static str, value: &str| {
            let request = Request::get("/").header("x-forwarded-prefix", prefix).body(()).unwrap();
            let mut answer = Response::new(Payload::EMPTY);
            answer.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
            let answer = begun(request, Arc::new(Metrics::new())).deliver(answer, Outcome::Hit);
            answer.headers()[name].to_str().unwrap().to_owned()
        };
        for (name, value, expected) in [
            ("location", "/v2/", "/reg/v2/"),
            ("location", "/v2/app/blobs/uploads/1?_state=/x", "/reg/v2/app/blobs/uploads/1?_state=/x"),
            ("location", "https://elsewhere.example/v2/", "https://elsewhere.example/v2/"),
            ("location", "//elsewhere.example/", "//elsewhere.example/"),
            ("location", "", ""),
            (
                "link",
                "</v2/_catalog?n=1&last=a>; rel=\"next\"",
                "</reg/v2/_catalog?n=1&last=a>; rel=\"next\"",
            ),
            (
                "link",
                "<https://elsewhere.example/>; rel=\"next\"",
                "<https://elsewhere.example/>; rel=\"next\"",
            ),
            ("etag", "/v2/", "/v2/"),
        ] {
            assert_eq!(delivered("/reg", name, value), expected);
            assert_eq!(delivered("/../evil", name, value), value);
        }
    }

    #[tokio::test]
    async fn a_head_has_the_length_and_no_body() {
        let request = Request::head("/").body(()).unwrap();
        let exchange = begun(request, Arc::new(Metrics::new()));
        let response = exchange.deliver(Response::new(Payload::Full("hello".into())), Outcome::Hit);
        assert_eq!(response.headers()[header::CONTENT_LENGTH], "5");
        assert_eq!(response.headers()[API_VERSION], "registry/2.0");
        assert!(response.headers().contains_key(X_REQUEST_ID));
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    }
}
