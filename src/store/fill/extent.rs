//! Side extents: bounded ranges fetched beside the head, for readers far beyond what has come so
//! far, or so that several connections bring one blob.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;

use super::driver::{FIRST_BACKOFF, PROGRESS};
use super::segments::cut_short;
use super::state::{Phase, State};
use super::{Fill, Place, SourceError, SourceStream};
use crate::disk::File;

/// Longest extent; a longer range is served by several.
pub const LONGEST: u64 = 16 * 1024 * 1024;
/// Shortest one where the rest of the blob is fetched too: it costs a request, and the head another.
pub const SHORTEST: u64 = 1024 * 1024;
/// How long before its end an extent is followed by the next one: an answer takes a moment to begin.
pub const AHEAD: u64 = 8 * 1024 * 1024;
/// Extents of one fill under way at once.
const MOST: usize = 8;
/// Runs that are remembered of a blob of which only ranges are fetched.
const MOST_RUNS: usize = 1024;
/// Ranges in a row that came to next to nothing, before their readers are told.
const MOST_CRUMBS: u32 = 5;
/// Bytes written at a time.
const BATCH: usize = 1024 * 1024;

/// Starts an extent at the first byte from `at` on that nobody fetches, if it lies within `reach`,
/// unless enough are under way.
pub fn ask(fill: &Arc<Fill>, at: u64, end: Option<u64>, reach: u64) {
    if plan(&fill.state.borrow(), at, end, reach).is_none() {
        return;
    }
    let place = fill.source.spare_place();
    // Who reads a blob by ranges only is not served by anybody else: a queue is better than nothing.
    // Elsewhere an extent has its place from the beginning, so that the head need not doubt it.
    if place.is_none() && fill.state.borrow().partial.is_none() {
        return;
    }
    let mut planned = None;
    fill.state.send_if_modified(|state| {
        planned = plan(state, at, end, reach);
        if let Some((range, _)) = &planned {
            state.plan(range.clone());
            if state.partial.is_some() {
                state.written.forget_short(MOST_RUNS, u64::MAX);
            }
        }
        state.is_much()
    });
    let Some((range, file)) = planned else { return };
    let run = Run { fill: fill.clone(), range };
    fill.metrics.fill_extents.inc();
    fill.tasks.spawn("fill extent", run.fetch(place, file));
}

fn plan(state: &State, at: u64, end: Option<u64>, reach: u64) -> Option<(Range<u64>, Arc<dyn File>)> {
    if !state.takes_extents() || !state.ranges || state.planned.len() >= MOST {
        return None;
    }
    let total = state.total?;
    let start = state.unfetched(at).filter(|start| start - at <= reach)?;
    let wanted = end.unwrap_or(total).min(total);
    let useful = if state.partial.is_some() { 0 } else { start.saturating_add(SHORTEST).min(total) };
    let longest = start.saturating_add(LONGEST).min(state.next_extent(start).unwrap_or(u64::MAX));
    let end = wanted.max(useful).min(longest);
    (start < wanted && start < end).then(|| state.file.clone().map(|file| (start..end, file))).flatten()
}

/// An extent under way; dropped, it is over.
struct Run {
    fill: Arc<Fill>,
    range: Range<u64>,
}

/// Why an extent came to less than was asked for.
enum Fault {
    Source(SourceError),
    /// The source sends something else: it is not asked for ranges again.
    Unfit(&'static str),
    Disk(io::Error),
    /// The fill is over, or only relays.
    Unwanted,
}

impl Run {
    async fn fetch(self, place: Option<Place>, file: Arc<dyn File>) {
        let result = self.copy(place, file).await;
        self.fill.state.send_modify(|state| self.ended(&result, state));
        let why = match result {
            Ok(()) => return,
            Err(Fault::Source(error)) => {
                // Nobody asks for the range while it is under way.
                tokio::time::sleep(FIRST_BACKOFF).await;
                error.error.to_string()
            }
            Err(Fault::Unfit(why)) => why.to_owned(),
            Err(Fault::Disk(error)) => format!("the disk failed: {error}"),
            Err(Fault::Unwanted) => "it is not wanted any more".to_owned(),
        };
        tracing::debug!(digest = %self.fill.digest, why, "range not fetched ahead");
    }

