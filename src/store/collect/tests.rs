//! Collection over the real disk, with both kinds of owners, and against pushers.

mod hazards;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};

use super::*;
use crate::clock::Clock;
use crate::disk::hooked::Hooked;
use crate::disk::{Disk, RealDisk};
use crate::oci::{Algorithm, Manifest, ManifestKind, UploadId, UpstreamHost};
use crate::store::tests::options;
use crate::store::{
    Committed, Demand, Grant, ManifestCommit, NewManifest, Options, Place, Source, SourceError, SourceStream,
    Start, Visibility,
};
use crate::tasks::Tasks;

const TERM: Duration = Duration::from_secs(600);

fn open_on(data: &Path, disk: impl Disk) -> (Arc<Store>, Clock) {
    let (clock, options) = (Clock::default(), Options { lease: TERM, ..options(data) });
    let store = Store::open(options, Arc::new(disk), Arc::default(), clock.clone(), Tasks::default());
    let store = store.unwrap();
    store.survey(&|| false).unwrap();
    (store, clock)
}

fn open(data: &Path) -> (Arc<Store>, Clock) {
    open_on(data, RealDisk)
}

fn hosted(name: &str) -> Grant {
    let repository = Repository { owner: Owner::Hosted, name: name.parse().unwrap() };
    Grant { repository, domain: "hosted".into(), visibility: Visibility::Public }
}

fn hub(name: &str) -> Grant {
    let owner = Owner::Upstream(UpstreamHost::docker_hub());
    let repository = Repository { owner, name: name.parse().unwrap() };
    Grant { repository, domain: "docker.io".into(), visibility: Visibility::Public }
}

async fn push_as(store: &Arc<Store>, grant: &Grant, bytes: &[u8], algorithm: Algorithm) -> Digest {
    let digest = Digest::of(algorithm, bytes);
    let mut upload = store.start_upload(grant, UploadId::random()).await.unwrap();
    upload.write(Bytes::copy_from_slice(bytes)).await.unwrap();
    assert_eq!(upload.commit(&digest).await.unwrap(), Committed::Done { size: bytes.len() as u64 });
    digest
}

async fn push(store: &Arc<Store>, grant: &Grant, bytes: &[u8]) -> Digest {
    push_as(store, grant, bytes, Algorithm::Sha256).await
}

