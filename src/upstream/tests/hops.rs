use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_rustls::TlsAcceptor;

use super::*;

#[tokio::test]
async fn redirects_carry_the_range_and_never_the_token() {
    let cdn = Server::new(|_| reply(206, "cd").with("content-range", "bytes 2-3/4")).await;
    let target = cdn.url("/signed?X-Signature=hidden");
    let server = Server::new(move |seen| match (seen.path(), seen.header("authorization")) {
        ("/token", _) => reply(200, r#"{"token":"t"}"#),
        (_, Some("Bearer t")) => redirect_to(&target),
        _ => {
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap());
            reply(401, "").with("www-authenticate", realm)
        }
    })
    .await;
    let bench = bench(options(server.url("/")));
    let blob = bench.blob(2, None).await.unwrap();
    assert_eq!((blob.start, blob.total), (2, Some(4)));
    assert_eq!(collect(blob).await.unwrap(), b"cd");
    let seen = cdn.seen();
    assert_eq!((seen.len(), seen[0].header("range")), (1, Some("bytes=2-")));
    assert!(seen[0].header("authorization").is_none());
    assert!(server.seen().iter().all(|s| s.path() == "/token" || s.header("range") == Some("bytes=2-")));
    assert_eq!(bench.metrics.received_bytes.get(), 2 + r#"{"token":"t"}"#.len() as u64);
    let redirects =
        bench.metrics.requests.cell(UpstreamCall::BlobGet, crate::metrics::UpstreamStatus::Redirect);
    assert_eq!(redirects.get(), 1);
}

#[tokio::test]
async fn a_token_does_not_come_back_with_a_redirect() {
    let origin = Arc::new(Mutex::new(String::new()));
    let back = origin.clone();
    let cdn = Server::new(move |_| redirect_to(format!("{}v2/other/secret", lock(&back)))).await;
    let target = cdn.url("/x");
    let server = Server::new(move |seen| match (seen.path(), seen.header("authorization")) {
        ("/token", _) => reply(200, r#"{"token":"t"}"#),
        ("/v2/other/secret", Some(_)) => reply(200, "secret"),
        ("/v2/other/secret", None) => reply(404, ""),
        (_, Some(_)) => redirect_to(&target),
        _ => {
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap());
            reply(401, "").with("www-authenticate", realm)
        }
    })
    .await;
    *lock(&origin) = server.url("/").to_string();
    let error = bench(options(server.url("/"))).blob(0, None).await.err().unwrap();
    assert!(matches!(error.cause, Cause::NotFound), "{error:?}");
}

#[tokio::test]
async fn an_expired_location_is_asked_for_anew_once() {
    let cdn = Server::new(|seen| match seen.path() {
        "/1" => reply(403, "<Error>expired signature=hidden</Error>"),
        "/2" => reply(200, "bytes"),
        _ => reply(400, ""),
    })
    .await;
    let (given, base) = (AtomicUsize::new(0), cdn.url("/"));
    let server = Server::new(move |_| {
        redirect_to(base.join(&(given.fetch_add(1, Ordering::SeqCst) + 1).to_string()).unwrap())
    })
    .await;
    let bench = bench(options(server.url("/")));
    assert_eq!(collect(bench.blob(0, None).await.unwrap()).await.unwrap(), b"bytes");
    assert_eq!((server.seen().len(), cdn.seen().len()), (2, 2));
    let error = bench.blob(0, None).await.err().unwrap();
    assert!(
        matches!(&error.cause, Cause::Trouble(why) if why.contains("400") && !why.contains("hidden")),
        "{error:?}"
    );
    assert_eq!((server.seen().len(), cdn.seen().len()), (4, 4));
    // A HEAD of a URL that is signed for GET tells that the blob is there.
    let size = bench.upstream.blob_head(Identity::Configured, &name("a"), &Digest::sha256(b"x")).await;
    assert_eq!(size.unwrap(), None);
}

#[tokio::test]
async fn redirects_are_bounded_and_loops_are_seen() {
    let server = Server::new(|seen| match seen.path().rsplit('/').next().unwrap().parse::<u32>() {
        Ok(5) if seen.query("end").is_empty() => reply(200, "{}"),
        Ok(n) => redirect_to(format!("/{}?{}", n + 1, seen.uri.query().unwrap_or_default())),
        Err(_) if seen.path().contains("/loop/") => redirect_to("/loop/"),
        Err(_) if seen.path().contains("/far/") => redirect_to("/1?end=never"),
        Err(_) if seen.path().contains("/lost/") => reply(307, ""),
        Err(_) => redirect_to("/1"),
    })
    .await;
    let bench = bench(options(server.url("/")));
    bench.get("five").await.unwrap();
    for (repository, word) in [("loop", "circle"), ("far", "more than 5"), ("lost", "Location")] {
        let error = bench.get(repository).await.unwrap_err();
        assert!(matches!(&error.cause, Cause::Trouble(why) if why.contains(word)), "{error:?}");
    }
}

#[tokio::test]
async fn passing_troubles_are_tried_three_times() {
    let asked = AtomicUsize::new(0);
    let server = Server::new(move |seen| match seen.path() {
        "/v2/flaky/manifests/latest" if asked.fetch_add(1, Ordering::SeqCst) >= 2 => reply(200, "{}"),
        "/v2/odd/manifests/latest" => reply(418, "teapot"),
        "/v2/gone/manifests/latest" => reply(404, ""),
        _ => reply(503, "upside down"),
    })
    .await;
    let bench = bench(options(server.url("/")));
    bench.get("flaky").await.unwrap();
    assert_eq!((server.count("/v2/flaky"), bench.metrics.retries.get()), (3, 2));
    let error = bench.get("down").await.unwrap_err();
    assert!(matches!(&error.cause, Cause::Trouble(why) if why.contains("upside down")), "{error:?}");
    assert_eq!(server.count("/v2/down"), 3);
    assert!(matches!(bench.get("odd").await.unwrap_err().cause, Cause::Trouble(_)));
    assert!(matches!(bench.get("gone").await.unwrap_err().cause, Cause::NotFound));
    assert_eq!((server.count("/v2/odd"), server.count("/v2/gone")), (1, 1));
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error =
        super::bench(options(format!("http://{nobody}/").parse().unwrap())).get("a").await.unwrap_err();
    assert!(matches!(&error.cause, Cause::Trouble(why) if why.contains("refused")), "{error:?}");
}

#[tokio::test]
async fn slow_heads_and_stalled_bodies_end() {
    let server = Server::new(|seen| match seen.path() {
        path if path.contains("/manifests/") => Reply { delay: Duration::from_secs(60), ..reply(200, "{}") },
        _ => Reply { stalls: true, ..reply(200, "start").with("content-length", 10) },
    })
    .await;
    let short = Duration::from_millis(50);
    let options = Options {
        header_timeout: short,
        idle_timeout: short,
        queue_timeout: short,
        ..options(server.url("/"))
    };
    let bench = bench(options);
    assert!(matches!(bench.get("a").await.unwrap_err().cause, Cause::Trouble(_)));
    assert!((1..=3).contains(&server.seen().len()));
    let error = collect(bench.blob(0, None).await.unwrap()).await.unwrap_err();
    assert!(matches!(&error.cause, Cause::Trouble(why) if why.contains("no more")), "{error:?}");
    assert_eq!(error.operation, "GET blob");
}

/// A server with a certificate of its own for 127.0.0.1, and that certificate as PEM.
async fn tls_server() -> (Server, String) {
    let key = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let private = rustls_pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let server = Server::with_streams(
        |seen| match seen.path() {
            "/v2/away/manifests/latest" => redirect_to("http://127.0.0.1:1/"),
            _ => reply(200, "{}"),
        },
        move |stream| acceptor.accept(stream),
    );
    (server.await, key.cert.pem())
}

#[tokio::test]
async fn a_ca_file_is_trusted_and_https_is_not_left() {
    let (server, pem) = tls_server().await;
    let mut url = server.url("/");
    url.set_scheme("https").unwrap();
    let error = bench(options(url.clone())).get("a").await.unwrap_err();
    assert!(matches!(&error.cause, Cause::Trouble(why) if why.contains("certificate")), "{error:?}");
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    std::fs::write(&ca_file, pem).unwrap();
    let trusting = bench(Options { ca_file: Some(ca_file.clone()), ..options(url.clone()) });
    trusting.get("a").await.unwrap();
    let error = trusting.get("away").await.unwrap_err();
    assert!(matches!(&error.cause, Cause::Refused(why) if why.contains("leave https")), "{error:?}");
    for content in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&ca_file, content).unwrap();
        let options = Options { ca_file: Some(ca_file.clone()), ..options(url.clone()) };
        let error = Upstream::new(options, &Metrics::new(), Clock::default(), Tasks::default()).err();
        assert!(error.is_some(), "{content}");
    }
}
