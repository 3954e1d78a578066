//! Pushes to plain registries, as docker does them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::iter;
use reqwest::Client;
use url::Url;

use crate::report::{Quantity, Turn};
use crate::servers::{Kind, Role, Server, each};
use crate::support::image::{Content, Image, LAYER, MANIFEST, random_bytes};
use crate::turns::{Named, Part, Run, alternate, watched};

const PART: Part = Part { name: "push", limit: Duration::from_secs(30), whole: Duration::from_secs(120) };

const REPOSITORY: &str = "bench";
/// As docker has it.
const AT_ONCE: usize = 5;

#[derive(Clone, Copy)]
enum Work {
    Blob,
    Layers,
}

impl Named for Work {
    fn name(&self) -> String {
        match self {
            Self::Blob => "push of an image of one 64 MiB layer".to_owned(),
            Self::Layers => format!("push of an image of 100 layers of 16 KiB, {AT_ONCE} at once"),
        }
    }
}

pub async fn run(run: &mut Run) {
    let works = run.select(&PART, [Work::Blob, Work::Layers]);
    if works.is_empty() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let servers = each(&Kind::REGISTRIES, &run.rivals, async |kind| {
        let directory = scratch.path().join(kind.name());
        Server::start(kind, &directory, Role::Registry, &run.rivals, None).await
    })
    .await;
    alternate(run, &PART, &works, &servers, async |work, server| Some(measure(*work, server).await)).await;
}

async fn measure(work: Work, server: &Server) -> Turn {
    // Never the same bytes twice: what is there already is not sent.
    static SEED: AtomicU64 = AtomicU64::new(0);
    let layer = |size| {
        let seed = SEED.fetch_add(1, Ordering::Relaxed);
        Content::new(LAYER, random_bytes(1_000_000 + seed, size))
    };
    let layers: Vec<Content> = match work {
        Work::Blob => vec![layer(64 << 20)],
        Work::Layers => (0..100).map(|_| layer(16 << 10)).collect(),
    };
    let image = Image::plain(&layers, &layers[0].digest);
    let client = Client::builder().no_proxy().build().unwrap();
    let begun = Instant::now();
    let (wall, cost) = watched(server, async {
        push(&client, &server.url(), &image).await;
        begun.elapsed().as_secs_f64()
    })
    .await;
    cost.turn([(Quantity::Wall, wall), (Quantity::Cpu, cost.cpu)])
}

async fn push(client: &Client, registry: &str, image: &Image) {
    let uploads = iter(&image.blobs).map(|blob| upload(client, registry, blob));
    uploads.buffer_unordered(AT_ONCE).collect::<()>().await;
    let put = client.put(format!("{registry}/v2/{REPOSITORY}/manifests/1")).header("Content-Type", MANIFEST);
    let done = put.body(image.index.bytes.clone()).send().await.unwrap();
    assert_eq!(done.status(), 201, "push of a manifest");
}

/// HEAD, POST, PATCH, PUT.
async fn upload(client: &Client, registry: &str, blob: &Content) {
    let base = Url::parse(&format!("{registry}/v2/{REPOSITORY}/blobs/")).unwrap();
    let there = client.head(base.join(&format!("./{}", blob.digest)).unwrap()).send().await.unwrap();
    assert_eq!(there.status(), 404, "a blob that was never pushed");
    let begun = client.post(base.join("uploads/").unwrap()).body(Bytes::new()).send().await.unwrap();
    let sent = client.patch(location(&base, &begun)).header("Content-Type", "application/octet-stream");
    let sent = sent.body(blob.bytes.clone()).send().await.unwrap();
    assert_eq!(sent.status(), 202, "an upload's PATCH");
    let mut end = location(&base, &sent);
    end.query_pairs_mut().append_pair("digest", &blob.digest);
    let done = client.put(end).body(Bytes::new()).send().await.unwrap();
    assert_eq!(done.status(), 201, "an upload's PUT");
}

/// Where an upload goes on.
fn location(base: &Url, answer: &reqwest::Response) -> Url {
    assert!(answer.status().is_success(), "{}", answer.status());
    base.join(answer.headers()["location"].to_str().unwrap()).unwrap()
}
