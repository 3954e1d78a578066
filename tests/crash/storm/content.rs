//! What is pulled and pushed: images of few layers, most of which several of them share, hosted ones with
//! mirrored ones too.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::json;

use super::super::support::faulty::Upstream;
use super::super::support::image::{CONFIG, Content, INDEX, Image, LAYER, MANIFEST, random_bytes};

/// Repositories upstream; each is mirrored from two upstreams, which are two trust domains.
const REPOSITORIES: u64 = 10;
const SMALL_LAYERS: u64 = 10;
/// Of 1 MiB; each is in the mirrored images of one repository.
const LARGE_LAYERS: u64 = 3;

pub struct Library {
    pub layers: Vec<Content>,
    /// What each mirrored repository may give for a tag, and all its images.
    mirrored: BTreeMap<String, BTreeSet<String>>,
    images: Vec<(String, Image)>,
    pub bytes: BTreeMap<String, Bytes>,
}

/// An image of these layers, or an index of several, each with a configuration of its own.
pub fn image(layers: &[&[Content]], note: &str) -> Image {
    let (mut manifests, mut blobs, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    for (number, layers) in layers.iter().enumerate() {
        let config = Content::new(CONFIG, json!({ "note": note, "number": number }).to_string());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(),
            "layers": layers.iter().map(Content::descriptor).collect::<Vec<_>>(),
        });
        let manifest = Content::new(MANIFEST, manifest.to_string());
        let mut entry = manifest.descriptor();
        entry["platform"] = json!({ "architecture": format!("a{number}"), "os": "linux" });
        entries.push(entry);
        blobs.extend(layers.iter().cloned().chain([config]));
        manifests.push(manifest);
    }
    let index = match manifests.len() {
        1 => manifests.remove(0),
        _ => Content::new(
            INDEX,
            json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string(),
        ),
    };
    Image { index, manifests, blobs }
}

/// All digests of an image.
pub fn digests(image: &Image) -> BTreeSet<&str> {
    let all = image.blobs.iter().chain(&image.manifests).chain([&image.index]);
    all.map(|content| content.digest.as_str()).collect()
}

impl Library {
    pub fn new(upstream: &Upstream) -> Self {
        let small = (0..SMALL_LAYERS).map(|seed| (seed, 10_000 + 20_000 * seed as usize));
        let large = (0..LARGE_LAYERS).map(|seed| (100 + seed, 1 << 20));
        let layers = small.chain(large).map(|(seed, size)| Content::new(LAYER, random_bytes(seed, size)));
        let layers: Vec<_> = layers.collect();
        let (mut images, mut bytes) = (Vec::new(), BTreeMap::new());
        for number in 0..REPOSITORIES {
            let one = number as usize;
            for version in 0..2 {
                let two = (one + 1 + version) % SMALL_LAYERS as usize;
                let mut first = vec![layers[one].clone(), layers[two].clone()];
                first.extend(layers.get(SMALL_LAYERS as usize + one).cloned());
                let second = [layers[(two + 3) % SMALL_LAYERS as usize].clone()];
                let parts: &[&[Content]] = if one.is_multiple_of(2) { &[&first] } else { &[&first, &second] };
                let image = image(parts, &format!("mirrored {number} {version}"));
                let all = image.blobs.iter().chain(&image.manifests).chain([&image.index]);
                bytes.extend(all.map(|content| (content.digest.clone(), content.bytes.clone())));
                let name = format!("library/m{number}");
                upstream.put_image(&name, if version == 0 { "1" } else { "moving" }, &image);
                images.push((name, image));
            }
        }
        let mut mirrored = BTreeMap::<String, BTreeSet<String>>::new();
        for (name, image) in &images {
            mirrored.entry(name.clone()).or_default().insert(image.digest().to_owned());
        }
        Self { layers, mirrored, images, bytes }
    }

    /// Upstream, the tag `moving` of one repository goes to the other of its images.
    pub fn move_tags(&self, upstream: &Upstream, round: u64) {
        let (turn, version) = (round % REPOSITORIES, round / REPOSITORIES % 2);
        let (name, image) = &self.images[(2 * turn + version) as usize];
        upstream.put_image(name, "moving", image);
    }

    /// Every mirrored image, by each of the names that its repository has here.
    pub fn mirrored(&self) -> impl Iterator<Item = (String, &Image)> {
        self.images
            .iter()
            .flat_map(|(name, image)| [(name.clone(), image), (format!("other.test/{name}"), image)])
    }

    pub fn any(&self, random: &mut StdRng) -> (String, &Image) {
        let number = random.random_range(0..self.images.len() * 2);
        self.mirrored().nth(number).unwrap()
    }

    /// Whether a tag of this repository may lead to it.
    pub fn may_be(&self, name: &str, digest: &str) -> bool {
        let name = name.trim_start_matches("other.test/");
        self.mirrored[name].contains(digest)
    }

    /// One or two images' worth of layers, for a push.
    pub fn some(&self, random: &mut StdRng, note: &str) -> Image {
        let mut some = || -> Vec<Content> {
            (0..2).map(|_| self.layers[random.random_range(0..SMALL_LAYERS as usize)].clone()).collect()
        };
        let (first, second) = (some(), some());
        if random.random_bool(0.3) { image(&[&first, &second], note) } else { image(&[&first], note) }
    }
}
