//! Finding out that the disk takes writes again, or stands still.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{Health, Trouble};
use crate::metrics::DiskState;
use crate::store::{Error, Store, layout};
use crate::tasks::lock;

/// How often calls are looked for that do not come back.
const TICK: Duration = Duration::from_secs(1);
/// How often room is looked for while all is well.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A quota may leave no room where the file system has some.
const AGAIN: Duration = Duration::from_millis(500);
/// Trouble that comes back sooner is the same one.
const RELAPSE: Duration = Duration::from_secs(60);
/// Bytes of a probe, so that a disk with room for a name alone counts as full.
const ROOM: usize = 1024 * 1024;

impl Store {
    /// Finds out when the disk stands still, and when it is well again, until shutdown. Without this,
    /// nothing is refused for the trouble of an earlier call.
    pub async fn watch_disk(self: Arc<Self>) {
        self.health.tended.store(true, Ordering::Relaxed);
        let stopping = self.tasks.stopping();
        tokio::select! {
            () = stopping => {}
            () = notice_stalls(&self.health) => {}
            () = self.probe_now_and_then() => {}
        }
    }

    /// Refuses what would write while the disk is in trouble. Where room was lacking and is there now, that
    /// is tried out at once: what is pulled next is to be kept.
    pub(in crate::store) async fn check_disk(self: &Arc<Self>) -> Result<(), Error> {
        let lacked_room = |trouble: &Trouble| matches!(trouble.state, DiskState::Full | DiskState::Inodes);
        if self.health.trouble().is_some_and(|trouble| lacked_room(&trouble)) && !self.lacks_room() {
            let mut probed = self.health.probed.lock().await;
            let is_due = probed.is_none_or(|last| last.elapsed() >= AGAIN);
            if is_due && self.health.trouble().is_some_and(|trouble| lacked_room(&trouble)) {
                if self.run(Self::probe).await.is_ok() {
                    self.health.leave_trouble();
                } else {
                    *probed = Some(Instant::now());
                }
            }
        }
        self.health.check().map_err(|trouble| self.not_written(trouble))
    }

    async fn probe_now_and_then(self: &Arc<Self>) {
        let mut trouble = self.health.trouble.subscribe();
        let (mut pause, mut well_since) = (FIRST_PAUSE, Instant::now());
        loop {
            let appears = trouble.wait_for(Option::is_some);
            let is_new = matches!(tokio::time::timeout(LOOK_EVERY, appears).await, Ok(Ok(_)));
            if !is_new {
                // What fills the disk may be somebody else.
                if self.run(|store| Ok(store.lacks_room())).await.unwrap_or(false) {
                    let _probing = self.health.probed.lock().await;
                    let _ = self.run(Self::probe).await;
                }
                continue;
            }
            if well_since.elapsed() >= RELAPSE {
                pause = FIRST_PAUSE;
            }
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                let _probing = self.health.probed.lock().await;
                if self.health.trouble().is_none() || self.run(Self::probe).await.is_ok() {
                    break;
                }
            }
            self.health.leave_trouble();
            well_since = Instant::now();
            // Each may fail again, which is told.
            let left = std::mem::take(&mut *lock(&self.health.left));
            let sweep = move |store: &Store| {
                store.home.sweep(left);
                Ok(())
            };
            let _ = self.run(sweep).await;
        }
    }

    /// Less than a probe needs is left for this process; the administrator's reserve is another matter.
    fn lacks_room(&self) -> bool {
        let space = self.home.space();
        space.is_ok_and(|space| {
            space.available < ROOM as u64 || space.files.is_some_and(|(_, free)| free == 0)
        })
    }

    fn probe(&self) -> Result<(), Error> {
        self.home.probe(layout::PROBE, ROOM)
    }
}

async fn notice_stalls(health: &Health) {
    loop {
        tokio::time::sleep(TICK).await;
        health.check_calls();
    }
}
