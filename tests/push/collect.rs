//! Delete, collect, pull again: what is left is whole, what went is gone.

use std::time::Instant;

use super::plain;
use super::support::clients::{Client, Podman, Skopeo};
use super::support::hosting::{Hosting, LEASE, SHORT_LEASE, collect, hosting};
use super::support::image::{Image, random_bytes};
use super::support::mirror::forebay;
use super::support::namespace::isolated;
use super::support::process::{Wait, run};
use super::support::pushers::Pusher;
use super::support::repository::Repository;
use super::support::stored_blobs;

#[test]
fn what_was_deleted_goes_and_what_is_left_still_pulls() {
    isolated(async |directory| {
        for (seed, mut registry) in (1..).zip(Hosting::both_with(&directory, SHORT_LEASE).await) {
            let skopeo = Skopeo::new(&directory.join(format!("skopeo-{seed}")), "");
            let host = registry.host();
            let of = |name: &str| format!("{host}/{name}:1");
            let images = [Image::random(10 * seed, 1, 100_000), Image::random(10 * seed + 1, 1, 100_000)];
            for (image, name) in images.iter().zip(["kept", "gone"]) {
                let layout = directory.join(format!("{name}-{seed}"));
                image.write_layout(&layout, "1");
                skopeo.load(&layout, &of(name)).await;
                skopeo.push(&of(name)).await;
            }
            let (kept, gone) = (registry.repository("kept"), registry.repository("gone"));
            let delete = format!("docker://{}", of("gone"));
            run(skopeo.skopeo(["delete", "--tls-verify=false", &delete])).await;
            assert_eq!(gone.status("manifests/1").await, 404);
            for manifest in &images[1].manifests {
                gone.delete(&format!("manifests/{}", manifest.digest)).await.expect(202);
            }
            registry.collect().await;

            // The programs are in both images: they stay, for one of them.
            let shared = |digest| images[0].blobs.iter().any(|blob| blob.digest == digest);
            for blob in images[1].blobs.iter().filter(|blob| !shared(blob.digest.as_str())) {
                assert_eq!(gone.status(&format!("blobs/{}", blob.digest)).await, 404, "{}", blob.digest);
            }
            let whole = kept.whole("1").await.unwrap();
            assert_eq!(whole.len(), images[0].blobs.len() + 3);
            let podman = Podman::start(&directory.join(format!("podman-{seed}")), "http://127.0.0.1:9").await;
            podman.pull(&of("kept")).await;
            // What went can be pushed again.
            skopeo.push(&of("gone")).await;
            assert_eq!(gone.whole("1").await.unwrap().len(), images[1].blobs.len() + 3);
        }
    });
}

/// A pusher that finds a blob there does not upload it, and so may count on it for a while.
#[tokio::test]
async fn a_blob_that_a_pusher_has_found_outlives_a_collection() {
    let directory = tempfile::tempdir().unwrap();
    let mirror = hosting(directory.path(), SHORT_LEASE).await;
    let repository = Repository::new(&mirror.url(), "app");
    // A machine may be too busy to get from the HEAD to the manifest within a lease.
    for round in 0..10 {
        let image = plain(&[random_bytes(round, 10_000)], "found");
        for blob in &image.blobs {
            repository.push_blob(blob.bytes.clone()).await;
        }
        let forgotten = repository.push_blob(random_bytes(round + 10, 10_000)).await;
        tokio::time::sleep(LEASE * 2).await;
        let found = Instant::now();
        for blob in &image.blobs {
            assert_eq!(repository.status(&format!("blobs/{}", blob.digest)).await, 200);
        }
        let said = collect(&mirror).await;
        let answer = repository.try_manifest("1", &image.index).await.unwrap();
        assert!(said.contains(&forgotten), "{said}");
        assert!(!stored_blobs(&mirror.data()).contains(&forgotten));
        if answer.status == 201 || found.elapsed() < LEASE {
            answer.expect(201);
            assert_eq!(repository.whole("1").await.unwrap().len(), 3);
            return;
        }
    }
    panic!("this machine is too slow");
}

/// Nothing that was begun before a restart is taken for forgotten right after it.
#[tokio::test]
async fn all_is_leased_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut mirror = hosting(directory.path(), SHORT_LEASE).await;
    let repository = Repository::new(&mirror.url(), "app");
    let digest = repository.push_blob(random_bytes(1, 10_000)).await;
    tokio::time::sleep(LEASE * 2).await;
    mirror.kill();
    mirror.configure("[gc]\nlease = \"1h\"\n");
    mirror.restart().await;
    assert!(!collect(&mirror).await.contains(&digest));
    assert!(stored_blobs(&mirror.data()).contains(&digest));

    // When these leases end, nobody has to ask for the first collection.
    mirror.kill();
    mirror.configure("[gc]\nlease = \"1s\"\n");
    mirror.restart().await;
    let wait = Wait::for_("a collection");
    while stored_blobs(&mirror.data()).contains(&digest) {
        wait.a_little().await;
    }
    assert_eq!(repository.status(&format!("blobs/{digest}")).await, 404);
}

/// `--dry-run` tells what would go, and lets it stay.
#[tokio::test]
async fn a_dry_run_names_what_would_go() {
    let directory = tempfile::tempdir().unwrap();
    let mirror = hosting(directory.path(), SHORT_LEASE).await;
    let repository = Repository::new(&mirror.url(), "app");
    let digest = repository.push_blob(random_bytes(1, 10_000)).await;
    tokio::time::sleep(LEASE * 2).await;
    let mut gc = forebay(["gc", "--dry-run", "--data"]);
    gc.arg(mirror.data());
    let said = run(gc).await;
    assert!(said.contains(&digest), "{said}");
    assert!(stored_blobs(&mirror.data()).contains(&digest));
    assert!(collect(&mirror).await.contains(&digest));
    assert!(!stored_blobs(&mirror.data()).contains(&digest));
}
