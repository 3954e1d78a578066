//! Checking what is held, round after round at a bounded rate, or all at once on command; and fetching
//! again what was lost. What was pushed can only be told of.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Mutex as TurnMutex, Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::Mirror;
use super::finding::{Done, Fault, Finding, Found};
use super::pace::Walk;
use super::tally::{Count, Tally};
use crate::clock::Clock;
use crate::oci::Digest;
use crate::store::{self, LinkFault, Round, Shard, Store};
use crate::tasks::{Tasks, lock};

/// What is configured of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ScrubOptions {
    /// From the beginning of one round to that of the next. None: only on command.
    pub interval: Option<Duration>,
    /// Bytes in a second at most.
    pub rate: NonZeroU64,
}

/// How far a pass has come.
#[derive(Debug, Default)]
pub struct Progress {
    pub blobs: AtomicU64,
    pub bytes: AtomicU64,
    pub repositories: AtomicU64,
}

/// What a pass has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyTotals {
    pub blobs: u64,
    pub bytes: u64,
    pub repositories: u64,
    pub links: u64,
    pub wrong: u64,
    /// Of what is wrong, what is no more.
    pub mended: u64,
}

/// Why a pass did not come to its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ScrubError {
    #[error("what is held is being verified already: wait for that, then ask again")]
    Busy,
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Checks what is held.
pub struct Scrubber {
    pub(super) store: Arc<Store>,
    clock: Clock,
    settings: Mutex<Settings>,
    changed: Notify,
    turn: TurnMutex<()>,
    /// Losses that stand: each is counted once.
    pub(super) losses: Mutex<HashMap<Fault, Done>>,
}

#[derive(Clone)]
struct Settings {
    options: ScrubOptions,
    mirror: Option<Arc<Mirror>>,
}

/// What starts has other things to do first.
const START: Duration = Duration::from_secs(60);
/// After a failure of the disk.
const AGAIN: Duration = Duration::from_secs(3600);
/// Findings of one shard that wait to be mended.
const WAITING: usize = 4;
/// Digests whose loss is told once, and not again for each link to them; and faults that are counted once.
pub(super) const TOLD_MAX: usize = 10_000;

impl Scrubber {
    pub fn new(
        options: ScrubOptions,
        store: Arc<Store>,
        mirror: Option<Arc<Mirror>>,
        clock: Clock,
    ) -> Arc<Self> {
        let settings = Mutex::new(Settings { options, mirror });
        let (changed, turn, losses) = (Notify::new(), TurnMutex::default(), Mutex::default());
        Arc::new(Self { store, clock, settings, changed, turn, losses })
    }

    /// Goes by other settings, from the next finding or round on.
    pub fn follow(&self, options: ScrubOptions, mirror: Option<Arc<Mirror>>) {
        *lock(&self.settings) = Settings { options, mirror };
        self.changed.notify_one();
    }

    pub(super) fn mirror(&self) -> Option<Arc<Mirror>> {
        lock(&self.settings).mirror.clone()
    }

    /// Checks round after round, until shutdown.
    pub fn schedule(self: &Arc<Self>, tasks: &Tasks) {
        let (this, stopping) = (self.clone(), tasks.stopping());
        tasks.spawn("scrub", async move {
            tokio::select! { () = stopping => {}, () = this.repeat() => {} }
        });
    }

