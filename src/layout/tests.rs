//! Layouts that are good, broken and bad.

use std::path::Path;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

fn sha256(bytes: &[u8]) -> Digest {
    Digest::sha256(bytes)
}

/// A layout that is written by hand.
struct Hand(TempDir);

impl Hand {
    fn new() -> Self {
        let hand = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(hand.0.path().join("blobs/sha256")).unwrap();
        hand.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        hand
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).unwrap();
    }

    /// A blob, and its descriptor.
    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = sha256(bytes);
        self.file(place(&digest).to_str().unwrap(), bytes);
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    }

    fn json(&self, media_type: &str, value: Value) -> Value {
        self.blob(media_type, value.to_string().as_bytes())
    }

    fn image(&self, note: &str) -> Value {
        let config = self.blob("application/vnd.oci.image.config.v1+json", b"{}");
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar", note.as_bytes());
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
        self.json("application/vnd.oci.image.manifest.v1+json", manifest)
    }

    fn index(&self, children: &[Value]) -> Value {
        self.json(MediaType::OCI_INDEX, json!({ "schemaVersion": 2, "manifests": children }))
    }

    fn list(&self, entries: &[Value]) {
        self.file("index.json", json!({ "schemaVersion": 2, "manifests": entries }).to_string().as_bytes());
    }

    fn open(&self) -> Result<Layout, Error> {
        Layout::open(self.path())
    }

    /// The first image.
    fn read(&self) -> Result<Image, Error> {
        let layout = self.open()?;
        layout.image(&layout.entries[0])
    }

    /// What is wrong, and with which file.
    fn wrong(&self, file: &str) -> String {
        let error = self.read().unwrap_err();
        assert_eq!(
            error.path,
            if file.is_empty() { self.path().to_owned() } else { self.path().join(file) },
            "{error}"
        );
        error.why
    }

    fn wrong_at(&self, descriptor: &Value) -> String {
        let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
        self.wrong(place(&digest).to_str().unwrap())
    }
}

use crate::oci::MediaType;

#[test]
fn names_are_those_that_readers_look_for() {
    for good in ["1.27", "docker.io/library/nginx:1.27", "localhost:5000/a:1", "a--b", "a@sha256:00", "a_b"] {
        assert!(is_ref_name(good), "{good}");
    }
    for bad in ["", "a/", "/a", "-a", "a__b", "a:", "a b", "a---b", "a,b", "ü"] {
        assert!(!is_ref_name(bad), "{bad}");
    }
}

#[test]
fn what_is_written_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/layout");
    let mut writer = Writer::open(&path).unwrap();
    assert!(Writer::open(&path).err().unwrap().why.contains("another export"), "locked");
    let put = |writer: &Writer, bytes: &[u8]| {
        let digest = sha256(bytes);
        let mut blob = writer.blob(&digest, bytes.len() as u64).unwrap();
        bytes.chunks(3).for_each(|piece| blob.write(piece).unwrap());
        blob.finish().unwrap();
        json!({ "mediaType": "application/x", "digest": digest.to_string(), "size": bytes.len() })
    };
    let (config, layer) = (put(&writer, b"{}"), put(&writer, b"a layer"));
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] }).to_string();
    put(&writer, manifest.as_bytes());
    let entry = |name: Option<&str>| NewEntry {
        name: name.map(str::to_owned),
        media_type: MediaType::OCI_MANIFEST.to_owned(),
        digest: sha256(manifest.as_bytes()),
        size: manifest.len() as u64,
    };
    let names = [Some("docker.io/library/a:1"), Some("docker.io/a__b/c:1"), None];
    for _ in 0..2 {
        writer.add(&names.map(entry)).unwrap();
    }
    drop(writer);
    let layout = Layout::open(&path).unwrap();
    let read: Vec<_> = layout.entries.iter().map(|entry| entry.name.as_deref()).collect();
    assert_eq!(read, names);
    assert_eq!(layout.entries[1].label, None, "readers would refuse it");
    let image = layout.image(&layout.entries[0]).unwrap();
    assert_eq!(image.manifests, [(sha256(manifest.as_bytes()), manifest.clone().into())]);
    assert_eq!(image.blobs.iter().map(|blob| blob.size).collect::<Vec<_>>(), [2, 7]);
    // What others have put there stays, whatever it is.
    let mut index: Value = serde_json::from_slice(&std::fs::read(path.join(INDEX)).unwrap()).unwrap();
    index["annotations"] = json!({ "a": "b" });
    index["manifests"][2]["annotations"] = json!({ REF_NAME: "theirs", "c": "d" });
    std::fs::write(path.join(INDEX), index.to_string()).unwrap();
    let mut writer = Writer::open(&path).unwrap();
    writer.add(&[entry(Some("theirs-too:1"))]).unwrap();
    let new: Value = serde_json::from_slice(&std::fs::read(path.join(INDEX)).unwrap()).unwrap();
    assert_eq!(new["annotations"], index["annotations"]);
    assert_eq!(new["manifests"][2], index["manifests"][2]);
    assert_eq!(new["manifests"].as_array().unwrap().len(), 4);
}

