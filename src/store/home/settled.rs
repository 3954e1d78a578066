//! Which names on disk survive a power loss, as far as this process knows.
//!
//! A name that can be seen may be one that another thread made a moment ago, or a process that was
//! killed, and that nobody has synced yet. What this process has synced itself is settled. Where a
//! sync failed, what was to be synced is in doubt, and no later sync of the same proves anything:
//! only what is written anew may be relied on.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Home, dir_of, failed};
use crate::store::Error;
use crate::tasks::lock;

/// Names remembered; beyond that all are forgotten, and synced once more.
const SETTLED_MAX: usize = 50_000;
/// Names in doubt; beyond that all are.
const DOUBTFUL_MAX: usize = 10_000;
const LOCKS: usize = 64;

pub struct Settled {
    known: Mutex<Known>,
    making: [Mutex<()>; LOCKS],
    within: [RwLock<()>; LOCKS],
}

#[derive(Default)]
struct Known {
    settled: HashSet<PathBuf>,
    /// How often a sync of each has failed.
    doubtful: HashMap<PathBuf, u64>,
    failures: u64,
    /// Directories whose names this process has synced before any such sync failed; but not since one
    /// was made in them that was not synced.
    swept: HashSet<PathBuf>,
    unsettled: u64,
    /// There were more than could be remembered.
    all_doubtful: bool,
}

impl Default for Settled {
    fn default() -> Self {
        let (making, within) =
            (std::array::from_fn(|_| Mutex::default()), std::array::from_fn(|_| RwLock::default()));
        Self { known: Mutex::default(), making, within }
    }
}

fn place(dir: &Path) -> usize {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(dir);
    usize::try_from(hash % LOCKS as u64).unwrap_or_default()
}

fn is_failure(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    !matches!(error.kind(), PermissionDenied | InvalidInput | Unsupported | ReadOnlyFilesystem)
}

impl Settled {
    /// Whether this file or directory, and all names that lead to it, are known to be durable.
    pub fn has(&self, path: &Path) -> bool {
        lock(&self.known).settled.contains(path)
    }

    pub fn add(&self, path: &Path) {
        let mut known = lock(&self.known);
        if known.settled.len() >= SETTLED_MAX {
            known.settled.clear();
        }
        known.settled.insert(path.to_owned());
    }

    /// The same for a file that was written anew, whatever became of the one before it.
    pub fn add_anew(&self, file: &Path) {
        self.add(file);
        lock(&self.known).doubtful.remove(file);
    }

    /// The name is about to be changed or removed.
    pub fn forget(&self, path: &Path) {
        lock(&self.known).settled.remove(path);
    }

    /// Somebody else has changed the tree.
    pub fn forget_all(&self) {
        let mut known = lock(&self.known);
        known.settled.clear();
        known.swept.clear();
    }

    /// A directory was made, and is not synced for now.
    pub fn made_unsettled(&self, dir: &Path) {
        let mut known = lock(&self.known);
        known.unsettled += 1;
        known.swept.remove(dir_of(dir));
    }

    fn unsettled(&self) -> u64 {
        lock(&self.known).unsettled
    }

    /// The names in a directory were synced, all that were there when so many were `unsettled`.
    fn sweep(&self, dir: &Path, unsettled: u64) {
        let mut known = lock(&self.known);
        if known.all_doubtful || known.doubtful.contains_key(dir) || known.unsettled != unsettled {
            return;
        }
        if known.swept.len() >= SETTLED_MAX {
            known.swept.clear();
        }
        known.swept.insert(dir.to_owned());
    }

    /// Whether a directory that this process did not make is durable by name, though a sync of names
    /// beside it has failed: it was there when they were synced before.
    fn outlives_doubt(&self, dir: &Path) -> bool {
        let known = lock(&self.known);
        !known.all_doubtful && known.swept.contains(dir_of(dir)) && !known.doubtful.contains_key(dir)
    }

    /// A sync of this file, or of the names in this directory, has failed.
    pub fn doubt(&self, path: &Path) {
        let mut known = lock(&self.known);
        known.failures += 1;
        let failures = known.failures;
        if known.doubtful.len() < DOUBTFUL_MAX {
            known.doubtful.insert(path.to_owned(), failures);
        } else {
            known.all_doubtful = true;
        }
    }

    /// Changes with each failure. 0: there was none.
    pub fn doubts(&self, path: &Path) -> u64 {
        let known = lock(&self.known);
        if known.all_doubtful {
            known.failures
        } else {
            known.doubtful.get(path).copied().unwrap_or_default()
        }
    }

    pub fn is_doubtful(&self, path: &Path) -> bool {
        self.doubts(path) != 0
    }

