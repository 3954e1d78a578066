//! Hashes and writes a fill's bytes, in order, a batch at a time, on a blocking thread.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::disk::File;
use crate::oci::{Digest, Hasher};
use crate::store::health::Health;

/// Bytes gathered while the batch before is being written. Two such are in memory at most.
const BATCH: usize = 1024 * 1024;
/// The same where nothing is written, and larger ones gain nothing.
const BATCH_HASHED: usize = 256 * 1024;
/// What is written ends at a multiple of it unless it is hurried, for less is not worth a thread. The page cache then
/// has the file in few large folios, and whoever sends it later does not pay for many small ones.
const ALIGNED: u64 = 256 * 1024;

pub struct Sink {
    /// None only while a batch is being hashed.
    hasher: Option<Hasher>,
    /// None where the bytes are hashed and not kept.
    file: Option<Arc<dyn File>>,
    health: Arc<Health>,
    /// Hashed so far.
    offset: u64,
    gathered: VecDeque<Bytes>,
    gathered_bytes: usize,
    at_work: Option<Batch>,
    /// A write that was not waited for to its end.
    stuck: Option<Written>,
}

type Written = BoxFuture<'static, io::Result<()>>;

struct Batch {
    bytes: u64,
    /// Comes back before the batch is written: however long that takes, the hash goes on.
    hashed: oneshot::Receiver<Hasher>,
    written: Written,
}

/// A batch is done: hashed and, where a file takes it, written.
pub struct Done {
    pub end: u64,
    pub bytes: u64,
    /// The file did not take it, and takes no more.
    pub disk_error: Option<io::Error>,
}

impl Sink {
    pub fn new(hasher: Hasher, file: Option<Arc<dyn File>>, health: Arc<Health>) -> Self {
        Self {
            hasher: Some(hasher),
            file,
            health,
            offset: 0,
            gathered: VecDeque::new(),
            gathered_bytes: 0,
            at_work: None,
            stuck: None,
        }
    }

    pub fn has_room(&self) -> bool {
        self.gathered_bytes < if self.file.is_some() { BATCH } else { BATCH_HASHED }
    }

    pub fn is_busy(&self) -> bool {
        self.at_work.is_some()
    }

    pub fn give_up_file(&mut self) {
        self.file = None;
        self.work();
    }

