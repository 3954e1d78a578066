//! What an upstream tells of its rate limits, and the pauses that follow.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use super::budget::{self, Budget, Verdict};
use super::callers::CALLERS_MAX;
use super::spend::Spending;
pub use super::told::retry_after;
use super::told::{LONGEST_PAUSE, Told};
use super::{CallerId, Identity, LeakState, Purpose, QuotaState, Spender};
use crate::clock::Clock;
use crate::metrics::{Label, Saving, UpstreamMetrics};
use crate::tasks::lock;

/// When the first probe goes out after the quota was exhausted.
pub const PROBE_FIRST: Duration = Duration::from_secs(60);
/// The pause of HEADs where none is named, doubled from the first to the last.
const HEADS_FIRST: Duration = Duration::from_secs(60);
const HEADS_LAST: Duration = Duration::from_secs(15 * 60);

/// What is known of one upstream's limits.
pub struct Quota {
    host: String,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<UpstreamMetrics>,
    /// The identity that pulls, and so whose quota is reported.
    pub(super) pulls_as: Identity,
    pub(super) state: Mutex<State>,
    /// Whether there is a quota to watch over.
    pub(super) is_told: AtomicBool,
    /// A pull has ended.
    pub(super) ended: Notify,
    /// Held by who asks what is left, so that the others wait for its answer.
    pub(super) looking: tokio::sync::Mutex<()>,
}

pub(super) struct State {
    pub(super) budget: Budget,
    /// The upstream's count of requests that were sent again, when last looked at.
    retries: u64,
    gets: PerIdentity<Option<Pause>>,
    heads: PerIdentity<Option<Backoff>>,
}

/// One of something for each identity. It may be lost: it spares requests, and decides nothing.
#[derive(Default)]
pub struct PerIdentity<T> {
    anonymous: T,
    configured: T,
    callers: HashMap<CallerId, T>,
}

impl<T: Default> PerIdentity<T> {
    pub fn of(&mut self, identity: Identity) -> &mut T {
        match identity {
            Identity::Anonymous => &mut self.anonymous,
            Identity::Configured => &mut self.configured,
            Identity::Caller(id) => {
                if self.callers.len() as u64 >= CALLERS_MAX && !self.callers.contains_key(&id) {
                    self.callers.clear();
                }
                self.callers.entry(id).or_default()
            }
        }
    }
}

struct Pause {
    since: Instant,
    /// When it ends, or when the next probe goes out.
    until: Instant,
    /// Ends when a probe says so, or after the longest pause.
    probing: bool,
}

/// What becomes of a pause of GETs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Wait(Instant),
    /// A HEAD is to find out whether there is quota again.
    Probe,
    /// There is no pause any more.
    Done,
}

struct Backoff {
    until: Instant,
    /// What the next pause is where none is named.
    next: Duration,
}

impl Quota {
    pub fn new(
        host: &str,
        options: budget::Options,
        clock: Clock,
        metrics: Arc<UpstreamMetrics>,
        pulls_as: Identity,
    ) -> Self {
        let state = State {
            budget: Budget::new(options),
            retries: metrics.retries.get(),
            gets: PerIdentity::default(),
            heads: PerIdentity::default(),
        };
        Self {
            host: host.to_owned(),
            clock,
            metrics,
            pulls_as,
            state: Mutex::new(state),
            is_told: AtomicBool::new(false),
            ended: Notify::new(),
            looking: tokio::sync::Mutex::new(()),
        }
    }

    /// Takes note of what an answer to what was sent at `sent` tells; `source`: whose quota it is;
    /// `spending`: the pull that it answers.
    pub fn note(
        &self,
        identity: Identity,
        told: Told,
        source: Option<&str>,
        sent: Instant,
        spending: Option<Spending<'_>>,
    ) {
        if identity != self.pulls_as {
            return;
        }
        let now = self.clock.now();
        let mut state = lock(&self.state);
        // Ended and told of at once, so that nobody counts it as neither under way nor spent.
        if let Some(spending) = spending {
            let is_charged = state.budget.has_fallen(told, now);
            spending.end(&mut state.budget, is_charged);
        }
        let retries = self.metrics.retries.get();
        let again = retries.saturating_sub(std::mem::replace(&mut state.retries, retries));
        state.budget.asked_again(again);
        let found = state.budget.note(now, sent, told, source);
        if told == Told::default() {
            return;
        }
        self.is_told.store(true, Ordering::Relaxed);
        self.show(&state.budget, now);
        self.metrics.budget.leaked.inc_by(found.pulls);
        if found.is_news {
            let pulls = state.budget.leak().episode(now).unwrap_or(found.pulls);
            let silent = state.budget.clients().silent(now).join(", ");
            let source = state.budget.source().unwrap_or("unknown").to_owned();
            drop(state);
            tracing::warn!(
                upstream = self.host,
                source,
                pulls,
                silent_clients = silent,
                "pulls of this quota are spent past this mirror: somebody behind the same address, or with the same \
                 login, asks the upstream directly; clients that asked here before and do not any more are named"
            );
        }
    }

