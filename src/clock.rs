//! Time, in one place, so that what depends on it can be tested without waiting.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

/// The system's clocks, moved on by what a test has asked for.
#[derive(Clone, Default)]
pub struct Clock {
    ahead_millis: Arc<AtomicU64>,
    /// By how much the wall clock is wrong besides.
    wall_off_millis: Arc<AtomicI64>,
}

/// Lets so many through in a time, by this clock.
pub type Pacer = RateLimiter<NotKeyed, InMemoryState, Clock, NoOpMiddleware<Instant>>;

impl Clock {
    fn ahead(&self) -> Duration {
        Duration::from_millis(self.ahead_millis.load(Ordering::Relaxed))
    }

    /// For measuring waits: never goes back.
    pub fn now(&self) -> Instant {
        Instant::now() + self.ahead()
    }

    /// For what outlives the process. May jump either way.
    pub fn wall(&self) -> SystemTime {
        let wall = SystemTime::now() + self.ahead();
        let off = self.wall_off_millis.load(Ordering::Relaxed);
        let by = Duration::from_millis(off.unsigned_abs());
        // Off by more than time can express: then it is not off at all. Only tests set it.
        if off < 0 { wall.checked_sub(by) } else { wall.checked_add(by) }.unwrap_or(wall)
    }

    pub fn pacer(&self, per_minute: NonZeroU32, burst: NonZeroU32) -> Pacer {
        RateLimiter::direct_with_clock(Quota::per_minute(per_minute).allow_burst(burst), self.clone())
    }

    /// So many in a minute, evenly spread but for a tenth that may come at once.
    pub fn pace(&self, per_minute: NonZeroU32) -> Pacer {
        self.pacer(per_minute, NonZeroU32::new(per_minute.get() / 10).unwrap_or(NonZeroU32::MIN))
    }

    /// Sets the wall clock wrong, for tests: by so many seconds, back or forth.
    pub fn set_wall_off(&self, seconds: i64) {
        self.wall_off_millis.store(seconds.saturating_mul(1000), Ordering::Relaxed);
    }

    /// Moves both clocks on, for tests.
    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.ahead_millis.fetch_add(millis, Ordering::Relaxed);
    }
}

impl governor::clock::Clock for Clock {
    type Instant = Instant;

    fn now(&self) -> Instant {
        self.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_kept_whatever_is_due() {
        let clock = Clock::default();
        let taken = |pace: &Pacer, after: u64| {
            clock.advance(Duration::from_secs(after));
            (0..1000).filter(|_| pace.check().is_ok()).count()
        };
        let pace = |per_minute| clock.pace(NonZeroU32::new(per_minute).unwrap());
        let quick = pace(60);
        assert_eq!(taken(&quick, 0), 6);
        assert_eq!(taken(&quick, 1), 1);
        assert_eq!(taken(&quick, 600), 6);
        let slow = pace(1);
        assert_eq!((taken(&slow, 0), taken(&slow, 30), taken(&slow, 31)), (1, 0, 1));
    }
}
