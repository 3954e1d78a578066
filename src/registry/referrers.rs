//! Who refers to a manifest: an index in memory, made from the tree when it is first asked for.
//!
//! It can be thrown away at any time. The tree of CNCF distribution has no such index, so a
//! repository's manifests are read once; what is put and deleted from then on is followed. What a
//! referrer says of itself may be as large as a manifest, so that is read whenever it is listed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use moka::sync::Cache;

use crate::answer::{Error, Referrer};
use crate::oci::{self, Digest, Manifest, Repository, Tag};
use crate::store::{self, Store};
use crate::tasks::{Flights, Tasks, lock};

/// Referrers in all indexes together: some 64 MiB. An index with more is made anew each time.
const ENTRIES_MAX: u64 = 200_000;
const FORGET_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes of what one manifest's referrers say of themselves, at most: more is not listed.
const ONE_BYTES_MAX: usize = 32 << 20;

type Kept = Result<Arc<Mutex<Index>>, store::Error>;

/// The indexes of all repositories. Clones share them.
#[derive(Clone)]
pub struct Referrers {
    known: Cache<Repository, Arc<Mutex<Index>>>,
    /// What has changed in a repository while its manifests are read for the first time.
    building: Arc<Mutex<HashMap<Repository, HashSet<Digest>>>>,
    flights: Arc<Flights<Repository, Kept>>,
}

/// The referrers in one repository.
#[derive(Default)]
struct Index {
    by_subject: HashMap<Digest, BTreeSet<Digest>>,
    subjects: HashMap<Digest, Digest>,
}

impl Referrers {
    pub fn new(tasks: Tasks) -> Self {
        let weight = |_: &Repository, index: &Arc<Mutex<Index>>| {
            u32::try_from(lock(index).subjects.len().saturating_add(1)).unwrap_or(u32::MAX)
        };
        let known =
            Cache::builder().max_capacity(ENTRIES_MAX).weigher(weight).time_to_idle(FORGET_AFTER).build();
        Self { known, building: Arc::default(), flights: Arc::new(Flights::new(tasks, "referrers")) }
    }

    /// What refers to `subject` in a repository, and what its fallback tag lists besides, sorted by
    /// digest.
    pub async fn of(
        &self,
        store: &Arc<Store>,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Vec<Referrer>, store::Error> {
        let index = match self.known.get(repository) {
            Some(index) => index,
            None => self.index(store, repository).await?,
        };
        let (of, subject) = (repository.clone(), *subject);
        store.run(move |store| all(store, &of, &subject, &index)).await
    }

    async fn index(&self, store: &Arc<Store>, repository: &Repository) -> Kept {
        let (this, home, of) = (self.clone(), store.clone(), repository.clone());
        let work = || async move { home.run(move |store| this.build(store, &of)).await };
        // None: it was ended by shutdown.
        self.flights.join(repository.clone(), work).await.unwrap_or_else(|| Ok(Arc::default()))
    }

    fn build(&self, store: &Store, repository: &Repository) -> Kept {
        lock(&self.building).insert(repository.clone(), HashSet::new());
        let read = Index::of(store, repository);
        let mut building = lock(&self.building);
        let changed = building.remove(repository).unwrap_or_default();
        let mut index = read?;
        for digest in changed {
            index.read(store, repository, &digest)?;
        }
        let index = Arc::new(Mutex::new(index));
        self.known.insert(repository.clone(), index.clone());
        Ok(index)
    }

    /// A manifest was kept or removed. What the tree says now counts, so that it does not matter in
    /// which order two such changes are told. Blocks.
    pub fn changed(
        &self,
        store: &Store,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), store::Error> {
        let mut building = lock(&self.building);
        if let Some(changed) = building.get_mut(repository) {
            changed.insert(*digest);
        } else if let Some(index) = self.known.get(repository) {
            lock(&index).read(store, repository, digest)?;
            // Put in again, it is weighed again.
            self.known.insert(repository.clone(), index);
        }
        Ok(())
    }
}

impl Index {
    /// Of all manifests that the repository has.
    fn of(store: &Store, repository: &Repository) -> Result<Self, store::Error> {
        let mut index = Self::default();
        let mut revisions = store.revisions(repository)?;
        // sha512 last: it takes the place of its sha256.
        revisions.sort_by_key(Digest::algorithm);
        for digest in revisions {
            index.read(store, repository, &digest)?;
        }
        Ok(index)
    }

