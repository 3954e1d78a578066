//! Manifests by digest: from memory, from disk, or once from upstream.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::memory::{HeldManifest, Subject};
use super::right::veiled;
use super::standing::{Access, Standing};
use super::{Asker, Behalf, Mirror, Who, lost};
use crate::answer::{BlobWant, Error, ManifestAnswer, Served};
use crate::oci::{Digest, InvalidManifest, Manifest, ManifestKind, Reference, Repository};
use crate::store::Grant;
use crate::upstream::{FetchedManifest, Saving, Spender};

/// While blobs of an upstream were seen to flow so short a time ago, nothing is tried out first.
const BLOBS_FLOW: Duration = Duration::from_secs(60);

/// Seconds in which it is noted once that a manifest is asked for.
const NOTE_EVERY: u64 = 30;

/// How much of an image's configuration is waited for.
const CONFIG_MAX: usize = 1024 * 1024;

/// How often in a row what somebody else may not spend is asked for again.
const HELD_BACK: usize = 3;

/// One client's request for a manifest.
pub(super) struct Request<'a> {
    pub asker: Asker<'a>,
    pub standing: Arc<Standing>,
    pub repository: &'a Repository,
}

impl Request<'_> {
    pub fn who(&self) -> Who {
        self.standing.caller()
    }

    pub fn behalf(&self) -> Behalf {
        (self.who(), self.asker.hops.depth())
    }
}

impl ManifestAnswer {
    pub(super) fn held(held: &HeldManifest, served: Served) -> Self {
        Self {
            digest: held.digest,
            media_type: held.manifest.media_type.clone(),
            size: held.bytes.len() as u64,
            bytes: Some(held.bytes.clone()),
            served,
        }
    }
}

impl Mirror {
    /// A manifest of an upstream's repository. `body`: whether the bytes are wanted or the head will do.
    pub async fn manifest(
        self: &Arc<Self>,
        asker: Asker<'_>,
        repository: &Repository,
        reference: &Reference,
        body: bool,
    ) -> Result<ManifestAnswer, Error> {
        let upstream = self.upstream(repository)?.clone();
        upstream.saw(asker.toll.purpose(), || asker.toll.client());
        self.unless_loop(asker, repository)?;
        let entry = self.entry(asker, repository, &Subject::Manifest(reference.clone())).await;
        let standing = entry.map_err(|error| veiled(asker.caller, error))?;
        let request = Request { asker, standing, repository };
        let answer = match reference {
            Reference::Tag(tag) => self.by_tag(&request, tag, body).await,
            Reference::Digest(digest) => self.by_digest(&request, digest, body).await,
        };
        let answer = answer.map_err(|error| veiled(request.who(), error))?;
        if self.options.ahead.prefetch_layers && body && answer.served == Served::Miss {
            self.prefetch(&request, &answer);
        }
        if body && let Some(saving) = saving(&answer.served) {
            upstream.saved(saving);
        }
        Ok(answer)
    }

    /// On what and on whose account this request spends. `is_held`: something is there to be served
    /// instead.
    pub(super) fn spender(&self, request: &Request<'_>, reference: &Reference, is_held: bool) -> Spender {
        let is_pinned = self.options.reserved.names(request.repository, reference);
        request.asker.spender(is_pinned, is_held)
    }

    pub(super) async fn by_digest(
        self: &Arc<Self>,
        request: &Request<'_>,
        digest: &Digest,
        body: bool,
    ) -> Result<ManifestAnswer, Error> {
        let Request { standing, repository, .. } = request;
        if let Some(held) = self.held_manifest(standing, repository, digest).await {
            return Ok(ManifestAnswer::held(&held, Served::Hit));
        }
        Box::pin(self.miss(request, digest, body)).await
    }

