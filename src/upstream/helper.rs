//! Credential helpers: programs that are asked for a login (docker-credential-helpers, `get`).

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::credential::{HELPER_PREFIX, Login};

/// Longest time that a helper is waited for.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// An answer is an object of three texts; the longest of them is a token of some kilobytes.
const MAX_ANSWER: usize = 256 * 1024;
/// What is shown of a helper's complaints, in the debug log only.
const MAX_COMPLAINT: usize = 500;
/// How long what an ended helper has left in its pipes is waited for.
const REST: Duration = Duration::from_millis(500);
/// How often is looked whether a helper has ended that somebody else keeps the pipe of open.
const LOOK: Duration = Duration::from_millis(25);

/// What helpers say when they know no login for a server (docker-credential-helpers).
const NOT_FOUND: &str = "credentials not found in native keychain";

/// Where the helper of this name is, the first one in `search`. The error names the remedy.
pub fn find(name: &str, search: &[PathBuf]) -> Result<PathBuf, String> {
    let file = match name.strip_prefix(HELPER_PREFIX) {
        Some(_) => name.to_owned(),
        None => format!("{HELPER_PREFIX}{name}"),
    };
    search.iter().map(|directory| directory.join(&file)).find(|path| is_program(path)).ok_or_else(|| {
        format!(
            "there is no {file} in the directories of PATH; install it for the user that runs Forebay, or give \
             its absolute path as `credential_helper`"
        )
    })
}

/// Whether a path leads to a regular file that somebody may execute.
pub fn is_program(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    secret: String,
}

/// Asks a helper for the login of a server; None: it knows none. What it wrote is never part of the
/// error, which clients may see.
pub async fn ask(program: &Path, server: &str, patience: Duration) -> Result<Option<Login>, String> {
    let shown = program.display();
    let ended = run(program, server, patience).await.map_err(|why| format!("{shown} {why}"))?;
    if !ended.complaint.is_empty() {
        tracing::debug!(helper = %shown, server, says = one_line(&ended.complaint), "credential helper");
    }
    if ended.answer.len() > MAX_ANSWER {
        return Err(format!("{shown} wrote more than {} KiB", MAX_ANSWER / 1024));
    }
    if !ended.status.success() {
        // Failures are told on standard output, too.
        if String::from_utf8_lossy(&ended.answer).trim() == NOT_FOUND {
            return Ok(None);
        }
        tracing::debug!(helper = %shown, server, says = one_line(&ended.answer), "credential helper failed");
        let told = match ended.status.code() {
            Some(code) => format!("ended with status {code}"),
            None => "was ended by a signal".to_owned(),
        };
        return Err(format!("{shown} {told}; the debug log has what it said"));
    }
    let wrong = || format!("{shown} answered with something else than a login");
    let answer: Answer = serde_json::from_slice(&ended.answer).map_err(|_| wrong())?;
    if answer.secret.trim_end_matches('\0').is_empty() || answer.username.contains([':', '\0', '\n', '\r']) {
        return Err(wrong());
    }
    Ok(Some(Login::new(answer.username, &answer.secret)))
}

struct Ended {
    status: ExitStatus,
    answer: Vec<u8>,
    complaint: Vec<u8>,
}

/// Kills a helper and all that it has started, unless it was seen to end.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // Fails where nobody is left. The helper itself is not reaped yet, so its number is nobody else's.
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

/// Runs a helper to its end, without a shell, in a process group of its own.
async fn run(program: &Path, server: &str, patience: Duration) -> Result<Ended, String> {
    let mut command = Command::new(program);
    command.arg("get").process_group(0).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Reading a program from disk may take its time.
    let spawned = tokio::task::spawn_blocking(move || command.spawn()).await;
    let mut child =
        spawned.map_err(io::Error::other).flatten().map_err(|error| format!("cannot be run: {error}"))?;
    let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    // A child that was not waited for has a number.
    let pid = id.ok_or("cannot be run: it has no process number")?;
    let group = Group(pid);
    let work = async {
        let (mut answer, mut complaint) = (Vec::new(), Vec::new());
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        {
            let read = async {
                tokio::join!(
                    tell(stdin, server),
                    read_up_to(stdout, MAX_ANSWER + 1, &mut answer),
                    read_start(stderr, MAX_COMPLAINT, &mut complaint)
                );
            };
            tokio::pin!(read);
            tokio::select! {
                () = &mut read => {}
                () = exited(pid) => {
                    // Whoever it has left behind keeps the pipes open, perhaps for ever.
                    let _ = tokio::time::timeout(REST, &mut read).await;
                }
            }
        }
        // One that has written too much is not waited for.
        if answer.len() <= MAX_ANSWER {
            exited(pid).await;
        }
        (answer, complaint)
    };
    let done = tokio::time::timeout(patience, work).await;
    drop(group);
    let status = reap(&mut child).await?;
    let (answer, complaint) =
        done.map_err(|_| format!("did not answer within {patience:?} and was killed"))?;
    Ok(Ended { status, answer, complaint })
}

async fn reap(child: &mut Child) -> Result<ExitStatus, String> {
    // It was killed, or has ended before.
    let status = tokio::time::timeout(PATIENCE, child.wait()).await;
    status.map_err(io::Error::other).flatten().map_err(|error| format!("does not end: {error}"))
}

/// Completes when the process has ended; it stays to be reaped.
async fn exited(pid: Pid) {
    let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while let Ok(None) = waitid(WaitId::Pid(pid), how) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Writes one line and closes. A helper that does not read it has its reasons.
async fn tell(stdin: Option<tokio::process::ChildStdin>, server: &str) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
    }
}

/// Reads to the end or to `most` bytes, and closes.
async fn read_up_to(pipe: Option<impl AsyncRead + Unpin>, most: usize, into: &mut Vec<u8>) {
    if let Some(pipe) = pipe {
        let _ = pipe.take(most as u64).read_to_end(into).await;
    }
}

/// Reads to the end and keeps the first `most` bytes: who complains at length is not to die of it.
async fn read_start(pipe: Option<impl AsyncRead + Unpin>, most: usize, into: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        into.extend_from_slice(&buffer[..count.min(most - into.len())]);
    }
}

/// The start of a text, as one line of a log.
fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_COMPLAINT)]);
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    words.join(" ")
}
