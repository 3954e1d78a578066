//! What is held is served, whatever has become of the upstream, and says so.

use std::time::Duration;

use crate::bench::{Bench, SHORT, Small};
use crate::support::faulty::Fault;
use crate::support::faulty::tls::TlsFront;
use crate::support::http;
use crate::support::process::Wait;

/// All of an image, by every way that leads to it; the tag marked, what a digest names not.
async fn is_served(bench: &Bench, image: &Small, why: &str) {
    let by_tag = bench.get(&image.by_tag()).await;
    by_tag.is_held_stale(why);
    by_tag.gives(&image.manifest.bytes);
    let head = bench.head(&image.by_tag()).await;
    head.is_held_stale(why);
    assert_eq!(head.header("docker-content-digest"), image.manifest.digest);
    assert_eq!(head.header("content-length"), image.manifest.bytes.len().to_string());
    for (path, content) in [
        (image.by_digest(), &image.manifest),
        (image.blob(&image.config), &image.config),
        (image.blob(&image.layer), &image.layer),
    ] {
        let reply = bench.get(&path).await;
        reply.gives(&content.bytes);
        assert_eq!(reply.header("cache-status"), "forebay; hit", "{reply}");
        assert!(!reply.is_stale());
        assert_eq!(bench.head(&path).await.status, 200);
    }
    let part = bench.ask("GET", &image.blob(&image.layer), &[("Range", "bytes=10-19")]).await;
    assert_eq!((part.status, &part.body[..]), (206, &image.layer.bytes[10..20]));
}

