use super::*;
use crate::access::{self, AuthOptions, Gate, Limits, Rate};
use crate::clock::Clock;
use crate::events::Events;
use crate::http::{Draining, Owners, OwnersOptions, Public, Reports, RequestIds};
use crate::oci::UpstreamHost;
use std::num::NonZeroU32;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

const BLOB: &str =
    "/v2/library/nginx/blobs/sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";

fn options() -> Options {
    Options {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        listeners: Vec::new(),
        forward: None,
        operations: None,
        tls: None,
        max_connections: 16,
        header_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(60),
        shutdown_grace: Duration::from_secs(10),
    }
}

pub(in crate::http) fn service(requests: Option<Rate>) -> Service {
    let metrics = Arc::new(Metrics::new());
    let limits = access::Options {
        requests,
        cold_misses: None,
        overrides: Vec::new(),
        identities: Vec::new(),
        priority: access::Priority::default(),
        fair_share: true,
        wait: Duration::ZERO,
        queue: 0,
        trusted_proxies: Vec::new(),
    };
    let upstreams = vec![(UpstreamHost::docker_hub(), Vec::new())];
    let owners = OwnersOptions { upstreams, hosted: vec!["*".to_owned()], ..OwnersOptions::default() };
    let (data, tasks) = (std::path::Path::new("/nonexistent"), Tasks::default());
    let gate = Gate::open(AuthOptions::default(), data, metrics.clone(), &Clock::default(), &tasks);
    Service {
        gate: Arc::new(gate.unwrap()),
        owners: Arc::new(Owners::new(owners).unwrap()),
        limits: Limits::new(limits, metrics.clone(), Clock::default()),
        trusted_proxies: Vec::new(),
        content: None,
        reports: Reports { metrics, access_log: None },
        events: Events::default(),
        ids: RequestIds::default(),
        draining: Draining::default(),
        tasks: Tasks::default(),
        public: options().public(),
    }
}

/// A server without content, stopped on request.
struct Server {
    addresses: Vec<SocketAddr>,
    metrics: Arc<Metrics>,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(options: Options, service: Service) -> Self {
        let metrics = service.reports.metrics.clone();
        let listeners = Listeners::bind(&options).await.unwrap();
        let addresses = listeners.addresses();
        let (stop, stopped) = oneshot::channel();
        let service = Arc::new(ArcSwap::from_pointee(service));
        let serve = listeners.serve(service, Tasks::default(), None, async { _ = stopped.await });
        Self { addresses, metrics, stop, served: tokio::spawn(serve) }
    }

    async fn plain() -> Self {
        Self::start(options(), service(None)).await
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addresses[0]).await.unwrap()
    }

    async fn get(&self, path: &str) -> String {
        ask(self.addresses[0], &format!("GET {path} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n"))
            .await
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        within(self.served).await.unwrap();
    }
}

pub(in crate::http) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

/// All that the server sends until it closes the connection.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset instead of an end is an end too: what came before it counts.
    let _ = within(stream.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

pub(in crate::http) async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(&mut stream).await
}

/// Reads one answer's head and its `{}`.
async fn base(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    while !answer.ends_with("{}") {
        let mut piece = [0; 1024];
        let read = within(stream.read(&mut piece)).await.unwrap();
        assert!(read > 0, "{answer}");
        answer.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    }
    answer
}

