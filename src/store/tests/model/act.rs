//! All that happens to a store: what pushers do, pulls, pins, eviction, collection and restarts.

use std::time::Instant;

use super::*;
use crate::oci::Reference;
use crate::store::index::{Held as HeldRepository, Key, Seconds, named_by};

/// The index that only mirrored repositories have.
pub(super) const INDEX: usize = MANIFESTS.len();
const TERM: Duration = Duration::from_secs(600);
/// Has no record of whose it is.
const UNKNOWN: &str = "library/unknown";

#[derive(Clone, Copy, Debug)]
pub enum Act {
    Push(Step),
    /// `whole`: else of its blobs the first one only.
    Pull {
        to: usize,
        image: usize,
        tag: usize,
        whole: bool,
    },
    /// Upstream has the tag no more.
    Forget {
        from: usize,
        tag: usize,
    },
    Want {
        of: usize,
        image: usize,
    },
    /// By digest, or else by tag.
    Pin {
        of: usize,
        image: Option<usize>,
        tag: usize,
    },
    Unpin {
        of: usize,
        image: Option<usize>,
        tag: usize,
    },
    Evict {
        need: u64,
    },
    Trim,
    DropOrphans,
    Collect,
    Restart,
}

/// A store on a disk, with what it may hold.
pub struct World {
    data: PathBuf,
    disk: Arc<dyn Disk>,
    cap: u64,
    /// None: it could not be opened again.
    store: Option<Arc<Store>>,
    clock: Clock,
    told: Arc<Told>,
    pub model: Model,
    /// Something has failed: what is told of evictions is no promise any more.
    pub tainted: bool,
    /// What the store has counted of that.
    errors: u64,
}

#[derive(Default)]
struct Told(Mutex<Vec<Evicted>>);

impl Remembers for Told {
    fn forget(&self, evicted: &Evicted) {
        lock(&self.0).push(evicted.clone());
    }
}

type Snapshot = Vec<(BTreeSet<Digest>, BTreeSet<Digest>)>;

/// What happens in one run.
pub fn acts(random: &mut StdRng, most: usize) -> Vec<Act> {
    let mut acts = Vec::new();
    while acts.len() < most {
        let (of, tag) = (random.random_range(HOSTED..REPOSITORIES.len()), random.random_range(0..2));
        let image = random.random_range(0..=INDEX);
        let by = random.random_bool(0.5).then_some(image);
        match random.random_range(0..20) {
            0..6 => acts.extend(some_steps(random).into_iter().map(Act::Push)),
            6..11 => acts.push(Act::Pull { to: of, image, tag, whole: random.random_bool(0.8) }),
            11 => acts.push(Act::Forget { from: of, tag }),
            12 => acts.push(Act::Want { of, image }),
            13 => acts.push(Act::Pin { of, image: by, tag }),
            14 => acts.push(Act::Unpin { of, image: by, tag }),
            15 | 16 => acts.push(Act::Evict { need: [1, 500, 2000, u64::MAX][random.random_range(0..4)] }),
            17 => acts.push(if random.random() { Act::Trim } else { Act::DropOrphans }),
            18 => acts.push(Act::Collect),
            _ => acts.push(Act::Restart),
        }
    }
    acts
}

fn reference(image: Option<usize>, tag: usize) -> Reference {
    match image {
        Some(image) => Reference::Digest(named(&manifest(image), false)),
        None => Reference::Tag(TAGS[tag].parse().unwrap()),
    }
}

fn everything(_: &str, _: &HeldRepository, _: Key, _: Seconds) -> bool {
    true
}

fn told<E: ToString>(error: E) -> String {
    error.to_string()
}

/// A manifest and all that it leads to, by way of manifests that are held.
fn members(root: Digest, held: &BTreeSet<Digest>) -> BTreeSet<Digest> {
    let (mut members, mut todo) = (BTreeSet::new(), vec![root]);
    while let Some(digest) = todo.pop() {
        if members.insert(digest)
            && (digest == root || held.contains(&digest))
            && let Some(number) = (0..=INDEX).find(|number| named(&manifest(*number), false) == digest)
        {
            todo.extend(named_by(&manifest(number)));
        }
    }
    members
}

impl World {
    /// Opens the store and looks through it.
    pub async fn start(disk: Arc<dyn Disk>, data: &Path, cap: u64, model: Model) -> Result<Self, String> {
        let (data, clock) = (data.to_owned(), Clock::default());
        let (store, told, tainted, errors) = (None, Arc::default(), false, 0);
        let mut world = Self { data, disk, cap, store, clock, told, model, tainted, errors };
        world.open()?;
        Ok(world)
    }

