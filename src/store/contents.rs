//! All that an image consists of, as far as it is held.

use std::collections::HashSet;

use super::{Error, Store, layout};
use crate::oci::{Descriptor, Digest, Manifest, ManifestKind, MediaType, Platforms, Repository};

/// More than any image has.
const MANIFESTS_MAX: usize = 1000;
/// Indexes within indexes.
const DEPTH_MAX: usize = 8;

/// What is held of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Each manifest behind what it names.
    pub manifests: Vec<Piece>,
    pub blobs: Vec<Piece>,
    /// Of an index: the platforms for which there are images, as texts.
    pub platforms: Vec<String>,
    /// Manifests of an index that are left out.
    pub left_out: u64,
    /// What is wanted and not held; the image is whole where this is empty.
    pub lacking: Vec<String>,
}

/// A manifest or blob that is held, with its size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub digest: Digest,
    pub size: u64,
}

struct Walk<'a> {
    store: &'a Store,
    repository: &'a Repository,
    platforms: Option<&'a Platforms>,
    read: usize,
}

impl Store {
    /// What is held of the image behind a manifest. `platforms`: of an index, those that have to be held;
    /// None takes those whose images are held whole, of which there has to be one. Blocks.
    pub fn contents(
        &self,
        repository: &Repository,
        root: &Digest,
        platforms: Option<&Platforms>,
    ) -> Result<Contents, Error> {
        let mut walk = Walk { store: self, repository, platforms, read: 0 };
        let mut found = walk.image(root, 0)?;
        let mut seen = HashSet::new();
        found.blobs.retain(|part| seen.insert(part.digest));
        found.manifests.retain(|part| seen.insert(part.digest));
        Ok(found)
    }

    /// The digest under which the bytes of a repository's blob or manifest are stored.
    pub fn part(&self, repository: &Repository, digest: &Digest) -> Result<Option<Digest>, Error> {
        match self.layer(repository, digest)? {
            Some(data) => Ok(Some(data)),
            None => self.revision(repository, digest),
        }
    }
}

impl Contents {
    fn lacks(what: String) -> Self {
        Self { lacking: vec![what], ..Self::default() }
    }

    fn add(&mut self, other: Self) {
        self.manifests.extend(other.manifests);
        self.blobs.extend(other.blobs);
        self.platforms.extend(other.platforms);
        self.left_out += other.left_out;
        self.lacking.extend(other.lacking);
    }
}

impl Walk<'_> {
    fn image(&mut self, digest: &Digest, depth: usize) -> Result<Contents, Error> {
        self.read += 1;
        if self.read > MANIFESTS_MAX || depth > DEPTH_MAX {
            return Ok(Contents::lacks(format!(
                "what lies behind {MANIFESTS_MAX} manifests, or {DEPTH_MAX} indexes"
            )));
        }
        let Some(bytes) = self.store.manifest(self.repository, digest)? else {
            return Ok(Contents::lacks(format!("manifest {digest}")));
        };
        let Ok(manifest) = Manifest::parse(&bytes, None) else {
            return Ok(Contents::lacks(format!("a manifest that can be read, in place of {digest}")));
        };
        let mut found = match manifest.kind {
            ManifestKind::Image { config, layers } => self.blobs([vec![config], layers].concat())?,
            ManifestKind::Artifact { blobs } => self.blobs(blobs)?,
            ManifestKind::Index { manifests } => self.index(manifests, depth)?,
        };
        found.manifests.push(Piece { digest: *digest, size: bytes.len() as u64 });
        Ok(found)
    }

    fn blobs(&self, blobs: Vec<Descriptor>) -> Result<Contents, Error> {
        let mut found = Contents::default();
        // What lies elsewhere by design was never brought here.
        for Descriptor { digest, .. } in blobs.into_iter().filter(|blob| !blob.foreign) {
            let stat = match self.store.layer(self.repository, &digest)? {
                Some(data) => self.store.home.stat(&layout::data(&data))?,
                None => None,
            };
            match stat {
                Some(stat) => found.blobs.push(Piece { digest, size: stat.len }),
                None => found.lacking.push(format!("blob {digest}")),
            }
        }
        Ok(found)
    }

    fn index(&mut self, children: Vec<Descriptor>, depth: usize) -> Result<Contents, Error> {
        let (children, blobs): (Vec<_>, Vec<_>) = children.into_iter().partition(is_manifest);
        let (all, mut whole) = (children.len(), 0);
        let (wanted, missing) = match self.platforms {
            Some(platforms) => platforms.fitting(&children),
            None => (children.iter().collect(), Vec::new()),
        };
        let mut found = self.blobs(blobs)?;
        found.lacking.extend(missing.into_iter().map(|platform| format!("an image for {platform}")));
        let mut incomplete = Contents::default();
        for child in &wanted {
            let mut image = self.image(&child.digest, depth + 1)?;
            let platform = child.platform.as_ref().filter(|platform| !platform.is_unknown());
            image.platforms.extend(platform.map(ToString::to_string));
            if self.platforms.is_none() && !image.lacking.is_empty() {
                incomplete.add(image);
            } else {
                whole += 1;
                found.add(image);
            }
        }
        found.left_out += (all - whole) as u64;
        if whole == 0 && all > 0 {
            found.lacking.extend(incomplete.lacking);
        }
        Ok(found)
    }
}

/// In an index, what is no manifest is a blob: build caches are kept that way.
fn is_manifest(descriptor: &Descriptor) -> bool {
    let kind = MediaType::parse(&descriptor.media_type);
    kind.is_none_or(|kind| kind.is_manifest() || kind.is_artifact())
}
