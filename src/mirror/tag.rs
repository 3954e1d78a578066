//! Tags: fresh for a time, then confirmed by HEAD, and stale rather than missing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::manifest::Request;
use super::memory::{KnownTag, Subject};
use super::standing::Standing;
use super::{Mirror, lost};
use crate::answer::{Error, ManifestAnswer, Served};
use crate::oci::{Digest, Reference, Repository, Tag};
use crate::upstream::{HeldBack, Hops, Identity, ManifestHead, Purpose};

/// A held tag is not kept waiting longer than this for its confirmation, which goes on meanwhile.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// After trouble, a held tag is served stale for so long before upstream is asked again.
pub(super) const TROUBLE_HOLD: Duration = Duration::from_secs(10);
pub(super) const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// What asking upstream for a tag came to.
#[derive(Clone)]
pub enum Resolved {
    Known(Arc<KnownTag>, Served),
    /// Upstream tells no digest by HEAD: only a GET will do.
    Untold,
}

impl KnownTag {
    fn new(digest: Digest, seen: SystemTime, fresh_until: Instant) -> Self {
        let kept = AtomicBool::new(false);
        Self { digest, head: None, seen, fresh_until, gone_since: None, stale: None, kept, before: None }
    }

    fn copy(&self) -> Self {
        let kept = AtomicBool::new(self.kept.load(Ordering::Relaxed));
        Self { head: self.head.clone(), stale: self.stale.clone(), kept, ..*self }
    }

    /// The manifest that is held under the tag.
    fn held(&self) -> Option<Digest> {
        if self.kept.load(Ordering::Relaxed) { Some(self.digest) } else { self.before }
    }
}

impl Mirror {
    pub(super) async fn by_tag(
        self: &Arc<Self>,
        request: &Request<'_>,
        tag: &Tag,
        body: bool,
    ) -> Result<ManifestAnswer, Error> {
        // What is private is confirmed in the name of who asks.
        if request.who().is_none() {
            self.hot.note(request.repository, tag);
        }
        let (answer, known) = match self.resolved(request, tag).await {
            Ok(Resolved::Known(known, served)) => {
                (self.at_tag(request, tag, &known, served, body).await, true)
            }
            Ok(Resolved::Untold) => (Box::pin(self.get_by_tag(request, tag)).await, false),
            Err(error) => (Err(error), false),
        };
        match answer {
            // That upstream has no such tag, or does not give it, was weighed already. That it has
            // not what its own tag points to is trouble like any other.
            Err(error @ Error::Denied { .. }) => Err(error),
            Err(error @ Error::NotFound(_)) if !known => Err(error),
            Err(error) => Box::pin(self.last_held(request, tag, error)).await,
            answer => answer,
        }
    }

    async fn resolved(self: &Arc<Self>, request: &Request<'_>, tag: &Tag) -> Result<Resolved, Error> {
        if let Some(fresh) = self.fresh(request.repository, tag) {
            return Ok(fresh);
        }
        let known = self.known_tag(request, tag).await;
        let subject = Subject::Manifest(Reference::Tag(tag.clone()));
        let refused = || self.refused(request.who(), request.repository, &subject);
        match &known {
            Some(known) => {
                if let Some(fresh) = self.while_fresh(known) {
                    return Ok(fresh);
                }
                // What upstream has said to a caller, it is not asked again for a while.
                if request.who().is_some()
                    && let Err(error @ (Error::Denied { .. } | Error::NotFound(_))) = refused()
                {
                    return Err(error);
                }
                if self.options.offline {
                    let why = "this mirror is offline, as configured".to_owned();
                    return Ok(Resolved::Known(known.clone(), Served::Stale(why)));
                }
                if self.outlived_trouble(known).is_some() {
                    refused()?;
                }
                if self.outlived_denial(known)
                    && let Err(denied @ Error::Denied { .. }) = refused()
                {
                    return Err(denied);
                }
            }
            None => refused()?,
        }
        Box::pin(self.resolve(request, tag, known)).await
    }

    /// The tag from memory, while it may be answered without asking.
    fn fresh(&self, repository: &Repository, tag: &Tag) -> Option<Resolved> {
        self.while_fresh(&self.memory.tags.get(&(repository.clone(), tag.clone()))?)
    }

    fn while_fresh(&self, known: &Arc<KnownTag>) -> Option<Resolved> {
        let served = || known.stale.clone().map_or(Served::Hit, Served::Stale);
        (self.clock.now() < known.fresh_until).then(|| Resolved::Known(known.clone(), served()))
    }

