//! What `POST /v1/warm` takes and answers.

use serde::{Deserialize, Serialize};

use super::Request;

/// Images of one request at most.
pub const IMAGES_MAX: usize = 10_000;

/// Which images are to be held. An unknown key is refused: an older server must not do half of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmRequest {
    /// In any spelling.
    pub images: Vec<String>,
    /// `linux/amd64`, or `all` alone; none: the server's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
}

impl Request for WarmRequest {
    fn check(&self) -> Result<(), String> {
        if self.images.len() <= IMAGES_MAX {
            return Ok(());
        }
        Err(format!("warm {IMAGES_MAX} images at once at most"))
    }
}

/// A line of the answer. Each image ends with `held` or `failed`; `progress` may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmLine {
    Progress(WarmProgress),
    Held(WarmHeld),
    Failed(WarmFailed),
    /// The last one, if every image came to its end.
    Totals(WarmTotals),
    /// The last one, if it ended early.
    Error(String),
}

/// How far an image has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmProgress {
    pub image: String,
    pub bytes: u64,
    pub bytes_here: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmHeld {
    pub image: String,
    pub digest: String,
    pub blobs: u64,
    pub bytes: u64,
    /// Of these, what was not held before.
    pub bytes_fetched: u64,
    /// Why the tag may not be the current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmFailed {
    pub image: String,
    pub error: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmTotals {
    pub held: u64,
    pub failed: u64,
    pub bytes: u64,
    pub bytes_fetched: u64,
}
