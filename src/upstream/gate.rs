//! Bounded waiting in front of an upstream: places for what is in flight, and a pace of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Cause;
use crate::clock::{Clock, Pacer};

/// A number of places, and a bounded queue for them.
pub struct Gate {
    places: Arc<Semaphore>,
    size: usize,
    queued: AtomicUsize,
    queue_length: usize,
    queue_timeout: Duration,
    /// Somebody has joined the queue.
    joined: Notify,
    waiting: IntGauge,
}

/// Somebody in the queue, until dropped.
struct Queued<'a>(&'a Gate);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::Relaxed);
        self.0.waiting.dec();
    }
}

impl Gate {
    pub fn new(places: usize, queue_length: usize, queue_timeout: Duration, waiting: IntGauge) -> Self {
        let size = places.clamp(1, Semaphore::MAX_PERMITS);
        let places = Arc::new(Semaphore::new(size));
        let (queued, joined) = (AtomicUsize::new(0), Notify::new());
        Self { places, size, queued, queue_length, queue_timeout, joined, waiting }
    }

    /// A place, where a quarter of them stays free beside it.
    pub fn spare(&self) -> Option<OwnedSemaphorePermit> {
        // Two who look at the same time may leave one less: taken together for a moment, all these places
        // would be missing to who comes in between.
        let is_free = self.places.available_permits() > self.size.div_ceil(4);
        is_free.then(|| self.places.clone().try_acquire_owned().ok()).flatten()
    }

    /// Waits until somebody waits for a place.
    pub async fn crowded(&self) {
        loop {
            let joined = self.joined.notified();
            if self.queued.load(Ordering::Relaxed) > 0 {
                return;
            }
            joined.await;
        }
    }

    /// A place, held until the permit is dropped. `Busy` where the queue is full or too slow.
    pub async fn enter(&self) -> Result<OwnedSemaphorePermit, Cause> {
        if let Ok(permit) = self.places.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let before = self.queued.fetch_add(1, Ordering::Relaxed);
        self.waiting.inc();
        let _queued = Queued(self);
        if before >= self.queue_length {
            return Err(Cause::Busy);
        }
        self.joined.notify_waiters();
        match tokio::time::timeout(self.queue_timeout, self.places.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            // The semaphore is never closed, so this is the timeout.
            _ => Err(Cause::Busy),
        }
    }
}

/// A ceiling on requests a minute, evenly spread but for a tenth that may come at once.
pub struct Pace {
    limiter: Option<Pacer>,
    longest: Duration,
    clock: Clock,
}

impl Pace {
    pub fn new(per_minute: Option<std::num::NonZeroU32>, longest: Duration, clock: Clock) -> Self {
        Self { limiter: per_minute.map(|per_minute| clock.pace(per_minute)), longest, clock }
    }

    /// Waits for this request's turn. `Busy` where that would take too long.
    pub async fn turn(&self) -> Result<(), Cause> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        let started = Instant::now();
        while let Err(not_yet) = limiter.check() {
            let wait = not_yet.wait_time_from(self.clock.now());
            if started.elapsed() + wait > self.longest {
                return Err(Cause::Busy);
            }
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(places: usize, queue: usize, timeout: Duration) -> Arc<Gate> {
        Arc::new(Gate::new(places, queue, timeout, IntGauge::new("waiting", "test").unwrap()))
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_forgets_who_left() {
        let gate = gate(1, 1, Duration::from_secs(30));
        let held = gate.enter().await.unwrap();
        let first = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter().await }
        });
        while gate.waiting.get() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(gate.enter().await, Err(Cause::Busy)));
        first.abort();
        assert!(first.await.is_err());
        assert_eq!(gate.waiting.get(), 0);
        drop(held);
        assert!(gate.enter().await.is_ok());
    }

    #[tokio::test]
    async fn a_quarter_of_the_places_is_nobodys_spare_one() {
        for (places, spare) in [(1, 0), (2, 1), (3, 2), (8, 6), (32, 24)] {
            let gate = gate(places, 1, Duration::ZERO);
            let mut held = Vec::new();
            while let Some(place) = gate.spare() {
                held.push(place);
            }
            assert_eq!(held.len(), spare, "of {places}");
        }
    }

    #[tokio::test]
    async fn who_holds_a_place_for_speed_alone_learns_of_the_queue() {
        let gate = gate(2, 5, Duration::from_secs(30));
        let spare = gate.spare().unwrap();
        let _held = gate.enter().await.unwrap();
        let gives_way = async {
            gate.crowded().await;
            drop(spare);
        };
        let (got, ()) = tokio::join!(gate.enter(), gives_way);
        assert!(got.is_ok());
    }

    #[tokio::test]
    async fn waiting_ends() {
        let gate = gate(1, 5, Duration::from_millis(5));
        let _held = gate.enter().await.unwrap();
        assert!(matches!(gate.enter().await, Err(Cause::Busy)));
    }

    #[tokio::test]
    async fn the_pace_lets_a_tenth_through_at_once() {
        let clock = Clock::default();
        let pace = Pace::new(std::num::NonZeroU32::new(20), Duration::ZERO, clock.clone());
        assert!(pace.turn().await.is_ok() && pace.turn().await.is_ok());
        assert!(matches!(pace.turn().await, Err(Cause::Busy)));
        clock.advance(Duration::from_secs(3));
        assert!(pace.turn().await.is_ok());
        assert!(matches!(pace.turn().await, Err(Cause::Busy)));
        assert!(Pace::new(None, Duration::ZERO, clock).turn().await.is_ok());
    }
}
