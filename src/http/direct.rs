//! A connection whose writes reach the socket as they are, so that what is held can go there straight from its
//! file: where a [`window`] is written, the file is sent.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::store::window::{self, View};

/// What is sent before others have their turn; hyper asks once or twice again before it lets go. With less, a
/// gigabyte costs more (measured: a quarter of it, 10-15 %).
const TURN: usize = window::SIZE;

pub struct Direct {
    socket: TcpStream,
    /// How much of what comes next is known to be in memory.
    ready: usize,
    /// The disk is to give what comes next.
    fetching: Option<JoinHandle<io::Result<usize>>>,
    /// Since others had their turn.
    sent: usize,
}

impl Direct {
    pub fn new(socket: TcpStream) -> Self {
        Self { socket, ready: 0, fetching: None, sent: 0 }
    }

    /// Does `write`, which is not to wait, once the socket takes something.
    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_io(Interest::WRITABLE, || write(&self.socket)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_window(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(view) = window::view(bytes) else {
            // Who asked has seen that it is one.
            return Poll::Ready(Err(io::Error::other("a window that is not lent")));
        };
        if self.sent >= TURN {
            self.sent = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // The disk is not asked for what the socket does not take yet.
        ready!(self.socket.poll_write_ready(cx))?;
        if self.ready == 0 {
            self.ready = ready!(self.poll_ready(cx, view.clone()))?;
        }
        let count = self.ready.min(TURN - self.sent);
        let sent = ready!(self.poll_io(cx, |socket| view.send(socket.as_fd(), count)))?;
        self.ready = self.ready.saturating_sub(sent);
        self.sent += sent;
        Poll::Ready(Ok(sent))
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>, view: View) -> Poll<io::Result<usize>> {
        if self.fetching.is_none() {
            let ready = view.ready(TURN)?;
            if ready > 0 {
                return Poll::Ready(Ok(ready));
            }
        }
        let fetching = self.fetching.get_or_insert_with(|| tokio::task::spawn_blocking(move || view.fetch()));
        let fetched = ready!(Pin::new(fetching).poll(cx));
        self.fetching = None;
        Poll::Ready(fetched.unwrap_or_else(|gone| Err(io::Error::other(gone))))
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
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Direct {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if window::is_one(buf) {
            self.poll_window(cx, buf)
        } else {
            Pin::new(&mut self.socket).poll_write(cx, buf)
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match bufs.iter().position(|buf| window::is_one(buf)) {
            None => Pin::new(&mut self.socket).poll_write_vectored(cx, bufs),
            Some(at) if bufs[..at].iter().all(|buf| buf.is_empty()) => self.poll_window(cx, &bufs[at]),
            Some(at) => self.poll_head(cx, &bufs[..at]),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::clock::Clock;
    use crate::disk::hooked::Hooked;
    use crate::disk::{Disk, File, RealDisk};
    use crate::oci::Digest;
    use crate::store::Store;
    use crate::tasks::Tasks;

    const LEN: usize = 2 * window::SIZE + 1000;

    /// Where a registry's directory keeps this blob.
    fn path(dir: &Path, content: &[u8]) -> PathBuf {
        let hash = Digest::sha256(content).hex().to_string();
        dir.join(format!("docker/registry/v2/blobs/sha256/{}/{hash}/data", &hash[..2]))
    }

    /// A blob that is held, as pieces for a connection that sends files, and its bytes.
    async fn pieces(dir: &Path, disk: impl Disk) -> (Vec<Bytes>, Vec<u8>) {
        let content: Vec<u8> =
            (0..LEN as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (digest, path) = (Digest::sha256(&content), path(dir, &content));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &content).unwrap();
        let options = crate::store::tests::options(dir);
        let store = Store::open(options, Arc::new(disk), Arc::default(), Clock::default(), Tasks::default());
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
        (Direct::new(listener.accept().await.unwrap().0), client)
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
        let (pieces, content) = pieces(dir.path(), RealDisk).await;
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

    /// A file of which only those pages are in memory that were waited for.
    struct Cold {
        file: Arc<dyn File>,
        pages: Mutex<BTreeSet<u64>>,
        hints: Mutex<Vec<(u64, u64)>>,
    }

    impl File for Cold {
        fn size(&self) -> io::Result<u64> {
            self.file.size()
        }
        fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
            self.pages.lock().unwrap().insert(offset / 4096);
            self.file.read_at(into, offset)
        }
        fn read_ready(&self, into: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
            let is_there = self.pages.lock().unwrap().contains(&(offset / 4096));
            is_there.then(|| self.file.read_at(into, offset)).transpose()
        }
        fn read_aside(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
            self.file.read_aside(into, offset)
        }
        fn will_need(&self, offset: u64, len: u64) {
            self.hints.lock().unwrap().push((offset, len));
        }
        fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
            self.file.descriptor()
        }
        fn write_at(&self, from: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
            self.file.write_at(from, offset)
        }
        fn sync(&self) -> io::Result<()> {
            self.file.sync()
        }
    }

    /// The real disk, and the cold files that were opened of it.
    fn cold() -> (Hooked, Arc<Mutex<Vec<Arc<Cold>>>>) {
        let opened = Arc::new(Mutex::new(Vec::new()));
        let files = opened.clone();
        let open = Box::new(move |path: &Path| {
            let file = RealDisk.open(path)?;
            let file = Arc::new(Cold { file, pages: Mutex::default(), hints: Mutex::default() });
            files.lock().unwrap().push(file.clone());
            Ok(file as Arc<dyn File>)
        });
        (Hooked { open, ..Hooked::default() }, opened)
    }

    #[tokio::test]
    async fn what_memory_does_not_have_is_fetched_first() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, opened) = cold();
        let (mut pieces, content) = pieces(dir.path(), disk).await;
        let file = opened.lock().unwrap().last().unwrap().clone();
        let (mut direct, mut client) = connection().await;
        // The client has room for some of it at least.
        let sent = direct.write(&pieces[0]).await.unwrap();
        let fetched: BTreeSet<u64> = (0..window::SIZE as u64 / 4096).collect();
        assert!(fetched.is_subset(&file.pages.lock().unwrap()), "each page was waited for before");
        drop(pieces[0].split_to(sent));
        let (written, read) = tokio::join!(write(&mut direct, pieces), async {
            let mut read = Vec::new();
            client.read_to_end(&mut read).await.unwrap();
            read
        });
        written.unwrap();
        assert!(read == content && direct.fetching.is_none());
        // And no hint beyond the end.
        let size = window::SIZE as u64;
        assert_eq!(*file.hints.lock().unwrap(), [(0, 2 * size), (size, LEN as u64 - size)]);
    }

    #[tokio::test]
    async fn nobody_sends_on_and_on() {
        let dir = tempfile::tempdir().unwrap();
        let (pieces, _) = pieces(dir.path(), RealDisk).await;
        let (mut direct, _client) = connection().await;
        let window = &pieces[0];
        direct.sent = TURN - 10;
        assert_eq!(direct.write(window).await.unwrap(), 10);
        let mut turns = 0;
        let next = std::future::poll_fn(|cx| {
            turns += 1;
            Pin::new(&mut direct).poll_write(cx, &window[10..])
        });
        assert!(next.await.unwrap() > 10);
        assert_eq!(turns, 2, "others come first, and then it goes on by itself");
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_is_an_error_and_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let (pieces, content) = pieces(dir.path(), RealDisk).await;
        let path = path(dir.path(), &content);
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
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
