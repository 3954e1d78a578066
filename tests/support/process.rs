//! Child processes that end with their guard, and waits that end.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// What a well-behaved server may take to start, a client to pull, a condition to come true.
pub const PATIENCE: Duration = Duration::from_secs(60);

const REMEDY: &str = "tests/install.sh installs what the tests need";

/// What a process may take to end by SIGTERM when its guard goes.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A running server. Ends it when dropped, and prints its last lines if the test is failing.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it says is appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let out = append(log);
        let err = out.try_clone().unwrap();
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.unwrap_or_else(|e| panic!("{name}: {e}; {REMEDY}"));
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Panics, with what it said, unless the process still runs.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("{} ended by itself ({status}):\n{}", self.name, last_words(&self.log()));
        }
    }

    /// Sends `signal`; nothing happens if the process has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.child.try_wait().unwrap().is_none() {
            kill_process(Pid::from_child(&self.child), signal).unwrap();
        }
    }

    /// kill -9, and waits for the end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    /// SIGTERM. The exit status, or `None` where it took longer than `patience` and was killed.
    pub fn terminate(&mut self, patience: Duration) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        self.end(patience)
    }

    /// Waits for its end, as `terminate` does, without asking for it.
    pub fn end(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.terminate(LAST_WORDS);
        if std::thread::panicking() {
            eprintln!("--- {} said at last ---\n{}", self.name, last_words(&self.log()));
        }
    }
}

/// `program` with `arguments`, to be run or started.
pub fn command<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs a client to its end and gives back its standard output. Panics with all that it said if it
/// fails or takes longer than `PATIENCE`.
pub async fn run(command: Command) -> String {
    attempt(command).await.unwrap_or_else(|said| panic!("{said}"))
}

/// As `run`, but failure is an answer: everything that the client said.
pub async fn attempt(command: Command) -> Result<String, String> {
    let shown = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let Ok(output) = tokio::time::timeout(PATIENCE, output).await else {
        return Err(format!("{shown} took longer than {PATIENCE:?}"));
    };
    let output = output.unwrap_or_else(|e| panic!("{shown}: {e}; {REMEDY}"));
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(out);
    }
    Err(format!("{shown}: {}\n{out}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// A loop that waits for something to come true, and ends:
/// `let wait = Wait::for_("the thing"); while !there() { wait.a_little().await; }`
pub struct Wait {
    what: &'static str,
    begun: Instant,
}

impl Wait {
    pub fn for_(what: &'static str) -> Self {
        Self { what, begun: Instant::now() }
    }

    /// Lets some time pass. Panics when `PATIENCE` is over.
    pub async fn a_little(&self) {
        assert!(self.begun.elapsed() < PATIENCE, "waited {PATIENCE:?} for {}", self.what);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A port of loopback that nobody listens on, and that no other call in this process is given. It is
/// none of those that the kernel hands out by itself, so that no connection or server takes it before
/// it is used.
pub fn free_port() -> u16 {
    const BELOW_EPHEMERAL: std::ops::Range<u32> = 12_000..32_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    // Test processes that run at the same time begin at different places.
    let begin = std::process::id().wrapping_mul(7919);
    for _ in BELOW_EPHEMERAL {
        let turn = begin.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = BELOW_EPHEMERAL.start + turn % (BELOW_EPHEMERAL.end - BELOW_EPHEMERAL.start);
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("all ports of loopback in {BELOW_EPHEMERAL:?} are taken");
}

/// The last 30 lines of a log, long ones cut short.
fn last_words(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let cut = |line: &&str| line.chars().take(300).chain(['\n']).collect::<String>();
    lines[lines.len().saturating_sub(30)..].iter().map(cut).collect()
}

fn append(path: &Path) -> File {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
