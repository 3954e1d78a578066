//! What uses the space: by owner, by repository, by image.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use super::facts::{AsIs, Facts, Held, Key, Keys, Seconds};
use crate::oci::{Digest, Owner, Tag};

/// Bytes of some content, each piece counted once, and of these what nobody else has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    pub all: u64,
    pub alone: u64,
}

/// What a repository holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryUse {
    pub stored_name: Arc<str>,
    /// None: nobody knows.
    pub owner: Option<Owner>,
    pub bytes: Bytes,
    pub images: Vec<ImageUse>,
}

/// What an image takes, that is held of it. `alone`: what its end would free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUse {
    pub key: Key,
    pub digest: Digest,
    pub tags: Vec<Tag>,
    pub bytes: Bytes,
    /// When somebody last asked for it.
    pub wanted: Seconds,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes and pieces that are held.
    pub bytes: u64,
    pub blobs: u64,
    /// Of these, what no repository links.
    pub unlinked: u64,
    pub owners: BTreeMap<Option<Owner>, u64>,
    pub repositories: Vec<RepositoryUse>,
}

/// How often something is there.
type Counts = HashMap<Key, u32, BuildHasherDefault<AsIs>>;

/// Counts what uses the space. Goes through all that is held.
pub fn usage(facts: &Facts) -> Usage {
    let (bytes, blobs) = facts.totals();
    let unlinked = facts.orphans().map(|(key, _)| facts.size(key)).sum();
    let mut of_owners: BTreeMap<Option<Owner>, Keys> = BTreeMap::new();
    let mut repositories = Vec::new();
    for (stored_name, held) in facts.repositories() {
        let mut links = Counts::default();
        for data in data_of(held) {
            *links.entry(data).or_default() += 1;
        }
        of_owners.entry(held.owner.clone()).or_default().extend(links.keys());
        repositories.push(RepositoryUse {
            stored_name: stored_name.clone(),
            owner: held.owner.clone(),
            bytes: counted(facts, links.iter().map(|(key, count)| (*key, *count))),
            images: images(facts, held),
        });
    }
    let sum = |keys: &Keys| keys.iter().map(|key| facts.size(*key)).sum();
    let owners = of_owners.iter().map(|(owner, keys)| (owner.clone(), sum(keys))).collect();
    Usage { bytes, blobs, unlinked, owners, repositories }
}

fn data_of(held: &Held) -> impl Iterator<Item = Key> {
    let layers = held.layers.values().map(|layer| layer.data);
    layers.chain(held.manifests.values().map(|manifest| manifest.data))
}

/// Bytes of data, each with how many of its links go along.
fn counted(facts: &Facts, data: impl Iterator<Item = (Key, u32)>) -> Bytes {
    let mut bytes = Bytes::default();
    for (key, links) in data {
        let size = facts.size(key);
        bytes.all += size;
        if links >= facts.links(key) {
            bytes.alone += size;
        }
    }
    bytes
}

fn images(facts: &Facts, held: &Held) -> Vec<ImageUse> {
    let roots: Vec<(Key, Keys)> = held.roots().map(|root| (root, held.members(root))).collect();
    let mut naming = Counts::default();
    for member in roots.iter().flat_map(|(_, members)| members) {
        *naming.entry(*member).or_default() += 1;
    }
    let mut tags: HashMap<Key, Vec<Tag>, BuildHasherDefault<AsIs>> = HashMap::default();
    for (tag, key) in &held.tags {
        tags.entry(*key).or_default().push(tag.clone());
    }
    let mut images = Vec::new();
    for (key, members) in roots {
        let Some(digest) = held.manifests.get(&key).and_then(|found| facts.digest(found.data)) else {
            continue;
        };
        let mut links = Counts::default();
        for member in &members {
            let manifest = held.manifests.get(member).map(|manifest| manifest.data);
            let layer = held.layers.get(member).map(|layer| layer.data);
            for data in manifest.into_iter().chain(layer) {
                // Another image of the repository keeps it as another repository would.
                let goes = naming.get(member).is_some_and(|images| *images == 1);
                *links.entry(data).or_default() += u32::from(goes);
            }
        }
        let bytes = counted(facts, links.into_iter());
        let tags = tags.remove(&key).unwrap_or_default();
        images.push(ImageUse { key, digest, tags, bytes, wanted: held.wanted(&members) });
    }
    images
}
