use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::*;

/// A registry at `/v2/` and its token server at `/token`, whose tokens are `t1`, `t2`…: the last one
/// given for a scope is the one that is taken. `challenge` is the header, `{realm}` replaced.
async fn registry(challenge: &'static str) -> Server {
    let given = Arc::new(AtomicUsize::new(0));
    Server::new(move |seen| {
        if seen.path() == "/token" {
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            return reply(200, format!(r#"{{"token":"t{number}","expires_in":300}}"#));
        }
        let last = format!("Bearer t{}", given.load(Ordering::SeqCst));
        if seen.header("authorization") == Some(&last) {
            return reply(200, "{}");
        }
        let host = seen.header("host").unwrap();
        let name = seen.path().trim_start_matches("/v2/").split("/manifests").next().unwrap();
        let challenge = challenge.replace("{realm}", &format!("http://{host}/token")).replace("{name}", name);
        reply(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"log in"}]}"#)
            .with("www-authenticate", challenge)
    })
    .await
}

const HUB: &str = r#"Bearer realm="{realm}",service="registry",scope="repository:{name}:pull""#;

#[tokio::test]
async fn a_token_is_fetched_once_and_reused() {
    let server = registry(HUB).await;
    let bench = bench(options(server.url("/")));
    bench.get("a/b").await.unwrap();
    bench.get("a/b").await.unwrap();
    let seen = server.seen();
    let paths: Vec<&str> = seen.iter().map(Seen::path).collect();
    let manifest = "/v2/a/b/manifests/latest";
    assert_eq!(paths, [manifest, "/token", manifest, manifest]);
    assert_eq!(seen[1].query("service"), ["registry"]);
    assert_eq!(seen[1].query("scope"), ["repository:a/b:pull"]);
    assert!(seen[1].query("account").is_empty() && seen[1].header("authorization").is_none());
    assert_eq!(seen[3].header("authorization"), Some("Bearer t1"));
    assert_eq!(seen[3].header("accept"), Some(crate::oci::MANIFEST_ACCEPT));
    assert_eq!(seen[3].header("accept-encoding"), Some("identity"));
    assert!(seen[3].header("user-agent").unwrap().starts_with("forebay/"));

    // Another repository goes straight to the token server, with its own scope.
    bench.head("c/d").await.unwrap();
    let seen = server.seen();
    assert_eq!((seen.len(), seen[4].query("scope")), (6, vec!["repository:c/d:pull".to_owned()]));

    // 300 s of life: used for 290.
    bench.clock.advance(Duration::from_secs(291));
    bench.head("c/d").await.unwrap();
    assert_eq!((server.count("/token"), server.seen().len()), (3, 8));
}

