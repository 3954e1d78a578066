//! One request, one answer: no redirects, no retries, no tokens.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use http::{Method, StatusCode, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{Certificate, Client, ClientBuilder, Response};
use url::Url;

use super::body::Reading;
use super::guard::{self, PrivateAddress, Reach};
use super::{Cause, Options};
use crate::clock::Clock;
use crate::metrics::{UpstreamCall, UpstreamMetrics, UpstreamStatus};

const USER_AGENT: &str = concat!("forebay/", env!("CARGO_PKG_VERSION"));

/// Why a request has no answer.
#[derive(Debug)]
pub enum Failure {
    /// The network's or the server's fault: another try may go better.
    Passing(String),
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
            Failure::Passing(why) => Self::Trouble(why),
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

/// The HTTP clients of one upstream. Proxies come from the environment.
pub struct Wire {
    open: Client,
    /// Connects to public addresses only, and through no proxy: it is the proxy that resolves names.
    guarded: Client,
    proxies: Matcher,
    header_timeout: Duration,
    clock: Clock,
    pub metrics: Arc<UpstreamMetrics>,
    /// How bodies are read.
    pub reading: Reading,
}

impl Wire {
    /// Fails where the CA file cannot be used or the system has no trust store.
    pub fn new(options: &Options, metrics: Arc<UpstreamMetrics>, clock: Clock) -> Result<Self, String> {
        let cas = options.ca_file.as_deref().map(read_cas).transpose()?.unwrap_or_default();
        let build = |builder: ClientBuilder| builder.build().map_err(explain);
        Ok(Self {
            open: build(builder(options, &cas))?,
            guarded: build(builder(options, &cas).no_proxy().dns_resolver(guard::Guarded))?,
            proxies: Matcher::from_system(),
            header_timeout: options.header_timeout,
            clock,
            reading: Reading { idle: options.idle_timeout, metrics: metrics.clone() },
            metrics,
        })
    }

    /// Sends the request and gives the head of the answer, whatever its status, counted.
    pub async fn send(&self, hop: Hop<'_>) -> Result<Response, Failure> {
        let client = self.client(hop.url, hop.reach)?;
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
        outcome
    }

    /// Whether an answer came from a private address, from where redirects may lead anywhere.
    pub fn is_private_answer(&self, response: &Response) -> bool {
        let url = response.url();
        let address = response.remote_addr().filter(|_| !self.is_proxied(url));
        guard::is_private_host(url) || address.is_some_and(|address| guard::is_private(address.ip()))
    }

    fn client(&self, url: &Url, reach: Reach) -> Result<&Client, Cause> {
        match reach {
            Reach::Anywhere => Ok(&self.open),
            Reach::Public(setting) if guard::is_private_host(url) => Err(private(url, setting)),
            Reach::Public(_) if self.is_proxied(url) => Ok(&self.open),
            Reach::Public(_) => Ok(&self.guarded),
        }
    }

    fn is_proxied(&self, url: &Url) -> bool {
        let uri = url.as_str().parse::<Uri>();
        uri.is_ok_and(|uri| self.proxies.intercept(&uri).is_some())
    }
}

fn builder(options: &Options, cas: &[Certificate]) -> ClientBuilder {
    Client::builder()
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
        let guarded = Client::builder().no_proxy().dns_resolver(guard::Guarded).build().unwrap();
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
