//! Uploads under way: one request at a time works on each, and none is kept for ever.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::{Mutex as TurnMutex, OwnedMutexGuard};

use super::error::{Interrupted, PushError};
use super::grant;
use crate::clock::Clock;
use crate::metrics::{Metrics, UploadEnd};
use crate::oci::{Digest, Repository, UploadId};
use crate::store::{self, Committed, HeldUpload, Store, Upload};
use crate::tasks::{Tasks, lock};

/// A client's body, piece by piece.
pub type Chunks = BoxStream<'static, Result<Bytes, Interrupted>>;

/// How long a request waits while another one works on its upload: a client that lost its
/// connection comes again before we know of the loss.
const TURN_WAIT: Duration = Duration::from_secs(3);
/// An upload that is not used for so long gives its open file back; it is taken up again from disk.
const DOZE_AFTER: Duration = Duration::from_secs(600);

/// All uploads that are known.
pub struct Uploads {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    clock: Clock,
    tasks: Tasks,
    sessions: Mutex<HashMap<UploadId, Arc<Session>>>,
    /// Those that ended while the disk was being looked through.
    ended: Mutex<Option<HashSet<UploadId>>>,
}

struct Session {
    stored_name: String,
    /// Locked while a request works on it. None: not in hand, but on disk.
    upload: Arc<TurnMutex<Option<Upload>>>,
    used: Mutex<Instant>,
}

/// A request's turn on an upload. Dropped, it lets the next one have it.
pub struct Turn {
    uploads: Arc<Uploads>,
    session: Arc<Session>,
    repository: Repository,
    id: UploadId,
    upload: OwnedMutexGuard<Option<Upload>>,
}

