//! The login in use: what its source has, laid aside once a registry has refused it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use url::Url;

use super::credential::{Credential, Fingerprint, Login};
use super::realm::Grant;
use super::source::Source;
use super::{Cause, guard};
use crate::clock::Clock;
use crate::metrics::UpstreamMetrics;
use crate::tasks::{Tasks, lock};

/// The pause after a refusal, doubled from the first to the last: bad passwords, repeated, lock accounts.
const REFUSED_FIRST: Duration = Duration::from_secs(60);
const REFUSED_LAST: Duration = Duration::from_secs(3600);
/// Refusals in a row, each of which may be the repository's fault, until it is asked whether they are.
const DOUBTED: u32 = 3;

/// The login of one endpoint.
pub struct Logins {
    /// None: everything is asked anonymously.
    source: Option<Arc<Source>>,
    /// For messages.
    place: String,
    clock: Clock,
    state: Mutex<State>,
}

struct State {
    refused: Option<Refused>,
    /// The login that was accepted last, and what it opened.
    proven: Option<(Fingerprint, Option<Opened>)>,
    /// Refusals since then.
    doubts: u32,
    /// Changes whenever another login is to be used from now on: what was had with the last one is worth
    /// nothing any more.
    generation: u64,
    is_refused: Flag,
    is_unavailable: Flag,
    /// Whether it was said that there is no login.
    told_of_none: bool,
}

/// What a login opened: asked for once more, it tells whether the login is good still.
#[derive(Clone, Debug)]
pub enum Opened {
    Token(Grant),
    /// By the login itself.
    Content(Url),
}

/// A login that a registry does not take.
struct Refused {
    who: Fingerprint,
    why: String,
    until: Instant,
    pause: Duration,
    /// The pause is over and the login is being tried.
    trying: bool,
}

/// One that is counted in a gauge as long as it is raised.
struct Flag {
    gauge: IntGauge,
    raised: bool,
}

impl Flag {
    fn new(gauge: &IntGauge) -> Self {
        Self { gauge: gauge.clone(), raised: false }
    }

