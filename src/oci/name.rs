//! Repository names (OCI distribution-spec, "Pulling manifests", grammar of `<name>`).

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest name: with the host in front, clients limit it to 255 characters.
const MAX_LEN: usize = 255;

/// A repository's name: lower-case components joined by `/`, so never a path outside a folder.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no repository name: components of lower-case letters and digits, parted inside by \
     `.`, `_`, `__` or `-`, joined by `/`, 255 characters at most"
)]
pub struct InvalidName(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// `library/x` for `x`: how Docker Hub stores its official images. Other names as they are.
    pub fn with_library(&self) -> Name {
        if self.0.contains('/') {
            return self.clone();
        }
        let name = format!("library/{}", self.0);
        if name.len() > MAX_LEN { self.clone() } else { Name(name.into()) }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !is_word(first) || !is_word(last) {
        return false;
    }
    bytes.split(is_word).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.len() <= MAX_LEN && text.split('/').all(is_component) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName(text.chars().take(80).collect()))
        }
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_names_and_refuses_the_rest() {
        for good in ["a", "library/nginx", "a.b/c_d/e__f/g--h", "corp.internal/team/app", "0/1"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let long = "a".repeat(256);
        for bad in [
            "", "/", "a/", "/a", "a//b", "..", "a/../b", "A", "a_", "-a", "a___b", "a..b", "a._b", "a b",
            "ä", "a%2fb", &long,
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn library_goes_in_front_of_one_component_only() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        assert_eq!(name("nginx").with_library(), name("library/nginx"));
        assert_eq!(name("org/nginx").with_library(), name("org/nginx"));
    }

    proptest! {
        #[test]
        fn whatever_parses_is_a_plain_relative_path(text in "[a-z0-9._/A-Z%\\\\-]{0,40}") {
            if let Ok(name) = text.parse::<Name>() {
                let path = std::path::Path::new(name.as_str());
                prop_assert!(path.components().all(|c| matches!(c, std::path::Component::Normal(_))));
                prop_assert_eq!(name.as_str(), text);
            }
        }

        #[test]
        fn the_grammar_is_accepted(text in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,3}(/[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,3}){0,4}") {
            prop_assert!(text.parse::<Name>().is_ok());
        }
    }
}
