//! The command line: a file for each subcommand.

mod bars;
pub mod ca;
pub mod check_config;
pub mod client_config;
pub mod du;
pub mod evict;
pub mod export;
pub mod gc;
pub mod htpasswd;
mod images;
pub mod import;
mod moved;
pub mod pin;
mod running;
pub mod serve;
pub mod verify;
pub mod warm;
mod warm_output;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

use crate::config::Flags;

/// It failed while running.
pub const FAILED: u8 = 1;
/// The command line or the configuration is wrong; clap uses the same.
pub const MISUSED: u8 = 2;

#[derive(Debug, Parser)]
#[command(version, about, long_about = ABOUT, after_long_help = MANUAL)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Serve(serve::ServeArgs),
    CheckConfig(check_config::CheckConfigArgs),
    ClientConfig(client_config::ClientConfigArgs),
    Ca(ca::CaArgs),
    Du(du::DuArgs),
    Evict(evict::EvictArgs),
    Export(export::ExportArgs),
    Gc(gc::GcArgs),
    Htpasswd(htpasswd::HtpasswdArgs),
    Import(import::ImportArgs),
    Pin(pin::PinArgs),
    Unpin(pin::UnpinArgs),
    Verify(verify::VerifyArgs),
    Warm(warm::WarmArgs),
}

/// Reads the process's arguments; on bad ones, says so and exits with 2.
pub fn parse() -> Cli {
    Cli::parse()
}

/// What every command takes that reads the configuration.
#[derive(Args, Clone, Debug, Default)]
pub struct Settings {
    /// Configuration file [default: /etc/forebay/forebay.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Configuration of a `registry:2` or `registry:3` (YAML) to run as, with its REGISTRY_* variables
    /// [default: what REGISTRY_CONFIGURATION_PATH names]
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "", conflicts_with = "config")]
    #[arg(value_parser = OsStringValueParser::new().map(PathBuf::from))]
    registry_config: Option<PathBuf>,
    // Not a doc comment: rustdoc takes the address in brackets for a link.
    #[arg(long, value_name = "ADDRESS:PORT", help = LISTEN)]
    listen: Vec<String>,
    /// Directory that holds all images [default: /var/lib/forebay for root, else ~/.local/share/forebay]
    #[arg(long, value_name = "DIRECTORY")]
    data: Option<String>,
    /// Registry to pull from: `ghcr.io`, or with its URL `docker.io=http://127.0.0.1:5001`; repeatable
    #[arg(long, value_name = "HOST[=URL]")]
    upstream: Vec<String>,
    /// Address for metrics, health and the page on a listener of their own
    #[arg(long, value_name = "ADDRESS:PORT")]
    operations: Option<String>,
    /// Take repositories of unknown origin for pushed ones, or for this upstream's
    #[arg(long, value_name = "hosted|HOST")]
    adopt: Option<String>,
    /// Ask no upstream: serve what is held, and nothing else
    #[arg(long)]
    offline: bool,
    /// What to log: `error`, `warn`, `info`, `debug`, or `info,forebay::upstream=debug` [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// How to log: `auto` (text on a terminal, else JSON), `text` or `json` [default: auto]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Names and bcrypt hashes of who may log in; `forebay htpasswd` writes them
    #[arg(long, value_name = "FILE")]
    htpasswd_file: Option<String>,
    /// Serve HTTPS with this certificate chain (PEM)
    #[arg(long, value_name = "FILE")]
    tls_certificate_file: Option<String>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE")]
    tls_key_file: Option<String>,
}

impl From<Settings> for Flags {
    fn from(settings: Settings) -> Self {
        Self {
            config: settings.config,
            registry_config: settings.registry_config,
            listen: settings.listen,
            data: settings.data,
            upstream: settings.upstream,
            operations: settings.operations,
            adopt: settings.adopt,
            offline: settings.offline,
            log: settings.log,
            log_format: settings.log_format,
            htpasswd_file: settings.htpasswd_file,
            tls_certificate_file: settings.tls_certificate_file,
            tls_key_file: settings.tls_key_file,
        }
    }
}

/// Reports on standard error what keeps a command from starting.
fn misused(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("forebay: {error}");
    ExitCode::from(MISUSED)
}

const LISTEN: &str =
    "Address to serve on; give it again for each further one [default: 127.0.0.1:5000 and [::1]:5000]";

const ABOUT: &str = "\
Forebay holds container images close to where they run: a pull-through mirror of Docker Hub and other \
registries, and a registry for images of your own.

What was pulled once is served from this machine, also while the registry behind it is slow, rate limited or gone.";

const MANUAL: &str = "\
First success:
  forebay serve --data ./data
  docker pull localhost:5000/library/alpine:latest
  docker tag localhost:5000/library/alpine:latest localhost:5000/myapp:1.0 && docker push localhost:5000/myapp:1.0
  To have dockerd ask Forebay first (`forebay client-config --help` has other clients):
  forebay client-config docker --out / && systemctl reload docker

Configuration:
  Flags win over environment variables, those win over the file, the file wins over the defaults.
  `forebay check-config` shows what results, and where each value comes from.

