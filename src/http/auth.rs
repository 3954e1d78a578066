//! Who a request comes from, and whether it may do what it asks for.

use http::uri::Authority;
use http::{HeaderMap, HeaderName, header};

use super::connection::Arrival;
use super::error::{ApiError, Code};
use super::handler::Service;
use crate::access::{Action, Caller, Client, Identity};
use crate::oci::{Owner, Repository};

const FORWARDING: [HeaderName; 4] = [
    header::FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-real-ip"),
];

impl Service {
    /// Who the request comes from. An error: what it shows of that is wrong.
    pub(super) async fn identify(
        &self,
        request: &http::request::Parts,
        arrival: &Arrival,
        client: Client,
    ) -> Result<Caller, ApiError> {
        let host = request.uri.authority().map(|authority| authority.as_str().to_owned());
        let is_local = is_local(arrival, host.as_deref(), &request.headers);
        Ok(Caller { client, identity: Identity::Anonymous, is_local })
    }

    /// Refuses what the caller may not do. What is mirrored is read only, whoever asks.
    pub(super) fn authorise(
        &self,
        caller: &Caller,
        action: Action,
        repository: &Repository,
    ) -> Result<(), ApiError> {
        if action == Action::Pull {
            return Ok(());
        }
        if let Owner::Upstream(host) = &repository.owner {
            let message =
                format!("{repository} is mirrored from {host}, and can only be read here: push there");
            return Err(ApiError::method(message, "GET, HEAD"));
        }
        if caller.is_local {
            return Ok(());
        }
        let message = format!(
            "{action} of {repository} needs no login from this very machine only, by an address of it and through \
             no proxy"
        );
        Err(ApiError::new(Code::Denied, message))
    }
}

/// Loopback alone shows nothing: a browser on this machine, led by a foreign page, and a proxy on
/// it come from there too. Such requests name a foreign host or origin, or who they are passed on for.
fn is_local(arrival: &Arrival, authority: Option<&str>, headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let Some(host) = authority.or_else(|| text(header::HOST)) else { return false };
    let origin = text(header::ORIGIN).is_none_or(|origin| {
        origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host))
    });
    let forwarded = FORWARDING.iter().any(|name| headers.contains_key(name));
    arrival.peer.ip().to_canonical().is_loopback() && names_loopback(host) && origin && !forwarded
}

fn names_loopback(authority: &str) -> bool {
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
        let local = |peer: &str, pairs: &[(&'static str, &'static str)]| {
            let headers = pairs
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), http::HeaderValue::from_static(value)));
            let arrival = Arrival::new(format!("{peer}:1").parse().unwrap(), Door::All, false);
            is_local(&arrival, None, &headers.collect())
        };
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
        for name in ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip"] {
            assert!(!with(name, "192.0.2.1"), "{name}");
        }
    }
}
