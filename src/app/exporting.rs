//! What the control socket is told to give images out with: their parts listed, then read one by one.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::{FutureExt, StreamExt, stream};

use super::{naming, warming};
use crate::control::{
    Command, ExportEntry, ExportLine, ExportPart, ExportReady, ExportRequest, ExportTotals, ReadLine,
    ReadRequest, Report, WarmFailed,
};
use crate::http::{Content, Owners, Service};
use crate::mirror::{IMAGES_AT_ONCE, Image};
use crate::oci::{Digest, Manifest, Owner, Platforms, Reference, Repository, Tag};
use crate::store::{Contents, Store};

/// Manifests that are looked through for what refers to them, of one image.
const SUBJECTS_MAX: usize = 1000;
/// How cosign names what belongs to an image, in registries without referrers.
const BESIDE: [&str; 3] = ["sig", "att", "sbom"];

/// Lists what images consist of, by the configuration of the moment.
pub fn exporting(service: Arc<ArcSwap<Service>>, store: Arc<Store>) -> Command {
    Command::new(move |request: ExportRequest, told| {
        let (service, store) = (service.load_full(), store.clone());
        async move { export(&service, &store, request, told).await.map(ExportLine::Totals) }.boxed()
    })
}

/// Gives the bytes of a manifest or blob.
pub fn reading(service: Arc<ArcSwap<Service>>, store: Arc<Store>) -> Command {
    Command::new(move |request: ReadRequest, told| {
        let (service, store) = (service.load_full(), store.clone());
        async move { read(&service, &store, request, told).await.map(ReadLine::Complete) }.boxed()
    })
}

async fn export(
    service: &Service,
    store: &Arc<Store>,
    request: ExportRequest,
    told: Report<ExportLine>,
) -> Result<ExportTotals, String> {
    let content = service.content.as_ref().ok_or("the store cannot be used")?;
    let platforms = match request.platforms.as_slice() {
        [] => None,
        texts => Some(Platforms::parse(texts).map_err(|error| error.to_string())?),
    };
    let held_only = request.held_only || content.mirror.is_offline();
    let wanted = Wanted { platforms, held_only, referrers: !request.no_referrers };
    let images = stream::iter(request.images).map(|text| {
        let (told, wanted) = (told.clone(), &wanted);
        async move {
            let exporter = Exporter { service, store, content, wanted, told: &told, text: &text };
            let ended = exporter.image().await;
            let is_ready = ended.is_ok();
            // Whoever asked may have left.
            told.tell(&ended.map_or_else(
                |error| ExportLine::Failed(WarmFailed { image: text.clone(), error }),
                ExportLine::Ready,
            ))
            .await;
            is_ready
        }
    });
    let ended: Vec<bool> = images.buffer_unordered(IMAGES_AT_ONCE).collect().await;
    let ready = ended.iter().filter(|is_ready| **is_ready).count() as u64;
    Ok(ExportTotals { ready, failed: ended.len() as u64 - ready })
}

/// What is wanted of each image.
struct Wanted {
    platforms: Option<Platforms>,
    held_only: bool,
    referrers: bool,
}

struct Exporter<'a> {
    service: &'a Service,
    store: &'a Arc<Store>,
    content: &'a Content,
    wanted: &'a Wanted,
    told: &'a Report<ExportLine>,
    text: &'a str,
}

