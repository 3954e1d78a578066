//! Data as it is put in its place and taken away, with the index told.

use super::index::Event;
use super::{Error, Store, layout};
use crate::oci::Digest;

impl Store {
    /// Puts content under its digest, with `put`.
    pub(super) fn counted(
        &self,
        digest: &Digest,
        size: u64,
        put: impl FnOnce(&str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let key = layout::data(digest);
        self.index.record(Event::Data { digest: *digest, size });
        let put = put(&key);
        // Another file may stand there now: nobody is to share the one from before.
        self.open.forget(digest, 0);
        put.inspect_err(|_| {
            if matches!(self.home.stat(&key), Ok(None)) {
                self.index.record(Event::DataGone { digest: *digest });
            }
        })?;
        self.doubt.vouch(digest);
        Ok(())
    }

    /// Removes content, and counts it no more.
    pub(super) fn remove_content(&self, digest: &Digest) -> Result<(), Error> {
        self.home.delete_with_dir(&layout::data(digest))?;
        self.data_gone(digest);
        Ok(())
    }

    /// What stood under this digest is gone.
    pub(super) fn data_gone(&self, digest: &Digest) {
        let size = self.index.facts(|facts| facts.size(facts.key(digest)));
        self.open.forget(digest, size);
        self.index.record(Event::DataGone { digest: *digest });
    }
}
