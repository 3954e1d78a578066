//! Uploads: bytes on their way into a repository, taken up again after a break or a restart.
//!
//! They stand where `registry:2` keeps them. Nothing of them is promised before the commit, so what
//! a power loss leaves of them is only a beginning to go on from.

mod turns;

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use self::turns::Turn;
pub(super) use self::turns::Turns;
use super::fill::{Done, Sink};
use super::room::Reservation;
use super::{Error, Grant, Store, layout};
use crate::disk::File;
use crate::oci::{Algorithm, Digest, Repository, UploadId};

/// Room is made for a push by so many bytes at a time.
const STRIDE: u64 = 64 << 20;
/// Bytes read at a time where a second digest is wanted.
const PIECE: usize = 1024 * 1024;

/// An upload in hand; who has it is its only writer. Dropped without a commit it stays on disk, with
/// all that it was given.
pub struct Upload {
    store: Arc<Store>,
    grant: Grant,
    id: UploadId,
    file: Arc<dyn File>,
    sink: Sink,
    received: u64,
    /// Room for what comes, as far as there is some, and how much had come when it was sought last.
    room: Option<Reservation>,
    sought: u64,
    /// The disk failed, so what came after is not in the file.
    broken: bool,
    turn: Option<Turn>,
}

/// What came of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committed {
    /// `size` bytes are the repository's.
    Done { size: u64 },
    /// The bytes have another digest, and are gone.
    Mismatch { actual: Digest },
}

/// An upload as it stands on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldUpload {
    pub stored_name: String,
    pub id: UploadId,
    /// When something of it came last.
    pub modified: SystemTime,
}

impl Store {
    /// Begins an upload into the grant's repository.
    pub async fn start_upload(self: &Arc<Self>, grant: &Grant, id: UploadId) -> Result<Upload, Error> {
        let turn = self.turn(id).await?;
        let of = grant.clone();
        let create = move |store: &Store| {
            store.ensure_own(&of)?;
            let name = of.repository.stored_name();
            // A name that fails to sync can be taken back only while nothing is in the directory.
            store.home.make_dir(&layout::repository(&of.repository))?;
            let started = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
            let key = layout::upload_started(&name, id);
            let written = store.home.create(&key)?.write_at(&[IoSlice::new(started.as_bytes())], 0);
            written.map_err(|error| store.failed("write", &key, error))?;
            store.home.create(&layout::upload_data(&name, id))
        };
        let file = self.write(create).await?;
        Ok(Upload::new(self.clone(), grant.clone(), id, file, turn))
    }

    /// Takes up what is on disk, after a restart or a request that broke off, and hashes it again.
    /// `None`: the repository has no such upload.
    pub async fn resume_upload(
        self: &Arc<Self>,
        grant: &Grant,
        id: UploadId,
    ) -> Result<Option<Upload>, Error> {
        let turn = self.turn(id).await?;
        let of = grant.clone();
        let key = layout::upload_data(&of.repository.stored_name(), id);
        let data = key.clone();
        let open = move |store: &Store| {
            store.ensure_own(&of)?;
            let Some(file) = store.home.reopen(&data)? else { return Ok(None) };
            let size = file.size().map_err(|error| store.failed("measure", &data, error))?;
            Ok(Some((file, size)))
        };
        let Some((file, size)) = self.write(open).await? else { return Ok(None) };
        let mut upload = Upload::new(self.clone(), grant.clone(), id, file, turn);
        upload.sink.absorb(size).await.map_err(|error| self.failed("read", &key, error))?;
        (upload.received, upload.sought) = (size, size);
        Ok(Some(upload))
    }

    /// One upload's turn. What it was given last may never come to the disk.
    async fn turn(&self, id: UploadId) -> Result<Turn, Error> {
        let turn = self.health.unless_stalled(self.uploads.take(id)).await;
        turn.map_err(|stalled| self.not_written(stalled))
    }

