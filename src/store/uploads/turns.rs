//! Who has an upload in hand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::oci::UploadId;
use crate::tasks::lock;

/// Lets each upload be in one hand only: the next waits until the one before has written all.
#[derive(Default)]
pub struct Turns(Mutex<HashMap<UploadId, Weak<AsyncMutex<()>>>>);

pub type Turn = OwnedMutexGuard<()>;

impl Turns {
    pub async fn take(&self, id: UploadId) -> Turn {
        let gate = {
            let mut gates = lock(&self.0);
            gates.retain(|_, gate| gate.strong_count() > 0);
            let known = gates.get(&id).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let gate = Arc::default();
                gates.insert(id, Arc::downgrade(&gate));
                gate
            })
        };
        gate.lock_owned().await
    }
}
