//! Pulls that somebody else spends of the same quota: who goes past this mirror, behind its address or
//! with its login. Pure: what is told and what we send come in, and how much is not ours goes out.

use std::time::{Duration, Instant};

/// Without a leak for so long, the next one is another episode.
const EPISODE: Duration = Duration::from_secs(3600);
/// Of the limit, what may go astray without a word: a count that is off by a retry is no leak.
const TOLERATED_SHARE: u64 = 20;
const TOLERATED: u64 = 2;

#[derive(Default)]
pub struct Leak {
    /// What was left when nothing of ours was under way, and how many pulls we began since.
    base: Option<(u64, u64)>,
    /// What of the present episode's pulls was found since then.
    open: u64,
    pulls: u64,
    last: Option<Instant>,
    warned: bool,
}

/// What one word revealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Pulls of others that were not known of.
    pub pulls: u64,
    /// So many in this episode that it is to be told, for the first time.
    pub is_news: bool,
}

impl Leak {
    /// We may have spent so many: begun to ask, or asked again.
    pub fn sent(&mut self, pulls: u64) {
        if let Some((_, spent)) = &mut self.base {
            *spent = spent.saturating_add(pulls);
        }
    }

    /// The quota rose, or is another one. Of what is `in_flight`, some may still be charged.
    pub fn restart(&mut self, remaining: u64, in_flight: u64) {
        (self.base, self.open) = (Some((remaining, in_flight)), 0);
    }

    /// The upstream told what is left, and it has not risen. What is missing though none of ours can have
    /// spent it was spent by others: never too many, for all of ours count that may have been charged.
    pub fn told(&mut self, now: Instant, limit: u64, remaining: u64, in_flight: u64) -> Found {
        let Some((base, spent)) = self.base else {
            self.restart(remaining, in_flight);
            return Found::default();
        };
        let missing = base.saturating_sub(spent).saturating_sub(remaining);
        let pulls = missing.saturating_sub(self.open);
        self.open = self.open.max(missing);
        if in_flight == 0 {
            self.restart(remaining, 0);
        }
        if pulls == 0 {
            return Found::default();
        }
        if !self.is_under_way(now) {
            (self.pulls, self.warned) = (0, false);
        }
        (self.pulls, self.last) = (self.pulls.saturating_add(pulls), Some(now));
        let is_news = !self.warned && self.pulls >= (limit / TOLERATED_SHARE).max(TOLERATED);
        self.warned |= is_news;
        Found { pulls, is_news }
    }

    fn is_under_way(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.saturating_duration_since(last) < EPISODE)
    }

    /// How many pulls the present episode has cost, where it was told of.
    pub fn episode(&self, now: Instant) -> Option<u64> {
        (self.warned && self.is_under_way(now)).then_some(self.pulls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(pulls: u64, is_news: bool) -> Found {
        Found { pulls, is_news }
    }

    #[test]
    fn what_we_spend_is_no_leak_and_what_others_spend_is_told_once() {
        let (mut leak, now) = (Leak::default(), Instant::now());
        assert_eq!(leak.told(now, 100, 90, 0), Found::default());
        leak.sent(5);
        assert_eq!(leak.told(now, 100, 85, 0), Found::default());
        assert_eq!(leak.told(now, 100, 82, 0), found(3, false), "tolerated");
        assert_eq!(leak.episode(now), None);
        leak.sent(1);
        assert_eq!(leak.told(now, 100, 79, 0), found(2, true));
        assert_eq!(leak.told(now, 100, 70, 0), found(9, false), "the same episode");
        assert_eq!(leak.episode(now), Some(14));
        let later = now + EPISODE;
        assert_eq!(leak.episode(later), None);
        assert_eq!(leak.told(later, 100, 60, 0), found(10, true));
    }

    #[test]
    fn requests_under_way_and_pulls_that_come_back_are_no_leak() {
        let (mut leak, now) = (Leak::default(), Instant::now());
        // Four were under way when the first word came, and are charged after it.
        assert_eq!(leak.told(now, 20, 19, 4), Found::default());
        assert_eq!(leak.told(now, 20, 15, 2), Found::default());
        assert_eq!(leak.told(now, 20, 15, 0), Found::default());
        leak.restart(20, 1);
        assert_eq!(leak.told(now, 20, 19, 0), Found::default());
        assert_eq!(leak.told(now, 20, 14, 0), found(5, true));
    }

    #[test]
    fn without_a_quiet_moment_no_leak_is_counted_twice() {
        let (mut leak, now) = (Leak::default(), Instant::now());
        leak.told(now, 100, 100, 0);
        let (mut remaining, mut total) = (100, 0);
        for _ in 0..20 {
            leak.sent(1);
            remaining -= 2;
            total += leak.told(now, 100, remaining, 3).pulls;
        }
        assert_eq!(total, 20);
    }

    proptest! {
        /// Pulls are begun, charged and answered in any order, and others pull in between: what is
        /// found is never more than they took, and all of it once nothing is under way.
        #[test]
        fn never_more_than_the_truth(steps in prop::collection::vec(0u8..4, 1..200)) {
            let (mut leak, now) = (Leak::default(), Instant::now());
            let (mut left, mut begun, mut charged, mut others, mut found) = (10_000u64, 0u64, 0u64, 0, 0);
            leak.told(now, 10_000, left, 0);
            for step in steps {
                match step {
                    0 => {
                        leak.sent(1);
                        begun += 1;
                    }
                    1 if begun > 0 => {
                        (begun, charged, left) = (begun - 1, charged + 1, left - 1);
                    }
                    2 => (others, left) = (others + 1, left - 1),
                    _ => {
                        charged = charged.saturating_sub(1);
                        found += leak.told(now, 10_000, left, begun + charged).pulls;
                    }
                }
                prop_assert!(found <= others);
            }
            left -= begun;
            found += leak.told(now, 10_000, left, 0).pulls;
            prop_assert_eq!(found, others);
        }
    }
}
