//! How much may be held: the cap, what must stay free, and what is promised to blobs on their way.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::index::Progress;
use super::{Error, Store};
use crate::disk::Space;
use crate::tasks::lock;

const TEN_GIB: u64 = 10 << 30;
/// Files that can still be made on the file system, below which room is made; of a small one, a part.
const FILES_MIN: u64 = 1000;
const FILES_PART: u64 = 20;

#[derive(Default)]
pub struct Room {
    taken: Mutex<Taken>,
    /// That there is too much, and nothing that may go, was said.
    pub told_full: AtomicBool,
    /// One makes room at a time.
    pub turn: Mutex<()>,
    /// Repositories of which something could not be taken away a moment ago.
    pub stuck: Mutex<BTreeSet<String>>,
}

#[derive(Default)]
struct Taken {
    /// Bytes of the blobs on their way that were admitted to the disk.
    reserved: u64,
    /// Of these, what is not on the disk yet.
    unwritten: u64,
}

/// A promise of room, until it is dropped.
pub struct Reservation {
    room: Arc<Room>,
    bytes: u64,
    unwritten: u64,
}

/// What is missing for so many bytes more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    None,
    /// So many bytes have to go first.
    Of(u64),
    /// They are more than may ever be had.
    Hopeless,
}

impl Store {
    /// The bytes that held content may take, by configuration or by the size of the file system.
    pub fn cap(&self) -> Result<u64, Error> {
        Ok(self.cap_of(&self.home.space()?))
    }

    fn cap_of(&self, space: &Space) -> u64 {
        self.options.max_size.unwrap_or(space.total / 5 * 4)
    }

    /// Bytes taken by content, and by what is still read of that which is gone.
    pub fn used(&self) -> u64 {
        self.index.bytes().saturating_add(self.open.lingering())
    }

    /// What is missing for `size` bytes more.
    pub(super) fn shortage(&self, size: u64) -> Result<Shortage, Error> {
        self.shortage_with(&lock(&self.room.taken), size)
    }

    fn shortage_with(&self, taken: &Taken, size: u64) -> Result<Shortage, Error> {
        let space = self.home.space()?;
        let cap = self.cap_of(&space);
        let min_free = self.options.min_free.unwrap_or((space.total / 10).min(TEN_GIB));
        if size > cap / 2 {
            return Ok(Shortage::Hopeless);
        }
        let used = match self.index.progress() {
            // How much is held is not known: no more than all that is on the disk.
            Progress::Begun => space.total.saturating_sub(space.available),
            Progress::Sized | Progress::Whole => self.used(),
        };
        let beyond_cap = used.saturating_add(taken.reserved).saturating_add(size).saturating_sub(cap);
        let wanted = min_free.saturating_add(taken.unwritten).saturating_add(size);
        let short = beyond_cap.max(wanted.saturating_sub(space.available));
        let no_files = space.files.is_some_and(|(all, free)| free < FILES_MIN.min(all / FILES_PART));
        Ok(match short.max(u64::from(no_files)) {
            0 => Shortage::None,
            short => Shortage::Of(short),
        })
    }

    /// Reserves `more` bytes where there is room for them.
    pub(super) fn reserve(&self, more: u64) -> Option<Reservation> {
        let mut taken = lock(&self.room.taken);
        let shortage = self.shortage_with(&taken, more).inspect_err(|_| self.metrics.store_errors.inc());
        if shortage.ok()? != Shortage::None {
            return None;
        }
        taken.reserved += more;
        taken.unwritten += more;
        Some(Reservation { room: self.room.clone(), bytes: more, unwritten: more })
    }
}

impl Reservation {
    /// Adds what was reserved to what there is.
    pub fn join(to: &mut Option<Self>, more: Self) {
        match to {
            Some(reserved) => reserved.add(more),
            None => *to = Some(more),
        }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// So many bytes of it are on the disk.
    pub fn wrote(&mut self, bytes: u64) {
        let bytes = bytes.min(self.unwritten);
        self.unwritten -= bytes;
        lock(&self.room.taken).unwritten -= bytes;
    }

    fn add(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.unwritten += std::mem::take(&mut other.unwritten);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut taken = lock(&self.room.taken);
        taken.reserved -= self.bytes;
        taken.unwritten -= self.unwritten;
    }
}
