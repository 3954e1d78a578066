//! Directories that are something else, newer, damaged, or full of traps.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::clock::Clock;
use crate::disk::hooked::Hooked;
use crate::disk::{Disk, RealDisk};
use crate::oci::{Digest, Owner, Repository, UploadId};
use crate::store::tests::options;
use crate::store::{Grant, Options, OriginState, Pass, Removed, Visibility};
use crate::tasks::Tasks;

fn open_on(data: &Path, disk: impl Disk) -> Result<Arc<Store>, OpenError> {
    Store::open(options(data), Arc::new(disk), Arc::default(), Clock::default(), Tasks::default())
}

fn open(data: &Path) -> Result<Arc<Store>, OpenError> {
    open_on(data, RealDisk)
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn hosted(name: &str) -> Grant {
    let repository = Repository { owner: Owner::Hosted, name: name.parse().unwrap() };
    Grant { repository, domain: "hosted".into(), visibility: Visibility::Public }
}

async fn push(store: &Arc<Store>, grant: &Grant, bytes: &'static [u8]) -> Digest {
    let mut upload = store.start_upload(grant, UploadId::random()).await.unwrap();
    upload.write(Bytes::from_static(bytes)).await.unwrap();
    let digest = Digest::sha256(bytes);
    upload.commit(&digest).await.unwrap();
    digest
}

/// Every path below a directory, with what is in the files.
fn snapshot(dir: &Path) -> Vec<(OsString, Vec<u8>)> {
    let (mut found, mut todo) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                todo.push(path.clone());
            }
            let bytes = if path.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            found.push((path.into_os_string(), bytes));
        }
    }
    found.sort();
    found
}

/// Why it was refused; nothing in it was changed.
fn refused(data: &Path) -> String {
    let before = snapshot(data);
    let Err(error) = open(data) else { panic!("opened") };
    assert_eq!(snapshot(data), before);
    let text = error.to_string();
    assert!(!text.contains('\n') && text.contains(data.to_str().unwrap()), "{text}");
    text
}

fn write(path: impl AsRef<Path>, text: &str) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn what_is_something_else_is_refused_and_left_as_it_is() {
    for (path, named) in [
        ("Documents/letter.txt", "Documents"),
        // dockerd's, beside which Forebay's own directory may stand.
        ("docker/overlay2/x/diff/file", "overlay2"),
        ("docker/registry/Dockerfile", "Dockerfile"),
        ("forebay/docker/registry/v2/repositories/a/b", "\"docker\""),
        ("forebay/Cargo.toml", "Cargo.toml"),
    ] {
        let dir = dir();
        write(dir.path().join(path), "theirs");
        let text = refused(dir.path());
        assert!(text.contains(named) && text.contains("--data"), "{text}");
    }
    let dir = dir();
    for number in 0..9 {
        write(dir.path().join(format!("{number}\n\u{1b}[31m")), "");
    }
    assert!(refused(dir.path()).contains(r#""0\n\u{1b}[31m", "1\n\u{1b}[31m", "2\n\u{1b}[31m" and 6 more"#));
}

#[test]
fn what_volumes_bring_along_is_nothing() {
    let dir = dir();
    for path in ["lost+found/#12", ".snapshot/hourly/x", "@eaDir/x", "..data", ".nfs0001", "aquota.user"] {
        write(dir.path().join(path), "theirs");
    }
    let before = snapshot(dir.path());
    drop(open(dir.path()).unwrap());
    let after = snapshot(dir.path());
    assert!(before.iter().all(|entry| after.contains(entry)));
    // Once it is ours, others may put there what they like.
    write(dir.path().join("notes.txt"), "theirs");
    drop(open(dir.path()).unwrap());
}

#[test]
fn whatever_a_registry_or_a_first_start_left_is_opened() {
    for path in [
        "docker/registry/v2/repositories/a/_manifests/x",
        "docker/registry/v2/blobs/sha256/ab/x",
        "forebay/lock",
        "forebay/origins/a/_origin",
        "forebay/fills/0",
        "forebay/ca.key",
    ] {
        let dir = dir();
        write(dir.path().join(path), "");
        drop(open(dir.path()).unwrap_or_else(|error| panic!("{path}: {error}")));
    }
    for path in ["docker", "docker/registry", "docker/registry/v2", "forebay"] {
        let dir = dir();
        fs::create_dir_all(dir.path().join(path)).unwrap();
        drop(open(dir.path()).unwrap());
    }
}

#[test]
fn the_version_is_written_once_and_a_newer_one_goes_back_where_it_says_so() {
    let dir = dir();
    let file = dir.path().join("forebay/version");
    drop(open(dir.path()).unwrap());
    assert_eq!(fs::read_to_string(&file).unwrap(), "forebay data 1\nreadable since 1\n");
    let written = fs::metadata(&file).unwrap().modified().unwrap();
    drop(open(dir.path()).unwrap());
    assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), written);

    let newer = "forebay data 7\nreadable since 1\nand more \u{e9}\n";
    write(&file, newer);
    drop(open(dir.path()).unwrap());
    assert_eq!(fs::read_to_string(&file).unwrap(), newer, "the newer one finds what it wrote");

    write(&file, "forebay data 7\nreadable since 2\n");
    let text = refused(dir.path());
    assert!(text.contains("format 7") && text.contains("format 2") && text.contains("format 1:"), "{text}");
    assert!(text.contains("start the newer Forebay"), "{text}");
    // Whoever runs on it meanwhile.
    write(&file, "forebay data 1\r\nreadable since 1");
    let store = open(dir.path()).unwrap();
    write(&file, "forebay data 7\nreadable since 2\n");
    assert!(refused(dir.path()).contains("newer"));
    drop(store);
}

