//! Whether the disk takes writes: what went wrong, since when, and when it goes well again.
//!
//! Every call that changes something passes [`watched`], which tells of failures and of calls that do not
//! come back. While there is trouble, nothing is begun that would write: fills pass on, pushes are
//! refused. Now and then a small file of the store's own is written, synced and removed; once that goes
//! well, the disk is trusted with what is written from then on. It says nothing of what failed to sync
//! before: that stays in doubt ([`super::home`]).

mod probe;
mod trouble;
mod watched;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, watch};

use crate::clock::Clock;
use crate::metrics::{DiskState, Metrics};
use crate::tasks::lock;

pub use self::trouble::{Trouble, state_of};
pub(super) use self::watched::Watched;

/// Blocking threads that may be in writes at once: the others are left for reads and relays, however
/// long the disk keeps these.
const WRITERS: usize = 128;

/// May write, until it is dropped.
pub type Writer = OwnedSemaphorePermit;

pub struct Health {
    trouble: watch::Sender<Option<Trouble>>,
    calls: Mutex<Calls>,
    writers: Arc<Semaphore>,
    /// Locked during a probe. When one failed that was made for somebody who waited.
    probed: AsyncMutex<Option<tokio::time::Instant>>,
    /// Files to be removed once the disk takes that.
    left: Mutex<Vec<PathBuf>>,
    /// Trouble that nobody sees end would stay for ever.
    tended: AtomicBool,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// Calls of the disk that have not come back.
#[derive(Default)]
struct Calls {
    last: u64,
    /// When each is overdue. None: that was told.
    due: BTreeMap<u64, (Instant, Option<Duration>)>,
}

/// A call under way, until it is dropped.
pub(super) struct Call<'a>(&'a Health, u64);

impl Health {
    pub fn new(metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self {
            trouble: watch::Sender::new(None),
            calls: Mutex::default(),
            writers: Arc::new(Semaphore::new(WRITERS)),
            probed: AsyncMutex::default(),
            left: Mutex::default(),
            tended: AtomicBool::new(false),
            metrics,
            clock,
        }
    }

    pub fn trouble(&self) -> Option<Trouble> {
        self.trouble.borrow().clone()
    }

    pub fn is_stalled(&self) -> bool {
        is_stall(&self.trouble.borrow())
    }

    /// Whether things can be removed, though others may not be written.
    pub fn takes_removals(&self) -> bool {
        let trouble = self.trouble.borrow();
        trouble.as_ref().is_none_or(|trouble| matches!(trouble.state, DiskState::Full | DiskState::Inodes))
    }

    /// An error that names the trouble, if there is any.
    pub fn check(&self) -> io::Result<()> {
        self.trouble().map_or(Ok(()), |trouble| Err(trouble.into()))
    }

    /// Completes once the disk stands still.
    pub async fn stalled(&self) -> io::Error {
        let mut trouble = self.trouble.subscribe();
        match trouble.wait_for(is_stall).await.map(|stall| stall.clone()) {
            Ok(Some(stall)) => stall.into(),
            // The sender lives as long as `self`, and what is waited for is some.
            _ => io::ErrorKind::TimedOut.into(),
        }
    }

    /// Waits for `work`, but not for a disk that stands still.
    pub async fn unless_stalled<T>(&self, work: impl Future<Output = T>) -> io::Result<T> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            error = self.stalled() => Err(error),
        }
    }

    /// A place among those that write, if one is free.
    pub fn free_writer(&self) -> Option<Writer> {
        self.writers.clone().try_acquire_owned().ok().filter(|_| !self.is_stalled())
    }

    pub async fn writer(&self) -> io::Result<Writer> {
        if self.is_stalled() {
            return Err(self.stalled().await);
        }
        self.unless_stalled(self.writers.clone().acquire_owned()).await?.map_err(io::Error::other)
    }

    /// Runs blocking work that writes. Where the disk stands still this is an error, and the work is not
    /// begun; or it is done whenever the disk goes on.
    pub async fn write<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let writer = self.writer().await?;
        let work = tokio::task::spawn_blocking(move || {
            let _writer = writer;
            work()
        });
        self.unless_stalled(work).await?.map_err(io::Error::other)
    }

    /// Has a file removed later.
    pub fn leave(&self, path: PathBuf) {
        lock(&self.left).push(path);
    }

    fn enter(&self, state: DiskState, why: impl Into<Arc<str>>) {
        if !self.tended.load(Ordering::Relaxed) {
            return;
        }
        self.trouble.send_if_modified(|trouble| {
            if trouble.as_ref().is_some_and(|trouble| trouble.state == state) {
                return false;
            }
            let new = Trouble { state, why: why.into(), since: self.clock.wall() };
            tracing::error!(
                state = new.text(),
                why = %new.why,
                "{}: what is pulled is passed on without being kept, and pushes are refused; {}",
                new.what(),
                new.remedy()
            );
            self.metrics.disk.set(state);
            *trouble = Some(new);
            true
        });
    }

    fn leave_trouble(&self) {
        self.trouble.send_if_modified(|trouble| {
            let Some(was) = trouble.take() else { return false };
            let seconds = self.clock.wall().duration_since(was.since).unwrap_or_default().as_secs();
            tracing::info!(state = was.text(), seconds, "the disk takes writes again");
            self.metrics.disk.set(DiskState::Ok);
            true
        });
    }

    /// A call begins that is overdue after so long.
    fn begin(&self, due: Duration) -> Call<'_> {
        let mut calls = lock(&self.calls);
        calls.last += 1;
        let number = calls.last;
        calls.due.insert(number, (self.clock.now(), Some(due)));
        Call(self, number)
    }

    /// Tells of calls that do not come back, of each once.
    fn check_calls(&self) {
        let now = self.clock.now();
        let mut longest = None;
        for (begun, due) in lock(&self.calls).due.values_mut() {
            let taken = now.saturating_duration_since(*begun);
            if due.is_some_and(|due| taken >= due) {
                *due = None;
                longest = longest.max(Some(taken));
            }
        }
        if let Some(longest) = longest {
            self.enter(DiskState::Stalled, format!("a write has not come back for {} s", longest.as_secs()));
        }
    }
}

fn is_stall(trouble: &Option<Trouble>) -> bool {
    trouble.as_ref().is_some_and(|trouble| trouble.state == DiskState::Stalled)
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        lock(&self.0.calls).due.remove(&self.1);
    }
}

#[cfg(test)]
mod tests;
