//! Little memory and few file descriptors: many cold blobs at once, while there is no room to keep them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;

use super::slow::Slow;
use super::support::faulty::Upstream;
use super::support::image::random_bytes;
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::{full, http, stored_blobs};
use super::{Blob, MIB, blob_url, read_rest};

const CLIENTS: usize = 200;
const DESCRIPTORS: usize = 1024;
const MEMORY: u64 = 128 << 20;

/// A cgroup (v1) that may have so much memory. Its processes have to be gone before it is.
struct Cgroup(PathBuf);

impl Cgroup {
    fn with_memory(bytes: u64) -> Self {
        let name = format!("forebay-test-{}-{}", std::process::id(), rand::random::<u32>());
        let path = Path::new("/sys/fs/cgroup/memory").join(name);
        let told = "a cgroup v1 memory controller that root may use is needed";
        std::fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}: {told}", path.display()));
        let cgroup = Self(path);
        std::fs::write(cgroup.0.join("memory.limit_in_bytes"), bytes.to_string()).unwrap();
        cgroup
    }

    fn number(&self, file: &str) -> u64 {
        std::fs::read_to_string(self.0.join(file)).unwrap().trim().parse().unwrap()
    }

    /// Bytes of anonymous memory and of the page cache.
    fn stat(&self, key: &str) -> u64 {
        let text = std::fs::read_to_string(self.0.join("memory.stat")).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value.unwrap().parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// The most memory that the process ever had, in KiB.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// A mirror that may keep so much, and the cgroup that it is in.
struct Confined {
    // In this order: a cgroup goes when it is empty.
    mirror: Mirror,
    cgroup: Cgroup,
    upstream: Upstream,
    _directory: tempfile::TempDir,
}

impl Confined {
    async fn start(max_size: usize) -> Self {
        let (cgroup, directory) = (Cgroup::with_memory(MEMORY), tempfile::tempdir().unwrap());
        let upstream = Upstream::start().await;
        let script = format!(
            "echo $$ > {}/cgroup.procs && ulimit -H -S -n {DESCRIPTORS} && exec \"$@\"",
            cgroup.0.display()
        );
        let under = ["sh", "-c", &script, "sh"].map(str::to_owned).to_vec();
        let config = Some(format!("[cache]\nmax_size = \"{max_size}B\"\n"));
        let options = MirrorOptions { upstream: upstream.url(), config, under, ..Default::default() };
        let mirror = Mirror::with(directory.path(), options).await;
        Self { mirror, cgroup, upstream, _directory: directory }
    }

    fn blobs(&self, seeds: std::ops::Range<u64>, size: usize) -> Vec<Blob> {
        let blob = |seed| {
            let bytes = bytes::Bytes::from(random_bytes(seed, size));
            Blob { digest: self.upstream.put_blob("library/x", bytes.clone()), bytes }
        };
        seeds.map(blob).collect()
    }

    async fn pull(&self, blob: &Blob) {
        let mut answer = http().get(blob_url(&self.mirror, "library/x", &blob.digest)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        read_rest(&mut answer, &blob.bytes, 0).await;
    }

    async fn pull_all(&self, blobs: &[Blob]) {
        join_all(blobs.iter().map(|blob| self.pull(blob))).await;
    }

    /// Does `pulls`, and tells what they took.
    async fn measured(&mut self, what: &str, pulls: impl AsyncFnOnce(&Self)) {
        let pid = self.mirror.process().id();
        let (done, open, anonymous) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicU64::new(0));
        let pull = async {
            pulls(self).await;
            done.store(true, Ordering::SeqCst);
        };
        let look = async {
            while !done.load(Ordering::SeqCst) {
                open.fetch_max(descriptors(pid), Ordering::SeqCst);
                anonymous.fetch_max(self.cgroup.stat("rss"), Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::join!(pull, look);
        eprintln!(
            "{what}: at most {} MiB resident, {} MiB of the cgroup, {} MiB of it anonymous, {open:?} descriptors; \
             the limit was met {} times, {} blobs passed on",
            peak(pid) / 1024,
            self.cgroup.number("memory.max_usage_in_bytes") >> 20,
            anonymous.into_inner() >> 20,
            self.cgroup.number("memory.failcnt"),
            self.mirror.metric("forebay_fill_relays_total").await,
        );
        // It is the same process, well, and keeps again what there is room for.
        self.mirror.process().assert_running();
        let after = self.blobs(1000..1001, MIB);
        self.pull_all(&after).await;
        self.mirror.committed(0).await;
        assert!(stored_blobs(&self.mirror.data()).contains(&after[0].digest));
    }
}

/// Blobs that fill a cap of 24 MiB.
async fn at_its_cap() -> Confined {
    let rig = Confined::start(24 * MIB).await;
    let held = rig.blobs(0..8, 3 * MIB);
    rig.pull_all(&held).await;
    rig.mirror.committed(1).await;
    rig
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_cold_blobs_in_little_memory() {
    let mut rig = at_its_cap().await;
    let cold = rig.blobs(100..100 + CLIENTS as u64, if full() { 16 * MIB } else { 3 * MIB });
    rig.measured("at the cap", async |rig| rig.pull_all(&cold).await).await;
}

/// All begin to read slowly, whether or not there is room for what they read.
async fn assert_slow_readers_are_cheap(mut rig: Confined, size: usize) {
    // Two hundred take most of what there is, on a machine of two cores.
    let readers = if full() { CLIENTS } else { CLIENTS / 4 };
    let cold = rig.blobs(100..100 + readers as u64, size);
    let pulls = async |rig: &Confined| {
        let mut readers = Slow::new(rig.mirror.port);
        cold.iter().for_each(|blob| readers.read("library/x", &blob.digest, &blob.bytes));
        tokio::time::sleep(Duration::from_secs(if full() { 8 } else { 3 })).await;
        assert!(readers.all_read(), "slower readers are needed");
        readers.hurry().await;
    };
    rig.measured(&format!("slow readers of {} MiB each", size / MIB), pulls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_by_slow_readers() {
    assert_slow_readers_are_cheap(at_its_cap().await, if full() { 16 * MIB } else { 4 * MIB }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_by_slow_readers_of_what_is_kept() {
    assert_slow_readers_are_cheap(Confined::start(16 << 30).await, 3 * MIB).await;
}
