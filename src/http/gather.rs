//! What HTTP/2 writes over TLS, gathered. It writes and flushes frame by frame; over TLS each would be a record
//! of its own, the largest even two, and a call of the kernel. Here they wait until the connection has nothing
//! more to say, or there are enough.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tasks::lock;

/// Four records of the largest size (RFC 8446, 5.1).
const ENOUGH: usize = 64 << 10;

/// The stream, for who reads and writes it.
pub struct Gathered<I>(Arc<Mutex<Inner<I>>>);

/// The same, for who drives the connection.
pub struct Rest<I>(Arc<Mutex<Inner<I>>>);

struct Inner<I> {
    io: I,
    /// Whether writes wait at all.
    gathers: bool,
    waiting: Vec<u8>,
    /// Of what waits.
    written: usize,
    /// Something was written and not flushed: what a stream of TLS has taken may wait in it, too.
    is_dirty: bool,
}

/// The two ends of a stream that gathers its writes, where it is to.
pub fn gather<I>(io: I, gathers: bool) -> (Gathered<I>, Rest<I>) {
    let inner = Arc::new(Mutex::new(Inner { io, gathers, waiting: Vec::new(), written: 0, is_dirty: false }));
    (Gathered(inner.clone()), Rest(inner))
}

impl<I: AsyncWrite + Unpin> Rest<I> {
    /// Lets go of what waits. To be called whenever the connection has been polled.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        if !inner.is_dirty {
            return Poll::Ready(Ok(()));
        }
        ready!(inner.poll_drain(cx))?;
        // A connection that is still takes no memory for this.
        inner.waiting = Vec::new();
        ready!(Pin::new(&mut inner.io).poll_flush(cx))?;
        inner.is_dirty = false;
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> Inner<I> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.waiting.len() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.waiting[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.waiting.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Takes what there is room for, at least one byte of those that there are.
    fn poll_add(&mut self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.waiting.len() >= ENOUGH {
            ready!(self.poll_drain(cx))?;
        }
        self.is_dirty = true;
        let before = self.waiting.len();
        for buf in bufs {
            let room = ENOUGH - self.waiting.len();
            self.waiting.extend_from_slice(&buf[..buf.len().min(room)]);
        }
        Poll::Ready(Ok(self.waiting.len() - before))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Gathered<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Gathered<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        if inner.gathers {
            return inner.poll_add(cx, &[io::IoSlice::new(buf)]);
        }
        Pin::new(&mut inner.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        if inner.gathers {
            return inner.poll_add(cx, bufs);
        }
        Pin::new(&mut inner.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        let inner = lock(&self.0);
        inner.gathers || inner.io.is_write_vectored()
    }

    /// What waits leaves by [`Rest`], a moment later.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        if inner.gathers {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut inner.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn frames_leave_together_and_in_order() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (mut gathered, rest) = gather(near, true);
        gathered.write_all(b"one").await.unwrap();
        let two = [io::IoSlice::new(b"t"), io::IoSlice::new(b"wo")];
        assert_eq!(gathered.write_vectored(&two).await.unwrap(), 3);
        gathered.flush().await.unwrap();
        assert!(far.read_u8().now_or_never().is_none(), "it waits for the end of the turn");
        poll_fn(|cx| rest.poll_flush(cx)).await.unwrap();
        let mut read = [0; 6];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"onetwo");
        assert_eq!(lock(&rest.0).waiting.capacity(), 0);
        gathered.write_all(b"last").await.unwrap();
        gathered.shutdown().await.unwrap();
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"last");
    }

    #[tokio::test]
    async fn no_more_waits_than_is_enough() {
        let (near, mut far) = tokio::io::duplex(1000);
        let (mut gathered, rest) = gather(near, true);
        let content: Vec<u8> = (0..3 * ENOUGH).map(|at| (at % 251) as u8).collect();
        let mut taken = 0;
        while let Some(count) = gathered.write(&content[taken..]).now_or_never() {
            taken += count.unwrap();
        }
        assert_eq!(taken, ENOUGH);
        let writing = async {
            gathered.write_all(&content[taken..]).await.unwrap();
            gathered.shutdown().await.unwrap();
        };
        let mut read = Vec::new();
        let (_, ended) = tokio::join!(writing, far.read_to_end(&mut read));
        ended.unwrap();
        assert!(read == content);
        assert!(lock(&rest.0).waiting.is_empty());
    }

    /// Takes everything at once, and needs to be flushed twice.
    #[derive(Default)]
    struct Slow {
        flushed: usize,
    }

    impl AsyncWrite for Slow {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushed += 1;
            if self.flushed < 2 { Poll::Pending } else { Poll::Ready(Ok(())) }
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncRead for Slow {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn what_the_stream_itself_holds_back_is_flushed_to_its_end() {
        let (mut gathered, rest) = gather(Slow::default(), true);
        gathered.write_all(b"one").await.unwrap();
        let flush = || poll_fn(|cx| rest.poll_flush(cx)).now_or_never();
        assert!(flush().is_none());
        flush().unwrap().unwrap();
        flush().unwrap().unwrap();
        assert_eq!(lock(&rest.0).io.flushed, 2, "no more than it takes");
    }

    #[tokio::test]
    async fn what_is_not_to_wait_does_not() {
        let (near, mut far) = tokio::io::duplex(1000);
        let (mut gathered, _rest) = gather(near, false);
        gathered.write_all(b"now").await.unwrap();
        let mut read = [0; 3];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"now");
    }
}
