//! What a row is played on: a server with nothing held, a scripted upstream, a line between them.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::servers::peak_memory_kib;
use crate::support::faulty::Upstream;
use crate::support::http1;
use crate::support::mirror::Mirror;
use crate::support::registry::{Registry, RegistryOptions};

#[derive(Clone, Copy)]
pub enum Kind {
    Forebay,
    Registry,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Forebay, Self::Registry];

    pub fn name(self) -> &'static str {
        match self {
            Self::Forebay => "forebay",
            Self::Registry => "docker-registry proxy",
        }
    }
}

pub struct Ground {
    kind: Kind,
    scratch: TempDir,
    upstreams: Handle,
    peak: Arc<AtomicU64>,
}

impl Ground {
    /// `peak` is raised to the most memory, in KiB, that a server of this ground has taken.
    pub fn new(kind: Kind, upstreams: &Handle, peak: &Arc<AtomicU64>) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        Self { kind, scratch, upstreams: upstreams.clone(), peak: peak.clone() }
    }

    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    pub async fn upstream(&self) -> Upstream {
        self.upstreams.spawn(Upstream::start()).await.unwrap()
    }

    /// A line to `upstream` that carries so many bytes a second towards the server, over all
    /// connections together.
    pub async fn line(&self, upstream: &Upstream, rate: u64) -> Line {
        let to = upstream.url().trim_start_matches("http://").to_owned();
        let pace = Arc::new(Pace { rate, free: Mutex::new(Instant::now()) });
        let carry = move |near| carry(near, to.clone(), pace.clone());
        Line(self.upstreams.spawn(http1::Server::start(0, carry)).await.unwrap())
    }

    /// A server that mirrors the registry at `upstream`.
    pub async fn server(&self, upstream: &str) -> Subject {
        let directory = self.scratch().join("server");
        let running = match self.kind {
            Kind::Forebay => Running::Forebay(Mirror::start(&directory, upstream).await),
            Kind::Registry => {
                let options = RegistryOptions { proxy: Some(upstream.to_owned()), ..Default::default() };
                Running::Registry(Registry::start(&directory, options).await)
            }
        };
        Subject { running, peak: self.peak.clone() }
    }
}

/// A running server. It ends when dropped.
pub struct Subject {
    running: Running,
    peak: Arc<AtomicU64>,
}

enum Running {
    Forebay(Mirror),
    Registry(Registry),
}

impl Subject {
    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        match &self.running {
            Running::Forebay(mirror) => mirror.host(),
            Running::Registry(registry) => registry.host(),
        }
    }

    /// Ends it in order and starts it again; false where it does not come up.
    pub async fn restart(&mut self) -> bool {
        self.note_memory();
        let restarting = async {
            match &mut self.running {
                Running::Forebay(mirror) => {
                    mirror.terminate(Duration::from_secs(10));
                    mirror.restart().await;
                }
                Running::Registry(registry) => {
                    registry.stop();
                    registry.restart().await;
                }
            }
        };
        AssertUnwindSafe(restarting).catch_unwind().await.is_ok()
    }

    fn note_memory(&mut self) {
        let id = match &mut self.running {
            Running::Forebay(mirror) => mirror.process().id(),
            Running::Registry(registry) => registry.id(),
        };
        self.peak.fetch_max(peak_memory_kib(id), Ordering::Relaxed);
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.note_memory();
    }
}

pub struct Line(http1::Server);

impl Line {
    pub fn url(&self) -> String {
        format!("http://{}", self.0.address)
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
