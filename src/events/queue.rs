//! Events that wait for one endpoint.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::EndpointOptions;
use super::event::Record;
use crate::metrics::{Delivery, EndpointMetrics};
use crate::tasks::lock;

/// Events in one request at most: a queue that has built up is sent in few.
pub const BATCH: usize = 50;

pub struct Queue {
    pub options: EndpointOptions,
    pub metrics: EndpointMetrics,
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Default)]
struct Waiting {
    records: VecDeque<Arc<Record>>,
    /// Nothing more comes.
    closed: bool,
    /// That events are dropped was logged.
    losing: bool,
}

impl Queue {
    pub fn new(options: EndpointOptions, metrics: EndpointMetrics) -> Self {
        Self { options, metrics, waiting: Mutex::default(), changed: Notify::new() }
    }

    /// Queues the event if the endpoint wants it. The oldest gives way where there is no room.
    pub fn offer(&self, record: &Arc<Record>) {
        let target = &record.event.target;
        let ignored =
            target.media_type.as_ref().is_some_and(|is| self.options.ignore_media_types.contains(is));
        if ignored || !self.options.actions.contains(&record.event.action) {
            return;
        }
        let mut waiting = lock(&self.waiting);
        if waiting.closed {
            drop(waiting);
            return self.metrics.events.cell(Delivery::Dropped).inc();
        }
        let mut begins = false;
        if waiting.records.len() >= self.options.queue {
            waiting.records.pop_front();
            begins = !std::mem::replace(&mut waiting.losing, true);
            self.ended(Delivery::Dropped, 1);
        }
        waiting.records.push_back(record.clone());
        self.metrics.queued.inc();
        drop(waiting);
        self.changed.notify_one();
        if begins {
            let (endpoint, queue) = (&self.options.name, self.options.queue);
            tracing::warn!(
                endpoint,
                queue,
                "events come faster than they can be sent: the oldest are dropped"
            );
        }
    }

    /// The next events to send, once there are any. None: there never will be.
    pub async fn next(&self) -> Option<Vec<Arc<Record>>> {
        loop {
            let changed = self.changed.notified();
            {
                let mut waiting = lock(&self.waiting);
                if !waiting.records.is_empty() {
                    let count = waiting.records.len().min(BATCH);
                    let batch = waiting.records.drain(..count).collect();
                    waiting.losing &= !waiting.records.is_empty();
                    return Some(batch);
                }
                if waiting.closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// Takes nothing more; what is queued stays.
    pub fn close(&self) {
        lock(&self.waiting).closed = true;
        self.changed.notify_one();
    }

    /// Drops what is queued; how much that was.
    pub fn clear(&self) -> usize {
        let count = std::mem::take(&mut lock(&self.waiting).records).len();
        self.ended(Delivery::Dropped, count);
        count
    }

    /// So many events have left in this way.
    pub fn ended(&self, delivery: Delivery, count: usize) {
        self.metrics.events.cell(delivery).inc_by(count as u64);
        self.metrics.queued.sub(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
