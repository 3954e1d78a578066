//! Any sequence of pulls, pushes, deletions, collection, eviction and restarts, with power losses, kills and
//! failures of the disk at any call, against the model. `FOREBAY_FULL=1` tries more of them, at every call.

use std::io;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::model::Model;
use super::model::act::{Act, World, acts};
use super::*;
use crate::disk::failing::Failing;
use crate::disk::simulated::{Simulated, Trouble};

/// What is tried by default, and in full.
fn tries(some: u64, full: u64) -> std::ops::Range<u64> {
    let is_full = std::env::var_os("FOREBAY_FULL").is_some_and(|value| value == "1");
    0..if is_full { full } else { some }
}

fn acts_of(seed: u64, most: usize) -> Vec<Act> {
    acts(&mut StdRng::seed_from_u64(seed), most)
}

/// In every second run there is not room for everything.
fn cap(seed: u64) -> u64 {
    if seed.is_multiple_of(2) { 1 << 30 } else { 3500 }
}

async fn start(disk: &Simulated, seed: u64, model: Model) -> Result<World, String> {
    World::start(Arc::new(disk.clone()), Path::new("/data"), cap(seed), model).await
}

fn twin(disk: &Simulated) -> Arc<dyn Disk> {
    Arc::new(disk.after_kill())
}

/// A disk with what is there before.
async fn new_disk() -> Simulated {
    let disk = Simulated::default();
    World::set_up(Arc::new(disk.clone()), Path::new("/data")).await;
    disk
}

/// Some of the calls of a run, or all.
fn points(random: &mut StdRng, calls: u64, some: u64) -> Vec<u64> {
    let all = tries(some, calls).end;
    if all >= calls {
        (0..calls).collect()
    } else {
        (0..all).map(|_| random.random_range(0..calls)).collect()
    }
}

#[tokio::test]
async fn what_the_index_says_is_what_the_tree_says_after_each_act() {
    for seed in tries(60, 1500) {
        let disk = new_disk().await;
        let mut world = start(&disk, seed, Model::default()).await.unwrap();
        for act in acts_of(seed, 25) {
            world.act(act).await.unwrap();
            world.check(twin(&disk), true, &format!("seed {seed}, {act:?}")).await;
        }
        let when = format!("seed {seed}, at the end");
        world.tidy(|| twin(&disk), &when).await;
        let lost = disk.after_power_loss(|| false);
        let world = start(&lost, seed, world.model).await.unwrap();
        world.check(twin(&lost), false, &format!("{when}, then power loss")).await;
    }
}

/// A new process finds what the last one left, goes on with it, and leaves nothing behind.
async fn go_on(disk: Simulated, seed: u64, rest: &[Act], model: Model, when: &str) {
    let mut world = start(&disk, seed, model).await.unwrap();
    world.check(twin(&disk), false, when).await;
    for act in rest {
        world.act(*act).await.unwrap_or_else(|error| panic!("{when}, then {act:?}: {error}"));
    }
    world.tidy(|| twin(&disk), when).await;
    let lost = disk.after_power_loss(|| false);
    let when = format!("{when}, then all went well until the power went");
    let world = start(&lost, seed, world.model).await.unwrap();
    world.check(twin(&lost), false, &when).await;
}

#[tokio::test]
async fn no_crash_breaks_what_was_acknowledged_or_leaves_anything_behind() {
    for seed in tries(12, 60) {
        let (acts, mut random) = (acts_of(seed, 12), StdRng::seed_from_u64(seed));
        let whole = new_disk().await;
        whole.make(None);
        let mut world = start(&whole, seed, Model::default()).await.unwrap();
        for act in &acts {
            world.act(*act).await.unwrap();
        }
        for at in points(&mut random, whole.calls().1, 8) {
            let (disk, mut taken) = (new_disk().await, 0);
            disk.make(Some(Trouble::Death(at)));
            let mut model = Model::default();
            if let Ok(mut world) = start(&disk, seed, model.clone()).await {
                while taken < acts.len() && world.act(acts[taken]).await.is_ok() {
                    taken += 1;
                }
                model = world.model;
            }
            let rest = &acts[taken..];
            let after = |how: &str| format!("seed {seed}, {how} at call {at}, in {:?}", rest.first());
            go_on(disk.after_power_loss(|| false), seed, rest, model.clone(), &after("power loss")).await;
            let some = disk.after_power_loss(|| random.random());
            let how = after("power loss that left something");
            go_on(some, seed, rest, model.clone(), &how).await;
            go_on(disk.after_kill(), seed, rest, model, &after("kill")).await;
        }
    }
}