    /// The answer for a tag whose digest is known.
    pub(super) async fn at_tag(
        self: &Arc<Self>,
        request: &Request<'_>,
        tag: &Tag,
        known: &KnownTag,
        served: Served,
        body: bool,
    ) -> Result<ManifestAnswer, Error> {
        if let Some(held) = self.held_manifest(&request.standing, request.repository, &known.digest).await {
            self.keep_tag(request, tag, known);
            return Ok(ManifestAnswer::held(&held, served));
        }
        if let (false, Some((media_type, size))) = (body, known.head.clone()) {
            return Ok(ManifestAnswer {
                digest: known.digest,
                media_type,
                size,
                bytes: None,
                served: Served::Miss,
            });
        }
        let reference = Reference::Digest(known.digest);
        self.refused(request.who(), request.repository, &Subject::Manifest(reference.clone()))?;
        let is_pinned = self.options.reserved.names(request.repository, &Reference::Tag(tag.clone()));
        let spender = request.asker.spender(is_pinned, known.held().is_some());
        let (held, served) = Box::pin(self.fetch(request, &reference, spender)).await?;
        self.keep_tag(request, tag, known);
        Ok(ManifestAnswer::held(&held, served))
    }

    pub(super) async fn get_by_tag(
        self: &Arc<Self>,
        request: &Request<'_>,
        tag: &Tag,
    ) -> Result<ManifestAnswer, Error> {
        let repository = request.repository;
        let reference = Reference::Tag(tag.clone());
        let is_held = self.known_tag(request, tag).await.is_some_and(|known| self.may_stand_in(&known));
        let spender = self.spender(request, &reference, is_held);
        let (held, served) = self.fetch(request, &reference, spender).await?;
        let fresh_until = self.clock.now() + self.options.freshness.of(repository, tag);
        let known = Arc::new(KnownTag::new(held.digest, self.clock.wall(), fresh_until));
        self.memory.tags.insert((repository.clone(), tag.clone()), known.clone());
        self.keep_tag(request, tag, &known);
        Ok(ManifestAnswer::held(&held, served))
    }

    /// Upstream moved the tag, and the new manifest cannot be had: the one before.
    async fn last_held(
        self: &Arc<Self>,
        request: &Request<'_>,
        tag: &Tag,
        error: Error,
    ) -> Result<ManifestAnswer, Error> {
        let Request { standing, repository, .. } = request;
        let Some(known) = self.known_tag(request, tag).await else { return Err(error) };
        let Some(digest) = known.held().filter(|_| self.outlived_trouble(&known).is_none()) else {
            return Err(error);
        };
        let Some(held) = self.held_manifest(standing, repository, &digest).await else { return Err(error) };
        let why = error.why_stale();
        let hold = match error {
            Error::UpstreamLimited { .. } if request.who().is_some() => {
                return Ok(ManifestAnswer::held(&held, Served::Stale(why)));
            }
            Error::UpstreamLimited { retry_after, .. } => retry_after.min(LONGEST_HOLD),
            // What one client may spend says nothing of the tag.
            Error::ClientLimited { .. } | Error::HeldBack { .. } => {
                return Ok(ManifestAnswer::held(&held, Served::Stale(why)));
            }
            _ => TROUBLE_HOLD,
        };
        let before = KnownTag { digest, head: None, kept: AtomicBool::new(true), ..known.copy() };
        self.stale(repository, tag, &before, &why, hold);
        Ok(ManifestAnswer::held(&held, Served::Stale(why)))
    }

    /// The tag as last seen: from memory, else from disk, where its time says when that was.
    pub(super) async fn known_tag(&self, request: &Request<'_>, tag: &Tag) -> Option<Arc<KnownTag>> {
        let key = (request.repository.clone(), tag.clone());
        if let Some(known) = self.memory.tags.get(&key) {
            return Some(known);
        }
        let known = Arc::new(Box::pin(self.tag_on_disk(request, tag)).await?);
        self.memory.tags.insert(key, known.clone());
        Some(known)
    }

