//! Time, in one place, so that what depends on it can be tested without waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// The system's clocks, moved on by what a test has asked for.
#[derive(Clone, Default)]
pub struct Clock {
    ahead_millis: Arc<AtomicU64>,
    /// By how much the wall clock is wrong besides.
    wall_off_millis: Arc<AtomicI64>,
}

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