fn descriptor(digest: &Digest) -> String {
    format!(r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":1}}"#)
}

fn image(blobs: &[Digest], subject: Option<&Digest>) -> String {
    let layers: Vec<String> = blobs[1..].iter().map(descriptor).collect();
    let subject = subject.map(|subject| format!(r#","subject":{}"#, descriptor(subject))).unwrap_or_default();
    format!(r#"{{"config":{},"layers":[{}]{subject}}}"#, descriptor(&blobs[0]), layers.join(","))
}

fn index(manifests: &[Digest]) -> String {
    format!(r#"{{"manifests":[{}]}}"#, manifests.iter().map(descriptor).collect::<Vec<_>>().join(","))
}

fn new(text: &str, blobs: &[Digest], manifests: &[Digest], tags: &[&str]) -> NewManifest {
    NewManifest {
        digest: Digest::sha256(text.as_bytes()),
        bytes: Bytes::copy_from_slice(text.as_bytes()),
        blobs: blobs.to_vec(),
        manifests: manifests.to_vec(),
        tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
        immutable: Vec::new(),
    }
}

fn commit(store: &Store, grant: &Grant, new: &NewManifest) -> Digest {
    assert_eq!(store.commit_manifest(grant, new).unwrap(), ManifestCommit::Done);
    new.digest
}

/// A pass that takes every manifest without a tag or a lease for old.
fn collect(store: &Store, dry_run: bool) -> Result<Vec<Removed>, CollectError> {
    let mut told = Vec::new();
    let mut report = |removed| told.push(removed);
    let mut pass = Pass::new(store, dry_run, &mut report, &|| false);
    let ended = run(&mut pass);
    told.sort();
    ended.map(|()| told)
}

fn run(pass: &mut Pass<'_>) -> Result<(), CollectError> {
    for repository in pass.repositories()? {
        let mut marked = pass.mark(&repository)?;
        pass.drop_untagged(&mut marked, SystemTime::now() + TERM * 100)?;
        pass.drop_links(&marked)?;
    }
    pass.drop_data()
}

fn told(removed: &[Removed], what: What) -> Vec<String> {
    removed.iter().filter(|removed| removed.what == what).map(|removed| removed.subject.clone()).collect()
}

fn texts(digests: &[Digest]) -> Vec<String> {
    let mut texts: Vec<String> = digests.iter().map(ToString::to_string).collect();
    texts.sort();
    texts
}

fn is_held(store: &Store, digest: &Digest) -> bool {
    store.blob(digest).unwrap().is_some()
}

#[tokio::test]
async fn what_nobody_needs_goes_and_a_dry_run_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = open(dir.path());
    let (a, b, mirrored) = (hosted("a"), hosted("corp.internal/b"), hub("library/c"));
    let kept = push(&store, &a, b"kept").await;
    let shared = push(&store, &a, b"shared").await;
    let cached = push(&store, &a, b"cached").await;
    let spare = push(&store, &a, b"spare").await;
    let other = push(&store, &b, b"shared").await;
    assert_eq!(shared, other);
    let text = image(&[kept], None);
    let manifest = commit(&store, &a, &new(&text, &[kept], &[], &["1"]));
    let text = image(&[shared], None);
    commit(&store, &b, &new(&text, &[shared], &[], &["1"]));
    store.link_layer(&mirrored, &cached).unwrap();
    store.put_manifest(&mirrored, &Digest::sha256(b"upstream's"), b"upstream's").unwrap();
    let unknown = dir.path().join(layout::data(&spare)).with_file_name("unknown");
    std::fs::write(&unknown, "").unwrap();

    assert_eq!(collect(&store, false).unwrap(), [], "everything is leased");
    clock.advance(TERM);
    let entries = store.metrics.store_entries.get();
    let dry = collect(&store, true).unwrap();
    assert_eq!(dry, collect(&store, true).unwrap(), "nothing was removed");
    let real = collect(&store, false).unwrap();
    assert_eq!(dry, real);
    assert_eq!(told(&real, What::Link), texts(&[shared, cached, spare]));
    assert_eq!(told(&real, What::Blob), texts(&[spare]), "what others link stays");
    assert_eq!(real.iter().map(|removed| removed.bytes).sum::<u64>(), 5);
    assert_eq!(store.metrics.store_entries.get(), entries - 1);
    assert!(unknown.exists() && !is_held(&store, &spare));
    assert!(store.has_layer(&a.repository, &kept).unwrap() && is_held(&store, &kept));
    assert!(store.manifest(&a.repository, &manifest).unwrap().is_some());
    assert!(store.has_layer(&b.repository, &shared).unwrap() && is_held(&store, &shared));
    assert!(store.has_layer(&mirrored.repository, &cached).unwrap() && is_held(&store, &cached));
    assert!(!dir.path().join(layout::layer(&a.repository, &spare)).parent().unwrap().exists());
    assert_eq!(collect(&store, false).unwrap(), []);
    // After a restart nothing goes within the term, for it is not known what was promised.
    push(&store, &a, b"spare").await;
    drop(store);
    let (store, clock) = open(dir.path());
    assert_eq!(collect(&store, false).unwrap(), []);
    clock.advance(TERM);
    assert_eq!(told(&collect(&store, false).unwrap(), What::Blob), texts(&[spare]));
}

/// As kill -9 leaves it, between a name and the directory around it.
#[tokio::test]
async fn what_was_half_made_or_half_removed_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = open(dir.path());
    let (a, mirrored) = (hosted("a"), hub("library/c"));
    let kept = push(&store, &a, b"kept").await;
    let text = image(&[kept], None);
    let manifest = commit(&store, &a, &new(&text, &[kept], &[], &["1", "half"]));
    store.put_manifest(&mirrored, &manifest, text.as_bytes()).unwrap();
    for tag in ["1", "half"] {
        store.put_tag(&mirrored, &tag.parse().unwrap(), &manifest, SystemTime::now()).unwrap();
    }
    let (digest, tag) = (Digest::sha256(b"gone"), "half".parse().unwrap());
    let mut husks = vec![layout::data(&digest)];
    for of in [&a.repository, &mirrored.repository] {
        husks.extend([layout::layer(of, &digest), layout::revision(of, &digest)]);
        husks.push(layout::tag_index(of, &"1".parse().unwrap(), &digest));
        std::fs::remove_file(dir.path().join(layout::tag_current(of, &tag))).unwrap();
    }
    let mut husks: Vec<_> = husks.iter().map(|key| dir.path().join(key).with_file_name("")).collect();
    husks.iter().for_each(|husk| std::fs::create_dir_all(husk).unwrap());
    husks.extend([&a, &mirrored].map(|of| dir.path().join(layout::tag(&of.repository, &tag))));
    clock.advance(TERM);
    assert_eq!(collect(&store, true).unwrap(), []);
    assert!(husks.iter().all(|husk| husk.exists()), "by a dry run");
    assert_eq!(collect(&store, false).unwrap(), [], "nothing that counts");
    for husk in husks {
        assert!(!husk.exists(), "{}", husk.display());
    }
    assert_eq!(store.tag(&a.repository, &"1".parse().unwrap()).unwrap().unwrap().digest, manifest);
    assert!(is_held(&store, &kept) && is_held(&store, &manifest));
}

/// A pass comes by between the removal of a link and the sync of its directory.
#[test]
fn a_delete_is_not_disturbed_by_who_looks_for_husks() {
    let dir = tempfile::tempdir().unwrap();
    let (store, a) = (Arc::new(OnceLock::<Arc<Store>>::new()), hosted("a"));
    let link = layout::revision(&a.repository, &Digest::sha256(b"{}"));
    let (path, of, key) = (dir.path().join(&link), store.clone(), link.clone());
    let sync_dir = move |synced: &Path| {
        if Some(synced) == path.parent() && !path.exists() {
            let (of, key, (done, dropped)) = (of.clone(), key.clone(), std::sync::mpsc::channel());
            std::thread::spawn(move || {
                of.get().unwrap().home.drop_husk(&key).unwrap();
                let _ = done.send(());
            });
            // As long as it is kept from it, there is nothing to wait for.
            let _ = dropped.recv_timeout(Duration::from_millis(100));
        }
        RealDisk.sync_dir(synced)
    };
    let (opened, _) = open_on(dir.path(), Hooked { sync_dir: Box::new(sync_dir), ..Hooked::default() });
    let store = store.get_or_init(|| opened);
    store.put_revision(&a.repository, &Digest::sha256(b"{}"), &Digest::sha256(b"{}"), &[]).unwrap();
    assert!(store.unlink(&link).unwrap());
    assert!(!dir.path().join(&link).parent().unwrap().exists());
}

#[tokio::test]
async fn what_a_pusher_was_told_of_is_there_when_the_manifest_comes() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = open(dir.path());
    let grant = hosted("a");
    let blob = push(&store, &grant, b"old and unreferenced").await;
    clock.advance(TERM * 2);
    assert_eq!(store.lease_blob(&grant.repository, &blob).unwrap(), Some(20));
    assert_eq!(collect(&store, false).unwrap(), []);
    let text = image(&[blob], None);
    commit(&store, &grant, &new(&text, &[blob], &[], &["1"]));
    clock.advance(TERM * 2);
    assert_eq!(collect(&store, false).unwrap(), []);
}

#[tokio::test]
async fn a_blob_is_needed_by_each_of_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = open(dir.path());
    let (a, b) = (hosted("a"), hosted("b"));
    let long = push_as(&store, &a, b"one", Algorithm::Sha512).await;
    let text = image(&[long], None);
    commit(&store, &a, &new(&text, &[long], &[], &["1"]));
    push_as(&store, &b, b"two", Algorithm::Sha512).await;
    let short = Digest::sha256(b"two");
    let text = image(&[short], None);
    commit(&store, &b, &new(&text, &[short], &[], &["1"]));
    let spare = push_as(&store, &b, b"three", Algorithm::Sha512).await;
    clock.advance(TERM);
    let gone = collect(&store, false).unwrap();
    assert_eq!(told(&gone, What::Link), texts(&[Digest::sha256(b"three"), spare]));
    assert_eq!(told(&gone, What::Blob), texts(&[Digest::sha256(b"three")]));
    assert_eq!(store.layers(&a.repository).unwrap().len(), 2);
    assert_eq!(store.layers(&b.repository).unwrap().len(), 2);
}

#[tokio::test]
async fn manifests_are_held_by_tags_indexes_and_subjects() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = open(dir.path());
    let grant = hosted("a");
    let blob = push(&store, &grant, b"blob").await;
    let put = |text: &str, manifests: &[Digest], tags: &[&str]| {
        commit(&store, &grant, &new(text, &[], manifests, tags))
    };
    let one = |salt: &str| format!(r#"{{"config":{},"layers":[],"salt":"{salt}"}}"#, descriptor(&blob));
    let held = put(&one("child"), &[], &[]);
    let top = put(&index(&[held]), &[held], &["1"]);
    let signature = put(&image(&[blob], Some(&top)), &[], &[]);
    let of_signature = put(&image(&[blob], Some(&signature)), &[], &[]);
    let child = put(&one("lost child"), &[], &[]);
    let lost = put(&index(&[child]), &[child], &[]);
    let lost_signature = put(&image(&[blob], Some(&lost)), &[], &[]);
    let moved = put(&one("moved"), &[], &["2"]);
    put(&one("new"), &[], &["2"]);
    // It refers to what it holds, and nobody holds either.
    let inner = put(&one("inner"), &[], &[]);
    let ring = format!(r#"{{"manifests":[{0}],"subject":{0}}}"#, descriptor(&inner));
    let ring = put(&ring, &[inner], &[]);
    clock.advance(TERM);
    let dry = collect(&store, true).unwrap();
    let gone = collect(&store, false).unwrap();
    assert_eq!(dry, gone);
    let expected = texts(&[child, lost, lost_signature, moved, inner, ring]);
    assert_eq!(told(&gone, What::Manifest), expected);
    assert_eq!(told(&gone, What::Blob), expected);
    for digest in [held, top, signature, of_signature] {
        assert!(store.manifest(&grant.repository, &digest).unwrap().is_some());
    }
    let past = layout::tag_index(&grant.repository, &"2".parse().unwrap(), &moved);
    assert!(!dir.path().join(past).exists(), "no tag remembers it");
    assert!(is_held(&store, &blob));
}

/// What becomes leased after it was marked stays, and so does what it holds.
#[tokio::test]
async fn manifests_that_are_pushed_meanwhile_stay_with_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = open(dir.path());
    let grant = hosted("a");
    let blob = push(&store, &grant, b"blob").await;
    let child = commit(&store, &grant, &new(&image(&[blob], None), &[blob], &[], &[]));
    let pushed = new(&index(&[child]), &[], &[child], &[]);
    let top = commit(&store, &grant, &pushed);
    let signature = commit(&store, &grant, &new(&image(&[blob], Some(&top)), &[], &[], &[]));
    clock.advance(TERM);
    let mut report = |removed: Removed| panic!("{removed:?}");
    let mut pass = Pass::new(&store, false, &mut report, &|| false);
    let mut marked = pass.mark(&grant.repository).unwrap();
    commit(&store, &grant, &pushed);
    let gone = pass.drop_untagged(&mut marked, SystemTime::now() + TERM * 100).unwrap();
    assert_eq!(gone, []);
    assert!(store.manifest(&grant.repository, &signature).unwrap().is_some());
}

#[tokio::test]
async fn a_repository_that_cannot_be_read_keeps_its_links_and_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = open(dir.path());
    for (name, bytes) in [("lost", None), ("odd", Some("{}")), ("rotten", Some(r#"{"config":1}"#))] {
        let grant = hosted(name);
        push(&store, &grant, name.as_bytes()).await;
        let text = format!("manifest of {name}");
        let digest = commit(&store, &grant, &new(bytes.unwrap_or(&text), &[], &[], &[]));
        let data = dir.path().join(layout::data(&digest));
        match name {
            "lost" => std::fs::remove_file(data).unwrap(),
            "rotten" => std::fs::write(data, "rotten").unwrap(),
            _ => {}
        }
    }
    let healthy = push(&store, &hosted("healthy"), b"spare").await;
    // A link that says nothing keeps what its name says; one that is only a directory, nothing.
    let odd = push(&store, &hosted("links"), b"odd link").await;
    let link = dir.path().join(layout::layer(&hosted("links").repository, &odd));
    std::fs::write(&link, "nothing").unwrap();
    let empty = push(&store, &hosted("empty"), b"empty").await;
    std::fs::remove_file(dir.path().join(layout::layer(&hosted("empty").repository, &empty))).unwrap();
    clock.advance(TERM);
    let gone = collect(&store, false).unwrap();
    assert_eq!(told(&gone, What::Link), texts(&[healthy]));
    assert_eq!(told(&gone, What::Blob), texts(&[healthy, empty]));
    assert!(link.exists());
}

#[tokio::test]
async fn a_pass_that_is_too_old_or_stopped_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = open(dir.path());
    let grant = hosted("a");
    push(&store, &grant, b"spare").await;
    clock.advance(TERM);
    let mut report = |removed: Removed| panic!("{removed:?}");
    let mut pass = Pass::new(&store, false, &mut report, &|| false);
    let mut marked = pass.mark(&grant.repository).unwrap();
    clock.advance(TERM);
    let stale = pass.drop_links(&marked).unwrap_err();
    assert!(matches!(stale, CollectError::Stale(_)) && stale.to_string().contains("gc.lease"), "{stale}");
    commit(&store, &grant, &new(&image(&[Digest::sha256(b"spare")], None), &[], &[], &[]));
    clock.advance(TERM);
    marked = pass.mark(&grant.repository).unwrap();
    clock.advance(TERM);
    assert!(matches!(
        pass.drop_untagged(&mut marked, SystemTime::now() + TERM * 100),
        Err(CollectError::Stale(_))
    ));
    let mut pass = Pass::new(&store, false, &mut report, &|| true);
    assert!(matches!(run(&mut pass), Err(CollectError::Stopped)));
}

/// Between what was looked for and what is removed comes a fill's commit.
#[tokio::test]
async fn data_that_comes_while_links_are_looked_through_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = open(dir.path());
    let (grant, digest) = (hub("library/a"), Digest::sha256(b"upstream's"));
    let other = push(&store, &hosted("a"), b"other").await;
    store.link_layer(&grant, &other).unwrap();
    for repository in [&hosted("a").repository, &grant.repository] {
        store.remove_layer(repository, &other).unwrap();
    }
    clock.advance(TERM);
    let mut told = Vec::new();
    let mut report = |removed| told.push(removed);
    let mut pass = Pass::new(&store, false, &mut report, &|| false);
    let (at, linked) = pass.linked().unwrap();
    assert!(linked.is_empty());
    store.put_manifest(&grant, &digest, b"upstream's").unwrap();
    assert!(store.is_proven(&grant, &other).unwrap(), "asked for, it is leased too");
    for digest in [digest, other] {
        pass.drop_content(at, &digest, &[]).unwrap();
        assert!(is_held(&store, &digest));
    }
    clock.advance(TERM);
    assert!(matches!(pass.drop_content(at, &other, &[]), Err(CollectError::Stale(_))));
    collect(&store, false).unwrap();
    assert!(is_held(&store, &digest) && !is_held(&store, &other));
    assert!(told.is_empty());
}

