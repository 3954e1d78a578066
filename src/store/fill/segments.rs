//! Which parts of a blob the driver fetches by itself, and what side extents bring it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::driver::Driver;
use super::start::Keeper;
use super::state::{AtHead, DISTANCE};
use super::{FillError, SourceError, extent};

/// The head's part of a blob that is fetched in parts.
const SEGMENT: u64 = DISTANCE;
/// Extents that the head goes around rather than over, when the rest of a blob is fetched after all.
const MOST_GAPS: usize = 64;

impl<K: Keeper> Driver<K> {
    /// While only small ranges of a large blob are read, extents are all that is fetched.
    pub async fn until_wanted(&mut self) -> Result<(), FillError> {
        let (Some(most), Some(total)) = ({
            let state = self.fill.state.borrow();
            (state.partial, state.total)
        }) else {
            return Ok(());
        };
        if !self.keeper.admits(most).await {
            self.fill.want_whole();
        }
        self.fill.metrics.fills_partial.inc();
        let wanted = self.while_partial(total).await;
        self.fill.metrics.fills_partial.dec();
        wanted?;
        if !self.keeper.admits(total).await {
            self.relay("there is no room for it");
        }
        self.fill.state.send_modify(|state| state.written.forget_short(MOST_GAPS, extent::SHORTEST));
        Ok(())
    }

    async fn while_partial(&mut self, total: u64) -> Result<(), FillError> {
        let mut state = self.fill.state.subscribe();
        let stopping = self.fill.tasks.stopping();
        tokio::pin!(stopping);
        let (mut quiet, mut idle) = (Instant::now(), self.options.range_idle);
        while state.borrow_and_update().partial.is_some() {
            if let Some(error) = state.borrow().refused.clone() {
                return Err(FillError::Source(error));
            }
            if state.borrow().is_much() && !idle.is_zero() {
                if self.keeper.admits(total).await {
                    self.fill.want_whole();
                    continue;
                }
                // What is too large to keep is of no use to anybody as a whole. Who reads may go on; who
                // comes begins another.
                self.keeper.delist(&self.fill);
                idle = Duration::ZERO;
            }
            let read = self.fill.has_readers();
            if !read && (self.stopping || quiet.elapsed() >= idle) {
                // Who came just now finds it gone from the list, and begins another.
                self.keeper.delist(&self.fill);
                if !self.fill.has_readers() {
                    return Err(FillError::Abandoned);
                }
            }
            tokio::select! {
                changed = state.changed() => changed.map_err(|_| FillError::Ended)?,
                () = self.fill.moved.notified() => quiet = Instant::now(),
                () = tokio::time::sleep_until(quiet + idle), if !read => {}
                () = &mut stopping, if !self.stopping => self.stopping = true,
            }
        }
        Ok(())
    }

    /// Keeps as many extents under way before the head as are configured, and one more where the part
    /// in front is about to end. `taking`: the head has an answer of its own.
    pub fn plan_ahead(&self, taking: bool) {
        let (front, reach) = {
            let state = self.fill.state.borrow();
            if !state.segmented {
                return;
            }
            let under_way = state.planned.len() + usize::from(taking);
            let reach = if under_way < self.options.connections { u64::MAX } else { extent::AHEAD / 2 };
            (state.head, reach)
        };
        extent::ask(&self.fill, front, None, reach);
    }

    /// What side extents have fetched from the head on goes through the hash; one that is under way
    /// there is waited for. Then what follows is the head's: gives its end, none for the blob's.
    pub async fn absorb_extents(&mut self) -> Result<Option<u64>, FillError> {
        let mut state = self.fill.state.subscribe();
        let stopping = self.fill.tasks.stopping();
        tokio::pin!(stopping);
        loop {
            self.plan_ahead(false);
            state.mark_unchanged();
            let (mut head, mut next, mut bound) = (0, AtHead::Free, None);
            // Looked at and claimed in one: nobody asks for the same in between.
            self.fill.state.send_if_modified(|state| {
                (head, next) = (state.head, state.at_head());
                let is_free = next == AtHead::Free;
                if is_free {
                    bound = state.claim(SEGMENT);
                }
                is_free
            });
            match next {
                AtHead::Free => return Ok(bound),
                AtHead::Written(end) => {
                    self.absorb(head, end).await?;
                    continue;
                }
                AtHead::Extent => {}
            }
            tokio::select! {
                changed = state.changed() => changed.map_err(|_| FillError::Ended)?,
                () = &mut stopping, if !self.stopping => {
                    self.stopping = true;
                    self.check_readers(0)?;
                }
                () = self.fill.moved.notified(), if self.stopping => self.check_readers(0)?,
            }
        }
    }

    /// Hashes what an extent wrote, a piece at a time so that the next extents are asked for meanwhile.
    async fn absorb(&mut self, head: u64, end: u64) -> Result<(), FillError> {
        let end = end.min(head + extent::LONGEST);
        if let Err(error) = self.sink.absorb(end).await {
            tracing::warn!(digest = %self.fill.digest, %error, "a range that was fetched ahead cannot be read");
            return Err(FillError::Ended);
        }
        self.keeper.wrote(end - head);
        self.fill.state.send_modify(|state| state.skip_to(end));
        self.check_readers(end - head)
    }
}

/// What a transfer is said to have died of that ended early without a word.
pub fn cut_short() -> SourceError {
    let error = std::io::Error::new(
        std::io::ErrorKind::UnexpectedEof,
        "the upstream broke off the blob again and again",
    );
    SourceError { retry: true, refused: false, error: Arc::new(error) }
}
