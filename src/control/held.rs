//! What `du`, `evict`, `pin`, `unpin` and `pins` take and answer.

use serde::{Deserialize, Serialize};

use super::{IMAGES_MAX, Request};

/// What uses the space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DuRequest {
    /// Each image too.
    #[serde(default)]
    pub images: bool,
}

/// A line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DuLine {
    Upstream(DuUpstream),
    Repository(DuRepository),
    Image(DuImage),
    /// The last one, if all went well.
    Totals(DuTotals),
    Error(String),
}

/// What of an upstream is held, `hosted`, or of repositories that are of `unknown` origin. Content that
/// several have counts with each of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuUpstream {
    pub name: String,
    pub repositories: u64,
    pub images: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuRepository {
    pub name: String,
    pub upstream: String,
    pub images: u64,
    pub bytes: u64,
    /// Of these, what no other repository has.
    pub bytes_alone: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuImage {
    pub repository: String,
    pub digest: String,
    pub tags: Vec<String>,
    pub bytes: u64,
    /// Of these, what its end would free.
    pub bytes_alone: u64,
    /// When somebody last asked for it, in RFC 3339; of your own images, when it was pushed.
    pub wanted: String,
    pub pinned: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuTotals {
    pub blobs: u64,
    pub bytes: u64,
    /// Of these, what nothing leads to: the next collection or eviction takes it.
    pub bytes_unlinked: u64,
    /// Beside that, what is gone and still read.
    pub bytes_open: u64,
    /// What may be held.
    pub cap: u64,
}

/// What is to go from the cache: images by name, or those that are chosen, least recently asked for first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvictRequest {
    #[serde(default)]
    pub images: Vec<String>,
    /// Until so many bytes are free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Of those that nobody asked for in so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unused_seconds: Option<u64>,
    /// Of this upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// Only tells what would go.
    #[serde(default)]
    pub dry_run: bool,
}

impl Request for EvictRequest {
    fn check(&self) -> Result<(), String> {
        let chosen = self.bytes.is_some() || self.unused_seconds.is_some() || self.upstream.is_some();
        match (self.images.is_empty(), chosen) {
            (true, false) => Err("name images, or say which ones are to go".to_owned()),
            (false, true) => Err("name images, or say which ones are to go, not both".to_owned()),
            (false, false) => few(&self.images),
            (true, true) => Ok(()),
        }
    }
}

impl Request for DuRequest {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvictLine {
    Evicted(EvictedImage),
    Failed(NotDone),
    /// The last one, if all went well.
    Totals(EvictTotals),
    Error(String),
}

/// An image, or a blob that none names, that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictedImage {
    pub repository: String,
    pub digest: String,
    pub tags: Vec<String>,
    /// Bytes that it frees, the ones before it gone.
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotDone {
    pub image: String,
    pub error: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictTotals {
    pub images: u64,
    pub failed: u64,
    pub bytes: u64,
    /// Images that were chosen and stay, for they are pinned, by command or configuration.
    #[serde(default)]
    pub pinned: u64,
    /// The same, for they are read or fetched, or could not be taken away.
    #[serde(default)]
    pub in_use: u64,
}

/// Images that are never, or again, to be evicted. None at all: what is pinned is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    #[serde(default)]
    pub images: Vec<String>,
}

impl Request for PinRequest {
    fn check(&self) -> Result<(), String> {
        few(&self.images)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PinLine {
    Pinned(PinnedImage),
    Unpinned(PinnedImage),
    Failed(NotDone),
    /// The last one, if all went well.
    Totals(PinTotals),
    Error(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedImage {
    pub image: String,
    pub held: bool,
    /// It was so before.
    pub as_before: bool,
    /// The configuration keeps it (`[[warm]]`), whatever is said by command.
    #[serde(default)]
    pub by_configuration: bool,
    /// What else may have been meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinTotals {
    pub images: u64,
    pub failed: u64,
}

fn few(images: &[String]) -> Result<(), String> {
    if images.len() <= IMAGES_MAX { Ok(()) } else { Err(format!("name {IMAGES_MAX} images at once at most")) }
}
