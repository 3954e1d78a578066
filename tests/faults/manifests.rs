//! Manifests that are not what they should be.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::json;

use crate::bench::Bench;
use crate::support::faulty::{Cut, Fault};
use crate::support::image::{INDEX, Image, MANIFEST};
use crate::support::process::Wait;
use crate::support::sha256;

fn answer(kind: &str, body: impl Into<Bytes>) -> Fault {
    Fault::Answer { status: 200, headers: vec![("Content-Type", kind.to_owned())], body: body.into() }
}

const SCHEMA_1: &str = r#"{"schemaVersion":1,"name":"library/old","tag":"1","fsLayers":[],"history":[]}"#;

#[tokio::test]
async fn no_wrong_manifest_is_given_or_kept() {
    let mut bench = Bench::start().await;
    let wrong = sha256(b"something else");
    let told = |digest: &str| Fault::Header("Docker-Content-Digest", digest.to_owned());
    let unavailable = (503, "UNAVAILABLE");
    let cases = [
        ("oversize", vec![Fault::Append(4 * 1048 * 1048)], unavailable, "larger than the limit"),
        (
            "endless",
            vec![Fault::Append(4 * 1048 * 1048), Fault::Chunked],
            unavailable,
            "larger than the limit",
        ),
        ("wrong-header", vec![told(&wrong)], unavailable, "what came has the digest"),
        ("flipped", vec![Fault::Flip(3)], unavailable, "what came has the digest"),
        ("appended", vec![Fault::Append(1)], unavailable, "what came has the digest"),
        ("short", vec![Fault::Length(20)], unavailable, "what came has the digest"),
        ("compressed", vec![Fault::Gzip], unavailable, "encoded as gzip"),
        ("login-page", vec![Fault::login_page()], unavailable, "login page in between?"),
        ("cut", vec![Fault::Cut { after: 10, how: Cut::Fin }], unavailable, "broke off"),
        ("reset-within", vec![Fault::Cut { after: 10, how: Cut::Reset }], unavailable, "broke off"),
        ("stalled", vec![Fault::Stall { after: 10 }], unavailable, "no more of the body came"),
        ("silent", vec![Fault::Delay(Duration::MAX)], unavailable, "cannot be had"),
        ("error-500", vec![Fault::status(500)], unavailable, "told to answer 500"),
        ("error-418", vec![Fault::status(418)], unavailable, "418"),
        ("login-wanted", vec![Fault::status(401)], (403, "DENIED"), "does not say how to log in"),
        ("forbidden", vec![Fault::status(403)], (403, "DENIED"), "`private = \"shared\"`"),
        ("missing", vec![Fault::status(404)], (404, "MANIFEST_UNKNOWN"), "not known"),
        ("reset", vec![Fault::Reset], unavailable, "cannot be had"),
    ];
    join_all(cases.into_iter().zip(0..).map(async |((name, faults, (status, code), says), seed)| {
        let image = bench.put_image(&format!("manifests/{name}"), "1", seed);
        let path = format!("manifests/{name}/manifests/");
        faults.into_iter().fold(bench.upstream.on("GET", &path), |rule, fault| rule.then(fault));
        // By tag, then again at once, when upstream's refusal is still in mind; and by digest.
        for path in [image.by_tag(), image.by_tag(), image.by_digest()] {
            bench.get(&path).await.refuses(status, code, &[&format!("docker.io/manifests/{name}"), says]);
        }
    }))
    .await;
    assert_eq!(bench.held().await, BTreeSet::new());
    bench.upstream.clear_rules();
    bench.get_at_last("manifests/cut/manifests/1").await;
}

