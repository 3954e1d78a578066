//! The fill's own task: source to sink, whoever reads.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};

use super::segments::cut_short;
use super::sink::{Done, Sink};
use super::start::{FillOptions, Keeper};
use super::state::Phase;
use super::{Fill, FillError, Place, SourceError};
use crate::metrics::FillEnd;

/// Small chunks that are ready at once are taken together, so that readers wake less often.
const GATHER: usize = 256 * 1024;
/// The same of what only memory has.
const GATHER_PASSING: usize = 64 * 1024;
/// Less than this between two break-offs is no progress.
pub const PROGRESS: u64 = 64 * 1024;
pub const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

pub struct Driver<K: Keeper> {
    pub fill: Arc<Fill>,
    pub sink: Sink,
    pub keeper: K,
    pub options: FillOptions,
    /// The head's place at the source, from its first answer to its last: one that has begun does not
    /// queue anew for each part.
    place: Option<Place>,
    /// Bytes taken since the last reader left.
    pub unread: u64,
    pub stopping: bool,
    /// There is room for all of it.
    is_admitted: bool,
}

/// Why one answer of the source was left.
enum Left {
    /// It ended, or all that the blob has is here.
    End,
    /// A side extent begins, or no more was claimed.
    Bound,
}

/// Whatever ends the task, readers never see a clean end without a digest.
impl<K: Keeper> Drop for Driver<K> {
    fn drop(&mut self) {
        if self.fill.state.borrow().phase.is_over() {
            self.keeper.delist(&self.fill);
        } else {
            self.fail(FillError::Ended);
        }
        self.fill.metrics.fills_in_flight.dec();
    }
}

impl<K: Keeper> Driver<K> {
    pub fn new(fill: Arc<Fill>, sink: Sink, keeper: K, options: FillOptions) -> Self {
        Self { fill, sink, keeper, options, place: None, unread: 0, stopping: false, is_admitted: false }
    }

    pub async fn run(mut self) {
        self.fill.metrics.fills_in_flight.inc();
        let result = match self.until_wanted().await {
            Ok(()) => self.fetch().await,
            Err(error) => Err(error),
        };
        self.place = None;
        let end = match &result {
            Ok(()) if self.fill.state.borrow().kept => FillEnd::Committed,
            Ok(()) => FillEnd::Relayed,
            Err(FillError::Corrupt(_)) => {
                self.fill.source.was_wrong();
                FillEnd::Corrupt
            }
            Err(FillError::Abandoned) => FillEnd::Abandoned,
            Err(_) => FillEnd::Failed,
        };
        self.fill.metrics.fills.cell(end).inc();
        match result {
            Ok(()) => {
                // Readers have all they need from here on: what follows keeps nobody waiting.
                self.fill.state.send_modify(|state| {
                    state.total = Some(state.head);
                    state.phase = Phase::Verified;
                    if state.kept {
                        state.trim(None);
                    }
                });
                self.put_away(end == FillEnd::Committed).await;
            }
            Err(error) => {
                // What never began is told to who asked, and logged there.
                if self.fill.size() > 0 && !matches!(error, FillError::Abandoned) {
                    tracing::warn!(digest = %self.fill.digest, %error, "blob not fetched");
                }
                self.fail(error);
                self.put_away(false).await;
            }
        }
    }

    /// Off the list before anybody is told: who tries again is to begin anew, not to join this end.
    fn fail(&self, error: FillError) {
        self.keeper.delist(&self.fill);
        self.fill.state.send_modify(|state| state.phase = Phase::Failed(error));
    }

    /// Keeps the file or removes it. Both block, so the driver goes along and ends there; a disk that
    /// stands still is not waited for.
    async fn put_away(mut self, keep: bool) {
        let health = self.fill.health.clone();
        let put_away = move || {
            let fill = self.fill.clone();
            if keep {
                self.keeper.commit(&fill);
            } else {
                self.keeper.discard();
            }
        };
        if let Err(error) = health.write(put_away).await {
            tracing::error!(%error, "the disk did not end its work on a fetched blob");
        }
    }

