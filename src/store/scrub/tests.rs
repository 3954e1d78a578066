//! Each kind of damage, over the real disk and the simulated one.

use std::fs;
use std::io::{self, IoSlice};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::*;
use crate::clock::Clock;
use crate::disk::hooked::Hooked;
use crate::disk::simulated::Simulated;
use crate::disk::{Disk, File, RealDisk};
use crate::oci::{ByteRange, Owner, Repository, UploadId, UpstreamHost};
use crate::store::tests::options;
use crate::store::{Committed, Grant, NewManifest, Options, ReadError, Store, Visibility, layout};
use crate::tasks::{Tasks, lock};

const SIZE: usize = 3 << 20;

fn open_with(options: Options, disk: impl Disk) -> Arc<Store> {
    Store::open(options, Arc::new(disk), Arc::default(), Clock::default(), Tasks::default()).unwrap()
}

fn open(data: &Path) -> Arc<Store> {
    open_with(options(data), RealDisk)
}

fn grant(owner: Owner, name: &str) -> Grant {
    let domain = match &owner {
        Owner::Hosted => "hosted".into(),
        Owner::Upstream(host) => host.as_str().into(),
    };
    let repository = Repository { owner, name: name.parse().unwrap() };
    Grant { repository, domain, visibility: Visibility::Public }
}

fn hosted(name: &str) -> Grant {
    grant(Owner::Hosted, name)
}

fn hub(name: &str) -> Grant {
    grant(Owner::Upstream(UpstreamHost::docker_hub()), name)
}

fn content(seed: u8, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at as u8).wrapping_mul(31) ^ seed | 1).collect()
}

async fn push(store: &Arc<Store>, grant: &Grant, bytes: &[u8]) -> Digest {
    let digest = Digest::sha256(bytes);
    let mut upload = store.start_upload(grant, UploadId::random()).await.unwrap();
    upload.write(Bytes::copy_from_slice(bytes)).await.unwrap();
    assert_eq!(upload.commit(&digest).await.unwrap(), Committed::Done { size: bytes.len() as u64 });
    digest
}

/// A blob that an upstream's repository alone links.
async fn pull(store: &Arc<Store>, bytes: &[u8]) -> Digest {
    let (pushed, digest) = (hosted("elsewhere"), push(store, &hosted("elsewhere"), bytes).await);
    store.link_layer(&hub("library/a"), &digest).unwrap();
    assert!(store.remove_layer(&pushed.repository, &digest).unwrap());
    digest
}

fn check(store: &Store, digest: &Digest) -> Checked {
    store.check(digest, &mut |_| true).unwrap()
}

fn wrong(checked: Checked) -> (Wrong, Vec<String>) {
    match checked {
        Checked::Bad(damage) => (damage.wrong.clone(), damage.repositories()),
        other => panic!("{other:?}"),
    }
}

fn data(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(layout::data(digest))
}

fn aside(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(layout::quarantined(digest))
}

/// A kind of damage to a file of `SIZE` bytes, and what is to be said of it.
type Kind = (fn(&Path), Wrong);

fn kinds() -> Vec<Kind> {
    fn write(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }
    let len = SIZE as u64;
    vec![
        (|path| write(path, |bytes| bytes[SIZE / 2] ^= 4), Wrong::Bytes { len }),
        (|path| write(path, |bytes| bytes.truncate(SIZE - 1)), Wrong::Bytes { len: len - 1 }),
        (|path| write(path, |bytes| bytes.push(7)), Wrong::Bytes { len: len + 1 }),
        (|path| write(path, |bytes| bytes[SIZE - 5000..].fill(0)), Wrong::Zeros { len, zeros: 5000 }),
        (|path| write(path, |bytes| bytes[SIZE / 3..].fill(0)), Wrong::Zeros { len, zeros: len - len / 3 }),
        (|path| fs::write(path, b"").unwrap(), Wrong::Empty),
        (
            |path| {
                fs::remove_file(path).unwrap();
                fs::create_dir(path).unwrap();
                fs::write(path.join("x"), b"x").unwrap();
            },
            Wrong::NotAFile,
        ),
        (
            |path| {
                fs::rename(path, path.with_file_name("elsewhere")).unwrap();
                std::os::unix::fs::symlink("elsewhere", path).unwrap();
            },
            Wrong::NotAFile,
        ),
        (
            |path| {
                fs::remove_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path.parent().unwrap(), b"in the way").unwrap();
            },
            Wrong::NotAFile,
        ),
    ]
}

