//! Who a request comes from: what it shows of that, checked.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::passwords::{Busy, Checked, Passwords};
use super::{AuthOptions, Client, Defaults, Grants, Identity, LoginHosts, Policy, Refused};
use crate::clock::Clock;
use crate::metrics::{Login, LoginMethod, Metrics};
use crate::tasks::Tasks;

/// Longest `Authorization` that is looked at: tokens of issuers have some 2 KiB.
const AUTHORIZATION_MAX: usize = 32 * 1024;

/// Authentication and policy as configured.
pub struct Gate {
    options: AuthOptions,
    policy: Policy,
    passwords: Option<Passwords>,
    metrics: Arc<Metrics>,
}

/// Whom the credentials show.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    pub identity: Identity,
    /// Of a token: what it is good for.
    pub grants: Option<Arc<Grants>>,
}

/// Why credentials show nobody.
#[derive(Clone, Debug, PartialEq)]
pub enum NotShown {
    Wrong(Refused),
    /// They cannot be checked at the moment.
    Busy,
}

/// How clients are asked to log in.
#[derive(Clone, Debug, PartialEq)]
pub enum Challenge<'a> {
    Basic {
        realm: &'a str,
    },
    /// `realm`: None for our own, at `/token`.
    Bearer {
        realm: Option<&'a str>,
        service: &'a str,
    },
}

impl Gate {
    /// Reads the files that it needs; blocks for that. `data`: where own keys are kept.
    pub fn open(
        options: AuthOptions,
        _data: &Path,
        metrics: Arc<Metrics>,
        clock: &Clock,
        tasks: &Tasks,
    ) -> Result<Self, String> {
        let defaults = Defaults {
            logins: options.has_logins(),
            anonymous_pull: options.anonymous_pull,
            mirror: options.mirror,
            push: options.push,
        };
        let policy = Policy::new(options.rules.clone(), defaults)?;
        let passwords = options.htpasswd_file.as_deref();
        let passwords =
            passwords.map(|path| Passwords::open(path, clock.clone(), tasks.clone())).transpose()?;
        Ok(Self { options, policy, passwords, metrics })
    }

    pub fn options(&self) -> &AuthOptions {
        &self.options
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether there is any way to log in.
    pub fn has_logins(&self) -> bool {
        self.options.has_logins()
    }

    /// What asks clients to log in. None: nothing that they could send would be one.
    pub fn challenge(&self) -> Option<Challenge<'_>> {
        let basic = Challenge::Basic { realm: &self.options.realm };
        self.takes_credentials().then_some(basic)
    }

    fn takes_credentials(&self) -> bool {
        self.passwords.is_some()
    }

    /// Whether a bare `GET /v2/` at this host and port is asked to log in, as `docker login` needs.
    pub fn is_login_host(&self, authority: &str) -> bool {
        match &self.options.login_hosts {
            LoginHosts::All => true,
            LoginHosts::These(hosts) => hosts.iter().any(|host| host.eq_ignore_ascii_case(authority)),
        }
    }

    /// Whom a request's `Authorization`, or else its TLS certificate, shows.
    pub async fn show(
        &self,
        client: Client,
        authorization: Option<&[u8]>,
        certificate: Option<&Arc<str>>,
    ) -> Result<Shown, NotShown> {
        let of_connection = match certificate {
            Some(name) => Identity::Certificate(name.clone()),
            None => Identity::Anonymous,
        };
        let Some(header) = authorization.filter(|_| self.takes_credentials()) else {
            return Ok(Shown { identity: of_connection, grants: None });
        };
        let header = std::str::from_utf8(header).ok().filter(|header| header.len() <= AUTHORIZATION_MAX);
        let (scheme, value) = header.and_then(|header| header.split_once(' ')).unwrap_or_default();
        let value = value.trim();
        if scheme.eq_ignore_ascii_case("basic") {
            let Some((user, password)) = basic(value) else {
                return Err(wrong("the Authorization header holds no name and password", false));
            };
            return self.by_password(client, &user, &password).await;
        }
        Err(wrong(
            "the Authorization header is of no kind that is taken here: log in with name and password",
            false,
        ))
    }

    /// Whom a name and a password show.
    pub async fn by_password(&self, client: Client, user: &str, password: &str) -> Result<Shown, NotShown> {
        let Some(passwords) = &self.passwords else {
            return Err(wrong("there are no names and passwords here", false));
        };
        let checked = passwords.check(client, user, password).await;
        self.metrics.logins.cell(LoginMethod::Password, counted(checked)).inc();
        match checked {
            Ok(Checked { right: true, .. }) => {
                Ok(Shown { identity: Identity::User(user.into()), grants: None })
            }
            Ok(Checked { right: false, .. }) => Err(wrong("the name or the password is wrong", false)),
            Err(Busy) => Err(NotShown::Busy),
        }
    }
}

fn counted(checked: Result<Checked, Busy>) -> Login {
    match checked {
        Ok(Checked { right: true, cached: false }) => Login::Granted,
        Ok(Checked { right: true, cached: true }) => Login::Remembered,
        Ok(Checked { right: false, .. }) => Login::Refused,
        Err(Busy) => Login::Busy,
    }
}

fn wrong(why: impl Into<String>, token: bool) -> NotShown {
    NotShown::Wrong(Refused { why: why.into(), token })
}

/// Name and password (RFC 7617).
fn basic(value: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(BASE64_STANDARD.decode(value).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}
