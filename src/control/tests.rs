//! The control socket with good clients, bad ones and none.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::client::parse;
use super::server::{Patience, serve_with};
use super::*;
use crate::tasks::Tasks;

/// Time that ought to be enough for anything.
const LONG: Duration = Duration::from_secs(60);

fn data() -> TempDir {
    let data = tempfile::tempdir().unwrap();
    std::fs::create_dir(data.path().join("forebay")).unwrap();
    data
}

fn blob(number: u64) -> Removed {
    Removed { what: "blob".into(), repository: None, subject: format!("sha256:{number:064x}"), bytes: number }
}

/// Reports so many blobs, and counts the passes that came to their end.
fn collecting(blobs: u64, ended: Arc<AtomicUsize>) -> Commands {
    let collect = move |_: GcRequest, report: Report<Line>| {
        let ended = ended.clone();
        async move {
            for number in 0..blobs {
                report.tell(&Line::Removed(blob(number))).await;
            }
            ended.fetch_add(1, Ordering::SeqCst);
            let bytes = blobs * blobs.saturating_sub(1) / 2;
            Ok(Line::Totals(Totals { blobs, bytes, ..Totals::default() }))
        }
        .boxed()
    };
    Commands::from([("gc", Command::new(collect)), ("warm", warming())])
}

/// Says of each image that it is held, then the totals.
fn warming() -> Command {
    Command::new(|request: WarmRequest, report: Report<WarmLine>| {
        async move {
            let held = request.images.len() as u64;
            for image in request.images {
                let failed = WarmFailed { image, error: request.platforms.join("+") };
                report.tell(&WarmLine::Failed(failed)).await;
            }
            Ok(WarmLine::Totals(WarmTotals { held, ..WarmTotals::default() }))
        }
        .boxed()
    })
}

/// A pass that never ends by itself; counts those that were ended.
fn endless(ended: Arc<AtomicUsize>) -> Commands {
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let collect = move |_: GcRequest, report: Report<Line>| {
        let counted = Counted(ended.clone());
        async move {
            let _counted = counted;
            report.tell(&Line::Removed(blob(1))).await;
            std::future::pending().await
        }
        .boxed()
    };
    Commands::from([("gc", Command::new(collect))])
}

async fn collect(client: &Client, dry_run: bool) -> Result<client::Lines, ClientError> {
    client.command("gc", &GcRequest { dry_run }).await
}

struct Server {
    data: TempDir,
    tasks: Tasks,
    ended: Arc<AtomicUsize>,
}

impl Server {
    async fn start(blobs: u64) -> Self {
        let ended = Arc::new(AtomicUsize::new(0));
        Self::with(collecting(blobs, ended.clone()), ended, Patience::default()).await
    }

    async fn with(commands: Commands, ended: Arc<AtomicUsize>, patience: Patience) -> Self {
        let (data, tasks) = (data(), Tasks::default());
        let bound = Bound::bind(data.path()).await.unwrap();
        tasks.spawn("control", serve_with(bound, commands, tasks.clone(), patience));
        Self { data, tasks, ended }
    }

    fn client(&self) -> Client {
        Client::of(self.data.path())
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(socket_path(self.data.path())).await.unwrap()
    }

    /// What is answered to these bytes, until the server hangs up.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        // It may hang up before it has read all.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await;
        let _ = read.expect("the server hangs up");
        String::from_utf8(answer).unwrap()
    }

    async fn passes(&self, count: usize) {
        let wait = async {
            while self.ended.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(LONG, wait).await.expect("the pass ends");
    }
}

async fn all(mut lines: client::Lines) -> Vec<Line> {
    let mut read = Vec::new();
    while let Some(line) = lines.next().await.unwrap() {
        read.push(parse(&line).unwrap());
    }
    read
}

#[tokio::test]
async fn a_collection_is_told_line_by_line() {
    let server = Server::start(200).await;
    let version = server.client().version().await.unwrap();
    assert_eq!(version, Version { protocol: 1, forebay: env!("CARGO_PKG_VERSION").into() });
    for dry_run in [true, false] {
        let lines = all(collect(&server.client(), dry_run).await.unwrap()).await;
        assert_eq!(lines.len(), 201);
        assert_eq!(lines[7], Line::Removed(blob(7)));
        let totals = Totals { blobs: 200, bytes: 19_900, ..Totals::default() };
        assert_eq!(lines[200], Line::Totals(totals));
    }
    assert!(server.tasks.drain(LONG).await);
}

