//! A copy of the data directory that was made while the server worked: `rsync`, by itself and as README
//! has it.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::plain;
use super::support::faulty::Upstream;
use super::support::full;
use super::support::hosting::{SHORT_LEASE, collect, try_collect};
use super::support::image::{Image, random_bytes};
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::process::{PATIENCE, command};
use super::support::registry::{Registry, RegistryOptions};
use super::support::repository::Repository;
use super::support::stored_blobs;

const SEED: u64 = 20_260_103;
/// Layers that images share: what one forgets another one wants.
const LAYERS: u64 = 8;

fn image(random: &mut StdRng, note: &str) -> Image {
    let layers: Vec<Vec<u8>> = (0..2).map(|_| random_bytes(random.random_range(0..LAYERS), 50_000)).collect();
    plain(&layers, note)
}

async fn registry(directory: &Path, upstream: &Upstream) -> Mirror {
    registry_with(directory, upstream, "").await
}

/// The same with more of a configuration.
async fn registry_with(directory: &Path, upstream: &Upstream, more: &str) -> Mirror {
    let config = format!("{SHORT_LEASE}untagged = \"1s\"\n{more}");
    Mirror::with(
        directory,
        MirrorOptions { upstream: upstream.url(), config: Some(config), ..Default::default() },
    )
    .await
}

/// Copies all of a data directory. That something went meanwhile is no failure.
async fn rsync(flags: &[&str], from: &Path, to: &Path) {
    let mut rsync = command("rsync", ["-a"]);
    rsync.args(flags).arg(from.join("")).arg(to.join(""));
    let output =
        tokio::process::Command::from(rsync).output().await.expect("tests/install.sh installs rsync");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 24)), "{}: {said}", output.status);
}

/// The flags of the command in README.
fn documented() -> Vec<String> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let command =
        readme.split("```").find(|block| block.contains("rsync -a ")).expect("README shows the command");
    let command = command[command.find("rsync -a ").unwrap()..].replace("\\\n", " ");
    let words = command.lines().next().unwrap().split_whitespace().map(|word| word.replace('\'', ""));
    words.filter(|word| word.starts_with("--")).collect()
}

