//! What the store does by itself: it looks through what is held, once, and keeps to its size.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::index::Progress;
use super::{CollectError, Store};

/// From one look at the cap, and one writing of what was asked for, to the next.
const EVERY: Duration = Duration::from_secs(30);
/// Before a tree that could not be looked through is tried again.
const AGAIN: Duration = Duration::from_secs(60);

impl Store {
    /// Whether it is known what is held. Until then nothing is evicted or collected.
    pub fn is_surveyed(&self) -> bool {
        self.index.progress() == Progress::Whole
    }

    /// Waits until it is.
    pub async fn surveyed(&self) {
        self.index.whole().await;
    }

    /// Begins, until shutdown.
    pub fn tend(self: &Arc<Self>) {
        let (store, stopping) = (self.clone(), self.tasks.stopping());
        self.tasks.spawn("tend", async move {
            let stopped = Arc::new(AtomicBool::new(false));
            let work = async {
                store.survey_until_done(&stopped).await;
                store.repeat().await;
            };
            tokio::select! { _ = async { tokio::join!(work, store.noted()) } => {}, () = stopping => {} }
            stopped.store(true, Ordering::Relaxed);
            store.in_background(|store| store.write_wanted()).await;
        });
    }

    async fn survey_until_done(self: &Arc<Self>, stopped: &Arc<AtomicBool>) {
        let begun = Instant::now();
        loop {
            let stopped = stopped.clone();
            let surveyed = self.run(move |store| Ok(store.survey(&|| stopped.load(Ordering::Relaxed)))).await;
            match surveyed.map_err(CollectError::from).and_then(|surveyed| surveyed) {
                Ok(()) => {
                    let (bytes, blobs) = self.index.facts(|facts| facts.totals());
                    let seconds = begun.elapsed().as_secs_f64();
                    return tracing::info!(blobs, bytes, seconds, "what is held is known");
                }
                Err(error) => tracing::error!(
                    %error,
                    "what is held cannot be looked through: nothing is evicted or collected until it can"
                ),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn repeat(self: &Arc<Self>) {
        loop {
            self.in_background(|store| {
                store.buffers.rest();
                // What takes no changes can only fail to be made smaller.
                if store.health.takes_removals()
                    && let Err(error) = store.trim()
                {
                    tracing::error!(%error, "the store cannot be kept to its size");
                }
                store.write_wanted();
            })
            .await;
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn in_background(self: &Arc<Self>, work: impl FnOnce(&Store) + Send + 'static) {
        // What failed has told so.
        let _ = self
            .run(move |store| {
                work(store);
                Ok(())
            })
            .await;
    }
}
