//! What is made of an upstream's quota.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::Builder;
use super::labels::{Held, Label, Row, Saving};

/// What is counted of one upstream's budget.
pub struct BudgetMetrics {
    /// Unix time; 0 until the upstream has told of a window.
    pub window_end: IntGauge,
    /// Unix time; 0 where the window ends before.
    pub exhaustion: IntGauge,
    pub saved: Row<Saving>,
    pub held_back: Row<Held>,
    pub leaked: IntCounter,
}

pub struct BudgetVectors {
    gauges: [IntGaugeVec; 2],
    saved: IntCounterVec,
    held_back: IntCounterVec,
    leaked: IntCounterVec,
}

impl BudgetVectors {
    pub fn new(b: &Builder) -> Self {
        Self {
            gauges: [
                b.gauges(
                    "forebay_upstream_quota_window_end_timestamp_seconds",
                    "When all of the quota is there again, at the latest; 0 unknown",
                ),
                b.gauges(
                    "forebay_upstream_quota_exhaustion_timestamp_seconds",
                    "When nothing of the quota is left at the present rate; 0 not before its window ends",
                ),
            ],
            saved: b.counters(
                "forebay_upstream_saved_pulls_total",
                "Manifests that clients got without a pull",
                &["upstream", Saving::NAME],
            ),
            held_back: b.counters(
                "forebay_upstream_held_back_total",
                "Requests not sent, so that quota is left for others",
                &["upstream", Held::NAME],
            ),
            leaked: b.counters(
                "forebay_upstream_leaked_pulls_total",
                "Pulls of the quota that somebody else spent",
                &["upstream"],
            ),
        }
    }

    pub fn of(&self, host: &str) -> BudgetMetrics {
        let [window_end, exhaustion] = self.gauges.each_ref().map(|gauge| gauge.with_label_values(&[host]));
        BudgetMetrics {
            window_end,
            exhaustion,
            saved: Row::new(&self.saved, &[host]),
            held_back: Row::new(&self.held_back, &[host]),
            leaked: self.leaked.with_label_values(&[host]),
        }
    }
}
