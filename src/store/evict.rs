//! Eviction: mirrored images go, the one that nobody asked for the longest first, to make room for others.
//!
//! What goes is decided in [`super::index`]; here it is taken away. An image's links go first, durably, then
//! the data that no link leads to any more: a power loss leaves data without a link at worst, which is
//! found at the next start. All of it happens under the lock that who links data waits for, and what was
//! asked for since it was chosen stays.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::index::{Event, Facts, Held, Key, Keys, Progress, Seconds, Spare, Victim, choose};
use super::links::ALGORITHMS;
use super::pins::Pinned;
use super::room::{Reservation, Shortage};
use super::{Error, Store, layout};
use crate::oci::{Digest, Repository, Tag};
use crate::tasks::lock;

/// Where room is made, this part of the cap is made at least: to choose goes through the whole index.
const BATCH: u64 = 64;
/// Images of a repository that go while others wait to link theirs.
const AT_ONCE: usize = 32;
/// How often room is made again, because others took it or images came into use meanwhile.
const ROUNDS: usize = 8;

/// What has been evicted of a repository.
#[derive(Clone, Debug)]
pub struct Evicted {
    pub repository: Repository,
    pub manifests: Vec<Digest>,
    pub layers: Vec<Digest>,
    pub tags: Vec<Tag>,
}

/// Somebody who remembers what is held, and is to forget what is not.
pub trait Remembers: Send + Sync {
    fn forget(&self, evicted: &Evicted);
}

/// Narrows what may be evicted to some images, by repository, manifest, and when they were last asked for.
pub type Among<'a> = &'a dyn Fn(&str, &Held, Key, Seconds) -> bool;

/// Whether the configuration has a repository as a mirrored one.
pub type Serves = dyn Fn(&Repository) -> bool + Send + Sync;

/// Spares what is pinned, read, or on its way.
struct Needed<'a> {
    store: &'a Store,
    pinned: Pinned,
    stuck: BTreeSet<String>,
    on_their_way: HashSet<Key>,
    /// None: whether the configuration has it does not matter.
    serves: Option<Arc<Serves>>,
}

impl Spare for Needed<'_> {
    fn is_foreign(&self, repository: &str, held: &Held) -> bool {
        self.serves.as_ref().is_some_and(|serves| {
            let repository = Repository::stored_as(repository, held.owner.as_ref());
            repository.is_none_or(|repository| !serves(&repository))
        })
    }

    fn is_pinned(&self, repository: &str, manifest: Key) -> bool {
        self.pinned.get(repository).is_some_and(|pinned| pinned.contains(&manifest))
            || self.stuck.contains(repository)
    }

    fn is_on_its_way(&self, key: Key) -> bool {
        self.on_their_way.contains(&key)
    }

    fn is_open(&self, digest: &Digest) -> bool {
        self.store.open.is_open(digest)
    }
}

impl Store {
    /// Has somebody told of what is evicted, as long as it is there.
    pub fn remembered_by(&self, who: Weak<dyn Remembers>) {
        let mut remembering = lock(&self.remembering);
        remembering.retain(|who| who.strong_count() > 0);
        remembering.push(who);
    }

    /// Room is made only of what the configuration has as an upstream's: what disagrees with it is neither
    /// served nor evicted, but at a person's wish.
    pub fn makes_room_of(&self, serves: Arc<Serves>) {
        *lock(&self.serves) = serves;
    }

    /// What room may be made of now, chosen as far as that takes to have so many bytes.
    fn dispensable(&self, need: u64) -> Result<Vec<Victim>, Error> {
        let serves = lock(&self.serves).clone();
        self.chosen(need, &|_, _, _, _| true, Some(serves))
    }

