//! What is spent of a quota, in which order it is given up, and who else spends it.

use futures_util::future::join_all;
use reqwest::Response;

use super::support::faulty::Quota;
use super::support::http;
use super::support::process::Wait;
use super::{Rig, Tiny};

const LIMIT: u64 = 20;

fn path(number: usize) -> String {
    format!("/v2/library/{number}/manifests/1")
}

/// A mirror of an upstream with a pull quota and so many images of one manifest each.
async fn rig(images: usize, config: &str) -> Rig {
    let rig = Rig::with(config).await;
    rig.upstream.set_quota(Some(Quota { limit: LIMIT, remaining: LIMIT, window: 21600 }));
    for number in 0..images {
        Tiny::new(&number.to_string()).put_alone(&rig.upstream, &format!("library/{number}"));
    }
    rig
}

/// With clients that a proxy names.
async fn rig_of_clients(images: usize, config: &str) -> Rig {
    rig(images, &format!("[limits]\ntrusted_proxies = [\"127.0.0.1\"]\n{config}")).await
}

fn left(rig: &Rig) -> u64 {
    rig.upstream.quota().unwrap().remaining
}

async fn get(rig: &Rig, client: &str, path: &str) -> Response {
    http().get(rig.mirror.url() + path).header("X-Forwarded-For", client).send().await.unwrap()
}

/// How many of these images, one after the other, a client gets until one is refused; and that answer.
async fn pulls(rig: &Rig, client: &str, images: std::ops::Range<usize>) -> (usize, Option<Response>) {
    let begin = images.start;
    for number in images.clone() {
        let answer = get(rig, client, &path(number)).await;
        if answer.status() != 200 {
            return (number - begin, Some(answer));
        }
    }
    (images.len(), None)
}

/// That it is a 429 which says when to come back, and its message.
async fn refusal(answer: Option<Response>) -> String {
    let answer = answer.expect("refused");
    assert_eq!(answer.status(), 429);
    let after: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=900).contains(&after), "{after}");
    let body: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(body["errors"][0]["code"], "TOOMANYREQUESTS");
    body["errors"][0]["message"].as_str().unwrap().to_owned()
}

fn of_hub(metric: &str) -> String {
    format!("forebay_upstream_{metric}{{upstream=\"docker.io\"}}")
}

