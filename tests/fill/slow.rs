//! Clients that read a little at a time, and of whose bodies the system keeps next to nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::support::process::Wait;

const RECEIVED_AT_ONCE: u32 = 8 << 10;
const PIECE: usize = 2048;
const PAUSE: Duration = Duration::from_millis(100);

/// Readers of one mirror.
pub struct Slow {
    port: u16,
    hurry: watch::Sender<bool>,
    begun: Arc<AtomicUsize>,
    readers: Vec<JoinHandle<()>>,
}

impl Slow {
    pub fn new(port: u16) -> Self {
        Self { port, hurry: watch::Sender::new(false), begun: Arc::default(), readers: Vec::new() }
    }

    /// One more begins to read this blob, which must have these bytes.
    pub fn read(&mut self, repository: &str, digest: &str, expected: &Bytes) {
        let (port, path) = (self.port, format!("/v2/{repository}/blobs/{digest}"));
        let read = read(port, path, expected.clone(), self.begun.clone(), self.hurry.subscribe());
        self.readers.push(tokio::spawn(read));
    }

    /// Waits until all are answered.
    pub async fn begun(&self) {
        let wait = Wait::for_("all readers to have begun");
        while self.begun.load(Ordering::SeqCst) < self.readers.len() {
            wait.a_little().await;
        }
    }

    /// Whether none has come to its end.
    pub fn all_read(&self) -> bool {
        self.readers.iter().all(|reader| !reader.is_finished())
    }

    /// Lets them read the rest as fast as they can; each must have all of its blob.
    pub async fn hurry(self) {
        self.hurry.send(true).unwrap();
        for reader in self.readers {
            reader.await.unwrap();
        }
    }
}

async fn read(
    port: u16,
    path: String,
    expected: Bytes,
    begun: Arc<AtomicUsize>,
    mut hurry: watch::Receiver<bool>,
) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(RECEIVED_AT_ONCE).unwrap();
    let mut stream = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut head, mut got) = (Vec::new(), 0);
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
    begun.fetch_add(1, Ordering::SeqCst);
    let mut buffer = vec![0; 64 << 10];
    while got < expected.len() {
        let hurries = *hurry.borrow_and_update();
        let most = if hurries { buffer.len() } else { PIECE };
        let read = stream.read(&mut buffer[..most]).await.unwrap();
        assert!(read > 0, "cut off after {got} of {} bytes", expected.len());
        assert!(expected[got..].starts_with(&buffer[..read]), "wrong bytes behind byte {got}");
        got += read;
        if !hurries {
            let _ = tokio::time::timeout(PAUSE, hurry.changed()).await;
        }
    }
}