    /// Has the metrics tell what is known now: what was told is forgotten in silence.
    pub fn show_now(&self) {
        let now = self.clock.now();
        let state = lock(&self.state);
        self.show(&state.budget, now);
        self.show_paused(&state);
    }

    fn show(&self, budget: &Budget, now: Instant) {
        let gauge = |value: Option<u64>| value.map_or(-1, |v| i64::try_from(v).unwrap_or(i64::MAX));
        let time = |at: Option<Instant>| {
            let since = at.and_then(|at| self.wall(at, now).duration_since(SystemTime::UNIX_EPOCH).ok());
            since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
        };
        let told = budget.told(now).unwrap_or_default();
        budget.source().into_iter().for_each(|source| self.metrics.quota_source.set(source));
        self.metrics.quota_limit.set(gauge(told.limit));
        self.metrics.quota_remaining.set(gauge(told.remaining));
        self.metrics.quota_window_seconds.set(gauge(told.window.map(|w| w.as_secs())).max(0));
        let (ends, exhausted) = outlook(budget, now);
        self.metrics.budget.window_end.set(time(ends));
        self.metrics.budget.exhaustion.set(time(exhausted));
    }

    fn wall(&self, at: Instant, now: Instant) -> SystemTime {
        let wall = self.clock.wall();
        let past = wall.checked_sub(now.saturating_duration_since(at)).unwrap_or(wall);
        past.checked_add(at.saturating_duration_since(now)).unwrap_or(wall)
    }

    /// How long manifest GETs are to wait still.
    pub fn gets_paused(&self, identity: Identity) -> Option<Duration> {
        let now = self.clock.now();
        lock(&self.state).gets.of(identity).as_ref().and_then(|pause| pause.left(now))
    }

    /// Pauses manifest GETs, for `wait` or (None) until probes say that it may end. True where the caller
    /// is the one to see to its end.
    pub fn pause_gets(&self, identity: Identity, wait: Option<Duration>) -> bool {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        let pause = state.gets.of(identity);
        let is_new = pause.is_none();
        if pause.as_ref().and_then(|pause| pause.left(now)).is_none() {
            let until = now + wait.unwrap_or(PROBE_FIRST);
            *pause = Some(Pause { since: now, until, probing: wait.is_none() });
            self.show_paused(&state);
        }
        is_new
    }

    /// What to do about the pause of GETs next; ends it where its time is over.
    pub fn next_step(&self, identity: Identity) -> Step {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        let pause = state.gets.of(identity);
        let step = match pause {
            None => Step::Done,
            Some(Pause { since, probing: true, .. }) if now >= *since + LONGEST_PAUSE => Step::Done,
            Some(Pause { until, .. }) if now < *until => Step::Wait(*until),
            Some(Pause { probing: true, .. }) => Step::Probe,
            Some(_) => Step::Done,
        };
        if step == Step::Done {
            *pause = None;
            self.show_paused(&state);
        }
        step
    }

    /// Sets when the next probe goes out.
    pub fn next_probe(&self, identity: Identity, at: Instant) {
        if let Some(pause) = lock(&self.state).gets.of(identity) {
            pause.until = at;
        }
    }

    pub fn resume_gets(&self, identity: Identity) {
        let mut state = lock(&self.state);
        *state.gets.of(identity) = None;
        self.show_paused(&state);
    }

    /// A caller's quota is no state of the upstream.
    fn show_paused(&self, state: &State) {
        let paused = state.gets.anonymous.is_some() || state.gets.configured.is_some();
        self.metrics.paused.set(paused.into());
    }

    /// How long HEADs are to wait still.
    pub fn heads_paused(&self, identity: Identity) -> Option<Duration> {
        let now = self.clock.now();
        lock(&self.state).heads.of(identity).as_ref().and_then(|backoff| left(backoff.until, now))
    }

