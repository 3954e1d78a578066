//! From where a login is had: files, read each time anew, and helpers, asked now and then.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use url::Url;

use super::credential::{Credential, Login, LoginSecret, Password, Secret, ServerName};
use super::docker_config::{self, Entry};
use super::helper;
use crate::clock::Clock;
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
const LARGEST_SECRET: u64 = 64 * 1024;
const LARGEST_CONFIG: u64 = 1 << 20;

pub type Asked = Result<Option<Arc<Login>>, String>;

/// Where the login of one endpoint is.
pub struct Source {
    pub credential: Credential,
    pub server: ServerName,
    clock: Clock,
    state: Mutex<State>,
    flights: Flights<PathBuf, Asked>,
}

#[derive(Default)]
struct State {
    told: Option<Told>,
    failed: Option<Failed>,
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

impl Source {
    pub fn new(credential: Credential, url: &Url, clock: Clock, tasks: Tasks) -> Arc<Self> {
        let flights = Flights::new(tasks, "credential helper");
        Arc::new(Self { credential, server: ServerName::of(url), clock, state: Mutex::default(), flights })
    }

    /// What the configured place has now. `doubted`: a registry refuses what it had before.
    pub async fn look(self: &Arc<Self>, doubted: bool) -> Asked {
        match &self.credential {
            Credential::Password { username, password } => {
                let secret = secret(password).await?;
                Ok(Some(Arc::new(Login::new(username.clone(), secret.reveal()))))
            }
            Credential::IdentityToken(token) => {
                let secret = LoginSecret::IdentityToken(secret(token).await?);
                Ok(Some(Arc::new(Login { username: String::new(), secret })))
            }
            Credential::Helper { program } => self.ask(program, doubted).await,
            Credential::DockerConfig { path, inline, search } => {
                if let Some(inline) = inline {
                    let entry = docker_config::find(inline.reveal(), &self.server);
                    match entry.map_err(|why| format!("DOCKER_AUTH_CONFIG: {why}"))? {
                        Entry::Login(login) => return Ok(Some(Arc::new(login))),
                        Entry::Helper(name) => return self.ask(&helper::find(&name, search)?, doubted).await,
                        Entry::None => {}
                    }
                }
                let Some(path) = path else { return Ok(None) };
                let text = read(path, LARGEST_CONFIG).await?;
                let shown = path.display();
                match docker_config::find(&text, &self.server).map_err(|why| format!("{shown}: {why}"))? {
                    Entry::Login(login) => Ok(Some(Arc::new(login))),
                    Entry::Helper(name) => self.ask(&helper::find(&name, search)?, doubted).await,
                    Entry::None => Ok(None),
                }
            }
        }
    }

    /// What a helper tells, from memory where that is not long ago.
    async fn ask(self: &Arc<Self>, program: &Path, doubted: bool) -> Asked {
        let now = self.clock.now();
        let known = {
            let state = lock(&self.state);
            let told = state.told.as_ref().filter(|told| told.program == program);
            let known = told.map(|told| (told.login.clone(), now.duration_since(told.at)));
            let without = doubted || known.as_ref().is_some_and(|(login, _)| login.is_none());
            let fresh = if without { FRESH_WITHOUT } else { FRESH };
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
                let (source, program) = (self.clone(), program.to_owned());
                self.flights.start(program.clone(), || async move { source.tell(&program).await });
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
        let source = self.clone();
        let work = {
            let program = program.clone();
            || async move { source.tell(&program).await }
        };
        self.flights.join(program, work).await.unwrap_or_else(|| Err("its helper was ended".to_owned()))
    }

    async fn tell(&self, program: &Path) -> Asked {
        let asked = helper::ask(program, self.server.key(), helper::PATIENCE).await;
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
                    tracing::error!(server = self.server.key(), why, "a credential helper failed");
                }
                let pause = last.map_or(FAILED_FIRST, |last| (last.pause * 2).min(FAILED_LAST));
                let failed =
                    Failed { program: program.to_owned(), until: now + pause, pause, why: why.clone() };
                state.failed = Some(failed);
                Err(why)
            }
        }
    }

    /// Whether there is another login than this one, which was refused. `again`: a helper that gave it is
    /// asked anew, for passwords of ECR live half a day.
    pub async fn has_another(self: &Arc<Self>, login: &Login, again: bool) -> bool {
        let gave = |told: &&Told| told.login.as_deref() == Some(login);
        let program = lock(&self.state).told.as_ref().filter(gave).map(|told| told.program.clone());
        if let Some(program) = program.filter(|_| again) {
            // Its failure is in the log, and the answer is what is known all the same.
            let _ = self.run(program).await;
        }
        matches!(self.look(false).await, Ok(Some(now)) if *now != *login)
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
        return Err(format!("the file {} is empty", path.display()));
    }
    Ok(Secret::new(text))
}

/// A small file, each time anew: links are followed to where they lead now.
async fn read(path: &Path, largest: u64) -> Result<String, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("the file {} cannot be read: {why}", path.display());
    let file = tokio::fs::File::open(path).await.map_err(|error| wrong(&error))?;
    let mut text = String::new();
    file.take(largest + 1).read_to_string(&mut text).await.map_err(|error| wrong(&error))?;
    if text.len() as u64 > largest {
        Err(wrong(&format!("it is larger than {} KiB", largest / 1024)))
    } else {
        Ok(text)
    }
}
