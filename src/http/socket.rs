//! Sockets that are listened on: of TCP, of a path, or passed by systemd.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

/// Connections that the kernel holds for us until we take them.
const BACKLOG: u32 = 1024;
/// How clients of Unix sockets are limited and logged: as what else comes from this machine.
const THIS_MACHINE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// With `LISTEN_FDS`, the names of the passed sockets (sd_listen_fds_with_names(3)).
const NAMES: &str = "LISTEN_FDNAMES";

pub enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, Option<Place>),
}

/// An accepted connection.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Why there is no Unix socket.
#[derive(Debug, thiserror::Error)]
pub enum UnixError {
    #[error("another process listens there: end it, or choose another path")]
    Live,
    #[error("{} is there and is no socket: remove it, or choose another path", .0.display())]
    NoSocket(PathBuf),
    #[error(
        "cannot {what} it: {source}; its directory must be there, and the server's user able to write to it"
    )]
    Io { what: &'static str, source: io::Error },
}

impl Socket {
    pub fn tcp(address: SocketAddr, v6_only: bool) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if v6_only && address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        // A restart finds its port though old connections linger.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG).map(Self::Tcp)
    }

    /// Listens at a path, in the place of a socket that a dead process left. `mode`: who may connect.
    pub async fn unix(path: &Path, mode: u32) -> Result<Self, UnixError> {
        let error = |what| move |source| UnixError::Io { what, source };
        if is_socket(path)? && is_live(path).await.map_err(error("try"))? {
            return Err(UnixError::Live);
        }
        // Under its name it is there only once it is open to whom it should be, and to nobody else.
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        if is_socket(&new)? {
            std::fs::remove_file(&new).map_err(error("replace"))?;
        }
        let listener = UnixListener::bind(&new).map_err(error("make"))?;
        let opened = std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode));
        let named = opened.and_then(|()| std::fs::rename(&new, path));
        let inode = named.and_then(|()| std::fs::symlink_metadata(path)).map_err(error("name"))?.ino();
        Ok(Self::Unix(listener, Some(Place { path: path.to_owned(), inode })))
    }

    /// None: of TCP no longer bound, or of a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// For people.
    pub fn shown(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| "?".to_owned(), |own| own.to_string())
            }
            Self::Unix(listener, _) => {
                let own = listener.local_addr().ok();
                let passed = || own.as_ref()?.as_pathname().map(Path::to_path_buf);
                let path = self.path().map(Path::to_path_buf).or_else(passed).unwrap_or_default();
                format!("unix:{}", path.display())
            }
        }
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(_, Some(place)) => Some(&place.path),
            _ => None,
        }
    }

    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, peer)| (Stream::Tcp(stream), peer)),
            Self::Unix(listener, _) => {
                listener.accept().await.map(|(stream, _)| (Stream::Unix(stream), THIS_MACHINE))
            }
        }
    }
}

/// Where a Unix socket is. It goes with its listener, unless another has taken its place.
pub struct Place {
    path: PathBuf,
    inode: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "a socket is left behind");
        }
    }
}

fn is_socket(path: &Path) -> Result<bool, UnixError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(true),
        Ok(_) => Err(UnixError::NoSocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(UnixError::Io { what: "look for", source }),
    }
}

/// Whether somebody listens there. A full queue of connections is somebody too.
async fn is_live(path: &Path) -> io::Result<bool> {
    match UnixStream::connect(path).await {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Ok(false),
            io::ErrorKind::WouldBlock => Ok(true),
            _ => Err(error),
        },
    }
}

/// What systemd, or another that does as it does, has passed to this process (sd_listen_fds(3)).
pub struct Passed(Vec<(String, Socket)>);

impl Passed {
    /// Takes them, once: what this process starts inherits none of them.
    pub fn take() -> io::Result<Self> {
        let names = std::env::var(NAMES).unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..passed.len() {
            let name = names.next().unwrap_or_default().to_owned();
            let socket = match passed.take_tcp_listener(index) {
                Ok(Some(listener)) => {
                    listening(&listener)?;
                    listener.set_nonblocking(true)?;
                    Socket::Tcp(TcpListener::from_std(listener)?)
                }
                Ok(None) => continue,
                Err(_) => match passed.take_unix_listener(index)? {
                    Some(listener) => {
                        listening(&listener)?;
                        listener.set_nonblocking(true)?;
                        Socket::Unix(UnixListener::from_std(listener)?, None)
                    }
                    None => continue,
                },
            };
            sockets.push((name, socket));
        }
        Ok(Self(sockets))
    }

    /// Those of a name, or all that are left.
    pub fn named(&mut self, name: Option<&str>) -> Vec<Socket> {
        let wanted = |(own, _): &mut (String, Socket)| name.is_none_or(|name| name == own);
        self.0.extract_if(.., wanted).map(|(_, socket)| socket).collect()
    }

    /// The names of those that are left, for people.
    pub fn left(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| if name.is_empty() { "(no name)" } else { name }).collect()
    }
}

/// `Accept=yes` would pass a connection instead.
fn listening(socket: impl std::os::fd::AsFd) -> io::Result<()> {
    match sockopt::socket_acceptconn(socket) {
        Ok(true) => Ok(()),
        Ok(false) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it does not listen; set `Accept=no` in its unit",
        )),
        Err(error) => Err(error.into()),
    }
}
