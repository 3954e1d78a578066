//! Logins from every place, refused ones, and helpers.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::*;
use crate::upstream::helper::tests::script;

pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// A registry at `/v2/` that takes `Bearer good` and `Bearer public`; `token` answers for its token server.
pub async fn registry(token: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
    Server::new(move |seen| match (seen.path(), seen.header("authorization")) {
        ("/token", _) => token(seen),
        (path, Some("Bearer public")) if path.starts_with("/v2/secret") => reply(404, ""),
        (_, Some("Bearer good" | "Bearer public")) => reply(200, "{}"),
        _ => {
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap());
            reply(401, "").with("www-authenticate", realm)
        }
    })
    .await
}

pub fn good() -> Reply {
    reply(200, r#"{"token":"good","expires_in":300}"#)
}

pub fn public() -> Reply {
    reply(200, r#"{"token":"public","expires_in":300}"#)
}

/// How many requests carried a login, of whatever kind.
pub fn tries(server: &Server) -> usize {
    let carries = |seen: &&Seen| {
        seen.header("authorization").is_some_and(|value| value.starts_with("Basic"))
            || seen.body.contains("refresh_token")
    };
    server.seen().iter().filter(carries).count()
}

fn with(url: Url, credential: Credential) -> Options {
    Options { credential: Some(credential), ..options(url) }
}

/// A helper that counts its runs in `runs` and then does what `body` says.
fn counting(directory: &Path, body: &str) -> Credential {
    let body = format!("echo run >> {}/runs; read -r server; {body}", directory.display());
    Credential::Helper { program: script(directory, "docker-credential-test", &body) }
}

fn runs(directory: &Path) -> usize {
    std::fs::read_to_string(directory.join("runs")).unwrap_or_default().lines().count()
}

const SECRET: &str = r#"cat "$(dirname "$0")/answer""#;

fn answers(directory: &Path, user: &str, secret: &str) {
    let answer = format!(r#"{{"ServerURL":"x","Username":"{user}","Secret":"{secret}"}}"#);
    std::fs::write(directory.join("answer.new"), answer).unwrap();
    std::fs::rename(directory.join("answer.new"), directory.join("answer")).unwrap();
}

#[tokio::test]
async fn a_refused_password_is_laid_aside_until_it_changes_or_a_growing_pause_is_over() {
    let right = basic("ci-bot", "right");
    let server = registry(move |seen| match seen.header("authorization") {
        Some(told) if told == right => good(),
        Some(_) => reply(401, r#"{"details":"incorrect username or password"}"#),
        None => public(),
    })
    .await;
    let (options, directory) = with_credential(options(server.url("/")), "wrong");
    let bench = bench(options);
    let all = (0..10).map(async |i| bench.get(&format!("r{i}")).await.map(drop));
    for outcome in futures_util::future::join_all(all).await {
        outcome.unwrap();
    }
    assert_eq!((tries(&server), bench.metrics.credential_refused.get()), (1, 1));
    // What is not there for everybody may well be there for the login: a 404 is no 404.
    let error = bench.get("secret").await.unwrap_err();
    assert!(matches!(&error.cause, Cause::Denied(_)), "{error:?}");
    for part in ["the configured login is refused", "incorrect username or password"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(!error.to_string().contains("wrong"), "{error}");

    let mut expected = 1;
    for pause in [60, 120, 240, 480, 960, 1920, 3600, 3600] {
        bench.clock.advance(Duration::from_secs(pause - 2));
        bench.get("a").await.unwrap();
        assert_eq!(tries(&server), expected, "within the pause of {pause} s");
        bench.clock.advance(Duration::from_secs(2));
        let all = (0..10).map(async |i| bench.get(&format!("r{i}")).await.map(drop));
        for outcome in futures_util::future::join_all(all).await {
            outcome.unwrap();
        }
        expected += 1;
        assert_eq!(tries(&server), expected, "after the pause of {pause} s");
    }

    std::fs::write(directory.path().join("password"), "right\n").unwrap();
    bench.get("secret").await.unwrap();
    assert_eq!((tries(&server), bench.metrics.credential_refused.get()), (expected + 1, 0));
}

#[tokio::test]
async fn a_login_that_is_accepted_again_is_used_again() {
    let open = Arc::<AtomicUsize>::default();
    let locked = open.clone();
    let server = registry(move |seen| match seen.header("authorization") {
        Some(_) if locked.load(Ordering::SeqCst) == 1 => good(),
        Some(_) => reply(401, ""),
        None => public(),
    })
    .await;
    let (options, _directory) = with_credential(options(server.url("/")), "right");
    let bench = bench(options);
    bench.get("a").await.unwrap();
    open.store(1, Ordering::SeqCst);
    bench.get("secret").await.unwrap_err();
    bench.clock.advance(Duration::from_secs(61));
    bench.get("secret").await.unwrap();
    assert_eq!(bench.metrics.credential_refused.get(), 0);
    drop(bench);
}

/// What ghcr.io says of a token that does not exist is what it says of one that may not.
#[tokio::test]
async fn a_403_of_a_public_repository_tells_of_a_bad_login() {
    let server = registry(|seen| match (seen.header("authorization"), seen.query("scope").concat()) {
        (Some(_), _) => reply(403, r#"{"errors":[{"code":"DENIED","message":"denied"}]}"#),
        (None, scope) if scope.contains("secret") => reply(401, ""),
        (None, _) => public(),
    })
    .await;
    let (options, _directory) = with_credential(options(server.url("/")), "wrong");
    let bench = bench(options);
    bench.get("secret").await.unwrap_err();
    assert_eq!(bench.metrics.credential_refused.get(), 0);
    bench.get("a").await.unwrap();
    assert_eq!((tries(&server), bench.metrics.credential_refused.get()), (2, 1));
    bench.get("b").await.unwrap();
    assert_eq!(tries(&server), 2);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_and_a_registry_token_is_sent_as_it_is() {
    let server = registry(|seen| match (&seen.method, seen.body.contains("refresh_token=id%2Ftoken")) {
        (&Method::POST, true) => good(),
        (&Method::POST, false) => reply(400, r#"{"error":"invalid_grant"}"#),
        _ => public(),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "id/token\n").unwrap();
    let credential = Credential::IdentityToken(Password::File(file.clone()));
    let bench_with = |credential: &Credential| bench(with(server.url("/"), credential.clone()));
    bench_with(&credential).get("secret").await.unwrap();
    let post = server.seen().into_iter().find(|s| s.method == Method::POST).unwrap();
    for part in ["grant_type=refresh_token", "client_id=forebay", "scope=repository%3Asecret%3Apull"] {
        assert!(post.body.contains(part), "{part} in {}", post.body);
    }
    assert!(!post.body.contains("password") && post.header("authorization").is_none(), "{}", post.body);
    std::fs::write(&file, "old").unwrap();
    let old = bench_with(&credential);
    old.get("a").await.unwrap();
    old.get("b").await.unwrap();
    assert_eq!((tries(&server), old.metrics.credential_refused.get()), (2, 1));

    let host = format!("127.0.0.1:{}", server.address.port());
    let config = |token: &str| Credential::DockerConfig {
        path: None,
        inline: Some(Secret::new(format!(r#"{{"auths":{{"{host}":{{"registrytoken":"{token}"}}}}}}"#))),
        search: vec![],
    };
    let before = server.count("/token");
    bench_with(&config("good")).get("secret").await.unwrap();
    assert_eq!(server.count("/token"), before);
    let wrong = bench_with(&config("wrong"));
    wrong.get("a").await.unwrap();
    assert_eq!(wrong.metrics.credential_refused.get(), 1);
    assert!(matches!(wrong.get("secret").await.unwrap_err().cause, Cause::Denied(_)));
}

#[tokio::test]
async fn special_user_names_are_sent_as_they_are() {
    let server = registry(|seen| match seen.header("authorization") {
        Some(_) => good(),
        None => public(),
    })
    .await;
    for user in ["$oauthtoken", "00000000-0000-0000-0000-000000000000", "_json_key", "AWS"] {
        let password = Password::Inline(Secret::new("{\"a\": \"b:c\"}".into()));
        let credential = Credential::Password { username: user.into(), password };
        bench(with(server.url("/"), credential)).get("a").await.unwrap();
        let token = server.seen().into_iter().rfind(|s| s.path() == "/token").unwrap();
        assert_eq!(token.header("authorization"), Some(basic(user, "{\"a\": \"b:c\"}").as_str()));
        assert_eq!(token.query("account"), [user]);
    }
}

#[tokio::test]
async fn a_helper_is_run_once_for_all_and_again_in_the_background() {
    let server = registry(|seen| match seen.header("authorization") {
        Some(_) => good(),
        None => reply(401, ""),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    answers(directory.path(), "AWS", "one");
    let bench = bench(with(server.url("/"), counting(directory.path(), SECRET)));
    let all = (0..20).map(async |i| bench.get(&format!("r{i}")).await.map(drop));
    for outcome in futures_util::future::join_all(all).await {
        outcome.unwrap();
    }
    assert_eq!(runs(directory.path()), 1);
    bench.clock.advance(Duration::from_secs(9 * 60));
    bench.get("a").await.unwrap();
    assert_eq!(runs(directory.path()), 1);

    // After ten minutes the next one has it run again, and goes on with what is known.
    answers(directory.path(), "AWS", "two");
    bench.clock.advance(Duration::from_secs(2 * 60));
    bench.get("b").await.unwrap();
    let sent = |password: &str| {
        server.seen().iter().filter(|s| s.header("authorization") == Some(&basic("AWS", password))).count()
    };
    assert_eq!(sent("two"), 0);
    eventually("another run", || runs(directory.path()) == 2).await;
    // What the run gave is in use from some moment on.
    for repository in 0..600 {
        if sent("two") > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
        bench.get(&format!("n{repository}")).await.unwrap();
    }
    panic!("the new login is not used");
}

#[tokio::test]
async fn a_password_that_has_ended_is_had_anew_and_the_request_goes_on() {
    let valid = Arc::new(Mutex::new(basic("AWS", "one")));
    let server = {
        let valid = valid.clone();
        Server::new(move |seen| match seen.header("authorization") {
            Some(told) if told == *lock(&valid) => reply(200, "{}"),
            _ => reply(401, "").with("www-authenticate", "Basic realm=\"ecr\""),
        })
        .await
    };
    let directory = tempfile::tempdir().unwrap();
    answers(directory.path(), "AWS", "one");
    let bench = bench(with(server.url("/"), counting(directory.path(), SECRET)));
    bench.get("a").await.unwrap();
    answers(directory.path(), "AWS", "two");
    *lock(&valid) = basic("AWS", "two");
    bench.get("a").await.unwrap();
    assert_eq!((runs(directory.path()), bench.metrics.credential_refused.get()), (2, 0));

    // Where it gives the same again, that is tried no more; nor is the helper run for each request.
    *lock(&valid) = basic("AWS", "three");
    for _ in 0..5 {
        let error = bench.get("a").await.unwrap_err();
        assert!(matches!(&error.cause, Cause::Denied(why) if why.contains("refused")), "{error:?}");
    }
    let with_two =
        server.seen().iter().filter(|s| s.header("authorization") == Some(&basic("AWS", "two"))).count();
    assert_eq!((runs(directory.path()), bench.metrics.credential_refused.get()), (3, 1));
    assert_eq!(with_two, 1 + 2, "once well, once refused, once to see whether it is the repository");
    answers(directory.path(), "AWS", "three");
    bench.clock.advance(Duration::from_secs(61));
    for _ in 0..600 {
        // The first ones still try the old one, while the helper runs.
        if bench.get("a").await.is_ok() {
            assert_eq!((runs(directory.path()), bench.metrics.credential_refused.get()), (4, 0));
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the new password is not used");
}

#[tokio::test]
async fn a_repository_that_is_closed_to_a_good_login_costs_the_others_nothing() {
    let right = basic("ci-bot", "right");
    let server = Server::new(move |seen| match (seen.header("authorization"), seen.path()) {
        (Some(told), path) if told == right && !path.starts_with("/v2/secret") => reply(200, "{}"),
        _ => reply(401, "").with("www-authenticate", "Basic realm=\"r\""),
    })
    .await;
    let (options, _directory) = with_credential(options(server.url("/")), "right");
    let bench = bench(options);
    for repository in ["secret", "open", "secret", "secret/b", "open"] {
        let outcome = bench.get(repository).await;
        assert_eq!(outcome.is_ok(), repository == "open", "{repository}: {outcome:?}");
    }
    assert_eq!(bench.metrics.credential_refused.get(), 0);
}

#[tokio::test]
async fn of_many_who_try_a_basic_password_one_does() {
    let server = Server::new(|seen| {
        let answer = reply(401, "").with("www-authenticate", "Basic realm=\"r\"");
        if seen.header("authorization").is_some() {
            Reply { delay: Duration::from_millis(50), ..answer }
        } else {
            answer
        }
    })
    .await;
    let (options, _directory) = with_credential(options(server.url("/")), "wrong");
    let bench = bench(options);
    let all = (0..20).map(async |i| bench.get(&format!("r{i}")).await.map(drop));
    for outcome in futures_util::future::join_all(all).await {
        outcome.unwrap_err();
    }
    assert_eq!(tries(&server), 2, "the first one's, and whether it is the repository's fault");
}

#[tokio::test]
async fn a_helper_that_fails_is_trouble_and_nothing_goes_out_anonymously() {
    let server = registry(|seen| match seen.header("authorization") {
        Some(_) => good(),
        None => public(),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let bench =
        bench(with(server.url("/"), counting(directory.path(), "echo hunter2; echo hunter2 >&2; exit 1")));
    for _ in 0..5 {
        let error = bench.get("a").await.unwrap_err();
        assert!(
            matches!(&error.cause, Cause::Trouble(why) if why.contains("ended with status 1")),
            "{error:?}"
        );
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    assert_eq!((runs(directory.path()), server.count("/token")), (1, 0));
    assert_eq!(bench.metrics.credential_unavailable.get(), 1);
    for (run, pause) in [(2, 6), (3, 11), (4, 21)] {
        bench.clock.advance(Duration::from_secs(pause / 2 - 1));
        bench.get("a").await.unwrap_err();
        assert_eq!(runs(directory.path()), run - 1);
        bench.clock.advance(Duration::from_secs(pause));
        bench.get("a").await.unwrap_err();
        assert_eq!(runs(directory.path()), run);
    }
    counting(directory.path(), SECRET);
    answers(directory.path(), "u", "s");
    bench.clock.advance(Duration::from_secs(60));
    bench.get("a").await.unwrap();
    assert_eq!(bench.metrics.credential_unavailable.get(), 0);

    // From now on the last login stands in, and the helper's failure is nobody's business but the log's.
    counting(directory.path(), "exit 1");
    bench.clock.advance(Duration::from_secs(2 * 3600));
    bench.get("a").await.unwrap();
    assert_eq!(bench.metrics.credential_unavailable.get(), 0);
    bench.clock.advance(Duration::from_secs(12 * 3600));
    assert!(matches!(bench.get("a").await.unwrap_err().cause, Cause::Trouble(_)));
}

#[tokio::test]
async fn a_helper_without_a_login_is_anonymous_and_asked_again_soon() {
    let server = registry(|seen| match seen.header("authorization") {
        Some(_) => good(),
        None => public(),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let none = "echo 'credentials not found in native keychain'; exit 1";
    let bench = bench(with(server.url("/"), counting(directory.path(), none)));
    for repository in ["a", "b"] {
        bench.get(repository).await.unwrap();
    }
    assert_eq!((runs(directory.path()), tries(&server)), (1, 0));
    counting(directory.path(), SECRET);
    answers(directory.path(), "u", "s");
    bench.clock.advance(Duration::from_secs(61));
    bench.get("c").await.unwrap();
    assert_eq!((runs(directory.path()), tries(&server)), (2, 1));
}

#[tokio::test]
async fn docker_configurations_are_read_anew_and_name_helpers() {
    let server = registry(|seen| match seen.header("authorization") {
        Some(_) => good(),
        None => public(),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let (host, path) = (format!("127.0.0.1:{}", server.address.port()), directory.path().join("config.json"));
    let write = |text: String| std::fs::write(&path, text).unwrap();
    let auth = BASE64_STANDARD.encode("file:x\0");
    write(format!(r#"{{"auths":{{"http://{host}/v1/":{{"auth":"{auth}"}}}}}}"#));
    let credential = Credential::DockerConfig {
        path: Some(path.clone()),
        inline: None,
        search: vec![directory.path().into()],
    };
    let bench = bench(with(server.url("/"), credential));
    let last = || server.seen().into_iter().rfind(|s| s.path() == "/token").unwrap();
    bench.get("a").await.unwrap();
    assert_eq!(last().header("authorization"), Some(basic("file", "x").as_str()));

    answers(directory.path(), "helped", "y");
    counting(directory.path(), SECRET);
    write(format!(r#"{{"auths":{{"{host}":{{}}}},"credsStore":"none","credHelpers":{{"{host}":"test"}}}}"#));
    bench.get("b").await.unwrap();
    assert_eq!(last().header("authorization"), Some(basic("helped", "y").as_str()));
    assert_eq!(runs(directory.path()), 1);

    write(r#"{"credsStore":"none"}"#.into());
    let error = bench.get("c").await.unwrap_err();
    assert!(
        matches!(&error.cause, Cause::Trouble(why) if why.contains("docker-credential-none")),
        "{error:?}"
    );
    // Tokens that were had stay good.
    bench.get("a").await.unwrap();
    write("{}".into());
    bench.get("c").await.unwrap();
    assert!(last().header("authorization").is_none());
}

/// As Kubernetes swaps secrets: `password` leads through `..data` to a directory that is replaced.
#[tokio::test]
async fn a_secret_that_is_swapped_by_symlink_is_taken_up() {
    let server = registry(|seen| match seen.header("authorization") {
        Some(_) => good(),
        None => reply(401, ""),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let swap = |version: &str| {
        std::fs::create_dir(at(version)).unwrap();
        std::fs::write(at(version).join("password"), version).unwrap();
        std::os::unix::fs::symlink(version, at("..tmp")).unwrap();
        std::fs::rename(at("..tmp"), at("..data")).unwrap();
    };
    swap("first");
    std::os::unix::fs::symlink("..data/password", at("password")).unwrap();
    let password = Password::File(at("password"));
    let bench = bench(with(server.url("/"), Credential::Password { username: "u".into(), password }));
    let last = || server.seen().into_iter().rfind(|s| s.path() == "/token").unwrap();
    bench.get("a").await.unwrap();
    assert_eq!(last().header("authorization"), Some(basic("u", "first").as_str()));
    swap("second");
    std::fs::remove_dir_all(at("first")).unwrap();
    bench.get("b").await.unwrap();
    assert_eq!(last().header("authorization"), Some(basic("u", "second").as_str()));
}