    /// All unfinished uploads of all repositories. Blocks.
    pub fn uploads(&self) -> Result<Vec<HeldUpload>, Error> {
        let mut found = Vec::new();
        for stored_name in self.stored_names(&["_uploads"])? {
            for entry in self.home.list(&layout::uploads(&stored_name))?.iter().filter(|entry| entry.is_dir) {
                let Some(id) = entry.name.to_str().and_then(|name| name.parse().ok()) else { continue };
                let (dir, data) = (layout::upload(&stored_name, id), layout::upload_data(&stored_name, id));
                let times = [self.home.stat(&dir)?, self.home.stat(&data)?];
                if let Some(modified) = times.iter().flatten().map(|stat| stat.modified).max() {
                    found.push(HeldUpload { stored_name: stored_name.clone(), id, modified });
                }
            }
        }
        Ok(found)
    }

    /// Removes an upload that nobody has in hand. Blocks.
    pub fn drop_upload(&self, stored_name: &str, id: UploadId) -> Result<(), Error> {
        if stored_name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "this is no repository");
            return Err(self.failed("remove", stored_name, error));
        }
        self.home.delete_tree(&layout::upload(stored_name, id))
    }

    /// Makes the file of a finished upload the repository's blob. `data`: the sha256 of its bytes.
    fn keep_upload(&self, upload: &mut Upload, digest: &Digest, data: &Digest) -> Result<(), Error> {
        let (room, from, key) = (upload.room.take(), upload.key(), layout::data(data));
        let (grant, size) = (&upload.grant, upload.received);
        // May take long, so before there is a lock. The same bytes may be there already; only those
        // that this process has made durable itself are as good as the ones just hashed.
        let mut synced = false;
        if !self.home.is_settled(&key, size)? {
            self.home.sync(&from, &*upload.file)?;
            synced = true;
        }
        let repository = &grant.repository;
        let _links = self.leases.repository(repository);
        let _kept = self.leases.keep_data();
        self.leases.renew(repository, digest);
        self.leases.renew(repository, data);
        self.ensure_claimed(grant)?;
        if !self.home.is_settled(&key, size)? {
            if !synced {
                self.home.sync(&from, &*upload.file)?;
            }
            self.counted(data, size, |key| {
                drop(room);
                self.home.publish(&from, key)
            })?;
        }
        self.link_pushed(repository, digest, data)
    }

    fn failed(&self, operation: &'static str, key: &str, error: io::Error) -> Error {
        Error { operation, path: self.options.data.join(key), source: Arc::new(error) }
    }
}

impl Upload {
    fn new(store: Arc<Store>, grant: Grant, id: UploadId, file: Arc<dyn File>, turn: Turn) -> Self {
        let sink = Sink::new(Algorithm::Sha256.hasher(), Some(file.clone()), store.health.clone());
        Self {
            store,
            grant,
            id,
            file,
            sink,
            received: 0,
            room: None,
            sought: 0,
            broken: false,
            turn: Some(turn),
        }
    }

    pub fn id(&self) -> UploadId {
        self.id
    }

    pub fn repository(&self) -> &Repository {
        &self.grant.repository
    }

