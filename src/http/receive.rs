//! Bodies of requests, taken piece by piece as fast as the disk keeps them.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::{Version, header, request};

use super::watch::Activity;
use crate::registry::{Chunks, Interrupted};
use crate::tasks::Tasks;

/// How long a client may be silent within a body.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// What is still read of a body that nobody wants: closing the connection under a client that sends
/// may cost it our answer.
const DRAIN_BYTES: usize = 16 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A request's body. Not polled until it is wanted, for that tells a client that expects it so
/// (`100 Continue`) to send it.
pub struct RequestBody {
    chunks: Option<Chunks>,
    length: Option<u64>,
    drainable: bool,
}

impl RequestBody {
    pub fn new<B>(body: B, request: &request::Parts, activity: &Arc<Activity>) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Display,
    {
        let length = body.size_hint().exact();
        // Streams of HTTP/2 end without their connection.
        let drainable = request.version < Version::HTTP_2 && !request.headers.contains_key(header::EXPECT);
        let chunks = (!body.is_end_stream()).then(|| chunks(body, activity.clone(), SILENCE_MAX));
        Self { chunks, length, drainable }
    }

    /// Bytes, where the client has said so. Its connection breaks if it sends fewer.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// What comes of it; nothing, the second time.
    pub fn take(&mut self) -> Chunks {
        self.chunks.take().unwrap_or_else(|| stream::empty().boxed())
    }

    /// Reads on for a while, behind the answer, where nobody wanted the body.
    pub fn discard(self, tasks: &Tasks) {
        let Some(mut chunks) = self.chunks.filter(|_| self.drainable) else { return };
        tasks.spawn("drain", async move {
            let drained = async {
                let mut left = DRAIN_BYTES;
                while let Some(Ok(chunk)) = chunks.next().await
                    && let Some(rest) = left.checked_sub(chunk.len())
                {
                    left = rest;
                }
            };
            let _ = tokio::time::timeout(DRAIN_TIME, drained).await;
        });
    }
}

fn chunks<B>(body: B, activity: Arc<Activity>, silence: Duration) -> Chunks
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Display,
{
    let next = move |body: Option<std::pin::Pin<Box<B>>>| {
        let activity = activity.clone();
        async move {
            let mut body = body?;
            loop {
                let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx));
                let Ok(frame) = tokio::time::timeout(silence, frame).await else {
                    return Some((Err(Interrupted::Stalled(silence)), None));
                };
                match frame?.map(http_body::Frame::into_data) {
                    Ok(Ok(chunk)) => {
                        activity.fed();
                        return Some((Ok(chunk), Some(body)));
                    }
                    // Trailers say nothing to us.
                    Ok(Err(_)) => {}
                    Err(error) => return Some((Err(Interrupted::Broken(error.to_string())), None)),
                }
            }
        }
    };
    stream::unfold(Some(Box::pin(body)), next).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;

    type Frames = Vec<Result<http_body::Frame<Bytes>, &'static str>>;

    fn frames(frames: Frames) -> impl http_body::Body<Data = Bytes, Error = &'static str> + Send {
        StreamBody::new(stream::iter(frames))
    }

    fn data(text: &'static str) -> Result<http_body::Frame<Bytes>, &'static str> {
        Ok(http_body::Frame::data(Bytes::from_static(text.as_bytes())))
    }

    #[tokio::test]
    async fn pieces_come_in_order_and_a_break_is_the_last() {
        let body = frames(vec![data("a"), data("b"), Err("gone"), data("c")]);
        let all: Vec<_> = chunks(body, Arc::default(), SILENCE_MAX).collect().await;
        assert_eq!(all, [Ok("a".into()), Ok("b".into()), Err(Interrupted::Broken("gone".to_owned()))]);
    }

    #[tokio::test]
    async fn a_client_that_falls_silent_is_not_waited_for() {
        let silent = stream::iter([data("a")]).chain(stream::pending());
        let short = Duration::from_millis(10);
        let all: Vec<_> = chunks(StreamBody::new(silent), Arc::default(), short).collect().await;
        assert_eq!(all, [Ok("a".into()), Err(Interrupted::Stalled(short))]);
    }

    #[tokio::test]
    async fn a_body_is_there_once() {
        let (request, ()) = http::Request::put("/").body(()).unwrap().into_parts();
        let mut body = RequestBody::new(frames(vec![data("a")]), &request, &Arc::default());
        assert_eq!(body.take().count().await, 1);
        assert_eq!(body.take().count().await, 0);
    }
}
