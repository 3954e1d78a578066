//! Deletes: of tags, manifests and blobs. Bytes stay until they are collected.

use super::Hosted;
use super::error::PushError;
use crate::oci::{Digest, Reference, Repository, Tag};
use crate::store::{Removal, Store};

/// What went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    pub manifest: Option<Digest>,
    pub tags: Vec<Tag>,
}

impl Hosted {
    /// Removes a tag; or a manifest, with all tags that point to it.
    pub async fn delete_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Deleted, PushError> {
        self.may_delete()?;
        let (options, referrers, reference) =
            (self.options.clone(), self.referrers.clone(), reference.clone());
        self.change(repository, move |store, repository| {
            let missing = || PushError::NoManifest(reference.of(repository));
            let immutable = |tag: &Tag| {
                let pattern = options.immutability(repository, tag)?.to_owned();
                Some(PushError::Immutable { repository: repository.clone(), tag: tag.clone(), pattern })
            };
            match &reference {
                Reference::Tag(tag) => {
                    if store.tag(repository, tag)?.is_none() {
                        return Err(missing());
                    }
                    if let Some(refusal) = immutable(tag) {
                        return Err(refusal);
                    }
                    if !store.remove_tag(repository, tag)? {
                        return Err(missing());
                    }
                    Ok(Deleted { manifest: None, tags: vec![tag.clone()] })
                }
                Reference::Digest(digest) => {
                    let names = names(store, repository, digest)?;
                    for tag in store.tags(repository)?.iter().filter(|tag| immutable(tag).is_some()) {
                        if store.tag(repository, tag)?.is_some_and(|held| names.contains(&held.digest)) {
                            return Err(immutable(tag).unwrap_or_else(missing));
                        }
                    }
                    let mut deleted = Deleted::default();
                    for name in &names {
                        let removal =
                            store.remove_manifest(repository, name, &|tag| immutable(tag).is_some())?;
                        referrers.changed(store, repository, name)?;
                        match removal {
                            Removal::Removed { tags } => {
                                deleted.manifest = Some(*digest);
                                deleted.tags.extend(tags);
                            }
                            Removal::Absent => {}
                            Removal::Immutable(tag) => return Err(immutable(&tag).unwrap_or_else(missing)),
                        }
                    }
                    if deleted.manifest.is_some() { Ok(deleted) } else { Err(missing()) }
                }
            }
        })
        .await
    }

    /// Takes a blob from the repository. Its bytes stay until they are collected.
    pub async fn delete_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), PushError> {
        self.may_delete()?;
        let digest = *digest;
        self.change(repository, move |store, repository| match store.remove_layer(repository, &digest)? {
            true => Ok(()),
            false => Err(PushError::NoBlob(format!("blob {digest} of {repository}"))),
        })
        .await
    }

    fn may_delete(&self) -> Result<(), PushError> {
        if self.options.delete { Ok(()) } else { Err(PushError::DeleteOff) }
    }
}

/// All names that a manifest has in its repository: what was pushed by its sha512 has its sha256 too.
fn names(store: &Store, repository: &Repository, digest: &Digest) -> Result<Vec<Digest>, PushError> {
    let Some(data) = store.revision(repository, digest)? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for name in store.revisions(repository)? {
        if name == data
            || (name.algorithm() != data.algorithm() && store.revision(repository, &name)? == Some(data))
        {
            names.push(name);
        }
    }
    Ok(names)
}