#[tokio::test]
async fn what_is_no_manifest_under_its_right_digest_is_refused() {
    let mut bench = Bench::start().await;
    let descriptor = |digest: &str| json!({ "mediaType": MANIFEST, "digest": digest, "size": 1 });
    let climbing = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": descriptor("sha256:../../../../etc/passwd"),
    });
    let unavailable = (503, "UNAVAILABLE");
    let cases = [
        ("text", MANIFEST, "not JSON".to_owned(), unavailable, "no manifest"),
        ("empty", MANIFEST, "{}".to_owned(), unavailable, "neither `config` and `layers` nor"),
        ("deep", MANIFEST, "[".repeat(100_000), unavailable, "no manifest"),
        ("climbing", MANIFEST, climbing.to_string(), unavailable, "bad digest"),
        (
            "schema1",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            SCHEMA_1.to_owned(),
            (404, "MANIFEST_UNKNOWN"),
            "pushed again by a current tool",
        ),
    ];
    for (name, kind, body, (status, code), says) in cases {
        let digest = bench.upstream.put_manifest(&format!("forms/{name}"), "1", kind, body);
        for reference in ["1", &digest] {
            bench.get(&format!("forms/{name}/manifests/{reference}")).await.refuses(status, code, &[says]);
        }
    }
    assert_eq!(bench.held().await, BTreeSet::new());
}

#[tokio::test]
async fn a_head_that_lies_leads_to_no_wrong_manifest() {
    let mut bench = Bench::start().await;
    let image = bench.put_image("library/x", "1", 1);
    // A digest that upstream does not have.
    let wrong = sha256(b"something else");
    bench.upstream.on("HEAD", "/manifests/1").then(Fault::Header("Docker-Content-Digest", wrong.clone()));
    bench.get(&image.by_tag()).await.refuses(404, "MANIFEST_UNKNOWN", &[&wrong]);
    // One under which upstream gives other bytes.
    bench.upstream.on("GET", &wrong).then(answer(MANIFEST, image.manifest.bytes.clone()));
    let wait = Wait::for_("the 404 to be forgotten");
    while bench.get(&image.by_tag()).await.status == 404 {
        wait.a_little().await;
    }
    bench.get(&image.by_tag()).await.refuses(503, "UNAVAILABLE", &["what came has the digest"]);
    assert_eq!(bench.held().await, BTreeSet::new());
    bench.upstream.clear_rules();
    // Without a digest, or with none that can be read, the manifest itself tells.
    let header = "Docker-Content-Digest";
    let untold = [Fault::WithoutHeader(header), Fault::Header(header, "sha256:XYZ".to_owned())];
    for (fault, seed) in untold.into_iter().zip(2..) {
        let image = bench.put_image("library/y", &seed.to_string(), seed);
        bench.upstream.on("HEAD", &image.by_tag()).then(fault.clone());
        bench.upstream.on("GET", &image.by_tag()).then(fault);
        bench.get(&image.by_tag()).await.gives(&image.manifest.bytes);
        assert_eq!(bench.head(&image.by_tag()).await.header("docker-content-digest"), image.manifest.digest);
    }
}

#[tokio::test]
async fn a_child_that_is_gone_takes_nothing_else_along() {
    let mut bench = Bench::with("").await;
    let image = Image::random(1, 1, 1000);
    bench.upstream.put_image("library/x", "1", &image);
    bench.get("library/x/manifests/1").await.gives(&image.index.bytes);
    let [child, gone] = &image.manifests[..] else { panic!("two architectures") };
    bench.upstream.remove("library/x", &gone.digest);
    let missing = format!("library/x/manifests/{}", gone.digest);
    bench.get(&missing).await.refuses(404, "MANIFEST_UNKNOWN", &[&gone.digest, "not known"]);
    bench.get(&missing).await.refuses(404, "MANIFEST_UNKNOWN", &[]);
    assert_eq!(bench.asked("GET", &gone.digest), 1, "the 404 was in mind");
    bench.get(&format!("library/x/manifests/{}", child.digest)).await.gives(&child.bytes);
    let index = bench.get("library/x/manifests/1").await;
    index.gives(&image.index.bytes);
    assert_eq!(index.header("content-type"), INDEX);
    bench.keeps(&[&image.index.digest, &child.digest]).await;
    assert!(!bench.held().await.contains(&gone.digest));
}

#[tokio::test]
async fn passing_troubles_are_not_seen_by_clients() {
    let mut bench = Bench::start().await;
    let image = bench.put_image("library/x", "1", 1);
    for (method, fault) in [("HEAD", Fault::Reset), ("HEAD", Fault::status(503)), ("GET", Fault::status(502))]
    {
        bench.upstream.on(method, "/manifests/").times(1).then(fault);
    }
    bench.pull(&image).await;
    assert!(bench.metric("forebay_upstream_retries_total{upstream=\"docker.io\"}").await >= 3.0);
}
