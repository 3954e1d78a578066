//! Forebay beside docker-registry in proxy mode and nginx with static files: the same bytes, one
//! machine, one run, in alternation. `warm` is serving held content; `cold` is what an upstream that
//! is slow, thin, broken or gone does to the clients of a mirror.
//!
//! `cargo bench --bench side_by_side`, after `tests/install.sh`. Takes less than six minutes;
//! `-- --only NAME` runs one part, or the works whose name contains NAME. A server or load generator
//! that is not there is named and left out.

mod cold;
mod load;
mod servers;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;
mod warm;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::Builder;

fn main() {
    // Without it this is a test run (`cargo test --all-targets`), and there is nothing to test.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let selection = Selection::from_arguments();
    // Clients and the scripted upstream do not wait for each other's turn.
    let upstreams = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let clients = Builder::new_multi_thread().enable_all().build().unwrap();
    clients.block_on(async {
        let warm = warm::run(&selection).await;
        let cold = cold::run(&selection, upstreams.handle()).await;
        if !warm && !cold {
            eprintln!("no part and no work is called that");
        }
    });
}

/// What is to be measured.
struct Selection {
    only: Option<String>,
}

impl Selection {
    fn from_arguments() -> Self {
        let mut arguments = std::env::args().skip_while(|argument| argument != "--only").skip(1);
        Self { only: arguments.next() }
    }

    fn takes(&self, part: &str, work: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == part || work.contains(only))
    }
}

/// `work`'s result, or how it came to none.
async fn bounded<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, String> {
    match tokio::time::timeout(limit, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(_)) => Err("fails".to_owned()),
        Err(_) => Err(format!("no end in {:.0} s", limit.as_secs_f64())),
    }
}