/// Does all of it, and what fails once more, if it is to be tried `again`.
async fn try_all(world: &mut World, acts: &[Act], again: bool) {
    world.tainted = true;
    world.model.has_failed = true;
    for act in acts {
        if world.act(*act).await.is_err() && again {
            let _ = world.act(*act).await;
        }
    }
}

#[tokio::test]
async fn no_failure_of_the_disk_breaks_what_was_acknowledged() {
    for seed in tries(20, 60) {
        let (mut acts, mut random) = (acts_of(seed, 12), StdRng::seed_from_u64(seed));
        // A new process cannot know of what failed to sync in the last one, and the kernel does not say.
        acts.retain(|act| !matches!(act, Act::Restart));
        let whole = new_disk().await;
        let mut world = start(&whole, seed, Model::default()).await.unwrap();
        whole.make(None);
        try_all(&mut world, &acts, true).await;
        for at in points(&mut random, whole.calls().0, 12) {
            let kind = [io::ErrorKind::Other, io::ErrorKind::StorageFull][(at % 2) as usize];
            let disk = new_disk().await;
            let mut world = start(&disk, seed, Model::default()).await.unwrap();
            disk.make(Some(Trouble::Failure(at, kind)));
            let again = at % 4 < 2;
            try_all(&mut world, &acts, again).await;
            disk.make(None);
            let when = format!("seed {seed}, {kind:?} at call {at}, again: {again}");
            world.recover();
            world.check(twin(&disk), false, &when).await;
            let lost = disk.after_power_loss(|| false);
            go_on(lost, seed, &[], world.model, &format!("{when}, then power loss")).await;
        }
    }
}

/// The same over a real disk. It cannot lose power: it is restarted, and has calls that fail.
#[tokio::test]
async fn the_same_over_a_real_disk() {
    for seed in tries(3, 150) {
        let dir = tempfile::tempdir().unwrap();
        let (disk, acts) = (Failing::default(), acts_of(seed, 12));
        let twin = || Arc::new(disk.clone()) as Arc<dyn Disk>;
        World::set_up(twin(), dir.path()).await;
        let mut world = World::start(twin(), dir.path(), cap(seed), Model::default()).await.unwrap();
        disk.fail(None);
        for act in &acts {
            world.act(*act).await.unwrap();
            world.act(Act::Restart).await.unwrap();
            world.check(twin(), true, &format!("seed {seed}, {act:?}")).await;
        }
        world.tidy(twin, &format!("seed {seed}")).await;
        let (calls, mut random) = (disk.calls() / 2, StdRng::seed_from_u64(seed));
        for _ in tries(2, 20) {
            let (at, done, again) = (random.random_range(0..calls), random.random(), random.random());
            let dir = tempfile::tempdir().unwrap();
            World::set_up(twin(), dir.path()).await;
            let mut world = World::start(twin(), dir.path(), cap(seed), Model::default()).await.unwrap();
            disk.fail(Some((at, done)));
            try_all(&mut world, &acts, again).await;
            disk.fail(None);
            let when = format!("seed {seed}, call {at} fails, done: {done}, again: {again}");
            world.recover();
            world.check(twin(), false, &when).await;
            world.close().await;
            let model = world.model;
            let mut world = World::start(twin(), dir.path(), cap(seed), model).await.unwrap();
            world.check(twin(), false, &format!("{when}, then a restart")).await;
            world.tidy(twin, &when).await;
        }
    }
}

/// The removal of a tag's directory was under way: nothing says any more that it is not durable.
#[tokio::test]
async fn a_removal_that_a_kill_broke_off_is_durable_once_it_is_told() {
    let acts = [
        Act::Pull { to: 4, image: 0, tag: 1, whole: true },
        Act::Evict { need: u64::MAX },
        Act::Forget { from: 4, tag: 1 },
    ];
    let whole = new_disk().await;
    let mut world = start(&whole, 0, Model::default()).await.unwrap();
    world.act(acts[0]).await.unwrap();
    whole.make(None);
    world.act(acts[1]).await.unwrap();
    for at in 0..whole.calls().1 {
        let disk = new_disk().await;
        let mut world = start(&disk, 0, Model::default()).await.unwrap();
        world.act(acts[0]).await.unwrap();
        disk.make(Some(Trouble::Death(at)));
        let _ = world.act(acts[1]).await;
        go_on(disk.after_kill(), 0, &acts[2..], world.model, &format!("kill at call {at}")).await;
    }
}
