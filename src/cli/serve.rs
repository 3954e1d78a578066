//! `forebay serve`

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::config::{self, Config, ConfigError, Flags};
use crate::telemetry;

use super::{FAILED, Settings, misused};

/// Serve images until SIGTERM or SIGINT
///
/// The configuration is read again at SIGHUP.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ServeArgs {
    #[command(flatten)]
    pub settings: Settings,
    /// The same as --registry-config FILE, as the registry's own command has it
    #[arg(value_name = "FILE", conflicts_with_all = ["config", "registry_config"])]
    pub file: Option<PathBuf>,
}

impl From<ServeArgs> for Flags {
    fn from(args: ServeArgs) -> Self {
        let flags = Flags::from(args.settings);
        Flags { registry_config: args.file.or(flags.registry_config), ..flags }
    }
}

const EXAMPLES: &str = "\
Examples:
  A mirror of Docker Hub for this machine:
    forebay serve --data ./data
  For the whole network, of two registries:
    forebay serve --listen 0.0.0.0:5000 --upstream ghcr.io --upstream quay.io
  In front of another registry:
    forebay serve --upstream docker.io=http://127.0.0.1:5001
  Over a directory that registry:2 wrote as a proxy of Docker Hub:
    forebay serve --data /var/lib/registry --adopt docker.io
  Over a directory that images were pushed to:
    forebay serve --data /var/lib/registry --adopt hosted
  In the place of a registry:2, with its configuration:
    forebay serve /etc/docker/registry/config.yml";

/// Loads the configuration, sets up the log and calls `start`, which serves until it is told to stop.
/// `start` is also given what loads the configuration again.
pub async fn run<Start, Served, Error>(args: ServeArgs, start: Start) -> ExitCode
where
    Start: FnOnce(Config, Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>) -> Served,
    Served: Future<Output = Result<(), Error>>,
    Error: Display,
{
    let flags = Flags::from(args);
    let config = match config::load(&flags) {
        Ok(config) => config,
        Err(error) => return misused(&error),
    };
    // Held to the end: dropped, it writes out what is left of the log.
    let _log = match telemetry::init(&config.telemetry) {
        Ok(guard) => guard,
        Err(error) => return misused(&error),
    };
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    match start(config, Box::new(move || config::load(&flags))).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(FAILED)
        }
    }
}
