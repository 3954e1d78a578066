//! The rig: real registries, real clients, a scripted upstream and Forebay itself, each started by
//! a value whose drop ends it. All of them listen on loopback; `namespace::isolated` gives a test a
//! loopback of its own, from which nothing else can be reached.

// Every test crate compiles the whole rig and uses a part of it.
#![allow(dead_code)]

pub mod answer;
pub mod clients;
pub mod faulty;
pub mod hop;
pub mod hosting;
pub mod http1;
pub mod image;
pub mod mirror;
pub mod namespace;
pub mod narrow;
pub mod process;
pub mod pushers;
pub mod registry;
pub mod repository;
pub mod token;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// The digest of `bytes`, computed apart from the code under test.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The digests of the blobs below `root`, kept in the layout of CNCF distribution. Panics where one
/// holds other bytes than its name says.
pub fn stored_blobs(root: &Path) -> BTreeSet<String> {
    let mut digests = BTreeSet::new();
    for shard in entries(&root.join("docker/registry/v2/blobs/sha256")) {
        for blob in entries(&shard) {
            let name = blob.file_name().unwrap().to_str().unwrap();
            let bytes = match std::fs::read(blob.join("data")) {
                // Its directory is made first.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                bytes => bytes.unwrap(),
            };
            let digest = sha256(&bytes);
            assert_eq!(digest, format!("sha256:{name}"), "{} holds other bytes", blob.display());
            digests.insert(digest);
        }
    }
    digests
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// An HTTP client that goes where it is told: no proxies, no redirects, no connection kept for later.
pub fn http() -> reqwest::Client {
    http_client().build().unwrap()
}

/// `http`, to be told more.
pub fn http_client() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .connect_timeout(Duration::from_secs(5))
}

/// Names of unfinished fills and writes in a data directory of Forebay's.
pub fn unfinished(data: &Path) -> Vec<PathBuf> {
    entries(&data.join("forebay/fills"))
}

/// Whether the long rounds are asked for, by `FOREBAY_FULL=1`.
pub fn full() -> bool {
    std::env::var_os("FOREBAY_FULL").is_some_and(|value| value == "1")
}
