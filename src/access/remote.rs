//! An issuer's keys: from files, which are followed, and from its own address, fetched when needed.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use jsonwebtoken::Header;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client};
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use super::KeyOptions;
use super::keys::{Keys, Unapproved};
use super::watched::Watched;
use crate::clock::Clock;

/// How long fetched keys are taken as they are: a key that was withdrawn ends within the hour.
const FRESH_FOR: Duration = Duration::from_secs(3600);
/// While the issuer cannot be reached, its keys are used on for so long.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// Tokens with keys that nobody knows lead to no more than one request in this time.
const PAUSE: Duration = Duration::from_secs(30);
const FETCH_MAX: Duration = Duration::from_secs(10);
const BODY_MAX: usize = 1 << 20;

/// All the places where one issuer's keys are.
pub struct KeySource {
    files: Vec<Watched<Keys>>,
    remote: Option<Remote>,
}

impl KeySource {
    /// Reads the files. Blocks.
    pub fn open(options: &KeyOptions, clock: &Clock) -> Result<Self, String> {
        let mut files = Vec::new();
        if let Some(path) = &options.jwks_file {
            files.push(Watched::open("key set", path, Keys::of_jwks, clock.clone())?);
        }
        if let Some(path) = &options.certificates_file {
            files.push(Watched::open("certificates", path, Keys::of_certificates, clock.clone())?);
        }
        let remote = options.jwks_url.as_ref();
        let remote = remote.map(|url| Remote::new(url.clone(), options.ca_file.as_deref(), clock.clone()));
        Ok(Self { files, remote: remote.transpose()? })
    }

    /// What the token says, if a key of these has signed it.
    pub async fn claims<T: DeserializeOwned>(&self, header: &Header, token: &str) -> Result<T, String> {
        let mut keys = Keys::default();
        for file in &self.files {
            keys = keys.with(&*file.current().await);
        }
        let mut found = keys.claims(header, token);
        if let (Err(Unapproved::NoKey), Some(remote)) = (&found, &self.remote) {
            let known = remote.keys(None).await?;
            found = known.claims(header, token);
            if matches!(found, Err(Unapproved::NoKey)) {
                // Issuers change their keys: perhaps it is a new one.
                found = remote.keys(Some(&known)).await?.claims(header, token);
            }
        }
        found.map_err(|why| match why {
            Unapproved::NoKey => "the token was signed with a key that its issuer does not have".to_owned(),
            Unapproved::Signature => "the token's signature is wrong".to_owned(),
        })
    }
}

/// Keys at an address.
struct Remote {
    client: Client,
    url: String,
    known: ArcSwapOption<(Instant, Arc<Keys>)>,
    /// Held by who fetches; when that was tried last.
    tried: Mutex<Option<Instant>>,
    clock: Clock,
}

impl Remote {
    fn new(url: String, ca_file: Option<&Path>, clock: Clock) -> Result<Self, String> {
        let mut builder = Client::builder()
            .redirect(Policy::none())
            .timeout(FETCH_MAX)
            .pool_max_idle_per_host(0)
            .user_agent(concat!("forebay/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = ca_file {
            let unusable = |why: String| format!("ca_file {}: {why}", path.display());
            let pem = std::fs::read(path).map_err(|error| unusable(format!("cannot be read: {error}")))?;
            let cas = Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.to_string()))?;
            builder = builder.tls_certs_merge(cas);
        }
        let client = builder.build().map_err(|error| format!("{url}: {error}"))?;
        Ok(Self { client, url, known: ArcSwapOption::empty(), tried: Mutex::new(None), clock })
    }

    /// The keys as they are known; fetched, if they are old or no others than `but`.
    async fn keys(&self, but: Option<&Arc<Keys>>) -> Result<Arc<Keys>, String> {
        let known = self.known.load_full();
        let age = known.as_ref().map(|known| self.clock.now().saturating_duration_since(known.0));
        let mut tried = match (&known, age, but) {
            (Some(known), Some(age), None) if age < FRESH_FOR => return Ok(known.1.clone()),
            // Old, and somebody is at it already.
            (Some(known), Some(age), None) if age < KEPT_FOR => match self.tried.try_lock() {
                Ok(tried) => tried,
                Err(_) => return Ok(known.1.clone()),
            },
            _ => self.tried.lock().await,
        };
        // Who waited for the lock finds what the one before it has fetched.
        let known = self.known.load_full();
        let usable = known.filter(|known| self.clock.now().saturating_duration_since(known.0) < KEPT_FOR);
        let now = self.clock.now();
        if tried.is_some_and(|tried| now.saturating_duration_since(tried) < PAUSE) {
            return usable
                .map(|known| known.1.clone())
                .ok_or_else(|| "the issuer's keys cannot be had".to_owned());
        }
        *tried = Some(now);
        match self.fetch().await {
            Ok(keys) => {
                let keys = Arc::new(keys);
                self.known.store(Some(Arc::new((now, keys.clone()))));
                Ok(keys)
            }
            Err(why) => {
                tracing::warn!(url = self.url, "keys cannot be fetched: {why}");
                usable
                    .map(|known| known.1.clone())
                    .ok_or_else(|| "the issuer's keys cannot be had".to_owned())
            }
        }
    }

    async fn fetch(&self) -> Result<Keys, String> {
        let answer = self.client.get(&self.url).send().await.and_then(reqwest::Response::error_for_status);
        let mut answer = answer.map_err(|error| explain(&error))?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| explain(&error))? {
            if body.len() + chunk.len() > BODY_MAX {
                return Err("the answer is larger than 1 MiB".to_owned());
            }
            body.extend_from_slice(&chunk);
        }
        Keys::of_jwks(&body)
    }
}

/// With the causes, which reqwest leaves out.
fn explain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
