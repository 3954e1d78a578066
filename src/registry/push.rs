//! Pushes: uploads begun, blobs mounted, manifests committed.

use bytes::Bytes;

use super::error::PushError;
use super::uploads::{Chunks, Turn};
use super::{Hosted, grant};
use crate::oci::{Descriptor, Digest, Manifest, ManifestKind, MediaType, Owner, Repository, Tag, UploadId};
use crate::store::{self, ManifestCommit, NewManifest, OriginState, Store};

use futures_util::StreamExt;

/// What a manifest is to be called.
pub struct Naming {
    /// What the client says its digest is.
    pub digest: Option<Digest>,
    pub tags: Vec<Tag>,
}

/// A manifest that was kept.
pub struct Pushed {
    pub digest: Digest,
    pub media_type: MediaType,
    pub size: u64,
    pub subject: Option<Digest>,
    pub tags: Vec<Tag>,
}

impl Hosted {
    /// Runs disk work that adds to a repository, after the check that it is a hosted one.
    async fn write<T: Send + 'static>(
        &self,
        repository: &Repository,
        work: impl FnOnce(&Store, &Repository) -> Result<T, PushError> + Send + 'static,
    ) -> Result<T, PushError> {
        let of = repository.clone();
        self.store.write(move |store| unless_refused(store, &of, work)).await?
    }

    /// The same for work that only takes away.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        repository: &Repository,
        work: impl FnOnce(&Store, &Repository) -> Result<T, PushError> + Send + 'static,
    ) -> Result<T, PushError> {
        let of = repository.clone();
        self.store.change(move |store| unless_refused(store, &of, work)).await?
    }

    /// A new upload to this repository.
    pub async fn begin(&self, repository: &Repository) -> Result<Turn, PushError> {
        self.write(repository, |_, _| Ok(())).await?;
        self.uploads.begin(repository, self.options.max_uploads).await
    }

    /// The turn on an upload under way.
    pub async fn upload(&self, repository: &Repository, id: UploadId) -> Result<Turn, PushError> {
        self.uploads.resume(repository, id).await
    }

    /// The size of a blob that a pusher asks for, which is relied on from now on.
    pub async fn lease_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, PushError> {
        let digest = *digest;
        Ok(self
            .store
            .change({
                let of = repository.clone();
                move |store| store.lease_blob(&of, &digest)
            })
            .await?)
    }

    /// Gives the repository a blob that it or one of `sources` has, and tells which one had it.
    pub async fn mount(
        &self,
        repository: &Repository,
        sources: Vec<Repository>,
        digest: &Digest,
    ) -> Result<Option<Repository>, PushError> {
        let digest = *digest;
        self.write(repository, move |store, repository| {
            for source in std::iter::once(repository.clone()).chain(sources) {
                // What cannot be read is to be sent.
                if store.layer(&source, &digest)?.is_some_and(|data| !store.is_unreadable(&data))
                    && store.mount(&grant(repository), &source, &digest)?
                {
                    return Ok(Some(source));
                }
            }
            Ok(None)
        })
        .await
    }

    /// A manifest's bytes, `max_manifest` at most.
    pub async fn collect_manifest(&self, mut chunks: Chunks) -> Result<Bytes, PushError> {
        let max = self.options.max_manifest;
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(PushError::ManifestInterrupted)?;
            if bytes.len() + chunk.len() > max {
                return Err(PushError::ManifestTooLarge(max));
            }
            self.metrics.received_bytes.inc_by(chunk.len() as u64);
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    /// Keeps a manifest, with all that it names there already.
    pub async fn put_manifest(
        &self,
        repository: &Repository,
        naming: Naming,
        content_type: Option<String>,
        bytes: Bytes,
    ) -> Result<Pushed, PushError> {
        let (immutable, referrers) = (self.immutable_of(repository, &naming.tags), self.referrers.clone());
        self.write(repository, move |store, repository| {
            let manifest = Manifest::pushed(&bytes, content_type.as_deref())?;
            let digest = match naming.digest {
                Some(wanted) => match Digest::of(wanted.algorithm(), &bytes) {
                    actual if actual == wanted => wanted,
                    actual => {
                        let (wanted, actual) = (Box::new(wanted), Box::new(actual));
                        return Err(PushError::ManifestDigest { wanted, actual });
                    }
                },
                None => Digest::sha256(&bytes),
            };
            let (blobs, manifests) = needs(&manifest);
            let (tags, size) = (naming.tags, bytes.len() as u64);
            let may_not_move = immutable.iter().map(|(tag, _)| tag.clone()).collect();
            let new =
                NewManifest { digest, bytes, blobs, manifests, tags: tags.clone(), immutable: may_not_move };
            match store.commit_manifest(&grant(repository), &new)? {
                ManifestCommit::Done => {}
                ManifestCommit::Missing(missing) => {
                    return Err(PushError::Missing { repository: repository.clone(), missing });
                }
                ManifestCommit::Immutable(tag) => {
                    let pattern =
                        immutable.into_iter().find(|(of, _)| *of == tag).map(|(_, pattern)| pattern);
                    let (repository, pattern) = (repository.clone(), pattern.unwrap_or_default());
                    return Err(PushError::Immutable { repository, tag, pattern });
                }
            }
            if manifest.subject.is_some() {
                referrers.changed(store, repository, &digest)?;
            }
            let (media_type, subject) = (manifest.media_type, manifest.subject.map(|subject| subject.digest));
            Ok(Pushed { digest, media_type, size, subject, tags })
        })
        .await
    }

    /// Which of the tags may not be changed, and the pattern that says so.
    fn immutable_of(&self, repository: &Repository, tags: &[Tag]) -> Vec<(Tag, String)> {
        let of = |tag: &Tag| Some((tag.clone(), self.options.immutability(repository, tag)?.to_owned()));
        tags.iter().filter_map(of).collect()
    }
}

