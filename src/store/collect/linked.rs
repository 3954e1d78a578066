//! Which data is linked, by a repository of whatever owner: none of that goes.

use std::collections::HashSet;
use std::time::Instant;

use super::{CollectError, Pass};
use crate::oci::Digest;
use crate::store::Store;
use crate::store::layout;
use crate::store::leases::Key;
use crate::store::links::{ALGORITHMS, LINK_MAX};

impl Pass<'_> {
    /// The data that links lead to, of all repositories, as far as they are not gone. A digest takes
    /// 16 bytes, some 40 with the table around it: 40 MB for a million blobs.
    pub(super) fn linked(&self) -> Result<(Instant, HashSet<Key>), CollectError> {
        let (at, mut linked) = (self.store.leases.mark_data(), HashSet::new());
        let (mut todo, mut found_one) = (vec![String::new()], false);
        while let Some(prefix) = todo.pop() {
            let mut is_one = false;
            for name in self.store.dirs(&format!("{}/{prefix}", layout::REPOSITORIES_DIR))? {
                match name.as_str() {
                    "_layers" | "_manifests" => is_one = true,
                    // A file system's own, where this is a disk of its own: not ours to read.
                    "lost+found" => {}
                    // Longer than any stored name can be, a path is no repository's.
                    _ if name.starts_with('_') || prefix.len() + name.len() >= layout::STORED_NAME_MAX => {}
                    _ if prefix.is_empty() => todo.push(name),
                    _ => todo.push(format!("{prefix}/{name}")),
                }
            }
            if is_one {
                found_one = true;
                self.add_links(&prefix, layout::LAYERS, &mut linked)?;
                self.store.dirs(&layout::manifests(&prefix))?;
                self.add_links(&prefix, layout::REVISIONS, &mut linked)?;
            }
        }
        if !found_one && self.holds_data()? {
            return Err(CollectError::NoRepository(self.store.data_dir().join(layout::REPOSITORIES_DIR)));
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
                let Some(stat) = store.home.stat(&link)? else { continue };
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

    fn holds_data(&self) -> Result<bool, CollectError> {
        for algorithm in ALGORITHMS {
            if !self.store.home.list(&layout::content_root(algorithm))?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
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