    async fn tag_on_disk(&self, request: &Request<'_>, tag: &Tag) -> Option<KnownTag> {
        let repository = request.repository;
        if !request.standing.is_open() {
            return None;
        }
        let (of, name) = (repository.clone(), tag.clone());
        let held = self.store.run(move |store| {
            let Some(held) = store.tag(&of, &name)? else { return Ok(None) };
            // The tag is as good without that note.
            let gone_since = store.gone_since(&of, &name, &held).unwrap_or_else(|error| {
                tracing::warn!(%error, "since when a tag is gone upstream cannot be read");
                None
            });
            Ok(Some((held, gone_since)))
        });
        let held = held.await;
        let held =
            held.inspect_err(|error| tracing::error!(%repository, %tag, %error, "a held tag cannot be read"));
        let (held, gone_since) = held.ok()??;
        // A time in the future is a clock that jumped: the tag is then unconfirmed.
        let age = self.clock.wall().duration_since(held.seen).unwrap_or(Duration::MAX);
        let left = self.options.freshness.of(repository, tag).saturating_sub(age);
        let mut known = KnownTag::new(held.digest, held.seen, self.clock.now() + left);
        known.kept = AtomicBool::new(true);
        known.gone_since = gone_since.map(|since| {
            let gone_for = self.clock.wall().duration_since(since).unwrap_or_default();
            let now = self.clock.now();
            now.checked_sub(gone_for).unwrap_or(now)
        });
        Some(known)
    }

    /// Asks upstream, once for all who wait. What is held waits only so long.
    async fn resolve(
        self: &Arc<Self>,
        request: &Request<'_>,
        tag: &Tag,
        known: Option<Arc<KnownTag>>,
    ) -> Result<Resolved, Error> {
        let repository = request.repository;
        let subject = Subject::Manifest(Reference::Tag(tag.clone()));
        let held = known.as_ref().is_some_and(|known| self.may_stand_in(known));
        let purpose = self.spender(request, &Reference::Tag(tag.clone()), held).purpose;
        if let Some(held_back) = self.unconfirmed_for_now(request, purpose)? {
            let HeldBack { why, wait, .. } = held_back;
            return match &known {
                Some(known) if purpose == Purpose::Revalidation => {
                    Ok(self.stale(repository, tag, known, &why, wait.min(LONGEST_HOLD)))
                }
                _ => Err(Error::HeldBack { subject: subject.of(repository), why, retry_after: wait }),
            };
        }
        let (mirror, standing, before) = (self.clone(), request.standing.clone(), known.clone());
        let hops = request.asker.hops.clone();
        let flight = self.resolves.join((request.behalf(), repository.clone(), tag.clone()), || {
            let (repository, tag) = (repository.clone(), tag.clone());
            async move { mirror.ask(&standing, &repository, &tag, before, purpose, &hops).await }
        });
        let lost = || Err(lost(subject.of(repository)));
        let Some(known) = known else { return flight.await.unwrap_or_else(lost) };
        match tokio::time::timeout(PATIENCE, flight).await {
            Ok(resolved) => resolved.unwrap_or_else(lost),
            Err(_) => {
                let why = "the upstream is slow to answer";
                let error = Error::Unavailable { subject: subject.of(repository), why: why.to_owned() };
                self.in_trouble(repository, tag, error, why, &known, TROUBLE_HOLD)
            }
        }
    }

    /// Whether what is held can be served where upstream is not asked.
    fn may_stand_in(&self, known: &KnownTag) -> bool {
        known.held().is_some() && self.outlived_trouble(known).is_none()
    }

    /// Why upstream is not asked for this now. A miss is one HEAD, which costs nothing: it is asked.
    pub(super) fn unconfirmed_for_now(
        &self,
        request: &Request<'_>,
        purpose: Purpose,
    ) -> Result<Option<HeldBack>, Error> {
        let identity = request.who().map_or(Identity::Configured, Identity::Caller);
        Ok(match purpose {
            Purpose::Priority | Purpose::Miss => None,
            Purpose::Revalidation | Purpose::Background => {
                self.upstream(request.repository)?.holds_back_head(identity, purpose)
            }
        })
    }

    async fn ask(
        self: &Arc<Self>,
        standing: &Standing,
        repository: &Repository,
        tag: &Tag,
        known: Option<Arc<KnownTag>>,
        purpose: Purpose,
        hops: &Hops,
    ) -> Result<Resolved, Error> {
        // Whoever was first may have landed since this was found outdated.
        if let Some(fresh) = self.fresh(repository, tag) {
            return Ok(fresh);
        }
        let reference = Reference::Tag(tag.clone());
        let subject = Subject::Manifest(reference.clone());
        let who = standing.caller();
        let access = match (self.access(repository, standing, &subject, hops).await, &known) {
            // Whether anybody may pull it cannot be told: that is no word against what is held.
            (
                Err(error @ (Error::NotFound(_) | Error::Unavailable { .. } | Error::UpstreamLimited { .. })),
                Some(known),
            ) => {
                let why = error.why_stale();
                return self.unconfirmed(repository, tag, error, &why, known);
            }
            (access, _) => access?,
        };
        let upstream = self.upstream_for(repository, hops)?;
        let head = upstream.manifest_head(access.identity, &repository.name, &reference).await;
        match (head, known) {
            (Ok(head), known) => {
                let held_back = upstream.holds_back(access.identity, purpose);
                self.told(repository, tag, head, known.as_deref(), held_back)
            }
            (Err(error), None) => Err(self.refuse(who, repository, &subject, error)),
            (Err(error), Some(known)) => {
                let why = error.to_string();
                let (error, hold) = self.translate(who, repository, &subject, error);
                match error {
                    // What upstream says to one caller is no word on what others have shown.
                    Error::NotFound(_) | Error::Denied { .. } if who.is_some() => {
                        return Err(self.remember(who, repository, &subject, error, hold));
                    }
                    Error::UpstreamLimited { .. } if who.is_some() => {
                        return Ok(Resolved::Known(known, Served::Stale(why)));
                    }
                    _ => {}
                }
                self.unconfirmed(repository, tag, error, &why, &known)
            }
        }
    }

