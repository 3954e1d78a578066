//! Pushers that stall, lie and vanish, on bare TCP: they get what is theirs, and nobody else suffers.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::plain;
use super::support::hosting::Hosting;
use super::support::image::random_bytes;
use super::support::process::{PATIENCE, Wait};
use super::support::repository::{Repository, ending};
use super::support::{sha256, stored_blobs};

/// A connection on which requests are written by hand.
struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    async fn connect(registry: &Hosting) -> Self {
        Self { stream: TcpStream::connect(registry.host()).await.unwrap(), read: Vec::new() }
    }

    /// Sends a request line for a `Location`, these header lines and an empty one.
    async fn head(&mut self, registry: &Hosting, method: &str, location: &str, headers: &[&str]) {
        let target = location.trim_start_matches(&registry.url());
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", registry.host());
        for header in headers {
            head += &format!("{header}\r\n");
        }
        self.send(format!("{head}\r\n").as_bytes()).await;
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The status of the next answer; its head and body are read. `None` when the connection ends.
    async fn status(&mut self) -> Option<u16> {
        tokio::time::timeout(PATIENCE, self.answer()).await.expect("an answer or the end")
    }

    async fn answer(&mut self) -> Option<u16> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if self.stream.read_buf(&mut self.read).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8(self.read.drain(..end).collect()).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        while self.read.len() < length {
            if self.stream.read_buf(&mut self.read).await.ok()? == 0 {
                return None;
            }
        }
        self.read.drain(..length);
        Some(head.split(' ').nth(1).unwrap().parse().unwrap())
    }
}

/// How many bytes an upload says that it has.
async fn received(repository: &Repository, location: &str) -> Option<usize> {
    let answer = repository.send(reqwest::Method::GET, location).await.expect(204);
    let (_, last) = answer.header("range").unwrap().split_once('-').unwrap();
    let last: usize = last.parse().unwrap();
    // `0-0` is what an upload without any bytes says.
    (last > 0).then_some(last + 1)
}

#[tokio::test]
async fn a_body_that_ends_too_soon_is_taken_up_where_it_broke_off() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = random_bytes(1, 400_000);
    let digest = sha256(&bytes);
    let registry = Hosting::forebay(directory.path(), "").await;
    let repository = registry.repository("app");
    let mut location = repository.begin().await;
    let mut raw = Raw::connect(&registry).await;
    raw.head(&registry, "PATCH", &location, &["Content-Length: 400000"]).await;
    raw.send(&bytes[..300_000]).await;
    drop(raw);
    let wait = Wait::for_("what came to be counted");
    let from = loop {
        match received(&repository, &location).await {
            Some(received) => break received,
            None => wait.a_little().await,
        }
    };
    assert!(from <= 300_000, "{from} of 300000");
    // The upload is nobody's now; whoever takes it up is told where it stands until all is there.
    let rest = bytes[from..].to_vec();
    let patch = repository.request(reqwest::Method::PATCH, &location);
    let range = format!("{from}-{}", bytes.len() - 1);
    let answer = patch.header("Content-Range", range).body(rest).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    location = answer.headers()["location"].to_str().unwrap().to_owned();
    repository.send(reqwest::Method::PUT, &ending(&location, &digest)).await.expect(201);
    assert_eq!(repository.get(&format!("blobs/{digest}")).await.expect(200).body, bytes);
}

#[tokio::test]
async fn what_is_too_short_is_never_a_blob() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = random_bytes(1, 1000);
    for registry in Hosting::both(directory.path()).await {
        let repository = registry.repository("app");
        // The bytes that do come are those of the digest: only the length says that more belong to it.
        let location = ending(&repository.begin().await, &sha256(&bytes));
        let mut raw = Raw::connect(&registry).await;
        raw.head(&registry, "PUT", &location, &["Content-Length: 2000"]).await;
        raw.send(&bytes).await;
        raw.stream.shutdown().await.unwrap();
        assert_ne!(raw.status().await, Some(201));
        assert_eq!(repository.status(&format!("blobs/{}", sha256(&bytes))).await, 404);
    }
}

