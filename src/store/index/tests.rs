//! Facts against a count by hand, and choices against what may be chosen.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::oci::{Owner, Tag};

fn digest(number: u32) -> Digest {
    Digest::sha256(&number.to_le_bytes())
}

fn upstream() -> Option<Owner> {
    Some(Owner::Upstream("docker.io".parse().unwrap()))
}

fn layer(repository: &str, number: u32) -> Event {
    Event::Layer { repository: repository.into(), name: digest(number), data: digest(number), at: 0 }
}

fn manifest(repository: &str, number: u32, names: &[u32], at: Seconds) -> Event {
    let names = names.iter().map(|number| digest(*number)).collect();
    Event::Manifest { repository: repository.into(), name: digest(number), data: digest(number), names, at }
}

fn data(number: u32, size: u64) -> Event {
    Event::Data { digest: digest(number), size }
}

fn owner(repository: &str, owner: Option<Owner>) -> Event {
    Event::Owner { repository: repository.into(), owner }
}

fn of(events: impl IntoIterator<Item = Event>) -> Facts {
    let mut facts = Facts::default();
    events.into_iter().for_each(|event| facts.apply(&event));
    facts
}

#[derive(Default)]
struct Spared {
    pinned: HashSet<(String, u32)>,
    busy: HashSet<u32>,
    fetched: HashSet<u32>,
    known: Vec<Digest>,
    keys: BTreeMap<Key, u32>,
}

impl Spare for Spared {
    fn is_foreign(&self, _: &str, _: &Held) -> bool {
        false
    }

    fn is_pinned(&self, repository: &str, manifest: Key) -> bool {
        self.pinned.contains(&(repository.to_owned(), self.keys[&manifest]))
    }

    fn is_on_its_way(&self, key: Key) -> bool {
        self.fetched.contains(&self.keys[&key])
    }

    fn is_open(&self, digest: &Digest) -> bool {
        let number = self.known.iter().position(|known| known == digest);
        self.busy.contains(&(number.unwrap() as u32))
    }
}

fn spared(facts: &Facts, numbers: u32) -> Spared {
    let known: Vec<Digest> = (0..numbers).map(digest).collect();
    let keys = known.iter().map(|digest| facts.key(digest)).zip(0..).collect();
    Spared { known, keys, ..Spared::default() }
}

fn roots(victims: &[Victim]) -> Vec<(String, Option<Digest>)> {
    victims.iter().map(|victim| (victim.repository.to_string(), victim.root)).collect()
}

#[test]
fn images_go_whole_and_what_they_share_goes_with_the_last() {
    // Two images share layer 10; another repository has it too, and a hosted one layer 12.
    let facts = of([
        owner("a", upstream()),
        owner("b", upstream()),
        owner("mine", Some(Owner::Hosted)),
        data(1, 1),
        data(2, 1),
        data(3, 1),
        data(10, 100),
        data(11, 1000),
        data(12, 10_000),
        manifest("a", 1, &[10, 11], 5),
        manifest("a", 2, &[10, 12], 6),
        manifest("b", 3, &[10], 7),
        layer("a", 10),
        layer("a", 11),
        layer("a", 12),
        layer("b", 10),
        layer("mine", 12),
    ]);
    let none = spared(&facts, 13);
    let all = |_: &str, _: &Held, _: Key, _: Seconds| true;
    let one = choose(&facts, 1, &none, &all);
    assert_eq!(roots(&one), [("a".into(), Some(digest(1)))]);
    assert_eq!((one[0].bytes, &one[0].layers[..]), (1001, &[digest(11)][..]), "what is shared stays");
    let everything = choose(&facts, u64::MAX, &none, &all);
    assert_eq!(everything.iter().map(|victim| victim.bytes).collect::<Vec<_>>(), [1001, 1, 101]);
    let layers: BTreeSet<_> = everything[1].layers.iter().copied().collect();
    assert_eq!(layers, BTreeSet::from([digest(10), digest(12)]), "links go, though others keep the data");
    // A pinned image keeps what it shares.
    let pinned = Spared { pinned: [("a".to_owned(), 2)].into(), ..spared(&facts, 13) };
    assert_eq!(roots(&choose(&facts, u64::MAX, &pinned, &all)).len(), 2);
    let reading = Spared { busy: [10].into(), ..spared(&facts, 13) };
    assert_eq!(choose(&facts, u64::MAX, &reading, &all), [], "all of them have it");
    // Also where nothing of it is held yet: it is an image's next blob.
    let fetching = Spared { fetched: [11].into(), ..spared(&facts, 13) };
    assert!(choose(&facts, u64::MAX, &fetching, &all).iter().all(|victim| victim.root != Some(digest(1))));
    let only = |name: &str, _: &Held, _: Key, _: Seconds| name == "b";
    assert_eq!(roots(&choose(&facts, u64::MAX, &none, &only)), [("b".into(), Some(digest(3)))]);
}

