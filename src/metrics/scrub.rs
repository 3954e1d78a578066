//! What is counted of looking for bad data.

use prometheus::{IntCounter, IntGauge};

use super::Builder;
use super::labels::{Damage, Label, Mended, Row};

pub struct ScrubMetrics {
    pub blobs: IntCounter,
    pub bytes: IntCounter,
    pub rounds: IntCounter,
    /// Seconds since 1970; 0: there was none yet.
    pub last_round: IntGauge,
    pub corrupt: Row<Damage>,
    pub mended: Row<Mended>,
}

impl ScrubMetrics {
    pub(super) fn new(b: &Builder) -> Self {
        Self {
            blobs: b.counter(
                "forebay_scrub_blobs_total",
                "Blobs and manifests that were checked and found right",
            ),
            bytes: b.counter("forebay_scrub_bytes_total", "Bytes that were read to check them"),
            rounds: b.counter("forebay_scrub_rounds_total", "Rounds in which all that is held was checked"),
            last_round: b.gauge(
                "forebay_scrub_last_round_timestamp_seconds",
                "When the last such round ended, in seconds since 1970; 0 unknown",
            ),
            corrupt: Row::new(
                &b.counters(
                    "forebay_corrupt_blobs_total",
                    "Blobs and manifests that were found bad on disk",
                    &[Damage::NAME],
                ),
                &[],
            ),
            mended: Row::new(
                &b.counters(
                    "forebay_corrupt_repairs_total",
                    "What was done about data that is bad or missing",
                    &[Mended::NAME],
                ),
                &[],
            ),
        }
    }
}