    async fn repeat(&self) {
        let mut start = START;
        loop {
            let options = lock(&self.settings).options.clone();
            let Some(interval) = options.interval else {
                self.changed.notified().await;
                continue;
            };
            let pause = self.until_due(interval).await.max(start.min(interval));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.changed.notified() => continue,
            }
            start = Duration::ZERO;
            if let Err(error) = self.round(options.rate).await {
                tracing::warn!(%error, "what is held is checked in part: the disk fails");
                tokio::time::sleep(AGAIN.min(interval)).await;
            }
        }
    }

    async fn until_due(&self, interval: Duration) -> Duration {
        let round = self.store.run(|store| Ok(store.round())).await.unwrap_or_default();
        self.count(round.ended);
        match round {
            // It was stopped on its way.
            Round { place: Some(_), .. } | Round { begun: None, .. } => Duration::ZERO,
            Round { begun: Some(begun), .. } => {
                // The clock may have been set back.
                let age = self.clock.wall().duration_since(begun).unwrap_or_default();
                interval.saturating_sub(age)
            }
        }
    }

    fn count(&self, ended: Option<SystemTime>) {
        let seconds = ended.and_then(|ended| ended.duration_since(SystemTime::UNIX_EPOCH).ok());
        let seconds = seconds.map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
        self.store.metrics().scrub.last_round.set(seconds);
    }

    /// One round, from where the last one was stopped.
    async fn round(&self, rate: NonZeroU64) -> Result<(), store::Error> {
        let mut round = self.store.run(|store| Ok(store.round())).await?;
        if round.place.is_none() || round.begun.is_none() {
            round = Round { place: None, begun: Some(self.clock.wall()), ..round };
        }
        let (begun, progress) = (Instant::now(), Arc::default());
        let keep = Some(round.clone());
        let wrong = self.data(Some(rate), keep, true, &progress, None).await?.len();
        round = Round { place: None, ended: Some(self.clock.wall()), ..round };
        self.count(round.ended);
        self.store.run(move |store| store.keep_round(&round)).await?;
        self.store.trust();
        self.store.metrics().scrub.rounds.inc();
        let (blobs, bytes) = (progress.blobs.load(Ordering::Relaxed), progress.bytes.load(Ordering::Relaxed));
        let seconds = begun.elapsed().as_secs_f64();
        tracing::info!(blobs, bytes, wrong, seconds, "what is held was checked");
        Ok(())
    }

    /// Checks all that is held, then all links, and with `repair` fetches again what was lost. `told`
    /// hears of each finding. Dropping the future ends it.
    pub async fn verify(
        &self,
        repair: bool,
        rate: Option<NonZeroU64>,
        told: mpsc::Sender<Finding>,
        progress: &Arc<Progress>,
    ) -> Result<VerifyTotals, ScrubError> {
        let _turn = self.turn.try_lock().map_err(|_| ScrubError::Busy)?;
        let tally = Tally::new(told);
        let lost = self.data(rate, None, repair, progress, Some(&tally)).await?;
        self.store.trust();
        let links = self.links(repair, progress, &tally, &lost).await?;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Progress { blobs, bytes, repositories } = &**progress;
        let (blobs, bytes, repositories) = (of(blobs), of(bytes), of(repositories));
        let Count { faults, wrong, mended } =
            tally.count.into_inner().unwrap_or_else(PoisonError::into_inner);
        // The others are no more, and count anew when they come again.
        lock(&self.losses).retain(|fault, _| faults.get(fault).is_some_and(|is_mended| !is_mended));
        tracing::info!(blobs, bytes, repositories, links, wrong, mended, "what is held was verified");
        Ok(VerifyTotals { blobs, bytes, repositories, links, wrong, mended })
    }

    /// Checks data, shard by shard. Gives the digests, some of them if there are many, that stay lost.
    async fn data(
        &self,
        rate: Option<NonZeroU64>,
        keep: Option<Round>,
        repair: bool,
        progress: &Arc<Progress>,
        tally: Option<&Tally>,
    ) -> Result<HashSet<Digest>, store::Error> {
        let stopped = CancellationToken::new();
        let _stop = stopped.clone().drop_guard();
        let after = keep.as_ref().and_then(|round| round.place);
        let (news, mut damages) = mpsc::channel(WAITING);
        let mut walk = Walk::new(rate, stopped, progress.clone(), news, self.store.clone(), keep);
        let walking = async {
            let first = after.as_ref().map(Shard::of);
            for shard in self.store.run(Store::shards).await? {
                if first.as_ref().is_some_and(|first| shard < *first) {
                    continue;
                }
                walk = self
                    .store
                    .run(move |store| {
                        store.check_shard(&shard, after.as_ref(), &mut walk)?;
                        walk.keep();
                        Ok(walk)
                    })
                    .await?;
            }
            drop(walk);
            Ok(())
        };
        let mut lost = HashSet::new();
        let mending = async {
            while let Some(damage) = damages.recv().await {
                let digest = damage.digest;
                let done = self.mend(&damage, repair).await;
                if !done.is_mended() && lost.len() < TOLD_MAX {
                    lost.insert(digest);
                }
                let concerned = damage.linkers.iter().map(|of| (of.name.clone(), of.origin.clone()));
                self.told(concerned.collect(), Found::Data(damage), done, tally).await;
            }
        };
        let (walked, ()): (Result<(), store::Error>, ()) = tokio::join!(walking, mending);
        walked.map(|()| lost)
    }

    /// Looks through the links of all repositories. How many there are.
    async fn links(
        &self,
        repair: bool,
        progress: &Progress,
        tally: &Tally,
        lost: &HashSet<Digest>,
    ) -> Result<u64, store::Error> {
        let stopped = CancellationToken::new();
        let _stop = stopped.clone().drop_guard();
        let mut links = 0;
        for (name, origin) in self.store.run(Store::repositories).await? {
            let (news, mut faults) = mpsc::channel(WAITING);
            let (of, hosted, ended) = (name.clone(), !origin.is_mirrored(), stopped.clone());
            let walking = self.store.run(move |store| {
                let mut report = |fault| drop(news.blocking_send(fault));
                store.check_links(&of, hosted, &mut report, &|| ended.is_cancelled())
            });
            let mending = async {
                while let Some(fault) = faults.recv().await {
                    // Told of already.
                    let is_told = matches!(&fault, LinkFault::Dangling { data, .. } if lost.contains(data));
                    if !is_told && let Some(done) = self.mend_link(&name, &origin, &fault, repair).await {
                        let found = Found::Link(origin.shown(&name), fault);
                        self.told(vec![(name.clone(), origin.clone())], found, done, Some(tally)).await;
                    }
                }
            };
            let (walked, ()) = tokio::join!(walking, mending);
            links += walked?;
            progress.repositories.fetch_add(1, Ordering::Relaxed);
        }
        Ok(links)
    }
}
