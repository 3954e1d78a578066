//! The parameters of a request.

use std::borrow::Cow;

use super::error::{ApiError, Code};
use super::route::{Begin, Page};
use crate::oci::{Algorithm, Digest, Tag};

/// `?tag=` parameters of one manifest, at most.
pub const TAG_PARAMETERS_MAX: usize = 100;

/// The parameters, decoded.
pub struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    pub fn parse(query: Option<&'a str>) -> Self {
        // No request is answered at all whose head is larger than 64 KiB.
        Self(url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).collect())
    }

    fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| &**value)
    }

    pub fn first(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    fn digest(&self, key: &str) -> Result<Option<Digest>, ApiError> {
        Ok(self.first(key).map(str::parse).transpose()?)
    }

    pub fn begin(&self) -> Result<Begin, ApiError> {
        if let Some(algorithm) = self.first("digest-algorithm")
            && ![Algorithm::Sha256, Algorithm::Sha512].iter().any(|known| known.as_str() == algorithm)
        {
            let message =
                format!("digest algorithm `{}` is not supported: use sha256 or sha512", short(algorithm));
            return Err(ApiError::new(Code::DigestInvalid, message));
        }
        let from = self.first("from").filter(|from| !from.is_empty()).map(str::to_owned);
        Ok(Begin { digest: self.digest("digest")?, mount: self.digest("mount")?, from })
    }

    pub fn tags(&self) -> Result<Vec<Tag>, ApiError> {
        if self.all("tag").count() > TAG_PARAMETERS_MAX {
            let message =
                format!("more than {TAG_PARAMETERS_MAX} tags at once: put the others in a further request");
            return Err(ApiError::new(Code::TooManyTags, message));
        }
        let tags = self.all("tag").map(str::parse::<Tag>);
        tags.collect::<Result<_, _>>().map_err(|error| ApiError::new(Code::TagInvalid, error.to_string()))
    }

    pub fn number(&self, key: &str, max: usize) -> Result<Option<usize>, ApiError> {
        match self.first(key) {
            None => Ok(None),
            Some(count) if !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit()) => {
                Ok(Some(count.parse().unwrap_or(max).min(max)))
            }
            Some(count) => {
                let message = format!("`{key}={}` is no number of entries: use 0 to {max}", short(count));
                Err(ApiError::new(Code::PaginationNumberInvalid, message))
            }
        }
    }

    pub fn page(&self, max: usize) -> Result<Page, ApiError> {
        let count = self.number("n", max)?.unwrap_or(max);
        let last = self.first("last").filter(|last| !last.is_empty()).map(str::to_owned);
        Ok(Page { count, last })
    }
}

/// As much of a client's text as fits into a message.
pub fn short(text: &str) -> String {
    text.chars().take(120).collect()
}
