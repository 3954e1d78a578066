//! Symbolic links in the tree.
//!
//! Whoever runs the server may have a part of it on another disk: `docker`, `forebay`, the content of one
//! algorithm, repositories. What is inside of those has no links but those that somebody else made: nothing
//! is made, changed or removed behind one. What is read behind one is served: a link file has to hold a
//! digest, and data the bytes of that digest.

use std::io;
use std::path::Path;

use super::{Home, failed, found};
use crate::store::Error;

/// How many of the first components of a path below the root may be symbolic links.
fn movable(path: &Path) -> usize {
    let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap_or_default()).collect();
    match parts[..] {
        ["docker", "registry", _, "blobs", ..] => 5,
        // Up to the repository's name: its parts begin so, and no name does.
        ["docker", ..] => parts.iter().position(|part| part.starts_with('_')).unwrap_or(parts.len()),
        _ => 2,
    }
}

impl Home {
    /// Makes sure that no directory that leads to `dir`, nor itself, is a symbolic link where none
    /// belongs. That one is missing is fine.
    pub(super) fn check_way(&self, dir: &Path) -> Result<(), Error> {
        let Ok(below) = dir.strip_prefix(&self.root) else { return Ok(()) };
        let upper = below.iter().count().saturating_sub(movable(below));
        // The deepest first: once it is known, so is what is above it.
        for at in dir.ancestors().take(upper) {
            if self.settled.has(at) {
                return Ok(());
            }
            self.check_dir(at)?;
        }
        Ok(())
    }

    /// The same of `dir` alone.
    pub(super) fn check_own(&self, dir: &Path) -> Result<(), Error> {
        let below = dir.strip_prefix(&self.root).unwrap_or(dir);
        if below.iter().count() > movable(below) { self.check_dir(dir) } else { Ok(()) }
    }

    fn check_dir(&self, dir: &Path) -> Result<(), Error> {
        let stat = found(self.disk.stat(dir)).map_err(failed("look up", dir))?;
        if stat.is_none_or(|stat| stat.is_dir) {
            return Ok(());
        }
        let why = "it is no directory but perhaps a symbolic link to one, behind which nothing is changed: have the \
                   directory itself there";
        Err(failed("go through", dir)(io::Error::other(why)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_and_disks_may_be_elsewhere_and_nothing_inside_of_them() {
        let base = "docker/registry/v2";
        for (path, first) in [
            ("docker".to_owned(), 1),
            (format!("{base}/blobs/sha256/ab/abcd"), 5),
            (format!("{base}/repositories/corp/app"), 6),
            (format!("{base}/repositories/corp/app/_manifests/tags/1"), 6),
            (format!("{base}/repositories/corp/app/_uploads"), 6),
            ("forebay/origins/corp/app".to_owned(), 2),
        ] {
            assert_eq!(movable(Path::new(&path)), first, "{path}");
        }
    }
}
