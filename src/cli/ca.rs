//! `forebay ca`

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use crate::config::{self, Flags};

use super::{FAILED, Settings, misused};

/// Print the forward proxy's CA, for clients to trust
///
/// A server with a `[forward_proxy]` table makes it when it is started first. By its constraints it is
/// good for TLS servers called like the configured registries, or by names below theirs, and for
/// nothing else.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CaArgs {
    #[command(flatten)]
    settings: Settings,
}

const EXAMPLES: &str = "\
Examples:
  Trusted by all of a Debian:
    forebay ca > /usr/local/share/ca-certificates/forebay.crt && update-ca-certificates";

pub fn run(args: CaArgs) -> ExitCode {
    let config = match config::load(&Flags::from(args.settings)) {
        Ok(config) => config,
        Err(error) => return misused(&error),
    };
    let path = config.ca_file();
    let printed = match std::fs::read(&path) {
        Ok(pem) => std::io::stdout().write_all(&pem).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(
            "there is none: start `forebay serve` once with a [forward_proxy] table, or name its directory with \
             --data"
                .to_owned(),
        ),
        Err(error) => Err(error.to_string()),
    };
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("forebay: {}: {why}", path.display());
            ExitCode::from(FAILED)
        }
    }
}