    fn ended(&self, result: &Result<(), Fault>, state: &mut State) {
        let Range { start, end } = self.range;
        let came = state.written.end_of(start).map_or(0, |written| written.min(end) - start);
        state.asked = state.asked.saturating_sub(end - start - came);
        match result {
            // The driver ends it, and with it its readers.
            Err(Fault::Source(error)) if state.partial.is_some() && error.refused => {
                state.refused = Some(error.clone());
            }
            // Its readers are told: there is no head that comes to them.
            Err(Fault::Source(error)) if state.partial.is_some() => {
                state.crumbs = if came < PROGRESS { state.crumbs + 1 } else { 0 };
                if came == 0 || state.crumbs > MOST_CRUMBS {
                    state.failures += 1;
                    state.failed = Some((self.range.clone(), error.clone()));
                }
            }
            // Readers ask anew when this ends, and would without end; the rest of the blob comes to them
            // all the same.
            Err(Fault::Source(_)) => state.ranges &= came >= PROGRESS,
            Err(Fault::Unfit(_) | Fault::Disk(_)) => {
                state.ranges = false;
                state.partial = None;
            }
            Ok(()) => state.crumbs = 0,
            Err(Fault::Unwanted) => {}
        }
    }

    async fn open(&self, place: Option<Place>) -> Result<SourceStream, SourceError> {
        let place = match place {
            Some(place) => place,
            None => self.fill.source.place().await?,
        };
        self.fill.source.open(place, self.range.start, Some(self.range.end)).await
    }

    async fn copy(&self, place: Option<Place>, file: Arc<dyn File>) -> Result<(), Fault> {
        let Range { start, end } = self.range;
        let mut state = self.fill.state.subscribe();
        let body = tokio::select! {
            opened = self.open(place) => opened.map_err(Fault::Source)?,
            _ = state.wait_for(|state| !state.takes_extents()) => return Err(Fault::Unwanted),
        };
        if body.start != start || !body.bounded {
            return Err(Fault::Unfit("the upstream ignores Range"));
        }
        if body.total.is_some() && body.total != self.fill.state.borrow().total {
            return Err(Fault::Unfit("the upstream changed the blob's size"));
        }
        let mut at = start;
        let mut stream = body.stream.ready_chunks(64);
        while at < end {
            let ready = stream.next().await.ok_or_else(|| Fault::Source(cut_short()))?;
            let (pieces, broken) = until_error(ready);
            for batch in batches(pieces, end - at).into_iter().filter(|batch| !batch.is_empty()) {
                at = self.write(batch, at, file.clone()).await.map_err(Fault::Disk)?;
            }
            if let Some(error) = broken {
                return Err(Fault::Source(error));
            }
            if matches!(self.fill.state.borrow().phase, Phase::Failed(_)) {
                return Err(Fault::Unwanted);
            }
        }
        Ok(())
    }

    /// Writes behind the extent's last byte and shows it to the readers. Gives the new end.
    async fn write(&self, batch: Vec<Bytes>, at: u64, file: Arc<dyn File>) -> io::Result<u64> {
        let bytes: u64 = batch.iter().map(|piece| piece.len() as u64).sum();
        let write = move || {
            let slices: Vec<IoSlice> = batch.iter().map(|piece| IoSlice::new(piece)).collect();
            file.write_at(&slices, at)
        };
        self.fill.health.write(write).await??;
        self.fill.metrics.store_written_bytes.inc_by(bytes);
        self.fill.state.send_modify(|state| state.written.insert(at..at + bytes));
        Ok(at + bytes)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.fill.state.send_modify(|state| state.planned.retain(|planned| *planned != self.range));
    }
}

/// The pieces that came before an error, and the error.
fn until_error(ready: Vec<Result<Bytes, SourceError>>) -> (Vec<Bytes>, Option<SourceError>) {
    let mut pieces = Vec::with_capacity(ready.len());
    for piece in ready {
        match piece {
            Ok(piece) => pieces.push(piece),
            Err(error) => return (pieces, Some(error)),
        }
    }
    (pieces, None)
}

/// Pieces in groups of about a batch, `limit` bytes of them in all.
fn batches(pieces: Vec<Bytes>, mut limit: u64) -> Vec<Vec<Bytes>> {
    let mut batches = vec![Vec::new()];
    let mut size = 0;
    for mut piece in pieces {
        piece.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        limit -= piece.len() as u64;
        if size >= BATCH {
            batches.push(Vec::new());
            size = 0;
        }
        size += piece.len();
        if let Some(last) = batches.last_mut() {
            last.push(piece);
        }
    }
    batches
}
