//! Patterns of tags and of repositories.

use globset::{GlobBuilder, GlobMatcher};

use super::{Repository, Tag};

/// Tags of repositories: `latest`, `nightly*`; or with the repository in front, `library/*:1.*`.
#[derive(Clone, Debug)]
pub struct TagPattern {
    text: String,
    repository: Option<GlobMatcher>,
    tag: GlobMatcher,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is no pattern of tags: {why}; write `latest`, `nightly*` or `library/*:1.*`")]
pub struct InvalidTagPattern {
    pattern: String,
    why: String,
}

impl TagPattern {
    pub fn parse(text: &str) -> Result<Self, InvalidTagPattern> {
        let glob = |part: &str| {
            let glob = GlobBuilder::new(part).literal_separator(true).build();
            glob.map(|glob| glob.compile_matcher()).map_err(|error| InvalidTagPattern {
                pattern: text.to_owned(),
                why: error.kind().to_string(),
            })
        };
        let (repository, tag) = match text.rsplit_once(':') {
            Some((repository, tag)) => (Some(glob(repository)?), glob(tag)?),
            None => (None, glob(text)?),
        };
        Ok(Self { text: text.to_owned(), repository, tag })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn matches(&self, repository: &Repository, tag: &Tag) -> bool {
        let name = |glob: &GlobMatcher| {
            glob.is_match(repository.name.as_str()) || glob.is_match(repository.to_string())
        };
        self.repository.as_ref().is_none_or(name) && self.tag.is_match(tag.as_str())
    }
}

/// Hosted repositories: `app`, `corp.internal/**`.
#[derive(Clone, Debug)]
pub struct RepositoryPattern {
    text: String,
    glob: GlobMatcher,
}

impl RepositoryPattern {
    /// The error says what is wrong with the pattern.
    pub fn parse(text: &str) -> Result<Self, String> {
        let glob = GlobBuilder::new(text).literal_separator(true).build();
        let glob = glob.map_err(|error| error.kind().to_string())?.compile_matcher();
        Ok(Self { text: text.to_owned(), glob })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn matches(&self, repository: &Repository) -> bool {
        self.glob.is_match(repository.name.as_str())
    }
}

impl PartialEq for RepositoryPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl PartialEq for TagPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Owner;

    #[test]
    fn a_tag_alone_or_with_its_repository() {
        let repository = Repository { owner: Owner::Hosted, name: "corp.internal/team/app".parse().unwrap() };
        let matches = |text: &str, tag: &str| {
            TagPattern::parse(text).unwrap().matches(&repository, &tag.parse().unwrap())
        };
        assert!(matches("v*", "v1.2.3") && !matches("v*", "1.2.3"));
        assert!(matches("corp.internal/**:v*", "v1") && !matches("corp.internal/*:v*", "v1"));
        assert!(!matches("other/**:v*", "v1"));
        assert!(TagPattern::parse("[").is_err());
    }
}
