//! One request, one answer: no redirects, no retries, no tokens.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use http::{Method, StatusCode, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use moka::sync::Cache;
use reqwest::{Certificate, Client, ClientBuilder, Response};
use url::Url;

use super::body::Reading;
use super::breaker::{Breaker, Policy, Tripped};
use super::guard::{self, PrivateAddress, Reach};
use super::resolver::Resolver;
use super::{Cause, EndpointOptions, Options, Proxy};
use crate::clock::Clock;
use crate::metrics::{UpstreamCall, UpstreamMetrics, UpstreamStatus};

const USER_AGENT: &str = concat!("forebay/", env!("CARGO_PKG_VERSION"));
/// Of each server that requests go to: registry, token server, CDN. Few requests with their retries open
/// it; a minute is the longest that a server that is back again is not seen to be.
const BREAKER: Policy = Policy {
    failures: 5,
    over: Duration::from_secs(1),
    first: Duration::from_secs(2),
    last: Duration::from_secs(60),
};
/// Servers remembered at once.
const SERVERS: u64 = 256;
/// When a connection that says nothing is asked whether it is still there, between these bounds.
const PROBE_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Why a request has no answer.
#[derive(Debug)]
pub enum Failure {
    /// The network's or the server's fault: another try may go better.
    Passing(String),
    /// Its circuit breaker is open: it was not asked, and may be after this time.
    Tripped(Duration, String),
    Final(Cause),
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        Self::Final(cause)
    }
}

impl From<Failure> for Cause {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Passing(why) | Failure::Tripped(_, why) => Self::Trouble(why),
            Failure::Final(cause) => cause,
        }
    }
}

/// One request to one URL.
pub struct Hop<'a> {
    pub call: UpstreamCall,
    pub method: Method,
    pub url: &'a Url,
    pub headers: HeaderMap,
    /// Sent as `application/x-www-form-urlencoded` body.
    pub form: Option<&'a [(&'a str, &'a str)]>,
    pub reach: Reach,
}

/// Clients with the same settings.
struct Clients {
    /// Keeps connections for the next request.
    pooled: Client,
    /// Takes a new connection for each: what is kept may have been cut without a word.
    fresh: Client,
}

/// The HTTP clients of one endpoint, and the circuit breakers of the servers that they reach.
pub struct Wire {
    open: Clients,
    /// Connects to public addresses only, and through no proxy: it is the proxy that resolves names.
    guarded: Clients,
    proxies: Proxies,
    resolver: Resolver,
    breakers: Cache<String, Arc<Breaker>>,
    header_timeout: Duration,
    clock: Clock,
    pub metrics: Arc<UpstreamMetrics>,
    /// How bodies are read.
    pub reading: Reading,
}

enum Proxies {
    Environment(Box<Matcher>),
    None,
    All,
}

impl Wire {
    /// Fails where the CA file cannot be used or the system has no trust store.
    pub fn new(
        options: &Options,
        endpoint: &EndpointOptions,
        metrics: Arc<UpstreamMetrics>,
        clock: Clock,
    ) -> Result<Self, String> {
        let cas = endpoint.ca_file.as_deref().map(read_cas).transpose()?.unwrap_or_default();
        let resolver = Resolver::new();
        let open = || proxied(builder(options, &cas).dns_resolver(resolver.clone()), &endpoint.proxy);
        let guarded = || Ok(builder(options, &cas).no_proxy().dns_resolver(resolver.guarded()));
        Ok(Self {
            open: Clients::new(open)?,
            guarded: Clients::new(guarded)?,
            proxies: match endpoint.proxy {
                Proxy::Environment => Proxies::Environment(Box::new(Matcher::from_system())),
                Proxy::None => Proxies::None,
                Proxy::Url(_) => Proxies::All,
            },
            resolver,
            breakers: Cache::new(SERVERS),
            header_timeout: options.header_timeout,
            clock,
            reading: Reading { idle: options.idle_timeout, metrics: metrics.clone() },
            metrics,
        })
    }