#[tokio::test]
async fn two_hundred_clients_spend_one_pull_for_each_image() {
    const IMAGES: usize = 10;
    const CLIENTS: usize = 200;
    let rig = rig_of_clients(IMAGES, "").await;
    let client = async |number: usize| {
        for image in (0..IMAGES).cycle().skip(number % IMAGES).take(IMAGES) {
            let answer = get(&rig, &format!("192.0.2.{number}"), &path(image)).await;
            assert_eq!(answer.status(), 200, "{image} for {number}");
        }
    };
    join_all((0..CLIENTS).map(client)).await;
    assert_eq!(left(&rig), 10);
    let mut saved = 0.0;
    for by in ["held", "joined", "head"] {
        let series = format!("forebay_upstream_saved_pulls_total{{by=\"{by}\",upstream=\"docker.io\"}}");
        saved += rig.mirror.metric(&series).await;
    }
    assert_eq!(saved, (CLIENTS * IMAGES - IMAGES) as f64);
    assert_eq!(rig.mirror.metric(&of_hub("leaked_pulls_total")).await, 0.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let ends = rig.mirror.metric(&of_hub("quota_window_end_timestamp_seconds")).await;
    assert!((now..=now + 21600.0).contains(&ends), "{ends}");
    assert_eq!(
        rig.mirror.metric(&of_hub("quota_exhaustion_timestamp_seconds")).await,
        0.0,
        "too soon to tell"
    );
    let page = rig.get("/").await.text().await.unwrap();
    assert!(page.contains("10 of 20 pulls left") && page.contains("1990 pulls saved"), "{page}");
}

#[tokio::test]
async fn priority_clients_have_the_reserve_for_themselves() {
    let config =
        "priority = [\"10.9.0.0/16\"]\nfair_share = false\n[upstream.\"docker.io\"]\nquota_reserve = 5\n";
    let rig = rig_of_clients(40, config).await;
    let (had, refused) = pulls(&rig, "192.0.2.1", 0..40).await;
    assert_eq!((had, left(&rig)), (15, 5));
    let why = refusal(refused).await;
    assert!(why.contains("the last 5 of the upstream's 20 pulls are kept for priority clients"), "{why}");
    let held_back = r#"forebay_upstream_held_back_total{reason="reserve",upstream="docker.io"}"#;
    assert_eq!(rig.mirror.metric(held_back).await, 1.0);
    // What is held flows on, to everybody.
    assert_eq!(get(&rig, "192.0.2.1", &path(3)).await.status(), 200);
    // All at once: not one more than there is.
    let paths: Vec<String> = (0..30).map(path).collect();
    let all = join_all((20..30).map(|image| get(&rig, "192.0.2.2", &paths[image])));
    assert!(all.await.iter().all(|answer| answer.status() == 429));
    assert_eq!(left(&rig), 5);
    let (had, refused) = pulls(&rig, "10.9.1.2", 15..40).await;
    assert_eq!((had, left(&rig)), (5, 0));
    let why = refusal(refused).await;
    assert!(why.contains("the upstream's rate limit is exhausted"), "{why}");
}

#[tokio::test]
async fn parallel_misses_stop_exactly_at_the_reserve() {
    let config = "priority = [\"10.9.0.0/16\"]\nfair_share = false\n[upstream.\"docker.io\"]\nquota_reserve = \"25%\"\n";
    let rig = rig_of_clients(40, config).await;
    let paths: Vec<String> = (0..40).map(path).collect();
    let answers = join_all(paths.iter().map(|path| get(&rig, "192.0.2.1", path))).await;
    let served = answers.iter().filter(|answer| answer.status() == 200).count();
    assert_eq!((served, left(&rig)), (15, 5));
}

#[tokio::test]
async fn a_reserve_for_nobody_fails_no_pull() {
    let rig = rig(30, "[upstream.\"docker.io\"]\nquota_reserve = 5\n").await;
    let (had, refused) = pulls(&rig, "127.0.0.1", 0..30).await;
    assert_eq!((had, left(&rig)), (20, 0));
    assert!(refusal(refused).await.contains("rate limit is exhausted"));
}

#[tokio::test]
async fn one_greedy_client_leaves_the_others_their_share() {
    let rig = rig_of_clients(60, "").await;
    let others = ["192.0.2.2", "192.0.2.3", "2001:db8:1::1", "2001:db8:2::1"];
    assert_eq!(get(&rig, "192.0.2.1", &path(0)).await.status(), 200);
    for other in others {
        assert_eq!(get(&rig, other, &path(0)).await.status(), 200);
    }
    let (had, refused) = pulls(&rig, "192.0.2.1", 1..30).await;
    // Half of the quota while there was plenty, and a fifth of the other half.
    assert_eq!((1 + had, left(&rig)), (12, 8));
    let why = refusal(refused).await;
    assert!(why.contains("its share, 2 of") && why.contains("5 clients"), "{why}");
    for (number, other) in others.into_iter().enumerate() {
        let begin = 30 + 5 * number;
        let (had, _) = pulls(&rig, other, begin..begin + 2).await;
        assert_eq!(had, 2, "{other}");
    }
    assert_eq!(left(&rig), 0);
    let held_back = r#"forebay_upstream_held_back_total{reason="fair_share",upstream="docker.io"}"#;
    assert_eq!(rig.mirror.metric(held_back).await, 1.0);
}

#[tokio::test]
async fn who_goes_past_the_mirror_is_told_of_once() {
    let rig = rig(10, "").await;
    let (had, _) = pulls(&rig, "127.0.0.1", 0..3).await;
    assert_eq!((had, rig.mirror.metric(&of_hub("leaked_pulls_total")).await), (3, 0.0));
    let directly = async |pulls: usize| {
        for number in 0..pulls {
            assert_eq!(http().get(rig.upstream.url() + &path(number)).send().await.unwrap().status(), 200);
        }
    };
    let warnings = || rig.mirror.log().matches("spent past this mirror").count();
    directly(5).await;
    assert_eq!(rig.status(&path(3)).await, 200);
    assert_eq!(rig.mirror.metric(&of_hub("leaked_pulls_total")).await, 5.0);
    assert_eq!(warnings(), 1);
    assert!(rig.mirror.log().contains("192.0.2.1"), "{}", rig.mirror.log());
    directly(2).await;
    assert_eq!(rig.status(&path(4)).await, 200);
    assert_eq!((rig.mirror.metric(&of_hub("leaked_pulls_total")).await, warnings()), (7.0, 1));
    let page = rig.get("/").await.text().await.unwrap();
    assert!(page.contains("7 pulls were spent past this mirror") && page.contains("(192.0.2.1)"), "{page}");
    assert_eq!(left(&rig), LIMIT - 5 - 7);
}

#[tokio::test]
async fn metrics_forget_a_quota_with_its_window() {
    let rig = rig(1, "").await;
    rig.upstream.set_quota(Some(Quota { limit: LIMIT, remaining: LIMIT, window: 1 }));
    assert_eq!(rig.status(&path(0)).await, 200);
    let forgotten = Wait::for_("the quota to be forgotten");
    while rig.mirror.metric(&of_hub("quota_remaining")).await >= 0.0 {
        forgotten.a_little().await;
    }
    assert_eq!(rig.mirror.metric(&of_hub("quota_limit")).await, -1.0);
    assert_eq!(rig.mirror.metric(&of_hub("quota_window_end_timestamp_seconds")).await, 0.0);
}

#[tokio::test]
async fn a_restart_forgets_no_reserve() {
    let config = "priority = [\"10.9.0.0/16\"]\n[upstream.\"docker.io\"]\nquota_reserve = 5\n";
    let mut rig = rig_of_clients(10, config).await;
    rig.upstream.set_quota(Some(Quota { limit: LIMIT, remaining: 5, window: 21600 }));
    rig.mirror.kill();
    rig.mirror.restart().await;
    // Asked for by digest, nothing is learned from the resolution of a tag: one HEAD is, before the GETs.
    let images: Vec<String> = (0..10)
        .map(|number| {
            let digest = &Tiny::new(&number.to_string()).manifest.digest;
            format!("/v2/library/{number}/manifests/{digest}")
        })
        .collect();
    let answers = join_all(images.iter().map(|path| get(&rig, "192.0.2.1", path))).await;
    assert!(answers.iter().all(|answer| answer.status() == 429), "{answers:?}");
    assert_eq!(left(&rig), 5);
    assert_eq!(rig.upstream.requests_for("HEAD", "/manifests/").len(), 1);
    assert_eq!(get(&rig, "10.9.0.1", &images[0]).await.status(), 200);
    assert_eq!(left(&rig), 4);
}
