//! Blobs: from memory, from disk, from a fill under way, or from a new one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::memory::{SMALL_BLOB, Subject};
use super::right::veiled;
use super::source::{BlobSource, upstream_error, was_a_guess};
use super::standing::{Access, Standing};
use super::{Asker, Mirror, lost};
use crate::answer::{BlobAnswer, BlobWant, Error, Served};
use crate::oci::{ByteRange, Digest, RangeRequest, Repository};
use crate::store::{BlobReader, Demand, FillReader, Start};
use crate::upstream::{Cause, Hops};

/// How often in a row somebody else's fill may come first; it ends before that or is joined.
const RACES: usize = 4;

/// What there is of a blob for a repository that is not known to have it.
enum Proven {
    /// Its trust domain has fetched it.
    Held(BlobAnswer),
    /// The same, and the bytes on disk are no good.
    NoGood,
    Not,
}

impl BlobAnswer {
    fn head(size: Option<u64>, served: Served) -> Self {
        Self { size, range: None, body: None, served }
    }
}

/// The part of a blob of `size` bytes that is wanted; None for all of it.
fn part(want: BlobWant, size: u64) -> Result<Option<ByteRange>, Error> {
    match want {
        BlobWant::Head | BlobWant::Whole => Ok(None),
        BlobWant::Range(range) => range.resolve(size).map(Some).map_err(|_| Error::Range { size }),
    }
}

impl Mirror {
    pub async fn blob(
        self: &Arc<Self>,
        asker: Asker<'_>,
        repository: &Repository,
        digest: &Digest,
        want: BlobWant,
    ) -> Result<BlobAnswer, Error> {
        let subject = Subject::Blob(*digest);
        self.unless_loop(asker, repository)?;
        let standing = self.entry(asker, repository, &subject).await;
        let standing = standing.map_err(|error| veiled(asker.caller, error))?;
        let answer = self.blob_for(&standing, repository, digest, want, asker.hops).await;
        answer.map_err(|error| veiled(standing.caller(), error))
    }

    async fn blob_for(
        self: &Arc<Self>,
        standing: &Standing,
        repository: &Repository,
        digest: &Digest,
        want: BlobWant,
        hops: &Hops,
    ) -> Result<BlobAnswer, Error> {
        let linked = standing.is_open() && self.has_layer(repository, digest).await;
        if linked && let Some(answer) = self.held_blob(digest, want, Served::Hit).await? {
            return Ok(answer);
        }
        let miss = async {
            let subject = Subject::Blob(*digest);
            self.refused(standing.caller(), repository, &subject)?;
            let access = self.access(repository, standing, &subject, hops).await?;
            self.miss_blob(digest, want, &access, !linked).await
        };
        Box::pin(miss).await
    }

    /// A blob that the repository is not known to have; or (not `unlinked`) whose bytes on disk are
    /// no good.
    pub(super) async fn miss_blob(
        self: &Arc<Self>,
        digest: &Digest,
        want: BlobWant,
        access: &Access,
        mut unlinked: bool,
    ) -> Result<BlobAnswer, Error> {
        let repository = &access.grant.repository;
        let source = Arc::new(self.source(digest, access, None)?);
        self.flows.ask(digest).await;
        // A fill may begin, or end, for another repository while this one's right is being shown.
        for _ in 0..RACES {
            // What ended a fill may be this one's answer too.
            self.refused(access.caller(), repository, &Subject::Blob(*digest))?;
            if let Some(reader) = self.join_fill(repository, digest, access).await?
                && self.flows.ask(digest).await
            {
                match self.follow(access, reader, want, Served::Joined, &source).await? {
                    Some(answer) => return Ok(answer),
                    None => continue,
                }
            }
            // In this order: a fill is committed before it is taken off the list.
            if unlinked {
                match self.link_proven(digest, want, access).await? {
                    Proven::Held(answer) => return Ok(answer),
                    Proven::NoGood => unlinked = false,
                    Proven::Not => {}
                }
            }
            if want == BlobWant::Head {
                let size = self.size(digest, access).await?;
                return Ok(BlobAnswer::head(size, Served::Miss));
            }
            let demand = self.demand(digest, want, access).await?;
            match self.store.start_fill(&access.grant, digest, source.clone(), demand, unlinked).await {
                Start::Reading(reader) => {
                    if self.flows.ask(digest).await
                        && let Some(answer) = self.follow(access, reader, want, Served::Miss, &source).await?
                    {
                        return Ok(answer);
                    }
                }
                Start::Unproven => {}
                Start::Held => match self.held_blob(digest, want, Served::Joined).await? {
                    Some(answer) => return Ok(answer),
                    None => unlinked = false,
                },
            }
        }
        // Whatever the disk holds by now, this repository's right to it is not shown.
        Err(lost(Subject::Blob(*digest).of(repository)))
    }

