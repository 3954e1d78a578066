//! What is found wrong on disk, and what was done about it.

use std::fmt;

use crate::metrics::Mended;
use crate::oci::{Digest, Tag};
use crate::store::{Damage, LinkFault};

/// Something that was found wrong, and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub found: Found,
    /// The images that cannot be pulled for it, many of them if there are more.
    pub images: Vec<String>,
    pub done: Done,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Data(Damage),
    /// In this repository, named with its registry.
    Link(String, LinkFault),
}

/// What is the matter, which may be found in several places.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    Of(Digest),
    /// The link of a tag, in this repository.
    Tag(String, Tag),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It is held again.
    Fetched,
    /// What led to it is gone, for the upstream has it no more; no image needs it.
    Unlinked,
    /// An image needs it, and the upstream has it no more. It stays linked, and is told each time.
    Gone,
    /// The upstream has it no more, nor is anything left here that leads to it.
    Dropped,
    /// Nothing leads to it.
    Unneeded,
    /// It will be fetched again: that was not asked for now.
    Left,
    /// It was pushed: only another push brings it back.
    Lost,
    /// It was pushed and cannot be read: it is where it was.
    Stays,
    Failed(String),
}

impl Done {
    /// Whether nothing is wrong any more.
    pub fn is_mended(&self) -> bool {
        matches!(self, Self::Fetched | Self::Unlinked | Self::Unneeded)
    }

    /// Whether only a push brings it back.
    pub fn needs_push(&self) -> bool {
        matches!(self, Self::Lost | Self::Stays)
    }

    pub(super) fn label(&self) -> Option<Mended> {
        Some(match self {
            Self::Fetched => Mended::Fetched,
            Self::Unlinked => Mended::Unlinked,
            Self::Unneeded => Mended::Unneeded,
            Self::Left => return None,
            Self::Lost | Self::Stays | Self::Gone | Self::Dropped => Mended::Lost,
            Self::Failed(_) => Mended::Failed,
        })
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fetched => f.write_str("fetched again"),
            Self::Unlinked => f.write_str("unlinked"),
            Self::Gone => f.write_str(
                "lost: the registry has it no more; `forebay evict` takes the image away that needs it",
            ),
            Self::Dropped => f.write_str("lost: the registry has it no more; what led to it was taken away"),
            Self::Unneeded => f.write_str("put aside; nothing needs it"),
            Self::Left => {
                f.write_str("it is fetched again when it is asked for, or by `forebay verify --repair`")
            }
            Self::Lost => f.write_str("push it again"),
            Self::Stays => {
                f.write_str("left in its place: see to the disk, and push it again where that does not help")
            }
            Self::Failed(why) => write!(f, "not fetched again: {why}"),
        }
    }
}

impl Finding {
    /// What is wrong, for messages.
    pub fn problem(&self) -> String {
        match &self.found {
            Found::Data(damage) => damage.wrong.to_string(),
            Found::Link(_, fault) => fault.to_string(),
        }
    }
}

impl Found {
    pub(super) fn faults(&self) -> Vec<Fault> {
        match self {
            Self::Data(damage) => vec![Fault::Of(damage.digest)],
            Self::Link(_, LinkFault::Dangling { data, .. }) => vec![Fault::Of(*data)],
            Self::Link(_, LinkFault::Illegible { name, .. }) => vec![Fault::Of(*name)],
            Self::Link(_, LinkFault::Tag { digest: Some(digest), .. }) => vec![Fault::Of(*digest)],
            Self::Link(of, LinkFault::Tag { tag, digest: None }) => vec![Fault::Tag(of.clone(), tag.clone())],
            Self::Link(_, LinkFault::Incomplete { missing, .. }) => {
                missing.iter().copied().map(Fault::Of).collect()
            }
        }
    }
}

/// The digest or tag that a fault is about.
pub struct Named<'a>(pub &'a LinkFault);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            LinkFault::Dangling { name, .. } | LinkFault::Illegible { name, .. } => name.fmt(f),
            LinkFault::Tag { tag, .. } => tag.fmt(f),
            LinkFault::Incomplete { manifest, .. } => manifest.fmt(f),
        }
    }
}