#[tokio::test]
async fn every_kind_of_damage_is_put_aside_and_healed_by_a_push() {
    for (kind, (damage, expected)) in kinds().into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let bytes = content(1, SIZE);
        let (own, mirrored) = (hosted("a"), hub("library/b"));
        let digest = push(&store, &own, &bytes).await;
        store.link_layer(&mirrored, &digest).unwrap();
        assert_eq!(check(&store, &digest), Checked::Sound { len: SIZE as u64 });
        let proof = dir.path().join(layout::proof(&mirrored.domain, &digest));
        assert!(proof.exists());
        damage(&data(dir.path(), &digest));
        let repositories = vec!["a".to_owned(), "docker.io/library/b".to_owned()];
        assert_eq!(wrong(check(&store, &digest)), (expected.clone(), repositories), "kind {kind}");
        assert!(store.blob(&digest).unwrap().is_none() && !proof.exists());
        assert!(fs::symlink_metadata(aside(dir.path(), &digest)).is_ok());
        assert_eq!(check(&store, &digest), Checked::Gone);
        assert_eq!(store.metrics.scrub.corrupt.cell(expected.label()).get(), 1);
        // The link stays, so that whoever pushes it again has mended it.
        assert!(store.has_layer(&own.repository, &digest).unwrap());
        assert_eq!(push(&store, &own, &bytes).await, digest);
        assert_eq!(check(&store, &digest), Checked::Sound { len: SIZE as u64 }, "kind {kind}");
        // And a second time, over what was put aside.
        damage(&data(dir.path(), &digest));
        assert_eq!(wrong(check(&store, &digest)).0, expected, "kind {kind}");
    }
}

/// Who could mend it is not crowded out by those who cannot.
#[tokio::test]
async fn a_mirrored_repository_is_named_however_many_hosted_ones_come_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = push(&store, &hosted("a00"), b"content").await;
    for number in 1..15 {
        store.link_layer(&hosted(&format!("a{number:02}")), &digest).unwrap();
    }
    store.link_layer(&hub("library/z"), &digest).unwrap();
    fs::write(data(dir.path(), &digest), b"CONTENT").unwrap();
    let Checked::Bad(damage) = check(&store, &digest) else { panic!("bad") };
    assert_eq!((damage.linkers.len(), damage.others), (11, 5));
    let mirrored: Vec<_> = damage.linkers.iter().filter(|linker| linker.origin.is_mirrored()).collect();
    assert_eq!(mirrored.iter().map(|linker| &linker.name[..]).collect::<Vec<_>>(), ["library/z"]);
}

#[tokio::test]
async fn a_manifest_is_checked_like_a_blob() {
    let dir = tempfile::tempdir().unwrap();
    let (store, grant) = (open(dir.path()), hub("library/a"));
    let digest = Digest::sha256(b"a manifest");
    store.put_manifest(&grant, &digest, b"a manifest").unwrap();
    fs::write(data(dir.path(), &digest), b"b manifest").unwrap();
    let Checked::Bad(damage) = check(&store, &digest) else { panic!("bad") };
    assert_eq!(damage.linkers.len(), 1);
    assert_eq!((damage.linkers[0].part, damage.wrong), (Part::Manifest, Wrong::Bytes { len: 10 }));
    assert_eq!((store.metrics.store_entries.get(), store.metrics.store_bytes.get()), (0, 0));
    store.put_manifest(&grant, &digest, b"a manifest").unwrap();
    assert_eq!(check(&store, &digest), Checked::Sound { len: 10 });
}

struct Failing(i32);

impl File for Failing {
    fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
    fn size(&self) -> io::Result<u64> {
        Ok(10)
    }
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        panic!("a check reads aside, and leaves what is in memory alone")
    }
    fn read_ready(&self, _: &mut [u8], _: u64) -> io::Result<Option<usize>> {
        Ok(None)
    }
    fn read_aside(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(self.0))
    }
    fn will_need(&self, _: u64, _: u64) {}
    fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(self.0))
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk that fails to read data, by this error.
fn unreadable(code: i32) -> Hooked {
    let open = move |path: &Path| match path.ends_with("data") {
        true => Ok(Arc::new(Failing(code)) as Arc<dyn File>),
        false => RealDisk.open(path),
    };
    Hooked { open: Box::new(open), ..Hooked::default() }
}

const EIO: i32 = 5;
const ENOMEM: i32 = 12;