    /// Whether that changes it.
    fn set(&mut self, raised: bool) -> bool {
        let changed = self.raised != raised;
        if changed {
            self.gauge.add(if raised { 1 } else { -1 });
            self.raised = raised;
        }
        changed
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl Logins {
    pub fn new(
        url: &Url,
        credential: Option<Credential>,
        metrics: &UpstreamMetrics,
        clock: Clock,
        tasks: Tasks,
    ) -> Self {
        let state = State {
            refused: None,
            proven: None,
            doubts: 0,
            generation: 0,
            is_refused: Flag::new(&metrics.credential_refused),
            is_unavailable: Flag::new(&metrics.credential_unavailable),
            told_of_none: false,
        };
        let source = credential.map(|credential| Source::new(credential, url, clock.clone(), tasks));
        Self { source, place: guard::place(url), clock, state: Mutex::new(state) }
    }

    /// The login to use now. None: there is none, or the registry refuses the one there is and neither
    /// has it changed nor is it time for another try.
    pub async fn current(&self) -> Result<Option<Arc<Login>>, Cause> {
        let Some(source) = &self.source else { return Ok(None) };
        let login = match source.look(self.is_refused()).await {
            Ok(login) => login,
            Err(why) => {
                self.unavailable(&why);
                return Err(Cause::Trouble(format!("the login for {} cannot be had: {why}", self.place)));
            }
        };
        let mut state = lock(&self.state);
        if state.is_unavailable.set(false) {
            tracing::info!(registry = self.place, "the login can be had again");
        }
        let none_before = std::mem::replace(&mut state.told_of_none, login.is_none());
        if login.is_none() && !none_before {
            tracing::warn!(
                registry = self.place,
                credential = source.credential.label(),
                server = source.server.key(),
                "there is no login for this server, so it is asked anonymously; log in by `docker login`, or \
                 correct the credential's configuration"
            );
        }
        Ok(login.filter(|login| self.admit(&mut state, login)))
    }

    /// Whether a login may be used, which another one than was refused always may.
    fn admit(&self, state: &mut State, login: &Login) -> bool {
        let Some(refused) = &mut state.refused else { return true };
        if refused.who != login.fingerprint(b"") {
            tracing::info!(registry = self.place, "there is another login than the one that was refused");
            (state.refused, state.generation) = (None, state.generation + 1);
            state.is_refused.set(false);
            return true;
        }
        if !refused.trying && self.clock.now() >= refused.until {
            refused.trying = true;
            state.generation += 1;
        }
        refused.trying
    }

    /// Changes whenever what was had with another login is worth nothing any more.
    pub fn generation(&self) -> u64 {
        lock(&self.state).generation
    }

    /// Why requests go without the configured login, where it is refused.
    pub fn refusal(&self) -> Option<String> {
        lock(&self.state)
            .refused
            .as_ref()
            .filter(|refused| !refused.trying)
            .map(|refused| refused.why.clone())
    }

    /// Whether a login was refused and not accepted since: [`Self::current`] may know of another one.
    pub fn is_refused(&self) -> bool {
        lock(&self.state).refused.is_some()
    }

    /// Whether the login may be one that goes to the registry itself, whatever it is asked for.
    pub fn may_be_for_registry(&self) -> bool {
        self.source
            .as_ref()
            .is_some_and(|source| matches!(source.credential, Credential::DockerConfig { .. }))
    }

    /// Whether a login was accepted, so that trying it can do no harm.
    pub fn is_proven(&self, login: &Login) -> bool {
        let who = login.fingerprint(b"");
        lock(&self.state).proven.as_ref().is_some_and(|(proven, _)| *proven == who)
    }

    /// What the login opened last.
    pub fn opened(&self, login: &Login) -> Option<Opened> {
        let who = login.fingerprint(b"");
        let state = lock(&self.state);
        state.proven.as_ref().filter(|(proven, _)| *proven == who)?.1.clone()
    }

    /// Whether the login was refused and it is not yet time for another try.
    pub fn is_laid_aside(&self, login: &Login) -> bool {
        let who = login.fingerprint(b"");
        lock(&self.state).refused.as_ref().is_some_and(|refused| refused.who == who && !refused.trying)
    }

    /// Takes note of a refusal that may not be the login's fault. Whether that is to be found out: one that
    /// was refused before and is being tried is trusted no further.
    pub fn doubt(&self, login: &Login) -> bool {
        let who = login.fingerprint(b"");
        let mut state = lock(&self.state);
        state.doubts = state.doubts.saturating_add(1);
        state.doubts >= DOUBTED || state.refused.as_ref().is_some_and(|refused| refused.who == who)
    }

    /// The login is good: it opened this, where that is known.
    pub fn accepted(&self, login: &Login, opened: Option<Opened>) {
        let who = login.fingerprint(b"");
        let mut state = lock(&self.state);
        let before = state.proven.take().filter(|(proven, _)| *proven == who).and_then(|(_, opened)| opened);
        (state.proven, state.doubts) = (Some((who, opened.or(before))), 0);
        if state.refused.as_ref().is_some_and(|refused| refused.who == who) {
            state.refused = None;
            state.is_refused.set(false);
            tracing::info!(registry = self.place, "the login that was refused is accepted again");
        }
    }

    /// The login is no good: it is laid aside, unless its helper knows another one by now, which is told.
    pub async fn refused(&self, login: &Login, why: &str) -> bool {
        let another = self.has_another(login).await;
        if !another {
            self.lay_aside(login, why);
        }
        another
    }

    /// From now on the login is not used, but for a try now and then.
    pub fn lay_aside(&self, login: &Login, why: &str) {
        let who = login.fingerprint(b"");
        let mut state = lock(&self.state);
        let state = &mut *state;
        state.doubts = 0;
        state.proven.take_if(|(proven, _)| *proven == who);
        let last = state.refused.take().filter(|refused| refused.who == who);
        // Somebody else was faster.
        if let Some(refused) = last.as_ref().filter(|refused| !refused.trying) {
            tracing::debug!(registry = self.place, refused.why, "the login was refused already");
            state.refused = last;
            return;
        }
        let pause = last.as_ref().map_or(REFUSED_FIRST, |last| (last.pause * 2).min(REFUSED_LAST));
        if last.is_none() {
            tracing::error!(
                registry = self.place,
                credential = self.source.as_ref().map(|source| source.credential.label()).unwrap_or_default(),
                why,
                "the login is refused: from now on requests go out anonymously, which spends the quota of this \
                 address and opens no private repository; correct the login, which is taken up at once"
            );
        } else {
            tracing::warn!(
                registry = self.place,
                why,
                next_try_s = pause.as_secs(),
                "the login is still refused"
            );
        }
        state.refused =
            Some(Refused { who, why: why.to_owned(), until: self.clock.now() + pause, pause, trying: false });
        state.generation += 1;
        state.is_refused.set(true);
    }

    /// Whether there is another login than this one, which was refused.
    pub async fn has_another(&self, login: &Login) -> bool {
        let Some(source) = &self.source else { return false };
        // A helper is asked once: a try after a pause is one of the same login.
        let another = source.has_another(login, !self.is_refused()).await;
        if another {
            lock(&self.state).generation += 1;
        }
        another
    }

    fn unavailable(&self, why: &str) {
        if lock(&self.state).is_unavailable.set(true) {
            tracing::error!(
                registry = self.place,
                why,
                "the login cannot be had: what is held is served, and nothing is asked for anonymously instead"
            );
        }
    }
}