fn unless_refused<T>(
    store: &Store,
    repository: &Repository,
    work: impl FnOnce(&Store, &Repository) -> Result<T, PushError>,
) -> Result<Result<T, PushError>, store::Error> {
    Ok(match refusal(&store.origin(repository)?) {
        Some(why) => Err(PushError::Origin { repository: repository.clone(), why }),
        None => work(store, repository),
    })
}

/// Why a repository of this origin is not written to.
fn refusal(origin: &OriginState) -> Option<String> {
    match origin {
        OriginState::Known(origin) if origin.owner != Owner::Hosted => Some(format!(
            "the data directory holds a repository of this name that was mirrored from {}; push under another name",
            origin.owner
        )),
        // Of unknown origin, it counts as hosted; the first write says so for good.
        OriginState::Known(_) | OriginState::Absent | OriginState::Unknown => None,
    }
}

/// The blobs and manifests that have to be there. A layer that lives elsewhere by design does not,
/// nor does a subject. In an index, what is no manifest is a blob: build caches are kept that way.
fn needs(manifest: &Manifest) -> (Vec<Digest>, Vec<Digest>) {
    let here = |descriptor: &&Descriptor| !descriptor.foreign;
    match &manifest.kind {
        ManifestKind::Image { config, layers } => {
            (std::iter::once(config).chain(layers).filter(here).map(|of| of.digest).collect(), Vec::new())
        }
        ManifestKind::Index { manifests } => {
            let is_manifest = |of: &&Descriptor| {
                of.media_type.is_empty()
                    || MediaType::parse(&of.media_type).is_some_and(|kind| kind.is_manifest())
            };
            let (manifests, blobs): (Vec<_>, Vec<_>) = manifests.iter().filter(here).partition(is_manifest);
            let digests = |of: Vec<&Descriptor>| of.into_iter().map(|of| of.digest).collect();
            (digests(blobs), digests(manifests))
        }
        // Not taken from a pusher; read all the same.
        ManifestKind::Artifact { blobs } => {
            (blobs.iter().filter(here).map(|of| of.digest).collect(), Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_manifest_needs() {
        let digest = |n: u8| Digest::sha256(&[n]);
        let descriptor =
            |kind: &str, n| format!(r#"{{"mediaType":"{kind}","digest":"{}","size":1}}"#, digest(n));
        let image = format!(
            r#"{{"config":{},"layers":[{},{}],"subject":{}}}"#,
            descriptor("application/x", 1),
            descriptor("application/vnd.oci.image.layer.v1.tar", 2),
            descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar", 3),
            descriptor(MediaType::OCI_MANIFEST, 4),
        );
        let of = |text: &str| needs(&Manifest::parse(text.as_bytes(), None).unwrap());
        assert_eq!(of(&image), (vec![digest(1), digest(2)], vec![]));
        let index = format!(
            r#"{{"manifests":[{},{},{}]}}"#,
            descriptor(MediaType::OCI_MANIFEST, 1),
            descriptor(MediaType::DOCKER_LIST, 2),
            descriptor("application/vnd.buildkit.cacheconfig.v0", 3),
        );
        assert_eq!(of(&index), (vec![digest(3)], vec![digest(1), digest(2)]));
    }
}
