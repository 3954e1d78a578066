//! The rows of the table.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tokio::task::JoinSet;

use super::ground::{Ground, Line, Way};
use crate::load::Wrk;
use crate::load::own::{Pull, pull};
use crate::report::{Quantity, Turn};
use crate::servers::content::{REPOSITORY, TAG, tag_path};
use crate::servers::{Kind, Server};
use crate::support::faulty::{Cut, Fault, Upstream};
use crate::support::http;
use crate::support::image::{CONFIG, MANIFEST};
use crate::turns::{Named, watched};

const MIB: usize = 1 << 20;

#[derive(Clone, Copy)]
pub enum Row {
    OneClient,
    Unpaced,
    TwentyClients,
    ManyClients,
    ColdTag,
    SlowUpstream,
    BrokenBlob,
    Restart,
    UnknownTag,
}

impl Named for Row {
    fn name(&self) -> String {
        let name = match self {
            Self::OneClient => "1 client, one cold 256 MiB blob, 300 MB/s from upstream",
            Self::Unpaced => "1 client, one cold 512 MiB blob, as fast as upstream sends",
            Self::TwentyClients => "20 clients, one cold 100 MiB blob, 100 MiB/s from upstream",
            Self::ManyClients => "200 clients, one cold 256 MiB blob, 300 MB/s from upstream",
            Self::ColdTag => "100 cold GETs of one tag at once, upstream answers after 100 ms",
            Self::SlowUpstream => "warm tag GET, 64 clients, upstream answers after 50 ms",
            Self::BrokenBlob => "20 clients, one cold 32 MiB blob, upstream sends RST after each 16 MiB",
            Self::Restart => "held tag after a restart, upstream is down",
            Self::UnknownTag => "tag that is not held, upstream is down",
        };
        name.to_owned()
    }
}

impl Row {
    pub const ALL: [Self; 9] = [
        Self::OneClient,
        Self::Unpaced,
        Self::TwentyClients,
        Self::ManyClients,
        Self::ColdTag,
        Self::SlowUpstream,
        Self::BrokenBlob,
        Self::Restart,
        Self::UnknownTag,
    ];

    /// The registries would fetch a blob once for each of 200 clients, for minutes: they are seen with 20.
    /// Straight to upstream go those whose question is what a mirror adds.
    pub fn is_for(self, way: Way) -> bool {
        match self {
            Self::OneClient | Self::Unpaced | Self::TwentyClients => true,
            Self::ManyClients => matches!(way, Way::Straight | Way::Through(Kind::Forebay)),
            _ => way != Way::Straight,
        }
    }

    pub async fn run(self, ground: &Ground) -> Turn {
        match self {
            Self::OneClient => cold_blob(ground, 1, 256 * MIB, Some(300_000_000)).await,
            Self::Unpaced => cold_blob(ground, 1, 512 * MIB, None).await,
            Self::TwentyClients => cold_blob(ground, 20, 100 * MIB, Some(100 * MIB as u64)).await,
            Self::ManyClients => cold_blob(ground, 200, 256 * MIB, Some(300_000_000)).await,
            Self::ColdTag => cold_tag(ground).await,
            Self::SlowUpstream => slow_upstream(ground).await,
            Self::BrokenBlob => broken_blob(ground).await,
            Self::Restart => restart(ground).await,
            Self::UnknownTag => unknown_tag(ground).await,
        }
    }
}

/// Straight from upstream goes one client, for the line carries no more than it takes. Without a `rate` there is
/// no line.
async fn cold_blob(ground: &Ground, clients: usize, size: usize, rate: Option<u64>) -> Turn {
    let (upstream, blob, path) = ground.with_blob(size).await;
    let line = match rate {
        Some(rate) => Some(ground.line(&upstream, rate).await),
        None => None,
    };
    let address = line.as_ref().map_or_else(|| upstream.address().to_string(), Line::address);
    if ground.way == Way::Straight {
        let pulls = Pulls::of(1, &address, path, blob).await;
        return Turn::from_iter(pulls.blob_figures(&upstream));
    }
    let server = ground.server(&format!("http://{address}")).await;
    let (pulls, cost) = watched(&server, Pulls::of(clients, &server.address, path, blob)).await;
    let cpu = (Quantity::CpuGigabyte, cost.cpu / (pulls.bytes() as f64 / 1e9));
    let mut turn = cost.turn([cpu]);
    turn.extend(pulls.blob_figures(&upstream));
    turn
}