    /// Takes the whole blob through the hash, over as many answers of the source as it needs.
    async fn fetch(&mut self) -> Result<(), FillError> {
        let mut failures = 0;
        loop {
            let bound = self.absorb_extents().await?;
            let head = self.fill.state.borrow().head;
            if self.fill.state.borrow().total.is_some_and(|total| head >= total) {
                break;
            }
            let left = self.take(head, bound).await;
            self.flush().await?;
            let ended = {
                let state = self.fill.state.borrow();
                state.total.is_none_or(|total| state.head >= total)
            };
            match left {
                Ok(Left::Bound) => {}
                Ok(Left::End) if ended => break,
                Ok(Left::End) => self.pause(&mut failures, head, None).await?,
                Err(FillError::Source(error)) if error.retry => {
                    self.pause(&mut failures, head, Some(error)).await?
                }
                Err(error) => return Err(error),
            }
        }
        match self.sink.digest() {
            Some(digest) if digest == self.fill.digest => Ok(()),
            Some(digest) => Err(FillError::Corrupt(digest)),
            None => Err(FillError::Ended),
        }
    }

    /// Waits before the source is asked again, or gives up.
    async fn pause(
        &mut self,
        failures: &mut u32,
        before: u64,
        error: Option<SourceError>,
    ) -> Result<(), FillError> {
        if self.fill.state.borrow().head >= before + PROGRESS {
            *failures = 0;
        }
        *failures += 1;
        // Clients wait for the first answer, and the source has tried again by itself.
        let unopened = matches!(self.fill.state.borrow().phase, Phase::Opening);
        if unopened || *failures > self.options.resumes {
            return Err(FillError::Source(error.unwrap_or_else(cut_short)));
        }
        self.check_readers(0)?;
        self.fill.metrics.fill_resumes.inc();
        let why = error.map_or_else(|| "the body ended early".to_owned(), |error| error.error.to_string());
        tracing::info!(digest = %self.fill.digest, why, "blob broke off, taken up again");
        let longest = FIRST_BACKOFF.saturating_mul(1 << (*failures - 1).min(10)).min(LONGEST_BACKOFF);
        tokio::time::sleep(longest.mul_f64(rand::random_range(0.5..1.0))).await;
        Ok(())
    }

    /// Takes one answer of the source, which is asked for the bytes from `at` on that are claimed.
    async fn take(&mut self, at: u64, bound: Option<u64>) -> Result<Left, FillError> {
        let place = match &self.place {
            Some(place) => place.clone(),
            None => self.fill.source.place().await.map_err(FillError::Source)?,
        };
        self.place = Some(place.clone());
        let opened = self.fill.source.open(place, at, bound).await;
        let body = opened.map_err(FillError::Source)?;
        self.opened(body.total, body.bounded, bound).await?;
        let mut skip = at.checked_sub(body.start).ok_or_else(|| FillError::Source(cut_short()))?;
        let mut stream = body.stream.fuse();
        let stopping = self.fill.tasks.stopping();
        tokio::pin!(stopping);
        loop {
            self.wait_for_room().await?;
            self.plan_ahead(true);
            tokio::select! {
                biased;
                done = self.sink.done(), if self.sink.is_busy() => self.done(done).await?,
                piece = stream.next(), if self.sink.has_room() => {
                    let Some(piece) = piece else { return Ok(Left::End) };
                    let mut pieces = vec![piece.map_err(FillError::Source)?];
                    let most = if self.fill.state.borrow().kept { GATHER } else { GATHER_PASSING };
                    let broken = gather(&mut pieces, &mut stream, most);
                    if let ControlFlow::Break(left) = self.receive(pieces, &mut skip)? {
                        return Ok(left);
                    }
                    broken.map_err(FillError::Source)?;
                }
                () = &mut stopping, if !self.stopping => {
                    self.stopping = true;
                    self.check_readers(0)?;
                }
                // Readers that leave are noticed by the next bytes, except when those may never come.
                () = self.fill.moved.notified(), if self.stopping => self.check_readers(0)?,
            }
        }
    }

