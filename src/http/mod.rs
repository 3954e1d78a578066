//! Listeners, TLS, routes, responses.
//!
//! A connection (`listen`, `tls`, `handshake`, `connection`, `watch`) brings requests; `handler` leads each through
//! `route`, the layers below (`push` for writes, `lists` for lists) and `respond` or `error`; `exchange` follows it to its body's end.

mod address;
mod auth;
mod body;
mod callers;
mod connection;
mod direct;
mod error;
mod exchange;
mod forward;
mod gather;
mod handler;
mod handshake;
mod image;
mod listen;
mod lists;
mod operations;
mod owners;
mod page;
mod push;
mod query;
mod receive;
mod respond;
mod route;
mod socket;
mod tls;
mod token;
mod watch;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::oci::UpstreamHost;

pub use address::{Scope, Serve};
pub use body::{Body, BodyError};
pub use connection::{Arrival, Door};
pub use exchange::{Reports, RequestIds};
pub use forward::{Error as ForwardError, Forward, ForwardOptions, certificate_path};
pub use handler::{Content, Draining, Service};
pub use image::InvalidImage;
pub use listen::{BindError, Listeners};
pub use operations::Public;
pub use owners::{InvalidPattern, Owners, UnknownName};
pub use watch::Activity;

/// What is configured of the listeners.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub listen: Vec<SocketAddr>,
    /// Further listeners, each with what it serves.
    pub listeners: Vec<ListenerOptions>,
    /// A proxy for clients that know no mirrors.
    pub forward: Option<ForwardOptions>,
    /// Metrics, health and the page on a listener of their own; the public ones then have health only.
    pub operations: Option<SocketAddr>,
    /// Of `listen` and those that ask for it; the operator's speaks plain HTTP.
    pub tls: Option<TlsOptions>,
    /// Open connections at most, all listeners together.
    pub max_connections: usize,
    /// Longest wait for a request's head; longest idle connection.
    pub header_timeout: Duration,
    pub idle_timeout: Duration,
    /// How long shutdown lets bodies finish.
    pub shutdown_grace: Duration,
}

impl Options {
    pub fn public(&self) -> Public {
        let further = self.listeners.iter().find_map(|listener| match listener.address {
            ListenAddress::Tcp(address) => Some(Public { tls: listener.tls, port: address.port() }),
            ListenAddress::Unix { .. } | ListenAddress::Systemd(_) => None,
        });
        let first = self.listen.first().map(|first| Public { tls: self.tls.is_some(), port: first.port() });
        first.or(further).unwrap_or(Public { tls: self.tls.is_some(), port: 0 })
    }

    /// The addresses, as configured, that have the names of all upstreams, and whether they speak TLS.
    pub fn mirrored_at(&self) -> Vec<(SocketAddr, bool)> {
        let listen = self.listen.iter().map(|address| (*address, self.tls.is_some()));
        let further =
            self.listeners.iter().filter_map(|listener| match (&listener.address, &listener.scope) {
                (_, Scope { serve: Serve::Hosted, .. } | Scope { upstream: Some(_), .. }) => None,
                (ListenAddress::Tcp(address), _) => Some((*address, listener.tls)),
                (ListenAddress::Unix { .. } | ListenAddress::Systemd(_), _) => None,
            });
        listen.chain(further).collect()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct ListenerOptions {
    pub address: ListenAddress,
    pub scope: Scope,
    pub tls: bool,
}

/// Where a listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    Tcp(SocketAddr),
    /// `mode`: who may connect.
    Unix {
        path: PathBuf,
        mode: u32,
    },
    /// Sockets that systemd passes: those of this name, or all that are not named elsewhere.
    Systemd(Option<String>),
}

impl ListenAddress {
    pub fn same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix { path: one, .. }, Self::Unix { path: other, .. }) => one == other,
            (one, other) => one == other,
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
            Self::Systemd(Some(name)) => write!(f, "systemd:{name}"),
            Self::Systemd(None) => f.write_str("systemd"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct TlsOptions {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
    /// Further ones, for the hosts that they name.
    pub others: Vec<Pair>,
    /// Whose certificates show who a client is.
    pub clients: Option<ClientCertificates>,
}

/// A certificate and its key, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

/// Certificates that TLS clients show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// PEM.
    pub ca_file: PathBuf,
    /// Who has none gets no connection.
    pub required: bool,
}

/// Whose which name is (design: "names, owners, trust").
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnersOptions {
    /// Every configured upstream with its aliases. One may be the default.
    pub upstreams: Vec<(UpstreamHost, Vec<String>)>,
    /// Virtual hosts: by which `Host` of a request which upstream is meant.
    pub hosts: Vec<(String, UpstreamHost)>,
    /// Glob patterns of hosted names: `*` (one component), `corp.internal/**`.
    pub hosted: Vec<String>,
    /// Those of the patterns whose names are served only where nothing is mirrored.
    pub apart: Vec<String>,
}
