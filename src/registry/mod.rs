//! Hosted repositories, read from the tree; nothing is fetched for them.

use std::sync::Arc;

use crate::answer::{BlobAnswer, BlobWant, Error, ManifestAnswer, Served, TagsAnswer};
use crate::oci::{Digest, Manifest, Owner, Reference, Repository};
use crate::store::{self, OriginState, Store};

pub struct Hosted {
    store: Arc<Store>,
}

impl Hosted {
    pub fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// Runs disk work for a repository, after the check that it is a hosted one.
    async fn read<T: Send + 'static>(
        &self,
        repository: &Repository,
        work: impl FnOnce(&Store, &Repository) -> Result<Option<T>, store::Error> + Send + 'static,
    ) -> Result<Option<T>, Error> {
        let of = repository.clone();
        let read = self.store.run(move |store| match store.origin(&of)? {
            OriginState::Absent => Ok(Ok(None)),
            OriginState::Known(origin) if origin.owner != Owner::Hosted => Ok(Err(origin.owner)),
            OriginState::Known(_) | OriginState::Unknown => work(store, &of).map(Ok),
        });
        let subject = repository.to_string();
        match read.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(owner)) => {
                let why = format!(
                    "the data directory holds a repository of this name that was mirrored from {owner}, so it is \
                     not served as a hosted one"
                );
                Err(Error::Origin { subject, why })
            }
            Err(error) => {
                tracing::error!(%repository, %error, "hosted content cannot be read");
                Err(Error::Disk { subject, why: error.to_string() })
            }
        }
    }

    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<ManifestAnswer, Error> {
        let wanted = reference.clone();
        let found = self.read(repository, move |store, repository| {
            let digest = match wanted {
                Reference::Digest(digest) => Some(digest),
                Reference::Tag(tag) => store.tag(repository, &tag)?.map(|tag| tag.digest),
            };
            let Some(digest) = digest else { return Ok(None) };
            Ok(store.manifest(repository, &digest)?.map(|bytes| (digest, bytes)))
        });
        let subject = match reference {
            Reference::Tag(tag) => format!("{repository}:{tag}"),
            Reference::Digest(digest) => format!("{repository}@{digest}"),
        };
        let (digest, bytes) = found.await?.ok_or_else(|| Error::NotFound(subject.clone()))?;
        let manifest = Manifest::parse(&bytes, None)
            .map_err(|error| Error::Unfit { subject, why: format!("what is stored is {error}") })?;
        let (media_type, size) = (manifest.media_type, bytes.len() as u64);
        Ok(ManifestAnswer { digest, media_type, size, bytes: Some(bytes), served: Served::Hit })
    }

    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        want: BlobWant,
    ) -> Result<BlobAnswer, Error> {
        let wanted = *digest;
        let found = self.read(repository, move |store, repository| {
            if store.has_layer(repository, &wanted)? { store.blob(&wanted) } else { Ok(None) }
        });
        let held = found.await?.ok_or_else(|| Error::NotFound(format!("blob {digest} of {repository}")))?;
        let size = held.len;
        let range = match want {
            BlobWant::Range(range) => Some(range.resolve(size).map_err(|_| Error::Range { size })?),
            BlobWant::Head | BlobWant::Whole => None,
        };
        let body = (want != BlobWant::Head).then(|| self.store.read(held, range));
        Ok(BlobAnswer { size: Some(size), range, body, served: Served::Hit })
    }

    pub async fn tags(&self, repository: &Repository) -> Result<TagsAnswer, Error> {
        let tags = self.read(repository, |store, repository| store.tags(repository).map(Some)).await?;
        let tags = tags.ok_or_else(|| Error::NotFound(repository.to_string()))?;
        Ok(TagsAnswer { tags, served: Served::Hit })
    }

    /// Held repositories after `last`, sorted, `count` at most, by their names in the tree; and
    /// whether there are more. `is_served` says of a name and its origin whether it is served.
    pub async fn catalog(
        &self,
        last: Option<String>,
        count: usize,
        is_served: impl Fn(&str, &OriginState) -> bool + Send + 'static,
    ) -> Result<(Vec<String>, bool), Error> {
        let names = self.store.run(move |store| {
            let held = store.repositories()?.into_iter();
            let all = held.filter(|(name, origin)| is_served(name, origin)).map(|(name, _)| name);
            let after = all.skip_while(|name| last.as_ref().is_some_and(|last| name <= last));
            Ok(after.take(count.saturating_add(1)).collect::<Vec<_>>())
        });
        let failed =
            |error: store::Error| Error::Disk { subject: "the catalog".to_owned(), why: error.to_string() };
        let mut names = names.await.map_err(failed)?;
        let more = names.len() > count;
        names.truncate(count);
        Ok((names, more))
    }
}
