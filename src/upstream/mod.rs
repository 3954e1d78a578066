//! One remote registry: requests, tokens, credentials, quota, retries.
//!
//! A call goes through a `gate` (bounded places and waits), then in a `round` to one `endpoint` after the
//! other, at each through `request` (token, redirects, retries), whose every hop is one `client` request.
//! `guard` says where the hops may lead, `breaker` and `quota` when it is better not to ask: that keeps the
//! `budget`, with each client's `share` and the `leak`s.

mod answered;
mod blob;
mod body;
mod breaker;
mod budget;
mod callers;
mod challenge;
mod client;
mod credential;
mod docker_config;
mod endpoint;
mod gate;
mod guard;
mod helper;
mod hops;
mod judge;
mod leak;
mod login;
mod manifest;
mod quota;
mod realm;
mod referrers;
mod request;
mod resolver;
mod retry;
mod round;
mod share;
mod source;
mod spend;
mod tags;
#[cfg(test)]
mod tests;
mod token;
mod told;
mod window;

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::header::VIA;
use http::{HeaderMap, Method};
use url::Url;

use self::callers::Callers;
use self::endpoint::Endpoint;
use self::gate::Gate;
use self::quota::Quota;
use self::request::Ask;
use self::round::Turn;
use crate::clock::Clock;
use crate::metrics::{Metrics, UpstreamCall, UpstreamMetrics};
use crate::oci::{Digest, MediaType, Name, UpstreamHost};
use crate::tasks::Tasks;

pub use self::budget::{HeldBack, Options as BudgetOptions, Reserve};
pub use self::callers::CallerId;
pub use self::credential::{Credential, Login, LoginSecret, Password, Secret, is_helper_name, search_path};
pub use self::endpoint::{EndpointOptions, Proxy, check_url};
pub use self::guard::public_only;
pub use self::helper::{find as find_helper, is_program};
pub use self::hops::{CACHE_STATUS, Hops, PROXY_STATUS, STALE, STALE_BECAUSE, loop_status};
pub use self::referrers::{MAX_REFERRERS, ToldReferrers};
pub use self::source::has_docker_login;
pub use crate::metrics::Saving;

/// What is configured of one upstream. `config` builds it; every field is checked already.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub host: UpstreamHost,
    /// Base of its API: `https://registry-1.docker.io/`. http only where written so. See [`check_url`].
    pub url: Url,
    pub credential: Option<Credential>,
    /// PEM file of further CAs, trusted for the upstream, its token server and its CDN.
    pub ca_file: Option<PathBuf>,
    pub proxy: Proxy,
    /// Asked in this order before the upstream itself. None is sent the upstream's credential.
    pub mirrors: Vec<EndpointOptions>,
    pub private: PrivatePolicy,
    /// Hosts that a redirect may lead to though their address is private.
    pub redirect_hosts: Vec<String>,
    /// Further hosts that may be sent the credential as token servers.
    pub realm_hosts: Vec<String>,
    pub connect_timeout: Duration,
    pub header_timeout: Duration,
    /// Longest wait for the next bytes of a body.
    pub idle_timeout: Duration,
    /// Longest time for one request with its tokens, redirects and tries at all endpoints, up to the head
    /// of the answer; of a manifest, up to its end. Four times that for a list with all its pages.
    pub deadline: Duration,
    /// Requests in flight at once (heads and manifests; a fill holds a fill's place only).
    pub max_requests: usize,
    pub max_fills: usize,
    /// Longest wait for a place among the two above, and how many may wait.
    pub queue_timeout: Duration,
    pub queue_length: usize,
    /// A ceiling on requests a minute, for upstreams that have an abuse limit. None: no ceiling.
    pub requests_per_minute: Option<std::num::NonZeroU32>,
    pub budget: BudgetOptions,
}

impl Options {
    /// The upstream itself, as one of its endpoints.
    pub fn own(&self) -> EndpointOptions {
        EndpointOptions {
            url: self.url.clone(),
            credential: self.credential.clone(),
            ca_file: self.ca_file.clone(),
            proxy: self.proxy.clone(),
        }
    }

    /// Whether callers show logins of their own.
    pub fn asks_callers(&self) -> bool {
        matches!(self.private, PrivatePolicy::PerCaller(_))
    }

    /// Whether anything that is had of it may be had because of a credential.
    pub fn has_credential(&self) -> bool {
        self.credential.is_some() || self.mirrors.iter().any(|mirror| mirror.credential.is_some())
    }
}

/// What becomes of repositories that nobody may pull without a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrivatePolicy {
    Refuse,
    Shared,
    /// Whoever shows a login of the upstream's that may pull them.
    PerCaller(Proofs),
}

/// How long a caller's right to a repository is taken as shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proofs {
    pub hold: Duration,
    /// For how much longer while the upstream cannot be asked.
    pub stale: Duration,
}

