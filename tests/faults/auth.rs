//! Upstreams that ask for tokens, honestly and otherwise.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use tempfile::TempDir;

use crate::bench::{Bench, SHORT};
use crate::support::faulty::tls::TlsFront;
use crate::support::faulty::{Fault, Upstream};
use crate::support::token::{TokenServer, Trouble};

const PASSWORD: &str = "a-password-that-must-not-leak";

/// A mirror with a credential for its upstream.
async fn with_credential(more: &str) -> Bench {
    let (upstream, directory) = (Upstream::start().await, tempfile::tempdir().unwrap());
    let (url, config) = (upstream.url(), credential(&directory) + more);
    Bench::at(upstream, url, config, directory).await
}

fn credential(directory: &TempDir) -> String {
    let file = directory.path().join("password");
    std::fs::write(&file, PASSWORD).unwrap();
    format!("{SHORT}\nusername = \"ci\"\npassword_file = \"{}\"\nprivate = \"shared\"\n", file.display())
}

/// What must hold after whatever a hostile upstream did.
async fn nothing_leaked(bench: &mut Bench) {
    for seen in bench.upstream.requests() {
        let authorization = seen.headers.get("authorization").unwrap_or_default();
        assert!(!authorization.starts_with("Basic"), "the password went to {}", seen.path);
    }
    assert_eq!(bench.held().await, BTreeSet::new());
    let log = bench.mirror.process().log();
    assert!(!log.contains(PASSWORD) && !log.contains("Basic "), "{log}");
}

