//! What `POST /v1/verify` takes and answers.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use super::Request;

/// Checks all that is held. An unknown key is refused: an older server must not do half of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// Fetches again what was lost, where it is mirrored.
    #[serde(default)]
    pub repair: bool,
    /// Bytes in a second at most; none: as fast as it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<NonZeroU64>,
}

impl Request for VerifyRequest {}

/// A line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyLine {
    /// May be left out.
    Progress(VerifyProgress),
    Found(VerifyFound),
    /// The last one, if all was checked.
    Totals(VerifyTotals),
    /// The last one, if it ended early.
    Error(String),
}

/// How far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyProgress {
    pub blobs: u64,
    pub bytes: u64,
    pub repositories: u64,
}

/// Something that is wrong, or was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyFound {
    /// `data`, `blob` or `manifest` (a link to one), `tag` or `image`.
    pub what: String,
    /// The digest or tag.
    pub subject: String,
    /// The repositories that are concerned, some of them if there are many; mirrored ones with their registry.
    pub repositories: Vec<String>,
    /// The images that cannot be pulled for it, `repository:tag`, or `repository@digest` where no tag leads to
    /// one; a thousand at most.
    #[serde(default)]
    pub images: Vec<String>,
    pub problem: String,
    /// What was done, or is to be done.
    pub done: String,
    /// Whether only a push brings it back.
    #[serde(default)]
    pub push: bool,
    /// Whether nothing is wrong any more.
    pub repaired: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyTotals {
    pub blobs: u64,
    pub bytes: u64,
    pub repositories: u64,
    pub links: u64,
    /// What was found wrong, each once in however many places it shows.
    pub wrong: u64,
    /// Of that, what is no more.
    pub repaired: u64,
}