    /// The same on a new disk, which gets a repository of unknown origin.
    pub async fn set_up(disk: Arc<dyn Disk>, data: &Path) {
        let mut world = Self::start(disk.clone(), data, 1 << 30, Model::default()).await.unwrap();
        let (grant, bytes) = (hub(UNKNOWN), manifest(INDEX));
        let digest = named(&bytes, false);
        world.store().put_manifest(&grant, &digest, &bytes).unwrap();
        world.store().put_tag(&grant, &"1".parse().unwrap(), &digest, SystemTime::now()).unwrap();
        world.close().await;
        let record = data.join(layout::origin(UNKNOWN));
        disk.remove(&record).unwrap();
        disk.sync_dir(record.parent().unwrap()).unwrap();
    }

    pub fn store(&self) -> &Arc<Store> {
        self.store.as_ref().expect("the store is open")
    }

    /// Once there is no trouble any more: looks through the store, if that failed.
    pub fn recover(&mut self) {
        match &self.store {
            Some(store) if store.is_surveyed() => {}
            Some(store) => store.survey(&|| false).unwrap(),
            None => self.open().unwrap(),
        }
    }

    /// Whether there is not room for everything.
    pub(super) fn is_capped(&self) -> bool {
        self.cap < 1 << 30
    }

    fn options(&self) -> Options {
        Options {
            max_size: Some(self.cap),
            min_free: Some(0),
            reader_timeout: Duration::from_secs(5),
            lease: TERM,
            ..options(&self.data)
        }
    }

    fn open(&mut self) -> Result<(), String> {
        let open = || {
            let (clock, disk) = (self.clock.clone(), self.disk.clone());
            Store::open(self.options(), disk, Arc::default(), clock, Tasks::default())
        };
        let (since, mut opened) = (Instant::now(), open());
        // Another thread may be about to drop the lock, with the last store.
        while matches!(opened, Err(OpenError::Locked(_))) && since.elapsed() < Duration::from_secs(20) {
            std::thread::yield_now();
            opened = open();
        }
        let store = opened.map_err(told)?;
        let weak: Weak<dyn Remembers> = Arc::<Told>::downgrade(&self.told);
        store.remembered_by(weak);
        let surveyed = store.survey(&|| false);
        self.errors = store.metrics.store_errors.get();
        self.store = Some(store);
        surveyed.map_err(told)
    }

    /// Ends the process in good order.
    pub async fn close(&mut self) {
        let Some(store) = self.store.take() else { return };
        store.write_wanted();
        let gone = Arc::downgrade(&store);
        drop(store);
        let since = Instant::now();
        while gone.strong_count() > 0 {
            assert!(since.elapsed() < Duration::from_secs(20), "somebody has the store in hand for ever");
            tokio::task::yield_now().await;
        }
    }

    pub async fn act(&mut self, act: Act) -> Result<(), String> {
        self.clock.advance(Duration::from_secs(1));
        self.evicted();
        let before = self.snapshot();
        let done = self.try_act(act).await;
        self.tainted |= done.is_err();
        self.evicted();
        let evicts = matches!(act, Act::Evict { .. } | Act::Trim);
        if self.tainted && (evicts || matches!(act, Act::Pull { .. })) {
            self.may_have_been_evicted();
        }
        if !self.tainted && evicts {
            self.assert_whole(&before, &self.snapshot(), act);
        }
        done
    }

    async fn try_act(&mut self, act: Act) -> Result<(), String> {
        if self.store.is_none() {
            self.open()?;
        }
        let store = self.store().clone();
        match act {
            Act::Push(step) => {
                let done = step.run(&store, &self.model).await;
                if !matches!(done, Ok(false)) {
                    self.model.took(step, done.is_ok());
                }
                done.map(drop).map_err(told)
            }
            Act::Pull { to, image, tag, whole } => self.pull(to, image, tag, whole).await,
            Act::Forget { from, tag } => {
                let done = store.drop_tag(&grant(from).repository, &TAGS[tag].parse().unwrap());
                self.model.becomes(Item::Tag(from, TAGS[tag]), None, done.is_ok() && !self.tainted);
                done.map_err(told)
            }
            Act::Want { of, image } => {
                store.want(&grant(of).repository, &named(&manifest(image), false));
                Ok(())
            }
            Act::Pin { of, image, tag } => {
                let done = store.pin(&grant(of).repository, &reference(image, tag));
                self.pinned(of, &reference(image, tag), true, done.is_ok());
                done.map(drop).map_err(told)
            }
            Act::Unpin { of, image, tag } => {
                let done = store.unpin(&grant(of).repository, &reference(image, tag));
                self.pinned(of, &reference(image, tag), false, done.is_ok());
                done.map(drop).map_err(told)
            }
            Act::Evict { need } => {
                let victims = store.victims(need, &everything).map_err(told)?;
                store.evict(&victims).map(drop).map_err(told)
            }
            Act::Trim => store.trim().map_err(told),
            Act::DropOrphans => store.drop_orphans().map(drop).map_err(told),
            Act::Collect => {
                self.clock.advance(TERM);
                self.model.collected();
                collect(&store)
            }
            Act::Restart => {
                drop(store);
                self.close().await;
                self.open()
            }
        }
    }

