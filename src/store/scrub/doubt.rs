//! After a stop without notice, nothing on disk is taken for right before it was checked: disks lie
//! about what they have written.
//!
//! A file says that a process runs. Whoever finds it at its start doubts all data, until a whole round
//! has seen it. The file stays behind at a clean stop that comes before that, and says so.
//!
//! What was pushed and cannot be read is left in its place, and counts as lost for some minutes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use moka::sync::Cache;

use crate::oci::Digest;
use crate::store::{Error, Store, layout};
use crate::tasks::{Flights, Tasks, lock};

const RUNS: &[u8] = b"a Forebay runs on this directory, or was stopped without notice\n";
const DOUBTS: &[u8] = b"a Forebay was stopped without notice, and not all data was checked since\n";
const NOTE_MAX: usize = 4096;
/// Before a note that the disk did not take is written again.
const NOTE_AGAIN: Duration = Duration::from_secs(30);
/// Blobs remembered as checked, some 200 bytes each. Those that were forgotten are checked once more.
const CHECKED: u64 = 100_000;
/// Blobs remembered that cannot be read, and for how long: then one is tried again.
const UNREADABLE: u64 = 10_000;
const UNREADABLE_FOR: Duration = Duration::from_secs(300);

pub struct Doubt {
    is_raised: AtomicBool,
    checked: Cache<Digest, ()>,
    /// Checks that readers wait for, one for each blob.
    pub(super) checks: Flights<Digest, bool>,
    unreadable: Cache<Digest, ()>,
    owed: Mutex<Owed>,
    /// That more is put aside than is to be, and why, was told.
    pub(super) told_full: AtomicBool,
}

/// What is still to be written of the start, for the disk did not take it.
#[derive(Default)]
struct Owed {
    /// That a process runs.
    note: bool,
    /// That what the scrub's round had seen by then says nothing any more.
    round: bool,
}

impl Doubt {
    pub fn new(tasks: Tasks) -> Self {
        let (is_raised, checked) = (AtomicBool::new(false), Cache::new(CHECKED));
        let unreadable = Cache::builder().max_capacity(UNREADABLE).time_to_live(UNREADABLE_FOR).build();
        let checks = Flights::new(tasks, "check blob");
        Self {
            is_raised,
            checked,
            checks,
            unreadable,
            owed: Mutex::default(),
            told_full: AtomicBool::new(false),
        }
    }

    /// Whether this blob is to be checked before it is relied on.
    pub fn is_of(&self, digest: &Digest) -> bool {
        self.is_raised.load(Ordering::Relaxed) && self.checked.get(digest).is_none()
    }

    /// This blob is right.
    pub fn vouch(&self, digest: &Digest) {
        self.unreadable.invalidate(digest);
        if self.is_raised.load(Ordering::Relaxed) {
            self.checked.insert(*digest, ());
        }
    }

    pub(super) fn note_unreadable(&self, digest: &Digest) {
        self.unreadable.insert(*digest, ());
    }
}

impl Store {
    /// Notes that this process runs, and begins to doubt what is there where the last one was stopped
    /// without notice, or may have been.
    pub fn begin_run(&self) {
        let note = self.home.read(layout::RUNNING, NOTE_MAX);
        let is_clean = matches!(note, Ok(None));
        let goes_on = note.as_ref().is_ok_and(|note| note.as_ref().is_some_and(|note| note == DOUBTS));
        self.doubt.is_raised.store(!is_clean, Ordering::Relaxed);
        *lock(&self.doubt.owed) = Owed { note: true, round: !is_clean && !goes_on };
        match note {
            Ok(None) => {}
            Ok(Some(_)) => tracing::warn!(
                "the last process on this data directory was stopped without notice: each blob is checked at its first \
                 read, until a round of the scrub or `forebay verify` has seen all"
            ),
            Err(error) => tracing::warn!(
                %error,
                "whether the last stop was a clean one cannot be told: each blob is checked at its first read, until a \
                 round of the scrub or `forebay verify` has seen all"
            ),
        }
        if let Err(error) = self.note_run() {
            tracing::warn!(
                %error,
                "a power loss could not be told from a clean stop, for the disk takes no note: it is tried again"
            );
        }
    }

    /// Writes what the disk did not take at the start.
    fn note_run(&self) -> Result<(), Error> {
        let mut owed = lock(&self.doubt.owed);
        if owed.round {
            self.home.delete(layout::SCRUB)?;
            owed.round = false;
        }
        if owed.note {
            self.home.put(layout::RUNNING, RUNS)?;
            owed.note = false;
        }
        Ok(())
    }

    /// Completes once the disk has taken it.
    pub(in crate::store) async fn noted(self: &Arc<Self>) {
        while self.run(Self::note_run).await.is_err() {
            tokio::time::sleep(NOTE_AGAIN).await;
        }
    }

    /// Whether what is remembered of the scrub's round says nothing any more, though it is still there.
    pub(super) fn is_round_void(&self) -> bool {
        lock(&self.doubt.owed).round
    }

    /// Another round took its place.
    pub(super) fn round_kept(&self) {
        lock(&self.doubt.owed).round = false;
    }

    /// Notes that this process has stopped as it should.
    pub fn end_run(&self) -> Result<(), Error> {
        let mut owed = lock(&self.doubt.owed);
        if owed.round {
            self.home.delete(layout::SCRUB)?;
        }
        *owed = Owed::default();
        match self.is_doubtful() {
            true => self.home.put(layout::RUNNING, DOUBTS),
            false => self.home.delete(layout::RUNNING),
        }
    }

    /// Whether this data could not be read a while ago, and was left in its place: it counts as lost.
    pub fn is_unreadable(&self, digest: &Digest) -> bool {
        self.doubt.unreadable.contains_key(digest)
    }

    /// Whether data is checked at its first read.
    pub fn is_doubtful(&self) -> bool {
        self.doubt.is_raised.load(Ordering::Relaxed)
    }

    /// All data was checked since the last start without notice.
    pub fn trust(&self) {
        if self.doubt.is_raised.swap(false, Ordering::Relaxed) {
            self.doubt.checked.invalidate_all();
            tracing::info!("all data was checked since the stop without notice");
        }
    }
}
