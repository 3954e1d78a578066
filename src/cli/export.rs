//! `forebay export`

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::images::Named;
use super::moved::{Count, Moved, Output};
use super::running::{Ended, Server};
use super::{FAILED, misused};
use crate::control::{
    Client, ExportEntry, ExportLine, ExportPart, ExportReady, ExportRequest, ReadLine, ReadRequest,
    WarmFailed, WarmProgress, parse,
};
use crate::layout::{NewEntry, Platforms, Writer};

/// Write images into a directory that goes to a site without a way out
///
/// It becomes an OCI image layout, as skopeo, podman, buildah and containerd read it, and `forebay import`.
/// The running server gives what it holds, hosted images too, and fetches first what it does not. A layout
/// that is there is added to; interrupted, this is taken up where it stood when it is run again.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ExportArgs {
    #[command(flatten)]
    images: Named,
    /// Where they go: a layout, an empty directory, or one that is to be made
    #[arg(short, long, value_name = "DIRECTORY")]
    output: PathBuf,
    /// Which of an image's platforms: `linux/amd64,linux/arm64`, or `all` [default: all that are held, and the
    /// server's own]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<String>,
    /// Fetch nothing: what is not held is an error
    #[arg(long)]
    held_only: bool,
    /// Leave out signatures, attestations and the like, which go along where they are held
    #[arg(long)]
    no_referrers: bool,
    /// One JSON object a line: `progress`, `exported` or `failed` for each image, `totals` at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

const EXAMPLES: &str = "\
Examples:
  All that a cluster is made of, to a disk, and in at the other side:
    forebay export --kubernetes ./manifests -o /media/usb/images
    forebay import /media/usb/images
  An own image, and one for two kinds of machines:
    forebay export localhost:5000/myapp:1.0 nginx:1.27 --platform linux/amd64,linux/arm64 -o images
  For others:
    skopeo copy oci:images:docker.io/library/nginx:1.27 docker://registry.example/nginx:1.27
    tar -C images -cf images.tar . && ctr images import images.tar

An index stays as it is, so that digests and signatures hold, also where some of its platforms are left out. To copy one \
with `skopeo copy --all`, or into another registry, export it with --platform all.";

pub async fn run(args: ExportArgs) -> ExitCode {
    let images = match args.images.all() {
        Ok(images) => images,
        Err(why) => return misused(&why),
    };
    if let Err(why) = Platforms::parse(&args.platform) {
        return misused(&format!("--platform: {why}, or `all` alone"));
    }
    let client = match args.server.client() {
        Ok(client) => client,
        Err(told) => return told,
    };
    let output = Output::new(args.json, images.len(), Count::Exported(0));
    let request = ExportRequest {
        images,
        platforms: args.platform,
        held_only: args.held_only,
        no_referrers: args.no_referrers,
    };
    match export(&client, request, &args.output, output).await {
        Ok(0) => ExitCode::SUCCESS,
        // Each was told.
        Ok(_) => FAILED.into(),
        Err(ended) => ended.told(),
    }
}

/// How many images failed.
async fn export(
    client: &Client,
    request: ExportRequest,
    directory: &std::path::Path,
    output: Output,
) -> Result<u64, Ended> {
    // In this order: neither is a directory made nor anything fetched for nothing.
    client.version().await?;
    let layout = Writer::open(directory)?;
    let Listed { images, output } = list(client, &request, output).await?;
    let mut export = Export { client, output, layout, there: HashSet::new() };
    for image in images {
        match export.image(&image).await {
            Ok(moved) => export.output.moved(moved)?,
            Err(Ended::Early(error)) => export.output.failed(&image.ready.image, &error)?,
            Err(other) => return Err(other),
        }
    }
    export.output.end()?;
    Ok(export.output.totals.failed)
}

/// An image that the server holds.
struct Ready {
    ready: ExportReady,
    parts: Vec<ExportPart>,
    entries: Vec<ExportEntry>,
}

struct Listed {
    images: Vec<Ready>,
    output: Output,
}

