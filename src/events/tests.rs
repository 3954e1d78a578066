//! Events against a real receiver that takes them, fails, stalls or is away.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Mutex;

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

use super::event::tests::{event, repository};
use super::*;
use crate::metrics::Delivery;
use crate::oci::Digest;
use crate::tasks::lock;

/// An answer that does not come.
const STALL: u16 = 0;

#[derive(Default)]
struct Script {
    /// 200 once they are used up.
    answers: VecDeque<u16>,
    got: Vec<(HeaderMap, Value)>,
}

/// Answers by a script and keeps what it was sent.
#[derive(Clone)]
struct Receiver {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

impl Receiver {
    async fn start(answers: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let script = Script { answers: answers.iter().copied().collect(), ..Script::default() };
        let receiver = Self { address: listener.local_addr().unwrap(), script: Arc::new(Mutex::new(script)) };
        let serving = receiver.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let receiver = serving.clone();
                let answer = service_fn(move |request| receiver.clone().answer(request));
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(async move { http.serve_connection(TokioIo::new(stream), answer).await });
            }
        });
        receiver
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<String>, Infallible> {
        let (head, body) = request.into_parts();
        let body = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
        let status = {
            let mut script = lock(&self.script);
            script.got.push((head.headers, body));
            script.answers.pop_front().unwrap_or(200)
        };
        if status == STALL {
            std::future::pending::<()>().await;
        }
        let elsewhere = format!("http://{}/elsewhere", self.address);
        Ok(Response::builder().status(status).header("location", elsewhere).body(String::new()).unwrap())
    }

    /// The repositories told of, request by request.
    fn got(&self) -> Vec<Vec<String>> {
        let told = |body: &Value| {
            let events = body["events"].as_array().unwrap();
            events.iter().map(|event| event["target"]["repository"].as_str().unwrap().to_owned()).collect()
        };
        lock(&self.script).got.iter().map(|(_, body)| told(body)).collect()
    }

    fn options(&self) -> EndpointOptions {
        EndpointOptions {
            name: "ci".into(),
            url: format!("http://{}/hook", self.address).parse().unwrap(),
            headers: vec![(HeaderName::from_static("x-team"), HeaderValue::from_static("images"))],
            header_files: Vec::new(),
            timeout: Duration::from_secs(20),
            backoff: Duration::from_millis(1),
            attempts: 5,
            queue: 1000,
            actions: Action::ALL.to_vec(),
            ignore_media_types: Vec::new(),
        }
    }
}

struct Bench {
    events: Events,
    metrics: Metrics,
    tasks: Tasks,
}

impl Bench {
    fn new(endpoint: EndpointOptions) -> Self {
        let (metrics, tasks) = (Metrics::new(), Tasks::default());
        let options = Options { endpoints: vec![endpoint] };
        let source = Source::of_process(5000);
        let events = Events::new(&options, &source, &metrics, Clock::default(), &tasks).unwrap();
        Self { events, metrics, tasks }
    }

    fn push(&self, name: &str) {
        let digest = Digest::sha256(name.as_bytes());
        self.events.emit(event(Action::Push, Target::blob(&repository(name), &digest, Some(1))));
    }

    fn count(&self, delivery: Delivery) -> u64 {
        self.metrics.endpoint("ci").events.cell(delivery).get()
    }

    fn counts(&self) -> (u64, u64, u64, i64) {
        let [sent, failed, dropped] =
            [Delivery::Sent, Delivery::Failed, Delivery::Dropped].map(|delivery| self.count(delivery));
        (sent, failed, dropped, self.metrics.endpoint("ci").queued.get())
    }

