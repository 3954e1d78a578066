//! What it costs to hold much: start, memory, a hit, an eviction, a check of all data.
//!
//! `cargo bench --bench held -- 1000000 [DIRECTORY]` makes a tree of so many small blobs, ten to an image and
//! ten images to a repository, as upstream's, and runs the server on it. 16 KiB of disk for each blob.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

const BLOBS_OF_IMAGE: usize = 9;
const IMAGES_OF_REPOSITORY: usize = 10;
const LISTEN: &str = "127.0.0.1:5197";
const PATIENCE: Duration = Duration::from_secs(3600);

fn main() {
    // Without it this is a test run (`cargo test --all-targets`), and there is nothing to test.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let count: usize = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(20_000);
    let scratch = tempfile::tempdir().expect("a directory for the tree");
    let data = arguments.next().map_or_else(|| scratch.path().join("data"), PathBuf::from);
    let made = Instant::now();
    let blobs = make(&data, count);
    println!("{blobs} blobs and manifests made in {:.1?}", made.elapsed());

    let begun = Instant::now();
    let server = Server::start(&data);
    wait(|| get("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")));
    println!("serving after {:.3?}", begun.elapsed());
    let first = Instant::now();
    let hit = get("/v2/library/r0/manifests/t0").unwrap_or_default();
    assert!(hit.starts_with("HTTP/1.1 200"), "{hit}");
    println!("first hit after {:.3?}, it took {:.3?}", begun.elapsed(), first.elapsed());
    let kib = server.memory();
    println!("resident at the start: {} MiB", kib / 1024);
    wait(|| metric("forebay_store_index_whole") == Some(1.0));
    let whole = server.memory();
    println!("all that is held is known after {:.1?}; resident: {} MiB", begun.elapsed(), whole / 1024);
    println!("memory for each blob: {} bytes", (whole.saturating_sub(kib)) * 1024 / blobs as u64);
    assert_eq!(metric("forebay_store_entries"), Some(blobs as f64));
    hits(count);
    let bytes = metric("forebay_store_bytes").unwrap_or_default();
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
fn hits(count: usize) {
    let repositories = (count / (BLOBS_OF_IMAGE + 1) / IMAGES_OF_REPOSITORY).max(1);
    let paths: Vec<String> =
        (0..500).map(|n| format!("/v2/library/r{}/manifests/t3", n * 7919 % repositories)).collect();
    for what in ["from disk", "from memory"] {
        let mut times: Vec<Duration> = paths
            .iter()
            .map(|path| {
                let begun = Instant::now();
                let answer = get(path).unwrap_or_default();
                assert!(answer.starts_with("HTTP/1.1 200"), "{path} {answer}");
                begun.elapsed()
            })
            .collect();
        times.sort();
        println!("hit {what}, with its connection: {:.3?} in the median", times[times.len() / 2]);
    }
}

/// Makes the tree. How many blobs and manifests are in it.
fn make(data: &Path, count: usize) -> usize {
    let (root, own) = (data.join("docker/registry/v2"), data.join("forebay/origins/library"));
    let images = count / (BLOBS_OF_IMAGE + 1);
    let mut made = 0;
    for image in 0..images {
        let (repository, tag) = (image / IMAGES_OF_REPOSITORY, image % IMAGES_OF_REPOSITORY);
        let name = format!("r{repository}");
        let place = root.join("repositories/library").join(&name);
        let digests: Vec<String> = (0..BLOBS_OF_IMAGE)
            .map(|blob| {
                let digest = put(&root, format!("blob {image} {blob}").as_bytes());
                link(&place.join("_layers/sha256"), &digest);
                digest
            })
            .collect();
        let entry = |digest: &String| {
            format!(r#"{{"mediaType":"application/octet-stream","digest":"sha256:{digest}","size":9}}"#)
        };
        let layers: Vec<String> = digests[1..].iter().map(entry).collect();
        let media = "application/vnd.oci.image.manifest.v1+json";
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{media}","config":{},"layers":[{}]}}"#,
            entry(&digests[0]),
            layers.join(",")
        );
        let digest = put(&root, text.as_bytes());
        link(&place.join("_manifests/revisions/sha256"), &digest);
        let current = place.join("_manifests/tags").join(format!("t{tag}")).join("current");
        write(&current.join("link"), format!("sha256:{digest}").as_bytes());
        made += BLOBS_OF_IMAGE + 1;
        if tag == 0 {
            write(&own.join(&name).join("_origin"), br#"{"owner":"docker.io","visibility":"public"}"#);
        }
    }
    made
}

fn put(root: &Path, bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    write(&root.join("blobs/sha256").join(&hex[..2]).join(&hex).join("data"), bytes);
    hex
}

fn link(dir: &Path, hex: &str) {
    write(&dir.join(hex).join("link"), format!("sha256:{hex}").as_bytes());
}

fn write(path: &Path, bytes: &[u8]) {
    let dir = path.parent().expect("a path within the tree");
    std::fs::create_dir_all(dir).and_then(|()| std::fs::write(path, bytes)).expect("the tree can be made");
}

struct Server {
    child: Child,
    data: PathBuf,
}

impl Server {
    fn start(data: &Path) -> Self {
        // An upstream that nobody is, for nothing is to be asked.
        let upstream = "docker.io=http://127.0.0.1:9";
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(["serve", "--listen", LISTEN, "--upstream", upstream, "--offline", "--data"]).arg(data);
        let child =
            command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().expect("the server starts");
        Self { child, data: data.to_owned() }
    }

    /// Resident memory in KiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
    }

    fn command(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        let output =
            command.args(arguments).arg("--data").arg(&self.data).output().expect("the command runs");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
        told
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(LISTEN).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {LISTEN}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn metric(name: &str) -> Option<f64> {
    let answer = get("/metrics")?;
    answer.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn wait(is_there: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_there() {
        assert!(begun.elapsed() < PATIENCE, "it takes too long");
        std::thread::sleep(Duration::from_millis(2));
    }
}
