//! Clients are held up only where they spend the upstream's quota.

use futures_util::future::join_all;
use reqwest::Response;

use super::support::http;
use super::{Rig, Tiny};

const PATHS: usize = 8;

/// A rig whose upstream holds so many images, `library/0` and on.
async fn rig(limits: &str) -> Rig {
    let rig = Rig::with(&format!("[limits]\n{limits}\n")).await;
    for number in 0..PATHS {
        Tiny::new(&number.to_string()).put(&rig.upstream, &format!("library/{number}"));
    }
    rig
}

fn path(number: usize) -> String {
    format!("/v2/library/{number}/manifests/1")
}

async fn assert_refused(answer: Response) {
    assert_eq!(answer.status(), 429);
    let after: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&after), "{after}");
    let body: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(body["errors"][0]["code"], "TOOMANYREQUESTS");
}

#[tokio::test]
async fn cold_misses_wait_and_then_are_refused_while_hits_flow() {
    let rig = rig("cold_misses = \"60/m burst 2\"\nwait = \"1500ms\"").await;
    let (held, cold) = (path(0), (1..PATHS).map(path).collect::<Vec<_>>());
    assert_eq!(rig.status(&held).await, 200);
    let misses = join_all(cold.iter().map(|path| rig.get(path)));
    let hits = join_all((0..100).map(|_| rig.status(&held)));
    let (misses, hits) = tokio::join!(misses, hits);
    assert!(hits.iter().all(|status| *status == 200), "{hits:?}");
    let (served, refused): (Vec<_>, Vec<_>) = misses.into_iter().partition(|answer| answer.status() == 200);
    // One of the burst was left; then comes one a second.
    assert!((2..PATHS - 1).contains(&served.len()), "{} were served", served.len());
    for answer in refused {
        assert_refused(answer).await;
    }
    let limited =
        |action| format!(r#"forebay_client_limited_total{{action="{action}",limit="cold_misses"}}"#);
    assert!(rig.mirror.metric(&limited("waited")).await >= 1.0);
    assert!(rig.mirror.metric(&limited("refused")).await >= 1.0);
}

/// Two cold misses, each in the name of another client.
async fn of_two_clients(rig: &Rig) -> Vec<Response> {
    let ask = |(number, client)| {
        let request = http().get(rig.mirror.url() + &path(number));
        request.header("X-Forwarded-For", client).send()
    };
    let answers = join_all([(1, "192.0.2.1"), (2, "192.0.2.2")].map(ask)).await;
    answers.into_iter().map(Result::unwrap).collect()
}

const ONE_EACH: &str = "cold_misses = \"1/m burst 1\"\nwait = \"0s\"";

#[tokio::test]
async fn a_trusted_proxy_names_its_clients() {
    let rig = rig(&format!("{ONE_EACH}\ntrusted_proxies = [\"127.0.0.1\"]")).await;
    assert!(of_two_clients(&rig).await.iter().all(|answer| answer.status() == 200));
    // They have had theirs; the proxy itself has not.
    let again = http().get(rig.mirror.url() + &path(3)).header("X-Forwarded-For", "192.0.2.1");
    assert_refused(again.send().await.unwrap()).await;
    assert_eq!(rig.status(&path(3)).await, 200);
}

#[tokio::test]
async fn nobody_else_does() {
    let rig = rig(ONE_EACH).await;
    let (served, refused): (Vec<_>, Vec<_>) =
        of_two_clients(&rig).await.into_iter().partition(|answer| answer.status() == 200);
    assert_eq!((served.len(), refused.len()), (1, 1));
}
