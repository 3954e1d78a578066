//! What the control socket is told to show, evict and pin held content with.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use humantime::format_rfc3339_seconds;

use crate::control::{
    Command, DuImage, DuLine, DuRepository, DuRequest, DuTotals, DuUpstream, EvictLine, EvictRequest,
    EvictTotals, EvictedImage, NotDone, PinLine, PinRequest, PinTotals, PinnedImage, Report,
};
use crate::http::Service;
use crate::oci::{Digest, Owner, Reference, Repository};
use crate::store::{ImageUse, Named, PINS_MAX, Pinning, RepositoryUse, Selection, Store, Usage, Victim};

/// Shows what uses the space.
pub fn using(store: Arc<Store>) -> Command {
    Command::new(move |request, told| show(store.clone(), request, told).boxed())
}

/// Evicts mirrored images.
pub fn evicting(service: Arc<ArcSwap<Service>>, store: Arc<Store>) -> Command {
    Command::new(move |request: EvictRequest, told| {
        let (service, store) = (service.load_full(), store.clone());
        async move { evict(&service, &store, request, told).await.map(EvictLine::Totals) }.boxed()
    })
}

/// Keeps images from being evicted, or tells which ones are kept.
pub fn pinning(service: Arc<ArcSwap<Service>>, store: Arc<Store>) -> Command {
    Command::new(move |request: PinRequest, told| {
        let (service, store) = (service.load_full(), store.clone());
        async move {
            match request.images.is_empty() {
                true => list_pins(&store, told).await,
                false => pin(&service, &store, request, true, told).await,
            }
            .map(PinLine::Totals)
        }
        .boxed()
    })
}

/// Lets images be evicted again.
pub fn unpinning(service: Arc<ArcSwap<Service>>, store: Arc<Store>) -> Command {
    Command::new(move |request: PinRequest, told| {
        let (service, store) = (service.load_full(), store.clone());
        async move { pin(&service, &store, request, false, told).await.map(PinLine::Totals) }.boxed()
    })
}

fn owner_text(owner: Option<&Owner>) -> String {
    owner.map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

/// As it is named everywhere, where it can be.
fn name_of(stored_name: &str, owner: Option<&Owner>) -> String {
    Repository::stored_as(stored_name, owner)
        .map_or_else(|| stored_name.to_owned(), |found| found.to_string())
}

async fn show(store: Arc<Store>, request: DuRequest, told: Report<DuLine>) -> Result<DuLine, String> {
    store.surveyed().await;
    let counted = store.run(|store| {
        let usage = store.usage();
        let pinned = store.pinned_in(&usage)?;
        Ok((usage, pinned, store.cap()?, store.lingering()))
    });
    let (usage, pinned, cap, open) = counted.await.map_err(|error| error.to_string())?;
    let Usage { bytes, blobs, unlinked, owners, mut repositories } = usage;
    let pinned: HashSet<_> = pinned.into_iter().collect();
    let mut upstreams: Vec<_> = owners.into_iter().collect();
    upstreams.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    repositories.sort_by_key(|repository| std::cmp::Reverse(repository.bytes.all));
    for (owner, bytes) in upstreams {
        let of: Vec<_> = repositories.iter().filter(|repository| repository.owner == owner).collect();
        let images = of.iter().map(|repository| repository.images.len() as u64).sum();
        let (name, repositories) = (owner_text(owner.as_ref()), of.len() as u64);
        told.tell(&DuLine::Upstream(DuUpstream { name, repositories, images, bytes })).await;
    }
    for RepositoryUse { stored_name, owner, bytes, mut images } in repositories {
        let name = name_of(&stored_name, owner.as_ref());
        let line = DuRepository {
            name: name.clone(),
            upstream: owner_text(owner.as_ref()),
            images: images.len() as u64,
            bytes: bytes.all,
            bytes_alone: bytes.alone,
        };
        told.tell(&DuLine::Repository(line)).await;
        images.sort_by_key(|image| std::cmp::Reverse(image.bytes.alone));
        for ImageUse { key, digest, tags, bytes, wanted } in images.into_iter().filter(|_| request.images) {
            let line = DuImage {
                repository: name.clone(),
                digest: digest.to_string(),
                tags: tags.iter().map(ToString::to_string).collect(),
                bytes: bytes.all,
                bytes_alone: bytes.alone,
                wanted: format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(wanted.into())).to_string(),
                pinned: pinned.contains(&(stored_name.to_string(), key)),
            };
            told.tell(&DuLine::Image(line)).await;
        }
    }
    Ok(DuLine::Totals(DuTotals { blobs, bytes, bytes_unlinked: unlinked, bytes_open: open, cap }))
}

