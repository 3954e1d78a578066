//! Everything that is counted: one struct, built once, handles held. Names: README, "Metrics".

mod budget;
mod labels;
mod scrub;
mod warm;

use std::sync::Mutex;

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use self::budget::BudgetVectors;
use crate::tasks::lock;

pub use budget::BudgetMetrics;
pub use labels::{
    Choice, Damage, Delivery, DiskState, Face, FillEnd, Forwarded, Grid, Held, Kind, Label, Limit, Limited,
    Login, LoginMethod, Mended, Outcome, PassEnd, Refreshed, Row, Saving, Swept, UploadEnd, UpstreamCall,
    UpstreamStatus, Warmth,
};
pub use scrub::ScrubMetrics;
pub use warm::WarmMetrics;

/// What is counted of one upstream.
pub struct UpstreamMetrics {
    pub requests: Grid<UpstreamCall, UpstreamStatus>,
    pub seconds: Histogram,
    pub received_bytes: IntCounter,
    pub retries: IntCounter,
    pub waiting: IntGauge,
    /// -1 until the upstream has named a limit.
    pub quota_limit: IntGauge,
    pub quota_remaining: IntGauge,
    pub quota_window_seconds: IntGauge,
    pub quota_source: QuotaSource,
    pub paused: IntGauge,
    /// How many logins of its endpoints are refused, and how many cannot be had.
    pub credential_refused: IntGauge,
    pub credential_unavailable: IntGauge,
    /// Calls that went on to the next endpoint.
    pub failovers: IntCounter,
    /// Requests that a circuit breaker did not let through.
    pub breaker_refusals: IntCounter,
    pub breakers_open: IntGauge,
    pub budget: BudgetMetrics,
}

/// Whose quota it is: one series with the value 1, named by what the upstream told last.
pub struct QuotaSource {
    host: String,
    gauge: IntGaugeVec,
    told: Mutex<String>,
}

impl QuotaSource {
    pub fn set(&self, source: &str) {
        let mut told = lock(&self.told);
        if *told != source {
            // There is none to remove at first.
            let _ = self.gauge.remove_label_values(&[&self.host, &told]);
            self.gauge.with_label_values(&[&self.host, source]).set(1);
            source.clone_into(&mut told);
        }
    }
}

/// What is counted of one event endpoint.
pub struct EndpointMetrics {
    pub events: Row<Delivery>,
    /// Attempts that failed.
    pub failures: IntCounter,
    pub queued: IntGauge,
}

/// What is counted, shared by all layers.
pub struct Metrics {
    registry: Registry,
    requests: Vec<Grid<Kind, Outcome>>,
    pub request_seconds: Vec<Histogram>,
    pub sent_bytes: Row<Kind>,
    pub requests_in_flight: IntGauge,
    pub connections: IntGauge,
    pub tls_failures: IntCounter,
    pub fills_in_flight: IntGauge,
    pub fills_partial: IntGauge,
    pub fill_readers: IntGauge,
    pub fills: Row<FillEnd>,
    pub fill_resumes: IntCounter,
    pub fill_relays: IntCounter,
    pub fill_extents: IntCounter,
    pub unverified_ranges: IntCounter,
    pub uploads_open: IntGauge,
    pub uploads: Row<UploadEnd>,
    pub received_bytes: IntCounter,
    pub limited: Grid<Limit, Limited>,
    pub forwarded: Row<Forwarded>,
    pub logins: Grid<LoginMethod, Login>,
    pub tokens_issued: IntCounter,
    pub store_entries: IntGauge,
    pub store_bytes: IntGauge,
    pub store_written_bytes: IntCounter,
    pub store_errors: IntCounter,
    pub index_whole: IntGauge,
    pub evictions: IntCounter,
    pub evicted_bytes: IntCounter,
    pub disk: Choice<DiskState>,
    pub gc_passes: Row<PassEnd>,
    pub gc_removed: Row<Swept>,
    pub gc_freed_bytes: IntCounter,
    pub gc_seconds: Gauge,
    pub access_lines_dropped: IntCounter,
    pub scrub: ScrubMetrics,
    pub warm: WarmMetrics,
    upstream: UpstreamVectors,
    budget: BudgetVectors,
    endpoint: EndpointVectors,
}

