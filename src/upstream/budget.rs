//! What of a quota may be spent, on what and by whom. Pure: times, words and spending come in, decisions
//! go out; `quota` asks.

use std::fmt;
use std::time::{Duration, Instant};

use super::leak::{Found, Leak};
use super::share::{Clients, Taken};
use super::told::Told;
use super::window::{Sample, Window};
use super::{Purpose, Spender};
use crate::metrics::Held;

/// Above the reserve, what of the rest is left to those who stand before: revalidation leaves a tenth to
/// misses, background work three tenths to both.
const LEFT_BY_REVALIDATION: u64 = 10;
const LEFT_BY_BACKGROUND: u64 = 30;
/// How old a word may be by which something is held back. HEADs cost nothing: one asks anew.
const WORD: Duration = Duration::from_secs(60);
/// How long it is taken as seen that an upstream tells nothing.
const SILENCE: Duration = Duration::from_secs(3600);
/// When another try makes sense, where the window does not end before.
const RETRY: Duration = Duration::from_secs(15 * 60);

pub const EXHAUSTED: &str = "the upstream's rate limit is exhausted";

/// What is configured of an upstream's quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub reserve: Reserve,
    /// Whether the reserve is kept for anybody: priority clients, pinned images. Else misses may spend it.
    pub has_priority: bool,
    pub fair_share: bool,
}

/// What is kept of a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// Of the limit.
    Percent(u8),
    Pulls(u64),
}

impl Default for Options {
    fn default() -> Self {
        Self { reserve: Reserve::Percent(10), has_priority: false, fair_share: true }
    }
}

impl Reserve {
    fn of(self, limit: u64) -> u64 {
        match self {
            Self::Percent(percent) => share(limit, percent.into()),
            Self::Pulls(pulls) => pulls.min(limit),
        }
    }
}

/// Percent of a number, rounded up.
fn share(number: u64, percent: u64) -> u64 {
    let share = (u128::from(number) * u128::from(percent)).div_ceil(100);
    u64::try_from(share).unwrap_or(u64::MAX).min(number)
}

/// Why something is not asked for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBack {
    pub what: Held,
    pub why: String,
    /// When another try makes sense.
    pub wait: Duration,
}

impl fmt::Display for HeldBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// What becomes of a request that spends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// What is under way decides: it may have been charged already, or not.
    Wait,
    HeldBack(HeldBack),
}

/// What is known of one quota.
pub struct Budget {
    options: Options,
    word: Option<(Instant, Told)>,
    window: Option<Window>,
    source: Option<String>,
    /// When the upstream was last asked what is left, whether it told or not.
    looked: Option<Instant>,
    /// Pulls that were begun and not answered.
    in_flight: u64,
    clients: Clients,
    leak: Leak,
}

impl Budget {
    pub fn new(options: Options) -> Self {
        Self {
            options,
            word: None,
            window: None,
            source: None,
            looked: None,
            in_flight: 0,
            clients: Clients::default(),
            leak: Leak::default(),
        }
    }

    /// The last word, while its window has not passed.
    pub fn told(&self, now: Instant) -> Option<Told> {
        let (at, told) = self.word?;
        (now.saturating_duration_since(at) < told.length()).then_some(told)
    }

    pub fn window(&self, now: Instant) -> Option<&Window> {
        self.told(now).and(self.window.as_ref())
    }

    pub fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    pub fn leak(&self) -> &Leak {
        &self.leak
    }

    pub fn saw(&mut self, client: &str, purpose: Purpose, now: Instant) {
        self.clients.saw(client, purpose != Purpose::Priority, now);
    }

    /// A pull begins, in whose name it may. Gives what it takes of its client's share.
    pub fn begin(&mut self, spender: &Spender, now: Instant) -> Option<Taken> {
        self.in_flight += 1;
        self.leak.sent(1);
        let client = spender.client.as_ref().filter(|_| spender.purpose != Purpose::Priority)?;
        self.is_scarce(now).then(|| self.clients.take(client))
    }

    /// A pull was answered, or came to nothing. (One whose answer was lost may have been charged; the
    /// next word says so.)
    pub fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// What a pull took that was not charged.
    pub fn give_back(&mut self, taken: Taken) {
        self.clients.give_back(taken);
    }

    /// Whether fewer are left by this word than by the last one.
    pub fn has_fallen(&self, told: Told, now: Instant) -> bool {
        let before = self.told(now).and_then(|told| told.remaining);
        before.zip(told.remaining).is_some_and(|(before, left)| left < before)
    }

    /// What was asked once may have been charged again.
    pub fn asked_again(&mut self, times: u64) {
        self.leak.sent(times);
    }

