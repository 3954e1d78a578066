//! Circuit breakers: who did not answer a few times in a row is not asked again for a while, so that
//! nobody waits for it, and then by one request first.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use prometheus::IntGauge;

use crate::clock::Clock;
use crate::tasks::lock;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Failures in a row that open it,
    pub failures: u32,
    /// and how long the row lasts at least: what cuts many requests at once is one failure.
    pub over: Duration,
    /// The longest first pause, doubled from one failed probe to the next up to `last`.
    pub first: Duration,
    pub last: Duration,
}

#[derive(Debug)]
enum State {
    Closed {
        failures: u32,
        since: Instant,
    },
    Open {
        until: Instant,
        longest: Duration,
        why: String,
    },
    /// One request is under way that shows how things are.
    HalfOpen {
        longest: Duration,
        why: String,
    },
}

/// Of one server.
pub struct Breaker {
    /// For the log: `https://registry-1.docker.io`.
    place: String,
    policy: Policy,
    clock: Clock,
    state: Mutex<State>,
    /// How many breakers of this upstream are not closed.
    open: IntGauge,
}

/// The server is not asked now.
#[derive(Debug)]
pub struct Tripped {
    pub wait: Duration,
    /// What its last failure was.
    pub why: String,
}

/// Leave for one request. Dropped without a word, it says nothing of the server.
pub struct Pass<'a> {
    breaker: &'a Breaker,
    is_probe: bool,
    /// The last request to this server failed.
    pub after_failure: bool,
}

impl Breaker {
    pub fn new(place: String, policy: Policy, clock: Clock, open: IntGauge) -> Self {
        let state = Mutex::new(State::Closed { failures: 0, since: clock.now() });
        Self { place, policy, clock, state, open }
    }

    pub fn enter(&self) -> Result<Pass<'_>, Tripped> {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        let pass = |is_probe, after_failure| Ok(Pass { breaker: self, is_probe, after_failure });
        match &mut *state {
            State::Closed { failures, .. } => pass(false, *failures > 0),
            State::Open { until, why, .. } if now < *until => {
                Err(Tripped { wait: *until - now, why: why.clone() })
            }
            State::Open { longest, why, .. } => {
                *state = State::HalfOpen { longest: *longest, why: std::mem::take(why) };
                tracing::debug!(server = self.place, "circuit breaker half open: one request tries");
                pass(true, true)
            }
            State::HalfOpen { why, .. } => Err(Tripped { wait: Duration::from_secs(1), why: why.clone() }),
        }
    }

    /// The server answered.
    pub fn succeeded(&self) {
        let mut state = lock(&self.state);
        if !matches!(*state, State::Closed { .. }) {
            self.open.dec();
            tracing::info!(server = self.place, "circuit breaker closed: it answers again");
        }
        *state = State::Closed { failures: 0, since: self.clock.now() };
    }

    /// The server did not answer, or not as a server in good order does.
    pub fn failed(&self, why: &str) {
        self.count(lock(&self.state), why, false);
    }

    fn count(&self, mut state: MutexGuard<'_, State>, why: &str, is_probe: bool) {
        let now = self.clock.now();
        let longest = match &mut *state {
            State::Closed { failures, since } => {
                if *failures == 0 {
                    *since = now;
                }
                *failures = failures.saturating_add(1);
                if *failures < self.policy.failures || now < *since + self.policy.over {
                    return;
                }
                self.open.inc();
                self.policy.first
            }
            State::HalfOpen { longest, .. } if is_probe => (*longest * 2).min(self.policy.last),
            // Of requests that were under way when it opened.
            State::Open { .. } | State::HalfOpen { .. } => return,
        };
        let pause = rand::random_range(Duration::ZERO..=longest);
        match &*state {
            State::Closed { .. } => {
                tracing::warn!(server = self.place, ?pause, why, "circuit breaker open");
            }
            _ => tracing::info!(server = self.place, ?pause, why, "circuit breaker open still"),
        }
        *state = State::Open { until: now + pause, longest, why: why.to_owned() };
    }
}

impl Drop for Breaker {
    fn drop(&mut self) {
        if !matches!(*lock(&self.state), State::Closed { .. }) {
            self.open.dec();
        }
    }
}

