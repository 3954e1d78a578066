//! `private = "per-caller"`: what not everybody may pull is given to callers who can pull it themselves.
//!
//! The right is to a repository, and shown by asking upstream for what is wanted in the caller's name.
//! It comes before everything else: nobody joins a fill, reads what is held or learns that it is there
//! who has not shown it.

use std::sync::Arc;
use std::time::Instant;

use super::memory::Subject;
use super::standing::Standing;
use super::{Asker, Mirror, lost};
use crate::answer::Error;
use crate::oci::{Owner, Repository, UpstreamHost};
use crate::store::Visibility;
use crate::upstream::{self, CallerId, Hops, Identity, Login, PrivatePolicy, Proofs};

impl Mirror {
    /// How a repository stands to who asks for something of it.
    pub(super) async fn entry(
        self: &Arc<Self>,
        asker: Asker<'_>,
        repository: &Repository,
        subject: &Subject,
    ) -> Result<Arc<Standing>, Error> {
        let standing = self.standing(repository).await?;
        let PrivatePolicy::PerCaller(proofs) = self.upstream(repository)?.options().private else {
            return Ok(standing);
        };
        let now = self.clock.now();
        if standing.is_public(now) {
            return Ok(standing);
        }
        if let Some(id) = asker.caller.filter(|_| !standing.held_public)
            && self.shown(id, repository).is_some_and(|at| now < at + proofs.hold)
        {
            return Ok(Arc::new(standing.of_caller(id)));
        }
        let asking = self.ask_whether_public(repository, &standing, subject, asker.hops);
        let denied = match Box::pin(asking).await {
            Ok(standing) => return Ok(standing),
            Err(error) => error,
        };
        match (denied, asker.caller) {
            // What anybody could pull is not taken away because nobody answers, or has something else.
            (error, _) if standing.held_public && !matches!(error, Error::Denied { .. }) => Ok(standing),
            (_, Some(id)) => {
                Box::pin(self.show(id, repository, &standing, subject, proofs, asker.hops)).await
            }
            (Error::Denied { .. }, None) => Err(login_needed(repository, subject)),
            // Whoever has shown its right before may come with that.
            (Error::Unavailable { .. } | Error::UpstreamLimited { .. }, None) if !proofs.stale.is_zero() => {
                Err(login_needed(repository, subject))
            }
            (error, None) => Err(error),
        }
    }

    async fn ask_whether_public(
        self: &Arc<Self>,
        repository: &Repository,
        standing: &Standing,
        subject: &Subject,
        hops: &Hops,
    ) -> Result<Arc<Standing>, Error> {
        if standing.is_denied(self.clock.now()) {
            let why = "not everybody may pull it".to_owned();
            return Err(Error::Denied { subject: subject.of(repository), why });
        }
        self.refused(None, repository, subject)?;
        self.prove_public(repository, standing, subject, hops).await?;
        self.standing(repository).await
    }

    /// When the caller last showed its right.
    fn shown(&self, id: CallerId, repository: &Repository) -> Option<Instant> {
        self.memory.rights.get(&(id, repository.clone()))
    }

    /// Has the caller show its right. While nobody can be asked, the last time that it did counts for
    /// as long as is configured.
    async fn show(
        self: &Arc<Self>,
        id: CallerId,
        repository: &Repository,
        standing: &Standing,
        subject: &Subject,
        proofs: Proofs,
        hops: &Hops,
    ) -> Result<Arc<Standing>, Error> {
        let (mirror, hops) = (self.clone(), hops.clone());
        let flight =
            self.proofs.join(((Some(id), hops.depth()), repository.clone(), subject.clone()), || {
                let (repository, subject) = (repository.clone(), subject.clone());
                async move { mirror.show_now(id, &repository, &subject, &hops).await }
            });
        let shown = flight.await.unwrap_or_else(|| Err(lost(subject.of(repository))));
        match shown {
            Ok(()) => {}
            Err(error @ (Error::Unavailable { .. } | Error::UpstreamLimited { .. })) => {
                let holds = proofs.hold.saturating_add(proofs.stale);
                let held = |at: Instant| self.clock.now() < at + holds && !proofs.stale.is_zero();
                if !self.shown(id, repository).is_some_and(held) {
                    return Err(unproven(repository, subject, error));
                }
                tracing::info!(%repository, why = %error, "the last proof of a caller's right is taken");
            }
            Err(error) => return Err(error),
        }
        if standing.held_public {
            self.make_private(repository, standing, subject).await?;
        }
        Ok(Arc::new(standing.of_caller(id)))
    }