    /// An answer to what was sent at `sent`, whose own pull has ended. Gives what others have spent.
    pub fn note(&mut self, now: Instant, sent: Instant, told: Told, source: Option<&str>) -> Found {
        self.looked = Some(now);
        let Some(remaining) = told.remaining else {
            if told != Told::default() {
                self.word = Some((now, told));
            }
            return Found::default();
        };
        let is_other = source.is_some() && source != self.source.as_deref();
        if is_other {
            self.source = source.map(str::to_owned);
        }
        let before = self.told(now).and_then(|told| told.remaining).filter(|_| !is_other);
        // Answers overtake each other: one that was under way when the last word came, and tells of more,
        // is the older word.
        let is_older = self.word.is_some_and(|(at, _)| sent < at);
        if is_older && before.is_some_and(|before| remaining > before) {
            return Found::default();
        }
        self.word = Some((now, told));
        let sample = Sample { at: now, left: remaining };
        let found = match (before, &mut self.window) {
            (Some(before), Some(window)) if remaining <= before => {
                window.add(sample);
                self.leak.told(now, told.limit.unwrap_or(remaining), remaining, self.in_flight)
            }
            _ => {
                self.window = Some(Window::new(sample));
                self.leak.restart(remaining, self.in_flight);
                Found::default()
            }
        };
        if !self.is_scarce(now) {
            self.clients.start_over();
        }
        found
    }

    /// Half of it is gone.
    fn is_scarce(&self, now: Instant) -> bool {
        self.told(now).is_some_and(|told| match (told.limit, told.remaining) {
            (Some(limit), Some(remaining)) => remaining <= limit / 2,
            _ => false,
        })
    }

    /// What has to be left behind by whoever spends for this.
    fn floor(&self, purpose: Purpose, limit: u64) -> u64 {
        let reserve = self.options.reserve.of(limit);
        let above = |percent| reserve + share(limit - reserve, percent);
        match purpose {
            Purpose::Priority => 0,
            Purpose::Miss if self.options.has_priority => reserve,
            Purpose::Miss => 0,
            Purpose::Revalidation => above(LEFT_BY_REVALIDATION),
            Purpose::Background => above(LEFT_BY_BACKGROUND),
        }
    }

    /// Whether a pull may be begun. Where nothing is to be left behind, the upstream itself says when it is enough.
    pub fn verdict(&self, spender: &Spender, now: Instant) -> Verdict {
        let Some(told) = self.told(now) else { return Verdict::Pass };
        let Some(remaining) = told.remaining else { return Verdict::Pass };
        let limit = told.limit.unwrap_or(remaining).max(remaining);
        let refused = |left: u64| {
            let floor = self.floor(spender.purpose, limit);
            if floor > 0 && left <= floor {
                return Some(self.held_back(spender.purpose, floor, limit, remaining, now));
            }
            self.beyond_share(spender, left.saturating_sub(self.floor(Purpose::Miss, limit)), now)
        };
        match refused(remaining.saturating_sub(self.in_flight)) {
            None => Verdict::Pass,
            // Background work does not wait in the place of others.
            Some(_) if spender.purpose != Purpose::Background && refused(remaining).is_none() => {
                Verdict::Wait
            }
            Some(held_back) => Verdict::HeldBack(held_back),
        }
    }

    fn held_back(&self, purpose: Purpose, floor: u64, limit: u64, left: u64, now: Instant) -> HeldBack {
        let what = match purpose {
            Purpose::Background => Held::Background,
            Purpose::Revalidation => Held::Revalidation,
            Purpose::Priority | Purpose::Miss => Held::Miss,
        };
        let last = format!("the last {floor} of the upstream's {limit} pulls");
        let why = match what {
            _ if left == 0 => EXHAUSTED.to_owned(),
            Held::Background => format!("background work leaves {last}, and {left} are left"),
            Held::Revalidation => format!("what is held is not renewed from {last}, and {left} are left"),
            Held::Miss | Held::Share => {
                format!("{last} are kept for priority clients and pinned images, and {left} are left")
            }
        };
        HeldBack { what, why, wait: self.wait(now) }
    }

    fn beyond_share(&self, spender: &Spender, left: u64, now: Instant) -> Option<HeldBack> {
        let client = spender.client.as_ref().filter(|_| self.options.fair_share && left > 0)?;
        if spender.purpose == Purpose::Priority || !self.is_scarce(now) {
            return None;
        }
        let used_up = self.clients.may_take(client, left, now).err()?;
        let why = format!(
            "this client has had its share, {} of the upstream's last pulls, which {} clients share (`fair_share`)",
            used_up.share, used_up.clients
        );
        Some(HeldBack { what: Held::Share, why, wait: self.wait(now) })
    }

    /// Until the window ends, at most [`RETRY`].
    fn wait(&self, now: Instant) -> Duration {
        let end = self.window(now).zip(self.told(now)).and_then(|(window, told)| window.ends(told.length()));
        let left = end.map_or(RETRY, |end| end.saturating_duration_since(now));
        left.clamp(WORD, RETRY)
    }

    /// Whether the upstream is to be asked, by a HEAD, what is left before this is decided: what is known
    /// is too old to hold something back by, or nothing is known and there is a reserve to keep.
    pub fn needs_word(&self, spender: &Spender, now: Instant) -> bool {
        let since = self.looked.map(|at| now.saturating_duration_since(at));
        match self.told(now) {
            Some(_) => {
                since.is_none_or(|since| since >= WORD)
                    && matches!(self.verdict(spender, now), Verdict::HeldBack(_))
            }
            None => {
                since.is_none_or(|since| since >= SILENCE)
                    && spender.purpose != Purpose::Priority
                    && (self.options.has_priority || spender.purpose == Purpose::Background)
            }
        }
    }

    /// Somebody asks the upstream now, whatever it will tell.
    pub fn look(&mut self, now: Instant) {
        self.looked = Some(now);
    }
}

#[cfg(test)]
mod tests;
