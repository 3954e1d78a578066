//! Listeners: bound all at once, then serving until shutdown.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::address::Scope;
use super::connection::{self, Arrival, Context, Door};
use super::direct::Direct;
use super::forward::Forward;
use super::handler::Service;
use super::socket::{Passed, Socket, Stream, UnixError};
use super::tls::{self, Tls};
use super::watch::Patience;
use super::{ListenAddress, Options};
use crate::metrics::{Limit, Limited, Metrics};
use crate::tasks::Tasks;

/// Connections to the operator's listener, which clients cannot use up.
const OPERATIONS_MAX: usize = 64;
/// Rest after a failure to accept, such as too many open files.
const ACCEPT_REST: Duration = Duration::from_millis(200);

/// Why the server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {address}: {source}; {remedy}")]
    Address { address: SocketAddr, remedy: &'static str, source: io::Error },
    #[error("cannot listen on unix:{path}: {source}", path = path.display())]
    Unix { path: PathBuf, source: UnixError },
    #[error("a socket that was passed cannot be used: {0}")]
    Passed(io::Error),
    #[error(
        "no socket{} was passed to this process{}: start it by a socket unit of systemd's, or correct `listen` and \
         [[listener]]", named(.name.as_deref()), others(.left)
    )]
    NonePassed { name: Option<String>, left: Vec<String> },
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("no address to listen on: set `listen`")]
    None,
}

/// Bound sockets, not yet served.
pub struct Listeners {
    bound: Vec<Bound>,
    tls: Option<(Arc<Tls>, tls::Files)>,
    options: Options,
}

struct Bound {
    socket: Socket,
    door: Door,
    scope: Arc<Scope>,
    tls: bool,
}

impl Bound {
    /// Whether the registry's API is served there.
    fn is_public(&self) -> bool {
        matches!(self.door, Door::All | Door::Public)
    }
}

impl Listeners {
    /// Binds every address, or none. An IPv6 address is passed over where the machine has no IPv6
    /// and another address could be bound.
    pub async fn bind(options: &Options) -> Result<Self, BindError> {
        let tls = match &options.tls {
            Some(options) => {
                let (tls, files) = Tls::load(options.clone()).await?;
                Some((Arc::new(tls), files))
            }
            None => None,
        };
        let public = if options.operations.is_some() { Door::Public } else { Door::All };
        let of_all = |address: &SocketAddr| (*address, public, Arc::default(), tls.is_some());
        let mut tcp: Vec<(SocketAddr, Door, Arc<Scope>, bool)> = options.listen.iter().map(of_all).collect();
        let mut bound = Vec::new();
        let mut passed = Passed::take().map_err(BindError::Passed)?;
        // Those that are called by name first: the others take what is left.
        let named = |address: &ListenAddress| !matches!(address, ListenAddress::Systemd(None));
        let (first, last) = options.listeners.iter().partition::<Vec<_>, _>(|one| named(&one.address));
        for listener in first.into_iter().chain(last) {
            let scope = Arc::new(listener.scope.clone());
            let sockets = match &listener.address {
                ListenAddress::Tcp(address) => {
                    tcp.push((*address, public, scope, listener.tls));
                    continue;
                }
                ListenAddress::Unix { path, mode } => {
                    let socket = Socket::unix(path, *mode).await;
                    vec![socket.map_err(|source| BindError::Unix { path: path.clone(), source })?]
                }
                ListenAddress::Systemd(name) => match passed.named(name.as_deref()) {
                    sockets if sockets.is_empty() => return Err(BindError::none_passed(name, &passed)),
                    sockets => sockets,
                },
            };
            let of = |socket| Bound { socket, door: public, scope: scope.clone(), tls: listener.tls };
            bound.extend(sockets.into_iter().map(of));
        }
        if !passed.left().is_empty() {
            let names = passed.left().join(", ");
            tracing::warn!(names, "passed sockets that nothing listens on: see `systemd` in `listen`");
        }
        tcp.extend(options.forward.iter().map(|one| (one.listen, Door::Forward, Arc::default(), false)));
        tcp.extend(options.operations.map(|address| (address, Door::Operations, Arc::default(), false)));
        let others = std::mem::replace(&mut bound, bind(tcp)?);
        let apart = bound.iter().position(|one| !one.is_public()).unwrap_or(bound.len());
        bound.splice(apart..apart, others);
        if !bound.iter().any(Bound::is_public) {
            return Err(BindError::None);
        }
        Ok(Self { bound, tls, options: options.clone() })
    }

