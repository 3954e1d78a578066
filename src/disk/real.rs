//! The file system of the machine.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::{Disk, Entry, File, Space, Stat};

#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

struct RealFile(fs::File);

fn no_follow() -> i32 {
    // Both are plain C ints underneath; the flag fits.
    OFlags::NOFOLLOW.bits() as i32
}

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).custom_flags(no_follow()).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).custom_flags(no_follow()).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let meta = fs::symlink_metadata(path)?;
        Ok(Stat { len: meta.len(), modified: meta.modified()?, is_file: meta.is_file() })
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
        let file = fs::OpenOptions::new().write(true).custom_flags(no_follow()).open(path)?;
        file.set_modified(time)
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

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl File for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
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
