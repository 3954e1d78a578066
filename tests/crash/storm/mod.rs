//! A storm: clients pull and push at random while images are evicted and garbage is collected, kill -9 at a
//! random moment, start, and so on over one directory. Nothing wrong is ever served, what was acknowledged
//! is as it was acknowledged, every mirrored image can be pulled, and no orphan outlives the grace time.
//!
//! It prints its seed; `FOREBAY_SEED` has it go by that again, as far as a race can be repeated.

mod audit;
mod content;
mod pulls;
mod pushes;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::RequestBuilder;
use tokio::task::JoinSet;

use super::support::faulty::{Fault, Upstream};
use super::support::full;
use super::support::mirror::{Mirror, MirrorOptions, forebay};
use super::support::process::{PATIENCE, attempt};
use super::support::repository::Answer;
use content::Library;
use pushes::Pusher;

/// Short, so that rounds are longer.
const LEASE: Duration = Duration::from_millis(500);
const UPLOAD_AGE: Duration = Duration::from_secs(3);
const PULLERS: u64 = 3;
const PUSHERS: u64 = 4;
const ROUNDS: u64 = 300;
const AUDIT_EVERY: u64 = 50;
/// For as long new rounds begin where not all are asked for.
const SHORT: Duration = Duration::from_secs(22);
/// Bytes a second that each connection of the upstream's gives: blobs are on their way when the kill comes.
const RATE: u64 = 16 << 20;

/// What one round's clients share.
pub struct Round {
    pub url: String,
    data: PathBuf,
    killed: AtomicBool,
    pub count: Arc<Count>,
}

#[derive(Default)]
pub struct Count {
    pub pulls: AtomicU64,
    pub pushes: AtomicU64,
    pub deletes: AtomicU64,
    pub refused: AtomicU64,
    pub checked: AtomicU64,
}

