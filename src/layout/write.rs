//! Writing: blobs first, each under its name once it is verified and synced, then the index. What is there
//! already stays, so whatever ends this early is taken up where it stood.

use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value, json};

use super::directory::{Directory, File};
use super::{BLOBS, CONTAINERD_NAME, Error, INDEX, INDEX_MAX, MARK, REF_NAME, is_ref_name, place};
use crate::oci::{Digest, Hasher, MediaType};

/// What a file is called until it is whole.
const UNFINISHED: &str = ".forebay-unfinished-";

/// A layout that is added to. Nobody else adds to it meanwhile.
pub struct Writer {
    path: PathBuf,
    home: Arc<Directory>,
    blobs: Directory,
    index: Map<String, Value>,
    entries: Vec<Value>,
    count: AtomicU64,
}

/// A manifest that is to stand in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// Its whole name. None: it goes by what it refers to.
    pub name: Option<String>,
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
}

impl NewEntry {
    fn json(&self) -> Value {
        let mut entry =
            json!({ "mediaType": self.media_type, "digest": self.digest.to_string(), "size": self.size });
        if let Some(name) = &self.name {
            let mut annotations = json!({ CONTAINERD_NAME: name });
            if is_ref_name(name) {
                annotations[REF_NAME] = json!(name);
            }
            entry["annotations"] = annotations;
        }
        entry
    }

    /// Whether another entry goes by the same name, or by none and is the same.
    fn replaces(&self, other: &Value) -> bool {
        let named = |key: &str| other["annotations"][key].as_str();
        match self.name.as_deref() {
            Some(name) => named(CONTAINERD_NAME) == Some(name) || named(REF_NAME) == Some(name),
            None => {
                other["digest"] == self.digest.to_string()
                    && named(CONTAINERD_NAME).is_none()
                    && named(REF_NAME).is_none()
            }
        }
    }
}

impl Writer {
    /// Opens a layout, or makes one where there is nothing or an empty directory.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let at = |error: std::io::Error| Error::unwritten(path, error);
        let home = Directory::make_all(path).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
                Error::new(path, "it, or what it is to be in, is a file and no directory: name a directory")
            }
            _ => at(error),
        })?;
        if !home.lock().map_err(at)? {
            return Err(Error::new(path, "another export writes to it: let that end first"));
        }
        let mut is_empty = true;
        for name in home.names().map_err(at)? {
            match name.to_str().filter(|name| name.starts_with(UNFINISHED)) {
                Some(unfinished) => home.remove(unfinished).map_err(at)?,
                None => is_empty = false,
            }
        }
        if !is_empty && home.file(MARK).map_err(at)?.is_none() {
            let why = "it is neither empty nor an OCI image layout: name another directory";
            return Err(Error::new(path, why));
        }
        let index = read_index(path, &home)?;
        let (mut index, entries) = index.unwrap_or_default();
        index.insert("schemaVersion".to_owned(), json!(2));
        index.insert("mediaType".to_owned(), json!(MediaType::OCI_INDEX));
        let home = Arc::new(home);
        if is_empty {
            // First of all: what stands there without it is somebody else's to the next export.
            let marked = replace(&home, 0, MARK, br#"{"imageLayoutVersion":"1.0.0"}"#);
            marked.map_err(|error| Error::unwritten(path.join(MARK), error))?;
        }
        let blobs = home.make(BLOBS).map_err(|error| Error::unwritten(path.join(BLOBS), error))?;
        Ok(Self { path: path.to_owned(), home, blobs, index, entries, count: AtomicU64::new(1) })
    }

    /// Whether a blob is there, by its name and size.
    pub fn has(&self, digest: &Digest, size: u64) -> Result<bool, Error> {
        let found = match self.blobs.sub(digest.algorithm().as_str()) {
            Ok(Some(blobs)) => blobs.file(&digest.hex()),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let found = found.map_err(|error| Error::new(self.path.join(place(digest)), error))?;
        Ok(found.is_some_and(|(_, held)| held == size))
    }

    /// A blob that is to be there.
    pub fn blob(&self, digest: &Digest, size: u64) -> Result<BlobWriter, Error> {
        let path = self.path.join(place(digest));
        let open = || {
            let blobs = self.blobs.make(digest.algorithm().as_str())?;
            Ok((blobs, Unfinished::new(&self.home, self.count.fetch_add(1, Ordering::Relaxed))?))
        };
        let (blobs, unfinished) = open().map_err(|error: std::io::Error| Error::unwritten(&path, error))?;
        let hasher = digest.algorithm().hasher();
        Ok(BlobWriter { path, blobs, unfinished, hasher, digest: *digest, left: size })
    }

    /// Puts manifests that are there, with all that they name, into the index.
    pub fn add(&mut self, entries: &[NewEntry]) -> Result<(), Error> {
        for entry in entries {
            self.entries.retain(|other| !entry.replaces(other));
            self.entries.push(entry.json());
        }
        let mut index = self.index.clone();
        index.insert("manifests".to_owned(), Value::Array(self.entries.clone()));
        // Objects of texts and numbers: nothing in them can fail to be written.
        let text = serde_json::to_vec_pretty(&index).unwrap_or_default();
        if text.len() as u64 > INDEX_MAX {
            let why = format!("it would have more than {INDEX_MAX} bytes: begin another layout");
            return Err(Error::new(self.path.join(INDEX), why));
        }
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let replaced = replace(&self.home, number, INDEX, &text);
        replaced.map_err(|error| Error::unwritten(self.path.join(INDEX), error))
    }
}

