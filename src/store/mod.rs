//! Verified content at rest: blobs, fills, manifests, tags, and whose each repository is.
//!
//! The tree on disk is the truth, in the layout of CNCF distribution ([`layout`]); a repository has
//! what is linked in it and nothing else. Calls that are not `async` block: [`Store::run`] takes
//! them to a blocking thread.

mod buffers;
mod collect;
mod contents;
mod data;
mod directory;
mod evict;
mod fill;
mod health;
mod home;
mod index;
mod keeper;
mod layout;
mod leases;
mod links;
mod manifests;
mod open;
mod origins;
mod pins;
mod reader;
mod referrers;
mod room;
mod scrub;
mod select;
mod tags;
mod tend;
#[cfg(test)]
pub(crate) mod tests;
mod uploads;
mod wanted;
pub mod window;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::OnceCell;

use self::buffers::Buffers;
use self::health::Health;
use self::home::{Home, Staged};
use self::index::Index;
use self::keeper::Keeper;
use self::leases::Leases;
use self::open::OpenFiles;
use self::pins::Pins;
use self::room::Room;
use self::wanted::Wanted;
use crate::clock::Clock;
use crate::disk::{Disk, File};
use crate::metrics::Metrics;
use crate::oci::{ByteRange, Digest, Owner, Repository};
use crate::tasks::{Tasks, lock};

pub use self::collect::{CollectError, Marked, Pass, Removed, What};
pub use self::contents::{Contents, Piece};
pub use self::directory::Unfit;
pub use self::evict::{Evicted, Remembers, Serves};
pub use self::fill::{
    Demand, Fill, FillError, FillOptions, FillReader, Place, Source, SourceError, SourceStream,
};
pub use self::health::{Trouble, state_of};
pub use self::index::{ImageUse, Key as ImageKey, RepositoryUse, Usage, Victim};
pub use self::manifests::{ManifestCommit, NewManifest, Removal};
pub use self::origins::{Origin, OriginState, Visibility};
pub use self::pins::{PINS_MAX, Pinning};
pub use self::reader::{BlobReader, ReadError};
pub use self::referrers::HeldReferrers;
pub use self::scrub::{Checked, Damage, LinkFault, Linker, Part, Round, Shard, Watch, Wrong};
pub use self::select::{Named, Selection};
pub use self::tags::HeldTag;
pub use self::uploads::{Committed, HeldUpload, Upload};

/// What is configured of the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The data directory: holds `docker/registry/v2/…` and `forebay/`.
    pub data: PathBuf,
    /// Bytes that held content may take. None: 80 % of the file system.
    pub max_size: Option<u64>,
    /// Bytes always left free on the file system. None: 10 % or 10 GiB, the smaller.
    pub min_free: Option<u64>,
    /// How many bytes more a fill may fetch once nobody reads it.
    pub unread_budget: u64,
    /// How often in a row, without 64 KiB of progress, a broken fill is taken up again.
    pub resumes: u32,
    /// Longest that a fill waits for the slowest reader of a blob that is not kept.
    pub reader_timeout: Duration,
    /// Upstream connections that one large blob is fetched by.
    pub fill_connections: usize,
    /// Share of a blob's bytes that is fetched by ranges before the whole is.
    pub range_share: f64,
    /// Blobs of up to this size are fetched whole, however little is asked for.
    pub range_floor: u64,
    /// How long ranges are remembered that nobody reads, of a blob that was not fetched whole.
    pub range_idle: Duration,
    /// How long collection leaves alone what a pusher was told of.
    pub lease: Duration,
    /// Bytes of bad data that are kept aside.
    pub quarantine: u64,
    /// Repositories of unknown origin are taken for this owner's (`--adopt`).
    pub adopt: Option<Owner>,
}

/// Why a disk operation failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot {operation} {}: {source}", path.display())]
pub struct Error {
    pub operation: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: Arc<std::io::Error>,
}

