//! The disk fails as the kernel has it fail: pulls are whole, pushes are refused and say why, and it
//! recovers by itself with all that was acknowledged.

use std::path::{Path, PathBuf};

use futures_util::future::join_all;

use super::support::faulty::{Fault, Upstream};
use super::support::image::{Image, random_bytes};
use super::support::mirror::Mirror;
use super::support::namespace::isolated;
use super::support::process::{Process, Wait, attempt, command, run};
use super::support::repository::{Repository, ending};
use super::support::{http, sha256, stored_blobs, unfinished};
use super::{MIB, blob_url, read_rest, read_some};

/// A server on a file system that is about to fail, with an image pushed and one pulled.
struct Rig {
    mirror: Mirror,
    upstream: Upstream,
    pushed: Image,
    seed: u64,
}

/// A file system of its own on a loop device. It goes with the test's namespace, once nothing is frozen.
struct Loop(PathBuf);

impl Loop {
    async fn mounted(directory: &Path, at: &Path) -> Self {
        let image = directory.join("disk.img");
        std::fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
        run(command("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), image.as_os_str()])).await;
        std::fs::create_dir_all(at).unwrap();
        run(command("mount", ["-o".as_ref(), "loop".as_ref(), image.as_os_str(), at.as_os_str()])).await;
        Self(at.to_owned())
    }

    async fn freeze(&self) {
        run(command("fsfreeze", ["--freeze".as_ref(), self.0.as_os_str()])).await;
    }

    fn thaw(&self) -> bool {
        command("fsfreeze", ["--unfreeze".as_ref(), self.0.as_os_str()]).status().is_ok_and(|s| s.success())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.thaw();
        }
    }
}

async fn tmpfs(at: &Path, options: &str) {
    std::fs::create_dir_all(at).unwrap();
    let mut mount = command("mount", ["-t", "tmpfs", "-o", options, "tmpfs"]);
    mount.arg(at);
    run(mount).await;
}

impl Rig {
    async fn start(directory: &Path) -> Self {
        let upstream = Upstream::start().await;
        let mirror = Mirror::start(directory, &upstream.url()).await;
        let (pushed, pulled) = (Image::random(1, 1, 100_000), Image::random(2, 1, 200_000));
        upstream.put_image("library/held", "1", &pulled);
        let rig = Self { mirror, upstream, pushed, seed: 10 };
        rig.app().push(&rig.pushed, "1").await;
        rig.repository("library/held").whole("1").await.unwrap();
        rig.mirror.linked("library/held/_manifests/tags/1/current/link").await;
        rig.settled().await;
        rig.assert_well().await;
        rig
    }

    fn repository(&self, name: &str) -> Repository {
        Repository::new(&self.mirror.url(), name)
    }

    fn app(&self) -> Repository {
        self.repository("app")
    }

    async fn settled(&self) {
        let wait = Wait::for_("fills to end");
        while self.mirror.metric("forebay_fills_in_flight").await > 0.0 {
            wait.a_little().await;
        }
    }

