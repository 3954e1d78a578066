//! What an upstream tells of its rate limits, and the pauses that follow.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;

use super::callers::CALLERS_MAX;
use super::{CallerId, Identity, QuotaState};
use crate::clock::Clock;
use crate::metrics::UpstreamMetrics;
use crate::tasks::lock;

/// Longest pause that is believed.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 3600);
/// When the first probe goes out after the quota was exhausted.
pub const PROBE_FIRST: Duration = Duration::from_secs(60);
/// The pause of HEADs where none is named, doubled from the first to the last.
const HEADS_FIRST: Duration = Duration::from_secs(60);
const HEADS_LAST: Duration = Duration::from_secs(15 * 60);

/// The limit headers of one answer (Docker Hub, "pull usage and limits"). All missing: not limited,
/// or not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub limit: Option<u64>,
    pub remaining: Option<u64>,
    pub window: Option<Duration>,
}

impl Told {
    pub fn read(headers: &HeaderMap) -> Self {
        let count = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).and_then(parse_count);
        let (limit, remaining) = (count("ratelimit-limit"), count("ratelimit-remaining"));
        let window = limit.and_then(|(_, window)| window).or(remaining.and_then(|(_, window)| window));
        Self { limit: limit.map(|(n, _)| n), remaining: remaining.map(|(n, _)| n), window }
    }
}

/// `<count>[;w=<seconds>]`; other parameters are skipped, and what follows a comma.
pub fn parse_count(text: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = text.split(',').next()?.split(';').map(str::trim);
    let count = digits(parts.next()?)?;
    let window = parts.find_map(|part| {
        let (key, value) = part.split_once('=')?;
        let seconds = digits(value.trim())?;
        key.trim().eq_ignore_ascii_case("w").then(|| Duration::from_secs(seconds))
    });
    Some((count, window))
}

fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// `Retry-After` in either form (RFC 9110, section 10.2.3): at least a second, six hours at most.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match digits(text) {
        Some(seconds) => Duration::from_secs(seconds),
        None => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.clamp(Duration::from_secs(1), LONGEST_PAUSE))
}

/// What is known of one upstream's limits.
pub struct Quota {
    clock: Clock,
    metrics: Arc<UpstreamMetrics>,
    /// The identity that pulls, and so whose quota is reported.
    pulls_as: Identity,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    told: Option<(Instant, Told)>,
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
    pub fn new(clock: Clock, metrics: Arc<UpstreamMetrics>, pulls_as: Identity) -> Self {
        Self { clock, metrics, pulls_as, state: Mutex::default() }
    }

    /// Takes note of what an answer tells; `source`: whose quota it is.
    pub fn note(&self, identity: Identity, told: Told, source: Option<&str>) {
        if identity != self.pulls_as || told == Told::default() {
            return;
        }
        let gauge = |value: Option<u64>| value.map_or(-1, |v| i64::try_from(v).unwrap_or(i64::MAX));
        source.into_iter().for_each(|source| self.metrics.quota_source.set(source));
        self.metrics.quota_limit.set(gauge(told.limit));
        self.metrics.quota_remaining.set(gauge(told.remaining));
        self.metrics.quota_window_seconds.set(gauge(told.window.map(|w| w.as_secs())).max(0));
        lock(&self.state).told = Some((self.clock.now(), told));
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
            self.metrics.paused.set(1);
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

    /// For those who decide what may be spent. What was told is forgotten when its window has passed.
    pub fn snapshot(&self) -> QuotaState {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        let told =
            state.told.filter(|(at, told)| now.duration_since(*at) < told.window.unwrap_or(LONGEST_PAUSE));
        let Told { limit, remaining, window } = told.map(|(_, told)| told).unwrap_or_default();
        let paused_for = state.gets.of(self.pulls_as).as_ref().and_then(|pause| pause.left(now));
        QuotaState { limit, remaining, window, paused_for }
    }
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
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    const ME: Identity = Identity::Configured;
    const MINUTE: Duration = Duration::from_secs(60);

    fn quota() -> (Quota, Clock, Arc<UpstreamMetrics>) {
        let (clock, metrics) = (Clock::default(), Arc::new(Metrics::new().upstream("docker.io")));
        (Quota::new(clock.clone(), metrics.clone(), ME), clock, metrics)
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair =
            |(k, v): &(&'static str, &str)| (HeaderName::from_static(k), HeaderValue::from_str(v).unwrap());
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn limits_are_read_and_forgotten_after_their_window() {
        let (quota, clock, metrics) = quota();
        let told = headers(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", " 76 ; w=21600")]);
        quota.note(ME, Told::read(&told), Some("192.0.2.1"));
        quota.note(ME, Told::default(), None);
        quota.note(Identity::Anonymous, Told { remaining: Some(1), ..Told::default() }, None);
        let state = quota.snapshot();
        assert_eq!((state.limit, state.remaining), (Some(100), Some(76)));
        assert_eq!(state.window, Some(Duration::from_secs(21600)));
        assert_eq!((metrics.quota_limit.get(), metrics.quota_remaining.get()), (100, 76));
        assert_eq!(metrics.quota_window_seconds.get(), 21600);
        clock.advance(LONGEST_PAUSE);
        assert_eq!(quota.snapshot(), QuotaState::default());
    }

    #[test]
    fn each_caller_has_a_quota_of_its_own_and_so_many_are_remembered() {
        let (quota, _, metrics) = quota();
        let caller = |number| Identity::Caller(CallerId::from_number(number));
        assert!(quota.pause_gets(caller(1), Some(MINUTE)));
        quota.note(caller(1), Told { remaining: Some(0), ..Told::default() }, Some("alice"));
        assert!(quota.gets_paused(caller(1)).is_some());
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
    fn counts_are_read_tolerantly() {
        assert_eq!(parse_count("0"), Some((0, None)));
        assert_eq!(parse_count("5 ; x=1 ;W = 60, 7;w=1"), Some((5, Some(MINUTE))));
        for bad in ["", ";w=1", "-1", "+1", "x", "1.5", "99999999999999999999999"] {
            assert_eq!(parse_count(bad), None, "{bad}");
        }
        assert_eq!(parse_count("1;w=x"), Some((1, None)));
    }

    #[test]
    fn retry_after_has_two_forms_and_bounds() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let read = |text: &str| retry_after(&headers(&[("retry-after", text)]), now).map(|d| d.as_secs());
        assert_eq!(read("120"), Some(120));
        assert_eq!(read(&httpdate::fmt_http_date(now + Duration::from_secs(90))), Some(90));
        assert_eq!(read(&httpdate::fmt_http_date(now - MINUTE)), Some(1));
        assert_eq!(read("0"), Some(1));
        assert_eq!(read("999999999"), Some(6 * 3600));
        assert_eq!(read("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
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

    proptest! {
        #[test]
        fn no_count_panics_and_good_ones_round_trip(text in ".{0,40}", count: u64, window in prop::option::of(any::<u64>())) {
            let _ = parse_count(&text);
            let good = window.map_or(count.to_string(), |w| format!("{count};w={w}"));
            prop_assert_eq!(parse_count(&good), Some((count, window.map(Duration::from_secs))));
        }

        #[test]
        fn no_retry_after_panics(text in "[ -~]{0,40}") {
            let wait = retry_after(&headers(&[("retry-after", &text)]), SystemTime::now());
            prop_assert!(wait.is_none_or(|wait| wait <= LONGEST_PAUSE));
        }
    }
}
