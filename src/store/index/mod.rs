//! The index: what is held, in memory, so that nobody has to look through the tree to know how much that is,
//! what leads to it and what was not asked for the longest.
//!
//! The tree is the truth, and all that is here can be read from it: sizes and links are as they stand there,
//! and when an image was last asked for is the time of the link to its manifest. So there is no database
//! beside the tree that could disagree with it. After a start the tree is looked through in the background,
//! while content is served; what changes meanwhile is noted and counts more than what was seen. Until it is
//! whole nothing is evicted or collected.

mod choose;
mod facts;
mod scan;
#[cfg(test)]
mod tests;
mod usage;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

pub use self::choose::{Spare, Victim, choose};
pub use self::facts::{Event, Facts, Held, Key, Keys, Seconds, named_by};
pub use self::scan::seconds;
pub use self::usage::{ImageUse, RepositoryUse, Usage, usage};
use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::tasks::lock;

/// Changes to what is being looked through, beyond which it is looked through once more.
const WATCHED_MAX: usize = 10_000;

/// How far the tree was looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    Begun,
    /// How much is held is known, and not yet for what.
    Sized,
    Whole,
}

pub struct Index {
    state: Mutex<State>,
    /// The same as in the state, for who must not wait.
    bytes: AtomicU64,
    progress: watch::Sender<Progress>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    facts: Facts,
    watch: Option<Watch>,
}

/// What happens to a part while it is looked through.
struct Watch {
    part: Part,
    events: Vec<Event>,
    overflown: bool,
}

/// A part of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Repository(String),
    /// Data, or some of it.
    Data,
}

impl Part {
    fn is_changed_by(&self, event: &Event) -> bool {
        match self {
            Self::Repository(name) => event.repository() == Some(name),
            Self::Data => event.repository().is_none(),
        }
    }
}

impl Index {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let progress = watch::Sender::new(Progress::Begun);
        Self { state: Mutex::default(), bytes: AtomicU64::new(0), progress, metrics }
    }

    /// Notes what has happened to the tree. Whoever makes and takes away links and data does it with the
    /// lock still held under which that was done, so that the order is the same here.
    pub fn record(&self, event: Event) {
        let mut state = lock(&self.state);
        state.facts.apply(&event);
        if let Some(watch) = state.watch.as_mut().filter(|watch| watch.part.is_changed_by(&event)) {
            watch.overflown |= watch.events.len() >= WATCHED_MAX;
            if !watch.overflown {
                watch.events.push(event);
            }
        }
        self.count(&state.facts);
    }

    fn count(&self, facts: &Facts) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let (bytes, entries) = facts.totals();
        self.bytes.store(bytes, Ordering::Release);
        self.metrics.store_bytes.set(gauge(bytes));
        self.metrics.store_entries.set(gauge(entries));
    }

    /// Looks at the facts. Whoever holds this up holds up what is committed.
    pub fn facts<T>(&self, look: impl FnOnce(&Facts) -> T) -> T {
        look(&lock(&self.state).facts)
    }

    /// Bytes of all data, as far as was looked.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Waits until it is whole.
    pub async fn whole(&self) {
        // The sender lives as long as `self`.
        let _ = self.progress.subscribe().wait_for(|progress| *progress == Progress::Whole).await;
    }

    /// Somebody asked for a manifest. False: it is not held, as far as is known.
    pub fn wanted(&self, repository: &str, digest: &Digest, at: Seconds) -> bool {
        lock(&self.state).facts.wanted(repository, digest, at)
    }

    fn reached(&self, progress: Progress) {
        self.progress.send_replace(progress);
        self.metrics.index_whole.set(i64::from(progress == Progress::Whole));
    }

    /// From now on what happens to this part is noted.
    fn watch(&self, part: Part) {
        lock(&self.state).watch = Some(Watch { part, events: Vec::new(), overflown: false });
    }

    /// Takes up what was seen of the part that is watched, and then what has happened meanwhile. False: that
    /// was too much, it is to be looked through again.
    fn seen(&self, found: &[Event]) -> bool {
        let mut state = lock(&self.state);
        let Some(watch) = state.watch.take() else { return false };
        if watch.overflown {
            return false;
        }
        if let Part::Repository(name) = &watch.part {
            state.facts.forget(name);
        }
        found.iter().chain(&watch.events).for_each(|event| state.facts.apply(event));
        self.count(&state.facts);
        true
    }
}