    async fn until(&self, is: impl Fn(&Self) -> bool) {
        let wait = async {
            while !is(self) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it comes true");
    }

    async fn until_sent(&self, count: u64) {
        self.until(|bench| bench.count(Delivery::Sent) == count).await;
    }
}

#[tokio::test]
async fn an_event_is_posted_with_its_headers_and_its_type() {
    let receiver = Receiver::start(&[]).await;
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&secret, "Bearer x\n").unwrap();
    let file = (http::header::AUTHORIZATION, secret.path().to_owned());
    let bench = Bench::new(EndpointOptions { header_files: vec![file], ..receiver.options() });
    bench.push("app");
    bench.until_sent(1).await;
    let (headers, body) = lock(&receiver.script).got[0].clone();
    assert_eq!(headers["content-type"], "application/vnd.docker.distribution.events.v2+json");
    assert_eq!(
        (&headers["x-team"], &headers["authorization"]),
        (&"images".parse().unwrap(), &"Bearer x".parse().unwrap())
    );
    assert_eq!(body["events"][0]["action"], "push");
    assert!(body["events"][0]["source"]["addr"].as_str().unwrap().ends_with(":5000"));
    assert_eq!(bench.counts(), (1, 0, 0, 0));
}

#[tokio::test]
async fn what_fails_is_tried_again_in_order() {
    // A redirect is no success, and nothing is sent where it leads.
    let receiver = Receiver::start(&[500, 307, 404]).await;
    let bench = Bench::new(receiver.options());
    bench.push("first");
    bench.until(|_| !receiver.got().is_empty()).await;
    bench.push("second");
    bench.until_sent(2).await;
    let got = receiver.got().concat();
    assert_eq!(got, ["first", "first", "first", "first", "second"]);
    assert_eq!(bench.metrics.endpoint("ci").failures.get(), 3);
}

#[tokio::test]
async fn who_stalls_is_left_and_asked_again() {
    let receiver = Receiver::start(&[STALL]).await;
    let bench = Bench::new(EndpointOptions { timeout: Duration::from_millis(50), ..receiver.options() });
    bench.push("app");
    bench.until_sent(1).await;
    assert!(receiver.got().len() >= 2);
}

#[tokio::test]
async fn after_the_last_attempt_the_next_has_its_turn() {
    let receiver = Receiver::start(&[500, 500, 500]).await;
    let bench = Bench::new(EndpointOptions { attempts: 3, ..receiver.options() });
    bench.push("lost");
    bench.until(|bench| bench.count(Delivery::Failed) == 1).await;
    bench.push("app");
    bench.until_sent(1).await;
    assert_eq!(bench.counts(), (1, 1, 0, 0));
    assert_eq!(receiver.got().concat(), ["lost", "lost", "lost", "app"]);
}

#[tokio::test]
async fn the_queue_is_bounded_and_the_oldest_goes() {
    let receiver = Receiver::start(&[STALL]).await;
    let options = receiver.options();
    let bench = Bench::new(EndpointOptions { queue: 3, timeout: Duration::from_millis(200), ..options });
    bench.push("sending");
    bench.until(|_| !receiver.got().is_empty()).await;
    for name in ["a", "b", "c", "d", "e"] {
        bench.push(name);
    }
    assert_eq!(bench.count(Delivery::Dropped), 2);
    assert_eq!(bench.metrics.endpoint("ci").queued.get(), 4, "three, and the one under way");
    bench.until_sent(4).await;
    assert_eq!(receiver.got().last().unwrap(), &["c", "d", "e"], "in one request");
    assert_eq!(bench.counts(), (4, 0, 2, 0));
}

#[tokio::test]
async fn a_long_queue_goes_in_batches() {
    let receiver = Receiver::start(&[500]).await;
    let bench = Bench::new(EndpointOptions { backoff: Duration::from_millis(300), ..receiver.options() });
    bench.push("first");
    bench.until(|_| !receiver.got().is_empty()).await;
    (0..2 * queue::BATCH + 1).for_each(|number| bench.push(&format!("app{number}")));
    bench.until_sent(2 * queue::BATCH as u64 + 2).await;
    let sizes: Vec<usize> = receiver.got().iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 1, queue::BATCH, queue::BATCH, 1]);
}