    /// The source has answered: the size is known, and with it whether the disk is to have it.
    async fn opened(
        &mut self,
        total: Option<u64>,
        bounded: bool,
        bound: Option<u64>,
    ) -> Result<(), FillError> {
        let (known, head, first, kept) = {
            let state = self.fill.state.borrow();
            (state.total, state.head, matches!(state.phase, Phase::Opening), state.kept)
        };
        let total = total.or(known);
        match (known, total) {
            (Some(known), Some(total)) if known != total => return Err(FillError::Resized(known, total)),
            // Readers that have more than that would be told that it is all.
            (None, Some(total)) if total < head => return Err(FillError::Resized(head, total)),
            _ => {}
        }
        if kept
            && !self.is_admitted
            && let Some(total) = total
        {
            self.is_admitted = self.keeper.admits(total).await;
            if !self.is_admitted {
                self.relay("there is no room for it");
            }
        }
        self.fill.state.send_modify(|state| {
            state.total = total;
            if bound.is_some() && !bounded {
                // It ignores Range, and sends all that is left.
                (state.ranges, state.claimed) = (false, u64::MAX);
            }
            // Of an empty blob nothing can be held back: its head waits for the digest.
            if first && total != Some(0) {
                state.phase = Phase::Streaming;
            }
        });
        Ok(())
    }

    /// Hands chunks to readers and sink.
    fn receive(&mut self, pieces: Vec<Bytes>, skip: &mut u64) -> Result<ControlFlow<Left>, FillError> {
        let (head, total, stop) = {
            let state = self.fill.state.borrow();
            let stop = state.stop(state.head).unwrap_or(u64::MAX);
            (state.head, state.total.unwrap_or(u64::MAX), stop.min(state.claimed))
        };
        let mut at = head;
        let mut fresh = Vec::with_capacity(pieces.len());
        for mut piece in pieces {
            let skipped = (*skip).min(piece.len() as u64);
            *skip -= skipped;
            // All lengths here are of chunks in memory.
            let mut piece = piece.split_off(skipped as usize);
            piece.truncate(usize::try_from(total.min(stop) - at).unwrap_or(usize::MAX));
            at += piece.len() as u64;
            if !piece.is_empty() {
                fresh.push(piece);
            }
        }
        fresh.iter().for_each(|piece| self.sink.push(piece.clone()));
        let slowest = self.fill.slowest();
        self.fill.state.send_modify(|state| {
            fresh.into_iter().for_each(|piece| state.push(piece));
            state.trim(slowest);
        });
        self.check_readers(at - head)?;
        Ok(match at {
            _ if at >= total => ControlFlow::Break(Left::End),
            _ if at >= stop => ControlFlow::Break(Left::Bound),
            _ => ControlFlow::Continue(()),
        })
    }

    /// A batch is hashed, and written unless the disk failed.
    async fn done(&mut self, done: Option<Done>) -> Result<(), FillError> {
        let Done { end, bytes, disk_error } = done.ok_or(FillError::Ended)?;
        let (kept, unmeasured) = {
            let state = self.fill.state.borrow();
            (state.kept, state.total.is_none())
        };
        match disk_error {
            Some(error) => self.relay(&format!("the disk failed: {error}")),
            None if kept && unmeasured && !self.keeper.admits(end).await => {
                self.relay("there is no room for as much as it has become");
            }
            None if kept => {
                self.keeper.wrote(bytes);
                self.fill.metrics.store_written_bytes.inc_by(bytes);
                self.fill.state.send_modify(|state| {
                    state.written.insert(end - bytes..end);
                    state.trim(None);
                });
            }
            None => {}
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), FillError> {
        while self.sink.hurry() {
            let done = self.sink.done().await;
            self.done(done).await?;
        }
        Ok(())
    }
}

/// Adds what the stream has ready, up to about so many bytes in all.
fn gather(
    pieces: &mut Vec<Bytes>,
    stream: &mut (impl Stream<Item = Result<Bytes, SourceError>> + Unpin),
    most: usize,
) -> Result<(), SourceError> {
    let mut bytes: usize = pieces.iter().map(Bytes::len).sum();
    while bytes < most
        && let Some(Some(piece)) = stream.next().now_or_never()
    {
        let piece = piece?;
        bytes += piece.len();
        pieces.push(piece);
    }
    Ok(())
}
