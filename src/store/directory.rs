//! The data directory as it is found: whose it is, in which format, and whether this user may write in it.
//! Until all of that is known, nothing is written.
//!
//! # Format
//!
//! `forebay/version` says in which format the directory is, and since which format a program can read it:
//!
//! ```text
//! forebay data 1
//! readable since 1
//! ```
//!
//! A program knows the formats up to [`FORMAT`]. It opens a directory that is readable since a format that
//! it knows, be the directory's own newer: so a newer Forebay's directory can go back to an older one,
//! unless the newer one had to break with it. Then both numbers rise; where the older one is merely not to
//! be missed, as by an index that is made anew, only the first does. An older directory's file is raised
//! at its first open, a newer one's left as it is. Lines that follow are for formats to come. A directory
//! without the file is an older Forebay's or another registry's, and is given one.
//!
//! # Foreign content
//!
//! What is neither empty, nor a registry's tree, nor has a `forebay` of ours is refused: it is something
//! else, and somebody mistook the path. What volumes bring along counts as nothing ([`is_common`]). Within
//! a directory that is ours, what does not belong there is left alone.

use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, atomic};

use super::home::Home;
use super::{Error, OpenError, Store, layout};
use crate::disk::Entry;
use crate::oci::Algorithm;

/// The format of what this program writes. One that can be read by what knows an older one only, as long
/// as [`READABLE_SINCE`] stays.
const FORMAT: u32 = 1;
const READABLE_SINCE: u32 = 1;

/// Longest file of the version that is read; newer ones may say more.
const VERSION_MAX: usize = 4096;

/// Repositories and shards of which it is looked whether they can be written to.
const LOOKED_AT: usize = 1000;

/// Each by itself shows that `forebay` is ours.
const MARKS: [&str; 3] = ["version", "lock", "origins"];
/// May be there without those: after a first start that ended early, put there by the operator, or made
/// anew by a server whose directory was emptied under it.
const UNMARKED: [&str; 9] = [
    "fills",
    "proofs",
    "gone",
    "referrers",
    "control.sock",
    "control.new",
    "ca.pem",
    "ca.key",
    "token-key.pem",
];

/// Why a directory is not opened.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error(
        "{} holds something else than a registry's data ({found}), and is left alone: name an empty directory, or a \
         new one in it such as {}, with --data",
        .path.display(), .path.join("forebay-data").display()
    )]
    Foreign { path: PathBuf, found: Names },
    #[error(
        "{} is not what Forebay keeps there ({found}), and is left alone: if it is a data directory itself, name it \
         with --data, else another directory",
        .path.display()
    )]
    ForeignOwn { path: PathBuf, found: Names },
    #[error(
        "the data directory {} was written by a newer Forebay, in format {number}, which takes one that knows format \
         {since}; this one, {}, knows format {FORMAT}: start the newer Forebay, or name another directory with --data",
        .data.display(), env!("CARGO_PKG_VERSION")
    )]
    Newer { data: PathBuf, number: u32, since: u32 },
    #[error(
        "{} is to say in which format the data directory is, and does not ({why}): put the one of a backup there; or, \
         if no newer Forebay ever wrote in this directory, remove it, and it is made anew",
        .path.display()
    )]
    Version { path: PathBuf, why: &'static str },
    #[error(
        "{} is a symbolic link that leads nowhere: mount what it leads to, or remove it", .0.display()
    )]
    Nowhere(PathBuf),
    #[error(
        "{} is no directory but perhaps a symbolic link to one, and what is in it would go at every start: remove it, \
         and it is made anew",
        .0.display()
    )]
    Staging(PathBuf),
    #[error(
        "the data directory {} cannot be locked, so that a second Forebay on it could not be kept out ({error}): have \
         it on a file system that has locks (flock); NFS has them in version 4, or with its lock service",
        .data.display()
    )]
    Unlockable { data: PathBuf, error: Error },
    #[error(
        "`cache.min_free` is {min_free} bytes, and the file system of {} has {total} in all, so nothing could be held: \
         write less",
        .data.display()
    )]
    Floor { data: PathBuf, min_free: u64, total: u64 },
}