impl Error {
    /// What the disk is known to suffer from, where nothing was tried or waited for because of it.
    pub fn trouble(&self) -> Option<&Trouble> {
        Trouble::of(&self.source)
    }
}

/// The data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the data directory {} is in use by another process: end that one, or name another \
         directory with --data",
        .0.display()
    )]
    Locked(PathBuf),
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error("the data directory cannot be used: {0}; mend that, or name another with --data")]
    Disk(#[from] Error),
    #[error(
        "the data directory cannot be used: {error}; make it this user's with `{command}`, or name another with --data"
    )]
    Denied { error: Error, command: String },
}

impl OpenError {
    /// With the command that lets the user of this process write there: a volume that a registry's
    /// container has written is root's.
    fn with_remedy(self, data: &Path, disk: &dyn Disk) -> Self {
        match self {
            Self::Disk(error) if error.source.kind() == std::io::ErrorKind::PermissionDenied => {
                Self::Denied { error, command: own_by_this(data, disk) }
            }
            other => other,
        }
    }
}

fn own_by_this(data: &Path, disk: &dyn Disk) -> String {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    match disk.stat(data) {
        // Else chown would leave alone what a symbolic link leads to.
        Ok(stat) if !stat.is_dir => own(&data.join(""), true, user, group),
        found => own(data, found.is_ok(), user, group),
    }
}

fn own(directory: &Path, is_there: bool, user: u32, group: u32) -> String {
    let text = directory.display().to_string();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-".contains(&b);
    let quoted = if text.bytes().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) };
    // Where it is not there, its parent is not ours to make it in.
    let make = if is_there { String::new() } else { format!("sudo mkdir -p {quoted} && ") };
    format!("{make}sudo chown -R {user}:{group} {quoted}")
}

/// Content on disk, open.
pub struct Held {
    file: Arc<dyn File>,
    pub len: u64,
    digest: Digest,
    /// It is to be checked as it is read.
    is_doubtful: bool,
}

pub struct Store {
    options: Options,
    home: Home,
    health: Arc<Health>,
    buffers: Arc<Buffers>,
    fills: Mutex<HashMap<FillKey, Vec<Arc<Fill>>>>,
    room: Arc<Room>,
    open: OpenFiles,
    index: Index,
    wanted: Wanted,
    pins: Pins,
    remembering: Mutex<Vec<Weak<dyn Remembers>>>,
    serves: Mutex<Arc<Serves>>,
    leases: Leases,
    /// Once the first that needs room has waited for it to be known what is held.
    waited: OnceCell<bool>,
    clock: Clock,
    doubt: scrub::Doubt,
    uploads: uploads::Turns,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    /// Names that no repository can have were told of.
    told_odd: AtomicBool,
    _lock: Box<dyn Send + Sync>,
}

/// A repository as part of a trust domain: one upstream, credential and visibility. Bytes fetched in
/// a domain are shared within it; to another domain they prove nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub repository: Repository,
    pub domain: Arc<str>,
    pub visibility: Visibility,
}

/// What came of asking for a fill.
pub enum Start {
    Reading(FillReader),
    /// The blob is on disk by now.
    Held,
    /// Somebody fetches it, or has fetched it, for another repository of the trust domain: that this
    /// one has it is to be shown first.
    Unproven,
}

/// Blobs of which only ranges are fetched: each has a file open, and is remembered for minutes.
const MOST_PARTIAL: usize = 64;

/// A fill serves one trust domain: what one fetched proves nothing to another.
type FillKey = (Arc<str>, Digest);

impl Store {
    /// Opens the directory: makes what is missing, takes the lock, drops unfinished fills. What is something
    /// else than a data directory is left as it is. Blocks.
    pub fn open(
        options: Options,
        disk: Arc<dyn Disk>,
        metrics: Arc<Metrics>,
        clock: Clock,
        tasks: Tasks,
    ) -> Result<Arc<Self>, OpenError> {
        let (data, seen) = (options.data.clone(), disk.clone());
        Self::open_directory(options, disk, metrics, clock, tasks)
            .map_err(|error| error.with_remedy(&data, &*seen))
    }

