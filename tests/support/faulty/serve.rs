//! The connections of the scripted upstream.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::super::http1::{Request, Server, head};
use super::content::Answer;
use super::{Cut, Fault, Guard, Seen, State};

const PIECE: usize = 64 << 10;

pub async fn start(state: Arc<State>, port: u16) -> Server {
    Server::start(port, move |stream| connection(state.clone(), stream)).await
}

async fn connection(state: Arc<State>, mut stream: TcpStream) {
    let refused = state.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    if refused.is_ok() {
        return reset(stream);
    }
    while let Some(request) = Request::read(&mut stream).await {
        let (sent, ended) = (Arc::<AtomicU64>::default(), Arc::<OnceLock<Instant>>::default());
        let Request { method, path, query, headers, .. } = request.clone();
        let (came, noted, end) = (Instant::now(), sent.clone(), Ended(ended.clone()));
        state.requests.lock().unwrap().push(Seen { method, path, query, headers, came, sent: noted, ended });
        let faults = state.faults_for(&request);
        let Some(reply) = Reply::make(&state, &request, &faults).await else {
            return reset(stream);
        };
        let how = reply.send(&mut stream, request.method == "HEAD", &sent).await;
        drop(end);
        match how {
            Ok(End::KeepAlive) => {}
            Ok(End::Close) | Err(_) => return,
            Ok(End::Reset) => {
                // A reset drops what is still under way; this lets it arrive first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return reset(stream);
            }
        }
    }
}

/// Dropped, an answer is over.
struct Ended(Arc<OnceLock<Instant>>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.set(Instant::now());
    }
}

fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}

impl State {
    /// The faults of the first rule that matches, which is then used once more.
    fn faults_for(&self, request: &Request) -> Vec<Fault> {
        let mut rules = self.rules.lock().unwrap();
        let rule = rules.iter_mut().find(|rule| {
            rule.left != Some(0)
                && rule.method == request.method
                && request.path.contains(&rule.path_contains)
        });
        let Some(rule) = rule else { return Vec::new() };
        rule.left = rule.left.map(|left| left - 1);
        rule.faults.clone()
    }
}

impl Guard {
    /// 401 for a request without a token, or with one that has expired.
    fn challenge_to(&mut self, request: &Request) -> Option<Answer> {
        let token = request.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let mut challenge = self.challenge.clone();
        match token {
            Some(token) if !self.revoked.contains(token) && (!self.reads || covers(token, &request.path)) => {
                self.accepted.insert(token.to_owned());
                return None;
            }
            Some(_) => challenge += ",error=\"invalid_token\"",
            None => {}
        }
        if let Some((_, rest)) = request.path.split_once("/v2/")
            && let Some((name, _)) =
                ["/manifests/", "/blobs/", "/referrers/"].iter().find_map(|kind| rest.split_once(kind))
        {
            challenge += &format!(",scope=\"repository:{name}:pull\"");
        }
        let mut answer = Answer::error(401, "UNAUTHORIZED", "authentication required");
        answer.headers.set("WWW-Authenticate", challenge);
        Some(answer)
    }
}

/// Whether a token's claims let the repository of a path be pulled. Its signature is not checked.
fn covers(token: &str, path: &str) -> bool {
    let claims = token.split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
    let claims: Value = claims.and_then(|claims| serde_json::from_slice(&claims).ok()).unwrap_or_default();
    let of_path = |access: &Value| {
        let name = access["name"].as_str().unwrap_or_default();
        path.starts_with(&format!("/v2/{name}/"))
    };
    claims["access"].as_array().is_some_and(|access| access.iter().any(of_path))
}

enum Framing {
    Length(u64),
    Chunked,
    Close,
}

enum End {
    KeepAlive,
    Close,
    Reset,
}

/// An answer and the way in which it is delivered.
struct Reply {
    answer: Answer,
    framing: Option<Framing>,
    rate: Option<u64>,
    /// Where the body ends too early, and how.
    stop: Option<(u64, Stop)>,
}

#[derive(Clone, Copy)]
enum Stop {
    Cut(Cut),
    Stall,
}

impl Reply {
    /// What `faults` make of the normal answer; `None` is a reset.
    async fn make(state: &State, request: &Request, faults: &[Fault]) -> Option<Self> {
        let whole = faults.iter().any(|fault| matches!(fault, Fault::IgnoreRange));
        let mut answer = Answer::normal(&state.library.lock().unwrap(), request, whole);
        if request.path.contains("/manifests/")
            && let Some(quota) = state.quota.lock().unwrap().as_mut()
        {
            answer = answer.limited(quota, request);
        }
        if let Some(guard) = state.guard.lock().unwrap().as_mut()
            && let Some(challenge) = guard.challenge_to(request)
        {
            answer = challenge;
        }
        let mut reply = Self { answer, framing: None, rate: None, stop: None };
        for fault in faults {
            match fault {
                Fault::Reset => return None,
                Fault::Delay(Duration::MAX) => std::future::pending().await,
                Fault::Delay(delay) => tokio::time::sleep(*delay).await,
                fault => reply.apply(fault, request),
            }
        }
        Some(reply)
    }

