//! Where bad data goes: out of reach, kept for a while for whoever wants to look at it.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::{Damage, Linker, Part, Wrong};
use crate::disk::Stat;
use crate::oci::{Digest, Owner, Repository};
use crate::store::index::Progress;
use crate::store::{Error, Store, layout};

/// Things kept aside at most.
const MOST: usize = 1000;
/// Repositories named for one digest, of mirrored ones and of others: the ones can mend what the others
/// have lost.
const LINKERS_MAX: usize = 10;

impl Store {
    /// Puts data out of reach that was found bad, unless something else is in its place by now. What was
    /// pushed and cannot be read stays: there is no other copy, and the disk may read it again.
    pub(super) fn quarantine(
        &self,
        digest: &Digest,
        wrong: &Wrong,
        seen: &Stat,
    ) -> Result<Option<Damage>, Error> {
        let linkers = self.linkers(digest);
        let is_pushed = |found: &(Vec<Linker>, usize)| found.0.iter().any(|by| !by.origin.is_mirrored());
        let domains = self.proof_domains().unwrap_or_default();
        let stays = matches!(wrong, Wrong::Unreadable(_)) && linkers.as_ref().map_or(true, is_pushed);
        {
            // Nobody commits or links data meanwhile.
            let _removing = self.leases.remove_data();
            let (data, dir) = (layout::data(digest), layout::data_dir(digest));
            let (key, now) = match self.home.stat(&data)? {
                Some(now) => (data, Some(now)),
                None => (dir.clone(), self.home.stat(&dir)?),
            };
            let is_same = |now: &Stat| (now.id, now.len, now.modified) == (seen.id, seen.len, seen.modified);
            if !now.is_some_and(|now| is_same(&now)) {
                return Ok(None);
            }
            if stays {
                // Whoever brings it anew replaces it.
                self.home.unsettle(&key);
                self.doubt.note_unreadable(digest);
            } else {
                self.put_aside(&key, digest)?;
                self.data_gone(digest);
            }
            for domain in domains {
                // One that stays is of no use without the data.
                let _ = self.home.remove_unsynced(&layout::proof_in(&domain, digest));
            }
        }
        self.metrics.scrub.corrupt.cell(wrong.label()).inc();
        if !stays && let Err(error) = self.bound_quarantine(digest) {
            tracing::warn!(%error, "what was put aside cannot be looked through");
        }
        let (linkers, others) = linkers?;
        Ok(Some(Damage { digest: *digest, wrong: wrong.clone(), linkers, others, stays }))
    }

    fn put_aside(&self, key: &str, digest: &Digest) -> Result<(), Error> {
        let aside = layout::quarantined(digest);
        match self.home.stat(&aside)? {
            Some(stat) if stat.is_file => self.home.delete(&aside)?,
            Some(_) => self.remove_strange(&aside)?,
            None => {}
        }
        self.home.publish(key, &aside)?;
        // That its old name is gone is made durable, and is known to this process from here on.
        self.home.delete_with_dir(key)?;
        // What it is counted by. A directory, or what is nobody's to write to, counts as older.
        let _ = self.home.touch(&aside, SystemTime::now());
        Ok(())
    }

    /// Removes a directory, or a symbolic link without what it leads to.
    pub(super) fn remove_strange(&self, key: &str) -> Result<(), Error> {
        match self.home.delete(key) {
            Ok(()) => Ok(()),
            Err(_) => self.home.delete_tree(key),
        }
    }

