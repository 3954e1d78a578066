//! Uploads, mounts and pushed manifests, over the real disk.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::disk::RealDisk;
use crate::disk::simulated::{Simulated, Trouble};
use crate::oci::{Owner, Tag};
use crate::store::tests::options;
use crate::store::{ManifestCommit, NewManifest, Origin, OriginState, Removal, Visibility};
use crate::tasks::Tasks;

fn open(data: &Path) -> Arc<Store> {
    let tasks = Tasks::default();
    Store::open(options(data), Arc::new(RealDisk), Arc::default(), Clock::default(), tasks).unwrap()
}

fn hosted(name: &str) -> Grant {
    let repository = Repository { owner: Owner::Hosted, name: name.parse().unwrap() };
    Grant { repository, domain: "hosted".into(), visibility: Visibility::Public }
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

async fn push(store: &Arc<Store>, grant: &Grant, bytes: &'static [u8]) -> Digest {
    let digest = Digest::sha256(bytes);
    let mut upload = store.start_upload(grant, UploadId::random()).await.unwrap();
    upload.write(Bytes::from_static(bytes)).await.unwrap();
    assert_eq!(upload.commit(&digest).await.unwrap(), Committed::Done { size: bytes.len() as u64 });
    digest
}

fn manifest(bytes: &'static [u8], blobs: &[Digest], tags: &[&str]) -> NewManifest {
    NewManifest {
        digest: Digest::sha256(bytes),
        bytes: Bytes::from_static(bytes),
        blobs: blobs.to_vec(),
        manifests: Vec::new(),
        tags: tags.iter().map(|text| tag(text)).collect(),
        immutable: Vec::new(),
    }
}

/// What is stored of a blob, through the repository's link.
fn read(store: &Store, grant: &Grant, digest: &Digest) -> Option<Vec<u8>> {
    let data = store.layer(&grant.repository, digest).unwrap()?;
    std::fs::read(store.data_dir().join(layout::data(&data))).ok()
}

#[tokio::test]
async fn an_upload_becomes_a_blob_and_leaves_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (store, grant, id) = (open(dir.path()), hosted("team/a"), UploadId::random());
    let mut upload = store.start_upload(&grant, id).await.unwrap();
    assert!(store.start_upload(&grant, UploadId::random()).await.unwrap().cancel().await.is_ok());
    let started = dir.path().join(layout::upload_started("team/a", id));
    assert!(humantime::parse_rfc3339(&std::fs::read_to_string(started).unwrap()).is_ok());
    assert_eq!((upload.id(), upload.received()), (id, 0));
    assert_eq!(store.origin(&grant.repository).unwrap(), OriginState::Absent, "nothing is held yet");
    let piece = Bytes::from(vec![7; 300_000]);
    for number in 1..=20 {
        upload.write(piece.clone()).await.unwrap();
        assert_eq!(upload.received(), 300_000 * number);
    }
    let all = piece.repeat(20);
    let digest = Digest::sha256(&all);
    assert_eq!(upload.commit(&digest).await.unwrap(), Committed::Done { size: 6_000_000 });
    assert_eq!(read(&store, &grant, &digest).unwrap(), all);
    assert_eq!(store.lease_blob(&grant.repository, &digest).unwrap(), Some(6_000_000));
    assert_eq!(store.lease_blob(&hosted("team/b").repository, &digest).unwrap(), None);
    assert_eq!(store.layers(&grant.repository).unwrap(), [digest]);
    assert!(store.uploads().unwrap().is_empty());
    assert_eq!(store.metrics.store_written_bytes.get(), 6_000_000);
    assert_eq!((store.metrics.store_entries.get(), store.metrics.store_bytes.get()), (1, 6_000_000));
    let origin = Origin { owner: Owner::Hosted, visibility: Visibility::Public };
    assert_eq!(store.origin(&grant.repository).unwrap(), OriginState::Known(origin));
}

