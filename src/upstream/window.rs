//! The window of a quota, as far as what is told lets it be seen: where it ends, and how fast it is spent.

use std::time::{Duration, Instant};

/// The rate is that of the last one to two of these.
const SAMPLE: Duration = Duration::from_secs(30 * 60);
/// No rate is read from less.
const SHORTEST: Duration = Duration::from_secs(60);

/// What was left at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub at: Instant,
    pub left: u64,
}

/// From when a quota was last seen to rise. Whether windows are fixed or slide is not told, so the end
/// is the latest time at which all that was spent before is there again.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    began: Instant,
    older: Sample,
    newer: Sample,
    last: Sample,
}

impl Window {
    pub fn new(first: Sample) -> Self {
        Self { began: first.at, older: first, newer: first, last: first }
    }

    pub fn add(&mut self, sample: Sample) {
        if sample.at.saturating_duration_since(self.newer.at) >= SAMPLE {
            (self.older, self.newer) = (self.newer, sample);
        }
        self.last = sample;
    }

    /// None: later than any clock tells.
    pub fn ends(&self, length: Duration) -> Option<Instant> {
        self.began.checked_add(length)
    }

    /// When nothing is left, if it is spent on as of late.
    pub fn exhausted(&self) -> Option<Instant> {
        let (time, spent) = (
            self.last.at.saturating_duration_since(self.older.at),
            self.older.left.saturating_sub(self.last.left),
        );
        if time < SHORTEST || spent == 0 {
            return None;
        }
        // A time so far away that no clock has it is never.
        let seconds = time.as_secs_f64() * self.last.left as f64 / spent as f64;
        Duration::try_from_secs_f64(seconds).ok().and_then(|left| self.last.at.checked_add(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn window(samples: &[(u32, u64)]) -> (Window, Instant) {
        let start = Instant::now();
        let sample = |(minutes, left): &(u32, u64)| Sample { at: start + MINUTE * *minutes, left: *left };
        let mut window = Window::new(sample(&samples[0]));
        samples[1..].iter().for_each(|one| window.add(sample(one)));
        (window, start)
    }

    #[test]
    fn exhaustion_follows_the_rate_of_late() {
        let (even, start) = window(&[(0, 100), (5, 90), (10, 80)]);
        assert_eq!(even.exhausted(), Some(start + MINUTE * 50));
        assert_eq!(even.ends(MINUTE * 360), Some(start + MINUTE * 360));
        assert_eq!(even.ends(Duration::MAX), None);
        // An hour of spending, then rest: what was spent long ago is no rate.
        let (resting, _) = window(&[(0, 100), (30, 50), (60, 50), (90, 50)]);
        assert_eq!(resting.exhausted(), None);
        let (faster, start) = window(&[(0, 100), (30, 99), (60, 98), (70, 58)]);
        let predicted = faster.exhausted().unwrap();
        assert!(predicted < start + MINUTE * (70 + 60), "{:?}", predicted - start);
    }

    #[test]
    fn no_rate_is_read_from_a_moment_or_from_nothing_spent() {
        assert_eq!(window(&[(0, 100), (0, 50)]).0.exhausted(), None);
        assert_eq!(window(&[(0, 100), (20, 100)]).0.exhausted(), None);
        assert_eq!(window(&[(0, u64::MAX), (60 * 24 * 300, u64::MAX - 1)]).0.exhausted(), None);
        let (spent, start) = window(&[(0, 10), (10, 0)]);
        assert_eq!(spent.exhausted(), Some(start + MINUTE * 10));
    }
}
