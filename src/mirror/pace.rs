//! A walk over data on a blocking thread: not faster than it may be, and with its place remembered.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::scrub::Progress;
use crate::oci::Digest;
use crate::store::{Damage, Round, Store, Watch};

/// What opening a file counts for, in bytes: a million small ones are work too.
const FILE: u64 = 64 * 1024;
/// How soon a stop is heard of.
const NAP: Duration = Duration::from_millis(100);
/// What was not read for so long, somebody waited for something else, is not caught up with.
const LAG: Duration = Duration::from_secs(1);
/// How much of a round is done again after a kill, at most.
const KEEP_EVERY: Duration = Duration::from_secs(60);

pub struct Walk {
    /// None: as fast as it goes.
    rate: Option<NonZeroU64>,
    /// Up to when what was read was to take.
    due: Instant,
    stopped: CancellationToken,
    progress: Arc<Progress>,
    news: mpsc::Sender<Damage>,
    store: Arc<Store>,
    /// Where the round is remembered, if it is.
    round: Option<Round>,
    kept: Instant,
}

impl Walk {
    pub fn new(
        rate: Option<NonZeroU64>,
        stopped: CancellationToken,
        progress: Arc<Progress>,
        news: mpsc::Sender<Damage>,
        store: Arc<Store>,
        round: Option<Round>,
    ) -> Self {
        let now = Instant::now();
        Self { rate, due: now, stopped, progress, news, store, round, kept: now }
    }

    /// Remembers how far the round has come.
    pub fn keep(&mut self) {
        self.kept = Instant::now();
        if let Some(round) = &self.round
            && let Err(error) = self.store.keep_round(round)
        {
            tracing::debug!(%error, "how far the scrub has come is not kept");
        }
    }

    fn passed(&mut self, digest: &Digest, len: u64) {
        self.progress.blobs.fetch_add(1, Ordering::Relaxed);
        self.progress.bytes.fetch_add(len, Ordering::Relaxed);
        if let Some(round) = &mut self.round {
            round.place = Some(*digest);
            if self.kept.elapsed() >= KEEP_EVERY {
                self.keep();
            }
        }
    }
}

impl Watch for Walk {
    fn pace(&mut self, bytes: u64) -> bool {
        if let Some(rate) = self.rate {
            // The end of a file is a piece of no bytes.
            let bytes = if bytes == 0 { FILE } else { bytes };
            self.due = self.due.max(Instant::now() - LAG)
                + Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
            while !self.stopped.is_cancelled()
                && let Some(wait) =
                    self.due.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())
            {
                std::thread::sleep(wait.min(NAP));
            }
        }
        !self.stopped.is_cancelled()
    }

    fn sound(&mut self, digest: &Digest, len: u64) {
        self.passed(digest, len);
    }

    fn bad(&mut self, damage: Damage) {
        self.passed(&damage.digest, 0);
        // Whoever is told may have ended; what was put aside stays so.
        let _ = self.news.blocking_send(damage);
    }
}