    /// Notes what the tree has of this manifest.
    fn read(&mut self, store: &Store, repository: &Repository, digest: &Digest) -> Result<(), store::Error> {
        self.remove(digest);
        let Some(bytes) = store.manifest(repository, digest)? else { return Ok(()) };
        // What was pushed by its sha512 has its sha256 as a name too, and is listed once.
        if let Some(data) = store.revision(repository, digest)?.filter(|data| data != digest) {
            self.remove(&data);
        }
        let Ok(manifest) = Manifest::parse(&bytes, None) else { return Ok(()) };
        if let Some(subject) = manifest.subject {
            self.add(subject.digest, *digest);
        }
        Ok(())
    }

    fn add(&mut self, subject: Digest, digest: Digest) {
        self.subjects.insert(digest, subject);
        self.by_subject.entry(subject).or_default().insert(digest);
    }

    fn remove(&mut self, digest: &Digest) {
        let Some(subject) = self.subjects.remove(digest) else { return };
        let Some(of_subject) = self.by_subject.get_mut(&subject) else { return };
        of_subject.remove(digest);
        if of_subject.is_empty() {
            self.by_subject.remove(&subject);
        }
    }
}

/// What a list says of a manifest (OCI distribution-spec, "Listing Referrers").
fn referrer(manifest: Manifest, digest: &Digest, size: u64) -> Referrer {
    Referrer {
        media_type: manifest.media_type.to_string(),
        digest: digest.to_string(),
        size,
        artifact_type: manifest.referrer_type().map(str::to_owned),
        annotations: manifest.annotations.filter(|annotations| !annotations.is_empty()),
    }
}

/// Bytes in memory, roughly.
fn weight(referrer: &Referrer) -> usize {
    let annotations = referrer.annotations.iter().flatten();
    let annotations: usize = annotations.map(|(key, value)| key.len() + value.len() + 64).sum();
    let texts = referrer.media_type.len() + referrer.artifact_type.as_ref().map_or(0, String::len);
    512 + texts + annotations
}

/// What the repository has, and what its fallback tag lists besides. Blocks.
fn all(
    store: &Store,
    repository: &Repository,
    subject: &Digest,
    index: &Mutex<Index>,
) -> Result<Vec<Referrer>, store::Error> {
    let found = lock(index).by_subject.get(subject).cloned().unwrap_or_default();
    let own = found.iter().map(|digest| Ok(store.manifest(repository, digest)?.map(|bytes| (digest, bytes))));
    let own = own.filter_map(Result::transpose).map(|found| {
        let (digest, bytes) = found?;
        let size = bytes.len() as u64;
        Ok(Manifest::parse(&bytes, None).ok().map(|manifest| referrer(manifest, digest, size)))
    });
    let listed = listed(store, repository, subject)?.into_iter().map(Ok);
    let mut bytes = 0;
    let mut all = BTreeMap::new();
    for referrer in own.filter_map(Result::transpose).chain(listed) {
        let referrer: Referrer = referrer?;
        bytes += weight(&referrer);
        if bytes > ONE_BYTES_MAX {
            tracing::warn!(%repository, %subject, "more refers to it than is listed");
            break;
        }
        all.entry(referrer.digest.clone()).or_insert(referrer);
    }
    Ok(all.into_values().collect())
}

fn listed(store: &Store, repository: &Repository, subject: &Digest) -> Result<Vec<Referrer>, store::Error> {
    let Some(held) = store.tag(repository, &Tag::of_referrers(subject))? else { return Ok(Vec::new()) };
    let Some(bytes) = store.manifest(repository, &held.digest)? else { return Ok(Vec::new()) };
    // Anything may stand under that name.
    Ok(oci::referrers(&bytes).ok().flatten().unwrap_or_default())
}

/// For the registry's answer to a failure.
pub fn failed(repository: &Repository, error: &store::Error) -> Error {
    tracing::error!(%repository, %error, "referrers cannot be read");
    Error::Disk { subject: format!("the referrers in {repository}"), why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_follows_what_comes_and_goes() {
        let digest = |n: u8| Digest::sha256(&[n]);
        let mut index = Index::default();
        index.add(digest(0), digest(1));
        index.add(digest(0), digest(2));
        assert_eq!(index.by_subject[&digest(0)].len(), 2);
        index.remove(&digest(1));
        index.remove(&digest(9));
        index.remove(&digest(2));
        assert!(index.by_subject.is_empty() && index.subjects.is_empty());
    }
}
