//! The rows of the table.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::ground::{Ground, Subject};
use crate::load::Wrk;
use crate::servers::{REPOSITORY, TAG, blob_path, tag_path};
use crate::support::faulty::{Cut, Fault, Upstream};
use crate::support::http;
use crate::support::image::{CONFIG, MANIFEST, random_bytes};

const MIB: usize = 1 << 20;

#[derive(Clone, Copy)]
pub enum Row {
    SlowUpstream,
    ColdTag,
    ColdBlob,
    BrokenBlob,
    Restart,
    UnknownTag,
}

impl Row {
    pub const ALL: [Self; 6] = [
        Self::SlowUpstream,
        Self::ColdTag,
        Self::ColdBlob,
        Self::BrokenBlob,
        Self::Restart,
        Self::UnknownTag,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::SlowUpstream => "warm tag GET, 64 clients, upstream answers after 50 ms",
            Self::ColdTag => "100 cold GETs of one tag at once, upstream answers after 100 ms",
            Self::ColdBlob => "20 clients, one cold 100 MiB blob, 100 MiB/s from upstream in total",
            Self::BrokenBlob => "20 clients, one cold 32 MiB blob, upstream sends RST after each 16 MiB",
            Self::Restart => "restart while upstream is down: held tag is served",
            Self::UnknownTag => "tag that is not held, upstream is down",
        }
    }

    /// What came out, as a cell of the table.
    pub async fn run(self, ground: &Ground) -> String {
        match self {
            Self::SlowUpstream => slow_upstream(ground).await,
            Self::ColdTag => cold_tag(ground).await,
            Self::ColdBlob => cold_blob(ground).await,
            Self::BrokenBlob => broken_blob(ground).await,
            Self::Restart => restart(ground).await,
            Self::UnknownTag => unknown_tag(ground).await,
        }
    }
}

async fn slow_upstream(ground: &Ground) -> String {
    let Some(wrk) = Wrk::find(ground.scratch()) else { return "no wrk".to_owned() };
    let (upstream, manifest) = with_tag(ground).await;
    let server = ground.server(&upstream.url()).await;
    assert!(get(&server, &tag_path(), &manifest).await.intact, "the tag is not served");
    delay(&upstream, Duration::from_millis(50));
    let done = wrk.get(&server.host(), &tag_path(), 64, Duration::from_secs(8)).await;
    format!("{:.0} requests/s", done.requests as f64 / done.seconds)
}

async fn cold_tag(ground: &Ground) -> String {
    let (upstream, manifest) = with_tag(ground).await;
    let server = ground.server(&upstream.url()).await;
    delay(&upstream, Duration::from_millis(100));
    let before = upstream.requests().len();
    let pulls = Pulls::of(100, &server, tag_path(), manifest).await;
    let asked = upstream.requests().len() - before;
    format!("{pulls}, upstream requests {asked}")
}

async fn cold_blob(ground: &Ground) -> String {
    let upstream = ground.upstream().await;
    let blob = with_blob(&upstream, 100 * MIB);
    let line = ground.line(&upstream, 100 * MIB as u64).await;
    let server = ground.server(&line.url()).await;
    let pulls = Pulls::of(20, &server, blob_path(&blob), blob).await;
    let (first, last) = pulls.first_bytes();
    format!("{pulls}, {}, first byte after {first:.0}-{last:.0} ms", transfer(&upstream))
}

async fn broken_blob(ground: &Ground) -> String {
    let upstream = ground.upstream().await;
    let blob = with_blob(&upstream, 32 * MIB);
    upstream.on("GET", "/blobs/").then(Fault::Cut { after: 16 * MIB as u64, how: Cut::Reset });
    let server = ground.server(&upstream.url()).await;
    let pulls = Pulls::of(20, &server, blob_path(&blob), blob).await;
    format!("{pulls}, {}", transfer(&upstream))
}

async fn restart(ground: &Ground) -> String {
    let (mut upstream, manifest) = with_tag(ground).await;
    let mut server = ground.server(&upstream.url()).await;
    assert!(get(&server, &tag_path(), &manifest).await.intact, "the tag is not served");
    upstream.stop().await;
    if !server.restart().await {
        return "no: ends at its start".to_owned();
    }
    match get(&server, &tag_path(), &manifest).await {
        pull if pull.intact => "yes".to_owned(),
        pull => format!("no: {}", pull.status),
    }
}