#[tokio::test]
async fn an_upload_is_taken_up_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (grant, id) = (hosted("a"), UploadId::random());
    let store = open(dir.path());
    let mut upload = store.start_upload(&grant, id).await.unwrap();
    upload.write(Bytes::from_static(b"one ")).await.unwrap();
    upload.write(Bytes::from_static(b"two ")).await.unwrap();
    // Not flushed: what a request brought before it broke off is kept all the same.
    drop(upload);
    let upload = store.resume_upload(&grant, id).await.unwrap().unwrap();
    assert_eq!(upload.received(), 8);
    drop((upload, store));
    let store = open(dir.path());
    let held = store.uploads().unwrap();
    assert_eq!((held.len(), &*held[0].stored_name, held[0].id), (1, "a", id));
    assert!(held[0].modified > SystemTime::now() - Duration::from_secs(600));
    let mut upload = store.resume_upload(&grant, id).await.unwrap().unwrap();
    upload.write(Bytes::from_static(b"three")).await.unwrap();
    let digest = Digest::sha256(b"one two three");
    assert_eq!(upload.commit(&digest).await.unwrap(), Committed::Done { size: 13 });
    assert_eq!(read(&store, &grant, &digest).unwrap(), b"one two three");
    assert!(store.resume_upload(&grant, id).await.unwrap().is_none(), "it is over");
    assert!(store.resume_upload(&hosted("b"), UploadId::random()).await.unwrap().is_none());
}

#[tokio::test]
async fn who_comes_second_waits_for_what_the_first_has_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let (store, grant, id) = (open(dir.path()), hosted("a"), UploadId::random());
    let mut first = store.start_upload(&grant, id).await.unwrap();
    first.write(Bytes::from_static(b"x")).await.unwrap();
    let second = tokio::spawn({
        let (store, grant) = (store.clone(), grant.clone());
        async move { store.resume_upload(&grant, id).await.unwrap().unwrap().received() }
    });
    tokio::task::yield_now().await;
    assert!(!second.is_finished());
    for _ in 0..40 {
        first.write(Bytes::from(vec![1; 100_000])).await.unwrap();
    }
    drop(first);
    assert_eq!(second.await.unwrap(), 4_000_001);
}

#[tokio::test]
async fn what_is_cancelled_dropped_or_wrong_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, grant) = (open(dir.path()), hosted("a"));
    let mut upload = store.start_upload(&grant, UploadId::random()).await.unwrap();
    upload.write(Bytes::from_static(b"x")).await.unwrap();
    upload.cancel().await.unwrap();
    let mut upload = store.start_upload(&grant, UploadId::random()).await.unwrap();
    upload.write(Bytes::from_static(b"x")).await.unwrap();
    let actual = Digest::sha256(b"x");
    assert_eq!(upload.commit(&Digest::sha256(b"y")).await.unwrap(), Committed::Mismatch { actual });
    let id = UploadId::random();
    drop(store.start_upload(&grant, id).await.unwrap());
    assert_eq!(store.uploads().unwrap().len(), 1);
    assert!(store.drop_upload("../a", id).is_err());
    store.drop_upload("a", id).unwrap();
    store.drop_upload("a", id).unwrap();
    assert!(store.uploads().unwrap().is_empty());
    assert!(store.layers(&grant.repository).unwrap().is_empty());
    assert_eq!(store.origin(&grant.repository).unwrap(), OriginState::Absent);
}

#[tokio::test]
async fn a_sha512_names_the_bytes_stored_under_their_sha256() {
    let dir = tempfile::tempdir().unwrap();
    let (store, grant) = (open(dir.path()), hosted("a"));
    let (long, short) = (Digest::of(Algorithm::Sha512, b"bytes"), Digest::sha256(b"bytes"));
    let mut upload = store.start_upload(&grant, UploadId::random()).await.unwrap();
    upload.write(Bytes::from_static(b"bytes")).await.unwrap();
    let wrong = Digest::of(Algorithm::Sha512, b"other");
    let wrong = upload.commit(&wrong).await.unwrap();
    assert_eq!(wrong, Committed::Mismatch { actual: long });
    let mut upload = store.start_upload(&grant, UploadId::random()).await.unwrap();
    upload.write(Bytes::from_static(b"bytes")).await.unwrap();
    assert_eq!(upload.commit(&long).await.unwrap(), Committed::Done { size: 5 });
    for name in [&long, &short] {
        assert_eq!(store.layer(&grant.repository, name).unwrap(), Some(short), "{name}");
        assert_eq!(store.lease_blob(&grant.repository, name).unwrap(), Some(5));
    }
    assert!(store.blob(&short).unwrap().is_some() && store.blob(&long).unwrap().is_none());
    assert!(store.mount(&hosted("b"), &grant.repository, &long).unwrap());
    assert_eq!(store.layers(&hosted("b").repository).unwrap(), [short, long]);
    let bytes: &[u8] = b"a manifest";
    let named = Digest::of(Algorithm::Sha512, bytes);
    let pushed = NewManifest { digest: named, ..manifest(b"a manifest", &[long], &["1"]) };
    assert_eq!(store.commit_manifest(&grant, &pushed).unwrap(), ManifestCommit::Done);
    assert_eq!(store.tag(&grant.repository, &tag("1")).unwrap().unwrap().digest, named);
    for name in [named, Digest::sha256(bytes)] {
        assert_eq!(store.manifest(&grant.repository, &name).unwrap().unwrap(), bytes);
    }
    assert_eq!(store.revisions(&grant.repository).unwrap(), [Digest::sha256(bytes), named]);
}

