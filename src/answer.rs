//! What the mirror and the registry both answer; `http` gives it its form.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::oci::{ByteRange, Digest, MediaType, RangeRequest, Tag};
use crate::store::BlobReader;

pub use crate::oci::Referrer;

/// How an answer came about: for `Cache-Status`, metrics and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// Held, and within its freshness or immutable.
    Hit,
    /// Held; upstream confirmed just now that it is current.
    Revalidated,
    /// Held; upstream could not confirm it, for this reason.
    Stale(String),
    /// From upstream, for this answer.
    Miss,
    /// From what somebody else's request was fetching already.
    Joined,
    /// A range of what is not fetched whole, and not kept.
    Range,
}

#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    pub digest: Digest,
    pub media_type: MediaType,
    pub size: u64,
    /// None where only the head was wanted and only the head is known.
    pub bytes: Option<Bytes>,
    pub served: Served,
}

pub struct BlobAnswer {
    /// Of the whole blob; None where upstream did not say.
    pub size: Option<u64>,
    /// The part that `body` holds, where a range was asked for and can be honoured.
    pub range: Option<ByteRange>,
    /// None for a head.
    pub body: Option<BlobReader>,
    pub served: Served,
}

/// What of a blob is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobWant {
    Head,
    Whole,
    Range(RangeRequest),
}

#[derive(Clone, Debug)]
pub struct TagsAnswer {
    /// Sorted, without duplicates.
    pub tags: Vec<Tag>,
    pub served: Served,
}

/// What refers to a manifest, unfiltered.
#[derive(Clone, Debug)]
pub struct ReferrersAnswer {
    pub referrers: Arc<Vec<Referrer>>,
    pub served: Served,
}

/// Why there is no answer. `http::error` gives each its status.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is not known")]
    NotFound(String),
    #[error("{subject}: {why}")]
    Denied { subject: String, why: String },
    /// Not everybody may have it: the caller is to show a login of the registry that it is of.
    #[error("{subject} needs a login of {registry}, of somebody who may pull it there")]
    LoginNeeded { subject: String, registry: String },
    /// Nobody can be asked whether the caller may have it, and no proof is recent enough.
    #[error(
        "whether this login may pull {subject} cannot be checked now: {why}; try again later (`proof_stale_for` \
         has the last proof count meanwhile)"
    )]
    Unproven { subject: String, why: String },
    /// The upstream's quota is exhausted.
    #[error(
        "{subject} is not held here and the upstream's rate limit is exhausted: try again in {} s",
        retry_after.as_secs()
    )]
    UpstreamLimited { subject: String, retry_after: Duration },
    /// This client has spent its share of cold misses.
    #[error(
        "{subject} is not held here and this client has asked for too much of that kind: try again in {} s",
        retry_after.as_secs()
    )]
    ClientLimited { subject: String, retry_after: Duration },
    /// What is left of the upstream's quota is kept for others.
    #[error("{subject} is not held here, and {why}: try again in {} s", retry_after.as_secs())]
    HeldBack { subject: String, why: String, retry_after: Duration },
    /// The upstream cannot be had and nothing is held.
    #[error("{subject} is not held here and the upstream cannot be had now: {why}; try again later")]
    Unavailable { subject: String, why: String },
    /// Nothing is held, and no upstream is asked.
    #[error("{0} is not held here, and this mirror is offline, as configured (`offline`)")]
    Offline(String),
    /// The registries that are asked lead in a circle. Says which setting is to be corrected.
    #[error("{0}")]
    Loop(String),
    /// The upstream has it, in a form that is refused.
    #[error("{subject} is refused: {why}")]
    Unfit { subject: String, why: String },
    /// Held, but the disk does not give it.
    #[error("{subject} is held and cannot be read: {why}")]
    Disk { subject: String, why: String },
    /// Disk and configuration disagree about whose this repository is.
    #[error("{subject}: {why}")]
    Origin { subject: String, why: String },
    #[error("the range lies outside the blob, which has {size} bytes")]
    Range { size: u64 },
}

impl Error {
    /// Why upstream did not confirm what is served all the same.
    pub fn why_stale(&self) -> String {
        match self {
            Self::Unavailable { why, .. } => why.clone(),
            Self::HeldBack { why, .. } => why.clone(),
            Self::UpstreamLimited { .. } => "the upstream's rate limit is exhausted".to_owned(),
            Self::Offline(_) => "this mirror is offline, as configured (`offline`)".to_owned(),
            other => other.to_string(),
        }
    }
}
