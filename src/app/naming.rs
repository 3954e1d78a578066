//! What people mean by the images that they name to commands, and what they may have meant instead.

use std::sync::Arc;

use crate::http::{Owners, Service};
use crate::oci::{Owner, Reference, Repository};
use crate::store::{Named, Store};

/// Tags that are named where another was asked for.
const TAGS_SHOWN: usize = 5;

pub fn image(service: &Service, text: &str) -> Result<(Repository, Reference), String> {
    service.owners.any_image(text, Some(service.public.port)).map_err(|error| error.to_string())
}

/// The same of what is held, also where its upstream is configured no more, or otherwise.
pub fn held_image(service: &Service, store: &Store, text: &str) -> Result<(Repository, Reference), String> {
    let named = image(service, text);
    if named.as_ref().is_ok_and(|(repository, reference)| store.named(repository, reference) != Named::Absent)
    {
        return named;
    }
    let once = Owners::once(text).and_then(|(candidates, reference)| {
        let is_held = |of: &Repository| {
            store.owner_of(&of.stored_name()).as_ref() == Some(&of.owner)
                && store.named(of, &reference) != Named::Absent
        };
        candidates.into_iter().find(is_held).map(|repository| (repository, reference))
    });
    once.map_or(named, Ok)
}

/// The own image that was probably meant, where a mirrored one was named and an own repository goes by that
/// name.
pub fn own_instead(service: &Service, store: &Store, text: &str, named: &Repository) -> Option<String> {
    let (own, reference) = service.owners.own_image(text).filter(|_| named.owner != Owner::Hosted)?;
    let is_held = store.owner_of(&own.stored_name()) == Some(Owner::Hosted);
    is_held.then(|| format!("your own image is `{}`", full_name(service, &own, &reference)))
}

/// Why there is nothing under a name.
pub async fn absent(
    service: &Service,
    store: &Arc<Store>,
    text: &str,
    (repository, reference): (&Repository, &Reference),
) -> String {
    let mut told = "it is not held".to_owned();
    let meant = full_name(service, repository, reference);
    if meant != text {
        told += &format!(": it means {meant}");
    }
    if let Some(own) = own_instead(service, store, text, repository) {
        told += &format!("; {own}");
    }
    let of = repository.clone();
    let tags = store.run(move |store| store.tags(&of)).await.unwrap_or_default();
    if let Some((some, more)) = tags.split_at_checked(tags.len().min(TAGS_SHOWN)).filter(|_| !tags.is_empty())
    {
        let some = some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        told += &format!("; tags of it that are held: {some}{more}");
    }
    told
}

pub fn full_name(service: &Service, repository: &Repository, reference: &Reference) -> String {
    Owners::full_name(repository, reference, service.public.port)
}
