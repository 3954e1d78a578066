//! A place to keep keys: stat, ranged open, commit of staged data, put, list, delete.
//!
//! This one is a directory, and alone knows of rename and sync: what it has acknowledged survives
//! kill -9 and power loss. Calls block.

mod settled;
mod start;
mod way;

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;

use self::settled::Settled;
use super::health::{Health, Watched};
use super::{Error, layout};
use crate::disk::{Disk, Entry, File, Space, Stat};

#[derive(Clone)]
pub struct Home {
    root: Arc<Path>,
    disk: Arc<dyn Disk>,
    staged: Arc<AtomicU64>,
    settled: Arc<Settled>,
    health: Arc<Health>,
}

/// Data on its way into a Home. Dropped without a commit, it is removed.
pub struct Staged {
    home: Home,
    path: PathBuf,
    pub file: Arc<dyn File>,
    synced: bool,
    kept: bool,
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error { operation, path: path.to_owned(), source: Arc::new(source) }
}

/// The directory that holds `path`; that of a bare name is the working directory.
fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// File systems say either.
fn is_not_empty(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}

/// Missing is an answer, not an error.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Home {
    pub fn new(root: PathBuf, disk: Arc<dyn Disk>, health: Arc<Health>) -> Self {
        let disk = Arc::new(Watched::new(disk, health.clone(), root.clone()));
        Self { root: root.into(), disk, staged: Arc::default(), settled: Arc::default(), health }
    }

    /// The empty key is the root, without a slash behind it that would lead through a symbolic link.
    pub fn path(&self, key: &str) -> PathBuf {
        if key.is_empty() { self.root.to_path_buf() } else { self.root.join(key) }
    }

    pub fn stat(&self, key: &str) -> Result<Option<Stat>, Error> {
        let path = self.path(key);
        found(self.disk.stat(&path)).map_err(failed("look up", &path))
    }

    pub fn open(&self, key: &str) -> Result<Option<Arc<dyn File>>, Error> {
        let path = self.path(key);
        found(self.disk.open(&path)).map_err(failed("open", &path))
    }

    /// All of a small file. One of more than `max` bytes is an error.
    pub fn read(&self, key: &str, max: usize) -> Result<Option<Bytes>, Error> {
        let path = self.path(key);
        let read = |file: Arc<dyn File>| {
            let len = usize::try_from(file.size()?).unwrap_or(usize::MAX);
            if len > max {
                return Err(io::Error::other(format!("{len} bytes, {max} at most are expected")));
            }
            let mut bytes = vec![0; len];
            let mut filled = 0;
            while filled < len {
                match file.read_at(&mut bytes[filled..], filled as u64)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => filled += count,
                }
            }
            Ok(Bytes::from(bytes))
        };
        self.open(key)?.map(read).transpose().map_err(failed("read", &path))
    }

    /// A fresh file, under a name of its own.
    pub fn stage(&self) -> Result<Staged, Error> {
        const TRIES: usize = 100;
        let mut tries = 0;
        loop {
            let number = self.staged.fetch_add(1, Ordering::Relaxed);
            let path = self.path(&format!("{}/{number}", layout::STAGING_DIR));
            tries += 1;
            let file = match self.disk.create(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.settled.forget_all();
                    self.make_dir(layout::STAGING_DIR)?;
                    self.disk.create(&path)
                }
                // Something of others' has that name.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < TRIES => continue,
                created => created,
            };
            let file = file.map_err(failed("create", &path))?;
            return Ok(Staged { home: self.clone(), path, file, synced: false, kept: false });
        }
    }

    /// Puts staged data under `key`, durably. What was there is replaced in one step.
    pub fn commit(&self, mut staged: Staged, key: &str) -> Result<(), Error> {
        staged.sync()?;
        self.place(&staged.path, key, || staged.kept = true)
    }

    /// A new file for reading and writing, which nobody relies on before it is published.
    pub fn create(&self, key: &str) -> Result<Arc<dyn File>, Error> {
        let path = self.path(key);
        self.check_way(dir_of(&path))?;
        self.make_unsettled(dir_of(&path))?;
        self.disk.create(&path).map_err(failed("create", &path))
    }

    /// Makes a directory and what is missing above it, for what is not relied on.
    fn make_unsettled(&self, dir: &Path) -> Result<(), Error> {
        let mut made = self.disk.create_dir(dir);
        if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            && dir.starts_with(&self.root)
        {
            self.make_unsettled(dir_of(dir))?;
            made = self.disk.create_dir(dir);
        }
        if made.map_err(failed("make directory", dir))? {
            self.settled.made_unsettled(dir);
        }
        Ok(())
    }

    /// A file that is there, for reading and writing.
    pub fn reopen(&self, key: &str) -> Result<Option<Arc<dyn File>>, Error> {
        let path = self.path(key);
        self.check_way(dir_of(&path))?;
        found(self.disk.reopen(&path)).map_err(failed("open", &path))
    }

    /// Makes what was written to the file of a key durable, before it is published. After an error
    /// the file is of no use any more.
    pub fn sync(&self, key: &str, file: &dyn File) -> Result<(), Error> {
        let path = self.path(key);
        if self.settled.is_doubtful(&path) {
            return Err(self.in_doubt(&path));
        }
        file.sync().inspect_err(|_| self.settled.doubt(&path)).map_err(failed("sync", &path))
    }

    /// What is under a key is no more taken for what this process has written there.
    pub fn unsettle(&self, key: &str) {
        self.settled.forget(&self.path(key));
    }

    /// Moves a synced file to another key, durably. What was there is replaced in one step.
    pub fn publish(&self, from: &str, to: &str) -> Result<(), Error> {
        self.place(&self.path(from), to, || ())
    }

    fn place(&self, from: &Path, key: &str, moved: impl FnOnce()) -> Result<(), Error> {
        let path = self.path(key);
        let dir = dir_of(&path);
        let _within = self.settled.within(dir);
        self.settle_path(dir)?;
        let before = self.settled.doubts(dir);
        self.settled.forget(&path);
        let renamed = match self.disk.rename(from, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.settled.forget_all();
                self.settle_path(dir)?;
                self.disk.rename(from, &path)
            }
            renamed => renamed,
        };
        let renamed = renamed.map_err(|error| match error.kind() {
            kind @ io::ErrorKind::CrossesDevices => {
                let why =
                    "another file system, or another mount, is there: have all of the data directory on one";
                io::Error::new(kind, why)
            }
            _ => error,
        });
        renamed.map_err(failed("rename to", &path))?;
        moved();
        self.sync_names(dir, before)?;
        self.settled.add_anew(&path);
        Ok(())
    }

    /// What is under a key, staged anew; `told` of each piece.
    pub fn copy(&self, key: &str, mut told: impl FnMut(&[u8])) -> Result<Option<Staged>, Error> {
        const PIECE: usize = 1024 * 1024;
        let Some(from) = self.open(key)? else { return Ok(None) };
        let (staged, mut buffer, mut at) = (self.stage()?, vec![0; PIECE], 0);
        loop {
            let count = from.read_at(&mut buffer, at).map_err(failed("read", &self.path(key)))?;
            if count == 0 {
                return Ok(Some(staged));
            }
            let piece = &buffer[..count];
            told(piece);
            let written = staged.file.write_at(&[IoSlice::new(piece)], at);
            written.map_err(failed("write", &staged.path))?;
            at += count as u64;
        }
    }

    /// Writes `bytes` under `key`, durably and in one step.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        let staged = self.stage()?;
        staged.file.write_at(&[IoSlice::new(bytes)], 0).map_err(failed("write", &staged.path))?;
        self.commit(staged, key)
    }

    /// The same where it is not there yet; for keys that determine their content.
    pub fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        let is_there = match self.stat(key)? {
            Some(stat) if stat.is_file && stat.len == bytes.len() as u64 => {
                self.read(key, bytes.len())?.is_some_and(|there| there == bytes)
            }
            _ => false,
        };
        // What cannot be made durable is written anew.
        if is_there && self.settle(key).is_ok() { Ok(()) } else { self.put(key, bytes) }
    }

    pub fn touch(&self, key: &str, time: SystemTime) -> Result<(), Error> {
        let path = self.path(key);
        self.check_way(dir_of(&path))?;
        self.disk.set_modified(&path, time).map_err(failed("set time of", &path))
    }

    /// Removes a key, durably. That it is missing is fine, once that is durable too.
    pub fn delete(&self, key: &str) -> Result<(), Error> {
        let path = self.path(key);
        let dir = dir_of(&path);
        self.check_way(dir)?;
        // Empty by then, the directory could be taken for a husk before it is synced.
        let _within = self.settled.within(dir);
        self.settled.forget(&path);
        let before = self.settled.doubts(dir);
        let removed = found(self.disk.remove(&path)).map_err(failed("remove", &path))?;
        if removed.is_none() && before != 0 {
            return Err(self.in_doubt(&path));
        }
        match self.sync_names(dir, before) {
            Err(error) if removed.is_none() && is_missing(&error.source) => self.sync_above(dir),
            synced => synced,
        }
    }

    /// Makes durable that a directory is not there, and so no name in it: a process may have been killed
    /// that removed it.
    fn sync_above(&self, dir: &Path) -> Result<(), Error> {
        for dir in dir.ancestors().skip(1).take_while(|dir| dir.starts_with(&self.root)) {
            match self.sync_names(dir, self.settled.doubts(dir)) {
                Err(error) if is_missing(&error.source) => {}
                synced => return synced,
            }
        }
        Ok(())
    }

    /// The same, and the directory that held it where nothing else is in it.
    pub fn delete_with_dir(&self, key: &str) -> Result<(), Error> {
        self.delete(key)?;
        self.drop_husk(key)
    }

    /// Removes the directory that would hold a key, where nothing is in it.
    pub fn drop_husk(&self, key: &str) -> Result<(), Error> {
        let path = self.path(key);
        let dir = dir_of(&path);
        let _removing = self.settled.removing(dir);
        self.settled.forget(dir);
        match found(self.disk.remove_dir(dir)) {
            Err(error) if !is_not_empty(&error) => Err(failed("remove", dir)(error)),
            _ => Ok(()),
        }
    }

    /// Removes a directory and all that is in it. Links are removed, never followed. Nobody may add
    /// to directories within it meanwhile.
    pub fn delete_tree(&self, key: &str) -> Result<(), Error> {
        let path = self.path(key);
        self.check_way(dir_of(&path))?;
        if self.stat(key)?.is_some_and(|stat| !stat.is_dir) {
            self.settled.forget(&path);
            return found(self.disk.remove(&path)).map_err(failed("remove", &path)).map(drop);
        }
        self.delete_dir(&path)
    }

    fn delete_dir(&self, dir: &Path) -> Result<(), Error> {
        for entry in found(self.disk.list(dir)).map_err(failed("list", dir))?.unwrap_or_default() {
            let path = dir.join(&entry.name);
            if entry.is_dir {
                self.delete_dir(&path)?;
            } else {
                self.settled.forget(&path);
                found(self.disk.remove(&path)).map_err(failed("remove", &path))?;
            }
        }
        let _removing = self.settled.removing(dir);
        self.settled.forget(dir);
        found(self.disk.remove_dir(dir)).map_err(failed("remove", dir)).map(drop)
    }

    /// Removes a key where it is there. What that is worth after a power loss is seen then.
    pub fn remove_unsynced(&self, key: &str) -> Result<(), Error> {
        let path = self.path(key);
        self.check_way(dir_of(&path))?;
        self.settled.forget(&path);
        found(self.disk.remove(&path)).map_err(failed("remove", &path)).map(drop)
    }

    /// The same, and the directory that held it where nothing else is in it.
    pub fn remove_with_dir_unsynced(&self, key: &str) -> Result<(), Error> {
        self.remove_unsynced(key)?;
        self.drop_husk(key)
    }

    /// Makes what was removed in these directories durable, and that one is not there.
    pub fn sync_all<'a>(&self, dirs: impl IntoIterator<Item = &'a String>) -> Result<(), Error> {
        for dir in dirs {
            let path = self.path(dir);
            match self.sync_names(&path, self.settled.doubts(&path)) {
                Err(error) if is_missing(&error.source) => self.sync_above(&path)?,
                synced => synced?,
            }
        }
        Ok(())
    }

    /// What is directly under a key, sorted; nothing where there is no such directory.
    pub fn list(&self, key: &str) -> Result<Vec<Entry>, Error> {
        let path = self.path(key);
        let mut entries = found(self.disk.list(&path)).map_err(failed("list", &path))?.unwrap_or_default();
        entries.sort();
        Ok(entries)
    }

    /// Writes, syncs and removes a file of this size that nobody else uses.
    pub fn probe(&self, key: &str, size: usize) -> Result<(), Error> {
        let path = self.path(key);
        let dir = dir_of(&path);
        // One that could not be removed is not left beside others.
        found(self.disk.remove(&path)).map_err(failed("remove", &path))?;
        let file = match self.disk.create(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.settled.forget_all();
                self.settle_path(dir)?;
                self.disk.create(&path)
            }
            created => created,
        };
        let file = file.map_err(failed("create", &path))?;
        let written = file.write_at(&[IoSlice::new(&vec![0; size])], 0).and_then(|()| file.sync());
        // The place it takes may be what is missing.
        let removed = self.disk.remove(&path);
        written.map_err(failed("write", &path))?;
        removed.map_err(failed("remove", &path))?;
        self.disk.sync_dir(dir).map_err(failed("sync directory", dir))
    }

    /// Removes staged files that were left behind while the disk stood still.
    pub fn sweep(&self, left: Vec<PathBuf>) {
        left.iter().for_each(|path| self.remove_staged(path));
    }

    fn remove_staged(&self, path: &Path) {
        // What cannot be removed now is removed at the next start.
        if let Err(error) = self.disk.remove(path) {
            tracing::debug!(path = %path.display(), %error, "unfinished file left behind");
        }
    }

    pub fn space(&self) -> Result<Space, Error> {
        self.disk.space(&self.root).map_err(failed("measure", &self.root))
    }
}

impl Staged {
    /// Makes what was written durable. The commit does it too; this is for who is to commit with
    /// a lock held, for it may take long.
    pub fn sync(&mut self) -> Result<(), Error> {
        if !self.synced {
            self.file.sync().map_err(failed("sync", &self.path))?;
            self.synced = true;
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        match self.kept {
            true => {}
            // Whoever it is would be held up.
            false if self.home.health.is_stalled() => self.home.health.leave(std::mem::take(&mut self.path)),
            false => self.home.remove_staged(&self.path),
        }
    }
}
