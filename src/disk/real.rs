//! The file system of the machine.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{Access, Advice, AtFlags, CWD, FlockOperation, OFlags, fadvise};
use rustix::io::{Errno, ReadWriteFlags};

use super::{Disk, Entry, File, Space, Stat};

#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

struct RealFile(fs::File);

/// Sends at most `count` bytes of a file to a socket, as `send(2)` would: 0 at the end of the file. What is not
/// in memory is waited for.
pub fn send(
    file: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
    mut offset: u64,
    count: usize,
) -> io::Result<usize> {
    Ok(rustix::fs::sendfile(socket, file, Some(&mut offset), count)?)
}

/// Opens a regular file that is there. What else may stand in its place is not followed, and not waited
/// for: to open a pipe would take until somebody writes to it.
fn open_regular(options: &mut fs::OpenOptions, path: &Path) -> io::Result<fs::File> {
    let file = open_here(options, OFlags::NOFOLLOW | OFlags::NONBLOCK, path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

fn open_here(options: &mut fs::OpenOptions, flags: OFlags, path: &Path) -> io::Result<fs::File> {
    // Both are plain C ints underneath; the flags fit.
    options.custom_flags(flags.bits() as i32).open(path).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => io::Error::other("it is a symbolic link, which is not followed"),
        _ => error,
    })
}

/// `None` where another process has it.
fn flock(file: &fs::File) -> io::Result<Option<()>> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(())),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno @ (Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::BADF)) => {
            Err(io::Error::new(io::ErrorKind::Unsupported, io::Error::from(errno)))
        }
        Err(errno) => Err(errno.into()),
    }
}

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(open_regular(fs::OpenOptions::new().read(true), path)?)))
    }

    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(open_regular(fs::OpenOptions::new().read(true).write(true), path)?)))
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let meta = fs::symlink_metadata(path)?;
        let (is_file, is_dir) = (meta.is_file(), meta.is_dir());
        Ok(Stat { len: meta.len(), modified: meta.modified()?, is_file, is_dir, id: meta.ino() })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        match fs::create_dir(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        fs::read_dir(dir)?
            .map(|entry| {
                let entry = entry?;
                Ok(Entry { name: entry.file_name(), is_dir: entry.file_type()?.is_dir() })
            })
            .collect()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn set_modified(&self, path: &Path, time: SystemTime) -> io::Result<()> {
        open_regular(fs::OpenOptions::new().write(true), path)?.set_modified(time)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
            // File systems that make inodes as they need them say that there are none.
            files: (stat.f_files > 0).then_some((stat.f_files, stat.f_favail)),
        })
    }

    fn may_use(&self, dir: &Path) -> io::Result<bool> {
        let all = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
        match rustix::fs::accessat(CWD, dir, all, AtFlags::EACCESS) {
            // A file system that takes no writes is told by the first of them.
            Ok(()) | Err(Errno::ROFS) => Ok(true),
            Err(Errno::ACCESS | Errno::PERM) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        const TRIES: usize = 10;
        if path.is_dir() {
            let dir = fs::File::open(path)?;
            return Ok(flock(&dir)?.map(|()| Box::new(dir) as _));
        }
        for _ in 0..TRIES {
            let mut options = fs::OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let file = open_here(&mut options, OFlags::NOFOLLOW | OFlags::NONBLOCK, path)?;
            let Some(()) = flock(&file)? else { return Ok(None) };
            // Removed between the two calls, it would be a lock that nobody else finds.
            let (ours, found) = (file.metadata()?, fs::symlink_metadata(path));
            if found.is_ok_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino())) {
                return Ok(Some(Box::new(file)));
            }
        }
        Err(io::Error::other("somebody removes it again and again"))
    }
}

