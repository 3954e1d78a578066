//! The one way to start background work: named, tracked, drained at shutdown.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Locks, whatever a panicking holder left: every critical section here leaves its data whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Handle to the set of running tasks. Clones share it.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Runs `work` to its end, or until the drain at shutdown runs out of patience.
    pub fn spawn<F>(&self, name: &'static str, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        // Within a request's span, so that what is logged names who caused it.
        self.tracker.spawn(work.instrument(tracing::debug_span!("task", name).or_current()))
    }

    /// Completes once shutdown has begun: loops that never end by themselves end then.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.stop.clone().cancelled_owned()
    }

    /// Tells every task to stop and waits for them, `grace` at most. True where all ended in time.
    pub async fn drain(&self, grace: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

type Flight<V> = Shared<BoxFuture<'static, Option<V>>>;

/// Work that many ask for at once and that is done once: whoever comes while it runs shares its
/// answer, and it runs on though the one who came first has gone.
pub struct Flights<K, V> {
    tasks: Tasks,
    name: &'static str,
    running: Arc<Mutex<HashMap<K, Flight<V>>>>,
}

impl<K, V> Flights<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub fn new(tasks: Tasks, name: &'static str) -> Self {
        Self { tasks, name, running: Arc::default() }
    }

    /// Whether somebody's work for `key` is under way.
    pub fn has(&self, key: &K) -> bool {
        lock(&self.running).contains_key(key)
    }

    /// The answer of the work under way for `key`, or of `work`, started now. `None` where the
    /// work panicked or was ended by shutdown.
    pub async fn join<F>(&self, key: K, work: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        self.flight(key, work).await
    }

    /// Has `work` done in the background, unless it is under way already.
    pub fn start<F>(&self, key: K, work: impl FnOnce() -> F)
    where
        F: Future<Output = V> + Send + 'static,
    {
        // Its task runs without anybody who waits.
        drop(self.flight(key, work));
    }

    fn flight<F>(&self, key: K, work: impl FnOnce() -> F) -> Flight<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = lock(&self.running);
        if let Some(flight) = running.get(&key) {
            return flight.clone();
        }
        let landed = Landed { running: self.running.clone(), key: key.clone() };
        let work = work();
        let handle = self.tasks.spawn(self.name, async move {
            let _landed = landed;
            work.await
        });
        let flight = async move { handle.await.ok() }.boxed().shared();
        running.insert(key, flight.clone());
        flight
    }
}

/// Takes a flight off the list when its work ends, in whatever way.
struct Landed<K: Eq + Hash, V> {
    running: Arc<Mutex<HashMap<K, Flight<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landed<K, V> {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn twenty_who_ask_at_once_share_one_answer() {
        let flights = Arc::new(Flights::<&str, usize>::new(Tasks::default(), "test"));
        let runs = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let (flights, runs) = (flights.clone(), runs.clone());
            tokio::spawn(async move {
                let work = || async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    runs.fetch_add(1, Ordering::SeqCst)
                };
                flights.join("key", work).await
            })
        };
        let first = ask();
        tokio::task::yield_now().await;
        let others: Vec<_> = (0..19).map(|_| ask()).collect();
        tokio::time::sleep(Duration::from_millis(5)).await;
        first.abort();
        for other in others {
            assert_eq!(other.await.unwrap(), Some(0));
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert!(!flights.has(&"key"));
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_too_and_is_forgotten() {
        let flights = Flights::<u8, ()>::new(Tasks::default(), "test");
        assert_eq!(flights.join(1, || async { panic!("on purpose") }).await, None);
        assert_eq!(flights.join(1, || async {}).await, Some(()));
    }

    #[tokio::test]
    async fn drain_waits_for_the_end_and_not_longer() {
        let tasks = Tasks::default();
        let stopping = tasks.stopping();
        tasks.spawn("ends", stopping);
        assert!(tasks.drain(Duration::from_secs(5)).await);
        let tasks = Tasks::default();
        tasks.spawn("never ends", std::future::pending::<()>());
        assert!(!tasks.drain(Duration::from_millis(5)).await);
    }
}
