//! What the control socket is told to evict mirrored images with.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use futures_util::FutureExt;

use super::naming;
use crate::control::{Command, EvictLine, EvictRequest, EvictTotals, EvictedImage, NotDone, Report};
use crate::http::Service;
use crate::oci::{Digest, Owner, Reference, Repository, UpstreamHost};
use crate::store::{Error, ImageUse, Named, RepositoryUse, Selection, Store, Victim};

/// Evicts mirrored images.
pub fn evicting(service: Arc<ArcSwap<Service>>, store: Arc<Store>) -> Command {
    Command::new(move |request: EvictRequest, told| {
        let (service, store) = (service.load_full(), store.clone());
        async move { evict(&service, &store, request, told).await.map(EvictLine::Totals) }.boxed()
    })
}

async fn evict(
    service: &Service,
    store: &Arc<Store>,
    request: EvictRequest,
    told: Report<EvictLine>,
) -> Result<EvictTotals, String> {
    store.surveyed().await;
    let mut totals = EvictTotals::default();
    if request.images.is_empty() {
        match chosen(service, store, &request).await {
            Ok(selection) => {
                let gone = go(store, &selection, request.dry_run).await?;
                tell(&mut totals, &told, &gone.lines).await;
                if request.bytes.is_none_or(|bytes| totals.bytes < bytes) {
                    let stay = store.run(move |store| staying(store, &selection, &gone.chosen)).await;
                    (totals.pinned, totals.in_use) = stay.map_err(|error| error.to_string())?;
                }
            }
            Err(error) => failed(&mut totals, &told, request.upstream.unwrap_or_default(), error).await,
        }
    }
    for text in request.images {
        let done = match selected(service, store, &text).await {
            Ok((repository, digest)) => one(store, &repository, digest, request.dry_run).await?,
            Err(error) => Err(error),
        };
        match done {
            Ok(lines) => tell(&mut totals, &told, &lines).await,
            Err(error) => failed(&mut totals, &told, text, error).await,
        }
    }
    Ok(totals)
}

async fn failed(totals: &mut EvictTotals, told: &Report<EvictLine>, image: String, error: String) {
    totals.failed += 1;
    told.tell(&EvictLine::Failed(NotDone { image, error })).await;
}

async fn tell(totals: &mut EvictTotals, told: &Report<EvictLine>, lines: &[EvictedImage]) {
    for line in lines {
        totals.images += 1;
        totals.bytes += line.bytes;
        told.tell(&EvictLine::Evicted(line.clone())).await;
    }
}

/// What came of a selection.
struct Gone {
    chosen: Vec<Victim>,
    lines: Vec<EvictedImage>,
}

/// What tells one victim from another.
fn links(victim: &Victim) -> (&str, &[Digest], &[Digest]) {
    (&victim.repository, &victim.manifests, &victim.layers)
}

async fn go(store: &Arc<Store>, selection: &Selection, dry_run: bool) -> Result<Gone, String> {
    let selection = selection.clone();
    let work = move |store: &Store| {
        let chosen = store.select(&selection)?;
        let mut lines: Vec<_> = chosen.iter().map(|victim| evicted(store, victim)).collect();
        if dry_run {
            return Ok(Gone { chosen, lines });
        }
        let gone = store.evict(&chosen)?;
        let links: HashSet<_> = gone.iter().map(links).collect();
        let mut went = chosen.iter().map(|victim| links.contains(&self::links(victim)));
        lines.retain(|_| went.next() == Some(true));
        Ok(Gone { chosen: gone, lines })
    };
    store.change(work).await.map_err(|error| error.to_string())
}

/// Evicts an image, or says why it stays. The outer error ends all.
async fn one(
    store: &Arc<Store>,
    repository: &Repository,
    digest: Digest,
    dry_run: bool,
) -> Result<Result<Vec<EvictedImage>, String>, String> {
    let Gone { chosen, lines } = go(store, &Selection::image(repository, digest), dry_run).await?;
    if !lines.is_empty() {
        return Ok(Ok(lines));
    }
    let of = repository.clone();
    let pins = store.run(move |store| pins_of(store, &of)).await.map_err(|error| error.to_string())?;
    let keeps = |pins: &[Reference], named| pins.iter().any(|one| store.named(repository, one) == named);
    let whole = Named::Image(digest);
    Ok(Err(match () {
        () if !chosen.is_empty() => {
            "it came into use just now, or cannot be removed: try again; the log may say why"
        }
        () if keeps(&pins.configured, whole) => {
            "`[[warm]]` in the configuration keeps it: take it out there, and reload"
        }
        () if keeps(&pins.by_command, whole) => "it is pinned by command: `forebay unpin` it first",
        () if keeps(&[pins.by_command, pins.configured].concat(), Named::Part) => {
            "it is being read or fetched, or a part of it is pinned: try again, or see `forebay pin`"
        }
        () => "it is being read or fetched: try again",
    }
    .to_owned()))
}

