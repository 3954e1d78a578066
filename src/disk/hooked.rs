//! The real disk with some calls taken over, for tests of the layers above.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::{Disk, Entry, File, RealDisk, Space, Stat};

type Call<T> = Box<dyn Fn(&Path) -> io::Result<T> + Send + Sync>;
type Lock = Option<Box<dyn Send + Sync>>;

/// Each call is the real disk's until it is replaced.
pub struct Hooked {
    pub create: Call<Arc<dyn File>>,
    pub open: Call<Arc<dyn File>>,
    pub remove: Call<()>,
    pub sync_dir: Call<()>,
    pub may_use: Call<bool>,
    pub lock: Call<Lock>,
}

impl Default for Hooked {
    fn default() -> Self {
        Self {
            create: Box::new(|path| RealDisk.create(path)),
            open: Box::new(|path| RealDisk.open(path)),
            remove: Box::new(|path| RealDisk.remove(path)),
            sync_dir: Box::new(|path| RealDisk.sync_dir(path)),
            may_use: Box::new(|path| RealDisk.may_use(path)),
            lock: Box::new(|path| RealDisk.lock(path)),
        }
    }
}

impl Disk for Hooked {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        (self.create)(path)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        (self.open)(path)
    }
    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        RealDisk.reopen(path)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        RealDisk.stat(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        (self.remove)(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_dir(path)
    }
    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        RealDisk.create_dir(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        RealDisk.list(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        (self.sync_dir)(dir)
    }
    fn set_modified(&self, path: &Path, time: SystemTime) -> io::Result<()> {
        RealDisk.set_modified(path, time)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        RealDisk.space(path)
    }
    fn may_use(&self, dir: &Path) -> io::Result<bool> {
        (self.may_use)(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Lock> {
        (self.lock)(path)
    }
}
