//! Small ranges of a large cold blob, as lazy pulling reads it, do not fetch the whole.

use futures_util::future::join_all;
use reqwest::Response;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE};

use super::support::faulty::Fault;
use super::support::mirror::MirrorOptions;
use super::support::{http, stored_blobs};
use super::{Blob, MIB, Rig, read_rest};

const SIZE: usize = 64 * MIB;

async fn lazy() -> (Rig, Blob) {
    let config = "[cache]\nrange_floor = \"8MiB\"\nrange_share = 0.25\n".to_owned();
    let rig = Rig::with(MirrorOptions { config: Some(config), ..Default::default() }).await;
    let blob = rig.blob(1, SIZE);
    (rig, blob)
}

async fn ask(rig: &Rig, blob: &Blob, range: &str) -> Response {
    http().get(rig.url(blob)).header("Range", range).send().await.unwrap()
}

/// Reads `start..end`; gives what the answer says of the cache.
async fn read(rig: &Rig, blob: &Blob, start: usize, end: usize) -> String {
    let range =
        if end == SIZE { format!("bytes=-{}", SIZE - start) } else { format!("bytes={start}-{}", end - 1) };
    let mut answer = ask(rig, blob, &range).await;
    assert_eq!(answer.status(), 206);
    assert_eq!(answer.headers()[CONTENT_RANGE], format!("bytes {start}-{}/{SIZE}", end - 1));
    assert_eq!(answer.headers()[CONTENT_LENGTH], (end - start).to_string());
    let status = answer.headers()["cache-status"].to_str().unwrap().to_owned();
    read_rest(&mut answer, &blob.bytes[start..end], 0).await;
    status
}

fn sent(rig: &Rig, blob: &Blob) -> usize {
    rig.gets(blob).iter().map(|get| get.sent() as usize).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_crosses_and_no_more() {
    let (rig, blob) = lazy().await;
    let footer = SIZE - 10_240;
    let told = join_all((0..20).map(|_| read(&rig, &blob, footer, SIZE))).await;
    assert!(told.iter().all(|status| status == "forebay; fwd=uri-miss; detail=range"), "{told:?}");
    for i in 0..10 {
        read(&rig, &blob, i * 5 * MIB, i * 5 * MIB + 100_000).await;
        read(&rig, &blob, i * 5 * MIB + 10, i * 5 * MIB + 20).await;
    }
    assert_eq!(sent(&rig, &blob), 10_240 + 10 * 100_000);
    assert_eq!(rig.gets(&blob).len(), 11);
    // Who comes between the answer to a HEAD and the beginning of the fill asks once more.
    assert!(rig.upstream.requests_for("HEAD", &blob.digest).len() < 20);
    assert_eq!(rig.mirror.metric("forebay_fills_partial").await, 1.0);
    assert_eq!(rig.mirror.metric("forebay_unverified_ranges_total").await, 40.0);
    assert!(stored_blobs(&rig.mirror.data()).is_empty());

    // Who wants it all gets the pieces and the rest, and it is kept.
    read_rest(&mut http().get(rig.url(&blob)).send().await.unwrap(), &blob.bytes, 0).await;
    rig.mirror.committed(1).await;
    assert!(stored_blobs(&rig.mirror.data()).contains(&blob.digest));
    assert_eq!(sent(&rig, &blob), SIZE, "each byte once");
    assert_eq!(rig.mirror.metric("forebay_fills_partial").await, 0.0);
    assert_eq!(read(&rig, &blob, footer, SIZE).await, "forebay; hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn above_the_share_the_rest_comes_too() {
    let (rig, blob) = lazy().await;
    for i in 0..17 {
        assert_eq!(rig.mirror.metric(r#"forebay_fills_total{result="committed"}"#).await, 0.0, "{i}");
        read(&rig, &blob, i * 3 * MIB, i * 3 * MIB + MIB).await;
    }
    rig.mirror.committed(1).await;
    assert!(stored_blobs(&rig.mirror.data()).contains(&blob.digest));
    assert_eq!(sent(&rig, &blob), SIZE, "each byte once");
}

#[tokio::test(flavor = "multi_thread")]
async fn little_of_a_small_blob_and_much_of_a_large_one_fetch_the_whole() {
    let (rig, blob) = lazy().await;
    let status = read(&rig, &blob, 0, 20 * MIB).await;
    assert_eq!(status, "forebay; fwd=uri-miss; stored");
    let small = rig.blob(2, 8 * MIB);
    let answer = ask(&rig, &small, "bytes=5-9").await;
    assert_eq!(answer.bytes().await.unwrap(), small.bytes.slice(5..10));
    rig.mirror.committed(2).await;
    assert_eq!(stored_blobs(&rig.mirror.data()).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_by_a_status_and_not_by_a_broken_body() {
    let (rig, blob) = lazy().await;
    read(&rig, &blob, 0, 1000).await;
    rig.upstream.on("GET", "/blobs/").then(Fault::status(404));
    assert_eq!(ask(&rig, &blob, "bytes=5000000-5000999").await.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_ranges_is_read_whole() {
    let (rig, blob) = lazy().await;
    rig.upstream.on("GET", "/blobs/").then(Fault::IgnoreRange);
    read(&rig, &blob, 30 * MIB, 30 * MIB + 1000).await;
    rig.mirror.committed(1).await;
    assert!(stored_blobs(&rig.mirror.data()).contains(&blob.digest));
}
