//! The facts: data and its size, each repository's links, tags and what its manifests name.
//!
//! They change by [`Event`]s alone. Things are known by a hash of 64 bits that nobody outside can foresee;
//! two things of one hash only mean that one is kept for the other's sake. A held blob takes some 160
//! bytes of memory, its entry in the manifest that names it included (measured: `cargo bench --bench held`).

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::oci::{Digest, Manifest, ManifestKind, Owner, Tag};

/// Something that is held or named, by its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u64);

/// Keys are hashes already.
#[derive(Default)]
pub struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, bytes: &[u8]) {
        // Only keys are hashed by it, by the function below.
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

pub type Keys = HashSet<Key, BuildHasherDefault<AsIs>>;

/// Seconds since 1970.
pub type Seconds = u32;

/// What has happened to what is held. `repository` is its stored name.
#[derive(Clone, Debug)]
pub enum Event {
    Data { digest: Digest, size: u64 },
    DataGone { digest: Digest },
    Owner { repository: String, owner: Option<Owner> },
    Layer { repository: String, name: Digest, data: Digest, at: Seconds },
    LayerGone { repository: String, name: Digest },
    Manifest { repository: String, name: Digest, data: Digest, names: Vec<Digest>, at: Seconds },
    ManifestGone { repository: String, name: Digest },
    Tag { repository: String, tag: Tag, digest: Digest },
    TagGone { repository: String, tag: Tag },
}

/// Data, or what a link says should be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Datum {
    digest: Packed,
    size: u64,
    /// Links of all repositories that lead to it.
    links: u32,
    is_held: bool,
}

/// A digest in the space of the usual ones.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Packed {
    Sha256([u8; 32]),
    Sha512(Box<[u8; 64]>),
}

/// A repository's part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// None: nobody knows.
    pub owner: Option<Owner>,
    /// By their names.
    pub layers: BTreeMap<Key, Layer>,
    pub manifests: BTreeMap<Key, HeldManifest>,
    pub tags: BTreeMap<Tag, Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    pub data: Key,
    pub wanted: Seconds,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldManifest {
    pub data: Key,
    pub names: Box<[Key]>,
    /// When somebody last asked for it.
    pub wanted: Seconds,
}

#[derive(Default)]
pub struct Facts {
    hash: RandomState,
    data: BTreeMap<Key, Datum>,
    repositories: BTreeMap<Arc<str>, Held>,
    bytes: u64,
    entries: u64,
}

impl From<&Digest> for Packed {
    fn from(digest: &Digest) -> Self {
        match digest {
            Digest::Sha256(bytes) => Self::Sha256(*bytes),
            Digest::Sha512(bytes) => Self::Sha512(Box::new(*bytes)),
        }
    }
}

impl From<&Packed> for Digest {
    fn from(packed: &Packed) -> Self {
        match packed {
            Packed::Sha256(bytes) => Self::Sha256(*bytes),
            Packed::Sha512(bytes) => Self::Sha512(**bytes),
        }
    }
}

/// What a manifest's bytes name. Bytes that are none name nothing.
pub fn named_by(bytes: &[u8]) -> Vec<Digest> {
    let Ok(manifest) = Manifest::parse(bytes, None) else { return Vec::new() };
    let named: Vec<_> = match &manifest.kind {
        ManifestKind::Image { config, layers } => std::iter::once(config).chain(layers).collect(),
        ManifestKind::Index { manifests } => manifests.iter().collect(),
        ManifestKind::Artifact { blobs } => blobs.iter().collect(),
    };
    named.into_iter().map(|named| named.digest).collect()
}

impl Event {
    /// The stored name of the repository that it changes.
    pub fn repository(&self) -> Option<&str> {
        match self {
            Self::Data { .. } | Self::DataGone { .. } => None,
            Self::Owner { repository, .. }
            | Self::Layer { repository, .. }
            | Self::LayerGone { repository, .. }
            | Self::Manifest { repository, .. }
            | Self::ManifestGone { repository, .. }
            | Self::Tag { repository, .. }
            | Self::TagGone { repository, .. } => Some(repository),
        }
    }
}

