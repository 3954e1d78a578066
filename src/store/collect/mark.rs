//! What a repository holds, and what that needs.

use std::collections::HashMap;

use super::{CollectError, Found, Marked, Pass};
use crate::oci::{Descriptor, Digest, Manifest, ManifestKind, Repository};
use crate::store::layout;

impl Pass<'_> {
    /// Looks through a repository.
    pub fn mark(&self, repository: &Repository) -> Result<Marked, CollectError> {
        let (store, repository) = (self.store, repository.clone());
        let at = store.leases.mark(&repository);
        let (mut tags, mut is_whole) = (Vec::new(), true);
        for tag in store.tags(&repository)? {
            self.check()?;
            match store.tag(&repository, &tag)? {
                Some(held) => tags.push((tag, held)),
                // It may have been deleted just now.
                None if store.home.stat(&layout::tag_current(&repository, &tag))?.is_none() => {}
                None => {
                    tracing::warn!(%repository, %tag, "a tag cannot be read: nothing of its repository goes");
                    is_whole = false;
                }
            }
        }
        let mut marked = Marked { repository, at, tags, manifests: Vec::new(), is_whole };
        let mut places = HashMap::new();
        for name in store.revisions(&marked.repository)? {
            self.check()?;
            match self.read(&marked.repository, &name)? {
                None => marked.is_whole = false,
                Some((data, found)) => {
                    let place = *places.entry(data).or_insert(marked.manifests.len());
                    match marked.manifests.get_mut(place) {
                        Some(known) => {
                            known.names.push(name);
                            known.linked = known.linked.max(found.linked);
                        }
                        None => marked.manifests.push(found),
                    }
                }
            }
        }
        Ok(marked)
    }

    /// A manifest, and the digest of its bytes. `None`: it cannot be read, so what it names is unknown.
    fn read(&self, repository: &Repository, name: &Digest) -> Result<Option<(Digest, Found)>, CollectError> {
        let (store, link) = (self.store, layout::revision(repository, name));
        let unreadable = |why: &str| {
            tracing::warn!(%repository, digest = %name, why, "a manifest cannot be read: nothing of its repository goes");
        };
        let (Some(stat), Some(data)) = (store.home.stat(&link)?, store.revision(repository, name)?) else {
            // It may have been deleted just now.
            if store.home.stat(&link)?.is_some() {
                unreadable("its link names something else");
            }
            return Ok(None);
        };
        let Some(bytes) = store.manifest(repository, name)? else {
            unreadable("its bytes are missing, or not those that its digest says");
            return Ok(None);
        };
        let manifest = match Manifest::parse(&bytes, None) {
            Ok(manifest) => manifest,
            Err(error) => {
                unreadable(&error.to_string());
                return Ok(None);
            }
        };
        let key = |of: &Descriptor| store.leases.keys().of(&of.digest);
        let needs = match &manifest.kind {
            ManifestKind::Image { config, layers } => {
                std::iter::once(config).chain(layers).map(key).collect()
            }
            ManifestKind::Index { manifests } => manifests.iter().map(key).collect(),
            ManifestKind::Artifact { blobs } => blobs.iter().map(key).collect(),
        };
        let subject = manifest.subject.map(|subject| subject.digest);
        Ok(Some((data, Found { names: vec![*name], linked: stat.modified, needs, subject })))
    }
}
