//! What pushers do, and what a store may then hold: a step that was acknowledged has happened, one
//! that failed may have, in whatever part. What else happens to a store is in [`act`].

pub mod act;
mod pull;
mod tree;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

use super::*;
use crate::oci::{Algorithm, UploadId};

/// The first ones are hosted.
const REPOSITORIES: [&str; 5] = ["a", "team/b", "library/m", "library/n", "org/x"];
const HOSTED: usize = 2;
const BLOBS: [usize; 3] = [0, 20, 1500];
const MANIFESTS: [(&[usize], &[&str]); 3] =
    [(&[0, 1], &["1", "latest"]), (&[1, 2], &["latest"]), (&[2], &[])];
const TAGS: [&str; 2] = ["1", "latest"];
/// Bytes given to an upload at a time.
const PIECE: usize = 700;

#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// `again`: though the repository has it. `resumed`: taken up a second time on the way.
    Upload {
        to: usize,
        blob: usize,
        long: bool,
        again: bool,
        resumed: bool,
    },
    Mount {
        from: usize,
        to: usize,
        blob: usize,
    },
    Push {
        to: usize,
        manifest: usize,
        long: bool,
    },
    Untag {
        from: usize,
        tag: usize,
    },
    Unlink {
        from: usize,
        blob: usize,
    },
    Remove {
        from: usize,
        manifest: usize,
        long: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Blob(usize, Digest),
    Manifest(usize, Digest),
    Tag(usize, &'static str),
}

/// What each item may be: `None` for missing.
#[derive(Clone, Debug, Default)]
pub struct Model {
    items: BTreeMap<Item, BTreeSet<Option<Digest>>>,
    /// Whether each is pinned.
    pins: BTreeMap<(usize, String), BTreeSet<bool>>,
    /// The disk has failed: of what was evicted a power loss may bring back a part.
    pub has_failed: bool,
}

/// What a step makes of an item; of a tag that is removed with its manifest, only where it points there.
struct Effect {
    item: Item,
    to: Option<Digest>,
    only_from: Option<Digest>,
}

fn grant(number: usize) -> Grant {
    let name = REPOSITORIES[number];
    let (owner, domain) = match number {
        0..HOSTED => (Owner::Hosted, "hosted"),
        // These two share what they fetch.
        2 | 3 => return hub(name),
        _ => (Owner::Upstream("ghcr.io".parse().unwrap()), "ghcr.io"),
    };
    Grant { repository: repository(owner, name), domain: domain.into(), visibility: Visibility::Public }
}

fn content(number: usize) -> Vec<u8> {
    (0..BLOBS[number]).map(|at| (at * 7 + number) as u8).collect()
}

fn descriptor(digest: &Digest, size: usize) -> String {
    format!(r#"{{"mediaType":"application/octet-stream","digest":"{digest}","size":{size}}}"#)
}

fn manifest(number: usize) -> Vec<u8> {
    let Some((blobs, _)) = MANIFESTS.get(number) else { return index() };
    let blobs: Vec<String> =
        blobs.iter().map(|blob| descriptor(&named(&content(*blob), false), BLOBS[*blob])).collect();
    let (config, layers, more) = (&blobs[0], blobs[1..].join(","), "x".repeat(600 * number));
    format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layers}],"more":"{more}"}}"#).into_bytes()
}

/// Of the first two manifests.
fn index() -> Vec<u8> {
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let images = [0, 1].map(|number| {
        let bytes = manifest(number);
        descriptor(&named(&bytes, false), bytes.len()).replace("application/octet-stream", kind)
    });
    format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, images.join(",")).into_bytes()
}

fn named(bytes: &[u8], long: bool) -> Digest {
    Digest::of(if long { Algorithm::Sha512 } else { Algorithm::Sha256 }, bytes)
}

/// One image, from its push to its end.
pub fn life() -> Vec<Step> {
    let upload = |blob| Step::Upload { to: 0, blob, long: false, again: false, resumed: blob == 1 };
    vec![
        upload(0),
        upload(1),
        Step::Push { to: 0, manifest: 0, long: false },
        Step::Mount { from: 0, to: 1, blob: 1 },
        Step::Untag { from: 0, tag: 0 },
        Step::Remove { from: 0, manifest: 0, long: false },
        Step::Unlink { from: 0, blob: 1 },
    ]
}

/// Some steps, as a client takes them: before a manifest its blobs.
pub fn steps(random: &mut StdRng) -> Vec<Step> {
    let mut steps = Vec::new();
    while steps.len() < 9 {
        steps.extend(some_steps(random));
    }
    steps
}

