//! `forebay import`

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::moved::{Count, Moved, Output};
use super::running::{Ended, Server};
use super::{FAILED, misused};
use crate::control::{Client, ClientError, PutKind, PutLine, PutRequest, WantedLine, WantedRequest, parse};
use crate::layout::{self, Digest, Image, Layout, Part};

/// Take in images from a directory that was brought here
///
/// It is an OCI image layout: of `forebay export`, skopeo, podman, buildah or `docker buildx build -o
/// type=oci`, unpacked. Images of a registry that is mirrored here are held from then on as if they had been
/// pulled now; others are pushed. What is held already is not taken again, so whatever ends this early is taken
/// up where it stood.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ImportArgs {
    /// The layout
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
    /// What the image is to be called, in place of what the layout says; without a tag, images keep theirs
    #[arg(long = "as", value_name = "IMAGE")]
    name: Option<String>,
    /// One JSON object a line: `progress`, `imported` or `failed` for each image, `totals` at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

const EXAMPLES: &str = "\
Examples:
  What `forebay export` has written, under the same names:
    forebay import /media/usb/images
  What skopeo has copied, which knows a tag and no name:
    skopeo copy --all docker://ghcr.io/org/app:2.0 oci:app:2.0
    forebay import app --as ghcr.io/org/app
  A build, as an image of this registry:
    docker buildx build -o type=oci,dest=app.tar . && mkdir app && tar -C app -xf app.tar
    forebay import app --as localhost:5000/app:1.0

A registry whose images are taken has to be configured ([upstream.\"ghcr.io\"], or --upstream): a server without a way out \
runs with --offline.";

pub async fn run(args: ImportArgs) -> ExitCode {
    let planned = Layout::open(&args.directory).and_then(|layout| {
        let plan = plan(&layout, args.name.as_deref())
            .map_err(|why| layout::Error { path: args.directory.clone(), why })?;
        Ok((layout, plan))
    });
    let (layout, plan) = match planned {
        Ok(planned) => planned,
        Err(error) => {
            misused(&error);
            return FAILED.into();
        }
    };
    let client = match args.server.client() {
        Ok(client) => client,
        Err(told) => return told,
    };
    let output = Output::new(args.json, plan.named.len(), Count::Imported(0));
    let mut import = Import { client, layout, output };
    match import.all(plan).await {
        Ok(0) => ExitCode::SUCCESS,
        // Each was told.
        Ok(_) => FAILED.into(),
        Err(ended) => ended.told(),
    }
}

/// Entries of the layout by their places.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    named: Vec<(usize, String)>,
    /// What refers to others, perhaps.
    unnamed: Vec<usize>,
}

/// What each image of a layout is to be called.
fn plan(layout: &Layout, wanted: Option<&str>) -> Result<Plan, String> {
    let labels: Vec<_> =
        layout.entries.iter().map(|entry| (entry.name.as_deref(), entry.label.as_deref())).collect();
    plan_of(&labels, wanted)
}

/// By the whole name and the label of each.
fn plan_of(labels: &[(Option<&str>, Option<&str>)], wanted: Option<&str>) -> Result<Plan, String> {
    if labels.is_empty() {
        return Err("it has no image".to_owned());
    }
    let mut plan = Plan::default();
    let alone = labels.len() == 1;
    for (place, (name, label)) in labels.iter().copied().enumerate() {
        let has_name = name.or(label).is_some();
        let name = match wanted {
            None => name.map(str::to_owned),
            Some(wanted) if has_name || alone => Some(renamed(wanted, name.or(label))),
            Some(_) => None,
        };
        match name {
            Some(name) => plan.named.push((place, name)),
            None => plan.unnamed.push(place),
        }
    }
    let labels = || labels.iter().filter_map(|(_, label)| *label).take(5).collect::<Vec<_>>().join("`, `");
    match (wanted, plan.named.len()) {
        (None, 0) if labels().is_empty() => {
            Err("its images have no names: say what they are to be called with --as".to_owned())
        }
        (None, 0) => Err(format!("its images are called `{}` alone: say whose they are with --as", labels())),
        (Some(wanted), 2..) if has_reference(wanted) => Err(format!(
            "{} images cannot all be called `{wanted}`: leave out the tag, and they keep theirs",
            plan.named.len()
        )),
        _ => Ok(plan),
    }
}

fn has_reference(image: &str) -> bool {
    image.contains('@') || image.rsplit('/').next().is_some_and(|last| last.contains(':'))
}

/// The name that is wanted; where that has no tag, with the one that an image has.
fn renamed(wanted: &str, called: Option<&str>) -> String {
    let Some(called) = called.filter(|_| !has_reference(wanted)) else { return wanted.to_owned() };
    let last = called.rsplit('/').next().unwrap_or(called);
    match (last.split_once('@'), last.rsplit_once(':')) {
        (Some((_, digest)), _) => format!("{wanted}@{digest}"),
        (None, Some((_, tag))) => format!("{wanted}:{tag}"),
        // A label is a tag, a whole name has none.
        (None, None) if last == called => format!("{wanted}:{called}"),
        (None, None) => wanted.to_owned(),
    }
}

struct Import {
    client: Client,
    layout: Layout,
    output: Output,
}

/// What has no name, and refers to others perhaps.
struct Beside {
    digest: Digest,
    image: Image,
    is_taken: bool,
}

/// An image, or what refers to it, under the image's name.
struct Named<'a> {
    name: &'a str,
    image: &'a Image,
}