#[test]
fn a_full_disk_keeps_nobody_from_starting() {
    let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
    let disk = Hooked { create: Box::new(move |_| Err(full())), ..Hooked::default() };
    let dir = dir();
    drop(open_on(dir.path(), disk).unwrap());
    let version = dir.path().join(layout::VERSION);
    assert!(!version.exists());
    drop(open(dir.path()).unwrap());
    assert!(version.exists());
}

#[test]
fn a_damaged_version_is_explained() {
    let dir = dir();
    let file = dir.path().join("forebay/version");
    drop(open(dir.path()).unwrap());
    let long = "x".repeat(10_000);
    for text in [
        "",
        "\n",
        "forebay data",
        "forebay data 1",
        "forebay data -1\nreadable since 1",
        "\0\0\0\0",
        &long,
        "forebay data 1\nreadable since 2",
        "forebay data 1\nreadable since 0",
        "forebay data 9999999999\nreadable since 1",
    ] {
        write(&file, text);
        let said = refused(dir.path());
        assert!(said.contains("forebay/version") && said.contains("remove it"), "{said}");
    }
    fs::remove_file(&file).unwrap();
    symlink("/etc/hostname", &file).unwrap();
    assert!(refused(dir.path()).contains("no regular file"));
    fs::remove_file(&file).unwrap();
    drop(open(dir.path()).unwrap());
    assert!(file.exists());
}

#[test]
fn links_that_lead_nowhere_are_told_as_such() {
    let missing = Path::new("/nonexistent/disk");
    for key in ["docker", "docker/registry/v2/blobs", "docker/registry/v2/repositories", "forebay"] {
        let dir = dir();
        let link = dir.path().join(key);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(missing, &link).unwrap();
        let text = refused(dir.path());
        assert!(text.contains(key) && text.contains("leads nowhere"), "{text}");
    }
    let dir = dir();
    let data = dir.path().join("data");
    symlink(missing, &data).unwrap();
    assert!(open(&data).err().unwrap().to_string().contains("leads nowhere"));
    fs::remove_file(&data).unwrap();
    fs::create_dir(dir.path().join("disk")).unwrap();
    symlink(dir.path().join("disk"), &data).unwrap();
    drop(open(&data).unwrap());
    assert!(dir.path().join("disk/forebay/version").exists());
}

