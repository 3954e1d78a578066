//! Pins, and a disk that fails.

use std::io;

use super::*;
use crate::disk::simulated::{Simulated, Trouble};
use crate::oci::Reference;

fn start(disk: &Simulated) -> Arc<Store> {
    let (disk, options) = (Arc::new(disk.clone()), options(Path::new("/data")));
    Store::open(options, disk, Arc::default(), Clock::default(), Tasks::default()).unwrap()
}

/// A store in which an image is pinned, or (`was_pinned`) was and is no more, with the disk failing at one
/// call of that. None: there are not so many calls.
fn failed(of: &Repository, tag: &Reference, was_pinned: bool, at: u64) -> Option<(Simulated, Arc<Store>)> {
    let disk = Simulated::default();
    let store = start(&disk);
    if was_pinned {
        store.pin(of, tag).unwrap();
    }
    disk.make(Some(Trouble::Failure(at, io::ErrorKind::Other)));
    // It may fail.
    match was_pinned {
        true => drop(store.unpin(of, tag)),
        false => drop(store.pin(of, tag)),
    }
    let is_over = disk.calls().0 <= at;
    disk.make(None);
    (!is_over).then_some((disk, store))
}

/// Whatever failed before, and whatever the disk then keeps of what was not synced.
#[test]
fn what_is_said_of_a_pin_is_so_after_a_failure_and_a_power_loss() {
    let (of, tag) = (hub("library/a").repository, Reference::Tag("1".parse().unwrap()));
    for (was_pinned, pins) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut said = 0;
        for at in 0.. {
            let Some((disk, store)) = failed(&of, &tag, was_pinned, at) else { break };
            let done = if pins { store.pin(&of, &tag).is_ok() } else { store.unpin(&of, &tag).is_ok() };
            if !done {
                continue;
            }
            said += 1;
            let when = format!("{was_pinned} before, {pins} after a failure at call {at}");
            assert_eq!(store.pins().unwrap().len(), usize::from(pins), "{when}");
            for disk in [disk.after_power_loss(|| false), disk.after_power_loss(|| true), disk.after_kill()] {
                let found = start(&disk).pins().unwrap().len();
                assert_eq!(found, usize::from(pins), "{when}, as a new process finds it");
            }
        }
        assert!(said > 0);
    }
}
