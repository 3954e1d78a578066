//! A blob of an upstream, as the source of a fill: here `store` and `upstream` meet.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};

use super::prefetch::{Flows, Guess, NobodyCame, flowing, yielding};
use crate::oci::{Digest, Name};
use crate::store::{FillError, Place, Source, SourceError, SourceStream};
use crate::tasks::lock;
use crate::upstream::{Cause, Error, Giver, Identity, Upstream};

pub struct BlobSource {
    pub upstream: Arc<Upstream>,
    pub identity: Identity,
    /// How many servers the request passed.
    pub depth: usize,
    pub name: Name,
    pub digest: Digest,
    /// Whether it was this one that upstream was asked by, not that of an earlier fill.
    pub asked: AtomicBool,
    pub flows: Arc<Flows>,
    /// Those that gave parts of it.
    pub mirrors: Mutex<Vec<Giver>>,
    /// None: a client waits for it.
    pub guess: Option<Arc<Guess>>,
}

impl BlobSource {
    async fn begin(&self, place: Place, start: u64, end: Option<u64>) -> Result<SourceStream, SourceError> {
        let get = self.upstream.blob_get(self.identity, &self.name, &self.digest, place, start, end);
        let body = match &self.guess {
            None => get.await,
            Some(guess) => {
                let got = self.flows.unless_crowded(guess, &self.upstream, get).await;
                got.map_err(NobodyCame::into_failure)?
            }
        };
        let body = body.map_err(failure)?;
        let mut mirrors = lock(&self.mirrors);
        if body.giver.is_mirror() && !mirrors.contains(&body.giver) {
            mirrors.push(body.giver);
        }
        drop(mirrors);
        let stream = body.stream.map(|piece| piece.map_err(failure)).boxed();
        let stream = match &self.guess {
            Some(guess) => {
                yielding(self.flows.clone(), guess.clone(), self.upstream.clone(), self.digest, stream)
            }
            None => flowing(&self.flows, &self.digest, stream),
        };
        Ok(SourceStream { start: body.start, total: body.total, bounded: body.bounded, stream })
    }
}

impl Source for BlobSource {
    fn spare_place(&self) -> Option<Place> {
        // A guess takes one connection, and no more.
        let wanted = self.guess.as_ref().is_none_or(|guess| guess.is_wanted());
        wanted.then(|| self.upstream.spare_fill()).flatten().map(Arc::new)
    }

    fn place(&self) -> BoxFuture<'_, Result<Place, SourceError>> {
        self.asked.store(true, Ordering::Relaxed);
        async move {
            if let Some(guess) = &self.guess {
                if let Some(place) = self.upstream.spare_fill() {
                    return Ok(Arc::new(place));
                }
                // A queue is for who is waited for.
                self.flows.give_up(guess).map_err(NobodyCame::into_failure)?;
            }
            let place = self.upstream.fill_place(&self.name, &self.digest).await;
            place.map(Arc::new).map_err(failure)
        }
        .boxed()
    }

    fn open(
        &self,
        place: Place,
        start: u64,
        end: Option<u64>,
    ) -> BoxFuture<'_, Result<SourceStream, SourceError>> {
        self.begin(place, start, end).boxed()
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn was_wrong(&self) {
        lock(&self.mirrors).drain(..).for_each(|giver| giver.was_wrong(&self.digest));
    }
}

fn failure(error: Error) -> SourceError {
    let retry = matches!(error.cause, Cause::Trouble(_) | Cause::Busy);
    let refused = matches!(error.cause, Cause::NotFound | Cause::Denied(_));
    SourceError { retry, refused, error: Arc::new(error) }
}

/// Whether it was a guess, and ended as one.
pub fn was_a_guess(error: &FillError) -> bool {
    matches!(error, FillError::Source(source) if source.error.is::<NobodyCame>())
}

/// The upstream's failure that ended a fill, where it was one.
pub fn upstream_error(error: &FillError) -> Option<Error> {
    match error {
        FillError::Source(source) => source.error.downcast_ref::<Error>().cloned(),
        _ => None,
    }
}
