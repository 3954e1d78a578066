//! What a row is played on: a server with nothing held, a scripted upstream, a line between them.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::report::STRAIGHT;
use crate::rivals::Rivals;
use crate::servers::content::{REPOSITORY, blob_path};
use crate::servers::{Kind, Role, Server};
use crate::support::faulty::Upstream;
use crate::support::http1;
use crate::support::image::random_bytes;
use crate::turns::Named;

/// Who is asked for what upstream has.
#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    Through(Kind),
    /// Upstream itself, by one client: what no mirror can do better.
    Straight,
}

impl Named for Way {
    fn name(&self) -> String {
        match self {
            Self::Through(kind) => Named::name(kind),
            Self::Straight => STRAIGHT.to_owned(),
        }
    }
}

pub struct Ground {
    pub way: Way,
    scratch: TempDir,
    rivals: Rivals,
    upstreams: Handle,
    pub turn: Duration,
}

impl Ground {
    pub fn new(way: Way, rivals: &Rivals, upstreams: &Handle, turn: Duration) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        Self { way, scratch, rivals: rivals.clone(), upstreams: upstreams.clone(), turn }
    }

    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    pub async fn upstream(&self) -> Upstream {
        self.upstreams.spawn(Upstream::start()).await.unwrap()
    }

    /// An upstream that holds a blob of this size, the blob and its path.
    pub async fn with_blob(&self, size: usize) -> (Upstream, Bytes, String) {
        let (upstream, blob) = (self.upstream().await, Bytes::from(random_bytes(1, size)));
        let digest = upstream.put_blob(REPOSITORY, blob.clone());
        (upstream, blob, blob_path(&digest))
    }

    /// A line to `upstream` that carries so many bytes a second towards the server, over all
    /// connections together.
    pub async fn line(&self, upstream: &Upstream, rate: u64) -> Line {
        let to = upstream.address().to_string();
        let pace = Arc::new(Pace { rate, free: Mutex::new(Instant::now()) });
        let carry = move |near| carry(near, to.clone(), pace.clone());
        Line(self.upstreams.spawn(http1::Server::start(0, carry)).await.unwrap())
    }

    /// A server that mirrors the registry at `upstream`.
    pub async fn server(&self, upstream: &str) -> Server {
        let Way::Through(kind) = self.way else { panic!("no server is on the way") };
        let directory = self.scratch().join("server");
        Server::start(kind, &directory, Role::Mirror(upstream), &self.rivals, None).await
    }
}

pub struct Line(http1::Server);

impl Line {
    pub fn address(&self) -> String {
        self.0.address.to_string()
    }
}

/// When the line is free for the next piece.
struct Pace {
    rate: u64,
    free: Mutex<Instant>,
}

impl Pace {
    /// What timers round away is caught up with.
    const SLACK: Duration = Duration::from_millis(10);

    async fn wait(&self, bytes: usize) {
        let turn = {
            let mut free = self.free.lock().unwrap();
            let turn = (*free).max(Instant::now() - Self::SLACK);
            *free = turn + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }
}

/// Carries a connection until either end closes it.
async fn carry(mut near: TcpStream, to: String, pace: Arc<Pace>) {
    let Ok(mut far) = TcpStream::connect(to).await else { return };
    let ((mut asked, mut answered), (mut answers, mut asks)) = (near.split(), far.split());
    let down = async {
        let mut piece = vec![0; 64 << 10];
        while let Ok(read @ 1..) = answers.read(&mut piece).await {
            pace.wait(read).await;
            if answered.write_all(&piece[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = down => {}
        _ = tokio::io::copy(&mut asked, &mut asks) => {}
    }
}
