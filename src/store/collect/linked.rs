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
        for name in self.store.names_of_repositories()? {
            self.add_links(&name, layout::LAYERS, &mut linked)?;
            self.store.dirs(&layout::manifests(&name))?;
            self.add_links(&name, layout::REVISIONS, &mut linked)?;
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
