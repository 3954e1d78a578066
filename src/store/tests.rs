//! The tree: links, tags, origins, the lock; over the real disk.

mod crash;
mod evict;
mod model;
mod pins;
mod whole;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use super::*;
use crate::disk::RealDisk;
use crate::disk::hooked::Hooked;
use crate::oci::{Name, Tag, UpstreamHost};

/// Nothing is limited but by the file system; a fill ends with its readers, or at its first break.
pub(crate) fn options(data: &Path) -> Options {
    Options {
        data: data.to_owned(),
        max_size: Some(1 << 50),
        min_free: None,
        unread_budget: 0,
        resumes: 0,
        reader_timeout: Duration::ZERO,
        fill_connections: 1,
        range_share: 0.0,
        range_floor: 0,
        range_idle: Duration::from_secs(3600),
        lease: Duration::ZERO,
        quarantine: 1 << 30,
        adopt: None,
    }
}

fn open(options: Options) -> Result<Arc<Store>, OpenError> {
    Store::open(options, Arc::new(RealDisk), Arc::default(), Clock::default(), Tasks::default())
}

fn repository(owner: Owner, name: &str) -> Repository {
    Repository { owner, name: name.parse::<Name>().unwrap() }
}

fn hub(name: &str) -> Grant {
    let repository = repository(Owner::Upstream(UpstreamHost::docker_hub()), name);
    Grant { repository, domain: "docker.io".into(), visibility: Visibility::Public }
}

#[test]
fn tags_and_manifests_are_kept_found_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(options(dir.path())).unwrap();
    let grant = hub("library/a");
    let (bytes, tag): (&[u8], Tag) = (b"a manifest", "1".parse().unwrap());
    let digest = Digest::sha256(bytes);
    assert_eq!(store.manifest(&grant.repository, &digest).unwrap(), None);
    store.put_manifest(&grant, &digest, bytes).unwrap();
    store.put_manifest(&grant, &digest, bytes).unwrap();
    assert_eq!((store.metrics.store_entries.get(), store.metrics.store_bytes.get()), (1, 10));
    assert_eq!(store.manifest(&grant.repository, &digest).unwrap().unwrap(), bytes);
    assert_eq!(store.manifest(&hub("library/b").repository, &digest).unwrap(), None, "not linked there");
    let seen = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    store.put_tag(&grant, &tag, &digest, seen).unwrap();
    assert_eq!(store.tag(&grant.repository, &tag).unwrap(), Some(HeldTag { digest, seen }));
    assert_eq!(store.tags(&grant.repository).unwrap(), std::slice::from_ref(&tag));
    let later = seen + Duration::from_secs(60);
    let moved = Digest::sha256(b"not kept");
    store.touch_tag(&grant.repository, &tag, &moved, later).unwrap();
    assert_eq!(store.tag(&grant.repository, &tag).unwrap().unwrap().seen, seen, "another was confirmed");
    store.touch_tag(&grant.repository, &tag, &digest, later).unwrap();
    assert_eq!(store.tag(&grant.repository, &tag).unwrap().unwrap().seen, later);
    store.drop_tag(&grant.repository, &tag).unwrap();
    assert_eq!(store.tag(&grant.repository, &tag).unwrap(), None);
    assert!(store.tags(&grant.repository).unwrap().is_empty());
    assert!(store.manifest(&grant.repository, &digest).unwrap().is_some());
    let counted = open_second_count(&store);
    assert_eq!(counted, 1, "what was there at the start is counted once");
}

