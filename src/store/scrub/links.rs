//! Links that lead nowhere, and images that are not whole.

use std::fmt;

use super::quarantine::by_stored_name;
use crate::oci::{Digest, Manifest, ManifestKind, Repository, Tag};
use crate::store::links::{ALGORITHMS, LINK_MAX};
use crate::store::{Error, Store, layout};

/// What is named of what an image lacks.
const NAMED: usize = 5;

/// Which part of a repository a link is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Blob,
    Manifest,
}

/// Something wrong in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkFault {
    /// The data that a link leads to is not here.
    Dangling { part: Part, name: Digest, data: Digest },
    /// A link is no file that names a digest it may lead to.
    Illegible { part: Part, name: Digest, why: String },
    /// The manifest that a tag points to is not in the repository. None: its link cannot be read.
    Tag { tag: Tag, digest: Option<Digest> },
    /// What an image of a hosted repository consists of is not all here.
    Incomplete { manifest: Digest, missing: Vec<Digest> },
}

impl fmt::Display for LinkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dangling { name, data, .. } if name == data => {
                f.write_str("linked, and its data is missing")
            }
            Self::Dangling { data, .. } => write!(f, "linked to {data}, whose data is missing"),
            Self::Illegible { why, .. } => write!(f, "its link is no link: {why}"),
            Self::Tag { digest: Some(digest), .. } => write!(f, "it points to {digest}, which is missing"),
            Self::Tag { digest: None, .. } => f.write_str("its link names no digest"),
            Self::Incomplete { missing, .. } => {
                let named: Vec<String> = missing.iter().take(NAMED).map(Digest::to_string).collect();
                let count = missing.len();
                write!(f, "{count} of the things that it names are missing: {}", named.join(", "))?;
                if count > NAMED { f.write_str(", ...") } else { Ok(()) }
            }
        }
    }
}

/// What a link says.
enum Link {
    To(Digest),
    Illegible(String),
    Absent,
}

