//! Blobs that begin to be fetched while a client still reads its manifest.
//!
//! They are a guess, so they stand behind everything that is known to be wanted: while any blob flows for
//! a client that is not of the same image, they do not; before a client has asked for a layer of the image,
//! they bring their first bytes only; they take a place upstream only where others stay free, and give it up
//! for whoever waits for one; and where nobody comes, they end.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use tokio::sync::{Semaphore, watch};

use super::Mirror;
use super::manifest::Request;
use super::memory::Subject;
use super::source::BlobSource;
use super::standing::{Access, Standing};
use crate::answer::ManifestAnswer;
use crate::oci::{Digest, ManifestKind, Repository};
use crate::store::{Demand, Fill, SourceError, Start};
use crate::tasks::lock;
use crate::upstream::{Hops, Upstream};

/// Guesses under way at once, all images together: upstream's other places are for clients.
const BLOBS_AT_ONCE: usize = 6;
/// Images whose blobs are guessed at once.
const IMAGES_AT_ONCE: usize = 4;
/// Bytes of a blob that come before anybody has asked for a layer of its image.
const HEAD_START: u64 = 1 << 20;
/// How long a guess waits for its client, or for others to be done.
const WAIT: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(20);

/// The blobs that flow, and for whom.
pub struct Flows {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    images: Arc<Semaphore>,
    blobs: Semaphore,
}

#[derive(Default)]
struct State {
    /// Transfers that clients wait for.
    wanted: HashMap<Digest, usize>,
    guesses: HashMap<Digest, Arc<Guess>>,
}

/// An image whose blobs are guessed to be wanted.
struct Image {
    blobs: HashSet<Digest>,
    config: Digest,
    /// Whether a client has asked for a layer.
    is_pulled: AtomicBool,
}

/// A blob that is guessed to be wanted.
pub struct Guess {
    image: Arc<Image>,
    is_wanted: AtomicBool,
    /// Nobody came: it ends, and is not to be joined.
    is_over: AtomicBool,
}

/// A transfer that a client waits for, until dropped.
pub struct Wanted {
    flows: Arc<Flows>,
    digest: Digest,
}

impl Guess {
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        let mut state = lock(&self.flows.state);
        if let Some(count) = state.wanted.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                state.wanted.remove(&self.digest);
            }
        }
        drop(state);
        self.flows.changed.send_replace(());
    }
}

/// Takes a guess off the list when it ends.
struct Listed<'a>(&'a Flows, Digest);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).guesses.remove(&self.1);
        self.0.changed.send_replace(());
    }
}

/// The end of a guess.
#[derive(Debug, thiserror::Error)]
#[error("no client came for it")]
pub struct NobodyCame;

impl NobodyCame {
    pub fn into_failure(self) -> SourceError {
        SourceError { retry: false, refused: false, error: Arc::new(self) }
    }
}