    async fn ready(&self) -> (u16, String) {
        let answer = http().get(self.mirror.url() + "/readyz").send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn state(&self, state: &str) -> f64 {
        self.mirror.metric(&format!("forebay_disk_state{{state=\"{state}\"}}")).await
    }

    async fn assert_well(&self) {
        assert_eq!(self.ready().await, (200, "ready\n".to_owned()));
        assert_eq!(self.state("ok").await, 1.0);
    }

    /// Pulls a blob that nobody has pulled before.
    async fn pull_new(&mut self, size: usize) -> String {
        self.seed += 1;
        let bytes = random_bytes(self.seed, size);
        let digest = self.upstream.put_blob("library/x", bytes.clone());
        let mut answer = http().get(blob_url(&self.mirror, "library/x", &digest)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        read_rest(&mut answer, &bytes, 0).await;
        digest
    }

    /// What a client is told that pushes a new blob of this size; `None` where it was taken.
    async fn push_refused(&mut self, size: usize) -> Option<String> {
        self.seed += 1;
        let (repository, bytes) = (self.app(), random_bytes(self.seed, size));
        let begun = repository.send(reqwest::Method::POST, "blobs/uploads/").await;
        let answer = match begun.header("location") {
            Some(location) if begun.status == 202 => {
                let put = ending(location, &sha256(&bytes));
                let request = repository.request(reqwest::Method::PUT, &put).body(bytes);
                let answer = request.send().await.unwrap();
                (answer.status().as_u16(), answer.text().await.unwrap())
            }
            _ => (begun.status, String::from_utf8(begun.body.to_vec()).unwrap()),
        };
        match answer.0 {
            201 => None,
            status => {
                assert_eq!(status, 507, "{}", answer.1);
                Some(answer.1)
            }
        }
    }

    /// In this trouble: everything flows, nothing new is kept, and everybody is told.
    async fn assert_trouble(&mut self, state: &str, what: &str) {
        let wait = Wait::for_("the trouble to show");
        while self.state(state).await < 1.0 {
            // What is tried shows it.
            self.pull_new(100_000).await;
            let _ = self.push_refused(100_000).await;
            wait.a_little().await;
        }
        let (status, body) = self.ready().await;
        assert_eq!(status, 200, "{body}");
        assert!(body.starts_with("ready\ndegraded since 2") && body.contains(what), "{body}");
        let page = http().get(self.mirror.url() + "/").send().await.unwrap().text().await.unwrap();
        assert!(page.contains("<strong>degraded since 2"), "{page}");
        let refused = self.push_refused(1000).await.expect("a refusal");
        assert!(refused.contains("UNAVAILABLE") && refused.contains(what), "{refused}");
        assert!(!refused.contains(self.mirror.data().to_str().unwrap()), "{refused}");
        // Images, held and new, and many at once.
        self.intact().await;
        let new = Image::random(self.seed, 1, 150_000);
        self.upstream.put_image("library/new", &format!("{}", self.seed), &new);
        self.repository("library/new").whole(&format!("{}", self.seed)).await.unwrap();
        let large = random_bytes(self.seed + 1000, 6 * MIB);
        let digest = self.upstream.put_blob("library/x", large.clone());
        let url = blob_url(&self.mirror, "library/x", &digest);
        join_all((0..3).map(async |_| {
            let mut answer = http().get(&url).send().await.unwrap();
            read_rest(&mut answer, &large, 0).await;
        }))
        .await;
        assert_eq!(self.state(state).await, 1.0, "{}", self.mirror.log());
    }

    /// What was held before is held.
    async fn intact(&self) {
        assert_eq!(
            self.app().whole("1").await.unwrap().len(),
            1 + self.pushed.manifests.len() + self.pushed.blobs.len()
        );
        self.repository("library/held").whole("1").await.unwrap();
    }

    /// Without a restart, all is kept again, and nothing was lost.
    async fn assert_recovers(&mut self) {
        let wait = Wait::for_("the disk to be trusted again");
        while self.state("ok").await < 1.0 {
            wait.a_little().await;
        }
        self.assert_well().await;
        let digest = self.pull_new(300_000).await;
        self.settled().await;
        assert!(stored_blobs(&self.mirror.data()).contains(&digest), "{}", self.mirror.log());
        let image = Image::random(self.seed + 2000, 1, 50_000);
        self.app().push(&image, "2").await;
        self.app().whole("2").await.unwrap();
        self.intact().await;
        assert_eq!(unfinished(&self.mirror.data()), [] as [&Path; 0]);
        // The change of state is told, not each blob.
        let told =
            self.mirror.log().matches("what is pulled is passed on without being kept, and pushes").count();
        assert!((1..=3).contains(&told), "{told} times:\n{}", self.mirror.log());
        self.mirror.kill();
        self.mirror.restart().await;
        self.intact().await;
        self.app().whole("2").await.unwrap();
    }
}

/// Takes all that is left, and gives it back.
struct Glutton(PathBuf);

impl Glutton {
    fn eat(data: &Path) -> Self {
        use std::io::Write;
        let path = data.join("glutton");
        let mut file = std::fs::File::create(&path).unwrap();
        for piece in [64 << 10, 1] {
            let bytes = vec![0; piece];
            while file.write_all(&bytes).is_ok() {}
        }
        Self(path)
    }
}

impl Drop for Glutton {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_full_disk_is_told_and_recovers() {
    isolated(async |directory| {
        tmpfs(&directory.join("data"), "size=64m").await;
        let mut rig = Rig::start(&directory).await;
        let glutton = Glutton::eat(&rig.mirror.data());
        rig.assert_trouble("full", "make room on the file system").await;
        drop(glutton);
        rig.assert_recovers().await;
    });
}

#[test]
fn a_disk_without_inodes_is_told_and_recovers() {
    isolated(async |directory| {
        tmpfs(&directory.join("data"), "size=64m,nr_inodes=400").await;
        let mut rig = Rig::start(&directory).await;
        let crowd = rig.mirror.data().join("crowd");
        std::fs::create_dir(&crowd).unwrap();
        let mut number = 0;
        while std::fs::File::create(crowd.join(number.to_string())).is_ok() {
            number += 1;
        }
        rig.assert_trouble("inodes", "no inodes left").await;
        std::fs::remove_dir_all(crowd).unwrap();
        rig.assert_recovers().await;
    });
}

#[test]
fn a_disk_that_becomes_read_only_is_told_and_recovers() {
    isolated(async |directory| {
        let disk = Loop::mounted(&directory, &directory.join("data")).await;
        let mut rig = Rig::start(&directory).await;
        // The lock is open for writing, which keeps the mount that it was opened through as it is.
        run(command("mount", ["--bind".as_ref(), disk.0.as_os_str(), disk.0.as_os_str()])).await;
        let remount =
            |how: &str| command("mount", ["-o", &format!("remount,bind,{how}"), disk.0.to_str().unwrap()]);
        let wait = Wait::for_("the last write");
        while attempt(remount("ro")).await.is_err() {
            wait.a_little().await;
        }
        rig.assert_trouble("read_only", "remount it for writing").await;
        run(remount("rw")).await;
        rig.assert_recovers().await;
    });
}

#[test]
fn a_frozen_disk_holds_up_nobody() {
    isolated(async |directory| {
        let disk = Loop::mounted(&directory, &directory.join("data")).await;
        let mut rig = Rig::start(&directory).await;
        // One blob and one upload are under way when it stops.
        let bytes = random_bytes(5, 12 * MIB);
        let digest = rig.upstream.put_blob("library/x", bytes.clone());
        rig.upstream.on("GET", &digest).then(Fault::Rate(4 << 20));
        let mut under_way = http().get(blob_url(&rig.mirror, "library/x", &digest)).send().await.unwrap();
        let read = read_some(&mut under_way, &bytes, MIB).await;
        let app = rig.app();
        let location = app.begin().await;
        disk.freeze().await;
        let patch = app.request(reqwest::Method::PATCH, &location).body(random_bytes(6, 3 * MIB));
        let patch = tokio::spawn(patch.send());
        // More than there are threads that could wait for the disk.
        let pushers = join_all((0..600).map(|_| {
            let begin = app.request(reqwest::Method::POST, "blobs/uploads/").send();
            async move { begin.await.map(|answer| answer.status().as_u16()) }
        }));
        let pushers = tokio::spawn(pushers);
        read_rest(&mut under_way, &bytes, read).await;
        rig.intact().await;
        rig.assert_trouble("stalled", "the disk does not answer").await;
        assert_eq!(patch.await.unwrap().unwrap().status(), 507);
        for answer in pushers.await.unwrap() {
            assert_eq!(answer.unwrap(), 507);
        }
        assert!(disk.thaw());
        rig.assert_recovers().await;
    });
}

/// Has system calls of a process fail, until it is dropped.
struct Injected(Process);

impl Injected {
    async fn into(mirror: &mut Mirror, calls: &str, error: &str, log: &Path) -> Self {
        let (pid, trace) = (mirror.process().id().to_string(), format!("trace={calls}"));
        let inject = format!("inject={calls}:error={error}");
        let mut strace = command("strace", ["-f", "-p", &pid, "-e", &trace, "-e", &inject]);
        let strace = Process::start("strace", &mut strace, log);
        let wait = Wait::for_("strace to attach");
        while !strace.log().contains("attached") {
            wait.a_little().await;
        }
        Self(strace)
    }

    fn lift(mut self) {
        assert!(self.0.terminate(std::time::Duration::from_secs(30)).is_some(), "strace does not let go");
    }
}

#[test]
fn a_sync_that_failed_acknowledges_nothing() {
    isolated(async |directory| {
        let disk = Loop::mounted(&directory, &directory.join("data")).await;
        let mut rig = Rig::start(&directory).await;
        let log = directory.join("strace");
        let failing = Injected::into(&mut rig.mirror, "fsync,fdatasync", "EIO", &log).await;
        let (app, bytes) = (rig.app(), bytes::Bytes::from(random_bytes(7, 400_000)));
        let digest = sha256(&bytes);
        let refused = app.try_blob(&digest, bytes.clone()).await.unwrap().expect(507);
        assert!(String::from_utf8_lossy(&refused.body).contains("the disk fails"), "{refused:?}");
        rig.assert_trouble("failing", "the disk fails").await;
        failing.lift();
        // What failed to sync is not there, neither for a client that asks nor for one that goes on.
        assert_eq!(app.status(&format!("blobs/{digest}")).await, 404);
        rig.assert_recovers().await;
        assert_eq!(app.status(&format!("blobs/{digest}")).await, 404);
        app.push_blob(bytes.clone()).await;
        assert_eq!(app.get(&format!("blobs/{digest}")).await.expect(200).body, bytes);
        drop(disk);
    });
}

#[test]
fn a_write_that_fails_is_told_and_recovers() {
    isolated(async |directory| {
        let disk = Loop::mounted(&directory, &directory.join("data")).await;
        let mut rig = Rig::start(&directory).await;
        let log = directory.join("strace");
        let failing = Injected::into(&mut rig.mirror, "pwritev,pwritev2,pwrite64", "EIO", &log).await;
        rig.assert_trouble("failing", "the disk fails").await;
        failing.lift();
        rig.assert_recovers().await;
        drop(disk);
    });
}

#[test]
fn lost_permissions_are_told_and_recover() {
    isolated(async |directory| {
        let disk = Loop::mounted(&directory, &directory.join("data")).await;
        let mut rig = Rig::start(&directory).await;
        // Permissions do not bind root; this does.
        let change = |how: &str| {
            let fills = rig.mirror.data().join("forebay/fills");
            command("chattr", [how.as_ref(), fills.as_os_str()])
        };
        run(change("+i")).await;
        let back = change("-i");
        rig.assert_trouble("denied", "the disk refuses writes").await;
        run(back).await;
        rig.assert_recovers().await;
        drop(disk);
    });
}
