//! Pull-through: hit, miss, fresh, stale. Knows no HTTP.
//!
//! [`standing`] says whether a repository may be served at all, [`right`] to whom, [`manifest`] and [`tag`] answer
//! manifests, [`blob`] answers blobs, [`list`] and [`referrers`] lists; each looks into [`memory`], then into the store, then upstream.

mod blob;
mod brought;
mod finding;
mod freshness;
mod list;
mod manifest;
mod memory;
mod mend;
mod pace;
mod pinned;
mod prefetch;
mod referrers;
mod refresh;
mod reserved;
mod restore;
mod right;
mod scrub;
mod source;
mod standing;
mod tag;
mod tally;
mod warm;
mod writes;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use self::memory::{HeldManifest, Memory, Subject};
use self::prefetch::Flows;
use self::refresh::Hot;
use self::tag::Resolved;
use self::writes::Writes;
use crate::answer::{Error, ReferrersAnswer, TagsAnswer};
use crate::clock::Clock;
use crate::oci::{Digest, Owner, Reference, Repository, Tag, UpstreamHost};
use crate::store::{Evicted, Remembers, Store};
use crate::tasks::{Flights, Tasks};
use crate::upstream::{self, HeldBack, Hops, Spender, Upstream};

pub use self::brought::BringError;
pub use self::finding::{Done, Finding, Found, Named};
pub use self::freshness::Freshness;
pub use self::pinned::{Pinned, Pins};
pub use self::reserved::Reserved;
pub use self::scrub::{Progress, ScrubError, ScrubOptions, Scrubber, VerifyTotals};
pub use self::warm::{Account, IMAGES_AT_ONCE, Image, Tally, WarmError, Warmed};
pub use crate::oci::{InvalidTagPattern as InvalidPattern, TagPattern as Pattern};
pub use crate::upstream::{CallerId, Login, Purpose};

/// What is configured of the mirror.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub freshness: Freshness,
    /// Images whose misses may use the reserve of their upstream's quota.
    pub reserved: Reserved,
    /// How long a 404 from upstream is taken as said.
    pub negative_not_found: Duration,
    /// The same for 401 and 403.
    pub negative_denied: Duration,
    pub stale: Stale,
    /// No upstream is asked for anything: what is held is all there is.
    pub offline: bool,
    /// Bytes of manifests, tags and links kept in memory.
    pub metadata_memory: u64,
    /// Bytes of small blobs kept in memory.
    pub blob_memory: u64,
    pub ahead: Ahead,
}

/// What is done before anybody asks for it; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Tags that are confirmed before they go stale, at most. 0: none.
    pub refreshes_per_minute: u32,
    /// Whether an image's blobs are fetched once its manifest was answered.
    pub prefetch_layers: bool,
}

/// How long a held tag is served though upstream does not confirm it. None: for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// After upstream first said 404.
    pub not_found: Option<Duration>,
    /// After its last confirmation, when upstream says 401 or 403.
    pub denied: Duration,
    /// After its last confirmation, while upstream is in trouble, slow or out of quota.
    pub trouble: Option<Duration>,
}

/// Asked before upstream quota is spent for a client that nobody else's work covers.
pub trait Toll: Send + Sync {
    /// Waits in a bounded queue, then lets pass, or refuses with the time after which to try again.
    fn cold_miss(&self) -> Pin<Box<dyn Future<Output = Result<(), Duration>> + Send + '_>>;

    /// What it is asked for. A miss of what is held counts as revalidation.
    fn purpose(&self) -> Purpose {
        Purpose::Miss
    }

    /// Whose share of the quota it is taken from: an address, a network, a name. None: nobody's.
    fn client(&self) -> Option<String> {
        None
    }
}

/// On whose behalf the mirror works.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    pub toll: &'a dyn Toll,
    /// The Forebays that passed the request on.
    pub hops: &'a Hops,
    /// Who has shown a login of the upstream's, where each caller needs its own.
    pub caller: Option<CallerId>,
}

/// In whose name upstream is asked, where each caller's own login counts: what it says to one is no
/// answer to another.
type Who = Option<CallerId>;

