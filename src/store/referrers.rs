//! Lists of referrers as upstreams told them: our own files beside the tree, one for each subject.
//! Disposable: a list that is missing is asked for again.

use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Error, Grant, OriginState, Store, layout};
use crate::oci::{self, Digest, MANIFEST_MAX, Referrer, Repository, Tag};

/// Largest list that is kept: more than an upstream's list has (`upstream` cuts it).
const LIST_MAX: usize = 3 * MANIFEST_MAX;

/// The referrers of a manifest, as upstream last told them.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldReferrers {
    pub referrers: Vec<Referrer>,
    /// The fallback tag's index that they stand in, where the upstream has no referrers API.
    pub index: Option<Digest>,
    /// When upstream last said so: the file's time.
    pub seen: SystemTime,
}

#[derive(Serialize, Deserialize)]
struct Record<R> {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<String>,
    referrers: R,
}

impl Store {
    /// The list that was kept, else the one in the fallback tag's index, where that was mirrored.
    pub fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Option<HeldReferrers>, Error> {
        // Whose the list is, and who may see it, is told by the repository's origin.
        if !matches!(self.origin(repository)?, OriginState::Known(_)) {
            return Ok(None);
        }
        let key = layout::referrers(repository, subject);
        let Some(text) = self.home.read(&key, LIST_MAX)? else {
            return self.referrers_by_tag(repository, subject);
        };
        let Ok(record) = serde_json::from_slice::<Record<Vec<Referrer>>>(&text) else {
            tracing::warn!(key, "a kept list of referrers cannot be read and is ignored");
            return self.referrers_by_tag(repository, subject);
        };
        let seen = self.home.stat(&key)?.map_or(SystemTime::UNIX_EPOCH, |stat| stat.modified);
        let index = record.index.and_then(|index| index.parse().ok());
        Ok(Some(HeldReferrers { referrers: record.referrers, index, seen }))
    }