#[tokio::test]
async fn data_that_cannot_be_read_is_put_aside_but_not_for_want_of_memory() {
    let dir = tempfile::tempdir().unwrap();
    let digest = pull(&open(dir.path()), b"content").await;
    let store = open_with(options(dir.path()), unreadable(ENOMEM));
    assert!(store.check(&digest, &mut |_| true).is_err());
    assert!(data(dir.path(), &digest).exists());
    drop(store);
    let store = open_with(options(dir.path()), unreadable(EIO));
    assert!(matches!(wrong(check(&store, &digest)).0, Wrong::Unreadable(_)));
    assert_eq!(fs::read(aside(dir.path(), &digest)).unwrap(), b"content");
}

/// A disk that fails so many times to read data.
fn unreadable_times(times: &Arc<AtomicUsize>) -> Hooked {
    let left = times.clone();
    let fails = move || left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
    let open = move |path: &Path| match path.ends_with("data") && fails() {
        true => Ok(Arc::new(Failing(EIO)) as Arc<dyn File>),
        false => RealDisk.open(path),
    };
    Hooked { open: Box::new(open), ..Hooked::default() }
}

#[tokio::test]
async fn an_error_that_passes_condemns_nothing() {
    let (dir, times) = (tempfile::tempdir().unwrap(), Arc::<AtomicUsize>::default());
    let store = open_with(options(dir.path()), unreadable_times(&times));
    for digest in [push(&store, &hosted("a"), b"pushed").await, pull(&store, b"pulled").await] {
        times.store(1, SeqCst);
        assert_eq!(check(&store, &digest), Checked::Sound { len: 6 });
        assert_eq!(times.load(SeqCst), 0);
    }
}

#[tokio::test]
async fn what_was_pushed_and_cannot_be_read_stays_until_it_is_pushed_again() {
    let (dir, times) = (tempfile::tempdir().unwrap(), Arc::<AtomicUsize>::default());
    let store = open_with(options(dir.path()), unreadable_times(&times));
    let (own, unknown) = (push(&store, &hosted("a"), b"own").await, pull(&store, b"unknown").await);
    // That a mirrored one links it too, takes nothing away from who pushed it.
    store.link_layer(&hub("library/b"), &own).unwrap();
    fs::remove_file(dir.path().join(layout::origin("library/a"))).unwrap();
    for (digest, bytes) in [(own, &b"own"[..]), (unknown, b"unknown")] {
        let path = data(dir.path(), &digest);
        let before = fs::metadata(&path).unwrap().ino();
        times.store(usize::MAX, SeqCst);
        let Checked::Bad(damage) = check(&store, &digest) else { panic!("it cannot be read") };
        assert!(damage.stays && matches!(damage.wrong, Wrong::Unreadable(_)));
        assert!(fs::read(&path).unwrap() == bytes && !aside(dir.path(), &digest).exists());
        assert!(store.is_unreadable(&digest), "it is to be sent again");
        let proof = layout::proof(&hub("library/b").domain, &digest);
        assert!(!dir.path().join(proof).exists(), "it proves nothing any more");
        times.store(0, SeqCst);
        push(&store, &hosted("a"), bytes).await;
        assert_ne!(fs::metadata(&path).unwrap().ino(), before, "other blocks of the disk");
        assert!(!store.is_unreadable(&digest));
    }
}

#[tokio::test]
async fn data_that_a_client_finds_unreadable_is_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let digest = pull(&open(dir.path()), b"content").await;
    let store = open_with(options(dir.path()), unreadable(EIO));
    let (given, error) = read(&store, &digest, None).await;
    assert!(given.is_empty() && matches!(error, Some(ReadError::Disk(_))), "{error:?}");
    assert!(store.tasks.drain(std::time::Duration::from_secs(60)).await);
    assert!(aside(dir.path(), &digest).exists());
}

#[derive(Default)]
struct Watched {
    sound: Vec<Digest>,
    bad: Vec<Damage>,
    left: Option<usize>,
}

impl Watch for Watched {
    fn pace(&mut self, _: u64) -> bool {
        self.left.is_none_or(|left| self.sound.len() < left)
    }
    fn sound(&mut self, digest: &Digest, _: u64) {
        self.sound.push(*digest);
    }
    fn bad(&mut self, damage: Damage) {
        self.bad.push(damage);
    }
}

