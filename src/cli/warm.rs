//! `forebay warm`

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Args;

use super::images::Named;
use super::running::{Ended, Server};
use super::warm_output::Output;
use super::{FAILED, MISUSED};
use crate::control::{Client, WarmLine, WarmRequest, parse};

/// Fetch images before anybody asks for them
///
/// The running server does it: it confirms each tag, fetches what is not held, verifies and keeps it.
/// Interrupted, it is taken up where it stood when it is run again.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct WarmArgs {
    #[command(flatten)]
    images: Named,
    /// Which of an image's platforms: `linux/amd64,linux/arm64`, or `all` [default: the server's own]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<String>,
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
    let images = match args.images.all() {
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