#[test]
fn an_index_goes_with_its_children_and_is_as_young_as_they() {
    let facts = of([
        owner("a", upstream()),
        data(1, 1),
        data(2, 1),
        data(3, 1),
        data(10, 10),
        data(20, 10),
        manifest("a", 1, &[2, 3, 99], 1),
        manifest("a", 2, &[10], 50),
        manifest("a", 3, &[], 1),
        layer("a", 10),
        // Nobody names it.
        layer("a", 20),
        manifest("a", 4, &[], 20),
    ]);
    let all = |_: &str, _: &Held, _: Key, _: Seconds| true;
    let victims = choose(&facts, u64::MAX, &spared(&facts, 100), &all);
    assert_eq!(
        roots(&victims),
        [("a".into(), None), ("a".into(), Some(digest(4))), ("a".into(), Some(digest(1)))]
    );
    assert_eq!(victims[2].manifests.len(), 3);
    assert_eq!(victims[2].bytes, 13);
    assert_eq!(victims[2].wanted, 50);
}

/// What is held by a count that takes its time.
#[derive(Clone, Default)]
struct Model {
    data: BTreeMap<u32, u64>,
    layers: BTreeSet<(String, u32)>,
    manifests: BTreeMap<(String, u32), (Vec<u32>, Seconds)>,
}

const THINGS: u32 = 24;

fn random_event(random: &mut StdRng, model: &mut Model) -> Event {
    let repository = ["a", "b", "hosted"][random.random_range(0..3)].to_owned();
    let number = random.random_range(0..THINGS);
    match random.random_range(0..12) {
        0..4 => {
            // The same bytes always have the same size.
            let size = u64::from(number) * 7 + 1;
            model.data.insert(number, size);
            data(number, size)
        }
        4 => {
            model.data.remove(&number);
            Event::DataGone { digest: digest(number) }
        }
        5..8 => {
            model.layers.insert((repository.clone(), number));
            layer(&repository, number)
        }
        8 => {
            model.layers.remove(&(repository.clone(), number));
            Event::LayerGone { repository, name: digest(number) }
        }
        9 => {
            model.manifests.remove(&(repository.clone(), number));
            Event::ManifestGone { repository, name: digest(number) }
        }
        _ => {
            // What is named comes before in number: no manifest can name itself.
            let names: Vec<u32> =
                (0..number).filter(|_| random.random_bool(3.0 / f64::from(THINGS))).collect();
            let at = random.random_range(0..9);
            model.manifests.insert((repository.clone(), number), (names.clone(), at));
            manifest(&repository, number, &names, at)
        }
    }
}

impl Model {
    fn links(&self, number: u32) -> usize {
        let layers = self.layers.iter().filter(|(_, of)| *of == number).count();
        layers + self.manifests.keys().filter(|(_, of)| *of == number).count()
    }

    fn check(&self, facts: &Facts) {
        assert_eq!(facts.totals(), (self.data.values().sum(), self.data.len() as u64));
        for number in 0..THINGS {
            let key = facts.key(&digest(number));
            assert_eq!(facts.links(key) as usize, self.links(number));
            assert_eq!(facts.size(key), self.data.get(&number).copied().unwrap_or_default());
            let is_known = self.data.contains_key(&number) || self.links(number) > 0;
            assert_eq!(
                facts.digest(key),
                is_known.then(|| digest(number)),
                "nothing is remembered for nothing"
            );
        }
    }

    /// Takes a victim's links away, then data without links: the bytes of that.
    fn evict(&mut self, victim: &Victim) -> u64 {
        let name = victim.repository.to_string();
        let number = |of: &Digest| (0..THINGS).find(|number| digest(*number) == *of).unwrap();
        for layer in &victim.layers {
            assert!(self.layers.remove(&(name.clone(), number(layer))), "it goes once");
        }
        for manifest in &victim.manifests {
            assert!(self.manifests.remove(&(name.clone(), number(manifest))).is_some(), "it goes once");
        }
        let named = victim.layers.iter().chain(&victim.manifests).map(number).collect::<BTreeSet<_>>();
        let gone = named.into_iter().filter(|number| self.links(*number) == 0);
        gone.collect::<Vec<_>>().iter().filter_map(|number| self.data.remove(number)).sum()
    }

