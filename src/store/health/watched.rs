//! A disk whose calls that write are watched: for failures, and for not coming back.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Health, state_of};
use crate::disk::{Disk, Entry, File, Space, Stat};
use crate::metrics::DiskState;

/// What a call takes that only changes a name, or what is in memory, is a moment.
const PROMPT: Duration = Duration::from_secs(5);
/// A sync writes what may be gigabytes, to what may be slow.
const SYNC: Duration = Duration::from_secs(180);

/// Shared by the disk and its files.
#[derive(Clone)]
struct Watch {
    disk: Arc<dyn Disk>,
    health: Arc<Health>,
    root: Arc<Path>,
}

pub struct Watched(Watch);

struct WatchedFile {
    watch: Watch,
    file: Arc<dyn File>,
}

impl Watched {
    /// What fails above `root` is others' business.
    pub fn new(disk: Arc<dyn Disk>, health: Arc<Health>, root: PathBuf) -> Self {
        Self(Watch { disk, health, root: root.into() })
    }

    fn file(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(WatchedFile { watch: self.0.clone(), file })
    }
}

impl Watch {
    fn call<T>(&self, due: Duration, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let _call = self.health.begin(due);
        call().inspect_err(|error| self.failed(error))
    }

    fn at<T>(&self, path: &Path, call: impl FnOnce(&dyn Disk) -> io::Result<T>) -> io::Result<T> {
        if path.starts_with(&self.root) { self.call(PROMPT, || call(&*self.disk)) } else { call(&*self.disk) }
    }

    fn failed(&self, error: &io::Error) {
        let Some(state) = state_of(error) else { return };
        let no_inodes =
            || self.disk.space(&self.root).is_ok_and(|space| space.files.is_some_and(|(_, free)| free == 0));
        let state = if state == DiskState::Full && no_inodes() { DiskState::Inodes } else { state };
        self.health.enter(state, error.to_string());
    }
}

impl Disk for Watched {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.0.at(path, |disk| disk.create(path)).map(|file| self.file(file))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.0.disk.open(path).map(|file| self.file(file))
    }
    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.0.at(path, |disk| disk.reopen(path)).map(|file| self.file(file))
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.0.disk.stat(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.at(to, |disk| disk.rename(from, to))
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.at(path, |disk| disk.remove(path))
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.0.at(path, |disk| disk.remove_dir(path))
    }
    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        self.0.at(path, |disk| disk.create_dir(path))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        self.0.disk.list(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.starts_with(&self.0.root) {
            self.0.call(SYNC, || self.0.disk.sync_dir(dir))
        } else {
            self.0.disk.sync_dir(dir)
        }
    }
    fn set_modified(&self, path: &Path, time: SystemTime) -> io::Result<()> {
        // That another user's file keeps its time says nothing of new ones.
        let _call = self.0.health.begin(PROMPT);
        self.0.disk.set_modified(path, time)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.0.disk.space(path)
    }
    fn may_use(&self, dir: &Path) -> io::Result<bool> {
        self.0.disk.may_use(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        self.0.disk.lock(path)
    }
}

impl File for WatchedFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(into, offset)
    }
    fn read_ready(&self, into: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.file.read_ready(into, offset)
    }
    fn read_aside(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_aside(into, offset)
    }
    fn will_need(&self, offset: u64, len: u64) {
        self.file.will_need(offset, len);
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.descriptor()
    }
    fn write_at(&self, from: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.watch.call(PROMPT, || self.file.write_at(from, offset))
    }
    fn sync(&self) -> io::Result<()> {
        self.watch.call(SYNC, || self.file.sync())
    }
}
