//! Reading bodies: bounded in size and in waiting, every byte counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt};
use reqwest::Response;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;

use super::Cause;
use super::client::explain;
use crate::metrics::UpstreamMetrics;

/// Most that is read of an answer that is only read for its error message, and the longest wait for it.
const MESSAGE_BODY: usize = 64 * 1024;
const MESSAGE_WAIT: Duration = Duration::from_secs(1);
/// Most that is passed on of an upstream's own words, in characters.
const MESSAGE: usize = 200;
/// A body that is kept in memory may take as many idle timeouts in all.
const IDLE_TIMEOUTS: u32 = 4;

/// How bodies are read.
#[derive(Clone)]
pub struct Reading {
    /// Longest wait for the next chunk.
    pub idle: Duration,
    pub metrics: Arc<UpstreamMetrics>,
}

impl Reading {
    /// The next chunk, or None at the end.
    async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, Cause> {
        match tokio::time::timeout(self.idle, response.chunk()).await {
            Ok(Ok(chunk)) => {
                self.metrics.received_bytes.inc_by(chunk.as_ref().map_or(0, Bytes::len) as u64);
                Ok(chunk)
            }
            Ok(Err(error)) => Err(Cause::Trouble(format!("the body broke off: {}", explain(error)))),
            Err(_) => Err(Cause::Trouble(format!("no more of the body came within {:?}", self.idle))),
        }
    }

    /// The whole body, of at most `limit` bytes; `what` names it.
    pub async fn whole(&self, mut response: Response, limit: usize, what: &str) -> Result<Bytes, Cause> {
        let too_large = || Cause::Corrupt(format!("{what} is larger than the limit of {limit} bytes"));
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let read = async {
            let mut whole = BytesMut::new();
            while let Some(chunk) = self.chunk(&mut response).await? {
                if whole.len() + chunk.len() > limit {
                    return Err(too_large());
                }
                whole.extend_from_slice(&chunk);
            }
            Ok(whole.freeze())
        };
        let total = self.idle.saturating_mul(IDLE_TIMEOUTS);
        tokio::time::timeout(total, read)
            .await
            .unwrap_or_else(|_| Err(Cause::Trouble(format!("{what} did not come within {total:?}"))))
    }

    /// The start of a body that says what went wrong. Read to its end where that is near, so that the
    /// connection can be used again.
    pub async fn start(&self, mut response: Response) -> Vec<u8> {
        let mut start = Vec::new();
        let read = async {
            while start.len() < MESSAGE_BODY
                && let Ok(Some(chunk)) = self.chunk(&mut response).await
            {
                start.extend_from_slice(&chunk);
            }
        };
        // What has come until then will do.
        let _ = tokio::time::timeout(MESSAGE_WAIT, read).await;
        start
    }

    /// A body as a stream that holds `place` until it is dropped. With `expected`, a body of another
    /// length is an error. After an error the stream ends.
    pub fn stream(
        self,
        response: Response,
        expected: Option<u64>,
        place: Arc<OwnedSemaphorePermit>,
    ) -> BoxStream<'static, Result<Bytes, Cause>> {
        let state = (self, response, expected, place);
        let next = |state: Option<(Self, Response, Option<u64>, Arc<OwnedSemaphorePermit>)>| async move {
            let (reading, mut response, left, place) = state?;
            let chunk = reading.chunk(&mut response).await;
            match (chunk, left) {
                (Ok(Some(chunk)), None) => Some((Ok(chunk), Some((reading, response, None, place)))),
                (Ok(Some(chunk)), Some(left)) => match left.checked_sub(chunk.len() as u64) {
                    Some(left) => Some((Ok(chunk), Some((reading, response, Some(left), place)))),
                    None => Some((Err(Cause::Corrupt("more came than the range asked for".into())), None)),
                },
                (Ok(None), Some(left @ 1..)) => {
                    Some((Err(Cause::Trouble(format!("the body broke off: {left} bytes are missing"))), None))
                }
                (Ok(None), _) => None,
                (Err(cause), _) => Some((Err(cause), None)),
            }
        };
        stream::unfold(Some(state), next).boxed()
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    errors: Vec<ErrorEntry>,
    message: Option<String>,
    details: Option<String>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    code: Option<String>,
    message: Option<String>,
}

/// The code of the first error in an error body in OCI's form; None where it has another form.
pub fn code(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<ErrorBody>(body).ok()?.errors.into_iter().next()?.code
}

/// What an error body says, for people: `: <message>`, printable and short; empty where it says nothing.
pub fn message(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => {
            let first = body.errors.into_iter().next();
            first.and_then(|error| error.message.or(error.code)).or(body.message).or(body.details)
        }
        Err(_) => {
            let text = String::from_utf8_lossy(body);
            let markup = text.trim_start().starts_with(['<', '{', '[']);
            (!markup).then(|| text.lines().next().unwrap_or_default().to_owned())
        }
    };
    let text: String =
        text.unwrap_or_default().trim().chars().filter(|c| !c.is_control()).take(MESSAGE).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_found_where_servers_put_them() {
        let hub =
            br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#;
        assert_eq!(message(hub), ": You have reached your pull rate limit.");
        assert_eq!(message(br#"{"errors":[{"code":"DENIED"}]}"#), ": DENIED");
        assert_eq!(
            message(br#"{"details":"incorrect username or password"}"#),
            ": incorrect username or password"
        );
        assert_eq!(message(b"Too Many Requests (HAP429).\n"), ": Too Many Requests (HAP429).");
        for nothing in [b"".as_slice(), b"<html>", b"{}", b"[1]", b"{\"errors\":3}"] {
            assert_eq!(message(nothing), "");
        }
    }

    proptest! {
        #[test]
        fn messages_are_short_and_printable(body: Vec<u8>, text in ".{0,400}") {
            for body in [body, text.into_bytes()] {
                let message = message(&body);
                prop_assert!(message.chars().count() <= MESSAGE + 2);
                prop_assert!(!message.chars().any(char::is_control));
            }
        }
    }
}