impl Uploads {
    pub fn new(store: Arc<Store>, metrics: Arc<Metrics>, clock: Clock, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { store, metrics, clock, tasks, sessions: Mutex::default(), ended: Mutex::default() })
    }

    fn session(&self, repository: &Repository) -> Arc<Session> {
        let (upload, used) = (Arc::default(), Mutex::new(self.clock.now()));
        Arc::new(Session { stored_name: repository.stored_name(), upload, used })
    }

    fn counted(&self, sessions: &HashMap<UploadId, Arc<Session>>) {
        self.metrics.uploads_open.set(i64::try_from(sessions.len()).unwrap_or(i64::MAX));
    }

    fn forget(&self, id: UploadId) {
        let mut sessions = lock(&self.sessions);
        sessions.remove(&id);
        if let Some(ended) = lock(&self.ended).as_mut() {
            ended.insert(id);
        }
        self.counted(&sessions);
    }

    /// Work that goes on to its end though the client has gone: half of it would be a leak.
    async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, PushError>> + Send + 'static,
    ) -> Result<T, PushError> {
        let ended = self.tasks.spawn("upload", work).await;
        ended.unwrap_or_else(|gone| Err(PushError::Disk(gone.to_string())))
    }

    /// A new upload, where fewer than `max` are unfinished.
    pub async fn begin(self: &Arc<Self>, repository: &Repository, max: usize) -> Result<Turn, PushError> {
        let (id, session) = (UploadId::random(), self.session(repository));
        let upload = session.upload.clone().lock_owned().await;
        {
            let mut sessions = lock(&self.sessions);
            if sessions.len() >= max {
                return Err(PushError::TooManyUploads(sessions.len()));
            }
            sessions.insert(id, session.clone());
            self.counted(&sessions);
        }
        let mut turn = Turn { uploads: self.clone(), session, repository: repository.clone(), id, upload };
        self.to_the_end(async move {
            match turn.uploads.store.start_upload(&grant(&turn.repository), id).await {
                Ok(upload) => *turn.upload = Some(upload),
                Err(error) => {
                    turn.uploads.forget(id);
                    return Err(error.into());
                }
            }
            Ok(turn)
        })
        .await
    }

    /// The turn on an upload that was begun in this repository.
    pub async fn resume(self: &Arc<Self>, repository: &Repository, id: UploadId) -> Result<Turn, PushError> {
        let unknown = || PushError::UploadUnknown { repository: repository.clone(), id: id.to_string() };
        let session = lock(&self.sessions).entry(id).or_insert_with(|| self.session(repository)).clone();
        if session.stored_name != repository.stored_name() {
            return Err(unknown());
        }
        let turn = tokio::time::timeout(TURN_WAIT, session.upload.clone().lock_owned()).await;
        let upload = turn.map_err(|_| PushError::UploadBusy(id))?;
        let listed = lock(&self.sessions).get(&id).is_some_and(|listed| Arc::ptr_eq(listed, &session));
        if !listed {
            return Err(unknown());
        }
        let mut turn = Turn { uploads: self.clone(), session, repository: repository.clone(), id, upload };
        if turn.upload.is_some() {
            return Ok(turn);
        }
        let unknown = unknown();
        self.to_the_end(async move {
            match turn.uploads.store.resume_upload(&grant(&turn.repository), id).await? {
                Some(upload) => *turn.upload = Some(upload),
                None => {
                    turn.uploads.forget(id);
                    return Err(unknown);
                }
            }
            turn.uploads.counted(&lock(&turn.uploads.sessions));
            Ok(turn)
        })
        .await
    }

    /// Removes what was not touched for longer than `age`, counts what a former process left, and
    /// gives back the files of those that are idle.
    pub async fn tend(self: &Arc<Self>, age: Duration) -> Result<(), store::Error> {
        let (began, now) = (self.clock.now(), self.clock.wall());
        *lock(&self.ended) = Some(HashSet::new());
        let mut held = Vec::new();
        for upload in self.store.run(Store::uploads).await? {
            let idle = now.duration_since(upload.modified).unwrap_or_default();
            if idle <= age || !self.purge(&upload).await? {
                held.push(upload);
            }
        }
        let on_disk: HashSet<UploadId> = held.iter().map(|upload| upload.id).collect();
        self.list(held);
        let listed: Vec<_> =
            lock(&self.sessions).iter().map(|(id, session)| (*id, session.clone())).collect();
        for (id, session) in listed {
            let used = *lock(&session.used);
            let Ok(mut upload) = session.upload.clone().try_lock_owned() else { continue };
            if began.saturating_duration_since(used) > DOZE_AFTER {
                *upload = None;
            }
            if upload.is_none() && used < began && !on_disk.contains(&id) {
                self.forget(id);
            }
        }
        Ok(())
    }

    /// Those that a former process left count too.
    fn list(&self, held: Vec<HeldUpload>) {
        let mut sessions = lock(&self.sessions);
        let ended = lock(&self.ended).take().unwrap_or_default();
        for upload in held.into_iter().filter(|upload| !ended.contains(&upload.id)) {
            sessions.entry(upload.id).or_insert_with(|| {
                let (hand, used) = (Arc::default(), Mutex::new(self.clock.now()));
                Arc::new(Session { stored_name: upload.stored_name, upload: hand, used })
            });
        }
        self.counted(&sessions);
    }

    /// False: a request is at work on it.
    async fn purge(&self, held: &HeldUpload) -> Result<bool, store::Error> {
        let (name, id) = (held.stored_name.clone(), held.id);
        let known = lock(&self.sessions).get(&id).cloned();
        let mut turn = None;
        if let Some(session) = known {
            let Ok(free) = session.upload.clone().try_lock_owned() else { return Ok(false) };
            turn = Some(free);
        }
        match turn.as_mut().and_then(|upload| upload.take()) {
            Some(upload) => upload.cancel().await?,
            None => self.store.run(move |store| store.drop_upload(&name, id)).await?,
        }
        self.forget(id);
        self.metrics.uploads.cell(UploadEnd::Purged).inc();
        tracing::info!(repository = held.stored_name, upload = %id, "an unfinished upload was removed for its age");
        Ok(true)
    }
}

impl Turn {
    pub fn id(&self) -> UploadId {
        self.id
    }

    /// Bytes that came so far.
    pub fn received(&self) -> u64 {
        self.upload.as_ref().map_or(0, Upload::received)
    }

    /// That a part beginning at `start` comes next.
    pub fn expect(&self, start: u64) -> Result<(), PushError> {
        match self.received() {
            received if received == start => Ok(()),
            received => Err(PushError::OutOfOrder { start, received }),
        }
    }

    /// Adds a body, `length` bytes where that was said. After an error the upload stays, with what came.
    pub async fn receive(self, chunks: Chunks, length: Option<u64>) -> Result<Self, PushError> {
        let uploads = self.uploads.clone();
        uploads.to_the_end(self.take_in(chunks, length)).await
    }

    /// All of a blob, of whose upload the client knows nothing: where it does not become one, the upload
    /// goes, though the client has gone before.
    pub async fn receive_whole(
        self,
        chunks: Chunks,
        length: Option<u64>,
        digest: Digest,
    ) -> Result<u64, PushError> {
        let uploads = self.uploads.clone();
        let (of, repository, id) = (uploads.clone(), self.repository.clone(), self.id);
        uploads
            .to_the_end(async move {
                let error = match self.take_in(chunks, length).await {
                    Ok(turn) => return turn.commit(digest).await,
                    Err(error) => error,
                };
                if let Ok(turn) = of.resume(&repository, id).await {
                    turn.end().await?;
                }
                Err(error)
            })
            .await
    }