fn some_steps(random: &mut StdRng) -> Vec<Step> {
    let (to, from) = (random.random_range(0..2), random.random_range(0..2));
    let long = random.random_bool(0.2);
    let (blob, manifest) = (random.random_range(0..3), random.random_range(0..3));
    let (again, resumed) = (random.random(), random.random_bool(0.3));
    match random.random_range(0..10) {
        0 | 1 => vec![Step::Upload { to, blob, long, again, resumed }],
        2 => vec![Step::Mount { from, to: 1 - from, blob }],
        3 => vec![Step::Untag { from, tag: random.random_range(0..2) }],
        4 => vec![Step::Unlink { from, blob }],
        5 => vec![Step::Remove { from, manifest, long }],
        _ => {
            let blobs = MANIFESTS[manifest].0.iter();
            let uploads =
                blobs.map(|blob| Step::Upload { to, blob: *blob, long: false, again: false, resumed });
            uploads.chain([Step::Push { to, manifest, long }]).collect()
        }
    }
}

impl Step {
    /// Does it. True where it was acknowledged, so that its effects are promised.
    pub async fn run(self, store: &Arc<Store>, model: &Model) -> Result<bool, Error> {
        match self {
            Self::Upload { to, blob, long, again, resumed } => {
                let (grant, bytes) = (grant(to), content(blob));
                let digest = named(&bytes, long);
                let held = store.lease_blob(&grant.repository, &digest)?;
                if held.is_some() && !again {
                    return Ok(false);
                }
                upload(store, &grant, bytes, &digest, resumed).await.map(|()| true)
            }
            Self::Mount { from, to, blob } => {
                let digest = named(&content(blob), false);
                let mounted = store.mount(&grant(to), &grant(from).repository, &digest)?;
                assert!(mounted || model.may_be(Item::Blob(from, digest), None), "{self:?} found no source");
                Ok(mounted)
            }
            Self::Push { to, manifest: number, long } => {
                let bytes = Bytes::from(manifest(number));
                let (blobs, tags) = MANIFESTS[number];
                let pushed = NewManifest {
                    digest: named(&bytes, long),
                    bytes,
                    blobs: blobs.iter().map(|blob| named(&content(*blob), false)).collect(),
                    manifests: Vec::new(),
                    tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
                    immutable: Vec::new(),
                };
                match store.commit_manifest(&grant(to), &pushed)? {
                    ManifestCommit::Done => Ok(true),
                    ManifestCommit::Missing(missing) => {
                        for digest in missing {
                            assert!(model.may_be(Item::Blob(to, digest), None), "{self:?} lacks {digest}");
                        }
                        Ok(false)
                    }
                    ManifestCommit::Immutable(tag) => panic!("{tag} may be moved"),
                }
            }
            Self::Untag { from, tag } => {
                store.remove_tag(&grant(from).repository, &TAGS[tag].parse().unwrap()).map(|_| true)
            }
            Self::Unlink { from, blob } => {
                store.remove_layer(&grant(from).repository, &named(&content(blob), false)).map(|_| true)
            }
            Self::Remove { from, manifest: number, long } => {
                let digest = named(&manifest(number), long);
                let removal = store.remove_manifest(&grant(from).repository, &digest, &|_| false)?;
                Ok(matches!(removal, Removal::Removed { .. }))
            }
        }
    }

    fn effects(self) -> Vec<Effect> {
        let effect = |item, to| Effect { item, to, only_from: None };
        let present = |item: fn(usize, Digest) -> Item, to, digest| effect(item(to, digest), Some(digest));
        match self {
            Self::Upload { to, blob, long, .. } => {
                let names = [named(&content(blob), false), named(&content(blob), long)];
                names.map(|name| present(Item::Blob, to, name)).into()
            }
            Self::Mount { to, blob, .. } => vec![present(Item::Blob, to, named(&content(blob), false))],
            Self::Push { to, manifest: number, long } => {
                let (blobs, tags) = MANIFESTS[number];
                let bytes = manifest(number);
                let digest = named(&bytes, long);
                let blobs = blobs.iter().map(|blob| present(Item::Blob, to, named(&content(*blob), false)));
                let names = [named(&bytes, false), digest].map(|name| present(Item::Manifest, to, name));
                let tags = tags.iter().map(|tag| effect(Item::Tag(to, tag), Some(digest)));
                blobs.chain(names).chain(tags).collect()
            }
            Self::Untag { from, tag } => vec![effect(Item::Tag(from, TAGS[tag]), None)],
            Self::Unlink { from, blob } => {
                vec![effect(Item::Blob(from, named(&content(blob), false)), None)]
            }
            Self::Remove { from, manifest: number, long } => {
                let digest = named(&manifest(number), long);
                let tags = TAGS.iter().map(|tag| Item::Tag(from, tag));
                let untagged = tags.map(|item| Effect { item, to: None, only_from: Some(digest) });
                untagged.chain([effect(Item::Manifest(from, digest), None)]).collect()
            }
        }
    }
}

