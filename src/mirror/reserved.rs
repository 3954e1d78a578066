//! The pinned images: what is missing of them may be had from the reserve of a quota.

use std::collections::{HashMap, HashSet};

use crate::oci::{Reference, Repository, Tag, UpstreamHost};

/// Names of images for which the reserve is. None by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reserved(HashMap<Repository, HashSet<Tag>>);

impl Reserved {
    pub fn add(&mut self, repository: Repository, reference: &Reference) {
        let tags = self.0.entry(repository).or_default();
        if let Reference::Tag(tag) = reference {
            tags.insert(tag.clone());
        }
    }

    /// Whether this is one, or may be a part of one: which manifests belong to a tag is known once they
    /// are fetched.
    pub fn has(&self, repository: &Repository, reference: &Reference) -> bool {
        self.0.get(repository).is_some_and(|tags| match reference {
            Reference::Tag(tag) => tags.contains(tag),
            Reference::Digest(_) => true,
        })
    }

    pub fn has_any_of(&self, host: &UpstreamHost) -> bool {
        self.0.keys().any(|repository| repository.owner == crate::oci::Owner::Upstream(host.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Owner;

    #[test]
    fn a_tag_is_pinned_and_whatever_digest_its_repository_has() {
        let hub = UpstreamHost::docker_hub();
        let of = |name: &str| Repository { owner: Owner::Upstream(hub.clone()), name: name.parse().unwrap() };
        let digest = format!("sha256:{}", "0".repeat(64));
        let mut reserved = Reserved::default();
        assert!(!reserved.has_any_of(&hub));
        reserved.add(of("library/nginx"), &"1.27".parse().unwrap());
        let has = |name: &str, reference: &str| reserved.has(&of(name), &reference.parse().unwrap());
        assert!(has("library/nginx", "1.27") && has("library/nginx", &digest));
        assert!(!has("library/nginx", "latest") && !has("library/redis", "1.27"));
        assert!(reserved.has_any_of(&hub) && !reserved.has_any_of(&"ghcr.io".parse().unwrap()));
    }
}