    fn pinned(&mut self, of: usize, reference: &Reference, is_pinned: bool, sure: bool) {
        let may_be = self.model.pins.entry((of, reference.to_string())).or_insert_with(|| [false].into());
        if sure {
            may_be.clear();
        }
        may_be.insert(is_pinned);
    }

    /// What no eviction may take: by repository.
    fn protected(&self) -> BTreeSet<(usize, Digest)> {
        let mut protected = BTreeSet::new();
        for ((of, reference), _) in self.model.pins.iter().filter(|(_, may_be)| !may_be.contains(&false)) {
            let tag = TAGS.iter().find(|tag| *tag == reference);
            let digest = match tag {
                Some(tag) => self.model.is_surely(Item::Tag(*of, tag)),
                None => reference.parse().ok(),
            };
            let held = digest.and_then(|digest| self.model.is_surely(Item::Manifest(*of, digest)));
            let Some(root) = held else { continue };
            let manifests = (0..=INDEX).map(|number| named(&manifest(number), false));
            let surely = |digest: &Digest| self.model.is_surely(Item::Manifest(*of, *digest)).is_some();
            let manifests = manifests.filter(surely).collect();
            protected.extend(members(root, &manifests).into_iter().map(|member| (*of, member)));
        }
        protected
    }

    /// Takes up what was told of evictions, and whether something has failed.
    pub(super) fn evicted(&mut self) {
        let (all, protected) = (std::mem::take(&mut *lock(&self.told.0)), self.protected());
        // In this order: what fails is counted before it is told.
        let errors = self.store.as_ref().map_or(self.errors, |store| store.metrics.store_errors.get());
        self.tainted |= errors != self.errors;
        self.errors = errors;
        for evicted in all {
            let of = (HOSTED..REPOSITORIES.len()).find(|of| grant(*of).repository == evicted.repository);
            let of = of.unwrap_or_else(|| panic!("{} is not a mirror's", evicted.repository));
            for digest in evicted.manifests.iter().chain(&evicted.layers) {
                assert!(!protected.contains(&(of, *digest)), "{digest} is pinned in {}", REPOSITORIES[of]);
            }
            let (model, sure) = (&mut self.model, !self.tainted);
            evicted
                .manifests
                .iter()
                .for_each(|digest| model.becomes(Item::Manifest(of, *digest), None, sure));
            evicted.layers.iter().for_each(|digest| model.becomes(Item::Blob(of, *digest), None, sure));
            for tag in TAGS.iter().filter(|tag| evicted.tags.iter().any(|gone| gone.as_str() == **tag)) {
                model.becomes(Item::Tag(of, tag), None, sure);
            }
        }
    }