    async fn miss(
        self: &Arc<Self>,
        request: &Request<'_>,
        digest: &Digest,
        body: bool,
    ) -> Result<ManifestAnswer, Error> {
        let Request { standing, repository, .. } = request;
        let reference = Reference::Digest(*digest);
        let subject = Subject::Manifest(reference.clone());
        self.refused(request.who(), repository, &subject)?;
        if !body {
            let access = self.access(repository, standing, &subject, request.asker.hops).await?;
            let upstream = self.upstream_for(repository, &access.hops)?;
            let head = upstream.manifest_head(access.identity, &repository.name, &reference).await;
            let head = head.map_err(|error| self.refuse(request.who(), repository, &subject, error))?;
            if let (Some(media_type), Some(size)) = (head.media_type, head.size) {
                return Ok(ManifestAnswer {
                    digest: *digest,
                    media_type,
                    size,
                    bytes: None,
                    served: Served::Miss,
                });
            }
        }
        let spender = request.asker.spender(self.is_pinned(request, digest).await, false);
        let (held, served) = self.fetch(request, &reference, spender).await?;
        Ok(ManifestAnswer::held(&held, served))
    }

    /// The manifest, where the repository has it and may serve it.
    pub(super) async fn held_manifest(
        &self,
        standing: &Standing,
        repository: &Repository,
        digest: &Digest,
    ) -> Option<Arc<HeldManifest>> {
        if !standing.is_open() {
            return None;
        }
        let key = (repository.clone(), *digest);
        if let Some(held) = self.memory.manifests.get(&key) {
            self.note_wanted(standing, repository, &held);
            return Some(held);
        }
        let (repository, digest) = key.clone();
        let read = self.store.run(move |store| store.manifest(&repository, &digest));
        let bytes = match Box::pin(read).await {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::error!(%digest, %error, "a held manifest cannot be read");
                return None;
            }
        };
        let manifest = Manifest::parse(&bytes, None).ok()?;
        let held = Arc::new(HeldManifest {
            digest,
            bytes,
            manifest,
            kept: AtomicBool::new(true),
            noted: AtomicU64::new(0),
        });
        self.note_wanted(standing, &key.0, &held);
        self.memory.manifests.insert(key, held.clone());
        Some(held)
    }

    /// Has the store know, once in a while, that a manifest is asked for; one that the disk has not taken
    /// is given to it again.
    fn note_wanted(&self, standing: &Standing, repository: &Repository, held: &Arc<HeldManifest>) {
        let now = self.since_start();
        if now < held.noted.load(Ordering::Relaxed) + NOTE_EVERY {
            return;
        }
        held.noted.store(now, Ordering::Relaxed);
        if held.kept.load(Ordering::Relaxed) {
            self.store.want(repository, &held.digest);
        } else if let Ok(grant) = self.grant(repository, standing) {
            self.keep(grant, held);
        }
    }

    /// Writes a manifest to disk.
    pub(super) fn keep(&self, grant: Grant, held: &Arc<HeldManifest>) {
        let (repository, held) = (grant.repository.clone(), held.clone());
        self.writes.add(&repository, "a manifest", move |store| {
            store.put_manifest(&grant, &held.digest, &held.bytes)?;
            held.kept.store(true, Ordering::Relaxed);
            Ok(())
        });
    }

    /// Seconds, counted from such that the first is far from 0.
    fn since_start(&self) -> u64 {
        self.clock.now().saturating_duration_since(self.started).as_secs() + NOTE_EVERY
    }

    /// Fetches a manifest, once for all who ask at the time. Only who starts it pays.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        request: &Request<'_>,
        reference: &Reference,
        spender: Spender,
    ) -> Result<(Arc<HeldManifest>, Served), Error> {
        let Request { asker, standing, repository } = request;
        let key = (request.behalf(), (*repository).clone(), reference.clone());
        let subject = Subject::Manifest(reference.clone());
        let access = self.access(repository, standing, &subject, asker.hops).await?;
        let mut tries = HELD_BACK;
        loop {
            if !self.fetches.has(&key) {
                let paid = asker.toll.cold_miss().await;
                paid.map_err(|retry_after| Error::ClientLimited {
                    subject: subject.of(repository),
                    retry_after,
                })?;
            }
            let mut served = Served::Joined;
            let found = Arc::new(AtomicBool::new(false));
            let fetched = self.fetches.join(key.clone(), || {
                served = Served::Miss;
                let (mirror, access, spender) = (self.clone(), access.clone(), spender.clone());
                let (found, (_, repository, reference)) = (found.clone(), key.clone());
                async move {
                    // Whoever was first may have landed since this was found missing.
                    if let Some(held) = mirror.in_memory(&repository, &reference) {
                        found.store(true, Ordering::Relaxed);
                        return Ok(held);
                    }
                    mirror.fetch_now(repository, reference, access, spender).await
                }
            });
            let fetched = fetched.await;
            if served == Served::Miss && found.load(Ordering::Relaxed) {
                served = Served::Hit;
            }
            match fetched.unwrap_or_else(|| Err(lost(subject.of(repository)))) {
                // Another one may not: this one may.
                Err(Error::HeldBack { .. }) if served == Served::Joined && tries > 0 => tries -= 1,
                fetched => return fetched.map(|held| (held, served)),
            }
        }
    }

    fn in_memory(&self, repository: &Repository, reference: &Reference) -> Option<Arc<HeldManifest>> {
        let Reference::Digest(digest) = reference else { return None };
        self.memory.manifests.get(&(repository.clone(), *digest))
    }

    async fn fetch_now(
        self: Arc<Self>,
        repository: Repository,
        reference: Reference,
        access: Access,
        spender: Spender,
    ) -> Result<Arc<HeldManifest>, Error> {
        let subject = Subject::Manifest(reference.clone());
        let upstream = self.upstream_for(&repository, &access.hops)?;
        let got = upstream.manifest_get(access.identity, &spender, &repository.name, &reference).await;
        let got = got.map_err(|error| self.refuse(access.caller(), &repository, &subject, error))?;
        let checked = self.check(&repository, &subject, got, &access).await;
        let hold = self.options.negative_not_found;
        let held =
            checked.map_err(|error| self.remember(access.caller(), &repository, &subject, error, hold));
        let held = Arc::new(held?);
        self.memory.manifests.insert((repository.clone(), held.digest), held.clone());
        self.keep(access.grant, &held);
        Ok(held)
    }

    async fn check(
        self: &Arc<Self>,
        repository: &Repository,
        subject: &Subject,
        got: FetchedManifest,
        access: &Access,
    ) -> Result<HeldManifest, Error> {
        let manifest = Manifest::parse(&got.bytes, got.media_type.as_ref()).map_err(|error| {
            let (subject, why) = (subject.of(repository), error.to_string());
            match error {
                InvalidManifest::Schema1 => Error::Unfit { subject, why },
                _ => Error::Unavailable { subject, why: format!("what it sent is {why}") },
            }
        })?;
        self.check_blobs(repository, &manifest, access).await?;
        let noted = AtomicU64::new(self.since_start());
        let kept = AtomicBool::new(false);
        Ok(HeldManifest { digest: got.digest, bytes: got.bytes, manifest, kept, noted })
    }

    /// Some clients are bound to a mirror once it gave them a manifest. So one whose blobs cannot be
    /// had is not given: unless blobs flowed just now, the image's configuration, which every client
    /// fetches next, is fetched first.
    async fn check_blobs(
        self: &Arc<Self>,
        repository: &Repository,
        manifest: &Manifest,
        access: &Access,
    ) -> Result<(), Error> {
        let ManifestKind::Image { config, .. } = &manifest.kind else { return Ok(()) };
        // The empty configuration of an artifact is known to everybody: not all registries have it.
        if config.digest == Digest::sha256(b"{}") {
            return Ok(());
        }
        let host = &self.upstream(repository)?.options().host;
        let now = self.clock.now();
        if self.blobs_flow.get(host).is_some_and(|seen| now < seen + BLOBS_FLOW) {
            return Ok(());
        }
        let answer = self.miss_blob(&config.digest, BlobWant::Whole, access, true).await?;
        let Some(mut body) = answer.body else { return Ok(()) };
        // A configuration has some kilobytes. Of anything larger, that it flows is enough.
        let mut left = CONFIG_MAX;
        while left > 0
            && let Some(piece) = body.next().await
        {
            left = left.saturating_sub(piece.as_ref().map_or(0, bytes::Bytes::len));
            piece.map_err(|error| Error::Unavailable {
                subject: Subject::Blob(config.digest).of(repository),
                why: error.to_string(),
            })?;
        }
        Ok(())
    }
}

/// How an answer spared a pull, where it did.
fn saving(served: &Served) -> Option<Saving> {
    match served {
        Served::Hit | Served::Stale(_) => Some(Saving::Held),
        Served::Revalidated => Some(Saving::Head),
        Served::Joined => Some(Saving::Joined),
        Served::Miss | Served::Range => None,
    }
}
