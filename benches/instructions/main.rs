//! How many instructions a held answer takes, counted by valgrind: the same on a busy machine and an idle one.
//!
//! `cargo bench --profile counted --bench instructions`, after `tests/install.sh`, fails where a work takes over
//! 5 % more than `recorded.toml` says. `-- --record "why"` records what is counted now. What the kernel does is not
//! counted. Five runs in a row differ by at most 2 %; each takes a minute once it is built.

mod client;
mod recorded;
mod server;
mod upstream;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use client::Connection;
use recorded::Recorded;
use server::Server;
use upstream::Image;

/// No two of them hash alike.
const SERVERS: usize = 3;
const ROUNDS: usize = 3;
const REQUESTS: usize = 200;
/// Not counted: what is asked for comes into memory, and buffers get their size.
const BEFORE: usize = 50;
/// So that a slow machine, on which the server does more of itself meanwhile, counts the same.
const IDLE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    // Without it this is a test run (`cargo test --all-targets`), and there is nothing to test.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let why = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => None,
        (Some("--record"), Some(why)) if !why.trim().is_empty() => Some(why),
        _ => {
            eprintln!("only --record and why it is as it is are understood");
            return ExitCode::FAILURE;
        }
    };
    let Some(counted) = counted() else { return ExitCode::FAILURE };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions/recorded.toml");
    let mut recorded = Recorded::read(&path);
    if let Some(why) = why {
        recorded.take(&counted, &why);
        recorded.write(&path);
    }
    if recorded.holds(&counted) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Works and the instructions that a request of each takes. `None`, and said: they cannot be counted.
fn counted() -> Option<Vec<(&'static str, u64)>> {
    if let Err(error) = server::valgrind() {
        eprintln!(
            "valgrind counts the instructions, and does not run: {error}. tests/install.sh installs it."
        );
        return None;
    }
    let image = Image::made();
    let tag = image.tag_path();
    let works = [
        ("manifest GET by tag, 3 KiB", "GET", tag.clone()),
        ("manifest HEAD by tag", "HEAD", tag),
        ("manifest GET by digest", "GET", image.manifest_path()),
        ("blob GET, 10 KiB", "GET", image.small_path()),
        ("blob GET, 1 MiB", "GET", image.medium_path()),
    ];
    let upstream = upstream::start(image);
    let mut rounds = works.each_ref().map(|_| Vec::new());
    for _ in 0..SERVERS {
        let scratch = tempfile::tempdir().unwrap();
        let server = Server::start(scratch.path(), upstream);
        let (idle, mut connection) = (idle(&server), Connection::open(server.address));
        for ((_, method, path), rounds) in works.iter().zip(&mut rounds) {
            connection.ask(method, path, BEFORE);
            let ask = || connection.ask(method, path, REQUESTS);
            rounds.extend(count(&server, idle, ask));
        }
    }
    let medians = works.iter().zip(rounds).map(|((name, ..), mut rounds)| {
        rounds.sort_unstable();
        (*name, rounds[rounds.len() / 2])
    });
    Some(medians.collect())
}

/// What the server does of itself, in a second.
fn idle(server: &Server) -> f64 {
    server.instructions();
    std::thread::sleep(IDLE);
    server.instructions() as f64 / IDLE.as_secs_f64()
}

/// Instructions of a request, in each of some rounds.
fn count(server: &Server, idle: f64, mut ask: impl FnMut()) -> [u64; ROUNDS] {
    // Counts up to here.
    server.instructions();
    [(); ROUNDS].map(|()| {
        let begun = Instant::now();
        ask();
        let of_itself = idle * begun.elapsed().as_secs_f64();
        (server.instructions() as f64 - of_itself) as u64 / REQUESTS as u64
    })
}
