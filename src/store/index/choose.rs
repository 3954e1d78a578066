//! What to evict: whole images, the one that nobody asked for the longest first.
//!
//! Nothing here touches a disk. An image is a manifest that no other held one names, with all that it leads
//! to; what images share goes with the last of them. Bytes are freed once no repository links them.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use super::facts::{AsIs, Facts, Held, Key, Keys, Seconds};
use crate::oci::Digest;

type Counts = HashMap<Key, u32, BuildHasherDefault<AsIs>>;

/// An image that is to go, or a blob that no manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    pub repository: Arc<str>,
    /// Of an image, its manifest.
    pub root: Option<Digest>,
    /// Links that go with it, by their names.
    pub manifests: Vec<Digest>,
    pub layers: Vec<Digest>,
    /// When it was last asked for: if somebody does again before it goes, it stays.
    pub wanted: Seconds,
    /// Bytes that its going frees, those before it gone.
    pub bytes: u64,
}

/// What is never chosen, or not now.
pub trait Spare {
    /// Nothing of the repository may go.
    fn is_foreign(&self, repository: &str, held: &Held) -> bool;
    /// A person wants it to stay.
    fn is_pinned(&self, repository: &str, manifest: Key) -> bool;
    /// It is being fetched, whether some of it is held or none.
    fn is_on_its_way(&self, key: Key) -> bool;
    /// It is being read.
    fn is_open(&self, digest: &Digest) -> bool;
}

/// One that may go.
struct Unit<'a> {
    wanted: Seconds,
    name: &'a Arc<str>,
    held: &'a Held,
    key: Key,
    is_image: bool,
}

/// The choice as it grows.
struct Choice<'a> {
    facts: &'a Facts,
    spare: &'a dyn Spare,
    /// By how many images of each repository a thing is named that are left.
    naming: HashMap<&'a str, Counts>,
    /// How many links to data are left.
    links: Counts,
}

/// Chooses until `need` bytes are freed, or there is no more. `among` narrows it to some repositories and
/// images.
pub fn choose(
    facts: &Facts,
    need: u64,
    spare: &dyn Spare,
    among: &dyn Fn(&str, &Held, Key, Seconds) -> bool,
) -> Vec<Victim> {
    let mut units = Vec::new();
    let may_go = |name: &str, held: &Held| held.is_mirrored() && !spare.is_foreign(name, held);
    for (name, held) in facts.repositories().filter(|(name, held)| may_go(name, held)) {
        let images = held.roots().map(|key| (key, true));
        let units_here = images.chain(held.loose().into_iter().map(|key| (key, false)));
        units.extend(units_here.map(|(key, is_image)| {
            let wanted = match is_image {
                true => held.wanted(&held.members(key)),
                false => held.layers.get(&key).map_or(0, |layer| layer.wanted),
            };
            Unit { wanted, name, held, key, is_image }
        }));
    }
    units.retain(|unit| among(unit.name, unit.held, unit.key, unit.wanted));
    // Of the same age in the order of their names, so that the choice is the same every time.
    units.sort_by_key(|unit| (unit.wanted, unit.name, unit.key));
    let mut choice = Choice { facts, spare, naming: HashMap::new(), links: Counts::default() };
    let (mut victims, mut freed) = (Vec::new(), 0);
    for unit in &units {
        if freed >= need {
            break;
        }
        if let Some(victim) = choice.take(unit) {
            freed += victim.bytes;
            victims.push(victim);
        }
    }
    victims
}

impl<'a> Choice<'a> {
    /// None: it is spared.
    fn take(&mut self, unit: &Unit<'a>) -> Option<Victim> {
        let Unit { name, held, key, is_image, wanted } = *unit;
        let members = if is_image { held.members(key) } else { Keys::from_iter([key]) };
        if self.is_spared(name, held, &members) {
            return None;
        }
        let naming = self.naming.entry(name).or_insert_with(|| naming(held));
        let gone: Vec<Key> = members.into_iter().filter(|member| lower(naming.get_mut(member))).collect();
        let (mut manifests, mut layers, mut bytes) = (Vec::new(), Vec::new(), 0);
        for member in gone {
            let manifest = held.manifests.get(&member).map(|manifest| manifest.data);
            let layer = held.layers.get(&member).map(|layer| layer.data);
            for (data, names) in [(manifest, &mut manifests), (layer, &mut layers)] {
                let Some(data) = data else { continue };
                let left = self.links.entry(data).or_insert_with(|| self.facts.links(data));
                *left = left.saturating_sub(1);
                if *left == 0 {
                    bytes += self.facts.size(data);
                }
                names.extend(self.facts.digest(data));
            }
        }
        let root = if is_image { held.manifests.get(&key).map(|manifest| manifest.data) } else { None };
        let root = root.and_then(|data| self.facts.digest(data));
        Some(Victim { repository: name.clone(), root, manifests, layers, wanted, bytes })
    }

    fn is_spared(&self, name: &str, held: &Held, members: &Keys) -> bool {
        members.iter().any(|key| {
            let manifest = held.manifests.get(key).map(|manifest| manifest.data);
            let layer = held.layers.get(key).map(|layer| layer.data);
            let is_held = manifest.is_some() || layer.is_some();
            // A link by another name than its data's is none that a mirror makes: it is left alone.
            manifest.into_iter().chain(layer).any(|data| data != *key)
                || manifest.is_some() && self.spare.is_pinned(name, *key)
                || self.spare.is_on_its_way(*key)
                || is_held && self.facts.digest(*key).is_some_and(|digest| self.spare.is_open(&digest))
        })
    }
}

/// By how many images, or loose blobs, each thing in a repository is held.
fn naming(held: &Held) -> Counts {
    let mut counts = Counts::default();
    for root in held.roots() {
        for member in held.members(root) {
            *counts.entry(member).or_default() += 1;
        }
    }
    for key in held.loose() {
        *counts.entry(key).or_default() += 1;
    }
    counts
}

/// Counts one less. True: none is left.
fn lower(count: Option<&mut u32>) -> bool {
    count.is_some_and(|count| {
        *count = count.saturating_sub(1);
        *count == 0
    })
}
