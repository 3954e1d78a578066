//! Which logins of callers count as right.

use std::sync::atomic::{AtomicU16, Ordering};

use super::credentials::{basic, good, registry, tries};
use super::*;

fn per_caller(url: Url) -> Bench {
    let proofs = Proofs { hold: Duration::from_secs(60), stale: Duration::ZERO };
    bench(Options { private: PrivatePolicy::PerCaller(proofs), ..options(url) })
}

/// What came of it, and whether it may have been a guess.
async fn log_in(bench: &Bench, repository: &str, password: &str) -> (Result<CallerId, Cause>, bool) {
    let login = Login::new("alice".to_owned(), password);
    let (known, is_guess) = bench.upstream.log_in(&name(repository), login).await;
    (known.map_err(|error| error.cause), is_guess)
}

fn knows(bench: &Bench, repository: &str, password: &str) -> bool {
    bench.upstream.remembered(&name(repository), &Login::new("alice".to_owned(), password)).is_some()
}

#[tokio::test]
async fn a_login_that_a_token_server_forbids_is_not_taken_for_right() {
    let right = basic("alice", "right");
    let server = registry(move |seen| match seen.header("authorization") {
        Some(told) if told == right && !seen.query("scope").concat().contains("bobs") => good(),
        _ => reply(403, r#"{"errors":[{"code":"DENIED","message":"denied"}]}"#),
    })
    .await;
    let bench = per_caller(server.url("/"));
    for (n, guess) in ["one", "two", "three"].into_iter().enumerate() {
        assert!(matches!(log_in(&bench, "a", guess).await, (Ok(_), true)), "{guess}");
        // The same again is not shown again, and is still nobody's elsewhere.
        assert!(matches!(log_in(&bench, "a", guess).await, (Ok(_), false)), "{guess}");
        assert_eq!(tries(&server), n + 1);
        assert!(knows(&bench, "a", guess) && !knows(&bench, "b", guess));
    }
    // What is somebody else's tells nothing of a right one either.
    assert!(matches!(log_in(&bench, "bobs", "right").await, (Ok(_), true)));
    assert!(!knows(&bench, "a", "right"));
    assert!(matches!(log_in(&bench, "a", "right").await, (Ok(_), false)));
    assert!(knows(&bench, "b", "right"));
}

#[tokio::test]
async fn a_login_that_nobody_asked_for_is_not_taken_for_right() {
    let server =
        Server::new(|seen| reply(if seen.path().contains("missing") { 404 } else { 200 }, "{}")).await;
    let bench = per_caller(server.url("/"));
    for repository in ["a", "missing"] {
        assert!(matches!(log_in(&bench, repository, "guess").await, (Ok(_), true)));
        assert!(knows(&bench, repository, "guess") && !knows(&bench, "b", "guess"));
    }
    assert_eq!(tries(&server), 0);
}

#[tokio::test]
async fn a_basic_login_is_right_once_it_opened_something_and_wrong_once_that_was_said() {
    let (ping, right) = (Arc::new(AtomicU16::new(0)), basic("alice", "right"));
    let says = ping.clone();
    let server = Server::new(move |seen| {
        let is_right = seen.header("authorization") == Some(right.as_str());
        let status = match (seen.path(), says.load(Ordering::SeqCst)) {
            ("/v2/", 0) => {
                if is_right {
                    200
                } else {
                    401
                }
            }
            ("/v2/", status) => status,
            (path, _) if !is_right || path.starts_with("/v2/secret") => 401,
            (path, _) => {
                if path.starts_with("/v2/missing") {
                    404
                } else {
                    200
                }
            }
        };
        reply(status, "{}").with("www-authenticate", "Basic realm=\"r\"")
    })
    .await;
    for repository in ["a", "missing", "secret"] {
        let bench = per_caller(server.url("/"));
        assert!(matches!(log_in(&bench, repository, "right").await, (Ok(_), false)));
        assert!(knows(&bench, "b", "right"));
        assert!(matches!(log_in(&bench, repository, "wrong").await, (Err(Cause::Denied(_)), true)));
        assert!(matches!(log_in(&bench, "b", "wrong").await, (Err(Cause::Denied(_)), false)));
    }
    // Nobody can say, or nothing does: it is not wrong for that, nor right.
    for status in [503, 200] {
        ping.store(status, Ordering::SeqCst);
        let bench = per_caller(server.url("/"));
        let outcome = log_in(&bench, "secret", "right").await;
        match status {
            503 => assert!(matches!(outcome, (Err(Cause::Trouble(_)), false)), "{outcome:?}"),
            _ => assert!(matches!(outcome, (Ok(_), true)), "{outcome:?}"),
        }
        assert!(!knows(&bench, "a", "right"));
        assert!(matches!(log_in(&bench, "a", "right").await, (Ok(_), false)));
    }
}
