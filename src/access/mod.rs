//! Who may do what: the client's identity, policy, and limits on clients.
//!
//! [`Gate`] says whom a request's credentials show ([`passwords`], and so on), [`Policy`] what that
//! identity may do, [`Limits`] how much.

mod caller;
mod client;
mod external;
mod failures;
mod gate;
pub mod htpasswd;
mod issuers;
mod keys;
mod limits;
mod mint;
mod options;
mod pass;
mod passwords;
mod policy;
mod priority;
mod remote;
mod token;
mod watched;
mod who;

use std::num::NonZeroU32;
use std::time::Duration;

use ipnet::IpNet;

pub use caller::{Access, Action, Caller, Grants, Identity, Refused, Subject};
pub use client::Client;
pub use external::External;
pub use failures::{Attempt, Failures};
pub use gate::{Challenge, Gate, NotShown, Shown, basic};
pub use limits::{ClientToll, Limits, Payer, Visitor};
pub use mint::{Issued, write_secret};
pub use options::{AuthOptions, IssuerOptions, KeyOptions, LoginHosts, TokenOptions, TokenServerOptions};
pub use pass::{Pass, Passes, pass_of};
pub use policy::{Decision, Defaults, Policy, Push, Reason, Rule, glob};
pub use priority::Priority;
pub use who::{Who, Wild};

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
    /// For who has logged in; the first name that fits decides. Others who have logged in have the
    /// limits of everybody, and an account of their own.
    pub identities: Vec<IdentityLimit>,
    /// Who may use the reserve of an upstream's quota.
    pub priority: Priority,
    /// While a quota is scarce, no client may take more of it than its part.
    pub fair_share: bool,
    /// Longest wait at a limit before 429, and how many may wait.
    pub wait: Duration,
    pub queue: usize,
    /// Proxies whose word is believed on who a client is and what it asked: X-Forwarded-*, Forwarded.
    pub trusted_proxies: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    pub network: IpNet,
    pub rates: Rates,
}

#[derive(Clone, Debug, PartialEq)]
pub struct IdentityLimit {
    /// As identities are written: `alice`, `certificate:ci-*`, `gitlab:corp/*`.
    pub name: Wild,
    pub rates: Rates,
}

/// None: unlimited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    pub requests: Option<Rate>,
    pub cold_misses: Option<Rate>,
}
