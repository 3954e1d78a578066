//! Images that a person wants to stay: files of their own beside the tree, which outlive any index.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use humantime::format_rfc3339_seconds;

use super::index::{Facts, Key};
use super::{Error, Store, layout};
use crate::oci::{Algorithm, Reference, Repository, Tag};
use crate::tasks::lock;

/// Pins that can be set by command: all are held in memory, and looked through for each eviction.
pub const PINS_MAX: usize = 10_000;

/// What is pinned, by stored names.
#[derive(Default)]
pub struct Pins {
    /// By command. None: not read yet.
    set: Mutex<Option<Set>>,
    /// By configuration.
    configured: Mutex<Set>,
}

type Set = BTreeMap<String, BTreeSet<Reference>>;

/// Manifests that are pinned as things are.
pub type Pinned = BTreeMap<String, BTreeSet<Key>>;

/// What came of pinning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinning {
    Done,
    /// It was so before.
    AsBefore,
    /// There are as many as there may be.
    TooMany,
}

impl Store {
    /// Keeps an image from being evicted, durably, whether it is held or not.
    pub fn pin(&self, repository: &Repository, reference: &Reference) -> Result<Pinning, Error> {
        let mut set = self.read_pins()?;
        let pins = set.get_or_insert_default();
        let (name, key) = (repository.stored_name(), layout::pin(repository, reference));
        let is_there = pins.get(&name).is_some_and(|pins| pins.contains(reference));
        // One that is seen need not be durable, after a failure or a kill.
        if is_there && self.home.settle(&key).is_ok() {
            return Ok(Pinning::AsBefore);
        }
        if !is_there && pins.values().map(BTreeSet::len).sum::<usize>() >= PINS_MAX {
            return Ok(Pinning::TooMany);
        }
        let since = format_rfc3339_seconds(SystemTime::now()).to_string();
        if let Err(error) = self.home.put(&key, since.as_bytes()) {
            // It may be there all the same: what is pinned is read anew.
            *set = None;
            return Err(error);
        }
        pins.entry(name).or_default().insert(reference.clone());
        Ok(Pinning::Done)
    }

    /// Lets an image be evicted again, if its time comes. False: it was not pinned by command.
    pub fn unpin(&self, repository: &Repository, reference: &Reference) -> Result<bool, Error> {
        let mut set = self.read_pins()?;
        // That there is none is made durable too: its removal may have failed before.
        if let Err(error) = self.home.delete(&layout::pin(repository, reference)) {
            *set = None;
            return Err(error);
        }
        let (pins, name) = (set.get_or_insert_default(), repository.stored_name());
        let Some(of) = pins.get_mut(&name) else { return Ok(false) };
        let was_there = of.remove(reference);
        if of.is_empty() {
            pins.remove(&name);
        }
        Ok(was_there)
    }

    /// All that is pinned by command: stored names and references.
    pub fn pins(&self) -> Result<Vec<(String, Reference)>, Error> {
        let set = self.read_pins()?;
        let pins = set.iter().flatten();
        Ok(pins.flat_map(|(name, of)| of.iter().map(|one| (name.clone(), one.clone()))).collect())
    }

    /// What the configuration wants held at any time is not evicted either.
    pub fn pin_configured(&self, images: impl IntoIterator<Item = (Repository, Reference)>) {
        let mut set = Set::new();
        for (repository, reference) in images {
            set.entry(repository.stored_name()).or_default().insert(reference);
        }
        *lock(&self.pins.configured) = set;
    }

    /// All that is pinned by configuration, in the same way.
    pub fn configured_pins(&self) -> Vec<(String, Reference)> {
        let set = lock(&self.pins.configured);
        set.iter().flat_map(|(name, of)| of.iter().map(|one| (name.clone(), one.clone()))).collect()
    }

    /// The manifests that are pinned, by themselves or by a tag.
    pub(super) fn pinned(&self) -> Result<Pinned, Error> {
        let (set, configured) = (self.read_pins()?, lock(&self.pins.configured));
        let all = set.iter().flatten().chain(configured.iter());
        Ok(self.index.facts(|facts| {
            let mut pinned = Pinned::new();
            for (name, references) in all {
                let keys = references.iter().filter_map(|reference| resolved(facts, name, reference));
                pinned.entry(name.clone()).or_default().extend(keys);
            }
            pinned
        }))
    }

    /// What is pinned by command, which is some.
    fn read_pins(&self) -> Result<MutexGuard<'_, Option<Set>>, Error> {
        let mut set = lock(&self.pins.set);
        if set.is_some() {
            return Ok(set);
        }
        let (mut read, mut todo) = (Set::new(), vec![String::new()]);
        while let Some(prefix) = todo.pop() {
            let dir = if prefix.is_empty() { layout::PINS_DIR.to_owned() } else { layout::pins(&prefix) };
            for entry in self.home.list(&dir)? {
                let Some(name) = entry.name.to_str().filter(|_| entry.is_dir) else { continue };
                if name.starts_with('_') {
                    let references = self.pins_in(&format!("{dir}/{name}"), name)?;
                    read.entry(prefix.clone()).or_default().extend(references);
                } else if prefix.len() + name.len() < layout::STORED_NAME_MAX {
                    todo.push(if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") });
                }
            }
        }
        *set = Some(read);
        Ok(set)
    }

    fn pins_in(&self, dir: &str, kind: &str) -> Result<Vec<Reference>, Error> {
        let mut found = Vec::new();
        for entry in self.home.list(dir)? {
            let Some(name) = entry.name.to_str() else { continue };
            let digest = |algorithm: Algorithm| format!("{}:{name}", algorithm.as_str()).parse().ok();
            found.extend(match kind {
                "_tags" => name.parse::<Tag>().ok().map(Reference::Tag),
                "_sha256" => digest(Algorithm::Sha256).map(Reference::Digest),
                "_sha512" => digest(Algorithm::Sha512).map(Reference::Digest),
                _ => None,
            });
        }
        Ok(found)
    }
}

fn resolved(facts: &Facts, repository: &str, reference: &Reference) -> Option<Key> {
    match reference {
        Reference::Digest(digest) => Some(facts.key(digest)),
        Reference::Tag(tag) => facts.repository(repository)?.tags.get(tag).copied(),
    }
}
