//! Events, as a receiver sees them that fails, stalls, is away and comes back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::support::http;
use super::support::http1::{Headers, Request, Server, answer};
use super::support::image::INDEX;
use super::support::mirror::MirrorOptions;
use super::support::process::{PATIENCE, Wait, free_port};
use super::{Rig, put_empty};

/// An answer that does not come.
const STALL: u16 = 0;

/// Takes notifications at a port, and answers by a script.
pub struct Receiver {
    server: Server,
    got: Arc<Mutex<Vec<Request>>>,
}

impl Receiver {
    /// Answers with these statuses, then with 200.
    pub async fn start(port: u16, answers: &[u16]) -> Self {
        let answers: Arc<Mutex<VecDeque<u16>>> = Arc::new(Mutex::new(answers.iter().copied().collect()));
        let got: Arc<Mutex<Vec<Request>>> = Arc::default();
        let kept = got.clone();
        let server = Server::start(port, move |mut stream| {
            let (answers, got) = (answers.clone(), kept.clone());
            async move {
                while let Some(request) = Request::read(&mut stream).await {
                    got.lock().unwrap().push(request);
                    let status = answers.lock().unwrap().pop_front().unwrap_or(200);
                    if status == STALL {
                        std::future::pending::<()>().await;
                    }
                    if !answer(&mut stream, status, Headers::default(), "").await {
                        return;
                    }
                }
            }
        });
        Self { server: server.await, got }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.server.address)
    }

    /// The requests so far.
    fn requests(&self) -> Vec<Request> {
        self.got.lock().unwrap().clone()
    }

    /// The events so far, as often as they came.
    pub fn events(&self) -> Vec<Value> {
        let events = |request: &Request| {
            let mut body: Value = serde_json::from_slice(&request.body).unwrap();
            body["events"].as_array_mut().unwrap().drain(..).collect::<Vec<_>>()
        };
        self.requests().iter().flat_map(events).collect()
    }
}

fn endpoint(url: &str, more: &str) -> String {
    format!("[[events.endpoint]]\nname = \"ci\"\nurl = \"{url}\"\n{more}\n")
}

fn with(config: String) -> MirrorOptions {
    MirrorOptions { config: Some(config), ..MirrorOptions::default() }
}

const SENT: &str = r#"forebay_events_total{delivery="sent",endpoint="ci"}"#;

#[tokio::test]
async fn a_miss_is_told_though_the_receiver_fails_and_stalls_first() {
    let receiver = Receiver::start(0, &[503, STALL, 302]).await;
    let more = "timeout = \"300ms\"\nbackoff = \"10ms\"\nheaders = { X-Team = \"images\" }";
    let rig = Rig::with(with(endpoint(&receiver.url(), more))).await;
    let digest = put_empty(&rig.upstream, "library/x", "1", "");
    // The receiver is in the way of nothing.
    for _ in 0..3 {
        assert_eq!(rig.get("/v2/library/x/manifests/1").await.0, 200);
    }
    let wait = Wait::for_("an event");
    while rig.mirror.metric(SENT).await < 1.0 {
        wait.a_little().await;
    }
    let requests = receiver.requests();
    assert_eq!(requests.len(), 4, "{requests:?}");
    for request in &requests {
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/hook"));
        let header = |name| request.headers.get(name).unwrap();
        assert_eq!(header("content-type"), "application/vnd.docker.distribution.events.v2+json");
        assert_eq!(header("x-team"), "images");
        assert_eq!(request.body, requests[0].body, "the same event, with the same id");
    }
    let event = receiver.events().pop().unwrap();
    let target = &event["target"];
    assert_eq!((&event["action"], &target["repository"]), (&"pull".into(), &"docker.io/library/x".into()));
    assert_eq!((&target["tag"], &target["digest"]), (&"1".into(), &digest.clone().into()));
    assert_eq!((&target["mediaType"], &target["size"]), (&INDEX.into(), &target["length"]));
    assert_eq!(
        (&event["request"]["method"], &event["request"]["host"]),
        (&"GET".into(), &rig.mirror.host().into())
    );
    let source = event["source"]["addr"].as_str().unwrap();
    assert!(source.ends_with(&format!(":{}", rig.mirror.port)), "{source}");
    // What it is told of is to be had where it says.
    let there = http().get(target["url"].as_str().unwrap()).header("Accept", INDEX).send().await.unwrap();
    assert_eq!(
        (there.status().as_u16(), there.headers()["docker-content-digest"].to_str().unwrap()),
        (200, &*digest)
    );
    // Hits, heads and what is refused are no events.
    rig.get("/v2/library/x/manifests/none").await;
    http().head(rig.mirror.url() + "/v2/library/x/manifests/1").send().await.unwrap();
    put_empty(&rig.upstream, "library/x", "2", "2");
    assert_eq!(rig.get("/v2/library/x/manifests/2").await.0, 200);
    while rig.mirror.metric(SENT).await < 2.0 {
        wait.a_little().await;
    }
    assert_eq!(receiver.events().pop().unwrap()["target"]["tag"], "2");
    assert_eq!(receiver.requests().len(), 5);
}

// The wait for the end blocks a thread, and the receiver needs another.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_at_the_end_is_sent_if_anybody_takes_it() {
    let port = free_port();
    let config = endpoint(&format!("http://127.0.0.1:{port}/"), "backoff = \"1h\"");
    let mut rig = Rig::with(with(config)).await;
    put_empty(&rig.upstream, "library/x", "1", "");
    assert_eq!(rig.get("/v2/library/x/manifests/1").await.0, 200);
    let wait = Wait::for_("a failed attempt");
    while rig.mirror.metric(r#"forebay_event_failures_total{endpoint="ci"}"#).await < 1.0 {
        wait.a_little().await;
    }
    assert_eq!(rig.mirror.metric(r#"forebay_events_queued{endpoint="ci"}"#).await, 1.0);
    let receiver = Receiver::start(port, &[]).await;
    assert!(rig.mirror.terminate(PATIENCE).unwrap().success());
    assert_eq!(receiver.events().len(), 1);
    // With nobody there it ends all the same, and says what it could not send.
    drop(receiver);
    rig.mirror.restart().await;
    put_empty(&rig.upstream, "library/x", "2", "2");
    assert_eq!(rig.get("/v2/library/x/manifests/2").await.0, 200);
    while rig.mirror.metric(r#"forebay_event_failures_total{endpoint="ci"}"#).await < 1.0 {
        wait.a_little().await;
    }
    assert!(rig.mirror.terminate(PATIENCE).unwrap().success());
    assert!(rig.mirror.log().contains("events could not be sent before the end"), "{}", rig.mirror.log());
}

#[tokio::test]
async fn a_reload_changes_who_is_told() {
    let (first, second) = (Receiver::start(0, &[]).await, Receiver::start(0, &[]).await);
    let mut rig = Rig::with(with(endpoint(&first.url(), ""))).await;
    let wait = Wait::for_("an event");
    for (number, receiver) in [&first, &second].into_iter().enumerate() {
        let tag = number.to_string();
        put_empty(&rig.upstream, "library/x", &tag, &tag);
        assert_eq!(rig.get(&format!("/v2/library/x/manifests/{tag}")).await.0, 200);
        while receiver.events().is_empty() {
            wait.a_little().await;
        }
        rig.mirror.configure(&endpoint(&second.url(), ""));
        rig.mirror.process().signal(Signal::HUP);
        while !rig.mirror.log().contains("the configuration was read again") {
            wait.a_little().await;
        }
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((first.events().len(), second.events().len()), (1, 1));
}
