//! Trouble through the seam: a disk whose calls fail, or wait for as long as the test wants.

use std::io::IoSlice;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Condvar, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};

use super::*;
use crate::disk::hooked::Hooked;
use crate::disk::{Disk, File, RealDisk};
use crate::oci::{Digest, Owner, Repository, UploadId, UpstreamHost};
use crate::store::{
    Demand, Error, Evicted, FillReader, Grant, Place, ReadError, Remembers, Source, SourceError,
    SourceStream, Start, Store, Visibility,
};
use crate::tasks::Tasks;

/// What the disk does from now on.
#[derive(Default)]
struct Script {
    stands: Mutex<bool>,
    goes_on: Condvar,
    sync_fails: AtomicBool,
}

impl Script {
    fn stand(&self, still: bool) {
        *lock(&self.stands) = still;
        self.goes_on.notify_all();
    }

    fn wait(&self) {
        let stands = lock(&self.stands);
        drop(self.goes_on.wait_while(stands, |stands| *stands).unwrap_or_else(PoisonError::into_inner));
    }
}

struct Scripted(Arc<Script>, Arc<dyn File>);

impl File for Scripted {
    fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
    fn size(&self) -> io::Result<u64> {
        self.1.size()
    }
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.1.read_at(into, offset)
    }
    fn read_ready(&self, into: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.1.read_ready(into, offset)
    }
    fn read_aside(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.1.read_aside(into, offset)
    }
    fn will_need(&self, offset: u64, len: u64) {
        self.1.will_need(offset, len);
    }
    fn write_at(&self, from: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.0.wait();
        self.1.write_at(from, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.wait();
        if self.0.sync_fails.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.1.sync()
    }
}

struct Rig {
    _dir: tempfile::TempDir,
    script: Arc<Script>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// Gives a blob in pieces.
struct Pieces(Bytes);

impl Source for Pieces {
    fn spare_place(&self) -> Option<Place> {
        None
    }

    fn place(&self) -> BoxFuture<'_, Result<Place, SourceError>> {
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        async { Ok(Arc::new(place)) }.boxed()
    }

    fn open(&self, _: Place, start: u64, _: Option<u64>) -> BoxFuture<'_, Result<SourceStream, SourceError>> {
        let pieces: Vec<_> =
            self.0.slice(start as usize..).chunks(100_000).map(Bytes::copy_from_slice).collect();
        let stream = futures_util::stream::iter(pieces.into_iter().map(Ok)).boxed();
        let total = Some(self.0.len() as u64);
        async move { Ok(SourceStream { start, total, bounded: false, stream }) }.boxed()
    }
}

impl Rig {
    fn new() -> Self {
        let (dir, script) = (tempfile::tempdir().unwrap(), Arc::<Script>::default());
        let of = script.clone();
        let create = move |path: &Path| {
            of.wait();
            Ok(Arc::new(Scripted(of.clone(), RealDisk.create(path)?)) as Arc<dyn File>)
        };
        let disk = Arc::new(Hooked { create: Box::new(create), ..Hooked::default() });
        let (metrics, clock, tasks) = (Arc::new(Metrics::new()), Clock::default(), Tasks::default());
        let mut options = crate::store::tests::options(dir.path());
        (options.max_size, options.min_free) = (Some(1 << 30), Some(0));
        let store = Store::open(options, disk, metrics.clone(), clock.clone(), tasks.clone()).unwrap();
        store.survey(&|| false).unwrap();
        tasks.spawn("disk", store.clone().watch_disk());
        Self { _dir: dir, script, store, metrics, clock }
    }

    fn grant(&self, owner: Owner) -> Grant {
        let name = if owner == Owner::Hosted { "app" } else { "library/x" };
        let repository = Repository { owner, name: name.parse().unwrap() };
        Grant { repository, domain: "one".into(), visibility: Visibility::Public }
    }

    async fn start(&self, content: &Bytes) -> FillReader {
        let grant = self.grant(Owner::Upstream(UpstreamHost::docker_hub()));
        let (digest, source) = (Digest::sha256(content), Arc::new(Pieces(content.clone())));
        match self.store.start_fill(&grant, &digest, source, Demand::Whole, true).await {
            Start::Reading(reader) => reader,
            _ => panic!("nothing is held"),
        }
    }

    async fn until(&self, state: Option<DiskState>) {
        let there = async {
            while self.store.trouble().map(|trouble| trouble.state) != state {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), there).await.unwrap();
    }

    /// Pulls a new blob, and says whether it is kept.
    async fn keeps(&self, content: &Bytes) -> bool {
        assert_eq!(read(self.start(content).await).await.unwrap(), content);
        let ended = async {
            while self.metrics.fills_in_flight.get() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
        self.store.blob(&Digest::sha256(content)).unwrap().is_some()
    }

    async fn upload(&self, content: &Bytes) -> Result<(), Error> {
        let mut upload = self.store.start_upload(&self.grant(Owner::Hosted), UploadId::random()).await?;
        upload.write(content.clone()).await?;
        upload.commit(&Digest::sha256(content)).await.map(drop)
    }
}

async fn read(mut reader: FillReader) -> Result<Bytes, ReadError> {
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all.into())
}