#[tokio::test]
async fn an_expired_token_is_replaced_once_for_all_who_wait() {
    let tokens = TokenServer::start().await;
    tokens.allow_anonymous("*", "pull");
    let mut bench = Bench::start().await;
    bench.upstream.protect(&tokens);
    let image = bench.put_image("library/x", "1", 1);
    bench.get(&image.by_tag()).await.gives(&image.manifest.bytes);
    assert_eq!(tokens.requests().len(), 1);
    bench.upstream.expire_tokens();
    let others = (10..16).map(|seed| bench.put_image("library/x", &seed.to_string(), seed));
    let others: Vec<_> = others.collect();
    join_all(others.iter().map(async |other| {
        bench.get(&other.blob(&other.layer)).await.gives(&other.layer.bytes);
    }))
    .await;
    assert_eq!(tokens.requests().len(), 2);
    bench.keeps(&others.iter().map(|other| &other.layer.digest).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_token_that_opens_nothing_is_tried_once_more_and_no_challenge_is_passed_on() {
    let tokens = TokenServer::start().await;
    let mut bench = Bench::start().await;
    let image = bench.put_image("library/x", "1", 1);
    let challenge = format!("Bearer realm=\"{}\",service=\"x\"", tokens.realm());
    for method in ["HEAD", "GET"] {
        let never = Fault::status_with(401, "WWW-Authenticate", &challenge);
        bench.upstream.on(method, "/").then(never);
    }
    bench.get(&image.by_tag()).await.refuses(403, "DENIED", &["library/x:1", "`private = \"shared\"`"]);
    bench.get(&image.blob(&image.layer)).await.refuses(403, "DENIED", &[&image.layer.digest]);
    bench.head(&image.by_tag()).await;
    assert!(bench.upstream.requests().len() <= 4, "{:?}", bench.upstream.requests());
    assert!(tokens.requests().len() <= 3, "{:?}", tokens.requests());
    assert_eq!(bench.held().await, BTreeSet::new());
}

#[tokio::test]
async fn a_token_server_in_trouble_is_upstream_in_trouble() {
    for (trouble, status, code) in [
        (Trouble::Status(503), 503, "UNAVAILABLE"),
        (Trouble::Hang, 503, "UNAVAILABLE"),
        (Trouble::Status(429), 429, "TOOMANYREQUESTS"),
        (Trouble::Status(401), 403, "DENIED"),
    ] {
        let tokens = TokenServer::start().await;
        tokens.allow_anonymous("*", "pull");
        let mut bench = Bench::start().await;
        bench.upstream.protect(&tokens);
        let held = bench.put_image("library/x", "1", 1);
        bench.pull(&held).await;
        tokens.set_trouble(Some(trouble));
        bench.upstream.expire_tokens();
        assert!(bench.get(&held.by_tag()).await.is_stale());
        bench.get(&held.blob(&held.layer)).await.gives(&held.layer.bytes);
        let cold = bench.put_image("library/y", "1", 2);
        bench.get(&cold.by_tag()).await.refuses(status, code, &["docker.io/library/y:1"]);
        assert_eq!(bench.held().await.len(), 3);
    }
}

#[tokio::test]
async fn a_foreign_realm_is_sent_no_credential() {
    let tokens = TokenServer::start().await;
    tokens.allow("ci", PASSWORD, "*", "pull");
    // `localhost` is another host than the upstream's `127.0.0.1`.
    let realm = tokens.realm().replace("127.0.0.1", "localhost");
    let challenge = format!("Bearer realm=\"{realm}\",service=\"x\"");
    let mut bench = with_credential("").await;
    let image = bench.put_image("library/x", "1", 1);
    for method in ["HEAD", "GET"] {
        bench.upstream.on(method, "/").then(Fault::status_with(401, "WWW-Authenticate", &challenge));
    }
    let says = ["the token server http://localhost", "list its host in `realm_hosts`"];
    bench.get(&image.by_tag()).await.refuses(503, "UNAVAILABLE", &says);
    bench.get(&image.blob(&image.layer)).await.refuses(404, "BLOB_UNKNOWN", &says);
    assert_eq!(tokens.requests().len(), 0);
    nothing_leaked(&mut bench).await;
}

#[tokio::test]
async fn a_listed_realm_is_sent_the_credential() {
    let tokens = TokenServer::start().await;
    tokens.allow("ci", PASSWORD, "*", "pull");
    let realm = tokens.realm().replace("127.0.0.1", "localhost");
    let mut bench = with_credential("realm_hosts = [\"localhost\"]\n").await;
    let image = bench.put_image("library/x", "1", 1);
    let challenge = format!("Bearer realm=\"{realm}\",service=\"x\"");
    bench.upstream.on("HEAD", "/").times(1).then(Fault::status_with(401, "WWW-Authenticate", challenge));
    bench.pull(&image).await;
    assert!(tokens.requests().iter().all(|request| request.user.as_deref() == Some("ci")));
    let log = bench.mirror.process().log();
    assert!(!tokens.requests().is_empty() && !log.contains(PASSWORD));
}

#[tokio::test]
async fn an_upstream_with_https_cannot_lead_to_http() {
    let tokens = TokenServer::start().await;
    tokens.allow("ci", PASSWORD, "*", "pull");
    let (upstream, directory) = (Upstream::start().await, tempfile::tempdir().unwrap());
    let front = TlsFront::start(upstream.address()).await;
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, &front.certificate_pem).unwrap();
    let config = format!("{}ca_file = \"{}\"\n", credential(&directory), ca.display());
    let mut bench = Bench::at(upstream, front.url(), config, directory).await;
    let image = bench.put_image("library/x", "1", 1);
    let challenge = format!("Bearer realm=\"{}\",service=\"x\"", tokens.realm());
    let away = bench.upstream.url();
    bench.upstream.on("GET", "/blobs/").then(Fault::Redirect(away));
    let says = "would leave https: no setting allows that";
    bench.get(&image.blob(&image.layer)).await.refuses(404, "BLOB_UNKNOWN", &[says]);
    bench.upstream.on("HEAD", "/").then(Fault::status_with(401, "WWW-Authenticate", challenge));
    let says = "is http though the upstream is https: no setting allows that";
    bench.get(&image.by_tag()).await.refuses(503, "UNAVAILABLE", &[says]);
    assert_eq!(tokens.requests().len(), 0);
    nothing_leaked(&mut bench).await;
}

#[tokio::test]
async fn challenges_of_no_use_are_an_answer_not_an_accident() {
    let tokens = TokenServer::start().await;
    let realm = tokens.realm();
    let many = (0..6000).map(|n| format!("p{n}=\"{n}\"")).collect::<Vec<_>>().join(",");
    let cases = [
        ("none", String::new()),
        ("words", "please log in".to_owned()),
        ("signs", "=\",,=\"\\=,\"".to_owned()),
        ("no-realm", "Bearer service=\"x\"".to_owned()),
        ("no-url", "Bearer realm=\"not a URL\",service=\"x\"".to_owned()),
        ("open-quote", format!("Bearer realm=\"{realm}")),
        ("file", "Bearer realm=\"file:///etc/passwd\"".to_owned()),
        ("user", format!("Bearer realm=\"{}\"", realm.replace("http://", "http://user:word@"))),
        ("parameters", format!("Bearer {many},realm=\"http://127.0.0.1:1/\"")),
        ("challenges", "Bearer x, ".repeat(5000)),
        ("long-realm", format!("Bearer realm=\"{realm}?{}\"", "x".repeat(5000))),
        ("long-scope", format!("Bearer realm=\"{realm}\",scope=\"{}\"", "x ".repeat(5000))),
        ("negotiate", "Negotiate YII=".to_owned()),
    ];
    for (name, challenge) in cases {
        let mut bench = with_credential("").await;
        let image = bench.put_image("library/x", "1", 1);
        for method in ["HEAD", "GET"] {
            bench.upstream.on(method, "/").then(Fault::status_with(401, "WWW-Authenticate", &challenge));
        }
        for path in [image.by_tag(), image.blob(&image.layer)] {
            let reply = bench.get(&path).await;
            assert!(matches!(reply.status, 403 | 404 | 503), "{name}: {reply}");
            assert!(reply.body.len() < 2000 && !reply.error().contains(PASSWORD), "{name}: {reply}");
        }
        nothing_leaked(&mut bench).await;
    }
}