Environment variables:
  FOREBAY_CONFIG                the configuration file
  FOREBAY_LISTEN                addresses, parted by commas
  FOREBAY_DATA                  the data directory
  FOREBAY_UPSTREAM              registries as host or host=url, parted by commas
  FOREBAY_OPERATIONS            address for metrics, health and the page
  FOREBAY_ADOPT                 whose repositories of unknown origin are: hosted, or an upstream
  FOREBAY_OFFLINE               true: ask no upstream
  FOREBAY_LOG                   what to log
  FOREBAY_LOG_FORMAT            auto, text or json
  FOREBAY_HTPASSWD_FILE         names and bcrypt hashes of who may log in
  FOREBAY_TLS_CERTIFICATE_FILE  certificate chain (PEM)
  FOREBAY_TLS_KEY_FILE          private key (PEM)
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY   proxies on the way to registries
  REGISTRY_CONFIGURATION_PATH   with --registry-config: the file that it reads, unless it is given one
  REGISTRY_...                  with --registry-config: parts of that file, as a registry takes them
  NO_COLOR                      no colours in the log

Files:
  /etc/forebay/forebay.toml     the configuration, if no other is named
  /var/lib/forebay              the data directory, for root
  ~/.local/share/forebay        the data directory, for other users

Exit codes:
  0  done
  1  it failed while running; the log says why
  2  the command line or the configuration is wrong; standard error says where and what to write instead";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Command, clap::Error> {
        Cli::try_parse_from([&["forebay"], arguments].concat()).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_reaches_the_configuration() {
        let line = "serve --config f --listen a --listen b --data d --upstream u --upstream v=w --operations o --adopt h \
                    --log l --log-format j --tls-certificate-file c --tls-key-file k --htpasswd-file p";
        let Ok(Command::Serve(args)) = parse(&line.split_whitespace().collect::<Vec<_>>()) else {
            panic!("serve")
        };
        let text = |text: &str| Some(text.to_owned());
        let flags = Flags::from(args);
        assert_eq!(flags.config, Some("f".into()));
        assert_eq!(flags.registry_config, None);
        assert_eq!(flags.listen, ["a", "b"]);
        assert_eq!(flags.upstream, ["u", "v=w"]);
        assert_eq!((flags.data, flags.operations, flags.adopt), (text("d"), text("o"), text("h")));
        assert_eq!((flags.log, flags.log_format), (text("l"), text("j")));
        assert_eq!(flags.htpasswd_file, text("p"));
        assert_eq!((flags.tls_certificate_file, flags.tls_key_file), (text("c"), text("k")));
    }

    #[test]
    fn a_registrys_configuration_is_named_by_flag_or_alone() {
        let registry_config = |arguments: &[&str]| match parse(arguments) {
            Ok(Command::Serve(args)) => Flags::from(args).registry_config,
            Ok(Command::CheckConfig(args)) => Flags::from(args.settings).registry_config,
            other => panic!("{other:?}"),
        };
        for arguments in [
            &["serve", "/c.yml"][..],
            &["serve", "--registry-config", "/c.yml"],
            &["serve", "--registry-config=/c.yml", "--data", "d"],
            &["check-config", "--registry-config", "/c.yml"],
        ] {
            assert_eq!(registry_config(arguments), Some("/c.yml".into()), "{arguments:?}");
        }
        assert_eq!(registry_config(&["serve", "--registry-config"]), Some("".into()));
        assert_eq!(registry_config(&["serve", "--registry-config", "--data", "d"]), Some("".into()));
        assert_eq!(registry_config(&["serve"]), None);
        for both in [
            &["serve", "/c.yml", "--config", "f"][..],
            &["serve", "--registry-config", "/c.yml", "--config", "f"],
            &["serve", "/c.yml", "--registry-config=/d.yml"],
        ] {
            assert_eq!(parse(both).unwrap_err().exit_code(), i32::from(MISUSED), "{both:?}");
        }
    }

    #[test]
    fn misuse_exits_with_2_and_help_with_0() {
        for bad in [&["serve", "--lisen", "a"][..], &["sevre"], &[]] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), i32::from(MISUSED), "{bad:?}");
        }
        for good in [
            &["--help"][..],
            &["--version"],
            &["serve", "--help"],
            &["check-config", "--help"],
            &["client-config", "--help"],
            &["du", "--help"],
            &["evict", "--help"],
            &["export", "--help"],
            &["pin", "--help"],
            &["unpin", "--help"],
            &["gc", "--help"],
            &["import", "--help"],
            &["htpasswd", "--help"],
            &["verify", "--help"],
            &["warm", "--help"],
            &["help"],
            &["help", "serve"],
        ] {
            assert_eq!(parse(good).unwrap_err().exit_code(), 0, "{good:?}");
        }
    }

    #[test]
    fn help_is_a_manual() {
        let error = parse(&["--help"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DisplayHelp);
        let help = error.to_string();
        for part in
            ["First success", "FOREBAY_UPSTREAM", "/etc/forebay/forebay.toml", "Exit codes", "check-config"]
        {
            assert!(help.contains(part), "{part} in\n{help}");
        }
        for command in [
            "serve",
            "check-config",
            "client-config",
            "du",
            "evict",
            "export",
            "gc",
            "htpasswd",
            "import",
            "pin",
            "verify",
            "warm",
        ] {
            let help = parse(&[command, "--help"]).unwrap_err().to_string();
            assert!(help.contains("Examples:"), "{help}");
        }
    }
}