    /// Removes the oldest of what was put aside, as far as it is too much: not what came just now, nor what
    /// may be all that is left of something that was pushed.
    fn bound_quarantine(&self, newest: &Digest) -> Result<(), Error> {
        let mut aside = Vec::new();
        for entry in self.home.list(layout::QUARANTINE_DIR)? {
            let Some(name) = entry.name.to_str() else { continue };
            let key = format!("{}/{name}", layout::QUARANTINE_DIR);
            if let Some(stat) = self.home.stat(&key)? {
                aside.push((stat.modified, stat.len, key, name.replacen('-', ":", 1).parse().ok()));
            }
        }
        let mut bytes = aside.iter().fold(0, |sum: u64, (_, len, ..)| sum.saturating_add(*len));
        let (mut count, mut is_spared) = (aside.len(), false);
        let bound = self.options.quarantine;
        aside.sort_by_key(|(modified, ..)| *modified);
        for (_, len, key, digest) in aside {
            if count <= MOST && bytes <= bound {
                break;
            }
            if let Some(digest) = digest
                && (digest == *newest || self.is_last_of_pushed(&digest)?)
            {
                is_spared |= digest != *newest;
                continue;
            }
            self.remove_strange(&key)?;
            (count, bytes) = (count - 1, bytes.saturating_sub(len));
        }
        let is_full = is_spared && (count > MOST || bytes > bound);
        if !self.doubt.told_full.swap(is_full, Ordering::Relaxed) && is_full {
            let directory = self.data_dir().join(layout::QUARANTINE_DIR);
            tracing::warn!(
                bytes, bound, directory = %directory.display(),
                "more bad data is put aside than `scrub.quarantine` allows, and nothing else is left of what was \
                 pushed: push again what `forebay verify` tells as missing, raise the setting, or remove files there"
            );
        }
        Ok(())
    }

    /// Whether nothing is in the place of this data, and a repository links it that no upstream could restore.
    fn is_last_of_pushed(&self, digest: &Digest) -> Result<bool, Error> {
        if self.home.stat(&layout::data(digest))?.is_some() {
            return Ok(false);
        }
        if self.index.progress() != Progress::Whole {
            return Ok(true);
        }
        Ok(self.index.facts(|facts| {
            let key = facts.key(digest);
            facts.repositories().any(|(_, held)| {
                !held.is_mirrored() && (held.layers.contains_key(&key) || held.manifests.contains_key(&key))
            })
        }))
    }

    /// Some of the repositories that link this, and how many more do.
    pub(super) fn linkers(&self, digest: &Digest) -> Result<(Vec<Linker>, usize), Error> {
        let (mut linkers, mut others, mut named) = (Vec::new(), 0, [0; 2]);
        for (name, origin) in self.repositories()? {
            let Some(repository) = by_stored_name(&name) else { continue };
            let layer = self.home.stat(&layout::layer(&repository, digest))?;
            let revision = self.home.stat(&layout::revision(&repository, digest))?;
            for part in [layer.map(|_| Part::Blob), revision.map(|_| Part::Manifest)].into_iter().flatten() {
                let named = &mut named[usize::from(origin.is_mirrored())];
                if *named < LINKERS_MAX {
                    *named += 1;
                    linkers.push(Linker { name: name.clone(), origin: origin.clone(), part });
                } else {
                    others += 1;
                }
            }
        }
        Ok((linkers, others))
    }

    /// Checks one blob with nobody to ask for its repair, and logs what is wrong with it.
    pub(super) fn condemn(&self, digest: &Digest) -> Result<super::Checked, Error> {
        let checked = self.check(digest, &mut |_| true)?;
        if let super::Checked::Bad(damage) = &checked {
            let is_mirrored = damage.linkers.iter().any(|linker| linker.origin.is_mirrored());
            let done = match (damage.stays, is_mirrored) {
                (true, true) => "left in its place, and fetched again when it is asked for of its upstream",
                (true, false) => {
                    "left in its place, and tried again in some minutes: see to the disk, and push it again where that \
                     does not help"
                }
                (false, true) => "put aside, and fetched again when it is asked for",
                (false, false) => "put aside: push it again",
            };
            let (repositories, wrong) = (damage.repositories().join(", "), &damage.wrong);
            tracing::error!(%digest, repositories, %wrong, done, "data is bad");
        }
        Ok(checked)
    }
}

/// A repository by its place in the tree, whoever it belongs to. None: no such name can be asked for.
pub(super) fn by_stored_name(name: &str) -> Option<Repository> {
    Some(Repository { owner: Owner::Hosted, name: name.parse().ok()? })
}