impl Pass<'_> {
    pub fn succeeded(mut self) {
        self.is_probe = false;
        self.breaker.succeeded();
    }

    pub fn failed(mut self, why: &str) {
        let is_probe = std::mem::take(&mut self.is_probe);
        self.breaker.count(lock(&self.breaker.state), why, is_probe);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.is_probe {
            return;
        }
        // Whoever waited for the probe has left: the next request is one.
        let mut state = lock(&self.breaker.state);
        if let State::HalfOpen { longest, why } = &mut *state {
            let (longest, why) = (*longest, std::mem::take(why));
            *state = State::Open { until: self.breaker.clock.now(), longest, why };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        failures: 3,
        over: Duration::ZERO,
        first: Duration::from_secs(2),
        last: Duration::from_secs(7),
    };

    fn breaker() -> (Breaker, Clock, IntGauge) {
        let (clock, open) = (Clock::default(), IntGauge::new("open", "test").unwrap());
        (Breaker::new("https://a".to_owned(), POLICY, clock.clone(), open.clone()), clock, open)
    }

    fn fail(breaker: &Breaker) {
        breaker.enter().unwrap().failed("on purpose");
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_one_probe_closes_it() {
        let (breaker, clock, open) = breaker();
        fail(&breaker);
        fail(&breaker);
        assert!(breaker.enter().unwrap().after_failure);
        breaker.enter().unwrap().succeeded();
        assert!(!breaker.enter().unwrap().after_failure);
        (0..3).for_each(|_| fail(&breaker));
        assert_eq!(open.get(), 1);
        clock.advance(POLICY.first);
        let probe = breaker.enter().unwrap();
        let refused = breaker.enter().err().unwrap();
        assert_eq!(refused.why, "on purpose");
        probe.succeeded();
        assert!(breaker.enter().is_ok());
        assert_eq!(open.get(), 0);
    }

    #[test]
    fn pauses_are_random_grow_and_have_a_bound() {
        let (mut longest_seen, mut shortest_seen) = (Duration::ZERO, Duration::MAX);
        for _ in 0..200 {
            let (breaker, clock, _) = breaker();
            (0..3).for_each(|_| fail(&breaker));
            for bound in [2, 4, 7, 7] {
                let bound = Duration::from_secs(bound);
                if let Err(refused) = breaker.enter() {
                    assert!(refused.wait <= bound, "{refused:?}");
                    longest_seen = longest_seen.max(refused.wait);
                    shortest_seen = shortest_seen.min(refused.wait);
                }
                clock.advance(bound);
                breaker.enter().unwrap().failed("still");
            }
        }
        // 800 draws: that none is in the outer parts is out of the question.
        assert!(longest_seen > Duration::from_secs(5) && shortest_seen < Duration::from_secs(1));
    }

    #[test]
    fn many_at_once_are_one_failure() {
        let (clock, open) = (Clock::default(), IntGauge::new("open", "test").unwrap());
        let policy = Policy { over: Duration::from_secs(60), ..POLICY };
        let breaker = Breaker::new("https://a".to_owned(), policy, clock.clone(), open.clone());
        (0..100).for_each(|_| fail(&breaker));
        assert_eq!(open.get(), 0);
        clock.advance(Duration::from_secs(60));
        fail(&breaker);
        assert_eq!(open.get(), 1);
    }

    #[test]
    fn a_probe_that_is_given_up_makes_room_for_the_next() {
        let (breaker, clock, open) = breaker();
        (0..3).for_each(|_| fail(&breaker));
        clock.advance(POLICY.first);
        drop(breaker.enter().unwrap());
        let probe = breaker.enter().unwrap();
        // What began before it opened and fails late changes nothing; what succeeds does.
        breaker.failed("late");
        assert!(breaker.enter().is_err());
        breaker.succeeded();
        drop(probe);
        assert!(breaker.enter().is_ok());
        (0..3).for_each(|_| fail(&breaker));
        assert_eq!(open.get(), 1);
        drop(breaker);
        assert_eq!(open.get(), 0, "a breaker that is gone is not open");
    }
}
