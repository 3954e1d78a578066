//! However many clients ask, a cold blob crosses from upstream once.

use futures_util::future::join_all;

use super::support::faulty::Fault;
use super::support::image::random_bytes;
use super::support::mirror::Mirror;
use super::support::process::Wait;
use super::support::registry::{Auth, Registry, RegistryOptions};
use super::support::token::TokenServer;
use super::support::{http, stored_blobs};
use super::{Blob, MIB, Rig, blob_url, read_rest, read_some};

const CLIENTS: usize = 20;
const SIZE: usize = 100 * MIB;

/// A rig whose upstream sends a large blob slowly enough for everybody to come in the middle of it.
async fn throttled() -> (Rig, Blob) {
    let rig = Rig::start().await;
    let blob = rig.blob(1, SIZE);
    rig.upstream.on("GET", "/blobs/").then(Fault::Rate(25 << 20));
    (rig, blob)
}

async fn pull(url: &str, expected: &[u8]) {
    let mut answer = http().get(url).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    read_rest(&mut answer, expected, 0).await;
}

impl Rig {
    async fn until_sent(&self, blob: &Blob, count: usize) {
        let wait = Wait::for_("upstream to send");
        while self.gets(blob).first().is_none_or(|get| get.sent() < count as u64) {
            wait.a_little().await;
        }
    }

    /// The blob crossed once, whole, and is on disk.
    async fn assert_fetched_once(&self, blob: &Blob) {
        self.until_sent(blob, SIZE).await;
        let gets = self.gets(blob);
        assert_eq!(gets.len(), 1, "{gets:?}");
        self.mirror.committed(1).await;
        assert!(stored_blobs(&self.mirror.data()).contains(&blob.digest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_clients_cost_one_transfer() {
    let (rig, blob) = throttled().await;
    let url = rig.url(&blob);
    let client = |number| {
        let (rig, blob, url) = (&rig, &blob, &url);
        async move {
            // Half of them come when a third of it has passed.
            rig.until_sent(blob, if number < CLIENTS / 2 { 0 } else { SIZE / 3 }).await;
            pull(url, &blob.bytes).await;
        }
    };
    let first = pull(&url, &blob.bytes);
    tokio::join!(first, join_all((1..CLIENTS).map(client)));
    rig.assert_fetched_once(&blob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_client_that_hangs_up_changes_nothing() {
    let (rig, blob) = throttled().await;
    let url = rig.url(&blob);
    let mut first = http().get(&url).send().await.unwrap();
    let rest = join_all((1..CLIENTS).map(|_| pull(&url, &blob.bytes)));
    let leave = async {
        read_some(&mut first, &blob.bytes, SIZE / 10).await;
        drop(first);
    };
    tokio::join!(leave, rest);
    rig.assert_fetched_once(&blob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn and_so_with_a_real_registry() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = TokenServer::start().await;
    tokens.allow_anonymous("library/*", "pull");
    let options = RegistryOptions { auth: Auth::Token(tokens), ..Default::default() };
    let upstream = Registry::start(&directory.path().join("upstream"), options).await;
    let bytes = random_bytes(2, SIZE);
    let digest = upstream.push_blob("library/x", bytes.clone()).await;
    let mirror = Mirror::start(&directory.path().join("mirror"), &upstream.url()).await;
    let url = blob_url(&mirror, "library/x", &digest);
    join_all((0..CLIENTS).map(|_| pull(&url, &bytes))).await;
    let gets = upstream.content_requests().await;
    let answered: Vec<_> = gets.iter().filter(|get| get.status != 401).collect();
    assert_eq!(answered.len(), 1, "{gets:?}");
    assert_eq!((answered[0].status, answered[0].bytes), (200, SIZE as u64));
    mirror.committed(1).await;
    assert!(stored_blobs(&mirror.data()).contains(&digest));
}
