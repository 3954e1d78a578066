//! Collection by rules, over the real disk.

use std::path::Path;

use bytes::Bytes;

use super::*;
use crate::disk::RealDisk;
use crate::oci::{Name, Owner, Repository, RepositoryPattern, TagPattern};
use crate::registry::{Naming, Options as HostedOptions};
use crate::store::tests::options;

const TERM: Duration = Duration::from_secs(600);

struct Rig {
    store: Arc<Store>,
    hosted: Arc<Hosted>,
    metrics: Arc<Metrics>,
    clock: Clock,
    tasks: Tasks,
    collector: Arc<Collector>,
}

fn of(retention: Vec<Rule>) -> Options {
    Options { interval: None, untagged: None, retention }
}

impl Rig {
    fn new(data: &Path, gc: Options) -> Self {
        let (clock, metrics, tasks): (Clock, Arc<Metrics>, Tasks) = Default::default();
        let options = store::Options { lease: TERM, ..options(data) };
        let disk = Arc::new(RealDisk);
        let store = Store::open(options, disk, metrics.clone(), clock.clone(), tasks.clone()).unwrap();
        store.survey(&|| false).unwrap();
        let options = HostedOptions {
            delete: true,
            immutable: vec![TagPattern::parse("release").unwrap()],
            upload_age: TERM,
            max_uploads: 10,
            max_manifest: 1 << 20,
        };
        let hosted = Hosted::new(options, store.clone(), metrics.clone(), clock.clone(), tasks.clone());
        let hosted = Arc::new(hosted);
        let collector = Collector::new(gc, hosted.clone(), metrics.clone(), clock.clone());
        Self { store, hosted, metrics, clock, tasks, collector }
    }

