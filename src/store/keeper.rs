//! A fill's link to the store: room, a file, and the commit.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::fill::{self, Fill};
use super::home::Staged;
use super::room::Reservation;
use super::{Error, Store};
use crate::tasks::lock;

/// What is small is known that soon: then nothing has to be passed on for want of that.
const SURVEY: Duration = Duration::from_millis(200);
/// Longest that a fill waits for others to be evicted: its readers wait with it.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Keeper {
    store: Arc<Store>,
    staged: Option<Staged>,
    reserved: Option<Reservation>,
}

impl Keeper {
    pub fn new(store: Arc<Store>, staged: Option<Staged>) -> Self {
        Self { store, staged, reserved: None }
    }

    async fn room(&self, more: u64) -> Option<Reservation> {
        match tokio::time::timeout(PATIENCE, self.store.room_for(more)).await {
            Ok(made) => made.inspect_err(|error| tracing::error!(%error, "no room can be made")).ok()?,
            Err(_) => None,
        }
    }
}

impl fill::Keeper for Keeper {
    fn admits(&mut self, size: u64) -> BoxFuture<'_, bool> {
        async move {
            let more = size.saturating_sub(self.reserved.as_ref().map_or(0, Reservation::bytes));
            if more == 0 {
                return true;
            }
            let Some(room) = self.room(more).await else { return false };
            Reservation::join(&mut self.reserved, room);
            true
        }
        .boxed()
    }

    fn wrote(&mut self, bytes: u64) {
        if let Some(reserved) = &mut self.reserved {
            reserved.wrote(bytes);
        }
    }

    fn delist(&self, fill: &Arc<Fill>) {
        let key = (fill.domain.clone(), fill.digest);
        let mut fills = lock(&self.store.fills);
        let Some(listed) = fills.get_mut(&key) else { return };
        listed.retain(|one| !Arc::ptr_eq(one, fill));
        if listed.is_empty() {
            fills.remove(&key);
        }
    }

    fn commit(&mut self, fill: &Arc<Fill>) {
        let Some(staged) = self.staged.take() else { return };
        let (store, file) = (&self.store, staged.file.clone());
        if let Err(error) = store.keep_fill(fill, staged, self.reserved.take()) {
            store.open.linger(&file);
            store.metrics.store_errors.inc();
            tracing::error!(digest = %fill.digest, %error, "a fetched blob could not be kept");
        }
    }

    fn discard(&mut self) {
        let Some(unused) = self.staged.take() else { return };
        self.store.open.linger(&unused.file);
    }
}

impl Store {
    /// Room for so many bytes, and others are evicted for it where they have to. None: there is not as much
    /// that may go.
    pub(super) async fn room_for(self: &Arc<Self>, bytes: u64) -> Result<Option<Reservation>, Error> {
        match self.reserve(bytes) {
            Some(room) => Ok(Some(room)),
            None => {
                self.known_or_large().await;
                self.change(move |store| store.make_room(bytes)).await
            }
        }
    }

    /// Waits a moment, once in all, for what is held to be looked through.
    async fn known_or_large(&self) {
        let moment = async { tokio::time::timeout(SURVEY, self.surveyed()).await.is_ok() };
        self.waited.get_or_init(|| moment).await;
    }

    /// Keeps what a fill has brought, and links it wherever it was shown to be.
    fn keep_fill(&self, fill: &Fill, mut staged: Staged, room: Option<Reservation>) -> Result<(), Error> {
        staged.sync()?;
        let _kept = self.leases.keep_data();
        self.leases.renew_data(&fill.digest);
        let file = staged.file.clone();
        self.counted(&fill.digest, fill.size(), |key| {
            // It counts as held by now, and is not to count twice.
            drop(room);
            self.home.commit(staged, key)
        })?;
        // Who read it on its way may go on for long.
        self.open.add(&fill.digest, &file);
        fill.link_all(|grant| self.link_fetched(grant, &fill.digest))
    }
}