#[test]
fn since_when_a_tag_is_gone_is_noted_until_it_is_seen_or_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (store, grant) = (open(options(dir.path())).unwrap(), hub("library/a"));
    let (repository, tag) = (&grant.repository, "1".parse::<Tag>().unwrap());
    let digest = Digest::sha256(b"a manifest");
    let at = |minutes: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + minutes * 60);
    let gone = || store.gone_since(repository, &tag, &store.tag(repository, &tag).unwrap().unwrap()).unwrap();
    store.put_tag(&grant, &tag, &digest, at(0)).unwrap();
    assert_eq!(gone(), None);
    store.mark_gone(repository, &tag, at(1)).unwrap();
    assert_eq!(gone(), Some(at(1)));
    store.touch_tag(repository, &tag, &digest, at(0)).unwrap();
    assert_eq!(gone(), None, "seen again, whatever the clock says");
    store.mark_gone(repository, &tag, at(2)).unwrap();
    store.put_tag(&grant, &tag, &digest, at(0)).unwrap();
    assert_eq!(gone(), None);
    // One that knows of no such notes has seen the tag; and what others have written there.
    store.mark_gone(repository, &tag, at(3)).unwrap();
    store.home.touch(&layout::tag_current(repository, &tag), at(4)).unwrap();
    assert_eq!(gone(), None);
    for text in [String::new(), "never".to_owned(), "\u{ff}".to_owned(), "9".repeat(1000)] {
        std::fs::write(dir.path().join(layout::tag_gone(repository, &tag)), text).unwrap();
        assert_eq!(gone(), None);
    }
    store.mark_gone(repository, &tag, at(5)).unwrap();
    store.drop_tag(repository, &tag).unwrap();
    store.put_tag(&grant, &tag, &digest, at(0)).unwrap();
    assert_eq!(gone(), None);
}

fn open_second_count(store: &Store) -> i64 {
    let counted = store.metrics.store_entries.get();
    store.survey(&|| false).unwrap();
    assert_eq!(store.metrics.store_entries.get(), counted, "it was counted as it came");
    counted
}

#[test]
fn rotten_or_odd_files_count_as_missing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(options(dir.path())).unwrap();
    let grant = hub("library/a");
    let digest = Digest::sha256(b"a manifest");
    store.put_manifest(&grant, &digest, b"a manifest").unwrap();
    std::fs::write(dir.path().join(layout::data(&digest)), "b manifest").unwrap();
    assert_eq!(store.manifest(&grant.repository, &digest).unwrap(), None);
    let link = dir.path().join(layout::layer(&grant.repository, &digest));
    for odd in ["", "sha256:zz", "../../etc/passwd", &Digest::sha256(b"other").to_string()] {
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::fs::write(&link, odd).unwrap();
        assert!(!store.has_layer(&grant.repository, &digest).unwrap(), "{odd}");
    }
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
    assert!(!store.has_layer(&grant.repository, &digest).unwrap_or(false), "a link out is not followed");
}

#[test]
fn one_process_has_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(options(dir.path())).unwrap();
    let Err(refused) = open(options(dir.path())) else { panic!("two at once") };
    assert!(refused.to_string().contains("--data"), "{refused}");
    drop(first);
    assert!(open(options(dir.path())).is_ok());
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(open(options(&file)), Err(OpenError::Disk(_))));
}

#[test]
fn a_directory_that_was_emptied_is_filled_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(options(dir.path())).unwrap();
    std::fs::remove_dir_all(dir.path().join("forebay")).unwrap();
    std::fs::remove_dir_all(dir.path().join("docker")).unwrap();
    let (grant, digest) = (hub("library/a"), Digest::sha256(b"a manifest"));
    store.put_manifest(&grant, &digest, b"a manifest").unwrap();
    assert!(store.manifest(&grant.repository, &digest).unwrap().is_some());
}

#[test]
fn unfinished_work_is_dropped_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let fills = dir.path().join(layout::STAGING_DIR);
    std::fs::create_dir_all(fills.join("nested")).unwrap();
    std::fs::write(fills.join("7"), "half a blob").unwrap();
    drop(open(options(dir.path())).unwrap());
    assert_eq!(std::fs::read_dir(&fills).unwrap().count(), 0);
}

/// Holds bytes that nothing leads to.
fn hold(store: &Store, bytes: &[u8]) -> Digest {
    let digest = Digest::sha256(bytes);
    store.home.put(&layout::data(&digest), bytes).unwrap();
    digest
}