    fn may_have_been_evicted(&mut self) {
        let protected = self.protected();
        for (item, may_be) in &mut self.model.items {
            let (of, stays) = match item {
                Item::Blob(of, digest) | Item::Manifest(of, digest) => {
                    (*of, protected.contains(&(*of, *digest)))
                }
                Item::Tag(of, _) => {
                    (*of, may_be.iter().all(|to| to.is_some_and(|to| protected.contains(&(*of, to)))))
                }
            };
            if of >= HOSTED && !stays {
                may_be.insert(None);
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let Some(store) = self.store.as_ref().filter(|_| !self.tainted) else { return Snapshot::new() };
        let held = (HOSTED..REPOSITORIES.len()).map(|of| {
            let repository = grant(of).repository;
            let (manifests, layers) = (store.revisions(&repository), store.layers(&repository));
            // Where the disk is gone, there is nothing to compare.
            let set = |held: Result<Vec<Digest>, Error>| held.unwrap_or_default().into_iter().collect();
            (set(manifests), set(layers))
        });
        held.collect()
    }

    /// Images went as wholes: what stays has all that it had, and what went left nothing behind.
    fn assert_whole(&self, before: &Snapshot, after: &Snapshot, act: Act) {
        for ((manifests, layers), (stay, left)) in before.iter().zip(after) {
            let named_by_what_stays: BTreeSet<Digest> =
                stay.iter().flat_map(|root| members(*root, stay)).collect();
            let had = |named: &Digest| layers.contains(named) || manifests.contains(named);
            let has = |named: &Digest| left.contains(named) || stay.contains(named);
            for named in named_by_what_stays.iter().filter(|named| had(named)) {
                assert!(has(named), "{act:?} took {named} from an image that stays");
            }
            for gone in manifests.difference(stay) {
                let rest = members(*gone, manifests)
                    .into_iter()
                    .find(|named| has(named) && !named_by_what_stays.contains(named));
                assert!(rest.is_none(), "{act:?} left {rest:?} of {gone}");
            }
        }
    }

    /// Everything that can be compared. `calm`: nothing went wrong since the disk was new, so that a link
    /// leads to data, too.
    pub async fn check(&self, twin: Arc<dyn Disk>, calm: bool, when: &str) {
        self.model.check(self.store(), when).await;
        self.check_unknown(when);
        let fresh = self.fresh(twin);
        tree::compare(self.store(), &fresh, !self.tainted, when);
        assert!(
            !calm || tree::dangling(&fresh).is_empty(),
            "{when}: {:?} lead nowhere",
            tree::dangling(&fresh)
        );
    }

    fn fresh(&self, twin: Arc<dyn Disk>) -> Arc<Store> {
        let store = Store::open(self.options(), twin, Arc::default(), Clock::default(), Tasks::default());
        let store = store.unwrap();
        store.survey(&|| false).unwrap();
        store
    }

    fn check_unknown(&self, when: &str) {
        let repository = hub(UNKNOWN).repository;
        let tag = self.store().tag(&repository, &"1".parse().unwrap()).unwrap();
        let held = tag.map(|tag| self.store().manifest(&repository, &tag.digest).unwrap().is_some());
        assert_eq!(held, Some(true), "{when}: what is of unknown origin is gone");
    }

    /// Drops unfinished uploads, collects what can be, and looks for what is left behind.
    pub async fn tidy(&mut self, twin: impl Fn() -> Arc<dyn Disk>, when: &str) {
        let hollow = tree::hollow(self.store());
        self.clock.advance(TERM);
        self.act(Act::DropOrphans).await.unwrap();
        tree::assert_no_orphans(self.store(), when);
        for held in self.store().uploads().unwrap() {
            self.store().drop_upload(&held.stored_name, held.id).unwrap();
        }
        self.act(Act::Collect).await.unwrap();
        self.check(twin(), false, when).await;
        tree::assert_tidy(&self.fresh(twin()), when);
        let more: Vec<_> =
            tree::hollow(self.store()).into_iter().filter(|dir| !hollow.contains(dir)).collect();
        assert!(more.is_empty(), "{when}: {more:?} are left without content");
    }
}

fn collect(store: &Store) -> Result<(), String> {
    let mut report = |_: Removed| ();
    let mut pass = Pass::new(store, false, &mut report, &|| false);
    for repository in pass.repositories().map_err(told)? {
        let mut marked = pass.mark(&repository).map_err(told)?;
        pass.drop_untagged(&mut marked, SystemTime::now() + TERM * 1000).map_err(told)?;
        pass.drop_links(&marked).map_err(told)?;
    }
    pass.drop_data().map_err(told)
}

impl Model {
    /// What no tag leads to may be gone.
    fn collected(&mut self) {
        let mut needed = BTreeSet::new();
        for of in 0..HOSTED {
            for tagged in TAGS.iter().filter_map(|tag| self.is_surely(Item::Tag(of, tag))) {
                for bytes in (0..MANIFESTS.len()).map(manifest) {
                    let names = [false, true].map(|long| named(&bytes, long));
                    if names.contains(&tagged) && self.is_surely(Item::Manifest(of, tagged)).is_some() {
                        needed.extend(names.map(|name| (of, name)));
                        needed.extend(named_by(&bytes).into_iter().map(|name| (of, name)));
                    }
                }
            }
            for bytes in (0..BLOBS.len()).map(content) {
                if needed.contains(&(of, named(&bytes, false))) {
                    needed.insert((of, named(&bytes, true)));
                }
            }
        }
        for (item, may_be) in &mut self.items {
            if let Item::Blob(of, digest) | Item::Manifest(of, digest) = item
                && *of < HOSTED
                && !needed.contains(&(*of, *digest))
            {
                may_be.insert(None);
            }
        }
    }
}
