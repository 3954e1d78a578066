//! Clients that push and delete, and remember what they were told.

mod kept;
mod requests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, RngCore};
use reqwest::Method;

use super::super::support::image::{Content, Image};
use super::super::support::repository::{Answer, Repository, ending};
use super::super::support::sha256;
use super::content::Library;
use super::{Gone, LEASE, Round, one_more};
use requests::{begin, delete, expect, push_blob, put, upload};

/// In the last, manifests without a tag go by themselves.
pub const REPOSITORIES: [&str; 3] = ["app0", "app1", "temp0"];
/// Each has so many tags of its own in each repository.
const TAGS: u64 = 3;
/// What was deleted is looked for as long as it is among the last of so many.
const DELETED: usize = 20;
/// Images without a tag, beyond which some are deleted.
const UNTAGGED: usize = 3;

/// A tag, or a manifest: its repository and reference.
type Name = (&'static str, String);
/// An image, or that there is none.
type Held = Option<Arc<Image>>;

pub struct Pusher {
    pub number: u64,
    library: Arc<Library>,
    made: u64,
    /// What each tag may lead to: one thing, once that was acknowledged.
    tags: BTreeMap<Name, Vec<Held>>,
    /// Acknowledged manifests that no tag is known to lead to, and that may not go by themselves.
    untagged: BTreeMap<Name, Arc<Image>>,
    deleted: VecDeque<Name>,
    /// Blobs that no manifest names, and when their push, or delete, began that was acknowledged.
    alone: Vec<(&'static str, String, Bytes, Instant)>,
    open: Option<Open>,
    pub killed: Option<Instant>,
    /// Acknowledged things that were found as they were.
    pub checked: u64,
}

/// An upload, and how much of it was acknowledged.
struct Open {
    repository: &'static str,
    location: String,
    bytes: Bytes,
    taken: usize,
    at: Instant,
}

impl Pusher {
    pub fn new(number: u64, library: Arc<Library>) -> Self {
        Self {
            number,
            library,
            made: 0,
            tags: BTreeMap::new(),
            untagged: BTreeMap::new(),
            deleted: VecDeque::new(),
            alone: Vec::new(),
            open: None,
            killed: None,
            checked: 0,
        }
    }

    /// Works until the kill.
    pub async fn run(mut self, round: Arc<Round>, mut random: StdRng) -> Self {
        self.alone.clear();
        self.open = None;
        while self.work(&round, &mut random).await.is_ok() {}
        self
    }

    async fn work(&mut self, round: &Round, random: &mut StdRng) -> Result<(), Gone> {
        let at = *REPOSITORIES.choose(random).unwrap();
        let repository = Repository::new(&round.url, at);
        match random.random_range(0..10) {
            0..5 => self.push(round, &repository, at, random).await,
            5 => self.delete_tag(round, &repository, at, random).await,
            6..8 => self.delete_image(round, &repository, at, random).await,
            8 => self.blob_alone(round, &repository, at, random).await,
            _ => self.chunked(round, &repository, at, random).await,
        }
    }

    fn fresh(&mut self, random: &mut StdRng) -> (String, Bytes) {
        self.made += 1;
        let mut bytes = vec![0; random.random_range(2..60_000)];
        random.fill_bytes(&mut bytes);
        (format!("p{} {} {}", self.number, self.made, random.next_u64()), bytes.into())
    }

    /// An image, under a tag of this pusher's.
    async fn push(
        &mut self,
        round: &Round,
        repository: &Repository,
        at: &'static str,
        random: &mut StdRng,
    ) -> Result<(), Gone> {
        let note = self.fresh(random).0;
        let image = Arc::new(self.library.some(random, &note));
        for blob in &image.blobs {
            push_blob(round, repository, blob, random).await?;
        }
        for manifest in &image.manifests {
            if !put(round, repository, &manifest.digest, manifest).await? {
                return Ok(());
            }
        }
        let name = (at, format!("p{}-{}", self.number, random.random_range(0..TAGS)));
        let before = self.tags.get(&name).cloned().unwrap_or_else(|| vec![None]);
        self.tags.entry(name.clone()).or_insert_with(|| vec![None]).push(Some(image.clone()));
        let taken = put(round, repository, &name.1, &image.index).await?;
        self.tags.insert(name, if taken { vec![Some(image)] } else { before.clone() });
        if taken {
            one_more(&round.count.pushes);
            before.into_iter().flatten().for_each(|image| self.untag(at, image));
        }
        Ok(())
    }

    fn untag(&mut self, at: &'static str, image: Arc<Image>) {
        if !at.starts_with("temp") {
            self.untagged.insert((at, image.digest().to_owned()), image);
        }
    }

    /// A tag that leads to an image.
    fn tagged(&self, at: &str, random: &mut StdRng) -> Option<(Name, Arc<Image>)> {
        let here = self.tags.iter().filter(|((of, _), _)| *of == at);
        let held = here.filter_map(|(name, held)| Some((name.clone(), held.first()?.clone()?)));
        held.choose(random)
    }

    async fn delete_tag(
        &mut self,
        round: &Round,
        repository: &Repository,
        at: &'static str,
        random: &mut StdRng,
    ) -> Result<(), Gone> {
        let Some((name, image)) = self.tagged(at, random) else { return Ok(()) };
        self.tags.insert(name.clone(), vec![Some(image.clone()), None]);
        delete(round, repository, &format!("manifests/{}", name.1)).await?;
        self.tags.insert(name, vec![None]);
        self.untag(at, image);
        Ok(())
    }

    /// With its tag, or where there are many, one without.
    async fn delete_image(
        &mut self,
        round: &Round,
        repository: &Repository,
        at: &'static str,
        random: &mut StdRng,
    ) -> Result<(), Gone> {
        let without = self.untagged.iter().filter(|((of, _), _)| *of == at);
        let image = if without.clone().count() > UNTAGGED {
            let (name, _) =
                without.choose(random).map(|(name, image)| (name.clone(), image.clone())).unwrap();
            // Until it is acknowledged, it is here or not.
            self.untagged.remove(&name).unwrap()
        } else {
            let Some((name, image)) = self.tagged(at, random) else { return Ok(()) };
            self.tags.insert(name, vec![Some(image.clone()), None]);
            image
        };
        delete(round, repository, &format!("manifests/{}", image.digest())).await?;
        let gone = |held: &Held| held.as_ref().is_some_and(|held| held.digest() == image.digest());
        self.tags.values_mut().filter(|held| held.iter().any(gone)).for_each(|held| *held = vec![None]);
        self.deleted.push_back((at, format!("manifests/{}", image.digest())));
        for manifest in &image.manifests {
            let path = format!("manifests/{}", manifest.digest);
            if at.starts_with("temp") {
                // An index held it until now.
                round.ask(repository.request(Method::DELETE, &path)).await?;
            } else {
                delete(round, repository, &path).await?;
            }
            self.deleted.push_back((at, path));
        }
        one_more(&round.count.deletes);
        self.deleted.drain(..self.deleted.len().saturating_sub(DELETED));
        Ok(())
    }

    async fn blob_alone(
        &mut self,
        round: &Round,
        repository: &Repository,
        at: &'static str,
        random: &mut StdRng,
    ) -> Result<(), Gone> {
        let (_, bytes) = self.fresh(random);
        let blob = Content::new("", bytes.clone());
        let begun = Instant::now();
        upload(round, repository, &blob, random).await?;
        if random.random_bool(0.3) {
            let path = format!("blobs/{}", blob.digest);
            let answer = round.ask(repository.request(Method::DELETE, &path)).await?;
            // Its lease may be over.
            assert!(answer.status == 202 || begun.elapsed() >= LEASE, "{path}: {answer:?}");
            self.deleted.push_back((at, path));
        } else {
            self.alone.push((at, blob.digest, bytes, begun));
        }
        Ok(())
    }

    /// An upload piece by piece, and with pauses.
    async fn chunked(
        &mut self,
        round: &Round,
        repository: &Repository,
        at: &'static str,
        random: &mut StdRng,
    ) -> Result<(), Gone> {
        let (_, bytes) = self.fresh(random);
        let location = begin(round, repository, "").await?;
        let mut open = Open { repository: at, location, bytes: bytes.clone(), taken: 0, at: Instant::now() };
        if random.random_bool(0.1) {
            // Left behind.
            return Ok(());
        }
        let begun = Instant::now();
        for part in [bytes.len() / 2, bytes.len()] {
            let answer = round.ask(open.piece(repository, part)).await?;
            open.location = open.taken(answer, part);
            self.open = Some(open.clone());
        }
        self.open = None;
        let digest = sha256(&bytes);
        let end = repository.request(Method::PUT, &ending(&open.location, &digest));
        expect(round.ask(end).await?, &[201], "the end of an upload");
        self.alone.push((at, digest, bytes, begun));
        Ok(())
    }
}

impl Clone for Open {
    fn clone(&self) -> Self {
        let Self { repository, taken, at, .. } = *self;
        Self { repository, taken, at, location: self.location.clone(), bytes: self.bytes.clone() }
    }
}

impl Open {
    /// What comes next, up to `end`.
    fn piece(&self, repository: &Repository, end: usize) -> reqwest::RequestBuilder {
        let patch = repository.request(Method::PATCH, &self.location);
        if end <= self.taken {
            return patch;
        }
        let patch = patch.header("Content-Range", format!("{}-{}", self.taken, end - 1));
        patch.body(self.bytes.slice(self.taken..end))
    }

    /// Where it goes on.
    fn taken(&mut self, answer: Answer, end: usize) -> String {
        let answer = expect(answer, &[202], "a piece");
        (self.taken, self.at) = (end, Instant::now());
        answer.header("location").unwrap().to_owned()
    }
}