impl Import {
    /// How many images failed.
    async fn all(&mut self, plan: Plan) -> Result<u64, Ended> {
        let mut beside = Vec::new();
        for place in plan.unnamed {
            let entry = &self.layout.entries[place];
            match self.layout.image(entry) {
                Ok(image) => beside.push(Beside { digest: entry.digest, image, is_taken: false }),
                Err(error) => self.output.failed(&entry.digest.to_string(), &error.to_string())?,
            }
        }
        for (place, name) in plan.named {
            let ended = match self.layout.image(&self.layout.entries[place]) {
                Ok(image) => self.image(&name, place, &image, &mut beside).await,
                Err(error) => Err(error.into()),
            };
            match ended {
                Ok(moved) => self.output.moved(moved)?,
                Err(Ended::Early(error)) => self.output.failed(&name, &error)?,
                Err(Ended::Layout(error)) => self.output.failed(&name, &error.to_string())?,
                Err(Ended::Client(ClientError::Refused(error))) => self.output.failed(&name, &error)?,
                Err(other) => return Err(other),
            }
        }
        for Beside { digest, .. } in beside.into_iter().filter(|beside| !beside.is_taken) {
            let why = "it has no name, and refers to no image that was taken";
            self.output.warn(&format!("{digest} is left out: {why}"));
        }
        self.output.end()?;
        Ok(self.output.totals.failed)
    }

    /// Takes an image, then what refers to it, and to that.
    async fn image(
        &mut self,
        name: &str,
        place: usize,
        image: &Image,
        beside: &mut [Beside],
    ) -> Result<Moved, Ended> {
        let digest = self.layout.entries[place].digest;
        let named = Named { name, image };
        let (full, mut bytes, mut moved) = self.parts(&named, true).await?;
        let mut taken: Vec<_> = image.manifests.iter().map(|(digest, _)| *digest).collect();
        let mut seen: HashSet<Digest> = taken.iter().copied().collect();
        while let Some(subject) = taken.pop() {
            let refers = |beside: &&mut Beside| beside.image.subject == Some(subject);
            for Beside { image, is_taken, .. } in beside.iter_mut().filter(refers) {
                let (_, more, new) = self.parts(&Named { name, image }, false).await?;
                (bytes, moved, *is_taken) = (bytes + more, moved + new, true);
                // An index may refer to what it has.
                let new = image.manifests.iter().map(|(digest, _)| *digest);
                taken.extend(new.filter(|digest| seen.insert(*digest)));
            }
        }
        let Image { platforms, left_out, .. } = image.clone();
        Ok(Moved {
            image: name.to_owned(),
            name: full,
            digest: digest.to_string(),
            bytes,
            bytes_moved: moved,
            platforms,
            left_out,
            stale: None,
        })
    }

    /// Sends what the server does not have: the whole name that it knows the image by, and the bytes of all
    /// and of what was sent.
    async fn parts(&mut self, of: &Named<'_>, is_root: bool) -> Result<(String, u64, u64), Ended> {
        let blobs = &of.image.blobs;
        let manifests = of.image.manifests.iter().map(|(_, bytes)| bytes.len() as u64);
        let total = blobs.iter().map(|blob| blob.size).chain(manifests).fold(0, u64::saturating_add);
        let (full, wanted) = self.wanted(of.name, blobs, is_root).await?;
        let sent = wanted.iter().fold(0, |sum: u64, blob| sum.saturating_add(blob.size));
        let mut here = total.saturating_sub(sent);
        for blob in wanted {
            self.output.progress(of.name, total, here)?;
            self.blob(of.name, blob).await?;
            here += blob.size;
        }
        let last = of.image.manifests.len().saturating_sub(1);
        for (place, (digest, bytes)) in of.image.manifests.iter().enumerate() {
            let kind = if is_root && place == last { PutKind::Image } else { PutKind::Manifest };
            let request = PutRequest {
                image: of.name.to_owned(),
                digest: digest.to_string(),
                size: bytes.len() as u64,
                kind,
            };
            let bytes = futures_util::stream::iter([Ok(bytes.clone())]);
            self.put(&request, Box::pin(bytes)).await.map_err(|error| incomplete(error, of.image))?;
        }
        Ok((full, total, sent))
    }

