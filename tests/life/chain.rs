//! Forebays that ask each other: chains, peers, and loops, which end at once.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use super::support::faulty::Upstream;
use super::support::http;
use super::support::image::{Image, MANIFEST, random_bytes};
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::process::free_port;
use super::{get, pull, put_empty};

/// Long enough that a request which waits for itself is seen to.
const PATIENCE: Duration = Duration::from_secs(60);

/// A configuration with timeouts that no request survives which waits for itself, and what else is said.
fn config(rest: &str) -> Option<String> {
    Some(format!("[upstream.\"docker.io\"]\nheader_timeout = \"10m\"\ndeadline = \"20m\"\n{rest}"))
}

async fn start(directory: &Path, name: &str, upstream: &str, rest: &str) -> Mirror {
    let options =
        MirrorOptions { upstream: upstream.to_owned(), config: config(rest), ..MirrorOptions::default() };
    Mirror::with(&directory.join(name), options).await
}

async fn told(mirror: &Mirror, path: &str) -> (u16, String) {
    let (status, body) = told_bytes(mirror, path).await;
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn told_bytes(mirror: &Mirror, path: &str) -> (u16, Bytes) {
    let answer = tokio::time::timeout(PATIENCE, get(&(mirror.url() + path))).await;
    answer.unwrap_or_else(|_| panic!("{path} is waited for: {}", mirror.log()))
}

const BLOB: &str =
    "/v2/library/app/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Everything that can be asked for is refused, with the setting to correct.
async fn refuses_all(mirror: &Mirror) {
    for path in ["/v2/library/app/manifests/latest", BLOB, "/v2/library/app/tags/list"] {
        let (status, body) = told(mirror, path).await;
        assert_eq!(status, 400, "{path} {body}");
        assert!(body.contains("LOOP_DETECTED"), "{path} {body}");
        assert!(body.contains("`upstream.\\\"docker.io\\\".url`"), "{path} {body}");
    }
}

/// One that listens at `port` too, and has its upstream at another port of this machine.
async fn at(directory: &Path, port: u16, upstream: u16) -> Mirror {
    let options = MirrorOptions {
        upstream: format!("http://127.0.0.1:{upstream}"),
        config: config(""),
        arguments: vec!["--listen".into(), format!("127.0.0.1:{port}")],
        ..MirrorOptions::default()
    };
    Mirror::with(&directory.join(port.to_string()), options).await
}

#[tokio::test]
async fn one_that_is_its_own_upstream_says_so_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    refuses_all(&at(directory.path(), port, port).await).await;
}

#[tokio::test]
async fn three_in_a_loop_say_so_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let ports = [free_port(), free_port(), free_port()];
    let mut mirrors = Vec::new();
    for i in 0..3 {
        mirrors.push(at(directory.path(), ports[i], ports[(i + 1) % 3]).await);
    }
    for mirror in &mirrors {
        refuses_all(mirror).await;
    }
}

