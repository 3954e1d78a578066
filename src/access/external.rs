//! Where clients find this server: what they wrote in front of `/v2/`, seen through trusted proxies.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

use super::client::{is_trusted, node, split_outside_quotes, unquote};

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// A DNS name has at most 253 characters, a port six with its colon.
const AUTHORITY_MAX: usize = 260;
const PREFIX_MAX: usize = 256;

/// The base of the URLs by which a client reaches this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    pub tls: bool,
    /// Host, and port where it is not the scheme's own: characters of those and no others.
    pub authority: String,
    /// What a proxy takes off the front of paths: empty, or `/path` without a slash at its end.
    pub prefix: String,
}

impl External {
    /// `host` is the request's own, `tls` its connection's. A trusted `peer` may say otherwise by
    /// `X-Forwarded-Proto`, `-Host` and `-Prefix`, each with one value, or by `Forwarded` (RFC 7239).
    /// What cannot be part of a URL is passed over as if it had not been said.
    ///
    /// A proxy that writes one kind of header passes the other on as its client sent it, so where
    /// both are there, only what both say is believed.
    pub fn seen(peer: IpAddr, headers: &HeaderMap, host: Option<&str>, tls: bool, trusted: &[IpNet]) -> Self {
        let authority = host.filter(|host| is_authority(host)).unwrap_or("localhost").to_owned();
        let mut external = Self { tls, authority, prefix: String::new() };
        if !is_trusted(trusted, peer.to_canonical()) {
            return external;
        }
        let (proto, host) = told(headers, trusted);
        match proto {
            Some(proto) if proto.eq_ignore_ascii_case("https") => external.tls = true,
            Some(proto) if proto.eq_ignore_ascii_case("http") => external.tls = false,
            _ => {}
        }
        if let Some(host) = host.filter(|host| is_authority(host)) {
            external.authority = host.to_owned();
        }
        if let Some(prefix) = single(headers, X_FORWARDED_PREFIX).filter(|prefix| is_prefix(prefix)) {
            external.prefix = prefix.trim_end_matches('/').to_owned();
        }
        external
    }

    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// What stands before `/v2/`.
    pub fn base(&self) -> String {
        format!("{}://{}{}", self.scheme(), self.authority, self.prefix)
    }
}

/// Scheme and host as the proxies tell them.
fn told<'a>(headers: &'a HeaderMap, trusted: &[IpNet]) -> (Option<&'a str>, Option<&'a str>) {
    let plain = (single(headers, X_FORWARDED_PROTO), single(headers, X_FORWARDED_HOST));
    let is_plain = headers.contains_key(X_FORWARDED_PROTO) || headers.contains_key(X_FORWARDED_HOST);
    if !headers.contains_key(header::FORWARDED) {
        return plain;
    }
    let forwarded = forwarded(headers, trusted);
    if is_plain {
        let same = |one: Option<&'a str>, other| one.filter(|_| one == other);
        return (same(plain.0, forwarded.0), same(plain.1, forwarded.1));
    }
    forwarded
}

/// A header's value where it is there once and is no list.
fn single(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut lines = headers.get_all(name).iter();
    let value = lines.next()?.to_str().ok()?.trim();
    (lines.next().is_none() && !value.contains(',')).then_some(value)
}

/// `proto` and `host` of the proxy that the client spoke to: each hop adds an element at the end, so
/// that is the leftmost one that a trusted hop wrote. Nothing where any element is malformed.
fn forwarded<'a>(headers: &'a HeaderMap, trusted: &[IpNet]) -> (Option<&'a str>, Option<&'a str>) {
    let lines = headers.get_all(header::FORWARDED).iter().map(|line| line.to_str().ok());
    let Some(lines) = lines.collect::<Option<Vec<_>>>() else { return (None, None) };
    let elements = lines.into_iter().flat_map(|line| split_outside_quotes(line, b',')).map(Element::parse);
    let Some(elements) = elements.collect::<Option<Vec<_>>>() else { return (None, None) };
    let mut seen = (None, None);
    for element in elements.into_iter().rev() {
        seen = (element.proto, element.host);
        if !element.of.and_then(node).is_some_and(|hop| is_trusted(trusted, hop)) {
            break;
        }
    }
    seen
}

