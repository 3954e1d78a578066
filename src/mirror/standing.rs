//! Whether a repository may be served, and in whose name it is fetched.
//!
//! A configured credential spends quota; it opens no doors. What only the credential can pull is
//! served where the upstream says `private = "shared"`. Under `private = "per-caller"` it is served to
//! those who can pull it themselves: see [`super::right`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::memory::Subject;
use super::{Mirror, lost};
use crate::answer::Error;
use crate::oci::{Owner, Reference, Repository, UpstreamHost};
use crate::store::{Grant, Origin, OriginState, Visibility};
use crate::upstream::{self, CallerId, Credential, Hops, Identity, PrivatePolicy, Upstream};

/// How long a proof that anybody may pull a repository is taken for its further content.
const PROOF: Duration = Duration::from_secs(3600);

#[derive(Clone, Default)]
pub struct Standing {
    /// What is held was fetched with a credential, which opens nothing now, or not for everybody.
    barred: bool,
    /// The disk did not say whose what is held is.
    untold: bool,
    /// What is held, if anything, anybody could pull.
    pub(super) held_public: bool,
    proven_public: Option<Instant>,
    /// Until then it is known that not everybody may pull it.
    denied_until: Option<Instant>,
    /// Who has shown its right to a repository that is private.
    caller: Option<CallerId>,
}

impl Standing {
    pub fn is_open(&self) -> bool {
        !self.barred && !self.untold
    }

    /// For whom what is asked for is private. None: for nobody.
    pub fn caller(&self) -> Option<CallerId> {
        self.caller
    }

    pub(super) fn is_public(&self, now: Instant) -> bool {
        self.proven_public.is_some_and(|at| now < at + PROOF)
    }

    pub(super) fn is_denied(&self, now: Instant) -> bool {
        self.denied_until.is_some_and(|until| now < until)
    }

    /// The same repository, as a caller may have it who has shown its right.
    pub(super) fn of_caller(&self, id: CallerId) -> Self {
        Self { barred: false, caller: Some(id), ..self.clone() }
    }

    /// What is held is private from now on.
    pub(super) fn made_private(&self) -> Self {
        Self { barred: true, held_public: false, ..self.clone() }
    }
}

/// How a repository is fetched.
#[derive(Clone)]
pub struct Access {
    pub identity: Identity,
    pub grant: Grant,
    /// On whose behalf.
    pub hops: Hops,
}

impl Access {
    pub fn caller(&self) -> Option<CallerId> {
        match self.identity {
            Identity::Caller(id) => Some(id),
            Identity::Anonymous | Identity::Configured => None,
        }
    }
}

/// Whether what is held was fetched with a credential that does not open it to everybody now.
fn is_barred(upstream: &Upstream, origin: &Origin) -> bool {
    match origin.visibility {
        Visibility::Public => false,
        Visibility::Shared => upstream.options().private != PrivatePolicy::Shared,
        Visibility::PerCaller => true,
    }
}

impl Mirror {
    /// The upstream that a held repository is of, as it is configured now. None: none that gives it
    /// out to everybody.
    pub fn upstream_of(&self, origin: &Origin) -> Option<&UpstreamHost> {
        let Owner::Upstream(host) = &origin.owner else { return None };
        let (host, upstream) = self.upstreams().get_key_value(host)?;
        (!is_barred(upstream, origin)).then_some(host)
    }

    /// Refuses a repository of which disk and configuration disagree.
    pub(super) async fn standing(&self, repository: &Repository) -> Result<Arc<Standing>, Error> {
        if let Some(standing) = self.memory.standings.get(repository) {
            return Ok(standing);
        }
        let upstream = self.upstream(repository)?;
        let of = repository.clone();
        let state = match Box::pin(self.store.run(move |store| store.origin(&of))).await {
            Ok(state) => state,
            Err(error) => {
                // A disk that fails holds up nobody: nothing is found on it, all is fetched.
                tracing::error!(%repository, %error, "held content cannot be looked up");
                return Ok(Arc::new(Standing { untold: true, ..Standing::default() }));
            }
        };
        let (barred, held_public) = match state {
            OriginState::Absent => (false, false),
            OriginState::Known(origin) if origin.owner == repository.owner => {
                (is_barred(upstream, &origin), origin.visibility == Visibility::Public)
            }
            other => return Err(disagreement(repository, &other)),
        };
        let standing = Arc::new(Standing { barred, held_public, ..Standing::default() });
        self.memory.standings.insert(repository.clone(), standing.clone());
        Ok(standing)
    }

    /// In whose name to fetch; where a credential is configured, after the proof that anybody may
    /// have what it fetches.
    pub(super) async fn access(
        self: &Arc<Self>,
        repository: &Repository,
        standing: &Standing,
        subject: &Subject,
        hops: &Hops,
    ) -> Result<Access, Error> {
        self.online(|| subject.of(repository))?;
        let grant = self.grant(repository, standing)?;
        if let Some(id) = standing.caller {
            return Ok(Access { identity: Identity::Caller(id), grant, hops: hops.clone() });
        }
        let has_credential = self.upstream(repository)?.options().has_credential();
        let identity = if has_credential { Identity::Configured } else { Identity::Anonymous };
        if grant.visibility == Visibility::Public
            && !standing.is_public(self.clock.now())
            && (has_credential || standing.barred)
        {
            self.prove_public(repository, standing, subject, hops).await?;
        }
        Ok(Access { identity, grant, hops: hops.clone() })
    }

