//! Fetching again what a repository links and the disk has lost.

use std::sync::Arc;
use std::time::Duration;

use super::manifest::Request;
use super::memory::Subject;
use super::tag::Resolved;
use super::warm::Background;
use super::{Mirror, lost};
use crate::answer::{BlobWant, Error};
use crate::oci::{Digest, Owner, Reference, Repository, Tag};
use crate::store::{Origin, Part};

/// Longest wait for a blob to be renamed, once its bytes are here.
const COMMIT: Duration = Duration::from_secs(60);

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    Held,
    /// The upstream has it no more.
    Gone,
}

impl Mirror {
    /// A repository that is held under this name in the tree, where its upstream is configured and gives
    /// it out to everybody.
    pub fn stored(&self, name: &str, origin: &Origin) -> Option<Repository> {
        // The configured one knows whether it is the default.
        let host = self.upstream_of(origin)?;
        let bare = if host.is_default() { name } else { name.split_once('/')?.1 };
        let owner = Owner::Upstream(host.clone());
        let repository = Repository { owner, name: bare.parse().ok()? };
        (repository.stored_name() == name).then_some(repository)
    }

    /// Fetches what is linked again, on the account of background work: for manifests, quota that is
    /// scarce is left to clients.
    pub async fn restore(
        self: &Arc<Self>,
        repository: &Repository,
        part: Part,
        digest: &Digest,
    ) -> Result<Restored, Error> {
        let restored = match part {
            Part::Blob => self.restore_blob(repository, digest).await,
            Part::Manifest => self.restore_manifest(repository, digest).await,
        };
        match restored {
            Ok(()) => Ok(Restored::Held),
            Err(Error::NotFound(_)) => Ok(Restored::Gone),
            Err(error) => Err(error),
        }
    }

    async fn restore_blob(self: &Arc<Self>, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        let (work, subject) = (Background::default(), Subject::Blob(*digest));
        let standing = self.entry(work.asker(), repository, &subject).await?;
        let access = self.access(repository, &standing, &subject, work.asker().hops).await?;
        let answer = self.miss_blob(digest, BlobWant::Whole, &access, false).await?;
        let Some(mut body) = answer.body else { return Err(lost(subject.of(repository))) };
        while let Some(piece) = body.next().await {
            piece.map_err(|error| Error::Unavailable {
                subject: subject.of(repository),
                why: error.to_string(),
            })?;
        }
        let committed = async {
            while let Some(fill) = self.store.fill(&access.grant, digest, 0) {
                self.ended(&fill).await;
            }
        };
        // What is not there by then is found missing.
        let _ = tokio::time::timeout(COMMIT, committed).await;
        let is_held = self.store.blob(digest).map(|held| held.is_some() && !self.store.is_unreadable(digest));
        kept(subject.of(repository), is_held)
    }

    async fn restore_manifest(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), Error> {
        let (work, reference) = (Background::default(), Reference::Digest(*digest));
        let subject = Subject::Manifest(reference.clone());
        let standing = self.entry(work.asker(), repository, &subject).await?;
        match self.memory.manifests.get(&(repository.clone(), *digest)) {
            Some(held) => {
                self.keep(self.grant(repository, &standing)?, &held);
            }
            None => {
                self.refused(standing.caller(), repository, &subject)?;
                let request = Request { asker: work.asker(), standing, repository };
                self.fetch(&request, &reference, work.asker().spender(false, false)).await?;
            }
        }
        let is_held = self.has_manifest(repository, digest).await;
        kept(subject.of(repository), is_held)
    }

    /// Points a tag again whose link is of no use, to what the upstream has it point to.
    pub async fn restore_tag(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Restored, Error> {
        let (work, subject) = (Background::default(), Subject::Manifest(Reference::Tag(tag.clone())));
        self.doubt_tag(repository, tag);
        let asked = async {
            let standing = self.entry(work.asker(), repository, &subject).await?;
            let request = Request { asker: work.asker(), standing, repository };
            Ok((self.confirm(&request, tag).await?, request))
        };
        let answer = match asked.await {
            Ok((Resolved::Known(known, served), request)) => {
                let answer = self.at_tag(&request, tag, &known, served, true).await;
                // The tag is there: this is no word on it.
                answer.map_err(|error| match error {
                    Error::NotFound(subject) => {
                        let why = "the registry has the tag, and not what it points to".to_owned();
                        Error::Unavailable { subject, why }
                    }
                    error => error,
                })
            }
            Ok((Resolved::Untold, request)) => self.get_by_tag(&request, tag).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(_) => {}
            Err(Error::NotFound(_)) => return Ok(Restored::Gone),
            Err(error) => return Err(error),
        }
        self.writes.settled(repository).await;
        let (of, name) = (repository.clone(), tag.clone());
        let is_held = self.store.run(move |store| Ok(store.tag(&of, &name)?.is_some())).await;
        kept(subject.of(repository), is_held).map(|()| Restored::Held)
    }

    /// Whether a manifest is on disk, once that has done what it was given.
    pub async fn has_manifest(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, crate::store::Error> {
        self.writes.settled(repository).await;
        let (of, digest) = (repository.clone(), *digest);
        self.store.run(move |store| Ok(store.manifest(&of, &digest)?.is_some())).await
    }

    /// Takes a link away whose data the upstream has no more.
    pub async fn unlink(
        &self,
        repository: &Repository,
        part: Part,
        digest: &Digest,
    ) -> Result<(), crate::store::Error> {
        let (of, name) = (repository.clone(), *digest);
        self.store.run(move |store| store.unlink_dangling(&of, part, &name)).await?;
        let key = (repository.clone(), *digest);
        match part {
            Part::Blob => self.memory.layers.invalidate(&key),
            Part::Manifest => self.memory.manifests.invalidate(&key),
        }
        Ok(())
    }

    /// Forgets a tag that was `seen` to point to a manifest that the upstream has no more, or nowhere.
    pub async fn forget_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        seen: Option<Digest>,
    ) -> Result<(), crate::store::Error> {
        let (of, name) = (repository.clone(), tag.clone());
        self.store.run(move |store| store.drop_dangling_tag(&of, &name, seen.as_ref())).await?;
        self.memory.tags.invalidate(&(repository.clone(), tag.clone()));
        Ok(())
    }
}

fn kept(subject: String, is_held: Result<bool, crate::store::Error>) -> Result<(), Error> {
    match is_held {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(Error::Disk { subject, why: "it came and could not be kept: is there room?".to_owned() })
        }
        Err(error) => Err(Error::Disk { subject, why: error.to_string() }),
    }
}
