//! The private registry, in the hands of real clients and of bad ones. What a client can do is done
//! with CNCF distribution first, which shows that the scenario is right, and then with Forebay.

#[path = "../support/mod.rs"]
mod support;

mod backup;
mod clients;
mod collect;
mod disk;
mod indexes;
mod lists;
mod login;
mod proxy;
mod race;
mod raw;

use support::image::{Content, Image, LAYER, MANIFEST};

/// An image of blobs that are bytes and no more.
fn plain(layers: &[Vec<u8>], note: &str) -> Image {
    let layers: Vec<Content> = layers.iter().map(|bytes| Content::new(LAYER, bytes.clone())).collect();
    Image::plain(&layers, note)
}

/// Pushes the first architecture of `image` with sha512 alone, which few pushers choose; the
/// manifest's digest.
async fn push_by_sha512(repository: &support::repository::Repository, image: &Image) -> String {
    let long = |bytes: &[u8]| support::repository::digest_as("sha512:", bytes);
    let mut manifest = String::from_utf8(image.manifests[0].bytes.to_vec()).unwrap();
    for blob in &image.blobs {
        if manifest.contains(&blob.digest) {
            let digest = long(&blob.bytes);
            repository.try_blob(&digest, blob.bytes.clone()).await.unwrap().expect(201);
            manifest = manifest.replace(&blob.digest, &digest);
        }
    }
    let digest = long(manifest.as_bytes());
    let manifest = Content::new(MANIFEST, manifest);
    let done = repository.try_manifest(&digest, &manifest).await.unwrap().expect(201);
    assert_eq!(done.header("docker-content-digest"), Some(digest.as_str()));
    digest
}
