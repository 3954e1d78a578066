//! `forebay pin` and `forebay unpin`

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use super::FAILED;
use super::running::{Ended, Server};
use crate::control::{Client, NotDone, PinLine, PinRequest, PinnedImage, parse};

/// Keep mirrored images from being evicted, or list those that are kept
///
/// A pin is on the name: if a tag moves, what it points to then is kept. Pins outlive restarts, copies of the
/// data directory, and the image itself. To have images fetched and kept current too, name them in the
/// configuration, under `[[warm]]`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PinArgs {
    /// As for a client: `nginx:1.27`, `ghcr.io/org/app@sha256:...`; none: list what is pinned
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// One JSON object a line: `pinned` or `failed` for each image, `totals` at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

const EXAMPLES: &str = "\
Examples:
  Keep what every build begins from:
    forebay pin golang:1.25 node:24
  What is kept:
    forebay pin";

/// Let mirrored images be evicted again, when their time comes
#[derive(Args, Clone, Debug)]
pub struct UnpinArgs {
    /// As they were pinned
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// One JSON object a line: `unpinned` or `failed` for each image, `totals` at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

pub async fn run(args: PinArgs) -> ExitCode {
    carry_out("pin", args.images, args.json, args.server).await
}

pub async fn run_unpin(args: UnpinArgs) -> ExitCode {
    carry_out("unpin", args.images, args.json, args.server).await
}

async fn carry_out(name: &str, images: Vec<String>, json: bool, server: Server) -> ExitCode {
    let client = match server.client() {
        Ok(client) => client,
        Err(told) => return told,
    };
    let request = PinRequest { images };
    match tell(&client, name, &request, json, &mut io::stdout().lock()).await {
        Ok(0) => ExitCode::SUCCESS,
        // Each was told.
        Ok(_) => FAILED.into(),
        Err(ended) => ended.told(),
    }
}

/// How many images failed.
async fn tell(
    client: &Client,
    name: &str,
    request: &PinRequest,
    json: bool,
    out: &mut impl Write,
) -> Result<u64, Ended> {
    let mut lines = client.command(name, request).await?;
    let mut failed = None;
    while let Some(text) = lines.next().await? {
        let line: PinLine = parse(&text)?;
        let told = match line {
            PinLine::Error(why) => return Err(Ended::Early(why)),
            PinLine::Failed(NotDone { image, error }) => {
                eprintln!("forebay: {image}: {error}");
                json.then_some(text)
            }
            PinLine::Totals(totals) => {
                failed = Some(totals.failed);
                let nothing = totals.images == 0 && request.images.is_empty();
                let told = if json { Some(text) } else { None };
                told.or_else(|| nothing.then(|| "nothing is pinned".to_owned()))
            }
            _ if json => Some(text),
            PinLine::Pinned(image) => {
                if let Some(note) = &image.note {
                    eprintln!("forebay: {}: {note}", image.image);
                }
                Some(pinned(&image, request.images.is_empty()))
            }
            PinLine::Unpinned(image) => Some(unpinned(&image)),
        };
        if let Some(told) = told {
            writeln!(out, "{told}")?;
        }
    }
    out.flush()?;
    failed.ok_or_else(|| Ended::Early("no totals came".to_owned()))
}

fn pinned(image: &PinnedImage, listed: bool) -> String {
    let PinnedImage { image, held, as_before, by_configuration, .. } = image;
    let by = match (as_before, by_configuration) {
        (_, false) => "",
        (true, true) => "  (`[[warm]]` in the configuration keeps it too)",
        (false, true) => "  (by `[[warm]]` in the configuration)",
    };
    match (listed, as_before, held) {
        (true, _, true) => format!("{image}{by}"),
        (true, _, false) => format!("{image}  (not held){by}"),
        (false, true, _) => format!("{image}: was pinned before"),
        (false, false, true) => format!("{image}: pinned"),
        (false, false, false) => format!("{image}: pinned; not held yet: `forebay warm` fetches it"),
    }
}

fn unpinned(image: &PinnedImage) -> String {
    let PinnedImage { image, as_before, by_configuration, .. } = image;
    let kept = "`[[warm]]` in the configuration keeps it: take it out there, and reload";
    match (as_before, by_configuration) {
        (true, false) => format!("{image}: was not pinned by command"),
        (false, false) => format!("{image}: may be evicted again"),
        (true, true) => format!("{image}: was not pinned by command; {kept}"),
        (false, true) => format!("{image}: not pinned any more, but {kept}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_an_image_is_told() {
        let image = |held, as_before, by_configuration| PinnedImage {
            image: "a:1".to_owned(),
            held,
            as_before,
            by_configuration,
            note: None,
        };
        assert_eq!(pinned(&image(true, true, false), true), "a:1");
        assert_eq!(pinned(&image(false, true, false), true), "a:1  (not held)");
        assert_eq!(pinned(&image(true, false, true), true), "a:1  (by `[[warm]]` in the configuration)");
        assert!(pinned(&image(true, true, true), true).contains("keeps it too"));
        assert_eq!(unpinned(&image(true, false, false)), "a:1: may be evicted again");
        assert!(unpinned(&image(true, false, true)).contains("not pinned any more, but `[[warm]]`"));
        assert!(unpinned(&image(true, true, true)).contains("was not pinned by command; `[[warm]]`"));
    }
}