#[tokio::test]
async fn a_disk_that_reads_nothing_any_more_ends_the_pass() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    // Of one shard.
    let mut digests = Vec::new();
    for number in 0_u32.. {
        let bytes = number.to_le_bytes();
        if Digest::sha256(&bytes).hex().starts_with("00") {
            digests.push(pull(&store, &bytes).await);
        }
        if digests.len() == 12 {
            break;
        }
    }
    drop(store);
    let store = open_with(options(dir.path()), unreadable(EIO));
    let mut watched = Watched::default();
    let error = store.check_shard(&Shard::of(&digests[0]), None, &mut watched).unwrap_err();
    assert!(error.to_string().contains("8 blobs in a row cannot be read"), "{error}");
    assert_eq!(watched.bad.len(), 8);
    assert_eq!(digests.iter().filter(|digest| data(dir.path(), digest).exists()).count(), 4);
}

#[tokio::test]
async fn shards_are_walked_in_order_and_from_a_place() {
    let dir = tempfile::tempdir().unwrap();
    let (store, grant) = (open(dir.path()), hosted("a"));
    let mut digests = Vec::new();
    for number in 0_u32..600 {
        digests.push(push(&store, &grant, &number.to_le_bytes()).await);
    }
    digests.sort();
    let all = |watched: &mut Watched, after: Option<Digest>| {
        let first = after.as_ref().map(Shard::of);
        for shard in store.shards().unwrap() {
            if first.as_ref().is_some_and(|first| shard < *first) {
                continue;
            }
            if !store.check_shard(&shard, after.as_ref(), watched).unwrap() {
                return;
            }
        }
    };
    let mut watched = Watched { left: Some(301), ..Watched::default() };
    all(&mut watched, None);
    assert_eq!(watched.sound, digests[..301]);
    watched.left = None;
    all(&mut watched, Some(digests[300]));
    assert_eq!(watched.sound, digests);
    // What does not belong there is left alone.
    let root = dir.path().join("docker/registry/v2/blobs/sha256");
    for stray in ["x", "zz/y", "00/y", "ff"] {
        fs::create_dir_all(root.join(stray)).unwrap();
    }
    fs::write(root.join("file"), b"").unwrap();
    watched.sound.clear();
    all(&mut watched, None);
    assert_eq!((watched.sound, watched.bad), (digests, vec![]));
}

#[tokio::test]
async fn a_place_is_remembered_and_may_be_lost() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(store.round(), Round::default());
    let second = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    let round = Round { place: Some(Digest::sha256(b"x")), begun: Some(second), ended: None };
    store.keep_round(&round).unwrap();
    assert_eq!(store.round(), round);
    fs::write(dir.path().join(layout::SCRUB), b"{\"place\":").unwrap();
    assert_eq!(store.round(), Round::default());
}

/// Right data that comes in place of bad data, while that is being read, is not taken away.
#[tokio::test]
async fn a_verdict_on_what_was_there_before_takes_nothing_away() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(2, 100_000);
    let digest = push(&open(dir.path()), &hosted("a"), &bytes).await;
    let path = data(dir.path(), &digest);
    fs::write(&path, content(3, 100_000)).unwrap();
    let replaced = (path.clone(), bytes.clone());
    let open = move |asked: &Path| {
        let file = RealDisk.open(asked);
        if asked == replaced.0 {
            let new = replaced.0.with_file_name("new");
            fs::write(&new, &replaced.1).unwrap();
            // Whatever the clock's grain, it is another file.
            let before = fs::metadata(&replaced.0).unwrap().modified().unwrap();
            fs::File::options().write(true).open(&new).unwrap().set_modified(before).unwrap();
            fs::rename(&new, &replaced.0).unwrap();
        }
        file
    };
    let store = open_with(options(dir.path()), Hooked { open: Box::new(open), ..Hooked::default() });
    assert_eq!(check(&store, &digest), Checked::Gone);
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[tokio::test]
async fn what_is_put_aside_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(Options { quarantine: 250, ..options(dir.path()) }, RealDisk);
    store.survey(&|| false).unwrap();
    let mut digests = Vec::new();
    for seed in 0..5 {
        let digest = pull(&store, &content(seed * 2, 100)).await;
        fs::write(data(dir.path(), &digest), content(99, 100)).unwrap();
        wrong(check(&store, &digest));
        digests.push(digest);
        // Times of files have a grain.
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let kept: Vec<bool> = digests.iter().map(|digest| aside(dir.path(), digest).exists()).collect();
    assert_eq!(kept, [false, false, false, true, true]);
}

