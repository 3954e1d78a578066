//! Garbage collection of hosted repositories, on a schedule and on command: tags that no retention
//! rule keeps, manifests without a tag where that is wished, links and data that nobody needs.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as TurnMutex, Notify, OwnedMutexGuard, mpsc};
use tokio_util::sync::CancellationToken;

use super::Hosted;
use super::retention::{self, Rule};
use crate::clock::Clock;
use crate::metrics::{Metrics, PassEnd, Swept};
use crate::oci::{Digest, Tag};
use crate::store::{self, Marked, Pass, Removed, Store, What};
use crate::tasks::{Tasks, lock};

/// What is configured of garbage collection.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// From one pass to the next. None: only on command.
    pub interval: Option<Duration>,
    /// After which time manifests without a tag go, where no rule says. None: they stay.
    pub untagged: Option<Duration>,
    pub retention: Vec<Rule>,
}

/// What a pass removed, or would.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub tags: u64,
    pub manifests: u64,
    pub links: u64,
    pub blobs: u64,
    pub bytes: u64,
}

/// Why a pass did not come to its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CollectError {
    #[error("garbage is being collected already: wait for that, then ask again")]
    Busy,
    #[error(transparent)]
    Store(#[from] store::CollectError),
}

/// Collects; one pass at a time.
pub struct Collector {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    clock: Clock,
    settings: Mutex<Settings>,
    changed: Notify,
    turn: Arc<TurnMutex<()>>,
}

#[derive(Clone)]
struct Settings {
    options: Options,
    hosted: Arc<Hosted>,
}

/// Lines of a scheduled pass that nobody reads.
const UNREAD: usize = 64;
/// Share by which each pause varies, so that servers started together do not collect together.
const JITTER: f64 = 0.1;

impl Totals {
    fn add(&mut self, removed: &Removed) {
        let count = match removed.what {
            What::Tag => &mut self.tags,
            What::Manifest => &mut self.manifests,
            What::Link => &mut self.links,
            What::Blob => &mut self.blobs,
        };
        *count += 1;
        self.bytes += removed.bytes;
    }
}

impl Collector {
    pub fn new(options: Options, hosted: Arc<Hosted>, metrics: Arc<Metrics>, clock: Clock) -> Arc<Self> {
        let store = hosted.store.clone();
        let settings = Mutex::new(Settings { options, hosted });
        let (changed, turn) = (Notify::new(), Arc::default());
        Arc::new(Self { store, metrics, clock, settings, changed, turn })
    }

    /// Goes by other options from the next pass on.
    pub fn follow(&self, options: Options, hosted: Arc<Hosted>) {
        let new = Settings { options, hosted };
        let old = std::mem::replace(&mut *lock(&self.settings), new.clone());
        if old.options.interval != new.options.interval {
            self.changed.notify_one();
        }
    }

    /// Collects garbage, or with `dry_run` only tells what would go. `report` is told of each thing;
    /// where nobody listens any more, the pass goes on. Dropping the future ends it.
    pub async fn run(
        self: &Arc<Self>,
        dry_run: bool,
        report: mpsc::Sender<Removed>,
    ) -> Result<Totals, CollectError> {
        // What is held has to be known first: content that is seen for the first time could be taken for
        // what nobody needs.
        self.store.surveyed().await;
        let turn = self.turn.clone().try_lock_owned().map_err(|_| CollectError::Busy)?;
        let stopped = CancellationToken::new();
        let _stop = stopped.clone().drop_guard();
        let this = self.clone();
        let ended = self.store.run(move |store| Ok(this.pass(store, dry_run, &report, &stopped, turn))).await;
        Ok(ended.map_err(store::CollectError::from)??)
    }