    async fn show_now(
        &self,
        id: CallerId,
        repository: &Repository,
        subject: &Subject,
        hops: &Hops,
    ) -> Result<(), Error> {
        self.refused(Some(id), repository, subject)?;
        let identity = Identity::Caller(id);
        match self.ask_for(identity, repository, subject, hops).await? {
            Ok(()) => {
                self.memory.rights.insert((id, repository.clone()), self.clock.now());
                Ok(())
            }
            Err(error) => {
                let upstream = self.upstream(repository)?;
                let refused = self.refuse(Some(id), repository, subject, error);
                if matches!(refused, Error::Denied { .. }) && upstream.refuses(id) {
                    // The password has changed: the client is asked for the new one.
                    upstream.callers().forget(id);
                    return Err(login_needed(repository, subject));
                }
                Err(refused)
            }
        }
    }

    /// Before something private joins what anybody could pull, all of it is private, on disk too.
    async fn make_private(
        &self,
        repository: &Repository,
        standing: &Standing,
        subject: &Subject,
    ) -> Result<(), Error> {
        let claim = repository.clone();
        let claimed = self.store.write(move |store| store.claim(&claim, Visibility::PerCaller)).await;
        claimed.map_err(|error| Error::Disk { subject: subject.of(repository), why: error.to_string() })?;
        self.memory.standings.insert(repository.clone(), Arc::new(standing.made_private()));
        Ok(())
    }

    /// Whether callers of this upstream show logins of their own.
    pub fn asks_callers(&self, host: &UpstreamHost) -> bool {
        let upstream = self.upstreams().get(host);
        upstream.is_some_and(|upstream| upstream.options().asks_callers())
    }

    /// Whether a repository is known to be anybody's, so that no login is needed.
    pub fn is_known_public(&self, repository: &Repository) -> bool {
        self.memory.standings.get(repository).is_some_and(|standing| standing.is_public(self.clock.now()))
    }

    /// Whether the caller's login is still at hand.
    pub fn knows(&self, host: &UpstreamHost, id: CallerId) -> bool {
        self.upstreams().get(host).is_some_and(|upstream| upstream.callers().login(id).is_some())
    }

    /// Who comes with this login, where that is known without asking.
    pub fn remembered(&self, repository: &Repository, login: &Login) -> Option<Result<CallerId, Error>> {
        let upstream = self.upstream(repository).ok()?;
        let known = upstream.remembered(&repository.name, login)?;
        Some(known.map_err(|error| self.not_logged_in(repository, error)))
    }

    /// Who comes with this login, unless upstream says that it is wrong: `Denied`. Also tells whether it
    /// may be a guess, which this call had upstream shown.
    pub async fn log_in(&self, repository: &Repository, login: Login) -> (Result<CallerId, Error>, bool) {
        let upstream = match (&repository.owner, self.upstream(repository)) {
            (Owner::Upstream(host), Ok(upstream)) if self.asks_callers(host) => upstream,
            _ => return (Err(Error::NotFound(repository.to_string())), false),
        };
        let (known, is_guess) = upstream.log_in(&repository.name, login).await;
        (known.map_err(|error| self.not_logged_in(repository, error)), is_guess)
    }

    fn not_logged_in(&self, repository: &Repository, error: upstream::Error) -> Error {
        let subject = repository.to_string();
        match error.cause {
            upstream::Cause::Denied(_) => {
                let why = format!("the login is not taken by {}", repository.owner);
                Error::Denied { subject, why }
            }
            upstream::Cause::Limited(retry_after) => Error::UpstreamLimited { subject, retry_after },
            cause => Error::Unproven { subject, why: cause.to_string() },
        }
    }
}

fn login_needed(repository: &Repository, subject: &Subject) -> Error {
    Error::LoginNeeded { subject: subject.of(repository), registry: repository.owner.to_string() }
}

fn unproven(repository: &Repository, subject: &Subject, error: Error) -> Error {
    match error {
        Error::Unavailable { why, .. } => Error::Unproven { subject: subject.of(repository), why },
        error => error,
    }
}

/// What a caller is told of what it may not have: the same as of what is not there.
pub(super) fn veiled(caller: Option<CallerId>, error: Error) -> Error {
    match (caller, error) {
        (Some(_), Error::Denied { subject, .. }) => Error::NotFound(subject),
        (_, error) => error,
    }
}
