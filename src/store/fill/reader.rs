//! One client's way through a fill.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::watch;

use super::state::{Phase, State, Step};
use super::{Fill, FillError, Slot, extent};
use crate::disk::File;
use crate::oci::ByteRange;
use crate::store::reader::{ReadError, read_piece};
use crate::store::window;
use crate::tasks::lock;

/// Follows a fill by offset. While it lives, the fill is wanted.
pub struct FillReader {
    fill: Arc<Fill>,
    state: watch::Receiver<State>,
    slot: Arc<Slot>,
    at: u64,
    /// None: to the end of the blob, wherever that is.
    end: Option<u64>,
    /// Ranges that had come to nothing before this reader came.
    failures: u64,
    pub by_windows: bool,
}

impl FillReader {
    /// A reader of the whole, from byte 0.
    pub(super) fn attach(fill: Arc<Fill>) -> Self {
        let slot = Arc::new(Slot { position: AtomicU64::new(0), cut: AtomicBool::new(false) });
        lock(&fill.readers).push(slot.clone());
        fill.metrics.fill_readers.inc();
        let state = fill.state.subscribe();
        let failures = state.borrow().failures;
        Self { fill, state, slot, at: 0, end: None, failures, by_windows: false }
    }

    pub fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    /// Reads this range only. To be called before the first `next`.
    pub fn restrict(&mut self, range: ByteRange) {
        self.end = Some(range.end);
        self.go_to(range.start);
    }

    /// Whether every byte from here on can still be had.
    pub(super) fn reachable(&self) -> bool {
        self.state.borrow().reaches(self.at)
    }

    fn go_to(&mut self, at: u64) {
        self.at = at;
        self.slot.position.store(at, Ordering::Release);
        self.fill.moved.notify_one();
    }

    /// Waits for the first byte: while only ranges are fetched, each is an answer of the source's.
    pub async fn begun(&mut self) -> Result<(), FillError> {
        loop {
            let (step, partial) = {
                let state = self.state.borrow_and_update();
                (state.step(self.at, self.end), state.partial.is_some())
            };
            match step {
                Step::Wait if partial => self.wait().await?,
                Step::Wait => return Ok(()),
                Step::Failed(error) => return Err(error),
                Step::Chunk(_) | Step::File(..) | Step::End => return Ok(()),
            }
        }
    }

    /// Asks for what is missing here, and waits for news.
    async fn wait(&mut self) -> Result<(), FillError> {
        let failed = {
            let state = self.state.borrow();
            let since = state.failed.as_ref().filter(|_| state.failures > self.failures);
            since.filter(|(range, _)| range.contains(&self.at)).map(|(_, error)| error.clone())
        };
        if let Some(error) = failed {
            return Err(FillError::Source(error));
        }
        extent::ask(&self.fill, self.at, self.end, extent::AHEAD);
        self.state.changed().await.map_err(|_| FillError::Ended)
    }

    /// A range may be over before the digest is known. Nobody asks on when its last byte is there.
    fn advance(&mut self, bytes: usize) {
        self.go_to(self.at + bytes as u64);
        if self.end == Some(self.at) && !matches!(self.state.borrow().phase, Phase::Verified) {
            self.fill.metrics.unverified_ranges.inc();
        }
    }

    /// Of what the fill has written.
    async fn piece(&self, file: &Arc<dyn File>, until: u64) -> Result<Bytes, ReadError> {
        if self.by_windows {
            let piece = window::Piece { file: file.clone(), at: self.at, end: until, held: None };
            if let Some(bytes) = window::lend(piece) {
                return Ok(bytes);
            }
        }
        read_piece(file, &self.fill.buffers, self.at, until).await
    }

    pub async fn next(&mut self) -> Option<Result<Bytes, ReadError>> {
        loop {
            if self.slot.cut.load(Ordering::Acquire) {
                return Some(Err(FillError::TooSlow.into()));
            }
            // The borrow is a lock: it ends with the statement.
            let step = self.state.borrow_and_update().step(self.at, self.end);
            // What follows is to be there when this reader comes to it.
            if self.end.is_some() && matches!(step, Step::Chunk(_) | Step::File(..)) {
                extent::ask(&self.fill, self.at, self.end, extent::AHEAD);
            }
            match step {
                Step::Chunk(bytes) => {
                    self.advance(bytes.len());
                    return Some(Ok(bytes));
                }
                Step::File(file, until) => {
                    let piece = self.piece(&file, until).await;
                    if let Ok(bytes) = &piece {
                        self.advance(bytes.len());
                    }
                    return Some(piece);
                }
                Step::Wait => {
                    if let Err(error) = self.wait().await {
                        return Some(Err(error.into()));
                    }
                }
                Step::End => return None,
                Step::Failed(error) => return Some(Err(error.into())),
            }
        }
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        lock(&self.fill.readers).retain(|slot| !Arc::ptr_eq(slot, &self.slot));
        self.fill.metrics.fill_readers.dec();
        self.fill.moved.notify_one();
    }
}