    /// The addresses of TCP that are bound, in the order of the options, the operator's last.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.bound.iter().filter_map(|one| one.socket.address()).collect()
    }

    /// Where clients connect, for people.
    pub fn public(&self) -> Vec<String> {
        let public = self.bound.iter().filter(|one| one.is_public());
        public.map(|one| one.socket.shown()).collect()
    }

    /// Where the operator does.
    pub fn operations(&self) -> Option<SocketAddr> {
        self.bound.iter().find(|one| one.door == Door::Operations)?.socket.address()
    }

    /// Serves until `shutdown`. Then nothing new is taken, what is under way may end within the
    /// grace period, and the operator's listener answers until the last.
    pub async fn serve(
        self,
        service: Arc<ArcSwap<Service>>,
        tasks: Tasks,
        forward: Option<Arc<Forward>>,
        shutdown: impl Future<Output = ()>,
    ) {
        let metrics = service.load().reports.metrics.clone();
        let options = &self.options;
        let patience = Patience { header: options.header_timeout, idle: options.idle_timeout };
        let public = Places::new(options.max_connections);
        let operations = Places::new(OPERATIONS_MAX);
        let tls = self.tls.map(|(tls, files)| {
            let (follow, stopping) = (tls.clone().follow(files), tasks.stopping());
            tasks.spawn("tls certificate", async move {
                tokio::select! { () = follow => {}, () = stopping => {} }
            });
            tls
        });
        for Bound { socket, door, scope, tls: encrypted } in self.bound {
            let places = match door {
                Door::Operations => operations.clone(),
                Door::All | Door::Public | Door::Forward => public.clone(),
            };
            let forward = forward.clone().filter(|_| door == Door::Forward);
            let tls = tls.clone().filter(|_| encrypted);
            let (service, metrics, tasks) = (service.clone(), metrics.clone(), tasks.clone());
            let acceptor = Acceptor { door, scope, tls, forward, places, service, metrics, patience, tasks };
            acceptor.tasks.clone().spawn("accept", acceptor.run(socket));
        }
        shutdown.await;
        service.load().draining.begin();
        public.close(options.shutdown_grace).await;
        operations.close(Duration::ZERO).await;
    }
}

impl BindError {
    fn address(address: SocketAddr, source: io::Error) -> Self {
        let remedy = match source.kind() {
            io::ErrorKind::AddrInUse => {
                "another program (or another of these addresses: `[::]` takes in IPv4 too) has it: \
                 stop that program or choose another port with `listen`"
            }
            io::ErrorKind::AddrNotAvailable => "this machine has no such address: correct `listen`",
            io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege: choose a higher one",
            _ => "correct `listen`",
        };
        Self::Address { address, remedy, source }
    }

    fn none_passed(name: &Option<String>, passed: &Passed) -> Self {
        let left = passed.left().into_iter().map(str::to_owned).collect();
        Self::NonePassed { name: name.clone(), left }
    }
}

fn named(name: Option<&str>) -> String {
    name.map(|name| format!(" called `{name}`")).unwrap_or_default()
}

fn others(left: &[String]) -> String {
    if left.is_empty() { String::new() } else { format!(", only {}", left.join(", ")) }
}

fn bind(addresses: Vec<(SocketAddr, Door, Arc<Scope>, bool)>) -> Result<Vec<Bound>, BindError> {
    let all: Vec<SocketAddr> = addresses.iter().map(|(address, ..)| *address).collect();
    let (mut bound, mut passed_over) = (Vec::new(), None);
    for (address, door, scope, tls) in addresses {
        // Beside its like of IPv4, `[::]` takes IPv6 alone; else it takes both, as the system has it.
        let twin = SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, address.port()));
        let alone = address.ip().is_unspecified() && all.contains(&twin);
        match Socket::tcp(address, alone) {
            Ok(socket) => bound.push(Bound { socket, door, scope, tls }),
            Err(source) if door != Door::Operations && lacks_ipv6(address, &source) => {
                tracing::warn!(%address, error = %source, "no IPv6 here: not listening on this address");
                passed_over = Some((address, source));
            }
            Err(source) => return Err(BindError::address(address, source)),
        }
    }
    match passed_over {
        Some((address, source)) if !bound.iter().any(Bound::is_public) => {
            Err(BindError::address(address, source))
        }
        _ => Ok(bound),
    }
}

fn lacks_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    let unsupported = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    let any = address.ip().is_loopback() || address.ip().is_unspecified();
    let lacking =
        error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(unsupported);
    address.is_ipv6() && any && lacking
}

/// Places for connections, and how their holders are asked to go.
#[derive(Clone)]
struct Places {
    free: Arc<Semaphore>,
    count: u32,
    /// Take nothing new, end after the requests under way.
    stop: CancellationToken,
    /// End now.
    cut: CancellationToken,
}

