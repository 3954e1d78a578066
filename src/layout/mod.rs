//! OCI image layouts (OCI image-spec, image-layout.md): a directory of blobs by digest, and an index of the
//! images that they make up. They are whoever's who runs a command, and never part of the data directory.
//!
//! What a layout says is believed of nobody: names of files are made of digests alone, no symbolic link
//! is followed within it, and what is read has the size and the digest that it is named by.

mod directory;
mod read;
mod write;

use std::io;
use std::path::PathBuf;

pub use crate::oci::{Digest, Platforms};
pub use read::{Entry, Feed, Findings, Image, Layout, Part};
pub use write::{BlobWriter, NewEntry, Writer};

/// What an image is called in a layout: `skopeo copy oci:DIRECTORY:NAME`.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same for containerd: `ctr images import`.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

const MARK: &str = "oci-layout";
const INDEX: &str = "index.json";
const BLOBS: &str = "blobs";
/// Largest index of a layout, in bytes.
const INDEX_MAX: u64 = 8 << 20;

/// What is wrong with a layout, and with which of its files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct Error {
    pub path: PathBuf,
    pub why: String,
}

impl Error {
    fn new(path: impl Into<PathBuf>, why: impl ToString) -> Self {
        Self { path: path.into(), why: why.to_string() }
    }

    /// Of what was to be written.
    fn unwritten(path: impl Into<PathBuf>, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::new(path, "there is no room left: make some and run it again, which goes on from here")
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::new(path, format!("it cannot be written ({error}): have it writable, or name another"))
            }
            _ => Self::new(path, error),
        }
    }
}

/// Where a blob stands below the layout's directory.
fn place(digest: &Digest) -> PathBuf {
    [BLOBS, digest.algorithm().as_str(), &digest.hex()].iter().collect()
}

/// Whether a name is one that the specification allows in a layout (annotations.md, "Pre-Defined
/// Annotation Keys"): readers refuse to look for another.
fn is_ref_name(text: &str) -> bool {
    text.split('/').all(|component| {
        let ends = [component.chars().next(), component.chars().last()];
        let is_separator = |run: &str| run == "--" || (run.len() == 1 && "-._:@+".contains(run));
        let mut runs = component.split(|c: char| c.is_ascii_alphanumeric()).filter(|run| !run.is_empty());
        ends.iter().all(|end| end.is_some_and(|c| c.is_ascii_alphanumeric())) && runs.all(is_separator)
    })
}

#[cfg(test)]
mod tests;
