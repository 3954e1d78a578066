//! Why a push or a delete is refused.

use std::time::Duration;

use crate::oci::{Digest, InvalidManifest, Repository, Tag, UploadId};
use crate::store;

/// Why a client's body ended before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Interrupted {
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("nothing came for {} s", .0.as_secs())]
    Stalled(Duration),
}

/// `http::error` gives each its status.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PushError {
    #[error(
        "`{id}` is no upload to {repository}: it was never begun there, or has ended; begin one with POST"
    )]
    UploadUnknown { repository: Repository, id: String },
    #[error("another request is writing to upload {0}: send its parts one after another")]
    UploadBusy(UploadId),
    #[error(
        "a part that begins at byte {start} came to an upload that has {received} bytes: go on from there"
    )]
    OutOfOrder { start: u64, received: u64 },
    #[error(
        "{promised} bytes were promised and {got} came: the upload has {received} bytes now, go on from there"
    )]
    Length { promised: u64, got: u64, received: u64 },
    #[error("{why}: the upload has {received} bytes now, go on from there")]
    Interrupted { why: Interrupted, received: u64 },
    #[error("the manifest did not come whole: {0}")]
    ManifestInterrupted(Interrupted),
    #[error("what was uploaded is {actual}, not {wanted}, and was thrown away: send it again")]
    BlobDigest { wanted: Box<Digest>, actual: Box<Digest> },
    #[error("the manifest's digest is {actual}, not {wanted}: put it under its own digest or a tag")]
    ManifestDigest { wanted: Box<Digest>, actual: Box<Digest> },
    #[error(
        "there are {0} unfinished uploads, and no more are taken (`hosted.max_uploads`): finish or cancel some, \
         or try again later"
    )]
    TooManyUploads(usize),
    #[error("the manifest is larger than {0} bytes (`hosted.max_manifest`): put large data into a blob")]
    ManifestTooLarge(usize),
    #[error("what was sent is no manifest that can be kept: {0}")]
    Manifest(#[from] InvalidManifest),
    #[error("the manifest names what {repository} does not have: {}; push that first", list(.missing))]
    Missing { repository: Repository, missing: Vec<Digest> },
    #[error(
        "tag `{tag}` of {repository} may not be changed: it matches `{pattern}` of `hosted.immutable_tags`; a \
         new image goes under another tag"
    )]
    Immutable { repository: Repository, tag: Tag, pattern: String },
    #[error("nothing may be deleted here: `hosted.delete` is off in the configuration")]
    DeleteOff,
    #[error("{0} is not held here")]
    NoManifest(String),
    #[error("{0} is not held here")]
    NoBlob(String),
    #[error("{repository} cannot be written to: {why}")]
    Origin { repository: Repository, why: String },
    #[error("nothing can be pushed now: {0}; what was pushed before is safe. Then push again")]
    DiskTrouble(String),
    #[error("the disk does not keep it: {0}")]
    Disk(String),
}

impl From<store::Error> for PushError {
    fn from(error: store::Error) -> Self {
        // Paths are the operator's business.
        if let Some(trouble) = error.trouble() {
            return Self::DiskTrouble(trouble.to_string());
        }
        tracing::error!(%error, "a push or a delete failed");
        match store::state_of(&error.source) {
            Some(state) => Self::DiskTrouble(state.told()),
            None => Self::Disk(error.to_string()),
        }
    }
}

/// The first few, and how many more.
fn list(digests: &[Digest]) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<String> = digests.iter().take(SHOWN).map(ToString::to_string).collect();
    match digests.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut() {
        let digests: Vec<Digest> = (0..12u8).map(|n| Digest::sha256(&[n])).collect();
        assert!(list(&digests).ends_with("and 2 more"));
        assert_eq!(list(&digests[..1]), digests[0].to_string());
    }
}