#[tokio::test]
async fn peers_ask_each_other_first_and_the_registry_once() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let image = Image::random(1, 1, 50_000);
    upstream.put_image("library/app", "latest", &image);
    let mut first = start(directory.path(), "first", &upstream.url(), "").await;
    let peer = |of: &Mirror| format!("[[upstream.\"docker.io\".mirror]]\nurl = \"{}\"", of.url());
    let second = start(directory.path(), "second", &upstream.url(), &peer(&first)).await;
    first.configure(&config(&peer(&second)).unwrap());
    first.kill();
    first.restart().await;

    pull(&(first.url() + "/v2/library/app"), "latest", &image).await;
    let fetched = upstream.requests_for("GET", "/library/app/").len();
    pull(&(second.url() + "/v2/library/app"), "latest", &image).await;
    assert_eq!(upstream.requests_for("GET", "/library/app/").len(), fetched, "the peer has it");
    assert_eq!(second.metric(r#"forebay_upstream_breakers_open{upstream="docker.io"}"#).await, 0.0);
    // What neither has, the registry is asked for by the one that was asked second.
    put_empty(&upstream, "library/other", "latest", "other");
    let (status, _) = told(&second, "/v2/library/other/manifests/latest").await;
    assert_eq!(status, 200);
    let (status, body) = told(&second, "/v2/library/missing/manifests/latest").await;
    assert_eq!(status, 404, "{body}");
    // With the registry away, what a peer holds is had from there.
    put_empty(&upstream, "library/third", "latest", "third");
    assert_eq!(told(&first, "/v2/library/third/manifests/latest").await.0, 200);
    let mut upstream = upstream;
    upstream.stop().await;
    assert_eq!(told(&second, "/v2/library/third/manifests/latest").await.0, 200);
}

#[tokio::test]
async fn peers_that_are_asked_at_the_same_time_wait_in_no_circle() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let image = Image::random(2, 1, 50_000);
    upstream.put_image("library/app", "latest", &image);
    let port = free_port();
    let peer = |port: u16| format!("[[upstream.\"docker.io\".mirror]]\nurl = \"http://127.0.0.1:{port}\"");
    let first = start(directory.path(), "first", &upstream.url(), &peer(port)).await;
    let options = MirrorOptions {
        upstream: upstream.url(),
        config: config(&peer(first.port)),
        arguments: vec!["--listen".into(), format!("127.0.0.1:{port}")],
        ..MirrorOptions::default()
    };
    let second = Mirror::with(&directory.path().join("second"), options).await;
    // So long that it is fetched in parts, each of them asked for anew.
    let long = Bytes::from(random_bytes(3, 40 << 20));
    let digest = upstream.put_blob("library/app", long.clone());
    let by_range = async |mirror: &Mirror| {
        let get = http().get(format!("{}/v2/library/app/blobs/{digest}", mirror.url()));
        let answer = get.header("Range", "bytes=0-").timeout(PATIENCE).send().await.unwrap();
        assert!(answer.bytes().await.unwrap() == long, "{}", mirror.log());
    };
    tokio::join!(by_range(&first), by_range(&second), by_range(&first), by_range(&second));
    let digests = image.manifests.iter().map(|one| format!("manifests/{}", one.digest));
    let blobs = image.blobs.iter().map(|one| format!("blobs/{}", one.digest));
    for path in
        ["manifests/latest".to_owned(), "tags/list".to_owned()].into_iter().chain(digests).chain(blobs)
    {
        let path = format!("/v2/library/app/{path}");
        let asked = (0..8).map(|i| told_bytes(if i % 2 == 0 { &first } else { &second }, &path));
        for (status, body) in futures_util::future::join_all(asked).await {
            assert_eq!(status, 200, "{path} {body:?}");
        }
    }
}

#[tokio::test]
async fn what_the_next_one_could_not_confirm_is_not_said_to_be_confirmed() {
    let directory = tempfile::tempdir().unwrap();
    let mut upstream = Upstream::start().await;
    put_empty(&upstream, "library/app", "latest", "app");
    let never_fresh = "[freshness]\nversions = \"0s\"\nothers = \"0s\"\n[freshness.rules]\nlatest = \"0s\"\n";
    let upper = start(directory.path(), "upper", &upstream.url(), never_fresh).await;
    let lower = start(directory.path(), "lower", &upper.url(), never_fresh).await;
    let cached = async || {
        let get = http().get(lower.url() + "/v2/library/app/manifests/latest").header("Accept", MANIFEST);
        let answer = get.timeout(PATIENCE).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let header = |name: &str| answer.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
        (header("cache-status").unwrap(), header("warning").unwrap_or_default())
    };
    cached().await;
    assert_eq!(cached().await, ("forebay; hit; detail=revalidated".to_owned(), String::new()));
    upstream.stop().await;
    let (status, warning) = cached().await;
    assert_eq!(status, "forebay; hit; detail=stale");
    assert!(warning.contains("the Forebay that was asked serves it stale"), "{warning}");
}
