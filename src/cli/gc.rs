//! `forebay gc`

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use super::running::{Ended, Server};
use crate::control::{Client, GcRequest, Line, Removed, Totals, parse};
use crate::telemetry::size;

/// Remove what no hosted image needs any more, or show what would go
///
/// The running server does it, while pushes and pulls go on. It does so by itself too, on its schedule.
/// Interrupted, this command leaves: what the server has begun it finishes.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct GcArgs {
    /// Only show what would go
    #[arg(long)]
    dry_run: bool,
    /// One JSON object a line: `removed` for each thing that goes, `totals` at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

const EXAMPLES: &str = "\
Examples:
  What would go, and how much that is:
    forebay gc --dry-run
  Of the server that was started with --data or --registry-config:
    forebay gc --data /var/lib/registry
  How many bytes went, for a script:
    forebay gc --json | jq 'select(.totals).totals.bytes'

What was pushed or asked for by a pusher lately is kept, and so is all of it for a while after a start (`gc.lease`).";

pub async fn run(args: GcArgs) -> ExitCode {
    let client = match args.server.client() {
        Ok(client) => client,
        Err(told) => return told,
    };
    let collected = collect(&client, args.dry_run, args.json, &mut io::stdout().lock()).await;
    collected.map_or_else(Ended::told, |()| ExitCode::SUCCESS)
}

async fn collect(client: &Client, dry_run: bool, json: bool, out: &mut impl Write) -> Result<(), Ended> {
    let mut lines = client.command("gc", &GcRequest { dry_run }).await?;
    let mut complete = false;
    while let Some(text) = lines.next().await? {
        let line: Line = parse(&text)?;
        let told = match &line {
            Line::Error(why) => return Err(Ended::Early(why.clone())),
            _ if json => text,
            Line::Removed(removed) => told(removed),
            Line::Totals(totals) => summed(totals, dry_run),
        };
        complete = matches!(line, Line::Totals(_));
        writeln!(out, "{told}")?;
    }
    out.flush()?;
    if complete { Ok(()) } else { Err(Ended::Early("no totals came".to_owned())) }
}

fn told(removed: &Removed) -> String {
    let Removed { what, repository, subject, bytes } = removed;
    let subject = match repository {
        // As in a reference.
        Some(repository) if what == "tag" => format!("{repository}:{subject}"),
        Some(repository) => format!("{repository}@{subject}"),
        None => subject.clone(),
    };
    match bytes {
        0 => format!("{what:<8}  {subject}"),
        bytes => format!("{what:<8}  {subject}  {}", size(*bytes)),
    }
}

/// Why something may be here that nobody needs.
const LEASED: &str = "what was pushed or asked for within `gc.lease` stays, as does everything for that long \
                      after a start";

fn summed(totals: &Totals, dry_run: bool) -> String {
    let Totals { tags, manifests, links, blobs, bytes } = *totals;
    let counts = [(tags, "tag"), (manifests, "manifest"), (links, "link"), (blobs, "blob")];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts = counts.map(|(count, what)| format!("{count} {what}{}", if *count == 1 { "" } else { "s" }));
    let counts: Vec<String> = counts.collect();
    match (counts.is_empty(), dry_run) {
        (true, true) => format!("nothing would go: {LEASED}"),
        (true, false) => format!("nothing went: {LEASED}"),
        (false, true) => format!("{} would be freed: {}", size(bytes), counts.join(", ")),
        (false, false) => format!("{} freed: {}", size(bytes), counts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_totals_read_well() {
        let removed = |what: &str, repository: Option<&str>, subject: &str, bytes| {
            told(&Removed {
                what: what.into(),
                repository: repository.map(Into::into),
                subject: subject.into(),
                bytes,
            })
        };
        assert_eq!(removed("tag", Some("app"), "v1", 0), "tag       app:v1");
        assert_eq!(removed("manifest", Some("a/b"), "sha256:00", 0), "manifest  a/b@sha256:00");
        assert_eq!(removed("blob", None, "sha256:00", 4_350_080), "blob      sha256:00  4.1 MiB");
        let totals = Totals { tags: 1, blobs: 2, bytes: 5 << 30, ..Totals::default() };
        assert_eq!(summed(&totals, true), "5.0 GiB would be freed: 1 tag, 2 blobs");
        assert_eq!(summed(&totals, false), "5.0 GiB freed: 1 tag, 2 blobs");
        assert!(summed(&Totals::default(), true).starts_with("nothing would go: "));
    }
}
