//! The pinned images: what is missing of them may be had from the reserve of a quota.

use std::collections::{HashMap, HashSet};

use super::Mirror;
use super::manifest::Request;
use crate::oci::{Digest, ManifestKind, MediaType, Reference, Repository, UpstreamHost};

/// Indexes of one repository that are looked into for a manifest, beside those that are pinned.
const INDEXES_MAX: usize = 100;

/// Names of images for which the reserve is. None by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reserved(HashMap<Repository, HashSet<Reference>>);

impl Reserved {
    pub fn add(&mut self, repository: Repository, reference: &Reference) {
        self.0.entry(repository).or_default().insert(reference.clone());
    }

    /// Whether this is one by name.
    pub fn names(&self, repository: &Repository, reference: &Reference) -> bool {
        self.0.get(repository).is_some_and(|names| names.contains(reference))
    }

    pub fn has_any_of(&self, host: &UpstreamHost) -> bool {
        self.0.keys().any(|repository| repository.owner == crate::oci::Owner::Upstream(host.clone()))
    }
}

impl Mirror {
    /// Whether a manifest belongs to a pinned image: a tag leads to it, as far as is known, or an index
    /// names it that belongs to one and is held. The other manifests of the repository do not.
    pub(super) async fn is_pinned(&self, request: &Request<'_>, digest: &Digest) -> bool {
        let Some(names) = self.options.reserved.0.get(request.repository) else { return false };
        let (mut next, mut seen) = (Vec::new(), HashSet::new());
        // However many are pinned, each is looked into.
        let most = INDEXES_MAX.saturating_add(names.len().saturating_mul(2));
        for name in names {
            match name {
                Reference::Digest(digest) => next.push(*digest),
                Reference::Tag(tag) => {
                    let known = self.known_tag(request, tag).await;
                    next.extend(known.iter().flat_map(|known| [Some(known.digest), known.before]).flatten());
                }
            }
        }
        while let Some(root) = next.pop() {
            if root == *digest {
                return true;
            }
            if seen.len() >= most || !seen.insert(root) {
                continue;
            }
            let Some(held) = self.held_manifest(&request.standing, request.repository, &root).await else {
                continue;
            };
            if let ManifestKind::Index { manifests } = &held.manifest.kind {
                let is_index = |text: &str| MediaType::parse(text).is_some_and(|kind| kind.is_index());
                let may_lead =
                    manifests.iter().filter(|one| one.digest == *digest || is_index(&one.media_type));
                next.extend(may_lead.map(|one| one.digest));
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Owner;

    #[test]
    fn images_are_pinned_by_name() {
        let hub = UpstreamHost::docker_hub();
        let of = |name: &str| Repository { owner: Owner::Upstream(hub.clone()), name: name.parse().unwrap() };
        let [digest, other] = ["0", "1"].map(|digit| format!("sha256:{}", digit.repeat(64)));
        let mut reserved = Reserved::default();
        assert!(!reserved.has_any_of(&hub));
        reserved.add(of("library/nginx"), &"1.27".parse().unwrap());
        reserved.add(of("library/nginx"), &digest.parse().unwrap());
        let names = |name: &str, reference: &str| reserved.names(&of(name), &reference.parse().unwrap());
        assert!(names("library/nginx", "1.27") && names("library/nginx", &digest));
        assert!(!names("library/nginx", "latest") && !names("library/redis", "1.27"));
        assert!(!names("library/nginx", &other));
        assert!(reserved.has_any_of(&hub) && !reserved.has_any_of(&"ghcr.io".parse().unwrap()));
    }
}
