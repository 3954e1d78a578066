//! The commands' side.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use http::{Method, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};

use super::command::text;
use super::{LINE_MAX, PROTOCOL, Refusal, Version, socket, socket_path};

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
        let mut lines = self.send(Method::GET, "version", stream::empty().boxed()).await?;
        let line = lines.next().await?.ok_or_else(|| ClientError::Broken("no answer".to_owned()))?;
        parse(&line)
    }

    /// Has a command carried out: one JSON object after the other, of the command's own kind. To hang up
    /// ends it, unless it is one that goes on.
    pub async fn command(&self, name: &str, request: &impl Serialize) -> Result<Lines, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| ClientError::Broken(error.to_string()))?;
        self.send(Method::POST, name, stream::iter([Ok(body.into())]).boxed()).await
    }

    /// The same for a command that takes bytes. Where their stream fails, the server is told that they
    /// broke off.
    pub async fn command_with(
        &self,
        name: &str,
        request: &impl Serialize,
        bytes: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<Lines, ClientError> {
        self.send(Method::POST, name, stream::iter([Ok(text(request))]).chain(bytes).boxed()).await
    }

    async fn send(
        &self,
        method: Method,
        command: &str,
        body: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<Lines, ClientError> {
        let stream = socket::connect(&self.data).await.map_err(|error| self.unreachable(error))?;
        let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(|error| ClientError::Broken(error.to_string()))?;
        let request = Request::builder()
            .method(method)
            .uri(format!("/v{PROTOCOL}/{command}"))
            .header("host", "forebay")
            .body(Sent(body))
            .map_err(|error| ClientError::Broken(error.to_string()))?;
        // The connection is driven as long as its answer is read.
        let driven = tokio::spawn(connection);
        let response =
            sender.send_request(request).await.map_err(|error| ClientError::Broken(error.to_string()))?;
        let is_success = response.status().is_success();
        let mut lines = Lines { response, read: BytesMut::new(), _connection: Driven(driven) };
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
    read: BytesMut,
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
                let line = self.read.split_to(end + 1);
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if self.read.len() > LINE_MAX {
                return Err(ClientError::Broken("a line without an end".to_owned()));
            }
            match self.data().await? {
                Some(data) => self.read.extend_from_slice(&data),
                None if self.read.is_empty() => return Ok(None),
                None => return Err(ClientError::Broken("half a line".to_owned())),
            }
        }
    }

    /// Some of the bytes that a line announced, `most` at most and one at least.
    pub async fn bytes(&mut self, most: u64) -> Result<Bytes, ClientError> {
        while self.read.is_empty() {
            let data = self.data().await?.ok_or_else(|| ClientError::Broken("half of it".to_owned()))?;
            if data.len() as u64 <= most && !data.is_empty() {
                return Ok(data);
            }
            self.read.extend_from_slice(&data);
        }
        let count = self.read.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(self.read.split_to(count).freeze())
    }

    async fn data(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let body = self.response.body_mut();
            let frame =
                std::future::poll_fn(|context| std::pin::Pin::new(&mut *body).poll_frame(context)).await;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| ClientError::Broken(error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }
}

/// A request's body.
struct Sent(BoxStream<'static, io::Result<Bytes>>);

impl Body for Sent {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        self.0.poll_next_unpin(context).map(|next| next.map(|piece| piece.map(http_body::Frame::data)))
    }
}
