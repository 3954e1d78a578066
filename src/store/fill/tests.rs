//! Fills over a scripted source and a disk that can fail.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::disk::hooked::Hooked;
use crate::disk::{Disk, File, RealDisk};
use crate::metrics::{FillEnd, Metrics};
use crate::oci::{ByteRange, Digest, Owner, Repository, UpstreamHost};
use crate::store::{
    BlobReader, Demand, FillReader, Grant, Options, Place, ReadError, Source, SourceError, SourceStream,
    Start, Store, Visibility,
};
use crate::tasks::{Tasks, lock};

mod ranges;

const MIB: usize = 1024 * 1024;

/// What the source does at one `open`, in order; when the list is empty it answers well.
#[derive(Clone)]
enum Act {
    Refuse,
    /// As Refuse, and for good.
    Deny,
    /// As Refuse, and not to be tried again now.
    Throttle,
    CutAfter(usize),
    Flip(usize),
    NoLength,
    NoLengthCut(usize),
    /// The blob is said to be, and is, so long.
    Short(usize),
    Empty,
    IgnoreRange,
    Resize,
    Stall(usize),
    /// A short pause after each chunk.
    Slow,
}

struct Scripted {
    content: Bytes,
    acts: Mutex<VecDeque<Act>>,
    opens: Mutex<Vec<(u64, Option<u64>)>>,
    sent: Arc<AtomicU64>,
    /// For further answers at once.
    places: Arc<Semaphore>,
    /// For those who wait for a place.
    queue: Arc<Semaphore>,
}

impl Scripted {
    fn new(content: &Bytes, acts: impl IntoIterator<Item = Act>) -> Self {
        Self {
            content: content.clone(),
            acts: Mutex::new(acts.into_iter().collect()),
            opens: Mutex::default(),
            sent: Arc::default(),
            places: Arc::new(Semaphore::new(100)),
            queue: Arc::new(Semaphore::new(100)),
        }
    }
}

fn failure() -> SourceError {
    SourceError { retry: true, refused: false, error: Arc::new(io::Error::other("scripted")) }
}

impl Source for Scripted {
    fn spare_place(&self) -> Option<Place> {
        self.places.clone().try_acquire_owned().ok().map(Arc::new)
    }

    fn place(&self) -> BoxFuture<'_, Result<Place, SourceError>> {
        async { Ok(Arc::new(self.queue.clone().acquire_owned().await.unwrap())) }.boxed()
    }

    fn open(
        &self,
        place: Place,
        start: u64,
        end: Option<u64>,
    ) -> BoxFuture<'_, Result<SourceStream, SourceError>> {
        lock(&self.opens).push((start, end));
        let act = lock(&self.acts).pop_front();
        let size = self.content.len();
        let (start, end) = match act {
            Some(Act::IgnoreRange) => (0, size),
            Some(Act::Short(n)) => (0, n),
            _ => (start as usize, end.map_or(size, |end| size.min(end as usize))),
        };
        let mut body = self.content.slice(start..end);
        let sent = self.sent.clone();
        async move {
            let mut total = Some(size as u64);
            let bounded = !matches!(act, Some(Act::IgnoreRange | Act::Short(_)));
            let mut pause = Duration::ZERO;
            let mut last = None;
            match act {
                Some(Act::Refuse) => return Err(failure()),
                Some(Act::Throttle) => return Err(SourceError { retry: false, ..failure() }),
                Some(Act::Deny) => return Err(SourceError { retry: false, refused: true, ..failure() }),
                Some(Act::CutAfter(n)) => {
                    body.truncate(n);
                    last = Some(failure());
                }
                Some(Act::Flip(n)) => {
                    let mut bytes = body.to_vec();
                    bytes[n] ^= 1;
                    body = bytes.into();
                }
                // Slowly: at the end the size is known all the same.
                Some(Act::NoLength) => (total, pause) = (None, Duration::from_millis(1)),
                Some(Act::NoLengthCut(n)) => {
                    body.truncate(n);
                    (total, last) = (None, Some(failure()));
                }
                Some(Act::Short(n)) => total = Some(n as u64),
                Some(Act::Empty) => {
                    (total, body, pause) = (Some(0), Bytes::new(), Duration::from_millis(100));
                }
                Some(Act::Resize) => total = Some(size as u64 + 1),
                Some(Act::Slow) => pause = Duration::from_millis(1),
                Some(Act::Stall(n)) => {
                    body.truncate(n);
                    pause = Duration::from_secs(3600);
                }
                Some(Act::IgnoreRange) | None => {}
            }
            let stall = pause > Duration::from_secs(1);
            let chunks: Vec<Bytes> = (0..body.len())
                .step_by(60_000)
                .map(|at| body.slice(at..body.len().min(at + 60_000)))
                .collect();
            let stream = futures_util::stream::iter(chunks).then(move |chunk| {
                let _held = &place;
                sent.fetch_add(chunk.len() as u64, Ordering::SeqCst);
                async move {
                    if !stall && !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                    Ok(chunk)
                }
            });
            let tail = futures_util::stream::once(async move {
                if stall {
                    tokio::time::sleep(pause).await;
                }
                last
            })
            .filter_map(|last| async move { last.map(Err) });
            Ok(SourceStream { start: start as u64, total, bounded, stream: stream.chain(tail).boxed() })
        }
        .boxed()
    }
}