#[test]
fn staging_is_emptied_of_files_and_of_nothing_behind_or_below() {
    let (dir, outside) = (dir(), dir());
    write(outside.path().join("photo"), "theirs");
    let fills = dir.path().join(layout::STAGING_DIR);
    write(fills.join("7"), "half a blob");
    write(fills.join("odd\n"), "");
    fs::create_dir_all(fills.join("empty")).unwrap();
    // In the way of what is staged first.
    write(fills.join("0/theirs"), "");
    symlink(outside.path(), fills.join("8")).unwrap();
    symlink(outside.path().join("photo"), fills.join("9")).unwrap();
    let store = open(dir.path()).unwrap();
    let left: Vec<_> = fs::read_dir(&fills).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["0"]);
    assert!(dir.path().join(layout::VERSION).exists(), "staged under another name");
    let (grant, digest) = (hosted("a"), Digest::sha256(b"x"));
    store.put_manifest(&grant, &digest, b"x").unwrap();
    drop(store);

    fs::remove_dir_all(&fills).unwrap();
    symlink(outside.path(), &fills).unwrap();
    let text = refused(dir.path());
    assert!(text.contains(layout::STAGING_DIR) && text.contains("remove it"), "{text}");
    // `fills` may be somebody's directory, where `forebay` is.
    fs::create_dir(outside.path().join("fills")).unwrap();
    fs::remove_dir_all(dir.path().join("forebay")).unwrap();
    symlink(outside.path(), dir.path().join("forebay")).unwrap();
    assert!(refused(dir.path()).contains("\"photo\""));
    assert_eq!(snapshot(outside.path()).len(), 2);
}

/// Behind each link is what the calls that delete and write would look for by name.
#[tokio::test]
async fn nothing_behind_links_within_a_repository_is_touched() {
    let (dir, outside) = (dir(), dir());
    let store = open(dir.path()).unwrap();
    let grant = hosted("a");
    let repository = &grant.repository;
    let (bytes, spare) = (b"{}".as_slice(), push(&store, &grant, b"spare").await);
    let manifest = Digest::sha256(bytes);
    store.put_manifest(&grant, &manifest, bytes).unwrap();
    for tag in ["1", "2"] {
        store.point(repository, &tag.parse().unwrap(), &manifest).unwrap();
    }
    drop(store);
    let replace = |key: &str| {
        let (path, to) = (dir.path().join(key), outside.path().join(key.replace('/', "-")));
        if path.exists() {
            fs::rename(&path, &to).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            write(to.join("data"), "half an upload");
            write(to.join("startedat"), "2020-01-01T00:00:00Z");
        }
        symlink(&to, &path).unwrap();
    };
    let id = UploadId::random();
    let (one, two) = ("1".parse().unwrap(), "2".parse().unwrap());
    let parent = |key: String| key.rsplit_once('/').unwrap().0.to_owned();
    let layer = parent(layout::layer(repository, &spare));
    for key in [
        layout::tag(repository, &one),
        layout::tag_history(repository, &two, &manifest),
        layer,
        layout::upload("a", id),
    ] {
        replace(&key);
    }
    let before = snapshot(outside.path());

    let store = open(dir.path()).unwrap();
    assert!(store.uploads().unwrap().is_empty(), "none of ours");
    assert!(store.resume_upload(&grant, id).await.is_err());
    assert!(store.remove_tag(repository, &one).is_err());
    assert!(store.point(repository, &one, &spare).is_err());
    assert!(store.touch_tag(repository, &one, &manifest, std::time::SystemTime::UNIX_EPOCH).is_err());
    assert!(store.remove_layer(repository, &spare).is_err());
    // These are links themselves in a place of ours: they go, and what they lead to stays.
    store.drop_upload("a", id).unwrap();
    assert!(!dir.path().join(layout::upload("a", id)).is_symlink());
    // With the other tag goes the link in it.
    store.remove_manifest(repository, &manifest, &|_| false).unwrap();
    assert_eq!(snapshot(outside.path()), before);
}

