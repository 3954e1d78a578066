//! What is held and evicted at a person's wish.

use super::index::{Held, Key, Seconds, Usage, Victim, usage};
use super::{Error, Store};
use crate::oci::{Digest, Owner, Reference, Repository, UpstreamHost};

/// Which images are to go.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Bytes that are enough. None: all that is selected.
    pub bytes: Option<u64>,
    /// Those that nobody asked for since then.
    pub unused_since: Option<std::time::SystemTime>,
    pub upstream: Option<UpstreamHost>,
    /// This one alone: its repository's stored name and manifest.
    pub image: Option<(String, Digest)>,
}

/// What an image's name stands for, of what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    Absent,
    /// It is held, and nothing else that is held names it.
    Image(Digest),
    /// It is a part of another image.
    Part,
}

impl Selection {
    pub fn image(repository: &Repository, digest: Digest) -> Self {
        Self { image: Some((repository.stored_name(), digest)), ..Self::default() }
    }

    fn has(&self, image: Option<Key>, name: &str, held: &Held, key: Key, wanted: Seconds) -> bool {
        let since = self.unused_since.map(super::index::seconds);
        let of = |host: &UpstreamHost| held.owner == Some(Owner::Upstream(host.clone()));
        self.image.as_ref().is_none_or(|(of, _)| of == name && image == Some(key))
            && since.is_none_or(|since| wanted < since)
            && self.upstream.as_ref().is_none_or(of)
    }
}

impl Store {
    /// What uses the space. Blocks.
    pub fn usage(&self) -> Usage {
        self.note_wanted();
        self.index.facts(usage)
    }

    /// Whose a repository is, as far as is known.
    pub fn owner_of(&self, stored_name: &str) -> Option<Owner> {
        self.index.facts(|facts| facts.repository(stored_name).and_then(|held| held.owner.clone()))
    }

    /// Bytes that are gone and still read.
    pub fn lingering(&self) -> u64 {
        self.open.lingering()
    }

    /// Whether an image is pinned, by command or configuration.
    pub fn pinned_in(&self, usage: &Usage) -> Result<Vec<(String, Key)>, Error> {
        let pinned = self.pinned()?;
        let all = usage.repositories.iter().flat_map(|of| of.images.iter().map(move |image| (of, image)));
        let is_pinned = |name: &str, key: Key| pinned.get(name).is_some_and(|of| of.contains(&key));
        let found = all.filter(|(of, image)| is_pinned(&of.stored_name, image.key));
        Ok(found.map(|(of, image)| (of.stored_name.to_string(), image.key)).collect())
    }

    /// What is held under an image's name.
    pub fn named(&self, repository: &Repository, reference: &Reference) -> Named {
        self.index.facts(|facts| {
            let Some(held) = facts.repository(&repository.stored_name()) else { return Named::Absent };
            let key = match reference {
                Reference::Digest(digest) => Some(facts.key(digest)),
                Reference::Tag(tag) => held.tags.get(tag).copied(),
            };
            let found = key.and_then(|key| held.manifests.get(&key).map(|manifest| (key, manifest.data)));
            let Some((key, data)) = found else { return Named::Absent };
            match facts.digest(data) {
                Some(digest) if held.roots().any(|root| root == key) => Named::Image(digest),
                Some(_) => Named::Part,
                None => Named::Absent,
            }
        })
    }

    /// What of a selection may go, least recently asked for first. Blocks.
    pub fn select(&self, selection: &Selection) -> Result<Vec<Victim>, Error> {
        let image = selection.image.as_ref().map(|(_, digest)| self.index.facts(|facts| facts.key(digest)));
        let among = |name: &str, held: &Held, key, wanted| selection.has(image, name, held, key, wanted);
        self.victims(selection.bytes.unwrap_or(u64::MAX), &among)
    }

    /// The tags that lead to what goes.
    pub fn tags_to(&self, victim: &Victim) -> Vec<String> {
        let tags = self.tags_of(&victim.repository, &victim.manifests);
        tags.iter().map(ToString::to_string).collect()
    }
}