#[test]
fn what_is_not_what_it_is_named_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let writer = Writer::open(directory.path()).unwrap();
    let digest = sha256(b"right");
    let written = |size: u64, bytes: &[u8]| {
        let mut blob = writer.blob(&digest, size).unwrap();
        blob.write(bytes).and_then(|()| blob.finish()).unwrap_err().why
    };
    assert!(written(5, b"wrong").contains("what came for it is sha256:"));
    assert!(written(5, b"righ").contains("1 bytes of it did not come"));
    assert!(written(4, b"right").contains("more came"));
    assert!(!writer.has(&digest, 5).unwrap());
    let left: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn nothing_is_written_where_something_else_is() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("full")).unwrap();
    std::fs::write(at("full/precious"), "").unwrap();
    assert!(Writer::open(&at("full")).err().unwrap().why.contains("neither empty nor"));
    for no_directory in ["full/precious", "full/precious/below"] {
        assert!(Writer::open(&at(no_directory)).err().unwrap().why.contains("name a directory"));
    }
    assert!(Layout::open(&at("full/precious")).err().unwrap().why.contains("is to be unpacked first"));
    assert!(Layout::open(&at("none")).err().unwrap().why.contains("no such directory"));
    let full = Error::unwritten(at("full"), std::io::ErrorKind::StorageFull.into());
    assert!(full.why.contains("there is no room left: make some and run it again"));
    assert!(Writer::open(&at("full/precious")).is_err());
    // Links within it lead nowhere.
    let outside = at("outside");
    std::fs::create_dir_all(outside.join("sha256")).unwrap();
    for link in ["blobs", "blobs/sha256"] {
        let hand = tempfile::tempdir().unwrap();
        std::fs::write(hand.path().join(MARK), "{}").unwrap();
        let path = hand.path().join(link);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&outside, path).unwrap();
        let refused = Writer::open(hand.path()).and_then(|writer| writer.blob(&sha256(b"x"), 1).map(drop));
        assert!(refused.unwrap_err().why.contains("links are not followed"), "{link}");
    }
    assert!(std::fs::read_dir(outside.join("sha256")).unwrap().next().is_none());
}

