//! Who is held back as a quota shrinks, and what that comes to, with a clock that tests move.

use super::*;
use forebay::mirror::Purpose;
use forebay::upstream::{BudgetOptions, Reserve};

const LIMIT: u64 = 20;

/// Somebody of this purpose, by this name; never out of pocket.
struct Payer(Purpose, &'static str);

impl Toll for Payer {
    fn cold_miss(&self) -> Pin<Box<dyn Future<Output = Result<(), Duration>> + Send + '_>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn purpose(&self) -> Purpose {
        self.0
    }

    fn client(&self) -> Option<String> {
        (self.0 != Purpose::Background).then(|| self.1.to_owned())
    }
}

const BACKGROUND: Payer = Payer(Purpose::Background, "");
const ANYBODY: Payer = Payer(Purpose::Miss, "192.0.2.7");
const FIRST: Payer = Payer(Purpose::Priority, "ci");

fn setting(reserved: Reserved, mirrors: Vec<EndpointOptions>) -> Setting {
    let budget = BudgetOptions { reserve: Reserve::Percent(10), has_priority: true, fair_share: true };
    Setting { budget, reserved, mirrors, ..Setting::default() }
}

/// A mirror that keeps 2 of 20 pulls, over images `library/app:<number>` of one manifest each.
async fn rig(reserved: Reserved) -> Rig {
    rig_with(reserved, vec![]).await
}

async fn rig_with(reserved: Reserved, mirrors: Vec<EndpointOptions>) -> Rig {
    let upstream = faulty::Upstream::start().await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let rig = Rig::with(upstream, dir, Clock::default(), &["docker.io"], setting(reserved, mirrors)).await;
    for number in 0..40 {
        put(&rig, &number.to_string(), number);
    }
    rig
}

fn put(rig: &Rig, tag: &str, seed: u64) {
    put_at(&rig.upstream, tag, seed);
}

/// Gives the manifest's digest.
fn put_at(upstream: &faulty::Upstream, tag: &str, seed: u64) -> String {
    let image = Image::random(seed, 1, 100);
    for blob in &image.blobs {
        upstream.put_blob("library/app", blob.bytes.clone());
    }
    let manifest = &image.manifests[0];
    upstream.put_manifest("library/app", tag, manifest.media_type, manifest.bytes.clone());
    manifest.digest.clone()
}

fn set(rig: &Rig, remaining: u64) {
    rig.upstream.set_quota(Some(Quota { limit: LIMIT, remaining, window: 21600 }));
}

fn left(rig: &Rig) -> u64 {
    rig.upstream.quota().unwrap().remaining
}

async fn get(rig: &Rig, payer: &Payer, what: &str) -> Result<ManifestAnswer, Error> {
    let repository = repository("docker.io", "library/app");
    rig.mirror.manifest(Asker { toll: payer, ..rig.asker() }, &repository, &reference(what), true).await
}

