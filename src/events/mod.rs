//! Webhooks: what happened to images is posted to configured endpoints, in the notification envelope
//! of CNCF distribution. No request ever waits for it.
//!
//! Each endpoint has a bounded queue and a task of its own. Where the queue is full the oldest event
//! goes, since what matters to receivers is how things stand.

mod endpoint;
mod event;
mod queue;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use url::Url;
use uuid::Uuid;

use self::endpoint::Courier;
use self::event::Record;
use self::queue::Queue;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::tasks::Tasks;

pub use self::event::{Action, Event, Origin, Source, Target};

/// What is configured of events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    pub endpoints: Vec<EndpointOptions>,
}

/// Where events are posted to, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointOptions {
    /// For logs and metrics.
    pub name: String,
    pub url: Url,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers whose values are secrets: each the content of a file, read whenever it is needed.
    pub header_files: Vec<(HeaderName, PathBuf)>,
    /// For the whole of one request.
    pub timeout: Duration,
    /// Pause after a first failure; it doubles with each further one, up to a minute.
    pub backoff: Duration,
    /// How often one event is tried at most.
    pub attempts: u32,
    /// Events that wait at most.
    pub queue: usize,
    pub actions: Vec<Action>,
    /// Media types of targets that are not told of.
    pub ignore_media_types: Vec<String>,
}

/// Why events cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("event endpoint `{endpoint}`: no HTTP client: {why}")]
pub struct Error {
    endpoint: String,
    why: String,
}

/// Takes events and has them sent. Clones share the queues; when the last one goes, what is queued
/// is still sent. The default has no endpoints.
#[derive(Clone, Default)]
pub struct Events(Arc<Queues>);

#[derive(Default)]
struct Queues {
    queues: Vec<Arc<Queue>>,
    clock: Clock,
}

impl Events {
    /// Starts a task for each endpoint.
    pub fn new(
        options: &Options,
        source: &Source,
        metrics: &Metrics,
        clock: Clock,
        tasks: &Tasks,
    ) -> Result<Self, Error> {
        let mut queues = Vec::with_capacity(options.endpoints.len());
        let mut couriers = Vec::with_capacity(options.endpoints.len());
        for options in &options.endpoints {
            let queue = Arc::new(Queue::new(options.clone(), metrics.endpoint(&options.name)));
            couriers.push(Courier::new(queue.clone(), source.clone(), tasks.clone())?);
            queues.push(queue);
        }
        for courier in couriers {
            tasks.spawn("events", courier.run());
        }
        Ok(Self(Arc::new(Queues { queues, clock })))
    }

    /// Whether any endpoint is told of it: else there is no need to make the event.
    pub fn wants(&self, action: Action) -> bool {
        self.0.queues.iter().any(|queue| queue.options.actions.contains(&action))
    }

    /// Queues the event for each endpoint that wants it. Never waits; what it drops is counted.
    pub fn emit(&self, event: Event) {
        let record = Arc::new(Record { id: Uuid::new_v4(), time: self.0.clock.wall(), event });
        for queue in &self.0.queues {
            queue.offer(&record);
        }
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        for queue in &self.queues {
            queue.close();
        }
    }
}