#[tokio::test]
async fn what_came_last_and_what_only_a_push_brings_back_is_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(Options { quarantine: 250, ..options(dir.path()) }, RealDisk);
    store.survey(&|| false).unwrap();
    let rot = |digest: Digest, size| {
        fs::write(data(dir.path(), &digest), content(99, size)).unwrap();
        wrong(check(&store, &digest));
        // Times of files have a grain.
        std::thread::sleep(std::time::Duration::from_millis(10));
        digest
    };
    let is_kept = |digest: &Digest| aside(dir.path(), digest).exists();
    let own = rot(push(&store, &hosted("a"), &content(2, 300)).await, 300);
    assert!(is_kept(&own), "larger than all that is kept");
    let first = rot(pull(&store, &content(4, 100)).await, 100);
    let second = rot(pull(&store, &content(6, 300)).await, 300);
    assert_eq!([&own, &first, &second].map(is_kept), [true, false, true]);
    // What was pushed again is held.
    push(&store, &hosted("a"), &content(2, 300)).await;
    let third = rot(pull(&store, &content(8, 100)).await, 100);
    assert_eq!([&own, &second, &third].map(is_kept), [false, false, true]);
}

#[tokio::test]
async fn damage_on_the_simulated_disk_is_found_and_put_aside_durably() {
    let (disk, root) = (Simulated::default(), Path::new("/data"));
    let store = open_with(options(root), disk.clone());
    let grant = hosted("a");
    type Change = fn(&[u8]) -> Vec<u8>;
    let changes: [Change; 3] = [
        |all| [&all[1..], b"x"].concat(),
        |all| [all, b"more"].concat(),
        |all| [&all[..2000], &[0; 2000]].concat(),
    ];
    let mut digests = Vec::new();
    for (seed, change) in changes.into_iter().enumerate() {
        let bytes = content(seed as u8 * 2, 4000);
        let digest = push(&store, &grant, &bytes).await;
        let file = disk.reopen(&root.join(layout::data(&digest))).unwrap();
        file.write_at(&[IoSlice::new(&change(&bytes))], 0).unwrap();
        assert!(matches!(check(&store, &digest), Checked::Bad(_)));
        digests.push(digest);
    }
    drop(store);
    let after = disk.after_power_loss(|| false);
    let store = open_with(options(root), after.clone());
    for digest in digests {
        assert_eq!(check(&store, &digest), Checked::Gone, "it does not come back");
        assert!(after.stat(&root.join(layout::quarantined(&digest))).unwrap().is_file);
    }
}

fn faults(store: &Store, name: &str, is_hosted: bool) -> Vec<LinkFault> {
    let mut found = Vec::new();
    store.check_links(name, is_hosted, &mut |fault| found.push(fault), &|| false).unwrap();
    found
}

fn image(blobs: &[Digest]) -> NewManifest {
    let layers: Vec<String> = blobs
        .iter()
        .map(|digest| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":1}}"#
            )
        })
        .collect();
    let text = format!(r#"{{"config":{},"layers":[{}]}}"#, layers[0], layers[1..].join(","));
    NewManifest {
        digest: Digest::sha256(text.as_bytes()),
        bytes: text.into(),
        blobs: blobs.to_vec(),
        manifests: Vec::new(),
        tags: vec!["1".parse().unwrap()],
        immutable: Vec::new(),
    }
}

#[tokio::test]
async fn links_that_lead_nowhere_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (store, own) = (open(dir.path()), hosted("a"));
    let [config, layer] = [push(&store, &own, b"config").await, push(&store, &own, b"layer").await];
    let manifest = image(&[config, layer]);
    store.commit_manifest(&own, &manifest).unwrap();
    assert_eq!(faults(&store, "a", true), []);
    // A blob is lost: its link, and the image.
    fs::remove_file(data(dir.path(), &layer)).unwrap();
    let dangling = |part, name| LinkFault::Dangling { part, name, data: name };
    let incomplete = LinkFault::Incomplete { manifest: manifest.digest, missing: vec![layer] };
    assert_eq!(faults(&store, "a", true), [dangling(Part::Blob, layer), incomplete]);
    assert_eq!(faults(&store, "a", false), [dangling(Part::Blob, layer)], "a mirrored one need not be whole");
    // The manifest is: its link, and its tag.
    fs::remove_dir_all(data(dir.path(), &manifest.digest).parent().unwrap()).unwrap();
    let tag = LinkFault::Tag { tag: "1".parse().unwrap(), digest: Some(manifest.digest) };
    assert_eq!(
        faults(&store, "a", true),
        [dangling(Part::Blob, layer), dangling(Part::Manifest, manifest.digest), tag]
    );
    // Links that are none.
    let key = dir.path().join(layout::layer(&own.repository, &config));
    for text in ["rubbish".to_owned(), "x".repeat(1000), layer.to_string()] {
        fs::write(&key, &text).unwrap();
        let illegible =
            |fault: &LinkFault| matches!(fault, LinkFault::Illegible { name, .. } if *name == config);
        assert!(faults(&store, "a", true).iter().any(illegible), "{text}");
    }
    fs::write(dir.path().join(layout::tag_current(&own.repository, &"1".parse().unwrap())), "?").unwrap();
    assert!(faults(&store, "a", true).contains(&LinkFault::Tag { tag: "1".parse().unwrap(), digest: None }));
}

