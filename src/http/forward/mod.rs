//! The forward proxy: for clients that know `HTTPS_PROXY` and no mirrors.
//!
//! `CONNECT` to a configured registry is answered by this server itself, with a certificate of its own
//! CA; to another host that is listed it is passed on; anything else is refused.

mod ca;
#[cfg(test)]
mod tests;
mod tunnel;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use globset::{Glob, GlobSet, GlobSetBuilder};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use self::ca::Authority;
use super::address::{Scope, Serve};
use super::connection::{self, Arrival, Context, Door, HEAD_MAX};
use super::watch::{self, Activity, Observed};
use crate::access::Identity;
use crate::clock::Clock;
use crate::metrics::{Forwarded, Metrics};
use crate::oci::UpstreamHost;
use crate::tasks::lock;

pub use ca::certificate_path;

/// Registries and what may be tunnelled to speak TLS there.
const PORT: u16 = 443;

/// What is configured of the forward proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardOptions {
    pub listen: SocketAddr,
    /// Patterns of further hosts that connections are passed on to: `*.example.com`.
    pub tunnel: Vec<Glob>,
    /// By which names clients know the registries that are answered for.
    pub registries: BTreeMap<String, UpstreamHost>,
}

/// Why there is no forward proxy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ca(#[from] ca::Error),
    #[error("`forward_proxy.tunnel` cannot be matched: {0}; write fewer or shorter patterns")]
    Tunnel(#[from] globset::Error),
}

pub struct Forward {
    registries: BTreeMap<String, UpstreamHost>,
    tunnel: GlobSet,
    authority: Authority,
    metrics: Arc<Metrics>,
}

/// What is asked for by a `CONNECT`.
#[derive(Debug)]
enum Way {
    /// This server answers, as the registry.
    Serve(String, UpstreamHost),
    Tunnel(String),
}

/// What a granted `CONNECT` leads to.
enum Goal {
    Serve(String, UpstreamHost),
    /// The connection that bytes are passed on to.
    Tunnel(String, TcpStream),
}

/// Why a request is not granted.
struct Refusal {
    status: StatusCode,
    result: Forwarded,
    why: String,
}

impl Forward {
    /// Reads the CA, or makes one. Blocks.
    pub fn open(
        options: &ForwardOptions,
        data: &Path,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Result<Self, Error> {
        let hosts = options.registries.keys().cloned().collect();
        let authority = Authority::open(data, &hosts, clock)?;
        let lacking = authority.lacking(&hosts);
        if !lacking.is_empty() {
            tracing::error!(
                hosts = lacking.join(", "),
                ca = %certificate_path(data).display(),
                "the forward proxy's CA was made before these registries were configured, and clients will not \
                 take its certificates for them: remove it and its key, restart, and have clients trust the new one"
            );
        }
        let mut tunnel = GlobSetBuilder::new();
        for pattern in &options.tunnel {
            tunnel.add(pattern.clone());
        }
        let tunnel = tunnel.build()?;
        Ok(Self { registries: options.registries.clone(), tunnel, authority, metrics })
    }

    /// Where a `CONNECT` to this authority leads, or why nowhere. Of the registries, those are named
    /// that `is_open` to the caller.
    fn way(&self, authority: &str, is_open: impl Fn(&UpstreamHost) -> bool) -> Result<Way, String> {
        let wanted: Option<(String, u16)> = authority.rsplit_once(':').and_then(|(host, port)| {
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            Some((host, port.parse().ok()?))
        });
        let Some((host, port)) = wanted else {
            return Err(format!(
                "`{}` is no host with a port",
                authority.chars().take(120).collect::<String>()
            ));
        };
        if port != PORT {
            return Err(format!("connections are passed on to port {PORT} only, not to {port}"));
        }
        if let Some(upstream) = self.registries.get(&host) {
            return Ok(Way::Serve(host, upstream.clone()));
        }
        if self.tunnel.is_match(&host) {
            return Ok(Way::Tunnel(host));
        }
        let open = self.registries.iter().filter(|(_, upstream)| is_open(upstream));
        let open: Vec<&str> = open.map(|(name, _)| name.as_str()).collect();
        let open = if open.is_empty() { String::new() } else { format!(" ({})", open.join(", ")) };
        Err(format!(
            "{host} is none of the registries here{open}, and not in `forward_proxy.tunnel`; have the client go \
             there by itself (NO_PROXY)"
        ))
    }

    /// One connection: requests until one of them is a `CONNECT` that is granted, then what comes in it.
    pub async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, context: Context) {
        let Some((goal, upgrade)) = self.granted(stream, peer, &context).await else { return };
        match upgrade.await {
            Ok(upgraded) => self.go(goal, TokioIo::new(upgraded), peer, context).await,
            Err(error) => tracing::debug!(%peer, %error, "connection to the forward proxy ended"),
        }
    }

