//! How a fill begins, and what it needs of the store.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};

use super::driver::Driver;
use super::sink::Sink;
use super::state::{Phase, State};
use super::{Fill, FillReader, Links, Source};
use crate::disk::File;
use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::store::Grant;
use crate::store::buffers::{Buffers, Passing};
use crate::store::health::Health;
use crate::tasks::Tasks;

/// How a fill bears trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillOptions {
    /// How many bytes more it fetches once nobody reads.
    pub unread_budget: u64,
    /// How often in a row, without 64 KiB of progress, it is taken up again.
    pub resumes: u32,
    /// Longest wait for the slowest reader of a blob that is not kept.
    pub reader_timeout: Duration,
    /// Answers of the source that are taken at once, beside what range readers ask for.
    pub connections: usize,
    /// How long a blob is remembered, once nobody reads it, of which only ranges were read.
    pub range_idle: Duration,
}

/// What of a blob is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    Whole,
    /// All of it in the end, by ranges that may be several at once.
    Ranges,
    /// Ranges that come to less than `most` bytes, it is hoped, of these `size`.
    Part {
        size: u64,
        most: u64,
    },
}

/// What the store lends to a fill.
pub struct Loan {
    pub options: FillOptions,
    pub buffers: Arc<Buffers>,
    pub health: Arc<Health>,
    pub metrics: Arc<Metrics>,
    pub tasks: Tasks,
}

/// The store's part in a fill's life.
pub trait Keeper: Send + 'static {
    /// Whether a blob of this size is to be kept on disk. Others may have to go for it first.
    fn admits(&mut self, size: u64) -> BoxFuture<'_, bool>;
    /// So many bytes of it are in the file.
    fn wrote(&mut self, bytes: u64);
    /// The fill is not to be joined any more: it only relays, or is over.
    fn delist(&self, fill: &Arc<Fill>);
    /// The digest is right: keep the file. Blocks.
    fn commit(&mut self, fill: &Arc<Fill>);
    /// The file is of no use any more. Blocks.
    fn discard(&mut self);
}

/// Starts a fill and its task, and attaches its first reader. `file`: where the bytes go, none where
/// the disk would not take them.
pub fn start<K: Keeper>(
    grant: Grant,
    digest: Digest,
    source: Arc<dyn Source>,
    file: Option<Arc<dyn File>>,
    demand: Demand,
    loan: Loan,
    enlist: impl FnOnce(&Arc<Fill>) -> K,
) -> FillReader {
    let sink = Sink::new(digest.algorithm().hasher(), file.clone(), loan.health.clone());
    let mut state = State::new(file);
    // An empty blob has no range that could be asked for.
    let empty = digest == Digest::of(digest.algorithm(), b"");
    state.segmented = !empty && (demand != Demand::Whole || loan.options.connections > 1);
    if let Demand::Part { size, most } = demand
        && state.kept
    {
        (state.phase, state.total, state.partial) = (Phase::Streaming, Some(size), Some(most));
    }
    let fill = Arc::new(Fill {
        digest,
        domain: grant.domain.clone(),
        source,
        state: watch::Sender::new(state),
        readers: Mutex::default(),
        moved: Notify::new(),
        links: Mutex::new(Links { waiting: vec![grant], committed: false }),
        passing: Passing::new(loan.buffers.clone()),
        buffers: loan.buffers,
        health: loan.health,
        metrics: loan.metrics,
        tasks: loan.tasks.clone(),
    });
    // Attached before the task runs: what is not kept flows only while somebody reads.
    let reader = FillReader::attach(fill.clone());
    let keeper = enlist(&fill);
    let driver = Driver::new(fill.clone(), sink, keeper, loan.options);
    loan.tasks.spawn("fill", driver.run());
    reader
}
