//! Images to pull: an index with one manifest for each architecture, layers of random files.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde_json::{Value, json};

use super::registry::Registry;
use super::sha256;

pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Statically linked, so that a container needs nothing beside it (Debian's `busybox-static`).
const BUSYBOX: &str = "/bin/busybox";

/// Bytes with their digest and media type.
#[derive(Clone, Debug)]
pub struct Content {
    pub media_type: &'static str,
    pub digest: String,
    pub bytes: Bytes,
}

impl Content {
    pub fn new(media_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { media_type, digest: sha256(&bytes), bytes }
    }

    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// An image for amd64 and arm64. The amd64 one runs: it has a shell and a few commands.
#[derive(Clone, Debug)]
pub struct Image {
    pub index: Content,
    /// amd64's, then arm64's.
    pub manifests: Vec<Content>,
    /// Layers and configurations of all architectures.
    pub blobs: Vec<Content>,
}

impl Image {
    /// For each architecture, `layers` layers that hold `size` bytes which do not compress, beside
    /// the one with the programs. The same arguments make the same image.
    pub fn random(seed: u64, layers: usize, size: usize) -> Self {
        let (mut manifests, mut blobs, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        for (number, architecture) in ["amd64", "arm64"].into_iter().enumerate() {
            let mut tars = vec![programs(architecture)];
            for layer in 0..layers {
                let seed = seed.wrapping_mul(1000) + (number * layers + layer) as u64;
                tars.push(tar_of(&[(&format!("data/{layer}"), &random_bytes(seed, size))], &[]));
            }
            let layers: Vec<Content> = tars.iter().map(|tar| Content::new(LAYER, gzip(tar))).collect();
            let config = configuration(architecture, &tars);
            let manifest = json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(),
                "layers": layers.iter().map(Content::descriptor).collect::<Vec<_>>(),
            });
            let manifest = Content::new(MANIFEST, manifest.to_string());
            let mut entry = manifest.descriptor();
            entry["platform"] = json!({ "architecture": architecture, "os": "linux" });
            entries.push(entry);
            blobs.push(config);
            blobs.extend(layers);
            manifests.push(manifest);
        }
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        Self { index: Content::new(INDEX, index.to_string()), manifests, blobs }
    }

    /// One manifest over layers that are bytes and no more: quick to make, for those who do not unpack it.
    pub fn plain(layers: &[Content], note: &str) -> Self {
        let config = Content::new(CONFIG, format!("{{\"note\":\"{note}\"}}"));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(),
            "layers": layers.iter().map(Content::descriptor).collect::<Vec<_>>(),
        });
        let index = Content::new(MANIFEST, manifest.to_string());
        Self { index, manifests: Vec::new(), blobs: [layers, &[config]].concat() }
    }

    /// What a pull of the tag resolves to.
    pub fn digest(&self) -> &str {
        &self.index.digest
    }

    /// Uploads all of it to `registry`.
    pub async fn push(&self, registry: &Registry, repository: &str, tag: &str) {
        for blob in &self.blobs {
            registry.push_blob(repository, blob.bytes.clone()).await;
        }
        for manifest in &self.manifests {
            registry.push_manifest(repository, &manifest.digest, manifest.media_type, &manifest.bytes).await;
        }
        registry.push_manifest(repository, tag, self.index.media_type, &self.index.bytes).await;
    }

    /// Writes an OCI image layout, in which `tag` names the index, to `directory`.
    pub fn write_layout(&self, directory: &Path, tag: &str) {
        let store = directory.join("blobs/sha256");
        std::fs::create_dir_all(&store).unwrap();
        for content in self.blobs.iter().chain(&self.manifests).chain([&self.index]) {
            std::fs::write(store.join(content.digest.trim_start_matches("sha256:")), &content.bytes).unwrap();
        }
        let mut entry = self.index.descriptor();
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
        std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

/// `size` bytes that look random and depend on `seed` alone.
pub fn random_bytes(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

fn configuration(architecture: &str, tars: &[Vec<u8>]) -> Content {
    let layers: Vec<String> = tars.iter().map(|tar| sha256(tar)).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": { "Cmd": ["/bin/echo", "hello from the rig"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": layers },
    });
    Content::new(CONFIG, config.to_string())
}

/// The layer with the programs; for a foreign architecture, bytes in their place.
fn programs(architecture: &str) -> Vec<u8> {
    let foreign = architecture != "amd64";
    let program = if foreign { random_bytes(1, 100_000) } else { busybox() };
    tar_of(&[("bin/busybox", &program)], &["bin/sh", "bin/echo", "bin/cat"])
}

fn busybox() -> Vec<u8> {
    std::fs::read(BUSYBOX)
        .unwrap_or_else(|e| panic!("{BUSYBOX}: {e}; tests/install.sh installs what the tests need"))
}

/// A tar of executable files, and of names that are links to the program beside them.
fn tar_of(files: &[(&str, &[u8])], links: &[&str]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o755);
    header.set_mtime(1_767_225_600);
    let parents: BTreeMap<_, _> = files.iter().filter_map(|(path, _)| path.rsplit_once('/')).collect();
    for parent in parents.keys() {
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        tar.append_data(&mut header, format!("{parent}/"), std::io::empty()).unwrap();
    }
    for (path, bytes) in files {
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, *bytes).unwrap();
    }
    for link in links {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, link, "busybox").unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}