impl Facts {
    pub fn key(&self, digest: &Digest) -> Key {
        Key(self.hash.hash_one(digest))
    }

    /// Bytes of all data, and of how many pieces.
    pub fn totals(&self) -> (u64, u64) {
        (self.bytes, self.entries)
    }

    pub fn repositories(&self) -> impl Iterator<Item = (&Arc<str>, &Held)> {
        self.repositories.iter()
    }

    pub fn repository(&self, stored_name: &str) -> Option<&Held> {
        self.repositories.get(stored_name)
    }

    /// The digest of something that is held, or linked.
    pub fn digest(&self, key: Key) -> Option<Digest> {
        self.data.get(&key).map(|datum| Digest::from(&datum.digest))
    }

    /// Bytes that are held of this, 0 where it is not.
    pub fn size(&self, key: Key) -> u64 {
        self.data.get(&key).filter(|datum| datum.is_held).map_or(0, |datum| datum.size)
    }

    pub fn links(&self, key: Key) -> u32 {
        self.data.get(&key).map_or(0, |datum| datum.links)
    }

    /// All that is held or linked: its bytes where it is held, and links.
    #[cfg(test)]
    pub fn data(&self) -> impl Iterator<Item = (Digest, Option<u64>, u32)> {
        let size = |datum: &Datum| datum.is_held.then_some(datum.size);
        self.data.values().map(move |datum| (Digest::from(&datum.digest), size(datum), datum.links))
    }

    /// Whether it is data that nothing leads to.
    pub fn is_orphan(&self, key: Key) -> bool {
        self.data.get(&key).is_some_and(|datum| datum.links == 0 && datum.is_held)
    }

    /// Data that nothing leads to.
    pub fn orphans(&self) -> impl Iterator<Item = (Key, Digest)> {
        let orphans = self.data.iter().filter(|(_, datum)| datum.links == 0 && datum.is_held);
        orphans.map(|(key, datum)| (*key, Digest::from(&datum.digest)))
    }

    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Data { digest, size } => self.put_data(digest, *size),
            Event::DataGone { digest } => self.drop_data(digest),
            Event::Owner { repository, owner } => self.held(repository).owner = owner.clone(),
            Event::Layer { repository, name, data, at } => {
                let (key, data) = (self.key(name), self.link(data));
                let layer = Layer { data, wanted: *at };
                let before = self.held(repository).layers.insert(key, layer);
                self.unlink(before.map(|layer| layer.data));
            }
            Event::LayerGone { repository, name } => {
                let key = self.key(name);
                let before = self.held(repository).layers.remove(&key);
                self.unlink(before.map(|layer| layer.data));
            }
            Event::Manifest { repository, name, data, names, at } => {
                let (key, data) = (self.key(name), self.link(data));
                let names = names.iter().map(|digest| self.key(digest)).collect();
                let manifest = HeldManifest { data, names, wanted: *at };
                let before = self.held(repository).manifests.insert(key, manifest);
                self.unlink(before.map(|manifest| manifest.data));
            }
            Event::ManifestGone { repository, name } => {
                let key = self.key(name);
                let before = self.held(repository).manifests.remove(&key);
                self.unlink(before.map(|manifest| manifest.data));
            }
            Event::Tag { repository, tag, digest } => {
                let key = self.key(digest);
                self.held(repository).tags.insert(tag.clone(), key);
            }
            Event::TagGone { repository, tag } => drop(self.held(repository).tags.remove(tag)),
        }
        self.forget_empty(event);
    }

    /// Takes a repository away, with its links.
    pub fn forget(&mut self, repository: &str) {
        let Some(held) = self.repositories.remove(repository) else { return };
        for data in held.layers.values().map(|layer| layer.data) {
            self.unlink(Some(data));
        }
        for data in held.manifests.values().map(|manifest| manifest.data) {
            self.unlink(Some(data));
        }
    }

    /// Somebody asked for a manifest. False: there is no such one.
    pub fn wanted(&mut self, repository: &str, digest: &Digest, at: Seconds) -> bool {
        let key = self.key(digest);
        let held = self.repositories.get_mut(repository);
        let Some(manifest) = held.and_then(|held| held.manifests.get_mut(&key)) else { return false };
        manifest.wanted = manifest.wanted.max(at);
        true
    }

    fn held(&mut self, repository: &str) -> &mut Held {
        if !self.repositories.contains_key(repository) {
            self.repositories.insert(repository.into(), Held::default());
        }
        // It was put there just now where it was not.
        self.repositories.entry(repository.into()).or_default()
    }

    fn forget_empty(&mut self, event: &Event) {
        let gone = matches!(
            event,
            Event::LayerGone { .. }
                | Event::ManifestGone { .. }
                | Event::TagGone { .. }
                | Event::Owner { .. }
        );
        let Some(repository) = event.repository().filter(|_| gone) else { return };
        let is_empty = |held: &Held| held.is_empty() && held.owner.is_none();
        if self.repositories.get(repository).is_some_and(is_empty) {
            self.repositories.remove(repository);
        }
    }

    fn datum(&mut self, digest: &Digest) -> (Key, &mut Datum) {
        let key = self.key(digest);
        let new = || Datum { digest: digest.into(), size: 0, links: 0, is_held: false };
        (key, self.data.entry(key).or_insert_with(new))
    }

    fn put_data(&mut self, digest: &Digest, size: u64) {
        let (_, datum) = self.datum(digest);
        let before = std::mem::replace(&mut datum.size, size);
        let was_held = std::mem::replace(&mut datum.is_held, true);
        if was_held {
            self.bytes -= before;
        } else {
            self.entries += 1;
        }
        self.bytes += size;
    }

    fn drop_data(&mut self, digest: &Digest) {
        let key = self.key(digest);
        let Some(datum) = self.data.get_mut(&key).filter(|datum| datum.is_held) else { return };
        datum.is_held = false;
        self.bytes -= datum.size;
        self.entries -= 1;
        if datum.links == 0 {
            self.data.remove(&key);
        }
    }

    fn link(&mut self, data: &Digest) -> Key {
        let (key, datum) = self.datum(data);
        datum.links += 1;
        key
    }

    fn unlink(&mut self, data: Option<Key>) {
        let Some(key) = data else { return };
        let Some(datum) = self.data.get_mut(&key) else { return };
        datum.links = datum.links.saturating_sub(1);
        if datum.links == 0 && !datum.is_held {
            self.data.remove(&key);
        }
    }
}

