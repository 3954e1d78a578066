use super::*;
use crate::access::{Action, AuthOptions, Gate, Rule, Who};
use crate::http::Service;
use crate::http::listen::tests::{ask, service, within};
use crate::http::watch::Patience;
use crate::tasks::Tasks;
use arc_swap::ArcSwap;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(3600);

fn forward(data: &Path, tunnel: &[&str]) -> Forward {
    std::fs::create_dir_all(data.join("forebay")).unwrap();
    let registries = [("ghcr.io".to_owned(), "ghcr.io".parse().unwrap())].into();
    let tunnel = tunnel.iter().map(|pattern| Glob::new(pattern).unwrap()).collect();
    let options = ForwardOptions { listen: "127.0.0.1:0".parse().unwrap(), tunnel, registries };
    Forward::open(&options, data, Arc::new(Metrics::new()), Clock::default()).unwrap()
}

fn way(forward: &Forward, authority: &str) -> String {
    match forward.way(authority, |_| true) {
        Ok(Way::Serve(host, upstream)) => format!("serves {host} as {upstream}"),
        Ok(Way::Tunnel(host)) => format!("passes on to {host}"),
        Err(why) => why,
    }
}

#[test]
fn registries_are_served_what_is_listed_is_passed_on_and_the_rest_refused() {
    let data = tempfile::tempdir().unwrap();
    let forward = forward(data.path(), &["*.example.com"]);
    assert_eq!(way(&forward, "ghcr.io:443"), "serves ghcr.io as ghcr.io");
    assert_eq!(way(&forward, "GHCR.io.:443"), "serves ghcr.io as ghcr.io");
    assert_eq!(way(&forward, "a.example.com:443"), "passes on to a.example.com");
    for (authority, part) in [
        ("ghcr.io:22", "port 443 only"),
        ("a.example.com:80", "port 443 only"),
        ("example.com:443", "forward_proxy.tunnel"),
        ("evil.example:443", "(ghcr.io)"),
        ("169.254.169.254:443", "forward_proxy.tunnel"),
        ("ghcr.io", "is no host with a port"),
        ("ghcr.io:99999", "is no host with a port"),
        ("", "is no host with a port"),
    ] {
        let why = way(&forward, authority);
        assert!(why.contains(part), "{authority}: {why}");
    }
    let why = forward.way("evil.example:443", |_| false).unwrap_err();
    assert!(why.contains("none of the registries here, and") && !why.contains("ghcr.io"), "{why}");
}

