//! Collection: links that nobody needs are taken away, then data that nobody links, while pushes and
//! pulls go on.
//!
//! First it is marked what is needed, without any lock. Whoever comes to need something later renews
//! its lease first. So what is found to be needless is looked at once more, with the lock held under
//! which things are committed: leased, it stays. That holds for one term after the mark, and no
//! longer: then the pass ends early, and the next one goes on.
//!
//! A dry run takes nothing away, but counts what would be gone as gone.

mod data;
mod linked;
mod mark;
mod untagged;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::leases::Key;
use super::{Error, HeldTag, OriginState, Store, layout};
use crate::oci::{Digest, Owner, Repository, Tag};

/// A kind of thing that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    Tag,
    Manifest,
    Link,
    Blob,
}

/// Something that goes, or would.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Removed {
    /// None: of bytes, which may be those of several.
    pub repository: Option<String>,
    pub what: What,
    /// The tag or digest.
    pub subject: String,
    /// Bytes that it frees.
    pub bytes: u64,
}

/// Why a pass ended early. What it did until then is done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CollectError {
    #[error(transparent)]
    Disk(#[from] Error),
    #[error(
        "what was marked {} ago is too old to go by: the next pass goes on; if none comes to its end, set a \
         longer `gc.lease`",
        humantime::format_duration(Duration::from_secs(.0.as_secs()))
    )]
    Stale(Duration),
    #[error("it was stopped: the next pass goes on")]
    Stopped,
    #[error(
        "{} is neither a directory nor a file, so what is linked behind it is not known, and no blob goes: have the \
         directory itself there, by a mount if it is on another disk",
        .0.display()
    )]
    Strange(PathBuf),
    #[error(
        "blobs are held and not one repository, so no blob goes: if {} is on a disk of its own, mount that",
        .0.display()
    )]
    NoRepository(PathBuf),
}

/// One pass. Every call blocks.
pub struct Pass<'a> {
    store: &'a Store,
    dry_run: bool,
    report: &'a mut dyn FnMut(Removed),
    is_stopped: &'a dyn Fn() -> bool,
    /// Links that a dry run counts as gone: 16 bytes and some each.
    gone: HashSet<Key>,
}

/// What a hosted repository holds, as it was seen since a moment. Some 100 bytes for each tag, 200 for
/// each manifest, and 16 for each thing that one names.
pub struct Marked {
    repository: Repository,
    at: Instant,
    tags: Vec<(Tag, HeldTag)>,
    manifests: Vec<Found>,
    /// Every tag and manifest could be read.
    is_whole: bool,
}

/// A manifest, by all its names.
struct Found {
    names: Vec<Digest>,
    /// The newest of its links.
    linked: SystemTime,
    /// Blobs and manifests that it names.
    needs: Vec<Key>,
    subject: Option<Digest>,
}

impl Marked {
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    pub fn tags(&self) -> &[(Tag, HeldTag)] {
        &self.tags
    }

    /// The names of its manifests.
    pub fn names(&self) -> HashSet<Digest> {
        self.manifests.iter().flat_map(|found| &found.names).copied().collect()
    }
}

impl<'a> Pass<'a> {
    /// `report` is told of each thing that went, or would; once `is_stopped` says so, the pass ends.
    pub fn new(
        store: &'a Store,
        dry_run: bool,
        report: &'a mut dyn FnMut(Removed),
        is_stopped: &'a dyn Fn() -> bool,
    ) -> Self {
        Self { store, dry_run, report, is_stopped, gone: HashSet::new() }
    }

    /// The repositories that are collected: hosted ones, and those of unknown origin, which count as such.
    pub fn repositories(&self) -> Result<Vec<Repository>, CollectError> {
        let hosted = self.store.repositories()?.into_iter().filter_map(|(name, origin)| match origin {
            OriginState::Known(origin) if origin.owner != Owner::Hosted => None,
            // What has no name that can be asked for is left alone.
            _ => Some(Repository { owner: Owner::Hosted, name: name.parse().ok()? }),
        });
        Ok(hosted.collect())
    }

    /// Ends the pass where it was stopped.
    fn check(&self) -> Result<(), CollectError> {
        if (self.is_stopped)() { Err(CollectError::Stopped) } else { Ok(()) }
    }

    /// Asked with the lock held: whether what was marked then can still be gone by.
    fn check_mark(&self, at: Instant) -> Result<(), CollectError> {
        self.check()?;
        self.store.leases.staleness(at).map_or(Ok(()), |age| Err(CollectError::Stale(age)))
    }

    fn told(&mut self, repository: &Repository, what: What, subject: impl ToString) {
        let (repository, subject) = (Some(repository.to_string()), subject.to_string());
        (self.report)(Removed { repository, what, subject, bytes: 0 });
    }

    fn key(&self, stored_name: &str, part: &str, digest: &Digest) -> Key {
        self.store.leases.keys().of(&(stored_name, part, digest))
    }

    /// Removes these tags, where they are still what was marked, and no pusher relies on what they
    /// point to: a signature may come before what it signs.
    pub fn drop_tags(&mut self, marked: &mut Marked, tags: &[Tag]) -> Result<(), CollectError> {
        if !marked.is_whole {
            return Ok(());
        }
        let tags: HashSet<&Tag> = tags.iter().collect();
        for (tag, held) in std::mem::take(&mut marked.tags) {
            if tags.contains(&tag) && self.drop_tag(&marked.repository, &tag, held)? {
                self.told(&marked.repository, What::Tag, tag);
            } else {
                marked.tags.push((tag, held));
            }
        }
        Ok(())
    }