    /// Held while a directory is made in `parent`.
    pub fn making(&self, parent: &Path) -> MutexGuard<'_, ()> {
        lock(&self.making[place(parent)])
    }

    /// Held while names are made in `dir`, which is not removed meanwhile.
    pub fn within(&self, dir: &Path) -> RwLockReadGuard<'_, ()> {
        self.within[place(dir)].read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while `dir` is removed.
    pub fn removing(&self, dir: &Path) -> RwLockWriteGuard<'_, ()> {
        self.within[place(dir)].write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Home {
    /// Makes a directory and what is missing above it, durably.
    pub fn make_dir(&self, key: &str) -> Result<(), Error> {
        self.settle_path(&self.path(key))
    }

    pub(super) fn settle_path(&self, dir: &Path) -> Result<(), Error> {
        match self.settle_dir(dir) {
            // Somebody emptied the data directory under us: go on in it.
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => {
                self.settled.forget_all();
                self.settle_dir(dir)
            }
            settled => settled,
        }
    }

    /// Makes sure that a directory is there, and that its name and each that leads to it are durable.
    fn settle_dir(&self, dir: &Path) -> Result<(), Error> {
        if self.settled.has(dir) {
            return Ok(());
        }
        let parent = dir_of(dir);
        // What is above the data directory is made where it is missing, and else others' business.
        let is_inside = dir != &*self.root && dir.starts_with(&self.root);
        if is_inside || super::found(self.disk.stat(dir)).is_ok_and(|stat| stat.is_none()) {
            // One level up for each call, so this ends at the root.
            self.settle_dir(parent)?;
        }
        let _making = self.settled.making(parent);
        if self.settled.has(dir) {
            return Ok(());
        }
        let before = self.settled.doubts(parent);
        let mut made = self.disk.create_dir(dir).map_err(failed("make directory", dir))?;
        if is_inside && !made {
            self.check_own(dir)?;
        }
        if is_inside && !made && before != 0 && !self.settled.outlives_doubt(dir) {
            // Only a name that is made anew is synced by another sync; one that is in use cannot be.
            self.disk.remove_dir(dir).map_err(|_| self.in_doubt(dir))?;
            made = self.disk.create_dir(dir).map_err(failed("make directory", dir))?;
        }
        if dir.parent().is_some() {
            let synced = self.sync_names(parent, before);
            // Where this fails too, there is a name in doubt.
            if synced.is_err() && made && self.disk.remove_dir(dir).is_err() {
                self.settled.doubt(dir);
            }
            match synced {
                // A directory above the data directory need not let us in, nor be one that can be synced.
                Err(error) if !is_inside && !made && !is_failure(&error.source) => {}
                synced => synced?,
            }
        }
        self.settled.add(dir);
        Ok(())
    }

    /// Makes the names in a directory durable that were made since its doubts were `before`.
    pub(super) fn sync_names(&self, dir: &Path, before: u64) -> Result<(), Error> {
        let unsettled = self.settled.unsettled();
        if let Err(error) = self.disk.sync_dir(dir) {
            // What is not there has no names in doubt.
            if !super::is_missing(&error) {
                self.settled.doubt(dir);
            }
            return Err(failed("sync directory", dir)(error));
        }
        // The failure may have been told to another thread that synced it just now.
        if self.settled.doubts(dir) != before {
            return Err(self.in_doubt(dir));
        }
        self.settled.sweep(dir, unsettled);
        Ok(())
    }

    pub(super) fn in_doubt(&self, path: &Path) -> Error {
        let why = "the disk failed to sync it before: mend the disk, mount it anew, then restart";
        failed("rely on", path)(io::Error::other(why))
    }

    /// Makes sure that what is under a key survives a power loss, whoever wrote it.
    pub fn settle(&self, key: &str) -> Result<(), Error> {
        let path = self.path(key);
        if self.settled.has(&path) {
            return Ok(());
        }
        let dir = dir_of(&path);
        if self.settled.is_doubtful(dir) {
            return Err(self.in_doubt(&path));
        }
        let _within = self.settled.within(dir);
        let file = self.disk.open(&path).map_err(failed("open", &path))?;
        self.sync(key, &*file)?;
        self.settle_path(dir)?;
        self.sync_names(dir, 0)?;
        self.settled.add(&path);
        Ok(())
    }

    /// Whether a sync of it, or of the names beside it, has failed, and it was not written anew since.
    pub fn is_in_doubt(&self, key: &str) -> bool {
        let path = self.path(key);
        let doubtful = self.settled.is_doubtful(&path) || self.settled.is_doubtful(dir_of(&path));
        doubtful && !self.settled.has(&path)
    }

    /// Whether a file of this size is under a key, and this process has made it durable.
    pub fn is_settled(&self, key: &str, size: u64) -> Result<bool, Error> {
        let stat = self.stat(key)?;
        Ok(stat.is_some_and(|stat| stat.is_file && stat.len == size) && self.settled.has(&self.path(key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let (settled, path) = (Settled::default(), |number: usize| PathBuf::from(format!("/{number}")));
        (0..=SETTLED_MAX).for_each(|number| settled.add(&path(number)));
        assert!(settled.has(&path(SETTLED_MAX)) && !settled.has(&path(0)));
        assert_eq!(lock(&settled.known).settled.len(), 1);
        settled.forget(&path(SETTLED_MAX));
        assert!(!settled.has(&path(SETTLED_MAX)));
        (1..=DOUBTFUL_MAX).for_each(|number| settled.doubt(&path(number)));
        assert!(settled.is_doubtful(&path(1)) && !settled.is_doubtful(&path(0)));
        settled.add_anew(&path(1));
        assert!(!settled.is_doubtful(&path(1)));
        (0..=DOUBTFUL_MAX).for_each(|number| settled.doubt(&path(number)));
        assert!(settled.is_doubtful(Path::new("/never seen")), "too many to tell apart");
        assert_eq!(lock(&settled.known).doubtful.len(), DOUBTFUL_MAX);
    }
}
