//! Data that is open: by whom it is read, it is shared, and its bytes count until the last has closed it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use super::buffers::Buffers;
use super::{Error, Held, Store, layout};
use crate::disk::File;
use crate::oci::Digest;
use crate::tasks::lock;

/// Those that were closed are forgotten when there are so many more than after the last time.
const SPARE: usize = 256;

pub struct OpenFiles {
    /// Pieces that nobody reads keep files open too, and are let go of before that counts.
    buffers: Arc<Buffers>,
    known: Mutex<Known>,
    /// Data that is gone, and still takes its space.
    lingering: Mutex<Vec<(Weak<dyn File>, u64)>>,
}

#[derive(Default)]
struct Known {
    files: HashMap<Digest, Weak<dyn File>>,
    after_last: usize,
}

impl OpenFiles {
    pub fn new(buffers: Arc<Buffers>) -> Self {
        Self { buffers, known: Mutex::default(), lingering: Mutex::default() }
    }

    fn get(&self, digest: &Digest) -> Option<Arc<dyn File>> {
        lock(&self.known).files.get(digest)?.upgrade()
    }

    /// Whether anybody reads this.
    fn is_read(&self, file: &Weak<dyn File>) -> bool {
        if let Some(file) = file.upgrade() {
            self.buffers.let_go(&file);
        }
        file.strong_count() > 0
    }

    /// Somebody has this open.
    pub fn add(&self, digest: &Digest, file: &Arc<dyn File>) {
        let mut known = lock(&self.known);
        if known.files.len() >= known.after_last + SPARE {
            known.files.retain(|_, file| file.strong_count() > 0);
            known.after_last = known.files.len();
        }
        known.files.insert(*digest, Arc::downgrade(file));
    }

    pub fn is_open(&self, digest: &Digest) -> bool {
        let file = lock(&self.known).files.get(digest).cloned();
        file.is_some_and(|file| self.is_read(&file))
    }

    /// What stands under this digest is another file from now on, or none. `size`: of the one that was.
    pub fn forget(&self, digest: &Digest, size: u64) {
        let file = lock(&self.known).files.remove(digest);
        if let Some(file) = file.filter(|file| self.is_read(file)) {
            lock(&self.lingering).push((file, size));
        }
    }

    /// This file has no name, or is about to have none.
    pub fn linger(&self, file: &Arc<dyn File>) {
        // One that cannot be measured is none that takes space.
        let size = file.size().unwrap_or_default();
        lock(&self.lingering).push((Arc::downgrade(file), size));
    }

    /// Bytes that are gone and not free.
    pub fn lingering(&self) -> u64 {
        let known: Vec<_> = lock(&self.lingering).iter().map(|(file, _)| file.clone()).collect();
        // The last to let go of a file closes it, which can take long: not under the lock.
        known.iter().for_each(|file| {
            self.is_read(file);
        });
        let mut lingering = lock(&self.lingering);
        lingering.retain(|(file, _)| file.strong_count() > 0);
        lingering.iter().map(|(_, size)| size).sum()
    }
}

impl Store {
    /// Opens a blob's bytes. Short enough to be called from async code (measured: 4 us warm, 48 cold).
    pub fn blob(&self, digest: &Digest) -> Result<Option<Held>, Error> {
        let key = layout::data(digest);
        let file = match self.open.get(digest) {
            Some(file) => file,
            None => {
                let Some(file) = self.home.open(&key)? else { return Ok(None) };
                self.open.add(digest, &file);
                file
            }
        };
        let len = file.size().map_err(|source| Error {
            operation: "measure",
            path: self.options.data.join(key),
            source: Arc::new(source),
        })?;
        // Nothing could be held back of what has no bytes.
        if len == 0 && *digest != Digest::of(digest.algorithm(), b"") {
            self.metrics.store_errors.inc();
            tracing::error!(%digest, "a blob on disk is empty, and is ignored");
            return Ok(None);
        }
        Ok(Some(Held { file, len, digest: *digest, is_doubtful: self.doubt.is_of(digest) }))
    }
}
