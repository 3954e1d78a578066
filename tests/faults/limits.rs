//! Upstream's pull limit: what is held is served, and nothing is spent in vain.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use crate::bench::Bench;
use crate::support::faulty::{Fault, Quota};
use crate::support::sha256;

/// Both forms of `Retry-After`: GETs pause for as long, HEADs go on, and then GETs go on.
async fn pauses(retry_after: impl Fn() -> String) {
    let mut bench = Bench::start().await;
    let held = bench.put_image("library/held", "1", 1);
    let [cold, other] = [2, 3].map(|seed| bench.put_image("library/cold", &seed.to_string(), seed));
    bench.pull(&held).await;
    let before = bench.asked("GET", "/manifests/");
    bench.upstream.on("GET", "/manifests/").then(Fault::status_with(429, "Retry-After", retry_after()));
    for image in [&cold, &other] {
        let reply = bench.get(&image.by_tag()).await;
        reply.refuses(429, "TOOMANYREQUESTS", &["rate limit is exhausted", "try again in"]);
        assert!(reply.header("retry-after").parse::<u64>().unwrap() <= 7, "{reply}");
    }
    assert_eq!(bench.asked("GET", "/manifests/"), before + 1, "GETs pause");
    assert_eq!(bench.metric("forebay_upstream_paused{upstream=\"docker.io\"}").await, 1.0);
    // HEADs cost nothing and go on: what is held is confirmed.
    let heads = bench.asked("HEAD", "library/held");
    let reply = bench.get(&held.by_tag()).await;
    reply.gives(&held.manifest.bytes);
    assert_eq!(reply.header("cache-status"), "forebay; hit; detail=revalidated");
    assert_eq!(bench.asked("HEAD", "library/held"), heads + 1);
    bench.get(&held.blob(&held.layer)).await.gives(&held.layer.bytes);
    assert_eq!(bench.held().await.len(), 3);
    // Upstream is friendly again, and asked again once the time is over.
    bench.upstream.clear_rules();
    bench.get_at_last(&cold.by_tag()).await.gives(&cold.manifest.bytes);
    assert_eq!(bench.metric("forebay_upstream_paused{upstream=\"docker.io\"}").await, 0.0);
}

#[tokio::test]
async fn manifests_pause_for_the_seconds_that_upstream_names() {
    pauses(|| "6".to_owned()).await;
}

#[tokio::test]
async fn manifests_pause_until_the_date_that_upstream_names() {
    pauses(|| httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(7))).await;
}

#[tokio::test]
async fn heads_that_are_refused_too_make_held_tags_stale() {
    let mut bench = Bench::start().await;
    let held = bench.put_image("library/held", "1", 1);
    bench.pull(&held).await;
    for method in ["GET", "HEAD"] {
        bench.upstream.on(method, "/manifests/").then(Fault::status_with(429, "Retry-After", 3600));
    }
    let asked = bench.upstream.requests().len();
    for _ in 0..2 {
        let reply = bench.get(&held.by_tag()).await;
        reply.is_held_stale("rate limit is exhausted");
        reply.gives(&held.manifest.bytes);
        assert!(bench.head(&held.by_tag()).await.is_stale());
    }
    assert_eq!(bench.upstream.requests().len(), asked + 1, "asked once, then believed");
    bench.get(&held.by_digest()).await.gives(&held.manifest.bytes);
    let cold = bench.put_image("library/cold", "1", 2);
    bench.get(&cold.by_tag()).await.refuses(429, "TOOMANYREQUESTS", &["not held here"]);
    assert_eq!(bench.upstream.requests().len(), asked + 1, "HEADs pause");
    assert_eq!(bench.held().await.len(), 3);
}

#[tokio::test]
async fn a_tag_that_moved_is_served_as_it_was_while_the_quota_is_exhausted() {
    let mut bench = Bench::start().await;
    let old = bench.put_image("library/x", "1", 1);
    bench.upstream.set_quota(Some(Quota { limit: 100, remaining: 1, window: 21600 }));
    bench.pull(&old).await;
    let series = |what: &str| format!("forebay_upstream_quota_{what}{{upstream=\"docker.io\"}}");
    assert_eq!(bench.metric(&series("limit")).await, 100.0);
    assert_eq!(bench.metric(&series("window_seconds")).await, 21600.0);
    assert_eq!(bench.metric(&series("remaining")).await, 0.0);
    let new = bench.put_image("library/x", "1", 2);
    // That nothing is left was told, so nobody is asked for what is not needed.
    for _ in 0..2 {
        let reply = bench.get(&old.by_tag()).await;
        reply.is_held_stale("rate limit is exhausted");
        reply.gives(&old.manifest.bytes);
    }
    assert_eq!(bench.asked("GET", &new.manifest.digest), 0);
    // What is not held is asked for once: then comes upstream's refusal, and the pause that follows.
    for _ in 0..2 {
        bench.get(&new.by_digest()).await.refuses(429, "TOOMANYREQUESTS", &["rate limit is exhausted"]);
    }
    assert_eq!(bench.asked("GET", &new.manifest.digest), 1);
    assert_eq!(bench.held().await.len(), 3);
}

#[tokio::test]
async fn a_miss_is_remembered_for_a_while() {
    // As it comes: 404s are in mind for half a minute.
    let mut bench = Bench::with("").await;
    bench.put_image("library/x", "1", 1);
    let unknown = sha256(b"nothing");
    for (path, code) in [
        ("library/x/manifests/none".to_owned(), "MANIFEST_UNKNOWN"),
        (format!("library/x/manifests/{unknown}"), "MANIFEST_UNKNOWN"),
        (format!("library/x/blobs/{unknown}"), "BLOB_UNKNOWN"),
        ("library/none/tags/list".to_owned(), "NAME_UNKNOWN"),
    ] {
        let asked = bench.upstream.requests().len();
        for _ in 0..2 {
            bench.get(&path).await.refuses(404, code, &["not known"]);
        }
        assert_eq!(bench.upstream.requests().len(), asked + 1, "{path}");
    }
    assert_eq!(bench.held().await, BTreeSet::new());
}
