//! What no load generator does well: HEADs, handshakes, latencies, single GETs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::Done;
use crate::servers::Pair;
use crate::support::image::MANIFEST;

/// The longest head, and the longest answer that is read as a whole.
const ANSWER: usize = 64 << 10;

fn request(method: &str, address: &str, path: &str, more: &str) -> Arc<[u8]> {
    let text = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nAccept: {MANIFEST}\r\n{more}\r\n");
    text.into_bytes().into()
}

async fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Where the head of an answer ends, its status and its Content-Length.
fn parse(answer: &[u8]) -> Option<(usize, u16, u64)> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let mut length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    Some((end, status, length.next().map_or(0, |(_, length)| length.trim().parse().unwrap_or(0))))
}

/// Asks and reads a small answer to its end, which must be a 200. Its bytes, with the head.
async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &[u8],
    answer: &mut Vec<u8>,
) -> u64 {
    let body = !request.starts_with(b"HEAD");
    stream.write_all(request).await.unwrap();
    stream.flush().await.unwrap();
    answer.clear();
    loop {
        assert!(answer.len() < ANSWER, "the answer has no end");
        assert!(stream.read_buf(answer).await.unwrap() > 0, "the server closed");
        let Some((end, status, length)) = parse(answer) else { continue };
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer[..end]));
        if answer.len() as u64 >= end as u64 + if body { length } else { 0 } {
            return answer.len() as u64;
        }
    }
}

/// So many clients, each of which does `once` again and again until the turn is over.
async fn together<F: Future<Output = ()> + Send + 'static>(
    clients: usize,
    turn: Duration,
    client: impl Fn(Tally) -> F,
) -> Done {
    let tally = Tally { end: Instant::now() + turn, done: Arc::default() };
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        tasks.spawn(client(tally.clone()));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let [requests, bytes] = [0, 1].map(|which: usize| tally.done[which].load(Ordering::Relaxed));
    Done { requests, bytes, seconds: begun.elapsed().as_secs_f64() }
}

/// What clients have done so far: requests, bytes.
#[derive(Clone)]
struct Tally {
    end: Instant,
    done: Arc<[AtomicU64; 2]>,
}

impl Tally {
    fn goes_on(&self) -> bool {
        Instant::now() < self.end
    }

    fn note(&self, bytes: u64) {
        self.done[0].fetch_add(1, Ordering::Relaxed);
        self.done[1].fetch_add(bytes, Ordering::Relaxed);
    }
}

/// HEADs on kept connections.
pub async fn heads(address: &str, path: &str, connections: usize, turn: Duration) -> Done {
    let request = request("HEAD", address, path, "");
    together(connections, turn, |tally| {
        let (request, address) = (request.clone(), address.to_owned());
        async move {
            let (mut stream, mut answer) = (connect(&address).await, Vec::with_capacity(ANSWER));
            while tally.goes_on() {
                tally.note(exchange(&mut stream, &request, &mut answer).await);
            }
        }
    })
    .await
}

/// A client's side of TLS 1.3 that believes this certificate and never resumes.
pub fn trusting(pair: &Pair) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pair.der.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// A connection, a handshake, a GET; again and again.
pub async fn handshakes(
    address: &str,
    path: &str,
    tls: Arc<ClientConfig>,
    clients: usize,
    turn: Duration,
) -> Done {
    let request = request("GET", address, path, "Connection: close\r\n");
    let tls = TlsConnector::from(tls);
    together(clients, turn, |tally| {
        let (request, address, tls) = (request.clone(), address.to_owned(), tls.clone());
        async move {
            let name = ServerName::try_from("127.0.0.1").unwrap();
            let mut answer = Vec::with_capacity(ANSWER);
            while tally.goes_on() {
                let stream = connect(&address).await;
                // Else the ports that wait for their end run out.
                stream.set_zero_linger().unwrap();
                let mut stream = tls.connect(name.clone(), stream).await.unwrap();
                tally.note(exchange(&mut stream, &request, &mut answer).await);
            }
        }
    })
    .await
}

/// Milliseconds that each of many small GETs took, in order, while one connection asks one after the
/// other with a pause between. On a thread of its own, which nothing else in here delays.
pub async fn latencies(address: &str, path: &str, turn: Duration) -> Vec<f64> {
    const PAUSE: Duration = Duration::from_millis(1);
    let (request, address) = (request("GET", address, path, ""), address.to_owned());
    let asking = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut stream, mut answer) = (connect(&address).await, Vec::with_capacity(ANSWER));
            let (begun, mut all) = (Instant::now(), Vec::new());
            while begun.elapsed() < turn {
                let asked = Instant::now();
                exchange(&mut stream, &request, &mut answer).await;
                all.push(asked.elapsed().as_secs_f64() * 1e3);
                tokio::time::sleep(PAUSE).await;
            }
            all.sort_by(f64::total_cmp);
            all
        })
    });
    tokio::task::spawn_blocking(|| asking.join().unwrap()).await.unwrap()
}

/// What one client got.
#[derive(Default)]
pub struct Pull {
    /// 0 where there was no answer.
    pub status: u16,
    pub intact: bool,
    /// Of the body.
    pub first_byte: Option<Duration>,
    pub bytes: u64,
}

/// A GET on a connection of its own; whatever happens is what the client got.
pub async fn pull(address: &str, path: &str, expected: &[u8]) -> Pull {
    let mut pull = Pull::default();
    // What has come until an error is what the client got.
    let _ = pull_into(&mut pull, address, path, expected).await;
    pull
}

async fn pull_into(pull: &mut Pull, address: &str, path: &str, expected: &[u8]) -> std::io::Result<()> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&request("GET", address, path, "Connection: close\r\n")).await?;
    let mut piece = Vec::with_capacity(256 << 10);
    let head = loop {
        if stream.read_buf(&mut piece).await? == 0 {
            return Ok(());
        }
        if let Some((head, status, _)) = parse(&piece) {
            pull.status = status;
            break head;
        }
    };
    piece.drain(..head);
    let (mut left, mut same) = (expected, true);
    loop {
        if !piece.is_empty() {
            pull.first_byte.get_or_insert(begun.elapsed());
            pull.bytes += piece.len() as u64;
            match left.strip_prefix(&piece[..]) {
                Some(rest) => left = rest,
                None => same = false,
            }
        }
        pull.intact = pull.status == 200 && same && left.is_empty();
        piece.clear();
        if pull.intact || stream.read_buf(&mut piece).await? == 0 {
            return Ok(());
        }
    }
}

/// A GET of what may be large, until its end or `end`; the bytes that came.
pub async fn drain(address: &str, path: &str, end: Instant) -> u64 {
    let mut stream = connect(address).await;
    stream.write_all(&request("GET", address, path, "Connection: close\r\n")).await.unwrap();
    let (mut piece, mut bytes) = (vec![0; 256 << 10], 0);
    while Instant::now() < end {
        match stream.read(&mut piece).await.unwrap() {
            0 => break,
            read => bytes += read as u64,
        }
    }
    bytes
}
