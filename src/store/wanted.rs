//! When manifests were last asked for: noted in memory, written to the tree now and then.
//!
//! It stands as the time of the link to the manifest, so it outlives a restart, a copy and any index.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::evict::Evicted;
use super::index::{Progress, Seconds, seconds};
use super::{Store, layout};
use crate::oci::{Digest, Repository};
use crate::tasks::lock;

/// Manifests noted at a time. Beyond that the last ones count as not asked for.
const NOTED_MAX: usize = 100_000;

#[derive(Default)]
pub struct Wanted {
    /// Not in the index yet.
    new: Mutex<HashMap<(Repository, Digest), Seconds>>,
    /// Not in the tree yet.
    unwritten: Mutex<HashMap<(Repository, Digest), Seconds>>,
}

impl Store {
    /// The time as the index has it.
    pub(super) fn now(&self) -> Seconds {
        seconds(self.clock.wall())
    }

    /// Notes that somebody asked for a mirrored manifest. Waits for nothing.
    pub fn want(&self, repository: &Repository, digest: &Digest) {
        let mut new = lock(&self.wanted.new);
        if new.len() < NOTED_MAX {
            new.insert((repository.clone(), *digest), self.now());
        }
    }

    /// Has the index know what was asked for.
    pub(super) fn note_wanted(&self) {
        let new = std::mem::take(&mut *lock(&self.wanted.new));
        let mut unheld = Vec::new();
        let mut unwritten = lock(&self.wanted.unwritten);
        for ((repository, digest), at) in new {
            if !self.index.wanted(&repository.stored_name(), &digest, at) {
                unheld.push((repository, digest));
            } else if unwritten.len() < NOTED_MAX {
                unwritten.insert((repository, digest), at);
            }
        }
        drop(unwritten);
        // What is in memory alone because the disk takes nothing is served from there.
        if self.index.progress() != Progress::Whole || self.health.trouble().is_some() {
            return;
        }
        // It was evicted while somebody took it from the disk: it is not to be served from memory for ever.
        for (repository, digest) in unheld {
            self.tell_evicted(&Evicted { repository, manifests: vec![digest], layers: vec![], tags: vec![] });
        }
    }

    /// Writes to the tree what was asked for. Blocks.
    pub fn write_wanted(&self) {
        self.note_wanted();
        let unwritten = std::mem::take(&mut *lock(&self.wanted.unwritten));
        for ((repository, digest), at) in unwritten {
            let at: SystemTime = UNIX_EPOCH + Duration::from_secs(at.into());
            // It may have been evicted just now; and it is a loss of order only.
            if let Err(error) = self.home.touch(&layout::revision(&repository, &digest), at) {
                tracing::debug!(%error, "when a manifest was last asked for is not written");
            }
        }
    }
}