impl Places {
    fn new(count: usize) -> Self {
        let count = u32::try_from(count.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let free = Arc::new(Semaphore::new(count as usize));
        Self { free, count, stop: CancellationToken::new(), cut: CancellationToken::new() }
    }

    /// Ends the connections: of themselves within `grace`, then by force.
    async fn close(&self, grace: Duration) {
        self.stop.cancel();
        if tokio::time::timeout(grace, self.free.acquire_many(self.count)).await.is_err() {
            self.cut.cancel();
        }
    }
}

/// Takes one listener's connections.
struct Acceptor {
    door: Door,
    scope: Arc<Scope>,
    tls: Option<Arc<Tls>>,
    forward: Option<Arc<Forward>>,
    places: Places,
    service: Arc<ArcSwap<Service>>,
    metrics: Arc<Metrics>,
    patience: Patience,
    tasks: Tasks,
}

impl Acceptor {
    async fn run(self, socket: Socket) {
        let stop = self.places.stop.clone();
        tokio::select! { () = stop.cancelled() => {}, () = self.accept(socket) => {} }
    }

    async fn accept(&self, socket: Socket) {
        // Trouble that lasts is logged when it begins.
        let (mut failing, mut full) = (false, false);
        loop {
            match socket.accept().await {
                Ok((stream, peer)) => {
                    failing = false;
                    let Some(place) = self.place(&mut full).await else { return };
                    self.spawn(stream, peer, place);
                }
                Err(error) if is_of_one_client(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(%error, "connections cannot be accepted; trying on");
                    }
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    /// A place for the connection just accepted. While there is none, it waits, and those behind it
    /// wait in the kernel.
    async fn place(&self, full: &mut bool) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.free.clone().try_acquire_owned() {
            *full = false;
            return Some(place);
        }
        self.metrics.limited.cell(Limit::Connections, Limited::Waited).inc();
        if !std::mem::replace(full, true) {
            tracing::warn!(max = self.places.count, "all connections are taken: new ones wait");
        }
        // Fails only where the semaphore is closed, which it never is.
        self.places.free.clone().acquire_owned().await.ok()
    }

    fn context(&self) -> Context {
        Context {
            service: self.service.clone(),
            patience: self.patience,
            tasks: self.tasks.clone(),
            stop: self.places.stop.clone(),
        }
    }

    fn spawn(&self, stream: Stream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        match stream {
            Stream::Tcp(stream) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%peer, %error, "no TCP_NODELAY");
                }
                match self.forward.clone() {
                    Some(forward) => self.forward(forward, stream, peer, place),
                    None => self.serve(Direct::new(stream), peer, place, self.tls.is_none()),
                }
            }
            Stream::Unix(stream) => self.serve(stream, peer, place, false),
        }
    }

    fn forward(
        &self,
        forward: Arc<Forward>,
        stream: TcpStream,
        peer: SocketAddr,
        place: OwnedSemaphorePermit,
    ) {
        let (context, cut) = (self.context(), self.places.cut.clone());
        let open = Open::new(self.metrics.clone());
        self.tasks.spawn("forward proxy", async move {
            let (_place, _open) = (place, open);
            let served = forward.serve(stream, peer, context);
            tokio::select! { () = served => {}, () = cut.cancelled() => {} }
        });
    }

    fn serve<I>(&self, stream: I, peer: SocketAddr, place: OwnedSemaphorePermit, takes_windows: bool)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut arrival = Arrival::new(peer, self.door, self.tls.is_some());
        (arrival.scope, arrival.takes_windows) = (self.scope.clone(), takes_windows);
        let (tls, context) = (self.tls.clone(), self.context());
        let (cut, metrics) = (self.places.cut.clone(), self.metrics.clone());
        self.tasks.spawn("connection", async move {
            let _place = place;
            let _open = Open::new(metrics.clone());
            let served = async {
                match tls {
                    None => connection::serve(stream, arrival, context).await,
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => {
                            arrival.certificate = tls::client_name(&stream);
                            arrival.server_name = tls::server_name(&stream);
                            connection::serve_tls(stream, arrival, context).await
                        }
                        Err(error) => {
                            metrics.tls_failures.inc();
                            tracing::debug!(%peer, %error, "no connection");
                        }
                    },
                }
            };
            tokio::select! { () = served => {}, () = cut.cancelled() => {} }
        });
    }
}

/// The client went away before it was accepted.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// One open connection, counted.
struct Open(Arc<Metrics>);

impl Open {
    fn new(metrics: Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Self(metrics)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

#[cfg(test)]
pub(super) mod tests;
