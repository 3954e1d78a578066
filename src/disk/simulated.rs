//! A disk in memory that keeps apart what is seen and what would survive a power loss, and that fails
//! or loses power at a chosen call.
//!
//! It promises no more than POSIX does: bytes survive once their file was synced, names once their
//! directory was. A rename is one step. Of what was not synced, a power loss leaves any part. What a
//! failed sync was to save is lost, though it is still seen, and later syncs say nothing of it.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{Disk, Entry, File, Space, Stat};

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

impl Disk for Simulated {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = self.state();
        state.plain_call(true)?;
        let node = state.add_file(path)?;
        Ok(Arc::new(Handle { disk: self.clone(), node }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = self.state();
        state.plain_call(false)?;
        let node = state.file(path)?;
        Ok(Arc::new(Handle { disk: self.clone(), node }))
    }

    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.open(path)
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let mut state = self.state();
        state.plain_call(false)?;
        let node = state.find(path)?;
        Ok(match &state.nodes[node] {
            Node::File { seen, modified, .. } => {
                Stat { len: seen.len() as u64, modified: *modified, is_file: true }
            }
            Node::Dir { .. } => Stat { len: 0, modified: SystemTime::now(), is_file: false },
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.plain_call(true)?;
        let node = state.file(from)?;
        let ((old_dir, old), (dir, name)) = (state.place(from)?, state.place(to)?);
        let gone = Change { dir: old_dir, name: old, node: None };
        state.change(vec![gone, Change { dir, name, node: Some(node) }]);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.plain_call(true)?;
        state.file(path)?;
        let (dir, name) = state.place(path)?;
        state.change(vec![Change { dir, name, node: None }]);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.plain_call(true)?;
        let node = state.find(path)?;
        if !state.names(node)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let (dir, name) = state.place(path)?;
        state.change(vec![Change { dir, name, node: None }]);
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.state();
        state.plain_call(true)?;
        if let Ok(node) = state.find(path) {
            let is_dir = matches!(state.nodes[node], Node::Dir { .. });
            return if is_dir { Ok(false) } else { Err(io::ErrorKind::AlreadyExists.into()) };
        }
        state.add(path, Node::Dir { seen: Names::new(), durable: Names::new() }).map(|_| true)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let mut state = self.state();
        state.plain_call(false)?;
        let node = state.find(dir)?;
        let is_dir = |node: &usize| matches!(state.nodes[*node], Node::Dir { .. });
        let names = state.names(node)?.iter();
        Ok(names.map(|(name, node)| Entry { name: name.clone(), is_dir: is_dir(node) }).collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        let verdict = state.call(true)?;
        let node = state.find(dir)?;
        state.names(node)?;
        let steps = state.take_pending(node);
        if let Verdict::Fail(error) = verdict {
            return Err(error);
        }
        for change in steps.iter().flatten() {
            // An older change of the same name elsewhere must not come after this one.
            for step in &mut state.pending {
                step.retain(|older| (older.dir, &older.name) != (change.dir, &change.name));
            }
            state.nodes[change.dir].durable().apply(change);
        }
        Ok(())
    }

    fn set_modified(&self, path: &Path, time: SystemTime) -> io::Result<()> {
        let mut state = self.state();
        state.plain_call(true)?;
        let node = state.file(path)?;
        if let Node::File { modified, .. } = &mut state.nodes[node] {
            *modified = time;
        }
        Ok(())
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        Ok(Space { total: 1 << 40, available: 1 << 40 })
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        let mut state = self.state();
        state.plain_call(true)?;
        if state.file(path).is_err() {
            state.add_file(path)?;
        }
        let taken = state.locked.insert(path.to_owned());
        Ok(taken.then(|| Box::new(Lock { disk: self.clone(), path: path.to_owned() }) as _))
    }
}

struct Lock {
    disk: Simulated,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.disk.state().locked.remove(&self.path);
    }
}

impl File for Handle {
    fn size(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.plain_call(false)?;
        match &state.nodes[self.node] {
            Node::File { seen, .. } => Ok(seen.len() as u64),
            Node::Dir { .. } => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.plain_call(false)?;
        let Node::File { seen, .. } = &state.nodes[self.node] else { return Ok(0) };
        let from = seen.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }

    fn read_ready(&self, _: &mut [u8], _: u64) -> io::Result<Option<usize>> {
        Ok(None)
    }

    fn write_at(&self, from: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let verdict = state.call(true)?;
        let mut bytes = from.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>();
        if matches!(verdict, Verdict::Fail(_)) {
            bytes.truncate(bytes.len() / 2);
        }
        let Node::File { seen, unsynced, modified, .. } = &mut state.nodes[self.node] else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start + bytes.len();
        seen.resize(seen.len().max(end), 0);
        seen[start..end].copy_from_slice(&bytes);
        unsynced.push(start..end);
        *modified = SystemTime::now();
        match verdict {
            Verdict::Go => Ok(()),
            Verdict::Fail(error) => Err(error),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let verdict = state.call(true)?;
        let Node::File { seen, durable, unsynced, .. } = &mut state.nodes[self.node] else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        let ranges = std::mem::take(unsynced);
        if let Verdict::Fail(error) = verdict {
            return Err(error);
        }
        for range in ranges {
            durable.resize(durable.len().max(range.end), 0);
            durable[range.clone()].copy_from_slice(&seen[range]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(disk: &Simulated, path: &str, bytes: &[u8]) -> Arc<dyn File> {
        let file = disk.create(Path::new(path)).unwrap();
        file.write_at(&[IoSlice::new(bytes)], 0).unwrap();
        file
    }

    fn get(disk: &Simulated, path: &str) -> Option<Vec<u8>> {
        let file = disk.open(Path::new(path)).ok()?;
        let mut bytes = vec![0; file.size().unwrap() as usize];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
        Some(bytes)
    }

    #[test]
    fn only_what_was_synced_is_sure_to_survive() {
        let disk = Simulated::default();
        let file = put(&disk, "/a", b"one");
        assert_eq!(get(&disk.after_power_loss(|| false), "/a"), None, "its name is not synced");
        disk.sync_dir(Path::new("/")).unwrap();
        assert_eq!(get(&disk.after_power_loss(|| false), "/a").unwrap(), b"", "its bytes are not");
        assert_eq!(get(&disk.after_power_loss(|| true), "/a").unwrap(), b"one");
        file.sync().unwrap();
        disk.rename(Path::new("/a"), Path::new("/b")).unwrap();
        assert_eq!(get(&disk, "/a"), None);
        let lost = disk.after_power_loss(|| false);
        assert_eq!((get(&lost, "/a").unwrap(), get(&lost, "/b")), (b"one".to_vec(), None));
        assert_eq!(get(&disk.after_kill(), "/b").unwrap(), b"one");
        assert_eq!(get(&disk.after_kill().after_power_loss(|| false), "/b"), None);
        disk.sync_dir(Path::new("/")).unwrap();
        let lost = disk.after_power_loss(|| false);
        assert_eq!((get(&lost, "/a"), get(&lost, "/b").unwrap()), (None, b"one".to_vec()));
    }

    #[test]
    fn a_torn_file_has_some_of_its_pages() {
        let disk = Simulated::default();
        put(&disk, "/a", &[7; PAGE * 2]);
        disk.sync_dir(Path::new("/")).unwrap();
        let mut chances = [true, false, true, true].into_iter();
        let torn = disk.after_power_loss(|| chances.next().unwrap());
        assert_eq!(get(&torn, "/a").unwrap(), [vec![0; PAGE], vec![7; PAGE]].concat());
    }

    #[test]
    fn a_sync_that_failed_is_not_made_good_by_another() {
        let disk = Simulated::default();
        let fail = |disk: &Simulated| disk.make(Some(Trouble::Failure(0, io::ErrorKind::Other)));
        let file = put(&disk, "/a", b"one");
        fail(&disk);
        assert!(disk.sync_dir(Path::new("/")).is_err());
        disk.sync_dir(Path::new("/")).unwrap();
        assert_eq!(get(&disk.after_power_loss(|| true), "/a"), None);
        disk.rename(Path::new("/a"), Path::new("/b")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        fail(&disk);
        assert!(file.sync().is_err());
        file.sync().unwrap();
        assert_eq!(get(&disk.after_power_loss(|| true), "/b").unwrap(), b"");
        assert_eq!(get(&disk, "/b").unwrap(), b"one");
    }

    #[test]
    fn trouble_comes_at_its_call() {
        let disk = Simulated::default();
        disk.make(Some(Trouble::Failure(1, io::ErrorKind::StorageFull)));
        let file = disk.create(Path::new("/a")).unwrap();
        let error = file.write_at(&[IoSlice::new(b"1234")], 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(get(&disk, "/a").unwrap(), b"12");
        assert_eq!(disk.calls(), (5, 2));
        disk.make(Some(Trouble::Death(1)));
        disk.remove(Path::new("/a")).unwrap();
        assert!(disk.create_dir(Path::new("/d")).is_err());
        assert!(disk.list(Path::new("/")).is_err(), "it stays dead");
        let lock = disk.after_kill();
        let held = lock.lock(Path::new("/l")).unwrap();
        assert!(held.is_some() && lock.lock(Path::new("/l")).unwrap().is_none());
        drop(held);
        assert!(lock.lock(Path::new("/l")).unwrap().is_some());
    }
}
