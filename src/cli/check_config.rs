//! `forebay check-config`

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use crate::config::{self, Flags};

use super::{FAILED, MISUSED, Settings, misused};

/// Show the configuration that `serve` would run with, or what is wrong with it
///
/// Prints it as TOML, every value with where it comes from; warnings go to standard error.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CheckConfigArgs {
    #[command(flatten)]
    pub settings: Settings,
    /// Tell what this identity may do instead: a user's name, `anonymous`, `certificate:NAME`, `ISSUER:NAME`
    #[arg(long = "as", value_name = "WHO", requires = "on")]
    who: Option<String>,
    /// On which repository, in any spelling
    #[arg(long, value_name = "REPOSITORY", requires = "who")]
    on: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  Before a reload:
    forebay check-config && systemctl reload forebay
  What somebody may do, and which rule says so:
    forebay check-config --as alice --on corp.internal/app
  A file that is not installed yet:
    forebay check-config --config ./forebay.toml
  What a registry:2's configuration comes to, as a file of Forebay's own:
    forebay check-config --registry-config /etc/docker/registry/config.yml > forebay.toml";

pub fn run(args: CheckConfigArgs) -> ExitCode {
    let config = match config::load(&Flags::from(args.settings)) {
        Ok(config) => config,
        Err(error) => return misused(&error),
    };
    for warning in &config.warnings {
        eprintln!("forebay: warning: {warning}");
    }
    let told = match args.who.zip(args.on) {
        None => config.explain(),
        Some((who, on)) => match config.permissions(&who, &on) {
            Ok(told) => told,
            Err(why) => {
                eprintln!("forebay: {why}");
                return ExitCode::from(MISUSED);
            }
        },
    };
    match std::io::stdout().write_all(told.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILED),
    }
}
