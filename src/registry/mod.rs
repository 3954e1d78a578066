//! Hosted repositories: read from the tree, where nothing is fetched for them, and written to.
//!
//! [`uploads`] brings blobs in, [`push`] manifests, [`delete`] takes them away, and [`referrers`] says
//! what refers to what. [`collect`] removes what nobody needs, by the rules of [`retention`] too.

mod collect;
mod delete;
mod error;
mod push;
mod referrers;
mod retention;
mod uploads;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use self::referrers::Referrers;
use self::uploads::Uploads;
use crate::answer::{BlobAnswer, BlobWant, Error, ManifestAnswer, ReferrersAnswer, Served, TagsAnswer};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::oci::{Digest, Manifest, Owner, Reference, Repository, Tag, TagPattern};
use crate::store::{self, Grant, OriginState, Store, Trouble, Visibility};
use crate::tasks::Tasks;

pub use self::collect::{CollectError, Collector, Options as CollectOptions, Totals};
pub use self::error::{Interrupted, PushError};
pub use self::push::{Naming, Pushed};
pub use self::retention::Rule;
pub use self::uploads::{Chunks, Turn};
pub use crate::store::{Removed, What};

/// What is configured of hosted repositories.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Whether tags, manifests and blobs may be deleted.
    pub delete: bool,
    /// Tags that, once there, are neither moved nor deleted.
    pub immutable: Vec<TagPattern>,
    /// How long an unfinished upload is kept that nobody adds to.
    pub upload_age: Duration,
    /// Unfinished uploads at once.
    pub max_uploads: usize,
    /// Bytes of one manifest.
    pub max_manifest: usize,
}

impl Options {
    /// The pattern that keeps a tag from being changed.
    pub fn immutability(&self, repository: &Repository, tag: &Tag) -> Option<&str> {
        let pattern = self.immutable.iter().find(|pattern| pattern.matches(repository, tag));
        pattern.map(TagPattern::as_str)
    }
}

/// How often uploads are looked after, at most and at least.
const TEND_EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3600));

/// Walks through the whole tree at once, however many ask for the catalog: the disk and its threads are
/// for pulls and pushes first.
const WALKS: usize = 2;

pub struct Hosted {
    options: Options,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    uploads: Arc<Uploads>,
    referrers: Referrers,
    walks: Arc<Semaphore>,
}

/// What is pushed here is of one trust domain, and public within the policy.
fn grant(repository: &Repository) -> Grant {
    Grant { repository: repository.clone(), domain: "hosted".into(), visibility: Visibility::Public }
}

impl Hosted {
    pub fn new(
        options: Options,
        store: Arc<Store>,
        metrics: Arc<Metrics>,
        clock: Clock,
        tasks: Tasks,
    ) -> Self {
        let uploads = Uploads::new(store.clone(), metrics.clone(), clock, tasks.clone());
        let (referrers, walks) = (Referrers::new(tasks), Arc::new(Semaphore::new(WALKS)));
        Self { options, store, metrics, uploads, referrers, walks }
    }

