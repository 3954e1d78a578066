//! Fresh, stale, gone, moved: the mirror over a scripted upstream, with a clock that tests move.

#[path = "mirror/budget.rs"]
mod budget;
#[path = "mirror/prefetch.rs"]
mod prefetch;
#[path = "mirror/referrers.rs"]
mod referrers;
mod support;

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use forebay::answer::{BlobWant, Error, ManifestAnswer, Served};
use forebay::clock::Clock;
use forebay::disk::RealDisk;
use forebay::metrics::Metrics;
use forebay::mirror::{Ahead, Asker, Freshness, Mirror, Options, Reserved, Stale, Toll};
use forebay::oci::{Owner, Reference, Repository, UpstreamHost};
use forebay::store::{self, Store};
use forebay::tasks::Tasks;
use forebay::upstream::{self, Credential, EndpointOptions, Hops, Password, PrivatePolicy, Proxy, Upstream};
use support::faulty::{self, Fault, Quota};
use support::image::Image;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Lets so many cold misses pass.
struct Purse(AtomicUsize);

impl Toll for Purse {
    fn cold_miss(&self) -> Pin<Box<dyn Future<Output = Result<(), Duration>> + Send + '_>> {
        let paid = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        Box::pin(async move { paid.map(drop).map_err(|_| MINUTE) })
    }
}

struct Rig {
    upstream: faulty::Upstream,
    clock: Clock,
    tasks: Tasks,
    mirror: Arc<Mirror>,
    store: Weak<Store>,
    purse: Purse,
    hops: Hops,
    dir: Arc<tempfile::TempDir>,
    stale: Stale,
    offline: bool,
    metrics: Arc<Metrics>,
}

/// The defaults, but for the bound on trouble, which a rig sets.
const STALE: Stale = Stale {
    not_found: Some(Duration::from_secs(24 * 3600)),
    denied: Duration::from_secs(900),
    trouble: None,
};

/// What differs from one rig to the other.
struct Setting {
    stale: Stale,
    offline: bool,
    budget: upstream::BudgetOptions,
    reserved: Reserved,
    mirrors: Vec<EndpointOptions>,
    prefetch: bool,
    max_fills: usize,
    queue_timeout: Duration,
}

impl Default for Setting {
    fn default() -> Self {
        let (budget, reserved) = (upstream::BudgetOptions::default(), Reserved::default());
        Self {
            stale: STALE,
            offline: false,
            budget,
            reserved,
            mirrors: vec![],
            prefetch: false,
            max_fills: 32,
            queue_timeout: Duration::from_secs(1),
        }
    }
}

