//! Manifests: fetched ones kept, pushed ones committed with all that they name, and their removal.

use bytes::Bytes;

use super::index::named_by;
use super::{Error, Grant, Store, layout};
use crate::oci::{Digest, MANIFEST_CEILING, Repository, Tag};

/// A manifest that was pushed.
#[derive(Clone, Debug)]
pub struct NewManifest {
    /// Its digest by the algorithm that the pusher chose; the bytes are known to have it.
    pub digest: Digest,
    pub bytes: Bytes,
    /// What has to be in the repository before this is.
    pub blobs: Vec<Digest>,
    pub manifests: Vec<Digest>,
    pub tags: Vec<Tag>,
    /// Those of `tags` that may not be moved from one manifest to another.
    pub immutable: Vec<Tag>,
}

/// What came of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestCommit {
    Done,
    /// The repository does not have these.
    Missing(Vec<Digest>),
    /// This tag points to another manifest, and stays.
    Immutable(Tag),
}

/// What came of removing a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    Absent,
    /// It is gone, and with it the tags that pointed to it.
    Removed {
        tags: Vec<Tag>,
    },
    /// This tag points to it, and may not go.
    Immutable(Tag),
}

impl Store {
    /// The digest under which a manifest's bytes are stored. `None`: the repository has no such one.
    pub fn revision(&self, repository: &Repository, digest: &Digest) -> Result<Option<Digest>, Error> {
        self.linked(&layout::revision(repository, digest), digest)
    }

    /// All manifests of a repository, by each of their names.
    pub fn revisions(&self, repository: &Repository) -> Result<Vec<Digest>, Error> {
        self.links_under(|algorithm| layout::revisions(repository, algorithm))
    }

    /// A manifest's bytes, where the repository has it. Bytes that rotted count as missing.
    pub fn manifest(&self, repository: &Repository, digest: &Digest) -> Result<Option<Bytes>, Error> {
        let Some(data) = self.revision(repository, digest)? else { return Ok(None) };
        let Some(bytes) = self.home.read(&layout::data(&data), MANIFEST_CEILING)? else { return Ok(None) };
        if Digest::of(digest.algorithm(), &bytes) != *digest {
            self.metrics.store_errors.inc();
            tracing::error!(%digest, "a manifest on disk has other bytes than its digest says, and is ignored");
            return Ok(None);
        }
        Ok(Some(bytes))
    }

    /// Keeps a fetched manifest: its bytes first, then the link that makes them the repository's.
    pub fn put_manifest(&self, grant: &Grant, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        let _kept = self.leases.keep_data();
        self.leases.renew_data(digest);
        self.ensure_claimed(grant)?;
        self.keep_bytes(digest, bytes)?;
        self.put_revision(&grant.repository, digest, digest, &named_by(bytes))
    }

    /// Stores a manifest's bytes, in place of what may be there.
    fn keep_bytes(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        self.counted(digest, bytes.len() as u64, |key| self.home.put(key, bytes))
    }

    /// Takes a pushed manifest into its repository, with its tags, once all that it names is there.
    /// When this returns `Done`, it and all that it names survive a power loss.
    pub fn commit_manifest(&self, grant: &Grant, manifest: &NewManifest) -> Result<ManifestCommit, Error> {
        let repository = &grant.repository;
        let _links = self.leases.repository(repository);
        let _kept = self.leases.keep_data();
        self.ensure_own(grant)?;
        let data = Digest::sha256(&manifest.bytes);
        for tag in &manifest.immutable {
            let Some(held) = self.tag(repository, tag)? else { continue };
            // By whichever of its names, the same manifest is no move.
            if held.digest != manifest.digest && self.revision(repository, &held.digest)? != Some(data) {
                return Ok(ManifestCommit::Immutable(tag.clone()));
            }
        }
        let missing = self.settle_named(repository, manifest)?;
        if !missing.is_empty() {
            return Ok(ManifestCommit::Missing(missing));
        }
        self.ensure_claimed(grant)?;
        for name in [&manifest.digest, &data] {
            self.leases.renew(repository, name);
        }
        self.keep_bytes(&data, &manifest.bytes)?;
        let names = named_by(&manifest.bytes);
        for name in [&data, &manifest.digest] {
            self.put_revision(repository, name, &data, &names)?;
        }
        for tag in &manifest.tags {
            self.point(repository, tag, &manifest.digest)?;
        }
        Ok(ManifestCommit::Done)
    }

    /// Leases what a manifest names and makes it durable: others may have put it there a moment ago.
    /// Gives what is missing.
    fn settle_named(&self, repository: &Repository, manifest: &NewManifest) -> Result<Vec<Digest>, Error> {
        type Key = fn(&Repository, &Digest) -> String;
        let blobs = manifest.blobs.iter().map(|digest| (digest, layout::layer as Key));
        let manifests = manifest.manifests.iter().map(|digest| (digest, layout::revision as Key));
        let mut missing = Vec::new();
        for (digest, key) in blobs.chain(manifests) {
            let link = key(repository, digest);
            let Some(data) = self.linked(&link, digest)? else {
                missing.push(*digest);
                continue;
            };
            if self.home.stat(&layout::data(&data))?.is_none() {
                missing.push(*digest);
                continue;
            }
            // Only what is there: a manifest can name more than could be remembered.
            self.leases.renew(repository, digest);
            self.leases.renew(repository, &data);
            // Written anew where it is in doubt.
            self.home.put_if_absent(&link, data.to_string().as_bytes())?;
            self.settle_data(&data)?;
        }
        Ok(missing)
    }

    /// Removes a manifest, by this name of it, and all tags that point to it, unless `protected` says
    /// of one that it may not go.
    pub fn remove_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        protected: &dyn Fn(&Tag) -> bool,
    ) -> Result<Removal, Error> {
        let _links = self.leases.repository(repository);
        self.unlink_manifest(repository, digest, protected)
    }

    /// The same for who holds the repository's lock.
    pub(super) fn unlink_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        protected: &dyn Fn(&Tag) -> bool,
    ) -> Result<Removal, Error> {
        let link = layout::revision(repository, digest);
        if self.home.stat(&link)?.is_none() {
            return Ok(Removal::Absent);
        }
        let all = self.tag_directories(repository)?;
        let mut tags = Vec::new();
        for tag in &all {
            if self.tag(repository, tag)?.is_some_and(|held| held.digest == *digest) {
                tags.push(tag.clone());
            }
        }
        if let Some(tag) = tags.iter().find(|tag| protected(tag)) {
            return Ok(Removal::Immutable(tag.clone()));
        }
        // Tags first: none may point to what is gone, nor come back to do so.
        for tag in &all {
            if tags.contains(tag) || self.home.stat(&layout::tag_current(repository, tag))?.is_none() {
                self.drop_tag(repository, tag)?;
            } else {
                self.home.delete_tree(&layout::tag_history(repository, tag, digest))?;
            }
        }
        self.unlink_revision(repository, digest)?;
        Ok(Removal::Removed { tags })
    }
}
