//! Registries as they are (not as the specification has them), one by one.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// A registry that gives an anonymous token for the scope that its challenge names, and takes that
/// token alone. `{realm}` and `{name}` in `challenge` are replaced.
fn guarded(challenge: &'static str, token_path: &'static str, seen: &Seen, open: Reply) -> Reply {
    if seen.path() == token_path {
        let scope = seen.query("scope").concat();
        return reply(200, format!(r#"{{"token":"{scope}"}}"#));
    }
    let host = seen.header("host").unwrap();
    let name = seen.path().trim_start_matches("/v2/").split(['/']).collect::<Vec<_>>();
    let name = name[..name.len().saturating_sub(2)].join("/");
    let challenge =
        challenge.replace("{realm}", &format!("http://{host}{token_path}")).replace("{name}", &name);
    match seen.header("authorization").and_then(|told| told.strip_prefix("Bearer ")) {
        Some(_) => open,
        None => reply(401, "").with("www-authenticate", challenge),
    }
}

const PLAIN: &str = r#"Bearer realm="{realm}",service="there",scope="repository:{name}:pull""#;

#[tokio::test]
async fn lscr_io_leads_to_a_registry_that_wants_a_token_of_its_own() {
    let cdn = Server::new(|seen| match seen.header("authorization") {
        None => reply(200, "x"),
        Some(_) => reply(400, "only one auth mechanism allowed"),
    })
    .await;
    let storage = cdn.url("/signed");
    let ghcr = Server::new(move |seen| {
        let open = match seen.path() {
            path if path.contains("/blobs/") => redirect_to(&storage),
            path if path.contains("/secret/") => {
                reply(403, r#"{"errors":[{"code":"DENIED","message":"no"}]}"#)
            }
            _ => reply(200, "{}"),
        };
        guarded(PLAIN, "/token", seen, open)
    })
    .await;
    let there = ghcr.url("/");
    let lscr = Server::new(move |seen| redirect_to(there.join(seen.path()).unwrap())).await;
    let (with, _dir) = with_credential(options(lscr.url("/")), "hidden");
    let bench = bench(with);
    bench.get("linuxserver/x").await.unwrap();
    bench.head("linuxserver/x").await.unwrap();
    let (repository, digest) = (name("linuxserver/x"), Digest::sha256(b"x"));
    let blob = bench.blob_of(Identity::Configured, &repository, &digest, 0, None);
    assert_eq!(collect(blob.await.unwrap()).await.unwrap(), b"x");
    let tokens: Vec<Seen> = ghcr.seen().into_iter().filter(|seen| seen.path() == "/token").collect();
    assert_eq!(tokens.len(), 1, "remembered");
    assert_eq!(tokens[0].query("scope"), ["repository:linuxserver/x:pull"]);
    assert!(tokens[0].header("authorization").is_none() && tokens[0].query("account").is_empty());
    assert!(lscr.seen().iter().all(|seen| seen.header("authorization").is_none()));
    // A registry's refusal is one, unlike a storage service's.
    assert!(matches!(bench.get("secret/x").await.unwrap_err().cause, Cause::Denied(why) if why == ": no"));
}

#[tokio::test]
async fn a_realm_that_a_redirect_leads_to_is_guarded() {
    let there = Server::new(|_| {
        reply(401, "").with("www-authenticate", "Bearer realm=\"file:///etc/passwd\",service=\"x\"")
    })
    .await;
    let target = there.url("/v2/a/manifests/latest");
    let server = Server::new(move |_| redirect_to(&target)).await;
    let error = bench(options(server.url("/"))).get("a").await.unwrap_err();
    assert!(matches!(&error.cause, Cause::Refused(why) if why.contains("token server")), "{error:?}");
}

#[tokio::test]
async fn registry_k8s_io_redirects_to_another_name_whose_host_challenges() {
    let regional = Server::new(|seen| {
        // No scope: the name in the URL is what counts there.
        guarded("Bearer realm=\"{realm}\",service=\"ar\"", "/v2/token", seen, reply(200, "{}"))
    })
    .await;
    let there = regional.url("/v2/k8s-artifacts-prod/images/");
    let server =
        Server::new(move |seen| redirect_to(there.join(seen.path().trim_start_matches("/v2/")).unwrap()))
            .await;
    let bench = bench(options(server.url("/")));
    bench.get("pause").await.unwrap();
    let seen = regional.seen();
    assert_eq!(seen[1].query("scope"), ["repository:k8s-artifacts-prod/images/pause:pull"]);
    assert_eq!(seen[2].path(), "/v2/k8s-artifacts-prod/images/pause/manifests/latest");
    bench.get("etcd").await.unwrap();
    let asked = regional.seen();
    assert_eq!(asked[3].query("scope"), ["repository:k8s-artifacts-prod/images/etcd:pull"]);
    assert_eq!(asked.len(), 5, "what the host wants is known");
}

#[tokio::test]
async fn gcr_io_challenges_at_v2_alone_and_without_quotes() {
    let server = Server::new(|seen| match (seen.path(), seen.header("authorization")) {
        ("/v2/token", _) => reply(200, r#"{"token":"t"}"#),
        ("/v2/", _) => {
            let host = seen.header("host").unwrap();
            let challenge = format!("Bearer realm=\"http://{host}/v2/token\",service=gcr.io");
            reply(401, "").with("www-authenticate", challenge)
        }
        (_, Some("Bearer t")) => reply(200, "{}"),
        _ => reply(401, ""),
    })
    .await;
    let bench = bench(options(server.url("/")));
    bench.get("project/a").await.unwrap();
    let token = server.seen().into_iter().find(|seen| seen.path() == "/v2/token").unwrap();
    assert_eq!(token.query("service"), ["gcr.io"]);
    assert_eq!(token.query("scope"), ["repository:project/a:pull"]);
    bench.get("project/b").await.unwrap();
    let pings = server.seen().iter().filter(|seen| seen.path() == "/v2/").count();
    assert_eq!((pings, server.seen().len()), (1, 4 + 2), "the ping is remembered");
}

#[tokio::test]
async fn who_never_says_how_to_log_in_is_pinged_once_a_minute() {
    let server = Server::new(|_| reply(401, "")).await;
    let bench = bench(options(server.url("/")));
    for _ in 0..3 {
        assert!(matches!(bench.get("a").await.unwrap_err().cause, Cause::Denied(_)));
    }
    assert_eq!(server.seen().iter().filter(|seen| seen.path() == "/v2/").count(), 1);
    bench.clock.advance(Duration::from_secs(60));
    bench.get("a").await.unwrap_err();
    assert_eq!(server.seen().iter().filter(|seen| seen.path() == "/v2/").count(), 2);
}

#[tokio::test]
async fn public_ecr_aws_has_one_scope_for_all_and_a_realm_that_ends_in_a_slash() {
    let server = Server::new(|seen| {
        let challenge = r#"Bearer realm="{realm}",service="public.ecr.aws",scope="aws""#;
        guarded(challenge, "/token/", seen, reply(200, "{}"))
    })
    .await;
    let bench = bench(options(server.url("/")));
    bench.get("docker/library/nginx").await.unwrap();
    bench.get("bitnami/redis").await.unwrap();
    let tokens: Vec<Seen> = server.seen().into_iter().filter(|seen| seen.path() == "/token/").collect();
    assert_eq!((tokens.len(), tokens[0].query("scope")), (1, vec!["aws".to_owned()]));
}

#[tokio::test]
async fn nvcr_io_names_no_service_and_an_empty_scope() {
    let server = Server::new(|seen| {
        guarded(r#"Bearer realm="{realm}",scope="""#, "/proxy_auth", seen, reply(200, "{}"))
    })
    .await;
    bench(options(server.url("/"))).get("nvidia/cuda").await.unwrap();
    let token = server.seen().into_iter().find(|seen| seen.path() == "/proxy_auth").unwrap();
    assert!(token.query("service").is_empty());
    assert_eq!(token.query("scope"), ["repository:nvidia/cuda:pull"]);
}

#[tokio::test]
async fn a_token_that_expires_in_mid_download_is_replaced_for_the_rest() {
    let (given, expired) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let has_expired = expired.clone();
    let server = Server::new(move |seen| {
        if seen.path() == "/proxy_auth" {
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            return reply(200, format!(r#"{{"token":"t{number}","expires_in":300}}"#));
        }
        let wanted = if expired.load(Ordering::SeqCst) { "Bearer t2" } else { "Bearer t1" };
        match (seen.header("authorization"), seen.header("range")) {
            (Some(told), None) if told == wanted => {
                Reply { stalls: true, ..reply(200, "01") }.with("content-length", 4)
            }
            (Some(told), Some("bytes=2-")) if told == wanted => {
                reply(206, "23").with("content-range", "bytes 2-3/4")
            }
            _ => {
                let realm = format!("http://{}/proxy_auth", seen.header("host").unwrap());
                reply(401, "")
                    .with("www-authenticate", format!("Bearer realm=\"{realm}\",error=\"invalid_token\""))
            }
        }
    })
    .await;
    let short = Duration::from_millis(50);
    let bench = bench(Options { idle_timeout: short, ..options(server.url("/")) });
    let first = bench.blob(0, None).await.unwrap();
    has_expired.store(true, Ordering::SeqCst);
    collect(first).await.unwrap_err();
    assert_eq!(collect(bench.blob(2, None).await.unwrap()).await.unwrap(), b"23");
    assert_eq!(server.count("/proxy_auth"), 2);
}

#[tokio::test]
async fn harbor_tells_no_length_by_head_and_ecr_no_digest_by_get() {
    let server = Server::new(|seen| {
        let answer = reply(200, if seen.method == Method::HEAD { "" } else { "{}" })
            .with("content-type", MediaType::OCI_INDEX);
        match seen.method {
            Method::HEAD => answer
                .with("docker-content-digest", Digest::sha256(b"{}"))
                .with("transfer-encoding", "chunked"),
            _ => answer,
        }
    })
    .await;
    let bench = bench(options(server.url("/")));
    let head = bench.head("a").await.unwrap();
    assert_eq!((head.digest, head.size), (Some(Digest::sha256(b"{}")), None));
    assert_eq!(head.media_type.unwrap().as_str(), MediaType::OCI_INDEX);
    assert_eq!(bench.get("a").await.unwrap().digest, Digest::sha256(b"{}"));
}

#[tokio::test]
async fn red_hat_compresses_only_for_who_allows_it() {
    let server = Server::new(|seen| match seen.header("accept-encoding") {
        Some("identity") => reply(200, "x"),
        _ => reply(200, "x").with("content-encoding", "gzip"),
    })
    .await;
    let bench = bench(options(server.url("/")));
    assert_eq!(collect(bench.blob(0, None).await.unwrap()).await.unwrap(), b"x");
}

#[tokio::test]
async fn an_open_range_that_is_refused_is_asked_for_as_a_closed_one() {
    let server = Server::new(|seen| match (seen.path().split('/').nth(2).unwrap(), seen.header("range")) {
        (_, Some("bytes=2-3")) => reply(206, "cd").with("content-range", "bytes 2-3/4"),
        ("told", Some("bytes=2-")) => reply(416, "").with("content-range", "bytes */4"),
        ("a", Some("bytes=2-")) => reply(416, ""),
        ("a", None) if seen.method == Method::HEAD => reply(200, "").with("content-length", 4),
        ("short", None) if seen.method == Method::HEAD => reply(200, "").with("content-length", 2),
        _ => reply(416, ""),
    })
    .await;
    let bench = bench(options(server.url("/")));
    let get = async |repository: &str, start, end| {
        let digest = Digest::sha256(b"x");
        bench.blob_of(Identity::Configured, &name(repository), &digest, start, end).await
    };
    for repository in ["told", "a"] {
        let blob = get(repository, 2, None).await.unwrap();
        assert_eq!((blob.start, blob.total), (2, Some(4)));
        assert_eq!(collect(blob).await.unwrap(), b"cd");
    }
    assert_eq!((server.count("/v2/told"), server.count("/v2/a")), (2, 3));
    for (repository, end) in [("short", None), ("unknown", None), ("told", Some(9))] {
        let error = get(repository, 2, end).await.err().unwrap();
        assert!(matches!(error.cause, Cause::Corrupt(_) | Cause::Trouble(_)), "{repository} {error:?}");
    }
    assert!(server.seen().len() < 16, "no asking in circles");
}