fn repository(host: &str, name: &str) -> Repository {
    Repository { owner: Owner::Upstream(host.parse().unwrap()), name: name.parse().unwrap() }
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn upstream_options(host: &UpstreamHost, url: &str) -> upstream::Options {
    let second = Duration::from_secs(1);
    upstream::Options {
        host: host.clone(),
        url: url.parse().unwrap(),
        credential: None,
        ca_file: None,
        proxy: Proxy::Environment,
        mirrors: vec![],
        private: PrivatePolicy::Refuse,
        redirect_hosts: vec![],
        realm_hosts: vec![],
        connect_timeout: second,
        header_timeout: second,
        idle_timeout: second,
        deadline: 4 * second,
        max_requests: 64,
        max_fills: 32,
        queue_timeout: second,
        queue_length: 1000,
        requests_per_minute: None,
        budget: upstream::BudgetOptions::default(),
    }
}

fn mirror_at(url: &str) -> EndpointOptions {
    EndpointOptions { url: url.parse().unwrap(), credential: None, ca_file: None, proxy: Proxy::None }
}

impl Rig {
    async fn new() -> Self {
        let upstream = faulty::Upstream::start().await;
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self::over(upstream, dir, Clock::default(), &["docker.io", "other.example"]).await
    }

    async fn over(
        upstream: faulty::Upstream,
        dir: Arc<tempfile::TempDir>,
        clock: Clock,
        hosts: &[&str],
    ) -> Self {
        Self::with(upstream, dir, clock, hosts, Setting::default()).await
    }

    async fn with(
        upstream: faulty::Upstream,
        dir: Arc<tempfile::TempDir>,
        clock: Clock,
        hosts: &[&str],
        setting: Setting,
    ) -> Self {
        let Setting { stale, offline, budget, reserved, mirrors, prefetch, max_fills, queue_timeout } =
            setting;
        let (metrics, tasks) = (Arc::new(Metrics::new()), Tasks::default());
        let options = store::Options {
            data: dir.path().to_owned(),
            max_size: Some(1 << 30),
            min_free: Some(0),
            unread_budget: 1 << 30,
            resumes: 2,
            reader_timeout: MINUTE,
            fill_connections: 1,
            range_share: 0.0,
            range_floor: 0,
            range_idle: MINUTE,
            lease: MINUTE,
            quarantine: 1 << 30,
            adopt: None,
        };
        let disk = Arc::new(RealDisk);
        let store = Store::open(options, disk, metrics.clone(), clock.clone(), tasks.clone()).unwrap();
        store.survey(&|| false).unwrap();
        let mut upstreams = HashMap::new();
        for host in hosts {
            let host: UpstreamHost = host.parse().unwrap();
            let mut options = upstream_options(&host, &format!("{}/", upstream.url()));
            (options.budget, options.mirrors) = (budget.clone(), mirrors.clone());
            (options.max_fills, options.queue_timeout) = (max_fills, queue_timeout);
            if host.as_str() == "paid.example" {
                let password_file = dir.path().join("password");
                options.credential = Some(Credential::Password {
                    username: "ci".to_owned(),
                    password: Password::File(password_file),
                });
            }
            let made = Upstream::new(options, &metrics, clock.clone(), tasks.clone()).unwrap();
            upstreams.insert(host, made);
        }
        let options = Options {
            freshness: Freshness { rules: vec![], versions: 6 * HOUR, others: 5 * MINUTE, jitter: 0.0 },
            reserved,
            negative_not_found: Duration::from_secs(30),
            negative_denied: MINUTE,
            stale,
            offline,
            metadata_memory: 1 << 20,
            blob_memory: 1 << 20,
            ahead: Ahead { prefetch_layers: prefetch, ..Ahead::default() },
        };
        let held = Arc::downgrade(&store);
        let mirror = Mirror::new(options, upstreams, store, clock.clone(), tasks.clone());
        let (purse, hops) = (Purse(AtomicUsize::new(1000)), Hops::default());
        Self { upstream, clock, tasks, mirror, store: held, purse, hops, dir, stale, offline, metrics }
    }

    /// The same data and upstream, everything else anew.
    async fn restarted(self) -> Self {
        let (stale, offline) = (self.stale, self.offline);
        self.restarted_as(stale, offline).await
    }

    async fn restarted_as(self, stale: Stale, offline: bool) -> Self {
        let Self { upstream, clock, tasks, mirror, dir, .. } = self;
        assert!(tasks.drain(MINUTE).await);
        drop(mirror);
        let setting = Setting { stale, offline, ..Setting::default() };
        Self::with(upstream, dir, clock, &["docker.io", "other.example"], setting).await
    }

    fn asker(&self) -> Asker<'_> {
        Asker { toll: &self.purse, hops: &self.hops, caller: None }
    }

    async fn get(&self, what: &str) -> Result<ManifestAnswer, Error> {
        self.ask(what, true).await
    }

    async fn head(&self, what: &str) -> Result<ManifestAnswer, Error> {
        self.ask(what, false).await
    }

    async fn ask(&self, what: &str, body: bool) -> Result<ManifestAnswer, Error> {
        let repository = repository("docker.io", "library/app");
        self.mirror.manifest(self.asker(), &repository, &reference(what), body).await
    }

    async fn blob(&self, host: &str, name: &str, digest: &str) -> Result<Vec<u8>, Error> {
        let answer = self
            .mirror
            .blob(self.asker(), &repository(host, name), &digest.parse().unwrap(), BlobWant::Whole)
            .await?;
        let (mut body, mut all) = (answer.body.unwrap(), Vec::new());
        while let Some(piece) = body.next().await {
            all.extend_from_slice(&piece.unwrap());
        }
        Ok(all)
    }

    fn manifests(&self, method: &str) -> usize {
        self.upstream.requests_for(method, "/manifests/").len()
    }
}

