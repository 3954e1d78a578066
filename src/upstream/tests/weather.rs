//! Servers that do not answer, and connections that are cut without a word.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_server_that_fails_is_not_asked_for_a_while() {
    let healthy = Arc::new(AtomicUsize::new(0));
    let switch = healthy.clone();
    let server = Server::new(move |seen| match switch.load(Ordering::SeqCst) {
        0 => reply(503, "upside down"),
        _ if seen.path().contains("/gone/") => reply(404, ""),
        _ => reply(200, "{}"),
    })
    .await;
    let bench = bench(options(server.url("/")));
    bench.get("a").await.unwrap_err();
    bench.clock.advance(MINUTE);
    bench.get("a").await.unwrap_err();
    assert_eq!(bench.metrics.breakers_open.get(), 1);
    let mut refused = 0;
    for _ in 0..30 {
        let before = server.seen().len();
        let error = bench.head("a").await.unwrap_err();
        if server.seen().len() == before {
            refused += 1;
            let Cause::Trouble(why) = &error.cause else { panic!("{error:?}") };
            assert!(why.contains("asked again in") && why.contains("503"), "{why}");
        }
    }
    assert!(refused > 0);
    assert!(bench.metrics.breaker_refusals.get() >= refused);
    healthy.store(1, Ordering::SeqCst);
    bench.clock.advance(MINUTE);
    // A 404 is an answer like any other.
    assert!(matches!(bench.get("gone").await.unwrap_err().cause, Cause::NotFound));
    assert_eq!(bench.metrics.breakers_open.get(), 0);
    bench.get("a").await.unwrap();
}

#[tokio::test]
async fn a_dead_token_server_is_not_waited_for_either() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let server = Server::new(move |_| {
        reply(401, "").with("www-authenticate", format!("Bearer realm=\"http://{nobody}/token\""))
    })
    .await;
    let bench = bench(options(server.url("/")));
    for _ in 0..2 {
        bench.get("a").await.unwrap_err();
        bench.clock.advance(MINUTE);
    }
    bench.get("a").await.unwrap_err();
    assert_eq!(bench.metrics.breakers_open.get(), 1);
    let lately = async |_| bench.get("a").await.unwrap_err().to_string().contains("asked again in");
    let mut told = false;
    for _ in 0..30 {
        told |= lately(()).await;
    }
    assert!(told);
}

/// A proxy on the wire that forgets its connections when told so: what is sent on them is taken, and
/// nothing ever comes back.
struct Forgetful {
    address: SocketAddr,
    forgotten: tokio::sync::watch::Sender<usize>,
    accepted: Arc<AtomicUsize>,
}

impl Forgetful {
    async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (forgotten, told) = tokio::sync::watch::channel(0);
        let accepted = Arc::<AtomicUsize>::default();
        let count = accepted.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                let mut told = told.clone();
                tokio::spawn(async move {
                    let mut server = tokio::net::TcpStream::connect(server).await.unwrap();
                    let (mut up, mut down) = ([0; 4096], [0; 4096]);
                    loop {
                        let forgotten = *told.borrow() >= number;
                        tokio::select! {
                            read = client.read(&mut up) => match read {
                                Ok(n @ 1..) if !forgotten => server.write_all(&up[..n]).await.unwrap(),
                                Ok(1..) => {}
                                _ => return,
                            },
                            read = server.read(&mut down), if !forgotten => match read {
                                Ok(n @ 1..) => client.write_all(&down[..n]).await.unwrap(),
                                _ => return,
                            },
                            changed = told.changed() => if changed.is_err() { return },
                        }
                    }
                });
            }
        });
        Self { address, forgotten, accepted }
    }

    fn forget_all(&self) {
        self.forgotten.send(self.accepted.load(Ordering::SeqCst)).unwrap();
    }
}

#[tokio::test]
async fn connections_that_were_cut_without_a_word_cost_one_wait_and_no_client() {
    let server = Server::new(|_| Reply { delay: Duration::from_millis(20), ..reply(200, "{}") }).await;
    let wire = Forgetful::before(server.address).await;
    let url = format!("http://{}/", wire.address).parse().unwrap();
    let bench = Arc::new(bench(Options { header_timeout: Duration::from_secs(1), ..options(url) }));
    let ask = async || {
        let all = (0..10).map(|_| bench.get("a"));
        futures_util::future::join_all(all).await.into_iter().for_each(|got| drop(got.unwrap()));
    };
    ask().await;
    let kept = wire.accepted.load(Ordering::SeqCst);
    assert!(kept > 1, "{kept}");
    wire.forget_all();
    // Had the second try taken another connection that is kept, it would have waited in vain too, and
    // the third.
    ask().await;
    assert!(wire.accepted.load(Ordering::SeqCst) > kept);
    assert!(bench.metrics.retries.get() >= 1);
}

#[tokio::test]
async fn a_proxy_of_its_own_or_none() {
    let inside = Server::new(|_| reply(200, "{}")).await;
    let proxy = Server::new(|seen| match seen.uri.host() {
        Some("registry.example") => reply(200, "{}"),
        _ => reply(400, "not asked as a proxy is"),
    })
    .await;
    let elsewhere = options("http://registry.example/".parse().unwrap());
    bench(Options { proxy: Proxy::Url(proxy.url("/")), ..elsewhere }).get("a").await.unwrap();
    assert_eq!(proxy.seen()[0].uri.to_string(), "http://registry.example/v2/a/manifests/latest");
    bench(Options { proxy: Proxy::None, ..options(inside.url("/")) }).get("a").await.unwrap();
    assert_eq!((proxy.seen().len(), inside.seen().len()), (1, 1));
}