#[tokio::test]
async fn images_are_asked_for_in_a_body_with_a_limit() {
    let server = Server::start(0).await;
    let image = |number: usize| format!("registry.example/org/app{number}:1");
    let images: Vec<String> = (0..IMAGES_MAX).map(image).collect();
    let request = WarmRequest { images, platforms: vec!["a/b".into(), "c/d".into()] };
    let mut lines = server.client().command("warm", &request).await.unwrap();
    let mut read = Vec::new();
    while let Some(line) = lines.next().await.unwrap() {
        read.push(parse::<WarmLine>(&line).unwrap());
    }
    assert_eq!(read.len(), IMAGES_MAX + 1);
    assert_eq!(read[7], WarmLine::Failed(WarmFailed { image: image(7), error: "a/b+c/d".into() }));
    assert!(matches!(read[IMAGES_MAX], WarmLine::Totals(WarmTotals { held: 10_000, .. })));
    let refused = async |request: &WarmRequest| {
        server.client().command("warm", request).await.err().unwrap().to_string()
    };
    let one_more = WarmRequest { images: vec!["a".into(); IMAGES_MAX + 1], platforms: vec![] };
    assert!(refused(&one_more).await.contains("10000 images at once at most"));
    let large = WarmRequest { images: vec!["a".repeat(4 << 20)], platforms: vec![] };
    assert!(refused(&large).await.contains("ask for less at once"));
    let raw = async |body: &str| {
        let head = format!("POST /v1/warm HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        server.raw((head + body).as_bytes()).await
    };
    for (body, part) in
        [("{}", "missing field"), (r#"{"images":[],"all":1}"#, "unknown field"), ("x", "no such request")]
    {
        let answer = raw(body).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(part), "{answer}");
    }
    assert!(raw(r#"{"images":[]}"#).await.starts_with("HTTP/1.1 200 "));
    assert!(server.raw(b"GET /v1/warm HTTP/1.1\r\nhost: x\r\n\r\n").await.contains("use POST"));
}

/// Takes bytes until there are as many as it was told, then gives them back.
fn echoing() -> Command {
    Command::taking_bytes(|request: PutRequest, mut brought: Brought, report: Report<ReadLine>| {
        async move {
            let mut taken = Vec::new();
            while let Some(piece) = brought.next().await {
                taken.extend_from_slice(&piece?);
                if taken.len() as u64 > request.size {
                    return Err("more than was said".to_owned());
                }
            }
            for piece in taken.chunks(100_000) {
                let piece = Bytes::copy_from_slice(piece);
                report.bytes(&ReadLine::Bytes(piece.len() as u64), piece).await;
            }
            Ok(ReadLine::Complete(taken.len() as u64))
        }
        .boxed()
    })
}

#[tokio::test]
async fn bytes_go_both_ways() {
    let commands = Commands::from([("put", echoing())]);
    let server = Server::with(commands, Arc::default(), Patience::default()).await;
    let request =
        |size: u64| PutRequest { image: "a".into(), digest: "sha256:00".into(), size, kind: PutKind::Blob };
    let client = server.client();
    let put = async |size: u64, pieces: Vec<std::io::Result<Bytes>>| {
        let sent = stream::iter(pieces).boxed();
        let mut lines = client.command_with("put", &request(size), sent).await?;
        let mut bytes = Vec::new();
        loop {
            let line = lines.next().await?.ok_or_else(|| ClientError::Broken("no end".to_owned()))?;
            let mut left = match parse(&line)? {
                ReadLine::Bytes(count) => count,
                ReadLine::Complete(size) => {
                    assert_eq!(size, bytes.len() as u64);
                    return Ok(bytes);
                }
                ReadLine::Error(why) => return Err(ClientError::Refused(why)),
            };
            while left > 0 {
                let piece = lines.bytes(left).await?;
                left -= piece.len() as u64;
                bytes.extend_from_slice(&piece);
            }
        }
    };
    let all: Vec<u8> = (0..3_000_000_u32).map(|at| ((at * 7) >> 3) as u8).collect();
    let pieces = |size: usize| all.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    for size in [1 << 20, 77_777, 4096] {
        assert!(put(all.len() as u64, pieces(size)).await.unwrap() == all, "{size}");
    }
    assert!(put(0, vec![]).await.unwrap().is_empty());
    // One that ends early is told why, though it has much to send still.
    for _ in 0..20 {
        let endless: Vec<_> = std::iter::repeat_n(Bytes::from_owner(vec![0; 1 << 20]), 64).map(Ok).collect();
        let error = put(7, endless).await.unwrap_err().to_string();
        assert!(error.contains("more than was said"), "{error}");
    }
    // Bytes that break off are no end.
    let broken = vec![Ok(Bytes::from_static(b"abc")), Err(std::io::ErrorKind::InvalidData.into())];
    assert!(put(3, broken).await.is_err());
    let line = "x".repeat(LINE_MAX + 1);
    let head = format!("POST /v1/put HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", line.len());
    assert!(server.raw((head + &line).as_bytes()).await.starts_with("HTTP/1.1 413 "));
    let answer = server.raw(b"POST /v1/put HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("has no end"), "{answer}");
    let answer = server.raw(b"POST /v1/put HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n{}\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("missing field"), "{answer}");
}

#[tokio::test]
async fn bytes_that_do_not_come_are_not_waited_for() {
    let patience = Patience { line: Duration::from_millis(100), ..Patience::default() };
    let server = Server::with(Commands::from([("put", echoing())]), Arc::default(), patience).await;
    let request = r#"{"image":"a","digest":"b","size":9,"kind":"blob"}"#;
    let head = format!("POST /v1/put HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{request}\nabc");
    let answer = server.raw(head.as_bytes()).await;
    assert!(answer.contains("nothing came for"), "{answer}");
}

/// What other programs read: these lines are a format.
#[test]
fn lines_are_as_documented() {
    let tag = Removed { what: "tag".into(), repository: Some("app".into()), subject: "v1".into(), bytes: 0 };
    let json = |line: &Line| serde_json::to_string(line).unwrap();
    assert_eq!(
        json(&Line::Removed(tag)),
        r#"{"removed":{"what":"tag","repository":"app","subject":"v1","bytes":0}}"#
    );
    assert_eq!(
        json(&Line::Totals(Totals { tags: 1, bytes: 2, ..Totals::default() })),
        r#"{"totals":{"tags":1,"manifests":0,"links":0,"blobs":0,"bytes":2}}"#
    );
    assert_eq!(json(&Line::Error("why".into())), r#"{"error":"why"}"#);
    let json = |line: &WarmLine| serde_json::to_string(line).unwrap();
    let held = WarmHeld {
        image: "app".into(),
        digest: "sha256:00".into(),
        blobs: 1,
        bytes: 2,
        bytes_fetched: 3,
        stale: None,
    };
    assert_eq!(
        json(&WarmLine::Held(held)),
        r#"{"held":{"image":"app","digest":"sha256:00","blobs":1,"bytes":2,"bytes_fetched":3}}"#
    );
    let failed = WarmFailed { image: "app".into(), error: "why".into() };
    assert_eq!(json(&WarmLine::Failed(failed)), r#"{"failed":{"image":"app","error":"why"}}"#);
    assert_eq!(
        json(&WarmLine::Totals(WarmTotals { held: 1, failed: 2, bytes: 3, bytes_fetched: 4 })),
        r#"{"totals":{"held":1,"failed":2,"bytes":3,"bytes_fetched":4}}"#
    );
}

#[tokio::test]
async fn only_its_owner_may_open_the_socket() {
    let server = Server::start(1).await;
    let mode = std::fs::metadata(socket_path(server.data.path())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let data = data();
    let path = socket_path(data.path());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left by a process that was killed");
    let bound = Bound::bind(data.path()).await.unwrap();
    let error = Bound::bind(data.path()).await.err().unwrap();
    assert!(matches!(error, SocketError::Live(_)) && error.to_string().contains("--data"), "{error}");
    drop(bound);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Bound::bind(data.path()).await.err().unwrap(), SocketError::NotOurs(_)));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn no_path_is_too_long() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("d".repeat(200));
    std::fs::create_dir_all(data.join("forebay")).unwrap();
    let tasks = Tasks::default();
    for _ in 0..2 {
        let bound = Bound::bind(&data).await.unwrap();
        assert!(matches!(Bound::bind(&data).await.err().unwrap(), SocketError::Live(_)));
        let commands = collecting(3, Arc::default());
        let serving = tasks.spawn("control", serve(bound, commands, tasks.clone()));
        assert_eq!(all(collect(&Client::of(&data), false).await.unwrap()).await.len(), 4);
        serving.abort();
        let _ = serving.await;
        assert!(!socket_path(&data).exists());
    }
}

#[tokio::test]
async fn without_a_server_the_reason_is_told() {
    let data = data();
    let error = |error: ClientError| {
        assert!(matches!(error, ClientError::NotRunning(_)), "{error:?}");
        assert!(error.to_string().contains("forebay serve --data"), "{error}");
    };
    error(Client::of(data.path()).version().await.unwrap_err());
    drop(std::os::unix::net::UnixListener::bind(socket_path(data.path())).unwrap());
    error(collect(&Client::of(data.path()), true).await.err().unwrap());
    error(Client::of(std::path::Path::new("/nonexistent/forebay")).version().await.unwrap_err());
}

#[tokio::test]
async fn what_is_no_command_is_refused() {
    let server = Server::start(1).await;
    let cases = [
        ("GET /v1/version HTTP/1.1\r\nhost: x\r\n\r\n", "200", "\"protocol\":1"),
        ("GET /v1/gc HTTP/1.1\r\nhost: x\r\n\r\n", "405", "use POST"),
        ("POST /v1/version HTTP/1.1\r\nhost: x\r\n\r\n", "405", "allow: GET"),
        ("POST /v2/gc HTTP/1.1\r\nhost: x\r\n\r\n", "404", "protocol is 1"),
        ("POST /v1/gc?dry-run=true HTTP/1.1\r\nhost: x\r\n\r\n", "400", "in the body"),
        ("POST /v1/gc HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc", "400", "no such request"),
        (
            "POST /v1/gc HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n7\r\n{\"a\":1}\r\n0\r\n\r\n",
            "400",
            "unknown field",
        ),
        ("\0\u{1}garbage\r\n\r\n", "400", ""),
    ];
    for (request, status, part) in cases {
        let answer = server.raw(request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request} {answer}");
        assert!(answer.contains(part), "{request} {answer}");
    }
    let long = format!("GET /v1/version HTTP/1.1\r\nhost: {}\r\n\r\n", "x".repeat(100_000));
    let answer = server.raw(long.as_bytes()).await;
    assert!(!answer.contains(" 200 "), "{answer}");
    assert_eq!(server.ended.load(Ordering::SeqCst), 0, "nothing was collected");
}

#[tokio::test]
async fn a_collection_goes_on_though_its_client_leaves() {
    let server = Server::start(1000).await;
    let mut lines = collect(&server.client(), false).await.unwrap();
    assert!(lines.next().await.unwrap().is_some());
    drop(lines);
    server.passes(1).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_up_nothing() {
    let ended = Arc::new(AtomicUsize::new(0));
    let patience = Patience { line: Duration::from_millis(50), ..Patience::default() };
    // More than the socket's buffers take.
    let server = Server::with(collecting(50_000, ended.clone()), ended, patience).await;
    let mut stalled = server.connect().await;
    stalled.write_all(b"POST /v1/gc HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    server.passes(1).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(LONG, stalled.read_to_end(&mut answer)).await;
    let _ = read.expect("it was hung up on");
    assert!(!String::from_utf8_lossy(&answer).contains("totals"));
}

#[tokio::test]
async fn what_would_go_is_not_looked_for_once_nobody_listens() {
    let ended = Arc::new(AtomicUsize::new(0));
    let server = Server::with(endless(ended.clone()), ended, Patience::default()).await;
    let mut lines = collect(&server.client(), true).await.unwrap();
    assert!(lines.next().await.unwrap().is_some());
    drop(lines);
    server.passes(1).await;
}

#[tokio::test]
async fn slow_heads_do_not_keep_others_out() {
    let patience = Patience { head: Duration::from_millis(100), ..Patience::default() };
    let ended = Arc::new(AtomicUsize::new(0));
    let server = Server::with(collecting(1, ended.clone()), ended, patience).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = server.connect().await;
        let _ = stream.write_all(b"POST /v1/gc HTTP/1.1\r\n").await;
        slow.push(stream);
    }
    let answered = tokio::time::timeout(LONG, server.client().version()).await;
    assert_eq!(answered.unwrap().unwrap().protocol, PROTOCOL);
}

#[tokio::test]
async fn shutdown_ends_a_collection_and_says_so() {
    let server = Server::with(endless(Arc::default()), Arc::default(), Patience::default()).await;
    let mut lines = collect(&server.client(), false).await.unwrap();
    assert_eq!(parse::<Line>(&lines.next().await.unwrap().unwrap()).unwrap(), Line::Removed(blob(1)));
    let (drained, rest) = tokio::join!(server.tasks.drain(LONG), all(lines));
    assert!(drained);
    assert!(matches!(&rest[..], [Line::Error(why)] if why.contains("shutting down")), "{rest:?}");
    assert!(!socket_path(server.data.path()).exists());
}
