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
    let line = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).expect(name);
    let (requests, codes, traffic) = (line("requests: "), line("status codes: "), line("traffic: "));
    // `26211 total, 26275 started, 26211 done, …`
    let count = |line: &str, what: &str| -> u64 {
        let count = line.split(", ").find_map(|part| part.strip_suffix(what)).expect(what);
        count.trim().parse().expect(what)
    };
    let lost = [" failed", " errored", " timeout"].map(|what| count(requests, what));
    let refused = [" 3xx", " 4xx", " 5xx"].map(|what| count(codes, what));
    assert_eq!((lost, refused), ([0; 3], [0; 3]), "answers that are no success:\n{said}");
    // `78.14MB (81938722) total, …`
    let bytes = traffic.split(['(', ')']).nth(1).and_then(|bytes| bytes.parse().ok());
    Done {
        requests: count(requests, " done"),
        bytes: bytes.expect("bytes of traffic"),
        seconds: turn.as_secs_f64(),
    }
}