/// In whose name a request goes upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    Anonymous,
    /// The configured credential; anonymous where none is configured.
    Configured,
    /// A caller's own login.
    Caller(CallerId),
}

/// What the upstream is asked for. What comes first is held back last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// What is not held, for a priority client or of a pinned image.
    Priority,
    /// What is not held, for anybody.
    Miss,
    /// Whether what is held is current.
    Revalidation,
    /// What nobody waits for.
    Background,
}

/// On what, and on whose account, quota is spent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spender {
    pub purpose: Purpose,
    /// Whose share it is taken from. None: nobody's.
    pub client: Option<String>,
}

/// What a HEAD of a manifest told. Everything may be missing: servers differ.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ManifestHead {
    pub digest: Option<Digest>,
    pub media_type: Option<MediaType>,
    pub size: Option<u64>,
    /// Why a Forebay that was asked could not confirm it itself.
    pub stale: Option<String>,
}

/// A manifest as it came, its digest computed from the bytes (and equal to the one asked for).
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    pub bytes: Bytes,
    pub digest: Digest,
    /// From Content-Type.
    pub media_type: Option<MediaType>,
}

/// A blob's body on its way. Dropping it ends the transfer.
pub struct BlobStream {
    /// Offset of the stream's first byte: what was asked for, or 0 where the upstream ignores Range.
    pub start: u64,
    /// Size of the whole blob, where told.
    pub total: Option<u64>,
    /// Whether it ends where it was asked to; else with the blob.
    pub bounded: bool,
    pub stream: BoxStream<'static, Result<Bytes, Error>>,
    pub giver: Giver,
}

/// Whom a blob's bytes are from.
#[derive(Clone)]
pub struct Giver(Arc<Endpoint>);

/// Why an upstream could not be had, for one request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{operation} {subject}: {cause}")]
pub struct Error {
    /// `HEAD manifest`, `GET blob`, `GET tags`…
    pub operation: &'static str,
    /// `docker.io/library/nginx:1.27`; never a signed URL, never a secret.
    pub subject: String,
    #[source]
    pub cause: Cause,
}

/// What kind of failure, and so what to do about it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Cause {
    /// The upstream says that it has no such thing (404).
    #[error("not found upstream")]
    NotFound,
    /// The upstream says that this identity may not (401, 403, or the token server's word).
    #[error("access denied by the upstream{0}")]
    Denied(String),
    /// 429 now, or paused since one: the time until another try makes sense.
    #[error("the upstream's rate limit is exhausted, next try in {} s", .0.as_secs())]
    Limited(Duration),
    /// What is left of the quota is kept for others.
    #[error("{0}")]
    HeldBack(HeldBack),
    /// Our own bounded queue in front of the upstream is full or too slow.
    #[error("too many requests wait for the upstream")]
    Busy,
    /// Unreachable, too slow, 5xx, a body cut or unfit: try later, serve stale.
    #[error("{0}")]
    Trouble(String),
    /// What came is not what was asked for: wrong digest, too large, a page of HTML.
    #[error("{0}")]
    Corrupt(String),
    /// What was asked for has come back to who asked first. Names the setting to be corrected.
    #[error("{0}")]
    Loop(String),
    /// Our policy refuses to go on: a realm or a redirect that leads astray. Names the setting that would allow it.
    #[error("{0}")]
    Refused(String),
}

/// A snapshot of the quota, as the upstream told it, and of what is made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuotaState {
    pub limit: Option<u64>,
    pub remaining: Option<u64>,
    pub window: Option<Duration>,
    /// Manifest GETs are paused for this long still.
    pub paused_for: Option<Duration>,
    /// When all of it is there again, at the latest.
    pub window_ends: Option<SystemTime>,
    /// When nothing is left, spent on as of late; None where the window ends before.
    pub exhausted: Option<SystemTime>,
    /// The first of what is held back, and so is all that comes after it.
    pub held_back: Option<Purpose>,
    /// Manifests that clients got without a pull, since the start.
    pub saved: u64,
    pub leak: Option<LeakState>,
}

/// Somebody else spends the quota.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeakState {
    pub pulls: u64,
    /// The address or account whose quota it is.
    pub source: Option<String>,
    /// Clients that used to ask here and stopped.
    pub silent: Vec<String>,
}

/// Speaks with one registry. Its calls are in `manifest.rs`, `blob.rs`, `tags.rs` and `referrers.rs`.
pub struct Upstream {
    shared: Arc<Shared>,
    /// On whose behalf it is asked.
    hops: Hops,
}

/// What is one, on whosever behalf it is asked.
pub struct Shared {
    me: Weak<Self>,
    options: Options,
    metrics: Arc<UpstreamMetrics>,
    /// The mirrors and, last, the upstream itself.
    endpoints: Vec<Arc<Endpoint>>,
    request_gate: Gate,
    fill_gate: Gate,
    quota: Quota,
    callers: Arc<Callers>,
    clock: Clock,
    tasks: Tasks,
}