fn cp(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

type Pushed = (String, String, Image);

/// Pushes, moves a tag, deletes, collects and mirrors until `done`. What was pushed and not deleted.
async fn work(live: &Mirror, upstream: &Upstream, done: &AtomicBool) -> Vec<Pushed> {
    let pushes = async {
        let (mut random, mut held) = (StdRng::seed_from_u64(SEED), Vec::<Pushed>::new());
        for round in 0.. {
            if done.load(Ordering::Relaxed) {
                break;
            }
            // Repositories from before, and new ones.
            let name = format!("app{}", random.random_range(0..8));
            let (repository, tag) = (Repository::new(&live.url(), &name), format!("w{round}"));
            let image = image(&mut random, &tag);
            repository.push(&image, &tag).await;
            repository.push_manifest("moving", &image.index).await;
            held.push((name, tag, image));
            if random.random_bool(0.5) {
                let (name, tag, _) = held.swap_remove(random.random_range(0..held.len()));
                Repository::new(&live.url(), &name).delete(&format!("manifests/{tag}")).await.expect(202);
            }
        }
        held
    };
    let pulls = async {
        for round in 0.. {
            if done.load(Ordering::Relaxed) {
                break;
            }
            let (name, image) =
                (format!("library/w{round}"), plain(&[random_bytes(round + 100, 50_000)], "pulled"));
            upstream.put_image(&name, "1", &image);
            Repository::new(&live.url(), &name).whole("1").await.unwrap();
        }
    };
    let collections = async {
        while !done.load(Ordering::Relaxed) {
            // A pass that took longer than a lease ends unfinished.
            let _ = try_collect(live).await;
        }
    };
    tokio::join!(pushes, pulls, collections).0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_made_under_load_holds_what_was_acknowledged_and_nothing_wrong() {
    for round in 0..if full() { 10 } else { 1 } {
        copied_under_load(SEED + round, "").await;
    }
}

/// The hosted layers alone are half of that: mirrored images go all the time.
const SMALL_CACHE: &str =
    "[limits]\ncold_misses = \"unlimited\"\n[cache]\nmax_size = \"800kB\"\nmin_free = \"1B\"\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_one_made_while_images_are_evicted() {
    for round in 0..if full() { 10 } else { 1 } {
        copied_under_load(SEED + 100 + round, SMALL_CACHE).await;
    }
}

async fn copied_under_load(seed: u64, cache: &str) {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let mut upstream = Upstream::start().await;
    let live = registry_with(&place("live"), &upstream, cache).await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut before = Vec::new();
    for number in 0..20 {
        let (name, image) = (format!("app{}", number % 4), image(&mut random, &format!("{seed} {number}")));
        Repository::new(&live.url(), &name).push(&image, &number.to_string()).await;
        before.push((name, number.to_string(), image));
    }
    for number in 0..5 {
        let (name, image) =
            (format!("library/x{number}"), plain(&[random_bytes(number + 50, 50_000)], "mirrored"));
        upstream.put_image(&name, "1", &image);
        Repository::new(&live.url(), &name).whole("1").await.unwrap();
        live.linked(&format!("{name}/_manifests/tags/1/current/link")).await;
        before.push((name, "1".to_owned(), image));
    }
    live.committed(5).await;
    let evictions = async || live.metric("forebay_store_evictions_total").await;

    let done = AtomicBool::new(false);
    let copy = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        // On a busy machine, one copy may see nothing go.
        for attempt in 1.. {
            let evicted = evictions().await;
            std::fs::create_dir_all(place("copy")).unwrap();
            // Slow enough that much happens meanwhile. The lock, the socket and fills go along.
            rsync(&["--bwlimit=1000"], &live.data(), &place("copy/data")).await;
            if cache.is_empty() || evictions().await >= evicted + 5.0 {
                break;
            }
            assert!(attempt < 5, "nothing goes meanwhile");
            std::fs::remove_dir_all(place("copy")).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    };
    let ((), worked) = tokio::join!(copy, work(&live, &upstream, &done));
    std::fs::create_dir_all(place("registry")).unwrap();
    cp(&place("copy/data"), &place("registry/storage"));

    let copy = registry_with(&place("copy"), &upstream, cache).await;
    stored_blobs(&copy.data());
    assert_whole(&copy.url(), &before).await;
    // The rest is whole, or lacks something and says so; pushed again it is whole.
    let mut lacking = 0;
    for name in (0..8).map(|number| format!("app{number}")) {
        let repository = Repository::new(&copy.url(), &name);
        let listed = repository.get("tags/list").await;
        assert!([200, 404].contains(&listed.status), "{}", listed.status);
        if listed.status == 404 {
            continue;
        }
        for tag in repository.tags(None).await {
            let Err(said) = repository.whole(&tag).await else { continue };
            lacking += 1;
            assert!(said.contains(": 404: "), "{said}");
        }
    }
    for (name, tag, image) in &worked {
        let repository = Repository::new(&copy.url(), name);
        for blob in &image.blobs {
            if repository.status(&format!("blobs/{}", blob.digest)).await != 200 {
                repository.push_blob(blob.bytes.clone()).await;
            }
        }
        repository.push_manifest(tag, &image.index).await;
        repository.whole(tag).await.unwrap();
    }
    for name in mirrored(&copy) {
        Repository::new(&copy.url(), &name).whole("1").await.unwrap();
    }
    eprintln!("{} images pushed meanwhile, {lacking} tags lack something in the copy", worked.len());
    tokio::time::sleep(Duration::from_secs(2)).await;
    collect(&copy).await;
    assert_whole(&copy.url(), &before).await;

    let peer = Registry::start(&place("registry"), RegistryOptions::default()).await;
    if !cache.is_empty() {
        // What was evicted only an upstream can give.
        before.retain(|(name, ..)| name.starts_with("app"));
    }
    assert_whole(&peer.url(), &before).await;

    // A second run over the first, in peace and as README has it: nothing is missing any more.
    drop(copy);
    let flags = documented();
    rsync(&flags.iter().map(String::as_str).collect::<Vec<_>>(), &live.data(), &place("copy/data")).await;
    let copy = registry_with(&place("copy"), &upstream, cache).await;
    assert_whole(&copy.url(), &before).await;
    assert_whole(&copy.url(), &worked).await;
    // Without an upstream, what is there is whole, and what is not is refused.
    upstream.stop().await;
    let (mut held, mut refused) = (0, 0);
    for name in mirrored(&copy) {
        match Repository::new(&copy.url(), &name).whole("1").await {
            Ok(_) => held += 1,
            Err(said) => {
                refused += 1;
                assert!(said.contains(": 503: ") || said.contains(": 404: "), "{said}");
            }
        }
    }
    eprintln!("{held} mirrored images are held by the copy, {refused} are not");
    assert!(held > 0 && (refused == 0 || !cache.is_empty()), "{held} held, {refused} refused");
}

/// Names of the mirrored repositories of a directory.
fn mirrored(mirror: &Mirror) -> Vec<String> {
    let names = std::fs::read_dir(mirror.data().join("docker/registry/v2/repositories/library")).unwrap();
    names.map(|name| format!("library/{}", name.unwrap().file_name().to_str().unwrap())).collect()
}

async fn assert_whole(url: &str, images: &[Pushed]) {
    for (name, tag, image) in images {
        let repository = Repository::new(url, name);
        for reference in [tag.as_str(), image.digest()] {
            let whole = repository.whole(reference).await.unwrap();
            assert_eq!(whole[image.digest()], image.index.bytes, "{name}:{tag}");
        }
    }
}

/// A tag's file has one size, whatever it points to, so its time alone tells that it moved.
#[tokio::test]
async fn a_tag_that_moves_twice_in_a_second_is_copied_as_it_was_last() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let mut live = registry(&directory.path().join("live"), &upstream).await;
    let (repository, copy) = (Repository::new(&live.url(), "app"), directory.path().join("copy"));
    let link = "docker/registry/v2/repositories/app/_manifests/tags/1/current/link";
    let flags = documented();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let second = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    for (note, millis) in [("one", 200), ("two", 700)] {
        let image = plain(&[random_bytes(1, 1000)], note);
        repository.push(&image, "1").await;
        let file = std::fs::File::options().write(true).open(live.data().join(link)).unwrap();
        file.set_modified(second + Duration::from_millis(millis)).unwrap();
        rsync(&flags, &live.data(), &copy).await;
        assert_eq!(std::fs::read_to_string(copy.join(link)).unwrap(), image.digest(), "{note}");
    }
    for left_out in ["fills", "lock", "control.sock"] {
        assert!(!copy.join("forebay").join(left_out).exists(), "{left_out}");
    }
    assert!(copy.join("forebay/version").exists());
    assert!(live.terminate(PATIENCE).unwrap().success());
}