#[tokio::test]
async fn only_what_is_wanted_is_sent() {
    let receiver = Receiver::start(&[]).await;
    let bench = Bench::new(EndpointOptions {
        actions: vec![Action::Push],
        ignore_media_types: vec!["application/octet-stream".into()],
        ..receiver.options()
    });
    assert!(bench.events.wants(Action::Push) && !bench.events.wants(Action::Pull));
    bench.push("blob");
    let (name, digest) = (repository("deleted"), Digest::sha256(b"x"));
    bench.events.emit(event(Action::Delete, Target::removed(&name, &digest)));
    bench.events.emit(event(Action::Push, Target::removed(&repository("app"), &digest)));
    bench.until_sent(1).await;
    assert_eq!(receiver.got(), [["app"]]);
    assert_eq!(bench.counts(), (1, 0, 0, 0));
}

#[tokio::test]
async fn what_is_queued_at_the_end_is_sent() {
    let receiver = Receiver::start(&[500]).await;
    // Shutdown does not wait for the pause to end.
    let bench = Bench::new(EndpointOptions { backoff: Duration::from_secs(3600), ..receiver.options() });
    bench.push("first");
    bench.until(|bench| bench.metrics.endpoint("ci").failures.get() == 1).await;
    bench.push("second");
    assert!(bench.tasks.drain(Duration::from_secs(30)).await);
    assert_eq!(receiver.got().concat(), ["first", "first", "second"]);
    assert_eq!(bench.counts(), (2, 0, 0, 0));
    bench.push("late");
    assert_eq!(bench.counts(), (2, 0, 1, 0));
}

#[tokio::test]
async fn an_endpoint_that_is_away_does_not_hold_up_the_end() {
    let receiver = Receiver::start(&[STALL; 9]).await;
    let bench = Bench::new(EndpointOptions { timeout: Duration::from_secs(3600), ..receiver.options() });
    (0..3 * queue::BATCH).for_each(|_| bench.push("app"));
    bench.until(|_| !receiver.got().is_empty()).await;
    assert!(bench.tasks.drain(Duration::from_secs(60)).await);
    assert_eq!(bench.counts(), (0, 0, 3 * queue::BATCH as u64, 0));
}

#[tokio::test]
async fn what_is_queued_outlives_its_configuration() {
    let receiver = Receiver::start(&[500, 500]).await;
    let Bench { events, tasks, metrics } = Bench::new(receiver.options());
    events.emit(event(Action::Push, Target::blob(&repository("app"), &Digest::sha256(b"x"), None)));
    drop(events);
    // Its task ends by itself, without being told to stop.
    let ended = async {
        while metrics.endpoint("ci").events.cell(Delivery::Sent).get() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
    assert!(tasks.drain(Duration::from_secs(30)).await);
}

#[test]
fn without_endpoints_nothing_is_wanted() {
    let events = Events::default();
    assert!(Action::ALL.iter().all(|action| !events.wants(*action)));
    events.emit(event(Action::Push, Target::removed(&repository("app"), &Digest::sha256(b"x"))));
}

#[tokio::test]
async fn nor_does_one_that_refuses() {
    let receiver = Receiver::start(&[500; 999]).await;
    let bench = Bench::new(EndpointOptions { backoff: Duration::from_secs(3600), ..receiver.options() });
    (0..20 * queue::BATCH - 1).for_each(|_| bench.push("app"));
    bench.until(|bench| bench.metrics.endpoint("ci").failures.get() == 1).await;
    bench.push("app");
    assert!(bench.tasks.drain(Duration::from_secs(60)).await);
    let (sent, failed, dropped, queued) = bench.counts();
    assert_eq!((sent, failed + dropped, queued), (0, 20 * queue::BATCH as u64, 0));
    // One request's worth was tried, the rest went without.
    assert!(receiver.got().len() <= 6, "{}", receiver.got().len());
}
