//! A narrow line: all connections through it share so many bytes a second of answers.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::http1::Server;

/// What crosses at a time.
const PIECE: usize = 16 << 10;

/// Forwards to another port of loopback.
pub struct Narrow {
    server: Server,
}

impl Narrow {
    /// `latency` is what each piece of an answer takes beside its bytes.
    pub async fn start(to: u16, bytes_per_second: u64, latency: Duration) -> Self {
        // When the line is free again.
        let line = Arc::new(Mutex::new(Instant::now()));
        let server = Server::start(0, move |client: TcpStream| {
            let line = line.clone();
            async move {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let ((mut asks, answers), (server_read, mut server_write)) =
                    (client.into_split(), server.into_split());
                let up = async {
                    let _ = copy(&mut asks, &mut server_write).await;
                    let _ = server_write.shutdown().await;
                };
                tokio::join!(up, down(server_read, answers, line, bytes_per_second, latency));
            }
        })
        .await;
        Self { server }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }
}

async fn down(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    line: Arc<Mutex<Instant>>,
    bytes_per_second: u64,
    latency: Duration,
) {
    let (pieces, mut due) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(8);
    let deliver = async move {
        while let Some((at, piece)) = due.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    let read = async move {
        let mut buffer = vec![0; PIECE];
        while let Ok(read) = from.read(&mut buffer).await
            && read > 0
        {
            let took = Duration::from_secs_f64(read as f64 / bytes_per_second as f64);
            let crossed = {
                let mut free = line.lock().await;
                *free = (*free).max(Instant::now()) + took;
                *free
            };
            tokio::time::sleep_until(crossed).await;
            if pieces.send((crossed + latency, buffer[..read].to_vec())).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(deliver, read);
}
