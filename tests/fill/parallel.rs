//! One cold blob read by several ranges at once, as containerd 2 does it.

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use reqwest::Response;

use super::support::faulty::{Cut, Fault, Upstream, most_at_once};
use super::support::http;
use super::support::image::random_bytes;
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::registry::{Registry, RegistryOptions};
use super::support::stored_blobs;
use super::{Blob, MIB, Rig, blob_url, read_rest, read_some};

const SIZE: usize = 64 * MIB + 4321;

async fn open_range(url: &str, start: usize) -> Response {
    let answer = http().get(url).header("Range", format!("bytes={start}-")).send().await.unwrap();
    assert_eq!(answer.status(), 206, "from {start}");
    answer
}

/// The first answer must be a 206; then every chunk by an open range of its own, so many at once, whose
/// connection is closed when the chunk is there. What comes is compared byte by byte.
pub async fn pull_by_chunks(url: &str, expected: &[u8], chunk: usize, at_once: usize) {
    let first = open_range(url, 0).await;
    assert_eq!(first.content_length(), Some(expected.len() as u64));
    let mut first = Some(first);
    let starts: Vec<_> = (0..expected.len()).step_by(chunk).map(|start| (start, first.take())).collect();
    let chunk_of = async |(start, answer): (usize, Option<Response>)| {
        let mut answer = match answer {
            Some(answer) => answer,
            None => open_range(url, start).await,
        };
        let rest = &expected[start..];
        match rest.len() <= chunk {
            true => read_rest(&mut answer, rest, 0).await,
            false => assert!(read_some(&mut answer, rest, chunk).await >= chunk),
        }
    };
    futures_util::stream::iter(starts).for_each_concurrent(at_once, chunk_of).await;
}

impl Rig {
    async fn assert_crossed_once(&self, blob: &Blob) {
        self.mirror.committed(1).await;
        assert!(stored_blobs(&self.mirror.data()).contains(&blob.digest));
        let gets = self.gets(blob);
        let sent: u64 = gets.iter().map(|get| get.sent()).sum();
        assert_eq!(sent, blob.bytes.len() as u64, "{gets:?}");
    }
}