#[tokio::test]
async fn the_registry_answers_and_so_do_the_operators_routes() {
    let server = Server::plain().await;
    for (path, status, part) in [
        ("/v2/", "200", "\r\n\r\n{}"),
        ("/v2/", "200", "docker-distribution-api-version: registry/2.0"),
        ("/v2/", "200", "x-request-id: "),
        ("/v2", "301", "location: /v2/"),
        ("/healthz", "200", "ok"),
        ("/readyz", "503", "the store cannot be used yet"),
        ("/metrics", "200", "forebay_requests_total"),
        ("/", "200", "cache-control: no-cache"),
        ("/", "200", "http://a.test"),
        ("/v2/library/nginx/manifests/1", "503", "UNAVAILABLE"),
        (BLOB, "404", "BLOB_UNKNOWN"),
        ("/v2/library/nginx/manifests/sha256:x", "400", "DIGEST_INVALID"),
        ("/v2/x/manifests/1?ns=quay.io", "404", "NAME_UNKNOWN"),
        ("/nothing", "404", "UNSUPPORTED"),
    ] {
        let answer = server.get(path).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        assert!(answer.contains(part), "{path}: {answer}");
    }
    let head = ask(server.addresses[0], "HEAD /v2/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(head.contains("content-length: 2") && head.ends_with("\r\n\r\n"), "{head}");
    let post = "POST /v2/library/x/blobs/uploads/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let post = ask(server.addresses[0], post).await;
    assert!(post.starts_with("HTTP/1.1 405") && post.contains("allow: GET, HEAD"), "{post}");
    assert_eq!(server.metrics.requests_in_flight.get(), 0);
    server.stop().await;
}

#[tokio::test]
async fn the_operators_listener_has_its_routes_to_itself() {
    let operations = Some("127.0.0.1:0".parse().unwrap());
    let public = Public { tls: true, port: 5443 };
    let service = Service { public, ..service(None) };
    let server = Server::start(Options { operations, ..options() }, service).await;
    let at = |place: usize, path: &'static str| {
        let address = server.addresses[place];
        async move {
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            ask(address, &request).await[9..12].to_owned()
        }
    };
    for (path, public, private) in [
        ("/", "404", "200"),
        ("/metrics", "404", "200"),
        ("/healthz", "200", "200"),
        ("/readyz", "503", "503"),
        ("/v2/", "200", "404"),
        ("/v2/library/nginx/manifests/1", "503", "404"),
    ] {
        assert_eq!(at(0, path).await, public, "{path}");
        assert_eq!(at(1, path).await, private, "{path}");
    }
    let page = "GET / HTTP/1.1\r\nhost: a.test:9090\r\nconnection: close\r\n\r\n";
    let page = ask(server.addresses[1], page).await;
    assert!(page.contains("https://a.test:5443") && !page.contains("a.test:9090"), "{page}");
    server.stop().await;
}

#[tokio::test]
async fn heads_are_bounded() {
    let server = Server::plain().await;
    let request =
        |headers: &str| format!("GET /v2/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n");
    let fits = request(&format!("x: {}\r\n", "a".repeat(connection::HEAD_MAX / 2)));
    assert!(ask(server.addresses[0], &fits).await.starts_with("HTTP/1.1 200"));
    let long = request(&format!("x: {}\r\n", "a".repeat(connection::HEAD_MAX + 1024)));
    assert!(ask(server.addresses[0], &long).await.starts_with("HTTP/1.1 431"));
    assert!(ask(server.addresses[0], &request(&"x: 1\r\n".repeat(98))).await.starts_with("HTTP/1.1 200"));
    assert!(ask(server.addresses[0], &request(&"x: 1\r\n".repeat(99))).await.starts_with("HTTP/1.1 431"));
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_nobody_reads_ends_the_connection() {
    let server = Server::plain().await;
    let request = "GET /healthz HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\nabc";
    assert!(ask(server.addresses[0], request).await.starts_with("HTTP/1.1 200"));
    server.stop().await;
}

#[tokio::test]
async fn slow_heads_and_idle_connections_are_ended() {
    let short = Duration::from_millis(200);
    let server =
        Server::start(Options { header_timeout: short, idle_timeout: short, ..options() }, service(None))
            .await;
    let mut slow = server.connect().await;
    slow.write_all(b"GET /v2/ HTT").await.unwrap();
    assert_eq!(rest(&mut slow).await, "");
    let mut silent = server.connect().await;
    assert_eq!(rest(&mut silent).await, "");
    let mut idle = server.connect().await;
    base(&mut idle).await;
    assert_eq!(rest(&mut idle).await, "");
    server.stop().await;
}

#[tokio::test]
async fn connections_are_bounded_and_those_beyond_wait() {
    let server = Server::start(Options { max_connections: 1, ..options() }, service(None)).await;
    let mut first = server.connect().await;
    base(&mut first).await;
    let mut second = server.connect().await;
    second.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_millis(100), second.peek(&mut byte)).await;
    assert!(early.is_err(), "the one place is taken");
    assert_eq!(server.metrics.connections.get(), 1);
    drop(first);
    assert!(rest(&mut second).await.starts_with("HTTP/1.1 200"));
    assert!(server.metrics.limited.cell(Limit::Connections, Limited::Waited).get() > 0);
    server.stop().await;
}

