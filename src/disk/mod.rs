//! The only file-system calls, behind a seam that a simulated disk can take.
//!
//! Everything here blocks. Callers on the async side go through a blocking thread, except where a
//! call is known to be short: opening a file, [`File::read_ready`], and [`send`] of what is in memory.

#[cfg(test)]
pub mod failing;
#[cfg(test)]
pub mod hooked;
mod real;
#[cfg(test)]
pub mod simulated;

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

pub use real::{RealDisk, send};

/// A file system.
pub trait Disk: Send + Sync + 'static {
    /// Makes a new file for reading and writing; fails where there is one.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens a regular file for reading; anything else is an error. A symbolic link in the last place is
    /// not followed.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// The same for reading and writing.
    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// A symbolic link in the last place is not followed: it is neither file nor directory.
    fn stat(&self, path: &Path) -> io::Result<Stat>;
    /// Replaces `to` in one step.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory that is empty.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes one directory. False: it is there already.
    fn create_dir(&self, path: &Path) -> io::Result<bool>;
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>>;
    /// Makes names that were made, changed or removed in `dir` survive a power loss.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    fn set_modified(&self, path: &Path, time: SystemTime) -> io::Result<()>;
    fn space(&self, path: &Path) -> io::Result<Space>;
    /// Whether this process may list the directory, and make and remove names in it.
    fn may_use(&self, dir: &Path) -> io::Result<bool>;
    /// Takes an exclusive lock of a directory, or of a file, which is made where it is missing. It is
    /// held until the guard is dropped or the process ends, in whatever way. `None` where another process
    /// holds it; `Unsupported` where the file system has no locks.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>>;
}

/// An open file. Shared: all calls name their offset.
pub trait File: Send + Sync + 'static {
    fn size(&self) -> io::Result<u64>;
    /// Reads at most `into.len()` bytes; 0 at the end.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;
    /// The same, but only what is in memory already; `None` where it would have to wait.
    fn read_ready(&self, into: &mut [u8], offset: u64) -> io::Result<Option<usize>>;
    /// The same as `read_at`, for a file that was opened to be looked through: it brings nothing into
    /// memory that others would have to give way to.
    fn read_aside(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;
    /// A hint: the disk may begin to bring these bytes into memory.
    fn will_need(&self, offset: u64, len: u64);
    /// For [`send`]. None: the kernel knows nothing of this file.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
    /// Writes all of `from`, one piece after the other.
    fn write_at(&self, from: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Makes what was written survive a power loss. After an error, what was written is lost for
    /// good: trying again proves nothing.
    fn sync(&self) -> io::Result<()>;
}

#[derive(Clone, Copy, Debug)]
pub struct Stat {
    pub len: u64,
    pub modified: SystemTime,
    pub is_file: bool,
    pub is_dir: bool,
    /// Which file it is, among those that are there or open at the same time.
    pub id: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub name: OsString,
    pub is_dir: bool,
}

/// Bytes of a file system, `available` to this process.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    pub total: u64,
    pub available: u64,
    /// Files that there may be, and how many more can be made. None: as many as there are bytes for.
    pub files: Option<(u64, u64)>,
}
