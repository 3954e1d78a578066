//! Mirrored content: a fill, an image, what was kept.

use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::support::faulty::{Fault, Upstream};
use super::support::image::{Image, random_bytes};
use super::support::mirror::{Mirror, forebay};
use super::support::process::PATIENCE;
use super::support::registry::{Auth, Registry, RegistryOptions};
use super::support::token::TokenServer;
use super::support::{full, http, stored_blobs, unfinished};
use super::{SEED, get};

const SIZE: usize = 8 << 20;

/// Pulls, kills the mirror when upstream has sent `point` bytes, or, from `SIZE` on, so many
/// microseconds after the client had all, and pulls again.
async fn round(upstream: &Upstream, mirror: &mut Mirror, seed: u64, point: usize) {
    let bytes = Bytes::from(random_bytes(seed, SIZE));
    let digest = upstream.put_blob("library/x", bytes.clone());
    let url = format!("{}/v2/library/x/blobs/{digest}", mirror.url());
    let asked = url.clone();
    let client = tokio::spawn(async move { http().get(asked).send().await?.bytes().await });
    let sent = || upstream.requests_for("GET", &digest).first().map_or(0, |get| get.sent());
    while point < SIZE && sent() < point as u64 {
        assert!(!client.is_finished(), "ended at {} bytes", sent());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    if point >= SIZE {
        assert_eq!(client.await.unwrap().unwrap(), bytes);
        tokio::time::sleep(Duration::from_micros((point - SIZE) as u64)).await;
        mirror.kill();
    } else {
        mirror.kill();
        // Its end may have been on its way already; if so, it was right.
        if let Ok(body) = client.await.unwrap() {
            assert_eq!(body, bytes);
        }
    }
    stored_blobs(&mirror.data());
    mirror.restart().await;
    assert_eq!(unfinished(&mirror.data()).len(), 0, "left over");
    assert_eq!(get(&url).await, (200, bytes));
    // Its commit may come after the answer; the next round's kill is not to fall into it.
    for _ in 0..1000 {
        if stored_blobs(&mirror.data()).len() as u64 == seed {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_kill_at_any_point_of_a_fill() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    upstream.on("GET", "/blobs/").then(Fault::Rate(40 << 20));
    let mut mirror = Mirror::start(directory.path(), &upstream.url()).await;
    let mut random = StdRng::seed_from_u64(SEED);
    let rounds = if full() { 50 } else { 12 };
    for seed in 1..=rounds {
        // About one in five falls into the commit.
        let point = if random.random_bool(0.2) {
            SIZE + random.random_range(0..20_000)
        } else {
            random.random_range(0..SIZE)
        };
        eprintln!("round {seed} of {rounds}: killed at {point}");
        round(&upstream, &mut mirror, seed, point).await;
    }
    assert_eq!(stored_blobs(&mirror.data()).len(), rounds as usize);
    assert_eq!(unfinished(&mirror.data()).len(), 0);
}

/// Pulls all of an image in the order of a client; the first thing that does not come, if any.
async fn pull(base: &str, image: &Image) -> Result<(), String> {
    let manifests = image.manifests.iter().map(|content| (format!("manifests/{}", content.digest), content));
    let blobs = image.blobs.iter().map(|content| (format!("blobs/{}", content.digest), content));
    let tag = [("manifests/1".to_owned(), &image.index)];
    for (path, content) in tag.into_iter().chain(manifests).chain(blobs) {
        let answer = http().get(format!("{base}/{path}")).send().await.map_err(|e| e.to_string())?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|e| e.to_string())?;
        if status != 200 {
            return Err(format!("{path}: {status}: {}", String::from_utf8_lossy(&body)));
        }
        assert_eq!(body, content.bytes, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_kill_at_any_point_of_an_image() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let mut mirror = Mirror::start(directory.path(), &upstream.url()).await;
    let image = Image::random(1, 2, 100_000);
    let mut random = StdRng::seed_from_u64(SEED);
    let rounds = if full() { 100 } else { 12 };
    for round in 1..=rounds {
        let repository = format!("library/{round}");
        upstream.put_image(&repository, "1", &image);
        let base = format!("{}/v2/{repository}", mirror.url());
        let moment = random.random_range(0..100_000);
        eprintln!("round {round} of {rounds}: killed after {moment} us");
        tokio::select! {
            pulled = pull(&base, &image) => pulled.unwrap(),
            () = tokio::time::sleep(Duration::from_micros(moment)) => {}
        }
        mirror.kill();
        stored_blobs(&mirror.data());
        mirror.restart().await;
        assert_eq!(unfinished(&mirror.data()).len(), 0, "left over");
        pull(&base, &image).await.unwrap();
    }
    let log = mirror.log();
    for fault in ["could not be kept", "no record", "other bytes"] {
        assert!(!log.contains(fault), "{fault} in\n{log}");
    }
}

#[tokio::test]
async fn what_was_kept_is_served_without_upstream() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = TokenServer::start().await;
    tokens.allow_anonymous("library/*", "pull");
    let options = RegistryOptions { auth: Auth::Token(tokens), ..Default::default() };
    let mut upstream = Registry::start(&directory.path().join("upstream"), options).await;
    let image = Image::random(1, 2, 1 << 20);
    image.push(&upstream, "library/x", "1").await;
    let mut mirror = Mirror::start(&directory.path().join("mirror"), &upstream.url()).await;
    let base = format!("{}/v2/library/x", mirror.url());
    pull(&base, &image).await.unwrap();
    mirror.committed(image.blobs.len()).await;
    mirror.linked("library/x/_manifests/tags/1/current/link").await;
    for manifest in image.manifests.iter().chain([&image.index]) {
        let digest = manifest.digest.replace(':', "/");
        mirror.linked(&format!("library/x/_manifests/revisions/{digest}/link")).await;
    }
    mirror.kill();
    upstream.stop();
    mirror.restart().await;
    pull(&base, &image).await.unwrap();
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let mut mirror = Mirror::start(directory.path(), &upstream.url()).await;
    let mut second = forebay(["serve", "--listen", "127.0.0.1:0", "--data"]);
    second.arg(mirror.data());
    let output = tokio::process::Command::from(second).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(said.contains("is in use by another process"), "{said}");
    assert!(said.contains(mirror.data().to_str().unwrap()), "{said}");
    mirror.process().assert_running();
    let digest = upstream.put_blob("library/x", "undisturbed");
    let url = format!("{}/v2/library/x/blobs/{digest}", mirror.url());
    assert_eq!(get(&url).await, (200, Bytes::from("undisturbed")));
}
