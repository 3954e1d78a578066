//! The server's side: few connections, one request each, small heads, bounded bodies.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::{ALLOW, CONTENT_TYPE};
use http::{Method, Response, StatusCode};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::command::{Brought, Started, text};
use super::socket::Bound;
use super::{Commands, LINE_MAX, PROTOCOL, Refusal, Version};
use crate::tasks::Tasks;

const CONNECTIONS_MAX: usize = 8;
/// hyper's least.
const HEAD_MAX: usize = 8 * 1024;
/// Ten thousand images.
const BODY_MAX: usize = 4 << 20;
/// Lines on their way to one client.
const LINES: usize = 64;
/// Rest after a failure to accept.
const ACCEPT_REST: Duration = Duration::from_millis(200);

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the head of its request.
    pub head: Duration,
    /// To take the next line, or to bring the next bytes.
    pub line: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { head: Duration::from_secs(10), line: Duration::from_secs(30) }
    }
}

/// Serves until shutdown begins. Then what is under way is ended and the client told so.
pub async fn serve(bound: Bound, commands: Commands, tasks: Tasks) {
    serve_with(bound, commands, tasks, Patience::default()).await;
}

pub async fn serve_with(bound: Bound, commands: Commands, tasks: Tasks, patience: Patience) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let stop = tasks.stopping();
    let accept = async {
        loop {
            // Those for whom there is no place wait in the kernel. The semaphore is never closed.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match bound.listener.accept().await {
                Ok((stream, _)) if is_trusted(&stream) => {
                    let server = Server {
                        commands: commands.clone(),
                        tasks: tasks.clone(),
                        patience,
                        cut: CancellationToken::new(),
                    };
                    tasks.spawn("control connection", async move {
                        server.connection(stream).await;
                        drop(place);
                    });
                }
                Ok(_) => tracing::warn!("a stranger's connection to the control socket was refused"),
                Err(error) => {
                    tracing::debug!(%error, "no control connection");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    };
    tokio::select! { () = accept => {}, () = stop => {} }
}

/// The socket's mode keeps strangers out already, unless somebody has changed it.
fn is_trusted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| [0, own].contains(&peer.uid()))
}

/// What serves one connection.
#[derive(Clone)]
struct Server {
    commands: Commands,
    tasks: Tasks,
    patience: Patience,
    /// Ends the connection, whatever it waits for.
    cut: CancellationToken,
}

impl Server {
    async fn connection(self, stream: UnixStream) {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.patience.head)
            .max_buf_size(HEAD_MAX)
            .keep_alive(false);
        let (cut, stop) = (self.cut.clone(), self.tasks.stopping());
        let answer = service_fn(|request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), answer));
        let mut stop = std::pin::pin!(stop);
        let mut stopping = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "control connection ended");
                    }
                    return;
                }
                () = cut.cancelled() => return,
                () = &mut stop, if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }

    async fn answer(&self, request: hyper::Request<Incoming>) -> Response<Lines> {
        let (request, body) = request.into_parts();
        let (method, uri) = (&request.method, &request.uri);
        let name = uri.path().strip_prefix("/v1/").unwrap_or_default();
        if name == "version" {
            return if method == Method::GET { version() } else { allow(Method::GET, method) };
        }
        let Some(command) = self.commands.get(name) else {
            let version = env!("CARGO_PKG_VERSION");
            let why = format!("no such command: this is Forebay {version}, whose protocol is {PROTOCOL}");
            return refusal(StatusCode::NOT_FOUND, &why);
        };
        if method != Method::POST {
            return allow(Method::POST, method);
        }
        if uri.query().is_some() {
            return refusal(
                StatusCode::BAD_REQUEST,
                "what is asked for stands in the body, not in the address",
            );
        }
        let read = async { if command.takes_bytes { line(body).await } else { whole(body).await } };
        let (request, rest) = match tokio::time::timeout(self.patience.head, read).await {
            Err(_) => return refusal(StatusCode::REQUEST_TIMEOUT, "the request did not come to its end"),
            Ok(Err(Unread::TooLong(max))) => {
                let why = format!("the request has more than {max} bytes: ask for less at once");
                return refusal(StatusCode::PAYLOAD_TOO_LARGE, &why);
            }
            Ok(Err(Unread::Broken(error))) => return refusal(StatusCode::BAD_REQUEST, &error),
            Ok(Ok(read)) => read,
        };
        match command.start(&request) {
            Ok(started) => self.run(started, brought(rest, self.patience.line)),
            Err(why) => refusal(StatusCode::BAD_REQUEST, &why),
        }
    }

    fn run(&self, command: Started, brought: Brought) -> Response<Lines> {
        let (client, response) = self.lines();
        let stop = self.tasks.stopping();
        self.tasks.spawn("command", run(command, brought, client, stop));
        response
    }

    /// An answer of lines, and who is to be told them.
    fn lines(&self) -> (Listener, Response<Lines>) {
        let (client, lines) = mpsc::channel(LINES);
        let client = Listener { lines: Some(client), patience: self.patience.line, cut: self.cut.clone() };
        let mut response = Response::new(Lines(lines));
        response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/x-ndjson"));
        (client, response)
    }
}

/// Why there is no request.
enum Unread {
    /// It has more bytes than these.
    TooLong(usize),
    Broken(String),
}

/// What comes behind a request: what was read with it, then the body.
type Rest = Option<(Bytes, Incoming)>;

