//! Clients on lines that are much slower than the server.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

/// What a client takes in before it has read it.
const WINDOW: u32 = 64 << 10;
/// What it reads at a time, and how often.
const PIECE: usize = 16 << 10;
const PAUSE: Duration = Duration::from_millis(250);

/// So many clients read one blob for `turn` and leave. How many got something in each of the pauses.
pub async fn readers(address: &str, path: &str, clients: usize, turn: Duration) -> usize {
    let (begun, address) = (Instant::now(), address.parse().unwrap());
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let request = request.clone();
        tasks.spawn(async move {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(WINDOW).unwrap();
            let mut stream = socket.connect(address).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut piece = vec![0; PIECE];
            while begun.elapsed() < turn {
                stream.read_exact(&mut piece).await?;
                tokio::time::sleep(PAUSE).await;
            }
            std::io::Result::Ok(())
        });
    }
    tasks.join_all().await.iter().filter(|ended| ended.is_ok()).count()
}
