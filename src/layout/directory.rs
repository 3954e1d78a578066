//! A directory held open. What is in it is reached by single names, and links are not followed: nothing
//! that somebody put there leads elsewhere, also while it is looked at.

use std::ffi::OsString;
pub use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

pub struct Directory(OwnedFd);

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const READABLE: Mode = Mode::from_raw_mode(0o644);
const ENTERABLE: Mode = Mode::from_raw_mode(0o755);

impl Directory {
    /// The same, made where it is not there.
    pub fn make_all(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Self::open(path)
    }

    /// By a path that the caller trusts.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(fs::openat(CWD, path, DIRECTORY, Mode::empty())?))
    }

    /// A directory in this one. None: there is nothing of that name.
    pub fn sub(&self, name: &str) -> io::Result<Option<Self>> {
        match fs::openat(&self.0, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(found) => Ok(Some(Self(found))),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => Err(other("it is no directory, and links are not followed")),
            Err(error) => Err(error.into()),
        }
    }

    /// The same, made where it is not there.
    pub fn make(&self, name: &str) -> io::Result<Self> {
        match fs::mkdirat(&self.0, name, ENTERABLE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.sub(name)?.ok_or_else(|| other("it was taken away"))
    }

    /// A file in this directory and its size in bytes. None: there is nothing of that name.
    pub fn file(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        // A pipe that nobody writes to is not waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match fs::openat(&self.0, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NXIO) => return Err(other(NO_FILE)),
            Err(error) => return Err(error.into()),
        };
        let stat = fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(other(NO_FILE));
        }
        let size = u64::try_from(stat.st_size).map_err(other)?;
        Ok(Some((file.into(), size)))
    }

    /// A new file.
    pub fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(&self.0, name, flags, READABLE)?.into())
    }

    /// Moves a file of this directory to another, in the place of what is there.
    pub fn rename(&self, name: &str, to: &Self, new: &str) -> io::Result<()> {
        Ok(fs::renameat(&self.0, name, &to.0, new)?)
    }

    pub fn remove(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// What is in it.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&self.0)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    }

    /// Keeps others out who ask for the same, as long as it is open. False: somebody else has it.
    pub fn lock(&self) -> io::Result<bool> {
        match fs::flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub fn sync(&self) -> io::Result<()> {
        Ok(fs::fsync(&self.0)?)
    }
}

const NO_FILE: &str = "it is no regular file, and links are not followed";

fn other(why: impl ToString) -> io::Error {
    io::Error::other(why.to_string())
}
