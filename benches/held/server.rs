//! Forebay on a tree.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(3600);

pub struct Server {
    child: Child,
    data: PathBuf,
    pub address: SocketAddr,
}

impl Server {
    /// By the defaults, or by a configuration file.
    pub fn start(data: &Path, configuration: Option<&Path>) -> Self {
        // Free again when it is asked for.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap();
        // An upstream that nobody is, for nothing is to be asked.
        let upstream = "docker.io=http://127.0.0.1:9";
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(["serve", "--listen", &address.to_string(), "--upstream", upstream, "--offline"]);
        command.arg("--data").arg(data);
        if let Some(configuration) = configuration {
            command.arg("--config").arg(configuration);
        }
        let child =
            command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().expect("the server starts");
        Self { child, data: data.to_owned(), address }
    }

    /// Resident memory in KiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
    }

    /// What each of its threads had of the processors so far, in nanoseconds: `/proc/PID/stat` has ticks.
    pub fn cpu(&self) -> HashMap<OsString, u64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("the server runs");
        let spent = tasks.map(|task| {
            let task = task.unwrap();
            let spent = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            (task.file_name(), spent.split(' ').next().and_then(|spent| spent.parse().ok()).unwrap_or(0))
        });
        spent.collect()
    }

    /// A thread that ended meanwhile was idle, and what it had spent before is no part of this.
    pub fn cpu_since(&self, before: &HashMap<OsString, u64>) -> Duration {
        let spent = |(task, spent): (&OsString, &u64)| spent.saturating_sub(*before.get(task).unwrap_or(&0));
        Duration::from_nanos(self.cpu().iter().map(spent).sum())
    }

    pub fn command(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        let output =
            command.args(arguments).arg("--data").arg(&self.data).output().expect("the command runs");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
        told
    }

    pub fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    pub fn serves(&self, path: &str) -> bool {
        self.get(path).is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    pub fn metric(&self, name: &str) -> Option<f64> {
        let answer = self.get("/metrics")?;
        answer.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Until all that is held is known.
    pub fn wait_until_whole(&self) {
        wait(|| self.metric("forebay_store_index_whole") == Some(1.0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn wait(is_there: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_there() {
        assert!(begun.elapsed() < PATIENCE, "it takes too long");
        std::thread::sleep(Duration::from_micros(500));
    }
}
