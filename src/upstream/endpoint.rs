//! One place where an upstream's content can be had: the upstream itself, or a mirror of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use url::Url;

use super::breaker::{Breaker, Pass, Policy};
use super::callers::Callers;
use super::client::Wire;
use super::hops::new_pseudonym;
use super::realm::{RealmOptions, Realms};
use super::referrers::ReferrersApi;
use super::request::Requests;
use super::token::Tokens;
use super::{Cause, Credential, Error, Identity, Options, guard};
use crate::clock::Clock;
use crate::metrics::UpstreamMetrics;
use crate::oci::{Digest, Name};
use crate::tasks::Tasks;

/// A mirror is one of several: the next one is asked at its first failure, and for a while after.
const MIRROR: Policy = Policy {
    failures: 1,
    over: Duration::ZERO,
    first: Duration::from_secs(20),
    last: Duration::from_secs(300),
};
/// How long a mirror is not asked for content of which it gave other bytes, and for how much of it.
const WRONG_FOR: Duration = Duration::from_secs(3600);
const WRONG: u64 = 1024;

/// What is configured of one endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointOptions {
    /// Base of its API, see [`check_url`].
    pub url: Url,
    pub credential: Option<Credential>,
    /// PEM file of further CAs, trusted for the endpoint, its token server and its CDN.
    pub ca_file: Option<PathBuf>,
    pub proxy: Proxy,
}

/// What requests go through.
#[derive(Clone, Debug, PartialEq)]
pub enum Proxy {
    /// What `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say.
    Environment,
    None,
    /// For all requests, whatever the environment says.
    Url(Url),
}

/// Checks the base of an API. `https://host/a` is asked at `/a/v2/<name>/…`, and
/// `https://host/v2/a` at `/v2/a/<name>/…`.
pub fn check_url(url: &Url) -> Result<(), String> {
    split(url).map(drop)
}

/// The API's URL, up to `/v2/`, and what stands before every name.
fn split(url: &Url) -> Result<(Url, Option<Name>), String> {
    let (before, prefix) = match url.path().split_once("/v2/") {
        Some((_, "")) => return Err("the URL ends in /v2, which every request adds; leave it out".to_owned()),
        Some((before, after)) => {
            let after = after.trim_end_matches('/');
            let prefix = after.parse().map_err(|_| {
                format!("what follows /v2/ begins every repository's name, and `{after}` cannot: see to its spelling")
            })?;
            (before, Some(prefix))
        }
        None => (url.path().trim_end_matches('/'), None),
    };
    let mut api = url.clone();
    api.set_path(&format!("{before}/v2/"));
    Ok((api, prefix))
}

/// Its connections, tokens and health.
pub struct Endpoint {
    /// The setting that says where it is.
    setting: String,
    /// For people: scheme and host.
    pub place: String,
    /// Up to `/v2/`.
    api: Url,
    prefix: Option<Name>,
    has_credential: bool,
    /// Named in `Via`.
    pub pseudonym: String,
    pub requests: Requests,
    pub referrers_api: ReferrersApi,
    /// Of a mirror.
    health: Option<Health>,
}

struct Health {
    breaker: Breaker,
    wrong: Cache<Digest, ()>,
}

impl Endpoint {
    /// All of an upstream, in the order in which they are asked: itself last.
    pub fn all(
        options: &Options,
        callers: &Arc<Callers>,
        metrics: &Arc<UpstreamMetrics>,
        clock: &Clock,
        tasks: &Tasks,
    ) -> Result<Vec<Arc<Self>>, Error> {
        let own = options.own();
        let all = options.mirrors.iter().map(|mirror| (mirror, true)).chain([(&own, false)]);
        let made = all.map(|(endpoint, is_mirror)| {
            // A caller's login is for the upstream itself.
            let callers = Some(callers).filter(|_| !is_mirror);
            let made = Self::new(options, endpoint, callers, is_mirror, metrics, clock, tasks);
            made.map(Arc::new).map_err(|why| Error {
                operation: "set up upstream",
                subject: format!("{} at {}", options.host, guard::place(&endpoint.url)),
                cause: Cause::Trouble(why),
            })
        });
        made.collect()
    }