/// A disk that is so slow, once data is in its place and not yet linked, that leases end, and that lets
/// collection begin just then.
struct Slow {
    store: OnceLock<(Arc<Store>, Clock)>,
    pass: OnceLock<std::thread::JoinHandle<()>>,
}

impl Slow {
    fn disk(self: &Arc<Self>) -> Hooked {
        let slow = self.clone();
        let sync_dir = move |dir: &Path| {
            if dir.to_str().unwrap().contains("/blobs/")
                && dir.join("data").exists()
                && let Some((store, clock)) = slow.store.get()
            {
                slow.pass.get_or_init(|| begin(store.clone(), clock));
            }
            RealDisk.sync_dir(dir)
        };
        Hooked { sync_dir: Box::new(sync_dir), ..Hooked::default() }
    }
}

/// Begins to collect, and gives it time to end, which it does if nobody holds the data.
fn begin(store: Arc<Store>, clock: &Clock) -> std::thread::JoinHandle<()> {
    clock.advance(TERM * 2);
    let thread = std::thread::spawn(move || {
        collect(&store, false).unwrap();
    });
    for _ in 0..100 {
        if !thread.is_finished() {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    thread
}

/// A source of one blob.
struct Whole(Bytes);

impl Source for Whole {
    fn spare_place(&self) -> Option<Place> {
        None
    }

    fn place(&self) -> BoxFuture<'_, Result<Place, SourceError>> {
        let place = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        async { Ok(Arc::new(place)) }.boxed()
    }

    fn open(&self, _: Place, start: u64, _: Option<u64>) -> BoxFuture<'_, Result<SourceStream, SourceError>> {
        let stream = futures_util::stream::iter([Ok(self.0.clone())]).boxed();
        let total = Some(self.0.len() as u64);
        async move { Ok(SourceStream { start, total, bounded: false, stream }) }.boxed()
    }
}

