//! What it costs to hold much: start, memory, a hit, an eviction, a check of all data.
//!
//! `cargo bench --bench held -- 1000000 [DIRECTORY]` makes a tree of so many small blobs, ten to an image and
//! ten images to a repository, as upstream's, and runs the server on it. 16 KiB of disk for each blob.
//!
//! `-- growth [DIRECTORY] [--most N] [--record]` is about how that grows: see [`growth`].

mod growth;
mod load;
mod plot;
mod server;
mod tree;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use server::{Server, wait};
use tree::Shape;

const SHAPE: Shape = Shape { blobs_of_image: 9, images_of_repository: 10, largest: 0 };

fn main() {
    // Without it this is a test run (`cargo test --all-targets`), and there is nothing to test.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench").peekable();
    if arguments.next_if(|argument| argument == "growth").is_some() {
        return growth::run(arguments);
    }
    let count: usize = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(20_000);
    let scratch = tempfile::tempdir().expect("a directory for the tree");
    let data = arguments.next().map_or_else(|| scratch.path().join("data"), PathBuf::from);
    let made = Instant::now();
    let blobs = SHAPE.make(&data, count / (SHAPE.blobs_of_image + 1));
    println!("{blobs} blobs and manifests made in {:.1?}", made.elapsed());

    let begun = Instant::now();
    let server = Server::start(&data, None);
    wait(|| server.serves("/readyz"));
    println!("serving after {:.3?}", begun.elapsed());
    let first = Instant::now();
    let hit = server.get("/v2/library/r0/manifests/t0").unwrap_or_default();
    assert!(hit.starts_with("HTTP/1.1 200"), "{hit}");
    println!("first hit after {:.3?}, it took {:.3?}", begun.elapsed(), first.elapsed());
    let kib = server.memory();
    println!("resident at the start: {} MiB", kib / 1024);
    server.wait_until_whole();
    let whole = server.memory();
    println!("all that is held is known after {:.1?}; resident: {} MiB", begun.elapsed(), whole / 1024);
    println!("memory for each blob: {} bytes", (whole.saturating_sub(kib)) * 1024 / blobs as u64);
    assert_eq!(server.metric("forebay_store_entries"), Some(blobs as f64));
    hits(&server, count);
    let bytes = server.metric("forebay_store_bytes").unwrap_or_default();
    let evicting = Instant::now();
    let free = ((bytes / 64.0) as u64).to_string() + "B";
    let told = server.command(&["evict", "--free", &free]);
    println!("eviction of a 64th: {:.1?}: {}", evicting.elapsed(), told.lines().last().unwrap_or_default());
    let evicting = Instant::now();
    let told = server.command(&["evict", "--free", "1B"]);
    println!(
        "eviction of one image: {:.1?}: {}",
        evicting.elapsed(),
        told.lines().last().unwrap_or_default()
    );
    let shown = Instant::now();
    server.command(&["du"]);
    println!("du: {:.1?}", shown.elapsed());
    let verified = Instant::now();
    let told = server.command(&["verify"]);
    let (all, last) = (verified.elapsed(), told.lines().last().unwrap_or_default().to_owned());
    println!("verify: {all:.1?}, a slice of 256 {:.1?}: {last}", all / 256);
    println!("resident at the end: {} MiB", server.memory() / 1024);
}

/// The median of hits on images all over the tree, each for the first time, and again.
fn hits(server: &Server, count: usize) {
    let repositories = (count / (SHAPE.blobs_of_image + 1) / SHAPE.images_of_repository).max(1);
    let paths: Vec<String> =
        (0..500).map(|n| format!("/v2/library/r{}/manifests/t3", n * 7919 % repositories)).collect();
    for what in ["from disk", "from memory"] {
        let mut times: Vec<Duration> = paths
            .iter()
            .map(|path| {
                let begun = Instant::now();
                let answer = server.get(path).unwrap_or_default();
                assert!(answer.starts_with("HTTP/1.1 200"), "{path} {answer}");
                begun.elapsed()
            })
            .collect();
        times.sort();
        println!("hit {what}, with its connection: {:.3?} in the median", times[times.len() / 2]);
    }
}