fn replace(home: &Arc<Directory>, number: u64, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut unfinished = Unfinished::new(home, number)?;
    unfinished.file.write_all(bytes)?;
    unfinished.finish(home, name)
}

/// An index without its entries, and those.
type Index = (Map<String, Value>, Vec<Value>);

/// The index of a layout. None: there is none yet.
pub fn read_index(path: &Path, home: &Directory) -> Result<Option<Index>, Error> {
    let wrong = |why: &dyn std::fmt::Display| Error::new(path.join(INDEX), why);
    let Some((file, size)) = home.file(INDEX).map_err(|error| wrong(&error))? else { return Ok(None) };
    if size > INDEX_MAX {
        return Err(wrong(&format!("it has {size} bytes, and {INDEX_MAX} at most are read")));
    }
    let mut text = Vec::new();
    file.take(INDEX_MAX).read_to_end(&mut text).map_err(|error| wrong(&error))?;
    let mut index: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| wrong(&format!("it is no index: {error}")))?;
    match index.remove("manifests") {
        Some(Value::Array(entries)) => Ok(Some((index, entries))),
        None | Some(Value::Null) => Ok(Some((index, Vec::new()))),
        Some(_) => Err(wrong(&"it is no index: `manifests` is no list")),
    }
}

/// A blob on its way to its place.
pub struct BlobWriter {
    path: PathBuf,
    blobs: Directory,
    unfinished: Unfinished,
    hasher: Hasher,
    digest: Digest,
    left: u64,
}

impl BlobWriter {
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            return Err(Error::new(&self.path, "more came than was said"));
        };
        self.left = left;
        self.hasher.update(bytes);
        self.unfinished.file.write_all(bytes).map_err(|error| Error::unwritten(&self.path, error))
    }

    /// Gives it its name, once it is verified and durable.
    pub fn finish(self) -> Result<(), Error> {
        let Self { path, blobs, unfinished, hasher, digest, left } = self;
        if left > 0 {
            return Err(Error::new(path, format!("{left} bytes of it did not come")));
        }
        match hasher.finish() {
            actual if actual == digest => {}
            actual => {
                return Err(Error::new(path, format!("what came for it is {actual}, and was thrown away")));
            }
        }
        unfinished.finish(&blobs, &digest.hex()).map_err(|error| Error::unwritten(path, error))
    }
}

/// A file that goes unless it is finished.
struct Unfinished {
    home: Arc<Directory>,
    name: Option<String>,
    file: File,
}

impl Unfinished {
    fn new(home: &Arc<Directory>, number: u64) -> std::io::Result<Self> {
        let name = format!("{UNFINISHED}{number}");
        let file = home.create(&name)?;
        Ok(Self { home: home.clone(), name: Some(name), file })
    }

    fn finish(mut self, to: &Directory, name: &str) -> std::io::Result<()> {
        self.file.sync_all()?;
        if let Some(unfinished) = &self.name {
            self.home.rename(unfinished, to, name)?;
        }
        self.name = None;
        to.sync()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // The next export takes it away.
            let _ = self.home.remove(name);
        }
    }
}
