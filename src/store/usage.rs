//! How much is held, for the metrics. What is committed counts itself; what was there at the start
//! is counted once, in the background.

use std::time::SystemTime;

use super::{Error, Store, layout};
use crate::oci::{Algorithm, Digest};

impl Store {
    /// Puts content under its digest, with `put`, and counts it where it is new.
    pub(super) fn counted(
        &self,
        digest: &Digest,
        size: u64,
        put: impl FnOnce(&str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let key = layout::data(digest);
        let is_new = self.home.stat(&key)?.is_none();
        put(&key)?;
        if is_new {
            self.count(1, size);
        }
        Ok(())
    }

    /// Removes content, and counts it no more.
    pub(super) fn remove_content(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        self.home.delete_with_dir(&layout::data(digest))?;
        self.metrics.store_entries.sub(1);
        self.metrics.store_bytes.sub(i64::try_from(size).unwrap_or(i64::MAX));
        Ok(())
    }

    fn count(&self, entries: u64, bytes: u64) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.metrics.store_entries.add(gauge(entries));
        self.metrics.store_bytes.add(gauge(bytes));
    }

    /// Counts the content written before `start`. Blocks for long where much is held.
    pub fn count_held(&self, start: SystemTime) -> Result<(), Error> {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let root = layout::content_root(algorithm);
            for shard in self.home.list(&root)? {
                let shard = format!("{root}/{}", shard.name.to_string_lossy());
                for entry in self.home.list(&shard)? {
                    let data = format!("{shard}/{}/data", entry.name.to_string_lossy());
                    if let Some(stat) = self.home.stat(&data)?
                        && stat.is_file
                        && stat.modified < start
                    {
                        self.count(1, stat.len);
                    }
                }
            }
        }
        Ok(())
    }
}