#[tokio::test]
async fn a_mount_needs_a_source_that_has_the_blob() {
    let dir = tempfile::tempdir().unwrap();
    let (store, one, two) = (open(dir.path()), hosted("one"), hosted("two"));
    let digest = push(&store, &one, b"shared").await;
    assert!(!store.mount(&two, &hosted("three").repository, &digest).unwrap());
    assert!(!store.mount(&two, &one.repository, &Digest::sha256(b"other")).unwrap());
    let owner = Owner::Upstream("docker.io".parse().unwrap());
    let not_its = Repository { owner, name: "one".parse().unwrap() };
    assert!(!store.mount(&two, &not_its, &digest).unwrap());
    assert!(!store.has_layer(&two.repository, &digest).unwrap());
    assert!(store.mount(&two, &one.repository, &digest).unwrap());
    assert_eq!(read(&store, &two, &digest).unwrap(), b"shared");
    std::fs::remove_file(dir.path().join(layout::data(&digest))).unwrap();
    assert!(!store.mount(&hosted("four"), &one.repository, &digest).unwrap());
    assert_eq!(store.lease_blob(&one.repository, &digest).unwrap(), None);
}

#[tokio::test]
async fn two_repositories_share_one_blob_and_a_second_push_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, one, two) = (open(dir.path()), hosted("one"), hosted("two"));
    let digest = push(&store, &one, b"shared").await;
    push(&store, &two, b"shared").await;
    assert_eq!((store.metrics.store_entries.get(), store.metrics.store_bytes.get()), (1, 6));
    std::fs::write(dir.path().join(layout::data(&digest)), "torn").unwrap();
    push(&store, &two, b"shared").await;
    assert_eq!(read(&store, &one, &digest).unwrap(), b"shared");
    assert!(store.remove_layer(&one.repository, &digest).unwrap());
    assert!(!store.remove_layer(&one.repository, &digest).unwrap());
    assert_eq!(read(&store, &one, &digest), None);
    assert_eq!(read(&store, &two, &digest).unwrap(), b"shared");
}

#[tokio::test]
async fn a_manifest_needs_all_that_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let (store, grant) = (open(dir.path()), hosted("a"));
    let here = push(&store, &grant, b"here").await;
    let gone = push(&store, &grant, b"gone").await;
    let elsewhere = push(&store, &hosted("b"), b"elsewhere").await;
    std::fs::remove_file(dir.path().join(layout::data(&gone))).unwrap();
    let child = Digest::sha256(b"child");
    let mut index = manifest(b"index", &[here, gone, elsewhere], &["1"]);
    index.manifests.push(child);
    let missing = ManifestCommit::Missing(vec![gone, elsewhere, child]);
    assert_eq!(store.commit_manifest(&grant, &index).unwrap(), missing);
    assert_eq!(store.manifest(&grant.repository, &index.digest).unwrap(), None);
    assert_eq!(store.tag(&grant.repository, &tag("1")).unwrap(), None);
    assert_eq!(
        store.commit_manifest(&grant, &manifest(b"child", &[here], &[])).unwrap(),
        ManifestCommit::Done
    );
    index.blobs = vec![here];
    assert_eq!(store.commit_manifest(&grant, &index).unwrap(), ManifestCommit::Done);
    assert_eq!(store.manifest(&grant.repository, &index.digest).unwrap().unwrap(), index.bytes);
    assert_eq!(store.tag(&grant.repository, &tag("1")).unwrap().unwrap().digest, index.digest);
}