impl Deref for Upstream {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Upstream {
    /// Fails where a CA file cannot be used, or the system has no trust store.
    pub fn new(options: Options, metrics: &Metrics, clock: Clock, tasks: Tasks) -> Result<Arc<Self>, Error> {
        let metrics = Arc::new(metrics.upstream(options.host.as_str()));
        let callers = Arc::new(Callers::new(options.private, tasks.clone()));
        let endpoints = Endpoint::all(&options, &callers, &metrics, &clock, &tasks)?;
        let gate =
            |places| Gate::new(places, options.queue_length, options.queue_timeout, metrics.waiting.clone());
        let (request_gate, fill_gate) = (gate(options.max_requests), gate(options.max_fills));
        let pulls_as = effective(&options, Identity::Configured);
        let quota = Quota::new(
            options.host.as_str(),
            options.budget.clone(),
            clock.clone(),
            metrics.clone(),
            pulls_as,
        );
        let shared = Arc::new_cyclic(|me| Shared {
            me: me.clone(),
            options,
            metrics,
            endpoints,
            request_gate,
            fill_gate,
            quota,
            callers,
            clock,
            tasks,
        });
        Ok(Arc::new(Self { shared, hops: Hops::default() }))
    }

    /// The same upstream, asked on behalf of a request that other Forebays have passed on.
    pub fn on_behalf(self: &Arc<Self>, hops: &Hops) -> Arc<Self> {
        if self.hops == *hops {
            return self.clone();
        }
        Arc::new(Self { shared: self.shared.clone(), hops: hops.clone() })
    }

    /// Why a request that has passed through these is not served: it has been here before.
    pub fn closes_loop(&self, hops: &Hops) -> Option<String> {
        let been = self.endpoints.iter().find(|endpoint| hops.contains(&endpoint.pseudonym));
        match been {
            Some(endpoint) => Some(endpoint.loop_told()),
            None if hops.is_too_long() => Some(format!(
                "a loop of registries, or a chain of too many: one of those that {} is asked through leads back; \
                 correct its `url`",
                self.options.host
            )),
            None => None,
        }
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What is known of the quota of the identity that pulls.
    pub fn quota(&self) -> QuotaState {
        self.quota.snapshot()
    }

    /// Somebody asks for a manifest, held here or not; `client` names who, where it matters.
    pub fn saw(&self, purpose: Purpose, client: impl FnOnce() -> Option<String>) {
        self.quota.saw(purpose, client);
    }

    /// Somebody got a manifest without a pull.
    pub fn saved(&self, saving: Saving) {
        self.quota.saved(saving);
    }

    /// Has the metrics tell of the quota as it is now.
    pub fn show_quota(&self) {
        self.quota.show_now();
    }

    /// Why no pull is to be spent on this now: the budget, or a pause of all pulls. Where there are mirrors,
    /// which have no quota, that is decided when it is the upstream's own turn.
    pub fn holds_back(&self, identity: Identity, purpose: Purpose) -> Option<HeldBack> {
        if self.has_mirror_for(identity) {
            return None;
        }
        let identity = effective(&self.options, identity);
        self.quota.paused(identity).or_else(|| self.quota.holds_back(identity, purpose))
    }

    /// Why no HEAD is to be spent on confirming what is held. Asked before each: now and then one passes,
    /// to learn what is left. Where there are mirrors, all do.
    pub fn holds_back_head(&self, identity: Identity, purpose: Purpose) -> Option<HeldBack> {
        if self.has_mirror_for(identity) {
            return None;
        }
        self.quota.holds_back_head(effective(&self.options, identity), purpose)
    }

    /// `path` below `/v2/<name>/`, at the endpoint whose turn it is.
    fn ask(
        &self,
        turn: &Turn<'_>,
        call: UpstreamCall,
        method: Method,
        name: &Name,
        path: &str,
        mut headers: HeaderMap,
    ) -> Result<Ask, Cause> {
        let name = turn.endpoint.name_there(name)?;
        headers.extend(self.hops.then(&turn.endpoint.pseudonym).map(|via| (VIA, via)));
        let url = turn.endpoint.url(&name, path);
        Ok(Ask { call, method, identity: turn.identity, name, url, headers, patient: false })
    }

    /// Says of a cause what it is the cause of. `subject` follows the repository: `:tag`, `@digest`.
    fn error(&self, operation: &'static str, name: &Name, subject: &str, cause: Cause) -> Error {
        Error { operation, subject: format!("{}/{name}{subject}", self.options.host), cause }
    }
}

/// Without a configured credential, nobody is who has it.
fn effective(options: &Options, identity: Identity) -> Identity {
    match identity {
        Identity::Configured if options.credential.is_none() => Identity::Anonymous,
        identity => identity,
    }
}