struct EndpointVectors {
    events: IntCounterVec,
    failures: IntCounterVec,
    queued: IntGaugeVec,
}

struct UpstreamVectors {
    requests: IntCounterVec,
    seconds: HistogramVec,
    counters: [IntCounterVec; 4],
    gauges: [IntGaugeVec; 6],
    quota_source: IntGaugeVec,
    credentials: [IntGaugeVec; 2],
}

/// Registers under fixed names; a clash would be a slip in this file, found by its test.
struct Builder(Registry);

impl Builder {
    fn keep<C: prometheus::core::Collector + Clone + 'static>(&self, collector: prometheus::Result<C>) -> C {
        // Names and labels are literals of this file, and its test builds them all.
        let collector = collector.expect("metric names are valid");
        self.0.register(Box::new(collector.clone())).expect("metric names are unique");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.keep(IntCounter::new(name, help))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.keep(IntGauge::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauges(&self, name: &str, help: &str) -> IntGaugeVec {
        self.keep(IntGaugeVec::new(Opts::new(name, help), &["upstream"]))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let buckets = vec![0.0005, 0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0];
        self.keep(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels))
    }
}

impl Metrics {
    pub fn new() -> Self {
        let b = Builder(Registry::new());
        let requests = b.counters(
            "forebay_requests_total",
            "Requests answered",
            &[Face::NAME, Kind::NAME, Outcome::NAME],
        );
        let seconds = b.histograms(
            "forebay_request_seconds",
            "Time until the head of an answer was ready",
            &[Kind::NAME],
        );
        let build = b.keep(IntGaugeVec::new(Opts::new("forebay_build_info", "Always 1"), &["version"]));
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        #[cfg(target_os = "linux")]
        b.keep(Ok(Process(std::sync::Arc::new(prometheus::process_collector::ProcessCollector::for_self()))));
        Self {
            requests: Face::ALL.iter().map(|face| Grid::new(&requests, &[face.text()])).collect(),
            request_seconds: Kind::ALL.iter().map(|kind| seconds.with_label_values(&[kind.text()])).collect(),
            sent_bytes: Row::new(
                &b.counters("forebay_sent_bytes_total", "Body bytes sent to clients", &[Kind::NAME]),
                &[],
            ),
            requests_in_flight: b.gauge("forebay_requests_in_flight", "Requests being answered"),
            connections: b.gauge("forebay_connections", "Open client connections"),
            tls_failures: b.counter("forebay_tls_failures_total", "TLS handshakes that failed"),
            fills_in_flight: b.gauge("forebay_fills_in_flight", "Blobs being fetched"),
            fills_partial: b.gauge("forebay_fills_partial", "Blobs of which only ranges are fetched so far"),
            fill_readers: b.gauge("forebay_fill_readers", "Clients reading blobs that are being fetched"),
            fills: Row::new(
                &b.counters("forebay_fills_total", "Fetches of blobs that ended", &[FillEnd::NAME]),
                &[],
            ),
            fill_resumes: b
                .counter("forebay_fill_resumes_total", "Fetches taken up again where they broke off"),
            fill_relays: b.counter("forebay_fill_relays_total", "Blobs passed on without being kept"),
            fill_extents: b
                .counter("forebay_fill_extents_total", "Ranges fetched ahead of the rest of their blob"),
            unverified_ranges: b.counter(
                "forebay_unverified_ranges_total",
                "Ranges answered in full before their blob's digest was known",
            ),
            uploads_open: b.gauge("forebay_uploads_open", "Uploads begun and not ended"),
            uploads: Row::new(
                &b.counters("forebay_uploads_total", "Uploads that ended", &[UploadEnd::NAME]),
                &[],
            ),
            received_bytes: b.counter("forebay_received_bytes_total", "Body bytes received from clients"),
            forwarded: Row::new(
                &b.counters(
                    "forebay_forward_proxy_connections_total",
                    "Connections that the forward proxy was asked for",
                    &[Forwarded::NAME],
                ),
                &[],
            ),
            limited: Grid::new(
                &b.counters(
                    "forebay_client_limited_total",
                    "Requests held up",
                    &[Limit::NAME, Limited::NAME],
                ),
                &[],
            ),
            logins: Grid::new(
                &b.counters(
                    "forebay_logins_total",
                    "Credentials that were checked",
                    &[LoginMethod::NAME, Login::NAME],
                ),
                &[],
            ),
            tokens_issued: b.counter("forebay_tokens_issued_total", "Tokens given out"),
            store_entries: b.gauge("forebay_store_entries", "Blobs and manifests held"),
            store_bytes: b.gauge("forebay_store_bytes", "Bytes of blobs and manifests held"),
            store_written_bytes: b
                .counter("forebay_store_written_bytes_total", "Content bytes written to disk"),
            store_errors: b.counter("forebay_store_errors_total", "Disk operations that failed"),
            index_whole: b.gauge(
                "forebay_store_index_whole",
                "Whether all that is held is known; until then nothing is evicted or collected",
            ),
            evictions: b.counter("forebay_store_evictions_total", "Mirrored images evicted"),
            evicted_bytes: b.counter("forebay_store_evicted_bytes_total", "Bytes freed by eviction"),
            disk: Choice::new(
                &b.keep(IntGaugeVec::new(
                    Opts::new("forebay_disk_state", "1 for the state that the disk is in"),
                    &[DiskState::NAME],
                )),
                DiskState::Ok,
            ),
            gc_passes: Row::new(
                &b.counters(
                    "forebay_gc_passes_total",
                    "Passes of garbage collection that ended",
                    &[PassEnd::NAME],
                ),
                &[],
            ),
            gc_removed: Row::new(
                &b.counters(
                    "forebay_gc_removed_total",
                    "Things that garbage collection removed",
                    &[Swept::NAME],
                ),
                &[],
            ),
            gc_freed_bytes: b.counter("forebay_gc_freed_bytes_total", "Bytes that garbage collection freed"),
            gc_seconds: b.keep(Gauge::new("forebay_gc_pass_seconds", "How long the last pass took")),
            access_lines_dropped: b.counter(
                "forebay_access_lines_dropped_total",
                "Access log lines dropped because the log's reader was too slow",
            ),
            scrub: ScrubMetrics::new(&b),
            warm: WarmMetrics::new(&b),
            upstream: UpstreamVectors::new(&b),
            budget: BudgetVectors::new(&b),
            endpoint: EndpointVectors::new(&b),
            registry: b.0,
        }
    }

