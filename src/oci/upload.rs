//! Names of uploads: random, so that nobody guesses another's.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Names one upload of one repository, in its `Location` and on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId(Uuid);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no upload: begin one with POST /v2/<name>/blobs/uploads/")]
pub struct InvalidUploadId(String);

impl UploadId {
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for UploadId {
    type Err = InvalidUploadId;

    /// Takes the form that [`fmt::Display`] writes, and no other, for it names a directory.
    fn from_str(text: &str) -> Result<Self, InvalidUploadId> {
        let invalid = || InvalidUploadId(text.chars().take(80).collect());
        let id = Self(Uuid::try_parse(text).map_err(|_| invalid())?);
        if id.to_string() == text { Ok(id) } else { Err(invalid()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_spelling_is_taken() {
        let id = UploadId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(id, UploadId::random());
        let upper = id.to_string().to_uppercase();
        let simple = id.to_string().replace('-', "");
        for text in ["", "..", "../x", "a/b", &upper, &simple, &format!("{{{id}}}"), &format!("{id}0")] {
            assert!(text.parse::<UploadId>().is_err() || *text == id.to_string(), "{text}");
        }
    }
}
