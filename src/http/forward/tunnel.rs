//! Connections that are passed on as they are, to public addresses alone.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Version;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::http::watch::{self, Activity, Observed, Patience};
use crate::upstream::public_only;

/// For the name, and then for each address.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How many addresses of one name are tried.
const ADDRESSES_MAX: usize = 4;
const BUFFER: usize = 64 * 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{0} is not found or does not answer")]
    Unreachable(String),
    /// Judged by what is connected to, not by the name.
    #[error("{0} has private addresses only, and none of those is connected to")]
    Private(String),
}

/// Connects to a public address of this host.
pub async fn open(host: &str, port: u16) -> Result<TcpStream, Refused> {
    let unreachable = || Refused::Unreachable(host.to_owned());
    let found = tokio::time::timeout(CONNECT_MAX, tokio::net::lookup_host((host, port))).await;
    let found: Vec<SocketAddr> = found.map_err(|_| unreachable())?.map_err(|_| unreachable())?.collect();
    let public = public_only(found).map_err(|_| Refused::Private(host.to_owned()))?;
    for address in public.into_iter().take(ADDRESSES_MAX) {
        if let Ok(Ok(stream)) = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(address)).await {
            return Ok(stream);
        }
    }
    Err(unreachable())
}

/// Passes bytes on both ways until either side ends, or nothing has moved for as long as an answer may
/// stand still, or for a moment once `stop` is set.
pub async fn copy<C>(
    client: C,
    server: TcpStream,
    patience: Patience,
    stop: &CancellationToken,
) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let activity = Arc::new(Activity::default());
    let _under_way = activity.begin(Version::HTTP_11);
    let mut client = Observed::new(client, activity.clone());
    let mut server = Observed::new(server, activity.clone());
    let quiet = async {
        stop.cancelled().await;
        watch::quiet(&activity).await;
    };
    tokio::select! {
        biased;
        ended = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER) => ended.map(drop),
        () = watch::stood_still(&activity, patience) => Err(io::ErrorKind::TimedOut.into()),
        () = quiet => Ok(()),
    }
}
