//! What a small GET takes beside bulk: streams of held blobs, hot and from disk.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise, fsync};

use crate::load::{Wrk, own};
use crate::report::{Quantity, Turn};
use crate::servers::content::{Content, LARGE, SMALL, blob_path, tag_path};
use crate::servers::{Kind, Server, holding};
use crate::turns::{Named, Part, Run, alternate, watched};

const PART: Part = Part { name: "beside", limit: Duration::from_secs(30), whole: Duration::from_secs(120) };

const HOT: usize = 64;
const COLD: usize = 4;
const COLD_BLOB: usize = 512 << 20;

#[derive(Clone, Copy, PartialEq)]
enum Work {
    Hot,
    Cold,
}

impl Named for Work {
    fn name(&self) -> String {
        match self {
            Self::Hot => format!("small GET beside {HOT} streams of a hot 64 MiB blob"),
            Self::Cold => format!("small GET beside {COLD} streams of cold 512 MiB blobs"),
        }
    }
}

pub async fn run(run: &mut Run) {
    // Twice a turn: the 99th of a hundred wants many.
    let turn = run.turn * 2;
    for work in run.select(&PART, [Work::Hot, Work::Cold]) {
        let scratch = tempfile::tempdir().unwrap();
        let wrk = Wrk::find(scratch.path());
        if work == Work::Hot && wrk.is_none() {
            continue;
        }
        let content = match work {
            Work::Hot => Content::of(&[SMALL, LARGE]),
            Work::Cold => Content::of(&[SMALL, COLD_BLOB, COLD_BLOB, COLD_BLOB, COLD_BLOB]),
        };
        let upstream = content.upstream(&run.upstreams).await;
        let kinds: &[Kind] = if work == Work::Hot { &Kind::ALL } else { &[Kind::Forebay, Kind::Nginx] };
        let servers = holding(kinds, scratch.path(), &content, &upstream.url(), &run.rivals, None).await;
        alternate(run, &PART, &[work], &servers, async |_, server| {
            Some(match work {
                Work::Hot => {
                    let url = server.url() + &content.blob_path(LARGE);
                    let bulk = async { wrk.as_ref().unwrap().get(&url, HOT, turn).await.bytes };
                    measure(server, turn, bulk).await
                }
                Work::Cold => {
                    measure(server, turn, stream_cold(server, &content, scratch.path(), turn)).await
                }
            })
        })
        .await;
    }
}

async fn measure(server: &Server, turn: Duration, bulk: impl Future<Output = u64>) -> Turn {
    let small = async {
        // Once the bulk flows.
        tokio::time::sleep(turn / 10).await;
        own::latencies(&server.address, &tag_path(), turn * 8 / 10).await
    };
    let ((bytes, latencies), cost) = watched(server, async { tokio::join!(bulk, small) }).await;
    let of = |hundredth: usize| latencies[latencies.len() * hundredth / 100];
    cost.turn([
        (Quantity::Throughput, bytes as f64 / 1e6 / turn.as_secs_f64()),
        (Quantity::Median, of(50)),
        (Quantity::Tail, of(99)),
    ])
}

/// Each client reads a blob of its own whose pages were dropped, again and again; the bytes they got.
async fn stream_cold(server: &Server, content: &Content, scratch: &Path, turn: Duration) -> u64 {
    let files = files_of(&scratch.join(Kind::name(server.kind)), COLD_BLOB as u64);
    assert_eq!(files.len(), COLD, "held once each");
    let end = Instant::now() + turn;
    let mut streams = tokio::task::JoinSet::new();
    for digest in content.digests().skip(1) {
        let (address, path) = (server.address.clone(), blob_path(digest));
        let hash = digest.trim_start_matches("sha256:");
        let is_its = |file: &&PathBuf| file.to_string_lossy().contains(hash);
        let file = files.iter().find(is_its).unwrap().clone();
        streams.spawn(async move {
            let mut bytes = 0;
            while Instant::now() < end {
                let file = file.clone();
                tokio::task::spawn_blocking(move || drop_pages(&file)).await.unwrap();
                bytes += own::drain(&address, &path, end).await;
            }
            bytes
        });
    }
    streams.join_all().await.into_iter().sum()
}

/// Has the kernel forget what it keeps of a file in memory.
fn drop_pages(file: &Path) {
    let file = File::open(file).unwrap();
    fsync(&file).unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

/// The files of this size below `directory`.
fn files_of(directory: &Path, size: u64) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        // What a server removes meanwhile is none of them.
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => found.extend(files_of(&path, size)),
            Ok(metadata) if metadata.size() == size => found.push(path),
            _ => {}
        }
    }
    found
}