#[tokio::test]
async fn an_upstream_that_is_gone_is_not_missed() {
    let mut bench = Bench::start().await;
    let image = bench.put_image("library/x", "1", 1);
    bench.pull(&image).await;
    bench.upstream.stop().await;
    is_served(&bench, &image, "library/x:1").await;
    let stale = "forebay_requests_total{face=\"mirror\",kind=\"manifest\",outcome=\"stale\"}";
    assert_eq!(bench.metric(stale).await, 2.0);
    let tags = bench.get("library/x/tags/list").await;
    assert_eq!(String::from_utf8_lossy(&tags.body), r#"{"name":"library/x","tags":["1"]}"#);
    assert!(tags.is_stale());
    let missing = bench.put_image("library/y", "1", 2);
    bench.get(&missing.by_tag()).await.refuses(
        503,
        "UNAVAILABLE",
        &["docker.io/library/y:1", "not held here"],
    );
    bench.get(&missing.blob(&missing.layer)).await.refuses(404, "BLOB_UNKNOWN", &["not held here"]);

    // A mirror that is started without its upstream serves from disk alone.
    bench.mirror.kill();
    bench.mirror.restart().await;
    is_served(&bench, &image, "library/x:1").await;
    let ready = http().get(bench.mirror.url() + "/readyz").send().await.unwrap();
    assert_eq!(ready.status(), 200);
    assert_eq!(bench.held().await.len(), 3);

    bench.upstream.restart().await;
    let wait = Wait::for_("the tag to be confirmed");
    while bench.get(&image.by_tag()).await.is_stale() {
        wait.a_little().await;
    }
}

#[tokio::test]
async fn every_trouble_of_upstream_leaves_held_tags_stale() {
    let cases = [
        (Fault::Delay(Duration::MAX), ""),
        (Fault::Reset, "library/x:1"),
        (Fault::status(500), "500"),
        (Fault::status(503), "503"),
        (Fault::login_page(), "a page of HTML"),
        (Fault::status(404), "not found upstream"),
        (Fault::status(403), "access denied by the upstream"),
        (Fault::status(401), "access denied by the upstream"),
        (Fault::status(429), "rate limit is exhausted"),
        (Fault::Redirect("http://127.0.0.1:1".to_owned()), "library/x:1"),
    ];
    let served = cases.into_iter().zip(0..).map(async |((fault, why), seed)| {
        let mut bench = Bench::start().await;
        let image = bench.put_image("library/x", "1", seed);
        bench.pull(&image).await;
        bench.upstream.on("HEAD", "/manifests/").then(fault.clone());
        bench.upstream.on("GET", "/").then(fault);
        is_served(&bench, &image, why).await;
        assert_eq!(bench.held().await.len(), 3);
    });
    futures_util::future::join_all(served).await;
}

#[tokio::test]
async fn an_upstream_with_a_certificate_of_nobody_s_is_not_missed() {
    let mut bench = Bench::start().await;
    let image = bench.put_image("library/x", "1", 1);
    bench.pull(&image).await;
    let front = TlsFront::start(bench.upstream.address()).await;
    let asked = bench.asked("HEAD", "/manifests/");
    let mut bench = bench.moved_to(&front.url()).await;
    is_served(&bench, &image, "certificate").await;
    let cold = bench.put_image("library/y", "1", 2);
    bench.get(&cold.by_tag()).await.refuses(503, "UNAVAILABLE", &["docker.io/library/y:1", "certificate"]);
    assert_eq!(bench.asked("HEAD", "/manifests/"), asked, "nothing is said to who cannot be trusted");
    assert_eq!(bench.held().await.len(), 3);
}

#[tokio::test]
async fn an_upstream_whose_name_does_not_resolve_is_not_missed() {
    let mut bench = Bench::start().await;
    let image = bench.put_image("library/x", "1", 1);
    bench.pull(&image).await;
    let mut bench = bench.moved_to("http://registry.invalid").await;
    is_served(&bench, &image, "").await;
    let cold = bench.put_image("library/y", "1", 2);
    let says = ["docker.io/library/y:1", "registry.invalid"];
    bench.get(&cold.by_tag()).await.refuses(503, "UNAVAILABLE", &says);
    assert_eq!(bench.held().await.len(), 3);
}

#[tokio::test]
async fn a_moved_tag_whose_manifest_cannot_be_had_stays_as_it_was() {
    let mut bench = Bench::start().await;
    let old = bench.put_image("library/x", "1", 1);
    bench.pull(&old).await;
    let new = bench.put_image("library/x", "1", 2);
    bench.upstream.on("GET", "/manifests/").then(Fault::Flip(3));
    let reply = bench.get(&old.by_tag()).await;
    reply.gives(&old.manifest.bytes);
    reply.is_held_stale("what came has the digest");
    assert_eq!(bench.held().await.len(), 3);
    bench.upstream.clear_rules();
    let wait = Wait::for_("the new manifest");
    while bench.get(&new.by_tag()).await.header("docker-content-digest") != new.manifest.digest {
        wait.a_little().await;
    }
}

#[tokio::test]
async fn what_upstream_has_dropped_goes_after_its_time_and_the_digest_stays() {
    for (status, code, answer) in [(404, "MANIFEST_UNKNOWN", 404), (403, "DENIED", 403)] {
        let config = format!("{SHORT}\n[stale]\nnot_found = \"1ms\"\ndenied = \"1ms\"\n");
        let mut bench = Bench::with(config).await;
        let image = bench.put_image("library/x", "1", 1);
        bench.pull(&image).await;
        bench.upstream.on("HEAD", "/manifests/").then(Fault::status(status));
        bench.upstream.on("GET", "/manifests/").then(Fault::status(status));
        let wait = Wait::for_("the tag to go");
        while bench.get(&image.by_tag()).await.status == 200 {
            wait.a_little().await;
        }
        bench.get(&image.by_tag()).await.refuses(answer, code, &["docker.io/library/x:1"]);
        bench.get(&image.by_digest()).await.gives(&image.manifest.bytes);
        bench.get(&image.blob(&image.layer)).await.gives(&image.layer.bytes);
        assert_eq!(bench.held().await.len(), 3);
    }
}
