//! What the servers are asked to do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::servers::{Content, blob_path, tag_path};
use crate::support::image::MANIFEST;
use crate::support::process::{command, run};

/// Prints what wrk knows exactly; its own report is rounded.
const REPORT: &str = r#"
done = function(summary)
  local e = summary.errors
  local bad = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format("RESULT %d %d %d %d\n", summary.requests, summary.bytes, summary.duration, bad))
end
"#;

pub struct Work {
    pub name: &'static str,
    /// Whether bytes are what counts; requests are, otherwise.
    pub bulk: bool,
    connections: usize,
    path: fn(&Content) -> String,
    /// GETs are its work; without it this is HEADs.
    wrk: Option<Wrk>,
}

/// What got done.
pub struct Done {
    pub requests: u64,
    pub bytes: u64,
    pub seconds: f64,
}

impl Work {
    /// Everything that is measured, in the order of the table.
    pub fn all(scratch: &Path) -> Vec<Self> {
        let head = Self {
            name: "manifest HEAD by tag",
            bulk: false,
            connections: 32,
            path: |_| tag_path(),
            wrk: None,
        };
        let Some(wrk) = Wrk::find(scratch) else {
            eprintln!("wrk is not there: GETs are left out");
            return vec![head];
        };
        let get =
            |name, bulk, connections, path| Self { name, bulk, connections, path, wrk: Some(wrk.clone()) };
        vec![
            head,
            get("manifest GET by tag, 3 KiB", false, 32, |_| tag_path()),
            get("manifest GET by digest", false, 32, |content| content.manifest_path()),
            get("blob GET, 10 KiB", false, 32, |content| blob_path(&content.small)),
            get("blob GET, 1 MiB", true, 8, |content| blob_path(&content.medium)),
            get("blob GET, 64 MiB", true, 4, |content| blob_path(&content.large)),
        ]
    }

    pub async fn run(&self, address: &str, content: &Content, turn: Duration) -> Done {
        let path = (self.path)(content);
        match &self.wrk {
            Some(wrk) => wrk.get(address, &path, self.connections, turn).await,
            None => head(address, &path, self.connections, turn).await,
        }
    }
}

#[derive(Clone)]
pub struct Wrk {
    script: PathBuf,
}

impl Wrk {
    /// `None` where it is not installed.
    pub fn find(scratch: &Path) -> Option<Self> {
        std::process::Command::new("wrk").arg("-v").output().ok()?;
        let script = scratch.join("report.lua");
        std::fs::write(&script, REPORT).unwrap();
        Some(Self { script })
    }

    pub async fn get(&self, address: &str, path: &str, connections: usize, turn: Duration) -> Done {
        let mut wrk = command("wrk", ["--threads", "1", "--connections", &connections.to_string()]);
        wrk.args(["--duration", &format!("{}s", turn.as_secs()), "--timeout", "30s"]);
        wrk.args(["--header", &format!("Accept: {MANIFEST}")]).arg("--script").arg(&self.script);
        wrk.arg(format!("http://{address}{path}"));
        let said = run(wrk).await;
        let result = said.lines().find_map(|line| line.strip_prefix("RESULT ")).expect("wrk's result");
        let numbers: Vec<u64> = result.split(' ').map(|number| number.parse().unwrap()).collect();
        assert_eq!(numbers[3], 0, "answers that are no success: {address}{path}\n{said}");
        Done { requests: numbers[0], bytes: numbers[1], seconds: numbers[2] as f64 / 1e6 }
    }
}

/// HEADs on kept connections. (wrk waits for a body that never comes.)
async fn head(address: &str, path: &str, connections: usize, turn: Duration) -> Done {
    let request = format!("HEAD {path} HTTP/1.1\r\nHost: {address}\r\nAccept: {MANIFEST}\r\n\r\n");
    let request: Arc<[u8]> = request.into_bytes().into();
    let (requests, bytes) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let begun = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let (request, requests, bytes) = (request.clone(), requests.clone(), bytes.clone());
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        clients.spawn(async move {
            let mut answer = vec![0; 16 << 10];
            while begun.elapsed() < turn {
                stream.write_all(&request).await.unwrap();
                let mut read = 0;
                while !answer[..read].ends_with(b"\r\n\r\n") {
                    let more = stream.read(&mut answer[read..]).await.unwrap();
                    assert!(more > 0, "the server closed, or its answer has a body or no end");
                    read += more;
                }
                assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..read]));
                requests.fetch_add(1, Ordering::Relaxed);
                bytes.fetch_add(read as u64, Ordering::Relaxed);
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    Done {
        requests: requests.load(Ordering::Relaxed),
        bytes: bytes.load(Ordering::Relaxed),
        seconds: begun.elapsed().as_secs_f64(),
    }
}