#[test]
fn what_is_no_layout_is_told_so() {
    let hand = Hand::new();
    assert!(hand.wrong(INDEX).contains("missing"));
    for (text, part) in [
        (&b"{"[..], "no index"),
        (b"[]", "no index"),
        (br#"{"manifests":{}}"#, "no list"),
        (br#"{"manifests":[7]}"#, "invalid type"),
        (br#"{"manifests":[{"digest":"sha256:../../../etc/passwd","size":1}]}"#, "64 lower-case hex digits"),
        (br#"{"manifests":[{"digest":"/etc/passwd","size":1}]}"#, "a digest is"),
        (br#"{"manifests":[{"digest":"md5:00","size":1}]}"#, "not supported"),
        (br#"{"manifests":[{"digest":"sha256:00","size":-1}]}"#, "invalid value"),
        (&"[".repeat(100_000).into_bytes(), "no index"),
    ] {
        hand.file(INDEX, text);
        let why = hand.wrong(INDEX);
        assert!(why.contains(part), "{why}");
    }
    hand.file(INDEX, &vec![b' '; INDEX_MAX as usize + 1]);
    assert!(hand.wrong(INDEX).contains("at most are read"));
    hand.file(MARK, br#"{"imageLayoutVersion":"2.0.0"}"#);
    assert!(hand.wrong(MARK).contains("version 2.0.0"));
    hand.file(MARK, b"");
    hand.wrong(MARK);
    std::fs::remove_file(hand.path().join(MARK)).unwrap();
    assert!(hand.wrong("").contains("no OCI image layout"));
    assert!(Layout::open(Path::new("/nonexistent")).is_err());
}

#[test]
fn an_image_is_taken_whole_or_its_fault_is_named() {
    let hand = Hand::new();
    let image = hand.image("a layer");
    let broken = |change: &dyn Fn(&mut Value)| {
        let mut entry = image.clone();
        change(&mut entry);
        hand.list(&[entry]);
    };
    broken(&|_| {});
    assert_eq!(hand.read().unwrap().blobs.len(), 2);
    broken(&|entry| entry["size"] = json!(1));
    assert!(hand.wrong_at(&image).contains("bytes, and 1 where it is named"));
    broken(&|entry| entry["size"] = json!(u64::MAX));
    assert!(hand.wrong_at(&image).contains("is not taken"));
    broken(&|entry| entry["mediaType"] = json!(MediaType::OCI_INDEX));
    assert!(hand.wrong_at(&image).contains("where it is named"));
    broken(&|entry| entry["mediaType"] = json!("application/zip"));
    assert!(hand.wrong(INDEX).contains("`application/zip`"));
    broken(&|entry| entry["digest"] = json!(sha256(b"absent").to_string()));
    assert!(hand.wrong(place(&sha256(b"absent")).to_str().unwrap()).contains("missing"));
    let layer = place(&sha256(b"a layer"));
    let at = hand.path().join(&layer);
    broken(&|_| {});
    // Links and pipes are no blobs, whatever they lead to.
    std::fs::rename(&at, hand.path().join("moved")).unwrap();
    assert!(hand.wrong(layer.to_str().unwrap()).contains("missing"));
    std::os::unix::fs::symlink("../../moved", &at).unwrap();
    assert!(hand.wrong(layer.to_str().unwrap()).contains("links are not followed"));
    std::fs::remove_file(&at).unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(&at).status().unwrap();
    assert!(pipe.success() && hand.wrong(layer.to_str().unwrap()).contains("no regular file"));
    std::fs::remove_file(&at).unwrap();
    std::fs::create_dir(&at).unwrap();
    assert!(hand.wrong(layer.to_str().unwrap()).contains("no regular file"));
    // A manifest of other bytes, or that is none.
    let manifest: Digest = image["digest"].as_str().unwrap().parse().unwrap();
    let size = image["size"].as_u64().unwrap() as usize;
    hand.file(place(&manifest).to_str().unwrap(), &vec![b' '; size]);
    assert!(hand.wrong_at(&image).contains("its digest is"));
    let none = hand.json(MediaType::OCI_MANIFEST, json!({ "a": 1 }));
    hand.list(std::slice::from_ref(&none));
    hand.wrong_at(&none);
}

#[test]
fn indexes_are_taken_as_deep_as_any_image_has_them() {
    let hand = Hand::new();
    let mut image = hand.image("a layer");
    let (mut platform, absent) = (
        image.clone(),
        json!({
            "mediaType": MediaType::OCI_MANIFEST, "digest": sha256(b"absent").to_string(), "size": 7,
        }),
    );
    platform["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let cache = hand.blob("application/vnd.buildkit.cacheconfig.v0", b"cache");
    hand.list(&[hand.index(&[platform, absent.clone(), cache, image.clone()])]);
    let read = hand.read().unwrap();
    assert_eq!((read.manifests.len(), read.blobs.len(), read.left_out), (2, 3, 1));
    assert_eq!(read.platforms, ["linux/amd64"]);
    let index = hand.index(&[absent]);
    hand.list(std::slice::from_ref(&index));
    assert!(hand.wrong_at(&index).contains("none of the manifests"));
    for _ in 0..9 {
        image = hand.index(&[image]);
    }
    hand.list(&[image]);
    assert!(hand.read().unwrap_err().why.contains("behind more than 8 indexes"));
    let many: Vec<Value> = (0..1001).map(|number| hand.image(&number.to_string())).collect();
    hand.list(&[hand.index(&many)]);
    assert!(hand.read().unwrap_err().why.contains("more than 1000 manifests"));
}

#[tokio::test]
async fn bytes_are_fed_to_their_end_only_if_they_are_right() {
    let hand = Hand::new();
    hand.list(&[hand.image("a layer")]);
    let layout = hand.open().unwrap();
    for size in [0, 1, 256 << 10, (256 << 10) + 1, 3 << 20] {
        let bytes: Vec<u8> = (0..size).map(|at| at as u8).collect();
        hand.blob("", &bytes);
        let part = Part { digest: sha256(&bytes), size: size as u64 };
        let (fed, findings) = layout.feed(part).unwrap().split();
        let pieces: Vec<_> = fed.map(Result::unwrap).collect().await;
        assert_eq!(pieces.concat(), bytes);
        assert_eq!(findings.take(), None);
        if size == 0 {
            continue;
        }
        hand.file(place(&part.digest).to_str().unwrap(), &vec![7; size]);
        let (fed, findings) = layout.feed(part).unwrap().split();
        let pieces: Vec<_> = fed.collect().await;
        assert!(pieces.last().unwrap().is_err(), "no clean end");
        assert!(findings.take().unwrap().why.contains("its digest is"));
    }
    let absent = Part { digest: sha256(b"absent"), size: 6 };
    assert!(layout.feed(absent).err().unwrap().why.contains("missing"));
}

/// Whoever is killed on the way leaves what the next export takes up.
#[test]
fn nothing_stands_in_a_new_layout_before_its_mark() {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    let dir = tempfile::tempdir().unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let early = scope.spawn(|| {
            let mut early = 0;
            while !ended.load(SeqCst) {
                for number in 0..50 {
                    let home = dir.path().join(number.to_string());
                    early += usize::from(home.join(BLOBS).exists() && !home.join(MARK).exists());
                }
            }
            early
        });
        for number in 0..50 {
            Writer::open(&dir.path().join(number.to_string())).unwrap();
        }
        ended.store(true, SeqCst);
        assert_eq!(early.join().unwrap(), 0);
    });
}
