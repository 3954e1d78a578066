//! Content that the operator brings and takes away, on a disk or a stick. What is brought is held from
//! then on as if it had been pulled at that moment: an upstream that can be asked is asked as usual.

use std::future::ready;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::Semaphore;

use super::Mirror;
use super::memory::Subject;
use super::standing::Standing;
use crate::answer::Error;
use crate::oci::{
    Descriptor, Digest, InvalidManifest, MANIFEST_MAX, Manifest, ManifestKind, Reference, Referrer,
    Repository, Tag,
};
use crate::store::{
    Demand, FillError, Grant, Place, ReadError, Source, SourceError, SourceStream, Start, Store,
};
use crate::tasks::lock;

/// How often in a row somebody's fill of the same blob may come to nothing.
const RACES: usize = 4;

/// Why what was brought is not held.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BringError {
    #[error(transparent)]
    Content(#[from] Error),
    #[error("what came for {wanted} is {actual}")]
    Digest { wanted: Box<Digest>, actual: Box<Digest> },
    #[error("{0} did not come whole: {1}")]
    Broken(Digest, String),
    #[error("{0} came and could not be kept: is there room in the cache?")]
    NotKept(Digest),
    #[error("manifest {0} cannot be kept: {1}")]
    Manifest(Digest, InvalidManifest),
    #[error("manifest {0} is larger than {MANIFEST_MAX} bytes, which clients do not take")]
    TooLarge(Digest),
    #[error("manifest {manifest} names blob {blob}, which {repository} does not have: bring that first")]
    Lacks { manifest: Digest, blob: Digest, repository: Repository },
}

impl Mirror {
    /// Refuses to give out or take in what not everybody may have who may pull here.
    pub async fn may_be_carried(&self, repository: &Repository) -> Result<(), Error> {
        self.carried(repository).await.map(drop)
    }

    async fn carried(&self, repository: &Repository) -> Result<Arc<Standing>, Error> {
        let standing = self.standing(repository).await?;
        if standing.is_open() {
            return Ok(standing);
        }
        let why = "what is held of it was pulled with a login, and is not for everybody who may pull here";
        Err(Error::Denied { subject: repository.to_string(), why: why.to_owned() })
    }

    /// Which of these blobs are to be brought. Those that another repository of the same upstream has are
    /// linked.
    pub async fn wanted(&self, repository: &Repository, blobs: Vec<Digest>) -> Result<Vec<Digest>, Error> {
        let grant = self.grant(repository, &*self.carried(repository).await?)?;
        let of = repository.clone();
        let looked = self.store.run(move |store| {
            let mut wanted = Vec::new();
            for blob in blobs {
                if store.has_layer(&of, &blob)? && store.blob(&blob)?.is_some() {
                    continue;
                }
                if store.is_proven(&grant, &blob)? {
                    store.link_layer(&grant, &blob)?
                } else {
                    wanted.push(blob)
                }
            }
            Ok(wanted)
        });
        let looked = looked.await;
        self.memory.standings.invalidate(repository);
        looked.map_err(|error| disk(repository, &error))
    }

    /// Takes a blob of `size` bytes. When this returns, it is on disk, verified and durable.
    pub async fn bring_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
        bytes: BoxStream<'static, Result<Bytes, String>>,
    ) -> Result<(), BringError> {
        let grant = self.grant(repository, &*self.carried(repository).await?)?;
        let source =
            Arc::new(Carried { size, bytes: Mutex::new(Some(bytes)), place: Arc::new(Semaphore::new(1)) });
        for _ in 0..RACES {
            if self.has_bytes(repository, digest).await? {
                self.memory.standings.invalidate(repository);
                self.memory.allow(repository, Subject::Blob(*digest));
                return Ok(());
            }
            if source.is_spent() {
                break;
            }
            // A link without its data is no reason to leave it.
            let is_linked =
                self.store.has_layer(repository, digest).map_err(|error| disk(repository, &error))?;
            let started =
                self.store.start_fill(&grant, digest, source.clone(), Demand::Whole, !is_linked).await;
            let fill = match started {
                Start::Reading(mut reader) => {
                    reader.fill().want_whole();
                    while let Some(piece) = reader.next().await {
                        match piece {
                            Err(error) if source.is_spent() => return Err(broken(digest, error)),
                            // It was to come from upstream, for who asked before.
                            Err(_) => break,
                            Ok(_) => {}
                        }
                    }
                    Some(reader.fill().clone())
                }
                // For another repository; this one's right to it is the operator's word.
                Start::Unproven => self.store.fill(&grant, digest, 0).filter(|fill| fill.link_later(&grant)),
                Start::Held => None,
            };
            if let Some(fill) = fill {
                self.ended(&fill).await;
            }
            let (grant, digest) = (grant.clone(), *digest);
            let linked = self.store.run(move |store| match store.is_proven(&grant, &digest)? {
                true => store.link_layer(&grant, &digest),
                false => Ok(()),
            });
            linked.await.map_err(|error| disk(repository, &error))?;
        }
        Err(BringError::NotKept(*digest))
    }

    async fn has_bytes(&self, repository: &Repository, digest: &Digest) -> Result<bool, Error> {
        let (of, digest) = (repository.clone(), *digest);
        let looked =
            self.store.run(move |store| Ok(store.has_layer(&of, &digest)? && store.blob(&digest)?.is_some()));
        looked.await.map_err(|error| disk(repository, &error))
    }

    /// Takes a manifest, and has the tag point to it.
    pub async fn bring_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        tag: Option<Tag>,
        bytes: Bytes,
    ) -> Result<(), BringError> {
        if bytes.len() > MANIFEST_MAX {
            return Err(BringError::TooLarge(*digest));
        }
        let actual = Digest::of(digest.algorithm(), &bytes);
        if actual != *digest {
            return Err(BringError::Digest { wanted: Box::new(*digest), actual: Box::new(actual) });
        }
        let manifest = Manifest::parse(&bytes, None).map_err(|error| BringError::Manifest(*digest, error))?;
        let grant = self.grant(repository, &*self.carried(repository).await?)?;
        let (of, seen) = (*digest, self.clock.wall());
        let (named, subject) = (tag.clone(), manifest.subject.as_ref().map(|subject| subject.digest));
        let (blobs, referrer) = (blobs(&manifest), referrer(&manifest, digest, bytes.len()));
        // What was pulled before is not to overwrite what is brought now.
        self.writes.settled(repository).await;
        let done = self.store.run(move |store| {
            let repository = &grant.repository;
            for blob in blobs {
                if !store.has_layer(repository, &blob)? {
                    return Ok(Some(blob));
                }
            }
            store.put_manifest(&grant, &of, &bytes)?;
            if let Some(tag) = &named {
                store.put_tag(&grant, tag, &of, seen)?;
            }
            if let Some(subject) = subject {
                list(store, &grant, &subject, referrer)?;
            }
            Ok(None)
        });
        if let Some(blob) = done.await.map_err(|error| disk(repository, &error))? {
            return Err(BringError::Lacks { manifest: *digest, blob, repository: repository.clone() });
        }
        self.forget_absence(repository, digest, tag, subject);
        Ok(())
    }

    /// What was in memory of these is read anew.
    fn forget_absence(
        &self,
        repository: &Repository,
        digest: &Digest,
        tag: Option<Tag>,
        subject: Option<Digest>,
    ) {
        self.memory.standings.invalidate(repository);
        self.memory.lists.invalidate(repository);
        let references = [Some(Reference::Digest(*digest)), tag.clone().map(Reference::Tag)];
        references.into_iter().flatten().for_each(|of| self.memory.allow(repository, Subject::Manifest(of)));
        if let Some(tag) = tag {
            self.memory.tags.invalidate(&(repository.clone(), tag));
        }
        if let Some(subject) = subject {
            self.memory.referrers.invalidate(&(repository.clone(), subject));
            self.memory.allow(repository, Subject::Referrers(subject));
        }
    }
}

