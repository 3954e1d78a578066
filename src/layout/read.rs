//! Reading: what images there are, what each consists of, and its bytes, which are what they are named.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::directory::{Directory, File};
use super::write::read_index;
use super::{BLOBS, CONTAINERD_NAME, Error, INDEX, MARK, REF_NAME, place};
use crate::oci::{Descriptor, Digest, MANIFEST_CEILING, Manifest, ManifestKind, MediaType};
use crate::tasks::lock;

/// Images of one layout.
const ENTRIES_MAX: usize = 20_000;
/// More than any image has.
const MANIFESTS_MAX: usize = 1000;
/// Indexes within indexes.
const DEPTH_MAX: usize = 8;
const MARK_MAX: u64 = 4096;
/// Bytes read at a time, and such pieces on their way.
const PIECE: usize = 256 * 1024;
const PIECES: usize = 4;

const UNPACK: &str = "an archive is to be unpacked first: `mkdir images && tar -C images -xf images.tar`";

/// A layout that is read.
pub struct Layout {
    path: PathBuf,
    blobs: Directory,
    pub entries: Vec<Entry>,
}

/// A manifest that stands in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub digest: Digest,
    pub size: u64,
    media_type: String,
    /// What the image is called, where it has a whole name.
    pub name: Option<String>,
    /// What it is called within the layout: a tag, mostly.
    pub label: Option<String>,
}

