//! Finding what has gone wrong on disk, and putting it out of reach.
//!
//! [`check`] hashes data again, shard by shard; what is bad goes to [`quarantine`]. [`links`] looks for
//! links that lead nowhere, and [`needs`] knows whom that concerns. After a stop without notice [`doubt`]
//! has each blob checked at its first read, by [`first`]. [`round`] remembers how far a round has come.

mod check;
mod doubt;
mod first;
mod links;
mod needs;
mod quarantine;
mod round;
#[cfg(test)]
mod tests;

use std::fmt;

use super::OriginState;
use crate::metrics::Damage as Label;
use crate::oci::Digest;

pub use self::check::{Checked, Shard, Watch};
pub use self::links::{LinkFault, Part};
pub use self::round::Round;

pub(super) use self::doubt::Doubt;
pub(super) use self::first::FirstRead;

/// What is wrong with data. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// These are not the bytes of its digest.
    Bytes {
        len: u64,
    },
    /// Nor are these, and so many at the end are zeros: they were never written.
    Zeros {
        len: u64,
        zeros: u64,
    },
    Empty,
    /// The disk fails to read it.
    Unreadable(String),
    NotAFile,
}

/// Data that was found bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub digest: Digest,
    pub wrong: Wrong,
    /// Some of the repositories that link it, sorted: of mirrored ones, and of others.
    pub linkers: Vec<Linker>,
    /// How many more there are.
    pub others: usize,
    /// It was pushed and cannot be read, which may pass: it is left in its place. Else it is out of reach.
    pub stays: bool,
}

/// A repository that links data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linker {
    /// Its name in the tree.
    pub name: String,
    pub origin: OriginState,
    pub part: Part,
}

impl Wrong {
    pub fn label(&self) -> Label {
        match self {
            Self::Bytes { .. } => Label::Bytes,
            Self::Zeros { .. } => Label::Zeros,
            Self::Empty => Label::Empty,
            Self::Unreadable(_) => Label::Unreadable,
            Self::NotAFile => Label::NotAFile,
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { len } => write!(f, "its {len} bytes are not those of its digest"),
            Self::Zeros { len, zeros } => {
                write!(f, "its {len} bytes are not those of its digest: the last {zeros} are zeros")
            }
            Self::Empty => f.write_str("it is empty"),
            Self::Unreadable(why) => write!(f, "it cannot be read: {why}"),
            Self::NotAFile => f.write_str("what is in its place is no regular file"),
        }
    }
}

impl Damage {
    /// The repositories that link it, for messages.
    pub fn repositories(&self) -> Vec<String> {
        let shown = |linker: &Linker| linker.origin.shown(&linker.name);
        let mut names: Vec<String> = self.linkers.iter().map(shown).collect();
        names.dedup();
        if self.others > 0 {
            names.push(format!("{} more", self.others));
        }
        names
    }
}
