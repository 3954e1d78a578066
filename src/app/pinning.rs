//! What the control socket is told to pin and unpin images with.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::FutureExt;

use super::naming;
use crate::control::{Command, NotDone, PinLine, PinRequest, PinTotals, PinnedImage, Report};
use crate::http::{Owners, Service};
use crate::oci::{Owner, Reference, Repository};
use crate::store::{Named, PINS_MAX, Pinning, Store};

/// Keeps images from being evicted, or tells which ones are kept.
pub fn pinning(service: Arc<ArcSwap<Service>>, store: Arc<Store>) -> Command {
    Command::new(move |request: PinRequest, told| {
        let (service, store) = (service.load_full(), store.clone());
        async move {
            match request.images.is_empty() {
                true => list(&service, &store, told).await,
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
    let named = if pins { naming::image(service, text) } else { pinned_image(service, store, text).await };
    let (repository, reference) = named?;
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
    let by_configuration = store.configured_pins().contains(&(repository.stored_name(), reference.clone()));
    let note = if held { None } else { naming::own_instead(service, store, text, &repository) };
    Ok(PinnedImage { image: reference.of(&repository), held, as_before, by_configuration, note })
}

/// The image that a text names, also one that was pinned while its upstream was configured.
async fn pinned_image(
    service: &Service,
    store: &Arc<Store>,
    text: &str,
) -> Result<(Repository, Reference), String> {
    let named = naming::image(service, text);
    let Some((candidates, reference)) = Owners::once(text).filter(|_| named.is_err()) else { return named };
    let pins = store.run(Store::pins).await.map_err(|error| error.to_string())?;
    let is_pinned = |of: &Repository| pins.contains(&(of.stored_name(), reference.clone()));
    candidates.into_iter().find(is_pinned).map_or(named, |repository| Ok((repository, reference.clone())))
}

/// What is pinned by command, then what the configuration alone keeps.
async fn list(service: &Service, store: &Arc<Store>, told: Report<PinLine>) -> Result<PinTotals, String> {
    let pins = store.run(Store::pins).await.map_err(|error| error.to_string())?;
    let configured: BTreeSet<_> = store.configured_pins().into_iter().collect();
    let by_command: BTreeSet<_> = pins.into_iter().collect();
    let mut totals = PinTotals::default();
    for pin in by_command.iter().chain(configured.difference(&by_command)) {
        let (stored_name, reference) = pin;
        let repository = repository(service, store, stored_name);
        let held = repository.as_ref().is_some_and(|of| store.named(of, reference) != Named::Absent);
        let image = match repository {
            Some(repository) => reference.of(&repository),
            None => stored_name.clone(),
        };
        let (as_before, by_configuration) = (by_command.contains(pin), configured.contains(pin));
        totals.images += 1;
        let line = PinnedImage { image, held, as_before, by_configuration, note: None };
        told.tell(&PinLine::Pinned(line)).await;
    }
    Ok(totals)
}

/// Whose a repository is, or would be, as the configuration is.
fn repository(service: &Service, store: &Store, stored_name: &str) -> Option<Repository> {
    if let Some(owner) = store.owner_of(stored_name) {
        return Repository::stored_as(stored_name, Some(&owner));
    }
    let upstreams = service.owners.configured().iter();
    let mut as_theirs = upstreams.filter_map(|host| {
        let found = Repository::stored_as(stored_name, Some(&Owner::Upstream(host.clone())))?;
        (found.stored_name() == stored_name && service.owners.mirrors(&found)).then_some(found)
    });
    as_theirs.next().or_else(|| Repository::stored_as(stored_name, None))
}
