//! Whose fault a refusal is: a bad login's, or nobody's.

use std::sync::atomic::{AtomicBool, Ordering};

use super::credentials::{basic, good, public, registry, tries};
use super::*;

/// What ghcr.io says of a login that does not exist, and of one that may not.
fn forbidden() -> Reply {
    reply(403, r#"{"errors":[{"code":"DENIED","message":"denied"}]}"#)
}

fn refused(bench: &Bench) -> i64 {
    bench.metrics.credential_refused.get()
}

/// A token server that takes the login as long as it lives, and says 403 afterwards.
async fn mortal(anonymous: impl Fn() -> Reply + Send + Sync + 'static) -> (Server, Arc<AtomicBool>) {
    let is_dead = Arc::<AtomicBool>::default();
    let dies = is_dead.clone();
    let server = registry(move |seen| match seen.header("authorization") {
        Some(_) if dies.load(Ordering::SeqCst) => forbidden(),
        Some(_) => good(),
        None => anonymous(),
    })
    .await;
    (server, is_dead)
}

#[tokio::test]
async fn a_login_that_ends_is_reported_though_all_is_public() {
    let (server, is_dead) = mortal(public).await;
    let (options, _directory) = with_credential(options(server.url("/")), "right");
    let bench = bench(options);
    bench.get("a").await.unwrap();
    is_dead.store(true, Ordering::SeqCst);
    for i in 0..20 {
        bench.get(&format!("r{i}")).await.unwrap();
    }
    // The good one, three that may be the repositories' fault, what was opened before, and nothing at all.
    assert_eq!((tries(&server), refused(&bench)), (1 + 3 + 2, 1));
    let mut expected = 6;
    for pause in [60, 120, 240] {
        bench.clock.advance(Duration::from_secs(pause - 2));
        bench.get(&format!("before{pause}")).await.unwrap();
        assert_eq!(tries(&server), expected, "within the pause of {pause} s");
        bench.clock.advance(Duration::from_secs(2));
        for i in 0..5 {
            bench.get(&format!("after{pause}/{i}")).await.unwrap();
        }
        expected += 1;
        assert_eq!(tries(&server), expected, "after the pause of {pause} s");
    }
    is_dead.store(false, Ordering::SeqCst);
    bench.clock.advance(Duration::from_secs(480));
    bench.get("b").await.unwrap();
    assert_eq!(refused(&bench), 0);
}

#[tokio::test]
async fn what_a_login_opened_before_and_everybody_may_have_tells_at_once() {
    let (server, is_dead) = mortal(public).await;
    let (options, _directory) = with_credential(options(server.url("/")), "right");
    let bench = bench(options);
    bench.get("a").await.unwrap();
    is_dead.store(true, Ordering::SeqCst);
    bench.clock.advance(Duration::from_secs(301));
    bench.get("a").await.unwrap();
    assert_eq!((tries(&server), refused(&bench)), (2, 1));
}

#[tokio::test]
async fn a_bad_login_is_reported_and_not_hammered_though_all_is_private() {
    let (server, is_dead) = mortal(|| reply(401, "")).await;
    is_dead.store(true, Ordering::SeqCst);
    let (with, _directory) = with_credential(options(server.url("/")), "wrong");
    let many = bench(with.clone());
    for i in 0..20 {
        assert!(matches!(many.get(&format!("r{i}")).await.unwrap_err().cause, Cause::Denied(_)));
    }
    let mut expected = 3 + 1;
    assert_eq!((tries(&server), refused(&many)), (expected, 1));
    let error = many.get("another").await.unwrap_err();
    assert!(error.to_string().contains("the configured login is refused"), "{error}");
    for pause in [60, 120, 240] {
        many.clock.advance(Duration::from_secs(pause - 2));
        many.get(&format!("before{pause}")).await.unwrap_err();
        assert_eq!(tries(&server), expected, "within the pause of {pause} s");
        many.clock.advance(Duration::from_secs(2));
        for i in 0..5 {
            many.get(&format!("after{pause}/{i}")).await.unwrap_err();
        }
        // One of them, and whether it is the repository's fault.
        expected += 2;
        assert_eq!((tries(&server), refused(&many)), (expected, 1), "after the pause of {pause} s");
    }

    // Where there is one repository only, it takes three of its refusals, each remembered for a minute.
    let one = bench(with);
    for _ in 0..3 {
        assert_eq!(refused(&one), 0);
        one.get("r").await.unwrap_err();
        one.clock.advance(Duration::from_secs(61));
    }
    assert_eq!(refused(&one), 1);
}

#[tokio::test]
async fn a_try_after_the_pause_ends_with_its_first_403() {
    let is_broken = Arc::<AtomicBool>::default();
    let breaks = is_broken.clone();
    let server = registry(move |seen| match seen.header("authorization") {
        Some(_) if seen.query("scope").is_empty() && breaks.load(Ordering::SeqCst) => reply(500, ""),
        Some(_) => forbidden(),
        None => reply(401, ""),
    })
    .await;
    let (options, _directory) = with_credential(options(server.url("/")), "wrong");
    let bench = bench(options);
    for i in 0..3 {
        bench.get(&format!("r{i}")).await.unwrap_err();
    }
    assert_eq!(refused(&bench), 1);
    is_broken.store(true, Ordering::SeqCst);
    bench.clock.advance(Duration::from_secs(61));
    bench.get("a").await.unwrap_err();
    let expected = tries(&server);
    bench.get("b").await.unwrap_err();
    bench.clock.advance(Duration::from_secs(61));
    bench.get("c").await.unwrap_err();
    assert_eq!((tries(&server), refused(&bench)), (expected, 1));
}

#[tokio::test]
async fn a_token_server_that_wants_a_scope_says_nothing_of_the_login() {
    let server = registry(|seen| match (seen.header("authorization"), seen.query("scope").concat()) {
        (Some(_), scope) if scope.is_empty() => reply(400, r#"{"errors":[{"code":"UNSUPPORTED"}]}"#),
        (Some(_), scope) if scope.contains("mine") => good(),
        (Some(_), _) => forbidden(),
        (None, _) => reply(401, ""),
    })
    .await;
    let (options, _directory) = with_credential(options(server.url("/")), "right");
    let bench = bench(options);
    for i in 0..6 {
        bench.get(&format!("r{i}")).await.unwrap_err();
    }
    assert_eq!(refused(&bench), 0);
    bench.get("mine").await.unwrap();
}

#[tokio::test]
async fn many_who_are_refused_at_once_show_a_login_once_more() {
    let is_dead = Arc::<AtomicBool>::default();
    let dies = is_dead.clone();
    let server = Server::new(move |seen| match seen.header("authorization") {
        Some(_) if !dies.load(Ordering::SeqCst) => reply(200, "{}"),
        _ => reply(401, "").with("www-authenticate", "Basic realm=\"r\""),
    })
    .await;
    let (options, _directory) = with_credential(options(server.url("/")), "right");
    let bench = bench(options);
    bench.get("a").await.unwrap();
    is_dead.store(true, Ordering::SeqCst);
    let names: Vec<String> = (0..16).map(|i| format!("r{i}")).collect();
    futures_util::future::join_all(names.iter().map(|name| bench.get(name))).await;
    let shown = server
        .seen()
        .into_iter()
        .filter(|seen| seen.path() == "/v2/" && seen.header("authorization").is_some());
    assert_eq!((shown.count(), refused(&bench)), (1, 1));
}

#[tokio::test]
async fn a_good_login_is_kept_whatever_it_may_not_have() {
    // As a token server says it that gives tokens for repositories only.
    let scoped = registry(|seen| match (seen.header("authorization"), seen.query("scope").concat()) {
        (Some(_), scope) if scope.contains("mine") => good(),
        (Some(_), _) => forbidden(),
        (None, scope) if scope.contains("closed") => reply(401, ""),
        (None, _) => public(),
    })
    .await;
    let (with, _directory) = with_credential(options(scoped.url("/")), "right");
    let bench_of = bench(with);
    bench_of.get("mine/a").await.unwrap();
    for i in 0..10 {
        bench_of.get(&format!("open/{i}")).await.unwrap();
        bench_of.get(&format!("closed/{i}")).await.unwrap_err();
    }
    bench_of.get("mine/secret").await.unwrap();
    assert_eq!((tries(&scoped), refused(&bench_of)), (1 + 20 + 6 + 1, 0));

    // And where it has opened nothing yet, as `docker login` finds out.
    let whole = registry(|seen| match (seen.header("authorization"), seen.query("scope").concat()) {
        (Some(_), scope) if scope.is_empty() || scope.contains("mine") => good(),
        (Some(_), _) => forbidden(),
        (None, _) => reply(401, ""),
    })
    .await;
    let (with, _directory) = with_credential(options(whole.url("/")), "right");
    let bench = bench(with);
    for i in 0..10 {
        bench.get(&format!("closed/{i}")).await.unwrap_err();
    }
    assert_eq!((tries(&whole), refused(&bench)), (10 + 3, 0));
    bench.get("mine").await.unwrap();
}

#[tokio::test]
async fn many_who_are_refused_at_once_have_the_login_judged_once() {
    let (server, is_dead) = mortal(public).await;
    let (options, _directory) = with_credential(options(server.url("/")), "right");
    let bench = bench(options);
    bench.get("a").await.unwrap();
    is_dead.store(true, Ordering::SeqCst);
    let all = (0..20).map(async |i| bench.get(&format!("r{i}")).await.map(drop));
    for outcome in futures_util::future::join_all(all).await {
        outcome.unwrap();
    }
    assert_eq!(refused(&bench), 1);
    let nothing = |seen: &Seen| seen.path() == "/token" && seen.query("scope").is_empty();
    assert_eq!(server.seen().iter().filter(|seen| nothing(seen)).count(), 1);
    let before = tries(&server);
    bench.get("b").await.unwrap();
    assert_eq!(tries(&server), before);
}

/// A registry that takes `ci-bot` with `right`, except for what begins with `secret`; `ping` is what it
/// says at `/v2/`, to whom a login is taken and to everybody else.
async fn basic_registry(ping: impl Fn(bool) -> u16 + Send + Sync + 'static) -> (Server, Arc<Mutex<String>>) {
    let right = Arc::new(Mutex::new(basic("ci-bot", "right")));
    let takes = right.clone();
    let server = Server::new(move |seen| {
        let is_right = seen.header("authorization") == Some(lock(&takes).as_str());
        let status = match seen.path() {
            "/v2/" => ping(is_right),
            path if is_right && !path.starts_with("/v2/secret") => 200,
            _ => 401,
        };
        reply(status, "{}").with("www-authenticate", "Basic realm=\"r\"")
    });
    (server.await, right)
}

#[tokio::test]
async fn a_good_login_is_kept_while_nobody_can_say_whether_it_is() {
    for ping in [503, 429] {
        let (server, _right) = basic_registry(move |_| ping).await;
        let (options, _directory) = with_credential(options(server.url("/")), "right");
        let bench = bench(options);
        // Before it was accepted, and after.
        for _ in 0..2 {
            let error = bench.get("secret").await.unwrap_err();
            assert!(matches!(&error.cause, Cause::Trouble(why) if why.contains("whether")), "{error:?}");
            assert_eq!(refused(&bench), 0);
            bench.get("open").await.unwrap();
        }
    }
}

#[tokio::test]
async fn where_v2_is_open_to_all_a_login_is_judged_by_what_it_opened() {
    let (server, right) = basic_registry(|_| 200).await;
    let (with, _directory) = with_credential(options(server.url("/")), "right");
    let bench_of = bench(with);
    bench_of.get("open").await.unwrap();
    for repository in ["secret", "secret/b", "secret/c", "secret/d"] {
        assert!(matches!(bench_of.get(repository).await.unwrap_err().cause, Cause::Denied(_)));
    }
    bench_of.get("open").await.unwrap();
    assert_eq!(refused(&bench_of), 0);
    // Once it is no good, that is seen all the same.
    *lock(&right) = basic("ci-bot", "changed");
    bench_of.get("secret").await.unwrap_err();
    assert_eq!(refused(&bench_of), 1);

    // One that never opened anything is not tried again and again.
    let (wrong, _directory) = with_credential(options(server.url("/")), "wrong");
    let wrong = bench(wrong);
    wrong.get("open").await.unwrap_err();
    assert_eq!(refused(&wrong), 1);
}