    /// Bytes taken so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    fn key(&self) -> String {
        layout::upload_data(&self.grant.repository.stored_name(), self.id)
    }

    /// Takes a piece behind what has come. Waits while the disk is busy with much.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), Error> {
        self.check()?;
        while !self.sink.has_room() {
            self.step().await?;
        }
        self.received += chunk.len() as u64;
        self.sink.push(chunk);
        self.make_room().await;
        Ok(())
    }

    /// Has what is mirrored give way to what is pushed. Where there is no more of that, a push is not
    /// refused for it: the disk has the last word.
    async fn make_room(&mut self) {
        if self.received < self.sought + STRIDE {
            return;
        }
        self.sought = self.received;
        let room = self.store.room_for(STRIDE).await;
        let room = room.inspect_err(|error| tracing::warn!(%error, "no room can be made for a push"));
        if let Ok(Some(room)) = room {
            Reservation::join(&mut self.room, room);
        }
    }

    /// Waits until everything received is in the file.
    pub async fn flush(&mut self) -> Result<(), Error> {
        self.check()?;
        while self.sink.hurry() {
            self.step().await?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        if !self.broken {
            return Ok(());
        }
        let error = io::Error::other("a write before this one failed: take the upload up again");
        Err(self.store.failed("go on with", &self.key(), error))
    }

    async fn step(&mut self) -> Result<(), Error> {
        let error = match self.sink.done().await {
            Some(Done { disk_error: None, bytes, .. }) => {
                self.store.metrics.store_written_bytes.inc_by(bytes);
                if let Some(room) = &mut self.room {
                    room.wrote(bytes);
                }
                return Ok(());
            }
            Some(Done { disk_error: Some(error), .. }) => error,
            None => io::Error::other("the thread that wrote it was lost"),
        };
        self.broken = true;
        self.store.metrics.store_errors.inc();
        Err(self.store.failed("write", &self.key(), error))
    }

    /// Makes the upload the repository's blob, if its bytes have this digest. When this returns
    /// `Done`, data, names and directories are synced. The bytes are stored under their sha256, which
    /// the links name. In whatever way it ends, but for a write that failed, the upload is gone.
    pub async fn commit(mut self, digest: &Digest) -> Result<Committed, Error> {
        self.flush().await?;
        let (store, digest) = (self.store.clone(), *digest);
        // Goes on where the caller does not wait for the end.
        store.write(move |store| self.finish(store, &digest)).await
    }

    fn finish(&mut self, store: &Store, digest: &Digest) -> Result<Committed, Error> {
        let key = self.key();
        let lost = || store.failed("hash", &key, io::Error::other("the hash was lost"));
        let data = self.sink.digest().ok_or_else(lost)?;
        let actual = match digest.algorithm() {
            Algorithm::Sha256 => data,
            Algorithm::Sha512 => self.hash(Algorithm::Sha512).map_err(|e| store.failed("read", &key, e))?,
        };
        let kept = if actual == *digest { store.keep_upload(self, digest, &data) } else { Ok(()) };
        // After a failure too: a file that could not be synced once is never to be trusted.
        if let Err(error) = store.drop_upload(&self.grant.repository.stored_name(), self.id) {
            tracing::warn!(upload = %self.id, %error, "a finished upload is left behind");
        }
        kept?;
        if actual != *digest {
            return Ok(Committed::Mismatch { actual });
        }
        Ok(Committed::Done { size: self.received })
    }

    /// Another digest of all that is in the file.
    fn hash(&self, algorithm: Algorithm) -> io::Result<Digest> {
        let (mut hasher, mut buffer, mut at) = (algorithm.hasher(), vec![0; PIECE], 0);
        while at < self.received {
            let want = PIECE.min(usize::try_from(self.received - at).unwrap_or(PIECE));
            match self.file.read_at(&mut buffer[..want], at)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    hasher.update(&buffer[..count]);
                    at += count as u64;
                }
            }
        }
        Ok(hasher.finish())
    }

    /// Removes the upload.
    pub async fn cancel(mut self) -> Result<(), Error> {
        // What is being written ends first; whether it could be does not matter any more, and the rest is not.
        self.sink.give_up_file();
        while self.sink.hurry() && self.sink.done().await.is_some() {}
        let store = self.store.clone();
        let name = self.grant.repository.stored_name();
        store.change(move |store| store.drop_upload(&name, self.id)).await
    }
}

impl Drop for Upload {
    /// A request that breaks off leaves what it brought: that goes to the disk before the next turn.
    fn drop(&mut self) {
        if tokio::runtime::Handle::try_current().is_err() || !(self.sink.hurry() || self.sink.is_stuck()) {
            return;
        }
        let other = Sink::new(Algorithm::Sha256.hasher(), None, self.store.health.clone());
        let mut sink = std::mem::replace(&mut self.sink, other);
        let (turn, metrics) = (self.turn.take(), self.store.metrics.clone());
        let stopping = self.store.tasks.stopping();
        self.store.tasks.spawn("upload", async move {
            while sink.hurry()
                && let Some(done) = sink.done().await
            {
                match done.disk_error {
                    None => metrics.store_written_bytes.inc_by(done.bytes),
                    Some(_) => metrics.store_errors.inc(),
                }
            }
            // What comes to the file late would be in the way of what comes next.
            tokio::select! {
                () = sink.unstuck() => {}
                () = stopping => {}
            }
            drop(turn);
        });
    }
}

#[cfg(test)]
mod tests;