/// For whom work under way is shared, and how many servers the request passed. Two servers may be asked
/// for the same at once, and each ask the other: those who wait for work of their own depth alone wait in
/// no circle.
type Behalf = (Who, usize);

impl Asker<'_> {
    /// `is_held`: something is there to be served instead. Then priority is that of a miss: the reserve is
    /// for what is not held, and no client's share is taken.
    fn spender(&self, is_pinned: bool, is_held: bool) -> Spender {
        let asked = self.toll.purpose();
        let is_first = asked == Purpose::Priority || (asked == Purpose::Miss && is_pinned);
        let purpose = match asked {
            _ if is_first && is_held => Purpose::Miss,
            _ if is_first => Purpose::Priority,
            Purpose::Miss if is_held => Purpose::Revalidation,
            purpose => purpose,
        };
        Spender { purpose, client: self.toll.client().filter(|_| !is_first) }
    }
}

pub struct Mirror {
    options: Options,
    upstreams: HashMap<UpstreamHost, Arc<Upstream>>,
    store: Arc<Store>,
    memory: Memory,
    writes: Writes,
    hot: Hot,
    flows: Arc<Flows>,
    tasks: Tasks,
    /// When blobs of an upstream were last seen to flow.
    blobs_flow: moka::sync::Cache<UpstreamHost, Instant>,
    fetches: Flights<(Behalf, Repository, Reference), Result<Arc<HeldManifest>, Error>>,
    resolves: Flights<(Behalf, Repository, Tag), Result<Resolved, Error>>,
    proofs: Flights<(Behalf, Repository, Subject), Result<(), Error>>,
    sizes: Flights<(Behalf, Repository, Digest), Result<Option<u64>, Error>>,
    lists: Flights<(Behalf, Repository), Result<TagsAnswer, Error>>,
    referrers: Flights<(Behalf, Repository, Digest), Result<ReferrersAnswer, Error>>,
    clock: Clock,
    started: Instant,
}

/// What is evicted is not served from memory.
impl Remembers for Mirror {
    fn forget(&self, evicted: &Evicted) {
        let of = || evicted.repository.clone();
        evicted.tags.iter().for_each(|tag| self.memory.tags.invalidate(&(of(), tag.clone())));
        for digest in &evicted.manifests {
            self.memory.manifests.invalidate(&(of(), *digest));
            self.memory.referrers.invalidate(&(of(), *digest));
        }
        for digest in &evicted.layers {
            self.memory.layers.invalidate(&(of(), *digest));
            self.memory.blobs.invalidate(digest);
        }
    }
}

impl Mirror {
    pub fn new(
        options: Options,
        upstreams: HashMap<UpstreamHost, Arc<Upstream>>,
        store: Arc<Store>,
        clock: Clock,
        tasks: Tasks,
    ) -> Arc<Self> {
        let memory = Memory::new(&options);
        let mirror = Arc::new(Self {
            memory,
            hot: Hot::new(options.ahead.refreshes_per_minute),
            flows: Flows::new(),
            tasks: tasks.clone(),
            writes: Writes::new(store.clone(), tasks.clone()),
            blobs_flow: moka::sync::Cache::new(1024),
            fetches: Flights::new(tasks.clone(), "fetch manifest"),
            resolves: Flights::new(tasks.clone(), "resolve tag"),
            proofs: Flights::new(tasks.clone(), "prove access"),
            sizes: Flights::new(tasks.clone(), "size of blob"),
            lists: Flights::new(tasks.clone(), "list tags"),
            referrers: Flights::new(tasks, "list referrers"),
            options,
            upstreams,
            store,
            started: clock.now(),
            clock,
        });
        let remembering: Weak<dyn Remembers> = Arc::<Self>::downgrade(&mirror);
        mirror.store.remembered_by(remembering);
        refresh::start(&mirror);
        mirror
    }

    pub fn upstreams(&self) -> &HashMap<UpstreamHost, Arc<Upstream>> {
        &self.upstreams
    }

    pub fn is_offline(&self) -> bool {
        self.options.offline
    }