#[tokio::test]
async fn who_needs_what_is_lost_is_known_by_tag_or_by_digest() {
    use crate::oci::Reference;
    let dir = tempfile::tempdir().unwrap();
    let (store, own) = (open(dir.path()), hosted("a"));
    let [config, layer] = [push(&store, &own, b"config").await, push(&store, &own, b"layer").await];
    let manifest = image(&[config, layer]);
    store.commit_manifest(&own, &manifest).unwrap();
    store.survey(&|| false).unwrap();
    let tag: crate::oci::Tag = "1".parse().unwrap();
    fs::remove_file(data(dir.path(), &layer)).unwrap();
    assert!(store.is_needed("a", &layer) && !store.is_needed("a", &Digest::sha256(b"other")));
    for digest in [&layer, &manifest.digest] {
        assert_eq!(store.images_with("a", digest, 9), [Reference::Tag(tag.clone())]);
    }
    assert_eq!(store.images_with("a", &Digest::sha256(b"other"), 9), []);
    assert!(store.remove_tag(&own.repository, &tag).unwrap());
    assert_eq!(store.images_with("a", &layer, 9), [Reference::Digest(manifest.digest)]);
    assert_eq!(store.images_with("a", &layer, 0), []);
}

#[tokio::test]
async fn a_link_is_taken_away_only_while_it_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let (store, own) = (open(dir.path()), hub("library/a"));
    let digest = push(&store, &hosted("b"), b"content").await;
    store.link_layer(&own, &digest).unwrap();
    store.unlink_dangling(&own.repository, Part::Blob, &digest).unwrap();
    assert!(store.has_layer(&own.repository, &digest).unwrap());
    fs::remove_file(data(dir.path(), &digest)).unwrap();
    store.unlink_dangling(&own.repository, Part::Blob, &digest).unwrap();
    assert!(!store.has_layer(&own.repository, &digest).unwrap());
}

/// It comes between the look and the removal, if anything lets it.
#[tokio::test]
async fn a_link_that_is_made_while_it_is_looked_at_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (own, bytes) = (hub("library/a"), b"a manifest");
    let digest = Digest::sha256(bytes);
    let (came, coming) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
    let (pulls, link) = (came.clone(), dir.path().join(layout::revision(&own.repository, &digest)));
    let (grant, started) = (own.clone(), coming.clone());
    let remove = move |path: &Path| {
        if path == link
            && let Some(store) = lock(&pulls).take()
        {
            let (store, grant): (Arc<Store>, _) = (store, grant.clone());
            let (done, ended) = std::sync::mpsc::channel();
            *lock(&started) = Some(std::thread::spawn(move || {
                store.put_manifest(&grant, &digest, bytes).unwrap();
                let _ = done.send(());
            }));
            // It ends now only where nothing holds it up.
            let _ = ended.recv_timeout(std::time::Duration::from_millis(500));
        }
        RealDisk.remove(path)
    };
    let store = open_with(options(dir.path()), Hooked { remove: Box::new(remove), ..Hooked::default() });
    store.put_manifest(&own, &digest, bytes).unwrap();
    fs::remove_file(data(dir.path(), &digest)).unwrap();
    *lock(&came) = Some(store.clone());
    store.unlink_dangling(&own.repository, Part::Manifest, &digest).unwrap();
    let pulled = lock(&coming).take().expect("the link was about to go");
    pulled.join().unwrap();
    assert_eq!(store.manifest(&own.repository, &digest).unwrap().as_deref(), Some(&bytes[..]));
    let is_known = store.index.facts(|facts| {
        let key = facts.key(&digest);
        facts.repository("library/a").is_some_and(|held| held.manifests.contains_key(&key))
    });
    assert!(is_known, "the index agrees with the tree");
}