async fn unknown_tag(ground: &Ground) -> String {
    let (mut upstream, _) = with_tag(ground).await;
    let server = ground.server(&upstream.url()).await;
    upstream.stop().await;
    let url = format!("http://{}/v2/{REPOSITORY}/manifests/2.0.0", server.host());
    let answer = http().get(url).header("Accept", MANIFEST).send().await.unwrap();
    let (status, body) = (answer.status().as_u16(), answer.bytes().await.unwrap());
    let errors: Value = serde_json::from_slice(&body).unwrap_or_default();
    format!("{status} {}", errors["errors"][0]["code"].as_str().unwrap_or("without a code"))
}

/// An upstream that holds a tag, and the tag's manifest.
async fn with_tag(ground: &Ground) -> (Upstream, Bytes) {
    let upstream = ground.upstream().await;
    let digest = upstream.put_blob(REPOSITORY, "{}");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": { "mediaType": CONFIG, "digest": digest, "size": 2 },
    });
    let manifest = Bytes::from(manifest.to_string());
    upstream.put_manifest(REPOSITORY, TAG, MANIFEST, manifest.clone());
    (upstream, manifest)
}

fn with_blob(upstream: &Upstream, size: usize) -> Bytes {
    let blob = Bytes::from(random_bytes(1, size));
    upstream.put_blob(REPOSITORY, blob.clone());
    blob
}

/// From now on every answer is late.
fn delay(upstream: &Upstream, delay: Duration) {
    for method in ["GET", "HEAD"] {
        upstream.on(method, "").then(Fault::Delay(delay));
    }
}

/// What upstream was asked for blobs, and how much of them it sent.
fn transfer(upstream: &Upstream) -> String {
    let gets = upstream.requests_for("GET", "/blobs/");
    let sent: u64 = gets.iter().map(|get| get.sent()).sum();
    format!("upstream GETs {}, MiB {}", gets.len(), sent / MIB as u64)
}

/// What one client got.
struct Pull {
    /// 0 where there was no answer.
    status: u16,
    intact: bool,
    first_byte: Option<Duration>,
}

async fn get(server: &Subject, path: &str, expected: &Bytes) -> Pull {
    pull(http(), format!("http://{}{path}", server.host()), expected).await
}

async fn pull(client: reqwest::Client, url: String, expected: &[u8]) -> Pull {
    let begun = Instant::now();
    let mut pull = Pull { status: 0, intact: false, first_byte: None };
    let Ok(mut answer) = client.get(url).header("Accept", MANIFEST).send().await else { return pull };
    pull.status = answer.status().as_u16();
    let mut left = expected;
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => {
                pull.first_byte.get_or_insert(begun.elapsed());
                let Some(rest) = left.strip_prefix(&chunk[..]) else { return pull };
                left = rest;
            }
            Ok(None) => {
                pull.intact = pull.status == 200 && left.is_empty();
                return pull;
            }
            Err(_) => return pull,
        }
    }
}

/// What clients got who asked for the same at once.
struct Pulls {
    all: Vec<Pull>,
    took: Duration,
}

impl Pulls {
    async fn of(clients: usize, server: &Subject, path: String, expected: Bytes) -> Self {
        let url = format!("http://{}{path}", server.host());
        let client = http();
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let (client, url, expected) = (client.clone(), url.clone(), expected.clone());
            tasks.spawn(async move { pull(client, url, &expected).await });
        }
        let all = tasks.join_all().await;
        Self { all, took: begun.elapsed() }
    }

    /// Milliseconds until the first client had a byte, and until every one that got any had.
    fn first_bytes(&self) -> (f64, f64) {
        let times = self.all.iter().filter_map(|pull| Some(pull.first_byte?.as_secs_f64() * 1e3));
        let (first, last) = (times.clone().min_by(f64::total_cmp), times.max_by(f64::total_cmp));
        (first.unwrap_or(f64::NAN), last.unwrap_or(f64::NAN))
    }
}

impl std::fmt::Display for Pulls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let intact = self.all.iter().filter(|pull| pull.intact).count();
        write!(f, "{:.2} s, {intact} of {} intact", self.took.as_secs_f64(), self.all.len())
    }
}
