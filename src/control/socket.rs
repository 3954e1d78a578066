//! The socket's place in the file system.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use super::socket_path;

/// What the kernel takes as a socket's path, its final 0 included.
const PATH_MAX: usize = 108;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another process answers at {}: end that one, or name another directory with --data", .0.display())]
    Live(PathBuf),
    #[error("{} is there and is no socket: remove it", .0.display())]
    NotOurs(PathBuf),
    #[error("cannot {what} the control socket {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

/// A socket that listens. Its file goes when it is dropped.
pub struct Bound {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl Bound {
    /// Listens in this data directory, in the place of a socket that a dead process left. Only the
    /// owner may open it.
    pub async fn bind(data: &Path) -> Result<Self, SocketError> {
        let path = socket_path(data);
        let error = |what| {
            let path = path.clone();
            move |source| SocketError::Io { what, path, source }
        };
        match std::fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotOurs(path)),
            Ok(_) if is_live(&path).await.map_err(error("try"))? => return Err(SocketError::Live(path)),
            Ok(_) => {}
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => {}
            Err(other) => return Err(error("look for")(other)),
        }
        // Under its name it is there only once nobody else may open it.
        let new = path.with_extension("new");
        remove(&new).map_err(error("replace"))?;
        let listener =
            Short::of(&new).and_then(|new| UnixListener::bind(&new.path)).map_err(error("make"))?;
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&new, private).map_err(error("protect"))?;
        std::fs::rename(&new, &path).map_err(error("name"))?;
        Ok(Self { listener, path })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the control socket is left behind");
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether somebody listens there. A full queue of connections is somebody too.
async fn is_live(path: &Path) -> io::Result<bool> {
    match UnixStream::connect(&Short::of(path)?.path).await {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Ok(false),
            io::ErrorKind::WouldBlock => Ok(true),
            _ => Err(error),
        },
    }
}

/// Connects to the server of this data directory.
pub async fn connect(data: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(&Short::of(&socket_path(data))?.path).await
}

/// A path that the kernel takes for a socket's: where it is too long, a short one that leads through
/// its directory, held open.
struct Short {
    path: PathBuf,
    _directory: Option<File>,
}

impl Short {
    fn of(path: &Path) -> io::Result<Self> {
        let (Some(directory), Some(name), PATH_MAX..) =
            (path.parent(), path.file_name(), path.as_os_str().len())
        else {
            return Ok(Self { path: path.to_owned(), _directory: None });
        };
        let directory = File::open(directory)?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _directory: Some(directory) })
    }
}
