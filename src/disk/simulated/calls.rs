//! The calls of the simulated disk.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::{Apply, Change, Handle, Names, Node, Simulated, Verdict};
use crate::disk::{Disk, Entry, File, Space, Stat};

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
                let id = node as u64;
                Stat { len: seen.len() as u64, modified: *modified, is_file: true, is_dir: false, id }
            }
            Node::Dir { .. } => {
                let (modified, id) = (SystemTime::UNIX_EPOCH, node as u64);
                Stat { len: 0, modified, is_file: false, is_dir: true, id }
            }
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
        Ok(Space { total: 1 << 40, available: 1 << 40, files: None })
    }

    fn may_use(&self, _: &Path) -> io::Result<bool> {
        Ok(true)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        let mut state = self.state();
        state.plain_call(true)?;
        if state.find(path).is_err() {
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
    fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
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

    fn read_aside(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(into, offset)
    }
    fn will_need(&self, _offset: u64, _len: u64) {}

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
