//! Who a request comes from, and whether it may do what it asks for.

use std::net::SocketAddr;
use std::sync::Arc;

use http::uri::Authority;
use http::{HeaderName, HeaderValue, Version, header};

use super::address::{Address, Serve};
use super::connection::Arrival;
use super::error::{ApiError, Code};
use super::handler::Service;
use super::owners::Owners;
use super::respond::header_value;
use crate::access::{
    Action, Caller, Challenge, Client, Decision, Gate, Grants, Identity, NotShown, Reason, Refused, pass_of,
};
use crate::oci::{Owner, Repository, UpstreamHost};

/// Headers that proxies add, besides all of `X-Forwarded-`.
const FORWARDING: [HeaderName; 3] = [header::FORWARDED, header::VIA, HeaderName::from_static("x-real-ip")];

impl Service {
    /// Who the request comes from. Wrong credentials are kept for [`Self::authorise`] to judge, since
    /// where no login is asked for they may be meant for another registry. An error: they cannot be
    /// checked now.
    pub(super) async fn identify(
        &self,
        request: &http::request::Parts,
        arrival: &Arrival,
        client: Client,
    ) -> Result<Caller, ApiError> {
        let is_local = is_local(arrival, request);
        let mut caller = Caller {
            client,
            identity: Identity::Anonymous,
            is_local,
            grants: None,
            refused: None,
            pass: None,
            base: Arc::default(),
        };
        if !self.gate.has_logins() && !self.asks_callers() {
            return Ok(caller);
        }
        caller.base = self.external_base(request, arrival).into();
        let mut authorization = request.headers.get_all(header::AUTHORIZATION).iter();
        let first = authorization.next();
        if authorization.next().is_some() && self.gate.has_logins() {
            let why = "there are several Authorization headers: send one".to_owned();
            caller.refused = Some(Refused { why, token: false });
            return Ok(caller);
        }
        let first = first.map(|value| value.as_bytes());
        let pass = first.and_then(pass_of);
        caller.pass = pass.map(|pass| self.gate.passes.open(pass));
        if !self.gate.has_logins() {
            return Ok(caller);
        }
        // It is no login here.
        let first = first.filter(|_| pass.is_none());
        let shown = self.gate.show(client, first, arrival.certificate.as_ref());
        match Box::pin(shown).await {
            Ok(shown) => (caller.identity, caller.grants) = (shown.identity, shown.grants),
            Err(NotShown::Wrong(refused)) => caller.refused = Some(refused),
            Err(NotShown::Busy) => return Err(ApiError::logins_busy()),
        }
        Ok(caller)
    }

    /// Refuses what the caller may not do. What is mirrored is read only, whoever asks.
    pub(super) fn authorise(
        &self,
        caller: &Caller,
        action: Action,
        repository: &Repository,
    ) -> Result<(), ApiError> {
        if let Owner::Upstream(host) = &repository.owner
            && action != Action::Pull
        {
            let message =
                format!("{repository} is mirrored from {host}, and can only be read here: push there");
            return Err(ApiError::method(message, "GET, HEAD"));
        }
        let asks = asks_for_login(&self.gate, repository);
        if let Some(refused) = caller.refused.as_ref().filter(|_| asks) {
            return Err(self.refused(caller, refused, Some((action, repository))));
        }
        let reason = match verdict(&self.gate, &self.owners, caller, action, repository) {
            Verdict::Yes => return Ok(()),
            Verdict::BeyondToken => return Err(self.beyond_token(caller, action, repository)),
            Verdict::No(reason) => reason,
        };
        // Who has not logged in is asked to, but where it would change nothing.
        let login_helps = !matches!(reason, Reason::PushIsOff | Reason::PushIsLocal);
        if asks && login_helps && caller.identity.is_anonymous() {
            let message = format!("{action} of {repository} needs a login");
            if let Some(challenge) = self.challenge(caller, Some((action, repository)), None) {
                return Err(ApiError::unauthorized(message, challenge));
            }
        }
        let message = match reason {
            Reason::PushIsLocal => format!(
                "{action} of {repository} is for programs on this very machine only, by an address of it and \
                 through no proxy; to allow others, set `auth.htpasswd_file`, or `hosted.push = \"open\"`"
            ),
            _ => {
                let why = self.gate.policy().explain(reason);
                format!("{} may not {action} {repository}: {why}", caller.identity)
            }
        };
        Err(ApiError::new(Code::Denied, message))
    }

    /// Whether lists show this repository to the caller.
    pub(super) fn may_pull(&self, caller: &Caller, repository: &Repository) -> bool {
        may_pull(&self.gate, &self.owners, caller, repository)
    }

