//! Links: which blobs a repository has, and under which digest their bytes are stored.

use super::index::Event;
use super::{Error, Grant, OriginState, Store, layout};
use crate::oci::{Algorithm, Digest, Owner, Repository};

/// A link file holds a digest, nothing else.
pub(super) const LINK_MAX: usize = 256;

pub(super) const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

impl Store {
    /// The digest in a link file. One that holds no digest counts as missing, and is named.
    pub(super) fn link(&self, key: &str) -> Result<Option<Digest>, Error> {
        let Some(text) = self.home.read(key, LINK_MAX)? else { return Ok(None) };
        let digest = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        if digest.is_none() {
            tracing::warn!(key, "a link file holds no digest and is ignored");
        }
        Ok(digest)
    }

    /// Where the link of `digest` leads: to itself, or from a sha512 to the sha256 of the same bytes.
    /// Any other link counts as missing.
    pub(super) fn linked(&self, key: &str, digest: &Digest) -> Result<Option<Digest>, Error> {
        let other_name =
            |to: &Digest| digest.algorithm() == Algorithm::Sha512 && to.algorithm() == Algorithm::Sha256;
        Ok(self.link(key)?.filter(|to| to == digest || other_name(to)))
    }

    /// The digest under which the bytes of a blob are stored. `None`: the repository has no such blob.
    pub fn layer(&self, repository: &Repository, digest: &Digest) -> Result<Option<Digest>, Error> {
        self.linked(&layout::layer(repository, digest), digest)
    }

    /// Whether the repository has this blob.
    pub fn has_layer(&self, repository: &Repository, digest: &Digest) -> Result<bool, Error> {
        Ok(self.layer(repository, digest)?.is_some())
    }

    /// All blobs that are linked in a repository, by each of their names.
    pub fn layers(&self, repository: &Repository) -> Result<Vec<Digest>, Error> {
        self.links_under(|algorithm| layout::layers(repository, algorithm))
    }

    /// The digests that have a link, of the directories of both algorithms.
    pub(super) fn links_under(&self, dir: impl Fn(Algorithm) -> String) -> Result<Vec<Digest>, Error> {
        let mut found = Vec::new();
        for algorithm in ALGORITHMS {
            let dir = dir(algorithm);
            for entry in self.home.list(&dir)?.iter().filter(|entry| entry.is_dir) {
                let Some(hex) = entry.name.to_str() else { continue };
                let Ok(digest) = format!("{}:{hex}", algorithm.as_str()).parse() else { continue };
                if self.home.stat(&format!("{dir}/{hex}/link"))?.is_some() {
                    found.push(digest);
                }
            }
        }
        Ok(found)
    }

    /// Gives a mirrored repository a blob whose bytes were fetched in its trust domain, and are still held.
    pub fn link_layer(&self, grant: &Grant, digest: &Digest) -> Result<(), Error> {
        let _kept = self.leases.keep_data();
        self.leases.renew_data(digest);
        // It may have been evicted since that was seen.
        if self.home.stat(&layout::data(digest))?.is_none() {
            return Ok(());
        }
        self.link_fetched(grant, digest)
    }

    /// The same for who keeps the data from being removed.
    pub(super) fn link_fetched(&self, grant: &Grant, digest: &Digest) -> Result<(), Error> {
        self.ensure_claimed(grant)?;
        self.home.put_if_absent(&layout::proof(&grant.domain, digest), b"")?;
        self.put_layer(&grant.repository, digest, digest)
    }

    /// The directories in which the trust domains' proofs stand.
    pub(super) fn proof_domains(&self) -> Result<Vec<String>, Error> {
        let entries = self.home.list(layout::PROOFS_DIR)?.into_iter().filter(|entry| entry.is_dir);
        Ok(entries.filter_map(|entry| entry.name.into_string().ok()).collect())
    }

    /// Whether the blob seems to be held, and its bytes were fetched in this trust domain. Waits for nobody.
    pub(super) fn looks_proven(&self, grant: &Grant, digest: &Digest) -> Result<bool, Error> {
        // Whoever removes data may hold it for as long as the disk stands still.
        Ok(self.home.stat(&layout::proof(&grant.domain, digest))?.is_some()
            && !self.health.is_stalled()
            && self.home.stat(&layout::data(digest))?.is_some())
    }

    /// Whether it is, for sure. Its data is leased: who asks is about to link it. Blocks.
    pub fn is_proven(&self, grant: &Grant, digest: &Digest) -> Result<bool, Error> {
        if !self.looks_proven(grant, digest)? {
            // Anybody may ask for anything: what is not here takes no place among the leases.
            return Ok(false);
        }
        let _kept = self.leases.keep_data();
        self.leases.renew_data(digest);
        Ok(self.home.stat(&layout::data(digest))?.is_some())
    }

    /// Gives a repository a blob whose bytes are stored as `data`, by the name it was pushed by and
    /// by that of the data. Only with the repository's lock held.
    pub(super) fn link_pushed(
        &self,
        repository: &Repository,
        digest: &Digest,
        data: &Digest,
    ) -> Result<(), Error> {
        self.put_layer(repository, digest, data)?;
        if data == digest { Ok(()) } else { self.put_layer(repository, data, data) }
    }