    /// Upstream has answered the HEAD.
    pub(super) fn told(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &Tag,
        head: ManifestHead,
        known: Option<&KnownTag>,
        held_back: Option<HeldBack>,
    ) -> Result<Resolved, Error> {
        let Some(digest) = head.digest else { return Ok(Resolved::Untold) };
        let same = known.filter(|known| known.digest == digest);
        if let (None, Some(known), Some(HeldBack { why, wait, .. })) = (same, known, held_back) {
            let subject = Subject::Manifest(Reference::Tag(tag.clone())).of(repository);
            let told = format!("the tag has moved upstream, and {why}");
            let error = Error::HeldBack { subject, why, retry_after: wait };
            return self.in_trouble(repository, tag, error, &told, known, wait.min(LONGEST_HOLD));
        }
        if let (Some(known), Some(why)) = (same, &head.stale) {
            let subject = Subject::Manifest(Reference::Tag(tag.clone())).of(repository);
            let error = Error::Unavailable { subject, why: why.clone() };
            return self.in_trouble(repository, tag, error, why, known, TROUBLE_HOLD);
        }
        let fresh_for = match head.stale {
            Some(_) => TROUBLE_HOLD,
            None => self.options.freshness.of(repository, tag),
        };
        let fresh_until = self.clock.now() + fresh_for;
        let mut fresh = KnownTag::new(digest, self.clock.wall(), fresh_until);
        fresh.head = head.media_type.zip(head.size);
        fresh.before = known.and_then(KnownTag::held);
        let is_kept = same.is_some_and(|known| known.kept.load(Ordering::Relaxed));
        fresh.kept = AtomicBool::new(is_kept);
        if is_kept || known.is_some_and(|known| known.gone_since.is_some()) {
            let (of, tag, seen) = (repository.clone(), tag.clone(), fresh.seen);
            self.writes
                .add(repository, "the time of a tag", move |store| store.touch_tag(&of, &tag, &digest, seen));
        }
        let fresh = Arc::new(fresh);
        self.memory.tags.insert((repository.clone(), tag.clone()), fresh.clone());
        Ok(Resolved::Known(fresh, Served::Revalidated))
    }

    /// Upstream has not answered, or not well, for a tag that is known.
    fn unconfirmed(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &Tag,
        error: Error,
        why: &str,
        known: &KnownTag,
    ) -> Result<Resolved, Error> {
        let subject = Subject::Manifest(Reference::Tag(tag.clone()));
        let now = self.clock.now();
        let hold = match &error {
            Error::NotFound(_) => {
                let since = known.gone_since.unwrap_or_else(|| {
                    self.mark_gone(repository, tag, known);
                    now
                });
                let gone_for = now.saturating_duration_since(since);
                if self.options.stale.not_found.is_some_and(|longest| gone_for >= longest) {
                    self.forget(repository, tag);
                    let hold = self.options.negative_not_found;
                    return Err(self.remember(None, repository, &subject, error, hold));
                }
                let known = KnownTag { gone_since: Some(since), ..known.copy() };
                let hold = self.options.freshness.of(repository, tag);
                return Ok(self.stale(repository, tag, &known, why, hold));
            }
            Error::Denied { .. } => {
                if self.outlived_denial(known) {
                    let hold = self.options.negative_denied;
                    return Err(self.remember(None, repository, &subject, error, hold));
                }
                LONGEST_HOLD
            }
            Error::UpstreamLimited { retry_after, .. } => {
                let hold = (*retry_after).min(LONGEST_HOLD);
                return self.in_trouble(repository, tag, error, why, known, hold);
            }
            _ => return self.in_trouble(repository, tag, error, why, known, TROUBLE_HOLD),
        };
        Ok(self.stale(repository, tag, known, why, hold))
    }

