//! Tags: which manifest each points to.

use std::time::SystemTime;

use humantime::{format_rfc3339, parse_rfc3339};

use super::index::Event;
use super::{Error, Grant, Store, layout};
use crate::oci::{Digest, Repository, Tag};

/// A time, in RFC 3339.
const TIME_MAX: usize = 64;

/// What a tag was last seen to point to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldTag {
    pub digest: Digest,
    /// When upstream last said so, or when it was pushed: the link file's time.
    pub seen: SystemTime,
}

impl Store {
    pub fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<HeldTag>, Error> {
        let key = layout::tag_current(repository, tag);
        let Some(digest) = self.link(&key)? else { return Ok(None) };
        let seen = self.home.stat(&key)?.map_or(SystemTime::UNIX_EPOCH, |stat| stat.modified);
        Ok(Some(HeldTag { digest, seen }))
    }

    /// Points a mirrored tag to a manifest, seen upstream at this time.
    pub fn put_tag(&self, grant: &Grant, tag: &Tag, digest: &Digest, seen: SystemTime) -> Result<(), Error> {
        // Nothing of the repository is evicted meanwhile.
        let _kept = self.leases.keep_data();
        // It may come before the manifest, whose bytes are on their way to the disk.
        self.ensure_claimed(grant)?;
        let current = layout::tag_current(&grant.repository, tag);
        // What cannot be read is written over.
        let before = if self.clear_illegible(&current)? { None } else { self.link(&current)? };
        let before = before.filter(|before| before != digest);
        self.point(&grant.repository, tag, digest)?;
        self.home.touch(&current, seen)?;
        if let Some(before) = before {
            // Where it pointed once is upstream's history: kept here, it would only grow.
            self.home.delete_tree(&layout::tag_history(&grant.repository, tag, &before))?;
        }
        self.unmark_gone(&grant.repository, tag)
    }

    /// Points a tag to a manifest, durably.
    pub(super) fn point(&self, repository: &Repository, tag: &Tag, digest: &Digest) -> Result<(), Error> {
        let text = digest.to_string();
        self.home.put_if_absent(&layout::tag_index(repository, tag, digest), text.as_bytes())?;
        let current = layout::tag_current(repository, tag);
        let put = self.home.put(&current, text.as_bytes());
        // It may be there though it is not durable: then it counts, for it goes with its manifest.
        let stands = if put.is_ok() { Some(*digest) } else { self.link(&current).ok().flatten() };
        if let Some(digest) = stands {
            let (repository, tag) = (repository.stored_name(), tag.clone());
            self.index.record(Event::Tag { repository, tag, digest });
        }
        put
    }

    /// Notes that upstream confirmed the tag, and at this time where this is the digest on disk: the
    /// disk may not have taken the last move of the tag. A link that cannot be read is written anew.
    pub fn touch_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
        seen: SystemTime,
    ) -> Result<(), Error> {
        let current = layout::tag_current(repository, tag);
        // Nothing of the repository is evicted meanwhile.
        let _kept = self.leases.keep_data();
        if self.revision(repository, digest)?.is_some() && self.clear_illegible(&current)? {
            self.point(repository, tag, digest)?;
        }
        if self.link(&current)? == Some(*digest) {
            self.home.touch(&current, seen)?;
        }
        self.unmark_gone(repository, tag)
    }

    /// Notes since when upstream says that it has no such tag, until the tag is seen or dropped.
    pub fn mark_gone(&self, repository: &Repository, tag: &Tag, since: SystemTime) -> Result<(), Error> {
        self.home.put(&layout::tag_gone(repository, tag), format_rfc3339(since).to_string().as_bytes())
    }

    /// Since when upstream says that it has no such tag. A note that is older than what was last seen of
    /// the tag counts no more, and one that cannot be read counts as none.
    pub fn gone_since(
        &self,
        repository: &Repository,
        tag: &Tag,
        held: &HeldTag,
    ) -> Result<Option<SystemTime>, Error> {
        let key = layout::tag_gone(repository, tag);
        if self.home.stat(&key)?.is_none_or(|stat| !stat.is_file || stat.len > TIME_MAX as u64) {
            return Ok(None);
        }
        let note = self.home.read(&key, TIME_MAX)?;
        let since = note.and_then(|note| parse_rfc3339(std::str::from_utf8(&note).ok()?.trim()).ok());
        Ok(since.filter(|since| *since >= held.seen))
    }

    pub(super) fn unmark_gone(&self, repository: &Repository, tag: &Tag) -> Result<(), Error> {
        let key = layout::tag_gone(repository, tag);
        if self.home.stat(&key)?.is_some() { self.home.delete(&key) } else { Ok(()) }
    }

    /// Forgets a mirrored tag; the manifest stays.
    pub fn forget_tag(&self, repository: &Repository, tag: &Tag) -> Result<(), Error> {
        // Nobody points it anywhere meanwhile.
        let _removing = self.leases.remove_data();
        self.drop_tag(repository, tag)
    }

    /// Forgets a tag; the manifest stays. Of a hosted repository, only with its lock held, of a mirrored
    /// one with that under which data is removed.
    pub(super) fn drop_tag(&self, repository: &Repository, tag: &Tag) -> Result<(), Error> {
        // The link that counts goes first: half a removal is a removal.
        self.home.delete(&layout::tag_current(repository, tag))?;
        self.home.delete_tree(&layout::tag(repository, tag))?;
        self.index.record(Event::TagGone { repository: repository.stored_name(), tag: tag.clone() });
        self.unmark_gone(repository, tag)
    }

    /// Removes a tag of a hosted repository; the manifest stays. False: there was none.
    pub fn remove_tag(&self, repository: &Repository, tag: &Tag) -> Result<bool, Error> {
        let _links = self.leases.repository(repository);
        let is_there = self.home.stat(&layout::tag_current(repository, tag))?.is_some();
        self.drop_tag(repository, tag)?;
        Ok(is_there)
    }

    /// All tags held, in lexical order.
    pub fn tags(&self, repository: &Repository) -> Result<Vec<Tag>, Error> {
        let mut tags = Vec::new();
        for tag in self.tag_directories(repository)? {
            if self.home.stat(&layout::tag_current(repository, &tag))?.is_some() {
                tags.push(tag);
            }
        }
        Ok(tags)
    }

    /// The same, with those of which a removal has left a part.
    pub(super) fn tag_directories(&self, repository: &Repository) -> Result<Vec<Tag>, Error> {
        let entries = self.home.list(&layout::tags(repository))?;
        let names = entries.iter().filter(|entry| entry.is_dir).filter_map(|entry| entry.name.to_str());
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }
}