impl Exporter<'_> {
    async fn image(&self) -> Result<ExportReady, String> {
        let port = self.service.public.port;
        let image = self.service.owners.any_image(self.text, Some(port));
        let (repository, reference) = image.map_err(|error| error.to_string())?;
        let root = self.root(&repository, &reference).await;
        let (digest, stale) = root.map_err(|error| match self.own_instead(&repository) {
            Some(own) => format!("{error}; {own}"),
            None => error,
        })?;
        let contents = self.contents(&repository, &digest, self.wanted.platforms.clone()).await?;
        if !contents.lacking.is_empty() {
            return Err(self.lacking(&repository, &reference, &contents.lacking));
        }
        let name = Owners::full_name(&repository, &reference, port);
        self.tell(&repository, &digest, &contents, Some(name)).await?;
        if self.wanted.referrers {
            self.beside(&repository, digest, &contents).await?;
        }
        let Contents { mut platforms, left_out, .. } = contents;
        platforms.dedup();
        Ok(ExportReady { image: self.text.to_owned(), platforms, left_out, stale })
    }

    fn own_instead(&self, repository: &Repository) -> Option<String> {
        naming::own_instead(self.service, self.store, self.text, repository)
    }

    /// What the image's name stands for, and why that may not be current. Of a mirrored image, what is
    /// wanted is held then, or was not to be fetched.
    async fn root(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<(Digest, Option<String>), String> {
        let Content { mirror, hosted } = self.content;
        if repository.owner == Owner::Hosted {
            let found = hosted.manifest(repository, reference, true).await;
            return found.map(|found| (found.digest, None)).map_err(|error| error.to_string());
        }
        mirror.may_be_carried(repository).await.map_err(|error| error.to_string())?;
        if !self.wanted.held_only {
            let (repository, reference) = (repository.clone(), reference.clone());
            let image = Image { text: self.text.to_owned(), repository, reference };
            let platforms = self.wanted.platforms.clone().unwrap_or_else(Platforms::of_this_machine);
            let tell = warming::progress(self.told, &image.text, ExportLine::Progress);
            let warmed = mirror.warm(&image, &platforms, Default::default(), &tell).await;
            return warmed.map(|warmed| (warmed.digest, warmed.stale)).map_err(|error| error.to_string());
        }
        let tag = match reference {
            Reference::Digest(digest) => return Ok((*digest, None)),
            Reference::Tag(tag) => tag.clone(),
        };
        let of = repository.clone();
        let held = self.store.run(move |store| store.tag(&of, &tag)).await;
        match held.map_err(|error| error.to_string())? {
            Some(held) => Ok((held.digest, None)),
            None => Err(self.lacking(repository, reference, &["the tag".to_owned()])),
        }
    }

    async fn contents(
        &self,
        repository: &Repository,
        digest: &Digest,
        platforms: Option<Platforms>,
    ) -> Result<Contents, String> {
        let (of, digest) = (repository.clone(), *digest);
        let found = self.store.run(move |store| store.contents(&of, &digest, platforms.as_ref())).await;
        found.map_err(|error| error.to_string())
    }

    fn lacking(&self, repository: &Repository, reference: &Reference, lacking: &[String]) -> String {
        const SHOWN: usize = 5;
        let more = match lacking.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let shown = lacking.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        let remedy = match (&repository.owner, self.content.mirror.is_offline()) {
            (Owner::Hosted, _) => "push it again",
            (_, true) => "this server is offline and fetches nothing",
            (_, false) => "leave out --held-only to have it fetched",
        };
        let name = Owners::full_name(repository, reference, self.service.public.port);
        format!("{name} is not held whole, it lacks {shown}{more}: {remedy}")
    }

    /// Tells of a manifest and all that it consists of.
    async fn tell(
        &self,
        repository: &Repository,
        digest: &Digest,
        contents: &Contents,
        name: Option<String>,
    ) -> Result<(), String> {
        let image = || self.text.to_owned();
        for part in contents.blobs.iter().chain(&contents.manifests) {
            let part = ExportPart { image: image(), digest: part.digest.to_string(), size: part.size };
            self.told.tell(&ExportLine::Part(part)).await;
        }
        let (of, wanted) = (repository.clone(), *digest);
        let bytes = self.store.run(move |store| store.manifest(&of, &wanted)).await;
        let bytes = bytes.map_err(|error| error.to_string())?.unwrap_or_default();
        let manifest = Manifest::parse(&bytes, None).map_err(|error| format!("{digest} is {error}"))?;
        let (digest, media_type) = (digest.to_string(), manifest.media_type.to_string());
        let entry = ExportEntry { image: image(), name, digest, media_type, size: bytes.len() as u64 };
        self.told.tell(&ExportLine::Entry(entry)).await;
        Ok(())
    }

    /// Tells of what refers to the image, to its manifests and to what was told so, as far as it is held.
    async fn beside(&self, repository: &Repository, root: Digest, contents: &Contents) -> Result<(), String> {
        let mut seen: HashSet<Digest> = contents.manifests.iter().map(|part| part.digest).collect();
        let mut subjects: Vec<Digest> = seen.iter().copied().collect();
        seen.insert(root);
        let mut looked = 0;
        while let Some(subject) = subjects.pop().filter(|_| looked < SUBJECTS_MAX) {
            looked += 1;
            let named = self.named_beside(repository, &subject).await?;
            let referrers = self.referrers(repository, &subject).await?;
            for (digest, name) in named.into_iter().chain(referrers.into_iter().map(|digest| (digest, None)))
            {
                if !seen.insert(digest) {
                    continue;
                }
                let found = self.contents(repository, &digest, None).await?;
                if found.lacking.is_empty() {
                    self.tell(repository, &digest, &found, name).await?;
                    subjects.extend(found.manifests.iter().map(|part| part.digest));
                }
            }
        }
        Ok(())
    }

    async fn referrers(&self, repository: &Repository, subject: &Digest) -> Result<Vec<Digest>, String> {
        let referrers = if repository.owner == Owner::Hosted {
            let found = self.content.hosted.referrers(repository, subject).await;
            found.map_err(|error| error.to_string())?.referrers.to_vec()
        } else {
            let (of, subject) = (repository.clone(), *subject);
            let held = self.store.run(move |store| store.referrers(&of, &subject)).await;
            held.map_err(|error| error.to_string())?.map_or_else(Vec::new, |held| held.referrers)
        };
        Ok(referrers.iter().filter_map(|referrer| referrer.digest.parse().ok()).collect())
    }

    /// What belongs to a manifest by its tag's name.
    async fn named_beside(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Vec<(Digest, Option<String>)>, String> {
        let (of, stem) = (repository.clone(), subject.to_string().replace(':', "-"));
        let port = self.service.public.port;
        let found = self.store.run(move |store| {
            let mut found = Vec::new();
            for tag in BESIDE.iter().filter_map(|end| format!("{stem}.{end}").parse::<Tag>().ok()) {
                if let Some(held) = store.tag(&of, &tag)? {
                    let name = Owners::full_name(&of, &Reference::Tag(tag), port);
                    found.push((held.digest, Some(name)));
                }
            }
            Ok(found)
        });
        found.await.map_err(|error| error.to_string())
    }
}

async fn read(
    service: &Service,
    store: &Arc<Store>,
    request: ReadRequest,
    told: Report<ReadLine>,
) -> Result<u64, String> {
    let content = service.content.as_ref().ok_or("the store cannot be used")?;
    let image = service.owners.any_image(&request.image, Some(service.public.port));
    let (repository, _) = image.map_err(|error| error.to_string())?;
    let digest: Digest = request.digest.parse().map_err(|error| format!("{}: {error}", request.digest))?;
    if repository.owner != Owner::Hosted {
        content.mirror.may_be_carried(&repository).await.map_err(|error| error.to_string())?;
    }
    let of = repository.clone();
    let held = store.run(move |store| match store.part(&of, &digest)? {
        Some(data) => store.blob(&data),
        None => Ok(None),
    });
    let held = held.await.map_err(|error| error.to_string())?;
    let held = held.ok_or_else(|| format!("{digest} of {repository} is not held any more: run it again"))?;
    let size = held.len;
    let mut reader = store.read(held, None);
    while let Some(piece) = reader.next().await {
        let piece = piece.map_err(|error| error.to_string())?;
        if !told.bytes(&ReadLine::Bytes(piece.len() as u64), piece).await {
            break;
        }
    }
    Ok(size)
}