/// Has the server hold the images, and tell what they consist of.
async fn list(client: &Client, request: &ExportRequest, mut output: Output) -> Result<Listed, Ended> {
    let mut lines = client.command("export", request).await?;
    let (mut parts, mut entries) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
    let (mut images, mut complete) = (Vec::new(), false);
    while let Some(text) = lines.next().await? {
        match parse(&text)? {
            ExportLine::Progress(WarmProgress { image, bytes, bytes_here }) => {
                output.progress(&image, bytes, bytes_here)?
            }
            ExportLine::Part(part) => parts.entry(part.image.clone()).or_default().push(part),
            ExportLine::Entry(entry) => entries.entry(entry.image.clone()).or_default().push(entry),
            ExportLine::Ready(ready) => {
                let parts = parts.remove(&ready.image).unwrap_or_default();
                let entries = entries.remove(&ready.image).unwrap_or_default();
                images.push(Ready { ready, parts, entries });
            }
            ExportLine::Failed(WarmFailed { image, error }) => output.failed(&image, &error)?,
            ExportLine::Totals(_) => complete = true,
            ExportLine::Error(why) => return Err(Ended::Early(why)),
        }
    }
    if !complete {
        return Err(Ended::Early("no totals came".to_owned()));
    }
    Ok(Listed { images, output })
}

struct Export<'a> {
    client: &'a Client,
    output: Output,
    layout: Writer,
    /// What was seen to be in the layout.
    there: HashSet<String>,
}

impl Export<'_> {
    /// Writes an image, its name last.
    async fn image(&mut self, image: &Ready) -> Result<Moved, Ended> {
        let ExportReady { image: text, platforms, left_out, stale } = image.ready.clone();
        let bytes = image.parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.size));
        let (mut here, mut moved) = (0, 0);
        for part in &image.parts {
            if !self.is_there(part)? {
                self.part(part, bytes, here).await?;
                moved += part.size;
            }
            self.there.insert(part.digest.clone());
            here += part.size;
            self.output.progress(&text, bytes, here)?;
        }
        let entries = image.entries.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        self.layout.add(&entries)?;
        let Some(ExportEntry { name, digest, .. }) = image.entries.first().cloned() else {
            return Err(Ended::Early("the server did not say what it is called".to_owned()));
        };
        let name = name.unwrap_or_else(|| text.clone());
        Ok(Moved { image: text, name, digest, bytes, bytes_moved: moved, platforms, left_out, stale })
    }

    fn is_there(&self, part: &ExportPart) -> Result<bool, Ended> {
        Ok(self.there.contains(&part.digest)
            || self.layout.has(&part.digest.parse().map_err(odd)?, part.size)?)
    }

    async fn part(&mut self, part: &ExportPart, total: u64, before: u64) -> Result<(), Ended> {
        let request = ReadRequest { image: part.image.clone(), digest: part.digest.clone() };
        let mut lines = self.client.command("read", &request).await?;
        let mut blob = self.layout.blob(&part.digest.parse().map_err(odd)?, part.size)?;
        let mut here = before;
        while let Some(text) = lines.next().await? {
            let mut left = match parse(&text)? {
                ReadLine::Bytes(count) => count,
                ReadLine::Complete(_) => return Ok(blob.finish()?),
                ReadLine::Error(why) => return Err(Ended::Early(why)),
            };
            while left > 0 {
                let bytes = lines.bytes(left).await?;
                left -= bytes.len() as u64;
                here += bytes.len() as u64;
                blob.write(&bytes)?;
            }
            self.output.progress(&part.image, total, here)?;
        }
        Err(Ended::Early(format!("the bytes of {} broke off", part.digest)))
    }
}

fn entry(entry: &ExportEntry) -> Result<NewEntry, Ended> {
    let ExportEntry { name, digest, media_type, size, .. } = entry.clone();
    Ok(NewEntry { name, media_type, digest: digest.parse().map_err(odd)?, size })
}

fn odd(error: impl std::fmt::Display) -> Ended {
    Ended::Early(format!("the server named what is no digest: {error}"))
}