#[tokio::test]
async fn immutable_tags_stay_and_others_move() {
    let dir = tempfile::tempdir().unwrap();
    let (store, grant) = (open(dir.path()), hosted("a"));
    let pushed = |bytes, immutable: &[&str]| {
        let immutable = immutable.iter().map(|text| tag(text)).collect();
        NewManifest { immutable, ..manifest(bytes, &[], &["v1", "latest"]) }
    };
    let held = |text: &str| store.tag(&grant.repository, &tag(text)).unwrap().map(|held| held.digest);
    let (first, second) = (Digest::sha256(b"first"), Digest::sha256(b"second"));
    for _ in 0..2 {
        let done = store.commit_manifest(&grant, &pushed(b"first", &["v1"])).unwrap();
        assert_eq!(done, ManifestCommit::Done, "the same again is no move");
    }
    let refused = store.commit_manifest(&grant, &pushed(b"second", &["v1"])).unwrap();
    assert_eq!(refused, ManifestCommit::Immutable(tag("v1")));
    assert_eq!((held("v1"), held("latest")), (Some(first), Some(first)));
    assert_eq!(store.revisions(&grant.repository).unwrap(), [first], "nothing of it is kept");
    assert_eq!(store.commit_manifest(&grant, &pushed(b"second", &[])).unwrap(), ManifestCommit::Done);
    assert_eq!((held("v1"), held("latest")), (Some(second), Some(second)));
    let protected = |tag: &Tag| tag.as_str() == "v1";
    let removal = store.remove_manifest(&grant.repository, &second, &protected).unwrap();
    assert_eq!(removal, Removal::Immutable(tag("v1")));
    assert_eq!(held("latest"), Some(second));
}

#[tokio::test]
async fn what_is_removed_is_gone_with_its_tags_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let (store, grant) = (open(dir.path()), hosted("a"));
    let repository = &grant.repository;
    store.commit_manifest(&grant, &manifest(b"first", &[], &["1", "2", "3"])).unwrap();
    store.commit_manifest(&grant, &manifest(b"second", &[], &["3"])).unwrap();
    let (first, second) = (Digest::sha256(b"first"), Digest::sha256(b"second"));
    assert!(store.remove_tag(repository, &tag("2")).unwrap());
    assert!(!store.remove_tag(repository, &tag("2")).unwrap());
    let none = |_: &Tag| false;
    let removed = Removal::Removed { tags: vec![tag("1")] };
    assert_eq!(store.remove_manifest(repository, &first, &none).unwrap(), removed);
    assert_eq!(store.remove_manifest(repository, &first, &none).unwrap(), Removal::Absent);
    assert_eq!(store.manifest(repository, &first).unwrap(), None);
    assert_eq!(store.tags(repository).unwrap(), [tag("3")]);
    assert_eq!(store.tag(repository, &tag("3")).unwrap().unwrap().digest, second);
    assert_eq!(store.revisions(repository).unwrap(), [second]);
    let history = dir.path().join(layout::tag_index(repository, &tag("3"), &first));
    assert!(!history.exists(), "no tag's history names it");
}

#[tokio::test]
async fn a_tree_of_registry_2_is_added_to_and_a_mirrored_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let unknown = hosted("unknown");
    let layers = dir.path().join(layout::layers(&unknown.repository, Algorithm::Sha256));
    std::fs::create_dir_all(layers).unwrap();
    assert_eq!(store.origin(&unknown.repository).unwrap(), OriginState::Unknown);
    push(&store, &unknown, b"x").await;
    assert!(matches!(store.origin(&unknown.repository).unwrap(), OriginState::Known(_)));
    let owner = Owner::Upstream("docker.io".parse().unwrap());
    let mirrored = Repository { owner, name: "library/a".parse().unwrap() };
    let fetched = Grant { repository: mirrored, domain: "docker.io".into(), ..hosted("a") };
    store.put_manifest(&fetched, &Digest::sha256(b"m"), b"m").unwrap();
    let wrong = hosted("library/a");
    assert!(store.start_upload(&wrong, UploadId::random()).await.is_err());
    assert!(store.resume_upload(&wrong, UploadId::random()).await.is_err());
    assert!(store.commit_manifest(&wrong, &manifest(b"m", &[], &["1"])).is_err());
    assert!(store.mount(&wrong, &unknown.repository, &Digest::sha256(b"x")).is_err());
    assert!(store.uploads().unwrap().is_empty());
}

#[tokio::test]
async fn after_a_failed_write_only_what_the_file_has_counts() {
    let disk = Simulated::default();
    let (opened, tasks) = (options(Path::new("/data")), Tasks::default());
    let store = Store::open(opened, Arc::new(disk.clone()), Arc::default(), Clock::default(), tasks).unwrap();
    let (grant, id) = (hosted("a"), UploadId::random());
    let mut upload = store.start_upload(&grant, id).await.unwrap();
    disk.make(Some(Trouble::Failure(0, io::ErrorKind::StorageFull)));
    upload.write(Bytes::from_static(b"12345678")).await.unwrap();
    let error = upload.flush().await.unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::StorageFull);
    assert!(upload.write(Bytes::from_static(b"9")).await.is_err() && upload.flush().await.is_err());
    assert!(upload.commit(&Digest::sha256(b"12345678")).await.is_err());
    let mut upload = store.resume_upload(&grant, id).await.unwrap().unwrap();
    assert_eq!(upload.received(), 4);
    upload.write(Bytes::from_static(b"5678")).await.unwrap();
    // Its sync fails: what is in the file is not to be believed by another try.
    upload.flush().await.unwrap();
    disk.make(Some(Trouble::Failure(1, io::ErrorKind::Other)));
    let digest = Digest::sha256(b"12345678");
    assert!(upload.commit(&digest).await.is_err());
    assert!(store.resume_upload(&grant, id).await.unwrap().is_none());
    assert!(!store.has_layer(&grant.repository, &digest).unwrap());
}