#[tokio::test]
async fn data_is_not_removed_between_its_commit_and_its_link() {
    for kind in ["manifest", "fill"] {
        let dir = tempfile::tempdir().unwrap();
        let slow = Arc::new(Slow { store: OnceLock::new(), pass: OnceLock::new() });
        let (store, clock) = open_on(dir.path(), slow.disk());
        assert!(slow.store.set((store.clone(), clock)).is_ok());
        let (grant, bytes) = (hub("library/a"), Bytes::from_static(b"upstream's"));
        let digest = Digest::sha256(&bytes);
        if kind == "manifest" {
            store.put_manifest(&grant, &digest, &bytes).unwrap();
        } else {
            let source = Arc::new(Whole(bytes));
            let Start::Reading(mut reader) =
                store.start_fill(&grant, &digest, source, Demand::Whole, true).await
            else {
                panic!("nothing is held");
            };
            while reader.next().await.is_some() {}
            assert!(store.tasks.drain(Duration::from_secs(20)).await);
        }
        let pass = slow.pass.get().expect("data was put in its place");
        while !pass.is_finished() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(is_held(&store, &digest), "{kind}");
    }
}

/// Eight pushers share layers, replace what they pushed, and collection never rests. Nothing is too
/// young for it, and leases end all the time, except within a push.
#[test]
fn no_manifest_ever_lacks_a_blob_while_garbage_is_collected() {
    let full = std::env::var_os("FOREBAY_FULL").is_some();
    let time = Duration::from_millis(if full { 60_000 } else { 1500 });
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = open(dir.path());
    let (until, running, pushed) = (Instant::now() + time, AtomicUsize::new(8), AtomicUsize::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    // Read by who pushes, written to while a term passes.
    let term = RwLock::new(());
    let removed = std::thread::scope(|scope| {
        for pusher in 0..8 {
            let (store, term, running, pushed) = (&store, &term, &running, &pushed);
            let handle = runtime.handle().clone();
            scope.spawn(move || {
                // Also where this thread panics.
                let _ends = Ends(running);
                let mut former = None;
                while Instant::now() < until {
                    let turn = pushed.fetch_add(1, Ordering::SeqCst);
                    let _within = term.read().unwrap();
                    let (grant, digest) = handle.block_on(push_one(store, pusher, turn));
                    if let Some((grant, digest)) = former.replace((grant, digest)) {
                        let grant: Grant = grant;
                        store.remove_manifest(&grant.repository, &digest, &|_| false).unwrap();
                    }
                }
            });
        }
        let mut removed = HashMap::new();
        while running.load(Ordering::SeqCst) > 0 {
            {
                let _all_wait = term.write().unwrap();
                clock.advance(TERM);
            }
            for _ in 0..3 {
                for one in collect(&store, false).unwrap() {
                    *removed.entry(one.what).or_insert(0) += 1;
                }
            }
        }
        removed
    });
    assert!(pushed.into_inner() > 8 && removed[&What::Link] > 0 && removed[&What::Blob] > 0, "{removed:?}");
    clock.advance(TERM);
    collect(&store, false).unwrap();
    let whole: usize = NAMES.iter().map(|name| assert_whole(&store, &hosted(name).repository)).sum();
    assert!(whole > 0);
}

const NAMES: [&str; 2] = ["a", "corp.internal/b"];

struct Ends<'a>(&'a AtomicUsize);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// As clients do it: HEAD each layer, mount or upload what is missing, put the manifest.
async fn push_one(store: &Arc<Store>, pusher: usize, turn: usize) -> (Grant, Digest) {
    let (grant, other) = (hosted(NAMES[turn % 2]), hosted(NAMES[(turn + 1) % 2]));
    let mut blobs = Vec::new();
    for layer in 0..3 {
        let bytes = format!("layer {}", (turn / 2 * 5 + pusher * layer) % 40);
        let digest = Digest::sha256(bytes.as_bytes());
        if store.lease_blob(&grant.repository, &digest).unwrap().is_none()
            && !store.mount(&grant, &other.repository, &digest).unwrap()
        {
            push(store, &grant, bytes.as_bytes()).await;
        }
        blobs.push(digest);
    }
    let tag = (pusher + turn).to_string();
    let manifest = new(&image(&blobs, None), &blobs, &[], &[&tag]);
    let digest = commit(store, &grant, &manifest);
    (grant, digest)
}

/// Says how many manifests there are, each with all its blobs.
fn assert_whole(store: &Store, repository: &Repository) -> usize {
    let names = store.revisions(repository).unwrap();
    for name in &names {
        let bytes = store.manifest(repository, name).unwrap().expect("its bytes are there");
        let ManifestKind::Image { config, layers } = Manifest::parse(&bytes, None).unwrap().kind else {
            panic!("an image was pushed");
        };
        for blob in std::iter::once(config).chain(layers) {
            let data = store.layer(repository, &blob.digest).unwrap().expect("it is linked");
            assert!(is_held(store, &data), "{data} of {name}");
        }
    }
    names.len()
}