    /// Upstream cannot say anything of a tag that is known: it is served for as long as is configured.
    fn in_trouble(
        &self,
        repository: &Repository,
        tag: &Tag,
        error: Error,
        why: &str,
        known: &KnownTag,
        hold: Duration,
    ) -> Result<Resolved, Error> {
        let Some((age, longest)) = self.outlived_trouble(known) else {
            return Ok(self.stale(repository, tag, known, why, hold));
        };
        let [age, longest] = [age, longest].map(|time| humantime::format_duration(whole_seconds(time)));
        tracing::warn!(%repository, %tag, why, "a held tag is too old to be served stale (`stale.trouble`)");
        let subject = Subject::Manifest(Reference::Tag(tag.clone()));
        let error = match error {
            limited @ (Error::UpstreamLimited { .. } | Error::HeldBack { .. }) => limited,
            _ => Error::Unavailable {
                subject: subject.of(repository),
                why: format!(
                    "{why}; it is held, last confirmed {age} ago, and served for no longer than {longest} \
                     without that (`stale.trouble`): pull it by digest, or raise the setting"
                ),
            },
        };
        Err(self.remember(None, repository, &subject, error, super::TROUBLE_HOLD))
    }

    /// The age of a tag's last confirmation, and the time after which it is not served in trouble any
    /// more, where that is past. A clock that was set back makes nothing old.
    fn outlived_trouble(&self, known: &KnownTag) -> Option<(Duration, Duration)> {
        let longest = self.options.stale.trouble?;
        let age = self.clock.wall().duration_since(known.seen).unwrap_or_default();
        (age >= longest).then_some((age, longest))
    }

    /// Whether a denial ends what is known: upstream last said it too long ago.
    fn outlived_denial(&self, known: &KnownTag) -> bool {
        let age = self.clock.wall().duration_since(known.seen).unwrap_or_default();
        age >= self.options.stale.denied
    }

    /// Keeps what is known for a while without asking again, marked.
    fn stale(
        &self,
        repository: &Repository,
        tag: &Tag,
        known: &KnownTag,
        why: &str,
        hold: Duration,
    ) -> Resolved {
        tracing::info!(%repository, %tag, why, "tag is served stale");
        let fresh_until = self.clock.now() + hold;
        let known = Arc::new(KnownTag { fresh_until, stale: Some(why.to_owned()), ..known.copy() });
        self.memory.tags.insert((repository.clone(), tag.clone()), known.clone());
        Resolved::Known(known, Served::Stale(why.to_owned()))
    }

    /// Has a restart remember since when upstream has no such tag.
    fn mark_gone(&self, repository: &Repository, tag: &Tag, known: &KnownTag) {
        if known.held().is_none() {
            return;
        }
        let (of, tag, since) = (repository.clone(), tag.clone(), self.clock.wall());
        self.writes
            .add(repository, "the time of a tag's end", move |store| store.mark_gone(&of, &tag, since));
    }

    fn forget(self: &Arc<Self>, repository: &Repository, tag: &Tag) {
        tracing::info!(%repository, %tag, "the upstream has dropped the tag, and now it is dropped here");
        self.memory.tags.invalidate(&(repository.clone(), tag.clone()));
        let (of, tag) = (repository.clone(), tag.clone());
        self.writes.add(repository, "the end of a tag", move |store| store.forget_tag(&of, &tag));
    }

    /// What the disk says of a tag cannot be read: whoever asks for the tag next has it written anew.
    pub(super) fn doubt_tag(&self, repository: &Repository, tag: &Tag) {
        let key = (repository.clone(), tag.clone());
        if let Some(known) = self.memory.tags.get(&key) {
            let known = KnownTag { kept: AtomicBool::new(false), before: known.held(), ..known.copy() };
            self.memory.tags.insert(key, Arc::new(known));
        }
    }

    /// Writes the tag to disk, once its manifest is held.
    fn keep_tag(self: &Arc<Self>, request: &Request<'_>, tag: &Tag, known: &KnownTag) {
        if known.kept.load(Ordering::Relaxed) {
            return;
        }
        let repository = request.repository;
        let Ok(grant) = self.grant(repository, &request.standing) else { return };
        if known.kept.swap(true, Ordering::Relaxed) {
            return;
        }
        let (tag, digest, seen) = (tag.clone(), known.digest, known.seen);
        self.writes.add(repository, "a tag", move |store| store.put_tag(&grant, &tag, &digest, seen));
    }
}

fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs())
}
