//! Which manifests nothing holds, and in which order they go: what holds another goes before it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::SystemTime;

use super::Marked;
use crate::oci::Digest;
use crate::store::leases::{Key, Leases};

/// Manifests that are to go, by their places in what was marked.
pub struct Chosen {
    /// What each one holds: an index its manifests, a subject what refers to it.
    holds: HashMap<usize, Vec<usize>>,
    /// How many of those that hold it are still there.
    held_by: HashMap<usize, usize>,
    ready: VecDeque<usize>,
    /// Not handed out yet.
    open: HashSet<usize>,
    by_name: HashMap<Digest, usize>,
    kept: HashSet<usize>,
}

/// Those linked before a time that no tag, lease or manifest that stays holds.
pub fn choose(marked: &Marked, leases: &Leases, linked_before: SystemTime) -> Chosen {
    let keys = leases.keys();
    let all = &marked.manifests;
    let mut by_key: HashMap<Key, usize> = HashMap::new();
    let mut by_name = HashMap::new();
    for (place, found) in all.iter().enumerate() {
        for name in &found.names {
            by_key.insert(keys.of(name), place);
            by_name.insert(*name, place);
        }
    }
    let mut holds: HashMap<usize, Vec<usize>> = HashMap::new();
    for (place, found) in all.iter().enumerate() {
        let held = found.needs.iter().filter_map(|key| by_key.get(key)).copied();
        holds.entry(place).or_default().extend(held.filter(|held| *held != place));
        if let Some(subject) = found.subject.and_then(|subject| by_name.get(&subject)) {
            holds.entry(*subject).or_default().push(place);
        }
    }
    let tagged: HashSet<usize> =
        marked.tags.iter().filter_map(|(_, held)| by_name.get(&held.digest)).copied().collect();
    let stays = |place: &usize| {
        let found = &all[*place];
        tagged.contains(place)
            || found.linked >= linked_before
            || found.names.iter().any(|name| leases.is_leased(&marked.repository, name))
    };
    let mut todo: Vec<usize> = (0..all.len()).filter(stays).collect();
    let mut staying: HashSet<usize> = todo.iter().copied().collect();
    while let Some(place) = todo.pop() {
        todo.extend(holds.get(&place).into_iter().flatten().copied().filter(|held| staying.insert(*held)));
    }
    let open: HashSet<usize> = (0..all.len()).filter(|place| !staying.contains(place)).collect();
    let mut held_by: HashMap<usize, usize> = open.iter().map(|place| (*place, 0)).collect();
    for place in &open {
        for held in holds.get(place).into_iter().flatten() {
            *held_by.entry(*held).or_default() += 1;
        }
    }
    let mut ready: Vec<usize> = open.iter().copied().filter(|place| held_by[place] == 0).collect();
    ready.sort_unstable();
    Chosen { holds, held_by, ready: ready.into(), open, by_name, kept: HashSet::new() }
}

impl Chosen {
    /// The next one to go.
    pub fn next(&mut self) -> Option<usize> {
        loop {
            // None that is ready: an index that refers to what it holds, and the like.
            let place = self.ready.pop_front().or_else(|| self.open.iter().min().copied())?;
            if !self.open.remove(&place) {
                continue;
            }
            for held in self.holds.get(&place).into_iter().flatten() {
                if let Some(left) = self.held_by.get_mut(held) {
                    *left = left.saturating_sub(1);
                    if *left == 0 {
                        self.ready.push_back(*held);
                    }
                }
            }
            if !self.kept.contains(&place) {
                return Some(place);
            }
        }
    }

    /// This one stays after all, and so does what it holds.
    pub fn keep(&mut self, place: usize) {
        let mut todo = vec![place];
        while let Some(place) = todo.pop() {
            let held = self.holds.get(&place).into_iter().flatten().copied();
            let held: Vec<usize> = held.filter(|held| !self.kept.contains(held)).collect();
            self.kept.extend(&held);
            todo.extend(held);
        }
    }

    /// Whether a manifest of this name is still to go.
    pub fn is_open(&self, name: &Digest) -> bool {
        self.by_name.get(name).is_some_and(|place| self.open.contains(place) && !self.kept.contains(place))
    }
}
