//! Where a request comes from, seen through proxies that are trusted.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Where a request comes from, after trusted proxies were looked through. An IPv4 address in IPv6
/// form counts as the IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    pub address: IpAddr,
}

impl Client {
    /// Follows `X-Forwarded-For` or `Forwarded` (RFC 7239) from the right, as long as the hop that
    /// wrote the entry is trusted. What cannot be read ends the walk at the last trusted hop.
    ///
    /// A proxy that writes one of the headers passes the other on as its client sent it, so where
    /// both are there and differ, neither is believed.
    pub fn seen(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let peer = peer.to_canonical();
        if !is_trusted(trusted, peer) {
            return Self { address: peer };
        }
        let by = |name: HeaderName, hops: fn(&str) -> Vec<Option<IpAddr>>| {
            headers.contains_key(&name).then(|| walk(peer, trusted, headers, name, hops))
        };
        let address = match (by(X_FORWARDED_FOR, x_forwarded_for), by(header::FORWARDED, forwarded)) {
            (Some(one), Some(other)) => {
                if one == other {
                    one
                } else {
                    peer
                }
            }
            (one, other) => one.or(other).unwrap_or(peer),
        };
        Self { address }
    }
}

pub(super) fn is_trusted(trusted: &[IpNet], address: IpAddr) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// The first hop from the right that is not trusted, or the last one that could be read.
fn walk(
    peer: IpAddr,
    trusted: &[IpNet],
    headers: &HeaderMap,
    name: HeaderName,
    hops: fn(&str) -> Vec<Option<IpAddr>>,
) -> IpAddr {
    let mut seen = peer;
    // Several header lines are one list (RFC 9110, 5.3).
    let lines: Vec<&HeaderValue> = headers.get_all(name).iter().collect();
    for line in lines.into_iter().rev() {
        let Ok(line) = line.to_str() else { return seen };
        for hop in hops(line).into_iter().rev() {
            let Some(hop) = hop else { return seen };
            seen = hop;
            if !is_trusted(trusted, hop) {
                return seen;
            }
        }
    }
    seen
}

fn x_forwarded_for(line: &str) -> Vec<Option<IpAddr>> {
    line.split(',').map(node).collect()
}

/// The `for` of each element; `None` for one that is hidden, unknown or malformed.
fn forwarded(line: &str) -> Vec<Option<IpAddr>> {
    let element = |element: &str| {
        let mut found = None;
        for pair in split_outside_quotes(element, b';') {
            let (key, value) = pair.split_once('=')?;
            if key.trim().eq_ignore_ascii_case("for") {
                // Twice in one element is malformed (RFC 7239, section 4).
                if found.is_some() {
                    return None;
                }
                found = Some(node(unquote(value.trim())?)?);
            }
        }
        found
    };
    split_outside_quotes(line, b',').into_iter().map(element).collect()
}