#[tokio::test]
async fn a_tag_is_taken_away_only_while_it_points_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, own, tag) = (open(dir.path()), hub("library/a"), "1".parse().unwrap());
    let [old, new, held] = [&b"old"[..], b"new", b"held"].map(Digest::sha256);
    let points = |digest| store.put_tag(&own, &tag, digest, std::time::SystemTime::now()).unwrap();
    let drops = |seen: Option<&Digest>| {
        store.drop_dangling_tag(&own.repository, &tag, seen).unwrap();
        store.tag(&own.repository, &tag).unwrap().is_none()
    };
    points(&new);
    assert!(!drops(Some(&old)) && !drops(None), "it was moved since");
    assert!(drops(Some(&new)));
    store.put_manifest(&own, &held, b"held").unwrap();
    points(&held);
    assert!(!drops(Some(&held)), "its manifest has come");
    fs::write(dir.path().join(layout::tag_current(&own.repository, &tag)), "?").unwrap();
    store.drop_dangling_tag(&own.repository, &tag, None).unwrap();
    assert!(!dir.path().join(layout::tag_current(&own.repository, &tag)).exists());
}

#[tokio::test]
async fn a_tag_that_cannot_be_read_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (store, own, tag) = (open(dir.path()), hub("library/a"), "1".parse().unwrap());
    let (digest, now) = (Digest::sha256(b"held"), std::time::SystemTime::now());
    store.put_manifest(&own, &digest, b"held").unwrap();
    store.put_tag(&own, &tag, &digest, now).unwrap();
    let link = dir.path().join(layout::tag_current(&own.repository, &tag));
    let damages: [fn(&Path); 3] = [
        |link| fs::write(link, "").unwrap(),
        |link| fs::write(link, "x".repeat(1000)).unwrap(),
        |link| fs::remove_file(link).and_then(|()| fs::create_dir(link)).unwrap(),
    ];
    for (kind, damage) in damages.into_iter().enumerate() {
        for confirmed in [false, true] {
            damage(&link);
            match confirmed {
                true => store.touch_tag(&own.repository, &tag, &digest, now).unwrap(),
                false => store.put_tag(&own, &tag, &digest, now).unwrap(),
            }
            assert_eq!(fs::read_to_string(&link).unwrap(), digest.to_string(), "kind {kind}");
        }
    }
    // One that points elsewhere, and one to what is not here, stay.
    let other = Digest::sha256(b"other");
    store.touch_tag(&own.repository, &tag, &other, now).unwrap();
    assert_eq!(store.tag(&own.repository, &tag).unwrap().unwrap().digest, digest);
    fs::write(&link, "").unwrap();
    store.touch_tag(&own.repository, &tag, &other, now).unwrap();
    assert_eq!(fs::read_to_string(&link).unwrap(), "");
}

/// All that a reader gives, and how it ends.
async fn read(store: &Arc<Store>, digest: &Digest, range: Option<ByteRange>) -> (Vec<u8>, Option<ReadError>) {
    let mut reader = store.read(store.blob(digest).unwrap().unwrap(), range);
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await {
        match piece {
            Ok(bytes) => all.extend_from_slice(&bytes),
            Err(error) => return (all, Some(error)),
        }
    }
    (all, None)
}

/// A process that runs and is not stopped as it should, and the next one.
fn after_kill(data: &Path) -> Arc<Store> {
    open(data).begin_run();
    let store = open(data);
    store.begin_run();
    assert!(store.is_doubtful());
    store
}

#[tokio::test]
async fn no_bad_blob_is_completed_after_a_stop_without_notice() {
    let part = ByteRange { start: 10, end: 20 };
    for (kind, (damage, _)) in kinds().into_iter().take(5).enumerate() {
        for range in [None, Some(part)] {
            let dir = tempfile::tempdir().unwrap();
            let bytes = content(1, SIZE);
            let digest = push(&open(dir.path()), &hosted("a"), &bytes).await;
            damage(&data(dir.path(), &digest));
            let len = fs::metadata(data(dir.path(), &digest)).unwrap().len();
            let store = after_kill(dir.path());
            let (given, error) = read(&store, &digest, range).await;
            assert!(matches!(error, Some(ReadError::Rotten)), "kind {kind}: {error:?}");
            assert!((given.len() as u64) < len && (range.is_none() || given.is_empty()), "kind {kind}");
            assert!(store.blob(&digest).unwrap().is_none() && aside(dir.path(), &digest).exists());
            // What comes in its place is right, and known to be.
            push(&store, &hosted("a"), &bytes).await;
            assert!(!store.doubt.is_of(&digest));
            assert_eq!(read(&store, &digest, None).await.0, bytes);
        }
    }
}

