//! Ranges, HEAD and conditions, on blobs that are held and on those that are not.

use reqwest::Response;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG};

use super::support::faulty::Fault;
use super::support::http;
use super::{Blob, MIB, Rig, read_rest, read_some};

const SIZE: usize = 300_000;

async fn get(url: &str, header: &str, value: &str) -> Response {
    http().get(url).header(header, value).send().await.unwrap()
}

/// Asks for `range`; the answer must be the bytes `start..end` of the blob.
async fn assert_part(rig: &Rig, blob: &Blob, range: &str, start: usize, end: usize) {
    let mut answer = get(&rig.url(blob), "Range", range).await;
    assert_eq!(answer.status(), 206, "{range}");
    let size = blob.bytes.len();
    assert_eq!(answer.headers()[CONTENT_RANGE], format!("bytes {start}-{}/{size}", end - 1), "{range}");
    assert_eq!(answer.headers()[CONTENT_LENGTH], (end - start).to_string(), "{range}");
    assert_eq!(answer.headers()["docker-content-digest"], blob.digest);
    read_rest(&mut answer, &blob.bytes[start..end], 0).await;
}

/// Every form of range, each for a blob that `next` gives.
async fn assert_ranges(rig: &Rig, mut next: impl AsyncFnMut() -> Blob) {
    assert_part(rig, &next().await, "bytes=10-19", 10, 20).await;
    assert_part(rig, &next().await, "bytes=0-0", 0, 1).await;
    assert_part(rig, &next().await, "bytes=299000-", 299_000, SIZE).await;
    assert_part(rig, &next().await, "bytes=-500", SIZE - 500, SIZE).await;
    assert_part(rig, &next().await, "bytes=299990-400000", 299_990, SIZE).await;
    for beyond in ["bytes=300000-", "bytes=5-1", "bytes=-0"] {
        let answer = get(&rig.url(&next().await), "Range", beyond).await;
        assert_eq!(answer.status(), 416, "{beyond}");
        assert_eq!(answer.headers()[CONTENT_RANGE], format!("bytes */{SIZE}"));
        let error: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(error["errors"][0]["code"], "RANGE_INVALID");
    }
    for whole in ["bytes=0-1,5-6", "lines=1-2"] {
        let blob = next().await;
        let mut answer = get(&rig.url(&blob), "Range", whole).await;
        assert_eq!(answer.status(), 200, "{whole}");
        read_rest(&mut answer, &blob.bytes, 0).await;
    }
}

#[tokio::test]
async fn of_cold_blobs() {
    let rig = Rig::start().await;
    let mut seed = 0;
    assert_ranges(&rig, async || {
        seed += 1;
        rig.blob(seed, SIZE)
    })
    .await;
    // Closed ranges that lie outside, two of them, cost a HEAD and no more.
    rig.mirror.committed(seed as usize - 2).await;
    let all: Vec<_> = (1..=seed).map(|seed| rig.gets(&rig.blob(seed, SIZE))).collect();
    assert_eq!(all.iter().filter(|gets| gets.is_empty()).count(), 2);
    for gets in all.into_iter().filter(|gets| !gets.is_empty()) {
        assert_eq!(gets.len(), 1, "{gets:?}");
        assert_eq!(gets[0].sent(), SIZE as u64);
        // Of a blob that is read by ranges not even the first answer is left before its end.
        let asked = gets[0].headers.get("range");
        assert!(asked.is_none_or(|asked| asked == "bytes=0-8388607"), "{asked:?}");
    }
}

#[tokio::test]
async fn of_held_blobs() {
    let rig = Rig::start().await;
    let blob = rig.blob(1, SIZE);
    read_rest(&mut http().get(rig.url(&blob)).send().await.unwrap(), &blob.bytes, 0).await;
    rig.mirror.committed(1).await;
    let asked = rig.upstream.requests().len();
    assert_ranges(&rig, async || Blob { bytes: blob.bytes.clone(), digest: blob.digest.clone() }).await;
    assert_eq!(rig.upstream.requests().len(), asked, "upstream was asked for what is held");
}

#[tokio::test]
async fn heads_and_conditions_move_no_body() {
    let rig = Rig::start().await;
    let blob = rig.blob(1, SIZE);
    let url = rig.url(&blob);
    let etag = format!("\"{}\"", blob.digest);
    let ask = async || {
        let head = http().head(&url).send().await.unwrap();
        assert_eq!(head.status(), 200);
        assert_eq!(head.headers()[CONTENT_LENGTH], SIZE.to_string());
        assert_eq!(head.headers()["docker-content-digest"], blob.digest);
        assert_eq!(head.headers()[ETAG], etag);
        let known = get(&url, "If-None-Match", &etag).await;
        assert_eq!(known.status(), 304);
        assert_eq!(known.headers()[ETAG], etag);
        assert!(known.bytes().await.unwrap().is_empty());
    };
    ask().await;
    assert_eq!(rig.gets(&blob).len(), 0);
    let other = get(&url, "If-None-Match", "\"sha256:other\"").await;
    assert_eq!(other.status(), 200);
    assert_eq!(other.bytes().await.unwrap(), blob.bytes);
    rig.mirror.committed(1).await;
    let asked = rig.upstream.requests().len();
    ask().await;
    assert_eq!(rig.upstream.requests().len(), asked);
}

#[tokio::test]
async fn a_distant_range_does_not_wait_for_the_rest() {
    let rig = Rig::start().await;
    let blob = rig.blob(1, 48 * MIB);
    rig.upstream.on("GET", "/blobs/").then(Fault::Rate(8 << 20));
    let mut whole = http().get(rig.url(&blob)).send().await.unwrap();
    let read = read_some(&mut whole, &blob.bytes, MIB).await;
    let (start, end) = (40 * MIB, 40 * MIB + 100_000);
    assert_part(&rig, &blob, &format!("bytes={start}-{}", end - 1), start, end).await;
    let begun = rig.gets(&blob)[0].sent();
    assert!(begun < 32 << 20, "the range was answered after {begun} bytes of the rest");
    read_rest(&mut whole, &blob.bytes, read).await;
    rig.mirror.committed(1).await;

    let gets = rig.gets(&blob);
    let sent: u64 = gets.iter().map(|get| get.sent()).sum();
    // Where the range begins, the first transfer is broken off: what is then on its way is lost.
    let lost = sent - blob.bytes.len() as u64;
    assert!(lost < 2 << 20, "{lost} bytes crossed twice: {gets:?}");
    let read = rig.mirror.metric(r#"forebay_upstream_received_bytes_total{upstream="docker.io"}"#).await;
    assert!(read - (blob.bytes.len() as f64) < MIB as f64, "{read} bytes were taken");
}