    /// The same under other options: what is under way goes on.
    pub fn with(&self, options: Options) -> Self {
        Self {
            options,
            store: self.store.clone(),
            metrics: self.metrics.clone(),
            uploads: self.uploads.clone(),
            referrers: self.referrers.clone(),
            walks: self.walks.clone(),
        }
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Why nothing can be pushed now, if nothing can.
    pub fn trouble(&self) -> Option<Trouble> {
        self.store.trouble()
    }

    /// Removes uploads that are older than configured, counts what a former process left, and says how
    /// long to wait until the next time.
    pub async fn tend_uploads(&self) -> (Result<(), store::Error>, Duration) {
        let tended = self.uploads.tend(self.options.upload_age).await;
        (tended, (self.options.upload_age / 4).clamp(TEND_EVERY.0, TEND_EVERY.1))
    }

    /// A manifest was removed by somebody else than a client: what referred by it does no more. Blocks.
    pub fn manifest_removed(&self, repository: &Repository, digest: &Digest) -> Result<(), store::Error> {
        self.referrers.changed(&self.store, repository, digest)
    }

    /// Runs disk work for a repository, after the check that it is a hosted one.
    async fn read<T: Send + 'static>(
        &self,
        repository: &Repository,
        work: impl FnOnce(&Store, &Repository) -> Result<Option<T>, store::Error> + Send + 'static,
    ) -> Result<Option<T>, Error> {
        let of = repository.clone();
        let read = self.store.run(move |store| match store.origin(&of)? {
            OriginState::Absent => Ok(Ok(None)),
            OriginState::Known(origin) if origin.owner != Owner::Hosted => Ok(Err(origin.owner)),
            OriginState::Known(_) | OriginState::Unknown => work(store, &of).map(Ok),
        });
        let subject = repository.to_string();
        match read.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(owner)) => {
                let why = format!(
                    "the data directory holds a repository of this name that was mirrored from {owner}, so it is \
                     not served as a hosted one"
                );
                Err(Error::Origin { subject, why })
            }
            Err(error) => {
                tracing::error!(%repository, %error, "hosted content cannot be read");
                Err(Error::Disk { subject, why: error.to_string() })
            }
        }
    }

    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        body: bool,
    ) -> Result<ManifestAnswer, Error> {
        let wanted = reference.clone();
        let found = self.read(repository, move |store, repository| {
            let digest = match wanted {
                Reference::Digest(digest) => Some(digest),
                Reference::Tag(tag) => store.tag(repository, &tag)?.map(|tag| tag.digest),
            };
            let Some(digest) = digest else { return Ok(None) };
            match store.manifest(repository, &digest)? {
                Some(bytes) => Ok(Some(Some((digest, bytes)))),
                None => Ok(store.revision(repository, &digest)?.map(|_| None)),
            }
        });
        let subject = reference.of(repository);
        let (digest, bytes) = there(found.await?, body, &subject)?;
        let manifest = Manifest::parse(&bytes, None)
            .map_err(|error| Error::Unfit { subject, why: format!("what is stored is {error}") })?;
        let (media_type, size) = (manifest.media_type, bytes.len() as u64);
        Ok(ManifestAnswer { digest, media_type, size, bytes: Some(bytes), served: Served::Hit })
    }

    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        want: BlobWant,
    ) -> Result<BlobAnswer, Error> {
        let wanted = *digest;
        let found =
            self.read(repository, move |store, repository| match store.layer(repository, &wanted)? {
                Some(stored) if store.is_unreadable(&stored) => Ok(Some(None)),
                Some(stored) => store.blob(&stored).map(Some),
                None => Ok(None),
            });
        let body = want != BlobWant::Head;
        let held = there(found.await?, body, &format!("blob {digest} of {repository}"))?;
        let size = held.len;
        let range = match want {
            BlobWant::Range(range) => Some(range.resolve(size).map_err(|_| Error::Range { size })?),
            BlobWant::Head | BlobWant::Whole => None,
        };
        let body = body.then(|| self.store.read(held, range));
        Ok(BlobAnswer { size: Some(size), range, body, served: Served::Hit })
    }

    pub async fn tags(&self, repository: &Repository) -> Result<TagsAnswer, Error> {
        let tags = self.read(repository, |store, repository| store.tags(repository).map(Some)).await?;
        let tags = tags.ok_or_else(|| Error::NotFound(repository.to_string()))?;
        Ok(TagsAnswer { tags, served: Served::Hit })
    }

    /// What refers to a manifest, whether that is here or not, sorted by digest.
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<ReferrersAnswer, Error> {
        let known = self.read(repository, |_, _| Ok(Some(()))).await?;
        let mut all = Vec::new();
        if known.is_some() {
            let found = self.referrers.of(&self.store, repository, subject).await;
            all = found.map_err(|error| referrers::failed(repository, &error))?;
        }
        Ok(ReferrersAnswer { referrers: Arc::new(all), served: Served::Hit })
    }

    /// All repositories that are held, by their names in the tree, sorted.
    pub async fn held(&self) -> Result<Vec<(String, OriginState)>, Error> {
        let failed =
            |error: store::Error| Error::Disk { subject: "the catalog".to_owned(), why: error.to_string() };
        // Fails only where the semaphore is closed, which it never is. Who leaves does not end the walk.
        let place = self.walks.clone().acquire_owned().await;
        let walk = move |store: &Store| {
            let _place = place;
            store.repositories()
        };
        self.store.run(walk).await.map_err(failed)
    }

    /// Whether any repository may have this blob.
    pub async fn is_stored(&self, digest: &Digest) -> Result<bool, PushError> {
        // Bytes with a sha512 name stand under their sha256.
        let digest = *digest;
        let known = self
            .store
            .run(move |store| Ok(matches!(digest, Digest::Sha512(_)) || store.blob(&digest)?.is_some()));
        Ok(known.await?)
    }
}

