//! When to send a request again.

use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::client::Failure;
use crate::metrics::UpstreamMetrics;

const RETRIES: u32 = 2;
const BACKOFF: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The tries of one request that may be repeated.
pub struct Tries<'a> {
    metrics: &'a UpstreamMetrics,
    made: u32,
    most: u32,
    started: Instant,
    /// Longest time after which another try may begin.
    longest: Duration,
}

impl<'a> Tries<'a> {
    /// Tries that begin within twice the time that one may take.
    pub fn new(metrics: &'a UpstreamMetrics, one: Duration) -> Self {
        Self { metrics, made: 0, most: RETRIES, started: Instant::now(), longest: one.saturating_mul(2) }
    }

    /// No more than so many after the first.
    pub fn at_most(self, retries: u32) -> Self {
        Self { most: self.most.min(retries), ..self }
    }

    /// How long to wait for a server that is not asked just now, and may be after `wait`. Who asks first is
    /// to turn to something else; a try that is another one already waits as it would for that one.
    pub fn worth_waiting(&self, wait: Duration) -> Option<Duration> {
        (self.made > 0 && wait <= BACKOFF_MAX).then_some(wait)
    }

    /// Whether another try is due after this outcome; if so, after a wait.
    pub async fn again(&mut self, outcome: Result<StatusCode, &Failure>) -> bool {
        let passing = match outcome {
            Ok(status) => matches!(status.as_u16(), 500 | 502 | 503 | 504),
            Err(failure) => matches!(failure, Failure::Passing(_)),
        };
        if !passing || self.made >= self.most || self.started.elapsed() >= self.longest {
            return false;
        }
        let longest = (BACKOFF * 2u32.pow(self.made)).min(BACKOFF_MAX);
        self.made += 1;
        self.metrics.retries.inc();
        tokio::time::sleep(rand::random_range(Duration::ZERO..=longest)).await;
        true
    }
}