/// What is pinned of a repository.
struct PinsOf {
    by_command: Vec<Reference>,
    configured: Vec<Reference>,
}

fn pins_of(store: &Store, repository: &Repository) -> Result<PinsOf, Error> {
    let name = repository.stored_name();
    let of_it = |pins: Vec<(String, Reference)>| {
        pins.into_iter().filter(|(of, _)| *of == name).map(|(_, reference)| reference).collect()
    };
    Ok(PinsOf { by_command: of_it(store.pins()?), configured: of_it(store.configured_pins()) })
}

/// How many images of a selection stay beside those that were chosen: pinned ones, and others.
fn staying(store: &Store, selection: &Selection, chosen: &[Victim]) -> Result<(u64, u64), Error> {
    let usage = store.usage();
    let pinned: HashSet<_> = store.pinned_in(&usage)?.into_iter().collect();
    let goes: HashSet<_> =
        chosen.iter().filter_map(|victim| Some((&*victim.repository, victim.root?))).collect();
    let since = selection.unused_since.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let (mut of_pinned, mut others) = (0, 0);
    for RepositoryUse { stored_name, owner, images, .. } in &usage.repositories {
        let Some(Owner::Upstream(host)) = owner else { continue };
        if selection.upstream.as_ref().is_some_and(|wanted| wanted != host) {
            continue;
        }
        for ImageUse { key, digest, wanted, .. } in images {
            let is_old = since.is_none_or(|since| u64::from(*wanted) < since.as_secs());
            if is_old && !goes.contains(&(&**stored_name, *digest)) {
                let is_pinned = pinned.contains(&(stored_name.to_string(), *key));
                *(if is_pinned { &mut of_pinned } else { &mut others }) += 1;
            }
        }
    }
    Ok((of_pinned, others))
}

fn evicted(store: &Store, victim: &Victim) -> EvictedImage {
    let owner = store.owner_of(&victim.repository);
    let digest = victim.root.or_else(|| victim.layers.first().copied());
    EvictedImage {
        repository: Repository::shown_as(&victim.repository, owner.as_ref()),
        digest: digest.map(|digest| digest.to_string()).unwrap_or_default(),
        tags: store.tags_to(victim),
        bytes: victim.bytes,
    }
}

/// The image that a text names, if it may go.
async fn selected(service: &Service, store: &Arc<Store>, text: &str) -> Result<(Repository, Digest), String> {
    let (repository, reference) = naming::held_image(service, store, text)?;
    if repository.owner == Owner::Hosted {
        return Err(
            "it is one of your own images, which are never evicted: delete it by the registry's API, or \
                    have `hosted.retention` let it go"
                .to_owned(),
        );
    }
    match store.named(&repository, &reference) {
        Named::Image(digest) => Ok((repository, digest)),
        Named::Part => Err("it is a part of another image that is held: evict that one".to_owned()),
        Named::Absent => Err(naming::absent(service, store, text, (&repository, &reference)).await),
    }
}

async fn chosen(service: &Service, store: &Arc<Store>, request: &EvictRequest) -> Result<Selection, String> {
    let unused = request.unused_seconds.map(Duration::from_secs);
    let upstream = match &request.upstream {
        Some(asked) => Some(upstream(service, store, asked).await?),
        None => None,
    };
    Ok(Selection {
        bytes: request.bytes,
        // Before all times, nothing is so old.
        unused_since: unused.map(|time| SystemTime::now().checked_sub(time).unwrap_or(UNIX_EPOCH)),
        upstream,
        ..Selection::default()
    })
}

/// An upstream that is configured, or of which something is held since it was.
async fn upstream(service: &Service, store: &Arc<Store>, asked: &str) -> Result<UpstreamHost, String> {
    if let Ok(host) = service.owners.upstream(asked) {
        return Ok(host.clone());
    }
    let host: UpstreamHost = asked.parse().map_err(|error: crate::oci::InvalidHost| error.to_string())?;
    let usage = store.run(|store| Ok(store.usage())).await.map_err(|error| error.to_string())?;
    if usage.owners.contains_key(&Some(Owner::Upstream(host.clone()))) {
        return Ok(host);
    }
    Err("it is no upstream of this server, and nothing of it is held: see `forebay du`".to_owned())
}