impl Flows {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: watch::Sender::new(()),
            images: Arc::new(Semaphore::new(IMAGES_AT_ONCE)),
            blobs: Semaphore::new(BLOBS_AT_ONCE),
        })
    }

    /// A client waits for this transfer.
    pub fn wanted(self: &Arc<Self>, digest: &Digest) -> Wanted {
        *lock(&self.state).wanted.entry(*digest).or_default() += 1;
        self.changed.send_replace(());
        Wanted { flows: self.clone(), digest: *digest }
    }

    /// A client asks for the blob, or has joined its fill. False where a guess was just ending, which is
    /// not to be joined, and has ended now.
    pub async fn ask(&self, digest: &Digest) -> bool {
        match self.want(digest) {
            None => true,
            Some(over) => {
                self.ended(&over, digest).await;
                false
            }
        }
    }

    /// Says of a guess that it is wanted. Some: it is over.
    fn want(&self, digest: &Digest) -> Option<Arc<Guess>> {
        let state = lock(&self.state);
        let guess = state.guesses.get(digest)?.clone();
        guess.is_wanted.store(true, Ordering::Relaxed);
        if guess.image.config != *digest {
            guess.image.is_pulled.store(true, Ordering::Relaxed);
        }
        let is_over = guess.is_over.load(Ordering::Relaxed);
        drop(state);
        self.changed.send_replace(());
        is_over.then_some(guess)
    }

    /// Waits until this guess is off the list.
    async fn ended(&self, guess: &Arc<Guess>, digest: &Digest) {
        let is_listed = || lock(&self.state).guesses.get(digest).is_some_and(|one| Arc::ptr_eq(one, guess));
        let mut changed = self.changed.subscribe();
        while is_listed() {
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    /// Whether so many bytes of a guess may have come by now.
    fn may_flow(&self, guess: &Guess, taken: u64) -> bool {
        if guess.is_wanted() {
            return true;
        }
        let has_begun = guess.image.is_pulled.load(Ordering::Relaxed) || taken < HEAD_START;
        has_begun && lock(&self.state).wanted.keys().all(|digest| guess.image.blobs.contains(digest))
    }

    /// Waits until it may flow. Err: nobody came.
    async fn turn(&self, guess: &Guess, taken: u64) -> Result<(), NobodyCame> {
        let mut changed = self.changed.subscribe();
        let turn = async {
            while !self.may_flow(guess, taken) {
                // The sender lives as long as `self`.
                let _ = changed.changed().await;
            }
        };
        if tokio::time::timeout(WAIT, turn).await.is_ok() { Ok(()) } else { self.give_up(guess) }
    }

    /// Ends a guess, unless a client has come.
    pub fn give_up(&self, guess: &Guess) -> Result<(), NobodyCame> {
        // Under the lock, for who comes later is told that it is over.
        let _state = lock(&self.state);
        if guess.is_wanted() {
            return Ok(());
        }
        guess.is_over.store(true, Ordering::Relaxed);
        Err(NobodyCame)
    }

    /// What `work` comes to, unless somebody waits for a place upstream before a client has come.
    pub async fn unless_crowded<T>(
        &self,
        guess: &Guess,
        upstream: &Upstream,
        work: impl Future<Output = T>,
    ) -> Result<T, NobodyCame> {
        let crowded = async {
            upstream.fills_crowded().await;
            self.give_up(guess)
        };
        tokio::select! {
            biased;
            Err(over) = crowded, if !guess.is_wanted() => Err(over),
            done = work => Ok(done),
        }
    }
}

type Pieces = BoxStream<'static, Result<bytes::Bytes, SourceError>>;

/// A transfer that a client waits for, from its first byte to its last.
pub fn flowing(flows: &Arc<Flows>, digest: &Digest, pieces: Pieces) -> Pieces {
    let wanted = flows.wanted(digest);
    pieces
        .inspect(move |_| {
            let _held_as_long_as_the_stream = &wanted;
        })
        .boxed()
}

/// A transfer that is guessed to be wanted: not read while it has to wait, so that its connection yields.
pub fn yielding(
    flows: Arc<Flows>,
    guess: Arc<Guess>,
    upstream: Arc<Upstream>,
    digest: Digest,
    pieces: Pieces,
) -> Pieces {
    let begin = (pieces, flows, guess, upstream, None, 0);
    let pieces = stream::unfold(Some(begin), move |state| async move {
        let (mut pieces, flows, guess, upstream, mut wanted, taken) = state?;
        let next = async {
            flows.turn(&guess, taken).await?;
            if wanted.is_none() && guess.is_wanted() {
                wanted = Some(flows.wanted(&digest));
            }
            Ok(pieces.next().await)
        };
        let piece = match flows.unless_crowded(&guess, &upstream, next).await.flatten() {
            Ok(piece) => piece?,
            Err(over) => return Some((Err(over.into_failure()), None)),
        };
        let taken = taken + piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
        Some((piece, Some((pieces, flows, guess, upstream, wanted, taken))))
    });
    pieces.boxed()
}

impl Mirror {
    /// A client was given this manifest just now, for which upstream was asked: what it names is fetched.
    pub(super) fn prefetch(self: &Arc<Self>, request: &Request<'_>, answer: &ManifestAnswer) {
        let key = (request.repository.clone(), answer.digest);
        let Some(held) = self.memory.manifests.get(&key) else { return };
        let ManifestKind::Image { config, layers } = &held.manifest.kind else { return };
        let Ok(place) = self.flows.images.clone().try_acquire_owned() else { return };
        let order = std::iter::once(config).chain(layers.iter().filter(|layer| !layer.foreign));
        let order: Vec<Digest> = order.map(|blob| blob.digest).collect();
        let image = Arc::new(Image {
            blobs: order.iter().copied().collect(),
            config: config.digest,
            is_pulled: AtomicBool::new(false),
        });
        // It is fetched by the right that the client has shown.
        let (mirror, standing, hops) = (self.clone(), request.standing.clone(), request.asker.hops.clone());
        let on_behalf = Arc::new((request.repository.clone(), standing, hops));
        self.tasks.spawn("prefetch", async move {
            let guesses = order.into_iter().map(|digest| {
                let (mirror, on_behalf, image) = (mirror.clone(), on_behalf.clone(), image.clone());
                async move { mirror.guess(&on_behalf, digest, image).await }
            });
            let guesses: Vec<_> = guesses.collect();
            stream::iter(guesses).buffered(BLOBS_AT_ONCE).collect::<Vec<()>>().await;
            drop(place);
        });
    }

    async fn guess(
        self: &Arc<Self>,
        on_behalf: &(Repository, Arc<Standing>, Hops),
        digest: Digest,
        image: Arc<Image>,
    ) {
        let (repository, standing, hops) = on_behalf;
        // It is never closed.
        let Ok(_place) = self.flows.blobs.acquire().await else { return };
        if standing.is_open() && self.has_layer(repository, &digest).await {
            return;
        }
        let access = self.access(repository, standing, &Subject::Blob(digest), hops).await;
        let Ok(access) = access else { return };
        if self.store.fill(&access.grant, &digest, hops.depth()).is_some() {
            return;
        }
        let guess =
            Arc::new(Guess { image, is_wanted: AtomicBool::new(false), is_over: AtomicBool::new(false) });
        let _listed = {
            let mut state = lock(&self.flows.state);
            if state.guesses.contains_key(&digest) {
                return;
            }
            state.guesses.insert(digest, guess.clone());
            Listed(&self.flows, digest)
        };
        let Ok(source) = self.source(&digest, &access, Some(guess)) else { return };
        // Nobody reads it yet; it goes on by itself, as far as an abandoned fill does.
        if let Start::Reading(reader) =
            self.store.start_fill(&access.grant, &digest, Arc::new(source), Demand::Whole, true).await
        {
            let fill = reader.fill().clone();
            drop(reader);
            self.ended(&fill).await;
        }
    }

    /// Waits for the end of this fill, which is committed before it is taken off the list: another one may
    /// have taken its place by then.
    pub(super) async fn ended(&self, fill: &Arc<Fill>) {
        while self.store.lists(fill) {
            tokio::time::sleep(TICK).await;
        }
    }

    pub(super) fn source(
        &self,
        digest: &Digest,
        access: &Access,
        guess: Option<Arc<Guess>>,
    ) -> Result<BlobSource, crate::answer::Error> {
        let repository = &access.grant.repository;
        Ok(BlobSource {
            upstream: self.upstream_for(repository, &access.hops)?,
            depth: access.hops.depth(),
            identity: access.identity,
            name: repository.name.clone(),
            digest: *digest,
            asked: AtomicBool::new(false),
            flows: self.flows.clone(),
            mirrors: std::sync::Mutex::default(),
            guess,
        })
    }
}
