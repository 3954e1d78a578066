//! What keeps collection off content that somebody relies on: leases in memory, and locks for the
//! moment in which links are made or taken away.
//!
//! A lease on a link says that a pusher was told, or is about to be told, that the repository has a
//! blob; one on data says that a link to it is about to be made. Who checks that something is there
//! and then builds on it renews the lease first; who takes something away looks for leases last, with
//! the lock held. After a start everything counts as leased, for what was promised before is not known.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::oci::{Digest, Repository};
use crate::tasks::lock;

/// Leases remembered. Beyond that, everything counts as leased for one term.
const LEASES_MAX: usize = 1_000_000;
const LOCKS: usize = 64;

pub struct Leases {
    clock: Clock,
    term: Duration,
    known: Mutex<Known>,
    /// Held while a repository's manifests are linked or its links are taken away.
    repositories: [Mutex<()>; LOCKS],
    /// Held by who links data that is there already; written to by who removes data.
    data: RwLock<()>,
}

struct Known {
    links: HashMap<(Repository, Digest), Instant>,
    data: HashMap<Digest, Instant>,
    /// Until then everything is leased.
    all_until: Instant,
}

impl Leases {
    pub fn new(term: Duration, clock: Clock) -> Self {
        let all_until = clock.now() + term;
        let known = Known { links: HashMap::new(), data: HashMap::new(), all_until };
        let repositories = std::array::from_fn(|_| Mutex::default());
        Self { clock, term, known: Mutex::new(known), repositories, data: RwLock::default() }
    }

    pub fn term(&self) -> Duration {
        self.term
    }

    /// Leases the link of a blob or manifest in a repository, and its data.
    pub fn renew(&self, repository: &Repository, digest: &Digest) {
        let now = self.clock.now();
        let mut known = lock(&self.known);
        known.make_room(now, self.term);
        known.links.insert((repository.clone(), *digest), now + self.term);
        known.data.insert(*digest, now + self.term);
    }

    /// Leases data that is about to be linked.
    pub fn renew_data(&self, digest: &Digest) {
        let now = self.clock.now();
        let mut known = lock(&self.known);
        known.make_room(now, self.term);
        known.data.insert(*digest, now + self.term);
    }

    pub fn is_leased(&self, repository: &Repository, digest: &Digest) -> bool {
        let (now, known) = (self.clock.now(), lock(&self.known));
        now < known.all_until
            || known.links.get(&(repository.clone(), *digest)).is_some_and(|until| now < *until)
    }

    pub fn is_data_leased(&self, digest: &Digest) -> bool {
        let (now, known) = (self.clock.now(), lock(&self.known));
        now < known.all_until || known.data.get(digest).is_some_and(|until| now < *until)
    }

    /// Serialises commits and removals of one repository. Blocking code only, and for a moment.
    pub fn repository(&self, repository: &Repository) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        repository.hash(&mut hasher);
        let place = usize::try_from(hasher.finish() % LOCKS as u64).unwrap_or_default();
        lock(&self.repositories[place])
    }

    /// Held from the check that data is there until it is linked.
    pub fn keep_data(&self) -> RwLockReadGuard<'_, ()> {
        self.data.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while data is removed.
    pub fn remove_data(&self) -> RwLockWriteGuard<'_, ()> {
        self.data.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn make_room(&mut self, now: Instant, term: Duration) {
        if self.links.len().max(self.data.len()) < LEASES_MAX {
            return;
        }
        self.links.retain(|_, until| now < *until);
        self.data.retain(|_, until| now < *until);
        if self.links.len().max(self.data.len()) >= LEASES_MAX / 2 {
            self.links.clear();
            self.data.clear();
            self.all_until = now + term;
        }
    }
}
