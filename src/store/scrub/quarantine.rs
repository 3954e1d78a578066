//! Where bad data goes: out of reach, kept for a while for whoever wants to look at it.

use std::time::SystemTime;

use super::{Damage, Linker, Part, Wrong};
use crate::disk::Stat;
use crate::oci::{Digest, Owner, Repository};
use crate::store::{Error, Store, layout};

/// Things kept aside at most.
const MOST: usize = 1000;
/// Repositories named for one digest, of mirrored ones and of others: the ones can mend what the others
/// have lost.
const LINKERS_MAX: usize = 10;

impl Store {
    /// Puts data out of reach that was found bad, unless something else is in its place by now.
    pub(super) fn quarantine(
        &self,
        digest: &Digest,
        wrong: &Wrong,
        seen: &Stat,
    ) -> Result<Option<Damage>, Error> {
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
            self.put_aside(&key, digest)?;
            self.data_gone(digest);
        }
        self.metrics.scrub.corrupt.cell(wrong.label()).inc();
        if let Err(error) = self.bound_quarantine() {
            tracing::warn!(%error, "what was put aside cannot be looked through");
        }
        let (linkers, others) = self.linkers(digest)?;
        Ok(Some(Damage { digest: *digest, wrong: wrong.clone(), linkers, others }))
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
    fn remove_strange(&self, key: &str) -> Result<(), Error> {
        match self.home.delete(key) {
            Ok(()) => Ok(()),
            Err(_) => self.home.delete_tree(key),
        }
    }

    /// Removes the oldest of what was put aside, as far as it is too much.
    fn bound_quarantine(&self) -> Result<(), Error> {
        let mut aside = Vec::new();
        for entry in self.home.list(layout::QUARANTINE_DIR)? {
            let Some(name) = entry.name.to_str() else { continue };
            let key = format!("{}/{name}", layout::QUARANTINE_DIR);
            if let Some(stat) = self.home.stat(&key)? {
                aside.push((stat.modified, stat.len, key));
            }
        }
        aside.sort_by_key(|(modified, ..)| std::cmp::Reverse(*modified));
        let mut bytes = 0_u64;
        for (place, (_, len, key)) in aside.iter().enumerate() {
            bytes = bytes.saturating_add(*len);
            if place >= MOST || bytes > self.options.quarantine {
                self.remove_strange(key)?;
            }
        }
        Ok(())
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
            let done = match damage.linkers.iter().any(|linker| linker.origin.is_mirrored()) {
                true => "put aside, and fetched again when it is asked for",
                false => "put aside: push it again",
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
