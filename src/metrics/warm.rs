//! What is counted of work that is done before anybody asks for it.

use prometheus::{IntCounter, IntGauge};

use super::Builder;
use super::labels::{Label, Refreshed, Row, Warmth};

pub struct WarmMetrics {
    pub images: Row<Warmth>,
    pub fetched_bytes: IntCounter,
    pub pins: IntGauge,
    pub pins_failing: IntGauge,
    pub refreshed: Row<Refreshed>,
}

impl WarmMetrics {
    pub(super) fn new(b: &Builder) -> Self {
        Self {
            images: Row::new(
                &b.counters(
                    "forebay_warm_images_total",
                    "Images warmed on command or on schedule",
                    &[Warmth::NAME],
                ),
                &[],
            ),
            fetched_bytes: b
                .counter("forebay_warm_fetched_bytes_total", "Bytes of blobs fetched to warm images"),
            pins: b.gauge("forebay_warm_pins", "Images that are kept warm"),
            pins_failing: b.gauge(
                "forebay_warm_pins_failing",
                "Images that are kept warm and could not be had or confirmed the last time",
            ),
            refreshed: Row::new(
                &b.counters(
                    "forebay_refreshed_tags_total",
                    "Tags asked for upstream before they went stale",
                    &[Refreshed::NAME],
                ),
                &[],
            ),
        }
    }
}