/// The blobs that have to be there.
fn blobs(manifest: &Manifest) -> Vec<Digest> {
    let here =
        |blobs: &[Descriptor]| blobs.iter().filter(|blob| !blob.foreign).map(|blob| blob.digest).collect();
    match &manifest.kind {
        ManifestKind::Image { config, layers } => here(&[vec![config.clone()], layers.clone()].concat()),
        ManifestKind::Artifact { blobs } => here(blobs),
        ManifestKind::Index { .. } => Vec::new(),
    }
}

/// What a list of referrers says of a manifest.
fn referrer(manifest: &Manifest, digest: &Digest, size: usize) -> Referrer {
    Referrer {
        media_type: manifest.media_type.to_string(),
        digest: digest.to_string(),
        size: size as u64,
        artifact_type: manifest.referrer_type().map(str::to_owned),
        annotations: manifest.annotations.clone(),
    }
}

/// Adds a referrer to the list that is kept of a manifest's. When upstream last told that is left as it was:
/// it is asked as soon as it can be.
fn list(
    store: &Store,
    grant: &Grant,
    subject: &Digest,
    referrer: Referrer,
) -> Result<(), crate::store::Error> {
    let held = store.referrers(&grant.repository, subject)?;
    let (mut all, index, seen) = match held {
        Some(held) => (held.referrers, held.index, held.seen),
        None => (Vec::new(), None, std::time::SystemTime::UNIX_EPOCH),
    };
    if all.iter().any(|one| one.digest == referrer.digest) {
        return Ok(());
    }
    all.push(referrer);
    store.put_referrers(grant, subject, &all, index, seen)
}

fn disk(repository: &Repository, error: &crate::store::Error) -> Error {
    Error::Disk { subject: repository.to_string(), why: error.to_string() }
}

fn broken(digest: &Digest, error: ReadError) -> BringError {
    match error {
        ReadError::Fill(FillError::Corrupt(actual)) => {
            BringError::Digest { wanted: Box::new(*digest), actual: Box::new(actual) }
        }
        error => BringError::Broken(*digest, error.to_string()),
    }
}

/// A blob that comes once, from its beginning.
struct Carried {
    size: u64,
    bytes: Mutex<Option<BoxStream<'static, Result<Bytes, String>>>>,
    place: Arc<Semaphore>,
}

impl Carried {
    fn is_spent(&self) -> bool {
        lock(&self.bytes).is_none()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Lost(String);

fn failure(why: String) -> SourceError {
    SourceError { retry: false, refused: false, error: Arc::new(Lost(why)) }
}

impl Source for Carried {
    fn spare_place(&self) -> Option<Place> {
        None
    }

    fn place(&self) -> BoxFuture<'_, Result<Place, SourceError>> {
        let place = self.place.clone();
        async move { place.acquire_owned().await.map(Arc::new).map_err(|gone| failure(gone.to_string())) }
            .boxed()
    }

    fn open(&self, _: Place, _: u64, _: Option<u64>) -> BoxFuture<'_, Result<SourceStream, SourceError>> {
        let bytes = lock(&self.bytes).take();
        let opened = bytes.ok_or_else(|| failure("it ended before its end".to_owned())).map(|bytes| {
            let stream = bytes.map(|piece| piece.map_err(failure)).boxed();
            SourceStream { start: 0, total: Some(self.size), bounded: false, stream }
        });
        ready(opened).boxed()
    }
}