/// An upload of a client that takes it up once more where it failed on the way.
async fn upload(
    store: &Arc<Store>,
    grant: &Grant,
    bytes: Vec<u8>,
    digest: &Digest,
    mut resumed: bool,
) -> Result<(), Error> {
    let mut upload = store.start_upload(grant, UploadId::random()).await?;
    loop {
        let from = upload.received() as usize;
        if from == bytes.len() {
            break;
        }
        let piece = Bytes::copy_from_slice(&bytes[from..bytes.len().min(from + PIECE)]);
        upload.write(piece).await?;
        let flushed = upload.flush().await;
        if resumed || flushed.is_err() {
            resumed = false;
            let id = upload.id();
            drop(upload);
            let again = store.resume_upload(grant, id).await?;
            upload = again.ok_or_else(|| flushed.err().unwrap())?;
        }
    }
    let size = bytes.len() as u64;
    assert_eq!(upload.commit(digest).await?, Committed::Done { size });
    Ok(())
}

impl Model {
    /// The step was acknowledged, or (not `sure`) it failed.
    pub fn took(&mut self, step: Step, sure: bool) {
        for Effect { item, to, only_from } in step.effects() {
            match only_from {
                Some(from) if !self.may_be(item, Some(from)) => {}
                Some(from) => {
                    let may_be = self.items.entry(item).or_default();
                    if sure {
                        may_be.remove(&Some(from));
                    }
                    may_be.insert(to);
                }
                None => self.becomes(item, to, sure),
            }
        }
    }

    fn becomes(&mut self, item: Item, to: Option<Digest>, sure: bool) {
        let may_be = self.items.entry(item).or_insert_with(|| BTreeSet::from([None]));
        if sure {
            may_be.clear();
        }
        may_be.insert(to);
    }

    fn may_be(&self, item: Item, value: Option<Digest>) -> bool {
        self.items.get(&item).map_or(value.is_none(), |may_be| may_be.contains(&value))
    }

    /// What it is for sure. `None`: that is not known, or it is missing.
    fn is_surely(&self, item: Item) -> Option<Digest> {
        let may_be = self.items.get(&item).filter(|may_be| may_be.len() == 1)?;
        may_be.first().copied().flatten()
    }

    /// Compares a store with what it may hold, and all that it holds with its digests.
    pub async fn check(&self, store: &Arc<Store>, when: &str) {
        for (item, may_be) in &self.items {
            let held = match item {
                Item::Blob(of, digest) => held_blob(store, *of, digest).await,
                Item::Manifest(of, digest) => {
                    store.manifest(&grant(*of).repository, digest).unwrap().map(|_| *digest)
                }
                Item::Tag(of, tag) => {
                    let held = store.tag(&grant(*of).repository, &tag.parse().unwrap()).unwrap();
                    held.map(|held| held.digest)
                }
            };
            assert!(may_be.contains(&held), "{when}: {item:?} is {held:?}, of {may_be:?}");
        }
        for (of, name) in REPOSITORIES.iter().enumerate() {
            let repository = grant(of).repository;
            for digest in store.layers(&repository).unwrap() {
                held_blob(store, of, &digest).await;
            }
            for tag in store.tags(&repository).unwrap() {
                let digest = store.tag(&repository, &tag).unwrap().unwrap().digest;
                let held = store.manifest(&repository, &digest).unwrap();
                let may_lack = of >= HOSTED && self.has_failed;
                assert!(
                    held.is_some() || may_lack,
                    "{when}: {tag} of {name} points to {digest}, which is missing"
                );
            }
        }
        let pins = store.pins().unwrap();
        for ((of, reference), may_be) in &self.pins {
            let name = grant(*of).repository.stored_name();
            let is_pinned = pins.iter().any(|(at, pin)| *at == name && pin.to_string() == *reference);
            assert!(may_be.contains(&is_pinned), "{when}: the pin of {name} {reference} is {is_pinned}");
        }
    }
}

/// The blob's digest, where the repository has it; its bytes are read and compared.
async fn held_blob(store: &Arc<Store>, of: usize, digest: &Digest) -> Option<Digest> {
    let data = store.layer(&grant(of).repository, digest).unwrap()?;
    let bytes = pull::read_all(store.read(store.blob(&data).unwrap()?, None)).await.unwrap();
    assert_eq!(Digest::of(digest.algorithm(), &bytes), *digest, "torn");
    Some(*digest)
}