/// The first of the names that were found, for people.
#[derive(Debug)]
pub struct Names(Vec<OsString>);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        for (place, name) in self.0.iter().take(SHOWN).enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            // Escaped, for names may hold anything.
            write!(f, "{comma}{name:?}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What is no sign of anybody's use: dot files, such as `.snapshot`, `.Trash-1000` or Kubernetes' `..data`,
/// and what file systems, quotas and network storages put into each volume.
pub(super) fn is_common(name: &OsStr) -> bool {
    const COMMON: [&str; 9] = [
        "lost+found",
        "@eaDir",
        "#recycle",
        "#snapshot",
        "$RECYCLE.BIN",
        "System Volume Information",
        "aquota.user",
        "aquota.group",
        "quota.user",
    ];
    name.as_encoded_bytes().starts_with(b".") || COMMON.iter().any(|common| name == *common)
}

/// Whether a directory of this name can be a part of a repository's name, as it is stored.
pub(super) fn is_component(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn names(entries: Vec<Entry>) -> Vec<OsString> {
    entries.into_iter().map(|entry| entry.name).filter(|name| !is_common(name)).collect()
}

/// Makes sure, writing nothing, that the directory is one to open.
pub(super) fn check(home: &Home) -> Result<(), OpenError> {
    let blobs = layout::content_root(Algorithm::Sha256);
    let content = ["docker/registry/v2", "docker/registry/v2/blobs", &blobs];
    let own = [
        layout::REPOSITORIES_DIR,
        layout::OWN_DIR,
        layout::STAGING_DIR,
        layout::ORIGINS_DIR,
        layout::PROOFS_DIR,
    ];
    for key in ["", "docker", "docker/registry"].into_iter().chain(content).chain(own) {
        if home.leads_nowhere(key)? {
            return Err(Unfit::Nowhere(home.path(key)).into());
        }
    }
    // Names are made in the last one of the content's that is there, and in none above.
    let mut written = own.to_vec();
    for key in content.into_iter().rev() {
        if home.stat(key)?.is_some() {
            written.push(key);
            break;
        }
    }
    for key in written {
        if !home.may_use(key)? {
            return Err(denied(home, key).into());
        }
    }
    check_content(home)?;
    check_version(home)?;
    match home.stat(layout::STAGING_DIR)? {
        Some(stat) if !stat.is_dir => Err(Unfit::Staging(home.path(layout::STAGING_DIR)).into()),
        _ => Ok(()),
    }
}

fn denied(home: &Home, key: &str) -> Error {
    let source = Arc::new(std::io::ErrorKind::PermissionDenied.into());
    Error { operation: "read and write in", path: home.path(key), source }
}

fn check_content(home: &Home) -> Result<(), OpenError> {
    let own = names(home.list(layout::OWN_DIR)?);
    let is_any = |name: &OsString, of: &[&str]| of.iter().any(|one| name == one);
    if own.iter().any(|name| is_any(name, &MARKS)) {
        return Ok(());
    }
    if !own.iter().all(|name| is_any(name, &UNMARKED)) {
        return Err(Unfit::ForeignOwn { path: home.path(layout::OWN_DIR), found: Names(own) }.into());
    }
    // No Forebay's, so it is to be empty, or another registry's. `docker` alone is not: many things are
    // called so.
    let mut key = String::new();
    for part in ["docker", "registry", "v2"] {
        let mut found = names(home.list(&key)?);
        found.retain(|name| !key.is_empty() || name != layout::OWN_DIR);
        if found.is_empty() {
            break;
        }
        if !found.iter().any(|name| name == part) {
            return Err(Unfit::Foreign { path: home.path(&key), found: Names(found) }.into());
        }
        key = if key.is_empty() { part.to_owned() } else { format!("{key}/{part}") };
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Format {
    number: u32,
    since: u32,
}

const OURS: Format = Format { number: FORMAT, since: READABLE_SINCE };

impl Format {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut number = |word: &str| lines.next()?.strip_prefix(word)?.trim_ascii().parse().ok();
        let format = Self { number: number("forebay data ")?, since: number("readable since ")? };
        (1 <= format.since && format.since <= format.number).then_some(format)
    }

    fn text(self) -> String {
        format!("forebay data {}\nreadable since {}\n", self.number, self.since)
    }
}

/// The directory's format, which is one that this program knows. `None`: nothing says.
fn check_version(home: &Home) -> Result<Option<Format>, OpenError> {
    let damaged = |why| Unfit::Version { path: home.path(layout::VERSION), why };
    let Some(stat) = home.stat(layout::VERSION)? else { return Ok(None) };
    if !stat.is_file {
        return Err(damaged("it is no regular file").into());
    }
    if stat.len > VERSION_MAX as u64 {
        return Err(damaged("it is too long").into());
    }
    let Some(text) = home.read(layout::VERSION, VERSION_MAX)? else { return Ok(None) };
    let format = std::str::from_utf8(&text).ok().and_then(Format::parse);
    let format = format
        .ok_or_else(|| damaged(if text.is_empty() { "it is empty" } else { "it says something else" }))?;
    if format.since > FORMAT {
        return Err(Unfit::Newer { data: home.path(""), number: format.number, since: format.since }.into());
    }
    Ok(Some(format))
}

/// Makes the directory ready, by the process that has its lock: empties the staging, writes the version.
pub(super) fn settle(home: &Home) -> Result<(), OpenError> {
    let left = home.clear(layout::STAGING_DIR)?;
    if !left.is_empty() {
        let staging = home.path(layout::STAGING_DIR);
        let found = Names(left).to_string();
        tracing::warn!(staging = %staging.display(), found, "directories with content are none of ours, and are left alone");
    }
    home.make_dir(layout::STAGING_DIR)?;
    let found = check_version(home)?;
    let since = found.map_or(1, |found| found.since);
    match found.map_or(0, |found| found.number).cmp(&FORMAT) {
        Ordering::Less => match home.put(layout::VERSION, OURS.text().as_bytes()) {
            // Where the disk is full, what is held is served; whoever opens it next tries again.
            Err(error) if since == READABLE_SINCE => {
                tracing::warn!(%error, "the format of the data directory is not recorded");
            }
            put => put?,
        },
        Ordering::Greater => tracing::info!(
            format = found.map(|found| found.number),
            known = FORMAT,
            "a newer Forebay has written here, in a way that this one can go on with"
        ),
        Ordering::Equal => {}
    }
    Ok(())
}

/// Names, in the log, the remedy where something below the first levels cannot be written to: it is served as
/// far as it can be read.
pub(super) fn tell_denied(home: &Home, remedy: impl FnOnce() -> String) -> Result<(), Error> {
    let mut denied = Vec::new();
    for dir in [&layout::content_root(Algorithm::Sha256), layout::REPOSITORIES_DIR] {
        for entry in home.list(dir)?.iter().filter(|entry| entry.is_dir).take(LOOKED_AT) {
            if let Some(name) = entry.name.to_str().filter(|name| is_component(name))
                && let key = format!("{dir}/{name}")
                && !home.may_use(&key)?
            {
                denied.push(key);
            }
        }
    }
    if let Some(first) = denied.first() {
        tracing::warn!(
            directories = denied.len(),
            first = %home.path(first).display(),
            "this user may not read and write in all directories: make them its own with `{}`",
            remedy()
        );
    }
    Ok(())
}

impl Store {
    /// Tells once of what is found among repositories and can be none.
    pub(super) fn tell_odd(&self, dir: &str, odd: &[OsString]) {
        if !odd.is_empty() && !self.told_odd.swap(true, atomic::Ordering::Relaxed) {
            let found = Names(odd.to_vec()).to_string();
            tracing::warn!(
                directory = %self.home.path(dir).display(),
                found,
                "directories whose names no repository can have are ignored; those elsewhere are not told of"
            );
        }
    }
}

#[cfg(test)]
mod tests;
