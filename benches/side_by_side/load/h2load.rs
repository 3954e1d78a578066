//! h2load: HTTP/2 over TLS.

use std::time::Duration;

use super::Done;
use crate::support::image::MANIFEST;
use crate::support::process::{command, run};

/// What asks over one connection asks so much at a time.
const STREAMS: usize = 64;

pub async fn get(url: &str, connections: usize, turn: Duration) -> Done {
    let streams = if connections == 1 { STREAMS } else { 1 };
    let mut h2load = command("h2load", ["--threads", "1", "--clients", &connections.to_string()]);
    h2load.args(["--max-concurrent-streams", &streams.to_string()]);
    // Windows that never close: what is compared is what the servers do, not how long they wait.
    h2load.args(["--window-bits", "30", "--connection-window-bits", "30"]);
    h2load.args(["--duration", &turn.as_secs().to_string(), "--header", &format!("accept: {MANIFEST}")]);
    h2load.arg(url);
    parse(&run(h2load).await, turn)
}

/// Its own seconds have its end in them, in which nothing is asked.
fn parse(said: &str, turn: Duration) -> Done {
    let number = |line: &str, after: &str, before: &str| -> u64 {
        let line = said.lines().find_map(|found| found.strip_prefix(line)).expect(line);
        let rest = if after.is_empty() { line } else { line.split_once(after).expect(after).1 };
        rest.split_once(before).expect(before).0.trim().parse().expect(before)
    };
    let bad: u64 = [" failed", " errored", " timeout"]
        .iter()
        .map(|kind| {
            let before = said.split(kind).next().unwrap();
            before.rsplit(' ').next().unwrap().parse::<u64>().expect(kind)
        })
        .sum();
    let other = number("status codes: ", "2xx, ", " 3xx") + number("status codes: ", "3xx, ", " 4xx");
    let other = other + number("status codes: ", "4xx, ", " 5xx");
    assert_eq!((bad, other), (0, 0), "answers that are no success:\n{said}");
    Done {
        requests: number("requests: ", "started, ", " done"),
        bytes: number("traffic: ", "(", ")"),
        seconds: turn.as_secs_f64(),
    }
}
