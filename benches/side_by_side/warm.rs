//! Serving what is held.

use std::time::Duration;

use crate::load::Work;
use crate::servers::{self, Content, Server};
use crate::table::{Measurement, Table};
use crate::{Selection, bounded};

const ROUNDS: usize = 3;
/// One measurement: a work, a server, a round.
const TURN: Duration = Duration::from_secs(3);
/// What a server takes at most to have everything.
const WARMING: Duration = Duration::from_secs(30);
/// What a turn takes at most with its beginning and its end.
const LIMIT: Duration = Duration::from_secs(10);

/// False where nothing of this part is selected.
pub async fn run(selection: &Selection) -> bool {
    let scratch = tempfile::tempdir().unwrap();
    let mut works = Work::all(scratch.path());
    works.retain(|work| selection.takes("warm", work.name));
    if works.is_empty() {
        return false;
    }
    let content = Content::random();
    let upstream = content.upstream(&scratch.path().join("upstream")).await;
    let mut servers = Vec::new();
    for server in servers::start(scratch.path(), &content, &upstream).await {
        match bounded(WARMING, server.warm(&content)).await {
            Ok(()) => servers.push(server),
            Err(failure) => eprintln!("{} is left out: {failure}", server.name),
        }
    }
    let mut table = Table::default();
    for round in 1..=ROUNDS {
        eprintln!("warm, round {round} of {ROUNDS}");
        for work in &works {
            for server in &servers {
                let measured = bounded(LIMIT, measure(work, server, &content)).await;
                let measured = measured.inspect_err(|failure| {
                    eprintln!("{}, {}: {failure}", work.name, server.name);
                });
                table.add(work, server.name, measured.ok());
            }
        }
    }
    table.print();
    println!("\npeak resident memory, MiB");
    for server in &servers {
        println!("  {:<28}{:>8}", server.name, server.peak_memory_mib());
    }
    true
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