    fn referrers_by_tag(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Option<HeldReferrers>, Error> {
        let Some(tag) = self.tag(repository, &Tag::of_referrers(subject))? else { return Ok(None) };
        let bytes = self.manifest(repository, &tag.digest)?;
        let listed = bytes.and_then(|bytes| oci::referrers(&bytes).ok().flatten());
        Ok(listed.map(|referrers| HeldReferrers { referrers, index: Some(tag.digest), seen: tag.seen }))
    }

    /// Keeps a list that upstream told at this time. An empty one is kept for a manifest that is held,
    /// or in place of another: whoever asks for digests at random does not fill the disk.
    pub fn put_referrers(
        &self,
        grant: &Grant,
        subject: &Digest,
        referrers: &[Referrer],
        index: Option<Digest>,
        seen: SystemTime,
    ) -> Result<(), Error> {
        let key = layout::referrers(&grant.repository, subject);
        let failed = |source| {
            let path = self.data_dir().join(&key);
            Error { operation: "write", path, source: Arc::new(source) }
        };
        let record = Record { index: index.map(|index| index.to_string()), referrers };
        let text = serde_json::to_vec(&record).map_err(|error| failed(error.into()))?;
        if text.len() > LIST_MAX {
            let why = format!("{} bytes, {LIST_MAX} at most are kept", text.len());
            return Err(failed(std::io::Error::other(why)));
        }
        let held = self.home.stat(&key)?;
        if held.is_none()
            && referrers.is_empty()
            && self.home.stat(&layout::revision(&grant.repository, subject))?.is_none()
        {
            return Ok(());
        }
        self.ensure_claimed(grant)?;
        let is_same = held.is_some_and(|stat| stat.is_file && stat.len == text.len() as u64)
            && self.home.read(&key, LIST_MAX)?.is_some_and(|held| held == text);
        if !is_same {
            self.home.put(&key, &text)?;
        }
        self.home.touch(&key, seen)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::disk::RealDisk;
    use crate::oci::{Owner, UpstreamHost};
    use crate::store::Visibility;
    use crate::tasks::Tasks;

    fn open(data: &std::path::Path) -> Arc<Store> {
        let options = crate::store::tests::options(data);
        Store::open(options, Arc::new(RealDisk), Arc::default(), Clock::default(), Tasks::default()).unwrap()
    }

    fn grant() -> Grant {
        let owner = Owner::Upstream(UpstreamHost::docker_hub());
        let repository = Repository { owner, name: "library/a".parse().unwrap() };
        Grant { repository, domain: "docker.io".into(), visibility: Visibility::Public }
    }

    fn referrer(of: &str, note: &str) -> Referrer {
        Referrer {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: Digest::sha256(of.as_bytes()).to_string(),
            size: 3,
            artifact_type: Some("text/x".to_owned()),
            annotations: Some([("note".to_owned(), note.to_owned())].into()),
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    #[test]
    fn a_list_is_kept_confirmed_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (store, grant, subject) = (open(dir.path()), grant(), Digest::sha256(b"subject"));
        let held = || store.referrers(&grant.repository, &subject).unwrap();
        assert_eq!(held(), None);
        let one = vec![referrer("one", "\u{e9} \u{1} \u{1f980}")];
        store.put_referrers(&grant, &subject, &one, None, at(0)).unwrap();
        assert_eq!(held(), Some(HeldReferrers { referrers: one.clone(), index: None, seen: at(0) }));
        store.put_referrers(&grant, &subject, &one, None, at(60)).unwrap();
        assert_eq!(held().unwrap().seen, at(60));
        let index = Some(Digest::sha256(b"index"));
        store.put_referrers(&grant, &subject, &[], index, at(90)).unwrap();
        assert_eq!(held(), Some(HeldReferrers { referrers: vec![], index, seen: at(90) }));
        // Another algorithm's list is another list; a file that rotted counts as missing.
        let long = Digest::of(oci::Algorithm::Sha512, b"subject");
        assert_eq!(store.referrers(&grant.repository, &long).unwrap(), None);
        let file = dir.path().join(layout::referrers(&grant.repository, &subject));
        std::fs::write(file, "{").unwrap();
        assert_eq!(held(), None);
    }

    #[test]
    fn an_empty_list_is_kept_for_what_is_held_only() {
        let dir = tempfile::tempdir().unwrap();
        let (store, grant, subject) = (open(dir.path()), grant(), Digest::sha256(b"subject"));
        store.put_referrers(&grant, &subject, &[], None, at(0)).unwrap();
        assert_eq!(store.origin(&grant.repository).unwrap(), OriginState::Absent, "nothing is held of it");
        store.put_manifest(&grant, &subject, b"subject").unwrap();
        assert_eq!(store.referrers(&grant.repository, &subject).unwrap(), None);
        store.put_referrers(&grant, &subject, &[], None, at(0)).unwrap();
        assert!(store.referrers(&grant.repository, &subject).unwrap().unwrap().referrers.is_empty());
    }

    #[test]
    fn a_list_too_large_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (store, grant, subject) = (open(dir.path()), grant(), Digest::sha256(b"subject"));
        let overhead =
            serde_json::to_vec(&Record { index: None, referrers: [referrer("x", "")] }).unwrap().len();
        let sized = |size: usize| vec![referrer("x", &"a".repeat(size - overhead))];
        store.put_referrers(&grant, &subject, &sized(LIST_MAX), None, at(0)).unwrap();
        assert_eq!(store.referrers(&grant.repository, &subject).unwrap().unwrap().referrers, sized(LIST_MAX));
        assert!(store.put_referrers(&grant, &subject, &sized(LIST_MAX + 1), None, at(0)).is_err());
    }

    #[test]
    fn a_mirrored_fallback_tag_stands_in_for_a_list() {
        let dir = tempfile::tempdir().unwrap();
        let (store, grant, subject) = (open(dir.path()), grant(), Digest::sha256(b"subject"));
        let list = vec![referrer("one", "")];
        let index = serde_json::to_vec(&serde_json::json!({ "manifests": &list })).unwrap();
        let digest = Digest::sha256(&index);
        let tag = Tag::of_referrers(&subject);
        store.put_manifest(&grant, &digest, &index).unwrap();
        store.put_tag(&grant, &tag, &digest, at(5)).unwrap();
        let held = store.referrers(&grant.repository, &subject).unwrap();
        assert_eq!(held, Some(HeldReferrers { referrers: list, index: Some(digest), seen: at(5) }));
        // What is no index says nothing.
        let other = b"{\"config\":{}}";
        store.put_manifest(&grant, &Digest::sha256(other), other).unwrap();
        store.put_tag(&grant, &tag, &Digest::sha256(other), at(6)).unwrap();
        assert_eq!(store.referrers(&grant.repository, &subject).unwrap(), None);
    }
}
