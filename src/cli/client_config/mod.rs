//! `forebay client-config`: a file for each kind of client; what they have in common is `asked`.

mod asked;
mod buildkit;
mod containerd;
mod containers;
mod docker;
mod install;
mod k3s;
mod kaniko;
mod runners;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::config::{self, Flags};

use super::{FAILED, MISUSED, Settings, misused};
use asked::Asked;

/// Print the files that have a client pull through this server
///
/// For all upstreams that are configured, or those named by --upstream. The files go to standard output; a
/// single one as it is, several with their paths above them. What else there is to do goes to standard error.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ClientConfigArgs {
    /// Whose files
    client: Client,
    /// For a client that runs as the user who calls this, not as root
    #[arg(long)]
    rootless: bool,
    /// This server's URL as the client sees it [default: what `listen`, `[[listener]]` and `tls` come to]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The CA of this server's certificate (PEM), to be installed with the client
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Write the files below this directory, `/` to install them; no file that says otherwise is replaced
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

const EXAMPLES: &str = "\
Examples:
  Docker on this machine:
    forebay client-config docker --out / && systemctl reload docker
  A Kubernetes node's containerd, for every upstream of the configuration:
    forebay client-config containerd --url https://forebay.corp:5000 --ca ca.pem --out /
  podman of the user who calls this, for one registry:
    forebay client-config podman --rootless --upstream ghcr.io --url http://forebay.corp:5000 --out /";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Client {
    Docker,
    Containerd,
    Podman,
    Buildkit,
    K3s,
    Crio,
    Dind,
    Buildx,
    GitlabRunner,
    GithubArc,
    Kaniko,
}

/// What to install, and what to know about it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Plan {
    files: Vec<File>,
    notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct File {
    /// Where the client looks for it; relative where that is for the user to choose.
    path: PathBuf,
    text: String,
}

impl Plan {
    fn file(&mut self, path: impl Into<PathBuf>, text: impl Into<String>) {
        self.files.push(File { path: path.into(), text: text.into() });
    }

    fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

impl Client {
    /// Whether it sends a login only where `/v2/` asked for one.
    fn asks_at_the_base(self) -> bool {
        matches!(self, Self::Docker | Self::Podman | Self::Crio | Self::Dind)
    }

    /// containers/image looks below `~/.config`, wherever else a user's configuration is.
    fn heeds_xdg(self) -> bool {
        !matches!(self, Self::Podman | Self::Crio)
    }
}

fn plan(client: Client, asked: &Asked) -> Plan {
    let mut plan = match client {
        Client::Docker => docker::plan(asked),
        Client::Containerd => containerd::plan(asked),
        Client::Podman => containers::podman(asked),
        Client::Crio => containers::crio(asked),
        Client::Buildkit => buildkit::buildkit(asked),
        Client::Buildx => buildkit::buildx(asked),
        Client::K3s => k3s::plan(asked),
        Client::Dind => runners::dind(asked),
        Client::GitlabRunner => runners::gitlab(asked),
        Client::GithubArc => runners::github(asked),
        Client::Kaniko => kaniko::plan(asked),
    };
    let contained = matches!(
        client,
        Client::Dind | Client::Buildx | Client::GitlabRunner | Client::GithubArc | Client::Kaniko
    );
    if contained && asked.server.is_loopback() {
        plan.note(format!(
            "inside a container, {} is the container itself: give --url with an address of this machine",
            asked.server.url()
        ));
    }
    let beside = |upstream: &&asked::Mirrored| upstream.asks_callers && !upstream.is_default;
    for upstream in asked.upstreams.iter().filter(beside).filter(|_| client.asks_at_the_base()) {
        let host = &upstream.host;
        plan.note(format!(
            "{host} is `private = \"per-caller\"`, and this client sends its login only to a `/v2/` of that \
             registry: give it a [[listener]] with `upstream = \"{host}\"` and name that by --url, or make it \
             `default_upstream`"
        ));
    }
    if !asked.server.is_plain() && asked.ca.is_none() {
        plan.note("the client has to trust this server's certificate; if its CA is your own, give --ca FILE");
    }
    plan
}

pub fn run(args: ClientConfigArgs) -> ExitCode {
    let (only, out) = (args.settings.upstream.clone(), args.out);
    let flags = Flags::from(args.settings);
    // --upstream names what is configured, or will be by the same flag.
    let (config, configured) =
        match (config::load(&flags), config::load(&Flags { upstream: vec![], ..flags })) {
            (Ok(config), Ok(configured)) => (config, configured),
            (Err(error), _) | (_, Err(error)) => return misused(&error),
        };
    let home = args.rootless.then(|| asked::home(args.client.heeds_xdg())).transpose();
    let told =
        home.and_then(|home| Asked::new(&config, args.url.as_deref(), &only, args.ca.as_deref(), home));
    let (asked, assumed) = match told {
        Ok(asked) => asked,
        Err(why) => {
            eprintln!("forebay: {why}");
            return ExitCode::from(MISUSED);
        }
    };
    let mut plan = plan(args.client, &asked);
    for upstream in asked.upstreams.iter().filter(|upstream| !upstream.is_of(&configured)) {
        let host = &upstream.host;
        plan.note(format!(
            "the configuration does not name {host}: start the server with `--upstream {host}` too"
        ));
    }
    let done = match &out {
        Some(directory) => install::install(directory, &plan.files),
        None => print(&plan.files),
    };
    for note in assumed.iter().chain(&plan.notes) {
        eprintln!("forebay: {note}");
    }
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("forebay: {why}");
            ExitCode::from(FAILED)
        }
    }
}

fn print(files: &[File]) -> Result<(), String> {
    if let [file] = files {
        eprintln!("forebay: this belongs into {}", file.path.display());
    }
    std::io::stdout().write_all(printed(files).as_bytes()).map_err(|error| error.to_string())
}

/// One file as it is, so that it can be redirected; several with their paths.
fn printed(files: &[File]) -> String {
    if let [file] = files {
        return file.text.clone();
    }
    let shown = files.iter().map(|file| format!("# {}\n{}", file.path.display(), file.text));
    shown.collect::<Vec<_>>().join("\n")
}

/// A text in quotes, as JSON, TOML and YAML all have it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `["a", "b"]`
fn list(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", texts.join(", "))
}
