//! `private = "per-caller"`: callers are asked for their login of the upstream, and given a pass for one
//! repository, which they bring with each request.
//!
//! The login comes to `/token`, for the service `upstream:HOST`. Forebay's own logins have no part in it.

use http::HeaderValue;

use super::address::{Address, Serve};
use super::error::ApiError;
use super::error::Code;
use super::handler::{Answer, Service};
use super::respond::header_value;
use super::token::{Asked, granting};
use crate::access::{Caller, Client, ClientToll, Pass, basic};
use crate::answer::Error;
use crate::metrics::{Kind, Login as Judged, Outcome};
use crate::mirror::{Asker, CallerId, Login};
use crate::oci::{Owner, Repository, UpstreamHost};
use crate::upstream::Hops;

/// What stands before the upstream's host in the name of the service.
const SERVICE: &str = "upstream:";
/// Longest name and password together: some registries have tokens of some kilobytes for passwords.
const LOGIN_MAX: usize = 16 * 1024;

impl Service {
    /// On whose behalf the mirror is asked.
    pub(super) fn asker<'a>(
        &self,
        toll: &'a ClientToll<'_>,
        hops: &'a Hops,
        caller: &Caller,
        repository: &Repository,
    ) -> Asker<'a> {
        Asker { toll, hops, caller: self.known_caller(caller, repository) }
    }

    /// Who the pass shows, where it is for this repository and the login is still at hand.
    fn known_caller(&self, caller: &Caller, repository: &Repository) -> Option<CallerId> {
        let Some(Ok(pass)) = &caller.pass else { return None };
        let (Owner::Upstream(host), Some(id)) = (&repository.owner, pass.caller) else { return None };
        let mirror = &self.content.as_ref()?.mirror;
        (pass.repository == repository.to_string() && mirror.knows(host, id)).then_some(id)
    }

    /// Whether there is an upstream whose callers show their own logins.
    pub(super) fn asks_callers(&self) -> bool {
        let mirror = self.content.as_ref().map(|content| &content.mirror);
        mirror.is_some_and(|mirror| mirror.upstreams().keys().any(|host| mirror.asks_callers(host)))
    }

    /// The upstream for whose callers a service is the name, where it asks them for logins.
    pub(super) fn upstream_service(&self, service: Option<&str>) -> Option<UpstreamHost> {
        let host: UpstreamHost = service?.strip_prefix(SERVICE)?.parse().ok()?;
        let mirror = &self.content.as_ref()?.mirror;
        // The configured one knows whether it is the default.
        let (host, _) = mirror.upstreams().get_key_value(&host)?;
        mirror.asks_callers(host).then(|| host.clone())
    }

    /// Asks for a token at the ping where that is the upstream's: dockerd, podman and skopeo bring none
    /// later that they were not asked for here. One for nobody will do.
    pub(super) fn admit_to_upstream(&self, caller: &Caller, address: &Address) -> Result<(), ApiError> {
        let Some(mirror) = self.content.as_ref().map(|content| &content.mirror) else { return Ok(()) };
        let default = || mirror.upstreams().keys().find(|host| host.is_default());
        let host = match address.serve {
            Serve::Hosted => None,
            Serve::All | Serve::Mirror => address.upstream().or_else(default),
        };
        let Some(host) = host.filter(|host| mirror.asks_callers(host)) else { return Ok(()) };
        // Who is logged in at this registry has asked for something else.
        if matches!(caller.pass, Some(Ok(_))) || !caller.identity.is_anonymous() {
            return Ok(());
        }
        let error = caller.pass.as_ref().map(|_| "invalid_token");
        let message = format!("a token is needed here, for {host}: without a login it is for what is public");
        Err(ApiError::unauthorized(message, challenge(caller, host, None, error)))
    }

    /// Why there is no content, with the challenge where a login would help.
    pub(super) fn without_content(
        &self,
        caller: &Caller,
        error: &Error,
        kind: Kind,
        repository: &Repository,
    ) -> ApiError {
        let (Error::LoginNeeded { .. }, Owner::Upstream(host)) = (error, &repository.owner) else {
            return ApiError::of_content(error, kind, repository);
        };
        let wrong = match &caller.pass {
            None => None,
            Some(Ok(Pass { repository: of, caller }))
                if caller.is_none() || *of != repository.to_string() =>
            {
                Some("insufficient_scope")
            }
            Some(_) => Some("invalid_token"),
        };
        ApiError::unauthorized(error.to_string(), challenge(caller, host, Some(repository), wrong))
    }

    /// A pass for the repository that is asked for, unless the upstream says that the login is wrong;
    /// without a login, one for nobody.
    pub(super) async fn pass(
        &self,
        host: &UpstreamHost,
        asked: &Asked,
        login: Option<(String, String)>,
        client: Client,
    ) -> Answer {
        let repository = asked.scopes.iter().find_map(|scope| self.asked_repository(host, scope));
        let caller = match (&repository, login) {
            (Some(repository), Some((user, password))) => {
                self.log_in(repository, user, password, client).await?
            }
            // Where no repository is named, there is nothing to ask upstream for.
            _ => None,
        };
        let issued = self.gate.passes.issue(repository.as_ref(), caller);
        let scope = repository.map(|repository| format!("repository:{repository}:pull"));
        Ok((granting(&issued, asked.is_form.then(|| scope.unwrap_or_default()), None), Outcome::Hit))
    }

    /// The repository of a scope that pulls: as the challenge names it, or as clients do that know it
    /// by a mirror's address.
    fn asked_repository(&self, host: &UpstreamHost, scope: &str) -> Option<Repository> {
        let (kind, rest) = scope.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        let is_pull = actions.split(',').any(|action| matches!(action.trim(), "pull" | "*"));
        if kind.split('(').next() != Some("repository") || !is_pull {
            return None;
        }
        let of_host = |repository: &Repository| repository.owner == Owner::Upstream(host.clone());
        let as_written = self.owners.resolve(None, name).ok().filter(of_host);
        as_written.or_else(|| self.owners.resolve(Some(host.as_str()), name).ok().filter(of_host))
    }

    async fn log_in(
        &self,
        repository: &Repository,
        user: String,
        password: String,
        client: Client,
    ) -> Result<Option<CallerId>, ApiError> {
        if user.is_empty() || user.len() + password.len() > LOGIN_MAX {
            let message = format!("a login has a name, and {LOGIN_MAX} bytes at most");
            return Err(ApiError::new(Code::Invalid, message));
        }
        let mirror = &self.content(Kind::Other, None)?.mirror;
        if mirror.is_known_public(repository) {
            return Ok(None);
        }
        let login = Login::new(user, &password);
        if let Some(known) = mirror.remembered(repository, &login) {
            self.gate.judged_upstream(if known.is_ok() { Judged::Remembered } else { Judged::Refused });
            return known.map(Some).map_err(|error| self.not_logged_in(&error, repository));
        }
        let attempt = self.gate.failures.attempt(client).map_err(|wait| {
            self.gate.judged_upstream(Judged::Busy);
            ApiError::too_many_failures(wait)
        })?;
        let (known, is_guess) = mirror.log_in(repository, login).await;
        if !is_guess {
            attempt.forgive();
        }
        self.gate.judged_upstream(match &known {
            Ok(_) => Judged::Granted,
            Err(Error::Denied { .. }) => Judged::Refused,
            Err(_) => Judged::Busy,
        });
        known.map(Some).map_err(|error| self.not_logged_in(&error, repository))
    }

    fn not_logged_in(&self, error: &Error, repository: &Repository) -> ApiError {
        match error {
            Error::Denied { .. } => {
                let message = format!("{} does not take this name and password", repository.owner);
                let realm = header_value(format!("Basic realm=\"{}\"", repository.owner));
                ApiError::unauthorized(message, realm)
            }
            error => ApiError::of_content(error, Kind::Other, repository),
        }
    }
}

/// Asks for a login of the upstream.
fn challenge(
    caller: &Caller,
    host: &UpstreamHost,
    repository: Option<&Repository>,
    error: Option<&str>,
) -> HeaderValue {
    let mut text = format!("Bearer realm=\"{}/token\",service=\"{SERVICE}{host}\"", caller.base);
    if let Some(repository) = repository {
        text += &format!(",scope=\"repository:{repository}:pull\"");
    }
    if let Some(error) = error {
        text += &format!(",error=\"{error}\"");
    }
    header_value(text)
}

/// Name and password of an `Authorization` header; None without one. An error: it is of another kind.
pub(super) fn login_in(authorization: Option<&HeaderValue>) -> Result<Option<(String, String)>, ApiError> {
    let Some(header) = authorization else { return Ok(None) };
    let (scheme, value) = header.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
    let login = scheme.eq_ignore_ascii_case("basic").then(|| basic(value.trim())).flatten();
    login.map(Some).ok_or_else(|| {
        let message = "a login is shown by the Basic scheme here: a name and a password".to_owned();
        ApiError::unauthorized(message, HeaderValue::from_static("Basic realm=\"forebay\""))
    })
}
