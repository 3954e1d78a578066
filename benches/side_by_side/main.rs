//! Forebay beside docker-registry in proxy mode and nginx with static files: the same bytes, one
//! machine, one run, in alternation. Everything is warm: what is measured is serving held content.
//!
//! `cargo bench --bench side_by_side`, after `tests/install.sh`. Takes about three minutes; a
//! server or load generator that is not there is named and left out.

mod load;
mod servers;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;

use std::time::Duration;

use load::Work;
use servers::{Content, Server};

const ROUNDS: usize = 3;
/// One measurement: a work, a server, a round.
const TURN: Duration = Duration::from_secs(3);

fn main() {
    // Without it this is a test run (`cargo test --all-targets`), and there is nothing to test.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let scratch = tempfile::tempdir().unwrap();
    let content = Content::random();
    let upstream = content.upstream(&scratch.path().join("upstream")).await;
    let servers = servers::start(scratch.path(), &content, &upstream).await;
    let works = Work::all(scratch.path());
    for server in &servers {
        server.warm(&content).await;
    }
    let mut table = table::Table::default();
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        for work in &works {
            for server in &servers {
                table.add(work, server.name, measure(work, server, &content).await);
            }
        }
    }
    table.print();
    println!("\npeak resident memory, MiB");
    for server in &servers {
        println!("  {:<28}{:>8}", server.name, server.peak_memory_mib());
    }
}

/// What one turn came to.
#[derive(Clone, Copy, Debug)]
pub struct Measurement {
    pub requests_per_second: f64,
    pub bytes_per_second: f64,
    /// Seconds of the server's CPU time for each request.
    pub cpu_per_request: f64,
    /// Seconds of the server's CPU time for each 10^9 bytes of answers.
    pub cpu_per_gigabyte: f64,
}

async fn measure(work: &Work, server: &Server, content: &Content) -> Measurement {
    let before = server.cpu_seconds();
    let done = work.run(&server.address, content, TURN).await;
    let cpu = server.cpu_seconds() - before;
    Measurement {
        requests_per_second: done.requests as f64 / done.seconds,
        bytes_per_second: done.bytes as f64 / done.seconds,
        cpu_per_request: cpu / done.requests as f64,
        cpu_per_gigabyte: cpu / (done.bytes as f64 / 1e9),
    }
}
