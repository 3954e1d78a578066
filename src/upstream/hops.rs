//! Which Forebays a request has passed through: `Via` (RFC 9110, section 7.6.3), so that a loop of them
//! is seen where it closes.

use std::sync::Arc;

use http::header::{VIA, WARNING};
use http::{HeaderMap, HeaderName, HeaderValue};

/// How the pseudonyms of Forebays begin. What follows is drawn at random: a name that outlives the
/// process would be the same in every copy of a machine.
const PREFIX: &str = "forebay-";
const DIGITS: usize = 16;
/// Depths that are told apart: so many peers may be asked for the same at once.
const DEPTHS: usize = 3;
/// A chain that is longer is a loop that closes elsewhere.
const MAX_HOPS: usize = 16;

/// The Forebays that asked on behalf of each other, the first one first. Empty for a client's request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hops(Vec<Arc<str>>);

impl Hops {
    /// Of a request. Other proxies on its way are left out.
    pub fn read(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(VIA).iter().filter_map(|line| line.to_str().ok());
        let names = lines.flat_map(|line| line.split(',')).filter_map(|entry| {
            let name = entry.split_ascii_whitespace().nth(1)?;
            is_pseudonym(name).then(|| name.into())
        });
        Self(names.take(MAX_HOPS + 1).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many they are. Beyond a few it is all the same: they are what the client says.
    pub fn depth(&self) -> usize {
        self.0.len().min(DEPTHS)
    }

    pub fn is_too_long(&self) -> bool {
        self.0.len() > MAX_HOPS
    }

    pub fn contains(&self, pseudonym: &str) -> bool {
        self.0.iter().any(|name| **name == *pseudonym)
    }

    /// The header of what is asked on behalf of such a request.
    pub fn then(&self, pseudonym: &str) -> Option<HeaderValue> {
        let names = self.0.iter().map(|name| &**name).chain([pseudonym]);
        let entries: Vec<String> = names.map(|name| format!("1.1 {name}")).collect();
        HeaderValue::try_from(entries.join(", ")).ok()
    }
}

/// How a Forebay tells the one that asked, by HEAD too, that a request has been here before (RFC 9209).
pub const PROXY_STATUS: &str = "proxy-status";
const LOOP_ERROR: &str = "error=proxy_loop_detected";
const DETAILS: &str = "details=\"";
const DETAILS_MAX: usize = 400;

/// The value of such a header; `why` is for people.
pub fn loop_status(why: &str) -> Option<HeaderValue> {
    let mut details = String::new();
    for c in why.chars().filter(|c| *c == ' ' || c.is_ascii_graphic()).take(DETAILS_MAX) {
        if matches!(c, '"' | '\\') {
            details.push('\\');
        }
        details.push(c);
    }
    HeaderValue::try_from(format!("forebay; {LOOP_ERROR}; {DETAILS}{details}\"")).ok()
}

/// Why an answer says that there is a loop, if it does.
pub fn read_loop(headers: &HeaderMap) -> Option<String> {
    let lines = headers.get_all(PROXY_STATUS).iter().filter_map(|line| line.to_str().ok());
    let line = lines.into_iter().find(|line| line.contains(LOOP_ERROR))?;
    let (_, details) = line.split_once(DETAILS).unwrap_or_default();
    let mut why = String::new();
    let mut chars = details.chars();
    while let Some(c) = chars.next().filter(|c| *c != '"' && why.len() < DETAILS_MAX) {
        why.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    Some(if why.is_empty() { "a loop of registries".to_owned() } else { why })
}

/// How a Forebay says that it could not confirm what it serves, in `Cache-Status` (RFC 9211) and, for
/// people, in `Warning`, where the reason and a quotation mark follow.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
pub const STALE: &str = "forebay; hit; detail=stale";
pub const STALE_BECAUSE: &str = "299 - \"stale: ";
const STALE_MAX: usize = 200;

/// Why an answer of a Forebay is stale, if it is.
pub fn read_stale(headers: &HeaderMap) -> Option<String> {
    let status = headers.get(CACHE_STATUS)?.to_str().ok()?;
    let mut parts = status.split(';').map(str::trim);
    let is_stale = parts.next() == Some("forebay") && parts.any(|part| part == "detail=stale");
    let warning = || headers.get(WARNING)?.to_str().ok()?.strip_prefix(STALE_BECAUSE)?.strip_suffix('"');
    is_stale.then(|| {
        let reason = warning().unwrap_or("for reasons it does not say");
        let reason: String = reason.chars().take(STALE_MAX).collect();
        format!("the Forebay that was asked serves it stale: {reason}")
    })
}

pub fn new_pseudonym() -> String {
    format!("{PREFIX}{:0DIGITS$x}", rand::random::<u64>())
}

fn is_pseudonym(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX).unwrap_or_default();
    digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(lines: &[&str]) -> Hops {
        let line = |line: &&str| (VIA, HeaderValue::from_str(line).unwrap());
        Hops::read(&lines.iter().map(line).collect())
    }

    #[test]
    fn what_is_stale_is_told_with_the_reason() {
        let told = |status: &'static str, warning: Option<&str>| {
            let warning = warning.map(|text| (WARNING, HeaderValue::from_str(text).unwrap()));
            let status = (CACHE_STATUS, HeaderValue::from_static(status));
            read_stale(&[status].into_iter().chain(warning).collect())
        };
        let why = format!("{STALE_BECAUSE}no route\"");
        assert!(told(STALE, Some(&why)).unwrap().ends_with(": no route"));
        assert!(told(STALE, None).is_some());
        assert_eq!(told("forebay; hit", Some(&why)), None);
        assert_eq!(told("cdn; hit; detail=stale", Some(&why)), None);
    }

    #[test]
    fn a_chain_grows_by_one_and_leaves_out_strangers() {
        let (one, two) = (new_pseudonym(), new_pseudonym());
        let first = Hops::default().then(&one).unwrap();
        let hops = read(&["1.0 squid (squid/6.1), HTTP/2 forebay-short", first.to_str().unwrap()]);
        assert!(hops.contains(&one) && !hops.contains(&two) && !hops.is_empty());
        assert_eq!(hops.then(&two).unwrap(), format!("1.1 {one}, 1.1 {two}"));
        assert!(read(&["", ",", "1.1"]).is_empty());
    }

    #[test]
    fn chains_have_a_bound() {
        let many = |n: usize| vec![format!("1.1 {}", new_pseudonym()); n].join(", ");
        assert!(!read(&[&many(MAX_HOPS)]).is_too_long());
        let long = read(&[&many(1000)]);
        assert!(long.is_too_long() && long.0.len() == MAX_HOPS + 1);
    }

    fn status(line: &str) -> Option<String> {
        read_loop(&HeaderMap::from_iter([(
            http::HeaderName::from_static(PROXY_STATUS),
            HeaderValue::from_str(line).unwrap(),
        )]))
    }

    #[test]
    fn that_there_is_a_loop_is_told_in_a_header() {
        let told = loop_status("`upstream.\"x\".url` \\ leads\nback").unwrap();
        assert_eq!(status(told.to_str().unwrap()).unwrap(), "`upstream.\"x\".url` \\ leadsback");
        assert!(status("squid; error=proxy_loop_detected").is_some());
        assert_eq!(status("squid; error=dns_timeout; details=\"a\""), None);
        assert!(loop_status(&"x".repeat(5000)).unwrap().len() < 500);
    }

    proptest! {
        #[test]
        fn no_proxy_status_panics(rest in "[ -~]{0,80}", why: String) {
            status(&format!("x; {LOOP_ERROR}; {DETAILS}{rest}"));
            let told = loop_status(&why).unwrap();
            prop_assert!(status(told.to_str().unwrap()).is_some());
        }

        #[test]
        fn no_via_panics(line in "[ -~]{0,80}") {
            let _ = read(&[&line]).then("x");
        }
    }
}
