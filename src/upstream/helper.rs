//! Credential helpers: programs that are asked for a login (docker-credential-helpers, `get`).

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::FutureExt;
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
        // Unless it is an answer all the same.
        if !ended.answer.contains(&b'{') {
            tracing::debug!(helper = %shown, server, says = one_line(&ended.answer), "credential helper failed");
        }
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
                // One that writes too much is not waited for.
                let _ = tokio::try_join!(
                    tell(stdin, server).map(Ok),
                    read_start(stderr, MAX_COMPLAINT, &mut complaint).map(Ok),
                    read_all(stdout, MAX_ANSWER, &mut answer)
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

struct TooMuch;

/// Reads to the end, which is to come within `most` bytes.
async fn read_all(
    pipe: Option<impl AsyncRead + Unpin>,
    most: usize,
    into: &mut Vec<u8>,
) -> Result<(), TooMuch> {
    if let Some(pipe) = pipe {
        // What was read until an error will do, or is no answer.
        let _ = pipe.take(most as u64 + 1).read_to_end(into).await;
    }
    if into.len() > most { Err(TooMuch) } else { Ok(()) }
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Instant;

    use crate::upstream::credential::LoginSecret;

    /// Another process writes it: one that this one has open for writing could not be run by a third.
    pub fn script(directory: &Path, name: &str, body: &str) -> PathBuf {
        let path = directory.join(name);
        let mut writer = std::process::Command::new("sh");
        writer.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(&path).stdin(Stdio::piped());
        let mut writer = writer.spawn().unwrap();
        writer.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{body}\n").as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
        path
    }

    async fn asked(body: &str) -> Result<Option<Login>, String> {
        let directory = tempfile::tempdir().unwrap();
        ask(&script(directory.path(), "helper", body), "registry.corp:5000", PATIENCE).await
    }

    #[tokio::test]
    async fn a_helper_is_told_the_server_and_tells_the_login() {
        let echo = r#"read -r server; [ "$1" = get ] && [ $# = 1 ] || exit 7
            printf '{"ServerURL":"%s","Username":"%s","Secret":"s3cret"}' "$server" "${server%%:*}""#;
        let login = asked(echo).await.unwrap().unwrap();
        assert_eq!(login.username, "registry.corp");
        assert!(login.secret == LoginSecret::Password(super::super::Secret::new("s3cret".into())));
        let token = asked(r#"cat >/dev/null; echo '{"Username":"<token>","Secret":"id"}'"#).await.unwrap();
        assert!(matches!(token.unwrap().secret, LoginSecret::IdentityToken(_)));
        // One that does not read what it is asked for, and one that talks a lot besides.
        let deaf = r#"exec <&-; echo '{"Username":"u","Secret":"s"}'"#;
        assert!(asked(deaf).await.unwrap().is_some());
        let loud = r#"head -c 3000000 /dev/zero >&2; echo '{"Username":"u","Secret":"s"}'"#;
        assert!(asked(loud).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn who_knows_no_login_says_so_on_standard_output() {
        assert!(asked("echo 'credentials not found in native keychain'; exit 1").await.unwrap().is_none());
        let error = asked("echo 'credentials not found in native keychain' >&2; exit 1").await.err().unwrap();
        assert!(error.contains("ended with status 1"), "{error}");
        // With success it is no answer.
        assert!(asked("echo 'credentials not found in native keychain'").await.is_err());
    }

    #[tokio::test]
    async fn what_a_broken_helper_says_is_told_to_nobody() {
        for (body, part) in [
            ("echo hunter2; echo hunter2 >&2; exit 1", "ended with status 1"),
            ("echo hunter2", "something else than a login"),
            ("", "something else than a login"),
            (r#"echo '{"Username":"u","Secret":""}'"#, "something else than a login"),
            (r#"echo '{"Username":"hunter2:","Secret":"x"}'"#, "something else than a login"),
            (r#"echo '{"Secret":["hunter2"]}'"#, "something else than a login"),
            ("kill -9 $$", "ended by a signal"),
            ("head -c 10000000 /dev/zero", "wrote more than 256 KiB"),
            ("head -c 10000000 /dev/zero; sleep 60", "wrote more than 256 KiB"),
            ("while :; do echo hunter2; done", "wrote more than 256 KiB"),
        ] {
            let started = Instant::now();
            let error = asked(body).await.err().unwrap_or_else(|| panic!("{body}"));
            assert!(error.contains(part) && !error.contains("hunter2"), "{body}: {error}");
            assert!(started.elapsed() < PATIENCE, "{body}: {error}");
        }
        let missing = ask(Path::new("/nonexistent/helper"), "s", PATIENCE).await.err().unwrap();
        assert!(missing.contains("/nonexistent/helper cannot be run"), "{missing}");
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_killed_with_all_that_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let pids = directory.path().join("pids");
        let body =
            format!("sleep 600 & echo $! > {p}; echo $$ >> {p}; trap '' TERM; wait", p = pids.display());
        let program = script(directory.path(), "helper", &body);
        let error = ask(&program, "s", Duration::from_millis(1500)).await.err().unwrap();
        assert!(error.contains("did not answer within 1.5s and was killed"), "{error}");
        let pids = std::fs::read_to_string(pids).unwrap();
        assert_eq!(pids.lines().count(), 2);
        for pid in pids.lines() {
            assert_gone(pid).await;
        }
    }

    /// Neither running nor asleep; whoever adopted it may not have reaped it yet.
    async fn assert_gone(pid: &str) {
        for _ in 0..200 {
            let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            match status.rsplit(") ").next() {
                Some(rest) if !rest.is_empty() && !rest.starts_with(['Z', 'X']) => {}
                _ => return,
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{pid} is still there");
    }

    #[tokio::test]
    async fn a_child_that_keeps_the_pipe_open_holds_up_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let answer = r#"echo '{"Username":"u","Secret":"s"}'"#;
        let body = format!("sleep 600 & echo $! > {}; {answer}", pid.display());
        let program = script(directory.path(), "helper", &body);
        let started = Instant::now();
        assert!(ask(&program, "s", PATIENCE).await.unwrap().is_some());
        assert!(started.elapsed() < PATIENCE);
        assert_gone(std::fs::read_to_string(&pid).unwrap().trim()).await;
        // One that has left the group too.
        let body = format!("setsid sleep 2 & {answer}");
        let program = script(directory.path(), "other", &body);
        let started = Instant::now();
        assert!(ask(&program, "s", PATIENCE).await.unwrap().is_some());
        assert!(started.elapsed() < PATIENCE);
    }

    #[tokio::test]
    async fn a_helper_whose_asker_goes_away_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let program = script(directory.path(), "helper", &format!("echo $$ > {}; sleep 600", pid.display()));
        let asking = tokio::spawn(async move { ask(&program, "s", PATIENCE).await.is_ok() });
        let mut written = String::new();
        while written.trim().is_empty() {
            tokio::time::sleep(Duration::from_millis(25)).await;
            written = std::fs::read_to_string(&pid).unwrap_or_default();
        }
        asking.abort();
        assert_gone(written.trim()).await;
    }

    #[test]
    fn complaints_are_one_line() {
        assert_eq!(one_line(b"a\n\x1b[31mb\r\n\t c\0d"), "a [31mb c d");
        assert_eq!(one_line(&[b'x'; 9000]).len(), MAX_COMPLAINT);
    }
}