#[tokio::test]
async fn collection_leaves_alone_what_is_behind_links() {
    let (dir, outside) = (dir(), dir());
    let (clock, term) = (Clock::default(), Duration::from_secs(600));
    let options = Options { lease: term, ..options(dir.path()) };
    let store = Store::open(options, Arc::new(RealDisk), Arc::default(), clock.clone(), Tasks::default());
    let (store, grant) = (store.unwrap(), hosted("a"));
    push(&store, &grant, b"kept").await;
    let [linked, spare] = [push(&store, &grant, b"linked").await, push(&store, &grant, b"spare").await];
    store.remove_layer(&grant.repository, &linked).unwrap();
    store.remove_layer(&grant.repository, &spare).unwrap();
    let moved = dir.path().join(layout::data(&linked));
    let moved = moved.parent().unwrap();
    fs::rename(moved, outside.path().join("moved")).unwrap();
    symlink(outside.path().join("moved"), moved).unwrap();
    clock.advance(term * 2);
    let mut gone = Vec::new();
    let mut report = |removed: Removed| gone.push(removed.subject);
    Pass::new(&store, false, &mut report, &|| false).drop_data().unwrap();
    assert_eq!(gone, [spare.to_string()]);
    assert_eq!(fs::read(outside.path().join("moved/data")).unwrap(), b"linked");
}

#[tokio::test]
async fn data_that_is_a_link_out_is_neither_served_nor_overwritten() {
    let (dir, outside) = (dir(), dir());
    let (store, grant) = (open(dir.path()).unwrap(), hosted("a"));
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let digest = push(&store, &grant, b"bytes").await;
    let data = dir.path().join(layout::data(&digest));
    fs::remove_file(&data).unwrap();
    symlink(&secret, &data).unwrap();
    assert!(store.blob(&digest).is_err());
    assert_eq!(push(&store, &grant, b"bytes").await, digest);
    assert!(!data.is_symlink() && fs::read(&data).unwrap() == b"bytes");
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
}

/// Operators move parts of the tree to other disks.
#[tokio::test]
async fn the_upper_part_of_the_tree_may_be_elsewhere() {
    for key in ["docker", "docker/registry/v2/blobs", "docker/registry/v2/repositories/a", "forebay/origins"]
    {
        let (dir, outside) = (dir(), dir());
        let store = open(dir.path()).unwrap();
        let grant = hosted("a");
        let digest = push(&store, &grant, b"one").await;
        drop(store);
        fs::rename(dir.path().join(key), outside.path().join("moved")).unwrap();
        symlink(outside.path().join("moved"), dir.path().join(key)).unwrap();
        let store = open(dir.path()).unwrap();
        let repository = &grant.repository;
        assert!(store.has_layer(repository, &digest).unwrap() && store.blob(&digest).unwrap().is_some());
        let other = push(&store, &grant, b"two").await;
        assert!(store.remove_layer(repository, &other).unwrap(), "{key}");
        assert!(matches!(store.origin(repository).unwrap(), OriginState::Known(_)));
    }
}