fn content(seed: u8) -> Bytes {
    (0..3_000_000usize).map(|at| (at / 7) as u8 ^ seed).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_stands_still_in_mid_fill_holds_up_no_reader() {
    let rig = Rig::new();
    let (one, other) = (content(1), content(2));
    let reader = rig.start(&one).await;
    rig.script.stand(true);
    let reading = tokio::spawn(read(reader));
    let beginning = rig.start(&other);
    let stalling = async {
        // Calls begin in their own time: each comes to be overdue.
        while rig.store.trouble().is_none() {
            rig.clock.advance(Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (second, ()) = tokio::join!(beginning, stalling);
    assert_eq!(reading.await.unwrap().unwrap(), one);
    assert_eq!(read(second).await.unwrap(), other, "one that begins before the stall was noticed");
    let third = content(3);
    assert_eq!(read(rig.start(&third).await).await.unwrap(), third);
    let refused = rig.upload(&content(4)).await.unwrap_err();
    assert_eq!(refused.trouble().map(|trouble| trouble.state), Some(DiskState::Stalled));
    rig.script.stand(false);
    rig.until(None).await;
    assert!(rig.keeps(&content(5)).await);
    rig.upload(&content(4)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_late_to_an_upload_is_waited_for_before_it_goes_on() {
    let rig = Rig::new();
    // One write: behind a multiple of what is aligned, the rest would be another, which is not begun any more.
    let (grant, id, bytes) = (rig.grant(Owner::Hosted), UploadId::random(), content(1).slice(..1 << 20));
    let mut upload = rig.store.start_upload(&grant, id).await.unwrap();
    rig.script.stand(true);
    upload.write(bytes.clone()).await.unwrap();
    let stalling = async {
        while rig.store.trouble().is_none() {
            rig.clock.advance(Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (flushed, ()) = tokio::join!(upload.flush(), stalling);
    assert!(flushed.is_err());
    drop(upload);
    assert!(rig.store.resume_upload(&grant, id).await.is_err());
    rig.script.stand(false);
    rig.until(None).await;
    let upload = rig.store.resume_upload(&grant, id).await.unwrap().expect("it stays");
    assert_eq!(upload.received(), bytes.len() as u64, "what came late counts");
    upload.commit(&Digest::sha256(&bytes)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_is_trouble_until_one_succeeds() {
    let rig = Rig::new();
    rig.script.sync_fails.store(true, Ordering::Relaxed);
    assert!(!rig.keeps(&content(1)).await);
    rig.until(Some(DiskState::Failing)).await;
    let tried = rig.metrics.store_written_bytes.get();
    assert!(!rig.keeps(&content(2)).await);
    assert_eq!(rig.metrics.store_written_bytes.get(), tried, "nothing is tried in trouble");
    let refused = rig.upload(&content(3)).await.unwrap_err();
    assert!(refused.to_string().contains("the disk fails (Input/output error"), "{refused}");
    rig.script.sync_fails.store(false, Ordering::Relaxed);
    rig.until(None).await;
    assert!(rig.keeps(&content(1)).await && rig.keeps(&content(2)).await);
    rig.upload(&content(3)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_leave_threads_for_others() {
    let rig = Rig::new();
    rig.script.stand(true);
    let writes: Vec<_> = (0..WRITERS * 5)
        .map(|_| {
            let store = rig.store.clone();
            tokio::spawn(async move { store.write(|store| store.home.put("forebay/test", b"x")).await })
        })
        .collect();
    let all_write = async {
        while rig.store.health.writers.available_permits() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all_write).await.unwrap();
    // However many wait to write.
    let others = rig.store.run(|_| Ok(()));
    tokio::time::timeout(Duration::from_secs(60), others).await.unwrap().unwrap();
    rig.script.stand(false);
    for write in writes {
        write.await.unwrap().unwrap();
    }
}

/// What is pulled now is in memory alone.
#[tokio::test]
async fn nobody_is_told_to_forget_what_the_disk_could_not_take() {
    struct Told(AtomicU64);
    impl Remembers for Told {
        fn forget(&self, _: &Evicted) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (rig, told) = (Rig::new(), Arc::new(Told(AtomicU64::new(0))));
    let remembering: std::sync::Weak<dyn Remembers> = Arc::<Told>::downgrade(&told);
    rig.store.remembered_by(remembering);
    let asked = || {
        let repository = rig.grant(Owner::Upstream(UpstreamHost::docker_hub())).repository;
        rig.store.want(&repository, &Digest::sha256(b"not kept"));
        rig.store.write_wanted();
        told.0.load(Ordering::Relaxed)
    };
    rig.store.health.tended.store(true, Ordering::Relaxed);
    rig.store.health.enter(DiskState::Full, "no room");
    assert_eq!(asked(), 0);
    rig.store.health.leave_trouble();
    assert_eq!(asked(), 1, "it was evicted");
}
