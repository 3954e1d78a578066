//! Disk work that nobody waits for: in order for each repository, and only so much of it.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;

use crate::oci::Repository;
use crate::store::{self, Store};
use crate::tasks::{Tasks, lock};

/// Repositories whose work goes on side by side, at most.
const LANES: usize = 16;
/// What waits beyond this is not kept: a disk that slow would only be run over.
const MOST: usize = 4096;

pub struct Writes {
    store: Arc<Store>,
    tasks: Tasks,
    /// The last work of each lane; the next waits for it.
    lanes: [Mutex<Option<JoinHandle<()>>>; LANES],
    waiting: Arc<AtomicUsize>,
}

impl Writes {
    pub fn new(store: Arc<Store>, tasks: Tasks) -> Self {
        Self { store, tasks, lanes: Default::default(), waiting: Arc::default() }
    }

    /// Waits until all that was given so far for this repository has been tried.
    pub async fn settled(&self, repository: &Repository) {
        let (done, settled) = tokio::sync::oneshot::channel();
        self.add(repository, "nothing", move |_| {
            // Whoever waited may have left.
            let _ = done.send(());
            Ok(())
        });
        // Not told where the queue is full: then there is nothing to wait for.
        let _ = settled.await;
    }

    /// Runs `work` after all that was given before it for the same repository.
    pub fn add(
        &self,
        repository: &Repository,
        what: &'static str,
        work: impl FnOnce(&Store) -> Result<(), store::Error> + Send + 'static,
    ) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MOST {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return tracing::warn!(%repository, "{what} is served and not kept: the disk is too slow");
        }
        let lane = BuildHasherDefault::<DefaultHasher>::default().hash_one(repository) as usize % LANES;
        let (store, waiting) = (self.store.clone(), self.waiting.clone());
        let mut last = lock(&self.lanes[lane]);
        let before = last.take();
        *last = Some(self.tasks.spawn("keep", async move {
            if let Some(before) = before {
                // However it ended, its turn is over.
                let _ = before.await;
            }
            match store.write(work).await {
                // The trouble was told when it began.
                Err(error) if error.trouble().is_some() => tracing::debug!(%error, "{what} is not kept"),
                Err(error) => tracing::error!(%error, "{what} is served and could not be kept on disk"),
                Ok(()) => {}
            }
            waiting.fetch_sub(1, Ordering::Relaxed);
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::disk::RealDisk;
    use crate::oci::Owner;
    use std::time::Duration;

    #[tokio::test(flavor = "multi_thread")]
    async fn work_is_in_order_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::default();
        let store = Store::open(
            store::tests::options(dir.path()),
            Arc::new(RealDisk),
            Arc::default(),
            Clock::default(),
            tasks.clone(),
        )
        .unwrap();
        let writes = Writes::new(store, tasks.clone());
        let repository = Repository { owner: Owner::Hosted, name: "a".parse().unwrap() };
        let done = Arc::new(Mutex::new(Vec::new()));
        let (open, gate) = std::sync::mpsc::channel::<()>();
        writes.add(&repository, "the first", move |_| {
            let _ = gate.recv();
            Ok(())
        });
        for number in 1..MOST + 10 {
            let done = done.clone();
            writes.add(&repository, "a number", move |_| {
                lock(&done).push(number);
                Ok(())
            });
        }
        drop(open);
        assert!(tasks.drain(Duration::from_secs(30)).await);
        assert_eq!(*lock(&done), (1..MOST).collect::<Vec<_>>());
        assert_eq!(writes.waiting.load(Ordering::Relaxed), 0);
    }
}
