//! A disk in memory that keeps apart what is seen and what would survive a power loss, and that fails
//! or loses power at a chosen call.
//!
//! It promises no more than POSIX does: bytes survive once their file was synced, names once their
//! directory was. A rename is one step. Of what was not synced, a power loss leaves any part. What a
//! failed sync was to save is lost, though it is still seen, and later syncs say nothing of it.

mod calls;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Bytes that are written together or not at all.
const PAGE: usize = 512;

/// Clones are the same disk.
#[derive(Clone)]
pub struct Simulated(Arc<Mutex<State>>);

/// What happens at a call.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// From this one of the changing calls on, no call does anything.
    Death(u64),
    /// This call, of all, fails once.
    Failure(u64, io::ErrorKind),
}

struct State {
    nodes: Vec<Node>,
    /// Changes of names that are not durable yet, in order.
    pending: Vec<Vec<Change>>,
    locked: HashSet<PathBuf>,
    trouble: Option<Trouble>,
    calls: u64,
    changes: u64,
}

#[derive(Clone)]
enum Node {
    Dir { seen: Names, durable: Names },
    File { seen: Vec<u8>, durable: Vec<u8>, unsynced: Vec<Range<usize>>, modified: SystemTime },
}

type Names = BTreeMap<OsString, usize>;

/// A name in a directory comes to mean this node, or nothing.
#[derive(Clone)]
struct Change {
    dir: usize,
    name: OsString,
    node: Option<usize>,
}

struct Handle {
    disk: Simulated,
    node: usize,
}

impl Default for Simulated {
    fn default() -> Self {
        Self::with(vec![Node::Dir { seen: Names::new(), durable: Names::new() }])
    }
}

impl Simulated {
    fn with(nodes: Vec<Node>) -> Self {
        let (pending, locked) = (Vec::new(), HashSet::new());
        Self(Arc::new(Mutex::new(State { nodes, pending, locked, trouble: None, calls: 0, changes: 0 })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts calls anew, and makes trouble at one of them.
    pub fn make(&self, trouble: Option<Trouble>) {
        let mut state = self.state();
        (state.trouble, state.calls, state.changes) = (trouble, 0, 0);
    }

    /// Calls since the count began: all, and those that change something.
    pub fn calls(&self) -> (u64, u64) {
        let state = self.state();
        (state.calls, state.changes)
    }

    /// The disk after the process was killed: nothing is lost.
    pub fn after_kill(&self) -> Self {
        let state = self.state();
        let disk = Self::with(state.nodes.clone());
        disk.state().pending = state.pending.clone();
        disk
    }

    /// The disk after a power loss. `chance` tells of each thing that was not synced, whether it
    /// survived all the same.
    pub fn after_power_loss(&self, mut chance: impl FnMut() -> bool) -> Self {
        let state = self.state();
        let mut nodes = state.nodes.clone();
        for change in state.pending.iter().filter(|_| chance()).flatten() {
            nodes[change.dir].durable().apply(change);
        }
        for node in &mut nodes {
            match node {
                Node::Dir { seen, durable } => seen.clone_from(durable),
                Node::File { seen, durable, unsynced, .. } => {
                    for range in std::mem::take(unsynced) {
                        tear(seen, durable, range, &mut chance);
                    }
                    seen.clone_from(durable);
                }
            }
        }
        Self::with(nodes)
    }
}

/// Some of the pages that were written arrive; the file may have grown though they did not.
fn tear(seen: &[u8], durable: &mut Vec<u8>, range: Range<usize>, chance: &mut impl FnMut() -> bool) {
    for start in range.clone().step_by(PAGE) {
        let end = range.end.min(start + PAGE);
        if chance() {
            durable.resize(durable.len().max(end), 0);
            if chance() {
                durable[start..end].copy_from_slice(&seen[start..end]);
            }
        }
    }
}

trait Apply {
    fn apply(&mut self, change: &Change);
}

impl Apply for Names {
    fn apply(&mut self, change: &Change) {
        match change.node {
            Some(node) => self.insert(change.name.clone(), node),
            None => self.remove(&change.name),
        };
    }
}

impl Node {
    fn durable(&mut self) -> &mut Names {
        match self {
            Self::Dir { durable, .. } => durable,
            Self::File { .. } => panic!("names are in directories only"),
        }
    }
}

/// A failure to come back with, or that the call goes on.
enum Verdict {
    Go,
    Fail(io::Error),
}

impl State {
    /// Counts a call. Who gets `Fail` leaves behind what such a failure leaves.
    fn call(&mut self, changes: bool) -> io::Result<Verdict> {
        self.calls += 1;
        self.changes += u64::from(changes);
        match self.trouble {
            Some(Trouble::Death(at)) if self.changes > at => Err(io::Error::other("the power is gone")),
            Some(Trouble::Failure(at, kind)) if self.calls == at + 1 => Ok(Verdict::Fail(kind.into())),
            _ => Ok(Verdict::Go),
        }
    }

    /// The same for calls that leave nothing behind when they fail.
    fn plain_call(&mut self, changes: bool) -> io::Result<()> {
        match self.call(changes)? {
            Verdict::Go => Ok(()),
            Verdict::Fail(error) => Err(error),
        }
    }

    fn names(&self, dir: usize) -> io::Result<&Names> {
        match &self.nodes[dir] {
            Node::Dir { seen, .. } => Ok(seen),
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut node = 0;
        for part in path.components() {
            if let Component::Normal(name) = part {
                node = *self.names(node)?.get(name).ok_or(io::ErrorKind::NotFound)?;
            }
        }
        Ok(node)
    }

    /// Directory and name of what is, or is to be, at `path`.
    fn place(&self, path: &Path) -> io::Result<(usize, OsString)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let dir = self.find(parent)?;
        self.names(dir)?;
        Ok((dir, name.to_owned()))
    }

    fn change(&mut self, changes: Vec<Change>) {
        for change in &changes {
            if let Node::Dir { seen, .. } = &mut self.nodes[change.dir] {
                seen.apply(change);
            }
        }
        self.pending.push(changes);
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        let (dir, name) = self.place(path)?;
        if self.names(dir)?.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.nodes.push(node);
        let node = self.nodes.len() - 1;
        self.change(vec![Change { dir, name, node: Some(node) }]);
        Ok(node)
    }

    fn add_file(&mut self, path: &Path) -> io::Result<usize> {
        let (seen, durable, unsynced) = (Vec::new(), Vec::new(), Vec::new());
        self.add(path, Node::File { seen, durable, unsynced, modified: SystemTime::now() })
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        let node = self.find(path)?;
        match self.nodes[node] {
            Node::File { .. } => Ok(node),
            Node::Dir { .. } => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// Takes what is pending of a directory off the list: all steps that touch it.
    fn take_pending(&mut self, dir: usize) -> Vec<Vec<Change>> {
        let touches = |step: &Vec<Change>| step.iter().any(|change| change.dir == dir);
        let (mine, rest) = std::mem::take(&mut self.pending).into_iter().partition(touches);
        self.pending = rest;
        mine
    }
}