    /// Sends the request and gives the head of the answer, whatever its status, counted. A server that
    /// did not answer a few times in a row is not asked for a while.
    pub async fn send(&self, hop: Hop<'_>) -> Result<Response, Failure> {
        let clients = self.clients(hop.url, hop.reach)?;
        let breaker = self.breaker(hop.url);
        let pass = breaker.enter().map_err(|tripped| {
            self.metrics.breaker_refusals.inc();
            tripped_at(hop.url, tripped)
        })?;
        let client = if pass.after_failure { &clients.fresh } else { &clients.pooled };
        let mut request = client.request(hop.method, hop.url.clone()).headers(hop.headers);
        if let Some(form) = hop.form {
            request = request.form(form);
        }
        let started = self.clock.now();
        let sent = tokio::time::timeout(self.header_timeout, request.send()).await;
        self.metrics.seconds.observe(self.clock.now().duration_since(started).as_secs_f64());
        let (status, outcome) = match sent {
            Ok(Ok(response)) => (label(response.status()), Ok(response)),
            Ok(Err(error)) => (UpstreamStatus::Failed, Err(failure(error, hop.url, hop.reach))),
            Err(_) => {
                let why =
                    format!("{} did not answer within {:?}", guard::place(hop.url), self.header_timeout);
                (UpstreamStatus::Failed, Err(Failure::Passing(why)))
            }
        };
        self.metrics.requests.cell(hop.call, status).inc();
        match &outcome {
            // What it does not know how to do, it says in good health.
            Ok(response)
                if response.status().is_server_error()
                    && response.status() != StatusCode::NOT_IMPLEMENTED =>
            {
                pass.failed(&format!("{} answered {}", guard::place(hop.url), response.status()));
            }
            Ok(response) => {
                pass.succeeded();
                self.note_address(response);
            }
            Err(Failure::Passing(why)) => pass.failed(why),
            // It was not asked.
            Err(Failure::Final(_) | Failure::Tripped(..)) => drop(pass),
        }
        outcome
    }

    fn breaker(&self, url: &Url) -> Arc<Breaker> {
        self.breakers.get_with(guard::place(url), || {
            let open = self.metrics.breakers_open.clone();
            Arc::new(Breaker::new(guard::place(url), BREAKER, self.clock.clone(), open))
        })
    }

    fn note_address(&self, response: &Response) {
        let url = response.url();
        if let (Some(name), Some(address)) = (url.domain(), response.remote_addr())
            && !self.is_proxied(url)
        {
            self.resolver.answered(name, address.ip());
        }
    }

    /// Whether an answer came from a private address, from where redirects may lead anywhere.
    pub fn is_private_answer(&self, response: &Response) -> bool {
        let url = response.url();
        let address = response.remote_addr().filter(|_| !self.is_proxied(url));
        guard::is_private_host(url) || address.is_some_and(|address| guard::is_private(address.ip()))
    }

    fn clients(&self, url: &Url, reach: Reach) -> Result<&Clients, Cause> {
        match reach {
            Reach::Anywhere => Ok(&self.open),
            Reach::Public(setting) if guard::is_private_host(url) => Err(private(url, setting)),
            Reach::Public(_) if self.is_proxied(url) => Ok(&self.open),
            Reach::Public(_) => Ok(&self.guarded),
        }
    }

    fn is_proxied(&self, url: &Url) -> bool {
        match &self.proxies {
            Proxies::Environment(proxies) => {
                let uri = url.as_str().parse::<Uri>();
                uri.is_ok_and(|uri| proxies.intercept(&uri).is_some())
            }
            Proxies::None => false,
            Proxies::All => true,
        }
    }
}

impl Clients {
    fn new(builder: impl Fn() -> Result<ClientBuilder, String>) -> Result<Self, String> {
        let build = |builder: ClientBuilder| builder.build().map_err(explain);
        Ok(Self { pooled: build(builder()?)?, fresh: build(builder()?.pool_max_idle_per_host(0))? })
    }
}

fn proxied(builder: ClientBuilder, proxy: &Proxy) -> Result<ClientBuilder, String> {
    match proxy {
        Proxy::Environment => Ok(builder),
        Proxy::None => Ok(builder.no_proxy()),
        Proxy::Url(url) => {
            let all = reqwest::Proxy::all(url.clone()).map_err(explain)?;
            Ok(builder.no_proxy().proxy(all))
        }
    }
}