#[test]
fn odd_names_are_passed_over() {
    let dir = dir();
    drop(open(dir.path()).unwrap());
    let root = dir.path().join(layout::REPOSITORIES_DIR);
    let odd: [&[u8]; 6] = [b"\xff\xfe", b"new\nline", b"a b", b"-x", b".hidden", "\u{e4}".as_bytes()];
    for name in
        odd.map(|name| OsString::from_vec(name.to_vec())).into_iter().chain([OsString::from("x".repeat(255))])
    {
        for part in ["_manifests/tags", "_layers/sha256", "_uploads", "_manifests/revisions/sha256"] {
            fs::create_dir_all(root.join("a").join(part).join(&name)).unwrap();
            fs::create_dir_all(root.join(&name).join(part)).unwrap();
        }
        let shard = dir.path().join(layout::content_root(Algorithm::Sha256)).join(&name);
        fs::create_dir_all(shard.join(&name)).unwrap();
        fs::write(shard.join(&name).join("data"), "theirs").unwrap();
        fs::create_dir_all(dir.path().join(layout::PROOFS_DIR).join(&name)).unwrap();
    }
    let deep: String = "deep/".repeat(400);
    fs::create_dir_all(root.join(deep).join("_manifests")).unwrap();
    let before = snapshot(&dir.path().join("docker"));
    let store = open(dir.path()).unwrap();
    let names: Vec<String> = store.repositories().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a".to_owned(), "x".repeat(255)]);
    assert!(store.told_odd.load(std::sync::atomic::Ordering::Relaxed));
    let repository = hosted("a").repository;
    assert!(store.tags(&repository).unwrap().iter().all(|tag| tag.to_string() == "a"));
    assert!(
        store.layers(&repository).unwrap().is_empty() && store.revisions(&repository).unwrap().is_empty()
    );
    assert!(store.uploads().unwrap().is_empty());
    store.survey(&|| false).unwrap();
    let mut report = |_| ();
    let mut pass = Pass::new(&store, false, &mut report, &|| false);
    pass.mark(&repository).unwrap();
    pass.drop_data().unwrap();
    assert_eq!(snapshot(&dir.path().join("docker")), before);
}

#[test]
fn the_lock_holds_though_its_file_is_removed() {
    let dir = dir();
    let store = open(dir.path()).unwrap();
    for removed in [dir.path().join(layout::LOCK), dir.path().join("forebay")] {
        if removed.is_dir() {
            fs::remove_dir_all(&removed).unwrap();
        } else {
            fs::remove_file(&removed).unwrap();
        }
        assert!(matches!(open(dir.path()), Err(OpenError::Locked(_))), "{removed:?}");
    }
    drop(store);
    drop(open(dir.path()).unwrap());
}

#[test]
fn a_file_system_without_locks_is_told_as_such() {
    let unsupported = || Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "no locks available"));
    let without = Hooked { lock: Box::new(move |_| unsupported()), ..Hooked::default() };
    let dir = dir();
    let text = open_on(dir.path(), without).err().unwrap().to_string();
    assert!(text.contains("flock") && text.contains("no locks available"), "{text}");
    // NFS locks files, and no directories.
    let files = Hooked {
        lock: Box::new(move |path| if path.is_dir() { unsupported() } else { RealDisk.lock(path) }),
        ..Hooked::default()
    };
    let store = open_on(dir.path(), files).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Locked(_))));
    drop(store);
}

#[test]
fn what_this_user_may_not_write_to_is_found_at_the_start() {
    let dir = dir();
    drop(open(dir.path()).unwrap());
    let blobs = dir.path().join("docker/registry/v2/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let denied = Hooked {
        may_use: Box::new(move |path| Ok(path != blobs && !path.ends_with("docker"))),
        ..Hooked::default()
    };
    let text = open_on(dir.path(), denied).err().unwrap().to_string();
    assert!(text.contains("v2/blobs") && text.contains("sudo chown -R"), "{text}");
    // Where it is reached by a symbolic link, chown is to follow that.
    let (place, link) = (dir.path().to_owned(), dir.path().with_extension("link"));
    symlink(&place, &link).unwrap();
    let denied = Hooked { may_use: Box::new(|_| Ok(false)), ..Hooked::default() };
    let text = open_on(&link, denied).err().unwrap().to_string();
    fs::remove_file(&link).unwrap();
    assert!(text.contains(".link/`"), "{text}");
}
