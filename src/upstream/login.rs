//! The login in use: had from where it was configured, kept for a while, and laid aside once a
//! registry has refused it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::io::AsyncReadExt;
use url::Url;

use super::credential::{Credential, Fingerprint, Login, LoginSecret, Password, Secret, ServerName};
use super::docker_config::{self, Entry};
use super::{Cause, guard, helper};
use crate::clock::Clock;
use crate::metrics::UpstreamMetrics;
use crate::tasks::{Flights, Tasks, lock};

/// How long what a helper told is used without asking it again…
const FRESH: Duration = Duration::from_secs(10 * 60);
/// …where it knew no login, or the registry refuses the one that it knew…
const FRESH_WITHOUT: Duration = Duration::from_secs(60);
/// …and how long it is used while the helper is being asked.
const KEPT: Duration = Duration::from_secs(30 * 60);
/// For how long an old login stands in where the helper fails: as long as passwords of ECR live.
const LAST_RESORT: Duration = Duration::from_secs(12 * 3600);
/// The pause after a helper's failure, doubled from the first to the last.
const FAILED_FIRST: Duration = Duration::from_secs(5);
const FAILED_LAST: Duration = Duration::from_secs(300);
/// The pause after a refusal, doubled from the first to the last: bad passwords, repeated, lock accounts.
const REFUSED_FIRST: Duration = Duration::from_secs(60);
const REFUSED_LAST: Duration = Duration::from_secs(3600);
const LARGEST_SECRET: u64 = 64 * 1024;
const LARGEST_CONFIG: u64 = 1 << 20;

type Asked = Result<Option<Arc<Login>>, String>;

/// The login of one endpoint.
pub struct Logins {
    credential: Option<Credential>,
    server: ServerName,
    /// For messages.
    place: String,
    clock: Clock,
    state: Mutex<State>,
    flights: Flights<PathBuf, Asked>,
    patience: Duration,
}

struct State {
    told: Option<Told>,
    failed: Option<Failed>,
    refused: Option<Refused>,
    /// The login that was accepted last.
    proven: Option<Fingerprint>,
    /// Changes whenever another login is to be used from now on: what was had with the last one is worth
    /// nothing any more.
    generation: u64,
    is_refused: Flag,
    is_unavailable: Flag,
    /// Whether it was said that there is no login.
    told_of_none: bool,
}

/// What a helper told.
struct Told {
    program: PathBuf,
    login: Option<Arc<Login>>,
    at: Instant,
}

/// A helper that does not do its work.
struct Failed {
    program: PathBuf,
    until: Instant,
    pause: Duration,
    why: String,
}

/// A login that a registry does not take.
struct Refused {
    who: Fingerprint,
    why: String,
    until: Instant,
    pause: Duration,
    /// The pause is over and the login is being tried.
    trying: bool,
}

/// One that is counted in a gauge as long as it is raised.
struct Flag {
    gauge: IntGauge,
    raised: bool,
}

impl Flag {
    fn new(gauge: &IntGauge) -> Self {
        Self { gauge: gauge.clone(), raised: false }
    }