#[tokio::test]
async fn no_private_address_is_connected_to_whatever_it_is_called() {
    for host in ["localhost", "127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "::ffff:10.0.0.1", "0.0.0.0"]
    {
        let opened = tunnel::open(host, PORT).await;
        assert!(matches!(opened, Err(tunnel::Refused::Private(_))), "{host}: {opened:?}");
    }
}

/// One connection to a proxy for ghcr.io, served until it ends.
struct Connection {
    address: SocketAddr,
    served: JoinHandle<()>,
    metrics: Arc<Metrics>,
    data: tempfile::TempDir,
}

impl Connection {
    async fn start(patience: Patience, service: Service) -> Self {
        let data = tempfile::tempdir().unwrap();
        let forward = Arc::new(forward(data.path(), &["localhost"]));
        let metrics = forward.metrics.clone();
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let service = Arc::new(ArcSwap::from_pointee(service));
        let context = Context { service, patience, tasks: Tasks::default(), stop: CancellationToken::new() };
        let served = tokio::spawn(async move {
            let (stream, peer) = socket.accept().await.unwrap();
            forward.serve(stream, peer, context).await;
        });
        Self { address, served, metrics, data }
    }

    async fn patient(service: Service) -> Self {
        Self::start(Patience { header: LONG, idle: LONG }, service).await
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_left() {
    let patience = Patience { header: LONG, idle: Duration::from_millis(300) };
    let connection = Connection::start(patience, service(None)).await;
    let mut client = TcpStream::connect(connection.address).await.unwrap();
    let asking =
        tokio::spawn(async move { while client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.is_ok() {} });
    within(connection.served).await.unwrap();
    within(asking).await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_head_is_left() {
    let patience = Patience { header: Duration::from_millis(100), idle: LONG };
    let connection = Connection::start(patience, service(None)).await;
    let mut client = TcpStream::connect(connection.address).await.unwrap();
    client.write_all(b"CONNECT ghcr.io:443 HT").await.unwrap();
    within(connection.served).await.unwrap();
}

#[tokio::test]
async fn a_refusal_names_what_anybody_may_pull_from_and_no_more() {
    let closed = || {
        let rule = Rule {
            who: vec![Who::LoggedIn],
            repositories: vec!["**".to_owned()],
            actions: vec![Action::Pull],
            place: String::new(),
        };
        let (options, metrics) =
            (AuthOptions { rules: vec![rule], ..Default::default() }, Arc::new(Metrics::new()));
        let (clock, tasks) = (Clock::default(), Tasks::default());
        let gate = Gate::open(options, Path::new("/nonexistent"), metrics, &clock, &tasks).unwrap();
        Service { gate: Arc::new(gate), ..service(None) }
    };
    for (service, named) in [(service(None), true), (closed(), false)] {
        let connection = Connection::patient(service).await;
        let request = "CONNECT evil.example:443 HTTP/1.1\r\nconnection: close\r\n\r\n";
        let answer = ask(connection.address, request).await;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("none of the registries"), "{answer}");
        assert_eq!(answer.contains("ghcr.io"), named, "{answer}");
    }
}

#[tokio::test]
async fn a_host_is_judged_before_it_is_granted() {
    let connection = Connection::patient(service(None)).await;
    let request = "CONNECT localhost:443 HTTP/1.1\r\nconnection: close\r\n\r\n";
    let answer = ask(connection.address, request).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("private addresses only"), "{answer}");
    assert_eq!(connection.metrics.forwarded.cell(Forwarded::Refused).get(), 1);
    assert_eq!(connection.metrics.forwarded.cell(Forwarded::Failed).get(), 0);
}

#[tokio::test]
async fn the_certificate_comes_without_the_list_of_all_registries() {
    let connection = Connection::patient(service(None)).await;
    let mut client = TcpStream::connect(connection.address).await.unwrap();
    client.write_all(b"CONNECT ghcr.io:443 HTTP/1.1\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(client.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200"));
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(certificate_path(connection.data.path())).unwrap();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let shaken = connector.connect(ServerName::try_from("ghcr.io").unwrap(), client);
    let stream = within(shaken).await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap().len(), 1);
}

/// A connection passed on: its client, what copies, its server.
async fn passed(stop: &CancellationToken) -> (TcpStream, JoinHandle<std::io::Result<()>>, TcpStream) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connect = async || TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
    let (client, (inner, _)) = (connect().await, socket.accept().await.unwrap());
    let (outer, (server, _)) = (connect().await, socket.accept().await.unwrap());
    let (stop, patience) = (stop.clone(), Patience { header: LONG, idle: LONG });
    let copied = tokio::spawn(async move { tunnel::copy(inner, outer, patience, &stop).await });
    (client, copied, server)
}

#[tokio::test]
async fn a_shutdown_ends_what_is_passed_on_when_nothing_moves() {
    let stop = CancellationToken::new();
    let (mut client, copied, mut server) = passed(&stop).await;
    client.write_all(b"ping").await.unwrap();
    let mut ping = [0; 4];
    within(server.read_exact(&mut ping)).await.unwrap();
    stop.cancel();
    within(copied).await.unwrap().unwrap();
    assert_eq!(within(client.read(&mut ping)).await.unwrap(), 0);
}

#[tokio::test]
async fn what_moves_is_passed_on_to_its_end_during_a_shutdown() {
    let stop = CancellationToken::new();
    stop.cancel();
    let (mut client, copied, mut server) = passed(&stop).await;
    let sent: Vec<u8> = (0..8 << 20).map(|i: u32| (i % 251) as u8).collect();
    let expected = sent.clone();
    tokio::spawn(async move { server.write_all(&sent).await });
    let mut got = Vec::new();
    within(client.read_to_end(&mut got)).await.unwrap();
    assert!(got == expected);
    drop(client);
    within(copied).await.unwrap().unwrap();
}