    pub fn request(&self, face: Face, kind: Kind, outcome: Outcome) -> &IntCounter {
        self.requests[face.index()].cell(kind, outcome)
    }

    /// The handles for one event endpoint, by its configured name.
    pub fn endpoint(&self, name: &str) -> EndpointMetrics {
        let v = &self.endpoint;
        EndpointMetrics {
            events: Row::new(&v.events, &[name]),
            failures: v.failures.with_label_values(&[name]),
            queued: v.queued.with_label_values(&[name]),
        }
    }

    /// The handles for one upstream. Called again for the same host, it gives the same counters.
    pub fn upstream(&self, host: &str) -> UpstreamMetrics {
        let v = &self.upstream;
        let [received_bytes, retries, failovers, breaker_refusals] =
            v.counters.each_ref().map(|c| c.with_label_values(&[host]));
        let [waiting, quota_limit, quota_remaining, quota_window_seconds, paused, breakers_open] =
            v.gauges.each_ref().map(|g| g.with_label_values(&[host]));
        let [credential_refused, credential_unavailable] =
            v.credentials.each_ref().map(|g| g.with_label_values(&[host]));
        quota_limit.set(-1);
        quota_remaining.set(-1);
        UpstreamMetrics {
            requests: Grid::new(&v.requests, &[host]),
            seconds: v.seconds.with_label_values(&[host]),
            received_bytes,
            retries,
            waiting,
            quota_limit,
            quota_remaining,
            quota_window_seconds,
            quota_source: QuotaSource {
                host: host.to_owned(),
                gauge: v.quota_source.clone(),
                told: Mutex::default(),
            },
            paused,
            credential_refused,
            credential_unavailable,
            failovers,
            breaker_refusals,
            breakers_open,
            budget: self.budget.of(host),
        }
    }

