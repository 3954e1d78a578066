//! Sends the events of one queue to its endpoint.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, redirect};
use tokio::io::AsyncReadExt;

use super::event::{self, Record, Source};
use super::queue::Queue;
use super::{EndpointOptions, Error};
use crate::metrics::Delivery;
use crate::tasks::Tasks;

const MEDIA_TYPE: HeaderValue =
    HeaderValue::from_static("application/vnd.docker.distribution.events.v2+json");
const USER_AGENT: &str = concat!("forebay/", env!("CARGO_PKG_VERSION"));
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long after the server was told to stop one request's worth of events may still take, so that
/// an endpoint that is down does not hold up the end.
const LAST_WORDS: Duration = Duration::from_secs(4);
/// Between attempts then.
const SHORT_PAUSE: Duration = Duration::from_millis(200);
const SECRET_MAX: u64 = 64 * 1024;

/// Takes events from a queue to an endpoint, in their order.
pub struct Courier {
    queue: Arc<Queue>,
    source: Source,
    client: Client,
    tasks: Tasks,
    /// Attempts in a row that failed, whatever the events.
    failures: u32,
    /// Shutdown has begun.
    stopping: bool,
}

impl Courier {
    pub fn new(queue: Arc<Queue>, source: Source, tasks: Tasks) -> Result<Self, Error> {
        let EndpointOptions { name, timeout, .. } = &queue.options;
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .timeout(*timeout)
            .user_agent(USER_AGENT)
            .build()
            .map_err(|error| Error { endpoint: name.clone(), why: reason(&error) })?;
        Ok(Self { queue, source, client, tasks, failures: 0, stopping: false })
    }

    /// Until the queue is closed and empty. At shutdown it closes the queue itself.
    pub async fn run(mut self) {
        let queue = self.queue.clone();
        let stop = self.tasks.stopping();
        tokio::pin!(stop);
        loop {
            let batch = tokio::select! {
                biased;
                batch = queue.next() => batch,
                () = &mut stop, if !self.stopping => {
                    self.stop();
                    continue;
                }
            };
            let Some(batch) = batch else { return };
            let given_up = {
                let stop = self.tasks.stopping();
                async move {
                    stop.await;
                    tokio::time::sleep(LAST_WORDS).await;
                }
            };
            let delivery = tokio::select! {
                delivery = self.deliver(&batch) => delivery,
                () = given_up => {
                    self.stop();
                    Delivery::Dropped
                }
            };
            queue.ended(delivery, batch.len());
            if self.stopping && delivery != Delivery::Sent {
                let lost = batch.len() + queue.clear();
                let endpoint = &queue.options.name;
                return tracing::warn!(endpoint, lost, "events could not be sent before the end");
            }
        }
    }

    async fn deliver(&mut self, batch: &[Arc<Record>]) -> Delivery {
        let queue = self.queue.clone();
        let endpoint = &queue.options.name;
        let body = event::envelope(batch.iter().map(AsRef::as_ref), &self.source);
        for attempt in 1..=queue.options.attempts {
            let why = match self.post(body.clone()).await {
                Ok(()) => {
                    if std::mem::take(&mut self.failures) > 0 {
                        tracing::info!(endpoint, "events are taken again");
                    }
                    return Delivery::Sent;
                }
                Err(why) => why,
            };
            queue.metrics.failures.inc();
            if self.failures == 0 {
                tracing::warn!(endpoint, error = why, "events are not taken; trying on");
            }
            self.failures = self.failures.saturating_add(1);
            if attempt == queue.options.attempts {
                tracing::error!(
                    endpoint,
                    events = batch.len(),
                    attempts = attempt,
                    error = why,
                    "events given up"
                );
                break;
            }
            self.rest().await;
        }
        Delivery::Failed
    }

    /// Before the next attempt. Shutdown cuts it short.
    async fn rest(&mut self) {
        if self.stopping {
            return tokio::time::sleep(SHORT_PAUSE).await;
        }
        let pause = pause(self.queue.options.backoff, self.failures, rand::random_range(0.5..1.0));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.tasks.stopping() => self.stop(),
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.queue.close();
    }

    /// One attempt. An error is its reason, without the URL, which may hold a secret.
    async fn post(&self, body: Vec<u8>) -> Result<(), String> {
        let options = &self.queue.options;
        let mut headers = HeaderMap::with_capacity(options.headers.len() + options.header_files.len() + 1);
        for (name, value) in &options.headers {
            headers.append(name.clone(), value.clone());
        }
        for (name, file) in &options.header_files {
            headers.append(name.clone(), secret(file).await?);
        }
        headers.insert(CONTENT_TYPE, MEDIA_TYPE);
        let sent = self.client.post(options.url.clone()).headers(headers).body(body).send().await;
        let status = sent.map_err(|error| reason(&error.without_url()))?.status();
        match status {
            status if status.is_success() => Ok(()),
            status if status.is_redirection() => {
                Err(format!("{status}: redirects are not followed; correct `url`"))
            }
            status => Err(format!("it answered {status}")),
        }
    }
}

/// Doubles with each failure in a row, and is a random part of that, so that the endpoints of many
/// servers do not fall in step.
fn pause(first: Duration, failures: u32, part: f64) -> Duration {
    let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    first.saturating_mul(doubled).min(LONGEST_PAUSE.max(first)).mul_f64(part)
}

async fn secret(path: &Path) -> Result<HeaderValue, String> {
    let unreadable = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    file.take(SECRET_MAX).read_to_end(&mut bytes).await.map_err(unreadable)?;
    let mut value = HeaderValue::from_bytes(bytes.trim_ascii())
        .map_err(|_| format!("{} holds no header value: one line of text", path.display()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The innermost reason says most.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute() {
        let second = Duration::from_secs(1);
        let pauses = [0, 1, 2, 3, 6, 7, 40, u32::MAX].map(|failures| pause(second, failures, 1.0).as_secs());
        assert_eq!(pauses, [1, 1, 2, 4, 32, 60, 60, 60]);
        assert_eq!(pause(second, 3, 0.5), 2 * second);
        let long = Duration::from_secs(300);
        assert_eq!(pause(long, 9, 1.0), long, "what is configured is not cut");
    }
}
