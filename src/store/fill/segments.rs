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
/// How long the head waits for an extent that the source has not answered: it may be in a queue.
const PATIENCE: Duration = Duration::from_secs(1);
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
        if !self.keeper.admits(most) {
            self.fill.want_whole();
        }
        self.fill.metrics.fills_partial.inc();
        let wanted = self.while_partial().await;
        self.fill.metrics.fills_partial.dec();
        wanted?;
        if !self.keeper.admits(total) {
            self.relay("it is larger than the disk may take");
        }
        self.fill.state.send_modify(|state| state.written.keep_longest(MOST_GAPS));
        Ok(())
    }

    async fn while_partial(&mut self) -> Result<(), FillError> {
        let mut state = self.fill.state.subscribe();
        let stopping = self.fill.tasks.stopping();
        tokio::pin!(stopping);
        let (mut quiet, idle) = (Instant::now(), self.options.range_idle);
        while state.borrow_and_update().partial.is_some() {
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

    /// Takes from `at` on for the head: to the end of the blob, or up to where it is to be left.
    pub fn claim(&self, at: u64) -> Option<u64> {
        let mut bound = None;
        self.fill.state.send_modify(|state| {
            bound = state.next_extent(at);
            if state.segmented && state.ranges && state.kept {
                let segment = state.free_until(at).unwrap_or(u64::MAX).min(at.saturating_add(SEGMENT));
                bound = Some(segment);
            }
            bound = bound.filter(|bound| state.total.is_none_or(|total| *bound < total));
            state.bound = bound;
        });
        bound
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
    /// there is waited for.
    pub async fn absorb_extents(&mut self) -> Result<(), FillError> {
        let mut state = self.fill.state.subscribe();
        let stopping = self.fill.tasks.stopping();
        tokio::pin!(stopping);
        let mut patience = Instant::now() + PATIENCE;
        loop {
            self.plan_ahead(false);
            let (head, next) = {
                let state = state.borrow_and_update();
                (state.head, state.at_head())
            };
            let begun = match next {
                AtHead::Free => return Ok(()),
                AtHead::Written(end) => {
                    self.absorb(head, end).await?;
                    patience = Instant::now() + PATIENCE;
                    continue;
                }
                AtHead::Extent { begun } => begun,
            };
            tokio::select! {
                changed = state.changed() => changed.map_err(|_| FillError::Ended)?,
                () = tokio::time::sleep_until(patience), if !begun => self.overtake(head),
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
        self.fill.state.send_modify(|state| state.skip_to(end));
        self.check_readers(end - head)
    }

    /// The head does not wait for an extent that gets no place at the source.
    fn overtake(&self, head: u64) {
        self.fill.state.send_modify(|state| {
            state.planned.retain(|planned| planned.begun || !planned.range.contains(&head));
        });
    }
}

/// What a transfer is said to have died of that ended early without a word.
pub fn cut_short() -> SourceError {
    let error = std::io::Error::new(
        std::io::ErrorKind::UnexpectedEof,
        "the upstream broke off the blob again and again",
    );
    SourceError { retry: true, error: Arc::new(error) }
}