impl Held {
    /// Whether an upstream gave it, and may give it again.
    pub fn is_mirrored(&self) -> bool {
        matches!(self.owner, Some(Owner::Upstream(_)))
    }

    pub fn is_empty(&self) -> bool {
        self.layers.is_empty() && self.manifests.is_empty() && self.tags.is_empty()
    }

    /// Manifests that no other one here names: with what each leads to, an image.
    pub fn roots(&self) -> impl Iterator<Item = Key> {
        let mut children = Keys::default();
        for manifest in self.manifests.values() {
            children.extend(manifest.names.iter().filter(|name| self.manifests.contains_key(name)));
        }
        self.manifests.keys().copied().filter(move |key| !children.contains(key))
    }

    /// All that a manifest leads to, itself included, whether it is held or not.
    pub fn members(&self, root: Key) -> Keys {
        let (mut members, mut todo) = (Keys::default(), vec![root]);
        while let Some(key) = todo.pop() {
            if members.insert(key)
                && let Some(manifest) = self.manifests.get(&key)
            {
                todo.extend(&manifest.names);
            }
        }
        members
    }

    /// Blobs that no manifest here names, or is.
    pub fn loose(&self) -> Vec<Key> {
        let named: Keys =
            self.manifests.values().flat_map(|manifest| manifest.names.iter().copied()).collect();
        let is_loose = |key: &Key| !named.contains(key) && !self.manifests.contains_key(key);
        self.layers.keys().copied().filter(is_loose).collect()
    }

    /// When anything of these was last asked for.
    pub fn wanted(&self, members: &Keys) -> Seconds {
        let manifests = members.iter().filter_map(|key| self.manifests.get(key));
        manifests.map(|manifest| manifest.wanted).max().unwrap_or_default()
    }
}
