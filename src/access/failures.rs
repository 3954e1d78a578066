//! Who tries passwords: so many of a client that a registry upstream does not take are shown to it, for
//! guesses there are Forebay's, and lock accounts.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::Client;
use super::limits::network_of;

/// Logins of one client that were not taken, within the time below.
pub const FAILURES_MAX: u32 = 20;
const WITHIN: Duration = Duration::from_secs(60);
const CLIENTS_MAX: u64 = 100_000;

pub struct Failures {
    counts: Cache<IpAddr, Arc<AtomicU32>>,
}

/// A try that counts, unless it is forgiven.
pub struct Attempt(Arc<AtomicU32>);

impl Default for Failures {
    fn default() -> Self {
        let counts = Cache::builder()
            .max_capacity(CLIENTS_MAX)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(WITHIN)
            .build();
        Self { counts }
    }
}

impl Failures {
    /// Lets a client try a login, or refuses with the time after which to try again. Those under way
    /// count as well.
    pub fn attempt(&self, client: Client) -> Result<Attempt, Duration> {
        let count = self.counts.get_with(network_of(client.address), Arc::default);
        let taken = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < FAILURES_MAX).then_some(count + 1)
        });
        taken.map(|_| Attempt(count)).map_err(|_| WITHIN)
    }
}

impl Attempt {
    /// The login was taken, or nobody can say.
    pub fn forgive(self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_may_fail_so_often() {
        let failures = Failures::default();
        let of = |address: &str| Client { address: address.parse().unwrap() };
        for _ in 0..100 {
            failures.attempt(of("192.0.2.1")).unwrap().forgive();
        }
        for _ in 0..FAILURES_MAX {
            assert!(failures.attempt(of("192.0.2.1")).is_ok());
        }
        assert_eq!(failures.attempt(of("192.0.2.1")).err(), Some(WITHIN));
        assert!(failures.attempt(of("192.0.2.2")).is_ok());
    }
}