    fn upstream(&self, repository: &Repository) -> Result<&Arc<Upstream>, Error> {
        let found = match &repository.owner {
            Owner::Upstream(host) => self.upstreams.get(host),
            Owner::Hosted => None,
        };
        found.ok_or_else(|| Error::NotFound(repository.to_string()))
    }

    /// Refuses to go on to an upstream where none is asked.
    fn online(&self, subject: impl FnOnce() -> String) -> Result<(), Error> {
        if !self.options.offline {
            return Ok(());
        }
        Err(Error::Offline(subject()))
    }

    /// The same, to be asked on behalf of a request that others passed on.
    fn upstream_for(&self, repository: &Repository, hops: &Hops) -> Result<Arc<Upstream>, Error> {
        Ok(self.upstream(repository)?.on_behalf(hops))
    }

    /// Refuses what has been here before: it would wait for itself, for who asks for the same waits for
    /// the same answer.
    fn unless_loop(&self, asker: Asker<'_>, repository: &Repository) -> Result<(), Error> {
        if asker.hops.is_empty() {
            return Ok(());
        }
        self.upstream(repository)?.closes_loop(asker.hops).map_or(Ok(()), |why| Err(Error::Loop(why)))
    }

    /// What upstream refused a moment ago, it is not asked again.
    fn refused(&self, who: Who, repository: &Repository, subject: &Subject) -> Result<(), Error> {
        match self.memory.refusal(who, repository, subject, self.clock.now()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Translates an upstream's failure, and remembers it for as long as it is worth.
    fn refuse(&self, who: Who, repository: &Repository, subject: &Subject, error: upstream::Error) -> Error {
        let (error, hold) = self.translate(who, repository, subject, error);
        self.remember(who, repository, subject, error, hold)
    }

    /// Has a refusal answer further requests for a while.
    fn remember(
        &self,
        who: Who,
        repository: &Repository,
        subject: &Subject,
        error: Error,
        hold: Duration,
    ) -> Error {
        if !hold.is_zero() {
            self.memory.refuse(who, repository, subject, error.clone(), self.clock.now() + hold);
        }
        error
    }

    fn held_back(&self, subject: String, held: HeldBack) -> Error {
        Error::HeldBack { subject, why: held.why, retry_after: held.wait }
    }

    /// An upstream's failure in our words, and for how long it is taken as said.
    fn translate(
        &self,
        who: Who,
        repository: &Repository,
        subject: &Subject,
        error: upstream::Error,
    ) -> (Error, Duration) {
        use upstream::Cause;
        let named = subject.of(repository);
        match error.cause {
            Cause::NotFound => (Error::NotFound(named), self.options.negative_not_found),
            Cause::Denied(why) => {
                // Whatever was shown before counts no more.
                who.into_iter().for_each(|id| self.memory.rights.invalidate(&(id, repository.clone())));
                (Error::Denied { subject: named, why: denied(&why) }, self.options.negative_denied)
            }
            Cause::Loop(why) => (Error::Loop(why), TROUBLE_HOLD),
            Cause::Limited(wait) => (Error::UpstreamLimited { subject: named, retry_after: wait }, wait),
            // That this one may not says nothing of the next.
            Cause::HeldBack(held) => (self.held_back(named, held), Duration::ZERO),
            cause @ (Cause::Busy | Cause::Trouble(_) | Cause::Corrupt(_) | Cause::Refused(_)) => {
                let why = format!("{}: {cause}", error.operation);
                (Error::Unavailable { subject: named, why }, TROUBLE_HOLD)
            }
        }
    }
}

/// Clients repeat a failed request at once, several times: they need not all reach upstream.
const TROUBLE_HOLD: Duration = Duration::from_secs(2);

fn denied(why: &str) -> String {
    format!(
        "the upstream does not give it to this mirror{why}; if it is private, give the upstream a \
         credential and say `private = \"shared\"`, or have callers show their own: `private = \"per-caller\"`"
    )
}

/// The work was lost: a panic, or shutdown.
fn lost(subject: String) -> Error {
    Error::Unavailable { subject, why: "the request was ended".to_owned() }
}
