//! How callers show their logins, and what comes of right and wrong ones.

use futures_util::future::join_all;

use super::support::faulty;
use super::support::image::Content;
use super::support::registry::{HTPASSWD, PASSWORD, USER};
use super::*;

#[tokio::test]
async fn a_private_repository_is_its_owners_and_a_public_one_everybodys() {
    let rig = Rig::start("\"per-caller\"").await;
    rig.assert_served(PUBLIC, None).await;
    let url = rig.mirror.url();
    let service = format!("Bearer realm=\"{url}/token\",service=\"upstream:docker.io\"");
    let asked = rig.get(&format!("/v2/{ALICES}/manifests/1"), None).await.expect(401);
    let challenge = format!("{service},scope=\"repository:docker.io/{ALICES}:pull\"");
    assert_eq!(asked.challenge(), challenge);
    assert_eq!(asked.json()["errors"][0]["code"], "UNAUTHORIZED");
    // What is not there is challenged no other.
    let nothing = rig.get("/v2/alice/nothing/manifests/1", None).await.expect(401);
    assert_eq!(nothing.challenge(), challenge.replace(ALICES, "alice/nothing"));

    let alice = rig.pass(ALICE, ALICES).await;
    rig.assert_served(ALICES, Some(&alice)).await;
    rig.assert_status(ALICES, None, 401).await;
    let bob = rig.pass(BOB, BOBS).await;
    rig.assert_served(BOBS, Some(&bob)).await;
    // Each is for its repository, by whichever name the client knows that.
    let other = rig.get(&format!("/v2/{ALICES}/manifests/1"), Some(&bob)).await.expect(401);
    assert_eq!(other.challenge(), challenge.clone() + ",error=\"insufficient_scope\"");
    rig.get(&format!("/v2/{BOBS}/manifests/1"), Some(&alice)).await.expect(401);
    rig.get(&format!("/v2/{PUBLIC}/manifests/1"), Some(&alice)).await.expect(200);
    let spelled = rig.pass(ALICE, &format!("docker.io/{ALICES}")).await;
    rig.get(&format!("/docker.io/v2/{ALICES}/manifests/1"), Some(&spelled)).await.expect(200);
    let forged = alice.clone() + "x";
    let refused = rig.get(&format!("/v2/{ALICES}/manifests/1"), Some(&forged)).await.expect(401);
    assert_eq!(refused.challenge(), challenge + ",error=\"invalid_token\"");
    // A token for nobody is no login.
    let nobody = ask_pass(&rig.mirror, None, ALICES).await.expect(200);
    let nobody = nobody.json()["token"].as_str().unwrap().to_owned();
    rig.get(&format!("/v2/{ALICES}/manifests/1"), Some(&nobody)).await.expect(401);
    rig.get(&format!("/v2/{PUBLIC}/manifests/1"), Some(&nobody)).await.expect(200);
    // The ping is the default upstream's, for those who bring only what is asked for there.
    assert_eq!(rig.get("/v2/", None).await.expect(401).challenge(), service);
    rig.get("/docker.io/v2/", None).await.expect(401);
    for token in [&alice, &nobody] {
        rig.get("/v2/", Some(token)).await.expect(200);
    }
    rig.get("/v2/", Some(&forged)).await.expect(401);

    // Logins are nowhere but in memory.
    rig.kept(ALICES).await;
    let log = rig.mirror.log();
    assert!(!log.contains(ALICE.1) && !log.contains(&alice), "{log}");
    let grep = ["-r", "-l", ALICE.1, rig.mirror.data().to_str().unwrap()].map(str::to_owned);
    let found = std::process::Command::new("grep").args(grep).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[tokio::test]
async fn forms_are_taken_too_and_bounded() {
    let rig = Rig::start("\"per-caller\"").await;
    let scope = format!("repository:{ALICES}:pull");
    let (user, password) = ALICE;
    let login = [
        ("grant_type", "password"),
        ("service", "upstream:docker.io"),
        ("client_id", "containerd"),
        ("scope", scope.as_str()),
        ("username", user),
        ("password", password),
    ];
    let post =
        async |form: &[(&str, &str)]| Answer::of(http().post(rig.mirror.url() + "/token").form(form)).await;
    let answer = post(&login).await.expect(200);
    assert_eq!(answer.json()["scope"], format!("repository:docker.io/{ALICES}:pull"));
    assert_eq!(answer.json()["expires_in"], 300);
    assert_eq!(answer.headers["cache-control"], "no-store");
    let token = answer.json()["access_token"].as_str().unwrap().to_owned();
    rig.get(&format!("/v2/{ALICES}/manifests/1"), Some(&token)).await.expect(200);
    let changed = |key: &str, value: &'static str| {
        let change = |(name, old): (&'static str, _)| (name, if name == key { value } else { old });
        login.map(|(name, old)| {
            let old: &str = old;
            change((name, old))
        })
    };
    post(&changed("password", "wrong")).await.expect(401);
    post(&changed("grant_type", "refresh_token")).await.expect(400);
    post(&changed("service", "upstream:ghcr.io")).await.expect(400);
    post(&changed("username", "")).await.expect(400);
    let long = "x".repeat(20_000);
    let request =
        http().get(rig.mirror.url() + "/token?service=upstream:docker.io&scope=repository:a/b:pull");
    Answer::of(request.basic_auth("alice", Some(long))).await.expect(400);
    let request =
        http().get(rig.mirror.url() + "/token?service=upstream:docker.io&scope=repository:a/b:pull");
    let other = Answer::of(request.bearer_auth("x")).await.expect(401);
    assert!(other.challenge().starts_with("Basic "), "{}", other.challenge());
}

#[tokio::test]
async fn a_wrong_password_is_shown_upstream_once_and_many_are_not_shown() {
    let rig = Rig::start("\"per-caller\"").await;
    let shown = |password: &'static str| {
        let (tokens, mirror) = (&rig.tokens, &rig.mirror);
        async move {
            let before = tokens.requests().len();
            let tries = (0..10).map(|_| ask_pass(mirror, Some((ALICE.0, password)), ALICES));
            for answer in join_all(tries).await {
                assert!(answer.expect(401).challenge().starts_with("Basic "));
            }
            tokens.requests()[before..].iter().filter(|request| request.user.is_some()).count()
        }
    };
    assert_eq!(shown("wrong").await, 1);
    assert_eq!(shown("wrong").await, 0);
    let mut refused = 0;
    for n in 0..40 {
        let answer = ask_pass(&rig.mirror, Some((ALICE.0, &format!("guess {n}"))), ALICES).await;
        refused += usize::from(answer.status == 429);
        assert!([401, 429].contains(&answer.status), "{answer:?}");
        assert_eq!(answer.status == 429, answer.headers.contains_key("retry-after"));
    }
    let tries = rig.tokens.requests().into_iter().filter(|request| request.user.is_some()).count();
    assert_eq!((tries, refused), (20, 21));
    let series = r#"forebay_logins_total{login="refused",method="upstream"}"#;
    assert!(rig.mirror.metric(series).await >= 20.0);
}

