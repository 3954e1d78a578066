//! Forebay under callgrind.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

/// Whether it is there.
pub fn valgrind() -> Result<(), String> {
    for program in ["valgrind", "vgdb"] {
        Command::new(program).arg("--help").output().map_err(|error| format!("{program}: {error}"))?;
    }
    Ok(())
}

pub struct Server {
    child: Child,
    pub address: SocketAddr,
    scratch: PathBuf,
    dumps: std::cell::Cell<usize>,
}

impl Server {
    pub fn start(scratch: &Path, upstream: SocketAddr) -> Self {
        // Free again when it is asked for.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap();
        let mut command = Command::new("valgrind");
        command.args(["--quiet", "--tool=callgrind", "--separate-threads=no"]);
        command.arg(format!("--callgrind-out-file={}", scratch.join("counts").display()));
        // Where vgdb finds it.
        command.arg(format!("--vgdb-prefix={}", scratch.join("vgdb").display()));
        command.arg(env!("CARGO_BIN_EXE_forebay")).args(["serve", "--listen", &address.to_string()]);
        command
            .args(["--upstream", &format!("docker.io=http://{upstream}"), "--data"])
            .arg(scratch.join("data"));
        // One thread takes what is to be done from the other, or not, as it happens.
        command.env("TOKIO_WORKER_THREADS", "1");
        let child = command.stdout(Stdio::null()).spawn().expect("the server starts");
        let server = Self { child, address, scratch: scratch.to_owned(), dumps: 0.into() };
        let begun = Instant::now();
        while !get(address, "/metrics").is_some_and(|told| told.contains("\nforebay_store_index_whole 1\n")) {
            assert!(begun.elapsed() < PATIENCE, "the server does not serve");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// Those since it was last asked, of all threads.
    pub fn instructions(&self) -> u64 {
        let mut command = Command::new("vgdb");
        command.arg(format!("--vgdb-prefix={}", self.scratch.join("vgdb").display()));
        let output = command.arg(format!("--pid={}", self.child.id())).arg("dump").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.dumps.set(self.dumps.get() + 1);
        let path = self.scratch.join(format!("counts.{}", self.dumps.get()));
        let dump =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let line = dump.lines().find_map(|line| line.strip_prefix("totals: ")).expect("a total");
        line.trim().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