/// An open quote takes all that follows with it: that piece is then malformed.
pub(super) fn split_outside_quotes(text: &str, separator: u8) -> Vec<&str> {
    let (mut pieces, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if byte == separator && !quoted => {
                pieces.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    pieces.push(&text[start..]);
    pieces
}

/// A token as it is, a quoted string without its quotes. No address needs an escape.
pub(super) fn unquote(value: &str) -> Option<&str> {
    let inner = match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"')?,
        None => value,
    };
    (!inner.contains(['"', '\\'])).then_some(inner)
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:4711`.
pub(super) fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    let address = (text.parse::<IpAddr>().ok())
        .or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))
        .or_else(|| bracketed().map(IpAddr::V6))?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PROXY: &str = "10.0.0.1";

    fn seen(peer: &str, lines: &[(&str, &str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "2001:db8:1::/48".parse().unwrap()];
        Client::seen(peer.parse().unwrap(), &headers, &trusted).address.to_string()
    }

    #[test]
    fn a_stranger_is_not_believed() {
        for header in ["x-forwarded-for", "forwarded"] {
            assert_eq!(seen("192.0.2.9", &[(header, "for=203.0.113.5")]), "192.0.2.9");
            assert_eq!(seen("192.0.2.9", &[(header, "203.0.113.5")]), "192.0.2.9");
        }
        assert_eq!(seen("::ffff:192.0.2.9", &[]), "192.0.2.9");
    }

    #[test]
    fn x_forwarded_for_is_read_from_the_right() {
        let xff = |value: &str| seen(PROXY, &[("x-forwarded-for", value)]);
        assert_eq!(xff("203.0.113.5"), "203.0.113.5");
        assert_eq!(xff("1.1.1.1, 203.0.113.5, 10.9.9.9"), "203.0.113.5");
        assert_eq!(xff("203.0.113.5:4711"), "203.0.113.5");
        assert_eq!(xff("2001:db8:2::1"), "2001:db8:2::1");
        assert_eq!(xff("[2001:db8:2::1]:80, 2001:db8:1::7"), "2001:db8:2::1");
        assert_eq!(xff("::ffff:203.0.113.5"), "203.0.113.5");
        assert_eq!(xff("10.0.0.3, 10.0.0.2"), "10.0.0.3", "all of them trusted");
        let two = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "203.0.113.5, 10.0.0.2")];
        assert_eq!(seen(PROXY, &two), "203.0.113.5");
        assert_eq!(seen(&format!("::ffff:{PROXY}"), &two), "203.0.113.5");
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        let forwarded = |value: &str| seen(PROXY, &[("forwarded", value)]);
        assert_eq!(forwarded("for=203.0.113.5;proto=http;by=10.0.0.1"), "203.0.113.5");
        assert_eq!(forwarded("For=\"[2001:db8:2::1]:4711\""), "2001:db8:2::1");
        assert_eq!(forwarded("for=1.1.1.1, for=203.0.113.5;host=\"a,b;c\", for=10.1.1.1"), "203.0.113.5");
    }

    #[test]
    fn what_cannot_be_read_ends_at_the_last_trusted_hop() {
        for bad in ["", "unknown", "203.0.113.5, junk", "300.1.1.1", "fe80::1%eth0"] {
            assert_eq!(seen(PROXY, &[("x-forwarded-for", bad)]), PROXY, "{bad}");
        }
        assert_eq!(seen(PROXY, &[("x-forwarded-for", "1.1.1.1, junk, 10.0.0.2")]), "10.0.0.2");
        for bad in [
            "for=_hidden",
            "for=unknown",
            "proto=https",
            "for=1.1.1.1;for=2.2.2.2",
            "for=\"1.1.1.1",
            "for=\"1.1.1.1, for=2.2.2.2",
            "1.1.1.1",
        ] {
            assert_eq!(seen(PROXY, &[("forwarded", bad)]), PROXY, "{bad}");
        }
    }

    #[test]
    fn headers_that_differ_are_not_believed() {
        let both =
            |xff: &str, forwarded: &str| seen(PROXY, &[("x-forwarded-for", xff), ("forwarded", forwarded)]);
        assert_eq!(both("203.0.113.5", "for=203.0.113.5"), "203.0.113.5");
        assert_eq!(both("203.0.113.5", "for=1.1.1.1"), PROXY);
        assert_eq!(both("203.0.113.5", "for=_x"), PROXY);
    }

    proptest! {
        #[test]
        fn no_header_panics_and_the_proxys_own_entry_decides(junk in "[ -~]{0,60}") {
            seen(PROXY, &[("forwarded", &junk)]);
            // Whatever a client sent before, the proxy's own entry comes last.
            let line = format!("{junk}, 203.0.113.5");
            prop_assert_eq!(seen(PROXY, &[("x-forwarded-for", &line)]), "203.0.113.5");
            let line = format!("{junk}, for=203.0.113.5");
            let address = seen(PROXY, &[("forwarded", &line)]);
            prop_assert!(address == "203.0.113.5" || address == PROXY, "{}", address);
        }
    }
}
