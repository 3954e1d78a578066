//! Seeing to it that all of an image is held before anybody asks for it: the tag is confirmed, and what
//! is missing is fetched as if a client had asked, verified and kept. What is held is not fetched again,
//! so whatever ends this early is taken up where it stood.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::manifest::Request;
use super::memory::Subject;
use super::standing::Standing;
use super::{Asker, Mirror, Toll};
use crate::answer::{BlobWant, Error, Served};
use crate::metrics::Warmth;
use crate::oci::{Descriptor, Digest, Manifest, ManifestKind, Platforms, Reference, Repository};
use crate::upstream::{Hops, Purpose};

/// Images at once, and blobs of each: what clients wait for has most of an upstream's places.
pub const IMAGES_AT_ONCE: usize = 2;
const BLOBS_AT_ONCE: usize = 3;
/// More than any image has.
const MANIFESTS_MAX: usize = 1000;
/// Longest wait for the last blob to be renamed and linked, once its bytes are here.
const COMMIT: Duration = Duration::from_secs(60);

/// An image that is to be held.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Image {
    /// As it was asked for.
    pub text: String,
    pub repository: Repository,
    pub reference: Reference,
}

/// On whose account an image is warmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Account {
    /// Leaves the upstream's quota to clients where it becomes scarce.
    #[default]
    Background,
    /// The image is to be held at any time: what is missing of it may be had from the reserve.
    Pinned,
}

/// How far an image has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub blobs: u64,
    pub bytes: u64,
    /// Of these bytes, those that are here.
    pub bytes_here: u64,
    /// Of those, what was fetched for this.
    pub bytes_fetched: u64,
}

/// An image that is held.
#[derive(Clone, Debug, PartialEq)]
pub struct Warmed {
    pub digest: Digest,
    pub tally: Tally,
    /// Why its tag may not be the current one.
    pub stale: Option<String>,
}

/// Why an image is not held, or not all of it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WarmError {
    #[error(transparent)]
    Content(#[from] Error),
    #[error("{subject} is not for {wanted}: it is for {offered}")]
    Platform { subject: String, wanted: String, offered: String },
    #[error(
        "{subject}: {count} of its blobs or manifests came and could not be kept: is there room in the cache?"
    )]
    NotKept { subject: String, count: usize },
    #[error("{subject} leads to more than {MANIFESTS_MAX} manifests")]
    TooMany { subject: String },
}

/// Who asks where no client does. Background work is bounded by itself, and by what is left of the
/// upstream's quota.
#[derive(Default)]
pub(super) struct Background {
    account: Account,
    hops: Hops,
}

impl Toll for Background {
    fn cold_miss(&self) -> Pin<Box<dyn Future<Output = Result<(), Duration>> + Send + '_>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn purpose(&self) -> Purpose {
        match self.account {
            Account::Background => Purpose::Background,
            Account::Pinned => Purpose::Priority,
        }
    }
}

impl Background {
    pub fn asker(&self) -> Asker<'_> {
        Asker { toll: self, hops: &self.hops, caller: None }
    }
}

/// All that an image consists of.
#[derive(Default)]
struct Parts {
    manifests: Vec<Digest>,
    blobs: Vec<Descriptor>,
}

impl Mirror {
    /// Sees to it that the image is held, for these platforms; `tell` hears of each step.
    pub async fn warm(
        self: &Arc<Self>,
        image: &Image,
        platforms: &Platforms,
        account: Account,
        tell: &(dyn Fn(Tally) + Send + Sync),
    ) -> Result<Warmed, WarmError> {
        let ended = self.warm_image(image, platforms, account, tell).await;
        let warmth = match &ended {
            Ok(Warmed { stale: None, .. }) => Warmth::Held,
            Ok(_) => Warmth::Stale,
            Err(_) => Warmth::Failed,
        };
        self.store.metrics().warm.images.cell(warmth).inc();
        ended
    }

