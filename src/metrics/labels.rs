//! Labels with values known in advance, and counters held by them.

use std::marker::PhantomData;

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

/// A label whose values are known in advance, so that no request can invent a time series.
pub trait Label: Copy + 'static {
    const NAME: &'static str;
    const ALL: &'static [Self];
    fn index(self) -> usize;
    fn text(self) -> &'static str;
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident = $key:literal { $($variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($variant),+ }
        impl Label for $name {
            const NAME: &'static str = $key;
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn index(self) -> usize { self as usize }
            fn text(self) -> &'static str { match self { $(Self::$variant => $text),+ } }
        }
    };
}

label!(
    /// Which of Forebay's faces a request came to.
    Face = "face" { Mirror = "mirror", Registry = "registry", Operations = "operations" }
);
label!(
    /// What a client asked for.
    Kind = "kind" {
        Manifest = "manifest", Blob = "blob", Tags = "tags", Catalog = "catalog", Referrers = "referrers",
        Search = "search", Upload = "upload", Other = "other",
    }
);
label!(
    /// How a request ended.
    Outcome = "outcome" { Hit = "hit", Miss = "miss", Stale = "stale", Refused = "refused", Error = "error" }
);
label!(
    /// How a fill ended.
    FillEnd = "result" {
        Committed = "committed", Relayed = "relayed", Failed = "failed", Corrupt = "corrupt", Abandoned = "abandoned",
    }
);
label!(
    /// What became of a `CONNECT` to the forward proxy.
    Forwarded = "result" { Served = "served", Tunnelled = "tunnelled", Refused = "refused", Failed = "failed" }
);
label!(
    /// How an upload ended.
    UploadEnd = "result" {
        Completed = "completed", Mismatched = "mismatched", Cancelled = "cancelled", Purged = "purged",
    }
);
label!(
    /// How a pass of garbage collection ended.
    PassEnd = "result" { Completed = "completed", Stopped = "stopped", Stale = "stale", Failed = "failed" }
);
label!(
    /// What garbage collection removes.
    Swept = "what" { Tag = "tag", Manifest = "manifest", Link = "link", Blob = "blob" }
);
label!(
    /// What is wrong with data on disk.
    Damage = "damage" {
        Bytes = "bytes", Zeros = "zeros", Empty = "empty", Unreadable = "unreadable", NotAFile = "not_a_file",
    }
);
label!(
    /// What was done about bad or missing data.
    Mended = "repair" { Fetched = "fetched", Unlinked = "unlinked", Unneeded = "unneeded", Failed = "failed", Lost = "lost" }
);
label!(
    /// What was asked of an upstream.
    UpstreamCall = "call" {
        ManifestHead = "manifest_head", ManifestGet = "manifest_get", BlobHead = "blob_head", BlobGet = "blob_get",
        Tags = "tags", Referrers = "referrers", Token = "token", Ping = "ping",
    }
);
label!(
    /// What an upstream answered.
    UpstreamStatus = "status" {
        Ok = "2xx", Redirect = "3xx", Unauthorized = "401", Forbidden = "403", NotFound = "404", TooMany = "429",
        Client = "4xx", Server = "5xx", Failed = "none",
    }
);
label!(
    /// A limit on clients.
    Limit = "limit" { Requests = "requests", ColdMisses = "cold_misses", Connections = "connections" }
);
label!(
    /// What a limit did to a request.
    Limited = "action" { Waited = "waited", Refused = "refused" }
);
label!(
    /// What a client showed of itself.
    LoginMethod = "method" {
        Password = "password", Token = "token", IdToken = "id_token", Certificate = "certificate",
        Upstream = "upstream",
    }
);
label!(
    /// What became of a login.
    Login = "login" { Granted = "granted", Remembered = "remembered", Refused = "refused", Busy = "busy" }
);

label!(
    /// What became of an event for an endpoint.
    Delivery = "delivery" { Sent = "sent", Failed = "failed", Dropped = "dropped" }
);

label!(
    /// What became of an image that was warmed.
    Warmth = "result" { Held = "held", Stale = "stale", Failed = "failed" }
);
label!(
    /// What upstream said of a tag that was still fresh.
    Refreshed = "result" { Same = "same", Moved = "moved", Failed = "failed" }
);

label!(
    /// How a client got a manifest without a pull.
    Saving = "by" { Held = "held", Joined = "joined", Head = "head" }
);
label!(
    /// What is not asked for, so that quota is left for others.
    Held = "reason" {
        Background = "background", Revalidation = "revalidation", Miss = "reserve", Share = "fair_share",
    }
);

label!(
    /// Whether the disk takes writes, or why not.
    DiskState = "state" {
        Ok = "ok", Full = "full", Inodes = "inodes", ReadOnly = "read_only", Denied = "denied", Failing = "failing",
        Stalled = "stalled",
    }
);

/// Counters for every combination of two labels, looked up by index.
pub struct Grid<A, B> {
    cells: Vec<IntCounter>,
    labels: PhantomData<(A, B)>,
}

impl<A: Label, B: Label> Grid<A, B> {
    pub(super) fn new(vec: &IntCounterVec, prefix: &[&str]) -> Self {
        let cells = A::ALL.iter().flat_map(|a| {
            B::ALL.iter().map(|b| vec.with_label_values(&[prefix, &[a.text(), b.text()]].concat()))
        });
        Self { cells: cells.collect(), labels: PhantomData }
    }

    pub fn cell(&self, a: A, b: B) -> &IntCounter {
        &self.cells[a.index() * B::ALL.len() + b.index()]
    }
}

/// Counters, one for each value of a label.
pub struct Row<A> {
    cells: Vec<IntCounter>,
    label: PhantomData<A>,
}

impl<A: Label> Row<A> {
    pub(super) fn new(vec: &IntCounterVec, prefix: &[&str]) -> Self {
        let cells = A::ALL.iter().map(|a| vec.with_label_values(&[prefix, &[a.text()]].concat()));
        Self { cells: cells.collect(), label: PhantomData }
    }

    pub fn cell(&self, a: A) -> &IntCounter {
        &self.cells[a.index()]
    }
}

/// Gauges, one for each value of a label, of which one is 1.
pub struct Choice<A> {
    cells: Vec<IntGauge>,
    label: PhantomData<A>,
}

impl<A: Label + PartialEq> Choice<A> {
    pub(super) fn new(vec: &IntGaugeVec, chosen: A) -> Self {
        let cells = A::ALL.iter().map(|a| vec.with_label_values(&[a.text()])).collect();
        let choice = Self { cells, label: PhantomData };
        choice.set(chosen);
        choice
    }

    pub fn set(&self, chosen: A) {
        A::ALL.iter().for_each(|a| self.cells[a.index()].set(i64::from(*a == chosen)));
    }
}