    async fn wanted(&self, name: &str, blobs: &[Part], is_root: bool) -> Result<(String, Vec<Part>), Ended> {
        let texts = blobs.iter().map(|blob| blob.digest.to_string()).collect();
        let request = WantedRequest { image: name.to_owned(), blobs: texts };
        let mut lines = self.client.command("wanted", &request).await?;
        let mut wanted = Vec::new();
        while let Some(text) = lines.next().await? {
            match parse(&text)? {
                WantedLine::Blob(digest) => {
                    wanted.extend(blobs.iter().filter(|blob| blob.digest.to_string() == digest))
                }
                WantedLine::Note(note) if is_root => self.output.warn(&note),
                WantedLine::Note(_) => {}
                WantedLine::Name(full) => return Ok((full, wanted)),
                WantedLine::Error(why) => return Err(Ended::Early(why)),
            }
        }
        Err(Ended::Early("the server did not say what it lacks".to_owned()))
    }

    async fn blob(&self, name: &str, blob: Part) -> Result<(), Ended> {
        let (bytes, findings) = self.layout.feed(blob)?.split();
        let (image, digest) = (name.to_owned(), blob.digest.to_string());
        let request = PutRequest { image, digest, size: blob.size, kind: PutKind::Blob };
        let put = self.put(&request, bytes).await;
        // What is wrong with the file says more than that the bytes broke off.
        match findings.take() {
            Some(error) => Err(error.into()),
            None => put,
        }
    }

    async fn put(
        &self,
        request: &PutRequest,
        bytes: futures_util::stream::BoxStream<'static, std::io::Result<bytes::Bytes>>,
    ) -> Result<(), Ended> {
        let mut lines = self.client.command_with("put", request, bytes).await?;
        match lines.next().await?.as_deref().map(parse).transpose()? {
            Some(PutLine::Held(_)) => Ok(()),
            Some(PutLine::Error(why)) => Err(Ended::Early(why)),
            None => Err(Ended::Early(format!("the server did not say whether it has {}", request.digest))),
        }
    }
}

/// A registry takes no index without its manifests.
fn incomplete(error: Ended, image: &Image) -> Ended {
    match error {
        Ended::Early(why) if image.left_out > 0 => Ended::Early(format!(
            "{why} (the layout leaves out {} manifests of its index: have it exported with `--platform all`)",
            image.left_out
        )),
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_called_as_the_layout_says_or_as_is_wanted() {
        let plan = |labels: &[(Option<&str>, Option<&str>)], wanted: Option<&str>| {
            plan_of(labels, wanted).map(|plan| {
                let names: Vec<String> = plan.named.into_iter().map(|(_, name)| name).collect();
                names.join(" ")
            })
        };
        let ours = (Some("docker.io/library/a:1"), Some("docker.io/library/a:1"));
        let (tag, nameless) = ((None, Some("2.0")), (None, None));
        for (labels, wanted, expected) in [
            (&[ours, nameless][..], None, "docker.io/library/a:1"),
            (&[ours, nameless], Some("x/b"), "x/b:1"),
            (&[ours, nameless], Some("x/b:7"), "x/b:7"),
            (&[ours, tag], Some("localhost:5000/b"), "localhost:5000/b:1 localhost:5000/b:2.0"),
            (&[ours, tag], None, "docker.io/library/a:1"),
            (&[tag], Some("ghcr.io/org/app"), "ghcr.io/org/app:2.0"),
            (&[nameless], Some("ghcr.io/org/app"), "ghcr.io/org/app"),
            (&[(Some("a/b@sha256:00"), None)], Some("c"), "c@sha256:00"),
        ] {
            assert_eq!(plan(labels, wanted).as_deref(), Ok(expected), "{labels:?} {wanted:?}");
        }
        for (labels, wanted, part) in [
            (&[][..], None, "no image"),
            (&[nameless], None, "--as"),
            (&[tag], None, "`2.0` alone"),
            (&[ours, tag], Some("b:1"), "2 images cannot all"),
        ] {
            let error = plan(labels, wanted).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