impl Store {
    /// Looks through the links of a repository, by its name in the tree. `report` is told of what is
    /// wrong; once `is_stopped` says so, it ends. How many links there are. Blocks.
    pub fn check_links(
        &self,
        stored_name: &str,
        is_hosted: bool,
        report: &mut dyn FnMut(LinkFault),
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<u64, Error> {
        let Some(repository) = by_stored_name(stored_name) else { return Ok(0) };
        let mut count = 0;
        for part in [Part::Blob, Part::Manifest] {
            for algorithm in ALGORITHMS {
                let dir = match part {
                    Part::Blob => layout::layers(&repository, algorithm),
                    Part::Manifest => layout::revisions(&repository, algorithm),
                };
                for entry in self.home.list(&dir)? {
                    if is_stopped() {
                        return Ok(count);
                    }
                    let Some(hex) = entry.name.to_str() else { continue };
                    let Ok(name) = format!("{}:{hex}", algorithm.as_str()).parse() else { continue };
                    count += 1;
                    self.check_link(&repository, part, name, is_hosted, report)?;
                }
            }
        }
        for tag in self.tag_directories(&repository)? {
            if is_stopped() {
                break;
            }
            count += 1;
            self.check_tag(&repository, tag, report)?;
        }
        Ok(count)
    }

    fn check_link(
        &self,
        repository: &Repository,
        part: Part,
        name: Digest,
        is_hosted: bool,
        report: &mut dyn FnMut(LinkFault),
    ) -> Result<(), Error> {
        let key = link_key(repository, part, &name);
        let data = match self.read_link(&key)? {
            Link::To(data) => data,
            Link::Absent => return Ok(()),
            Link::Illegible(why) => {
                report(LinkFault::Illegible { part, name, why });
                return Ok(());
            }
        };
        if self.linked(&key, &name)?.is_none() {
            report(LinkFault::Illegible { part, name, why: format!("it names {data}") });
        } else if self.home.stat(&layout::data(&data))?.is_none() {
            // Links go before what they lead to: it may have been on its way out.
            if self.home.stat(&key)?.is_some() {
                report(LinkFault::Dangling { part, name, data });
            }
        } else if part == Part::Manifest && is_hosted {
            self.check_whole(repository, name, report)?;
        }
        Ok(())
    }

    fn read_link(&self, key: &str) -> Result<Link, Error> {
        let Some(stat) = self.home.stat(key)? else { return Ok(Link::Absent) };
        if !stat.is_file {
            return Ok(Link::Illegible("it is no regular file".to_owned()));
        }
        if stat.len > LINK_MAX as u64 {
            return Ok(Link::Illegible(format!("it has {} bytes", stat.len)));
        }
        match self.link(key) {
            Ok(Some(digest)) => Ok(Link::To(digest)),
            Ok(None) => Ok(Link::Illegible("it holds no digest".to_owned())),
            Err(error) => Ok(Link::Illegible(error.source.to_string())),
        }
    }

    /// Whether what is in a link's place is none. What no file can replace is taken away.
    pub(in crate::store) fn clear_illegible(&self, key: &str) -> Result<bool, Error> {
        if !matches!(self.read_link(key)?, Link::Illegible(_)) {
            return Ok(false);
        }
        if self.home.stat(key)?.is_some_and(|stat| !stat.is_file) {
            self.remove_strange(key)?;
        }
        Ok(true)
    }

    fn check_tag(
        &self,
        repository: &Repository,
        tag: Tag,
        report: &mut dyn FnMut(LinkFault),
    ) -> Result<(), Error> {
        let key = layout::tag_current(repository, &tag);
        match self.read_link(&key)? {
            Link::To(digest) => {
                let is_there = match self.revision(repository, &digest) {
                    Ok(Some(data)) => self.home.stat(&layout::data(&data))?.is_some(),
                    // Told of as a link.
                    Err(_) => true,
                    Ok(None) => false,
                };
                if !is_there && self.home.stat(&key)?.is_some() {
                    report(LinkFault::Tag { tag, digest: Some(digest) });
                }
            }
            Link::Illegible(_) => report(LinkFault::Tag { tag, digest: None }),
            // Half a removal is a removal.
            Link::Absent => {}
        }
        Ok(())
    }

    fn check_whole(
        &self,
        repository: &Repository,
        name: Digest,
        report: &mut dyn FnMut(LinkFault),
    ) -> Result<(), Error> {
        let Some(bytes) = self.manifest(repository, &name)? else { return Ok(()) };
        let Ok(manifest) = Manifest::parse(&bytes, None) else { return Ok(()) };
        let (part, named) = match manifest.kind {
            ManifestKind::Image { config, layers } => (Part::Blob, [vec![config], layers].concat()),
            ManifestKind::Artifact { blobs } => (Part::Blob, blobs),
            ManifestKind::Index { manifests } => (Part::Manifest, manifests),
        };
        let mut missing = Vec::new();
        for descriptor in named.iter().filter(|descriptor| !descriptor.foreign) {
            let data = self.linked(&link_key(repository, part, &descriptor.digest), &descriptor.digest)?;
            let is_there = match data {
                Some(data) => self.home.stat(&layout::data(&data))?.is_some(),
                None => false,
            };
            if !is_there {
                missing.push(descriptor.digest);
            }
        }
        if !missing.is_empty() && self.revision(repository, &name)?.is_some() {
            report(LinkFault::Incomplete { manifest: name, missing });
        }
        Ok(())
    }

    /// Takes a link away that leads nowhere, of a mirrored repository. It stays where its data has come.
    pub fn unlink_dangling(&self, repository: &Repository, part: Part, name: &Digest) -> Result<(), Error> {
        let _links = self.leases.repository(repository);
        // Who fetches links under another lock.
        let _removing = self.leases.remove_data();
        let key = link_key(repository, part, name);
        if let Link::To(data) = self.read_link(&key)?
            && self.linked(&key, name)?.is_some()
            && self.home.stat(&layout::data(&data))?.is_some()
        {
            return Ok(());
        }
        match part {
            Part::Blob => self.unlink_layer(repository, name).map(drop),
            Part::Manifest => self.unlink_revision(repository, name).map(drop),
        }
    }

    /// The same for a tag that was `seen` to point to a manifest that is not here, or nowhere. One that
    /// was moved since stays.
    pub fn drop_dangling_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        seen: Option<&Digest>,
    ) -> Result<(), Error> {
        let _removing = self.leases.remove_data();
        let now = match self.read_link(&layout::tag_current(repository, tag))? {
            Link::To(digest) => Some(digest),
            Link::Illegible(_) | Link::Absent => None,
        };
        let data = now.map(|digest| self.revision(repository, &digest)).transpose()?.flatten();
        let is_held = data.map(|data| self.home.stat(&layout::data(&data))).transpose()?.flatten().is_some();
        match now.as_ref() == seen && !is_held {
            true => self.drop_tag(repository, tag),
            false => Ok(()),
        }
    }
}

fn link_key(repository: &Repository, part: Part, name: &Digest) -> String {
    match part {
        Part::Blob => layout::layer(repository, name),
        Part::Manifest => layout::revision(repository, name),
    }
}
