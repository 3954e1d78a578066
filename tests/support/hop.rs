//! A stop on the wire, where everything that passes is written down.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::http1::Server;

/// Forwards to another port of loopback.
pub struct Hop {
    server: Server,
    asked: Arc<Mutex<Vec<u8>>>,
    answered: Arc<Mutex<Vec<u8>>>,
}

impl Hop {
    pub async fn start(to: u16) -> Self {
        let (asked, answered) = (Arc::default(), Arc::default());
        let (requests, answers) = (Arc::clone(&asked), Arc::clone(&answered));
        let server = Server::start(0, move |client: TcpStream| {
            let (requests, answers) = (Arc::clone(&requests), Arc::clone(&answers));
            async move {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                let ((client_read, client_write), (server_read, server_write)) =
                    (client.into_split(), server.into_split());
                tokio::join!(
                    pass(client_read, server_write, requests),
                    pass(server_read, client_write, answers)
                );
            }
        })
        .await;
        Self { server, asked, answered }
    }

    pub fn port(&self) -> u16 {
        self.server.address.port()
    }

    /// All that clients sent, in the order in which it came; bodies included.
    pub fn asked(&self) -> String {
        String::from_utf8_lossy(&self.asked.lock().unwrap()).into_owned()
    }

    /// All that was sent back.
    pub fn answered(&self) -> String {
        String::from_utf8_lossy(&self.answered.lock().unwrap()).into_owned()
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, seen: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read) = from.read(&mut buffer).await
        && read > 0
    {
        seen.lock().unwrap().extend_from_slice(&buffer[..read]);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