#[derive(Default)]
struct Element<'a> {
    of: Option<&'a str>,
    proto: Option<&'a str>,
    host: Option<&'a str>,
}

impl<'a> Element<'a> {
    /// Twice the same parameter is malformed (RFC 7239, section 4).
    fn parse(text: &'a str) -> Option<Self> {
        let mut element = Self::default();
        for pair in split_outside_quotes(text, b';') {
            let (key, value) = pair.split_once('=')?;
            let place = match key.trim().to_ascii_lowercase().as_str() {
                "for" => &mut element.of,
                "proto" => &mut element.proto,
                "host" => &mut element.host,
                _ => continue,
            };
            if place.replace(unquote(value.trim())?).is_some() {
                return None;
            }
        }
        Some(element)
    }
}

/// A name, an IPv4 address or a bracketed IPv6 one, and maybe a port; no user, no other characters.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => (None, port),
            _ => return false,
        },
        None => match text.find(':') {
            Some(at) => (Some(&text[..at]), &text[at..]),
            None => (Some(text), ""),
        },
    };
    let port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
    let name = |host: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let labels = host.strip_suffix('.').unwrap_or(host).split('.').all(|label| !label.is_empty());
        labels && host.bytes().all(plain) && (is_plain_name(host) || url::Host::parse(host).is_ok())
    };
    text.len() <= AUTHORITY_MAX && port && host.is_none_or(name)
}

/// A name as nearly all are, or an address. Others may be numbers that are no address, or badly encoded.
fn is_plain_name(host: &str) -> bool {
    if host.parse::<std::net::Ipv4Addr>().is_ok() {
        return true;
    }
    let encoded = |label: &str| label.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("xn--"));
    let last = host.strip_suffix('.').unwrap_or(host).rsplit('.').next().unwrap_or_default();
    last.starts_with(|c: char| c.is_ascii_alphabetic()) && !host.split('.').any(encoded)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Segments that stand for themselves: none empty (`//` would begin a host), none of dots alone.
