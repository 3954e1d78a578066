//! Listeners, TLS, routes, responses.
//!
//! A connection (`listen`, `tls`, `connection`, `watch`) brings requests; `handler` leads each through
//! `route`, the layers below (`push` for writes, `lists` for lists) and `respond` or `error`; `exchange` follows it to its body's end.

mod auth;
mod body;
mod connection;
mod error;
mod exchange;
mod handler;
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
mod tls;
mod token;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::oci::UpstreamHost;

pub use body::{Body, BodyError};
pub use connection::{Arrival, Door};
pub use exchange::{Reports, RequestIds};
pub use handler::{Content, Draining, Service};
pub use listen::{BindError, Listeners};
pub use operations::Public;
pub use owners::{InvalidPattern, Owners, UnknownName};
pub use watch::Activity;

/// What is configured of the listeners.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub listen: Vec<SocketAddr>,
    /// Metrics, health and the page on a listener of their own; the public ones then have health only.
    pub operations: Option<SocketAddr>,
    /// Of the public listeners; the operator's speaks plain HTTP.
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
        Public { tls: self.tls.is_some(), port: self.listen.first().map_or(0, SocketAddr::port) }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct TlsOptions {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
    /// Whose certificates show who a client is.
    pub clients: Option<ClientCertificates>,
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
#[derive(Clone, Debug, PartialEq)]
pub struct OwnersOptions {
    /// Every configured upstream with its aliases. One may be the default.
    pub upstreams: Vec<(UpstreamHost, Vec<String>)>,
    /// Glob patterns of hosted names: `*` (one component), `corp.internal/**`.
    pub hosted: Vec<String>,
}
