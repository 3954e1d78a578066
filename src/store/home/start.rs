//! What is done with a place once, before it is used: the lock, the access, what a former process left.

use std::ffi::OsString;
use std::io;

use super::{Home, failed, found, is_not_empty};
use crate::disk::Entry;
use crate::store::Error;

impl Home {
    /// Takes the root for this process, by the lock of a file in it. `None`: another process has it.
    pub fn lock(&self, key: &str) -> Result<Option<Box<dyn Send + Sync>>, Error> {
        // The root itself too: somebody may remove the file under the process that has it.
        let root = match self.disk.lock(&self.root) {
            Ok(None) => return Ok(None),
            Ok(root) => root,
            // On NFS only what can be written to can be locked. The file then does alone.
            Err(_) => None,
        };
        let path = self.path(key);
        let file = self.disk.lock(&path).map_err(failed("lock", &path))?;
        Ok(file.map(|file| Box::new((root, file)) as _))
    }

    /// Whether there is a symbolic link under a key, to what is not there.
    pub fn leads_nowhere(&self, key: &str) -> Result<bool, Error> {
        let path = self.path(key);
        let is_link = self.stat(key)?.is_some_and(|stat| !stat.is_file && !stat.is_dir);
        let is_missing =
            || matches!(self.disk.list(&path), Err(error) if error.kind() == io::ErrorKind::NotFound);
        Ok(is_link && is_missing())
    }

    /// Whether this process may read and write in a directory. One that is not there is no obstacle.
    pub fn may_use(&self, key: &str) -> Result<bool, Error> {
        if self.stat(key)?.is_some_and(|stat| stat.is_file) {
            return Ok(true);
        }
        let path = self.path(key);
        let may = found(self.disk.may_use(&path)).map_err(failed("look up", &path))?;
        Ok(may.unwrap_or(true))
    }

    /// Removes the files that are directly under a key, and the directories that are empty. Gives the
    /// names of the others, which stay.
    pub fn clear(&self, key: &str) -> Result<Vec<OsString>, Error> {
        let mut left = Vec::new();
        for Entry { name, is_dir } in self.list(key)? {
            let path = self.path(key).join(&name);
            self.settled.forget(&path);
            let removed = if is_dir { self.disk.remove_dir(&path) } else { self.disk.remove(&path) };
            match found(removed) {
                Err(error) if is_dir && is_not_empty(&error) => left.push(name),
                removed => _ = removed.map_err(failed("remove", &path))?,
            }
        }
        Ok(left)
    }
}
