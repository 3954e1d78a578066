//! Proving who asks: challenges remembered, tokens fetched once and kept until shortly before they
//! expire, refusals kept for a minute.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::HeaderValue;
use moka::sync::Cache;
use url::Url;

use super::challenge::{Challenge, is_repository_scope};
use super::quota::PerIdentity;
use super::realm::{Grant, REFUSED_FOR, Realms, Refusal};
use super::{Cause, Identity};
use crate::clock::Clock;
use crate::oci::Name;
use crate::tasks::{Flights, Tasks, lock};

/// Longest realm, service or scope that is taken.
const MAX_PARAM: usize = 2048;
const CACHED: u64 = 4096;

/// How a server wants requests for one repository authorized.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scheme {
    Basic,
    Bearer(Grant),
}

type Key = (Identity, Grant);

#[derive(Clone)]
struct Entry {
    until: Instant,
    outcome: Result<HeaderValue, Cause>,
}

/// What one upstream's token servers gave.
pub struct Tokens {
    realms: Realms,
    clock: Clock,
    /// The scheme of each repository, and of the last one that was challenged.
    remembered: Cache<(Identity, Name), Scheme>,
    usual: Mutex<PerIdentity<Option<Scheme>>>,
    cached: Cache<Key, Entry>,
    /// Refusals that no other scope would change: a bad password, a rate limit.
    held: Mutex<PerIdentity<Option<(Instant, Cause)>>>,
    flights: Flights<Key, Result<HeaderValue, Cause>>,
    /// Taken to try a password that no token server has taken yet.
    unproven: tokio::sync::Mutex<()>,
    proven: AtomicBool,
}

impl Tokens {
    pub fn new(realms: Realms, clock: Clock, tasks: Tasks) -> Self {
        Self {
            realms,
            clock,
            remembered: Cache::new(CACHED),
            usual: Mutex::default(),
            cached: Cache::new(CACHED),
            held: Mutex::default(),
            flights: Flights::new(tasks, "token"),
            unproven: tokio::sync::Mutex::default(),
            proven: AtomicBool::new(false),
        }
    }

    /// The `Authorization` of a first request, where it is known that one is wanted.
    pub async fn known(
        self: &Arc<Self>,
        identity: Identity,
        name: &Name,
    ) -> Result<Option<HeaderValue>, Cause> {
        let Some(scheme) = self.recall(identity, name) else { return Ok(None) };
        let authorization = self.authorization(identity, scheme).await;
        if matches!(authorization, Err(Cause::Trouble(_))) {
            // The token server may have moved: the next request asks the upstream anew.
            self.remembered.invalidate(&(identity, name.clone()));
            *lock(&self.usual).of(identity) = None;
        }
        authorization.map(Some)
    }

