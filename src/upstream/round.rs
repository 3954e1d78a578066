//! The endpoints that one call is put to, one after the other.

use std::future::Future;
use std::sync::Arc;

use tokio::time::Instant;

use super::breaker::Pass;
use super::endpoint::Endpoint;
use super::{Cause, Identity, Shared};
use crate::oci::Digest;

/// All pages of a list, at all endpoints, may take as many deadlines: it is several requests.
const LIST_DEADLINES: u32 = 4;

/// Which endpoint is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// Mirrors spare the upstream.
    Mirrors,
    /// Of lists, which mirrors have of what they hold only: they are asked where the upstream fails.
    Itself,
}

pub struct Round<'a> {
    upstream: &'a Shared,
    identity: Identity,
    digest: Option<Digest>,
    left: std::vec::IntoIter<&'a Arc<Endpoint>>,
    ends: Instant,
    /// What the upstream itself said, where mirrors come after it.
    told: Option<Cause>,
}

/// One endpoint's.
pub struct Turn<'a> {
    pub endpoint: &'a Arc<Endpoint>,
    pub identity: Identity,
    pass: Option<Pass<'a>>,
    ends: Instant,
}

impl Shared {
    /// The endpoints to be asked for what has this digest, if it has one. All of them together may
    /// take as long as the upstream's deadline; for a list, four times that.
    pub fn round(&self, identity: Identity, digest: Option<Digest>, first: First) -> Round<'_> {
        let mirrors = self.asks_mirrors(identity);
        let mut all: Vec<_> = self.endpoints.iter().filter(|e| mirrors || !e.is_mirror()).collect();
        let mut time = self.options.deadline;
        if first == First::Itself {
            all.rotate_right(1);
            time = time.saturating_mul(LIST_DEADLINES);
        }
        let ends = Instant::now() + time;
        Round { upstream: self, identity, digest, left: all.into_iter(), ends, told: None }
    }

    /// Where a credential is configured, an anonymous question is about what anybody may have: that is for
    /// the upstream itself to say, for mirrors have credentials of their own.
    fn asks_mirrors(&self, identity: Identity) -> bool {
        match identity {
            Identity::Configured => true,
            Identity::Anonymous => {
                let asks_callers = self.options.asks_callers();
                !self.options.has_credential() && !asks_callers
            }
            Identity::Caller(_) => false,
        }
    }

    /// Whether anybody but the upstream itself is asked.
    pub fn has_mirror_for(&self, identity: Identity) -> bool {
        self.endpoints.len() > 1 && self.asks_mirrors(identity)
    }
}

impl<'a> Round<'a> {
    /// The next endpoint that is to be asked.
    pub fn next(&mut self) -> Option<Turn<'a>> {
        loop {
            let endpoint = self.left.next()?;
            // Who is given no time is not to blame for having taken none.
            let now = Instant::now();
            let left = self.ends.checked_duration_since(now).filter(|left| !left.is_zero())?;
            let Some(pass) = endpoint.enter(self.digest.as_ref()) else { continue };
            // A part for each that is left: one that hangs does not take the others' time.
            let turns = u32::try_from(self.left.len()).unwrap_or(u32::MAX).saturating_add(1);
            let (identity, ends) = (endpoint.identity(self.identity), now + left / turns);
            return Some(Turn { endpoint, identity, pass, ends });
        }
    }

    /// What came of it: the call's outcome, or None where the next endpoint is to be asked.
    pub fn judge<T>(&mut self, turn: Turn<'a>, outcome: Result<T, Cause>) -> Option<Result<T, Cause>> {
        let Turn { endpoint, pass, .. } = turn;
        let cause = match outcome {
            Ok(answer) => {
                pass.into_iter().for_each(Pass::succeeded);
                return Some(Ok(answer));
            }
            Err(cause) => cause,
        };
        if !endpoint.is_mirror() {
            let is_word = matches!(cause, Cause::NotFound | Cause::Denied(_));
            if is_word || self.left.len() == 0 {
                return Some(Err(cause));
            }
            self.told = Some(cause);
            return None;
        }
        match &cause {
            Cause::NotFound | Cause::Denied(_) | Cause::Loop(_) => {
                pass.into_iter().for_each(Pass::succeeded);
            }
            Cause::Busy | Cause::HeldBack(_) => {}
            Cause::Limited(_) | Cause::Trouble(_) | Cause::Corrupt(_) | Cause::Refused(_) => {
                pass.into_iter().for_each(|pass| pass.failed(&cause.to_string()));
            }
        }
        if let (Cause::Corrupt(_), Some(digest)) = (&cause, &self.digest) {
            endpoint.was_wrong(digest);
        }
        tracing::debug!(mirror = endpoint.place, %cause, "the next endpoint is asked");
        self.upstream.metrics.failovers.inc();
        None
    }

    /// Why a mirror was asked in the place of the upstream itself, where that came first.
    pub fn failure(&self) -> Option<Cause> {
        self.told.clone()
    }

    /// The outcome where nobody is left to be asked.
    pub fn end(self) -> Cause {
        self.told.unwrap_or_else(|| Cause::Trouble("no endpoint can be asked now".to_owned()))
    }
}

impl Turn<'_> {
    /// Ends `call` when the turn's time is over, which all of its calls share.
    pub async fn within<T>(&self, call: impl Future<Output = Result<T, Cause>>) -> Result<T, Cause> {
        let late = |_| {
            let place = &self.endpoint.place;
            Err(Cause::Trouble(format!("{place} gave no answer within its part of `deadline`")))
        };
        tokio::time::timeout_at(self.ends, call).await.unwrap_or_else(late)
    }
}
