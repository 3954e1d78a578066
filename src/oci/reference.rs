//! What a manifest is asked for by: a tag or a digest.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Digest, InvalidDigest};

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}` (OCI distribution-spec).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    #[error("`{0}` is no tag: a letter, digit or `_`, then up to 127 letters, digits, `.`, `_` or `-`")]
    Tag(String),
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

impl Tag {
    /// For text that is a tag by how it was made.
    pub(super) fn unchecked(text: String) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let mut bytes = text.bytes();
        let starts = bytes.next().is_some_and(is_word);
        if starts && text.len() <= 128 && bytes.all(|b| is_word(b) || b == b'.' || b == b'-') {
            Ok(Self(text.into()))
        } else {
            Err(InvalidReference::Tag(text.chars().take(80).collect()))
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        // A colon is in every digest and in no tag.
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { text.parse().map(Self::Tag) }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Reference {
    /// A manifest as messages name it: `name:tag` or `name@digest`.
    pub fn of(&self, name: impl fmt::Display) -> String {
        match self {
            Self::Tag(tag) => format!("{name}:{tag}"),
            Self::Digest(digest) => format!("{name}@{digest}"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tells_tags_from_digests() {
        assert!(matches!("latest".parse(), Ok(Reference::Tag(_))));
        let digest = Digest::sha256(b"x");
        assert_eq!(digest.to_string().parse(), Ok(Reference::Digest(digest)));
        for bad in ["", ".", "..", "-a", "a/b", "a b", "sha256:zz", "a:b", &"a".repeat(129)] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
        assert!("a".repeat(128).parse::<Tag>().is_ok());
    }

    proptest! {
        #[test]
        fn a_tag_is_one_plain_path_component(text in ".{0,20}") {
            if let Ok(tag) = text.parse::<Tag>() {
                prop_assert!(!tag.as_str().contains(['/', '\\', '\0']) && tag.as_str() != "." && tag.as_str() != "..");
            }
        }
    }
}