/// How many of 40 different passwords got a pass, and how many a 429.
async fn guess(mirror: &Mirror, repository: &str) -> (usize, usize) {
    let (mut passed, mut refused) = (0, 0);
    for n in 0..40 {
        match ask_pass(mirror, Some((ALICE.0, &format!("guess {n}"))), repository).await.status {
            200 => passed += 1,
            429 => refused += 1,
            other => panic!("{other}"),
        }
    }
    (passed, refused)
}

/// A pass may be for what is public, so it is given, but it is no leave to guess.
#[tokio::test]
async fn guesses_are_counted_where_nobody_says_that_they_are_wrong() {
    let rig = Rig::start("\"per-caller\"").await;
    rig.tokens.set_wrong(403);
    let alice = rig.pass(ALICE, ALICES).await;
    let wrong = rig.pass((ALICE.0, "wrong"), ALICES).await;
    let before = rig.tokens.requests().len();
    assert_eq!(guess(&rig.mirror, ALICES).await, (19, 21));
    let requests = rig.tokens.requests().split_off(before);
    assert_eq!(requests.iter().filter(|request| request.user.is_some()).count(), 19);
    rig.assert_served(ALICES, Some(&alice)).await;
    rig.assert_status(ALICES, Some(&wrong), 404).await;
    rig.pass(ALICE, ALICES).await;

    let (open, directory) = (faulty::Upstream::start().await, tempfile::tempdir().unwrap());
    let mirror = mirror(directory.path(), &open.url(), "\"per-caller\"").await;
    assert_eq!(guess(&mirror, PUBLIC).await, (20, 20));
}