    /// The turn is held until the thread ends, which may be after the future was dropped.
    fn pass(
        &self,
        store: &Store,
        dry_run: bool,
        report: &mpsc::Sender<Removed>,
        stopped: &CancellationToken,
        _turn: OwnedMutexGuard<()>,
    ) -> Result<Totals, store::CollectError> {
        let (started, mut totals) = (Instant::now(), Totals::default());
        let mut tell = |removed: Removed| {
            totals.add(&removed);
            if !dry_run {
                self.metrics.gc_removed.cell(swept(removed.what)).inc();
                self.metrics.gc_freed_bytes.inc_by(removed.bytes);
            }
            // It may have gone away.
            let _ = report.blocking_send(removed);
        };
        let is_stopped = || stopped.is_cancelled();
        let settings = lock(&self.settings).clone();
        let ended = self.sweep(Pass::new(store, dry_run, &mut tell, &is_stopped), &settings, dry_run);
        if dry_run {
            return ended.map(|()| totals);
        }
        let end = match &ended {
            Ok(()) => PassEnd::Completed,
            Err(store::CollectError::Stale(_)) => PassEnd::Stale,
            Err(store::CollectError::Stopped) => PassEnd::Stopped,
            Err(
                store::CollectError::Disk(_)
                | store::CollectError::Strange(_)
                | store::CollectError::NoRepository(_),
            ) => PassEnd::Failed,
        };
        let seconds = started.elapsed().as_secs_f64();
        self.metrics.gc_passes.cell(end).inc();
        self.metrics.gc_seconds.set(seconds);
        let Totals { tags, manifests, links, blobs, bytes } = totals;
        match &ended {
            Ok(()) => tracing::info!(tags, manifests, links, blobs, bytes, seconds, "garbage was collected"),
            Err(error) => {
                tracing::warn!(tags, manifests, links, blobs, bytes, seconds, %error, "garbage was collected in part");
            }
        }
        ended.map(|()| totals)
    }

    fn sweep(
        &self,
        mut pass: Pass<'_>,
        settings: &Settings,
        dry_run: bool,
    ) -> Result<(), store::CollectError> {
        for repository in pass.repositories()? {
            let mut marked = pass.mark(&repository)?;
            let expired = self.expired(&marked, settings);
            pass.drop_tags(&mut marked, &expired)?;
            let rule = retention::rule(&settings.options.retention, &repository);
            let untagged = rule.and_then(|rule| rule.untagged_for).or(settings.options.untagged);
            // Where the time goes back before all times, nothing is so old.
            if let Some(before) = untagged.and_then(|time| self.clock.wall().checked_sub(time)) {
                let gone: Vec<Digest> = pass.drop_untagged(&mut marked, before)?;
                for digest in gone.iter().filter(|_| !dry_run) {
                    settings.hosted.manifest_removed(&repository, digest)?;
                }
            }
            pass.drop_links(&marked)?;
        }
        pass.drop_data()
    }

    fn expired(&self, marked: &Marked, settings: &Settings) -> Vec<Tag> {
        let repository = marked.repository();
        let Some(rule) = retention::rule(&settings.options.retention, repository) else { return Vec::new() };
        let tags: Vec<_> = marked.tags().iter().map(|(tag, held)| (tag, held.seen)).collect();
        let is_immutable = |tag: &Tag| settings.hosted.options().immutability(repository, tag).is_some();
        rule.expired(repository, &tags, &marked.names(), self.clock.wall(), is_immutable)
    }

    /// Collects on schedule, until shutdown. The first time comes soon after the start, though not
    /// while everything still counts as leased.
    pub fn schedule(self: &Arc<Self>, tasks: &Tasks) {
        let (this, stopping) = (self.clone(), tasks.stopping());
        tasks.spawn("gc", async move {
            tokio::select! { () = stopping => {}, () = this.repeat() => {} }
        });
    }

    async fn repeat(self: &Arc<Self>) {
        let mut first = Some(self.store.lease_term());
        loop {
            let interval = lock(&self.settings).options.interval;
            let pause = match interval {
                Some(interval) => first.unwrap_or(interval).min(interval),
                None => {
                    self.changed.notified().await;
                    continue;
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(1.0 + rand::random_range(0.0..=JITTER))) => {}
                () = self.changed.notified() => continue,
            }
            first = None;
            let (report, unread) = mpsc::channel(UNREAD);
            drop(unread);
            match self.run(false, report).await {
                // It logs and counts itself.
                Ok(_) | Err(CollectError::Store(_)) => {}
                Err(CollectError::Busy) => tracing::debug!("garbage is being collected on command"),
            }
        }
    }
}

fn swept(what: What) -> Swept {
    match what {
        What::Tag => Swept::Tag,
        What::Manifest => Swept::Manifest,
        What::Link => Swept::Link,
        What::Blob => Swept::Blob,
    }
}

#[cfg(test)]
mod tests;
