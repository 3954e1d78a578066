//! Bodies of answers: what is sent, counted, and broken off where the source breaks.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use http_body::{Frame, SizeHint};

use super::exchange::Exchange;
use crate::store::{BlobReader, ReadError};

/// What an answer consists of besides its head.
pub enum Payload {
    Full(Bytes),
    /// The length where it is known.
    Stream(BoxStream<'static, Result<Bytes, ReadError>>, Option<u64>),
    /// Not sent, for HEAD and 304; the length that GET would have.
    Absent(Option<u64>),
}

impl Payload {
    pub const EMPTY: Self = Self::Full(Bytes::new());

    pub fn blob(reader: BlobReader, length: Option<u64>) -> Self {
        let pieces = stream::unfold(reader, |mut reader| async move { Some((reader.next().await?, reader)) });
        Self::Stream(pieces.boxed(), length)
    }

    /// In bytes, as `Content-Length` says it.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::Stream(_, length) | Self::Absent(length) => *length,
        }
    }
}

/// Why a transfer is cut.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the source gave {given} bytes of {promised}")]
    Length { given: u64, promised: u64 },
}

/// The body of an answer. An error makes hyper close the connection (HTTP/1.1) or reset the stream
/// (HTTP/2), so that no client takes what came for the whole.
pub struct Body {
    payload: Payload,
    length: Option<u64>,
    sent: u64,
    ended: bool,
    exchange: Box<Exchange>,
}

impl Body {
    pub(super) fn new(payload: Payload, exchange: Box<Exchange>) -> Self {
        let length = match &payload {
            Payload::Absent(_) => Some(0),
            other => other.length(),
        };
        let mut body = Self { payload, length, sent: 0, ended: false, exchange };
        if length == Some(0) {
            body.end();
        }
        body
    }

    fn end(&mut self) {
        self.ended = true;
        self.exchange.complete();
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = match &mut self.payload {
            Payload::Full(bytes) => Some(Ok(std::mem::take(bytes))),
            Payload::Stream(pieces, _) => ready!(pieces.poll_next_unpin(cx)),
            Payload::Absent(_) => None,
        };
        Poll::Ready(self.checked(piece))
    }

    /// Holds the source to the length that the head has promised.
    fn checked(&mut self, piece: Option<Result<Bytes, ReadError>>) -> Option<Result<Bytes, BodyError>> {
        let given = match &piece {
            Some(Ok(bytes)) => self.sent + bytes.len() as u64,
            _ => self.sent,
        };
        let broken = |length: u64| if piece.is_none() { given < length } else { given > length };
        match piece {
            Some(Err(error)) => {
                self.ended = true;
                Some(Err(error.into()))
            }
            _ if self.length.is_some_and(broken) => {
                self.ended = true;
                Some(Err(BodyError::Length { given, promised: self.length.unwrap_or_default() }))
            }
            Some(Ok(bytes)) => {
                self.sent = given;
                self.exchange.sent(bytes.len() as u64);
                if self.length == Some(given) {
                    self.end();
                }
                Some(Ok(bytes))
            }
            None => {
                self.end();
                None
            }
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        let piece = ready!(body.next(cx));
        if let Some(Err(error)) = &piece {
            body.exchange.broke(error);
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.exchange.is_complete()
    }

    fn size_hint(&self) -> SizeHint {
        match self.length {
            Some(length) => SizeHint::with_exact(length.saturating_sub(self.sent)),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::exchange::tests::exchange;
    use http_body_util::BodyExt;

    fn body(pieces: Vec<Result<&'static [u8], ReadError>>, length: Option<u64>) -> Body {
        let pieces = stream::iter(pieces).map(|piece| piece.map(Bytes::from_static));
        Body::new(Payload::Stream(pieces.boxed(), length), Box::new(exchange()))
    }

    async fn collected(body: Body) -> Result<Bytes, BodyError> {
        body.collect().await.map(|collected| collected.to_bytes())
    }

    #[tokio::test]
    async fn whole_sources_end_cleanly() {
        assert_eq!(collected(body(vec![Ok(b"ab"), Ok(b"c")], Some(3))).await.unwrap(), "abc");
        assert_eq!(collected(body(vec![Ok(b"ab"), Ok(b"c")], None)).await.unwrap(), "abc");
        assert_eq!(collected(body(vec![], None)).await.unwrap(), "");
        let full = Body::new(Payload::Full(Bytes::from_static(b"abc")), Box::new(exchange()));
        assert_eq!(http_body::Body::size_hint(&full).exact(), Some(3));
        assert_eq!(collected(full).await.unwrap(), "abc");
        let absent = Body::new(Payload::Absent(Some(9)), Box::new(exchange()));
        assert!(http_body::Body::is_end_stream(&absent));
    }

    #[tokio::test]
    async fn what_is_broken_or_of_another_length_is_an_error() {
        let error = || ReadError::Short;
        assert!(matches!(
            collected(body(vec![Ok(b"ab"), Err(error())], None)).await,
            Err(BodyError::Read(_))
        ));
        for (pieces, length) in
            [(vec![Ok(&b"ab"[..])], 3), (vec![Ok(&b"ab"[..]), Ok(&b"cd"[..])], 3), (vec![], 1)]
        {
            assert!(matches!(collected(body(pieces, Some(length))).await, Err(BodyError::Length { .. })));
        }
    }

    #[tokio::test]
    async fn the_exchange_knows_what_was_sent_and_whether_it_was_cut() {
        let mut whole = body(vec![Ok(b"ab"), Ok(b"c")], Some(3));
        whole.frame().await.unwrap().unwrap();
        assert!(!whole.exchange.is_complete() && !http_body::Body::is_end_stream(&whole));
        whole.frame().await.unwrap().unwrap();
        assert!(whole.exchange.is_complete() && http_body::Body::is_end_stream(&whole));
        let mut broken = body(vec![Err(ReadError::Short)], None);
        assert!(broken.frame().await.unwrap().is_err());
        assert!(broken.frame().await.is_none());
        assert!(!broken.exchange.is_complete() && !http_body::Body::is_end_stream(&broken));
    }
}
