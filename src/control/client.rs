//! The commands' side.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};

use super::{PROTOCOL, Refusal, Version, socket, socket_path};

/// Longest line that a server sends: a digest and a name.
const LINE_MAX: usize = 64 * 1024;

/// Why the server did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no Forebay runs on {}: start it with `forebay serve --data {}`, or name the running one's directory with \
         --data, or its configuration with --config",
        .0.display(), .0.display()
    )]
    NotRunning(PathBuf),
    #[error("{} may be opened by its owner and root only: run this as the user that Forebay runs as", .0.display())]
    NotAllowed(PathBuf),
    #[error("Forebay cannot be spoken to at {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("the conversation with Forebay broke off: {0}; its log may say why")]
    Broken(String),
    #[error("Forebay refused: {0}")]
    Refused(String),
}

/// The server of a data directory.
pub struct Client {
    data: PathBuf,
}

impl Client {
    pub fn of(data: &Path) -> Self {
        Self { data: data.to_owned() }
    }

    pub async fn version(&self) -> Result<Version, ClientError> {
        let mut lines = self.send(Method::GET, "version", None).await?;
        let line = lines.next().await?.ok_or_else(|| ClientError::Broken("no answer".to_owned()))?;
        parse(&line)
    }

    /// Has a command carried out: one JSON object after the other, of the command's own kind. To hang up
    /// ends it, unless it is one that goes on.
    pub async fn command(&self, name: &str, request: &impl Serialize) -> Result<Lines, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| ClientError::Broken(error.to_string()))?;
        self.send(Method::POST, name, Some(body.into())).await
    }

    async fn send(&self, method: Method, command: &str, body: Option<Bytes>) -> Result<Lines, ClientError> {
        let stream = socket::connect(&self.data).await.map_err(|error| self.unreachable(error))?;
        let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(|error| ClientError::Broken(error.to_string()))?;
        let request = Request::builder()
            .method(method)
            .uri(format!("/v{PROTOCOL}/{command}"))
            .header("host", "forebay")
            .body(Once(body))
            .map_err(|error| ClientError::Broken(error.to_string()))?;
        // The connection is driven as long as its answer is read.
        let driven = tokio::spawn(connection);
        let response =
            sender.send_request(request).await.map_err(|error| ClientError::Broken(error.to_string()))?;
        let is_success = response.status().is_success();
        let mut lines = Lines { response, read: Vec::new(), _connection: Driven(driven) };
        if is_success {
            return Ok(lines);
        }
        let line = lines.next().await?.unwrap_or_default();
        Err(ClientError::Refused(parse::<Refusal>(&line)?.error))
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(self.data.clone())
            }
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed(socket_path(&self.data)),
            _ => ClientError::Socket { path: socket_path(&self.data), source },
        }
    }
}

/// Reads a line as what it should be.
pub fn parse<'a, T: Deserialize<'a>>(line: &'a str) -> Result<T, ClientError> {
    serde_json::from_str(line)
        .map_err(|error| ClientError::Broken(format!("it said what is not known: {error}")))
}

/// An answer, line by line. Dropped, it hangs up.
pub struct Lines {
    response: Response<Incoming>,
    read: Vec<u8>,
    _connection: Driven,
}

struct Driven(tokio::task::JoinHandle<Result<(), hyper::Error>>);

impl Drop for Driven {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Lines {
    /// The next line, without its end. None: the answer is complete.
    pub async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.drain(..=end).collect::<Vec<u8>>();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if self.read.len() > LINE_MAX {
                return Err(ClientError::Broken("a line without an end".to_owned()));
            }
            let body = self.response.body_mut();
            let frame =
                std::future::poll_fn(|context| std::pin::Pin::new(&mut *body).poll_frame(context)).await;
            match frame {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(ClientError::Broken(error.to_string())),
                None if self.read.is_empty() => return Ok(None),
                None => return Err(ClientError::Broken("half a line".to_owned())),
            }
        }
    }
}

/// A body that is there at once, or none.
struct Once(Option<Bytes>);

impl Body for Once {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(self.0.take().map(|bytes| Ok(http_body::Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