    /// Answers requests up to the one that is granted. None: the connection ended before.
    async fn granted(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        context: &Context,
    ) -> Option<(Goal, OnUpgrade)> {
        let granted = Mutex::new(None);
        let activity = Arc::new(Activity::default());
        let answer = service_fn(|request| {
            let under_way = activity.begin(Version::HTTP_11);
            let answer = self.answer(request, peer, &granted, context);
            async move {
                let answer = answer.await;
                drop(under_way);
                Ok::<_, Infallible>(answer)
            }
        });
        let mut protocol = http1::Builder::new();
        // The watch sees to late heads, and to who does not read the answers.
        protocol.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_MAX);
        let io = TokioIo::new(Observed::new(stream, activity.clone()));
        let served = protocol.serve_connection(io, answer).with_upgrades();
        let ended = tokio::select! {
            biased;
            served = served => served.map_err(|error| error.to_string()),
            () = context.stop.cancelled() => return None,
            () = watch::stood_still(&activity, context.patience) => Err("it stood still".to_owned()),
        };
        if let Err(why) = ended {
            tracing::debug!(%peer, why, "connection to the forward proxy ended");
            return None;
        }
        lock(&granted).take()
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        granted: &Mutex<Option<(Goal, OnUpgrade)>>,
        context: &Context,
    ) -> Response<String> {
        match self.goal(&request, peer, context).await {
            Ok(goal) => {
                *lock(granted) = Some((goal, hyper::upgrade::on(request)));
                Response::new(String::new())
            }
            Err(Refusal { status, result, why }) => {
                self.metrics.forwarded.cell(result).inc();
                let mut response = Response::new(format!("forebay: {why}\n"));
                *response.status_mut() = status;
                response
            }
        }
    }

    /// Judges a request, and connects to where it is to be passed on.
    async fn goal(
        &self,
        request: &Request<Incoming>,
        peer: SocketAddr,
        context: &Context,
    ) -> Result<Goal, Refusal> {
        let refused = |status, why| Refusal { status, result: Forwarded::Refused, why };
        if request.method() != Method::CONNECT {
            let why =
                "this is a proxy for HTTPS (CONNECT) only: registries are served at the other listeners";
            return Err(refused(StatusCode::METHOD_NOT_ALLOWED, why.to_owned()));
        }
        let authority = request.uri().authority().map_or("", |authority| authority.as_str());
        let gate = context.service.load().gate.clone();
        // Nobody logs in to a proxy.
        let is_open = |host: &UpstreamHost| gate.policy().opens(&Identity::Anonymous, host);
        match self.way(authority, is_open) {
            Ok(Way::Serve(host, upstream)) => Ok(Goal::Serve(host, upstream)),
            Ok(Way::Tunnel(host)) => match tunnel::open(&host, PORT).await {
                Ok(server) => Ok(Goal::Tunnel(host, server)),
                Err(why) => {
                    tracing::info!(%peer, host, %why, "connection not passed on");
                    Err(why.into())
                }
            },
            Err(why) => Err(refused(StatusCode::FORBIDDEN, why)),
        }
    }

    async fn go(&self, goal: Goal, client: TokioIo<Upgraded>, peer: SocketAddr, context: Context) {
        match goal {
            Goal::Serve(host, upstream) => self.intercept(host, upstream, client, peer, context).await,
            Goal::Tunnel(host, server) => {
                self.metrics.forwarded.cell(Forwarded::Tunnelled).inc();
                if let Err(error) = tunnel::copy(client, server, context.patience, &context.stop).await {
                    tracing::debug!(%peer, host, %error, "connection passed on ended");
                }
            }
        }
    }

    /// Answers as the registry would.
    async fn intercept(
        &self,
        host: String,
        upstream: UpstreamHost,
        client: TokioIo<Upgraded>,
        peer: SocketAddr,
        context: Context,
    ) {
        let server = match self.authority.server(&host) {
            Ok(server) => server,
            Err(why) => {
                self.metrics.forwarded.cell(Forwarded::Failed).inc();
                return tracing::error!(host, why, "no certificate for this registry");
            }
        };
        match server.accept(client).await {
            Ok(stream) => {
                self.metrics.forwarded.cell(Forwarded::Served).inc();
                let mut arrival = Arrival::new(peer, Door::Public, true);
                arrival.scope = Arc::new(Scope { serve: Serve::Mirror, upstream: Some(upstream) });
                arrival.server_name = Some(host.into());
                connection::serve_tls(stream, arrival, context).await;
            }
            Err(error) => {
                self.metrics.forwarded.cell(Forwarded::Failed).inc();
                tracing::info!(%peer, host, %error, "a client of the forward proxy did not take its certificate");
            }
        }
    }
}

impl From<tunnel::Refused> for Refusal {
    fn from(refused: tunnel::Refused) -> Self {
        let (status, result) = match refused {
            tunnel::Refused::Private(_) => (StatusCode::FORBIDDEN, Forwarded::Refused),
            tunnel::Refused::Unreachable(_) => (StatusCode::BAD_GATEWAY, Forwarded::Failed),
        };
        Self { status, result, why: refused.to_string() }
    }
}
