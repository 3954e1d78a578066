//! Hashes and writes a fill's bytes, in order, a batch at a time, on a blocking thread.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::disk::File;
use crate::oci::{Digest, Hasher};

/// Bytes gathered while the batch before is being written. Two such are in memory at most.
const BATCH: usize = 1024 * 1024;

pub struct Sink {
    /// None only while a batch is with its thread.
    hasher: Option<Hasher>,
    /// None where the bytes are hashed and not kept.
    file: Option<Arc<dyn File>>,
    /// Hashed so far.
    offset: u64,
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    at_work: Option<JoinHandle<Batch>>,
}

struct Batch {
    hasher: Hasher,
    bytes: u64,
    written: io::Result<()>,
}

/// A batch is done: hashed and, where a file takes it, written.
pub struct Done {
    pub end: u64,
    pub bytes: u64,
    /// The file did not take it, and takes no more.
    pub disk_error: Option<io::Error>,
}

impl Sink {
    pub fn new(hasher: Hasher, file: Option<Arc<dyn File>>) -> Self {
        Self { hasher: Some(hasher), file, offset: 0, gathered: Vec::new(), gathered_bytes: 0, at_work: None }
    }

    pub fn has_room(&self) -> bool {
        self.gathered_bytes < BATCH
    }

    pub fn is_busy(&self) -> bool {
        self.at_work.is_some()
    }

    pub fn give_up_file(&mut self) {
        self.file = None;
    }

    pub fn push(&mut self, chunk: Bytes) {
        self.gathered_bytes += chunk.len();
        self.gathered.push(chunk);
        self.work();
    }

    /// Sends what is gathered to a thread, unless one is at work.
    fn work(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let Some(mut hasher) = self.hasher.take() else { return };
        let chunks = std::mem::take(&mut self.gathered);
        let bytes = std::mem::take(&mut self.gathered_bytes) as u64;
        let (file, offset) = (self.file.clone(), self.offset);
        self.at_work = Some(tokio::task::spawn_blocking(move || {
            chunks.iter().for_each(|chunk| hasher.update(chunk));
            let slices: Vec<IoSlice> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
            let written = file.map_or(Ok(()), |file| file.write_at(&slices, offset));
            Batch { hasher, bytes, written }
        }));
    }

    /// Waits for the batch at work. Safe to drop and call again. `None` where none is, or where its
    /// thread was lost (then no digest will come).
    pub async fn done(&mut self) -> Option<Done> {
        let batch = self.at_work.as_mut()?.await;
        self.at_work = None;
        let batch = batch.ok()?;
        self.hasher = Some(batch.hasher);
        self.offset += batch.bytes;
        if batch.written.is_err() {
            self.file = None;
        }
        self.work();
        Some(Done { end: self.offset, bytes: batch.bytes, disk_error: batch.written.err() })
    }

    /// Hashes bytes that are in the file already, up to `end`. Only when idle.
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