#[tokio::test]
async fn a_listener_without_clients_holds_no_place() {
    let listen = vec!["127.0.0.1:0".parse().unwrap(); 2];
    let server = Server::start(Options { listen, max_connections: 1, ..options() }, service(None)).await;
    for address in &server.addresses {
        let request = "GET /v2/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        assert!(within(ask(*address, request)).await.starts_with("HTTP/1.1 200"));
    }
    server.stop().await;
}

#[tokio::test]
async fn who_does_not_end_within_the_grace_period_is_cut() {
    let places = Places::new(3);
    within(places.close(Duration::from_secs(10))).await;
    assert!(places.stop.is_cancelled() && !places.cut.is_cancelled());
    let places = Places::new(3);
    let _held = places.free.clone().try_acquire_owned().unwrap();
    places.close(Duration::from_millis(5)).await;
    assert!(places.cut.is_cancelled());
}

#[tokio::test]
async fn clients_are_limited_and_health_is_not() {
    let one = NonZeroU32::new(1).unwrap();
    let server = Server::start(options(), service(Some(Rate { per_minute: one, burst: one }))).await;
    assert!(server.get("/v2/").await.starts_with("HTTP/1.1 200"));
    let refused = server.get("/v2/").await;
    assert!(refused.starts_with("HTTP/1.1 429") && refused.contains("TOOMANYREQUESTS"), "{refused}");
    assert!(refused.contains("retry-after: 60") || refused.contains("retry-after: 59"), "{refused}");
    assert!(server.get("/healthz").await.starts_with("HTTP/1.1 200"));
    server.stop().await;
}

#[tokio::test]
async fn shutdown_ends_idle_connections_and_takes_no_new_ones() {
    let server = Server::plain().await;
    let address = server.addresses[0];
    let mut idle = server.connect().await;
    base(&mut idle).await;
    server.stop().await;
    assert_eq!(rest(&mut idle).await, "");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn an_address_in_use_is_named_with_the_remedy() {
    let server = Server::plain().await;
    let taken = Options { listen: server.addresses.clone(), ..options() };
    let message = Listeners::bind(&taken).await.err().unwrap().to_string();
    assert!(message.contains(&server.addresses[0].to_string()), "{message}");
    assert!(message.contains("choose another port"), "{message}");
    let none = Options { listen: Vec::new(), ..options() };
    assert!(matches!(Listeners::bind(&none).await, Err(BindError::None)));
    server.stop().await;
}

#[tokio::test]
async fn http_2_by_prior_knowledge_and_by_alpn() {
    let server = Server::plain().await;
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
    let answer = client.get(format!("http://{}/v2/", server.addresses[0])).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, http::Version::HTTP_2));
    let head = client.head(format!("http://{}/v2/", server.addresses[0])).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], "2");
    drop(client);
    server.stop().await;

    let folder = tempfile::tempdir().unwrap();
    let (tls, authority) = tls::tests::write_pair(folder.path());
    let server = Server::start(Options { tls: Some(tls), ..options() }, service(None)).await;
    let url = format!("https://localhost:{}/v2/", server.addresses[0].port());
    for (client, version) in [
        (reqwest::Client::builder(), http::Version::HTTP_2),
        (reqwest::Client::builder().http1_only(), http::Version::HTTP_11),
    ] {
        let authority = reqwest::Certificate::from_der(&authority).unwrap();
        let client = client.tls_certs_only([authority]).no_proxy();
        let client = client.resolve("localhost", server.addresses[0]).build().unwrap();
        let answer = client.get(&url).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
    }
    let plain = ask(server.addresses[0], "GET /v2/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(!plain.contains("200 OK"), "{plain}");
    assert_eq!(server.metrics.tls_failures.get(), 1);
    server.stop().await;
}

#[tokio::test]
async fn every_interface_may_be_named_for_both_families() {
    // A port that was free a moment ago; whoever takes it in between fails this test.
    let free = std::net::TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let listen = ["0.0.0.0", "[::]"].map(|ip| format!("{ip}:{free}").parse().unwrap()).to_vec();
    let bound = Listeners::bind(&Options { listen, ..options() }).await.unwrap();
    assert!((1..=2).contains(&bound.addresses().len()), "{:?}", bound.addresses());
}
