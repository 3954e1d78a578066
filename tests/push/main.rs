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

/// An image of blobs that are bytes and no more: quick to make, for those who do not unpack it.
fn plain(layers: &[Vec<u8>], note: &str) -> Image {
    let layers: Vec<Content> = layers.iter().map(|bytes| Content::new(LAYER, bytes.clone())).collect();
    let config = Content::new(support::image::CONFIG, format!("{{\"note\":\"{note}\"}}"));
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(),
        "layers": layers.iter().map(Content::descriptor).collect::<Vec<_>>(),
    });
    let index = Content::new(MANIFEST, manifest.to_string());
    Image { index, manifests: Vec::new(), blobs: [layers, vec![config]].concat() }
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
