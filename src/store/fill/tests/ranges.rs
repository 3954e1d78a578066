//! Blobs read by ranges: several at once, a few small ones, over several answers of the source.

use futures_util::future::join_all;
use proptest::prelude::*;

use super::*;
use crate::store::Fill;

/// A client's way through a blob.
#[derive(Clone, Debug)]
struct Reading {
    start: usize,
    /// None: to the end, by an open range.
    end: Option<usize>,
    /// The client has gone when it has this much.
    enough: usize,
    pause: u64,
}

/// Reads a range; what came must be that of `content`. True if it came to its end.
async fn follow(fill: &Arc<Fill>, content: &Bytes, reading: Reading) -> bool {
    let Some(mut reader) = fill.reader() else { return false };
    let end = reading.end.unwrap_or(content.len());
    reader.restrict(ByteRange { start: reading.start as u64, end: end as u64 });
    let mut at = reading.start;
    while at < end {
        if at - reading.start >= reading.enough {
            return true;
        }
        match reader.next().await {
            Some(Ok(bytes)) => {
                assert_eq!(bytes, content.slice(at..at + bytes.len()), "wrong bytes from {at} on");
                at += bytes.len();
            }
            Some(Err(_)) => return false,
            None => panic!("a clean end at {at} of {end}"),
        }
        tokio::time::sleep(Duration::from_millis(reading.pause)).await;
    }
    assert!(reader.next().await.is_none());
    true
}

/// What a containerd 2 does: the beginning by an open range, then open ranges for the other chunks, so
/// many at once, each left when its chunk is there.
async fn by_chunks(fill: &Arc<Fill>, content: &Bytes, chunk: usize, at_once: usize) {
    let starts = futures_util::stream::iter((0..content.len()).step_by(chunk));
    starts
        .for_each_concurrent(at_once, async |start| {
            let reading = Reading { start, end: None, enough: chunk, pause: 0 };
            assert!(follow(fill, content, reading).await, "chunk {start}");
        })
        .await;
}

fn span(start: usize, len: usize) -> Reading {
    Reading { start, end: Some(start + len), enough: usize::MAX, pause: 0 }
}