    fn open_directory(
        options: Options,
        disk: Arc<dyn Disk>,
        metrics: Arc<Metrics>,
        clock: Clock,
        tasks: Tasks,
    ) -> Result<Arc<Self>, OpenError> {
        let health = Arc::new(Health::new(metrics.clone(), clock.clone()));
        let home = Home::new(options.data.clone(), disk.clone(), health.clone());
        directory::check(&home)?;
        home.make_dir(layout::OWN_DIR)?;
        home.make_dir(layout::REPOSITORIES_DIR)?;
        let lock = home.lock(layout::LOCK).map_err(|error| match error.source.kind() {
            std::io::ErrorKind::Unsupported => Unfit::Unlockable { data: options.data.clone(), error }.into(),
            _ => OpenError::from(error),
        });
        let Some(lock) = lock? else { return Err(OpenError::Locked(options.data)) };
        let total = home.space()?.total;
        if let Some(min_free) = options.min_free.filter(|min_free| *min_free > 0 && *min_free >= total) {
            return Err(Unfit::Floor { data: options.data, min_free, total }.into());
        }
        directory::settle(&home)?;
        directory::tell_denied(&home, || own_by_this(&options.data, &*disk))?;
        let (buffers, fills) = (Arc::<Buffers>::default(), Mutex::default());
        let leases = Leases::new(options.lease, clock.clone());
        let (uploads, told_odd) = (uploads::Turns::default(), AtomicBool::new(false));
        let store = Self {
            options,
            home,
            health,
            buffers: buffers.clone(),
            fills,
            room: Arc::default(),
            open: OpenFiles::new(buffers),
            index: Index::new(metrics.clone()),
            wanted: Wanted::default(),
            pins: Pins::default(),
            remembering: Mutex::default(),
            serves: Mutex::new(Arc::new(|_| true)),
            leases,
            waited: OnceCell::new(),
            doubt: scrub::Doubt::new(tasks.clone()),
            clock,
            uploads,
            metrics,
            tasks,
            told_odd,
            _lock: lock,
        };
        store.adopt()?;
        Ok(Arc::new(store))
    }

