//! `forebay du`

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use super::running::{Ended, Server};
use crate::control::{Client, DuImage, DuLine, DuRepository, DuRequest, DuTotals, DuUpstream, parse};
use crate::telemetry::size;

/// Show what uses the space, by upstream, repository and image
///
/// Content that several have counts with each of them, and once in the total. `alone` is what nobody else
/// has: what would be freed.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct DuArgs {
    /// Each image too, with its tags and when somebody last asked for it
    #[arg(long)]
    images: bool,
    /// One JSON object a line: `upstream`, `repository`, `image` for each, `totals` at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

const EXAMPLES: &str = "\
Examples:
  What takes the most:
    forebay du
  Which images nobody has asked for since the summer:
    forebay du --images --json | jq -r 'select(.image and .image.wanted < \"2026-09\").image.repository'";

pub async fn run(args: DuArgs) -> ExitCode {
    let client = match args.server.client() {
        Ok(client) => client,
        Err(told) => return told,
    };
    let shown = show(&client, args.images, args.json, &mut io::stdout().lock()).await;
    shown.map_or_else(Ended::told, |()| ExitCode::SUCCESS)
}

async fn show(client: &Client, images: bool, json: bool, out: &mut impl Write) -> Result<(), Ended> {
    let mut lines = client.command("du", &DuRequest { images }).await?;
    let mut complete = false;
    while let Some(text) = lines.next().await? {
        let line: DuLine = parse(&text)?;
        complete = matches!(line, DuLine::Totals(_));
        let told = match line {
            DuLine::Error(why) => return Err(Ended::Early(why)),
            _ if json => text,
            DuLine::Upstream(upstream) => of_upstream(&upstream),
            DuLine::Repository(repository) => of_repository(&repository),
            DuLine::Image(image) => of_image(&image),
            DuLine::Totals(totals) => summed(&totals),
        };
        writeln!(out, "{told}")?;
    }
    out.flush()?;
    if complete { Ok(()) } else { Err(Ended::Early("no totals came".to_owned())) }
}

fn counted(count: u64, what: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { what } else { many })
}

fn of_upstream(upstream: &DuUpstream) -> String {
    let DuUpstream { name, repositories, images, bytes } = upstream;
    let repositories = counted(*repositories, "repository", "repositories");
    format!("{:>11}  {name}: {repositories}, {}", size(*bytes), counted(*images, "image", "images"))
}

fn of_repository(repository: &DuRepository) -> String {
    let DuRepository { name, images, bytes, bytes_alone, .. } = repository;
    let images = counted(*images, "image", "images");
    format!("{:>11}    {name}: {images}, {} alone", size(*bytes), size(*bytes_alone))
}

fn of_image(image: &DuImage) -> String {
    let DuImage { digest, tags, bytes, bytes_alone, wanted, pinned, .. } = image;
    let name = if tags.is_empty() { digest.clone() } else { tags.join(", ") };
    let pinned = if *pinned { ", pinned" } else { "" };
    let day = wanted.get(..10).unwrap_or(wanted);
    format!("{:>11}      {name}: {} alone, asked for on {day}{pinned}", size(*bytes), size(*bytes_alone))
}

fn summed(totals: &DuTotals) -> String {
    let DuTotals { blobs, bytes, bytes_unlinked, bytes_open, cap } = *totals;
    let unlinked = match bytes_unlinked {
        0 => String::new(),
        bytes => format!(
            "; {} of it belong to no image: `forebay gc` or the next eviction takes them",
            size(bytes)
        ),
    };
    let open = match bytes_open {
        0 => String::new(),
        bytes => format!("; beside that {} are gone and still read", size(bytes)),
    };
    let blobs = counted(blobs, "blob and manifest", "blobs and manifests");
    let may = "may be held (`cache.max_size`, by default 80 % of the file system)";
    format!("{:>11}  in all: {blobs}{unlinked}{open}; {} {may}", size(bytes), size(cap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_well() {
        let upstream = DuUpstream { name: "docker.io".into(), repositories: 1, images: 2, bytes: 5 << 30 };
        assert_eq!(of_upstream(&upstream), "    5.0 GiB  docker.io: 1 repository, 2 images");
        let image = DuImage {
            repository: "docker.io/library/nginx".into(),
            digest: "sha256:00".into(),
            tags: vec!["1.27".into(), "latest".into()],
            bytes: 2048,
            bytes_alone: 1024,
            wanted: "2026-11-20T10:00:00Z".into(),
            pinned: true,
        };
        let told = "    2.0 KiB      1.27, latest: 1.0 KiB alone, asked for on 2026-11-20, pinned";
        assert_eq!(of_image(&image), told);
        let totals = DuTotals { blobs: 1, bytes: 1, bytes_unlinked: 0, bytes_open: 0, cap: 2 };
        let told = summed(&totals);
        assert!(
            told.starts_with("        1 B  in all: 1 blob and manifest; 2 B may be held (`cache."),
            "{told}"
        );
        let told = summed(&DuTotals { bytes_unlinked: 1, ..totals });
        assert!(told.contains("; 1 B of it belong to no image: "), "{told}");
    }
}