    async fn warm_image(
        self: &Arc<Self>,
        image: &Image,
        platforms: &Platforms,
        account: Account,
        tell: &(dyn Fn(Tally) + Send + Sync),
    ) -> Result<Warmed, WarmError> {
        let repository = &image.repository;
        let work = Background { account, hops: Hops::default() };
        let subject = Subject::Manifest(image.reference.clone());
        let standing = self.entry(work.asker(), repository, &subject).await?;
        let request = Request { asker: work.asker(), standing, repository };
        let (digest, bytes, stale) = self.root(&request, &image.reference).await?;
        let (parts, absent) = self.parts(&request, digest, bytes, platforms).await?;
        let tally = self.fetch_all(repository, &parts.blobs, tell).await?;
        self.kept(image, &request.standing, parts).await?;
        match absent {
            Some(absent) => Err(absent),
            None => Ok(Warmed { digest, tally, stale }),
        }
    }

    /// What the reference leads to, and why that may not be current.
    async fn root(
        self: &Arc<Self>,
        request: &Request<'_>,
        reference: &Reference,
    ) -> Result<(Digest, bytes::Bytes, Option<String>), WarmError> {
        let tag = match reference {
            Reference::Digest(digest) => {
                return Ok((*digest, self.child(request, digest).await?, None));
            }
            Reference::Tag(tag) => tag,
        };
        let asked = self.confirm(request, tag).await;
        let known = self.known_tag(request, tag).await;
        let stale = match (asked, &known) {
            (Err(error), None) => return Err(error.into()),
            (Err(error), Some(_)) => Some(error.why_stale()),
            (Ok(_), _) => None,
        };
        let answer = self.by_tag(request, tag, true).await?;
        let stale = match answer.served {
            Served::Stale(why) => stale.or(Some(why)),
            _ => stale,
        };
        Ok((answer.digest, answer.bytes.unwrap_or_default(), stale))
    }

    /// A manifest by its digest, held or fetched.
    async fn child(
        self: &Arc<Self>,
        request: &Request<'_>,
        digest: &Digest,
    ) -> Result<bytes::Bytes, WarmError> {
        Ok(self.by_digest(request, digest, true).await?.bytes.unwrap_or_default())
    }

    /// All that belongs to the image, its manifests being held now; and which platform it is not for.
    async fn parts(
        self: &Arc<Self>,
        request: &Request<'_>,
        root: Digest,
        bytes: bytes::Bytes,
        platforms: &Platforms,
    ) -> Result<(Parts, Option<WarmError>), WarmError> {
        let subject = Reference::Digest(root).of(request.repository);
        let (mut parts, mut seen, mut absent) = (Parts::default(), HashSet::from([root]), None);
        let mut next = vec![(root, Some(bytes))];
        while let Some((digest, bytes)) = next.pop() {
            let bytes = match bytes {
                Some(bytes) => bytes,
                None => self.child(request, &digest).await?,
            };
            // It was read before it was held.
            let manifest = Manifest::parse(&bytes, None)
                .map_err(|error| Error::Unfit { subject: subject.clone(), why: error.to_string() })?;
            parts.manifests.push(digest);
            let blobs = match manifest.kind {
                ManifestKind::Image { config, layers } => [vec![config], layers].concat(),
                ManifestKind::Artifact { blobs } => blobs,
                ManifestKind::Index { manifests } => {
                    let (fitting, missing) = platforms.fitting(&manifests);
                    if !missing.is_empty() {
                        let wanted = missing.join(", ");
                        let (subject, offered) = (subject.clone(), offered(&manifests));
                        absent.get_or_insert(WarmError::Platform { subject, wanted, offered });
                    }
                    let fitting = fitting.into_iter().map(|manifest| manifest.digest);
                    next.extend(fitting.filter(|digest| seen.insert(*digest)).map(|digest| (digest, None)));
                    continue;
                }
            };
            // What lies elsewhere by design, upstream need not have.
            parts.blobs.extend(blobs.into_iter().filter(|blob| !blob.foreign && seen.insert(blob.digest)));
            if parts.manifests.len() + next.len() > MANIFESTS_MAX {
                return Err(WarmError::TooMany { subject });
            }
        }
        Ok((parts, absent))
    }