    async fn take_in(mut self, mut chunks: Chunks, length: Option<u64>) -> Result<Self, PushError> {
        let mut got = 0;
        let mut interrupted = None;
        while let Some(chunk) = chunks.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(why) => {
                    interrupted = Some(why);
                    break;
                }
            };
            got += chunk.len() as u64;
            if length.is_some_and(|length| got > length) {
                break;
            }
            self.uploads.metrics.received_bytes.inc_by(chunk.len() as u64);
            self.work(async |upload| upload.write(chunk).await).await?;
        }
        self.work(Upload::flush).await?;
        *lock(&self.session.used) = self.uploads.clock.now();
        let received = self.received();
        match (interrupted, length) {
            (Some(why), _) => Err(PushError::Interrupted { why, received }),
            (None, Some(promised)) if promised != got => Err(PushError::Length { promised, got, received }),
            _ => Ok(self),
        }
    }

    /// What failed to be written is looked for on disk the next time.
    async fn work(
        &mut self,
        work: impl AsyncFnOnce(&mut Upload) -> Result<(), store::Error>,
    ) -> Result<(), PushError> {
        let Some(upload) = self.upload.as_mut() else { return Err(self.lost()) };
        let done = work(upload).await;
        if done.is_err() {
            *self.upload = None;
        }
        Ok(done?)
    }

    fn lost(&self) -> PushError {
        PushError::UploadUnknown { repository: self.repository.clone(), id: self.id.to_string() }
    }

    /// Makes it a blob of the repository, durably, and tells its size. Of another digest, it is thrown away.
    pub async fn finish(self, digest: Digest) -> Result<u64, PushError> {
        let uploads = self.uploads.clone();
        uploads.to_the_end(self.commit(digest)).await
    }

    async fn commit(mut self, wanted: Digest) -> Result<u64, PushError> {
        let upload = self.upload.take().ok_or_else(|| self.lost())?;
        let committed = upload.commit(&wanted).await?;
        self.uploads.forget(self.id);
        let ends = &self.uploads.metrics.uploads;
        match committed {
            Committed::Done { size } => {
                ends.cell(UploadEnd::Completed).inc();
                Ok(size)
            }
            Committed::Mismatch { actual } => {
                ends.cell(UploadEnd::Mismatched).inc();
                Err(PushError::BlobDigest { wanted: Box::new(wanted), actual: Box::new(actual) })
            }
        }
    }

    /// Throws it away.
    pub async fn cancel(self) -> Result<(), PushError> {
        let uploads = self.uploads.clone();
        uploads.to_the_end(self.end()).await
    }

    async fn end(mut self) -> Result<(), PushError> {
        let upload = self.upload.take().ok_or_else(|| self.lost())?;
        upload.cancel().await?;
        self.uploads.forget(self.id);
        self.uploads.metrics.uploads.cell(UploadEnd::Cancelled).inc();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use crate::oci::Owner;
    use futures_util::stream;

    #[tokio::test]
    async fn a_blob_by_one_request_leaves_nothing_where_its_client_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (metrics, clock, tasks) = (Arc::new(Metrics::new()), Clock::default(), Tasks::default());
        let options = crate::store::tests::options(dir.path());
        let store = Store::open(options, Arc::new(RealDisk), metrics.clone(), clock.clone(), tasks.clone());
        let uploads = Uploads::new(store.unwrap(), metrics.clone(), clock, tasks);
        let repository = Repository { owner: Owner::Hosted, name: "app".parse().unwrap() };
        let turn = uploads.begin(&repository, 1).await.unwrap();
        let (leave, left) = tokio::sync::oneshot::channel::<()>();
        let gone = async {
            let _ = left.await;
            Err(Interrupted::Broken("gone".to_owned()))
        };
        let chunks = stream::iter([Ok(Bytes::from_static(b"a"))]).chain(stream::once(gone)).boxed();
        // The request is dropped before its body ends.
        let request = turn.receive_whole(chunks, Some(9), Digest::sha256(b"a"));
        assert!(tokio::time::timeout(Duration::from_millis(1), request).await.is_err());
        assert_eq!(metrics.uploads_open.get(), 1);
        leave.send(()).unwrap();
        let ended = async {
            while metrics.uploads_open.get() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
        assert!(uploads.store.uploads().unwrap().is_empty());
    }
}
