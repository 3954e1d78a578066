//! What keeps collection off content that somebody relies on: leases in memory, and locks for the
//! moment in which links are made or taken away.
//!
//! A lease on a link says that a pusher was told, or is about to be told, that the repository has a
//! blob; one on data says that a link to it is about to be made. Who checks that something is there
//! and then builds on it renews the lease first; who takes something away looks for leases last, with
//! the lock held. After a start everything counts as leased, for what was promised before is not known.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::oci::{Digest, Repository};
use crate::tasks::lock;

/// Leases remembered, some 50 bytes each. Beyond that, everything counts as leased for one term.
const LEASES_MAX: usize = 200_000;
const LOCKS: usize = 64;

pub struct Leases {
    clock: Clock,
    term: Duration,
    keys: Keys,
    known: Mutex<Known>,
    /// Held while a repository's manifests are linked or its links are taken away.
    repositories: [Mutex<()>; LOCKS],
    /// Held by who links data that is there already; written to by who removes data.
    data: RwLock<()>,
}

/// Stands for something by a hash of 128 bits, which nobody outside can foresee. Two things of one
/// key only mean that one of them is kept for the other's sake.
#[derive(Default)]
pub struct Keys([RandomState; 2]);

pub type Key = u128;

struct Known {
    /// Until when each is leased: links by repository and digest, data by digest.
    until: HashMap<Key, Instant>,
    /// Until then everything is leased.
    all_until: Instant,
}

impl Keys {
    pub fn of(&self, thing: &impl Hash) -> Key {
        let [high, low] = self.0.each_ref().map(|state| u128::from(state.hash_one(thing)));
        high << 64 | low
    }
}

impl Leases {
    pub fn new(term: Duration, clock: Clock) -> Self {
        let known = Known { until: HashMap::new(), all_until: clock.now() + term };
        let repositories = std::array::from_fn(|_| Mutex::default());
        let (keys, known, data) = (Keys::default(), Mutex::new(known), RwLock::default());
        Self { clock, term, keys, known, repositories, data }
    }

    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Leases the link of a blob or manifest in a repository, and its data.
    pub fn renew(&self, repository: &Repository, digest: &Digest) {
        self.lease(&[self.keys.of(&(repository, digest)), self.keys.of(digest)]);
    }

    /// Leases data that is about to be linked.
    pub fn renew_data(&self, digest: &Digest) {
        self.lease(&[self.keys.of(digest)]);
    }

    fn lease(&self, keys: &[Key]) {
        let now = self.clock.now();
        let mut known = lock(&self.known);
        known.make_room(now, self.term);
        known.until.extend(keys.iter().map(|key| (*key, now + self.term)));
    }

    pub fn is_leased(&self, repository: &Repository, digest: &Digest) -> bool {
        self.has(self.keys.of(&(repository, digest)))
    }

    pub fn is_data_leased(&self, digest: &Digest) -> bool {
        self.has(self.keys.of(digest))
    }

    fn has(&self, key: Key) -> bool {
        let (now, known) = (self.clock.now(), lock(&self.known));
        now < known.all_until || known.until.get(&key).is_some_and(|until| now < *until)
    }

    /// Serialises commits and removals of one repository. Blocking code only, and for a moment.
    pub fn repository(&self, repository: &Repository) -> MutexGuard<'_, ()> {
        let place = self.keys.of(repository) % LOCKS as Key;
        lock(&self.repositories[usize::try_from(place).unwrap_or_default()])
    }

    /// Held from the check that data is there until it is linked.
    pub fn keep_data(&self) -> RwLockReadGuard<'_, ()> {
        self.data.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while data is removed.
    pub fn remove_data(&self) -> RwLockWriteGuard<'_, ()> {
        self.data.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A moment from which on a repository is looked through: what was committed before can be seen,
    /// what is committed later is leased for a term from then.
    pub fn mark(&self, repository: &Repository) -> Instant {
        let _links = self.repository(repository);
        self.clock.now()
    }

    /// The same for what data is linked anywhere.
    pub fn mark_data(&self) -> Instant {
        let _removing = self.remove_data();
        self.clock.now()
    }

    /// How old a mark is, once leases that were renewed right after it may have ended: then what was
    /// seen says nothing any more.
    pub fn staleness(&self, mark: Instant) -> Option<Duration> {
        Some(self.clock.now().saturating_duration_since(mark)).filter(|age| *age >= self.term)
    }
}