    /// The `Authorization` that answers a 401. `rejected` is what the request carried, forgotten from
    /// now on; `public`: the 401 came from a public address.
    pub async fn answer(
        self: &Arc<Self>,
        identity: Identity,
        name: &Name,
        challenges: &[Challenge],
        public: bool,
        rejected: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Cause> {
        let scheme = match self.choose(name, challenges, public) {
            Some(scheme) => scheme,
            None => self
                .recall(identity, name)
                .ok_or_else(|| Cause::Denied(": it answers 401 and does not say how to log in".into()))?,
        };
        self.remembered.insert((identity, name.clone()), scheme.clone());
        *lock(&self.usual).of(identity) = Some(scheme.clone());
        match (&scheme, rejected) {
            (Scheme::Basic, Some(rejected)) if rejected.as_bytes().starts_with(b"Basic ") => {
                return Err(self.hold_password(identity));
            }
            (Scheme::Bearer(grant), Some(rejected)) => {
                let key = (identity, grant.clone());
                if self.cached.get(&key).is_some_and(|entry| entry.outcome.as_ref().ok() == Some(rejected)) {
                    self.cached.invalidate(&key);
                }
            }
            _ => {}
        }
        self.authorization(identity, scheme).await
    }

    /// Takes note that even what was had for this very request was refused.
    pub fn refused(&self, identity: Identity, name: &Name) {
        if self.remembered.get(&(identity, name.clone())) == Some(Scheme::Basic) {
            self.hold_password(identity);
        }
    }

    fn hold_password(&self, identity: Identity) -> Cause {
        let denied = Cause::Denied(": it refuses the configured user name and password".into());
        self.hold(identity, REFUSED_FOR, denied.clone());
        denied
    }

    /// The scheme of this repository, or else of another one, fitted to it.
    fn recall(&self, identity: Identity, name: &Name) -> Option<Scheme> {
        if let Some(scheme) = self.remembered.get(&(identity, name.clone())) {
            return Some(scheme);
        }
        let mut scheme = lock(&self.usual).of(identity).clone()?;
        if let Scheme::Bearer(grant) = &mut scheme
            && is_repository_scope(&grant.scope)
        {
            grant.scope = pull_scope(name);
        }
        Some(scheme)
    }

    /// The best of the challenges: Bearer, for its tokens say what they are for, before Basic.
    fn choose(&self, name: &Name, challenges: &[Challenge], public: bool) -> Option<Scheme> {
        let bearer = challenges.iter().filter(|c| c.scheme == "bearer").find_map(|challenge| {
            let param = |key: &str| challenge.get(key).filter(|v| !v.is_empty() && v.len() <= MAX_PARAM);
            let realm = Url::parse(param("realm")?).ok()?;
            let service = param("service").map(str::to_owned);
            // Clients ask for the repository's own scope where the challenge names none.
            let scope = param("scope").map_or_else(|| pull_scope(name), str::to_owned);
            Some(Scheme::Bearer(Grant { realm, service, scope, public }))
        });
        bearer.or_else(|| challenges.iter().any(|c| c.scheme == "basic").then_some(Scheme::Basic))
    }

    async fn authorization(
        self: &Arc<Self>,
        identity: Identity,
        scheme: Scheme,
    ) -> Result<HeaderValue, Cause> {
        let grant = match scheme {
            Scheme::Bearer(grant) => grant,
            Scheme::Basic => {
                self.check_held(identity)?;
                return self.realms.basic(identity).await?.ok_or_else(|| {
                    let why = ": it wants a user name and password: set `username` and `password_file`";
                    Cause::Denied(why.into())
                });
            }
        };
        let key = (identity, grant);
        if let Some(outcome) = self.lookup(&key) {
            return outcome;
        }
        let work = {
            let (tokens, key) = (self.clone(), key.clone());
            // Whoever was first may have landed between the look above and the joining.
            || async move {
                match tokens.lookup(&key) {
                    Some(outcome) => outcome,
                    None => tokens.fetch(&key).await,
                }
            }
        };
        let ended = || Err(Cause::Trouble("the request for a token was ended".into()));
        self.flights.join(key, work).await.unwrap_or_else(ended)
    }

    fn lookup(&self, key: &Key) -> Option<Result<HeaderValue, Cause>> {
        let entry = self.cached.get(key)?;
        (self.clock.now() < entry.until).then_some(entry.outcome)
    }

    fn hold(&self, identity: Identity, wait: Duration, cause: Cause) {
        self.proven.store(false, Ordering::Relaxed);
        *lock(&self.held).of(identity) = Some((self.clock.now() + wait, cause));
    }

    fn check_held(&self, identity: Identity) -> Result<(), Cause> {
        let now = self.clock.now();
        match lock(&self.held).of(identity) {
            Some((until, Cause::Limited(_))) if now < *until => Err(Cause::Limited(*until - now)),
            Some((until, cause)) if now < *until => Err(cause.clone()),
            _ => Ok(()),
        }
    }

    /// A token from its server, or the server's refusal; either is kept for its time.
    async fn fetch(&self, key: &Key) -> Result<HeaderValue, Cause> {
        let (identity, grant) = key;
        // Many repositories may be asked for at once: a wrong password is tried for one of them only.
        let prudent = *identity == Identity::Configured && !self.proven.load(Ordering::Relaxed);
        let _alone = if prudent { Some(self.unproven.lock().await) } else { None };
        self.check_held(*identity)?;
        let (outcome, life) = match self.realms.fetch(*identity, grant).await {
            Ok((token, life)) => (Ok(token), life),
            Err(Refusal { cause, for_all: Some(wait) }) => {
                self.hold(*identity, wait, cause.clone());
                return Err(cause);
            }
            Err(Refusal { cause: cause @ (Cause::Denied(_) | Cause::Refused(_)), .. }) => {
                (Err(cause), REFUSED_FOR)
            }
            Err(Refusal { cause, .. }) => return Err(cause),
        };
        if *identity == Identity::Configured && outcome.is_ok() {
            self.proven.store(true, Ordering::Relaxed);
        }
        self.cached.insert(key.clone(), Entry { until: self.clock.now() + life, outcome: outcome.clone() });
        outcome
    }
}

fn pull_scope(name: &Name) -> String {
    format!("repository:{name}:pull")
}
