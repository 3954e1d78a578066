//! One client connection: its protocol and its end.

// Each request's future is moved into the connection: what a hit does not need is boxed.
#![warn(clippy::large_futures)]

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::MissedTickBehavior;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::address::Scope;
use super::gather::gather;
use super::handler::Service;
use super::watch::{Activity, Observed, Patience, Verdict, Watch};
use crate::tasks::Tasks;

/// Largest head of a request. More is answered by 431.
pub(super) const HEAD_MAX: usize = 64 * 1024;
const STREAMS_MAX: u32 = 128;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The registry's API and the operator's pages.
    All,
    /// The registry's API and health, since the rest has a listener of its own.
    Public,
    /// The operator's pages only.
    Operations,
    /// The forward proxy.
    Forward,
}

/// Where a connection comes from and at which door it arrived.
pub struct Arrival {
    /// Of a Unix socket: loopback, for only this machine reaches one.
    pub peer: SocketAddr,
    pub door: Door,
    /// Which names the listener has.
    pub scope: Arc<Scope>,
    pub tls: bool,
    /// The host that the client's TLS asked for (SNI).
    pub server_name: Option<Arc<str>>,
    /// Whose certificate the client showed.
    pub certificate: Option<Arc<str>>,
    /// Whether files can be sent: what is written here reaches the socket as it is.
    pub takes_windows: bool,
    pub activity: Arc<Activity>,
}

impl Arrival {
    pub fn new(peer: SocketAddr, door: Door, tls: bool) -> Self {
        Self {
            peer,
            door,
            scope: Arc::default(),
            tls,
            server_name: None,
            certificate: None,
            takes_windows: false,
            activity: Arc::default(),
        }
    }
}

/// What every connection is served with.
#[derive(Clone)]
pub struct Context {
    pub service: Arc<ArcSwap<Service>>,
    pub patience: Patience,
    pub tasks: Tasks,
    /// Asks for an end after the requests under way.
    pub stop: CancellationToken,
}

/// Serves the connection until it ends, it is asked to end, or it has been still for too long.
pub async fn serve<I>(io: I, arrival: Arrival, context: Context)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let io = Observed::new(io, arrival.activity.clone());
    drive(io, |_| Poll::Ready(Ok(())), arrival, context).await;
}

/// The same over TLS.
pub async fn serve_tls<I>(io: TlsStream<I>, arrival: Arrival, context: Context)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let has_frames = io.get_ref().1.alpn_protocol() == Some(b"h2");
    let (io, rest) = gather(io, has_frames);
    drive(Observed::new(io, arrival.activity.clone()), |cx| rest.poll_flush(cx), arrival, context).await;
}

/// `flush` lets go of what the connection has written.
async fn drive<I>(
    io: I,
    flush: impl Fn(&mut task::Context<'_>) -> Poll<std::io::Result<()>>,
    arrival: Arrival,
    Context { service, patience, tasks, stop }: Context,
) where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let activity = arrival.activity.clone();
    let arrival = Arc::new(arrival);
    let answer = service_fn(|request| {
        let (service, arrival) = (service.load_full(), arrival.clone());
        async move { Ok::<_, Infallible>(service.handle(request, &arrival).await) }
    });
    let protocol = protocol(tasks);
    let mut connection = pin!(protocol.serve_connection(TokioIo::new(io), answer));
    let mut watch = Watch::new(patience);
    let mut ticks = tokio::time::interval(watch.period());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            ended = poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                // Where that fails, so does the connection's next step.
                let _ = flush(cx);
                polled
            }) => {
                if let Err(error) = ended {
                    tracing::debug!(peer = %arrival.peer, %error, "connection ended");
                }
                return;
            }
            () = stop.cancelled(), if !watch.is_closing() => watch.close(),
            _ = ticks.tick() => match watch.tick(&activity) {
                Verdict::Fine => continue,
                Verdict::Close => {}
                Verdict::Drop => {
                    tracing::debug!(peer = %arrival.peer, "connection stood still");
                    return;
                }
            },
        }
        connection.as_mut().graceful_shutdown();
    }
}

fn protocol(tasks: Tasks) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(Streams(tasks));
    // The watch sees to late heads: hyper's own timer would count idle time too.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_MAX as u32)
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// Runs the streams of HTTP/2 connections.
#[derive(Clone)]
struct Streams(Tasks);

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn("stream", stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::{Body, Payload};
    use crate::http::exchange::tests::exchange;
    use crate::store::ReadError;
    use bytes::Bytes;
    use futures_util::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// One connection, answered by a body that breaks off behind its first piece.
    async fn breaking(length: Option<u64>) -> SocketAddr {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = socket.accept().await.unwrap();
            let answer = service_fn(move |_| async move {
                let pieces = [Ok(Bytes::from_static(b"part")), Err(ReadError::Short)];
                // A pause between the pieces lets each go out.
                let pieces = futures_util::stream::iter(pieces).then(async |piece| {
                    tokio::task::yield_now().await;
                    piece
                });
                let payload = Payload::Stream(pieces.boxed(), length);
                Ok::<_, Infallible>(http::Response::new(Body::new(payload, Box::new(exchange()))))
            });
            let _ = protocol(Tasks::default()).serve_connection(TokioIo::new(stream), answer).await;
        });
        address
    }

    #[tokio::test]
    async fn a_broken_body_never_ends_cleanly_over_http_1() {
        for length in [None, Some(10)] {
            let mut stream = tokio::net::TcpStream::connect(breaking(length).await).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            let answer = String::from_utf8(answer).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(body.contains("part"), "{answer}");
            assert_eq!(head.contains("content-length: 10"), length.is_some(), "{head}");
            assert!(!body.ends_with("0\r\n\r\n") && body.len() < 10, "{answer}");
        }
    }

    #[tokio::test]
    async fn a_broken_body_is_a_reset_over_http_2() {
        for length in [None, Some(10)] {
            let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
            let address = breaking(length).await;
            let answer = client.get(format!("http://{address}/")).send().await;
            let broken = match answer {
                Ok(answer) => answer.bytes().await.is_err(),
                Err(_) => true,
            };
            assert!(broken);
        }
    }
}