    /// The Prometheus text format.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(32 * 1024);
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl UpstreamVectors {
    fn new(b: &Builder) -> Self {
        Self {
            requests: b.counters(
                "forebay_upstream_requests_total",
                "Requests sent to upstreams",
                &["upstream", UpstreamCall::NAME, UpstreamStatus::NAME],
            ),
            seconds: b.histograms(
                "forebay_upstream_request_seconds",
                "Time until the head of an upstream's answer",
                &["upstream"],
            ),
            counters: [
                b.counters(
                    "forebay_upstream_received_bytes_total",
                    "Body bytes from upstreams",
                    &["upstream"],
                ),
                b.counters(
                    "forebay_upstream_retries_total",
                    "Requests sent again after a failure",
                    &["upstream"],
                ),
                b.counters(
                    "forebay_upstream_failovers_total",
                    "Calls that went on from a mirror to the next endpoint",
                    &["upstream"],
                ),
                b.counters(
                    "forebay_upstream_breaker_refusals_total",
                    "Requests not sent because their server did not answer lately",
                    &["upstream"],
                ),
            ],
            gauges: [
                b.gauges("forebay_upstream_waiting", "Requests waiting for a place in the upstream's limit"),
                b.gauges(
                    "forebay_upstream_quota_limit",
                    "Pulls per window, as the upstream said; -1 unknown",
                ),
                b.gauges("forebay_upstream_quota_remaining", "Pulls left, as the upstream said; -1 unknown"),
                b.gauges("forebay_upstream_quota_window_seconds", "Length of the quota's window"),
                b.gauges("forebay_upstream_paused", "1 while manifest GETs wait for quota"),
                b.gauges(
                    "forebay_upstream_breakers_open",
                    "Servers of the upstream that are not asked for a while, as they did not answer",
                ),
            ],
            quota_source: b.keep(IntGaugeVec::new(
                Opts::new("forebay_upstream_quota_source", "1, for the address or account whose quota it is"),
                &["upstream", "source"],
            )),
            credentials: [
                b.gauges(
                    "forebay_upstream_credential_refused",
                    "1 while the upstream refuses the configured login and is asked anonymously",
                ),
                b.gauges(
                    "forebay_upstream_credential_unavailable",
                    "1 while the configured login cannot be had from its file or helper",
                ),
            ],
        }
    }
}

impl EndpointVectors {
    fn new(b: &Builder) -> Self {
        let queued = Opts::new("forebay_events_queued", "Events that wait for their endpoint");
        Self {
            events: b.counters(
                "forebay_events_total",
                "Events by what became of them",
                &["endpoint", Delivery::NAME],
            ),
            failures: b.counters(
                "forebay_event_failures_total",
                "Requests to event endpoints that failed",
                &["endpoint"],
            ),
            queued: b.keep(IntGaugeVec::new(queued, &["endpoint"])),
        }
    }
}

/// The process collector is not `Clone` itself.
#[cfg(target_os = "linux")]
#[derive(Clone)]
struct Process(std::sync::Arc<prometheus::process_collector::ProcessCollector>);

#[cfg(target_os = "linux")]
impl prometheus::core::Collector for Process {
    fn desc(&self) -> Vec<&prometheus::core::Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.0.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_and_counts() {
        let metrics = Metrics::new();
        metrics.request(Face::Mirror, Kind::Blob, Outcome::Stale).inc();
        metrics.upstream("docker.io").requests.cell(UpstreamCall::Token, UpstreamStatus::Failed).inc_by(3);
        metrics.upstream("docker.io").paused.set(1);
        let hub = metrics.upstream("docker.io");
        hub.quota_source.set("192.0.2.1");
        hub.quota_source.set("192.0.2.2");
        let text = String::from_utf8(metrics.render()).unwrap();
        for line in [
            r#"forebay_requests_total{face="mirror",kind="blob",outcome="stale"} 1"#,
            r#"forebay_upstream_requests_total{call="token",status="none",upstream="docker.io"} 3"#,
            r#"forebay_upstream_paused{upstream="docker.io"} 1"#,
            r#"forebay_upstream_quota_source{source="192.0.2.2",upstream="docker.io"} 1"#,
            "process_open_fds",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("192.0.2.1"), "one source at a time");
    }
}