    /// What is held of each image, by its root.
    fn images(&self, repository: &str) -> BTreeMap<u32, BTreeSet<u32>> {
        let of: BTreeMap<u32, &(Vec<u32>, Seconds)> = self
            .manifests
            .iter()
            .filter(|((name, _), _)| name == repository)
            .map(|((_, number), manifest)| (*number, manifest))
            .collect();
        let children: BTreeSet<u32> = of.values().flat_map(|(names, _)| names.clone()).collect();
        let mut images = BTreeMap::new();
        for root in of.keys().filter(|number| !children.contains(number)) {
            let (mut members, mut todo) = (BTreeSet::new(), vec![*root]);
            while let Some(number) = todo.pop() {
                if members.insert(number)
                    && let Some((names, _)) = of.get(&number)
                {
                    todo.extend(names);
                }
            }
            members.retain(|number| {
                of.contains_key(number) || self.layers.contains(&(repository.to_owned(), *number))
            });
            images.insert(*root, members);
        }
        images
    }
}

#[test]
fn facts_are_what_a_count_says_and_choices_keep_to_the_rules() {
    let all = |_: &str, _: &Held, _: Key, _: Seconds| true;
    for seed in 0..400 {
        let random = &mut StdRng::seed_from_u64(seed);
        let (mut facts, mut model) = (Facts::default(), Model::default());
        for (name, whose) in [("a", upstream()), ("b", upstream()), ("hosted", Some(Owner::Hosted))] {
            facts.apply(&owner(name, whose));
        }
        for _ in 0..random.random_range(1..120) {
            let event = random_event(random, &mut model);
            facts.apply(&event);
        }
        model.check(&facts);
        let pinned = (0..random.random_range(0..4)).map(|_| ("a".to_owned(), random.random_range(0..THINGS)));
        let pinned = pinned.collect();
        let busy = (0..random.random_range(0..3)).map(|_| random.random_range(0..THINGS)).collect();
        let spare = Spared { pinned, busy, ..spared(&facts, THINGS) };
        let need = random.random_range(0..400);
        let victims = choose(&facts, need, &spare, &all);
        let before = model.clone();
        let mut freed = 0;
        for (place, victim) in victims.iter().enumerate() {
            assert!(freed < need, "seed {seed}: enough is enough, at {place}");
            assert_ne!(&*victim.repository, "hosted");
            let bytes = model.evict(victim);
            assert_eq!(bytes, victim.bytes, "seed {seed}");
            freed += bytes;
        }
        assert!(victims.is_sorted_by_key(|victim| victim.wanted), "seed {seed}: the oldest first");
        for name in ["a", "b"] {
            let (was, is) = (before.images(name), model.images(name));
            for (root, members) in &was {
                let left = is.get(root);
                assert!(left.is_none_or(|left| left == members), "seed {seed}: {name} {root} is torn");
                let is_spared = members.iter().any(|number| {
                    spare.busy.contains(number)
                        || before.manifests.contains_key(&(name.into(), *number))
                            && spare.pinned.contains(&(name.into(), *number))
                });
                assert!(!is_spared || left.is_some(), "seed {seed}: {name} {root} was to be spared");
                if !is_spared && freed < need {
                    assert!(left.is_none(), "seed {seed}: {name} {root} could have gone");
                }
            }
        }
    }
}

#[test]
fn what_happens_while_a_part_is_looked_through_counts_more_than_what_was_seen() {
    let index = Index::new(Arc::default());
    index.record(owner("a", upstream()));
    index.watch(Part::Repository("a".into()));
    let seen = [owner("a", upstream()), layer("a", 1), layer("a", 2)];
    index.record(Event::LayerGone { repository: "a".into(), name: digest(1) });
    index.record(layer("a", 3));
    index.record(layer("b", 1));
    assert!(index.seen(&seen));
    let links = |number| index.facts(|facts| facts.links(facts.key(&digest(number))));
    assert_eq!([1, 2, 3].map(links), [1, 1, 1], "1 is linked in b only");
    index.watch(Part::Data);
    (0..WATCHED_MAX as u32).for_each(|number| index.record(data(number, 1)));
    index.record(layer("a", 4));
    assert!(index.seen(&[]));
    index.watch(Part::Data);
    (0..=WATCHED_MAX as u32).for_each(|number| index.record(data(number, 1)));
    assert!(!index.seen(&[]), "it is looked through again");
    assert_eq!(index.bytes(), WATCHED_MAX as u64 + 1);
}

#[test]
fn an_empty_repository_is_forgotten() {
    let mut facts = of([layer("a", 1), manifest("a", 2, &[1], 0)]);
    let tag: Tag = "1".parse().unwrap();
    facts.apply(&Event::Tag { repository: "a".into(), tag: tag.clone(), digest: digest(2) });
    facts.apply(&Event::LayerGone { repository: "a".into(), name: digest(1) });
    facts.apply(&Event::ManifestGone { repository: "a".into(), name: digest(2) });
    assert_eq!(facts.repositories().count(), 1);
    facts.apply(&Event::TagGone { repository: "a".into(), tag });
    assert_eq!(facts.repositories().count(), 0);
    assert!(!facts.wanted("a", &digest(2), 1));
}