    pub(super) async fn has_layer(&self, repository: &Repository, digest: &Digest) -> bool {
        let key = (repository.clone(), *digest);
        if self.memory.layers.get(&key).is_some() {
            return true;
        }
        let (of, digest) = key.clone();
        match Box::pin(self.store.run(move |store| store.has_layer(&of, &digest))).await {
            Ok(true) => {
                self.memory.layers.insert(key, ());
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::error!(%digest, %error, "whether a blob is held cannot be told");
                false
            }
        }
    }

    /// The blob's bytes, where the disk has them.
    async fn held_blob(
        &self,
        digest: &Digest,
        want: BlobWant,
        served: Served,
    ) -> Result<Option<BlobAnswer>, Error> {
        if let Some(bytes) = self.memory.blobs.get(digest) {
            return small(bytes, want, served).map(Some);
        }
        if self.store.is_unreadable(digest) {
            return Ok(None);
        }
        let held = match self.store.blob(digest) {
            Ok(Some(held)) => held,
            Ok(None) => return Ok(None),
            Err(error) => {
                tracing::error!(%digest, %error, "a held blob cannot be read");
                return Ok(None);
            }
        };
        let size = held.len;
        if want == BlobWant::Head {
            return Ok(Some(BlobAnswer::head(Some(size), served)));
        }
        if size <= SMALL_BLOB {
            let Some(bytes) = Box::pin(read_all(self.store.read(held, None), size, digest)).await else {
                return Ok(None);
            };
            self.memory.blobs.insert(*digest, bytes.clone());
            return small(bytes, want, served).map(Some);
        }
        let range = part(want, size)?;
        let body = Some(self.store.read(held, range));
        Ok(Some(BlobAnswer { size: Some(size), range, body, served }))
    }

    /// One more reader of the fill under way, once the repository's right to the blob is shown.
    async fn join_fill(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        access: &Access,
    ) -> Result<Option<FillReader>, Error> {
        let Some(fill) = self.store.fill(&access.grant, digest, access.hops.depth()) else { return Ok(None) };
        if !fill.serves(repository) {
            self.size(digest, access).await?;
            if !fill.link_later(&access.grant) {
                self.link(digest, access);
            }
        }
        Ok(fill.reader())
    }

    /// Bytes that another repository of the same trust domain fetched, once upstream says that this
    /// one has them too.
    async fn link_proven(
        self: &Arc<Self>,
        digest: &Digest,
        want: BlobWant,
        access: &Access,
    ) -> Result<Proven, Error> {
        let (grant, of) = (access.grant.clone(), *digest);
        if !self.store.run(move |store| store.is_proven(&grant, &of)).await.unwrap_or(false) {
            return Ok(Proven::Not);
        }
        self.size(digest, access).await?;
        let Some(answer) = self.held_blob(digest, want, Served::Revalidated).await? else {
            return Ok(Proven::NoGood);
        };
        self.link(digest, access);
        Ok(Proven::Held(answer))
    }

    fn link(self: &Arc<Self>, digest: &Digest, access: &Access) {
        let (grant, digest) = (access.grant.clone(), *digest);
        self.writes.add(&access.grant.repository, "a blob", move |store| store.link_layer(&grant, &digest));
    }

    /// Whether upstream has the blob in this repository, and its size.
    async fn size(self: &Arc<Self>, digest: &Digest, access: &Access) -> Result<Option<u64>, Error> {
        let (repository, identity) = (&access.grant.repository, access.identity);
        let key = ((access.caller(), access.hops.depth()), repository.clone(), *digest);
        let (mirror, hops) = (self.clone(), access.hops.clone());
        let size = self.sizes.join(key.clone(), || async move {
            let ((who, _), repository, digest) = key;
            let upstream = mirror.upstream_for(&repository, &hops)?;
            let head = upstream.blob_head(identity, &repository.name, &digest).await;
            head.map_err(|error| mirror.refuse(who, &repository, &Subject::Blob(digest), error))
        });
        size.await.unwrap_or_else(|| Err(lost(Subject::Blob(*digest).of(repository))))
    }

