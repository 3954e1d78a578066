//! Eviction over the real disk: what goes, what stays, and what room that makes.

use std::io::IoSlice;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use super::*;
use crate::oci::Reference;
use crate::store::index::{Held as HeldRepository, Key, Seconds};

struct Rig {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    clock: Clock,
}

fn everything(_: &str, _: &HeldRepository, _: Key, _: Seconds) -> bool {
    true
}

fn descriptor(digest: &Digest, size: usize) -> String {
    format!(r#"{{"mediaType":"application/octet-stream","digest":"{digest}","size":{size}}}"#)
}

fn image(layers: &[&[u8]]) -> Vec<u8> {
    let layers: Vec<String> =
        layers.iter().map(|layer| descriptor(&Digest::sha256(layer), layer.len())).collect();
    let config = descriptor(&Digest::sha256(b"{}"), 2);
    format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, layers.join(",")).into_bytes()
}

impl Rig {
    fn new(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options { max_size: Some(1 << 30), min_free: Some(0), ..options(dir.path()) };
        change(&mut options);
        let clock = Clock::default();
        let store = Store::open(options, Arc::new(RealDisk), Arc::default(), clock.clone(), Tasks::default())
            .unwrap();
        store.survey(&|| false).unwrap();
        Self { dir, store, clock }
    }

    fn restarted(self) -> Self {
        let options = self.store.options.clone();
        let Self { dir, store, clock } = self;
        store.write_wanted();
        drop(store);
        let store = Store::open(options, Arc::new(RealDisk), Arc::default(), clock.clone(), Tasks::default())
            .unwrap();
        assert!(store.victims(u64::MAX, &everything).unwrap().is_empty(), "it is not known what is held");
        store.survey(&|| false).unwrap();
        Self { dir, store, clock }
    }

    /// Holds a blob as a fill does.
    fn pull(&self, grant: &Grant, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        let staged = self.store.home.stage().unwrap();
        staged.file.write_at(&[IoSlice::new(bytes)], 0).unwrap();
        let size = bytes.len() as u64;
        self.store.counted(&digest, size, |key| self.store.home.commit(staged, key)).unwrap();
        self.store.link_layer(grant, &digest).unwrap();
        digest
    }

    /// Holds an image of these layers, a second after the one before.
    fn pull_image(&self, grant: &Grant, tag: &str, layers: &[&[u8]]) -> Digest {
        self.clock.advance(Duration::from_secs(1));
        self.pull(grant, b"{}");
        for layer in layers {
            self.pull(grant, layer);
        }
        let bytes = image(layers);
        let digest = Digest::sha256(&bytes);
        self.store.put_manifest(grant, &digest, &bytes).unwrap();
        self.store.put_tag(grant, &tag.parse().unwrap(), &digest, self.clock.wall()).unwrap();
        self.store.want(&grant.repository, &digest);
        digest
    }

    fn has_image(&self, grant: &Grant, tag: &str, layers: &[&[u8]]) -> bool {
        let store = &self.store;
        let tag = store.tag(&grant.repository, &tag.parse().unwrap()).unwrap();
        let manifest = store.manifest(&grant.repository, &Digest::sha256(&image(layers))).unwrap();
        let held = layers.iter().map(|layer| {
            let digest = Digest::sha256(layer);
            let linked = store.has_layer(&grant.repository, &digest).unwrap();
            let data = store.blob(&digest).unwrap().is_some();
            assert!(data || !linked, "links go before data");
            linked && data
        });
        let held: Vec<bool> = held.collect();
        match tag {
            Some(_) => {
                assert!(manifest.is_some() && held.iter().all(|held| *held), "an image is whole");
                true
            }
            None => {
                assert!(manifest.is_none());
                false
            }
        }
    }

    fn evict(&self, need: u64) -> usize {
        let victims = self.store.victims(need, &everything).unwrap();
        self.store.evict(&victims).unwrap().len()
    }

    fn want(&self, grant: &Grant, digest: &Digest) {
        self.clock.advance(Duration::from_secs(1));
        self.store.want(&grant.repository, digest);
    }
}