#[test]
fn origins_decide_and_unknown_ones_are_adopted_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(options(dir.path())).unwrap();
    let grant = hub("library/a");
    assert_eq!(store.origin(&grant.repository).unwrap(), OriginState::Absent);
    let digest = hold(&store, b"x");
    store.link_layer(&grant, &digest).unwrap();
    let public = Origin { owner: grant.repository.owner.clone(), visibility: Visibility::Public };
    assert_eq!(store.origin(&grant.repository).unwrap(), OriginState::Known(public.clone()));
    // The same stored name as another owner's: nothing is added to it.
    let hosted = Grant { repository: repository(Owner::Hosted, "library/a"), ..grant.clone() };
    assert!(store.link_layer(&hosted, &digest).is_err());
    let foreign = dir.path().join("docker/registry/v2/repositories/library/b/_layers");
    std::fs::create_dir_all(&foreign).unwrap();
    let other = hub("library/b");
    assert_eq!(store.origin(&other.repository).unwrap(), OriginState::Unknown);
    assert!(store.link_layer(&other, &digest).is_err());
    drop(store);
    let adopt = Some(Owner::Upstream(UpstreamHost::docker_hub()));
    let store = open(Options { adopt, ..options(dir.path()) }).unwrap();
    let names: Vec<_> = store.repositories().unwrap();
    let known = OriginState::Known(public);
    assert_eq!(names, [("library/a".to_owned(), known.clone()), ("library/b".to_owned(), known)]);
}

/// A transfer that began while a repository was public may end after it was made private.
#[test]
fn what_is_private_becomes_public_by_a_claim_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(options(dir.path())).unwrap();
    let public = hub("team/app");
    let private =
        Grant { domain: "docker.io  PerCaller".into(), visibility: Visibility::PerCaller, ..public.clone() };
    let visibility = |store: &Store| match store.origin(&public.repository).unwrap() {
        OriginState::Known(origin) => origin.visibility,
        other => panic!("{other:?}"),
    };
    let (one, other) = (hold(&store, b"one"), hold(&store, b"other"));
    store.link_layer(&public, &one).unwrap();
    assert_eq!(visibility(&store), Visibility::Public);
    store.link_layer(&private, &one).unwrap();
    assert_eq!(visibility(&store), Visibility::PerCaller);
    store.link_layer(&public, &other).unwrap();
    assert_eq!(visibility(&store), Visibility::PerCaller);
    assert!(store.has_layer(&public.repository, &other).unwrap());
    drop(store);
    let store = open(options(dir.path())).unwrap();
    assert_eq!(visibility(&store), Visibility::PerCaller, "on disk too");
    store.claim(&public.repository, Visibility::Public).unwrap();
    assert_eq!(visibility(&store), Visibility::Public);
}

/// Another thread gives the repository its first content just after this one found no record of
/// whose it is.
#[test]
fn who_is_overtaken_at_a_first_claim_may_still_add() {
    let dir = tempfile::tempdir().unwrap();
    // Two stores of one directory stand for two threads of one.
    let unlocked = || Hooked { lock: Box::new(|_| Ok(Some(Box::new(())))), ..Hooked::default() };
    let start = |disk| {
        Store::open(options(dir.path()), Arc::new(disk), Arc::default(), Clock::default(), Tasks::default())
            .unwrap()
    };
    let (other, done) = (start(unlocked()), OnceLock::new());
    let overtaken = Hooked {
        open: Box::new(move |path| {
            let opened = RealDisk.open(path);
            if opened.is_err() {
                done.get_or_init(|| other.link_layer(&hub("library/a"), &hold(&other, b"x")).unwrap());
            }
            opened
        }),
        ..unlocked()
    };
    let (store, grant) = (start(overtaken), hub("library/a"));
    assert!(matches!(store.origin(&grant.repository).unwrap(), OriginState::Known(_)));
    store.put_manifest(&grant, &Digest::sha256(b"y"), b"y").unwrap();
}

#[test]
fn a_directory_of_another_users_is_given_the_command_that_mends_it() {
    let own = |path: &str, is_there| super::own(Path::new(path), is_there, 1000, 100);
    assert_eq!(own("/var/lib/registry", true), "sudo chown -R 1000:100 /var/lib/registry");
    assert_eq!(own("/srv/a b's", true), r"sudo chown -R 1000:100 '/srv/a b'\''s'");
    assert_eq!(own("/srv/new", false), "sudo mkdir -p /srv/new && sudo chown -R 1000:100 /srv/new");
}
