//! A network in which nothing but loopback exists: what works there, works without the internet.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `test` in a network namespace and a mount namespace of its own, with a scratch directory.
///
/// Sockets that the test opens and processes that it starts are in there with it. The namespaces
/// and every mount end with the last process, and the directory goes after that.
pub fn isolated<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F + Send) {
    assert!(rustix::process::geteuid().is_root(), "tests with real clients need root (network namespaces)");
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().to_owned();
    let outcome = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter();
            // The runtime's threads are started from this one and so share its namespaces.
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            runtime.worker_threads(2).enable_all().build().unwrap().block_on(test(directory));
        });
        thread.join()
    });
    drop(scratch);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Takes the calling thread, and whatever it starts, into new namespaces.
fn enter() {
    // SAFETY: file descriptors stay shared (`UnshareFlags::FILES` is not asked for).
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
    for command in ["mount --make-rprivate /", "ip link set lo up"] {
        let words: Vec<&str> = command.split(' ').collect();
        let status = Command::new(words[0]).args(&words[1..]).status();
        assert!(status.is_ok_and(|s| s.success()), "`{command}` failed");
    }
}

/// Gives this machine an address more, inside [`isolated`].
pub fn add_address(address: &str) {
    let status = Command::new("ip").args(["address", "add", address, "dev", "lo"]).status();
    assert!(status.is_ok_and(|s| s.success()), "no address {address}");
}

/// Says what names mean, in lines of `/etc/hosts`, inside [`isolated`].
pub fn name_hosts(directory: &Path, lines: &str) {
    // Without `multi`, a name has the first of its addresses alone.
    for (file, text) in [("hosts", lines), ("host.conf", "multi on\n")] {
        let own = directory.join(file);
        std::fs::write(&own, text).unwrap();
        let status = Command::new("mount").arg("--bind").arg(&own).arg(Path::new("/etc").join(file)).status();
        assert!(status.is_ok_and(|s| s.success()), "no /etc/{file} of its own");
    }
}