async fn cold_tag(ground: &Ground) -> Turn {
    let (upstream, manifest) = with_tag(ground).await;
    let server = ground.server(&upstream.url()).await;
    delay(&upstream, Duration::from_millis(100));
    let before = upstream.requests().len();
    let (pulls, cost) = watched(&server, Pulls::of(100, &server.address, tag_path(), manifest)).await;
    let asked = upstream.requests().len() - before;
    let mut turn = cost.turn([(Quantity::UpstreamRequests, asked as f64)]);
    turn.extend(pulls.figures());
    turn
}

async fn slow_upstream(ground: &Ground) -> Turn {
    let Some(wrk) = Wrk::find(ground.scratch()) else { return Turn::new() };
    let (upstream, manifest) = with_tag(ground).await;
    let server = ground.server(&upstream.url()).await;
    hold(&server, &manifest).await;
    delay(&upstream, Duration::from_millis(50));
    let url = server.url() + &tag_path();
    let (done, cost) = watched(&server, wrk.get(&url, 64, ground.turn * 4)).await;
    cost.turn([(Quantity::Requests, done.requests as f64 / done.seconds)])
}

async fn broken_blob(ground: &Ground) -> Turn {
    let (upstream, blob, path) = ground.with_blob(32 * MIB).await;
    upstream.on("GET", "/blobs/").then(Fault::Cut { after: 16 * MIB as u64, how: Cut::Reset });
    let server = ground.server(&upstream.url()).await;
    let pulls = Pulls::of(20, &server.address, path, blob).await;
    Turn::from_iter(pulls.blob_figures(&upstream))
}

async fn restart(ground: &Ground) -> Turn {
    let (mut upstream, manifest) = with_tag(ground).await;
    let mut server = ground.server(&upstream.url()).await;
    hold(&server, &manifest).await;
    upstream.stop().await;
    let status = match server.restart().await {
        true => pull(&server.address, &tag_path(), &manifest).await.status,
        false => 0,
    };
    Turn::from([(Quantity::Status, f64::from(status))])
}

async fn unknown_tag(ground: &Ground) -> Turn {
    let (mut upstream, _) = with_tag(ground).await;
    let server = ground.server(&upstream.url()).await;
    upstream.stop().await;
    let url = format!("{}/v2/{REPOSITORY}/manifests/2.0.0", server.url());
    let answer = http().get(url).header("Accept", MANIFEST).send().await.unwrap();
    Turn::from([(Quantity::Status, f64::from(answer.status().as_u16()))])
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

async fn hold(server: &Server, manifest: &Bytes) {
    assert!(pull(&server.address, &tag_path(), manifest).await.intact, "the tag is not served");
}

/// From now on every answer is late.
fn delay(upstream: &Upstream, delay: Duration) {
    for method in ["GET", "HEAD"] {
        upstream.on(method, "").then(Fault::Delay(delay));
    }
}

/// What clients got who asked for the same at once.
struct Pulls {
    all: Vec<Pull>,
    took: Duration,
}

impl Pulls {
    async fn of(clients: usize, address: &str, path: String, expected: Bytes) -> Self {
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let (address, path, expected) = (address.to_owned(), path.clone(), expected.clone());
            tasks.spawn(async move { pull(&address, &path, &expected).await });
        }
        let all = tasks.join_all().await;
        Self { all, took: begun.elapsed() }
    }

    fn bytes(&self) -> u64 {
        self.all.iter().map(|pull| pull.bytes).sum()
    }

    fn figures(&self) -> [(Quantity, f64); 2] {
        let intact = self.all.iter().filter(|pull| pull.intact).count();
        [(Quantity::Wall, self.took.as_secs_f64()), (Quantity::Intact, intact as f64)]
    }

    /// With what upstream was asked for blobs, how much of them it sent, and when the first client
    /// and the last one had a byte.
    fn blob_figures(&self, upstream: &Upstream) -> Vec<(Quantity, f64)> {
        let gets = upstream.requests_for("GET", "/blobs/");
        let sent: u64 = gets.iter().map(|get| get.sent()).sum();
        let mut figures = Vec::from(self.figures());
        figures.push((Quantity::UpstreamRequests, gets.len() as f64));
        figures.push((Quantity::UpstreamMebibytes, sent as f64 / MIB as f64));
        let times = self.all.iter().filter_map(|pull| Some(pull.first_byte?.as_secs_f64() * 1e3));
        let first = times.clone().min_by(f64::total_cmp).map(|first| (Quantity::FirstByte, first));
        let last = times.max_by(f64::total_cmp).map(|last| (Quantity::LastFirstByte, last));
        figures.extend(first.into_iter().chain(last));
        figures
    }
}
