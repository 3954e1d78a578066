//! Which data is linked, by a repository of whatever owner: none of that goes.

use std::collections::HashSet;
use std::time::Instant;

use super::{CollectError, Pass};
use crate::oci::{Digest, Tag};
use crate::store::Store;
use crate::store::layout;
use crate::store::leases::Key;
use crate::store::links::{ALGORITHMS, LINK_MAX};

impl Pass<'_> {
    /// The data that links lead to, of all repositories, as far as they are not gone. A digest takes
    /// 16 bytes, some 40 with the table around it: 40 MB for a million blobs.
    pub(super) fn linked(&self) -> Result<(Instant, HashSet<Key>), CollectError> {
        let (at, mut linked) = (self.store.leases.mark_data(), HashSet::new());
        for name in self.store.names_of_repositories()? {
            self.add_links(&name, layout::LAYERS, &mut linked)?;
            self.store.dirs(&layout::manifests(&name))?;
            self.add_links(&name, layout::REVISIONS, &mut linked)?;
            self.drop_half_tags(&name)?;
        }
        Ok((at, linked))
    }

    fn add_links(
        &self,
        stored_name: &str,
        part: &str,
        linked: &mut HashSet<Key>,
    ) -> Result<(), CollectError> {
        let (store, keys) = (self.store, self.store.leases.keys());
        self.store.dirs(&layout::links(stored_name, part))?;
        for algorithm in ALGORITHMS.map(|algorithm| algorithm.as_str()) {
            let dir = format!("{}/{algorithm}", layout::links(stored_name, part));
            for hex in self.store.dirs(&dir)? {
                self.check()?;
                let Ok(name) = format!("{algorithm}:{hex}").parse::<Digest>() else { continue };
                let link = format!("{dir}/{hex}/link");
                let Some(stat) = store.home.stat(&link)? else {
                    self.drop_husk(&link)?;
                    continue;
                };
                if self.gone.contains(&self.key(stored_name, part, &name)) {
                    continue;
                }
                let to = if stat.len <= LINK_MAX as u64 { store.link(&link)? } else { None };
                // What cannot be read may have led to what its name says.
                linked.insert(keys.of(&to.unwrap_or(name)));
            }
        }
        Ok(())
    }

    /// The directory of something that a kill came before, or behind: it would stay for ever.
    pub(super) fn drop_husk(&self, key: &str) -> Result<(), CollectError> {
        if self.dry_run { Ok(()) } else { Ok(self.store.home.drop_husk(key)?) }
    }

    /// Tags that lead nowhere, for a kill came while they were made or removed: another registry would
    /// list them. And the same of what they led to once.
    fn drop_half_tags(&self, stored_name: &str) -> Result<(), CollectError> {
        let (store, root) = (self.store, layout::links(stored_name, layout::TAGS));
        for name in self.dirs_of_tags(&root)?.iter().filter(|name| name.parse::<Tag>().is_ok()) {
            self.check()?;
            let (tag, current) = (format!("{root}/{name}"), format!("{root}/{name}/current/link"));
            if store.home.stat(&current)?.is_some() {
                self.drop_half_past(&tag)?;
                continue;
            }
            if self.dry_run {
                continue;
            }
            // Whoever makes one keeps data from being removed.
            let _removing = store.leases.remove_data();
            if store.home.stat(&current)?.is_none() {
                store.home.delete_tree(&tag)?;
            }
        }
        Ok(())
    }

    fn drop_half_past(&self, tag: &str) -> Result<(), CollectError> {
        for algorithm in ALGORITHMS.map(|algorithm| algorithm.as_str()) {
            let past = format!("{tag}/index/{algorithm}");
            for hex in self.dirs_of_tags(&past)? {
                let link = format!("{past}/{hex}/link");
                if self.store.home.stat(&link)?.is_none() {
                    self.drop_husk(&link)?;
                }
            }
        }
        Ok(())
    }

    /// What is behind a symbolic link among tags leads to no data, and is left alone.
    fn dirs_of_tags(&self, key: &str) -> Result<Vec<String>, CollectError> {
        let dirs = self.store.home.list(key)?.into_iter().filter(|entry| entry.is_dir);
        Ok(dirs.filter_map(|entry| entry.name.into_string().ok()).collect())
    }
}

impl Store {
    /// The directories that are directly in one. What is reached through a symbolic link is served, but
    /// is not walked through, for links may lead in circles: so none may be there.
    pub(in crate::store) fn dirs(&self, key: &str) -> Result<Vec<String>, CollectError> {
        let mut dirs = Vec::new();
        for entry in self.home.list(key)? {
            let path = format!("{key}/{}", entry.name.to_string_lossy());
            if !entry.is_dir && self.home.stat(&path)?.is_some_and(|stat| !stat.is_file) {
                return Err(CollectError::Strange(self.data_dir().join(path)));
            }
            // What is no text is no part of a repository's name.
            dirs.extend(entry.name.into_string().ok().filter(|_| entry.is_dir));
        }
        Ok(dirs)
    }
}