fn is_stale(answer: &ManifestAnswer) -> bool {
    matches!(answer.served, Served::Stale(_))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_fresh_for_its_time_and_then_confirmed_by_head() {
    let rig = Rig::new().await;
    let (old, new) = (Image::random(1, 1, 1000), Image::random(2, 1, 1000));
    rig.upstream.put_image("library/app", "x", &old);
    assert_eq!(rig.get("x").await.unwrap().served, Served::Miss);
    assert_eq!((rig.manifests("HEAD"), rig.manifests("GET")), (1, 1));
    rig.clock.advance(4 * MINUTE);
    let answer = rig.get("x").await.unwrap();
    assert_eq!((answer.served, answer.bytes.unwrap()), (Served::Hit, old.index.bytes.clone()));
    assert_eq!(rig.head("x").await.unwrap().served, Served::Hit);
    rig.clock.advance(2 * MINUTE);
    assert_eq!(rig.get("x").await.unwrap().served, Served::Revalidated);
    assert_eq!((rig.manifests("HEAD"), rig.manifests("GET")), (2, 1));
    rig.upstream.put_image("library/app", "x", &new);
    rig.clock.advance(6 * MINUTE);
    assert_eq!(rig.get("x").await.unwrap().digest.to_string(), new.digest());
    assert_eq!((rig.manifests("HEAD"), rig.manifests("GET")), (3, 2));
    assert_eq!(rig.get(old.digest()).await.unwrap().served, Served::Hit, "the digest stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn freshness_and_content_survive_a_restart() {
    let rig = Rig::new().await;
    let image = Image::random(1, 1, 1000);
    rig.upstream.put_image("library/app", "x", &image);
    rig.get("x").await.unwrap();
    let rig = rig.restarted().await;
    assert_eq!(rig.get("x").await.unwrap().served, Served::Hit);
    rig.clock.advance(6 * MINUTE);
    let rig = rig.restarted().await;
    assert_eq!(rig.get("x").await.unwrap().served, Served::Revalidated);
    assert_eq!((rig.manifests("HEAD"), rig.manifests("GET")), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_fetches_no_body_and_spends_nothing() {
    let rig = Rig::new().await;
    let image = Image::random(1, 1, 1000);
    rig.upstream.put_image("library/app", "x", &image);
    for what in ["x", image.digest()] {
        let head = rig.head(what).await.unwrap();
        assert_eq!((head.digest.to_string().as_str(), head.bytes), (image.digest(), None));
        assert_eq!(head.size, image.index.bytes.len() as u64);
    }
    assert_eq!(rig.manifests("GET"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_head_is_asked_by_get() {
    for status in [405, 501] {
        let rig = Rig::new().await;
        rig.upstream.on("HEAD", "/manifests/").then(Fault::status(status));
        for number in 0..10 {
            let (tag, image) = (format!("x{number}"), Image::random(number, 1, 1000));
            rig.upstream.put_image("library/app", &tag, &image);
            assert_eq!(rig.head(&tag).await.unwrap().digest.to_string(), image.digest(), "{status}");
            assert_eq!(rig.get(&tag).await.unwrap().served, Served::Hit);
            assert_eq!(rig.get(image.manifests[0].digest.as_str()).await.unwrap().served, Served::Miss);
        }
        let moved = Image::random(77, 1, 1000);
        rig.upstream.put_image("library/app", "x0", &moved);
        rig.clock.advance(6 * MINUTE);
        assert_eq!(rig.get("x0").await.unwrap().digest.to_string(), moved.digest());
        assert!(matches!(rig.get("missing").await, Err(Error::NotFound(_))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_head_nobody_has_shown_a_right() {
    let upstream = faulty::Upstream::start().await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let rig = Rig::over(upstream, dir, Clock::default(), &["paid.example"]).await;
    rig.upstream.put_image("library/app", "x", &Image::random(1, 1, 1000));
    rig.upstream.on("HEAD", "/manifests/").then(Fault::status(405));
    let app = repository("paid.example", "library/app");
    let error = rig.mirror.manifest(rig.asker(), &app, &reference("x"), true).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unavailable { why, .. } if why.contains("no HEAD of manifests")),
        "{error}"
    );
    assert_eq!(rig.manifests("GET"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_configured_a_login_alone_is_told_what_is_missing() {
    let upstream = faulty::Upstream::start().await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let rig = Rig::over(upstream, dir, Clock::default(), &["paid.example"]).await;
    rig.upstream.on("HEAD", "/manifests/").then(Fault::status(403));
    let app = repository("paid.example", "library/app");
    for _ in 0..2 {
        let error = rig.mirror.manifest(rig.asker(), &app, &reference("x"), true).await.unwrap_err();
        assert!(
            matches!(&error, Error::Denied { why, .. } if why.contains("opens it to nobody by itself")),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_trouble_what_is_held_is_served_stale_and_upstream_is_left_in_peace() {
    let rig = Rig::new().await;
    rig.upstream.put_image("library/app", "x", &Image::random(1, 1, 1000));
    rig.get("x").await.unwrap();
    rig.upstream.on("HEAD", "/manifests/").then(Fault::status(500));
    rig.clock.advance(6 * MINUTE);
    assert!(is_stale(&rig.get("x").await.unwrap()));
    let asked = rig.manifests("HEAD");
    assert!(is_stale(&rig.get("x").await.unwrap()));
    assert_eq!(rig.manifests("HEAD"), asked, "not asked again at once");
    rig.upstream.clear_rules();
    rig.clock.advance(MINUTE);
    assert_eq!(rig.get("x").await.unwrap().served, Served::Revalidated);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_hangs_keeps_nobody_waiting_for_what_is_held() {
    let rig = Rig::new().await;
    rig.upstream.put_image("library/app", "x", &Image::random(1, 1, 1000));
    rig.get("x").await.unwrap();
    rig.upstream.on("HEAD", "/manifests/").then(Fault::Delay(Duration::MAX));
    rig.clock.advance(6 * MINUTE);
    assert!(is_stale(&rig.get("x").await.unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_upstream_dropped_is_kept_a_day_and_its_digest_for_good() {
    let rig = Rig::new().await;
    let image = Image::random(1, 1, 1000);
    rig.upstream.put_image("library/app", "x", &image);
    rig.get("x").await.unwrap();
    rig.upstream.on("HEAD", "/manifests/x").then(Fault::status(404));
    rig.clock.advance(6 * MINUTE);
    assert!(is_stale(&rig.get("x").await.unwrap()));
    rig.clock.advance(23 * HOUR);
    assert!(is_stale(&rig.get("x").await.unwrap()));
    rig.clock.advance(HOUR);
    assert!(matches!(rig.get("x").await, Err(Error::NotFound(_))));
    let rig = rig.restarted().await;
    rig.clock.advance(MINUTE);
    assert!(matches!(rig.get("x").await, Err(Error::NotFound(_))), "gone from disk too");
    assert_eq!(rig.get(image.digest()).await.unwrap().served, Served::Hit);
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_do_not_lengthen_the_day_of_a_tag_that_upstream_dropped() {
    let rig = Rig::new().await;
    rig.upstream.put_image("library/app", "x", &Image::random(1, 1, 1000));
    rig.get("x").await.unwrap();
    rig.upstream.on("HEAD", "/manifests/x").then(Fault::status(404));
    rig.clock.advance(6 * MINUTE);
    assert!(is_stale(&rig.get("x").await.unwrap()));
    rig.clock.advance(20 * HOUR);
    let rig = rig.restarted().await;
    assert!(is_stale(&rig.get("x").await.unwrap()));
    // It is there again for a while: then another day begins.
    rig.upstream.clear_rules();
    rig.clock.advance(6 * MINUTE);
    assert_eq!(rig.get("x").await.unwrap().served, Served::Revalidated);
    rig.upstream.on("HEAD", "/manifests/x").then(Fault::status(404));
    let mut rig = rig;
    for hours in [1, 12, 11] {
        rig.clock.advance(hours * HOUR);
        rig = rig.restarted().await;
        assert!(is_stale(&rig.get("x").await.unwrap()));
    }
    rig.clock.advance(2 * HOUR);
    let rig = rig.restarted().await;
    assert!(matches!(rig.get("x").await, Err(Error::NotFound(_))));
    let rig = rig.restarted().await;
    rig.clock.advance(MINUTE);
    assert!(matches!(rig.get("x").await, Err(Error::NotFound(_))), "gone from disk too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_was_dropped_is_kept_where_a_credential_is_configured_too() {
    let upstream = faulty::Upstream::start().await;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let rig = Rig::over(upstream, dir, Clock::default(), &["paid.example"]).await;
    rig.upstream.put_image("library/app", "x", &Image::random(1, 1, 1000));
    let (app, x) = (repository("paid.example", "library/app"), reference("x"));
    let get = || rig.mirror.manifest(rig.asker(), &app, &x, true);
    assert_eq!(get().await.unwrap().served, Served::Miss);
    rig.upstream.on("HEAD", "/manifests/x").then(Fault::status(404));
    // By now, that anybody may pull it is to be proven again, and the proof is a 404.
    for hours in [2, 20] {
        rig.clock.advance(hours * HOUR);
        assert!(is_stale(&get().await.unwrap()));
    }
    rig.clock.advance(5 * HOUR);
    assert!(matches!(get().await, Err(Error::NotFound(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_a_tag_is_kept_that_upstream_dropped_is_configured() {
    let (kept, dropped) =
        (Stale { not_found: None, ..STALE }, Stale { not_found: Some(Duration::ZERO), ..STALE });
    for (stale, days) in [(kept, Some(400)), (dropped, None)] {
        let rig = Rig::new().await.restarted_as(stale, false).await;
        rig.upstream.put_image("library/app", "x", &Image::random(1, 1, 1000));
        rig.get("x").await.unwrap();
        rig.upstream.on("HEAD", "/manifests/x").then(Fault::status(404));
        rig.clock.advance(6 * MINUTE);
        match days {
            Some(days) => {
                assert!(is_stale(&rig.get("x").await.unwrap()));
                rig.clock.advance(days * 24 * HOUR);
                assert!(is_stale(&rig.get("x").await.unwrap()));
            }
            None => assert!(matches!(rig.get("x").await, Err(Error::NotFound(_)))),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_is_borne_for_as_long_as_is_configured_and_digests_for_good() {
    let stale = Stale { trouble: Some(HOUR), ..STALE };
    let rig = Rig::new().await.restarted_as(stale, false).await;
    let image = Image::random(1, 1, 1000);
    rig.upstream.put_image("library/app", "x", &image);
    rig.get("x").await.unwrap();
    for fault in [Fault::status(500), Fault::Delay(Duration::MAX), Fault::status(429)] {
        rig.upstream.clear_rules();
        rig.clock.advance(16 * MINUTE);
        assert_eq!(rig.get("x").await.unwrap().served, Served::Revalidated, "a confirmation ends it");
        rig.upstream.on("HEAD", "/manifests/").then(fault.clone());
        rig.clock.advance(59 * MINUTE);
        assert!(is_stale(&rig.get("x").await.unwrap()), "{fault:?}");
        rig.clock.advance(2 * MINUTE);
        let error = rig.get("x").await.unwrap_err();
        let says = matches!(&error, Error::Unavailable { why, .. } if why.contains("`stale.trouble`"));
        assert!(says || matches!(error, Error::UpstreamLimited { .. }), "{fault:?}: {error}");
        let asked = rig.manifests("HEAD");
        assert!(rig.get("x").await.is_err());
        assert_eq!(rig.manifests("HEAD"), asked, "{fault:?}: not asked again at once");
        assert_eq!(rig.get(image.digest()).await.unwrap().served, Served::Hit);
    }
    let rig = rig.restarted().await;
    assert!(rig.get("x").await.is_err(), "a restart makes nothing young");
}

#[tokio::test(flavor = "multi_thread")]
async fn offline_what_is_held_is_served_and_nothing_is_asked() {
    let rig = Rig::new().await;
    let image = Image::random(1, 1, 1000);
    rig.upstream.put_image("library/app", "x", &image);
    rig.get("x").await.unwrap();
    let layer = image.blobs.last().unwrap().digest.clone();
    rig.blob("docker.io", "library/app", &layer).await.unwrap();
    let rig = rig.restarted_as(Stale { trouble: Some(HOUR), ..STALE }, true).await;
    let asked = rig.upstream.requests().len();
    rig.clock.advance(400 * 24 * HOUR);
    assert!(is_stale(&rig.get("x").await.unwrap()));
    assert!(is_stale(&rig.head("x").await.unwrap()));
    assert_eq!(rig.get(image.digest()).await.unwrap().served, Served::Hit);
    rig.blob("docker.io", "library/app", &layer).await.unwrap();
    let other = Image::random(2, 1, 1000);
    for what in ["y", other.digest()] {
        let error = rig.get(what).await.unwrap_err();
        assert!(matches!(error, Error::Offline(_)), "{what}: {error}");
    }
    let missing = rig.blob("docker.io", "library/app", &other.blobs.last().unwrap().digest).await;
    assert!(matches!(missing, Err(Error::Offline(_))));
    assert_eq!(rig.upstream.requests().len(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_ends_no_service() {
    const DAY: i64 = 24 * 3600;
    for off in [-(56 * 365 * DAY), -3600, DAY] {
        let rig = Rig::new().await;
        rig.upstream.put_image("library/app", "x", &Image::random(1, 1, 1000));
        rig.get("x").await.unwrap();
        // It jumps under the running server, then one starts with it.
        rig.clock.set_wall_off(off);
        assert_eq!(rig.get("x").await.unwrap().served, Served::Hit, "{off}");
        rig.upstream.on("HEAD", "/manifests/x").then(Fault::status(500));
        rig.clock.advance(6 * MINUTE);
        assert!(is_stale(&rig.get("x").await.unwrap()), "{off}");
        let rig = rig.restarted().await;
        rig.clock.advance(MINUTE);
        let new = Image::random(2, 1, 1000);
        rig.upstream.put_image("library/app", "y", &new);
        assert_eq!(rig.get("y").await.unwrap().digest.to_string(), new.digest(), "{off}");
        assert!(rig.get("x").await.is_ok(), "{off}");
        // And is set right again, in mid-outage.
        rig.clock.set_wall_off(0);
        rig.upstream.on("HEAD", "/manifests/").then(Fault::status(500));
        let rig = rig.restarted().await;
        for tag in ["x", "y"] {
            assert!(rig.get(tag).await.is_ok(), "{off} {tag}");
            rig.clock.advance(6 * MINUTE);
            assert!(is_stale(&rig.get(tag).await.unwrap()), "{off} {tag}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn access_that_was_taken_away_ends_after_its_time() {
    let rig = Rig::new().await;
    rig.upstream.put_image("library/app", "x", &Image::random(1, 1, 1000));
    rig.get("x").await.unwrap();
    rig.upstream.on("HEAD", "/manifests/x").then(Fault::status(403));
    rig.clock.advance(6 * MINUTE);
    assert!(is_stale(&rig.get("x").await.unwrap()));
    let rig = rig.restarted().await;
    rig.clock.advance(8 * MINUTE);
    assert!(is_stale(&rig.get("x").await.unwrap()), "a restart does not forget when it was last seen");
    rig.clock.advance(2 * MINUTE);
    assert!(matches!(rig.get("x").await, Err(Error::Denied { .. })));
    let asked = rig.manifests("HEAD");
    assert!(matches!(rig.get("x").await, Err(Error::Denied { .. })));
    assert_eq!(rig.manifests("HEAD"), asked, "not asked again at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_while_the_quota_is_spent_stays_what_it_was() {
    let rig = Rig::new().await;
    let (old, new) = (Image::random(1, 1, 1000), Image::random(2, 1, 1000));
    rig.upstream.put_image("library/app", "x", &old);
    rig.get("x").await.unwrap();
    rig.upstream.put_image("library/app", "x", &new);
    rig.upstream.set_quota(Some(Quota { limit: 100, remaining: 0, window: 21600 }));
    rig.clock.advance(6 * MINUTE);
    for _ in 0..2 {
        let answer = rig.get("x").await.unwrap();
        assert!(is_stale(&answer));
        assert_eq!(answer.digest.to_string(), old.digest());
        assert_eq!(rig.head("x").await.unwrap().digest.to_string(), old.digest());
        rig.clock.advance(2 * MINUTE);
    }
    assert!(matches!(rig.get(new.digest()).await, Err(Error::UpstreamLimited { .. })));
    assert!(rig.manifests("GET") <= 3, "paused, not tried again and again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_to_a_manifest_that_is_missing_stays_what_it_was() {
    let rig = Rig::new().await;
    let (old, new) = (Image::random(1, 1, 1000), Image::random(2, 1, 1000));
    rig.upstream.put_image("library/app", "x", &old);
    rig.get("x").await.unwrap();
    rig.upstream.put_image("library/app", "x", &new);
    rig.upstream.on("GET", "/manifests/").then(Fault::status(404));
    rig.clock.advance(6 * MINUTE);
    let answer = rig.get("x").await.unwrap();
    assert!(is_stale(&answer));
    assert_eq!(answer.digest.to_string(), old.digest());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_tells_no_digest_by_head_is_asked_by_get() {
    let rig = Rig::new().await;
    let image = Image::random(1, 1, 1000);
    rig.upstream.put_image("library/app", "x", &image);
    rig.upstream.on("HEAD", "/manifests/").then(Fault::WithoutHeader("Docker-Content-Digest"));
    let answer = rig.get("x").await.unwrap();
    assert_eq!(answer.digest.to_string(), image.digest());
    assert_eq!(rig.get("x").await.unwrap().served, Served::Hit);
    assert_eq!(rig.manifests("GET"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_cold_requests_are_two_upstream_and_one_toll() {
    let mut rig = Rig::new().await;
    let image = Image::random(1, 1, 1000);
    rig.upstream.put_image("library/app", "x", &image);
    rig.upstream.on("HEAD", "/").then(Fault::Delay(Duration::from_millis(50)));
    rig.upstream.on("GET", "/").then(Fault::Delay(Duration::from_millis(50)));
    rig.purse = Purse(AtomicUsize::new(1));
    let answers = futures_util::future::join_all((0..100).map(|_| rig.get("x"))).await;
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap().digest.to_string() == image.digest()));
    assert_eq!((rig.manifests("HEAD"), rig.manifests("GET")), (1, 1));
    assert_eq!(rig.purse.0.load(Ordering::SeqCst), 0);
    assert!(rig.get("x").await.is_ok(), "hits cost nothing");
    let other = Image::random(2, 1, 1000);
    rig.upstream.put_image("library/app", "y", &other);
    assert!(matches!(rig.get("y").await, Err(Error::ClientLimited { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_whose_blobs_cannot_be_had_is_not_given() {
    let rig = Rig::new().await;
    let image = Image::random(1, 1, 1000);
    rig.upstream.put_image("library/app", "x", &image);
    rig.upstream.on("GET", "/blobs/").then(Fault::Redirect("http://127.0.0.1:1".to_owned()));
    let child = &image.manifests[0].digest;
    assert!(rig.get("x").await.is_ok(), "an index has no blobs of its own");
    assert!(matches!(rig.get(child).await, Err(Error::Unavailable { .. })));
    rig.upstream.clear_rules();
    rig.clock.advance(MINUTE);
    assert!(rig.get(child).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_shared_within_a_trust_domain_only() {
    let rig = Rig::new().await;
    let blob = vec![7; 100_000];
    let digest = rig.upstream.put_blob("library/app", blob.clone());
    assert_eq!(rig.blob("docker.io", "library/app", &digest).await.unwrap(), blob);
    let gets = |rig: &Rig| rig.upstream.requests_for("GET", "/blobs/").len();
    // A repository that does not have it gets nothing, though it is held.
    assert!(matches!(rig.blob("docker.io", "library/none", &digest).await, Err(Error::NotFound(_))));
    assert_eq!(gets(&rig), 1);
    // One that has it, of the same upstream, gets it for a HEAD, once it is committed.
    let rig = rig.restarted().await;
    rig.upstream.put_blob("library/second", blob.clone());
    assert_eq!(rig.blob("docker.io", "library/second", &digest).await.unwrap(), blob);
    assert_eq!((gets(&rig), rig.upstream.requests_for("HEAD", "/blobs/").len()), (1, 2));
    // Another upstream proves nothing by saying that it has it: the bytes themselves must come.
    rig.upstream.on("GET", "/blobs/").times(1).then(Fault::status(404));
    assert!(rig.blob("other.example", "library/second", &digest).await.is_err());
    rig.clock.advance(MINUTE);
    assert_eq!(rig.blob("other.example", "library/second", &digest).await.unwrap(), blob);
    assert_eq!(gets(&rig), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_disk_and_configuration_disagree_about_is_not_served() {
    let rig = Rig::new().await;
    rig.upstream.put_image("library/app", "x", &Image::random(1, 1, 1000));
    rig.get("x").await.unwrap();
    assert!(rig.tasks.drain(MINUTE).await);
    let origin = rig.dir.path().join("forebay/origins/library/app/_origin");
    let text = std::fs::read_to_string(&origin).unwrap();
    std::fs::write(&origin, text.replace("docker.io", "other.example")).unwrap();
    let rig = rig.restarted().await;
    let Err(Error::Origin { why, .. }) = rig.get("x").await else { panic!("served") };
    assert!(why.contains("other.example"), "{why}");
    std::fs::remove_file(&origin).unwrap();
    let rig = rig.restarted().await;
    let Err(Error::Origin { why, .. }) = rig.get("x").await else { panic!("served") };
    assert!(why.contains("--adopt docker.io"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_does_not_say_whose_it_is_is_fetched_and_not_served() {
    let rig = Rig::new().await;
    rig.upstream.put_image("library/app", "x", &Image::random(1, 1, 1000));
    rig.get("x").await.unwrap();
    assert!(rig.tasks.drain(MINUTE).await);
    // Larger than any record: reading it is an error.
    let origin = rig.dir.path().join("forebay/origins/library/app/_origin");
    std::fs::write(&origin, vec![b' '; 5000]).unwrap();
    let rig = rig.restarted().await;
    assert_eq!(rig.get("x").await.unwrap().served, Served::Miss);
    assert_eq!(rig.manifests("GET"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_remembered_for_a_while() {
    let rig = Rig::new().await;
    for _ in 0..5 {
        assert!(matches!(rig.get("none").await, Err(Error::NotFound(_))));
    }
    assert_eq!(rig.manifests("HEAD"), 1);
    rig.clock.advance(MINUTE);
    rig.upstream.put_image("library/app", "none", &Image::random(1, 1, 1000));
    assert!(rig.get("none").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_whose_bytes_are_no_good_is_fetched_for_another_repository_too() {
    let damages: [fn(&Path); 3] = [
        |data| fs::write(data, b"").unwrap(),
        |data| fs::write(data, vec![0; fs::metadata(data).unwrap().len() as usize]).unwrap(),
        |data| {
            fs::remove_file(data).unwrap();
            fs::create_dir(data).unwrap();
        },
    ];
    for (kind, damage) in damages.into_iter().enumerate() {
        let rig = Rig::new().await;
        let image = Image::random(1, 1, 1000);
        // Only small ones are hashed before they are answered.
        let blob = image.blobs.iter().find(|blob| blob.bytes.len() < 10_000).unwrap();
        rig.upstream.put_image("library/app", "x", &image);
        rig.upstream.put_image("library/other", "x", &image);
        rig.blob("docker.io", "library/app", &blob.digest).await.unwrap();
        let rig = rig.restarted().await;
        let hex = blob.digest.strip_prefix("sha256:").unwrap();
        damage(&rig.dir.path().join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2])));
        let got = rig.blob("docker.io", "library/other", &blob.digest).await;
        assert!(got.unwrap() == blob.bytes, "kind {kind}");
    }
}

/// What the disk did not take is served from memory, and given to the disk again.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_the_disk_did_not_take_is_not_forgotten() {
    let rig = Rig::new().await;
    rig.upstream.put_image("library/app", "x", &Image::random(1, 1, 1000));
    let blobs = rig.dir.path().join("docker/registry/v2/blobs");
    fs::create_dir_all(blobs.parent().unwrap()).unwrap();
    fs::write(&blobs, b"in the way").unwrap();
    assert_eq!(rig.get("x").await.unwrap().served, Served::Miss);
    rig.upstream.on("GET", "/manifests/").then(Fault::status(500));
    for _ in 0..3 {
        rig.clock.advance(MINUTE);
        assert_eq!(rig.get("x").await.unwrap().served, Served::Hit);
        rig.store.upgrade().unwrap().write_wanted();
    }
    fs::remove_file(&blobs).unwrap();
    rig.clock.advance(MINUTE);
    rig.get("x").await.unwrap();
    let rig = rig.restarted().await;
    assert!(rig.get("x").await.is_ok(), "it is on disk");
}
