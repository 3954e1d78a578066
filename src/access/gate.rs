//! Who a request comes from: what it shows of that, checked.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::issuers::{Issuer, TokenServer};
use super::mint::{self, Issued, Mint};
use super::pass::Passes;
use super::passwords::{Busy, Checked, Passwords};
use super::{
    Access, AuthOptions, Client, Defaults, Failures, Grants, Identity, LoginHosts, Policy, Refused, token,
};
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
    mint: Option<Mint>,
    token_server: Option<TokenServer>,
    issuers: Vec<Issuer>,
    /// For those who show logins of registries upstream.
    pub passes: Passes,
    pub failures: Failures,
    metrics: Arc<Metrics>,
}

/// Whom the credentials show.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    pub identity: Identity,
    /// Of a token: what it is good for.
    pub grants: Option<Arc<Grants>>,
    /// Of an ID token: it shows that until then.
    pub until: Option<SystemTime>,
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
    /// Reads the files that it needs; blocks for that. `data`: where the key of tokens is kept.
    pub fn open(
        options: AuthOptions,
        data: &Path,
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
        let passwords = passwords.map(|path| Passwords::open(path, clock.clone(), tasks.clone()));
        let mint = options.tokens.as_ref().map(|tokens| Mint::open(tokens, data, clock.clone()));
        let token_server = options.token_server.as_ref().map(|server| TokenServer::open(server, clock));
        let issuers = options.issuers.iter().map(|issuer| Issuer::open(issuer, clock));
        Ok(Self {
            policy,
            passwords: passwords.transpose()?,
            mint: mint.transpose()?,
            token_server: token_server.transpose()?,
            issuers: issuers.collect::<Result<_, _>>()?,
            options,
            passes: Passes::new(clock.clone()),
            failures: Failures::default(),
            metrics,
        })
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

    /// The service for which tokens are given out here. None: they are not.
    pub fn token_service(&self) -> Option<&str> {
        self.mint.as_ref().map(Mint::service)
    }

    /// What asks clients to log in. None: nothing that they could send would be one.
    pub fn challenge(&self) -> Option<Challenge<'_>> {
        if let Some(server) = &self.options.token_server {
            return Some(Challenge::Bearer { realm: Some(&server.realm), service: &server.service });
        }
        if let Some(service) = self.token_service() {
            return Some(Challenge::Bearer { realm: None, service });
        }
        self.takes_credentials().then_some(Challenge::Basic { realm: &self.options.realm })
    }

    fn takes_credentials(&self) -> bool {
        self.passwords.is_some()
            || self.mint.is_some()
            || self.token_server.is_some()
            || !self.issuers.is_empty()
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
        let Some(header) = authorization.filter(|_| self.takes_credentials()) else {
            let identity = match certificate {
                Some(name) => {
                    self.metrics.logins.cell(LoginMethod::Certificate, Login::Granted).inc();
                    Identity::Certificate(name.clone())
                }
                None => Identity::Anonymous,
            };
            return Ok(Shown::by(identity));
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
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.by_token(value).await;
        }
        Err(wrong("the Authorization header is of no kind that is taken here: `Basic` or `Bearer`", false))
    }

    /// Whom a name and a password show; an ID token as the password shows its own subject, whatever
    /// the name.
    pub async fn by_password(&self, client: Client, user: &str, password: &str) -> Result<Shown, NotShown> {
        if token::is_token(password)
            && let Some(issuer) = token::issuer(password).and_then(|issuer| self.issuer(&issuer))
        {
            return self.by_id_token(issuer, password).await;
        }
        let Some(passwords) = &self.passwords else {
            let why = match self.token_server {
                Some(_) => "names and passwords are for the token server, not sent here",
                None => "the password is no ID token of an issuer that is configured here",
            };
            self.metrics.logins.cell(LoginMethod::Password, Login::Refused).inc();
            return Err(wrong(why, false));
        };
        let checked = passwords.check(client, user, password).await;
        self.metrics.logins.cell(LoginMethod::Password, counted(checked)).inc();
        match checked {
            Ok(Checked { right: true, .. }) => Ok(Shown::by(Identity::User(user.into()))),
            Ok(Checked { right: false, .. }) => Err(wrong("the name or the password is wrong", false)),
            Err(Busy) => Err(NotShown::Busy),
        }
    }

    /// Whom a bearer token shows: one of ours, of the token server, or an ID token.
    async fn by_token(&self, token: &str) -> Result<Shown, NotShown> {
        let issuer = token::issuer(token).unwrap_or_default();
        if let Some(issuer) = self.issuer(&issuer).filter(|_| issuer != mint::ISSUER) {
            return self.by_id_token(issuer, token).await;
        }
        let checked = match (&self.token_server, &self.mint) {
            (Some(server), _) if server.issuer() == issuer => server
                .check(token)
                .await
                .map(|(identity, grants)| Shown { grants: Some(Arc::new(grants)), ..Shown::by(identity) }),
            (_, Some(mint)) => self.by_own(mint, token).await,
            (Some(_), None) => Err("the token is not one of the token server's".to_owned()),
            (None, None) => Err("the token is of no issuer that is configured here".to_owned()),
        };
        self.counted(LoginMethod::Token, checked)
    }

    async fn by_own(&self, mint: &Mint, token: &str) -> Result<Shown, String> {
        let claims = mint.check(token)?;
        if self.fingerprint(&claims.identity).await != claims.password {
            return Err("the token's user is gone, or has another password by now".to_owned());
        }
        let grants = Grants { access: claims.access, is_foreign: false };
        Ok(Shown { grants: Some(Arc::new(grants)), ..Shown::by(claims.identity) })
    }

    async fn by_id_token(&self, issuer: &Issuer, token: &str) -> Result<Shown, NotShown> {
        let subject = issuer.subject(token).await;
        let shown = subject.map(|(identity, until)| Shown { until: Some(until), ..Shown::by(identity) });
        self.counted(LoginMethod::IdToken, shown)
    }

    fn issuer(&self, issuer: &str) -> Option<&Issuer> {
        self.issuers.iter().find(|known| known.issuer() == issuer)
    }

    fn counted(&self, method: LoginMethod, shown: Result<Shown, String>) -> Result<Shown, NotShown> {
        let login = if shown.is_ok() { Login::Granted } else { Login::Refused };
        self.metrics.logins.cell(method, login).inc();
        shown.map_err(|why| wrong(why, true))
    }

    /// Counts a login of a registry upstream, which that registry has judged.
    pub fn judged_upstream(&self, login: Login) {
        self.metrics.logins.cell(LoginMethod::Upstream, login).inc();
    }

    /// What ends the tokens of a user when it changes.
    async fn fingerprint(&self, identity: &Identity) -> Option<String> {
        match (identity, &self.passwords) {
            (Identity::User(name), Some(passwords)) => passwords.fingerprint(name).await,
            _ => None,
        }
    }

    /// A token of our own for what somebody may do. None: none are given out here.
    pub async fn issue(&self, shown: &Shown, access: Vec<Access>) -> Option<Result<Issued, String>> {
        let mint = self.mint.as_ref()?;
        let password = self.fingerprint(&shown.identity).await;
        let issued = mint.issue(shown.identity.clone(), access, password, shown.until);
        self.metrics.tokens_issued.inc_by(u64::from(issued.is_ok()));
        Some(issued)
    }

    /// A token that fetches others, for who has a password here.
    pub async fn refresh_token(&self, shown: &Shown) -> Option<String> {
        let (mint, Identity::User(name)) = (self.mint.as_ref()?, &shown.identity) else { return None };
        let password = self.fingerprint(&shown.identity).await?;
        mint.refresh(name.to_string(), password).ok()
    }

    /// Whom such a token shows.
    pub async fn by_refresh_token(&self, token: &str) -> Result<Shown, NotShown> {
        let checked = match self.mint.as_ref().map(|mint| mint.check_refresh(token)) {
            None => Err("no tokens are given out here".to_owned()),
            Some(Err(why)) => Err(why),
            Some(Ok(claims)) => {
                let identity = Identity::User(claims.user.into());
                match self.fingerprint(&identity).await {
                    Some(password) if password == claims.password => Ok(Shown::by(identity)),
                    _ => Err("the token's user is gone, or has another password by now".to_owned()),
                }
            }
        };
        self.counted(LoginMethod::Token, checked)
    }
}

impl Shown {
    fn by(identity: Identity) -> Self {
        Self { identity, grants: None, until: None }
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

/// Name and password (RFC 7617), of what follows `Basic`.
pub fn basic(value: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(BASE64_STANDARD.decode(value).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests;