    pub fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        self.gathered_bytes += chunk.len();
        self.gathered.push_back(chunk);
        self.work();
    }

    /// Sends what is gathered to a thread, if it is worth one and none is at work.
    fn work(&mut self) {
        let end = self.offset + self.gathered_bytes as u64;
        // What is only hashed is let go as soon as it can be.
        let end = if self.file.is_some() { end - end % ALIGNED } else { end };
        if end > self.offset {
            self.send(end);
        }
    }

    /// Sends it however little it is. Whether anything is at work now.
    pub fn hurry(&mut self) -> bool {
        self.send(self.offset + self.gathered_bytes as u64);
        self.is_busy()
    }

    /// Up to offset `end`, no further than what is gathered.
    fn send(&mut self, end: u64) {
        if self.gathered.is_empty() || self.at_work.is_some() {
            return;
        }
        let Some(mut hasher) = self.hasher.take() else { return };
        let bytes = end - self.offset;
        let chunks = self.take(bytes);
        let (offset, (hash, hashed)) = (self.offset, oneshot::channel());
        let work = move |file: Option<Arc<dyn File>>| {
            chunks.iter().for_each(|chunk| hasher.update(chunk));
            // Whoever waited may have left.
            let _ = hash.send(hasher);
            let slices: Vec<IoSlice> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
            file.map_or(Ok(()), |file| file.write_at(&slices, offset))
        };
        let written = match (self.file.clone(), self.health.free_writer()) {
            (None, _) => blocking(move || work(None)).boxed(),
            (Some(file), Some(writer)) => blocking(move || {
                let _writer = writer;
                work(Some(file))
            })
            .boxed(),
            (Some(file), None) => {
                let health = self.health.clone();
                async move {
                    match health.writer().await {
                        Ok(writer) => {
                            blocking(move || {
                                let _writer = writer;
                                work(Some(file))
                            })
                            .await
                        }
                        Err(stalled) => blocking(move || work(None)).await.and(Err(stalled)),
                    }
                }
                .boxed()
            }
        };
        self.at_work = Some(Batch { bytes, hashed, written });
    }

    /// The first so many bytes of what is gathered.
    fn take(&mut self, bytes: u64) -> Vec<Bytes> {
        let mut taken = Vec::with_capacity(self.gathered.len());
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        while left > 0
            && let Some(mut chunk) = self.gathered.pop_front()
        {
            if chunk.len() > left {
                self.gathered.push_front(chunk.split_off(left));
            }
            left -= chunk.len();
            self.gathered_bytes -= chunk.len();
            taken.push(chunk);
        }
        taken
    }

    /// Waits for the batch at work; not for a disk that stands still. Safe to drop and call again.
    /// `None` where none is, or where its thread was lost (then no digest will come).
    pub async fn done(&mut self) -> Option<Done> {
        let batch = self.at_work.as_mut()?;
        let ended = loop {
            tokio::select! {
                biased;
                hashed = &mut batch.hashed, if self.hasher.is_none() => match hashed {
                    Ok(hasher) => self.hasher = Some(hasher),
                    Err(_) => break None,
                },
                written = &mut batch.written => break Some((written, true)),
                stalled = self.health.stalled(), if self.hasher.is_some() => break Some((Err(stalled), false)),
            }
        };
        let mut batch = self.at_work.take()?;
        let (written, ended) = ended?;
        if self.hasher.is_none() {
            self.hasher = Some(batch.hashed.try_recv().ok()?);
        }
        if !ended {
            self.stuck = Some(batch.written);
        }
        self.offset += batch.bytes;
        if written.is_err() {
            self.file = None;
        }
        self.work();
        Some(Done { end: self.offset, bytes: batch.bytes, disk_error: written.err() })
    }

    /// Whether a write is under way that was given up.
    pub fn is_stuck(&self) -> bool {
        self.stuck.is_some()
    }

    /// Waits for that, however long it takes.
    pub async fn unstuck(&mut self) {
        if let Some(stuck) = self.stuck.take() {
            // It was given up: how it ends does not matter.
            let _ = stuck.await;
        }
    }

    /// Hashes bytes that are in the file already, up to `end`. Only when nothing is at work or gathered.
    pub async fn absorb(&mut self, end: u64) -> io::Result<()> {
        let lost = || io::Error::other("the hash was lost");
        let mut hasher = self.hasher.take().ok_or_else(lost)?;
        let file = self.file.clone().ok_or_else(lost)?;
        let mut at = self.offset;
        let work = move || {
            let mut buffer = vec![0; BATCH];
            while at < end {
                let want = buffer.len().min(usize::try_from(end - at).unwrap_or(BATCH));
                match file.read_at(&mut buffer[..want], at)? {
                    0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                    count => {
                        hasher.update(&buffer[..count]);
                        at += count as u64;
                    }
                }
            }
            Ok::<_, io::Error>(hasher)
        };
        self.hasher = Some(tokio::task::spawn_blocking(work).await.map_err(io::Error::other)??);
        self.offset = end;
        Ok(())
    }

    /// The digest of all that went in. `None` where work is left or was lost.
    pub fn digest(&mut self) -> Option<Digest> {
        let idle = self.at_work.is_none() && self.gathered.is_empty();
        idle.then(|| self.hasher.take()).flatten().map(Hasher::finish)
    }
}

/// Begins at once on a blocking thread.
fn blocking(
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> impl Future<Output = io::Result<()>> + Send {
    let thread = tokio::task::spawn_blocking(work);
    async move { thread.await.unwrap_or_else(|gone| Err(io::Error::other(gone))) }
}