impl Known {
    fn make_room(&mut self, now: Instant, term: Duration) {
        // Two at most are added at a time.
        if self.until.len() + 2 <= LEASES_MAX {
            return;
        }
        self.until.retain(|_, until| now < *until);
        // Not worth going through again for the next few.
        if self.until.len() > LEASES_MAX / 2 {
            tracing::warn!(
                "more is leased than can be remembered: nothing is collected for the term of a lease"
            );
            self.until = HashMap::new();
            self.all_until = now + term;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Owner;

    const TERM: Duration = Duration::from_secs(60);

    fn repository(name: &str) -> Repository {
        Repository { owner: Owner::Hosted, name: name.parse().unwrap() }
    }

    fn started() -> (Leases, Clock) {
        let clock = Clock::default();
        (Leases::new(TERM, clock.clone()), clock)
    }

    #[test]
    fn everything_is_leased_for_a_term_after_the_start() {
        let (leases, clock) = started();
        let (a, digest) = (repository("a"), Digest::sha256(b"x"));
        assert!(leases.is_leased(&a, &digest) && leases.is_data_leased(&digest));
        clock.advance(TERM);
        assert!(!leases.is_leased(&a, &digest) && !leases.is_data_leased(&digest));
    }

    #[test]
    fn a_lease_is_on_one_link_and_its_data_for_one_term() {
        let (leases, clock) = started();
        clock.advance(TERM);
        let (a, b, digest) = (repository("a"), repository("b"), Digest::sha256(b"x"));
        leases.renew(&a, &digest);
        assert!(leases.is_leased(&a, &digest) && leases.is_data_leased(&digest));
        assert!(!leases.is_leased(&b, &digest) && !leases.is_leased(&a, &Digest::sha256(b"y")));
        clock.advance(TERM / 2);
        leases.renew_data(&digest);
        clock.advance(TERM / 2);
        assert!(!leases.is_leased(&a, &digest) && leases.is_data_leased(&digest));
        clock.advance(TERM / 2);
        assert!(!leases.is_data_leased(&digest));
    }

    #[test]
    fn more_than_can_be_remembered_leases_everything_for_a_term() {
        let (leases, clock) = started();
        clock.advance(TERM);
        let digest = |n: usize| Digest::sha256(&n.to_le_bytes());
        let (first, other, a) = (digest(0), Digest::sha256(b"never leased"), repository("a"));
        for n in 0..LEASES_MAX {
            leases.renew_data(&digest(n));
            assert!(lock(&leases.known).until.len() <= LEASES_MAX);
        }
        assert!(leases.is_data_leased(&first) && leases.is_leased(&a, &other), "one too many was forgotten");
        clock.advance(TERM);
        assert!(!leases.is_data_leased(&first) && !leases.is_leased(&a, &other));
    }

    #[test]
    fn what_has_ended_makes_room_first() {
        let (leases, clock) = started();
        clock.advance(TERM);
        let digest = |n: usize| Digest::sha256(&n.to_le_bytes());
        for n in 0..LEASES_MAX - 2 {
            leases.renew_data(&digest(n));
        }
        clock.advance(TERM);
        for n in 0..4 {
            leases.renew_data(&digest(LEASES_MAX + n));
        }
        assert!(!leases.is_data_leased(&digest(0)) && leases.is_data_leased(&digest(LEASES_MAX)));
        assert!(lock(&leases.known).until.len() < 10);
    }

    #[test]
    fn a_mark_is_stale_after_a_term() {
        let (leases, clock) = started();
        let (mark, data) = (leases.mark(&repository("a")), leases.mark_data());
        clock.advance(TERM / 2);
        assert_eq!((leases.staleness(mark), leases.staleness(data)), (None, None));
        clock.advance(TERM / 2);
        assert!(leases.staleness(mark).is_some() && leases.staleness(data).is_some());
    }
}
