//! Just enough HTTP/1.1, on bare TCP, for servers that must be able to misbehave.

use std::fmt::Write;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Longest request, head and body, that is read.
const MAX_REQUEST: usize = 8 << 20;

/// A listener, on loopback unless told otherwise, and its connections. All of them end when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Gives every connection to `serve`. Port 0 is any free one.
    pub async fn start<F>(port: u16, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_at(Ipv4Addr::LOCALHOST, port, serve).await
    }

    /// The same at another address, which the machine must have.
    pub async fn start_at<F>(
        address: Ipv4Addr,
        port: u16,
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((address, port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(serve(stream));
            }
        });
        Self { address, accepting }
    }

    /// Closes the port and every connection.
    pub async fn stop(&mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Headers,
    pub body: Vec<u8>,
}

impl Request {
    /// Reads one request; `None` when the client has gone or speaks something else.
    pub async fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut read = Vec::new();
        let head_end = loop {
            if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if read.len() > MAX_REQUEST || stream.read_buf(&mut read).await.ok()? == 0 {
                return None;
            }
        };
        let mut body = read.split_off(head_end);
        let head = String::from_utf8(read).ok()?;
        let mut lines = head.trim_end().split("\r\n");
        let mut first = lines.next()?.split(' ');
        let method = first.next()?.to_owned();
        let target = first.next()?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        let headers = Headers(headers);
        let length: usize = headers.get("content-length").unwrap_or("0").parse().ok()?;
        while body.len() < length.min(MAX_REQUEST) {
            if stream.read_buf(&mut body).await.ok()? == 0 {
                return None;
            }
        }
        Some(Self { method, path: path.to_owned(), query: query.to_owned(), headers, body })
    }

    /// The values of `name` in the query or, for a form, in the body.
    pub fn parameters(&self, name: &str) -> Vec<String> {
        let form = if self.method == "POST" { &self.body[..] } else { self.query.as_bytes() };
        let pairs = url::form_urlencoded::parse(form).filter(|(key, _)| key == name);
        pairs.map(|(_, value)| value.into_owned()).collect()
    }
}

/// Header lines in their order. Names are compared without regard to case.
#[derive(Clone, Debug, Default)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.remove(name);
        self.0.push((name.to_owned(), value.to_string()));
    }

    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
    }
}

/// The bytes of an answer's head, final empty line included.
pub fn head(status: u16, headers: &Headers) -> String {
    let reason = http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason());
    let mut head = format!("HTTP/1.1 {status} {}\r\n", reason.unwrap_or("Whatever"));
    for (name, value) in &headers.0 {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    head + "\r\n"
}

/// Sends a whole small answer as JSON. False when the client has gone.
pub async fn answer(stream: &mut TcpStream, status: u16, mut headers: Headers, body: &str) -> bool {
    headers.set("Content-Type", "application/json");
    headers.set("Content-Length", body.len());
    let answer = head(status, &headers) + body;
    stream.write_all(answer.as_bytes()).await.is_ok()
}