#[tokio::test]
async fn a_changed_password_and_a_right_taken_back_end_what_they_opened() {
    let rig = Rig::start("\"per-caller\"\nproof_for = \"1s\"").await;
    rig.tokens.set_lifetime(std::time::Duration::from_secs(1));
    let (alice, bob) = (rig.pass(ALICE, ALICES).await, rig.pass(BOB, BOBS).await);
    rig.assert_served(ALICES, Some(&alice)).await;
    rig.assert_served(BOBS, Some(&bob)).await;
    rig.tokens.revoke(BOB.0, None);
    rig.tokens.revoke(ALICE.0, Some("new"));
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    rig.assert_status(BOBS, Some(&bob), 404).await;
    let ended = rig.get(&format!("/v2/{ALICES}/manifests/1"), Some(&alice)).await.expect(401);
    assert!(ended.challenge().ends_with("error=\"invalid_token\""), "{}", ended.challenge());
    ask_pass(&rig.mirror, Some(ALICE), ALICES).await.expect(401);
    rig.tokens.allow(ALICE.0, "new", "alice/*", "pull");
    let alice = rig.pass((ALICE.0, "new"), ALICES).await;
    rig.assert_served(ALICES, Some(&alice)).await;
}

#[tokio::test]
async fn a_registry_that_takes_basic_authentication_alone() {
    let directory = tempfile::tempdir().unwrap();
    assert!(HTPASSWD.starts_with(USER));
    let options = RegistryOptions { auth: Auth::Htpasswd, ..Default::default() };
    let upstream = Registry::start(&directory.path().join("upstream"), options).await;
    let image = Image::random(3, 1, 1000);
    image.push(&upstream, "team/app", "1").await;
    let mirror = mirror(&directory.path().join("mirror"), &upstream.url(), "\"per-caller\"").await;
    get(&mirror, "/v2/team/app/manifests/1", None).await.expect(401);
    ask_pass(&mirror, Some((USER, "wrong")), "team/app").await.expect(401);
    ask_pass(&mirror, Some(("nobody", PASSWORD)), "team/app").await.expect(401);
    let pass = ask_pass(&mirror, Some((USER, PASSWORD)), "team/app").await.expect(200);
    let pass = pass.json()["token"].as_str().unwrap().to_owned();
    let answer = get(&mirror, "/v2/team/app/manifests/1", Some(&pass)).await.expect(200);
    assert!(answer.body == image.index.bytes);
    for Content { digest, bytes, .. } in &image.blobs {
        let answer = get(&mirror, &format!("/v2/team/app/blobs/{digest}"), Some(&pass)).await.expect(200);
        assert!(answer.body == bytes);
    }
    get(&mirror, "/v2/team/app/manifests/missing", Some(&pass)).await.expect(404);
    get(&mirror, "/v2/team/app/manifests/1", None).await.expect(401);
}

#[tokio::test]
async fn a_configured_credential_opens_nothing_here() {
    let directory = tempfile::tempdir().unwrap();
    let password = directory.path().join("password");
    std::fs::write(&password, ALICE.1).unwrap();
    let policy = format!("\"per-caller\"\nusername = \"alice\"\npassword_file = {password:?}");
    let rig = Rig::below(directory, &policy).await;
    rig.assert_served(PUBLIC, None).await;
    rig.assert_status(ALICES, None, 401).await;
    let bob = rig.pass(BOB, ALICES).await;
    rig.assert_status(ALICES, Some(&bob), 404).await;
    let alice = rig.pass(ALICE, ALICES).await;
    rig.assert_served(ALICES, Some(&alice)).await;
    rig.assert_status(ALICES, Some(&bob), 404).await;
}
