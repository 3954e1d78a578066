//! While upstream cannot be asked, the last proof counts as long as is configured: by default not at all.

use std::time::Duration;

use super::support::token::Trouble;
use super::*;

async fn down(rig: &mut Rig) {
    rig.upstream.stop();
    rig.tokens.set_trouble(Some(Trouble::Status(503)));
    tokio::time::sleep(Duration::from_millis(1100)).await;
}

#[tokio::test]
async fn without_it_nothing_private_is_served() {
    let policy = "\"per-caller\"\nproof_for = \"1s\"\n[negative]\ndenied = \"0s\"";
    let mut rig = Rig::start(policy).await;
    let alice = rig.pass(ALICE, ALICES).await;
    rig.assert_served(ALICES, Some(&alice)).await;
    rig.assert_served(PUBLIC, None).await;
    down(&mut rig).await;
    rig.assert_served(PUBLIC, None).await;
    let refused = rig.get(&format!("/v2/{ALICES}/manifests/1"), Some(&alice)).await.expect(503);
    assert!(refused.text().contains("`proof_stale_for`"), "{refused:?}");
    let blob = &rig.image.blobs[0].digest;
    // No 5xx for a mirrored blob.
    let refused = rig.get(&format!("/v2/{ALICES}/blobs/{blob}"), Some(&alice)).await.expect(404);
    assert!(refused.text().contains("`proof_stale_for`"), "{refused:?}");
    // Nobody is asked for what could not be checked; what is held looks as what is not there.
    for repository in [ALICES, "alice/nothing"] {
        rig.get(&format!("/v2/{repository}/manifests/1"), None).await.expect(503);
    }
    ask_pass(&rig.mirror, Some((BOB.0, BOB.1)), ALICES).await.expect(503);
}

#[tokio::test]
async fn with_it_those_who_have_shown_their_right_are_served() {
    let mut rig = Rig::start(
        "\"per-caller\"\nproof_for = \"1s\"\nproof_stale_for = \"1h\"\n[negative]\ndenied = \"0s\"",
    )
    .await;
    let alice = rig.pass(ALICE, ALICES).await;
    rig.assert_served(ALICES, Some(&alice)).await;
    let bob = rig.pass(BOB, BOBS).await;
    rig.assert_served(BOBS, Some(&bob)).await;
    let bob = rig.pass(BOB, ALICES).await;
    rig.assert_status(ALICES, Some(&bob), 404).await;
    down(&mut rig).await;
    rig.assert_served(ALICES, Some(&alice)).await;
    let refused = rig.get(&format!("/v2/{ALICES}/manifests/1"), Some(&bob)).await.expect(503);
    assert!(refused.text().contains("cannot be checked"), "{refused:?}");
    // A client whose pass has ended is asked again, and its login is known; any other is not.
    for repository in [ALICES, "alice/nothing"] {
        rig.get(&format!("/v2/{repository}/manifests/1"), None).await.expect(401);
    }
    let again = rig.pass(ALICE, ALICES).await;
    rig.assert_served(ALICES, Some(&again)).await;
    ask_pass(&rig.mirror, Some((ALICE.0, "other")), ALICES).await.expect(503);
}
