//! Trees of small images, as upstream's.

use std::path::Path;

use sha2::{Digest, Sha256};

/// What the images of a tree are like, and how they lie in repositories.
#[derive(Clone, Copy)]
pub struct Shape {
    pub blobs_of_image: usize,
    pub images_of_repository: usize,
    /// Bytes of an image's last blob; the others are as small as can be.
    pub largest: usize,
}

/// An image: always the same of one number.
pub struct Image {
    pub repository: String,
    pub tag: String,
    blobs: Vec<Vec<u8>>,
    manifest: Vec<u8>,
}

impl Shape {
    /// Blobs and manifests of so many images.
    pub fn entries(self, images: usize) -> usize {
        images * (self.blobs_of_image + 1)
    }

    pub fn image(self, number: usize) -> Image {
        let blobs: Vec<Vec<u8>> = (0..self.blobs_of_image)
            .map(|blob| {
                let mut bytes = format!("blob {number} {blob}").into_bytes();
                if blob + 1 == self.blobs_of_image {
                    bytes.resize(bytes.len().max(self.largest), b'.');
                }
                bytes
            })
            .collect();
        let entries: Vec<String> = blobs
            .iter()
            .map(|blob| {
                let (digest, size) = (hex(blob), blob.len());
                format!(
                    r#"{{"mediaType":"application/octet-stream","digest":"sha256:{digest}","size":{size}}}"#
                )
            })
            .collect();
        let media = "application/vnd.oci.image.manifest.v1+json";
        let (config, layers) = (&entries[0], entries[1..].join(","));
        let manifest =
            format!(r#"{{"schemaVersion":2,"mediaType":"{media}","config":{config},"layers":[{layers}]}}"#);
        let (repository, tag) = (number / self.images_of_repository, number % self.images_of_repository);
        let manifest = manifest.into_bytes();
        Image { repository: format!("r{repository}"), tag: format!("t{tag}"), blobs, manifest }
    }

    /// Makes the tree, or what is missing of it. How many blobs and manifests are in it.
    pub fn make(self, data: &Path, images: usize) -> usize {
        for number in 0..images {
            self.image(number).write(data);
        }
        self.entries(images)
    }
}

impl Image {
    pub fn tag_path(&self) -> String {
        format!("/v2/library/{}/manifests/{}", self.repository, self.tag)
    }

    pub fn manifest_path(&self) -> String {
        format!("/v2/library/{}/manifests/sha256:{}", self.repository, hex(&self.manifest))
    }

    pub fn largest_path(&self) -> String {
        let largest = self.blobs.last().map(|blob| hex(blob)).unwrap_or_default();
        format!("/v2/library/{}/blobs/sha256:{largest}", self.repository)
    }

    fn write(&self, data: &Path) {
        let root = data.join("docker/registry/v2");
        let place = root.join("repositories/library").join(&self.repository);
        let current = place.join("_manifests/tags").join(&self.tag).join("current/link");
        // It is written last.
        if current.exists() {
            return;
        }
        for blob in &self.blobs {
            link(&place.join("_layers/sha256"), &put(&root, blob));
        }
        let digest = put(&root, &self.manifest);
        link(&place.join("_manifests/revisions/sha256"), &digest);
        let own = data.join("forebay/origins/library").join(&self.repository).join("_origin");
        if !own.exists() {
            write(&own, br#"{"owner":"docker.io","visibility":"public"}"#);
        }
        write(&current, format!("sha256:{digest}").as_bytes());
    }
}

fn hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn put(root: &Path, bytes: &[u8]) -> String {
    let hex = hex(bytes);
    write(&root.join("blobs/sha256").join(&hex[..2]).join(&hex).join("data"), bytes);
    hex
}

fn link(dir: &Path, hex: &str) {
    write(&dir.join(hex).join("link"), format!("sha256:{hex}").as_bytes());
}

fn write(path: &Path, bytes: &[u8]) {
    let dir = path.parent().expect("a path within the tree");
    std::fs::create_dir_all(dir).and_then(|()| std::fs::write(path, bytes)).expect("the tree can be made");
}
