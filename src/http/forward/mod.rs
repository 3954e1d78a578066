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

use arc_swap::ArcSwap;
use globset::{Glob, GlobSet, GlobSetBuilder};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use self::ca::Authority;
use super::address::{Scope, Serve};
use super::connection::{self, Arrival, Door, HEAD_MAX};
use super::handler::Service;
use super::tls;
use super::watch::Patience;
use crate::clock::Clock;
use crate::metrics::{Forwarded, Metrics};
use crate::oci::UpstreamHost;
use crate::tasks::{Tasks, lock};

pub use ca::{Error as CaError, certificate_path};

/// Registries and what may be tunnelled to speak TLS there.
const PORT: u16 = 443;

/// What is configured of the forward proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardOptions {
    pub listen: SocketAddr,
    /// Patterns of further hosts that connections are passed on to: `*.example.com`.
    pub tunnel: Vec<String>,
    /// By which names clients know the registries that are answered for.
    pub registries: BTreeMap<String, UpstreamHost>,
}

pub struct Forward {
    registries: BTreeMap<String, UpstreamHost>,
    tunnel: GlobSet,
    authority: Authority,
    metrics: Arc<Metrics>,
}

/// What becomes of a `CONNECT`.
#[derive(Debug)]
enum Way {
    /// This server answers, as the registry.
    Serve(String, UpstreamHost),
    Tunnel(String),
}

impl Forward {
    /// Reads the CA, or makes one. Blocks.
    pub fn open(
        options: &ForwardOptions,
        data: &Path,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Result<Self, CaError> {
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
        // They were read once by `config` already.
        options.tunnel.iter().filter_map(|pattern| Glob::new(pattern).ok()).for_each(|glob| {
            tunnel.add(glob);
        });
        let tunnel = tunnel.build().unwrap_or_default();
        Ok(Self { registries: options.registries.clone(), tunnel, authority, metrics })
    }

    /// Where a `CONNECT` to this authority leads, or why nowhere.
    fn way(&self, authority: &str) -> Result<Way, String> {
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
        let known: Vec<&str> = self.registries.keys().map(String::as_str).collect();
        Err(format!(
            "{host} is none of the registries here ({}), and not in `forward_proxy.tunnel`; have the client go \
             there by itself (NO_PROXY)",
            known.join(", ")
        ))
    }

    /// One connection: requests until one of them is a `CONNECT` that is granted, then what comes in it.
    pub async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, context: Context) {
        let granted = Mutex::new(None);
        let answer = service_fn(|request| {
            let answer = self.answer(request, &granted);
            async move { Ok::<_, Infallible>(answer) }
        });
        let mut protocol = http1::Builder::new();
        protocol.timer(TokioTimer::new()).header_read_timeout(context.patience.idle).max_buf_size(HEAD_MAX);
        let served = protocol.serve_connection(TokioIo::new(stream), answer).with_upgrades();
        let served = tokio::select! { served = served => served, () = context.stop.cancelled() => return };
        if let Err(error) = served {
            return tracing::debug!(%peer, %error, "connection to the forward proxy ended");
        }
        let Some((way, upgrade)) = lock(&granted).take() else { return };
        match upgrade.await {
            Ok(upgraded) => self.go(way, TokioIo::new(upgraded), peer, context).await,
            Err(error) => tracing::debug!(%peer, %error, "connection to the forward proxy ended"),
        }
    }

    fn answer(
        &self,
        request: Request<Incoming>,
        granted: &Mutex<Option<(Way, OnUpgrade)>>,
    ) -> Response<String> {
        if request.method() != Method::CONNECT {
            let why =
                "this is a proxy for HTTPS (CONNECT) only: registries are served at the other listeners";
            return self.refuse(StatusCode::METHOD_NOT_ALLOWED, why.to_owned());
        }
        match self.way(request.uri().authority().map_or("", |authority| authority.as_str())) {
            Ok(way) => {
                *lock(granted) = Some((way, hyper::upgrade::on(request)));
                Response::new(String::new())
            }
            Err(why) => self.refuse(StatusCode::FORBIDDEN, why),
        }
    }

    fn refuse(&self, status: StatusCode, why: String) -> Response<String> {
        self.metrics.forwarded.cell(Forwarded::Refused).inc();
        let mut response = Response::new(format!("forebay: {why}\n"));
        *response.status_mut() = status;
        response
    }

    async fn go(&self, way: Way, client: TokioIo<Upgraded>, peer: SocketAddr, context: Context) {
        match way {
            Way::Serve(host, upstream) => self.intercept(host, upstream, client, peer, context).await,
            Way::Tunnel(host) => {
                let passed = async {
                    let server = tunnel::open(&host, PORT).await.map_err(|error| error.to_string())?;
                    self.metrics.forwarded.cell(Forwarded::Tunnelled).inc();
                    tunnel::copy(client, server, context.patience).await.map_err(|error| error.to_string())
                };
                if let Err(why) = passed.await {
                    self.metrics.forwarded.cell(Forwarded::Failed).inc();
                    tracing::info!(%peer, host, why, "connection not passed on");
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
            Err(why) => return tracing::error!(host, why, "no certificate for this registry"),
        };
        match tls::accept(server, client).await {
            Ok(stream) => {
                self.metrics.forwarded.cell(Forwarded::Served).inc();
                let mut arrival = Arrival::new(peer, Door::Public, true);
                arrival.scope = Arc::new(Scope { serve: Serve::Mirror, upstream: Some(upstream) });
                arrival.server_name = Some(host.into());
                let Context { service, patience, tasks, stop } = context;
                connection::serve(stream, arrival, service, patience, tasks, stop).await;
            }
            Err(error) => {
                self.metrics.forwarded.cell(Forwarded::Failed).inc();
                tracing::info!(%peer, host, %error, "a client of the forward proxy did not take its certificate");
            }
        }
    }
}

/// What every connection is served with.
#[derive(Clone)]
pub struct Context {
    pub service: Arc<ArcSwap<Service>>,
    pub patience: Patience,
    pub tasks: Tasks,
    pub stop: CancellationToken,
}
