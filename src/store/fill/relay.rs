//! When the disk does not take a blob: it is passed on, no faster than the slowest reader takes it.

use std::sync::atomic::Ordering;

use super::FillError;
use super::driver::Driver;
use super::start::Keeper;
use crate::tasks::lock;

/// Bytes in memory between the source and the slowest reader.
const RELAY_WINDOW: u64 = 4 * 1024 * 1024;
/// The same once all such blobs together have so many: there may be one for each connection.
const CROWDED: u64 = 8 * 1024 * 1024;
const CROWDED_WINDOW: u64 = 64 * 1024;

impl<K: Keeper> Driver<K> {
    /// From now on the blob is passed on and not kept. What is in the file stays readable, and the file
    /// for as long as that.
    pub fn relay(&mut self, why: &str) {
        if !self.fill.state.borrow().kept {
            return;
        }
        tracing::warn!(digest = %self.fill.digest, why, "blob is passed on without being kept");
        self.fill.metrics.fill_relays.inc();
        self.sink.give_up_file();
        self.fill.state.send_modify(|state| state.kept = false);
        self.keeper.delist(&self.fill);
    }

    /// Where nothing is kept, the source waits for the slowest reader, and that not for ever.
    pub async fn wait_for_room(&mut self) -> Result<(), FillError> {
        loop {
            let slowest = self.fill.slowest();
            let passing = &self.fill.passing;
            let full = self.fill.state.send_if_modified(|state| {
                if state.kept {
                    return false;
                }
                state.trim(slowest);
                let is_crowded = passing.set(state.window_bytes()) >= CROWDED;
                // A chunk stays whole until its last byte was read, and that may be one held back.
                let behind = state.head - slowest.unwrap_or(state.head).min(state.head);
                behind.min(state.window_bytes()) >= if is_crowded { CROWDED_WINDOW } else { RELAY_WINDOW }
            });
            if !full {
                return Ok(());
            }
            self.check_readers(0)?;
            if tokio::time::timeout(self.options.reader_timeout, self.fill.moved.notified()).await.is_err() {
                self.cut_slowest();
            }
        }
    }

    fn cut_slowest(&self) {
        let Some(slowest) = self.fill.slowest() else { return };
        for slot in lock(&self.fill.readers).iter() {
            if slot.position.load(Ordering::Acquire) == slowest {
                slot.position.store(u64::MAX, Ordering::Release);
                slot.cut.store(true, Ordering::Release);
            }
        }
        self.fill.state.send_modify(|_| {});
    }

    /// Goes on for nobody within the budget only; not at all where nothing is kept or at shutdown.
    pub fn check_readers(&mut self, bytes: u64) -> Result<(), FillError> {
        if self.fill.has_readers() {
            self.unread = 0;
            return Ok(());
        }
        self.unread = self.unread.saturating_add(bytes);
        let of_use = self.fill.state.borrow().kept && !self.stopping;
        if of_use && self.unread <= self.options.unread_budget { Ok(()) } else { Err(FillError::Abandoned) }
    }
}
