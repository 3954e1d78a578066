//! The real disk with one failing call, for tests of the layers above.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{Disk, Entry, File, RealDisk, Space, Stat};

/// Clones are the same disk. It may be locked by several.
#[derive(Clone, Default)]
pub struct Failing(Arc<State>);

#[derive(Default)]
struct State {
    calls: AtomicU64,
    failure: Mutex<Option<(u64, bool)>>,
}

struct FailingFile(Failing, Arc<dyn File>);

impl Failing {
    /// Counts calls anew. One of them fails, and (`done`) is done all the same.
    pub fn fail(&self, failure: Option<(u64, bool)>) {
        *self.failure() = failure;
        self.0.calls.store(0, Ordering::SeqCst);
    }

    /// Calls since the count began.
    pub fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::SeqCst)
    }

    fn failure(&self) -> MutexGuard<'_, Option<(u64, bool)>> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<T>(&self, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let number = self.0.calls.fetch_add(1, Ordering::SeqCst);
        let failure = self.failure().filter(|(at, _)| *at == number);
        let Some((_, done)) = failure else { return call() };
        if done {
            drop(call());
        }
        Err(io::Error::other("this call fails"))
    }

    fn file(&self, file: io::Result<Arc<dyn File>>) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(FailingFile(self.clone(), file?)))
    }
}

impl Disk for Failing {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.file(self.call(|| RealDisk.create(path)))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.file(self.call(|| RealDisk.open(path)))
    }
    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.file(self.call(|| RealDisk.reopen(path)))
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.call(|| RealDisk.stat(path))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(|| RealDisk.rename(from, to))
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call(|| RealDisk.remove(path))
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.call(|| RealDisk.remove_dir(path))
    }
    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        self.call(|| RealDisk.create_dir(path))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        self.call(|| RealDisk.list(dir))
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.call(|| RealDisk.sync_dir(dir))
    }
    fn set_modified(&self, path: &Path, time: SystemTime) -> io::Result<()> {
        self.call(|| RealDisk.set_modified(path, time))
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        RealDisk.space(path)
    }
    fn may_use(&self, dir: &Path) -> io::Result<bool> {
        RealDisk.may_use(dir)
    }
    fn lock(&self, _: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        Ok(Some(Box::new(())))
    }
}

impl File for FailingFile {
    fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
    fn size(&self) -> io::Result<u64> {
        self.0.call(|| self.1.size())
    }
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.call(|| self.1.read_at(into, offset))
    }
    fn read_ready(&self, into: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.1.read_ready(into, offset)
    }
    fn read_aside(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.call(|| self.1.read_aside(into, offset))
    }
    fn will_need(&self, offset: u64, len: u64) {
        self.1.will_need(offset, len);
    }
    fn write_at(&self, from: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.0.call(|| self.1.write_at(from, offset))
    }
    fn sync(&self) -> io::Result<()> {
        self.0.call(|| self.1.sync())
    }
}