    /// Fetches what is not held. One blob that cannot be had does not keep the others from coming.
    async fn fetch_all(
        self: &Arc<Self>,
        repository: &Repository,
        blobs: &[Descriptor],
        tell: &(dyn Fn(Tally) + Send + Sync),
    ) -> Result<Tally, WarmError> {
        let total = Tally {
            blobs: blobs.len() as u64,
            bytes: blobs.iter().fold(0, |sum, blob| sum.saturating_add(blob.size)),
            ..Tally::default()
        };
        let (here, fetched) = (AtomicU64::new(0), AtomicU64::new(0));
        let tally = || Tally {
            bytes_here: here.load(Ordering::Relaxed),
            bytes_fetched: fetched.load(Ordering::Relaxed),
            ..total
        };
        tell(tally());
        let (tally, here, fetched) = (&tally, &here, &fetched);
        let fetches = stream::iter(blobs.to_vec()).map(|blob| async move {
            let counted = |bytes: u64, is_new: bool| {
                here.fetch_add(bytes, Ordering::Relaxed);
                if is_new {
                    fetched.fetch_add(bytes, Ordering::Relaxed);
                    self.store.metrics().warm.fetched_bytes.inc_by(bytes);
                }
                tell(tally());
            };
            self.fetch_blob(repository, &blob, &counted).await
        });
        let ended: Vec<_> = fetches.buffer_unordered(BLOBS_AT_ONCE).collect().await;
        ended.into_iter().collect::<Result<(), Error>>()?;
        Ok(tally())
    }

    async fn fetch_blob(
        self: &Arc<Self>,
        repository: &Repository,
        blob: &Descriptor,
        counted: &(dyn Fn(u64, bool) + Send + Sync),
    ) -> Result<(), Error> {
        let answer =
            self.blob(Background::default().asker(), repository, &blob.digest, BlobWant::Whole).await?;
        let Some(mut body) = answer.body.filter(|_| matches!(answer.served, Served::Miss | Served::Joined))
        else {
            counted(blob.size, false);
            return Ok(());
        };
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| Error::Unavailable {
                subject: format!("blob {} of {repository}", blob.digest),
                why: error.to_string(),
            })?;
            counted(piece.len() as u64, true);
        }
        Ok(())
    }

    /// Whether all of it is on disk, once that has done what it was given.
    async fn kept(
        self: &Arc<Self>,
        image: &Image,
        standing: &Standing,
        parts: Parts,
    ) -> Result<(), WarmError> {
        let repository = image.repository.clone();
        let grant = self.grant(&repository, standing)?;
        let committed = async {
            for blob in &parts.blobs {
                while let Some(fill) = self.store.fill(&grant, &blob.digest, 0) {
                    self.ended(&fill).await;
                }
            }
        };
        // What is not there by then is found missing.
        let _ = tokio::time::timeout(COMMIT, committed).await;
        self.writes.settled(&repository).await;
        let looked = self.store.run(move |store| {
            let mut missing = 0;
            for manifest in &parts.manifests {
                missing += usize::from(store.manifest(&repository, manifest)?.is_none());
            }
            for blob in &parts.blobs {
                let held = store.has_layer(&repository, &blob.digest)? && store.blob(&blob.digest)?.is_some();
                missing += usize::from(!held);
            }
            Ok(missing)
        });
        let subject = image.reference.of(&image.repository);
        match looked.await {
            Ok(0) => Ok(()),
            Ok(count) => Err(WarmError::NotKept { subject, count }),
            Err(error) => Err(Error::Disk { subject, why: error.to_string() }.into()),
        }
    }
}

/// For messages: the platforms of an index, a few of them.
fn offered(manifests: &[Descriptor]) -> String {
    let known = manifests.iter().filter_map(|manifest| manifest.platform.as_ref());
    let mut texts: Vec<String> =
        known.filter(|platform| !platform.is_unknown()).map(ToString::to_string).take(20).collect();
    texts.dedup();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}
