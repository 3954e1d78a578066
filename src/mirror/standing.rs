//! Whether a repository may be served, and in whose name it is fetched.
//!
//! A configured credential spends quota; it opens no doors. What only the credential can pull is
//! served where the upstream says `private = "shared"`, else not at all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::memory::Subject;
use super::{Mirror, lost};
use crate::answer::Error;
use crate::oci::{Owner, Reference, Repository, UpstreamHost};
use crate::store::{Grant, Origin, OriginState, Visibility};
use crate::upstream::{Credential, Hops, Identity, PrivatePolicy, Upstream};

/// How long a proof that anybody may pull a repository is taken for its further content.
const PROOF: Duration = Duration::from_secs(3600);

pub struct Standing {
    /// What is held was fetched with a credential, which now opens nothing.
    barred: bool,
    /// The disk did not say whose what is held is.
    untold: bool,
    proven_public: Option<Instant>,
}

impl Standing {
    pub fn is_open(&self) -> bool {
        !self.barred && !self.untold
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

/// Whether what is held was fetched with a credential that opens nothing now.
fn is_barred(upstream: &Upstream, origin: &Origin) -> bool {
    origin.visibility == Visibility::Shared && upstream.options().private != PrivatePolicy::Shared
}

impl Mirror {
    /// The upstream that a held repository is of, as it is configured now. None: none that gives it out.
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
        let state = match self.store.run(move |store| store.origin(&of)).await {
            Ok(state) => state,
            Err(error) => {
                // A disk that fails holds up nobody: nothing is found on it, all is fetched.
                tracing::error!(%repository, %error, "held content cannot be looked up");
                return Ok(Arc::new(Standing { barred: false, untold: true, proven_public: None }));
            }
        };
        let barred = match state {
            OriginState::Absent => false,
            OriginState::Known(origin) if origin.owner == repository.owner => is_barred(upstream, &origin),
            other => return Err(disagreement(repository, &other)),
        };
        let standing = Arc::new(Standing { barred, untold: false, proven_public: None });
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
        let upstream = self.upstream(repository)?;
        let options = upstream.options();
        let has_credential = options.has_credential();
        let identity = if has_credential { Identity::Configured } else { Identity::Anonymous };
        let grant = self.grant(repository)?;
        let now = self.clock.now();
        let proven = standing.proven_public.is_some_and(|at| now < at + PROOF);
        if grant.visibility == Visibility::Public && !proven && (has_credential || standing.barred) {
            self.prove_public(repository, standing, subject, hops).await?;
        }
        Ok(Access { identity, grant, hops: hops.clone() })
    }

    /// What is kept of a repository, as things are configured, once it may be served.
    pub(super) fn grant(&self, repository: &Repository) -> Result<Grant, Error> {
        let options = self.upstream(repository)?.options();
        let visibility = match (options.has_credential(), options.private) {
            (true, PrivatePolicy::Shared) => Visibility::Shared,
            (false, _) | (_, PrivatePolicy::Refuse) => Visibility::Public,
        };
        let user = options.credential.as_ref().map(Credential::label).unwrap_or_default();
        let domain = format!("{} {user} {visibility:?}", options.host).into();
        Ok(Grant { repository: repository.clone(), domain, visibility })
    }

    /// Asks upstream without the credential.
    async fn prove_public(
        self: &Arc<Self>,
        repository: &Repository,
        standing: &Standing,
        subject: &Subject,
        hops: &Hops,
    ) -> Result<(), Error> {
        let key = (repository.clone(), subject.clone());
        let (barred, untold) = (standing.barred, standing.untold);
        let (mirror, hops) = (self.clone(), hops.clone());
        let proof = self.proofs.join(key.clone(), || async move {
            let (repository, subject) = key;
            let upstream = mirror.upstream_for(&repository, &hops)?;
            let name = &repository.name;
            let asked = match &subject {
                Subject::Manifest(reference) => {
                    upstream.manifest_head(Identity::Anonymous, name, reference).await.map(drop)
                }
                Subject::Blob(digest) => {
                    upstream.blob_head(Identity::Anonymous, name, digest).await.map(drop)
                }
                // A list that is empty would prove nothing: not even that there is such a repository.
                Subject::Referrers(digest) => {
                    let subject = Reference::Digest(*digest);
                    upstream.manifest_head(Identity::Anonymous, name, &subject).await.map(drop)
                }
                Subject::Tags => upstream.tags(Identity::Anonymous, name).await.map(drop),
            };
            asked.map_err(|error| mirror.refuse(&repository, &subject, error))?;
            if barred {
                // From now on what was fetched under a credential is anybody's, on disk too.
                let claim = repository.clone();
                let claimed = mirror.store.run(move |store| store.claim(&claim, Visibility::Public)).await;
                claimed.map_err(|error| Error::Disk {
                    subject: subject.of(&repository),
                    why: error.to_string(),
                })?;
            }
            if !untold {
                let proven_public = Some(mirror.clock.now());
                let standing = Standing { barred: false, untold, proven_public };
                mirror.memory.standings.insert(repository, Arc::new(standing));
            }
            Ok(())
        });
        proof.await.unwrap_or_else(|| Err(lost(subject.of(repository))))
    }
}

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