    /// How a cold blob is to be fetched. Who asks for a range with both ends may want no more than that;
    /// an open one is the beginning, or the rest, of the whole.
    async fn demand(
        self: &Arc<Self>,
        digest: &Digest,
        want: BlobWant,
        access: &Access,
    ) -> Result<Demand, Error> {
        let range = match want {
            BlobWant::Head | BlobWant::Whole => return Ok(Demand::Whole),
            BlobWant::Range(RangeRequest::From(_)) => return Ok(Demand::Ranges),
            BlobWant::Range(range) => range,
        };
        match self.size(digest, access).await {
            Ok(Some(size)) => {
                let range = range.resolve(size).map_err(|_| Error::Range { size })?;
                Ok(self.store.demand(size, range.len()))
            }
            Err(error @ (Error::NotFound(_) | Error::Denied { .. })) => Err(error),
            // The blob itself may be had all the same, and tells its size.
            Ok(None) | Err(_) => Ok(Demand::Ranges),
        }
    }

    /// Waits for upstream's head, and answers with the body as it comes. None: it was refused to another
    /// caller, or was a guess that had ended, which is no answer for this one.
    async fn follow(
        &self,
        access: &Access,
        mut reader: FillReader,
        want: BlobWant,
        served: Served,
        source: &BlobSource,
    ) -> Result<Option<BlobAnswer>, Error> {
        let repository = &access.grant.repository;
        let subject = Subject::Blob(reader.fill().digest);
        let failed = |error| {
            let upstream = upstream_error(&error).unwrap_or_else(|| crate::upstream::Error {
                operation: "GET blob",
                subject: subject.of(repository),
                cause: Cause::Trouble(error.to_string()),
            });
            self.refuse(access.caller(), repository, &subject, upstream)
        };
        let is_anothers = || access.caller().is_some() && !source.asked.load(Ordering::Relaxed);
        if matches!(want, BlobWant::Whole | BlobWant::Range(RangeRequest::From(_))) {
            reader.fill().want_whole();
        }
        let size = match reader.fill().clone().opened().await {
            Ok(size) => size,
            Err(error) if was_a_guess(&error) || is_anothers() => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        if let Ok(upstream) = self.upstream(repository) {
            self.blobs_flow.insert(upstream.options().host.clone(), self.clock.now());
        }
        if want == BlobWant::Head {
            return Ok(Some(BlobAnswer::head(size, served)));
        }
        // A range of what has no length cannot be told apart from the whole: all is answered.
        let range = size.map(|size| part(want, size)).transpose()?.flatten();
        if let Some(range) = range {
            reader.restrict(range);
        }
        let mut served = served;
        if reader.fill().is_partial() {
            // Each range of it is an answer of upstream's, or a refusal.
            match reader.begun().await {
                // It was refused in the name of who came first, and that is over.
                Err(_) if is_anothers() && reader.fill().is_over() => return Ok(None),
                begun => begun.map_err(failed)?,
            }
            served = Served::Range;
        }
        Ok(Some(BlobAnswer { size, range, body: Some(BlobReader::fill(reader)), served }))
    }
}

fn small(bytes: Bytes, want: BlobWant, served: Served) -> Result<BlobAnswer, Error> {
    let size = bytes.len() as u64;
    if want == BlobWant::Head {
        return Ok(BlobAnswer::head(Some(size), served));
    }
    let range = part(want, size)?;
    // The range lies within bytes in memory.
    let bytes = range.map_or(bytes.clone(), |range| bytes.slice(range.start as usize..range.end as usize));
    Ok(BlobAnswer { size: Some(size), range, body: Some(BlobReader::memory(bytes)), served })
}

/// All of a small blob. One that rotted counts as missing: it is fetched again.
async fn read_all(mut reader: BlobReader, size: u64, digest: &Digest) -> Option<Bytes> {
    let mut all = Vec::with_capacity(usize::try_from(size).ok()?);
    while let Some(piece) = reader.next().await {
        all.extend_from_slice(&piece.ok()?);
    }
    let right = Digest::of(digest.algorithm(), &all) == *digest;
    if !right {
        tracing::error!(%digest, "a blob on disk has other bytes than its digest says, and is ignored");
    }
    right.then(|| all.into())
}
