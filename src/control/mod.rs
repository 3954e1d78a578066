//! How commands speak to the server that runs: HTTP over a socket in its data directory.
//!
//! The protocol is versioned by its paths. `GET /v1/version` tells both versions; every other command is
//! a `POST` of a JSON object, answered by one JSON object a line: what it has to tell, then how it ended,
//! a [`Refusal`] where it ended early. `gc` takes a [`GcRequest`] and answers [`Line`]s, `warm` a
//! [`WarmRequest`] and [`WarmLine`]s, `verify` a [`VerifyRequest`] and [`VerifyLine`]s; [`transfer`] has what
//! images are taken out and brought in by. Bytes go along in two ways: behind the line that is a request, to
//! its body's end; and behind a line of an answer that says how many. Whoever may open the socket, its owner
//! and root, may do all of it.

mod client;
mod command;
mod gc;
mod held;
mod server;
mod socket;
#[cfg(test)]
mod tests;
mod transfer;
mod verify;
mod warm;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use client::{Client, ClientError, parse};
pub use command::{Brought, Command, Commands, Report, Request};
pub use gc::{GcRequest, Line, Removed, Totals};
pub use held::{
    DuImage, DuLine, DuRepository, DuRequest, DuTotals, DuUpstream, EvictLine, EvictRequest, EvictTotals,
    EvictedImage, NotDone, PinLine, PinRequest, PinTotals, PinnedImage,
};
pub use server::serve;
pub use socket::{Bound, SocketError};
pub use transfer::{
    ExportEntry, ExportLine, ExportPart, ExportReady, ExportRequest, ExportTotals, PutKind, PutLine,
    PutRequest, ReadLine, ReadRequest, WantedLine, WantedRequest,
};
pub use verify::{VerifyFound, VerifyLine, VerifyProgress, VerifyRequest, VerifyTotals};
pub use warm::{IMAGES_MAX, WarmFailed, WarmHeld, WarmLine, WarmProgress, WarmRequest, WarmTotals};

/// The version that is the first component of every path.
pub const PROTOCOL: u32 = 1;

/// Longest line, but for a request that is a whole body: digests and names.
const LINE_MAX: usize = 64 * 1024;

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

/// Why a request is refused, or a command ended early.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub error: String,
}
