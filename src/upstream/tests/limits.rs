use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use super::*;
use crate::metrics::UpstreamStatus;

const MINUTE: Duration = Duration::from_secs(60);

fn limited(error: Error) -> Duration {
    match error.cause {
        Cause::Limited(wait) => wait,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn limits_are_noted_and_gets_pause_as_long_as_told() {
    for as_date in [false, true] {
        let answers = AtomicUsize::new(0);
        let server = Server::new(move |seen| {
            let limits = |answer: Reply, left: &str| {
                answer.with("ratelimit-limit", "100;w=21600").with("ratelimit-remaining", left)
            };
            if seen.method == Method::HEAD {
                return reply(200, "");
            }
            match answers.fetch_add(1, Ordering::SeqCst) {
                0 => limits(reply(200, "{}"), "1;w=21600"),
                1 => {
                    let date = httpdate::fmt_http_date(SystemTime::now() + MINUTE * 2);
                    let wait = if as_date { date } else { "120".into() };
                    limits(reply(429, "Too Many Requests"), "0;w=21600").with("retry-after", wait)
                }
                _ => reply(200, "{}"),
            }
        })
        .await;
        let bench = bench(options(server.url("/")));
        bench.get("a").await.unwrap();
        let state = bench.upstream.quota();
        assert_eq!((state.limit, state.remaining, state.paused_for), (Some(100), Some(1), None));
        let wait = limited(bench.get("a").await.unwrap_err());
        assert!(MINUTE < wait && wait <= MINUTE * 2, "{wait:?}");
        assert_eq!((bench.metrics.quota_remaining.get(), bench.metrics.paused.get()), (0, 1));
        limited(bench.get("other").await.unwrap_err());
        assert_eq!(server.seen().len(), 2, "nothing is asked in a pause");
        bench.head("a").await.unwrap();
        assert!(bench.upstream.quota().paused_for.is_some());
        bench.clock.advance(MINUTE * 2);
        bench.get("a").await.unwrap();
        eventually("the pause is over", || bench.metrics.paused.get() == 0).await;
        assert_eq!(server.count("/v2/a"), 4);
        let too_many = bench.metrics.requests.cell(UpstreamCall::ManifestGet, UpstreamStatus::TooMany);
        assert_eq!(too_many.get(), 1);
        assert!(bench.tasks.drain(MINUTE).await);
    }
}

#[tokio::test]
async fn without_a_time_heads_find_out_when_the_pause_is_over() {
    let probes = Arc::new(AtomicUsize::new(0));
    let probed = probes.clone();
    let server = Server::new(move |seen| match seen.method {
        Method::HEAD => {
            let left = probes.fetch_add(1, Ordering::SeqCst);
            reply(200, "").with("ratelimit-remaining", format!("{left};w=21600"))
        }
        _ if probes.load(Ordering::SeqCst) < 2 => reply(429, ""),
        _ => reply(200, "{}"),
    })
    .await;
    let bench = bench(options(server.url("/")));
    assert!(limited(bench.get("a").await.unwrap_err()) <= MINUTE);
    limited(bench.get("b").await.unwrap_err());
    assert_eq!(server.seen().len(), 1);
    bench.clock.advance(MINUTE);
    eventually("a first probe", || probed.load(Ordering::SeqCst) == 1).await;
    let still_paused = || bench.upstream.quota().paused_for.is_some_and(|wait| wait > MINUTE);
    eventually("the next probe comes later", still_paused).await;
    limited(bench.get("a").await.unwrap_err());
    bench.clock.advance(MINUTE * 2);
    eventually("the pause is over", || bench.upstream.quota().paused_for.is_none()).await;
    bench.get("a").await.unwrap();
    assert_eq!(probed.load(Ordering::SeqCst), 2);
    assert!(server.seen().iter().all(|seen| seen.path() == "/v2/a/manifests/latest"));
}

#[tokio::test]
async fn a_pause_ends_with_the_process() {
    let server = Server::new(|_| reply(429, "")).await;
    let bench = bench(options(server.url("/")));
    limited(bench.get("a").await.unwrap_err());
    assert!(bench.tasks.drain(MINUTE).await);
    assert!(bench.upstream.quota().paused_for.is_some());
}

#[tokio::test]
async fn a_limit_on_heads_pauses_heads_alone() {
    let server = Server::new(|seen| match seen.method {
        Method::HEAD => reply(429, ""),
        _ => reply(200, "{}"),
    })
    .await;
    let bench = bench(options(server.url("/")));
    assert_eq!(limited(bench.head("a").await.unwrap_err()), MINUTE);
    assert!(limited(bench.head("b").await.unwrap_err()) <= MINUTE);
    assert_eq!(server.seen().len(), 1);
    bench.get("a").await.unwrap();
    assert_eq!(bench.metrics.paused.get(), 0);
    bench.clock.advance(MINUTE);
    assert_eq!(limited(bench.head("a").await.unwrap_err()), MINUTE * 2);
}

#[tokio::test]
async fn a_limit_on_blobs_pauses_nothing() {
    let server = Server::new(|_| reply(429, "")).await;
    let bench = bench(options(server.url("/")));
    for _ in 0..2 {
        assert_eq!(limited(bench.blob(0, None).await.err().unwrap()), MINUTE);
    }
    assert_eq!((server.seen().len(), bench.metrics.paused.get()), (2, 0));
}

#[tokio::test]
async fn a_full_queue_is_busy_and_a_stream_holds_its_place() {
    let server = Server::new(|seen| match seen.path() {
        path if path.contains("/manifests/") => reply(200, "{}"),
        _ => Reply { stalls: true, ..reply(200, "start").with("content-length", 10) },
    })
    .await;
    let options = Options { max_fills: 1, queue_length: 1, ..options(server.url("/")) };
    let bench = Arc::new(bench(options));
    let first = bench.blob(0, None).await.unwrap();
    let second = tokio::spawn({
        let bench = bench.clone();
        async move { bench.blob(0, None).await.map(|blob| blob.total) }
    });
    eventually("one waits", || bench.metrics.waiting.get() == 1).await;
    assert!(matches!(bench.blob(0, None).await.err().unwrap().cause, Cause::Busy));
    assert_eq!(server.seen().len(), 1);
    bench.get("a").await.unwrap();
    drop(first);
    assert_eq!(second.await.unwrap().unwrap(), Some(10));
    assert_eq!(bench.metrics.waiting.get(), 0);
}

#[tokio::test]
async fn a_ceiling_on_requests_makes_them_wait_or_refuses() {
    let server = Server::new(|_| reply(200, "{}")).await;
    let per_minute = std::num::NonZeroU32::new(10);
    let options = Options {
        requests_per_minute: per_minute,
        queue_timeout: Duration::ZERO,
        ..options(server.url("/"))
    };
    let bench = bench(options);
    bench.get("a").await.unwrap();
    assert!(matches!(bench.get("a").await.unwrap_err().cause, Cause::Busy));
    assert_eq!(server.seen().len(), 1);
}

/// Docker Hub's abuse limit answers like this.
#[tokio::test]
async fn a_429_with_bare_line_feeds_is_understood() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await.unwrap();
        let answer = "HTTP/1.1 429 Too Many Requests\nRetry-After: 90\nContent-Type: text/plain\n\
                      Connection: close\n\nToo Many Requests (HAP429).\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let bench = bench(options(url.parse().unwrap()));
    let wait = limited(bench.get("a").await.unwrap_err());
    assert!(MINUTE < wait && wait <= Duration::from_secs(90), "{wait:?}");
    server.await.unwrap();
}
