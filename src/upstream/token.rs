//! Proving who asks: challenges remembered, tokens fetched once and renewed shortly before they expire,
//! refusals kept for a minute.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderValue, StatusCode};
use moka::sync::Cache;
use tokio::sync::OwnedMutexGuard;
use url::Url;

use super::challenge::{Challenge, is_repository_scope};
use super::credential::Login;
use super::judge::Verdict;
use super::login::Opened;
use super::quota::PerIdentity;
use super::realm::{self, Grant, REFUSED_FOR, Realms, Refusal};
use super::request::Ask;
use super::{Cause, Identity};
use crate::clock::Clock;
use crate::oci::Name;
use crate::tasks::{Flights, Tasks, lock};

/// Longest realm, service or scope that is taken.
const MAX_PARAM: usize = 2048;
const CACHED: u64 = 4096;
/// How often a token that soon expires is renewed where that fails.
const RENEW_PAUSE: Duration = Duration::from_secs(10);

/// How a server wants requests for one repository authorized.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scheme {
    Basic,
    Bearer(Grant),
}

/// With the generation of the login: what was had with another one is worth nothing.
type Key = (Identity, Grant, u64);

#[derive(Clone)]
struct Entry {
    /// From then on another one is fetched…
    fresh: Instant,
    /// …and until then this one is used meanwhile.
    until: Instant,
    outcome: Result<HeaderValue, Cause>,
}

/// What a request carries to prove who asks.
pub struct Proof {
    pub header: HeaderValue,
    /// The login itself; None of a token that was had for it.
    login: Option<Arc<Login>>,
    /// Held while a login is tried that was never accepted.
    _alone: Option<OwnedMutexGuard<()>>,
}

impl Proof {
    fn token(header: HeaderValue) -> Self {
        Self { header, login: None, _alone: None }
    }

    /// Whether it was given by a token server.
    pub fn is_token(&self) -> bool {
        self.login.is_none()
    }
}

