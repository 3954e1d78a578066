//! Forebay beside its rivals: the same bytes, one machine, one run, in alternation. README's claims
//! of speed rest on this.
//!
//! `cargo bench --bench side_by_side`, after `tests/install.sh`, as root (containerd needs it). Takes
//! 25 minutes, 5 GB of disk and 4 GB of memory. The rivals are Debian's `docker-registry` and `nginx`;
//! CNCF distribution 3 and zot are built where Go is (once, kept below `target/rivals`). A rival or a
//! load generator that is not there is named and left out.
//!
//! | part | |
//! |---|---|
//! | `warm` | serving what is held, by plain HTTP/1.1 |
//! | `tls` | the same over TLS, by HTTP/1.1 and HTTP/2; handshakes |
//! | `beside` | a small GET beside bulk |
//! | `cold` | filling from an upstream that is slow, thin, broken or gone |
//! | `push` | as registries that are pushed to |
//! | `pull` | whole images, by skopeo and containerd |
//! | `memory` | idle, and beside many slow readers |
//!
//! Each line is a server's: the median of its rounds (lowest-highest), and under `x` how many times
//! better Forebay's is, round by round: more requests or bytes, less of all else.
//!
//! `-- --only NAME` runs one part, or the works whose name contains NAME; `--rounds N` (3) and
//! `--turn SECONDS` (2) make it shorter or surer; `--record` keeps the results of a whole run in
//! `results.json` and puts them into README, which `--tell` does with what is kept already.

mod beside;
mod cold;
mod load;
mod memory;
mod pull;
mod push;
mod record;
mod report;
mod rivals;
mod servers;
#[path = "../../tests/support/mod.rs"]
mod support;
mod tls;
mod turns;
mod warm;

use std::time::Instant;

use tokio::runtime::Builder;

use turns::Run;

fn main() {
    // Without it this is a test run (`cargo test --all-targets`), and there is nothing to test.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    if std::env::args().any(|argument| argument == "--tell") {
        return record::tell();
    }
    let begun = Instant::now();
    allow_connections();
    // Clients and the scripted upstream do not wait for each other's turn.
    let upstreams = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let clients = Builder::new_multi_thread().enable_all().build().unwrap();
    let mut run = Run::from_arguments(upstreams.handle());
    clients.block_on(async {
        warm::run(&mut run).await;
        tls::run(&mut run).await;
        beside::run(&mut run).await;
        cold::run(&mut run).await;
        push::run(&mut run).await;
        memory::run(&mut run).await;
    });
    pull::run(&mut run);
    if run.results.rows.is_empty() {
        eprintln!("no part and no work is called that");
    }
    eprintln!("\n{:.0} minutes", begun.elapsed().as_secs_f64() / 60.0);
    if run.record {
        record::record(&mut run.results);
    }
}

/// A thousand connections are more than some shells allow, to servers as to clients.
fn allow_connections() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}
