//! What can be wrong with a disk, in words.

use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::io::Errno;

use crate::metrics::{DiskState, Label};

/// The disk takes no writes.
#[derive(Clone, Debug)]
pub struct Trouble {
    pub state: DiskState,
    /// As the system told it.
    pub why: Arc<str>,
    pub since: SystemTime,
}

/// What an error of a call that writes says of the disk. None: of this call alone.
pub fn state_of(error: &io::Error) -> Option<DiskState> {
    if let Some(trouble) = Trouble::of(error) {
        return Some(trouble.state);
    }
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(DiskState::Full),
        ErrorKind::ReadOnlyFilesystem => Some(DiskState::ReadOnly),
        ErrorKind::PermissionDenied => Some(DiskState::Denied),
        _ => match Errno::from_io_error(error)? {
            // EIO, and what file systems over a network or in a user's process say of a lost device.
            Errno::IO
            | Errno::NXIO
            | Errno::NODEV
            | Errno::STALE
            | Errno::NOTCONN
            | Errno::CONNABORTED
            | Errno::HOSTDOWN
            | Errno::REMOTEIO
            | Errno::UCLEAN
            | Errno::TIMEDOUT => Some(DiskState::Failing),
            _ => None,
        },
    }
}

impl Trouble {
    /// That for which a call was not made, or not waited for.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// The metric's label.
    pub fn text(&self) -> &'static str {
        self.state.text()
    }

    pub fn what(&self) -> &'static str {
        words(self.state).0
    }

    /// For who runs the server.
    pub fn remedy(&self) -> &'static str {
        words(self.state).1
    }
}

fn words(state: DiskState) -> (&'static str, &'static str) {
    match state {
        DiskState::Ok => ("the disk takes writes", "there is nothing to mend"),
        DiskState::Full => ("the disk is full", "make room on the file system of the data directory"),
        DiskState::Inodes => (
            "the disk has no inodes left",
            "remove files from the file system of the data directory, or make it with more inodes",
        ),
        DiskState::ReadOnly => (
            "the disk is read-only",
            "look in the kernel's log for what made it so, then remount it for writing",
        ),
        DiskState::Denied => (
            "the disk refuses writes",
            "give the data directory to the user that Forebay runs as, and see that nothing in it is immutable",
        ),
        DiskState::Failing => {
            ("the disk fails", "look for its errors in the kernel's log, and replace it if they go on")
        }
        DiskState::Stalled => (
            "the disk does not answer",
            "see whether it is frozen (`fsfreeze`) or lost, and look in the kernel's log",
        ),
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.what(), self.why, self.remedy())
    }
}

impl std::error::Error for Trouble {}

impl From<Trouble> for io::Error {
    fn from(trouble: Trouble) -> Self {
        let kind = match trouble.state {
            DiskState::Full | DiskState::Inodes => ErrorKind::StorageFull,
            DiskState::ReadOnly => ErrorKind::ReadOnlyFilesystem,
            DiskState::Denied => ErrorKind::PermissionDenied,
            DiskState::Stalled => ErrorKind::TimedOut,
            DiskState::Failing | DiskState::Ok => ErrorKind::Other,
        };
        Self::new(kind, trouble)
    }
}

impl DiskState {
    /// What is wrong and what to do, for who has an error of a single call.
    pub fn told(self) -> String {
        let (what, remedy) = words(self);
        format!("{what}: {remedy}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_tell_of_the_disk_or_of_one_call() {
        let of = |errno: Errno| state_of(&errno.into());
        for (errno, state) in [
            (Errno::NOSPC, DiskState::Full),
            (Errno::DQUOT, DiskState::Full),
            (Errno::ROFS, DiskState::ReadOnly),
            (Errno::ACCESS, DiskState::Denied),
            (Errno::PERM, DiskState::Denied),
            (Errno::IO, DiskState::Failing),
            (Errno::STALE, DiskState::Failing),
        ] {
            assert_eq!(of(errno), Some(state), "{errno}");
        }
        for errno in [Errno::NOENT, Errno::EXIST, Errno::NOTEMPTY, Errno::INVAL, Errno::MFILE, Errno::FBIG] {
            assert_eq!(of(errno), None, "{errno}");
        }
        assert_eq!(state_of(&io::Error::other("a check of ours")), None);
        let trouble =
            Trouble { state: DiskState::Stalled, why: "for 5 s".into(), since: SystemTime::UNIX_EPOCH };
        let error = io::Error::from(trouble);
        assert_eq!(state_of(&error), Some(DiskState::Stalled));
        assert!(error.to_string().starts_with("the disk does not answer (for 5 s): see whether"), "{error}");
    }
}