    /// Pauses HEADs, for `wait` or else for twice as long as the last time. Gives how long.
    pub fn pause_heads(&self, identity: Identity, wait: Option<Duration>) -> Duration {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        let backoff = state.heads.of(identity);
        if let Some(left) = backoff.as_ref().and_then(|backoff| left(backoff.until, now)) {
            return left;
        }
        let next = backoff.as_ref().map_or(HEADS_FIRST, |backoff| backoff.next);
        let pause = wait.unwrap_or(next);
        let next = if wait.is_some() { next } else { (next * 2).min(HEADS_LAST) };
        *backoff = Some(Backoff { until: now + pause, next });
        pause
    }

    /// A HEAD was answered: the next pause is short again. One under way goes on.
    pub fn heads_answered(&self, identity: Identity) {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        let backoff = state.heads.of(identity);
        if backoff.as_ref().is_some_and(|backoff| left(backoff.until, now).is_none()) {
            *backoff = None;
        }
    }

    /// For those who want to know. What was told is forgotten when its window has passed.
    pub fn snapshot(&self) -> QuotaState {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        let paused_for = state.gets.of(self.pulls_as).as_ref().and_then(|pause| pause.left(now));
        let budget = &state.budget;
        let Told { limit, remaining, window } = budget.told(now).unwrap_or_default();
        let (ends, exhausted) = outlook(budget, now);
        let held = |purpose: &Purpose| {
            let spender = Spender { purpose: *purpose, client: None };
            matches!(budget.verdict(&spender, now), Verdict::HeldBack(_))
        };
        let leak = budget.leak().episode(now).map(|pulls| LeakState {
            pulls,
            source: budget.source().map(str::to_owned),
            silent: budget.clients().silent(now),
        });
        QuotaState {
            limit,
            remaining,
            window,
            paused_for,
            window_ends: ends.map(|at| self.wall(at, now)),
            exhausted: exhausted.map(|at| self.wall(at, now)),
            held_back: [Purpose::Miss, Purpose::Revalidation, Purpose::Background].into_iter().find(held),
            saved: Saving::ALL.iter().map(|saving| self.metrics.budget.saved.cell(*saving).get()).sum(),
            leak,
        }
    }
}

/// When the window ends, and when the quota does, where that comes first.
fn outlook(budget: &Budget, now: Instant) -> (Option<Instant>, Option<Instant>) {
    let Some((window, told)) = budget.window(now).zip(budget.told(now)) else { return (None, None) };
    let ends = window.ends(told.length());
    (ends, window.exhausted().filter(|at| ends.is_none_or(|ends| *at < ends)))
}

impl Pause {
    fn left(&self, now: Instant) -> Option<Duration> {
        let left = left(self.until, now);
        // A probe that is due is under way: its answer comes soon.
        if self.probing { left.or(Some(Duration::from_secs(1))) } else { left }
    }
}

