//! The `forebay` program: parse, run, exit code.

use std::process::ExitCode;

use forebay::cli::{self, Command};

fn main() -> anyhow::Result<ExitCode> {
    keep_freed_memory();
    let command = cli::parse().command;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        match command {
            Command::Serve(args) => cli::serve::run(args, forebay::app::run).await,
            Command::CheckConfig(args) => cli::check_config::run(args),
            Command::ClientConfig(args) => cli::client_config::run(args),
            Command::Ca(args) => cli::ca::run(args),
            Command::Du(args) => cli::du::run(args).await,
            Command::Evict(args) => cli::evict::run(args).await,
            Command::Export(args) => cli::export::run(args).await,
            Command::Pin(args) => cli::pin::run(args).await,
            Command::Unpin(args) => cli::pin::run_unpin(args).await,
            Command::Gc(args) => cli::gc::run(args).await,
            Command::Htpasswd(args) => cli::htpasswd::run(args),
            Command::Import(args) => cli::import::run(args).await,
            Command::Verify(args) => cli::verify::run(args).await,
            Command::Warm(args) => cli::warm::run(args).await,
        }
    });
    // Blocking reads of a stuck disk or a stalled client must not hold up the exit.
    runtime.shutdown_background();
    Ok(code)
}

/// Has the C library keep, in each of its arenas, up to twice so much of what was freed at its end, which it else
/// gives back sooner: what a fill reads then goes into pages that are there. glibc goes by the largest mapping that
/// was freed (mallopt(3), `M_MMAP_THRESHOLD`); to others this is nothing.
fn keep_freed_memory() {
    const KEPT: usize = 1 << 20;
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT)));
}