#[test]
fn the_image_that_nobody_asked_for_the_longest_goes_and_a_restart_remembers() {
    let rig = Rig::new(|_| ());
    let grant = hub("library/a");
    let (x, y, z) = ([b'x'; 100], [b'y'; 100], [b'z'; 100]);
    let first = rig.pull_image(&grant, "1", &[&x, b"shared"]);
    rig.pull_image(&grant, "2", &[&y, b"shared"]);
    rig.pull_image(&grant, "3", &[&z]);
    rig.want(&grant, &first);
    let rig = rig.restarted();
    let used = rig.store.used();
    assert_eq!(rig.evict(1), 1);
    assert!(!rig.has_image(&grant, "2", &[&y, b"shared"]));
    assert!(rig.has_image(&grant, "1", &[&x, b"shared"]) && rig.has_image(&grant, "3", &[&z]));
    assert_eq!(rig.store.used(), used - 100 - image(&[&y, b"shared"]).len() as u64, "what is shared stays");
    assert_eq!(rig.store.metrics.store_bytes.get() as u64, rig.store.used());
    assert_eq!(rig.evict(u64::MAX), 2);
    assert_eq!((rig.store.used(), rig.store.metrics.store_entries.get()), (0, 0));
    assert!(rig.store.home.stat(&layout::repository(&grant.repository)).unwrap().is_none());
    assert_eq!(rig.store.repositories().unwrap(), []);
    // All of it can be pulled again.
    rig.pull_image(&grant, "2", &[&y, b"shared"]);
    assert!(rig.restarted().has_image(&grant, "2", &[&y, b"shared"]));
}

#[test]
fn hosted_pinned_and_unknown_content_stays() {
    let rig = Rig::new(|_| ());
    let (kept, gone) = (hub("library/kept"), hub("library/gone"));
    let mine = Grant {
        repository: repository(Owner::Hosted, "mine"),
        domain: "hosted".into(),
        visibility: Visibility::Public,
    };
    let unknown = hub("library/unknown");
    rig.pull_image(&unknown, "1", &[b"of nobody"]);
    rig.pull_image(&mine, "1", &[b"mine", b"both"]);
    let by_digest = rig.pull_image(&kept, "1", &[b"pinned"]);
    rig.pull_image(&kept, "2", &[b"pinned by tag"]);
    rig.pull_image(&kept, "3", &[b"configured"]);
    rig.pull_image(&kept, "4", &[b"neither", b"pinned"]);
    rig.pull_image(&gone, "1", &[b"both"]);
    std::fs::remove_file(rig.dir.path().join(layout::origin("library/unknown"))).unwrap();
    let tag = |tag: &str| Reference::Tag(tag.parse().unwrap());
    let pin = |reference: &Reference| rig.store.pin(&kept.repository, reference).unwrap();
    assert_eq!(pin(&Reference::Digest(by_digest)), Pinning::Done);
    assert_eq!((pin(&tag("2")), pin(&tag("2"))), (Pinning::Done, Pinning::AsBefore));
    let rig = rig.restarted();
    rig.store.pin_configured([(kept.repository.clone(), tag("3"))]);
    assert_eq!(rig.store.pins().unwrap().len(), 2);
    assert_eq!(rig.evict(u64::MAX), 2);
    assert!(!rig.has_image(&gone, "1", &[b"both"]) && !rig.has_image(&kept, "4", &[b"neither", b"pinned"]));
    assert!(rig.has_image(&mine, "1", &[b"mine", b"both"]), "the data is still linked there");
    assert!(rig.has_image(&unknown, "1", &[b"of nobody"]));
    for (tag, layer) in [("1", &b"pinned"[..]), ("2", b"pinned by tag"), ("3", b"configured")] {
        assert!(rig.has_image(&kept, tag, &[layer]), "{tag}");
    }
    assert!(rig.store.unpin(&kept.repository, &tag("2")).unwrap());
    assert!(!rig.store.unpin(&kept.repository, &tag("2")).unwrap());
    assert_eq!(rig.evict(u64::MAX), 1);
    assert!(!rig.has_image(&kept, "2", &[b"pinned by tag"]));
}

