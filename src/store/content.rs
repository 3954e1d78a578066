//! Links, manifests and tags: what a repository has.

use std::time::SystemTime;

use bytes::Bytes;

use super::{Error, Grant, Store, layout};
use crate::oci::{Digest, MANIFEST_MAX, Repository, Tag};

/// A link file holds a digest, nothing else.
const LINK_MAX: usize = 256;

/// What a tag was last seen to point to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldTag {
    pub digest: Digest,
    /// When upstream last said so: the link file's time.
    pub seen: SystemTime,
}

impl Store {
    /// The digest in a link file. One that holds no digest counts as missing, and is named.
    fn link(&self, key: &str) -> Result<Option<Digest>, Error> {
        let Some(text) = self.home.read(key, LINK_MAX)? else { return Ok(None) };
        let digest = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        if digest.is_none() {
            tracing::warn!(key, "a link file holds no digest and is ignored");
        }
        Ok(digest)
    }

    /// Whether the repository has this blob.
    pub fn has_layer(&self, repository: &Repository, digest: &Digest) -> Result<bool, Error> {
        Ok(self.link(&layout::layer(repository, digest))?.is_some_and(|linked| linked == *digest))
    }

    /// Gives the repository a blob whose bytes are held and were fetched in its trust domain.
    pub fn link_layer(&self, grant: &Grant, digest: &Digest) -> Result<(), Error> {
        self.ensure_claimed(grant)?;
        self.home.put_if_absent(&layout::proof(&grant.domain, digest), b"")?;
        self.home.put_if_absent(&layout::layer(&grant.repository, digest), digest.to_string().as_bytes())
    }

    /// Whether the blob is held, and its bytes were fetched in this trust domain.
    pub fn is_proven(&self, grant: &Grant, digest: &Digest) -> Result<bool, Error> {
        Ok(self.home.stat(&layout::proof(&grant.domain, digest))?.is_some()
            && self.home.stat(&layout::data(digest))?.is_some())
    }

    /// A manifest's bytes, where the repository has it. Bytes that rotted count as missing.
    pub fn manifest(&self, repository: &Repository, digest: &Digest) -> Result<Option<Bytes>, Error> {
        if self.link(&layout::revision(repository, digest))?.is_none() {
            return Ok(None);
        }
        let Some(bytes) = self.home.read(&layout::data(digest), MANIFEST_MAX)? else { return Ok(None) };
        if Digest::of(digest.algorithm(), &bytes) != *digest {
            self.metrics.store_errors.inc();
            tracing::error!(%digest, "a manifest on disk has other bytes than its digest says, and is ignored");
            return Ok(None);
        }
        Ok(Some(bytes))
    }

    /// Keeps a manifest: its bytes first, then the link that makes them the repository's.
    pub fn put_manifest(&self, grant: &Grant, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        self.ensure_claimed(grant)?;
        self.counted(digest, bytes.len() as u64, |key| self.home.put(key, bytes))?;
        self.home.put_if_absent(&layout::revision(&grant.repository, digest), digest.to_string().as_bytes())
    }

    pub fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<HeldTag>, Error> {
        let key = layout::tag_current(repository, tag);
        let Some(digest) = self.link(&key)? else { return Ok(None) };
        let seen = self.home.stat(&key)?.map_or(SystemTime::UNIX_EPOCH, |stat| stat.modified);
        Ok(Some(HeldTag { digest, seen }))
    }

    /// Points a tag to a manifest that the repository has, seen upstream at this time.
    pub fn put_tag(&self, grant: &Grant, tag: &Tag, digest: &Digest, seen: SystemTime) -> Result<(), Error> {
        // It may come before the manifest, whose bytes are on their way to the disk.
        self.ensure_claimed(grant)?;
        let (repository, text) = (&grant.repository, digest.to_string());
        self.home.put_if_absent(&layout::tag_index(repository, tag, digest), text.as_bytes())?;
        let current = layout::tag_current(repository, tag);
        self.home.put(&current, text.as_bytes())?;
        self.home.touch(&current, seen)
    }

    /// Notes that upstream confirmed the tag at this time, where this is the digest on disk: the
    /// disk may not have taken the last move of the tag.
    pub fn touch_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
        seen: SystemTime,
    ) -> Result<(), Error> {
        let current = layout::tag_current(repository, tag);
        if self.link(&current)? == Some(*digest) { self.home.touch(&current, seen) } else { Ok(()) }
    }

    /// Forgets a tag; the manifest stays.
    pub fn drop_tag(&self, repository: &Repository, tag: &Tag) -> Result<(), Error> {
        // The link that counts goes first: half a removal is a removal.
        self.home.delete(&layout::tag_current(repository, tag))?;
        self.home.delete_tree(&layout::tag(repository, tag))
    }

    /// All tags held, in lexical order.
    pub fn tags(&self, repository: &Repository) -> Result<Vec<Tag>, Error> {
        let entries = self.home.list(&layout::tags(repository))?;
        let names = entries.iter().filter(|entry| entry.is_dir).filter_map(|entry| entry.name.to_str());
        let mut tags = Vec::new();
        for tag in names.filter_map(|name| name.parse::<Tag>().ok()) {
            if self.home.stat(&layout::tag_current(repository, &tag))?.is_some() {
                tags.push(tag);
            }
        }
        Ok(tags)
    }
}