#[tokio::test]
async fn chunks_come_by_several_answers_and_each_byte_once() {
    let rig = Rig::start().await;
    let blob = rig.blob(1, SIZE);
    rig.upstream.on("GET", "/blobs/").then(Fault::Rate(16 << 20));
    pull_by_chunks(&rig.url(&blob), &blob.bytes, 8 * MIB, 4).await;
    rig.assert_crossed_once(&blob).await;
    let at_once = most_at_once(&rig.gets(&blob));
    assert!((3..=9).contains(&at_once), "{at_once} at once");
    assert!(rig.mirror.metric("forebay_fill_extents_total").await >= 3.0);
    assert_eq!(rig.mirror.metric("forebay_fill_resumes_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_clients_by_chunks_cost_one_transfer() {
    let rig = Rig::start().await;
    let blob = rig.blob(1, SIZE);
    rig.upstream.on("GET", "/blobs/").then(Fault::Rate(32 << 20));
    let url = rig.url(&blob);
    // Whoever comes first asks by range; some want it whole.
    let first = pull_by_chunks(&url, &blob.bytes, 4 * MIB, 3);
    let others = join_all((1..20).map(|number| {
        let (rig, blob, url) = (&rig, &blob, &url);
        async move {
            while rig.gets(blob).is_empty() {
                tokio::task::yield_now().await;
            }
            match number % 4 {
                0 => read_rest(&mut http().get(url).send().await.unwrap(), &blob.bytes, 0).await,
                by => pull_by_chunks(url, &blob.bytes, by * 5 * MIB, by + 1).await,
            }
        }
    }));
    tokio::join!(first, others);
    rig.assert_crossed_once(&blob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn and_so_with_a_real_registry() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Registry::start(&directory.path().join("upstream"), RegistryOptions::default()).await;
    let bytes = random_bytes(2, SIZE);
    let digest = upstream.push_blob("library/x", bytes.clone()).await;
    let mirror = Mirror::start(&directory.path().join("mirror"), &upstream.url()).await;
    let url = blob_url(&mirror, "library/x", &digest);
    join_all((0..5).map(|_| pull_by_chunks(&url, &bytes, 8 * MIB, 4))).await;
    mirror.committed(1).await;
    assert!(stored_blobs(&mirror.data()).contains(&digest));
    let gets = upstream.content_requests().await;
    assert!(gets.len() > 1 && gets.iter().all(|get| get.status == 206), "{gets:?}");
    assert_eq!(gets.iter().map(|get| get.bytes).sum::<u64>(), SIZE as u64, "{gets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_ranges_gives_them_all_the_same() {
    let rig = Rig::start().await;
    let blob = rig.blob(1, SIZE);
    rig.upstream.on("GET", "/blobs/").then(Fault::IgnoreRange);
    pull_by_chunks(&rig.url(&blob), &blob.bytes, 8 * MIB, 4).await;
    rig.mirror.committed(1).await;
    assert!(stored_blobs(&rig.mirror.data()).contains(&blob.digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_break_off_are_taken_up() {
    let rig = Rig::start().await;
    let blob = rig.blob(1, SIZE);
    rig.upstream.on("GET", "/blobs/").times(1);
    for how in [Cut::Fin, Cut::Reset] {
        rig.upstream.on("GET", "/blobs/").times(2).then(Fault::Cut { after: 3_000_000, how });
    }
    pull_by_chunks(&rig.url(&blob), &blob.bytes, 8 * MIB, 4).await;
    rig.mirror.committed(1).await;
    assert!(stored_blobs(&rig.mirror.data()).contains(&blob.digest));
    let read = rig.mirror.metric(r#"forebay_upstream_received_bytes_total{upstream="docker.io"}"#).await;
    assert!(read >= SIZE as f64 && read < (SIZE + 2 * MIB) as f64, "{read} bytes were taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_wrong_blob_is_given_to_nobody() {
    let rig = Rig::start().await;
    let blob = rig.blob(1, SIZE);
    rig.upstream.on("GET", "/blobs/").then(Fault::Flip(5 * MIB));
    let url = rig.url(&blob);
    let read = async |start: usize| {
        let mut answer = open_range(&url, start).await;
        let mut got = Vec::new();
        loop {
            match answer.chunk().await {
                Ok(Some(chunk)) => got.extend_from_slice(&chunk),
                Ok(None) => panic!("a wrong blob was completed from {start}"),
                Err(_) => return start + got.len(),
            }
        }
    };
    let ends = join_all([0, 8 * MIB, 40 * MIB, SIZE - 1].map(read)).await;
    assert!(ends.iter().all(|end| *end < SIZE), "{ends:?}");
    assert_eq!(rig.mirror.metric(r#"forebay_fills_total{result="corrupt"}"#).await, 1.0);
    assert!(stored_blobs(&rig.mirror.data()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_s_wrong_blob_is_had_from_upstream_when_it_is_asked_for_again() {
    let wrong = Upstream::start().await;
    let config = format!("[[upstream.\"docker.io\".mirror]]\nurl = \"{}\"\n", wrong.url());
    let rig = Rig::with(MirrorOptions { config: Some(config), ..Default::default() }).await;
    let blob = rig.blob(1, SIZE);
    wrong.put_blob("library/x", blob.bytes.clone());
    wrong.on("GET", "/blobs/").then(Fault::Flip(5 * MIB));
    let url = rig.url(&blob);
    let mut answer = open_range(&url, 0).await;
    while let Ok(Some(_)) = answer.chunk().await {}
    assert_eq!(rig.mirror.metric(r#"forebay_fills_total{result="corrupt"}"#).await, 1.0);
    pull_by_chunks(&url, &blob.bytes, 8 * MIB, 4).await;
    rig.assert_crossed_once(&blob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrow_gate_is_shared() {
    for places in [1, 2, 3] {
        let config = format!("[upstream.\"docker.io\"]\nmax_fills = {places}\n");
        let rig = Rig::with(MirrorOptions { config: Some(config), ..Default::default() }).await;
        let blobs = [1, 2, 3].map(|seed| rig.blob(seed, 20 * MIB));
        let pulls = blobs.iter().map(async |blob: &Blob| {
            let url = rig.url(blob);
            pull_by_chunks(&url, &blob.bytes, 4 * MIB, 4).await;
        });
        join_all(pulls).await;
        rig.mirror.committed(3).await;
        for blob in &blobs {
            let sent: u64 = rig.gets(blob).iter().map(|get| get.sent()).sum();
            assert_eq!(sent, blob.bytes.len() as u64, "with {places} places");
        }
    }
}

#[tokio::test]
async fn one_client_is_served_by_as_many_connections_as_configured() {
    let config = "[cache]\nfill_connections = 4\n".to_owned();
    let rig = Rig::with(MirrorOptions { config: Some(config), ..Default::default() }).await;
    let blob = rig.blob(1, SIZE);
    rig.upstream.on("GET", "/blobs/").then(Fault::Rate(8 << 20));
    read_rest(&mut http().get(rig.url(&blob)).send().await.unwrap(), &blob.bytes, 0).await;
    rig.assert_crossed_once(&blob).await;
    let at_once = most_at_once(&rig.gets(&blob));
    assert!((3..=5).contains(&at_once), "{at_once} at once");
    let small = Bytes::from_static(b"small");
    let small = Blob { digest: rig.upstream.put_blob("library/x", small.clone()), bytes: small };
    read_rest(&mut http().get(rig.url(&small)).send().await.unwrap(), &small.bytes, 0).await;
    assert_eq!(rig.gets(&small).len(), 1);
}