#[test]
fn room_is_made_for_what_comes_and_never_in_vain() {
    let rig = Rig::new(|options| options.max_size = Some(40_000));
    let grant = hub("library/a");
    let layer = |byte: u8| [byte; 9_000];
    for number in 1..=4 {
        rig.pull_image(&grant, &number.to_string(), &[&layer(number)]);
    }
    assert!(rig.store.reserve(9_000).is_none());
    assert!(rig.store.make_room(20_001).unwrap().is_none(), "more than half of the cap");
    let room = rig.store.make_room(9_000).unwrap().unwrap();
    assert!(!rig.has_image(&grant, "1", &[&layer(1)]) && rig.has_image(&grant, "2", &[&layer(2)]));
    assert!(rig.store.reserve(9_000).is_none(), "it is promised");
    // Slow readers hold the rest: what they read would not be free.
    let readers: Vec<_> = (2..=4).map(|n| rig.store.blob(&Digest::sha256(&layer(n))).unwrap()).collect();
    assert!(rig.store.make_room(9_000).unwrap().is_none());
    assert!(rig.has_image(&grant, "2", &[&layer(2)]), "nothing goes in vain");
    drop((room, readers));
    assert!(rig.store.reserve(9_000).is_some());
    // One that is open and goes by another way still counts.
    let reading = rig.store.blob(&Digest::sha256(&layer(3))).unwrap();
    let used = rig.store.used();
    rig.store.remove_content(&Digest::sha256(&layer(3))).unwrap();
    assert_eq!(rig.store.used(), used);
    drop(reading);
    assert_eq!(rig.store.used(), used - 9_000);
}

#[test]
fn a_lower_cap_is_kept_to_and_orphans_go_first() {
    let rig = Rig::new(|options| options.lease = Duration::from_secs(60));
    let grant = hub("library/a");
    let layer = |byte: u8| [byte; 9_000];
    for number in 1..=3 {
        rig.pull_image(&grant, &number.to_string(), &[&layer(number)]);
    }
    rig.store.counted(&Digest::sha256(b"orphan"), 6, |key| rig.store.home.put(key, b"orphan")).unwrap();
    rig.clock.advance(Duration::from_secs(60));
    let mut rig = rig.restarted();
    let mut options = rig.store.options.clone();
    options.max_size = Some(20_000);
    drop(rig.store);
    let (disk, clock) = (Arc::new(RealDisk), rig.clock.clone());
    rig.store = Store::open(options, disk, Arc::default(), clock, Tasks::default()).unwrap();
    rig.store.trim().unwrap();
    assert!(rig.has_image(&grant, "1", &[&layer(1)]), "it is not known yet what is held");
    rig.store.survey(&|| false).unwrap();
    rig.store.trim().unwrap();
    assert!(rig.store.used() <= 20_000);
    assert!(rig.store.blob(&Digest::sha256(b"orphan")).unwrap().is_some(), "it may be about to be linked");
    assert!(!rig.has_image(&grant, "1", &[&layer(1)]) && rig.has_image(&grant, "3", &[&layer(3)]));
    rig.clock.advance(Duration::from_secs(60));
    let used = rig.store.used();
    assert_eq!(rig.store.drop_orphans().unwrap(), 6);
    assert_eq!(rig.store.used(), used - 6);
}

#[test]
fn what_was_asked_for_since_it_was_chosen_stays_and_who_remembers_is_told() {
    struct Told(AtomicUsize);
    impl Remembers for Told {
        fn forget(&self, evicted: &Evicted) {
            self.0.fetch_add(evicted.manifests.len(), SeqCst);
        }
    }
    let rig = Rig::new(|_| ());
    let told = Arc::new(Told(AtomicUsize::new(0)));
    let weak: Weak<dyn Remembers> = Arc::<Told>::downgrade(&told);
    rig.store.remembered_by(weak);
    let grant = hub("library/a");
    rig.pull_image(&grant, "1", &[b"1", b"shared"]);
    let second = rig.pull_image(&grant, "2", &[b"2", b"shared"]);
    rig.pull_image(&grant, "3", &[b"3", b"shared"]);
    let victims = rig.store.victims(u64::MAX, &everything).unwrap();
    assert_eq!(victims.len(), 3);
    rig.want(&grant, &second);
    assert_eq!(rig.store.evict(&victims).unwrap().len(), 1);
    assert_eq!(told.0.load(SeqCst), 1);
    assert!(rig.has_image(&grant, "2", &[b"2", b"shared"]), "with what the third would have taken along");
    assert!(rig.has_image(&grant, "3", &[b"3", b"shared"]));
    // What is in memory only is not to be served from there for ever.
    rig.want(&grant, &Digest::sha256(b"evicted while it was read"));
    rig.store.note_wanted();
    assert_eq!(told.0.load(SeqCst), 2);
}