fn is_prefix(text: &str) -> bool {
    let segment = |segment: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~');
        !segment.is_empty() && segment.bytes().all(plain) && segment.bytes().any(|b| b != b'.')
    };
    let inner = text.strip_suffix('/').unwrap_or(text).strip_prefix('/');
    text.len() <= PREFIX_MAX && inner.is_some_and(|inner| inner.split('/').all(segment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const PROXY: &str = "10.0.0.1";

    fn seen_by(peer: &str, lines: &[(&str, &str)]) -> External {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        External::seen(peer.parse().unwrap(), &headers, Some("inner:5000"), false, &trusted)
    }

    fn base(lines: &[(&str, &str)]) -> String {
        seen_by(PROXY, lines).base()
    }

    const ALL: [(&str, &str); 3] =
        [("x-forwarded-proto", "https"), ("x-forwarded-host", "hub.example"), ("x-forwarded-prefix", "/reg")];

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        assert_eq!(base(&ALL), "https://hub.example/reg");
        assert_eq!(seen_by("::ffff:10.0.0.1", &ALL).base(), "https://hub.example/reg");
        assert_eq!(seen_by("192.0.2.1", &ALL).base(), "http://inner:5000");
        let forwarded = [("forwarded", "proto=https;host=hub.example")];
        assert_eq!(seen_by("192.0.2.1", &forwarded).base(), "http://inner:5000");
    }

    #[test]
    fn each_header_counts_by_itself() {
        assert_eq!(base(&[]), "http://inner:5000");
        assert_eq!(base(&[("x-forwarded-proto", "HTTPS")]), "https://inner:5000");
        assert_eq!(base(&[("x-forwarded-host", "[2001:db8::1]:443")]), "http://[2001:db8::1]:443");
        assert_eq!(base(&[("x-forwarded-prefix", "/a/b.c/")]), "http://inner:5000/a/b.c");
        assert_eq!(base(&[("x-forwarded-prefix", "/")]), "http://inner:5000");
    }

    #[test]
    fn a_hostile_value_is_as_none() {
        let long = format!("{}.example", "a".repeat(300));
        let hosts = [
            "user@hub.example",
            "a b",
            "hub.example/x",
            "hub.example:0",
            "hub.example:99999",
            "hub.example:+80",
            ":80",
            "",
            "[::1",
            "[::1]x",
            "[x]",
            "::1",
            "a,b",
            "a\tb",
            "hub%2eexample",
            "<script>",
            "h\u{fc}b",
            "a..b",
            ".",
            "1.2.3.4.5",
            &long,
        ];
        for host in hosts {
            assert_eq!(base(&[("x-forwarded-host", host)]), "http://inner:5000", "{host}");
            let own = External::seen("192.0.2.1".parse().unwrap(), &HeaderMap::new(), Some(host), true, &[]);
            assert_eq!(own.base(), "https://localhost", "{host}");
        }
        let long = format!("/{}", "a".repeat(256));
        let prefixes = [
            "reg",
            "//evil.example",
            "/a//b",
            "/..",
            "/a/../b",
            "/.",
            "/a/./b",
            "/...",
            "/%2e%2e",
            "/a b",
            "/a?b",
            "/a#b",
            "/a\"b",
            "/<",
            "/a,/b",
            "/a\\b",
            "/\u{e9}",
            "",
            &long,
        ];
        for prefix in prefixes {
            assert_eq!(base(&[("x-forwarded-prefix", prefix)]), "http://inner:5000", "{prefix}");
        }
        for proto in ["ftp", "https,http", "", "https ://", "javascript"] {
            assert_eq!(base(&[("x-forwarded-proto", proto)]), "http://inner:5000", "{proto}");
        }
        for (name, value) in ALL {
            assert_eq!(base(&[(name, value), (name, value)]), "http://inner:5000", "{name} twice");
        }
    }

    #[test]
    fn forwarded_is_that_of_the_hop_the_client_spoke_to() {
        let forwarded = |value: &str| base(&[("forwarded", value)]);
        assert_eq!(
            forwarded("for=192.0.2.1;proto=https;host=\"hub.example:8443\""),
            "https://hub.example:8443"
        );
        assert_eq!(forwarded("Proto=https; HOST=hub.example"), "https://hub.example");
        // The edge, 10.0.0.2, wrote the first element and the second names it.
        let two = "for=192.0.2.1;proto=https;host=hub.example, for=10.0.0.2;proto=http;host=edge";
        assert_eq!(forwarded(two), "https://hub.example");
        // What the client itself sent stands before the edge's own.
        let forged = "proto=ftp;host=evil, for=192.0.2.1;proto=https;host=hub.example";
        assert_eq!(forwarded(forged), "https://hub.example");
        let lines = [("forwarded", "host=evil"), ("forwarded", "for=192.0.2.1;host=hub.example")];
        assert_eq!(base(&lines), "http://hub.example");
        for bad in ["host=a;host=b", "host", "host=\"a", "host=\"a\\\"\"", "host=a@b", "", ",", "host=hub,;"]
        {
            assert_eq!(forwarded(bad), "http://inner:5000", "{bad}");
        }
    }

    #[test]
    fn of_two_kinds_of_header_only_what_both_say_is_believed() {
        let both = |forwarded| [ALL[0], ALL[1], ("forwarded", forwarded)];
        assert_eq!(base(&both("proto=https;host=hub.example")), "https://hub.example");
        assert_eq!(base(&both("proto=https;host=evil")), "https://inner:5000");
        assert_eq!(base(&both("for=192.0.2.1")), "http://inner:5000");
        assert_eq!(base(&[ALL[0], ("forwarded", "host=evil")]), "http://inner:5000");
    }

    proptest! {
        #[test]
        fn a_plain_name_is_a_host(host in "[a-zA-Z0-9_-]{1,8}(\\.[a-zA-Z0-9_-]{1,8}){0,3}\\.?") {
            prop_assert!(!is_plain_name(&host) || url::Host::parse(&host).is_ok(), "{host}");
        }

        #[test]
        fn no_header_makes_a_base_that_is_no_url(junk in "[ -~]{0,40}") {
            for name in ["x-forwarded-host", "x-forwarded-prefix", "x-forwarded-proto", "forwarded"] {
                let base = base(&[(name, &junk), ("x-request-id", "1")]);
                let url = url::Url::parse(&base).unwrap();
                prop_assert!(url.username().is_empty() && url.query().is_none() && url.fragment().is_none(), "{}", base);
                prop_assert!(!base[8..].contains("//") && !base.contains(".."), "{}", base);
            }
        }
    }
}