    /// Whether that changes it.
    fn set(&mut self, raised: bool) -> bool {
        let changed = self.raised != raised;
        if changed {
            self.gauge.add(if raised { 1 } else { -1 });
            self.raised = raised;
        }
        changed
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl Logins {
    pub fn new(
        url: &Url,
        credential: Option<Credential>,
        metrics: &UpstreamMetrics,
        clock: Clock,
        tasks: Tasks,
    ) -> Arc<Self> {
        let state = State {
            told: None,
            failed: None,
            refused: None,
            proven: None,
            generation: 0,
            is_refused: Flag::new(&metrics.credential_refused),
            is_unavailable: Flag::new(&metrics.credential_unavailable),
            told_of_none: false,
        };
        Arc::new(Self {
            credential,
            server: ServerName::of(url),
            place: guard::place(url),
            clock,
            state: Mutex::new(state),
            flights: Flights::new(tasks, "credential helper"),
            patience: helper::PATIENCE,
        })
    }

    /// The login to use now. None: there is none, or the registry refuses the one there is and neither
    /// has it changed nor is it time for another try.
    pub async fn current(self: &Arc<Self>) -> Result<Option<Arc<Login>>, Cause> {
        let Some(credential) = &self.credential else { return Ok(None) };
        let login = match self.look(credential).await {
            Ok(login) => login,
            Err(why) => {
                self.unavailable(&why);
                return Err(Cause::Trouble(format!("the login for {} cannot be had: {why}", self.place)));
            }
        };
        let mut state = lock(&self.state);
        if state.is_unavailable.set(false) {
            tracing::info!(registry = self.place, "the login can be had again");
        }
        let none_before = std::mem::replace(&mut state.told_of_none, login.is_none());
        if login.is_none() && !none_before {
            tracing::warn!(
                registry = self.place,
                credential = credential.label(),
                server = self.server.key(),
                "there is no login for this server, so it is asked anonymously; log in by `docker login`, or \
                 correct the credential's configuration"
            );
        }
        Ok(login.filter(|login| self.admit(&mut state, login)))
    }

    /// Whether a login may be used, which another one than was refused always may.
    fn admit(&self, state: &mut State, login: &Login) -> bool {
        let Some(refused) = &mut state.refused else { return true };
        if refused.who != login.fingerprint() {
            tracing::info!(registry = self.place, "there is another login than the one that was refused");
            (state.refused, state.generation) = (None, state.generation + 1);
            state.is_refused.set(false);
            return true;
        }
        if !refused.trying && self.clock.now() >= refused.until {
            refused.trying = true;
            state.generation += 1;
        }
        refused.trying
    }

    /// Changes whenever what was had with another login is worth nothing any more.
    pub fn generation(&self) -> u64 {
        lock(&self.state).generation
    }

    /// Why requests go without the configured login, where it is refused.
    pub fn refusal(&self) -> Option<String> {
        lock(&self.state)
            .refused
            .as_ref()
            .filter(|refused| !refused.trying)
            .map(|refused| refused.why.clone())
    }

    /// Whether a login was refused and not accepted since: [`Self::current`] may know of another one.
    pub fn is_refused(&self) -> bool {
        lock(&self.state).refused.is_some()
    }

    /// Whether the login may be one that goes to the registry itself, whatever it is asked for.
    pub fn may_be_for_registry(&self) -> bool {
        matches!(self.credential, Some(Credential::DockerConfig { .. }))
    }

    /// Whether a login was accepted, so that trying it can do no harm.
    pub fn is_proven(&self, login: &Login) -> bool {
        lock(&self.state).proven == Some(login.fingerprint())
    }

    pub fn accepted(&self, login: &Login) {
        let who = login.fingerprint();
        let mut state = lock(&self.state);
        state.proven = Some(who);
        if state.refused.as_ref().is_some_and(|refused| refused.who == who) {
            state.refused = None;
            state.is_refused.set(false);
            tracing::info!(registry = self.place, "the login that was refused is accepted again");
        }
    }

    /// The login is no good: it is laid aside, unless its helper knows another one by now.
    pub async fn refused(self: &Arc<Self>, login: &Login, why: &str) {
        if !self.has_another(login).await {
            self.lay_aside(login, why);
        }
    }

    /// From now on the login is not used, but for a try now and then.
    pub fn lay_aside(&self, login: &Login, why: &str) {
        let who = login.fingerprint();
        let mut state = lock(&self.state);
        let state = &mut *state;
        if state.proven == Some(who) {
            state.proven = None;
        }
        let last = state.refused.take().filter(|refused| refused.who == who);
        // Somebody else was faster.
        if let Some(refused) = last.as_ref().filter(|refused| !refused.trying) {
            tracing::debug!(registry = self.place, refused.why, "the login was refused already");
            state.refused = last;
            return;
        }
        let pause = last.as_ref().map_or(REFUSED_FIRST, |last| (last.pause * 2).min(REFUSED_LAST));
        if last.is_none() {
            tracing::error!(
                registry = self.place,
                credential = self.credential.as_ref().map(Credential::label).unwrap_or_default(),
                why,
                "the login is refused: from now on requests go out anonymously, which spends the quota of this \
                 address and opens no private repository; correct the login, which is taken up at once"
            );
        } else {
            tracing::warn!(
                registry = self.place,
                why,
                next_try_s = pause.as_secs(),
                "the login is still refused"
            );
        }
        state.refused =
            Some(Refused { who, why: why.to_owned(), until: self.clock.now() + pause, pause, trying: false });
        state.generation += 1;
        state.is_refused.set(true);
    }

    /// Whether the helper that gave `login` says otherwise when it is asked again: passwords of ECR live
    /// half a day. Other places say by themselves what they have now.
    pub async fn has_another(self: &Arc<Self>, login: &Login) -> bool {
        let program = {
            let state = lock(&self.state);
            match &state.told {
                Some(told) if told.login.as_deref() != Some(login) => return told.login.is_some(),
                // Once for each login: a try after a pause is one of the same.
                Some(told) if state.refused.is_none() => told.program.clone(),
                _ => return false,
            }
        };
        let another = matches!(self.run(program).await, Ok(Some(now)) if *now != *login);
        if another {
            lock(&self.state).generation += 1;
        }
        another
    }

    /// What the configured place has now.
    async fn look(self: &Arc<Self>, credential: &Credential) -> Asked {
        match credential {
            Credential::Password { username, password } => {
                let secret = secret(password).await?;
                Ok(Some(Arc::new(Login::new(username.clone(), secret.reveal()))))
            }
            Credential::IdentityToken(token) => {
                let secret = LoginSecret::IdentityToken(secret(token).await?);
                Ok(Some(Arc::new(Login { username: String::new(), secret })))
            }
            Credential::Helper { program } => self.ask(program).await,
            Credential::DockerConfig { path, inline, search } => {
                if let Some(inline) = inline {
                    let entry = docker_config::find(inline.reveal(), &self.server);
                    match entry.map_err(|why| format!("DOCKER_AUTH_CONFIG: {why}"))? {
                        Entry::Login(login) => return Ok(Some(Arc::new(login))),
                        Entry::Helper(name) => return self.ask(&helper::find(&name, search)?).await,
                        Entry::None => {}
                    }
                }
                let Some(path) = path else { return Ok(None) };
                let text = read(path, LARGEST_CONFIG).await?;
                let shown = path.display();
                match docker_config::find(&text, &self.server).map_err(|why| format!("{shown}: {why}"))? {
                    Entry::Login(login) => Ok(Some(Arc::new(login))),
                    Entry::Helper(name) => self.ask(&helper::find(&name, search)?).await,
                    Entry::None => Ok(None),
                }
            }
        }
    }

    /// What a helper tells, from memory where that is not long ago.
    async fn ask(self: &Arc<Self>, program: &Path) -> Asked {
        let now = self.clock.now();
        let known = {
            let state = lock(&self.state);
            let told = state.told.as_ref().filter(|told| told.program == program);
            let known = told.map(|told| (told.login.clone(), now.duration_since(told.at)));
            let fresh = if state.refused.is_some() || known.as_ref().is_some_and(|(login, _)| login.is_none())
            {
                FRESH_WITHOUT
            } else {
                FRESH
            };
            let failed =
                state.failed.as_ref().filter(|failed| failed.program == program && now < failed.until);
            match (known, failed) {
                (Some((login, age)), _) if age < fresh => return Ok(login),
                (Some((login @ Some(_), age)), Some(_)) if age < LAST_RESORT => return Ok(login),
                (_, Some(failed)) => return Err(failed.why.clone()),
                (known, None) => known,
            }
        };
        match known {
            Some((login @ Some(_), age)) if age < KEPT => {
                let (logins, program) = (self.clone(), program.to_owned());
                self.flights.start(program.clone(), || async move { logins.tell(&program).await });
                Ok(login)
            }
            Some((login @ Some(_), age)) if age < LAST_RESORT => {
                Ok(self.run(program.to_owned()).await.unwrap_or(login))
            }
            _ => self.run(program.to_owned()).await,
        }
    }

    /// Runs a helper, once for all who wait.
    async fn run(self: &Arc<Self>, program: PathBuf) -> Asked {
        let logins = self.clone();
        let work = {
            let program = program.clone();
            || async move { logins.tell(&program).await }
        };
        self.flights.join(program, work).await.unwrap_or_else(|| Err("its helper was ended".to_owned()))
    }

    async fn tell(&self, program: &Path) -> Asked {
        let asked = helper::ask(program, self.server.key(), self.patience).await;
        let (now, mut state) = (self.clock.now(), lock(&self.state));
        match asked {
            Ok(login) => {
                let login = login.map(Arc::new);
                state.told = Some(Told { program: program.to_owned(), login: login.clone(), at: now });
                if state.failed.take().is_some() {
                    tracing::info!(helper = %program.display(), "the credential helper works again");
                }
                Ok(login)
            }
            Err(why) => {
                let last = state.failed.take().filter(|failed| failed.program == program);
                if last.is_none() {
                    tracing::error!(registry = self.place, why, "a credential helper failed");
                }
                let pause = last.map_or(FAILED_FIRST, |last| (last.pause * 2).min(FAILED_LAST));
                let failed =
                    Failed { program: program.to_owned(), until: now + pause, pause, why: why.clone() };
                state.failed = Some(failed);
                Err(why)
            }
        }
    }

    fn unavailable(&self, why: &str) {
        if lock(&self.state).is_unavailable.set(true) {
            tracing::error!(
                registry = self.place,
                why,
                "the login cannot be had: what is held is served, and nothing is asked for anonymously instead"
            );
        }
    }
}

/// Whether Docker configurations, the first ones first, have a login for the registry at `url`, or name a
/// helper that can be asked. The error names what is wrong with them, and the remedy.
pub fn has_docker_login(texts: &[Option<&str>], url: &Url, search: &[PathBuf]) -> Result<bool, String> {
    let server = ServerName::of(url);
    for text in texts.iter().flatten() {
        match docker_config::find(text, &server)? {
            Entry::Login(_) => return Ok(true),
            Entry::Helper(name) => return helper::find(&name, search).map(|_| true),
            Entry::None => {}
        }
    }
    Ok(false)
}

async fn secret(password: &Password) -> Result<Secret, String> {
    let path = match password {
        Password::Inline(secret) => return Ok(secret.clone()),
        Password::File(path) => path,
    };
    let mut text = read(path, LARGEST_SECRET).await?;
    text.truncate(text.trim_end_matches(['\n', '\r', '\0']).len());
    if text.is_empty() {
        // Whoever writes it in place may be about to.
        return Err(format!("the password file {} is empty", path.display()));
    }
    Ok(Secret::new(text))
}

/// A small file, each time anew: links are followed to where they lead now.
async fn read(path: &Path, largest: u64) -> Result<String, String> {
    let wrong =
        |why: &dyn std::fmt::Display| format!("the password file {} cannot be read: {why}", path.display());
    let file = tokio::fs::File::open(path).await.map_err(|error| wrong(&error))?;
    let mut text = String::new();
    file.take(largest + 1).read_to_string(&mut text).await.map_err(|error| wrong(&error))?;
    if text.len() as u64 > largest {
        Err(wrong(&format!("it is larger than {} KiB", largest / 1024)))
    } else {
        Ok(text)
    }
}