    /// What is kept of a repository, as things are configured, once it may be served.
    pub(super) fn grant(&self, repository: &Repository, standing: &Standing) -> Result<Grant, Error> {
        let options = self.upstream(repository)?.options();
        let visibility = match (options.has_credential(), options.private) {
            _ if standing.caller.is_some() => Visibility::PerCaller,
            (true, PrivatePolicy::Shared) => Visibility::Shared,
            (false, _) | (_, PrivatePolicy::Refuse | PrivatePolicy::PerCaller(_)) => Visibility::Public,
        };
        let credential = options.credential.as_ref().filter(|_| standing.caller.is_none());
        let user = credential.map(Credential::label).unwrap_or_default();
        let domain = format!("{} {user} {visibility:?}", options.host).into();
        Ok(Grant { repository: repository.clone(), domain, visibility })
    }

    /// Asks upstream whether an identity may have what is wanted, at no cost of quota.
    pub(super) async fn ask_for(
        &self,
        identity: Identity,
        repository: &Repository,
        subject: &Subject,
        hops: &Hops,
    ) -> Result<Result<(), upstream::Error>, Error> {
        self.online(|| subject.of(repository))?;
        let upstream = self.upstream_for(repository, hops)?;
        let name = &repository.name;
        Ok(match subject {
            Subject::Manifest(reference) => upstream.manifest_shown(identity, name, reference).await,
            Subject::Blob(digest) => upstream.blob_head(identity, name, digest).await.map(drop),
            // A list that is empty would prove nothing: not even that there is such a repository.
            Subject::Referrers(digest) => {
                upstream.manifest_shown(identity, name, &Reference::Digest(*digest)).await
            }
            Subject::Tags => upstream.tags(identity, name).await.map(drop),
        })
    }

    /// Asks upstream without the credential.
    pub(super) async fn prove_public(
        self: &Arc<Self>,
        repository: &Repository,
        standing: &Standing,
        subject: &Subject,
        hops: &Hops,
    ) -> Result<(), Error> {
        let key = ((None, hops.depth()), repository.clone(), subject.clone());
        let standing = standing.clone();
        let (mirror, hops) = (self.clone(), hops.clone());
        let proof = self.proofs.join(key, || {
            let (repository, subject) = (repository.clone(), subject.clone());
            async move { mirror.prove_public_now(&repository, standing, &subject, &hops).await }
        });
        proof.await.unwrap_or_else(|| Err(lost(subject.of(repository))))
    }

    fn sealed(&self, repository: &Repository, error: Error) -> Error {
        let options = self.upstream(repository).map(|upstream| upstream.options());
        let is_sealed = options.is_ok_and(|of| of.has_credential() && of.private == PrivatePolicy::Refuse);
        match error {
            Error::Denied { subject, .. } if is_sealed => Error::Denied { subject, why: SEALED.to_owned() },
            error => error,
        }
    }

    async fn prove_public_now(
        &self,
        repository: &Repository,
        standing: Standing,
        subject: &Subject,
        hops: &Hops,
    ) -> Result<(), Error> {
        let Standing { barred, untold, .. } = standing;
        let keep = |standing: Standing| {
            if !untold {
                self.memory.standings.insert(repository.clone(), Arc::new(standing));
            }
        };
        if let Err(error) = self.ask_for(Identity::Anonymous, repository, subject, hops).await? {
            let (error, hold) = self.translate(None, repository, subject, error);
            let error = self.remember(None, repository, subject, self.sealed(repository, error), hold);
            if matches!(error, Error::Denied { .. }) {
                let denied_until = Some(self.clock.now() + self.options.negative_denied);
                keep(Standing { proven_public: None, denied_until, ..standing });
            }
            return Err(error);
        }
        if barred {
            // From now on what was fetched under a credential is anybody's, on disk too.
            let claim = repository.clone();
            let claimed = self.store.write(move |store| store.claim(&claim, Visibility::Public)).await;
            if let Err(error) = claimed {
                // Until it can be written down, the proof is asked for again after a restart.
                tracing::warn!(%repository, %error, "that anybody may pull it is not written down");
            }
        }
        let proven_public = Some(self.clock.now());
        keep(Standing { barred: false, held_public: true, proven_public, denied_until: None, ..standing });
        Ok(())
    }
}

/// What is to be said where a login would open what it may not.
const SEALED: &str = "not everybody may pull it there, and the login that is configured opens it to nobody by \
    itself: say `private = \"shared\"` for that registry to have it open this to all who may pull here, or \
    `private = \"per-caller\"` to have callers show their own";

fn disagreement(repository: &Repository, state: &OriginState) -> Error {
    let why = match state {
        OriginState::Known(Origin { owner: Owner::Hosted, .. }) => format!(
            "the data directory holds it as a hosted repository, which no pattern of `hosted.repositories` \
             names: add one for `{}`",
            repository.name
        ),
        OriginState::Known(origin) => format!(
            "the data directory holds a repository of this name that was mirrored from {}, so this one \
             cannot be kept or served; move that one away, or change who owns the name",
            origin.owner
        ),
        _ => format!(
            "the data directory holds a repository of this name and no record of whose it is; start \
             with `--adopt {}` if it was mirrored from there, or with `--adopt hosted`",
            repository.owner
        ),
    };
    Error::Origin { subject: repository.to_string(), why }
}