/// That it was held back: why, and for how long.
fn held_back(answer: Result<ManifestAnswer, Error>) -> (String, Duration) {
    match answer {
        Err(Error::HeldBack { why, retry_after, .. }) => (why, retry_after),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn background_work_stops_first_and_revalidation_next() {
    let rig = rig(Reserved::default()).await;
    set(&rig, 10);
    assert_eq!(get(&rig, &BACKGROUND, "0").await.unwrap().served, Served::Miss);
    assert_eq!(get(&rig, &ANYBODY, "1").await.unwrap().served, Served::Miss);
    // 8 of 20: two are the reserve, six more are left by background work.
    let asked = rig.manifests("HEAD");
    let (why, wait) = held_back(get(&rig, &BACKGROUND, "2").await);
    assert!(
        why.contains("background work leaves the last 8 of the upstream's 20 pulls, and 8 are left"),
        "{why}"
    );
    assert_eq!((left(&rig), rig.manifests("HEAD"), wait), (8, asked, 15 * MINUTE), "neither spent nor asked");
    for image in ["3", "4", "5"] {
        assert_eq!(get(&rig, &ANYBODY, image).await.unwrap().served, Served::Miss);
    }
    // 5 of 20: what is held is confirmed still; one pull later it is not.
    rig.clock.advance(6 * MINUTE);
    assert_eq!(get(&rig, &ANYBODY, "1").await.unwrap().served, Served::Revalidated);
    assert_eq!(get(&rig, &ANYBODY, "6").await.unwrap().served, Served::Miss);
    assert_eq!(left(&rig), 4);
    let asked = rig.manifests("HEAD");
    let Served::Stale(why) = get(&rig, &ANYBODY, "3").await.unwrap().served else { panic!("not stale") };
    assert!(why.contains("not renewed from the last 4 of the upstream's 20 pulls"), "{why}");
    assert_eq!(rig.manifests("HEAD"), asked);
    assert_eq!(get(&rig, &FIRST, "4").await.unwrap().served, Served::Revalidated, "but for priority clients");
    // Ordinary misses pass until the reserve is left.
    assert_eq!(get(&rig, &ANYBODY, "7").await.unwrap().served, Served::Miss);
    assert_eq!(get(&rig, &ANYBODY, "8").await.unwrap().served, Served::Miss);
    let (why, _) = held_back(get(&rig, &ANYBODY, "9").await);
    assert!(why.contains("kept for priority clients"), "{why}");
    assert_eq!(get(&rig, &FIRST, "9").await.unwrap().served, Served::Miss);
    assert_eq!(left(&rig), 1);
    assert_eq!(rig.mirror.upstreams().values().next().unwrap().quota().held_back, Some(Purpose::Miss));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_is_not_renewed_from_what_is_left_for_misses() {
    let rig = rig(Reserved::default()).await;
    set(&rig, 5);
    let old = get(&rig, &ANYBODY, "1").await.unwrap().digest;
    put(&rig, "1", 77);
    rig.clock.advance(6 * MINUTE);
    // The last word is old, so one HEAD goes out: the tag has moved.
    let asked = rig.manifests("HEAD");
    let answer = get(&rig, &ANYBODY, "1").await.unwrap();
    assert_eq!((answer.digest, rig.manifests("HEAD"), left(&rig)), (old, asked + 1, 4));
    let Served::Stale(why) = answer.served else { panic!("not stale") };
    assert!(why.contains("the tag has moved upstream, and what is held is not renewed"), "{why}");
    rig.clock.advance(2 * MINUTE);
    let renewed = get(&rig, &FIRST, "1").await.unwrap().digest;
    assert_ne!(renewed, old);
    assert_eq!(left(&rig), 3);
    // The reserve is for what is not held at all.
    put(&rig, "1", 78);
    assert!(get(&rig, &ANYBODY, "2").await.is_ok());
    rig.clock.advance(6 * MINUTE);
    let answer = get(&rig, &FIRST, "1").await.unwrap();
    assert!(is_stale(&answer));
    assert_eq!((answer.digest, left(&rig)), (renewed, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pinned_may_use_the_reserve() {
    let mut reserved = Reserved::default();
    reserved.add(repository("docker.io", "library/app"), &reference("7"));
    let rig = rig(reserved).await;
    set(&rig, 2);
    held_back(get(&rig, &ANYBODY, "1").await);
    assert_eq!(get(&rig, &ANYBODY, "7").await.unwrap().served, Served::Miss);
    assert_eq!(left(&rig), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_pinned_image_s_repository_only_its_own_manifests_may_use_the_reserve() {
    let mut reserved = Reserved::default();
    reserved.add(repository("docker.io", "library/app"), &reference("pinned"));
    let rig = rig(reserved.clone()).await;
    let [pinned, other] = [50, 51].map(|seed| Image::random(seed, 3, 100));
    rig.upstream.put_image("library/app", "pinned", &pinned);
    rig.upstream.put_image("library/app", "latest", &other);
    set(&rig, 2);
    // A client resolves a tag by HEAD, which costs nothing, and goes on by digest.
    let head = |what: &'static str| {
        let asker = Asker { toll: &ANYBODY, ..rig.asker() };
        let (mirror, app) = (&rig.mirror, repository("docker.io", "library/app"));
        async move { mirror.manifest(asker, &app, &reference(what), false).await.unwrap() }
    };
    assert_eq!(head("latest").await.digest.to_string(), other.digest());
    held_back(get(&rig, &ANYBODY, "latest").await);
    for digest in [other.digest(), &other.manifests[0].digest, &pinned.manifests[0].digest] {
        held_back(get(&rig, &ANYBODY, digest).await);
    }
    assert_eq!(head("pinned").await.digest.to_string(), pinned.digest());
    assert_eq!(left(&rig), 2);
    assert_eq!(get(&rig, &ANYBODY, pinned.digest()).await.unwrap().served, Served::Miss);
    assert_eq!(get(&rig, &ANYBODY, &pinned.manifests[1].digest).await.unwrap().served, Served::Miss);
    assert_eq!(left(&rig), 0);
    // What the tag leads to is on disk, once it was asked for.
    assert_eq!(get(&rig, &ANYBODY, "pinned").await.unwrap().served, Served::Hit);
    let Rig { upstream, clock, tasks, mirror, dir, .. } = rig;
    assert!(tasks.drain(MINUTE).await);
    drop(mirror);
    let rig = Rig::with(upstream, dir, clock, &["docker.io"], setting(reserved, vec![])).await;
    set(&rig, 2);
    held_back(get(&rig, &ANYBODY, &other.manifests[1].digest).await);
    assert_eq!(get(&rig, &ANYBODY, &pinned.manifests[0].digest).await.unwrap().served, Served::Miss);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mirror_has_is_renewed_whatever_is_left_of_the_quota() {
    let near = faulty::Upstream::start().await;
    let url = near.url().parse().unwrap();
    let endpoint = EndpointOptions { url, credential: None, ca_file: None, proxy: Proxy::None };
    let rig = rig_with(Reserved::default(), vec![endpoint]).await;
    set(&rig, 6);
    for tag in ["1", "2", "3"] {
        assert_eq!(get(&rig, &ANYBODY, tag).await.unwrap().served, Served::Miss);
    }
    // 3 of 20: what is held is not renewed from these.
    let moved = ["1", "2"].map(|tag| put_at(&near, tag, 70));
    rig.clock.advance(6 * MINUTE);
    for (tag, digest) in ["1", "2"].iter().zip(moved) {
        assert_eq!(get(&rig, &ANYBODY, tag).await.unwrap().digest.to_string(), digest);
    }
    assert_eq!(left(&rig), 3);
    // What only the upstream itself has stays as it is held.
    put(&rig, "3", 71);
    let Served::Stale(why) = get(&rig, &ANYBODY, "3").await.unwrap().served else { panic!("not stale") };
    assert!(why.contains("not renewed from the last 4 of the upstream's 20 pulls"), "{why}");
    assert_eq!(left(&rig), 3);
    // A pause of the upstream's own pulls is none of the mirror's.
    set(&rig, 0);
    assert!(get(&rig, &FIRST, "4").await.is_err());
    assert!(rig.mirror.upstreams().values().next().unwrap().quota().paused_for.is_some());
    let moved = put_at(&near, "3", 72);
    rig.clock.advance(6 * MINUTE);
    assert_eq!(get(&rig, &ANYBODY, "3").await.unwrap().digest.to_string(), moved);
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_that_came_to_nothing_are_no_part_of_a_share() {
    let rig = rig(Reserved::default()).await;
    set(&rig, 12);
    // Who asks is counted once there is a quota.
    for image in ["0", "3"] {
        get(&rig, &Payer(Purpose::Miss, "192.0.2.8"), image).await.unwrap();
    }
    get(&rig, &ANYBODY, "1").await.unwrap();
    rig.upstream.on("GET", "/manifests/sha256:").then(Fault::status(404));
    for number in 0..15 {
        let digest = &Image::random(100 + number, 1, 100).manifests[0].digest;
        let answer = get(&rig, &ANYBODY, digest).await;
        assert!(matches!(answer, Err(Error::NotFound(_))), "{number}: {answer:?}");
    }
    rig.upstream.clear_rules();
    set(&rig, 9);
    assert_eq!(get(&rig, &ANYBODY, "2").await.unwrap().served, Served::Miss);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_window_is_seen_by_whoever_asks_first() {
    let rig = rig(Reserved::default()).await;
    set(&rig, 2);
    held_back(get(&rig, &ANYBODY, "1").await);
    let by_digest = Image::random(5, 1, 100).manifests[0].digest.clone();
    rig.upstream.put_manifest(
        "library/app",
        &by_digest,
        "application/vnd.oci.image.manifest.v1+json",
        Image::random(5, 1, 100).manifests[0].bytes.clone(),
    );
    held_back(get(&rig, &ANYBODY, &by_digest).await);
    // Nothing told of it: but a word that is older than a minute holds nothing back unasked.
    set(&rig, LIMIT);
    held_back(get(&rig, &ANYBODY, &by_digest).await);
    rig.clock.advance(2 * MINUTE);
    assert_eq!(get(&rig, &ANYBODY, &by_digest).await.unwrap().served, Served::Miss);
    assert_eq!(left(&rig), LIMIT - 1);
    // While nobody asks at all, what was told is forgotten with its window.
    set(&rig, 2);
    held_back(get(&rig, &ANYBODY, "2").await);
    let state = || rig.mirror.upstreams().values().next().unwrap().quota();
    assert_eq!(state().remaining, Some(2));
    rig.clock.advance(6 * HOUR);
    assert_eq!((state().remaining, state().held_back, state().window_ends), (None, None, None));
    set(&rig, LIMIT);
    assert!(get(&rig, &ANYBODY, "1").await.is_ok());
    assert_eq!(state().remaining, Some(LIMIT - 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_spend_is_not_refused_with_who_may_not() {
    let rig = rig(Reserved::default()).await;
    set(&rig, 2);
    get(&rig, &FIRST, "0").await.unwrap();
    let manifest = Image::random(1, 1, 100).manifests[0].clone();
    rig.upstream.put_manifest("library/app", &manifest.digest, manifest.media_type, manifest.bytes.clone());
    // The first to ask waits for a newer word, and gets a refusal; the other joins it meanwhile.
    rig.clock.advance(2 * MINUTE);
    rig.upstream.on("HEAD", "/manifests/").then(Fault::Delay(Duration::from_millis(300)));
    let asked = rig.manifests("HEAD");
    let joins = async {
        while rig.manifests("HEAD") == asked {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        get(&rig, &FIRST, &manifest.digest).await
    };
    let (anybody, first) = tokio::join!(get(&rig, &ANYBODY, &manifest.digest), joins);
    held_back(anybody);
    assert!(first.is_ok(), "{first:?}");
    assert_eq!(left(&rig), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leak_names_who_stopped_asking() {
    let rig = rig(Reserved::default()).await;
    set(&rig, LIMIT);
    let gone = Payer(Purpose::Miss, "10.0.0.9");
    for image in ["0", "1", "2"] {
        get(&rig, &gone, image).await.unwrap();
        get(&rig, &ANYBODY, image).await.unwrap();
    }
    rig.clock.advance(11 * MINUTE);
    get(&rig, &ANYBODY, "0").await.unwrap();
    let quota = || rig.mirror.upstreams().values().next().unwrap().quota();
    assert_eq!(quota().leak, None);
    // 10.0.0.9 goes to the registry by itself.
    set(&rig, LIMIT - 3 - 6);
    get(&rig, &ANYBODY, "3").await.unwrap();
    let leak = quota().leak.expect("told");
    assert_eq!((leak.pulls, leak.source.as_deref()), (6, Some("192.0.2.1")));
    assert_eq!(leak.silent, ["10.0.0.9"]);
    assert!(quota().exhausted.is_some(), "{:?}", quota());
    rig.clock.advance(HOUR);
    assert_eq!(quota().leak, None, "the episode is over");
}