#[tokio::test]
async fn a_right_blob_is_checked_once() {
    let dir = tempfile::tempdir().unwrap();
    for size in [0, 1, 100, 300_000, SIZE] {
        let bytes = content(4, size);
        let digest = push(&open(dir.path()), &hosted("a"), &bytes).await;
        for range in [None, Some(ByteRange { start: 0, end: size as u64 / 2 })] {
            let store = after_kill(dir.path());
            let wanted = range.map_or(&bytes[..], |range| &bytes[..range.end as usize]);
            let (given, error) = read(&store, &digest, range).await;
            assert!(error.is_none() && given == wanted, "{size}");
            // An empty range of an empty blob is all of it.
            assert!(!store.doubt.is_of(&digest), "{size}");
            store.end_run().unwrap();
        }
    }
}

#[tokio::test]
async fn a_file_that_was_emptied_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = push(&store, &hosted("a"), b"content").await;
    fs::write(data(dir.path(), &digest), b"").unwrap();
    assert!(store.blob(&digest).unwrap().is_none());
    let empty = push(&store, &hosted("a"), b"").await;
    assert_eq!(store.blob(&empty).unwrap().unwrap().len, 0);
}

#[test]
fn doubt_ends_with_a_whole_round_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let store = open(dir.path());
        store.begin_run();
        store
    };
    let place = |store: &Store| {
        store.keep_round(&Round { place: Some(Digest::sha256(b"x")), ..Round::default() }).unwrap();
    };
    let store = start();
    assert!(!store.is_doubtful(), "a new directory");
    store.end_run().unwrap();
    drop(store);
    let store = start();
    assert!(!store.is_doubtful(), "a clean stop");
    place(&store);
    drop(store);
    let store = start();
    assert!(store.is_doubtful() && store.round().place.is_none(), "the round begins anew");
    place(&store);
    store.end_run().unwrap();
    drop(store);
    let store = start();
    assert!(store.is_doubtful() && store.round().place.is_some(), "a clean stop takes no doubt away");
    drop(store);
    let store = start();
    assert!(store.round().place.is_none(), "stopped without notice once more");
    store.trust();
    assert!(!store.is_doubtful());
    store.end_run().unwrap();
    drop(store);
    assert!(!start().is_doubtful());
}

/// The disk takes it later.
#[tokio::test]
async fn that_a_process_runs_is_noted_until_the_disk_takes_it() {
    let dir = tempfile::tempdir().unwrap();
    let refusals = Arc::<AtomicUsize>::default();
    let left = refusals.clone();
    let create = move |path: &Path| match left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
        Ok(_) => Err(io::Error::from_raw_os_error(28)),
        Err(_) => RealDisk.create(path),
    };
    let store = open_with(options(dir.path()), Hooked { create: Box::new(create), ..Hooked::default() });
    refusals.store(1, SeqCst);
    store.begin_run();
    assert!(!store.is_doubtful() && !dir.path().join(layout::RUNNING).exists());
    store.tend();
    let noted = async {
        while !dir.path().join(layout::RUNNING).exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), noted).await.unwrap();
    assert_eq!(refusals.load(SeqCst), 0);
}

#[test]
fn a_note_that_cannot_be_read_raises_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    fs::create_dir_all(dir.path().join(layout::RUNNING).join("in the way")).unwrap();
    store.keep_round(&Round { place: Some(Digest::sha256(b"x")), ..Round::default() }).unwrap();
    store.begin_run();
    assert!(store.is_doubtful() && store.round().place.is_none());
}

/// Readers of ranges that come at once have the blob checked once.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_are_read_at_once_wait_for_one_check() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(5, SIZE);
    let digest = push(&open(dir.path()), &hosted("a"), &bytes).await;
    open(dir.path()).begin_run();
    let opened = Arc::new(Mutex::new(0));
    let count = opened.clone();
    let open = move |path: &Path| {
        *lock(&count) += usize::from(path.ends_with("data"));
        RealDisk.open(path)
    };
    let store = open_with(options(dir.path()), Hooked { open: Box::new(open), ..Hooked::default() });
    store.begin_run();
    let readers: Vec<_> = (0..20)
        .map(|at| {
            let store = store.clone();
            let range = ByteRange { start: at * 1000, end: at * 1000 + 500 };
            tokio::spawn(async move { (range, read(&store, &digest, Some(range)).await.0) })
        })
        .collect();
    for reader in readers {
        let (range, given) = reader.await.unwrap();
        assert_eq!(given, bytes[range.start as usize..range.end as usize]);
    }
    assert!(*lock(&opened) <= 20 + 3, "{} times opened", *lock(&opened));
}
