//! What somebody may not pull is the same as what is not there, held or not.

use super::*;

/// What bob is told of a repository, without its name.
async fn told(rig: &Rig, repository: &str, bob: &str) -> Vec<(u16, String, String)> {
    let mut told = Vec::new();
    let subject = &rig.image.manifests[0].digest;
    let lists = ["tags/list".to_owned(), format!("referrers/{subject}")];
    let lists = lists.map(|list| format!("/v2/{repository}/{list}"));
    for path in rig.paths(repository).into_iter().map(|(path, _)| path).chain(lists) {
        for token in [Some(bob), None] {
            let answer = rig.get(&path, token).await;
            let of = |text: &str| text.replace(repository, "REPOSITORY");
            told.push((answer.status, of(&answer.text()), of(answer.challenge())));
            let head = http().head(rig.mirror.url() + &path);
            let head = token.iter().fold(head, |head, token| head.bearer_auth(token));
            assert_eq!(head.send().await.unwrap().status().as_u16(), answer.status, "{path}");
        }
    }
    told
}

#[tokio::test]
async fn bob_learns_nothing_of_what_alice_has() {
    let mut rig = Rig::start("\"per-caller\"").await;
    let missing = "alice/nothing";
    let at_missing = rig.pass(BOB, missing).await;
    let nothing = told(&rig, missing, &at_missing).await;
    let bob = rig.pass(BOB, ALICES).await;
    assert_eq!(told(&rig, ALICES, &bob).await, nothing, "before it is held");
    assert!(nothing.iter().all(|(status, text, _)| *status != 200 || text.contains("\"manifests\":[]")));

    let alice = rig.pass(ALICE, ALICES).await;
    rig.assert_served(ALICES, Some(&alice)).await;
    rig.kept(ALICES).await;
    assert_eq!(told(&rig, ALICES, &bob).await, nothing, "while it is held, by digest too");
    rig.assert_served(ALICES, Some(&alice)).await;

    // In no list, for whoever asks.
    rig.assert_served(PUBLIC, None).await;
    rig.kept(PUBLIC).await;
    for path in ["/v2/_catalog", "/v1/search?q=a"] {
        for token in [None, Some(bob.as_str()), Some(alice.as_str())] {
            let listed = rig.get(path, token).await.expect(200).text();
            assert!(listed.contains("library/public") && !listed.contains("alice"), "{path}: {listed}");
        }
    }

    // A restart ends passes, and opens nothing that is held.
    rig.restart_with("\"per-caller\"").await;
    for token in [&alice, &bob] {
        let ended = rig.get(&format!("/v2/{ALICES}/manifests/1"), Some(token)).await.expect(401);
        assert!(ended.challenge().ends_with("error=\"invalid_token\""), "{}", ended.challenge());
    }
    let (bob, at_missing) = (rig.pass(BOB, ALICES).await, rig.pass(BOB, missing).await);
    assert_eq!(told(&rig, ALICES, &bob).await, told(&rig, missing, &at_missing).await);
    let alice = rig.pass(ALICE, ALICES).await;
    let fetched = rig.upstream.content_requests().await.len();
    rig.assert_served(ALICES, Some(&alice)).await;
    assert_eq!(rig.upstream.content_requests().await.len(), fetched, "what is held is hers");
}

#[tokio::test]
async fn taken_back_it_is_refused() {
    let mut rig = Rig::start("\"per-caller\"").await;
    let alice = rig.pass(ALICE, ALICES).await;
    rig.assert_served(ALICES, Some(&alice)).await;
    rig.assert_served(PUBLIC, None).await;
    rig.kept(ALICES).await;
    rig.kept(PUBLIC).await;
    rig.restart_with("\"refuse\"").await;
    rig.assert_status(ALICES, None, 403).await;
    rig.assert_status(ALICES, Some(&alice), 403).await;
    rig.get("/v2/", None).await.expect(200);
    ask_pass(&rig.mirror, Some(ALICE), ALICES).await.expect(404);
    let lists = rig.get("/v2/_catalog", None).await.expect(200).text();
    assert!(lists.contains(PUBLIC) && !lists.contains("alice"), "{lists}");
    rig.upstream.stop();
    rig.restart_with("\"refuse\"").await;
    let held = rig.get(&format!("/v2/{ALICES}/manifests/{}", rig.image.digest()), None).await;
    assert_eq!(held.status, 503, "{held:?}");
    rig.assert_served(PUBLIC, None).await;
}

#[tokio::test]
async fn what_becomes_public_is_everybodys_and_what_becomes_private_is_not() {
    let rig = Rig::start("\"per-caller\"").await;
    let alice = rig.pass(ALICE, ALICES).await;
    rig.assert_served(ALICES, Some(&alice)).await;
    rig.assert_status(ALICES, None, 401).await;
    rig.tokens.allow_anonymous("alice/*", "pull");
    // The refusals upstream gave for anonymous tokens hold for a minute: another Forebay has none.
    let directory = rig.directory.path().join("other");
    let other = mirror(&directory, &rig.upstream.url(), "\"per-caller\"").await;
    get(&other, &format!("/v2/{ALICES}/manifests/1"), None).await.expect(200);
    let nobody = ask_pass(&other, Some((ALICE.0, "wrong")), ALICES).await.expect(200);
    assert!(nobody.json()["token"].is_string(), "nobody needs to log in for what is known to be public");
}
