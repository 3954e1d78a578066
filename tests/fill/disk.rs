//! Pulls flow though the disk is too small, fills up, is read-only or gone.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use futures_util::future::join_all;

use super::parallel::pull_by_chunks;
use super::support::faulty::{Fault, Upstream};
use super::support::image::{Image, random_bytes};
use super::support::mirror::Mirror;
use super::support::namespace::isolated;
use super::support::process::{Wait, attempt, command, run};
use super::support::{http, stored_blobs, unfinished};
use super::{MIB, blob_url, read_rest};

/// A mirror whose data directory is a file system of this size.
async fn on_small_disk(directory: &Path, upstream: &Upstream, size: usize) -> Mirror {
    let data = directory.join("data");
    std::fs::create_dir_all(&data).unwrap();
    let mut mount = command("mount", ["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
    mount.arg(&data);
    run(mount).await;
    Mirror::start(directory, &upstream.url()).await
}

async fn pull(mirror: &Mirror, digest: &str, expected: &[u8]) {
    let mut answer = http().get(blob_url(mirror, "library/x", digest)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    read_rest(&mut answer, expected, 0).await;
}

/// Nothing is left of what could not be kept.
async fn assert_nothing_kept(mirror: &Mirror) {
    let wait = Wait::for_("fills to end");
    while mirror.metric("forebay_fills_in_flight").await > 0.0 {
        wait.a_little().await;
    }
    assert_eq!(unfinished(&mirror.data()), [] as [&Path; 0]);
    assert!(stored_blobs(&mirror.data()).is_empty());
}

#[test]
fn what_does_not_fit_is_passed_on() {
    isolated(async |directory| {
        let upstream = Upstream::start().await;
        let bytes = random_bytes(1, 16 * MIB);
        let digest = upstream.put_blob("library/x", bytes.clone());
        let mirror = on_small_disk(&directory, &upstream, 8 * MIB).await;
        join_all((0..3).map(|_| pull(&mirror, &digest, &bytes))).await;
        assert_nothing_kept(&mirror).await;
        assert!(mirror.metric("forebay_fill_relays_total").await >= 1.0);

        let small = random_bytes(2, MIB);
        let digest = upstream.put_blob("library/x", small.clone());
        pull(&mirror, &digest, &small).await;
        mirror.committed(1).await;
        assert!(stored_blobs(&mirror.data()).contains(&digest), "what fits is kept");
    });
}

#[test]
fn a_disk_that_fills_up_breaks_no_pull() {
    assert_filling_disk_breaks_none(async |url, bytes| {
        let mut answer = http().get(url).send().await.unwrap();
        read_rest(&mut answer, bytes, 0).await;
    });
}

#[test]
fn nor_one_by_several_ranges() {
    assert_filling_disk_breaks_none(async |url, bytes| pull_by_chunks(url, bytes, 2 * MIB, 3).await);
}

/// Three pull at once while the disk fills up.
fn assert_filling_disk_breaks_none(pull_one: impl AsyncFn(&str, &[u8]) + Sync) {
    isolated(async |directory| {
        let upstream = Upstream::start().await;
        let bytes = random_bytes(1, 20 * MIB);
        let digest = upstream.put_blob("library/x", bytes.clone());
        upstream.on("GET", "/blobs/").then(Fault::Rate(8 << 20));
        let mirror = on_small_disk(&directory, &upstream, 64 * MIB).await;
        let glutton = mirror.data().join("glutton");
        let fill_up = async {
            let wait = Wait::for_("a part of the blob on disk");
            while mirror.metric("forebay_store_written_bytes_total").await < (4 * MIB) as f64 {
                wait.a_little().await;
            }
            let mut file = File::create(&glutton).unwrap();
            while file.write_all(&[0; 64 << 10]).is_ok() {}
        };
        let url = blob_url(&mirror, "library/x", &digest);
        tokio::join!(join_all((0..3).map(|_| pull_one(&url, &bytes))), fill_up);
        assert!(mirror.metric("forebay_fill_relays_total").await >= 1.0);
        assert_nothing_kept(&mirror).await;

        std::fs::remove_file(&glutton).unwrap();
        upstream.clear_rules();
        pull(&mirror, &digest, &bytes).await;
        mirror.committed(1).await;
        assert!(stored_blobs(&mirror.data()).contains(&digest));
    });
}

/// Pulls an image by its tag, every blob of it.
async fn pull_image(mirror: &Mirror, repository: &str, image: &Image) {
    let manifest = async |reference: &str| {
        let url = format!("{}/v2/{repository}/manifests/{reference}", mirror.url());
        let answer = http().get(url).send().await.unwrap();
        (answer.status().as_u16(), answer.bytes().await.unwrap())
    };
    assert_eq!(manifest("1").await, (200, image.index.bytes.clone()));
    for content in &image.manifests {
        assert_eq!(manifest(&content.digest).await, (200, content.bytes.clone()));
    }
    for blob in &image.blobs {
        let answer = http().get(blob_url(mirror, repository, &blob.digest)).send().await.unwrap();
        assert_eq!(answer.bytes().await.unwrap(), blob.bytes);
    }
}

/// Two images are pulled, one held from before and one new, after `harm` was done to the directory.
async fn assert_pulls_flow(directory: &Path, harm: impl AsyncFnOnce(&Path)) {
    let upstream = Upstream::start().await;
    let (held, new) = (Image::random(1, 1, 200_000), Image::random(2, 1, 300_000));
    upstream.put_image("library/held", "1", &held);
    upstream.put_image("library/new", "1", &new);
    let mirror = Mirror::start(directory, &upstream.url()).await;
    pull_image(&mirror, "library/held", &held).await;
    harm(&mirror.data()).await;
    for _ in 0..2 {
        pull_image(&mirror, "library/held", &held).await;
        pull_image(&mirror, "library/new", &new).await;
    }
    assert_eq!(http().get(mirror.url() + "/readyz").send().await.unwrap().status(), 200);
}

#[test]
fn a_read_only_disk_breaks_no_pull() {
    isolated(async |directory| {
        assert_pulls_flow(&directory, async |data: &Path| {
            let bind = command("mount", ["--bind".as_ref(), data.as_os_str(), data.as_os_str()]);
            run(bind).await;
            // What was pulled is being written behind the answers: busy until that is done.
            let read_only =
                || command("mount", ["-o".as_ref(), "remount,bind,ro".as_ref(), data.as_os_str()]);
            let wait = Wait::for_("the last write");
            while attempt(read_only()).await.is_err() {
                wait.a_little().await;
            }
            assert!(File::create(data.join("probe")).is_err(), "still writable");
        })
        .await;
    });
}

#[test]
fn a_deleted_data_directory_breaks_no_pull() {
    isolated(async |directory| {
        assert_pulls_flow(&directory, async |data: &Path| {
            let wait = Wait::for_("the data directory to go, in which writes may be under way");
            while std::fs::remove_dir_all(data).is_err() {
                wait.a_little().await;
            }
        })
        .await;
    });
}