    fn put_layer(&self, repository: &Repository, name: &Digest, data: &Digest) -> Result<(), Error> {
        let (key, at) = (layout::layer(repository, name), self.now());
        let (repository, name) = (repository.stored_name(), *name);
        let gone = Event::LayerGone { repository: repository.clone(), name };
        self.put_link(&key, data, Event::Layer { repository, name, data: *data, at }, gone)
    }

    /// Says that a repository has a manifest, by this name of it.
    pub(super) fn put_revision(
        &self,
        repository: &Repository,
        name: &Digest,
        data: &Digest,
        names: &[Digest],
    ) -> Result<(), Error> {
        let (key, at) = (layout::revision(repository, name), self.now());
        let (repository, name, names) = (repository.stored_name(), *name, names.to_vec());
        let gone = Event::ManifestGone { repository: repository.clone(), name };
        self.put_link(&key, data, Event::Manifest { repository, name, data: *data, names, at }, gone)
    }

    /// A link counts before it is made, and where it could not be, until it is seen not to be there: what it
    /// leads to is not to go meanwhile. And once more when it is made: who looks through the tree may have
    /// looked between the two, and noted that there is none.
    fn put_link(&self, key: &str, data: &Digest, made: Event, gone: Event) -> Result<(), Error> {
        self.index.record(made.clone());
        let put = self.home.put_if_absent(key, data.to_string().as_bytes());
        let stands = put.is_ok() || !matches!(self.home.stat(key), Ok(None));
        self.index.record(if stands { made } else { gone });
        put
    }

    /// Links a blob that `from` has to the grant's repository, durably. False: `from` has no such
    /// blob, or is not whose the name says.
    pub fn mount(&self, grant: &Grant, from: &Repository, digest: &Digest) -> Result<bool, Error> {
        let repository = &grant.repository;
        let _links = self.leases.repository(repository);
        let _kept = self.leases.keep_data();
        let is_own = match self.origin(from)? {
            OriginState::Known(origin) => origin.owner == from.owner,
            OriginState::Unknown => from.owner == Owner::Hosted,
            OriginState::Absent => false,
        };
        let Some(data) = (if is_own { self.layer(from, digest)? } else { None }) else { return Ok(false) };
        if self.home.stat(&layout::data(&data))?.is_none() {
            return Ok(false);
        }
        self.leases.renew(repository, digest);
        self.leases.renew(repository, &data);
        self.ensure_claimed(grant)?;
        self.settle_data(&data)?;
        self.link_pushed(repository, digest, &data)?;
        Ok(true)
    }

    /// Makes a blob's bytes durable. What failed to sync before is copied: only what is written anew can
    /// be synced.
    pub(super) fn settle_data(&self, data: &Digest) -> Result<(), Error> {
        let key = layout::data(data);
        match self.home.settle(&key) {
            Err(doubt) if self.home.is_in_doubt(&key) => {
                let mut hasher = data.algorithm().hasher();
                let copy = self.home.copy(&key, |piece| hasher.update(piece))?;
                match copy.filter(|_| hasher.finish() == *data) {
                    Some(copy) => self.home.commit(copy, &key),
                    None => Err(doubt),
                }
            }
            settled => settled,
        }
    }

    /// Renews the lease on the link of a blob or manifest, where there is one, and tells the blob's size
    /// in bytes, for the HEAD of a pusher.
    pub fn lease_blob(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>, Error> {
        if !self.has_layer(repository, digest)? && self.revision(repository, digest)?.is_none() {
            return Ok(None);
        }
        {
            // With the lock held: else who takes links away could have looked for leases before, and
            // unlink it after the size was told.
            let _links = self.leases.repository(repository);
            self.leases.renew(repository, digest);
        }
        let Some(data) = self.layer(repository, digest)? else { return Ok(None) };
        self.leases.renew(repository, &data);
        Ok(self.home.stat(&layout::data(&data))?.map(|stat| stat.len))
    }

    /// Takes a blob away from a repository, by this name of it. False: there was none.
    pub fn remove_layer(&self, repository: &Repository, digest: &Digest) -> Result<bool, Error> {
        let _links = self.leases.repository(repository);
        self.unlink_layer(repository, digest)
    }

    /// The same for who holds the repository's lock.
    pub(super) fn unlink_layer(&self, repository: &Repository, digest: &Digest) -> Result<bool, Error> {
        let was_there = self.unlink(&layout::layer(repository, digest))?;
        self.index.record(Event::LayerGone { repository: repository.stored_name(), name: *digest });
        Ok(was_there)
    }

    /// Takes a manifest away from a repository, by this name of it. Only with the repository's lock held.
    pub(super) fn unlink_revision(&self, repository: &Repository, digest: &Digest) -> Result<bool, Error> {
        let was_there = self.unlink(&layout::revision(repository, digest))?;
        self.index.record(Event::ManifestGone { repository: repository.stored_name(), name: *digest });
        Ok(was_there)
    }

    /// Removes a link, durably. False: there was none.
    pub(super) fn unlink(&self, key: &str) -> Result<bool, Error> {
        let is_there = self.home.stat(key)?.is_some();
        self.home.delete_with_dir(key)?;
        Ok(is_there)
    }
}
