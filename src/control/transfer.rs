//! Images taken out of a server and brought into one: what `POST /v1/export`, `read`, `wanted` and `put`
//! take and answer. Files are the business of who asks, wherever that runs.

use serde::{Deserialize, Serialize};

use super::Request;
use super::warm::{IMAGES_MAX, WarmFailed, WarmProgress};

/// Blobs that one `wanted` may ask for.
const BLOBS_MAX: usize = 50_000;

/// `export`: which images are wanted, in any spelling. What is not held of them is fetched first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    pub images: Vec<String>,
    /// `linux/amd64`, or `all` alone; none: all that is held, and the server's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// Nothing is fetched.
    #[serde(default)]
    pub held_only: bool,
    /// Signatures and the like are left out.
    #[serde(default)]
    pub no_referrers: bool,
}

impl Request for ExportRequest {
    fn check(&self) -> Result<(), String> {
        if self.images.len() <= IMAGES_MAX {
            return Ok(());
        }
        Err(format!("export {IMAGES_MAX} images at once at most"))
    }
}

/// Each image ends with `ready`, behind all its parts and entries, or with `failed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportLine {
    Progress(WarmProgress),
    Part(ExportPart),
    Entry(ExportEntry),
    Ready(ExportReady),
    Failed(WarmFailed),
    /// The last one, if every image came to its end.
    Totals(ExportTotals),
    /// The last one, if it ended early.
    Error(String),
}

/// A manifest or blob of an image, to be had by `read`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportPart {
    pub image: String,
    pub digest: String,
    pub size: u64,
}

/// A manifest that stands for itself: the image, or what refers to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportEntry {
    pub image: String,
    /// Its whole name. None: it goes by what it refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub digest: String,
    pub media_type: String,
    pub size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportReady {
    pub image: String,
    /// Of an index: for which machines there are images, and how many of its manifests are left out.
    pub platforms: Vec<String>,
    pub left_out: u64,
    /// Why the tag may not be the current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportTotals {
    pub ready: u64,
    pub failed: u64,
}

/// `read`: the bytes of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadRequest {
    pub image: String,
    pub digest: String,
}

impl Request for ReadRequest {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadLine {
    /// So many bytes follow this line.
    Bytes(u64),
    /// The last one: that was all, so many bytes.
    Complete(u64),
    /// The last one, if it ended early.
    Error(String),
}

/// `wanted`: which blobs are to be brought for an image, under this name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedRequest {
    pub image: String,
    pub blobs: Vec<String>,
}

impl Request for WantedRequest {
    fn check(&self) -> Result<(), String> {
        if self.blobs.len() <= BLOBS_MAX {
            return Ok(());
        }
        Err(format!("an image of more than {BLOBS_MAX} blobs is not taken"))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WantedLine {
    /// A blob that is to be brought.
    Blob(String),
    /// What else may have been meant by the image's name.
    Note(String),
    /// The last one: under which name the image is served.
    Name(String),
    /// The last one, if it ended early.
    Error(String),
}

/// `put`: the bytes behind this line are a blob or a manifest of the image. Blobs go before the manifests
/// that name them, and those before their index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutRequest {
    pub image: String,
    pub digest: String,
    pub size: u64,
    pub kind: PutKind,
}

impl Request for PutRequest {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PutKind {
    Blob,
    /// One that belongs to the image.
    Manifest,
    /// The one that the image's name stands for.
    Image,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PutLine {
    /// The last one: it is held, so many bytes.
    Held(u64),
    /// The last one, if it ended early.
    Error(String),
}