    /// How long a promise to a pusher is kept.
    pub fn lease_term(&self) -> Duration {
        self.options.lease
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub fn data_dir(&self) -> &Path {
        &self.options.data
    }

    /// Runs blocking calls on a blocking thread.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        let result = done.unwrap_or_else(|gone| {
            let source = Arc::new(std::io::Error::other(gone));
            Err(Error { operation: "use", path: self.options.data.clone(), source })
        });
        result.inspect_err(|_| self.metrics.store_errors.inc())
    }

    /// Why the disk takes no writes, if it takes none. Pulls are answered all the same.
    pub fn trouble(&self) -> Option<Trouble> {
        self.health.trouble()
    }

    /// Runs blocking calls that keep something, as [`Self::run`] does; refused while the disk is in
    /// trouble.
    pub async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.check_disk().await?;
        self.change(work).await
    }

    /// The same for calls that need no room. Refused only while the disk does not answer; then it may
    /// be done all the same, later.
    pub async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.clone();
        let done = self.health.write(move || work(&store)).await;
        let done = done.unwrap_or_else(|stalled| Err(self.not_written(stalled)));
        done.inspect_err(|_| self.metrics.store_errors.inc())
    }

    fn not_written(&self, why: std::io::Error) -> Error {
        Error { operation: "write to", path: self.options.data.clone(), source: Arc::new(why) }
    }

    pub fn read(self: &Arc<Self>, held: Held, range: Option<ByteRange>) -> BlobReader {
        BlobReader::file(self, held, range)
    }

    /// The fill under way for a blob, in a trust domain, that may be waited for from this `depth`.
    pub fn fill(&self, grant: &Grant, digest: &Digest, depth: usize) -> Option<Arc<Fill>> {
        let fills = lock(&self.fills);
        let listed = fills.get(&(grant.domain.clone(), *digest))?;
        listed.iter().find(|fill| fill.may_be_awaited(depth)).cloned()
    }

    /// Whether a fill may be joined still, by whoever may wait for it.
    pub fn lists(&self, fill: &Arc<Fill>) -> bool {
        let fills = lock(&self.fills);
        let listed = fills.get(&(fill.domain.clone(), fill.digest));
        listed.is_some_and(|listed| listed.iter().any(|one| Arc::ptr_eq(one, fill)))
    }

    /// A first reader of a new fill, unless somebody's fill or commit came first: looking for one
    /// and listing the new one are one step, so nothing is fetched twice. With `unless_held`, a blob
    /// that is on disk by now is not fetched; without, what is on disk is known to be no good.
    pub async fn start_fill(
        self: &Arc<Self>,
        grant: &Grant,
        digest: &Digest,
        source: Arc<dyn Source>,
        demand: Demand,
        unless_held: bool,
    ) -> Start {
        let mut staged = self.stage().await;
        let start = self.begin_fill(grant, digest, source, demand, unless_held, &mut staged);
        if let Some(unused) = staged {
            // Removing it blocks, and is not waited for where it would for long.
            let _ = self.health.write(move || drop(unused)).await;
        }
        start
    }

    fn begin_fill(
        self: &Arc<Self>,
        grant: &Grant,
        digest: &Digest,
        source: Arc<dyn Source>,
        demand: Demand,
        unless_held: bool,
        staged: &mut Option<Staged>,
    ) -> Start {
        let depth = source.depth();
        let key = (grant.domain.clone(), *digest);
        let mut fills = lock(&self.fills);
        let listed = fills.get(&key).into_iter().flatten().find(|fill| fill.may_be_awaited(depth));
        if let Some(fill) = listed {
            if !fill.serves(&grant.repository) {
                return Start::Unproven;
            }
            if let Some(reader) = fill.reader() {
                return Start::Reading(reader);
            }
        }
        if unless_held && self.has_layer(&grant.repository, digest).unwrap_or(false) {
            return Start::Held;
        }
        // Who removes data looks for fills with its lock held: here nobody may wait for that one.
        if unless_held && self.looks_proven(grant, digest).unwrap_or(false) {
            return Start::Unproven;
        }
        let partial = fills.values().flatten().filter(|fill| fill.is_partial()).count();
        let demand = match demand {
            Demand::Part { .. } if partial >= MOST_PARTIAL => Demand::Ranges,
            demand => demand,
        };
        let file = staged.as_ref().map(|staged| staged.file.clone());
        let loan = fill::Loan {
            options: FillOptions {
                unread_budget: self.options.unread_budget,
                resumes: self.options.resumes,
                reader_timeout: self.options.reader_timeout,
                connections: self.options.fill_connections,
                range_idle: self.options.range_idle,
            },
            buffers: self.buffers.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            tasks: self.tasks.clone(),
        };
        Start::Reading(fill::start(grant.clone(), *digest, source, file, demand, loan, |fill| {
            fills.entry(key).or_default().push(fill.clone());
            Keeper::new(self.clone(), staged.take())
        }))
    }

    /// How a blob of this size is fetched of which so many bytes are asked for.
    pub fn demand(&self, size: u64, wanted: u64) -> Demand {
        // Exact enough: a share of a size is no exact number either.
        let most = (size as f64 * self.options.range_share) as u64;
        if size > self.options.range_floor && wanted <= most {
            Demand::Part { size, most }
        } else {
            Demand::Ranges
        }
    }

    /// A file for a fill; `None` where the disk gives none, and the blob is only passed on.
    async fn stage(self: &Arc<Self>) -> Option<Staged> {
        let staged = self.write(|store| store.home.stage()).await;
        staged
            .inspect_err(|error| {
                self.metrics.fill_relays.inc();
                // Trouble that is known was told when it began.
                if error.trouble().is_none() {
                    tracing::error!(%error, "a blob is passed on without being kept");
                }
            })
            .ok()
    }
}