    fn new(
        options: &Options,
        endpoint: &EndpointOptions,
        callers: Option<&Arc<Callers>>,
        is_mirror: bool,
        metrics: &Arc<UpstreamMetrics>,
        clock: &Clock,
        tasks: &Tasks,
    ) -> Result<Self, String> {
        let (api, prefix) = split(&endpoint.url)?;
        let wire = Arc::new(Wire::new(options, endpoint, metrics.clone(), clock.clone())?);
        let of_realms = RealmOptions::of(options, endpoint, api.clone(), callers);
        let realms = Realms::new(of_realms, wire.clone(), clock.clone(), tasks.clone());
        let tokens = Arc::new(Tokens::new(realms, clock.clone(), tasks.clone()));
        let requests = Requests::new(options, api.clone(), is_mirror, wire, tokens, clock, tasks);
        let place = guard::place(&endpoint.url);
        let table = format!("upstream.\"{}\"", options.host);
        let health = is_mirror.then(|| Health {
            breaker: Breaker::new(
                format!("mirror {place} of {}", options.host),
                MIRROR,
                clock.clone(),
                metrics.breakers_open.clone(),
            ),
            wrong: Cache::builder().max_capacity(WRONG).time_to_live(WRONG_FOR).build(),
        });
        Ok(Self {
            setting: if is_mirror {
                format!("`url` in `[[{table}.mirror]]`")
            } else {
                format!("`{table}.url`")
            },
            place,
            api,
            prefix,
            has_credential: endpoint.credential.is_some(),
            pseudonym: new_pseudonym(),
            requests,
            referrers_api: ReferrersApi::default(),
            health,
        })
    }

    pub fn is_mirror(&self) -> bool {
        self.health.is_some()
    }

    /// In whose name it is asked where the upstream is asked as `identity`.
    pub fn identity(&self, identity: Identity) -> Identity {
        match identity {
            Identity::Configured if self.has_credential => Identity::Configured,
            Identity::Configured | Identity::Anonymous => Identity::Anonymous,
            caller @ Identity::Caller(_) => caller,
        }
    }

    /// The name that a repository has there.
    pub fn name_there(&self, name: &Name) -> Result<Name, Cause> {
        let Some(prefix) = &self.prefix else { return Ok(name.clone()) };
        format!("{prefix}/{name}")
            .parse()
            .map_err(|error| Cause::Trouble(format!("below {}: {error}", self.place)))
    }

    /// `path` below `/v2/<name>/`; the name as it is there.
    pub fn url(&self, name: &Name, path: &str) -> Url {
        let mut url = self.api.clone();
        url.set_path(&format!("{}{name}/{path}", self.api.path()));
        url
    }

    /// Leave to ask it for what has this digest, if it has one; of a mirror, with word of how it went.
    /// None: not now.
    pub fn enter(&self, digest: Option<&Digest>) -> Option<Option<Pass<'_>>> {
        let Some(Health { breaker, wrong }) = &self.health else { return Some(None) };
        if digest.is_some_and(|digest| wrong.contains_key(digest)) {
            return None;
        }
        breaker.enter().ok().map(Some)
    }

    /// What it began to answer, it did not answer well.
    pub fn failed(&self, why: &str) {
        if let Some(health) = &self.health {
            health.breaker.failed(why);
        }
    }

    /// It gave other bytes for this digest.
    pub fn was_wrong(&self, digest: &Digest) {
        if let Some(health) = &self.health {
            tracing::warn!(mirror = self.place, %digest, "a mirror gives other bytes than asked for");
            health.wrong.insert(*digest, ());
        }
    }

    /// What is to be said of a request that has been here already.
    pub fn loop_told(&self) -> String {
        format!(
            "a loop of registries: {} ({}) of a Forebay on the way leads back to it; correct that setting",
            self.setting, self.place
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_stand_before_v2_or_after_it() {
        let url = |text: &str| {
            let (api, prefix) = split(&Url::parse(text).unwrap())?;
            Ok::<_, String>((api.path().to_owned(), prefix.map(|name| name.to_string())))
        };
        let plain = |path: &str| Ok((path.to_owned(), None));
        assert_eq!(url("https://a"), plain("/v2/"));
        assert_eq!(url("https://a/docker.io"), plain("/docker.io/v2/"));
        assert_eq!(url("https://a/docker.io/"), plain("/docker.io/v2/"));
        let harbor = Ok(("/v2/".to_owned(), Some("dockerhub-proxy".to_owned())));
        assert_eq!(url("https://a/v2/dockerhub-proxy"), harbor);
        assert_eq!(url("https://a/v2/dockerhub-proxy/"), harbor);
        assert_eq!(url("https://a/x/v2/b/c"), Ok(("/x/v2/".to_owned(), Some("b/c".to_owned()))));
        for bad in ["https://a/v2/", "https://a/v2/Upper", "https://a/v2/a//b", "https://a/b/v2/"] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }
}
