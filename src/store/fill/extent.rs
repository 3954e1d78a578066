//! Side extents: a bounded range fetched ahead, for a reader far beyond what has come so far.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;

use super::state::{Phase, State};
use super::{Fill, SourceStream};
use crate::disk::File;

/// Nearer than this, waiting for the rest of the blob is as good.
const DISTANCE: u64 = 8 * 1024 * 1024;
/// Longest extent; a longer range is served by several, one after the other.
const LONGEST: u64 = 16 * 1024 * 1024;
/// Extents of one fill under way at once.
const MOST: usize = 4;
/// Bytes written at a time.
const BATCH: usize = 1024 * 1024;

/// Starts an extent for a reader that waits at `at`, unless one covers it, it is near, or enough
/// are under way.
pub fn ask(fill: &Arc<Fill>, at: u64, end: Option<u64>) {
    if plan(&fill.state.borrow(), at, end).is_none() {
        return;
    }
    let mut planned = None;
    fill.state.send_if_modified(|state| {
        planned = plan(state, at, end);
        planned.iter().for_each(|(range, _)| state.planned.push(range.clone()));
        false
    });
    let Some((range, file)) = planned else { return };
    let run = Run { fill: fill.clone(), range };
    fill.metrics.fill_extents.inc();
    fill.tasks.spawn("fill extent", run.fetch(file));
}

fn plan(state: &State, at: u64, end: Option<u64>) -> Option<(Range<u64>, Arc<dyn File>)> {
    let streaming = matches!(state.phase, Phase::Streaming) && state.kept && state.ranges;
    let total = state.total?;
    let far = at >= state.head.saturating_add(DISTANCE);
    let covered = state.written.end_of(at).is_some() || state.planned.iter().any(|range| range.contains(&at));
    if !streaming || !far || covered || state.planned.len() >= MOST {
        return None;
    }
    let end =
        end.unwrap_or(total).min(total).min(at + LONGEST).min(state.next_extent(at).unwrap_or(u64::MAX));
    (at < end).then(|| state.file.clone().map(|file| (at..end, file))).flatten()
}

/// An extent under way; dropped, it is over.
struct Run {
    fill: Arc<Fill>,
    range: Range<u64>,
}

impl Run {
    async fn fetch(self, file: Arc<dyn File>) {
        let result = match self.fill.source.open(self.range.start, Some(self.range.end)).await {
            Ok(body) if body.start == self.range.start => self.copy(body, file).await,
            Ok(_) => Err("the upstream ignores Range".to_owned()),
            Err(error) => Err(error.error.to_string()),
        };
        // The reader asks anew when this ends: a source that gave nothing would be asked without end.
        let start = self.range.start;
        self.fill.state.send_modify(|state| state.ranges &= state.written.end_of(start).is_some());
        if let Err(why) = result {
            // The reader is served all the same, when the rest of the blob comes to it.
            tracing::debug!(digest = %self.fill.digest, why, "range not fetched ahead");
        }
    }

    async fn copy(&self, body: SourceStream, file: Arc<dyn File>) -> Result<(), String> {
        if body.total.is_some() && body.total != self.fill.state.borrow().total {
            return Err("the upstream changed the blob's size".to_owned());
        }
        let mut at = self.range.start;
        let mut stream = body.stream.ready_chunks(64);
        while at < self.range.end
            && let Some(ready) = stream.next().await
        {
            let pieces: Result<Vec<Bytes>, _> = ready.into_iter().collect();
            for batch in batches(pieces.map_err(|error| error.error.to_string())?, self.range.end - at) {
                at = self.write(batch, at, file.clone()).await.map_err(|error| error.to_string())?;
            }
            if matches!(self.fill.state.borrow().phase, Phase::Failed(_)) {
                return Err("the fill has failed".to_owned());
            }
        }
        Ok(())
    }

    /// Writes behind the extent's last byte and shows it to the readers. Gives the new end.
    async fn write(&self, batch: Vec<Bytes>, at: u64, file: Arc<dyn File>) -> std::io::Result<u64> {
        let bytes: u64 = batch.iter().map(|piece| piece.len() as u64).sum();
        let write = move || {
            let slices: Vec<IoSlice> = batch.iter().map(|piece| IoSlice::new(piece)).collect();
            file.write_at(&slices, at)
        };
        tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other)??;
        self.fill.metrics.store_written_bytes.inc_by(bytes);
        self.fill.state.send_modify(|state| state.written.insert(at..at + bytes));
        Ok(at + bytes)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.fill.state.send_modify(|state| state.planned.retain(|range| *range != self.range));
    }
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
