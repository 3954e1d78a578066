//! `forebay evict`

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use super::running::{Ended, Server};
use super::{FAILED, misused};
use crate::config::{parse_size, parse_time};
use crate::control::{Client, EvictLine, EvictRequest, EvictTotals, EvictedImage, NotDone, parse};
use crate::telemetry::size;

/// Evict mirrored images: by name, or the ones that nobody asked for the longest
///
/// They are fetched again when somebody asks for them. Your own images, pinned ones and what is being read
/// or fetched stay.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct EvictArgs {
    /// As for a client: `nginx:1.27`, `ghcr.io/org/app@sha256:...`
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Only those that nobody asked for in this time: `30days`
    #[arg(long, value_name = "TIME", conflicts_with = "images")]
    unused_for: Option<String>,
    /// Only of this upstream: `ghcr.io`
    #[arg(long, value_name = "HOST", conflicts_with = "images")]
    upstream: Option<String>,
    /// Only until so much is freed: `10GiB`
    #[arg(long, value_name = "SIZE", conflicts_with = "images")]
    free: Option<String>,
    /// Only show what would go
    #[arg(long)]
    dry_run: bool,
    /// One JSON object a line: `evicted` or `failed` for each image, `totals` at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

const EXAMPLES: &str = "\
Examples:
  One image, so that it is fetched anew:
    forebay evict nginx:1.27
  What nobody has asked for in a month:
    forebay evict --unused-for 30days --dry-run
  Make room before a large rollout:
    forebay evict --free 50GiB";

pub async fn run(args: EvictArgs) -> ExitCode {
    let request = match request(&args) {
        Ok(request) => request,
        Err(why) => return misused(&why),
    };
    let client = match args.server.client() {
        Ok(client) => client,
        Err(told) => return told,
    };
    match evict(&client, &request, args.json, &mut io::stdout().lock()).await {
        Ok(0) => ExitCode::SUCCESS,
        // Each was told.
        Ok(_) => FAILED.into(),
        Err(ended) => ended.told(),
    }
}

fn request(args: &EvictArgs) -> Result<EvictRequest, String> {
    let size = |text: &String| parse_size(text).map_err(|error| format!("--free: {error}"));
    let time = |text: &String| parse_time(text).map_err(|error| format!("--unused-for: {error}"));
    let request = EvictRequest {
        images: args.images.clone(),
        bytes: args.free.as_ref().map(size).transpose()?,
        unused_seconds: args.unused_for.as_ref().map(time).transpose()?.map(|time| time.as_secs()),
        upstream: args.upstream.clone(),
        dry_run: args.dry_run,
    };
    let chosen = request.bytes.is_some() || request.unused_seconds.is_some() || request.upstream.is_some();
    if request.images.is_empty() && !chosen {
        return Err("what is to go? Name images, or say --unused-for, --upstream or --free".to_owned());
    }
    Ok(request)
}

/// How many images failed.
async fn evict(
    client: &Client,
    request: &EvictRequest,
    json: bool,
    out: &mut impl Write,
) -> Result<u64, Ended> {
    let mut lines = client.command("evict", request).await?;
    let mut failed = None;
    while let Some(text) = lines.next().await? {
        let line: EvictLine = parse(&text)?;
        let told = match line {
            EvictLine::Error(why) => return Err(Ended::Early(why)),
            EvictLine::Failed(NotDone { image, error }) => {
                eprintln!("forebay: {image}: {error}");
                if !json {
                    continue;
                }
                text
            }
            EvictLine::Totals(totals) => {
                failed = Some(totals.failed);
                if json { text } else { summed(&totals, request) }
            }
            EvictLine::Evicted(_) if json => text,
            EvictLine::Evicted(image) => told(&image),
        };
        writeln!(out, "{told}")?;
    }
    out.flush()?;
    failed.ok_or_else(|| Ended::Early("no totals came".to_owned()))
}

fn told(image: &EvictedImage) -> String {
    let EvictedImage { repository, digest, tags, bytes } = image;
    let name = match tags.as_slice() {
        [] => format!("{repository}@{digest}"),
        tags => format!("{repository}:{}", tags.join(", ")),
    };
    format!("{name}  {}", size(*bytes))
}

fn summed(totals: &EvictTotals, request: &EvictRequest) -> String {
    let EvictTotals { images, bytes, .. } = *totals;
    let told = match (images, request.dry_run) {
        (0, true) => "nothing would go".to_owned(),
        (0, false) => "nothing went".to_owned(),
        (_, true) => format!("{} would be freed", size(bytes)),
        (_, false) => format!("{} freed", size(bytes)),
    };
    let fewer = match request.bytes {
        Some(wanted) if images > 0 && bytes < wanted => format!(", of {}", size(wanted)),
        _ => String::new(),
    };
    format!("{told}{fewer}{}", staying(totals, request.bytes.is_some_and(|wanted| bytes < wanted)))
}

/// Why not more goes.
fn staying(totals: &EvictTotals, short: bool) -> String {
    let EvictTotals { pinned, in_use, .. } = *totals;
    let mut stay = Vec::new();
    if pinned > 0 {
        stay.push(format!("{pinned} pinned, or kept by `[[warm]]` (`forebay pin` lists them)"));
    }
    if in_use > 0 {
        stay.push(format!("{in_use} being read or fetched, or sharing what is pinned"));
    }
    match (stay.is_empty(), short) {
        (false, _) => format!("; of the images that are meant these stay: {}", stay.join(", ")),
        (true, true) => {
            "; there is no more that may go: your own images and those of unknown origin stay".to_owned()
        }
        (true, false) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_not_more_goes_is_told() {
        let request = |bytes| EvictRequest { bytes, ..EvictRequest::default() };
        let totals = |images, bytes, pinned, in_use| EvictTotals { images, bytes, pinned, in_use, failed: 0 };
        assert_eq!(summed(&totals(0, 0, 0, 0), &request(None)), "nothing went");
        assert_eq!(summed(&totals(1, 2048, 0, 0), &request(Some(1024))), "2.0 KiB freed");
        let told = summed(&totals(1, 2048, 3, 1), &request(Some(4096)));
        assert!(told.starts_with("2.0 KiB freed, of 4.0 KiB; "), "{told}");
        assert!(told.contains("3 pinned, or kept by `[[warm]]`") && told.contains("1 being read"), "{told}");
        assert!(summed(&totals(0, 0, 0, 0), &request(Some(1))).contains("your own images"));
    }
}
