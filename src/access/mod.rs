//! Who may do what: the client's identity, and limits on clients.

mod caller;
mod client;
mod external;
mod limits;

use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::IpNet;

pub use caller::{Action, Caller, Identity};
pub use client::Client;
pub use external::External;
pub use limits::{ClientToll, Limits};

/// So many a minute, and so many at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_minute: NonZeroU32,
    pub burst: NonZeroU32,
}

/// What is configured of client limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// All requests of one client. None: unlimited.
    pub requests: Option<Rate>,
    /// Requests of one client that spend upstream quota. None: unlimited.
    pub cold_misses: Option<Rate>,
    /// For clients in these networks; the longest prefix decides.
    pub overrides: Vec<Override>,
    /// Longest wait at a limit before 429, and how many may wait.
    pub wait: Duration,
    pub queue: usize,
    /// Proxies whose word is believed on who a client is and what it asked: X-Forwarded-*, Forwarded.
    pub trusted_proxies: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    pub network: IpNet,
    pub requests: Option<Rate>,
    pub cold_misses: Option<Rate>,
}