#[tokio::test]
async fn what_follows_a_body_is_not_part_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = random_bytes(1, 1000);
    for registry in Hosting::both(directory.path()).await {
        let repository = registry.repository("app");
        let location = ending(&repository.begin().await, &sha256(&bytes));
        let mut raw = Raw::connect(&registry).await;
        raw.head(&registry, "PUT", &location, &["Content-Length: 1000"]).await;
        raw.send(&[&bytes[..], b"and more\r\n\r\n"].concat()).await;
        assert_eq!(raw.status().await, Some(201));
        assert!(matches!(raw.status().await, None | Some(400)));
        let blob = repository.get(&format!("blobs/{}", sha256(&bytes))).await.expect(200);
        assert_eq!(blob.body, bytes);
    }
}

const EXPECTS: [&str; 2] = ["Content-Length: 1000", "Expect: 100-continue"];

#[tokio::test]
async fn a_body_is_asked_for_where_it_is_wanted() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = random_bytes(1, 1000);
    for registry in Hosting::both(directory.path()).await {
        let location = ending(&registry.repository("app").begin().await, &sha256(&bytes));
        let mut raw = Raw::connect(&registry).await;
        raw.head(&registry, "PUT", &location, &EXPECTS).await;
        assert_eq!(raw.status().await, Some(100));
        raw.send(&bytes).await;
        assert_eq!(raw.status().await, Some(201));
    }
}

/// What is refused whatever the body is, is refused without it.
#[tokio::test]
async fn a_body_is_not_asked_for_in_vain() {
    let directory = tempfile::tempdir().unwrap();
    let registry = Hosting::forebay(directory.path(), "").await;
    let location = registry.repository("app").begin().await;
    let unknown = "/v2/app/blobs/uploads/01234567-89ab-cdef-0123-456789abcdef";
    let digest = sha256(b"x");
    let targets = [
        ("PUT", ending(&location, "sha256:short")),
        ("PUT", ending(unknown, &digest)),
        ("PATCH", unknown.to_owned()),
        ("PUT", "/v2/library/mirrored/manifests/1".to_owned()),
        ("PUT", format!("/v2/app/manifests/{digest}x")),
    ];
    for (method, target) in targets {
        let mut raw = Raw::connect(&registry).await;
        raw.head(&registry, method, &target, &EXPECTS).await;
        let status = raw.status().await.unwrap();
        assert!((400..500).contains(&status), "{method} {target}: {status}");
    }
    assert_eq!(received(&registry.repository("app"), &location).await, None, "the upload is still there");
}

/// Stalled uploads, half a head, connections that say nothing: others push meanwhile.
#[tokio::test]
async fn those_who_stall_hold_up_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let config = "[limits]\nheader_timeout = \"1s\"\nidle_timeout = \"1s\"\n";
    let registry = Hosting::forebay(directory.path(), config).await;
    let repository = registry.repository("app");
    let mut stalled = Vec::new();
    for number in 0..20 {
        let mut raw = Raw::connect(&registry).await;
        let location = repository.begin().await;
        match number % 3 {
            0 => {
                raw.head(&registry, "PATCH", &location, &["Content-Length: 1000000"]).await;
                raw.send(&random_bytes(number, 10_000)).await;
            }
            1 => raw.send(b"PATCH /v2/app/blobs").await,
            _ => {}
        }
        stalled.push((number, raw, location));
    }
    let image = plain(&[random_bytes(100, 100_000)], "meanwhile");
    repository.push(&image, "1").await;
    assert_eq!(repository.whole("1").await.unwrap().len(), 3);
    for (number, raw, _) in &mut stalled {
        if *number % 3 != 0 {
            assert!(matches!(raw.status().await, None | Some(408)), "half a head is not waited for");
        }
    }
    // An upload whose pusher is silent but there belongs to nobody else, and can be given up.
    for (number, _, location) in &stalled {
        if number % 3 != 0 {
            repository.delete(location).await.expect(204);
        }
    }
    drop(stalled);
    let Hosting::Forebay(mirror) = &registry else { unreachable!() };
    assert_eq!(stored_blobs(&mirror.data()).len(), 3);
}
