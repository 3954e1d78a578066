//! What the control socket is told to show what is held with.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::FutureExt;
use humantime::format_rfc3339_seconds;

use crate::control::{Command, DuImage, DuLine, DuRepository, DuRequest, DuTotals, DuUpstream, Report};
use crate::oci::{Owner, Repository};
use crate::store::{ImageKey, ImageUse, RepositoryUse, Store, Usage};

/// Shows what uses the space.
pub fn using(store: Arc<Store>) -> Command {
    Command::new(move |request, told| show(store.clone(), request, told).boxed())
}

fn owner_text(owner: Option<&Owner>) -> String {
    owner.map_or_else(|| "unknown".to_owned(), ToString::to_string)
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
    let pinned: HashSet<(String, ImageKey)> = pinned.into_iter().collect();
    let mut upstreams: Vec<_> = owners.into_iter().collect();
    upstreams.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    repositories.sort_by_key(|repository| std::cmp::Reverse(repository.bytes.all));
    // What everything went of is no more than a name.
    repositories.retain(|repository| repository.bytes.all > 0 || !repository.images.is_empty());
    for (owner, bytes) in upstreams {
        let of: Vec<_>;
        (of, repositories) = repositories.into_iter().partition(|repository| repository.owner == owner);
        if of.is_empty() {
            continue;
        }
        let images = of.iter().map(|repository| repository.images.len() as u64).sum();
        let (name, count) = (owner_text(owner.as_ref()), of.len() as u64);
        told.tell(&DuLine::Upstream(DuUpstream { name, repositories: count, images, bytes })).await;
        show_repositories(of, &pinned, request.images, &told).await;
    }
    Ok(DuLine::Totals(DuTotals { blobs, bytes, bytes_unlinked: unlinked, bytes_open: open, cap }))
}

async fn show_repositories(
    repositories: Vec<RepositoryUse>,
    pinned: &HashSet<(String, ImageKey)>,
    with_images: bool,
    told: &Report<DuLine>,
) {
    for RepositoryUse { stored_name, owner, bytes, mut images } in repositories {
        let name = Repository::shown_as(&stored_name, owner.as_ref());
        let line = DuRepository {
            name: name.clone(),
            upstream: owner_text(owner.as_ref()),
            images: images.len() as u64,
            bytes: bytes.all,
            bytes_alone: bytes.alone,
        };
        told.tell(&DuLine::Repository(line)).await;
        images.sort_by_key(|image| std::cmp::Reverse(image.bytes.alone));
        for ImageUse { key, digest, tags, bytes, wanted } in images.into_iter().filter(|_| with_images) {
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
}