    /// An image of one blob of its own.
    async fn push(&self, name: &str, tag: Option<&str>, salt: &str, subject: Option<&Digest>) -> Digest {
        let repository = repository(name);
        let blob = Bytes::copy_from_slice(salt.as_bytes());
        let digest = Digest::sha256(&blob);
        let turn = self.hosted.begin(&repository).await.unwrap();
        let chunks = Box::pin(futures_util::stream::iter([Ok(blob)]));
        turn.receive(chunks, None).await.unwrap().finish(digest).await.unwrap();
        let of = |digest: &Digest| format!(r#"{{"mediaType":"application/x","digest":"{digest}","size":1}}"#);
        let subject = subject.map(|digest| format!(r#","subject":{}"#, of(digest))).unwrap_or_default();
        let kind = crate::oci::MediaType::OCI_MANIFEST;
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{kind}","config":{},"layers":[]{subject}}}"#,
            of(&digest)
        );
        let digest = Digest::sha256(text.as_bytes());
        let naming = match tag {
            Some(tag) => Naming { digest: None, tags: vec![tag.parse().unwrap()] },
            None => Naming { digest: Some(digest), tags: Vec::new() },
        };
        self.hosted.put_manifest(&repository, naming, None, text.into()).await.unwrap().digest
    }

    async fn collect(&self, dry_run: bool) -> (Vec<Removed>, Totals) {
        let (report, mut removed) = mpsc::channel(1);
        let mut told = Vec::new();
        let listen = async {
            while let Some(removed) = removed.recv().await {
                told.push(removed);
            }
        };
        let (ended, ()) = tokio::join!(self.collector.run(dry_run, report), listen);
        told.sort();
        (told, ended.unwrap())
    }

    fn tags(&self, name: &str) -> Vec<String> {
        self.store.tags(&repository(name)).unwrap().iter().map(ToString::to_string).collect()
    }
}

fn repository(name: &str) -> Repository {
    Repository { owner: Owner::Hosted, name: name.parse::<Name>().unwrap() }
}

fn rule(pattern: &str) -> Rule {
    Rule {
        repositories: vec![RepositoryPattern::parse(pattern).unwrap()],
        keep_last: None,
        keep_for: None,
        keep_tags: Vec::new(),
        untagged_for: None,
    }
}

#[tokio::test]
async fn retention_frees_what_tags_held_and_a_dry_run_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let keep_tags = vec![TagPattern::parse("v*").unwrap()];
    let rules =
        vec![Rule { keep_last: Some(1), keep_tags, untagged_for: Some(Duration::ZERO), ..rule("ci") }];
    let rig = Rig::new(dir.path(), of(rules));
    for (n, tag) in ["1", "2", "v3", "release", "5"].into_iter().enumerate() {
        let digest = rig.push("ci", Some(tag), &format!("blob {n}"), None).await;
        rig.push("ci", None, &format!("signature {n}"), Some(&digest)).await;
        rig.push("other", Some(tag), &format!("blob {n}"), None).await;
        // Tags are told apart by their times.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let first = Digest::sha256(b"blob 0");
    let subject = rig.store.tag(&repository("ci"), &"1".parse().unwrap()).unwrap().unwrap().digest;
    assert_eq!(rig.hosted.referrers(&repository("ci"), &subject).await.unwrap().referrers.len(), 1);
    rig.clock.advance(TERM);
    let (dry, totals) = rig.collect(true).await;
    assert_eq!(rig.metrics.gc_passes.cell(PassEnd::Completed).get(), 0);
    assert_eq!(rig.tags("ci"), ["1", "2", "5", "release", "v3"]);
    let (real, done) = rig.collect(false).await;
    assert_eq!((dry, totals), (real, done));
    assert_eq!(rig.tags("ci"), ["5", "release", "v3"]);
    assert_eq!(rig.tags("other").len(), 5);
    // Two tags; two images and their signatures; their blobs' links. The other repository holds the
    // images too, so that only the signatures with their blobs are freed.
    assert_eq!((done.tags, done.manifests, done.links, done.blobs), (2, 4, 4, 4));
    assert!(done.bytes > 0);
    assert!(rig.store.blob(&first).unwrap().is_some());
    assert!(rig.hosted.referrers(&repository("ci"), &subject).await.unwrap().referrers.is_empty());
    let metrics = &rig.metrics;
    assert_eq!(metrics.gc_passes.cell(PassEnd::Completed).get(), 1);
    assert_eq!(metrics.gc_removed.cell(Swept::Manifest).get(), 4);
    assert_eq!(metrics.gc_freed_bytes.get(), done.bytes);
    assert_eq!(rig.collect(false).await, (Vec::new(), Totals::default()));
}

#[tokio::test]
async fn manifests_without_a_tag_stay_unless_it_is_said_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(dir.path(), of(Vec::new()));
    let lost = rig.push("a", None, "lost", None).await;
    rig.clock.advance(TERM);
    assert_eq!(rig.collect(false).await.1, Totals::default());
    let day = Duration::from_secs(24 * 3600);
    rig.collector.follow(Options { untagged: Some(day), ..of(vec![rule("a")]) }, rig.hosted.clone());
    assert_eq!(rig.collect(false).await.1, Totals::default(), "it is too young");
    rig.clock.advance(day);
    let (removed, _) = rig.collect(false).await;
    assert!(removed.iter().any(|one| one.what == What::Manifest && one.subject == lost.to_string()));
}

#[tokio::test]
async fn one_pass_at_a_time_and_none_outlives_its_asker_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(dir.path(), of(Vec::new()));
    for n in 0..3 {
        let digest = rig.push("a", Some("1"), &format!("blob {n}"), None).await;
        rig.store.remove_manifest(&repository("a"), &digest, &|_| false).unwrap();
    }
    rig.clock.advance(TERM);
    let (report, mut removed) = mpsc::channel(1);
    let running = tokio::spawn({
        let collector = rig.collector.clone();
        async move { collector.run(false, report).await }
    });
    // It waits for room to tell of the next ones.
    let first = removed.recv().await.unwrap();
    assert_eq!(first.what, What::Link);
    let (report, _unread) = mpsc::channel(1);
    let second = rig.collector.run(false, report).await.unwrap_err();
    assert!(matches!(second, CollectError::Busy) && second.to_string().contains("already"), "{second}");
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    while removed.recv().await.is_some() {}
    // The thread ends soon after.
    let _turn = rig.collector.turn.lock().await;
    assert_eq!(rig.metrics.gc_passes.cell(PassEnd::Stopped).get(), 1);
}

#[tokio::test]
async fn passes_come_by_schedule_until_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let soon = Some(Duration::from_millis(5));
    let rig = Rig::new(dir.path(), Options { interval: soon, ..of(Vec::new()) });
    rig.collector.schedule(&rig.tasks);
    let passes = || rig.metrics.gc_passes.cell(PassEnd::Completed).get();
    let more = async |than: u64| {
        while passes() <= than {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    more(2).await;
    rig.collector.follow(of(Vec::new()), rig.hosted.clone());
    // The one under way may still end.
    drop(rig.collector.turn.lock().await);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let before = passes();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(passes(), before, "it is off");
    rig.collector.follow(Options { interval: soon, ..of(Vec::new()) }, rig.hosted.clone());
    more(before).await;
    assert!(rig.tasks.drain(Duration::from_secs(20)).await);
}
