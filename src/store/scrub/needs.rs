//! Who needs what is lost.

use crate::oci::{Digest, Reference};
use crate::store::Store;
use crate::store::index::{Keys, Progress};

impl Store {
    /// Whether a manifest of a repository, by its name in the tree, names this; in doubt, it does.
    pub fn is_needed(&self, stored_name: &str, digest: &Digest) -> bool {
        self.index.progress() != Progress::Whole
            || self.index.facts(|facts| {
                let key = facts.key(digest);
                let mut manifests =
                    facts.repository(stored_name).into_iter().flat_map(|held| held.manifests.values());
                manifests.any(|manifest| manifest.names.contains(&key))
            })
    }

    /// The images of a repository that cannot be pulled without this, so many at most: by their tags, and
    /// by digest where no tag leads to them. As far as is known.
    pub fn images_with(&self, stored_name: &str, digest: &Digest, most: usize) -> Vec<Reference> {
        self.index.facts(|facts| {
            let Some(held) = facts.repository(stored_name) else { return Vec::new() };
            let mut needing: Keys = [facts.key(digest)].into_iter().collect();
            loop {
                let new = held.manifests.iter().filter(|(key, manifest)| {
                    !needing.contains(key) && manifest.names.iter().any(|name| needing.contains(name))
                });
                let new: Vec<_> = new.map(|(key, _)| *key).collect();
                if new.is_empty() {
                    break;
                }
                needing.extend(new);
            }
            let tags = held.tags.iter().filter(|(_, key)| needing.contains(key));
            let tagged: Keys = tags.clone().map(|(_, key)| *key).collect();
            let named: Keys = needing
                .iter()
                .filter_map(|key| held.manifests.get(key))
                .flat_map(|manifest| manifest.names.iter().copied())
                .collect();
            let untagged = held
                .manifests
                .iter()
                .filter(|(key, _)| needing.contains(key) && !tagged.contains(key) && !named.contains(key));
            let untagged = untagged.filter_map(|(_, manifest)| facts.digest(manifest.data));
            let tags = tags.map(|(tag, _)| Reference::Tag(tag.clone()));
            tags.chain(untagged.map(Reference::Digest)).take(most).collect()
        })
    }
}
