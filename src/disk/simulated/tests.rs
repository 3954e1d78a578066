//! What the simulated disk keeps, and what it loses.

use std::io::IoSlice;

use super::*;
use crate::disk::{Disk, File};

fn put(disk: &Simulated, path: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = disk.create(Path::new(path)).unwrap();
    file.write_at(&[IoSlice::new(bytes)], 0).unwrap();
    file
}

fn get(disk: &Simulated, path: &str) -> Option<Vec<u8>> {
    let file = disk.open(Path::new(path)).ok()?;
    let mut bytes = vec![0; file.size().unwrap() as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    Some(bytes)
}

#[test]
fn only_what_was_synced_is_sure_to_survive() {
    let disk = Simulated::default();
    let file = put(&disk, "/a", b"one");
    assert_eq!(get(&disk.after_power_loss(|| false), "/a"), None, "its name is not synced");
    disk.sync_dir(Path::new("/")).unwrap();
    assert_eq!(get(&disk.after_power_loss(|| false), "/a").unwrap(), b"", "its bytes are not");
    assert_eq!(get(&disk.after_power_loss(|| true), "/a").unwrap(), b"one");
    file.sync().unwrap();
    disk.rename(Path::new("/a"), Path::new("/b")).unwrap();
    assert_eq!(get(&disk, "/a"), None);
    let lost = disk.after_power_loss(|| false);
    assert_eq!((get(&lost, "/a").unwrap(), get(&lost, "/b")), (b"one".to_vec(), None));
    assert_eq!(get(&disk.after_kill(), "/b").unwrap(), b"one");
    assert_eq!(get(&disk.after_kill().after_power_loss(|| false), "/b"), None);
    disk.sync_dir(Path::new("/")).unwrap();
    let lost = disk.after_power_loss(|| false);
    assert_eq!((get(&lost, "/a"), get(&lost, "/b").unwrap()), (None, b"one".to_vec()));
}

#[test]
fn a_torn_file_has_some_of_its_pages() {
    let disk = Simulated::default();
    put(&disk, "/a", &[7; PAGE * 2]);
    disk.sync_dir(Path::new("/")).unwrap();
    let mut chances = [true, false, true, true].into_iter();
    let torn = disk.after_power_loss(|| chances.next().unwrap());
    assert_eq!(get(&torn, "/a").unwrap(), [vec![0; PAGE], vec![7; PAGE]].concat());
}

#[test]
fn a_sync_that_failed_is_not_made_good_by_another() {
    let disk = Simulated::default();
    let fail = |disk: &Simulated| disk.make(Some(Trouble::Failure(0, io::ErrorKind::Other)));
    let file = put(&disk, "/a", b"one");
    fail(&disk);
    assert!(disk.sync_dir(Path::new("/")).is_err());
    disk.sync_dir(Path::new("/")).unwrap();
    assert_eq!(get(&disk.after_power_loss(|| true), "/a"), None);
    disk.rename(Path::new("/a"), Path::new("/b")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    fail(&disk);
    assert!(file.sync().is_err());
    file.sync().unwrap();
    assert_eq!(get(&disk.after_power_loss(|| true), "/b").unwrap(), b"");
    assert_eq!(get(&disk, "/b").unwrap(), b"one");
}

#[test]
fn trouble_comes_at_its_call() {
    let disk = Simulated::default();
    disk.make(Some(Trouble::Failure(1, io::ErrorKind::StorageFull)));
    let file = disk.create(Path::new("/a")).unwrap();
    let error = file.write_at(&[IoSlice::new(b"1234")], 0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(get(&disk, "/a").unwrap(), b"12");
    assert_eq!(disk.calls(), (5, 2));
    disk.make(Some(Trouble::Death(1)));
    disk.remove(Path::new("/a")).unwrap();
    assert!(disk.create_dir(Path::new("/d")).is_err());
    assert!(disk.list(Path::new("/")).is_err(), "it stays dead");
    let lock = disk.after_kill();
    let held = lock.lock(Path::new("/l")).unwrap();
    assert!(held.is_some() && lock.lock(Path::new("/l")).unwrap().is_none());
    drop(held);
    assert!(lock.lock(Path::new("/l")).unwrap().is_some());
}