    fn drop_tag(&self, repository: &Repository, tag: &Tag, held: HeldTag) -> Result<bool, CollectError> {
        let _links = self.store.leases.repository(repository);
        self.check()?;
        let is_leased = self.store.leases.is_leased(repository, &held.digest);
        if is_leased || self.store.tag(repository, tag)? != Some(held) {
            return Ok(false);
        }
        if !self.dry_run {
            self.store.drop_tag(repository, tag)?;
        }
        Ok(true)
    }

    /// Removes manifests that were linked before `linked_before` and that nothing holds: no tag, no
    /// index, no subject that is here, no lease. Gives all the names of those that are gone.
    pub fn drop_untagged(
        &mut self,
        marked: &mut Marked,
        linked_before: SystemTime,
    ) -> Result<Vec<Digest>, CollectError> {
        if !marked.is_whole {
            return Ok(Vec::new());
        }
        let mut chosen = untagged::choose(marked, &self.store.leases, linked_before);
        let (mut gone, mut went) = (Vec::new(), HashSet::new());
        while let Some(place) = chosen.next() {
            let found = &marked.manifests[place];
            // A subject that was to go and stayed, or came back.
            let awaits = found.subject.filter(|subject| !chosen.is_open(subject));
            if self.drop_manifest(marked, found, awaits)? {
                gone.extend(found.names.iter().copied());
                went.insert(place);
                for name in &found.names {
                    self.told(&marked.repository, What::Manifest, name);
                }
            } else {
                chosen.keep(place);
            }
        }
        let mut place = 0;
        marked.manifests.retain(|_| {
            place += 1;
            !went.contains(&(place - 1))
        });
        if !self.dry_run && !gone.is_empty() {
            self.forget_in_tags(marked, &gone.iter().copied().collect())?;
        }
        Ok(gone)
    }

    /// False: something holds it now.
    fn drop_manifest(
        &mut self,
        marked: &Marked,
        found: &Found,
        subject: Option<Digest>,
    ) -> Result<bool, CollectError> {
        let (store, repository) = (self.store, &marked.repository);
        let stored_name = repository.stored_name();
        let _links = store.leases.repository(repository);
        self.check_mark(marked.at)?;
        // A tag or an index that came since would have leased it.
        if found.names.iter().any(|name| store.leases.is_leased(repository, name)) {
            return Ok(false);
        }
        if let Some(subject) = subject
            && !self.gone.contains(&self.key(&stored_name, layout::REVISIONS, &subject))
            && store.revision(repository, &subject)?.is_some()
        {
            return Ok(false);
        }
        for name in &found.names {
            if self.dry_run {
                self.gone.insert(self.key(&stored_name, layout::REVISIONS, name));
            } else {
                store.unlink_revision(repository, name)?;
            }
        }
        Ok(true)
    }

    /// Of the manifests that a tag pointed to once, forgets those that are gone.
    fn forget_in_tags(&self, marked: &Marked, gone: &HashSet<Digest>) -> Result<(), CollectError> {
        let (store, repository) = (self.store, &marked.repository);
        for (tag, _) in &marked.tags {
            for name in store.links_under(|algorithm| layout::tag_past(repository, tag, algorithm))? {
                if !gone.contains(&name) {
                    continue;
                }
                let _links = store.leases.repository(repository);
                self.check_mark(marked.at)?;
                if !store.leases.is_leased(repository, &name) {
                    store.unlink(&layout::tag_index(repository, tag, &name))?;
                }
            }
        }
        Ok(())
    }

    /// Removes links to blobs that no manifest of the repository names. A link is needed for the sake
    /// of its own name and of what it leads to.
    pub fn drop_links(&mut self, marked: &Marked) -> Result<(), CollectError> {
        if !marked.is_whole {
            return Ok(());
        }
        let (store, repository) = (self.store, &marked.repository);
        let keys = store.leases.keys();
        let mut needed: HashSet<Key> =
            marked.manifests.iter().flat_map(|found| &found.needs).copied().collect();
        let mut spare = Vec::new();
        for name in store.layers(repository)? {
            self.check()?;
            // One that leads nowhere is of no use to anybody, and nothing to be sure of.
            let Some(data) = store.layer(repository, &name)? else { continue };
            if needed.contains(&keys.of(&name)) || needed.contains(&keys.of(&data)) {
                needed.insert(keys.of(&data));
            } else {
                spare.push((name, data));
            }
        }
        for (name, data) in spare {
            // By another name, which was looked at later.
            if needed.contains(&keys.of(&data)) {
                continue;
            }
            if self.drop_link(marked, &name, &data)? {
                self.told(repository, What::Link, name);
            }
        }
        Ok(())
    }

    fn drop_link(&mut self, marked: &Marked, name: &Digest, data: &Digest) -> Result<bool, CollectError> {
        let (store, repository) = (self.store, &marked.repository);
        let _links = store.leases.repository(repository);
        self.check_mark(marked.at)?;
        if store.leases.is_leased(repository, name) || store.leases.is_leased(repository, data) {
            return Ok(false);
        }
        if self.dry_run {
            self.gone.insert(self.key(&repository.stored_name(), layout::LAYERS, name));
            return Ok(true);
        }
        Ok(store.unlink_layer(repository, name)?)
    }
}

#[cfg(test)]
mod tests;