#[test]
fn what_a_manifest_came_to_name_since_it_was_chosen_stays() {
    let rig = Rig::new(|_| ());
    let grant = hub("library/a");
    rig.pull_image(&grant, "1", &[b"1", b"shared"]);
    let victims = rig.store.victims(u64::MAX, &everything).unwrap();
    rig.pull_image(&grant, "2", &[b"2", b"shared"]);
    assert!(rig.store.evict(&victims).unwrap().is_empty());
    assert!(rig.has_image(&grant, "2", &[b"2", b"shared"]));
    assert_eq!(rig.evict(1), 1, "the other one may go still");
    assert!(rig.has_image(&grant, "2", &[b"2", b"shared"]));
}

#[test]
fn what_the_configuration_does_not_know_goes_at_a_wish_only() {
    let rig = Rig::new(|options| options.max_size = Some(40_000));
    let (known, unknown) = (hub("library/known"), hub("library/unknown"));
    let layer = |byte: u8| [byte; 9_000];
    rig.pull_image(&unknown, "1", &[&layer(1)]);
    rig.pull_image(&unknown, "2", &[&layer(2)]);
    rig.pull_image(&known, "1", &[&layer(3)]);
    rig.store.makes_room_of(Arc::new(|repository| repository.name.as_str() == "library/known"));
    let room = rig.store.make_room(15_000).unwrap();
    assert!(room.is_some() && !rig.has_image(&known, "1", &[&layer(3)]));
    assert!(rig.store.make_room(15_000).unwrap().is_none(), "what is left is refused, and stays");
    assert!(rig.has_image(&unknown, "1", &[&layer(1)]) && rig.has_image(&unknown, "2", &[&layer(2)]));
    assert_eq!(rig.evict(u64::MAX), 2);
}

/// A link is being made, and the survey comes by before it stands in the tree.
#[test]
fn a_survey_beside_a_push_forgets_no_link() {
    let surveyor = Arc::new(Mutex::new(Weak::<Store>::new()));
    let hook = surveyor.clone();
    let create = move |path: &Path| {
        if let Some(store) = lock(&hook).upgrade() {
            store.survey(&|| false).unwrap();
        }
        RealDisk.create(path)
    };
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Hooked { create: Box::new(create), ..Hooked::default() });
    let store = Store::open(options(dir.path()), disk, Arc::default(), Clock::default(), Tasks::default());
    let (store, grant, bytes) = (store.unwrap(), hub("library/a"), image(&[b"1", b"2"]));
    let (first, second) = (hold(&store, b"1"), hold(&store, b"2"));
    store.link_layer(&grant, &first).unwrap();
    *lock(&surveyor) = Arc::downgrade(&store);
    store.link_layer(&grant, &second).unwrap();
    store.put_manifest(&grant, &Digest::sha256(&bytes), &bytes).unwrap();
    *lock(&surveyor) = Weak::new();
    let orphans: Vec<_> = store.index.facts(|facts| facts.orphans().map(|(_, digest)| digest).collect());
    assert_eq!(orphans, []);
    let known = |store: &Store| store.index.facts(|facts| facts.repository("library/a").cloned());
    let after = known(&store);
    store.survey(&|| false).unwrap();
    assert_eq!(after, known(&store));
}

#[test]
fn a_file_without_a_name_counts_until_it_is_closed() {
    let rig = Rig::new(|_| ());
    let staged = rig.store.home.stage().unwrap();
    staged.file.write_at(&[IoSlice::new(&[1; 5000])], 0).unwrap();
    let reader = staged.file.clone();
    rig.store.open.linger(&reader);
    drop(staged);
    assert_eq!(rig.store.used(), 5000);
    drop(reader);
    assert_eq!(rig.store.used(), 0);
}

/// Another repository of the trust domain was about to be given the blob.
#[test]
fn what_was_evicted_before_its_link_came_gets_none() {
    let rig = Rig::new(|_| ());
    let (one, other) = (hub("library/a"), hub("library/b"));
    rig.pull_image(&one, "1", &[b"1"]);
    let digest = Digest::sha256(b"1");
    assert!(rig.store.is_proven(&other, &digest).unwrap());
    assert_eq!(rig.evict(u64::MAX), 1);
    rig.store.link_layer(&other, &digest).unwrap();
    assert!(!rig.store.has_layer(&other.repository, &digest).unwrap(), "a link to nothing");
    let proof = layout::proof(&other.domain, &digest);
    assert!(rig.store.home.stat(&proof).unwrap().is_none(), "a proof of nothing");
}