/// All that an image consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Each behind what it names.
    pub manifests: Vec<(Digest, Bytes)>,
    pub blobs: Vec<Part>,
    /// What it refers to.
    pub subject: Option<Digest>,
    /// Of an index: the platforms for which there are images, as texts.
    pub platforms: Vec<String>,
    /// Manifests of an index that the layout leaves out.
    pub left_out: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub digest: Digest,
    pub size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mark {
    image_layout_version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEntry {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    annotations: Option<BTreeMap<String, String>>,
}

impl Entry {
    fn read(raw: serde_json::Value) -> Result<Self, String> {
        let RawEntry { media_type, digest, size, annotations } =
            serde_json::from_value(raw).map_err(|error| error.to_string())?;
        let digest = digest.parse().map_err(|error| format!("`{}`: {error}", short(&digest)))?;
        let mut annotations = annotations.unwrap_or_default();
        let mut take = |key| annotations.remove(key).filter(|name| !name.is_empty());
        let (whole, label) = (take(CONTAINERD_NAME), take(REF_NAME));
        // A tag alone names no image.
        let name = whole.or_else(|| label.clone().filter(|label| label.contains(['/', ':'])));
        Ok(Self { digest, size, media_type, name, label })
    }
}

impl Layout {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let at = |name: &str| path.join(name);
        let home = Directory::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Error::new(path, "there is no such directory: is what it is on mounted?")
            }
            io::ErrorKind::NotADirectory => Error::new(path, format!("it is no directory; {UNPACK}")),
            _ => Error::new(path, error),
        })?;
        let mark = home.file(MARK).map_err(|error| Error::new(at(MARK), error))?;
        let Some((file, _)) = mark else {
            let why = format!("it is no OCI image layout, for no file `oci-layout` is in it; {UNPACK}");
            return Err(Error::new(path, why));
        };
        let mut text = Vec::new();
        file.take(MARK_MAX).read_to_end(&mut text).map_err(|error| Error::new(at(MARK), error))?;
        let mark: Mark = serde_json::from_slice(&text).map_err(|error| Error::new(at(MARK), error))?;
        if !mark.image_layout_version.starts_with("1.") {
            let why = format!("layouts of version {} cannot be read", short(&mark.image_layout_version));
            return Err(Error::new(at(MARK), why));
        }
        let Some((_, entries)) = read_index(path, &home)? else {
            return Err(Error::new(at(INDEX), "it is missing: was the layout written to its end?"));
        };
        if entries.len() > ENTRIES_MAX {
            return Err(Error::new(at(INDEX), format!("it names more than {ENTRIES_MAX} images")));
        }
        let entries = entries.into_iter().map(Entry::read).collect::<Result<_, _>>();
        let entries = entries.map_err(|why| Error::new(at(INDEX), why))?;
        let blobs = home.sub(BLOBS).map_err(|error| Error::new(at(BLOBS), error))?;
        let blobs = blobs.ok_or_else(|| Error::new(at(BLOBS), "it is missing"))?;
        Ok(Self { path: path.to_owned(), blobs, entries })
    }

    /// All that an image consists of. Its manifests are read and verified, its blobs are there and of the
    /// right size.
    pub fn image(&self, entry: &Entry) -> Result<Image, Error> {
        let kind = MediaType::parse(&entry.media_type);
        if let Some(kind) = kind.filter(|kind| !kind.is_manifest() && !kind.is_artifact()) {
            let why = format!("{} is of `{kind}`, which is no image's media type", entry.digest);
            return Err(Error::new(self.path.join(INDEX), why));
        }
        let mut walk = Walk { layout: self, image: Image::default(), seen: HashSet::new() };
        let subject = walk.manifest(&entry.digest, entry.size, &entry.media_type, 0)?;
        walk.image.platforms.dedup();
        Ok(Image { subject, ..walk.image })
    }

    fn path_of(&self, digest: &Digest) -> PathBuf {
        self.path.join(place(digest))
    }

    /// A blob's file, of this size. None: it is not there.
    fn file(&self, digest: &Digest, size: u64) -> Result<Option<File>, Error> {
        let wrong = |why: &dyn std::fmt::Display| Error::new(self.path_of(digest), why);
        let found = match self.blobs.sub(digest.algorithm().as_str()) {
            Ok(Some(blobs)) => blobs.file(&digest.hex()),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        match found.map_err(|error| wrong(&error))? {
            Some((_, held)) if held != size => {
                Err(wrong(&format!("it has {held} bytes, and {size} where it is named")))
            }
            found => Ok(found.map(|(file, _)| file)),
        }
    }

    fn manifest(&self, digest: &Digest, size: u64) -> Result<Option<Bytes>, Error> {
        let wrong = |why: &dyn std::fmt::Display| Error::new(self.path_of(digest), why);
        if size > MANIFEST_CEILING as u64 {
            return Err(wrong(&format!("a manifest of {size} bytes is not taken")));
        }
        let Some(file) = self.file(digest, size)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(size + 1).read_to_end(&mut bytes).map_err(|error| wrong(&error))?;
        match Digest::of(digest.algorithm(), &bytes) {
            actual if actual == *digest => Ok(Some(bytes.into())),
            actual => Err(wrong(&format!("its digest is {actual}"))),
        }
    }

    /// A blob's bytes as they are read, and what is found wrong with them.
    pub fn feed(&self, part: Part) -> Result<Feed, Error> {
        let file = self.file(&part.digest, part.size)?;
        let path = self.path_of(&part.digest);
        let file = file.ok_or_else(|| Error::new(&path, "it is missing"))?;
        let (pieces, taken) = mpsc::channel(PIECES);
        let wrong = Arc::new(Mutex::new(None));
        let told = wrong.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(why) = read(file, part, &pieces) {
                *lock(&told) = Some(Error::new(path, why));
                let _ = pieces.blocking_send(Err(io::ErrorKind::InvalidData.into()));
            }
        });
        let next = |mut taken: mpsc::Receiver<_>| async { Some((taken.recv().await?, taken)) };
        Ok(Feed { bytes: stream::unfold(taken, next).boxed(), wrong })
    }
}

/// A blob's bytes.
pub struct Feed {
    /// They end with an error where something is wrong.
    pub bytes: BoxStream<'static, io::Result<Bytes>>,
    wrong: Arc<Mutex<Option<Error>>>,
}

/// What was found wrong with a blob, as its bytes were read.
pub struct Findings(Arc<Mutex<Option<Error>>>);

impl Feed {
    pub fn split(self) -> (BoxStream<'static, io::Result<Bytes>>, Findings) {
        (self.bytes, Findings(self.wrong))
    }
}

impl Findings {
    pub fn take(&self) -> Option<Error> {
        lock(&self.0).take()
    }
}

