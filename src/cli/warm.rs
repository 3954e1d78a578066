//! `forebay warm`

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::images::Source;
use super::running::{Ended, Server};
use super::warm_output::Output;
use super::{FAILED, MISUSED};
use crate::control::{Client, IMAGES_MAX, WarmLine, WarmRequest, parse};

/// Fetch images before anybody asks for them
///
/// The running server does it: it confirms each tag, fetches what is not held, verifies and keeps it.
/// Interrupted, it is taken up where it stood when it is run again.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct WarmArgs {
    /// As for a client: `nginx:1.27`, `ghcr.io/org/app@sha256:...`
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Which of an image's platforms: `linux/amd64,linux/arm64`, or `all` [default: the server's own]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<String>,
    /// A list of images, one a line, remarks behind `#`; `-` is standard input
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// A compose file whose services' images are fetched
    #[arg(long, value_name = "FILE")]
    compose: Vec<PathBuf>,
    /// Kubernetes manifests, a file or a directory of them, whose pods' images are fetched
    #[arg(long, value_name = "FILE|DIRECTORY")]
    kubernetes: Vec<PathBuf>,
    /// One JSON object a line: `progress`, `held` or `failed` for each image, `totals` at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

const EXAMPLES: &str = "\
Examples:
  Before a rollout, for two kinds of nodes:
    forebay warm nginx:1.27 ghcr.io/org/app:2.0 --platform linux/amd64,linux/arm64
  All that a cluster or a project is made of:
    helm template ./chart | forebay warm --kubernetes -
    forebay warm --compose compose.yaml
  Every night, with what failed on standard error:
    forebay warm --file /etc/forebay/images.txt --json > /dev/null

It leaves a registry's pull limit to clients where that becomes scarce. Images that are to be held at all times stand in \
the configuration: [[warm]].";

pub async fn run(args: WarmArgs) -> ExitCode {
    let images = match images(&args) {
        Ok(images) => images,
        Err(why) => {
            eprintln!("forebay: {why}");
            return ExitCode::from(MISUSED);
        }
    };
    let client = match args.server.client() {
        Ok(client) => client,
        Err(told) => return told,
    };
    let count = images.len();
    let request = WarmRequest { images, platforms: args.platform };
    let bars = !args.json && io::stdout().is_terminal() && io::stderr().is_terminal();
    let mut output = Output::new(args.json, bars, count);
    match warm(&client, &request, &mut output).await {
        Ok(0) => ExitCode::SUCCESS,
        // Each was told.
        Ok(_) => FAILED.into(),
        Err(ended) => ended.told(),
    }
}

/// All images that are named, each once.
fn images(args: &WarmArgs) -> Result<Vec<String>, String> {
    let lists = args.file.iter().cloned().map(Source::List);
    let composes = args.compose.iter().cloned().map(Source::Compose);
    let manifests = args.kubernetes.iter().cloned().map(Source::Kubernetes);
    let mut images = args.images.clone();
    for source in lists.chain(composes).chain(manifests) {
        images.extend(source.images().map_err(|error| error.to_string())?);
    }
    let mut seen = HashSet::new();
    images.retain(|image| seen.insert(image.clone()));
    if images.is_empty() {
        return Err(
            "no image is named: name some, or a file with --file, --compose or --kubernetes".to_owned()
        );
    }
    if images.len() > IMAGES_MAX {
        return Err(format!("{} images are named: warm {IMAGES_MAX} at once at most", images.len()));
    }
    Ok(images)
}

/// How many images failed.
async fn warm(client: &Client, request: &WarmRequest, output: &mut Output) -> Result<u64, Ended> {
    let mut lines = client.command("warm", request).await?;
    let mut failed = None;
    while let Some(text) = lines.next().await? {
        let line: WarmLine = parse(&text)?;
        if let WarmLine::Error(why) = line {
            return Err(Ended::Early(why));
        }
        if let WarmLine::Totals(totals) = &line {
            failed = Some(totals.failed);
        }
        output.line(&line, &text)?;
    }
    io::stdout().flush()?;
    failed.ok_or_else(|| Ended::Early("no totals came".to_owned()))
}
