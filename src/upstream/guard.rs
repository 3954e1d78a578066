//! Where requests may go that an upstream, not the configuration, asked for: redirects and realms.
//! A hostile upstream could otherwise have us send a credential to it, or read from inside our network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use url::{Host, Url};

use super::Cause;

/// Which addresses a request may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Anywhere,
    /// Public ones only; the setting is what would allow the rest.
    Public(&'static str),
}

/// Whether an address belongs to a host or network of our own, or to no single host at all.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_private_v4(v4),
        IpAddr::V6(v6) => match embedded_v4(v6) {
            Some(v4) => is_private_v4(v4),
            None => is_private_v6(v6),
        },
    }
}

/// What a virtual machine of Azure reaches of its host by: public by its number, it answers with that
/// machine's settings and certificates.
const AZURE_HOST: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// IANA's special-purpose addresses (RFC 6890 and its registry), and one that a cloud took for itself.
fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || matches!((a, b, c), (0, ..) | (224.., ..) | (192, 0, 0) | (100, 64..=127, _) | (198, 18..=19, _))
        || address == AZURE_HOST
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, ..] = address.segments();
    address.is_unspecified()
        || address.is_loopback()
        || address.is_unique_local()
        || address.is_unicast_link_local()
        || address.is_multicast()
        // Site-local, the translation prefix for local use (RFC 8215), Teredo, documentation.
        || a & 0xffc0 == 0xfec0
        || matches!((a, b, c), (0x64, 0xff9b, 1) | (0x2001, 0, _) | (0x2001, 0xdb8, _))
}

/// The IPv4 address that an IPv6 address leads to: mapped, compatible, translated, 6to4.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let (high, low) = match s {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => (high, low),
        // `::` and `::1` are no IPv4 addresses.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => (high, low),
        [0x2002, high, low, ..] => (high, low),
        _ => return None,
    };
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    Some(Ipv4Addr::new(a, b, c, d))
}

/// Whether a URL's host is private on its face: an address, or `localhost`. Other names: see [`public_only`].
pub fn is_private_host(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(v4)) => is_private(v4.into()),
        Some(Host::Ipv6(v6)) => is_private(v6.into()),
        Some(Host::Domain(name)) => is_localhost(name),
        None => true,
    }
}

fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

/// Same scheme, host and port.
pub fn same_origin(a: &Url, b: &Url) -> bool {
    (a.scheme(), a.host(), a.port_or_known_default()) == (b.scheme(), b.host(), b.port_or_known_default())
}

/// Whether the URL's host is on a configured list of hosts, at whatever port.
pub fn is_listed(url: &Url, list: &[String]) -> bool {
    url.host_str().is_some_and(|host| list.iter().any(|entry| entry.eq_ignore_ascii_case(host)))
}

/// Whether a redirect may be followed, as far as its URL tells.
pub fn check_redirect(from: &Url, to: &Url) -> Result<(), Cause> {
    let refused = |why: &str| Err(Cause::Refused(format!("a redirect to {} {why}", place(to))));
    match (from.scheme(), to.scheme()) {
        _ if !matches!(to.scheme(), "http" | "https") => refused("is neither http nor https"),
        ("https", "http") => refused("would leave https: no setting allows that"),
        _ => Ok(()),
    }
}

/// Whether a token server may be asked, and sent the credential where `credential` says so.
pub fn check_realm(origin: &Url, realm: &Url, listed: &[String], credential: bool) -> Result<(), Cause> {
    let refused = |why: &str| Err(Cause::Refused(format!("the token server {} {why}", place(realm))));
    if !matches!(realm.scheme(), "http" | "https")
        || !realm.username().is_empty()
        || realm.password().is_some()
    {
        return refused("is not a plain http or https URL");
    }
    if realm.scheme() == "http" && origin.scheme() == "https" {
        return refused("is http though the upstream is https: no setting allows that");
    }
    if credential && !is_related(origin, realm) && !is_listed(realm, listed) {
        return refused(
            "is of another domain than the upstream: list its host in `realm_hosts` to send it the credential",
        );
    }
    Ok(())
}

/// Whether two hosts belong together: equal, or names under one registrable domain.
fn is_related(a: &Url, b: &Url) -> bool {
    match (a.host(), b.host()) {
        (Some(Host::Domain(a)), Some(Host::Domain(b))) if a != b => {
            let domain = psl::domain_str(a);
            domain.is_some() && domain == psl::domain_str(b) && !is_localhost(a)
        }
        (a, b) => a.is_some() && a == b,
    }
}

/// A URL without what may be secret: no user, no path, no query.
pub fn place(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{}://{host}:{port}", url.scheme()),
        (Some(host), None) => format!("{}://{host}", url.scheme()),
        (None, _) => format!("a {} URL", url.scheme()),
    }
}

/// A name that has private addresses only.
#[derive(Debug)]
pub struct PrivateAddress;

impl fmt::Display for PrivateAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name has only private addresses")
    }
}