    /// Reserves `more` bytes, and evicts for that what has to go. None: there is not as much that may go.
    /// Blocks.
    pub(super) fn make_room(&self, more: u64) -> Result<Option<Reservation>, Error> {
        for _ in 0..ROUNDS {
            if let Some(reserved) = self.reserve(more) {
                return Ok(Some(reserved));
            }
            let _turn = lock(&self.room.turn);
            match self.shortage(more)? {
                // Who had the turn before made enough.
                Shortage::None => {}
                Shortage::Hopeless => return Ok(None),
                Shortage::Of(short) => {
                    let batch = short.max(self.cap()? / BATCH);
                    let victims = self.dispensable(batch)?;
                    // Where all that may go is not enough, it is of more use here.
                    if victims.iter().map(|victim| victim.bytes).sum::<u64>() >= short {
                        self.evict(&victims)?;
                    } else if self.drop_orphans()? == 0 {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(self.reserve(more))
    }

    /// Evicts what is too much: the cap was lowered, or what is pushed takes its part of it. Blocks.
    pub fn trim(&self) -> Result<(), Error> {
        let _turn = lock(&self.room.turn);
        lock(&self.room.stuck).clear();
        for _ in 0..ROUNDS {
            let Shortage::Of(short) = self.shortage(0)? else {
                self.room.told_full.store(false, Ordering::Relaxed);
                return Ok(());
            };
            if self.drop_orphans()? > 0 {
                continue;
            }
            let victims = self.dispensable(short.max(self.cap()? / BATCH))?;
            if victims.is_empty() {
                if !self.room.told_full.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        bytes = short,
                        "too much is held, or too little of the disk is free, and nothing more may be evicted: what \
                         is pulled now is passed on and not kept"
                    );
                }
                return Ok(());
            }
            self.evict(&victims)?;
        }
        Ok(())
    }

    /// What would go for `need` bytes. Nothing, as long as the index is not whole.
    pub fn victims(&self, need: u64, among: Among<'_>) -> Result<Vec<Victim>, Error> {
        self.chosen(need, among, None)
    }

    fn chosen(&self, need: u64, among: Among<'_>, serves: Option<Arc<Serves>>) -> Result<Vec<Victim>, Error> {
        if self.index.progress() != Progress::Whole {
            return Ok(Vec::new());
        }
        self.note_wanted();
        let needed = Needed { serves, ..self.needed()? };
        Ok(self.index.facts(|facts| choose(facts, need, &needed, among)))
    }

    /// Takes away data that no link leads to, and that nobody is about to link: bytes of it.
    pub(super) fn drop_orphans(&self) -> Result<u64, Error> {
        if self.index.progress() != Progress::Whole {
            return Ok(0);
        }
        let orphans: Vec<_> = self.index.facts(|facts| facts.orphans().collect());
        if orphans.is_empty() {
            return Ok(0);
        }
        let (mut bytes, domains) = (0, self.proof_domains()?);
        for (key, digest) in orphans {
            let _removing = self.leases.remove_data();
            let size = self.index.facts(|facts| facts.is_orphan(key).then(|| facts.size(key)));
            if let Some(size) = size
                && !self.leases.is_data_leased(&digest)
            {
                self.remove_evicted(&digest, &domains)?;
                bytes += size;
            }
        }
        Ok(bytes)
    }

    fn needed(&self) -> Result<Needed<'_>, Error> {
        let fetched: Vec<Digest> = lock(&self.fills).keys().map(|(_, digest)| *digest).collect();
        let on_their_way = self.index.facts(|facts| fetched.iter().map(|digest| facts.key(digest)).collect());
        let stuck = lock(&self.room.stuck).clone();
        Ok(Needed { store: self, pinned: self.pinned()?, stuck, on_their_way, serves: None })
    }

    /// Takes these away, as far as nobody came to need them. Gives those that went. Blocks.
    pub fn evict(&self, victims: &[Victim]) -> Result<Vec<Victim>, Error> {
        let mut by_repository: BTreeMap<&str, Vec<&Victim>> = BTreeMap::new();
        for victim in victims {
            by_repository.entry(&victim.repository).or_default().push(victim);
        }
        let mut gone = Vec::new();
        for (name, victims) in by_repository {
            for some in victims.chunks(AT_ONCE) {
                let went = self.evict_some(name, some).unwrap_or_else(|error| {
                    tracing::error!(repository = name, %error, "cannot be evicted, and is left for now");
                    lock(&self.room.stuck).insert(name.to_owned());
                    0
                });
                let all = went == some.len();
                gone.extend(some[..went].iter().map(|victim| (*victim).clone()));
                if !all {
                    // What the others share with one that stays is not theirs to take along.
                    break;
                }
            }
        }
        let bytes = gone.iter().map(|victim| victim.bytes).sum::<u64>();
        self.metrics.evictions.inc_by(gone.len() as u64);
        self.metrics.evicted_bytes.inc_by(bytes);
        if !gone.is_empty() {
            tracing::info!(images = gone.len(), bytes, "evicted");
        }
        Ok(gone)
    }

    /// How many of these went, of one repository.
    fn evict_some(&self, name: &str, victims: &[&Victim]) -> Result<usize, Error> {
        self.note_wanted();
        let removing = self.leases.remove_data();
        let needed = self.needed()?;
        let stay = self.index.facts(|facts| {
            let held = facts.repository(name);
            let others = held.map(|held| named_beside(facts, held, victims)).unwrap_or_default();
            victims.iter().position(|victim| is_needed(facts, held, &needed, &others, victim))
        });
        let victims = &victims[..stay.unwrap_or(victims.len())];
        let owner = self.owner_of(name);
        let Some(repository) = Repository::stored_as(name, owner.as_ref()).filter(|_| !victims.is_empty())
        else {
            return Ok(0);
        };
        let manifests: Vec<Digest> = victims.iter().flat_map(|victim| &victim.manifests).copied().collect();
        let layers: Vec<Digest> = victims.iter().flat_map(|victim| &victim.layers).copied().collect();
        let evicted = Evicted { tags: self.tags_of(name, &manifests), repository, manifests, layers };
        // Counted before anybody is told: of what failed, nobody can be sure.
        let done = self.remove_from(name, &evicted).inspect_err(|_| self.metrics.store_errors.inc());
        drop(removing);
        // Of what failed, a part may be done.
        self.tell_evicted(&evicted);
        done.map(|()| victims.len())
    }

    /// Only with the lock held under which data is removed.
    fn remove_from(&self, name: &str, evicted: &Evicted) -> Result<(), Error> {
        self.unlink_evicted(name, evicted)?;
        let linked = evicted.manifests.iter().chain(&evicted.layers);
        let orphans: HashSet<Digest> = self
            .index
            .facts(|facts| linked.filter(|digest| facts.is_orphan(facts.key(digest))).copied().collect());
        let domains = self.proof_domains()?;
        orphans.iter().try_for_each(|digest| self.remove_evicted(digest, &domains))?;
        if self.index.facts(|facts| facts.repository(name).is_some_and(Held::is_empty)) {
            self.drop_empty_dirs(&evicted.repository)?;
            // Whose it was is looked up when it gets content again.
            self.index.record(Event::Owner { repository: name.to_owned(), owner: None });
        }
        Ok(())
    }

    /// What is left of a repository that holds nothing: its record stays, and says whose it was.
    fn drop_empty_dirs(&self, repository: &Repository) -> Result<(), Error> {
        let (own, name) = (layout::repository(repository), repository.stored_name());
        let links = ALGORITHMS.iter().flat_map(|algorithm| {
            [layout::layers(repository, *algorithm), layout::revisions(repository, *algorithm)]
        });
        let parts = [layout::LAYERS, layout::REVISIONS, layout::TAGS].map(|part| layout::links(&name, part));
        links
            .chain(parts)
            .chain([layout::manifests(&name), own])
            .try_for_each(|dir| self.home.drop_husk(&format!("{dir}/link")))
    }

    pub(super) fn tell_evicted(&self, evicted: &Evicted) {
        let remembering: Vec<_> = lock(&self.remembering).iter().filter_map(Weak::upgrade).collect();
        remembering.iter().for_each(|who| who.forget(evicted));
    }

    pub(super) fn tags_of(&self, name: &str, manifests: &[Digest]) -> Vec<Tag> {
        self.index.facts(|facts| {
            let gone: HashSet<Key> = manifests.iter().map(|digest| facts.key(digest)).collect();
            let tags = facts.repository(name).into_iter().flat_map(|held| &held.tags);
            tags.filter(|(_, key)| gone.contains(key)).map(|(tag, _)| tag.clone()).collect()
        })
    }

    /// Tags first, then manifests, then blobs; each kind is synced once.
    fn unlink_evicted(&self, name: &str, evicted: &Evicted) -> Result<(), Error> {
        let Evicted { repository, manifests, layers, tags } = evicted;
        for tag in tags {
            self.home.delete_tree(&layout::tag(repository, tag))?;
            self.unmark_gone(repository, tag)?;
        }
        // Of which a kill has left a part: a power loss could bring back the rest.
        let mut unknown = self.tag_directories(repository)?;
        self.index.facts(|facts| {
            let known = facts.repository(name).map(|held| &held.tags);
            unknown.retain(|tag| known.is_none_or(|known| !known.contains_key(tag)));
        });
        for tag in unknown {
            if self.home.stat(&layout::tag_current(repository, &tag))?.is_none() {
                self.home.delete_tree(&layout::tag(repository, &tag))?;
            }
        }
        for digest in manifests {
            let list = layout::referrers(repository, digest);
            if self.home.stat(&list)?.is_some() {
                self.home.delete(&list)?;
            }
        }
        self.home.sync_all(&[layout::tags(repository)])?;
        for (digests, dir, link) in [
            (
                manifests,
                layout::revisions as fn(&Repository, _) -> String,
                layout::revision as fn(&_, &_) -> String,
            ),
            (layers, layout::layers, layout::layer),
        ] {
            let mut dirs = HashSet::new();
            for digest in digests {
                self.home.remove_with_dir_unsynced(&link(repository, digest))?;
                dirs.insert(dir(repository, digest.algorithm()));
            }
            self.home.sync_all(&dirs)?;
        }
        let of = || name.to_owned();
        for tag in tags {
            self.index.record(Event::TagGone { repository: of(), tag: tag.clone() });
        }
        for digest in manifests {
            self.index.record(Event::ManifestGone { repository: of(), name: *digest });
        }
        for digest in layers {
            self.index.record(Event::LayerGone { repository: of(), name: *digest });
        }
        Ok(())
    }

    /// Data that nothing leads to. Only with the lock held under which data is removed.
    fn remove_evicted(&self, digest: &Digest, domains: &[String]) -> Result<(), Error> {
        for domain in domains {
            self.home.remove_unsynced(&layout::proof_in(domain, digest))?;
        }
        self.home.remove_with_dir_unsynced(&layout::data(digest))?;
        self.data_gone(digest);
        Ok(())
    }
}

/// What manifests name that are none of the victims'.
fn named_beside(facts: &Facts, held: &Held, victims: &[&Victim]) -> Keys {
    let gone: Keys =
        victims.iter().flat_map(|victim| &victim.manifests).map(|gone| facts.key(gone)).collect();
    let others = held.manifests.iter().filter(|(key, _)| !gone.contains(key));
    others.flat_map(|(_, manifest)| manifest.names.iter().copied()).collect()
}

/// Whether somebody came to need something of it since it was chosen.
fn is_needed(
    facts: &Facts,
    held: Option<&Held>,
    needed: &Needed<'_>,
    others: &Keys,
    victim: &Victim,
) -> bool {
    let Some(held) = held else { return true };
    let mut names = victim.manifests.iter().chain(&victim.layers);
    names.any(|digest| {
        let key = facts.key(digest);
        let is_wanted = held
            .manifests
            .get(&key)
            .is_some_and(|found| found.wanted > victim.wanted || needed.is_pinned(&victim.repository, key));
        is_wanted || others.contains(&key) || needed.is_on_its_way(key) || needed.is_open(digest)
    })
}
