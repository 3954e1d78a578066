//! Fetching a blob once, for everybody who waits for it.
//!
//! A fill runs in its own task, whoever started it and whether or not they stay:
//! [`driver`] takes bytes from the source, [`sink`] hashes and writes them in order, and each
//! [`reader`] follows at its own pace, from the window of recent bytes or from the file. What is
//! received, what is written (extents) and how far the hash has come are separate facts. Ranges far
//! from the head, and the parts that further connections bring, are each an [`extent`] of their own;
//! [`segments`] has the head go around them. Of a large blob that is read by small ranges there are
//! only extents, until they come to a configured share.

mod driver;
mod extent;
mod reader;
mod relay;
mod segments;
mod sink;
mod start;
mod state;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};

use self::state::{Phase, State};
use super::Grant;
use super::buffers::{Buffers, Passing};
use super::health::Health;
use crate::metrics::Metrics;
use crate::oci::{Digest, Repository};
use crate::tasks::{Tasks, lock};

pub use reader::FillReader;
pub(super) use sink::{Done, Sink};
pub use start::{Demand, FillOptions};
pub(super) use start::{Keeper, Loan, start};

/// Where a fill's bytes come from.
pub trait Source: Send + Sync + 'static {
    /// A place for one answer more, if that leaves room for everybody else's.
    fn spare_place(&self) -> Option<Place>;

    /// Waits for a place.
    fn place(&self) -> BoxFuture<'_, Result<Place, SourceError>>;

    /// The blob's bytes from `start`, up to `end` where one is named.
    fn open(
        &self,
        place: Place,
        start: u64,
        end: Option<u64>,
    ) -> BoxFuture<'_, Result<SourceStream, SourceError>>;

    /// How many servers the request passed before this one. The same blob may be asked for at several of
    /// them at once, and each of the other: who waits only for those that were asked later, or ask for
    /// nothing more, waits for nobody who waits for it.
    fn depth(&self) -> usize {
        0
    }

    /// All has come, and is something else.
    fn was_wrong(&self) {}
}

/// One of so many answers at once that a source gives, until the last clone is dropped.
pub type Place = Arc<OwnedSemaphorePermit>;

pub struct SourceStream {
    /// Offset of the first byte: `start`, or 0 where the source cannot begin elsewhere.
    pub start: u64,
    /// Size of the whole blob, where known.
    pub total: Option<u64>,
    /// Whether it ends where it was asked to; else with the blob.
    pub bounded: bool,
    pub stream: BoxStream<'static, Result<Bytes, SourceError>>,
}

/// A failure of the source. `error` is handed on as it is, for those who know its type.
#[derive(Clone, Debug)]
pub struct SourceError {
    /// Whether another try may succeed.
    pub retry: bool,
    /// Whether the source has no such thing, or not for who asks.
    pub refused: bool,
    pub error: Arc<dyn std::error::Error + Send + Sync>,
}

/// Why a fill came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FillError {
    #[error("{}", .0.error)]
    Source(SourceError),
    #[error("the upstream sent other content: its digest is {0}")]
    Corrupt(Digest),
    #[error("the upstream changed the blob's size from {0} to {1} bytes")]
    Resized(u64, u64),
    #[error("nobody reads the blob any more")]
    Abandoned,
    #[error("this client reads too slowly for a blob that cannot be kept on disk")]
    TooSlow,
    #[error("the fetch was ended")]
    Ended,
}

/// A blob on its way, shared by its task and all who read it.
pub struct Fill {
    pub digest: Digest,
    pub(super) domain: Arc<str>,
    source: Arc<dyn Source>,
    state: watch::Sender<State>,
    readers: Mutex<Vec<Arc<Slot>>>,
    /// A reader has moved or left; only the driver waits for it.
    moved: Notify,
    links: Mutex<Links>,
    buffers: Arc<Buffers>,
    /// What is in memory of it while it is only passed on, and after that for the readers that are behind.
    passing: Passing,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

/// One reader, as the driver sees it.
struct Slot {
    position: AtomicU64,
    /// Set by the driver: too slow.
    cut: AtomicBool,
}

/// The repositories that have a right to the blob, linked when it is committed.
struct Links {
    waiting: Vec<Grant>,
    committed: bool,
}

impl Fill {
    /// Whether somebody may wait for it whose request passed `depth` servers.
    pub fn may_be_awaited(&self, depth: usize) -> bool {
        depth <= self.source.depth() || self.state.borrow().is_all_on_its_way()
    }

    /// Whether it came to its end, which may have been none.
    pub fn is_over(&self) -> bool {
        self.state.borrow().phase.is_over()
    }

    /// Waits until the source has answered: the blob's size, where it told one.
    pub async fn opened(&self) -> Result<Option<u64>, FillError> {
        let mut state = self.state.subscribe();
        let state = state.wait_for(|state| !matches!(state.phase, Phase::Opening)).await;
        // The sender lives as long as `self`.
        let state = state.map_err(|_| FillError::Ended)?;
        match &state.phase {
            Phase::Failed(error) => Err(error.clone()),
            _ => Ok(state.total),
        }
    }

    /// Bytes received so far; once verified, all.
    pub(super) fn size(&self) -> u64 {
        self.state.borrow().head
    }

    /// Whether only ranges of the blob are fetched so far.
    pub fn is_partial(&self) -> bool {
        self.state.borrow().partial.is_some()
    }

    /// From now on the whole blob is fetched, if only ranges were.
    pub fn want_whole(&self) {
        self.state.send_if_modified(|state| state.partial.take().is_some());
    }

    /// Whether this repository's right to the blob has been shown.
    pub fn serves(&self, repository: &Repository) -> bool {
        lock(&self.links).waiting.iter().any(|grant| grant.repository == *repository)
    }

    /// Has the blob linked to this repository too. False where the commit has been: link it yourself.
    pub fn link_later(&self, grant: &Grant) -> bool {
        let mut links = lock(&self.links);
        if !links.committed && !links.waiting.contains(grant) {
            links.waiting.push(grant.clone());
        }
        !links.committed
    }

    /// Links the blob to every repository that has shown its right to it, then ends that.
    pub(super) fn link_all<E>(&self, mut link: impl FnMut(&Grant) -> Result<(), E>) -> Result<(), E> {
        let mut linked = 0;
        loop {
            let next = {
                let mut links = lock(&self.links);
                links.committed = linked == links.waiting.len();
                links.waiting.get(linked).cloned()
            };
            let Some(grant) = next else { return Ok(()) };
            link(&grant)?;
            linked += 1;
        }
    }

    /// One more reader, from byte 0. `None` where its first bytes have passed and are not kept, or
    /// nobody wanted it any more.
    pub fn reader(self: &Arc<Self>) -> Option<FillReader> {
        let reader = FillReader::attach(self.clone());
        reader.reachable().then_some(reader)
    }

    /// Whether somebody reads on. Who was cut may be slow to notice.
    fn has_readers(&self) -> bool {
        lock(&self.readers).iter().any(|slot| !slot.cut.load(Ordering::Acquire))
    }

    fn slowest(&self) -> Option<u64> {
        lock(&self.readers).iter().map(|slot| slot.position.load(Ordering::Acquire)).min()
    }
}