/// The next data of a body. None: it has ended.
async fn data(body: &mut Incoming) -> Result<Option<Bytes>, String> {
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        match frame.transpose().map_err(|error| error.to_string())?.map(Frame::into_data) {
            Some(Ok(data)) => return Ok(Some(data)),
            Some(Err(_)) => {}
            None => return Ok(None),
        }
    }
}

/// A request that is all of a body.
async fn whole(mut body: Incoming) -> Result<(Vec<u8>, Rest), Unread> {
    let mut read = Vec::new();
    while let Some(data) = data(&mut body).await.map_err(Unread::Broken)? {
        if read.len() + data.len() > BODY_MAX {
            return Err(Unread::TooLong(BODY_MAX));
        }
        read.extend_from_slice(&data);
    }
    Ok((read, None))
}

/// A request that is the first line of a body.
async fn line(mut body: Incoming) -> Result<(Vec<u8>, Rest), Unread> {
    let mut read = Vec::new();
    while let Some(mut data) = data(&mut body).await.map_err(Unread::Broken)? {
        let end = data.iter().position(|byte| *byte == b'\n');
        if read.len() + end.unwrap_or(data.len()) > LINE_MAX {
            return Err(Unread::TooLong(LINE_MAX));
        }
        let Some(end) = end else {
            read.extend_from_slice(&data);
            continue;
        };
        read.extend_from_slice(&data[..end]);
        return Ok((read, Some((data.split_off(end + 1), body))));
    }
    Err(Unread::Broken("the request's line has no end".to_owned()))
}

/// What follows a request's line, as long as it goes on coming.
fn brought(rest: Rest, patience: Duration) -> Brought {
    let Some((first, body)) = rest else { return stream::empty().boxed() };
    let next = move |body: Option<Incoming>| async move {
        let mut body = body?;
        match tokio::time::timeout(patience, data(&mut body)).await {
            Ok(Ok(data)) => Some((Ok(data?), Some(body))),
            Ok(Err(error)) => Some((Err(error), None)),
            Err(_) => Some((Err(format!("nothing came for {} s", patience.as_secs())), None)),
        }
    };
    stream::iter([Ok(first)]).chain(stream::unfold(Some(body), next)).boxed()
}

/// Runs a command and tells its client, who may leave: then it ends too, unless it is one that goes on.
async fn run(command: Started, brought: Brought, mut client: Listener, stop: impl Future<Output = ()>) {
    let (report, mut lines) = mpsc::channel(LINES);
    let mut run = (command.run)(report, brought);
    let mut stop = std::pin::pin!(stop);
    let ended = loop {
        tokio::select! {
            biased;
            Some(line) = lines.recv() => client.send(Some(line)).await,
            ended = &mut run => break ended,
            () = client.gone(), if !command.outlives_client => return,
            () = &mut stop => break Err("the server is shutting down; run it again once it is back".to_owned()),
        }
    };
    drop(run);
    while let Ok(line) = lines.try_recv() {
        client.send(Some(line)).await;
    }
    let last = ended.unwrap_or_else(|error| {
        tracing::warn!(error, "a command ended early");
        text(&Refusal { error })
    });
    client.send(Some(last)).await;
    client.end().await;
}

/// A client that takes lines, as long as it does.
struct Listener {
    /// None: it has gone.
    lines: Option<mpsc::Sender<Option<Bytes>>>,
    patience: Duration,
    cut: CancellationToken,
}

impl Listener {
    async fn send(&mut self, line: Option<Bytes>) {
        let Some(lines) = &self.lines else { return };
        match tokio::time::timeout(self.patience, lines.send(line)).await {
            Ok(Ok(())) => return,
            Ok(Err(_)) => tracing::debug!("a control client has left"),
            Err(_) => {
                tracing::debug!("a control client reads nothing");
                self.cut.cancel();
            }
        }
        self.lines = None;
    }

    /// Completes when the client leaves; at once where it has.
    async fn gone(&self) {
        if let Some(lines) = &self.lines {
            lines.closed().await;
        }
    }

    /// Lets it read the rest, within its patience.
    async fn end(mut self) {
        self.send(None).await;
        if tokio::time::timeout(self.patience, self.gone()).await.is_err() {
            self.cut.cancel();
        }
    }
}

/// Lines as a body; its end is said, for a sender that merely vanishes would look like one.
struct Lines(mpsc::Receiver<Option<Bytes>>);

impl Lines {
    fn one(value: &impl Serialize) -> Self {
        let (sender, receiver) = mpsc::channel(2);
        // There is room for both.
        let _ = sender.try_send(Some(text(value)));
        let _ = sender.try_send(None);
        Self(receiver)
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|line| match line {
            Some(Some(line)) => Some(Ok(Frame::data(line))),
            Some(None) => None,
            None => Some(Err(std::io::Error::other("the work behind this answer has ended"))),
        })
    }
}

fn version() -> Response<Lines> {
    Response::new(Lines::one(&Version { protocol: PROTOCOL, forebay: env!("CARGO_PKG_VERSION").to_owned() }))
}

fn allow(allowed: Method, method: &Method) -> Response<Lines> {
    let mut response =
        refusal(StatusCode::METHOD_NOT_ALLOWED, &format!("{method} is not served here: use {allowed}"));
    // A method's name is a header value.
    if let Ok(allowed) = allowed.as_str().parse() {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

fn refusal(status: StatusCode, error: &str) -> Response<Lines> {
    let mut response = Response::new(Lines::one(&Refusal { error: error.to_owned() }));
    *response.status_mut() = status;
    response
}