/// The real disk, except that writes fail once so many bytes went in, or that no file can be made.
fn failing(room: u64, creates: bool) -> Hooked {
    scripted(room, creates, Writes::default())
}

/// The same, and where each write begins and ends is noted.
fn scripted(room: u64, creates: bool, writes: Writes) -> Hooked {
    let room = Arc::new(AtomicU64::new(room));
    let create = move |path: &Path| -> io::Result<Arc<dyn File>> {
        if !creates {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(Arc::new(ScriptedFile(RealDisk.create(path)?, room.clone(), writes.clone())))
    };
    Hooked { create: Box::new(create), ..Hooked::default() }
}

type Writes = Arc<Mutex<Vec<(u64, u64)>>>;

struct ScriptedFile(Arc<dyn File>, Arc<AtomicU64>, Writes);

impl File for ScriptedFile {
    fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(into, offset)
    }
    fn read_ready(&self, into: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.0.read_ready(into, offset)
    }
    fn read_aside(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_aside(into, offset)
    }
    fn will_need(&self, offset: u64, len: u64) {
        self.0.will_need(offset, len);
    }
    fn write_at(&self, from: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let bytes: u64 = from.iter().map(|slice| slice.len() as u64).sum();
        let room = self.1.load(Ordering::SeqCst);
        if bytes > room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.1.store(room - bytes, Ordering::SeqCst);
        lock(&self.2).push((offset, offset + bytes));
        self.0.write_at(from, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

struct Rig {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    repository: Repository,
    grant: Grant,
}

impl Rig {
    fn new() -> Self {
        Self::with(Arc::new(RealDisk), |_| {})
    }

    fn with(disk: Arc<dyn Disk>, change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (metrics, tasks) = (Arc::new(Metrics::new()), Tasks::default());
        let mut options = Options {
            max_size: Some(1 << 30),
            min_free: Some(0),
            unread_budget: 1 << 30,
            resumes: 3,
            reader_timeout: Duration::from_millis(300),
            ..crate::store::tests::options(dir.path())
        };
        change(&mut options);
        let store = Store::open(options, disk, metrics.clone(), Clock::default(), tasks.clone()).unwrap();
        store.survey(&|| false).unwrap();
        let name = "library/x".parse().unwrap();
        let repository = Repository { owner: Owner::Upstream(UpstreamHost::docker_hub()), name };
        let grant = Grant {
            repository: repository.clone(),
            domain: "docker.io".into(),
            visibility: Visibility::Public,
        };
        Self { dir, store, metrics, tasks, repository, grant }
    }

    async fn start(
        &self,
        content: &Bytes,
        acts: impl IntoIterator<Item = Act>,
    ) -> (FillReader, Arc<Scripted>) {
        self.start_with(Demand::Whole, Scripted::new(content, acts)).await
    }

    async fn start_with(&self, demand: Demand, source: Scripted) -> (FillReader, Arc<Scripted>) {
        let (digest, source) = (Digest::sha256(&source.content), Arc::new(source));
        let started = self.store.start_fill(&self.grant, &digest, source.clone(), demand, true).await;
        let Start::Reading(reader) = started else { panic!("nothing is held or under way") };
        (reader, source)
    }

    /// Waits until all tasks ended, then says whether the blob is held, whole and right.
    async fn is_kept(&self, content: &Bytes) -> bool {
        assert!(self.tasks.drain(Duration::from_secs(20)).await, "all tasks end");
        let digest = Digest::sha256(content);
        let linked = self.store.has_layer(&self.repository, &digest).unwrap();
        let held = self.store.blob(&digest).unwrap();
        assert_eq!(std::fs::read_dir(self.dir.path().join("forebay/fills")).unwrap().count(), 0);
        assert_eq!(linked, held.is_some());
        assert_eq!(linked, self.store.is_proven(&self.grant, &digest).unwrap());
        assert_eq!(self.metrics.fills_in_flight.get(), 0);
        assert_eq!(self.metrics.fill_readers.get(), 0);
        assert_eq!(self.metrics.store_entries.get(), i64::from(linked));
        assert_eq!(self.metrics.store_bytes.get(), if linked { content.len() as i64 } else { 0 });
        let Some(held) = held else { return false };
        assert_eq!(read(BlobKind::Held(self.store.read(held, None))).await.unwrap(), *content);
        true
    }

    fn ended(&self, end: FillEnd) -> u64 {
        self.metrics.fills.cell(end).get()
    }
}

enum BlobKind {
    Held(BlobReader),
    Fill(FillReader),
}

async fn read(from: BlobKind) -> Result<Bytes, ReadError> {
    let mut reader = match from {
        BlobKind::Held(reader) => reader,
        BlobKind::Fill(reader) => BlobReader::fill(reader),
    };
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await {
        let piece = piece?;
        assert!(!piece.is_empty());
        all.extend_from_slice(&piece);
    }
    Ok(all.into())
}

fn random(size: usize) -> Bytes {
    use rand::RngCore;
    let mut bytes = vec![0; size];
    rand::rng().fill_bytes(&mut bytes);
    bytes.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_gets_large_aligned_pieces_however_small_they_come() {
    const ALIGNED: u64 = 256 * 1024;
    let writes = Writes::default();
    let disk = scripted(u64::MAX, true, writes.clone());
    let (rig, content) = (Rig::with(Arc::new(disk), |_| {}), random(3 * MIB + 7));
    let (reader, _) = rig.start(&content, [Act::Slow]).await;
    assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content);
    assert!(rig.is_kept(&content).await);
    let mut at = 0;
    // Links and marks are written too.
    for (start, end) in lock(&writes).drain(..).filter(|(_, end)| *end > 1000) {
        assert!(start == at && start % ALIGNED == 0 && end > start, "{start}..{end}");
        at = end;
    }
    assert_eq!(at, content.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_size_arrives_and_is_kept() {
    for size in [0, 1, 16 * 1024, 16 * 1024 + 1, 59_999, 60_000, MIB, 3 * MIB + 7, 20 * MIB] {
        let (rig, content) = (Rig::new(), random(size));
        let (reader, source) = rig.start(&content, []).await;
        assert_eq!(reader.fill().opened().await.unwrap(), Some(size as u64));
        assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content, "{size}");
        assert!(rig.is_kept(&content).await);
        assert_eq!(lock(&source.opens).as_slice(), [(0, None)]);
        assert_eq!(rig.ended(FillEnd::Committed), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_meanwhile_is_not_fetched_again() {
    let (rig, content) = (Rig::new(), random(100));
    let (reader, source) = rig.start(&content, []).await;
    let digest = Digest::sha256(&content);
    assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content);
    while rig.store.fill(&rig.grant, &digest, 0).is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(matches!(
        rig.store.start_fill(&rig.grant, &digest, source.clone(), Demand::Whole, true).await,
        Start::Held
    ));
    let name = "library/other".parse().unwrap();
    let other = Grant { repository: Repository { name, ..rig.repository.clone() }, ..rig.grant.clone() };
    assert!(matches!(
        rig.store.start_fill(&other, &digest, source.clone(), Demand::Whole, true).await,
        Start::Unproven
    ));
    // Who removes data looks for fills: the two must not wait for each other.
    let ((store, source_too), ended) = ((rig.store.clone(), source.clone()), std::sync::mpsc::channel());
    let removing = rig.store.leases.remove_data();
    let start = tokio::spawn(async move {
        let start = store.start_fill(&other, &digest, source_too, Demand::Whole, true).await;
        let _ = ended.0.send(matches!(start, Start::Unproven));
    });
    assert_eq!(ended.1.recv_timeout(Duration::from_secs(20)), Ok(true));
    drop(removing);
    start.await.unwrap();
    let again = rig.store.start_fill(&rig.grant, &digest, source.clone(), Demand::Whole, false).await;
    assert!(matches!(again, Start::Reading(_)), "when what is held is no good");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_repository_must_show_its_right_before_it_joins() {
    let (rig, content) = (Rig::new(), random(3 * MIB));
    let (reader, source) = rig.start(&content, [Act::Slow]).await;
    let name = "library/other".parse().unwrap();
    let other = Grant { repository: Repository { name, ..rig.repository.clone() }, ..rig.grant.clone() };
    let digest = Digest::sha256(&content);
    assert!(matches!(
        rig.store.start_fill(&other, &digest, source.clone(), Demand::Whole, true).await,
        Start::Unproven
    ));
    assert!(reader.fill().link_later(&other));
    let Start::Reading(joined) =
        rig.store.start_fill(&other, &digest, source.clone(), Demand::Whole, true).await
    else {
        panic!("shown by now")
    };
    drop(reader);
    assert_eq!(read(BlobKind::Fill(joined)).await.unwrap(), content);
    assert!(rig.is_kept(&content).await);
    assert!(rig.store.has_layer(&other.repository, &digest).unwrap());
    assert_eq!(lock(&source.opens).len(), 1);
}

#[test]
fn blobs_on_their_way_share_the_room_that_is_left() {
    const GIB: u64 = 1 << 30;
    let rig = Rig::with(Arc::new(RealDisk), |options| {
        let left = RealDisk.space(&options.data).unwrap().available;
        options.max_size = Some(u64::MAX);
        options.min_free = Some(left - 3 * GIB / 2);
    });
    let one = rig.store.reserve(GIB);
    assert!(one.is_some() && rig.store.reserve(GIB).is_none(), "there is room for one and a half");
    drop(one);
    assert!(rig.store.reserve(GIB).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_readers_share_one_transfer_and_the_first_may_leave() {
    let (rig, content) = (Rig::new(), random(8 * MIB));
    let (mut first, source) = rig.start(&content, [Act::Slow]).await;
    assert!(first.next().await.unwrap().is_ok());
    let fill = first.fill().clone();
    drop(first);
    let readers: Vec<_> = (0..20)
        .map(|i| {
            let reader = fill.reader().unwrap();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(i * 7)).await;
                read(BlobKind::Fill(reader)).await
            })
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap(), content);
    }
    drop(fill);
    assert!(rig.is_kept(&content).await);
    assert_eq!(source.sent.load(Ordering::SeqCst), content.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_is_taken_up_where_it_broke() {
    let (rig, content) = (Rig::new(), random(5 * MIB));
    let acts =
        [Act::CutAfter(MIB), Act::Refuse, Act::CutAfter(100_000), Act::CutAfter(100), Act::CutAfter(2 * MIB)];
    let (reader, source) = rig.start(&content, acts).await;
    assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content);
    assert!(rig.is_kept(&content).await);
    assert_eq!(source.sent.load(Ordering::SeqCst), content.len() as u64, "every byte once");
    assert_eq!(rig.metrics.fill_resumes.get(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_never_recovers_breaks_the_body_off() {
    let (rig, content) = (Rig::new(), random(2 * MIB));
    let acts = [Act::CutAfter(MIB), Act::Refuse, Act::Refuse, Act::Refuse, Act::Refuse];
    let (reader, source) = rig.start(&content, acts).await;
    assert!(read(BlobKind::Fill(reader)).await.is_err());
    assert!(!rig.is_kept(&content).await);
    assert_eq!(lock(&source.opens).len(), 1 + 3, "as many resumes as configured");
    let rig = Rig::new();
    let (reader, source) = rig.start(&content, [Act::Refuse]).await;
    assert!(reader.fill().opened().await.is_err(), "no body: the client learns at once");
    drop(reader);
    assert!(!rig.is_kept(&content).await);
    assert_eq!(lock(&source.opens).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_gives_little_each_time_is_given_up() {
    let (rig, content) = (Rig::new(), random(2 * MIB));
    let (reader, source) = rig.start(&content, (0..1000).map(|_| Act::CutAfter(1000))).await;
    assert!(read(BlobKind::Fill(reader)).await.is_err());
    assert!(!rig.is_kept(&content).await);
    assert_eq!(lock(&source.opens).len(), 1 + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_never_completed_nor_kept() {
    let content = random(3 * MIB);
    for at in [0, MIB, 3 * MIB - 1] {
        let rig = Rig::new();
        let (mut reader, _) = rig.start(&content, [Act::Flip(at)]).await;
        let mut got = 0;
        let error = loop {
            match reader.next().await {
                Some(Ok(bytes)) => got += bytes.len(),
                Some(Err(error)) => break error,
                None => panic!("a wrong blob was completed"),
            }
        };
        assert!(matches!(error, ReadError::Fill(crate::store::FillError::Corrupt(_))), "{error}");
        assert!(got < content.len());
        drop(reader);
        assert!(!rig.is_kept(&content).await);
        assert_eq!(rig.ended(FillEnd::Corrupt), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_body_is_no_answer_for_a_blob_that_is_not_empty() {
    let (rig, content) = (Rig::new(), random(100));
    let (reader, _) = rig.start(&content, [Act::Empty]).await;
    assert!(reader.fill().opened().await.is_err(), "a head without a body would be a whole answer");
    drop(reader);
    assert!(!rig.is_kept(&content).await);
    assert_eq!(rig.ended(FillEnd::Corrupt), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_answers_of_the_source() {
    let content = random(3 * MIB);
    // No length: told by the digest alone.
    let rig = Rig::new();
    let (reader, _) = rig.start(&content, [Act::NoLength]).await;
    assert_eq!(reader.fill().opened().await.unwrap(), None);
    assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content);
    assert!(rig.is_kept(&content).await);
    // No range at resume: the beginning comes again and is skipped.
    let rig = Rig::new();
    let (reader, _) = rig.start(&content, [Act::CutAfter(MIB), Act::IgnoreRange]).await;
    assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content);
    assert!(rig.is_kept(&content).await);
    // Another size at resume: other content.
    let rig = Rig::new();
    let (reader, _) = rig.start(&content, [Act::CutAfter(MIB), Act::Resize]).await;
    assert!(read(BlobKind::Fill(reader)).await.is_err());
    assert!(!rig.is_kept(&content).await);
    // A size at resume that is less than what came.
    let rig = Rig::new();
    let (reader, _) = rig.start(&content, [Act::NoLengthCut(2 * MIB), Act::Short(MIB)]).await;
    assert!(read(BlobKind::Fill(reader)).await.is_err());
    assert!(!rig.is_kept(&content).await);
    // A length beyond what comes.
    let rig = Rig::new();
    let (reader, _) = rig.start(&content, [Act::Resize]).await;
    assert!(read(BlobKind::Fill(reader)).await.is_err());
    assert!(!rig.is_kept(&content).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_follows_the_fill_and_a_distant_one_comes_ahead() {
    let (rig, content) = (Rig::new(), random(40 * MIB));
    let (first, source) = rig.start(&content, [Act::Stall(MIB)]).await;
    let fill = first.fill().clone();
    fill.opened().await.unwrap();
    let range = |start: usize, end: usize| {
        let mut reader = fill.reader().unwrap();
        reader.restrict(ByteRange { start: start as u64, end: end as u64 });
        read(BlobKind::Fill(reader))
    };
    // The stalled fill has its first MiB; the far ranges do not wait for the rest.
    assert_eq!(range(100, 2000).await.unwrap(), content.slice(100..2000));
    let far = range(30 * MIB, 30 * MIB + 5000).await.unwrap();
    assert_eq!(far, content.slice(30 * MIB..30 * MIB + 5000));
    let long = range(12 * MIB, 29 * MIB).await.unwrap();
    assert_eq!(long, content.slice(12 * MIB..29 * MIB), "longer than one extent");
    assert_eq!(rig.metrics.fill_extents.get(), 3);
    assert_eq!(rig.metrics.unverified_ranges.get(), 3);
    assert!(source.sent.load(Ordering::SeqCst) < 20 * MIB as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_refused_is_not_asked_for_again_and_again() {
    let (rig, content) = (Rig::new(), random(20 * MIB));
    let acts = [Act::Slow].into_iter().chain((0..1000).map(|_| Act::Refuse));
    let (first, source) = rig.start(&content, acts).await;
    first.fill().opened().await.unwrap();
    let mut far = first.fill().reader().unwrap();
    far.restrict(ByteRange { start: 18 * MIB as u64, end: 19 * MIB as u64 });
    let far = read(BlobKind::Fill(far)).await.unwrap();
    assert_eq!(far, content.slice(18 * MIB..19 * MIB), "it comes with the rest of the blob");
    assert_eq!(lock(&source.opens).len(), 2);
    assert_eq!(read(BlobKind::Fill(first)).await.unwrap(), content);
    assert!(rig.is_kept(&content).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_ahead_is_not_fetched_again() {
    let (rig, content) = (Rig::new(), random(40 * MIB));
    let (first, source) = rig.start(&content, [Act::Slow]).await;
    let fill = first.fill().clone();
    fill.opened().await.unwrap();
    let mut far = fill.reader().unwrap();
    far.restrict(ByteRange { start: 30 * MIB as u64, end: 32 * MIB as u64 });
    assert_eq!(read(BlobKind::Fill(far)).await.unwrap(), content.slice(30 * MIB..32 * MIB));
    assert_eq!(read(BlobKind::Fill(first)).await.unwrap(), content);
    drop(fill);
    assert!(rig.is_kept(&content).await);
    let opens = lock(&source.opens).clone();
    assert_eq!(opens, [(0, None), (30 * MIB as u64, Some(32 * MIB as u64)), (32 * MIB as u64, None)]);
    // Of the broken-off first answer, only what was on its way came twice.
    assert!(source.sent.load(Ordering::SeqCst) < 41 * MIB as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_relays_from_the_start_and_in_mid_fill() {
    let content = random(12 * MIB);
    for (room, creates) in [(0, true), (5 * MIB as u64, true), (0, false)] {
        let rig = Rig::with(Arc::new(failing(room, creates)), |_| {});
        let (first, source) = rig.start(&content, [Act::Slow]).await;
        let second = first.fill().reader().unwrap();
        let second = tokio::spawn(read(BlobKind::Fill(second)));
        assert_eq!(read(BlobKind::Fill(first)).await.unwrap(), content);
        assert_eq!(second.await.unwrap().unwrap(), content);
        assert!(rig.store.fill(&rig.grant, &Digest::sha256(&content), 0).is_none(), "nobody joins late");
        assert!(!rig.is_kept(&content).await);
        assert_eq!(rig.ended(FillEnd::Relayed), 1);
        assert_eq!(source.sent.load(Ordering::SeqCst), content.len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_blob_is_checked_too_and_a_late_reader_is_turned_away() {
    let content = random(12 * MIB);
    let rig = Rig::with(Arc::new(RealDisk), |options| options.max_size = Some(20 * MIB as u64));
    let (reader, _) = rig.start(&content, [Act::Flip(12 * MIB - 1)]).await;
    let fill = reader.fill().clone();
    assert!(read(BlobKind::Fill(reader)).await.is_err());
    assert!(fill.reader().is_none(), "its beginning is gone");
    drop(fill);
    assert!(!rig.is_kept(&content).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_without_a_length_is_measured_as_it_grows() {
    let content = random(12 * MIB);
    let rig = Rig::with(Arc::new(RealDisk), |options| options.max_size = Some(8 * MIB as u64));
    let (reader, _) = rig.start(&content, [Act::NoLength]).await;
    assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content);
    assert!(!rig.is_kept(&content).await);
    assert_eq!(rig.ended(FillEnd::Relayed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slowest_reader_of_a_relay_is_cut_and_the_others_go_on() {
    let content = random(12 * MIB);
    let rig = Rig::with(Arc::new(RealDisk), |options| options.max_size = Some(MIB as u64));
    let (quick, source) = rig.start(&content, []).await;
    let mut stuck = quick.fill().reader().unwrap();
    assert!(stuck.next().await.unwrap().is_ok());
    assert_eq!(read(BlobKind::Fill(quick)).await.unwrap(), content);
    assert!(matches!(stuck.next().await, Some(Err(ReadError::Fill(crate::store::FillError::TooSlow)))));
    drop(stuck);
    assert!(!rig.is_kept(&content).await);
    assert_eq!(source.sent.load(Ordering::SeqCst), content.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_relays_take_little_memory_and_go_on() {
    let rig = Rig::with(Arc::new(RealDisk), |options| {
        (options.max_size, options.reader_timeout) = (Some(MIB as u64), Duration::from_secs(60));
    });
    let mut stuck = Vec::new();
    for _ in 0..24 {
        let content = random(3 * MIB);
        let (reader, source) = rig.start(&content, []).await;
        stuck.push((content, reader, source));
    }
    let content = random(3 * MIB);
    let (reader, _) = rig.start(&content, []).await;
    assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content, "who reads is not held up");
    let sent: u64 = stuck.iter().map(|(_, _, source)| source.sent.load(Ordering::SeqCst)).sum();
    assert!(sent < 24 * MIB as u64, "{sent} bytes wait");
    for (content, reader, _) in stuck {
        assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content);
    }
    assert!(!rig.is_kept(&content).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_ends_when_its_last_reader_is_cut() {
    let content = random(12 * MIB);
    let rig = Rig::with(Arc::new(RealDisk), |options| options.max_size = Some(MIB as u64));
    let (mut stuck, source) = rig.start(&content, []).await;
    assert!(stuck.next().await.unwrap().is_ok());
    // The client that has stopped reading keeps its reader for long yet.
    assert!(rig.tasks.drain(Duration::from_secs(20)).await);
    assert_eq!(rig.ended(FillEnd::Abandoned), 1);
    assert!(source.sent.load(Ordering::SeqCst) < 6 * MIB as u64);
    drop(stuck);
    assert!(!rig.is_kept(&content).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_nobody_reads_ends_at_its_budget() {
    let content = random(12 * MIB);
    let rig = Rig::with(Arc::new(RealDisk), |options| options.unread_budget = 2 * MIB as u64);
    let (reader, source) = rig.start(&content, [Act::Slow]).await;
    drop(reader);
    assert!(!rig.is_kept(&content).await);
    assert_eq!(rig.ended(FillEnd::Abandoned), 1);
    assert!(source.sent.load(Ordering::SeqCst) < 4 * MIB as u64);
    let rig = Rig::new();
    let (reader, _) = rig.start(&content, []).await;
    drop(reader);
    while rig.ended(FillEnd::Committed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(rig.is_kept(&content).await, "within the budget it is finished");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_a_stalled_fill_once_its_reader_leaves() {
    let (rig, content) = (Rig::new(), random(12 * MIB));
    let (mut reader, _) = rig.start(&content, [Act::Stall(MIB)]).await;
    assert!(reader.next().await.unwrap().is_ok());
    assert!(!rig.tasks.drain(Duration::from_millis(50)).await, "somebody reads");
    drop(reader);
    assert!(!rig.is_kept(&content).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_committed_counts_once() {
    let watched = Arc::new(Mutex::new((std::sync::Weak::<Store>::new(), Vec::new())));
    let seen = watched.clone();
    let sync_dir = move |dir: &Path| {
        let mut seen = lock(&seen);
        if dir.components().any(|part| part.as_os_str() == "blobs")
            && let Some(store) = seen.0.upgrade()
        {
            let room = store.reserve(100_000).is_some();
            seen.1.push(room);
        }
        RealDisk.sync_dir(dir)
    };
    let disk = Arc::new(Hooked { sync_dir: Box::new(sync_dir), ..Hooked::default() });
    let (rig, content) = (Rig::with(disk, |options| options.max_size = Some(200_000)), random(100_000));
    lock(&watched).0 = Arc::downgrade(&rig.store);
    let (reader, _) = rig.start(&content, []).await;
    assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content);
    assert!(rig.is_kept(&content).await);
    let seen = lock(&watched).1.clone();
    assert!(!seen.is_empty() && seen.iter().all(|room| *room), "{seen:?}");
}
