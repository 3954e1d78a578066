//! Which Forebays a request has passed through: `Via` (RFC 9110, section 7.6.3), so that a loop of them
//! is seen where it closes.

use std::sync::Arc;

use http::header::VIA;
use http::{HeaderMap, HeaderValue};

/// How the pseudonyms of Forebays begin. What follows is drawn at random: a name that outlives the
/// process would be the same in every copy of a machine.
const PREFIX: &str = "forebay-";
const DIGITS: usize = 16;
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

    proptest! {
        #[test]
        fn no_via_panics(line in "[ -~]{0,80}") {
            let _ = read(&[&line]).then("x");
        }
    }
}