impl std::error::Error for PrivateAddress {}

/// Those that are public. Fails where there are others only.
pub fn public_only(mut addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, PrivateAddress> {
    let known = !addresses.is_empty();
    addresses.retain(|address| !is_private(address.ip()));
    if known && addresses.is_empty() { Err(PrivateAddress) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn private_addresses_are_known_in_every_disguise() {
        for private in [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "192.0.0.192",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:168.63.129.16",
            "::ffff:169.254.169.254",
            "::10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        for public in [
            "1.1.1.1",
            "100.63.0.1",
            "168.63.129.17",
            "172.32.0.1",
            "192.0.66.1",
            "::ffff:8.8.8.8",
            "2606:4700::1",
            "2002:808:808::",
        ] {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
        for host in [
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::1]:8/",
            "http://localhost./",
            "http://a.localhost/",
        ] {
            assert!(is_private_host(&url(host)), "{host}");
        }
        assert!(!is_private_host(&url("https://localhost.example.com/")));
    }

    #[test]
    fn credentials_go_to_the_upstream_s_own_domain_only() {
        let check = |origin: &str, realm: &str, listed: &[&str]| {
            let listed: Vec<String> = listed.iter().map(|host| host.to_string()).collect();
            check_realm(&url(origin), &url(realm), &listed, true)
        };
        for (origin, realm) in [
            ("https://registry-1.docker.io/", "https://auth.docker.io/token"),
            ("https://ghcr.io/", "https://ghcr.io/token"),
            ("https://gitlab.com/", "https://gitlab.com:8443/jwt/auth"),
            ("http://127.0.0.1:5000/", "http://127.0.0.1:5001/token"),
            ("http://localhost:5000/", "http://localhost:5001/token"),
            ("http://reg.corp/", "https://reg.corp/token"),
        ] {
            assert!(check(origin, realm, &[]).is_ok(), "{origin} {realm}");
        }
        for (origin, realm) in [
            ("https://registry-1.docker.io/", "https://docker.io.evil.example/token"),
            ("https://registry-1.docker.io/", "http://auth.docker.io/token"),
            ("https://a.github.io/", "https://b.github.io/token"),
            ("https://foo.co.uk/", "https://bar.co.uk/token"),
            ("http://127.0.0.1:5000/", "http://127.0.0.2:5000/token"),
            ("http://a.localhost/", "http://b.a.localhost/token"),
            ("http://10.0.0.1/", "http://auth.example.com/token"),
            ("http://registry/", "http://auth/token"),
            ("https://ghcr.io/", "https://user:secret@ghcr.io/token"),
            ("https://ghcr.io/", "file:///etc/passwd"),
        ] {
            assert!(matches!(check(origin, realm, &[]), Err(Cause::Refused(_))), "{origin} {realm}");
        }
        let listed = ["auth.example.com"];
        assert!(check("https://r.example.org/", "https://auth.example.com/t", &listed).is_ok());
        let error =
            check("https://r.example.org/", "https://other.example.com/t?secret=1", &listed).unwrap_err();
        assert!(
            error.to_string().contains("realm_hosts") && !error.to_string().contains("secret"),
            "{error}"
        );
        let anonymous = |realm: &str| check_realm(&url("https://a.com/"), &url(realm), &[], false);
        assert!(anonymous("https://b.com/token").is_ok());
        assert!(anonymous("http://b.com/token").is_err());
    }

    #[test]
    fn redirects_never_leave_https() {
        let check = |from: &str, to: &str| check_redirect(&url(from), &url(to)).is_ok();
        assert!(check("https://a/", "https://b/"));
        assert!(check("http://a/", "https://b/") && check("http://a/", "http://b/"));
        assert!(!check("https://a/", "http://a/") && !check("http://a/", "file:///x"));
    }

    #[test]
    fn origins_compare_ports_and_lists_do_not() {
        assert!(same_origin(&url("https://a/x"), &url("https://A:443/y")));
        assert!(!same_origin(&url("https://a/"), &url("https://a:444/")));
        assert!(!same_origin(&url("https://a/"), &url("http://a:443/")));
        let list = ["cdn.corp".to_owned(), "[fd00::1]".to_owned()];
        for listed in ["http://CDN.corp:80/", "https://cdn.corp:9000/", "http://[fd00::1]:9000/"] {
            assert!(is_listed(&url(listed), &list), "{listed}");
        }
        assert!(!is_listed(&url("http://s3.corp/"), &list) && !is_listed(&url("http://x.cdn.corp/"), &list));
    }

    #[test]
    fn private_addresses_are_hidden() {
        let mixed: Vec<SocketAddr> =
            ["10.0.0.1:0", "1.1.1.1:0", "[::1]:0"].iter().map(|a| a.parse().unwrap()).collect();
        assert_eq!(public_only(mixed).unwrap(), ["1.1.1.1:0".parse().unwrap()]);
        assert!(public_only(Vec::new()).unwrap().is_empty());
    }
}