/// What was found, where its bytes are there as well. That a repository has what the disk has lost would
/// be a lie to deny, but for a HEAD: a pusher takes that for a request to send it again.
fn there<T>(found: Option<Option<T>>, body: bool, subject: &str) -> Result<T, Error> {
    match found {
        Some(Some(found)) => Ok(found),
        Some(None) if body => {
            let why = "the disk has lost it, or holds other bytes than its digest says, or fails to read it: push \
                       it again";
            Err(Error::Disk { subject: subject.to_owned(), why: why.to_owned() })
        }
        _ => Err(Error::NotFound(subject.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::disk::hooked::Hooked;
    use crate::disk::{Disk, RealDisk};

    #[tokio::test]
    async fn the_catalog_waits_while_others_walk_through_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let (metrics, clock, tasks) = (Arc::new(Metrics::new()), Clock::default(), Tasks::default());
        let options = crate::store::tests::options(dir.path());
        let store = Store::open(options, Arc::new(RealDisk), metrics.clone(), clock.clone(), tasks.clone());
        let options = Options {
            delete: true,
            immutable: Vec::new(),
            upload_age: Duration::from_secs(60),
            max_uploads: 1,
            max_manifest: 1,
        };
        let hosted = Hosted::new(options.clone(), store.unwrap(), metrics, clock, tasks);
        let walking = hosted.walks.acquire_many(WALKS as u32).await.unwrap();
        let later = hosted.with(options);
        assert!(tokio::time::timeout(Duration::from_millis(20), later.held()).await.is_err());
        drop(walking);
        assert_eq!(later.held().await.unwrap(), []);
    }

    /// A pusher sends it again, and nobody else is told that it never was.
    #[tokio::test]
    async fn what_the_disk_fails_to_read_counts_as_lost() {
        let (dir, fails) = (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
        let failing = fails.clone();
        let open = move |path: &Path| match path.ends_with("data") && failing.load(Ordering::SeqCst) {
            true => Err(std::io::Error::from_raw_os_error(5)),
            false => RealDisk.open(path),
        };
        let disk = Arc::new(Hooked { open: Box::new(open), ..Hooked::default() });
        let (metrics, clock, tasks) = (Arc::new(Metrics::new()), Clock::default(), Tasks::default());
        let options = crate::store::tests::options(dir.path());
        let store = Store::open(options, disk, metrics.clone(), clock.clone(), tasks.clone()).unwrap();
        let options = Options {
            delete: true,
            immutable: vec![],
            upload_age: Duration::MAX,
            max_uploads: 1,
            max_manifest: 1,
        };
        let hosted = Hosted::new(options, store.clone(), metrics, clock, tasks);
        let [a, b] = ["a", "b"].map(|name| Repository { owner: Owner::Hosted, name: name.parse().unwrap() });
        let digest = Digest::sha256(b"content");
        let mut upload = store.start_upload(&grant(&a), crate::oci::UploadId::random()).await.unwrap();
        upload.write(bytes::Bytes::from_static(b"content")).await.unwrap();
        upload.commit(&digest).await.unwrap();
        fails.store(true, Ordering::SeqCst);
        store.check(&digest, &mut |_| true).unwrap();
        fails.store(false, Ordering::SeqCst);
        let head = hosted.blob(&a, &digest, BlobWant::Head).await;
        assert!(matches!(head.err(), Some(Error::NotFound(_))));
        let get = hosted.blob(&a, &digest, BlobWant::Whole).await;
        assert!(matches!(get.err(), Some(Error::Disk { why, .. }) if why.contains("push it again")));
        assert!(hosted.mount(&b, vec![a.clone()], &digest).await.unwrap().is_none());
        store.check(&digest, &mut |_| true).unwrap();
        assert!(hosted.blob(&a, &digest, BlobWant::Head).await.is_ok());
    }
}
