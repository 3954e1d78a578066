//! How commands speak to the server that runs: HTTP over a socket in its data directory.
//!
//! The protocol is versioned by its paths. `GET /v1/version` tells both versions; `POST /v1/gc`
//! collects garbage and answers one JSON [`Line`] for each thing that goes, and a last one for how it
//! ended. `POST /v1/warm` takes a [`WarmRequest`], fetches those images and answers [`WarmLine`]s. Whoever
//! may open the socket, its owner and root, may do all of it.

mod client;
mod server;
mod socket;
#[cfg(test)]
mod tests;
mod warm;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use client::{Client, ClientError, parse};
pub use server::{Collect, Commands, Warm, serve};
pub use socket::{Bound, SocketError};
pub use warm::{IMAGES_MAX, WarmFailed, WarmHeld, WarmLine, WarmProgress, WarmRequest, WarmTotals};

/// The version that is the first component of every path.
pub const PROTOCOL: u32 = 1;

/// Where the server of a data directory listens.
pub fn socket_path(data: &Path) -> PathBuf {
    data.join("forebay").join("control.sock")
}

/// The answer to `GET /v1/version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub protocol: u32,
    pub forebay: String,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub error: String,
}

/// A line of the answer to `POST /v1/gc`.
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
    /// `tag`, `manifest`, `link`, `blob` or `upload`.
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
    pub uploads: u64,
    pub bytes: u64,
}
