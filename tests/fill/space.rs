//! A data directory on a file system of its own, and what is taken of it, looked at all the time.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::support::process::{command, run};

/// From one look at the file system to the next, and how many of them to one walk through the tree.
const EVERY: Duration = Duration::from_millis(2);
const WALK: u64 = 50;
const PAGE: u64 = 4096;
/// Blobs alone wait for room: what manifests and links of the pulls under way may take beside it.
const SMALL: u64 = 128 << 10;

/// Mounts a tmpfs of this size there, in the test's namespace.
pub async fn tmpfs(at: &Path, size: u64) {
    std::fs::create_dir_all(at).unwrap();
    let mut mount = command("mount", ["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
    mount.arg(at);
    run(mount).await;
}

/// The most that was ever seen, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Most {
    pub looks: u64,
    /// All that is taken of the file system, and that without what keeps the tree.
    pub taken: u64,
    pub content: u64,
    /// By the walk: blobs, and files of fills.
    pub blobs: u64,
    pub staged: u64,
    /// The least that was free.
    pub free: u64,
}

/// Looks at a tmpfs until it is asked what it has seen.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Most>>,
    thread: Option<JoinHandle<()>>,
}

/// What a walk through the tree finds, in bytes.
#[derive(Clone, Copy, Default)]
struct Walk {
    blobs: u64,
    staged: u64,
    /// All other files, and what the last page of each blob has left.
    rest: u64,
    inodes: u64,
}

impl Sampler {
    pub fn start(data: PathBuf) -> Self {
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Most>>::default());
        let (stopped, most) = (stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            let mut walk = Walk::default();
            for look in 0.. {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                if look % WALK == 0 {
                    walk = Walk::through(&data);
                }
                most.lock().unwrap().look(&data, &walk);
                std::thread::sleep(EVERY);
            }
        });
        Self { stop, seen, thread: Some(thread) }
    }

    pub fn seen(&self) -> Most {
        *self.seen.lock().unwrap()
    }

    /// Panics if more than `cap` was held at any look, or less than `min_free` left, but for a little.
    #[track_caller]
    pub fn assert_kept_to(&self, cap: u64, min_free: u64) {
        let most = self.seen();
        eprintln!("of a cap of {cap}, {min_free} to stay free: {most:?}");
        assert!(most.looks > 10, "{most:?}");
        assert!(most.content <= cap + SMALL, "{most:?} of {cap}");
        assert!(most.free + SMALL >= min_free, "{most:?}, {min_free} to stay free");
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Most {
    /// One call tells all that is taken at one moment; a walk through the tree sees it at many.
    fn look(&mut self, data: &Path, walk: &Walk) {
        let space = rustix::fs::statvfs(data).unwrap();
        let taken = (space.f_blocks - space.f_bfree) * space.f_frsize;
        let new_files = (space.f_files - space.f_ffree).saturating_sub(walk.inodes);
        let content = taken.saturating_sub(walk.rest + new_files * PAGE);
        self.free = if self.looks == 0 { u64::MAX } else { self.free }.min(space.f_bavail * space.f_frsize);
        self.looks += 1;
        self.taken = self.taken.max(taken);
        self.content = self.content.max(content);
        self.blobs = self.blobs.max(walk.blobs);
        self.staged = self.staged.max(walk.staged);
    }
}

impl Walk {
    fn through(data: &Path) -> Self {
        let space = rustix::fs::statvfs(data).unwrap();
        let mut walk = Self { inodes: space.f_files - space.f_ffree, ..Self::default() };
        let mut directories = vec![data.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                // It may have gone just now.
                let Ok(stat) = entry.metadata() else { continue };
                let path = entry.path();
                if stat.is_dir() {
                    directories.push(path);
                    continue;
                }
                let taken = stat.blocks() * 512;
                if path.ends_with("data") {
                    walk.blobs += stat.len();
                    walk.rest += taken.saturating_sub(stat.len());
                } else if path.parent().is_some_and(|parent| parent.ends_with("forebay/fills")) {
                    walk.staged += taken;
                } else {
                    walk.rest += taken;
                }
            }
        }
        walk
    }
}
