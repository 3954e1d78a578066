//! Looking through the tree for the index.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Event, Part, Progress, Seconds, named_by};
use crate::oci::{Algorithm, Digest, MANIFEST_CEILING, Repository};
use crate::store::links::ALGORITHMS;
use crate::store::scrub::Shard;
use crate::store::{CollectError, Error, OriginState, Store, layout};

/// How often in a row a part may change too much while it is looked through.
const TRIES: usize = 100;

/// As the index counts time.
pub fn seconds(time: SystemTime) -> Seconds {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Seconds::try_from(seconds).unwrap_or(Seconds::MAX)
}

impl Store {
    /// Looks through all that is held. Blocks for long where that is much; ends early once `is_stopped`.
    pub fn survey(&self, is_stopped: &dyn Fn() -> bool) -> Result<(), CollectError> {
        for shard in self.shards()? {
            self.look_through(Part::Data, || self.data_in(&shard, is_stopped))?;
        }
        self.index.reached(Progress::Sized);
        // What comes into being after this list notes itself.
        for name in self.names_of_repositories()? {
            self.look_through(Part::Repository(name.clone()), || self.all_of(&name, is_stopped))?;
        }
        self.index.reached(Progress::Whole);
        Ok(())
    }

    fn look_through(
        &self,
        part: Part,
        look: impl Fn() -> Result<Vec<Event>, CollectError>,
    ) -> Result<(), CollectError> {
        for _ in 0..TRIES {
            self.index.watch(part.clone());
            if self.index.seen(&look()?) {
                return Ok(());
            }
        }
        // It is looked through again with all the rest.
        Err(CollectError::Stopped)
    }

    fn data_in(&self, shard: &Shard, is_stopped: &dyn Fn() -> bool) -> Result<Vec<Event>, CollectError> {
        let mut found = Vec::new();
        for entry in self.home.list(&shard.dir())? {
            stop(is_stopped)?;
            let Some(digest) = shard.digest(&entry.name) else { continue };
            let stat = self.home.stat(&layout::data(&digest))?;
            if let Some(stat) = stat.filter(|stat| stat.is_file) {
                found.push(Event::Data { digest, size: stat.len });
            }
        }
        Ok(found)
    }

    /// The stored names of all repositories. What cannot be looked into is an error: links may be there.
    pub(in crate::store) fn names_of_repositories(&self) -> Result<Vec<String>, CollectError> {
        let (mut todo, mut names) = (vec![String::new()], Vec::new());
        while let Some(prefix) = todo.pop() {
            let mut is_one = false;
            for name in self.dirs(&format!("{}/{prefix}", layout::REPOSITORIES_DIR))? {
                match name.as_str() {
                    "_layers" | "_manifests" => is_one = true,
                    // A file system's own, where this is a disk of its own: not ours to read.
                    "lost+found" => {}
                    // Longer than any stored name can be, a path is no repository's.
                    _ if name.starts_with('_') || prefix.len() + name.len() >= layout::STORED_NAME_MAX => {}
                    _ if prefix.is_empty() => todo.push(name),
                    _ => todo.push(format!("{prefix}/{name}")),
                }
            }
            if is_one {
                names.push(prefix);
            }
        }
        if names.is_empty() && self.holds_data()? {
            return Err(CollectError::NoRepository(self.data_dir().join(layout::REPOSITORIES_DIR)));
        }
        Ok(names)
    }

    fn holds_data(&self) -> Result<bool, CollectError> {
        for algorithm in ALGORITHMS {
            if !self.home.list(&layout::content_root(algorithm))?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn all_of(&self, name: &str, is_stopped: &dyn Fn() -> bool) -> Result<Vec<Event>, CollectError> {
        // Of which nobody can tell whose it is, nothing goes.
        let owner = match self.stored_origin(name) {
            Ok(OriginState::Known(origin)) => Some(origin.owner),
            Ok(OriginState::Absent | OriginState::Unknown) => None,
            Err(error) => {
                tracing::warn!(repository = name, %error, "whose it is cannot be read: nothing of it is evicted");
                None
            }
        };
        let repository = name.to_owned();
        let mut found = vec![Event::Owner { repository: repository.clone(), owner: owner.clone() }];
        for (digest, at) in self.links_in(name, layout::LAYERS, is_stopped)? {
            let data = self.data_of(name, layout::LAYERS, digest)?;
            found.push(Event::Layer { repository: repository.clone(), name: digest, data, at });
        }
        for (digest, at) in self.links_in(name, layout::REVISIONS, is_stopped)? {
            let data = self.data_of(name, layout::REVISIONS, digest)?;
            let key = layout::data(&data);
            // One that is too large or unreadable names nothing that is known.
            let bytes = self.home.read(&key, MANIFEST_CEILING).ok().flatten();
            let names = bytes.map(|bytes| named_by(&bytes)).unwrap_or_default();
            found.push(Event::Manifest { repository: repository.clone(), name: digest, data, names, at });
        }
        // The name of one that nobody can ask for has no tags either.
        let Some(known) = Repository::stored_as(name, owner.as_ref()) else { return Ok(found) };
        for tag in self.tag_directories(&known)? {
            stop(is_stopped)?;
            if let Some(digest) = self.link(&layout::tag_current(&known, &tag))? {
                found.push(Event::Tag { repository: repository.clone(), tag, digest });
            }
        }
        Ok(found)
    }

    /// Where a link leads, or may have. A sha256 leads to itself, whatever its file says: that need not be
    /// read.
    fn data_of(&self, repository: &str, part: &str, name: Digest) -> Result<Digest, Error> {
        if name.algorithm() == Algorithm::Sha256 {
            return Ok(name);
        }
        let link =
            format!("{}/{}/{}/link", layout::links(repository, part), name.algorithm().as_str(), name.hex());
        Ok(self.linked(&link, &name)?.unwrap_or(name))
    }

    /// The links of one part of a repository: digest, and the link's time.
    fn links_in(
        &self,
        name: &str,
        part: &str,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<(Digest, Seconds)>, CollectError> {
        let (root, mut found) = (layout::links(name, part), Vec::new());
        self.dirs(&root)?;
        for algorithm in ALGORITHMS.map(|algorithm| algorithm.as_str()) {
            for hex in self.dirs(&format!("{root}/{algorithm}"))? {
                stop(is_stopped)?;
                let Ok(digest) = format!("{algorithm}:{hex}").parse::<Digest>() else { continue };
                let link = format!("{root}/{algorithm}/{hex}/link");
                if let Some(stat) = self.home.stat(&link)? {
                    found.push((digest, seconds(stat.modified)));
                }
            }
        }
        Ok(found)
    }
}

fn stop(is_stopped: &dyn Fn() -> bool) -> Result<(), CollectError> {
    if is_stopped() { Err(CollectError::Stopped) } else { Ok(()) }
}