    fn apply(&mut self, fault: &Fault, request: &Request) {
        let Self { answer, framing, rate, stop } = self;
        match fault {
            Fault::Answer { status, headers, body } => {
                *answer = Answer::new(*status, headers.clone(), body.clone());
            }
            Fault::Redirect(base) => {
                let query =
                    if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
                let location = format!("{base}{}{query}", request.path);
                *answer = Answer::new(307, vec![("Location", location)], "");
            }
            Fault::Header(name, value) => answer.headers.set(name, value),
            Fault::WithoutHeader(name) => answer.headers.remove(name),
            Fault::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&answer.body).unwrap();
                answer.body = encoder.finish().unwrap().into();
                answer.headers.set("Content-Encoding", "gzip");
            }
            Fault::Flip(at) => {
                let mut bytes = answer.body.to_vec();
                if let Some(byte) = bytes.get_mut(*at) {
                    *byte ^= 1;
                }
                answer.body = bytes.into();
            }
            Fault::Append(extra) => {
                let mut bytes = answer.body.to_vec();
                bytes.resize(bytes.len() + extra, 0);
                answer.body = bytes.into();
            }
            Fault::Length(length) => *framing = Some(Framing::Length(*length)),
            Fault::Chunked => *framing = Some(Framing::Chunked),
            Fault::CloseDelimited => *framing = Some(Framing::Close),
            Fault::Cut { after, how } => *stop = Some((*after, Stop::Cut(*how))),
            Fault::Stall { after } => *stop = Some((*after, Stop::Stall)),
            Fault::Rate(bytes) => *rate = Some(*bytes),
            Fault::Reset | Fault::Delay(_) | Fault::IgnoreRange => {}
        }
    }

    async fn send(
        mut self,
        stream: &mut TcpStream,
        head_only: bool,
        sent: &AtomicU64,
    ) -> std::io::Result<End> {
        let mut end = End::KeepAlive;
        match self.framing {
            None => self.answer.headers.set("Content-Length", self.answer.body.len()),
            Some(Framing::Length(length)) => {
                self.answer.headers.set("Content-Length", length);
                end = End::Close;
            }
            Some(Framing::Chunked) => self.answer.headers.set("Transfer-Encoding", "chunked"),
            Some(Framing::Close) => {
                self.answer.headers.set("Connection", "close");
                end = End::Close;
            }
        }
        stream.write_all(head(self.answer.status, &self.answer.headers).as_bytes()).await?;
        if head_only {
            return Ok(end);
        }
        let body = self.answer.body.clone();
        match self.stop.filter(|(after, _)| *after < body.len() as u64) {
            None => self.send_body(stream, body, sent).await?,
            Some((after, stop)) => {
                self.send_body(stream, body.slice(..after as usize), sent).await?;
                match stop {
                    Stop::Cut(Cut::Fin) => return Ok(End::Close),
                    Stop::Cut(Cut::Reset) => return Ok(End::Reset),
                    Stop::Stall => std::future::pending().await,
                }
            }
        }
        if let Some(Framing::Chunked) = self.framing {
            stream.write_all(b"0\r\n\r\n").await?;
        }
        Ok(end)
    }

    async fn send_body(
        &self,
        stream: &mut TcpStream,
        mut body: Bytes,
        sent: &AtomicU64,
    ) -> std::io::Result<()> {
        // Twenty pieces a second at least, so that a slow body still flows.
        let piece = self.rate.map_or(PIECE, |rate| PIECE.min(rate as usize / 20).max(1));
        let begun = tokio::time::Instant::now();
        let mut gone: u64 = 0;
        while !body.is_empty() {
            let next = body.split_to(piece.min(body.len()));
            if let Some(Framing::Chunked) = self.framing {
                stream.write_all(format!("{:x}\r\n", next.len()).as_bytes()).await?;
            }
            stream.write_all(&next).await?;
            if let Some(Framing::Chunked) = self.framing {
                stream.write_all(b"\r\n").await?;
            }
            gone += next.len() as u64;
            sent.store(gone, Ordering::SeqCst);
            if let Some(rate) = self.rate.filter(|_| !body.is_empty()) {
                tokio::time::sleep_until(begun + Duration::from_secs_f64(gone as f64 / rate as f64)).await;
            }
        }
        Ok(())
    }
}
