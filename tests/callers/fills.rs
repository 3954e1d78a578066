//! Blobs on their way: joined by those who have shown their right, and by nobody else.

use futures_util::StreamExt;
use futures_util::future::join_all;

use super::support::faulty::{Fault, Upstream};
use super::support::image::random_bytes;
use super::support::process::Wait;
use super::*;

const BIG: usize = 4 << 20;

/// A scripted registry with one large blob in two repositories, of which alice may pull the first and
/// both may pull the second.
async fn scripted(directory: &Path) -> (Upstream, TokenServer, Mirror, String, Vec<u8>) {
    let tokens = accounts().await;
    tokens.allow(ALICE.0, ALICE.1, "shared/*", "pull");
    tokens.allow(BOB.0, BOB.1, "shared/*", "pull");
    let upstream = Upstream::start().await;
    upstream.protect_each(&tokens);
    let bytes = random_bytes(5, BIG);
    let digest = upstream.put_blob(ALICES, bytes.clone());
    upstream.put_blob("shared/app", bytes.clone());
    let mirror = mirror(directory, &upstream.url(), "\"per-caller\"\n[cache]\nrange_floor = \"8MiB\"").await;
    (upstream, tokens, mirror, digest, bytes)
}

async fn pass_for(mirror: &Mirror, login: (&str, &str), repository: &str) -> String {
    let answer = ask_pass(mirror, Some(login), repository).await.expect(200);
    answer.json()["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn bob_does_not_join_alices_transfer_and_does_join_the_one_he_may() {
    let directory = tempfile::tempdir().unwrap();
    let (upstream, _tokens, mirror, digest, bytes) = scripted(directory.path()).await;
    upstream.on("GET", &digest).then(Fault::Rate(2 << 20));
    let path = format!("/v2/{ALICES}/blobs/{digest}");
    let alice = pass_for(&mirror, ALICE, ALICES).await;
    let bob = pass_for(&mirror, BOB, ALICES).await;
    let mut transfer =
        http().get(mirror.url() + &path).bearer_auth(&alice).send().await.unwrap().bytes_stream();
    let mut got = transfer.next().await.unwrap().unwrap().to_vec();
    // It is under way.
    let refused = get(&mirror, &path, Some(&bob)).await.expect(404);
    let missing = pass_for(&mirror, BOB, "alice/nothing").await;
    let nothing = get(&mirror, &path.replace(ALICES, "alice/nothing"), Some(&missing)).await.expect(404);
    assert_eq!(refused.text().replace(ALICES, "alice/nothing"), nothing.text());
    get(&mirror, &path, None).await.expect(401);
    let joined = tokio::spawn({
        let request = http().get(mirror.url() + &path).bearer_auth(&alice);
        async move { request.send().await.unwrap().bytes().await.unwrap() }
    });
    // Another repository's right is shown for that one; the bytes cross once all the same.
    let at_shared = pass_for(&mirror, BOB, "shared/app").await;
    let by_bob = get(&mirror, &path.replace(ALICES, "shared/app"), Some(&at_shared)).await.expect(200);
    assert!(by_bob.body == bytes);
    while let Some(piece) = transfer.next().await {
        got.extend_from_slice(&piece.unwrap());
    }
    assert!(got == bytes && joined.await.unwrap() == bytes);
    let gets = upstream.requests_for("GET", &digest);
    let sent: u64 = gets.iter().map(|seen| seen.sent()).sum();
    assert_eq!(sent, BIG as u64, "{}", gets.len());
    let wait = Wait::for_("the link of bob's repository");
    let hex = digest.trim_start_matches("sha256:");
    let links = mirror.data().join("docker/registry/v2/repositories");
    while !links.join(format!("shared/app/_layers/sha256/{hex}/link")).exists() {
        wait.a_little().await;
    }
    get(&mirror, &path, Some(&bob)).await.expect(404);
}

/// One is denied, the other is not, and they ask for the same at the same time.
#[tokio::test]
async fn one_callers_denial_is_not_anothers_answer() {
    let directory = tempfile::tempdir().unwrap();
    let (upstream, _tokens, mirror, _, _) = scripted(directory.path()).await;
    let image = Image::random(8, 2, 50_000);
    upstream.put_image(ALICES, "1", &image);
    let (alice, bob) = (pass_for(&mirror, ALICE, ALICES).await, pass_for(&mirror, BOB, ALICES).await);
    let mut paths = vec![format!("/v2/{ALICES}/manifests/1"), format!("/v2/{ALICES}/tags/list")];
    paths.extend(image.manifests.iter().map(|one| format!("/v2/{ALICES}/manifests/{}", one.digest)));
    paths.extend(image.blobs.iter().map(|one| format!("/v2/{ALICES}/blobs/{}", one.digest)));
    for _ in 0..5 {
        let asked = paths.iter().filter(|path| !path.ends_with("/list")).flat_map(|path| {
            let of = |token: &str, status: u16| {
                let (token, mirror) = (token.to_owned(), &mirror);
                async move { get(mirror, path, Some(&token)).await.expect(status) }
            };
            [of(&bob, 404), of(&alice, 200), of(&bob, 404), of(&alice, 200)]
        });
        join_all(asked).await;
    }
    // Each blob crossed once, however many asked, and never in bob's name.
    for blob in &image.blobs {
        assert_eq!(
            upstream.requests_for("GET", &blob.digest).len(),
            1 + image_extra(&upstream, &blob.digest)
        );
    }
}

/// What the disk holds of others is no answer for whom upstream has none, however many ask at once.
#[tokio::test]
async fn what_others_fetched_is_not_given_to_a_crowd_either() {
    let directory = tempfile::tempdir().unwrap();
    let (upstream, tokens, mirror, _, _) = scripted(directory.path()).await;
    tokens.allow_anonymous("library/*", "pull");
    let public = upstream.put_blob(PUBLIC, random_bytes(6, 50_000));
    get(&mirror, &format!("/v2/{PUBLIC}/blobs/{public}"), None).await.expect(200);
    mirror.committed(1).await;
    let own = upstream.put_blob(BOBS, random_bytes(7, 1000));
    let bob = pass_for(&mirror, BOB, BOBS).await;
    get(&mirror, &format!("/v2/{BOBS}/blobs/{own}"), Some(&bob)).await.expect(200);
    // So long that all of them wait for the same answer.
    upstream.on("GET", &public).then(Fault::Delay(std::time::Duration::from_millis(300)));
    let path = format!("/v2/{BOBS}/blobs/{public}");
    for answer in join_all((0..12).map(|_| get(&mirror, &path, Some(&bob)))).await {
        answer.expect(404);
    }
}

/// A blob that is read by small ranges, by whoever may: the login that began it may end before.
#[tokio::test]
async fn ranges_go_on_when_the_login_that_began_them_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (upstream, _tokens, mirror, _, _) = scripted(directory.path()).await;
    let bytes = random_bytes(9, 20 << 20);
    let digest = upstream.put_blob("shared/app", bytes.clone());
    let path = format!("/v2/shared/app/blobs/{digest}");
    let range = async |token: &str, start: usize| {
        let request = http().get(mirror.url() + &path).bearer_auth(token);
        Answer::of(request.header("Range", format!("bytes={start}-{}", start + 999))).await
    };
    let alice = pass_for(&mirror, ALICE, "shared/app").await;
    let bob = pass_for(&mirror, BOB, "shared/app").await;
    assert_eq!(range(&alice, 0).await.expect(206).body, bytes[..1000]);
    assert_eq!(mirror.metric("forebay_fills_partial").await, 1.0);
    // In alice's name, as the fill goes on.
    upstream.on("GET", &digest).times(1).then(Fault::status(403));
    for start in [5000, 10 << 20, 19 << 20] {
        assert_eq!(range(&bob, start).await.expect(206).body, bytes[start..start + 1000]);
    }
}

/// First requests bring no token and are answered by 401.
fn image_extra(upstream: &Upstream, digest: &str) -> usize {
    upstream
        .requests_for("GET", digest)
        .iter()
        .filter(|seen| seen.headers.get("authorization").is_none())
        .count()
}