impl Scripted {
    fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// No byte was asked for twice, nor left out.
    fn assert_each_byte_asked_for_once(&self) {
        let mut opens = lock(&self.opens).clone();
        opens.sort_unstable();
        let mut at = 0;
        for (start, end) in &opens {
            assert_eq!(*start, at, "{opens:?}");
            at = end.unwrap_or(self.content.len() as u64);
        }
        assert_eq!((at, self.sent()), (self.content.len() as u64, self.content.len() as u64), "{opens:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_ranges_at_once_take_each_byte_once() {
    for (chunk, at_once) in [(MIB, 3), (4 * MIB, 4), (10 * MIB, 3), (20 * MIB, 8)] {
        let (rig, content) = (Rig::new(), random(60 * MIB + 12345));
        let source = Scripted::new(&content, (0..20).map(|_| Act::Slow));
        let (reader, source) = rig.start_with(Demand::Ranges, source).await;
        by_chunks(reader.fill(), &content, chunk, at_once).await;
        drop(reader);
        assert!(rig.is_kept(&content).await);
        source.assert_each_byte_asked_for_once();
        assert!(rig.metrics.fill_extents.get() > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_connections_take_each_byte_once() {
    for size in [100, 8 * MIB, 8 * MIB + 1, 50 * MIB] {
        let rig = Rig::with(Arc::new(RealDisk), |options| options.fill_connections = 4);
        let content = random(size);
        let (reader, source) = rig.start(&content, (0..20).map(|_| Act::Slow)).await;
        assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content);
        assert!(rig.is_kept(&content).await);
        let asked = lock(&source.opens).len();
        assert_eq!(asked > 1, size > 8 * MIB, "{asked}");
        assert_eq!(source.sent(), size as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_blob_is_not_asked_for_by_range() {
    let rig = Rig::with(Arc::new(RealDisk), |options| options.fill_connections = 4);
    let (reader, source) = rig.start(&Bytes::new(), []).await;
    assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), Bytes::new());
    assert_eq!(lock(&source.opens).as_slice(), [(0, None)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_place_to_spare_ranges_wait_for_the_rest() {
    let (rig, content) = (Rig::new(), random(40 * MIB));
    let source = Scripted { places: Arc::new(Semaphore::new(0)), ..Scripted::new(&content, []) };
    let (reader, source) = rig.start_with(Demand::Ranges, source).await;
    by_chunks(reader.fill(), &content, 8 * MIB, 5).await;
    assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content);
    assert!(rig.is_kept(&content).await);
    assert_eq!(rig.metrics.fill_extents.get(), 0);
    assert_eq!(source.sent(), content.len() as u64);
}

/// What a source does with a stretch of its blob.
enum Trouble {
    /// Each answer begins late.
    Late(Duration),
    /// Each that comes beside the head's breaks off after a few bytes.
    Crumbs,
    /// One answer breaks off after a part.
    Cut(AtomicU64),
}

struct Troubled {
    blob: Scripted,
    stretch: std::ops::Range<u64>,
    trouble: Trouble,
}

impl Source for Troubled {
    fn spare_place(&self) -> Option<Place> {
        self.blob.spare_place()
    }

    fn place(&self) -> BoxFuture<'_, Result<Place, SourceError>> {
        self.blob.place()
    }

    fn open(
        &self,
        place: Place,
        start: u64,
        end: Option<u64>,
    ) -> BoxFuture<'_, Result<SourceStream, SourceError>> {
        let (late, act) = match &self.trouble {
            _ if !self.stretch.contains(&start) => (Duration::ZERO, Act::Slow),
            Trouble::Late(late) => (*late, Act::Slow),
            Trouble::Crumbs if Arc::ptr_eq(place.semaphore(), &self.blob.queue) => {
                (Duration::ZERO, Act::Slow)
            }
            Trouble::Crumbs => (Duration::ZERO, Act::CutAfter(10)),
            Trouble::Cut(after) => match after.swap(0, Ordering::SeqCst) {
                0 => (Duration::ZERO, Act::Slow),
                after => (Duration::ZERO, Act::CutAfter(after as usize)),
            },
        };
        async move {
            tokio::time::sleep(late).await;
            lock(&self.blob.acts).push_back(act);
            self.blob.open(place, start, end).await
        }
        .boxed()
    }
}

/// Reads a blob whole, and by ranges from the middle on, of a source that has trouble from there on.
/// Gives what it was asked for.
async fn with_trouble(trouble: Trouble) -> (Vec<(u64, Option<u64>)>, u64) {
    let (rig, content) = (Rig::new(), random(40 * MIB));
    let stretch = 20 * MIB as u64..40 * MIB as u64;
    let source = Arc::new(Troubled { blob: Scripted::new(&content, []), stretch, trouble });
    let digest = Digest::sha256(&content);
    let started = rig.store.start_fill(&rig.grant, &digest, source.clone(), Demand::Ranges, true).await;
    let Start::Reading(reader) = started else { panic!() };
    let fill = reader.fill().clone();
    fill.opened().await.unwrap();
    let reading = |start| Reading { start, end: None, enough: 4 * MIB, pause: 0 };
    let ranges = join_all((20..40).step_by(4).map(|at| follow(&fill, &content, reading(at * MIB))));
    let (ranges, whole) = tokio::join!(ranges, read(BlobKind::Fill(reader)));
    assert_eq!(ranges, [true; 5]);
    assert_eq!(whole.unwrap(), content);
    drop(fill);
    assert!(rig.is_kept(&content).await);
    assert_eq!(source.blob.sent(), content.len() as u64, "each byte came once");
    let opens = lock(&source.blob.opens).clone();
    let beyond = opens.into_iter().filter(|(start, _)| *start >= 20 * MIB as u64).collect();
    (beyond, rig.metrics.fill_resumes.get())
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_are_answered_late_are_asked_for_once() {
    let (mut beyond, _) = with_trouble(Trouble::Late(Duration::from_millis(1500))).await;
    beyond.sort_unstable();
    let mut at = 20 * MIB as u64;
    for (start, end) in &beyond {
        assert!(*start <= at, "{beyond:?}");
        at = end.unwrap_or(40 * MIB as u64);
    }
    assert!(beyond.windows(2).all(|two| two[0].1.is_some_and(|end| end <= two[1].0)), "{beyond:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_a_source_that_gives_crumbs_are_not_asked_for_again_and_again() {
    let (beyond, _) = with_trouble(Trouble::Crumbs).await;
    assert!(beyond.len() < 30, "{beyond:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_range_that_broke_off_is_no_reason_to_ask_for_no_more() {
    let (beyond, resumes) = with_trouble(Trouble::Cut(AtomicU64::new(MIB as u64))).await;
    assert!(beyond.len() > 2, "{beyond:?}");
    assert_eq!(resumes, 0, "the head was not in need");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_a_wrong_blob_never_reach_its_end() {
    let (rig, content) = (Rig::new(), random(40 * MIB));
    let mut wrong = content.to_vec();
    wrong[40 * MIB - 1] ^= 1;
    let wrong = Bytes::from(wrong);
    let source = Arc::new(Scripted::new(&wrong, []));
    let digest = Digest::sha256(&content);
    let Start::Reading(reader) =
        rig.store.start_fill(&rig.grant, &digest, source, Demand::Ranges, true).await
    else {
        panic!()
    };
    let fill = reader.fill().clone();
    fill.opened().await.unwrap();
    let early = follow(&fill, &wrong, span(10 * MIB, MIB));
    let last = follow(&fill, &wrong, span(39 * MIB, MIB));
    let suffix = follow(&fill, &wrong, span(40 * MIB - 1, 1));
    let (early, last, suffix) = tokio::join!(early, last, suffix);
    assert_eq!((early, last, suffix), (true, false, false));
    drop((reader, fill));
    assert!(!rig.is_kept(&content).await);
    assert_eq!(rig.ended(FillEnd::Corrupt), 1);
    assert_eq!(rig.metrics.unverified_ranges.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_ignores_ranges_is_read_in_order() {
    let (rig, content) = (Rig::new(), random(40 * MIB));
    let source = Scripted::new(&content, (0..100).map(|_| Act::IgnoreRange));
    let (reader, source) = rig.start_with(Demand::Ranges, source).await;
    by_chunks(reader.fill(), &content, 8 * MIB, 5).await;
    assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content);
    assert!(rig.is_kept(&content).await);
    assert!(lock(&source.opens).len() <= 1 + 8, "it is not asked again and again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extent_that_breaks_off_is_taken_up() {
    let (rig, content) = (Rig::new(), random(48 * MIB));
    let acts = (0..12).map(|i| if i % 2 == 1 { Act::CutAfter(MIB + i) } else { Act::Slow });
    let (reader, source) = rig.start_with(Demand::Ranges, Scripted::new(&content, acts)).await;
    by_chunks(reader.fill(), &content, 8 * MIB, 4).await;
    drop(reader);
    assert!(rig.is_kept(&content).await);
    assert_eq!(source.sent(), content.len() as u64, "every byte once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_in_an_extent_breaks_no_range() {
    let content = random(48 * MIB);
    for room in [9, 20, 30] {
        let rig = Rig::with(Arc::new(failing((room * MIB) as u64, true)), |options| {
            options.reader_timeout = Duration::from_secs(20);
        });
        let source = Scripted::new(&content, (0..6).map(|_| Act::Slow));
        let (reader, _) = rig.start_with(Demand::Ranges, source).await;
        let fill = reader.fill().clone();
        fill.opened().await.unwrap();
        let readings = (0..6).map(|i| follow(&fill, &content, span(i * 8 * MIB, 8 * MIB)));
        let (whole, ranges) = tokio::join!(read(BlobKind::Fill(reader)), join_all(readings));
        assert_eq!(whole.unwrap(), content);
        assert_eq!(ranges, [true; 6], "{room}");
        drop(fill);
        assert!(!rig.is_kept(&content).await);
        assert_eq!(rig.ended(FillEnd::Relayed), 1);
    }
}

const HUGE: usize = 40 * MIB;

impl Rig {
    /// A blob of which a quarter may be read before the whole is fetched.
    async fn part(
        &self,
        content: &Bytes,
        acts: impl IntoIterator<Item = Act>,
    ) -> (FillReader, Arc<Scripted>) {
        let demand = Demand::Part { size: HUGE as u64, most: HUGE as u64 / 4 };
        self.start_with(demand, Scripted::new(content, acts)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_ranges_fetch_what_they_ask_for_once() {
    let (rig, content) = (Rig::new(), random(HUGE));
    let (reader, source) = rig.part(&content, []).await;
    let fill = reader.fill().clone();
    // The footer first, as lazy clients have it, then here and there, many at once and overlapping.
    assert!(follow(&fill, &content, span(HUGE - 10_240, 10_240)).await);
    assert_eq!(source.sent(), 10_240);
    let same = join_all((0..20).map(|_| follow(&fill, &content, span(5 * MIB, 100_000)))).await;
    assert_eq!(same, [true; 20]);
    let overlapping = join_all((0..10).map(|i| follow(&fill, &content, span(MIB + i * 1000, 20_000)))).await;
    assert_eq!(overlapping, [true; 10]);
    assert_eq!(source.sent(), 10_240 + 100_000 + 29_000);
    assert!(fill.is_partial());
    assert_eq!((rig.metrics.fills_partial.get(), rig.metrics.unverified_ranges.get()), (1, 31));
    drop((reader, fill));
    assert!(!rig.is_kept(&content).await, "at shutdown it is given up");
    assert_eq!((rig.ended(FillEnd::Abandoned), rig.metrics.fills_partial.get()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn small_ranges_that_come_to_much_fetch_the_rest_too() {
    let (rig, content) = (Rig::new(), random(HUGE));
    let (reader, source) = rig.part(&content, []).await;
    let fill = reader.fill().clone();
    for i in 0..11 {
        assert!(follow(&fill, &content, span(i * 3 * MIB, MIB)).await);
    }
    drop((reader, fill));
    while rig.ended(FillEnd::Committed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(rig.is_kept(&content).await);
    source.assert_each_byte_asked_for_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_the_whole_gets_it_from_the_pieces_and_the_rest() {
    let (rig, content) = (Rig::new(), random(HUGE));
    let (reader, source) = rig.part(&content, []).await;
    let fill = reader.fill().clone();
    assert!(follow(&fill, &content, span(HUGE - 5, 5)).await);
    assert!(follow(&fill, &content, span(7, 100)).await);
    fill.want_whole();
    drop(fill);
    assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content);
    assert!(rig.is_kept(&content).await);
    source.assert_each_byte_asked_for_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pieces_are_not_each_worth_a_request() {
    let (rig, content) = (Rig::new(), random(HUGE));
    let (reader, source) = rig.part(&content, []).await;
    let fill = reader.fill().clone();
    for i in 0..200 {
        assert!(follow(&fill, &content, span(i * 200_000, 100 + i)).await);
    }
    assert!(fill.is_partial());
    fill.want_whole();
    drop(fill);
    assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content);
    assert!(rig.is_kept(&content).await);
    let further = lock(&source.opens).len() - 200;
    assert!((5..=64 + 10).contains(&further), "{further} requests for the rest");
    assert!(source.sent() < (HUGE + 200 * 300) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_pieces_are_remembered_of_a_blob() {
    let (rig, content) = (Rig::new(), random(HUGE));
    let (reader, source) = rig.part(&content, []).await;
    let fill = reader.fill().clone();
    for i in 0..1030 {
        assert!(follow(&fill, &content, span(i * 10_000, 1)).await);
    }
    let opens = || lock(&source.opens).len();
    assert_eq!(opens(), 1030);
    assert!(follow(&fill, &content, span(1029 * 10_000, 1)).await);
    assert_eq!(opens(), 1030, "it is remembered");
    assert!(follow(&fill, &content, span(0, 1)).await);
    assert_eq!(opens(), 1031, "it is forgotten");
    assert!(fill.is_partial(), "little was read");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_counts_once() {
    let (rig, content) = (Rig::new(), random(HUGE));
    let (reader, _) = rig.part(&content, [Act::Slow]).await;
    let fill = reader.fill().clone();
    let (most, little) = tokio::join!(follow(&fill, &content, span(0, 9 * MIB)), async {
        while fill.state.borrow().written.end_of(0).is_none_or(|end| end < 3 * MIB as u64) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        follow(&fill, &content, span(30 * MIB, 100)).await
    });
    assert!(most && little && fill.is_partial());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_to_keep_is_never_fetched_as_a_whole_for_ranges() {
    let rig = Rig::with(Arc::new(RealDisk), |options| options.max_size = Some(20 * MIB as u64));
    let content = random(HUGE);
    let (reader, source) = rig.part(&content, []).await;
    let fill = reader.fill().clone();
    for i in 0..11 {
        assert!(follow(&fill, &content, span(i * 3 * MIB, MIB)).await);
    }
    let digest = Digest::sha256(&content);
    while rig.store.fill(&rig.grant, &digest, 0).is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(follow(&fill, &content, span(35 * MIB, MIB)).await, "who reads may go on");
    drop((reader, fill));
    while rig.ended(FillEnd::Abandoned) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(source.sent(), 12 * MIB as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_range_that_comes_in_crumbs_is_given_up() {
    let (rig, content) = (Rig::new(), random(HUGE));
    let (reader, source) = rig.part(&content, (0..100).map(|_| Act::CutAfter(10))).await;
    assert!(!follow(reader.fill(), &content, span(0, 100_000)).await);
    let opens = lock(&source.opens).len();
    assert_eq!(opens, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_refuses_ends_what_is_read_in_parts() {
    let (rig, content) = (Rig::new(), random(HUGE));
    let (reader, _) = rig.part(&content, [Act::Slow, Act::Deny]).await;
    let fill = reader.fill().clone();
    assert!(follow(&fill, &content, span(0, 100)).await);
    assert!(!follow(&fill, &content, span(MIB, 100)).await);
    assert!(fill.is_over() && rig.store.fill(&rig.grant, &Digest::sha256(&content), 0).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_tired_ends_one_range_alone() {
    let (rig, content) = (Rig::new(), random(HUGE));
    let (reader, source) = rig.part(&content, [Act::Slow, Act::Throttle]).await;
    let fill = reader.fill().clone();
    assert!(follow(&fill, &content, span(0, 100_000)).await);
    assert!(!follow(&fill, &content, span(MIB, 100)).await);
    assert!(!fill.is_over());
    assert!(follow(&fill, &content, span(0, 100_000)).await);
    assert!(follow(&fill, &content, span(2 * MIB, 100)).await);
    assert_eq!(source.sent(), 100_100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_has_begun_keeps_its_place_to_the_end() {
    let (rig, content) = (Rig::new(), random(30 * MIB));
    let places = Arc::new(Semaphore::new(1));
    let acts = [Act::Slow, Act::CutAfter(MIB), Act::Slow, Act::Slow];
    let source = Scripted { queue: places.clone(), ..Scripted::new(&content, acts) };
    let source = Scripted { places: Arc::new(Semaphore::new(0)), ..source };
    let (reader, source) = rig.start_with(Demand::Ranges, source).await;
    reader.fill().opened().await.unwrap();
    let (whole, ()) = tokio::join!(read(BlobKind::Fill(reader)), async {
        let _place = places.acquire().await.unwrap();
        assert_eq!(source.sent(), content.len() as u64);
    });
    assert_eq!(whole.unwrap(), content);
    assert!(lock(&source.opens).len() > 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_are_forgotten_when_nobody_reads_for_long() {
    let rig = Rig::with(Arc::new(RealDisk), |options| options.range_idle = Duration::from_millis(100));
    let content = random(HUGE);
    let (reader, _) = rig.part(&content, []).await;
    let digest = Digest::sha256(&content);
    assert!(follow(reader.fill(), &content, span(5, 100)).await);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(rig.store.fill(&rig.grant, &digest, 0).is_some(), "somebody reads");
    let fill = reader.fill().clone();
    drop(reader);
    while fill.opened().await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(rig.store.fill(&rig.grant, &digest, 0).is_none());
    assert!(fill.reader().is_none(), "who still holds it is not served an error");
    assert!(!rig.is_kept(&content).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_ranges_of_a_source_that_has_none_come_with_the_whole() {
    let (rig, content) = (Rig::new(), random(HUGE));
    let (reader, _) = rig.part(&content, (0..100).map(|_| Act::IgnoreRange)).await;
    let fill = reader.fill().clone();
    assert!(follow(&fill, &content, span(20 * MIB, 1000)).await);
    drop((reader, fill));
    while rig.ended(FillEnd::Committed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(rig.is_kept(&content).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_range_that_is_refused_is_told_and_the_next_one_may_be_had() {
    let (rig, content) = (Rig::new(), random(HUGE));
    let (reader, source) = rig.part(&content, [Act::Refuse, Act::CutAfter(50_000), Act::Refuse]).await;
    let fill = reader.fill().clone();
    let mut refused = fill.reader().unwrap();
    refused.restrict(ByteRange { start: 100, end: 200 });
    assert!(matches!(refused.begun().await, Err(crate::store::FillError::Source(_))));
    // It pauses before it may be asked for again.
    let paused = async || {
        while !fill.state.borrow().planned.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    paused().await;
    let mut broken = fill.reader().unwrap();
    broken.restrict(ByteRange { start: 0, end: 200_000 });
    assert!(broken.begun().await.is_ok());
    let broken = read(BlobKind::Fill(broken)).await;
    assert!(
        matches!(broken, Err(ReadError::Fill(crate::store::FillError::Source(_)))),
        "the rest was refused"
    );
    paused().await;
    assert!(follow(&fill, &content, span(0, 200_000)).await);
    assert_eq!(source.sent(), 200_000, "what came is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_blobs_are_read_in_parts_at_once() {
    let rig = Rig::new();
    let mut readers = Vec::new();
    for i in 0..66 {
        let content = Bytes::from(vec![i; 1000]);
        let demand = Demand::Part { size: 1000, most: 100 };
        readers.push(rig.start_with(demand, Scripted::new(&content, [])).await.0);
        let partial = readers.last().unwrap().fill().is_partial();
        assert_eq!(partial, i < 64, "{i}");
    }
}

#[test]
fn the_configuration_says_what_is_little() {
    let rig = Rig::with(Arc::new(RealDisk), |options| {
        (options.range_share, options.range_floor) = (0.25, 1000);
    });
    let part = |size| Demand::Part { size, most: size / 4 };
    assert_eq!(rig.store.demand(1000, 1), Demand::Ranges, "too small a blob");
    assert_eq!(rig.store.demand(4000, 1000), part(4000));
    assert_eq!(rig.store.demand(4000, 1001), Demand::Ranges);
    let never = Rig::with(Arc::new(RealDisk), |options| options.range_share = 0.0);
    assert_eq!(never.store.demand(u64::MAX, 1), Demand::Ranges);
}

fn readings(size: usize) -> impl Strategy<Value = Vec<Reading>> {
    let lengths = prop_oneof![1usize..20_000, 1usize..2 * MIB, 1usize..30 * MIB];
    let reading = (0..size, prop::option::of(lengths), 0..12 * MIB, 0u64..3);
    let reading = reading.prop_map(move |(start, len, enough, pause)| Reading {
        start,
        end: len.map(|len| size.min(start + len)),
        enough: if len.is_some() { usize::MAX } else { enough },
        pause,
    });
    prop::collection::vec(reading, 1..12)
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => Just(Act::Slow),
        1 => (MIB..9 * MIB).prop_map(Act::CutAfter),
        1 => Just(Act::IgnoreRange),
    ];
    prop::collection::vec(act, 0..8)
}

impl std::fmt::Debug for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Act::CutAfter(_) => "cut",
            Act::IgnoreRange => "whole",
            _ => "slow",
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 40, ..ProptestConfig::default() })]
    #[test]
    fn whatever_ranges_come_all_get_their_bytes_and_each_crosses_once(
        readings in readings(HUGE), acts in acts(), demand in 0..3, connections in 1usize..4, whole: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let content = content();
            let rig = Rig::with(Arc::new(RealDisk), |options| options.fill_connections = connections);
            let demand = match demand {
                0 => Demand::Whole,
                1 => Demand::Ranges,
                _ => Demand::Part { size: HUGE as u64, most: HUGE as u64 / 4 },
            };
            let faultless = acts.iter().all(|act| matches!(act, Act::Slow | Act::CutAfter(_)));
            let (reader, source) = rig.start_with(demand, Scripted::new(&content, acts.clone())).await;
            let fill = reader.fill().clone();
            fill.opened().await.unwrap();
            let ranges = join_all(readings.iter().map(|reading| follow(&fill, &content, reading.clone())));
            let all = async {
                if whole {
                    fill.want_whole();
                    assert_eq!(read(BlobKind::Fill(reader)).await.unwrap(), content);
                }
            };
            let (ranges, ()) = tokio::join!(ranges, all);
            assert!(ranges.iter().all(|done| *done), "{ranges:?}");
            if whole {
                drop(fill);
                assert!(rig.is_kept(&content).await);
                // One answer at most goes on beyond where it is left.
                let beyond = if demand == Demand::Whole && connections == 1 { 400_000 } else { 0 };
                if faultless {
                    let sent = source.sent();
                    assert!((HUGE as u64..=HUGE as u64 + beyond).contains(&sent), "{sent} {:?}", lock(&source.opens));
                }
            }
        });
    }
}

/// The same for all cases: what is random is who reads it.
fn content() -> Bytes {
    static CONTENT: std::sync::OnceLock<Bytes> = std::sync::OnceLock::new();
    CONTENT.get_or_init(|| random(HUGE)).clone()
}
