//! What happens on a connection, and whether it has been still for too long.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Version;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::MissedTickBehavior;

/// How long a request or its answer may stand still, for a client that has stopped.
const STALL_MAX: Duration = Duration::from_secs(300);
/// After so long without a byte, one that may end at any time has ended.
const QUIET: Duration = Duration::from_secs(2);

/// How long a connection may do nothing.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub header: Duration,
    pub idle: Duration,
}

/// What happens on a connection, noted for its watch.
#[derive(Default)]
pub struct Activity {
    in_flight: AtomicUsize,
    /// Requests begun and pieces of bodies taken, either way.
    fed: AtomicU64,
    /// Reads and writes that moved bytes.
    moved: AtomicU64,
    /// Bytes came since a request or a piece of its body: its successor's head has begun.
    head_begun: AtomicBool,
    /// HTTP/2: bytes also move where nothing is asked or answered.
    multiplexed: AtomicBool,
}

impl Activity {
    /// Notes a request, under way until the value is dropped.
    pub fn begin(self: &Arc<Self>, version: Version) -> Busy {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        if version == Version::HTTP_2 {
            self.multiplexed.store(true, Ordering::Relaxed);
        }
        let busy = Busy(self.clone());
        busy.fed();
        busy
    }

    /// A piece of an answer or of a request's body was taken: what came until now was no head.
    pub fn fed(&self) {
        self.fed.fetch_add(1, Ordering::Relaxed);
        self.head_begun.store(false, Ordering::Relaxed);
    }

    /// Bytes came.
    fn came(&self) {
        self.moved();
        self.head_begun.store(true, Ordering::Relaxed);
    }

    fn moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }
}

/// A request under way.
pub struct Busy(Arc<Activity>);

impl Busy {
    /// A piece of the answer was taken.
    pub fn fed(&self) {
        self.0.fed();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.fed();
    }
}

/// What is to become of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// End it after what is under way.
    Close,
    Drop,
}

/// Judges a connection by what has happened between two ticks.
pub struct Watch {
    patience: Patience,
    period: Duration,
    last: u64,
    still: Duration,
    head: Duration,
    closing: bool,
}

impl Watch {
    pub fn new(patience: Patience) -> Self {
        let shorter = patience.header.min(patience.idle);
        let period = (shorter / 4).clamp(Duration::from_millis(10), Duration::from_secs(5));
        let (still, head) = (Duration::ZERO, Duration::ZERO);
        Self { patience, period, last: 0, still, head, closing: false }
    }

    /// How often it wants to look.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// The connection has been asked to end.
    pub fn close(&mut self) {
        (self.closing, self.still) = (true, Duration::ZERO);
    }

    pub fn is_closing(&self) -> bool {
        self.closing
    }

    pub fn tick(&mut self, activity: &Activity) -> Verdict {
        let multiplexed = activity.multiplexed.load(Ordering::Relaxed);
        let moved = if multiplexed { 0 } else { activity.moved.load(Ordering::Relaxed) };
        let now = activity.fed.load(Ordering::Relaxed).wrapping_add(moved);
        self.still = if now == self.last { self.still + self.period } else { Duration::ZERO };
        self.last = now;
        let at_work = activity.in_flight.load(Ordering::Relaxed) > 0;
        let in_head = !at_work && !multiplexed && activity.head_begun.load(Ordering::Relaxed);
        self.head = if in_head { self.head + self.period } else { Duration::ZERO };
        if self.head >= self.patience.header {
            return Verdict::Drop;
        }
        if at_work || self.closing {
            return if self.still >= STALL_MAX { Verdict::Drop } else { Verdict::Fine };
        }
        if self.still < self.patience.idle {
            return Verdict::Fine;
        }
        self.close();
        Verdict::Close
    }
}

/// Returns when a connection that needs no goodbye has done nothing for too long.
pub async fn stood_still(activity: &Activity, patience: Patience) {
    let mut watch = Watch::new(patience);
    let mut ticks = tokio::time::interval(watch.period());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if watch.tick(activity) != Verdict::Fine {
            return;
        }
    }
}

/// Returns when no byte has moved for a moment.
pub async fn quiet(activity: &Activity) {
    let moved = || activity.moved.load(Ordering::Relaxed);
    loop {
        let before = moved();
        tokio::time::sleep(QUIET).await;
        if moved() == before {
            return;
        }
    }
}

/// A stream that notes when bytes move.
pub struct Observed<I> {
    io: I,
    activity: Arc<Activity>,
}

impl<I> Observed<I> {
    pub fn new(io: I, activity: Arc<Activity>) -> Self {
        Self { io, activity }
    }

    fn written(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.activity.moved();
        }
        result
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Observed<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.came();
        }
        result
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Observed<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.written(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { header: Duration::from_secs(8), idle: Duration::from_secs(40) };

    /// Ticks until the watch says something, in ticks of 2 s.
    fn until(watch: &mut Watch, activity: &Activity, each: impl Fn()) -> (usize, Verdict) {
        for tick in 1..10_000 {
            each();
            let verdict = watch.tick(activity);
            if verdict != Verdict::Fine {
                return (tick, verdict);
            }
        }
        (0, Verdict::Fine)
    }

    #[test]
    fn an_idle_connection_is_closed_and_then_dropped() {
        let (mut watch, activity) = (Watch::new(PATIENCE), Activity::default());
        assert_eq!(until(&mut watch, &activity, || {}), (20, Verdict::Close));
        assert_eq!(until(&mut watch, &activity, || {}), (150, Verdict::Drop));
    }

    #[test]
    fn a_head_that_trickles_in_is_not_waited_for() {
        let (mut watch, activity) = (Watch::new(PATIENCE), Activity::default());
        assert_eq!(until(&mut watch, &activity, || activity.came()), (4, Verdict::Drop));
    }

    #[test]
    fn what_came_of_a_body_is_no_head() {
        let (mut watch, activity) = (Watch::new(PATIENCE), Arc::new(Activity::default()));
        let busy = activity.begin(Version::HTTP_11);
        activity.came();
        drop(busy);
        assert_eq!(until(&mut watch, &activity, || {}), (21, Verdict::Close));
        // The rest of a body that nobody wanted, read behind the answer.
        let (mut watch, activity) = (Watch::new(PATIENCE), Arc::new(Activity::default()));
        drop(activity.begin(Version::HTTP_11));
        activity.came();
        activity.fed();
        assert_eq!(until(&mut watch, &activity, || {}), (21, Verdict::Close));
    }

    #[test]
    fn an_answer_may_take_long_while_it_moves_and_not_stand_still() {
        let (mut watch, activity) = (Watch::new(PATIENCE), Arc::new(Activity::default()));
        let busy = activity.begin(Version::HTTP_11);
        assert_eq!(until(&mut watch, &activity, || activity.moved()), (0, Verdict::Fine));
        assert_eq!(until(&mut watch, &activity, || {}), (150, Verdict::Drop));
        drop(busy);
        let (mut watch, busy) = (Watch::new(PATIENCE), activity.begin(Version::HTTP_2));
        let pings_only = || activity.moved();
        assert_eq!(until(&mut watch, &activity, pings_only).1, Verdict::Drop);
        assert_eq!(until(&mut Watch::new(PATIENCE), &activity, || busy.fed()), (0, Verdict::Fine));
    }

    #[test]
    fn pings_do_not_keep_a_connection() {
        let (mut watch, activity) = (Watch::new(PATIENCE), Arc::new(Activity::default()));
        drop(activity.begin(Version::HTTP_2));
        assert_eq!(until(&mut watch, &activity, || activity.came()).1, Verdict::Close);
    }
}
