//! What `POST /v1/gc` takes and answers.

use serde::{Deserialize, Serialize};

use super::Request;

/// Collects garbage. An unknown key is refused: an older server must not take for a real pass what was
/// to be less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcRequest {
    /// Only tells what would go.
    #[serde(default)]
    pub dry_run: bool,
}

impl Request for GcRequest {
    fn outlives_client(&self) -> bool {
        // What would go is for the client alone.
        !self.dry_run
    }
}

/// A line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Removed(Removed),
    /// The last one, if all went well.
    Totals(Totals),
    /// The last one, if it ended early.
    Error(String),
}

/// Something that goes, or would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// `tag`, `manifest`, `link` or `blob`.
    pub what: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    pub subject: String,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub tags: u64,
    pub manifests: u64,
    pub links: u64,
    pub blobs: u64,
    pub bytes: u64,
}