/// A registry that takes each token for its whole life, and a token server that may be slow or down.
#[tokio::test]
async fn a_token_is_renewed_while_the_old_one_is_used() {
    let (given, trouble) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let server = {
        let (given, trouble) = (given.clone(), trouble.clone());
        Server::new(move |seen| match seen.path() {
            "/token" if trouble.load(Ordering::SeqCst) > 0 => reply(500, ""),
            "/token" => {
                let number = given.fetch_add(1, Ordering::SeqCst) + 1;
                let token = reply(200, format!(r#"{{"token":"t{number}","expires_in":300}}"#));
                if number == 1 { token } else { Reply { delay: Duration::from_millis(300), ..token } }
            }
            _ if seen.header("authorization").is_some() => reply(200, "{}"),
            _ => {
                let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap());
                reply(401, "").with("www-authenticate", realm)
            }
        })
        .await
    };
    let carried = || {
        let seen = server.seen().into_iter().rfind(|seen| seen.path() != "/token").unwrap();
        seen.header("authorization").unwrap().to_owned()
    };
    let bench = bench(options(server.url("/")));
    bench.get("a").await.unwrap();
    bench.clock.advance(Duration::from_secs(239));
    bench.get("a").await.unwrap();
    assert_eq!(server.count("/token"), 1);
    // Whoever comes now does not wait, and one request is sent for all of them.
    bench.clock.advance(Duration::from_secs(2));
    for _ in 0..5 {
        bench.get("a").await.unwrap();
        assert_eq!(carried(), "Bearer t1");
    }
    eventually("another token", || given.load(Ordering::SeqCst) == 2).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(server.count("/token"), 2);
    bench.get("a").await.unwrap();
    assert_eq!(carried(), "Bearer t2");

    // A token server that is down then holds up nobody until the token is at its end.
    trouble.store(1, Ordering::SeqCst);
    bench.clock.advance(Duration::from_secs(250));
    bench.get("a").await.unwrap();
    assert_eq!(carried(), "Bearer t2");
    eventually("a try at another token", || server.count("/token") > 2).await;
    bench.clock.advance(Duration::from_secs(60));
    assert!(matches!(bench.get("a").await.unwrap_err().cause, Cause::Trouble(_)));
}

#[tokio::test]
async fn the_credential_goes_to_the_token_server_only() {
    let server = registry(HUB).await;
    let (options, _dir) = with_credential(options(server.url("/")), "se:cret\r\n\0");
    let bench = bench(options);
    bench.get("a/b").await.unwrap();
    let seen = server.seen();
    let basic = format!("Basic {}", BASE64_STANDARD.encode("ci-bot:se:cret"));
    assert_eq!(seen[1].header("authorization"), Some(basic.as_str()));
    assert_eq!(seen[1].query("account"), ["ci-bot"]);
    assert!(seen.iter().filter(|s| s.path() != "/token").all(|s| s.header("authorization") != Some(&basic)));

    // The anonymous identity has tokens of its own.
    let latest = tag("latest");
    bench.upstream.manifest_get(Identity::Anonymous, &anybody(), &name("a/b"), &latest).await.unwrap();
    let token = server.seen().into_iter().rfind(|s| s.path() == "/token").unwrap();
    assert!(token.header("authorization").is_none());
}

#[tokio::test]
async fn many_who_need_a_token_share_one_request() {
    let server = Server::new(|seen| match seen.path() {
        "/token" => Reply { delay: Duration::from_millis(100), ..reply(200, r#"{"access_token":"t"}"#) },
        _ if seen.header("authorization") == Some("Bearer t") => reply(200, "{}"),
        _ => {
            let host = seen.header("host").unwrap();
            reply(401, "").with("www-authenticate", format!("Bearer realm=\"http://{host}/token\",scope=aws"))
        }
    })
    .await;
    let bench = Arc::new(bench(options(server.url("/"))));
    let all: Vec<_> = (0..20)
        .map(|i| {
            let bench = bench.clone();
            tokio::spawn(async move { bench.get(&format!("r{i}")).await })
        })
        .collect();
    for one in all {
        one.await.unwrap().unwrap();
    }
    assert_eq!(server.count("/token"), 1);
    // A scope that names no repository is for all of them.
    bench.get("another").await.unwrap();
    assert_eq!(server.count("/token"), 1);
    assert_eq!(server.seen().iter().find(|s| s.path() == "/token").unwrap().query("scope"), ["aws"]);
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_once() {
    let server = registry(r#"Bearer realm="{realm}",service="registry""#).await;
    let bench = bench(options(server.url("/")));
    bench.get("a").await.unwrap();
    assert_eq!(
        server.seen()[1].query("scope"),
        ["repository:a:pull"],
        "no scope named: the repository's own"
    );
    bench.get("b").await.unwrap();
    // The server has taken back the token of `a` by giving another.
    bench.get("a").await.unwrap();
    let tokens = server.seen().iter().filter(|s| s.path() == "/token").count();
    assert_eq!((tokens, server.seen().len()), (3, 3 + 2 + 3));
}

#[tokio::test]
async fn what_no_token_opens_is_denied_with_the_reason() {
    let server = Server::new(|seen| match seen.path() {
        "/token" => reply(200, r#"{"token":"t"}"#),
        _ => {
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap());
            let body = r#"{"errors":[{"code":"DENIED","message":"no access\n to this"}]}"#;
            reply(401, body).with("www-authenticate", realm)
        }
    })
    .await;
    let bench = bench(options(server.url("/")));
    let error = bench.get("a").await.unwrap_err();
    assert!(matches!(&error.cause, Cause::Denied(why) if why == ": no access to this"), "{error:?}");
    assert_eq!(
        error.to_string(),
        "GET manifest docker.io/a:latest: access denied by the upstream: no access to this"
    );
    assert_eq!(server.seen().len(), 3);
    bench.get("a").await.unwrap_err();
    assert_eq!(server.seen().len(), 3 + 3);
}

#[tokio::test]
async fn a_refused_scope_is_remembered_and_the_others_are_not_touched() {
    let server = Server::new(|seen| match seen.path() {
        "/token" if seen.query("scope") == ["repository:secret:pull"] => reply(403, ""),
        "/token" => reply(200, r#"{"token":"t"}"#),
        _ if seen.header("authorization").is_some() => reply(200, "{}"),
        _ => {
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap());
            reply(401, "").with("www-authenticate", realm)
        }
    })
    .await;
    let bench = bench(options(server.url("/")));
    for _ in 0..3 {
        assert!(matches!(bench.get("secret").await.unwrap_err().cause, Cause::Denied(_)));
    }
    assert_eq!(server.count("/token"), 1);
    bench.get("open").await.unwrap();
}

#[tokio::test]
async fn a_token_server_that_limits_or_fails_is_named_so() {
    let server = Server::new(|seen| match (seen.path(), seen.query("scope").concat().as_str()) {
        ("/token", "limited") => reply(429, "").with("retry-after", 120),
        ("/token", "broken") => reply(500, ""),
        ("/token", "empty") => reply(200, r#"{"token":""}"#),
        ("/token", "huge") => reply(200, vec![b' '; 2 << 20]),
        ("/token", _) => reply(200, "<html>"),
        (path, _) => {
            let scope = path.split('/').nth(2).unwrap();
            let host = seen.header("host").unwrap();
            reply(401, "")
                .with("www-authenticate", format!("Bearer realm=\"http://{host}/token\",scope={scope}"))
        }
    })
    .await;
    let fresh = || bench(options(server.url("/")));
    let limited = fresh();
    for _ in 0..2 {
        let cause = limited.get("limited").await.unwrap_err().cause;
        assert!(matches!(cause, Cause::Limited(wait) if wait > Duration::from_secs(100)), "{cause:?}");
    }
    assert_eq!(server.count("/token"), 1);
    let before = server.count("/token");
    assert!(matches!(fresh().get("broken").await.unwrap_err().cause, Cause::Trouble(_)));
    assert_eq!(server.count("/token") - before, 3, "two retries");
    for repository in ["empty", "huge", "html"] {
        let error = fresh().get(repository).await.unwrap_err();
        assert!(matches!(&error.cause, Cause::Trouble(why) if why.contains("token server")), "{error:?}");
    }
}

#[tokio::test]
async fn a_token_server_without_get_is_asked_by_post() {
    let server = Server::new(|seen| match (seen.path(), &seen.method) {
        ("/token", &Method::GET) => reply(405, ""),
        ("/token", _) => reply(200, r#"{"access_token":"t"}"#),
        _ if seen.header("authorization").is_some() => reply(200, "{}"),
        _ => {
            let realm = format!("Bearer realm=\"http://{}/token\",service=s", seen.header("host").unwrap());
            reply(401, "").with("www-authenticate", realm)
        }
    })
    .await;
    let (with, _dir) = with_credential(options(server.url("/")), "secret");
    bench(with).get("a").await.unwrap();
    let post = server.seen().into_iter().find(|s| s.method == Method::POST).unwrap();
    for part in
        ["grant_type=password", "username=ci-bot", "password=secret", "service=s", "client_id=forebay"]
    {
        assert!(post.body.contains(part), "{part} in {}", post.body);
    }
    let error = bench(options(server.url("/"))).get("a").await.unwrap_err();
    assert!(matches!(error.cause, Cause::Trouble(_)), "{error:?}");
}

#[tokio::test]
async fn a_foreign_realm_is_sent_no_credential() {
    let tokens = Server::new(|_| reply(200, r#"{"token":"t"}"#)).await;
    let realm = format!("http://localhost:{}/token", tokens.address.port());
    let server = Server::new(move |seen| match seen.header("authorization") {
        Some("Bearer t") => reply(200, "{}"),
        _ => reply(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\"")),
    })
    .await;
    let (with, _dir) = with_credential(options(server.url("/")), "secret");
    let error = bench(with.clone()).get("a").await.unwrap_err();
    assert!(matches!(&error.cause, Cause::Refused(why) if why.contains("realm_hosts")), "{error:?}");
    assert_eq!(tokens.count(""), 0);
    bench(options(server.url("/"))).get("a").await.unwrap();
    assert!(tokens.seen()[0].header("authorization").is_none());
    let listed = Options { realm_hosts: vec!["localhost".into()], ..with };
    bench(listed).get("a").await.unwrap();
    assert!(tokens.seen()[1].header("authorization").is_some());
}

#[tokio::test]
async fn basic_challenges_are_answered_with_the_credential() {
    let right = format!("Basic {}", BASE64_STANDARD.encode("ci-bot:right"));
    let server = Server::new(move |seen| match seen.header("authorization") {
        Some(told) if told == right => reply(200, "{}"),
        _ => reply(401, "").with("www-authenticate", "Basic realm=\"r\""),
    })
    .await;
    let error = bench(options(server.url("/"))).get("a").await.unwrap_err();
    assert!(matches!(&error.cause, Cause::Denied(why) if why.contains("password_file")), "{error:?}");
    let (with, _dir) = with_credential(options(server.url("/")), "right\n");
    let with = bench(with);
    let before = server.seen().len();
    with.get("a").await.unwrap();
    with.get("b").await.unwrap();
    assert_eq!(server.seen().len() - before, 3);
    let (wrong, _dir) = with_credential(options(server.url("/")), "wrong");
    let (wrong, before) = (bench(wrong), server.seen().len());
    for _ in 0..4 {
        let error = wrong.get("a").await.unwrap_err();
        assert!(matches!(&error.cause, Cause::Denied(why) if why.contains("refused")), "{error:?}");
    }
    let tried = server.seen().split_off(before).into_iter().filter(|s| s.header("authorization").is_some());
    // The repository's, and whether it is the repository's fault.
    assert_eq!(tried.map(|s| s.path().to_owned()).collect::<Vec<_>>(), ["/v2/a/manifests/latest", "/v2/"]);
    // The same where names begin behind `/v2/`.
    let (wrong, _dir) = with_credential(options(server.url("/x/v2/proxy")), "wrong");
    let (wrong, before) = (bench(wrong), server.seen().len());
    assert!(wrong.get("a").await.is_err());
    let tried = server.seen().split_off(before).into_iter().filter(|s| s.header("authorization").is_some());
    let tried: Vec<String> = tried.map(|s| s.path().to_owned()).collect();
    assert_eq!(tried, ["/x/v2/proxy/a/manifests/latest", "/x/v2/"]);
}

#[tokio::test]
async fn without_a_challenge_or_a_password_file_the_reason_is_said() {
    let server = Server::new(|_| reply(401, "")).await;
    let error = bench(options(server.url("/"))).get("a").await.unwrap_err();
    assert!(matches!(&error.cause, Cause::Denied(why) if why.contains("how to log in")), "{error:?}");
    let server = registry(HUB).await;
    let (with, dir) = with_credential(options(server.url("/")), "x");
    std::fs::remove_file(dir.path().join("password")).unwrap();
    let error = bench(with).get("a").await.unwrap_err();
    assert!(matches!(&error.cause, Cause::Trouble(why) if why.contains("password")), "{error:?}");
}
