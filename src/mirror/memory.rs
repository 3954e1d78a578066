//! What is hot, bounded by bytes: tag -> digest, digest -> manifest, links, small blobs, refusals.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use foldhash::quality::RandomState;

use super::referrers::KnownReferrers;
use super::standing::Standing;
use super::{Options, Who};
use crate::answer::{Error, Referrer, TagsAnswer};
use crate::oci::{Digest, Manifest, MediaType, Reference, Repository, Tag};
use crate::upstream::CallerId;

/// Blobs up to this size are served from memory: image configurations, mostly.
pub const SMALL_BLOB: u64 = 64 * 1024;
/// What an entry costs beside its content (measured: 353-385 bytes, and the key).
const ENTRY: u32 = 512;

/// By a hash that is fast for short keys, seeded anew in each process: a hit looks up four of them.
pub type Cache<K, V> = moka::sync::Cache<K, V, RandomState>;

/// Of so many entries at most.
pub fn cache<K, V>(entries: u64) -> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    moka::sync::Cache::builder().max_capacity(entries).build_with_hasher(RandomState::default())
}

/// What is asked for, within a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Manifest(Reference),
    Blob(Digest),
    Referrers(Digest),
    Tags,
}

impl Subject {
    /// As messages name it.
    pub fn of(&self, repository: &Repository) -> String {
        match self {
            Self::Manifest(reference) => reference.of(repository),
            Self::Blob(digest) => format!("blob {digest} of {repository}"),
            Self::Referrers(digest) => format!("the referrers of {repository}@{digest}"),
            Self::Tags => format!("the tag list of {repository}"),
        }
    }
}

/// A manifest that the repository has.
pub struct HeldManifest {
    pub digest: Digest,
    pub bytes: Bytes,
    pub manifest: Manifest,
    /// Whether the disk has taken it.
    pub kept: AtomicBool,
    /// When it was last noted that somebody asked for it, in seconds since the mirror's start.
    pub noted: AtomicU64,
}

/// A tag as last seen.
pub struct KnownTag {
    pub digest: Digest,
    /// Told by HEAD; the manifest itself may not be held yet.
    pub head: Option<(MediaType, u64)>,
    /// When upstream last said so.
    pub seen: SystemTime,
    /// Until then it is answered without asking.
    pub fresh_until: Instant,
    /// Since when upstream says that there is no such tag.
    pub gone_since: Option<Instant>,
    /// Why it is stale, where upstream could not confirm it.
    pub stale: Option<String>,
    /// Whether its manifest is held, and the tag on disk says the same.
    pub kept: AtomicBool,
    /// The manifest that is held under the tag, while this one is not yet.
    pub before: Option<Digest>,
}

pub struct Memory {
    pub manifests: Cache<(Repository, Digest), Arc<HeldManifest>>,
    pub tags: Cache<(Repository, Tag), Arc<KnownTag>>,
    pub layers: Cache<(Repository, Digest), ()>,
    pub blobs: Cache<Digest, Bytes>,
    pub standings: Cache<Repository, Arc<Standing>>,
    pub lists: Cache<Repository, (TagsAnswer, Instant)>,
    pub referrers: Cache<(Repository, Digest), Arc<KnownReferrers>>,
    /// When callers last showed that they may pull a repository.
    pub rights: Cache<(CallerId, Repository), Instant>,
    refusals: Cache<(Who, Repository, Subject), (Error, Instant)>,
}

/// About how much memory a referrer takes.
fn text_of(referrer: &Referrer) -> usize {
    let annotations = referrer.annotations.iter().flatten();
    let annotations: usize = annotations.map(|(key, value)| key.len() + value.len() + 64).sum();
    let kind = referrer.artifact_type.as_deref().map_or(0, str::len);
    size_of::<Referrer>() + referrer.media_type.len() + referrer.digest.len() + kind + annotations
}

impl Memory {
    pub fn new(options: &Options) -> Self {
        let share = |part: u64| options.metadata_memory / 8 * part;
        let entries = |part: u64| share(part) / u64::from(ENTRY);
        let bytes = |bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX).saturating_add(ENTRY);
        Self {
            // The view beside the bytes is about as large as they are.
            manifests: moka::sync::Cache::builder()
                .max_capacity(share(4))
                .weigher(move |_, held: &Arc<HeldManifest>| bytes(&held.bytes).saturating_mul(2))
                .build_with_hasher(RandomState::default()),
            tags: cache(entries(1)),
            layers: cache(entries(1)),
            blobs: moka::sync::Cache::builder()
                .max_capacity(options.blob_memory)
                .weigher(move |_, blob: &Bytes| bytes(blob))
                .build_with_hasher(RandomState::default()),
            standings: cache(entries(1) / 2),
            lists: moka::sync::Cache::builder()
                .max_capacity(share(1) / 2)
                .weigher(|_, (answer, _): &(TagsAnswer, Instant)| {
                    let text: usize = answer.tags.iter().map(|tag| tag.as_str().len() + 40).sum();
                    u32::try_from(text).unwrap_or(u32::MAX).saturating_add(ENTRY)
                })
                .build_with_hasher(RandomState::default()),
            referrers: moka::sync::Cache::builder()
                .max_capacity(share(1) / 2)
                .weigher(|_, known: &Arc<KnownReferrers>| {
                    let text: usize = known.list.iter().map(text_of).sum();
                    u32::try_from(text).unwrap_or(u32::MAX).saturating_add(ENTRY)
                })
                .build_with_hasher(RandomState::default()),
            rights: cache(entries(1) / 4),
            refusals: cache(entries(1) / 4),
        }
    }

    pub fn refuse(&self, who: Who, repository: &Repository, subject: &Subject, error: Error, until: Instant) {
        self.refusals.insert((who, repository.clone(), subject.clone()), (error, until));
    }

    /// What was refused to everybody is asked for anew.
    pub fn allow(&self, repository: &Repository, subject: Subject) {
        self.refusals.invalidate(&(None, repository.clone(), subject));
    }

    pub fn refusal(
        &self,
        who: Who,
        repository: &Repository,
        subject: &Subject,
        now: Instant,
    ) -> Option<Error> {
        let key = (who, repository.clone(), subject.clone());
        let (mut error, until) = self.refusals.get(&key)?;
        if now >= until {
            self.refusals.invalidate(&key);
            return None;
        }
        if let Error::UpstreamLimited { retry_after, .. } = &mut error {
            *retry_after = until - now;
        }
        Some(error)
    }
}