/// What is left until then, in whole seconds at least one; None where it is past.
fn left(until: Instant, now: Instant) -> Option<Duration> {
    let left = until.saturating_duration_since(now);
    (!left.is_zero()).then(|| left.max(Duration::from_secs(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::upstream::told::LONGEST_WINDOW;
    use http::{HeaderMap, HeaderName};

    const ME: Identity = Identity::Configured;
    const MINUTE: Duration = Duration::from_secs(60);

    fn quota() -> (Quota, Clock, Arc<UpstreamMetrics>) {
        let (clock, metrics) = (Clock::default(), Arc::new(Metrics::new().upstream("docker.io")));
        let quota = Quota::new("docker.io", budget::Options::default(), clock.clone(), metrics.clone(), ME);
        (quota, clock, metrics)
    }

    #[test]
    fn limits_are_read_and_forgotten_after_their_window() {
        let (quota, clock, metrics) = quota();
        let told = Told { limit: Some(100), remaining: Some(76), window: Some(LONGEST_PAUSE) };
        let now = clock.now();
        quota.note(ME, told, Some("192.0.2.1"), now, None);
        quota.note(ME, Told::default(), None, now, None);
        quota.note(Identity::Anonymous, Told { remaining: Some(1), ..Told::default() }, None, now, None);
        let state = quota.snapshot();
        assert_eq!((state.limit, state.remaining), (Some(100), Some(76)));
        assert_eq!(state.window, Some(Duration::from_secs(21600)));
        assert_eq!((metrics.quota_limit.get(), metrics.quota_remaining.get()), (100, 76));
        assert_eq!(metrics.quota_window_seconds.get(), 21600);
        let ends = state.window_ends.unwrap().duration_since(clock.wall()).unwrap();
        assert!(ends <= LONGEST_PAUSE && ends > LONGEST_PAUSE - MINUTE, "{ends:?}");
        assert_eq!(state.exhausted, None);
        clock.advance(LONGEST_PAUSE);
        assert_eq!(quota.snapshot(), QuotaState::default());
        quota.show_now();
        assert_eq!((metrics.quota_limit.get(), metrics.quota_remaining.get()), (-1, -1));
        assert_eq!((metrics.quota_window_seconds.get(), metrics.budget.window_end.get()), (0, 0));
    }

    #[test]
    fn whatever_is_told_is_borne() {
        let (quota, clock, metrics) = quota();
        let max = u64::MAX;
        for left in [max, max / 2, 1, 0] {
            let told = [("ratelimit-limit", max), ("ratelimit-remaining", left)].map(|(name, count)| {
                (HeaderName::from_static(name), format!("{count};w={max}").parse().unwrap())
            });
            quota.note(ME, Told::read(&HeaderMap::from_iter(told)), None, clock.now(), None);
            quota.show_now();
            let ends = quota.snapshot().window_ends.unwrap().duration_since(clock.wall()).unwrap();
            assert!(ends <= LONGEST_WINDOW, "{ends:?}");
            assert_eq!(metrics.quota_limit.get(), i64::MAX);
            clock.advance(MINUTE * 31);
        }
    }

    #[test]
    fn each_caller_has_a_quota_of_its_own_and_so_many_are_remembered() {
        let (quota, clock, metrics) = quota();
        let caller = |number| Identity::Caller(CallerId::from_number(number));
        assert!(quota.pause_gets(caller(1), Some(MINUTE)));
        let told = Told { remaining: Some(0), ..Told::default() };
        quota.note(caller(1), told, Some("alice"), clock.now(), None);
        assert!(quota.gets_paused(caller(1)).is_some());
        assert_eq!(metrics.paused.get(), 0, "the upstream's own is not spent");
        assert_eq!((quota.gets_paused(caller(2)), quota.gets_paused(ME)), (None, None));
        assert_eq!((quota.snapshot(), metrics.quota_remaining.get()), (QuotaState::default(), -1));
        let mut each = PerIdentity::<u8>::default();
        for number in 0..=CALLERS_MAX {
            *each.of(caller(number)) = 1;
            assert!(each.callers.len() as u64 <= CALLERS_MAX);
        }
        assert_eq!(*each.of(caller(CALLERS_MAX)), 1);
    }

    #[test]
    fn gets_pause_for_a_time_or_until_resumed() {
        let (quota, clock, metrics) = quota();
        assert!(quota.pause_gets(ME, Some(MINUTE)));
        assert!(!quota.pause_gets(ME, Some(MINUTE * 9)));
        assert!(quota.gets_paused(ME).unwrap() <= MINUTE);
        assert_eq!(quota.gets_paused(Identity::Anonymous), None);
        assert_eq!(metrics.paused.get(), 1);
        clock.advance(MINUTE);
        assert_eq!(quota.gets_paused(ME), None);
        assert_eq!(quota.next_step(ME), Step::Done);
        assert_eq!(metrics.paused.get(), 0);
        assert!(quota.pause_gets(ME, None));
        assert!(matches!(quota.next_step(ME), Step::Wait(_)));
        clock.advance(MINUTE * 300);
        assert_eq!(quota.next_step(ME), Step::Probe);
        assert!(quota.gets_paused(ME).is_some() && quota.snapshot().paused_for.is_some());
        clock.advance(MINUTE * 60);
        assert_eq!(quota.next_step(ME), Step::Done);
        assert_eq!(quota.gets_paused(ME), None);
    }

    #[test]
    fn heads_pause_twice_as_long_each_time_until_one_is_answered() {
        let (quota, clock, _) = quota();
        let mut pauses = Vec::new();
        for _ in 0..6 {
            pauses.push(quota.pause_heads(ME, None).as_secs() / 60);
            assert!(quota.pause_heads(ME, None) <= HEADS_LAST);
            clock.advance(HEADS_LAST);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 15, 15]);
        quota.heads_answered(ME);
        assert_eq!(quota.pause_heads(ME, Some(MINUTE * 3)), MINUTE * 3);
        quota.heads_answered(ME);
        assert!(quota.heads_paused(ME).is_some());
    }
}