async fn evict(
    service: &Service,
    store: &Arc<Store>,
    request: EvictRequest,
    told: Report<EvictLine>,
) -> Result<EvictTotals, String> {
    store.surveyed().await;
    let mut totals = EvictTotals::default();
    let mut selections = Vec::new();
    for text in &request.images {
        match selected(service, store, text) {
            Ok(selection) => selections.push((Some(text), selection)),
            Err(error) => {
                totals.failed += 1;
                told.tell(&EvictLine::Failed(NotDone { image: text.clone(), error })).await;
            }
        }
    }
    if request.images.is_empty() {
        selections.push((None, chosen(&request)?));
    }
    for (text, selection) in selections {
        let dry_run = request.dry_run;
        let work = move |store: &Store| {
            let victims = store.select(&selection)?;
            let lines: Vec<_> = victims.iter().map(|victim| evicted(store, victim)).collect();
            if dry_run {
                return Ok(lines);
            }
            let gone = store.evict(&victims)?;
            let gone: HashSet<_> = gone.iter().map(links).collect();
            let both = lines.into_iter().zip(&victims);
            Ok(both.filter(|(_, victim)| gone.contains(&links(victim))).map(|(line, _)| line).collect())
        };
        let gone = store.change(work).await.map_err(|error| error.to_string())?;
        if let (Some(text), true) = (text, gone.is_empty()) {
            totals.failed += 1;
            let error = "it is pinned, or being read or fetched: unpin it, or try again".to_owned();
            told.tell(&EvictLine::Failed(NotDone { image: text.clone(), error })).await;
        }
        for line in gone {
            totals.images += 1;
            totals.bytes += line.bytes;
            told.tell(&EvictLine::Evicted(line)).await;
        }
    }
    Ok(totals)
}

/// What tells one victim from another.
fn links(victim: &Victim) -> (&str, &[Digest], &[Digest]) {
    (&victim.repository, &victim.manifests, &victim.layers)
}

fn evicted(store: &Store, victim: &Victim) -> EvictedImage {
    let owner = store.owner_of(&victim.repository);
    let digest = victim.root.or_else(|| victim.layers.first().copied());
    EvictedImage {
        repository: name_of(&victim.repository, owner.as_ref()),
        digest: digest.map(|digest| digest.to_string()).unwrap_or_default(),
        tags: store.tags_to(victim),
        bytes: victim.bytes,
    }
}

fn selected(service: &Service, store: &Store, text: &str) -> Result<Selection, String> {
    let (repository, reference) = image(service, text)?;
    if repository.owner == Owner::Hosted {
        return Err(
            "it is one of your own images, which are never evicted: delete it by the registry's API, or \
                    have `hosted.retention` let it go"
                .to_owned(),
        );
    }
    match store.named(&repository, &reference) {
        Named::Image(digest) => Ok(Selection::image(&repository, digest)),
        Named::Part => Err("it is a part of another image that is held: evict that one".to_owned()),
        Named::Absent => Err("it is not held".to_owned()),
    }
}

fn chosen(request: &EvictRequest) -> Result<Selection, String> {
    let upstream = request.upstream.as_deref().map(str::parse).transpose();
    let unused = request.unused_seconds.map(Duration::from_secs);
    Ok(Selection {
        bytes: request.bytes,
        // Before all times, nothing is so old.
        unused_since: unused.map(|time| SystemTime::now().checked_sub(time).unwrap_or(UNIX_EPOCH)),
        upstream: upstream.map_err(|error: crate::oci::InvalidHost| error.to_string())?,
        ..Selection::default()
    })
}

fn image(service: &Service, text: &str) -> Result<(Repository, Reference), String> {
    service.owners.any_image(text, Some(service.public.port)).map_err(|error| error.to_string())
}

async fn pin(
    service: &Service,
    store: &Arc<Store>,
    request: PinRequest,
    pins: bool,
    told: Report<PinLine>,
) -> Result<PinTotals, String> {
    let mut totals = PinTotals::default();
    for text in request.images {
        match pin_one(service, store, &text, pins).await {
            Ok(done) => {
                totals.images += 1;
                told.tell(&if pins { PinLine::Pinned(done) } else { PinLine::Unpinned(done) }).await;
            }
            Err(error) => {
                totals.failed += 1;
                told.tell(&PinLine::Failed(NotDone { image: text, error })).await;
            }
        }
    }
    Ok(totals)
}

async fn pin_one(
    service: &Service,
    store: &Arc<Store>,
    text: &str,
    pins: bool,
) -> Result<PinnedImage, String> {
    let (repository, reference) = image(service, text)?;
    if repository.owner == Owner::Hosted {
        return Err("it is one of your own images, which are never evicted".to_owned());
    }
    let of = (repository.clone(), reference.clone());
    let as_before = if pins {
        let pinned = store.change(move |store| store.pin(&of.0, &of.1)).await;
        match pinned.map_err(|error| error.to_string())? {
            Pinning::Done => false,
            Pinning::AsBefore => true,
            Pinning::TooMany => {
                return Err(format!("{PINS_MAX} images are pinned, which are all that can be: unpin some"));
            }
        }
    } else {
        let unpinned = store.change(move |store| store.unpin(&of.0, &of.1)).await;
        !unpinned.map_err(|error| error.to_string())?
    };
    let held = store.named(&repository, &reference) != Named::Absent;
    Ok(PinnedImage { image: shown(&repository, &reference), held, as_before })
}

async fn list_pins(store: &Arc<Store>, told: Report<PinLine>) -> Result<PinTotals, String> {
    let pins = store.run(Store::pins).await.map_err(|error| error.to_string())?;
    let mut totals = PinTotals::default();
    for (stored_name, reference) in pins {
        let owner = store.owner_of(&stored_name);
        let repository = Repository::stored_as(&stored_name, owner.as_ref());
        let held = repository.as_ref().is_some_and(|of| store.named(of, &reference) != Named::Absent);
        let image = repository.map_or(stored_name, |repository| shown(&repository, &reference));
        totals.images += 1;
        told.tell(&PinLine::Pinned(PinnedImage { image, held, as_before: true })).await;
    }
    Ok(totals)
}

fn shown(repository: &Repository, reference: &Reference) -> String {
    match reference {
        Reference::Tag(tag) => format!("{repository}:{tag}"),
        Reference::Digest(digest) => format!("{repository}@{digest}"),
    }
}