fn tripped_at(url: &Url, Tripped { wait, why }: Tripped) -> Failure {
    // Whole seconds, rounded up.
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let place = guard::place(url);
    Failure::Tripped(wait, format!("{place} failed several times and is asked again in {seconds} s: {why}"))
}

/// A connection that a firewall has forgotten looks alive: what is sent on it is lost, and nobody says
/// so. It is given up when half the time for an answer has passed without a sign of life.
fn builder(options: &Options, cas: &[Certificate]) -> ClientBuilder {
    let silence = (options.header_timeout / 2).clamp(PROBE_BOUNDS.0, PROBE_BOUNDS.1);
    let builder = Client::builder()
        .tcp_keepalive(silence)
        .tcp_keepalive_interval((silence / 2).max(PROBE_BOUNDS.0))
        .tcp_keepalive_retries(2)
        .http2_keep_alive_interval(silence)
        .http2_keep_alive_timeout(silence);
    #[cfg(target_os = "linux")]
    let builder = builder.tcp_user_timeout(silence);
    builder
        .user_agent(USER_AGENT)
        .default_headers(HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(options.connect_timeout)
        .pool_idle_timeout(Duration::from_secs(60))
        .tls_certs_merge(cas.iter().cloned())
}

fn read_cas(path: &Path) -> Result<Vec<Certificate>, String> {
    let pem = std::fs::read(path).map_err(|e| format!("CA file {}: {e}", path.display()))?;
    let cas = Certificate::from_pem_bundle(&pem)
        .map_err(|e| format!("CA file {}: {}", path.display(), explain(e)))?;
    if cas.is_empty() {
        return Err(format!("CA file {} holds no PEM certificate", path.display()));
    }
    Ok(cas)
}

fn private(url: &Url, setting: &str) -> Cause {
    Cause::Refused(format!(
        "{} is a private address, and the upstream that leads there is a public one: list the host in \
         `{setting}` to allow it",
        guard::place(url)
    ))
}

fn failure(error: reqwest::Error, url: &Url, reach: Reach) -> Failure {
    if let Reach::Public(setting) = reach
        && sources(&error).any(|source| source.is::<PrivateAddress>())
    {
        return Failure::Final(private(url, setting));
    }
    Failure::Passing(format!("{}: {}", guard::place(url), explain(error)))
}

fn sources<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source())
}

/// The chain of causes in one line, without the URL, whose query may be a signature.
pub fn explain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut parts: Vec<String> = Vec::new();
    for source in sources(&error) {
        let text = source.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ").chars().take(300).collect()
}

fn label(status: StatusCode) -> UpstreamStatus {
    match status.as_u16() {
        200..=299 => UpstreamStatus::Ok,
        300..=399 => UpstreamStatus::Redirect,
        401 => UpstreamStatus::Unauthorized,
        403 => UpstreamStatus::Forbidden,
        404 => UpstreamStatus::NotFound,
        429 => UpstreamStatus::TooMany,
        500.. => UpstreamStatus::Server,
        _ => UpstreamStatus::Client,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_with_private_addresses_only_is_refused_and_the_setting_named() {
        let guarded = Client::builder().no_proxy().dns_resolver(Resolver::new().guarded()).build().unwrap();
        let url = Url::parse("http://localhost:1/?signature=hidden").unwrap();
        let fail = |error, reach| match failure(error, &url, reach) {
            Failure::Final(Cause::Refused(why)) => why,
            other => format!("{other:?}"),
        };
        let error = guarded.get(url.clone()).send().await.unwrap_err();
        let why = fail(error, Reach::Public("redirect_hosts"));
        assert!(why.contains("redirect_hosts") && !why.contains("hidden"), "{why}");
        // Any other failure is what it is.
        let open = Client::builder().no_proxy().build().unwrap();
        let error = open.get(url.clone()).send().await.unwrap_err();
        let why = fail(error, Reach::Public("redirect_hosts"));
        assert!(why.contains("Passing") && !why.contains("hidden"), "{why}");
    }
}