pub fn one_more(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// The server went away while it was asked: that is right after a kill only.
pub struct Gone;

impl Round {
    fn is_over(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    /// What may fail because of the kill, and only then.
    pub fn excused<T>(&self, result: Result<T, String>) -> Result<T, Gone> {
        result.map_err(|error| {
            assert!(self.is_over() && !error.contains("other bytes"), "{error}");
            Gone
        })
    }

    pub async fn ask(&self, request: RequestBuilder) -> Result<Answer, Gone> {
        self.excused(ask(request).await)
    }
}

/// The answer, read to its end.
pub async fn ask(request: RequestBuilder) -> Result<Answer, String> {
    let (client, request) = request.build_split();
    let request = request.map_err(|e| e.to_string())?;
    let what = format!("{} {}", request.method(), request.url());
    let answer = async {
        let answer = client.execute(request).await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Ok::<_, reqwest::Error>(Answer { status, headers, body: answer.bytes().await? })
    };
    let answer = tokio::time::timeout(PATIENCE, answer).await.map_err(|_| format!("{what}: no end"))?;
    answer.map_err(|error| format!("{what}: {error:?}"))
}

fn seed() -> u64 {
    let given = std::env::var("FOREBAY_SEED").ok();
    given.map_or_else(rand::random, |seed| seed.parse().expect("FOREBAY_SEED is a number"))
}

fn configuration(upstream: &Upstream) -> String {
    format!(
        "[upstream.\"docker.io\"]\nurl = \"{url}\"\n[upstream.\"other.test\"]\nurl = \"{url}\"\n\
         [cache]\nmax_size = \"2560KiB\"\nmin_free = \"1MiB\"\n\
         [gc]\nlease = \"{}ms\"\ninterval = \"1m\"\n\
         [hosted]\nupload_age = \"{}s\"\n\
         [[hosted.retention]]\nrepositories = \"temp*\"\nuntagged_for = \"1s\"\n\
         [freshness.rules]\nmoving = \"1s\"\n[limits]\ncold_misses = \"60000/m\"\n",
        LEASE.as_millis(),
        UPLOAD_AGE.as_secs(),
        url = upstream.url(),
    )
}

/// Collects now and then; the first pass after a start comes by itself.
async fn collector(round: Arc<Round>, mut random: StdRng) {
    while !round.is_over() {
        tokio::time::sleep(Duration::from_millis(random.random_range(50..400))).await;
        let mut gc = forebay(["gc", "--data"]);
        gc.arg(&round.data);
        // One may be at work, or be taken away by the kill, or take longer than a lease.
        let _ = attempt(gc).await;
    }
}

struct Storm {
    seed: u64,
    upstream: Upstream,
    library: Arc<Library>,
    mirror: Mirror,
    pushers: Vec<Pusher>,
    count: Arc<Count>,
}

impl Storm {
    async fn round(&mut self, number: u64) {
        let mut random = StdRng::seed_from_u64(self.seed.wrapping_add(number << 8));
        // Half of them end before any lease does.
        let most = if random.random_bool(0.5) { 500 } else { 2000 };
        let moment = Duration::from_millis(random.random_range(10..most));
        let in_start = random.random_bool(0.2).then(|| Duration::from_millis(random.random_range(0..300)));
        eprintln!("round {number}: killed after {moment:?}, in the start after {in_start:?}");
        self.library.move_tags(&self.upstream, number);
        self.upstream.on("GET", "/blobs/").then(Fault::Rate(RATE));
        self.blow(moment, &mut random).await;
        self.upstream.clear_rules();

        if let Some(moment) = in_start {
            let _ = tokio::time::timeout(moment, self.mirror.restart()).await;
            self.mirror.kill();
        }
        let started = Instant::now();
        self.mirror.restart().await;
        let url = self.mirror.url();
        let kept = self.pushers.iter_mut().map(|pusher| pusher.check_blobs(&url, started));
        join_all(kept).await;
        let kept = self.pushers.iter_mut().map(|pusher| pusher.check(&url));
        tokio::join!(join_all(kept), pulls::all(&url, &self.library, &self.count));
        self.count.checked.store(self.pushers.iter().map(|pusher| pusher.checked).sum(), Ordering::Relaxed);
    }

    /// All clients at work, and the kill.
    async fn blow(&mut self, moment: Duration, random: &mut StdRng) {
        let killed = AtomicBool::new(false);
        let (url, data, count) = (self.mirror.url(), self.mirror.data(), self.count.clone());
        let round = Arc::new(Round { url, data, killed, count });
        let mut pulling = JoinSet::new();
        for _ in 0..PULLERS {
            let random = StdRng::seed_from_u64(random.random());
            pulling.spawn(pulls::puller(round.clone(), self.library.clone(), random));
        }
        pulling.spawn(collector(round.clone(), StdRng::seed_from_u64(random.random())));
        let mut pushing = JoinSet::new();
        for pusher in self.pushers.drain(..) {
            pushing.spawn(pusher.run(round.clone(), StdRng::seed_from_u64(random.random())));
        }
        tokio::time::sleep(moment).await;
        round.killed.store(true, Ordering::SeqCst);
        self.mirror.kill();
        let killed = Instant::now();
        self.pushers = pushing.join_all().await;
        self.pushers.sort_by_key(|pusher| pusher.number);
        self.pushers.iter_mut().for_each(|pusher| pusher.killed = Some(killed));
        pulling.join_all().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_pulls_and_pushes_and_kills() {
    let seed = seed();
    eprintln!("FOREBAY_SEED={seed}");
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let library = Arc::new(Library::new(&upstream));
    let config = Some(configuration(&upstream));
    let options = MirrorOptions { upstream: upstream.url(), config, ..Default::default() };
    let mirror = Mirror::with(&directory.path().join("forebay"), options).await;
    let pushers = (0..PUSHERS).map(|number| Pusher::new(number, library.clone())).collect();
    let count = Arc::<Count>::default();
    let mut storm = Storm { seed, upstream, library, mirror, pushers, count };

    let (begun, mut rounds) = (Instant::now(), 0);
    while if full() { rounds < ROUNDS } else { begun.elapsed() < SHORT } {
        rounds += 1;
        storm.round(rounds).await;
        if rounds % AUDIT_EVERY == 0 {
            audit::audit(&mut storm.mirror).await;
        }
    }
    audit::audit(&mut storm.mirror).await;

    let log = storm.mirror.log();
    let (evicted, collected) = (audit::logged(&log, "evicted", "images"), audit::collected(&log));
    let Count { pulls, pushes, deletes, refused, checked } = &*storm.count;
    eprintln!(
        "{rounds} rounds in {:?}: {pulls:?} pulls; {pushes:?} images pushed, {refused:?} refused, {deletes:?} \
         deletes; {checked:?} acknowledged things checked; {evicted} evicted, {collected} collected",
        begun.elapsed()
    );
    assert!(evicted > 0 && collected > 0, "nothing was evicted or collected");
    for fault in ["could not be kept", "no record", "has other bytes", "panicked at"] {
        assert!(!log.contains(fault), "{fault} in the log");
    }
    audit::taken_over(storm, &directory.path().join("registry")).await;
}