/// What one endpoint's token servers gave.
pub struct Tokens {
    realms: Realms,
    clock: Clock,
    /// The scheme of each repository, and of the last one that was challenged.
    remembered: Cache<(Identity, Name), Scheme>,
    usual: Mutex<PerIdentity<Option<Scheme>>>,
    cached: Cache<Key, Entry>,
    /// Refusals that no other scope would change: a rate limit.
    held: Mutex<PerIdentity<Option<(Instant, Cause)>>>,
    /// Callers whose login opened something.
    took: Mutex<PerIdentity<bool>>,
    flights: Flights<Key, Result<HeaderValue, Cause>>,
    /// Taken to try a login that was never accepted: many repositories may be asked for at once, and a
    /// wrong one is to be tried for one of them only.
    unproven: Arc<tokio::sync::Mutex<()>>,
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
            took: Mutex::default(),
            flights: Flights::new(tasks, "token"),
            unproven: Arc::default(),
        }
    }

    /// What a first request carries, where it is known that something is wanted.
    pub async fn known(self: &Arc<Self>, identity: Identity, name: &Name) -> Result<Option<Proof>, Cause> {
        let Some(scheme) = self.recall(identity, name) else { return Ok(None) };
        let proof = self.proof(identity, scheme).await;
        if matches!(proof, Err(Cause::Trouble(_))) {
            // The token server may have moved: the next request asks the upstream anew.
            self.remembered.invalidate(&(identity, name.clone()));
            *lock(&self.usual).of(identity) = None;
        }
        proof
    }

    /// What answers a 401. `rejected` is what the request carried, forgotten from now on; `public`: the 401
    /// came from a public address.
    pub async fn answer(
        self: &Arc<Self>,
        identity: Identity,
        name: &Name,
        challenges: &[Challenge],
        public: bool,
        rejected: Option<Proof>,
    ) -> Result<Proof, Cause> {
        let scheme = match self.choose(name, challenges, public) {
            Some(scheme) => scheme,
            None => self
                .recall(identity, name)
                .ok_or_else(|| Cause::Denied(": it answers 401 and does not say how to log in".into()))?,
        };
        self.remembered.insert((identity, name.clone()), scheme.clone());
        *lock(&self.usual).of(identity) = Some(scheme.clone());
        if let Some(rejected) = rejected {
            self.rejected(identity, &scheme, rejected).await?;
        }
        self.proof(identity, scheme).await?.ok_or_else(|| self.no_login(identity))
    }

    /// Forgets what was refused. The error: nothing else would fare better.
    async fn rejected(&self, identity: Identity, scheme: &Scheme, rejected: Proof) -> Result<(), Cause> {
        let Some(login) = &rejected.login else {
            if let Scheme::Bearer(grant) = scheme {
                let key = (identity, grant.clone(), self.realms.logins.generation());
                let same = |entry: &Entry| entry.outcome.as_ref().ok() == Some(&rejected.header);
                if self.cached.get(&key).is_some_and(|entry| same(&entry)) {
                    self.cached.invalidate(&key);
                }
            }
            return Ok(());
        };
        let logins = &self.realms.logins;
        if let Identity::Caller(_) = identity {
            let verdict = self.realms.judge(login).await?;
            if verdict == Verdict::Bad {
                let denied = Cause::Denied(": it refuses the user name and password".to_owned());
                self.hold(identity, REFUSED_FOR, denied.clone());
                return Err(denied);
            }
            *lock(&self.took).of(identity) |= verdict == Verdict::Good;
            return Err(Cause::Denied(": this login does not open it".to_owned()));
        }
        // One shows it once more, and those who were refused at the same time take its word.
        let _one = self.realms.judging.lock().await;
        // Passwords that helpers give expire.
        if logins.is_laid_aside(login) || logins.has_another(login).await {
            return Ok(());
        }
        match self.realms.judge(login).await? {
            Verdict::Good => logins.accepted(login, None),
            Verdict::Untold if logins.is_proven(login) => {}
            Verdict::Untold | Verdict::Bad => {
                logins.lay_aside(login, "the registry answered 401 Unauthorized");
                return Ok(());
            }
        }
        Err(Cause::Denied(": the configured login does not open it".into()))
    }

    /// Takes note of an answer to a login.
    pub fn answered(&self, ask: &Ask, proof: &Proof, status: StatusCode) {
        let Some(login) = &proof.login else { return };
        match ask.identity {
            Identity::Configured if status.is_success() => {
                self.realms.logins.accepted(login, Some(Opened::Content(ask.url.clone())));
            }
            // A caller shows its login where it was asked for one: that there is no such thing, nobody
            // else is told.
            Identity::Caller(_) if status.is_success() || status == StatusCode::NOT_FOUND => {
                *lock(&self.took).of(ask.identity) = true;
            }
            _ => {}
        }
    }

    /// Whether a caller's login opened something: a token was given for it, or it was shown and the answer
    /// was no refusal.
    pub fn took_login(&self, identity: Identity) -> bool {
        *lock(&self.took).of(identity)
    }

    /// Whether the identity's login itself was refused a moment ago, whatever it was for.
    pub fn refuses_login(&self, identity: Identity) -> bool {
        matches!(self.check_held(identity), Err(Cause::Denied(_)))
    }

    /// Why an identity's requests go without its login, where that is refused.
    pub fn refused_login(&self, identity: Identity) -> Option<String> {
        self.realms.refused_login(identity)
    }

    fn no_login(&self, identity: Identity) -> Cause {
        Cause::Denied(match self.refused_login(identity) {
            Some(why) => {
                format!(": it wants a login, and the configured user name and password are refused: {why}")
            }
            None => ": it wants a user name and password: set `username` and `password_file`".to_owned(),
        })
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

    /// What proves to the registry who asks; None where there is no login for it.
    async fn proof(self: &Arc<Self>, identity: Identity, scheme: Scheme) -> Result<Option<Proof>, Cause> {
        let logins = &self.realms.logins;
        match scheme {
            Scheme::Basic => self.basic(identity).await,
            Scheme::Bearer(grant) => {
                if identity == Identity::Configured && (logins.may_be_for_registry() || logins.is_refused()) {
                    // One that cannot be had is for the fetch of a token to report, if it comes to that.
                    let login = self.realms.login(identity).await.unwrap_or_default();
                    if let Some(header) = login.as_deref().and_then(realm::as_it_is) {
                        return Ok(Some(Proof { header, login, _alone: None }));
                    }
                }
                let key = (identity, grant, logins.generation());
                Ok(Some(Proof::token(self.token(key).await?)))
            }
        }
    }

    /// The login itself. One that was never accepted is tried by one request at a time.
    async fn basic(&self, identity: Identity) -> Result<Option<Proof>, Cause> {
        let mut alone = None;
        let mut login = self.realms.login(identity).await?;
        let unproven =
            |login: &Arc<Login>| identity == Identity::Configured && !self.realms.logins.is_proven(login);
        if let Identity::Caller(_) = identity {
            self.check_held(identity)?;
        }
        if login.as_ref().is_some_and(unproven) {
            alone = Some(self.unproven.clone().lock_owned().await);
            login = self.realms.login(identity).await?;
        }
        let Some(login) = login else { return Ok(None) };
        let header = realm::basic(&login).or_else(|| realm::as_it_is(&login)).ok_or_else(|| {
            let why = ": it wants a user name and password, and an identity token is configured";
            Cause::Denied(why.to_owned())
        })?;
        let alone = alone.filter(|_| !self.realms.logins.is_proven(&login));
        Ok(Some(Proof { header, login: Some(login), _alone: alone }))
    }

    async fn token(self: &Arc<Self>, key: Key) -> Result<HeaderValue, Cause> {
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

    /// What is known. Nobody waits for a token to be renewed.
    fn lookup(self: &Arc<Self>, key: &Key) -> Option<Result<HeaderValue, Cause>> {
        let (entry, now) = (self.cached.get(key)?, self.clock.now());
        if now >= entry.until {
            return None;
        }
        if now >= entry.fresh && entry.outcome.is_ok() {
            self.cached.insert(key.clone(), Entry { fresh: now + RENEW_PAUSE, ..entry.clone() });
            let (tokens, of) = (self.clone(), key.clone());
            self.flights.start(key.clone(), || async move { tokens.fetch(&of).await });
        }
        Some(entry.outcome)
    }

    fn hold(&self, identity: Identity, wait: Duration, cause: Cause) {
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
        let (identity, grant, generation) = key;
        let logins = &self.realms.logins;
        let login = self.realms.login(*identity).await?;
        let prudent =
            *identity == Identity::Configured && login.is_some_and(|login| !logins.is_proven(&login));
        let _alone = if prudent { Some(self.unproven.lock().await) } else { None };
        self.check_held(*identity)?;
        let now = self.clock.now();
        let entry = match self.realms.fetch(*identity, grant).await {
            Ok((token, life)) => {
                if let Identity::Caller(_) = identity {
                    *lock(&self.took).of(*identity) = true;
                }
                Entry { fresh: now + life.fresh, until: now + life.valid, outcome: Ok(token) }
            }
            Err(Refusal { cause, for_all: Some(wait) }) => {
                self.hold(*identity, wait, cause.clone());
                return Err(cause);
            }
            Err(Refusal { cause: cause @ (Cause::Denied(_) | Cause::Refused(_)), .. }) => {
                Entry { fresh: now + REFUSED_FOR, until: now + REFUSED_FOR, outcome: Err(cause) }
            }
            Err(Refusal { cause, .. }) => return Err(cause),
        };
        let outcome = entry.outcome.clone();
        // The login may have been laid aside meanwhile: what was had without it is for that time.
        let generation = logins.generation().max(*generation);
        self.cached.insert((*identity, grant.clone(), generation), entry);
        outcome
    }
}

fn pull_scope(name: &Name) -> String {
    format!("repository:{name}:pull")
}
