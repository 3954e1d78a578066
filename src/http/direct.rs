//! A connection whose writes reach the socket as they are, so that what is held can go there straight from its
//! file: where a [`window`] is written, the file is sent.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::store::window;

pub struct Direct(pub TcpStream);

impl Direct {
    /// Does `write`, which is not to wait, once the socket takes something.
    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_io(Interest::WRITABLE, || write(&self.0)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_window(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_io(cx, |socket| match window::send(bytes, socket.as_fd()) {
            Some(sent) => sent,
            // Who asked has seen that it is one.
            None => Err(io::Error::other("a window that is not lent")),
        })
    }

    /// A head leaves with the first bytes of what follows it, not in a packet of its own.
    fn poll_head(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        self.poll_io(cx, |socket| {
            Ok(sendmsg(socket.as_fd(), bufs, &mut SendAncillaryBuffer::default(), flags)?)
        })
    }
}

impl AsyncRead for Direct {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Direct {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if window::is_one(buf) {
            self.poll_window(cx, buf)
        } else {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match bufs.iter().position(|buf| window::is_one(buf)) {
            None => Pin::new(&mut self.0).poll_write_vectored(cx, bufs),
            Some(at) if bufs[..at].iter().all(|buf| buf.is_empty()) => self.poll_window(cx, &bufs[at]),
            Some(at) => self.poll_head(cx, &bufs[..at]),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::clock::Clock;
    use crate::disk::RealDisk;
    use crate::oci::Digest;
    use crate::store::Store;
    use crate::tasks::Tasks;

    const LEN: usize = 2 * window::SIZE + 1000;

    /// A blob that is held, as pieces for a connection that sends files, and its bytes.
    async fn pieces(dir: &std::path::Path) -> (Vec<Bytes>, Vec<u8>) {
        let content: Vec<u8> =
            (0..LEN as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let digest = Digest::sha256(&content);
        let folder =
            dir.join(format!("docker/registry/v2/blobs/sha256/{}/{}", &digest.hex()[..2], digest.hex()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("data"), &content).unwrap();
        let options = crate::store::tests::options(dir);
        let store =
            Store::open(options, Arc::new(RealDisk), Arc::default(), Clock::default(), Tasks::default());
        let store = store.unwrap();
        let mut reader = store.read(store.blob(&digest).unwrap().unwrap(), None).by_windows();
        let mut pieces = Vec::new();
        while let Some(piece) = reader.next().await {
            pieces.push(piece.unwrap());
        }
        (pieces, content)
    }

    async fn connection() -> (Direct, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Direct(listener.accept().await.unwrap().0), client)
    }

    /// Writes all of it as hyper does: what is left, in slices, again and again.
    async fn write(direct: &mut Direct, mut left: Vec<Bytes>) -> io::Result<()> {
        while !left.is_empty() {
            let slices: Vec<IoSlice> = left.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut written = direct.write_vectored(&slices).await?;
            for piece in &mut left {
                let of_this = written.min(piece.len());
                drop(piece.split_to(of_this));
                written -= of_this;
            }
            left.retain(|piece| !piece.is_empty());
        }
        direct.shutdown().await
    }

    #[tokio::test]
    async fn windows_are_sent_from_the_file_between_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (pieces, content) = pieces(dir.path()).await;
        let are_windows: Vec<bool> = pieces.iter().map(|piece| window::is_one(piece)).collect();
        assert_eq!(are_windows, [true, true, false], "the rest is too small for one");
        let (mut direct, mut client) = connection().await;
        let (head, tail) = (Bytes::from_static(b"head"), Bytes::from_static(b"tail"));
        let all = [vec![head.clone(), Bytes::new()], pieces, vec![tail.clone()]].concat();
        let (written, read) = tokio::join!(write(&mut direct, all), async {
            let mut read = Vec::new();
            client.read_to_end(&mut read).await.unwrap();
            read
        });
        written.unwrap();
        assert!(read == [&head[..], &content, &tail].concat());
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_is_an_error_and_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let (pieces, content) = pieces(dir.path()).await;
        let digest = Digest::sha256(&content);
        let at = format!("docker/registry/v2/blobs/sha256/{}/{}/data", &digest.hex()[..2], digest.hex());
        let file = std::fs::OpenOptions::new().write(true).open(dir.path().join(at)).unwrap();
        file.set_len(window::SIZE as u64 + 10).unwrap();
        let (mut direct, mut client) = connection().await;
        let reading = tokio::spawn(async move {
            let mut read = Vec::new();
            let _ = client.read_to_end(&mut read).await;
            read.len()
        });
        let error = write(&mut direct, pieces).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        drop(direct);
        assert_eq!(reading.await.unwrap(), window::SIZE + 10);
    }
}
