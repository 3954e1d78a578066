//! What HTTP/2 writes over TLS, gathered. It writes and flushes frame by frame, which by itself would make two
//! records of each and a call of the kernel. Here records are full and leave together, once the connection has
//! nothing more to say or there are enough.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::handshake;
use crate::tasks::lock;

/// Plain text of a record at most (RFC 8446, 5.1).
const RECORD: usize = 16 << 10;
/// Sealed and not sent, before more waits.
const ENOUGH: usize = 96 << 10;
// There is room for so much again, with what sealing adds.
const _: () = assert!(2 * ENOUGH + ENOUGH / 2 < handshake::BUFFER);

/// The stream, for who reads and writes it.
pub struct Gathered<I>(Arc<Mutex<Inner<I>>>);

/// The same, for who drives the connection.
pub struct Rest<I>(Arc<Mutex<Inner<I>>>);

struct Inner<I> {
    stream: TlsStream<I>,
    /// Whether writes wait at all.
    gathers: bool,
    /// Less than a record.
    waiting: Vec<u8>,
    /// Since all that was sealed had been sent.
    sealed: usize,
    /// Something was written and not flushed.
    is_dirty: bool,
}

/// The two ends of a stream that gathers its writes, where it is to.
pub fn gather<I>(stream: TlsStream<I>, gathers: bool) -> (Gathered<I>, Rest<I>) {
    let inner = Inner { stream, gathers, waiting: Vec::new(), sealed: 0, is_dirty: false };
    let inner = Arc::new(Mutex::new(inner));
    (Gathered(inner.clone()), Rest(inner))
}

impl<I: AsyncRead + AsyncWrite + Unpin> Rest<I> {
    /// Lets go of what waits. To be called whenever the connection has been polled.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        if !inner.is_dirty {
            return Poll::Ready(Ok(()));
        }
        ready!(inner.poll_all(cx))?;
        inner.is_dirty = false;
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Inner<I> {
    /// Sends all that was written.
    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.waiting.is_empty() {
            ready!(self.poll_room(cx))?;
            self.seal(&[], self.waiting.len())?;
        }
        // A connection that is still takes no memory for this.
        self.waiting = Vec::new();
        self.poll_sent(cx)
    }

    /// Waits until there is room for more that is sealed.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.sealed < ENOUGH { Poll::Ready(Ok(())) } else { self.poll_sent(cx) }
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.sealed = 0;
        Poll::Ready(Ok(()))
    }

    /// Seals so many bytes, all that waits and some of `bufs`, for which there is room. How many of `bufs`.
    fn seal(&mut self, bufs: &[IoSlice<'_>], count: usize) -> io::Result<usize> {
        let mut left = count;
        let all = std::iter::once(&self.waiting[..]).chain(bufs.iter().map(|buf| &**buf));
        let taken: Vec<IoSlice<'_>> = all
            .map_while(|buf| {
                let part = &buf[..buf.len().min(left)];
                left -= part.len();
                (!part.is_empty() || left > 0).then(|| IoSlice::new(part))
            })
            .collect();
        let written = self.stream.get_mut().1.writer().write_vectored(&taken)?;
        if written < count {
            // There is room for it: so it does not go on at all.
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.sealed += count;
        let of_bufs = count - self.waiting.len();
        self.waiting.clear();
        Ok(of_bufs)
    }

    /// Takes what there is room for, at least one byte of those that there are. Whole records are sealed at once;
    /// only what is too little for one is copied.
    fn poll_add(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.is_dirty = true;
        let count: usize = bufs.iter().map(|buf| buf.len()).sum();
        let whole = (self.waiting.len() + count).min(ENOUGH) / RECORD * RECORD;
        if whole == 0 {
            bufs.iter().for_each(|buf| self.waiting.extend_from_slice(buf));
            return Poll::Ready(Ok(count));
        }
        ready!(self.poll_room(cx))?;
        Poll::Ready(self.seal(bufs, whole))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathered<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).stream).poll_read(cx, buf)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gathered<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        if inner.gathers {
            return inner.poll_add(cx, &[IoSlice::new(buf)]);
        }
        Pin::new(&mut inner.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        if inner.gathers {
            return inner.poll_add(cx, bufs);
        }
        Pin::new(&mut inner.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What waits leaves by [`Rest`], a moment later.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        if inner.gathers {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut inner.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        if inner.is_dirty {
            ready!(inner.poll_all(cx))?;
            inner.is_dirty = false;
        }
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_rustls::client::TlsStream as ClientStream;

    use super::*;
    use crate::http::handshake::tests::{client, connected};
    use crate::http::tls::{self, Tls};

    type Near = (Gathered<DuplexStream>, Rest<DuplexStream>);

    /// A stream of TLS over a pipe that holds `room` bytes, and its far end.
    async fn pair(room: usize, gathers: bool) -> (Near, ClientStream<DuplexStream>) {
        let folder = tempfile::tempdir().unwrap();
        let (options, certificate) = tls::tests::write_pair(folder.path());
        let (tls, _) = Tls::load(options).await.unwrap();
        let client = client(&certificate, &rustls::version::TLS13, |_| false);
        let (near, far) = connected(&tls, &client, room).await;
        (gather(near, gathers), far)
    }

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8).collect()
    }

    #[tokio::test]
    async fn frames_leave_together_and_in_order() {
        let ((mut gathered, rest), mut far) = pair(1 << 20, true).await;
        gathered.write_all(b"one").await.unwrap();
        let two = [IoSlice::new(b"t"), IoSlice::new(b"wo")];
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
    async fn what_is_too_little_for_a_record_waits_for_the_next() {
        let ((mut gathered, rest), mut far) = pair(4 << 20, true).await;
        let content = content(20 * (RECORD + 9));
        let mut waited = 0;
        for frame in content.chunks(RECORD + 9) {
            let mut left = [IoSlice::new(&frame[..9]), IoSlice::new(&frame[9..])];
            let mut left = &mut left[..];
            while !left.is_empty() {
                let written = gathered.write_vectored(left).await.unwrap();
                IoSlice::advance_slices(&mut left, written);
            }
            waited += 9;
            assert_eq!(lock(&rest.0).waiting.len(), waited);
        }
        gathered.shutdown().await.unwrap();
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        assert!(read == content);
    }

    #[tokio::test]
    async fn no_more_waits_than_is_enough() {
        let ((mut gathered, rest), mut far) = pair(1000, true).await;
        let content = content(10 * ENOUGH + 100);
        let mut taken = 0;
        while let Some(count) = gathered.write(&content[taken..]).now_or_never() {
            taken += count.unwrap();
        }
        assert!((ENOUGH..=2 * ENOUGH).contains(&taken), "{taken}");
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

    #[tokio::test]
    async fn what_the_stream_itself_holds_back_is_flushed_to_its_end() {
        let ((mut gathered, rest), mut far) = pair(1000, true).await;
        let content = content(5000);
        gathered.write_all(&content).await.unwrap();
        let flush = || poll_fn(|cx| rest.poll_flush(cx)).now_or_never();
        assert!(flush().is_none());
        let mut read = vec![0; content.len()];
        let (flushed, read_whole) =
            tokio::join!(poll_fn(|cx| rest.poll_flush(cx)), far.read_exact(&mut read));
        flushed.unwrap();
        read_whole.unwrap();
        assert!(read == content && !lock(&rest.0).is_dirty);
    }

    #[tokio::test]
    async fn what_is_not_to_wait_does_not() {
        let ((mut gathered, _rest), mut far) = pair(1000, false).await;
        gathered.write_all(b"now").await.unwrap();
        let mut read = [0; 3];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"now");
    }
}