    /// The upstreams of which the caller may pull something. The others' names are not told.
    pub(super) fn open_upstreams(&self, caller: &Caller) -> Vec<String> {
        let is_open = |host: &&UpstreamHost| may_pull_from(&self.gate, &self.owners, caller, host);
        self.owners.configured().iter().filter(is_open).map(ToString::to_string).collect()
    }

    /// Lets a caller in to what concerns no single repository: the ping of `/v2/`, the lists. `ping`
    /// is one of the mirror where another registry is addressed, which is asked for no login by default.
    pub(super) fn admit(&self, caller: &Caller, address: &Address, is_ping: bool) -> Result<(), ApiError> {
        let of_mirror = address.upstream().is_some() || address.serve == Serve::Mirror;
        if is_ping && of_mirror && !self.gate.options().mirror {
            return Ok(());
        }
        if let Some(refused) = &caller.refused {
            return Err(self.refused(caller, refused, None));
        }
        let authority = caller.base.split_once("://").map_or("", |(_, authority)| authority);
        let authority = authority.split('/').next().unwrap_or_default();
        let shown = !caller.identity.is_anonymous() || caller.grants.is_some();
        // No mirror of dockerd's leads where nothing is mirrored: passwords sent there are meant for it.
        let asks = address.serve == Serve::Hosted || self.gate.is_login_host(authority);
        if shown || !self.gate.has_logins() || !asks {
            return Ok(());
        }
        match self.challenge(caller, None, None) {
            Some(challenge) => Err(ApiError::unauthorized("a login is needed here".to_owned(), challenge)),
            None => Ok(()),
        }
    }

    /// Where clients find this server: what stands before `/v2/` and `/token`.
    pub(super) fn external_base(&self, request: &http::request::Parts, arrival: &Arrival) -> String {
        self.external(request, arrival).base()
    }

    fn refused(&self, caller: &Caller, refused: &Refused, wanted: Option<(Action, &Repository)>) -> ApiError {
        let error = refused.token.then_some("invalid_token");
        match self.challenge(caller, wanted, error) {
            Some(challenge) => ApiError::unauthorized(refused.why.clone(), challenge),
            None => ApiError::new(Code::Denied, refused.why.clone()),
        }
    }

    fn beyond_token(&self, caller: &Caller, action: Action, repository: &Repository) -> ApiError {
        let message = format!("the token does not cover {action} of {repository}: ask for one that does");
        match self.challenge(caller, Some((action, repository)), Some("insufficient_scope")) {
            Some(challenge) => ApiError::unauthorized(message, challenge),
            None => ApiError::new(Code::Denied, message),
        }
    }

    /// `WWW-Authenticate` (RFC 7617; RFC 6750 with CNCF distribution's `service`). None: there is
    /// nothing that a client could send.
    fn challenge(
        &self,
        caller: &Caller,
        wanted: Option<(Action, &Repository)>,
        error: Option<&str>,
    ) -> Option<HeaderValue> {
        let text = match self.gate.challenge()? {
            Challenge::Basic { realm } => format!("Basic realm=\"{realm}\""),
            Challenge::Bearer { realm, service } => {
                let own = || format!("{}/token", caller.base);
                let realm = realm.map_or_else(own, str::to_owned);
                let mut text = format!("Bearer realm=\"{realm}\",service=\"{service}\"");
                if let Some((action, repository)) = wanted {
                    // Whoever pushes asks what is there already.
                    let actions =
                        if action == Action::Push { "pull,push".to_owned() } else { action.to_string() };
                    text += &format!(",scope=\"repository:{repository}:{actions}\"");
                }
                if let Some(error) = error {
                    text += &format!(",error=\"{error}\"");
                }
                text
            }
        };
        Some(header_value(text))
    }
}

/// What identity and token together make.
enum Verdict {
    Yes,
    No(Reason),
    /// The identity may, or may not; the token does not say so.
    BeyondToken,
}

/// Whether credentials count for this repository: those that a client sends to the mirror may be for
/// the registry behind it.
fn asks_for_login(gate: &Gate, repository: &Repository) -> bool {
    gate.has_logins() && (repository.owner == Owner::Hosted || gate.options().mirror)
}