#[tokio::test]
async fn what_a_pusher_was_told_of_is_leased() {
    let dir = tempfile::tempdir().unwrap();
    let (term, clock) = (Duration::from_secs(60), Clock::default());
    let opened = crate::store::Options { lease: term, ..options(dir.path()) };
    let store =
        Store::open(opened, Arc::new(RealDisk), Arc::default(), clock.clone(), Tasks::default()).unwrap();
    let (one, two) = (hosted("one"), hosted("two"));
    let digest = push(&store, &one, b"blob").await;
    let pushed = manifest(b"m", &[digest], &["1"]);
    let leased = |grant: &Grant, digest: &Digest| {
        let link = store.leases.is_leased(&grant.repository, digest);
        assert!(!link || store.leases.is_data_leased(digest), "a link without its data is worth nothing");
        link
    };
    let expire = || clock.advance(term);
    expire();
    assert!(!leased(&one, &digest));
    store.lease_blob(&one.repository, &digest).unwrap();
    assert!(leased(&one, &digest) && !leased(&two, &digest));
    expire();
    assert!(store.mount(&two, &one.repository, &digest).unwrap());
    assert!(leased(&two, &digest) && !leased(&one, &digest));
    expire();
    store.commit_manifest(&one, &pushed).unwrap();
    assert!(leased(&one, &digest) && leased(&one, &pushed.digest));
    expire();
    push(&store, &two, b"blob").await;
    assert!(leased(&two, &digest));
    expire();
    let owner = Owner::Upstream("docker.io".parse().unwrap());
    let mirrored = Repository { owner, name: "library/a".parse().unwrap() };
    let fetched = Grant { repository: mirrored, domain: "docker.io".into(), ..hosted("a") };
    store.link_layer(&fetched, &digest).unwrap();
    store.put_manifest(&fetched, &pushed.digest, b"m").unwrap();
    assert!(store.leases.is_data_leased(&digest) && store.leases.is_data_leased(&pushed.digest));
}

/// Pushers of the same blobs, of the same repositories, who mount from each other and delete, while
/// collection takes its lock again and again: nobody waits for ever, and all is right at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pushers_do_not_get_in_each_others_way() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blobs: [&'static [u8]; 3] = [b"one", b"two", b"three"];
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let collector = std::thread::spawn({
        let (store, over) = (store.clone(), over.clone());
        move || {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                drop(store.leases.remove_data());
                std::thread::yield_now();
            }
        }
    });
    let pushers: Vec<_> = (0..6)
        .map(|number: usize| {
            let store = store.clone();
            tokio::spawn(async move {
                let (own, other) =
                    (hosted(["a", "b/c", "d"][number % 3]), hosted(["d", "a", "b/c"][number % 3]));
                for round in 0..4 {
                    for bytes in blobs {
                        push(&store, &own, bytes).await;
                    }
                    let (own, other) = (own.clone(), other.clone());
                    let work = move |store: &Store| {
                        store.mount(&own, &other.repository, &Digest::sha256(blobs[round % 3]))?;
                        let tag = ["1", "2"][number % 2];
                        let pushed = manifest(b"m", &blobs.map(Digest::sha256), &[tag]);
                        assert_eq!(store.commit_manifest(&own, &pushed)?, ManifestCommit::Done);
                        store.remove_tag(&own.repository, &tag.parse().unwrap())?;
                        store.remove_layer(&own.repository, &Digest::sha256(b"no such blob"))
                    };
                    store.run(work).await.unwrap();
                }
            })
        })
        .collect();
    for pusher in pushers {
        pusher.await.unwrap();
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    collector.join().unwrap();
    for name in ["a", "b/c", "d"] {
        for bytes in blobs {
            assert_eq!(read(&store, &hosted(name), &Digest::sha256(bytes)).unwrap(), bytes);
        }
        let held = store.manifest(&hosted(name).repository, &Digest::sha256(b"m")).unwrap();
        assert_eq!(held.unwrap(), &b"m"[..]);
    }
    assert!(store.uploads().unwrap().is_empty());
}
