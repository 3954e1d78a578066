//! `forebay verify`

use std::io::{self, IsTerminal, Write};
use std::num::NonZeroU64;
use std::process::ExitCode;

use clap::Args;

use super::FAILED;
use super::running::{Ended, Server};
use crate::config::parse_size;
use crate::control::{Client, VerifyFound, VerifyLine, VerifyProgress, VerifyRequest, VerifyTotals, parse};
use crate::telemetry::size;

/// Check that all that is held is what it says it is
///
/// The running server reads and hashes every blob and manifest and follows every link, while pushes and
/// pulls go on. Bad data is put aside at once, so that nobody is served it. Exits with 0 only where
/// nothing is wrong, or nothing is any more. Interrupted, it ends.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct VerifyArgs {
    /// Fetch again what was lost, where it is mirrored; what its registry has no more is told as lost
    #[arg(long)]
    repair: bool,
    /// Bytes that are read in a second at most, as in `50MiB` [default: as fast as it goes]
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    rate: Option<NonZeroU64>,
    /// One JSON object a line: `progress` now and then, `found` for each thing that is wrong, `totals` at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

const EXAMPLES: &str = "\
Examples:
  What is wrong, after a disk has failed:
    forebay verify
  The same, and what is mirrored is fetched again:
    forebay verify --repair
  Beside other work, at 50 MiB a second:
    forebay verify --rate 50MiB
  What has to be pushed again, for a script:
    forebay verify --json | jq -r 'select(.found.push).found.images[]' | sort -u

The server checks by itself too, at a modest rate: `scrub` in the configuration.";

/// Images that are named in a line.
const NAMED: usize = 5;

fn rate(text: &str) -> Result<NonZeroU64, String> {
    NonZeroU64::new(parse_size(text)?).ok_or_else(|| "nothing would be checked".to_owned())
}

pub async fn run(args: VerifyArgs) -> ExitCode {
    let client = match args.server.client() {
        Ok(client) => client,
        Err(told) => return told,
    };
    let request = VerifyRequest { repair: args.repair, rate: args.rate };
    let shows = !args.json && io::stderr().is_terminal();
    match verify(&client, &request, args.json, shows, &mut io::stdout().lock()).await {
        Ok(totals) if totals.wrong == totals.repaired => ExitCode::SUCCESS,
        // Each was told.
        Ok(_) => FAILED.into(),
        Err(ended) => ended.told(),
    }
}

async fn verify(
    client: &Client,
    request: &VerifyRequest,
    json: bool,
    shows: bool,
    out: &mut impl Write,
) -> Result<VerifyTotals, Ended> {
    let mut lines = client.command("verify", request).await?;
    let mut ended = None;
    while let Some(text) = lines.next().await? {
        let line: VerifyLine = parse(&text)?;
        if shows {
            // What is shown of progress stands on a line of its own, and goes.
            eprint!("\r\x1b[K");
        }
        let told = match &line {
            VerifyLine::Error(why) => return Err(Ended::Early(why.clone())),
            VerifyLine::Totals(totals) => {
                ended = Some(*totals);
                if json { text } else { summed(totals) }
            }
            _ if json => text,
            VerifyLine::Found(found) => told(found),
            VerifyLine::Progress(progress) => {
                if shows {
                    eprint!("{}", shown(progress));
                }
                continue;
            }
        };
        writeln!(out, "{told}")?;
    }
    out.flush()?;
    ended.ok_or_else(|| Ended::Early("no totals came".to_owned()))
}

fn told(found: &VerifyFound) -> String {
    let VerifyFound { what, subject, repositories, images, problem, done, .. } = found;
    let subject = match (repositories.is_empty(), what.as_str()) {
        (true, _) => subject.clone(),
        (false, "tag") => format!("{}:{subject}", repositories.join(", ")),
        (false, "data") => format!("{subject} of {}", repositories.join(", ")),
        (false, _) => format!("{}@{subject}", repositories.join(", ")),
    };
    let needed = match images.len() {
        // It says so itself.
        _ if what == "tag" => String::new(),
        0 => String::new(),
        count if count > NAMED => {
            format!(" (needed by {} and {} more)", images[..NAMED].join(", "), count - NAMED)
        }
        _ => format!(" (needed by {})", images.join(", ")),
    };
    format!("{what:<8}  {subject}: {problem}: {done}{needed}")
}

fn shown(progress: &VerifyProgress) -> String {
    let VerifyProgress { blobs, bytes, repositories } = *progress;
    let repositories =
        if repositories > 0 { format!(", links of {repositories} repositories") } else { String::new() };
    format!("checked {blobs} blobs, {}{repositories}", size(bytes))
}

fn summed(totals: &VerifyTotals) -> String {
    let VerifyTotals { blobs, bytes, repositories, links, wrong, repaired } = *totals;
    let verdict = match wrong {
        0 => "nothing is wrong".to_owned(),
        wrong => format!("{wrong} found wrong, {repaired} repaired"),
    };
    format!("{verdict}: {blobs} blobs, {}, {links} links of {repositories} repositories", size(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_totals_read_well() {
        let lost = |what: &str, repositories: &[&str], images: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            told(&VerifyFound {
                what: what.into(),
                subject: "x".into(),
                repositories: owned(repositories),
                images: owned(images),
                problem: "it is empty".into(),
                done: "fetched again".into(),
                push: false,
                repaired: true,
            })
        };
        let found = |what: &str, repositories: &[&str]| lost(what, repositories, &[]);
        assert!(lost("blob", &["a"], &["a:1", "a:2"]).ends_with(": fetched again (needed by a:1, a:2)"));
        assert!(lost("blob", &["a"], &["a:1"; 7]).ends_with("a:1 and 2 more)"));
        assert!(lost("tag", &["a"], &["a:x"]).ends_with(": fetched again"));
        assert_eq!(found("data", &["a", "b"]), "data      x of a, b: it is empty: fetched again");
        assert_eq!(found("data", &[]), "data      x: it is empty: fetched again");
        assert_eq!(found("tag", &["a"]), "tag       a:x: it is empty: fetched again");
        assert_eq!(found("blob", &["a"]), "blob      a@x: it is empty: fetched again");
        let totals =
            VerifyTotals { blobs: 3, bytes: 5 << 30, repositories: 1, links: 4, ..Default::default() };
        assert_eq!(summed(&totals), "nothing is wrong: 3 blobs, 5.0 GiB, 4 links of 1 repositories");
        let totals = VerifyTotals { wrong: 2, repaired: 1, ..totals };
        assert!(summed(&totals).starts_with("2 found wrong, 1 repaired: "));
        assert!(rate("0B").is_err() && rate("5").is_err() && rate("1MiB").is_ok());
    }
}