/// Reads a file to its end, and says what is wrong with it before its last piece is given.
fn read(
    mut file: File,
    part: Part,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let (mut hasher, mut left) = (part.digest.algorithm().hasher(), part.size);
    let mut next = |size: usize| {
        let mut piece = vec![0; size];
        file.read_exact(&mut piece).map(|()| Bytes::from(piece))
    };
    while left > PIECE as u64 {
        let piece = next(PIECE)?;
        hasher.update(&piece);
        left -= piece.len() as u64;
        // Whoever took it may have what it wants.
        if pieces.blocking_send(Ok(piece)).is_err() {
            return Ok(());
        }
    }
    let last = next(usize::try_from(left)?)?;
    hasher.update(&last);
    match hasher.finish() {
        actual if actual == part.digest => {}
        actual => return Err(format!("its digest is {actual}").into()),
    }
    let _ = pieces.blocking_send(Ok(last));
    Ok(())
}

struct Walk<'a> {
    layout: &'a Layout,
    image: Image,
    seen: HashSet<Digest>,
}

impl Walk<'_> {
    /// Takes a manifest with all that it names, and tells what it refers to.
    fn manifest(
        &mut self,
        digest: &Digest,
        size: u64,
        media_type: &str,
        depth: usize,
    ) -> Result<Option<Digest>, Error> {
        let path = self.layout.path_of(digest);
        let wrong = |why: &dyn std::fmt::Display| Error::new(&path, why);
        if depth > DEPTH_MAX {
            return Err(wrong(&format!("it lies behind more than {DEPTH_MAX} indexes")));
        }
        if self.image.manifests.len() + depth >= MANIFESTS_MAX {
            return Err(wrong(&format!("it is of an image of more than {MANIFESTS_MAX} manifests")));
        }
        let Some(bytes) = self.layout.manifest(digest, size)? else { return Err(wrong(&"it is missing")) };
        let manifest = Manifest::parse(&bytes, None).map_err(|error| wrong(&error))?;
        if let Some(said) = MediaType::parse(media_type).filter(|said| *said != manifest.media_type) {
            return Err(wrong(&format!("it is `{}`, and `{said}` where it is named", manifest.media_type)));
        }
        match &manifest.kind {
            ManifestKind::Image { config, layers } => {
                self.blobs(std::iter::once(config).chain(layers))?;
            }
            ManifestKind::Artifact { blobs } => self.blobs(blobs)?,
            ManifestKind::Index { manifests } => self.index(&path, manifests, depth)?,
        }
        self.image.manifests.push((*digest, bytes));
        Ok(manifest.subject.map(|subject| subject.digest))
    }

    fn index(&mut self, path: &Path, children: &[Descriptor], depth: usize) -> Result<(), Error> {
        let mut present = 0;
        for child in children {
            let kind = MediaType::parse(&child.media_type);
            // Build caches are kept that way.
            if kind.is_some_and(|kind| !kind.is_manifest() && !kind.is_artifact()) {
                present += 1;
                self.blobs([child])?;
                continue;
            }
            if self.layout.file(&child.digest, child.size)?.is_none() {
                self.image.left_out += 1;
                continue;
            }
            present += 1;
            let platform = child.platform.as_ref().filter(|platform| !platform.is_unknown());
            self.image.platforms.extend(platform.map(ToString::to_string));
            if self.seen.insert(child.digest) {
                self.manifest(&child.digest, child.size, &child.media_type, depth + 1)?;
            }
        }
        if present == 0 && !children.is_empty() {
            return Err(Error::new(path, "none of the manifests that it names is in the layout"));
        }
        Ok(())
    }

    fn blobs<'d>(&mut self, blobs: impl IntoIterator<Item = &'d Descriptor>) -> Result<(), Error> {
        // What lies elsewhere by design need not be here.
        for Descriptor { digest, size, .. } in blobs.into_iter().filter(|blob| !blob.foreign) {
            if self.layout.file(digest, *size)?.is_none() {
                return Err(Error::new(self.layout.path_of(digest), "it is missing"));
            }
            if self.seen.insert(*digest) {
                self.image.blobs.push(Part { digest: *digest, size: *size });
            }
        }
        Ok(())
    }
}

/// For messages.
fn short(text: &str) -> String {
    text.chars().take(80).collect()
}