impl File for RealFile {
    fn size(&self) -> io::Result<u64> {
        let meta = self.0.metadata()?;
        // A directory can be opened too.
        if meta.is_file() { Ok(meta.len()) } else { Err(io::Error::other("this is no regular file")) }
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.0.read_at(into, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn read_ready(&self, into: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        match rustix::io::preadv2(&self.0, &mut [IoSliceMut::new(into)], offset, ReadWriteFlags::NOWAIT) {
            Ok(count) => Ok(Some(count)),
            // Not in memory, or a file system that cannot tell.
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INVAL | Errno::INTR | Errno::NOSYS) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn read_aside(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some(count) = self.read_ready(into, offset)?
            && count > 0
        {
            return Ok(count);
        }
        // Nothing is read ahead, so that what is let go of is what this call has brought. All this is
        // advice: where it is not taken, more stays in memory.
        let _ = fadvise(&self.0, 0, None, Advice::Random);
        let count = self.read_at(into, offset)?;
        if let Some(len) = NonZeroU64::new(count as u64) {
            let _ = fadvise(&self.0, offset, Some(len), Advice::DontNeed);
        }
        Ok(count)
    }

    fn will_need(&self, offset: u64, len: u64) {
        if let Some(len) = NonZeroU64::new(len) {
            let _ = fadvise(&self.0, offset, Some(len), Advice::WillNeed);
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn write_at(&self, from: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        // The kernel takes 1,024 pieces a call at most.
        const PIECES: usize = 1024;
        let mut offset = offset;
        for pieces in from.chunks(PIECES) {
            let want: usize = pieces.iter().map(|piece| piece.len()).sum();
            let mut done = match rustix::io::pwritev(&self.0, pieces, offset) {
                Ok(count) => count,
                Err(Errno::INTR) => 0,
                Err(error) => return Err(error.into()),
            };
            // A short write is rare (a signal, a disk that is nearly full): the rest piece by piece.
            let mut start = 0;
            for piece in pieces {
                let end = start + piece.len();
                if done < end {
                    self.0.write_all_at(&piece[done - start..], offset + done as u64)?;
                    done = end;
                }
                start = end;
            }
            offset += want as u64;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_many_pieces_and_reads_them_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = RealDisk.create(&path).unwrap();
        let pieces: Vec<Vec<u8>> = (0..2500u32).map(|i| i.to_le_bytes().to_vec()).collect();
        let slices: Vec<IoSlice> = pieces.iter().map(|p| IoSlice::new(p)).collect();
        file.write_at(&slices, 7).unwrap();
        file.sync().unwrap();
        assert_eq!(file.size().unwrap(), 7 + 10_000);
        let mut back = vec![0; 10_000];
        assert_eq!(file.read_at(&mut back, 7).unwrap(), 10_000);
        assert_eq!(back, pieces.concat());
        if let Some(count) = file.read_ready(&mut back, 7).unwrap() {
            assert!(count > 0 && back[..count] == pieces.concat()[..count]);
        }
        assert!(RealDisk.create(&path).is_err(), "create never truncates");
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        fs::write(&target, "secret").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(RealDisk.open(&link).is_err());
        assert!(RealDisk.reopen(&link).is_err());
        assert!(!RealDisk.stat(&link).unwrap().is_file);
        assert!(RealDisk.set_modified(&link, SystemTime::now()).is_err());
        assert!(RealDisk.lock(&link).is_err());
        fs::remove_file(&target).unwrap();
        assert!(RealDisk.lock(&link).is_err() && !target.exists(), "nothing is made behind it");
    }

    #[test]
    fn what_is_no_regular_file_is_neither_opened_nor_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [&pipe, dir.path(), Path::new("/dev/null")] {
            assert!(RealDisk.open(path).is_err(), "{path:?}");
            assert!(RealDisk.reopen(path).is_err(), "{path:?}");
            assert!(RealDisk.set_modified(path, SystemTime::now()).is_err(), "{path:?}");
            assert!(!RealDisk.stat(path).unwrap().is_file);
        }
    }

    #[test]
    fn a_lock_is_exclusive_and_goes_with_its_guard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let guard = RealDisk.lock(&path).unwrap();
        assert!(guard.is_some());
        assert!(RealDisk.lock(&path).unwrap().is_none());
        drop(guard);
        assert!(RealDisk.lock(&path).unwrap().is_some());
        let guard = RealDisk.lock(dir.path()).unwrap();
        assert!(guard.is_some() && RealDisk.lock(dir.path()).unwrap().is_none(), "a directory too");
        drop(guard);
        assert!(RealDisk.lock(dir.path()).unwrap().is_some());
    }

    #[test]
    fn directories_are_made_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        assert!(RealDisk.create_dir(&path).unwrap());
        assert!(!RealDisk.create_dir(&path).unwrap(), "it is there already");
        fs::write(path.join("f"), "").unwrap();
        assert!(RealDisk.create_dir(&path.join("f")).is_err(), "a file is in the way");
        let error = RealDisk.create_dir(&dir.path().join("b/c")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