fn verdict(
    gate: &Gate,
    owners: &Owners,
    caller: &Caller,
    action: Action,
    repository: &Repository,
) -> Verdict {
    let grants = caller.grants.as_ref().filter(|_| asks_for_login(gate, repository));
    let is_granted = |grants: &Grants| {
        let mut names = grants.on_repositories(action);
        names.any(|name| owners.resolve(None, name).is_ok_and(|granted| granted == *repository))
    };
    let decision = gate.policy().decide(&caller.identity, caller.is_local, action, repository);
    match (grants, decision) {
        (_, Decision::Denied(reason @ Reason::PushIsOff)) => Verdict::No(reason),
        (Some(grants), _) if grants.is_foreign && is_granted(grants) => Verdict::Yes,
        (Some(grants), _) if grants.is_foreign => Verdict::BeyondToken,
        (_, Decision::Denied(reason)) => Verdict::No(reason),
        (Some(grants), _) if !is_granted(grants) => Verdict::BeyondToken,
        (_, Decision::Allowed(_)) => Verdict::Yes,
    }
}

/// Of our own tokens the identity counts here: a list would need a scope for each repository.
fn may_pull(gate: &Gate, owners: &Owners, caller: &Caller, repository: &Repository) -> bool {
    match &caller.grants {
        Some(grants) if grants.is_foreign && grants.on_catalog() => true,
        Some(grants) if !grants.is_foreign => {
            gate.policy().decide(&caller.identity, false, Action::Pull, repository).is_allowed()
        }
        _ => matches!(verdict(gate, owners, caller, Action::Pull, repository), Verdict::Yes),
    }
}

fn may_pull_from(gate: &Gate, owners: &Owners, caller: &Caller, host: &UpstreamHost) -> bool {
    match caller.grants.as_ref().filter(|grants| grants.is_foreign && gate.options().mirror) {
        Some(grants) => grants.on_repositories(Action::Pull).any(|name| {
            owners.resolve(None, name).is_ok_and(|granted| granted.owner == Owner::Upstream(host.clone()))
        }),
        None => gate.policy().opens(&caller.identity, host),
    }
}

/// Loopback alone shows nothing: a browser on this machine, led by a foreign page, and a proxy on
/// it come from there too. Such requests name a foreign host or origin, or who they are passed on
/// for; or they are of HTTP/1.0, which of all clients nginx alone speaks, that says nothing else.
fn is_local(arrival: &Arrival, request: &http::request::Parts) -> bool {
    if !arrival.peer.ip().to_canonical().is_loopback() || request.version < Version::HTTP_11 {
        return false;
    }
    let headers = &request.headers;
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let authority = request.uri.authority().map(Authority::as_str);
    let Some(host) = authority.or_else(|| text(header::HOST)) else { return false };
    let origin = text(header::ORIGIN).is_none_or(|origin| {
        origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host))
    });
    let is_forwarding =
        |name: &HeaderName| name.as_str().starts_with("x-forwarded-") || FORWARDING.contains(name);
    origin && names_loopback(host) && !headers.keys().any(is_forwarding)
}

fn names_loopback(authority: &str) -> bool {
    if let Ok(address) = authority.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<std::net::IpAddr>();
    address.map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Door;

    #[test]
    fn only_a_direct_request_by_a_local_name_is_local() {
        let by = |version: Version, peer: &str, pairs: &[(&str, &str)]| {
            let mut request = http::Request::put("/v2/").version(version);
            for (name, value) in pairs {
                request = request.header(*name, *value);
            }
            let (request, ()) = request.body(()).unwrap().into_parts();
            is_local(&Arrival::new(format!("{peer}:1").parse().unwrap(), Door::All, false), &request)
        };
        let local = |peer: &str, pairs: &[(&str, &str)]| by(Version::HTTP_11, peer, pairs);
        for host in ["localhost:5000", "127.0.0.1:5000", "[::1]:5000", "LOCALHOST", "127.1.2.3"] {
            assert!(local("127.0.0.1", &[("host", host)]), "{host}");
            assert!(local("[::1]", &[("host", host)]), "{host}");
            assert!(!local("192.0.2.1", &[("host", host)]), "{host}");
        }
        for host in ["evil.test:5000", "localhost.evil.test", "192.0.2.1:5000", "", "a b"] {
            assert!(!local("127.0.0.1", &[("host", host)]), "{host}");
        }
        assert!(!local("127.0.0.1", &[]), "no host");
        let with = |name, value| local("127.0.0.1", &[("host", "localhost:5000"), (name, value)]);
        assert!(with("origin", "http://localhost:5000"));
        assert!(!with("origin", "http://evil.test") && !with("origin", "null"));
        assert!(!by(Version::HTTP_10, "127.0.0.1", &[("host", "localhost:5000")]), "nginx, as it comes");
        for name in [
            "forwarded",
            "via",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-forwarded-server",
            "x-real-ip",
        ] {
            assert!(!with(name, "192.0.2.1"), "{name}");
        }
    }
}
