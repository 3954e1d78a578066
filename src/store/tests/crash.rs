//! Power losses, kills and failures of the disk at every call, against the promises of a push.

use std::io;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::model::{Model, Step, life, steps};
use super::*;
use crate::disk::simulated::{Simulated, Trouble};

/// What pushers do in the runs of these seeds: 0 is the plain life of an image.
fn steps_of(seed: u64) -> Vec<Step> {
    if seed == 0 { life() } else { steps(&mut StdRng::seed_from_u64(seed)) }
}

fn start(disk: &Simulated) -> Result<Arc<Store>, OpenError> {
    let (disk, tasks) = (Arc::new(disk.clone()), Tasks::default());
    Store::open(options(Path::new("/data")), disk, Arc::default(), Clock::default(), tasks)
}

/// Takes steps until one fails. How many were taken.
async fn take(store: &Arc<Store>, steps: &[Step], model: &mut Model) -> usize {
    for (taken, step) in steps.iter().enumerate() {
        match step.run(store, model).await {
            Ok(acknowledged) if acknowledged => model.took(*step, true),
            Ok(_) => {}
            Err(_) => {
                model.took(*step, false);
                return taken;
            }
        }
    }
    steps.len()
}

/// A new process finds what the last one left: it holds what was acknowledged, takes up the work,
/// and loses nothing of that when the power goes.
async fn go_on(disk: Simulated, steps: &[Step], mut model: Model, when: &str) {
    let store = start(&disk).unwrap();
    model.check(&store, when).await;
    for held in store.uploads().unwrap() {
        store.drop_upload(&held.stored_name, held.id).unwrap();
    }
    assert_eq!(take(&store, steps, &mut model).await, steps.len(), "{when}: no trouble, no failure");
    model.check(&store, when).await;
    drop(store);
    let store = start(&disk.after_power_loss(|| false)).unwrap();
    model.check(&store, &format!("{when}, then all went well until the power went")).await;
}

/// At every call that changes something, the process ends: by power loss, in which what was not
/// synced is lost, all or some of it; or by kill -9, in which it is not lost yet.
#[tokio::test]
async fn what_was_acknowledged_survives_every_crash() {
    for seed in 0..4 {
        let steps = steps_of(seed);
        for at in 0.. {
            let (disk, mut model) = (Simulated::default(), Model::default());
            disk.make(Some(Trouble::Death(at)));
            let taken = match start(&disk) {
                Ok(store) => take(&store, &steps, &mut model).await,
                Err(_) => 0,
            };
            let rest = &steps[taken..];
            let mut chance = StdRng::seed_from_u64(seed << 32 | at);
            let after = |how: &str| format!("seed {seed}, {how} at call {at}, in {:?}", rest.first());
            go_on(disk.after_power_loss(|| false), rest, model.clone(), &after("power loss")).await;
            let some = disk.after_power_loss(|| chance.random());
            go_on(some, rest, model.clone(), &after("power loss that left something")).await;
            go_on(disk.after_kill(), rest, model, &after("kill")).await;
            if disk.calls().1 <= at {
                break;
            }
        }
    }
}

/// At every call the disk fails once. What fails is tried again; what is acknowledged then is no
/// lie, even where the disk has lost what it failed to sync.
#[tokio::test]
async fn what_was_acknowledged_survives_every_failure_of_the_disk() {
    for seed in 0..4 {
        let steps = steps_of(seed);
        for at in 0.. {
            let kind = [io::ErrorKind::Other, io::ErrorKind::StorageFull][(at % 2) as usize];
            let (disk, mut model) = (Simulated::default(), Model::default());
            let store = start(&disk).unwrap();
            disk.make(Some(Trouble::Failure(at, kind)));
            let mut rest = &steps[..];
            while !rest.is_empty() {
                let taken = take(&store, rest, &mut model).await;
                // A step is tried twice, then left.
                let again = &rest[taken..(taken + 1).min(rest.len())];
                take(&store, again, &mut model).await;
                rest = &rest[(taken + 1).min(rest.len())..];
            }
            let is_over = disk.calls().0 <= at;
            disk.make(None);
            let when = format!("seed {seed}, {kind:?} at call {at}");
            model.check(&store, &when).await;
            drop(store);
            let store = start(&disk.after_power_loss(|| false)).unwrap();
            model.check(&store, &format!("{when}, then power loss")).await;
            if is_over {
                break;
            }
        }
    }
}

/// At every call the disk fails once. What is pushed after that is taken, by the same process, and is no
/// lie.
#[tokio::test]
async fn what_is_pushed_after_a_failure_is_taken_without_a_restart() {
    let adds = |step: &Step| matches!(step, Step::Upload { .. } | Step::Mount { .. } | Step::Push { .. });
    for seed in 0..6 {
        let steps: Vec<Step> = steps_of(seed).into_iter().filter(adds).collect();
        for at in 0.. {
            let (disk, mut model) = (Simulated::default(), Model::default());
            let store = start(&disk).unwrap();
            disk.make(Some(Trouble::Failure(at, io::ErrorKind::Other)));
            for (number, step) in steps.iter().enumerate() {
                // As a client does that is started again: what its blobs are is asked for first.
                let mut tries = 0;
                while take(&store, &steps[..=number], &mut model).await <= number {
                    tries += 1;
                    assert!(tries < 3, "seed {seed}, call {at}: {step:?} is not taken any more");
                }
            }
            let is_over = disk.calls().0 <= at;
            disk.make(None);
            drop(store);
            let when = format!("seed {seed}, a failure at call {at}, then power loss");
            model.check(&start(&disk.after_power_loss(|| false)).unwrap(), &when).await;
            if is_over {
                break;
            }
        }
    }
}

/// The same steps over a real disk, each by a process of its own.
#[tokio::test]
async fn the_same_steps_over_a_real_disk() {
    for seed in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let mut model = Model::default();
        for step in steps_of(seed) {
            let store = open(options(dir.path())).unwrap();
            assert_eq!(take(&store, &[step], &mut model).await, 1);
            model.check(&store, &format!("seed {seed}, {step:?}")).await;
        }
    }
}
