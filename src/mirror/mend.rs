//! What the disk has lost is fetched again where it is mirrored.

use std::sync::Arc;

use super::Mirror;
use super::finding::Done;
use super::restore::Restored;
use super::scrub::Scrubber;
use crate::oci::{Digest, Repository, Tag};
use crate::store::{Damage, LinkFault, OriginState, Part};

impl Scrubber {
    /// Fetches data again that was put aside, for whoever links it.
    pub(super) async fn mend(&self, damage: &Damage, repair: bool) -> Done {
        if damage.linkers.is_empty() {
            return Done::Unneeded;
        }
        let (mut why, mut gone) = (None, None);
        for linker in damage.linkers.iter().filter(|linker| linker.origin.is_mirrored()) {
            if !repair {
                return Done::Left;
            }
            match self.restore(&linker.name, &linker.origin, linker.part, &damage.digest).await {
                // For all of them: they lead to the same bytes.
                Done::Fetched => return Done::Fetched,
                Done::Unlinked => gone = gone.or(Some(Done::Unlinked)),
                done @ (Done::Gone | Done::Dropped) => gone = Some(done),
                Done::Failed(error) => why = Some(error),
                _ => {}
            }
        }
        match (why, gone) {
            (Some(why), _) => Done::Failed(why),
            (None, Some(gone)) if damage.linkers.iter().all(|linker| linker.origin.is_mirrored()) => gone,
            _ if damage.stays => Done::Stays,
            _ => Done::Lost,
        }
    }

    /// Fetches again what a mirrored repository links.
    async fn restore(&self, name: &str, origin: &OriginState, part: Part, digest: &Digest) -> Done {
        let (mirror, repository) = match self.mirrored(name, origin) {
            Ok(found) => found,
            Err(failed) => return failed,
        };
        match mirror.restore(&repository, part, digest).await {
            Ok(Restored::Held) => Done::Fetched,
            Ok(Restored::Gone) => self.give_up(&mirror, &repository, part, digest).await,
            Err(error) => Done::Failed(error.to_string()),
        }
    }

    /// Takes a link away to what the registry has no more, unless an image needs it: that is not to look
    /// whole.
    async fn give_up(&self, mirror: &Mirror, of: &Repository, part: Part, digest: &Digest) -> Done {
        let (name, needed) = (of.stored_name(), *digest);
        match self.store.run(move |store| Ok(store.is_needed(&name, &needed))).await {
            Ok(true) => return Done::Gone,
            Ok(false) => {}
            Err(error) => return Done::Failed(error.to_string()),
        }
        match (mirror.unlink(of, part, digest).await, part) {
            (Ok(()), Part::Blob) => Done::Unlinked,
            (Ok(()), Part::Manifest) => Done::Dropped,
            (Err(error), _) => Done::Failed(error.to_string()),
        }
    }

    fn mirrored(&self, name: &str, origin: &OriginState) -> Result<(Arc<Mirror>, Repository), Done> {
        const NO_UPSTREAM: &str = "its upstream is not configured, or does not give it to everybody: it is fetched when \
             somebody asks for it who may have it";
        let mirror = self.mirror();
        let OriginState::Known(origin) = origin else { return Err(Done::Lost) };
        let found = mirror.and_then(|mirror| mirror.stored(name, origin).map(|of| (mirror, of)));
        found.ok_or_else(|| Done::Failed(NO_UPSTREAM.to_owned()))
    }

    /// None: there is nothing wrong, now that the disk has done what it was given.
    pub(super) async fn mend_link(
        &self,
        name: &str,
        origin: &OriginState,
        fault: &LinkFault,
        repair: bool,
    ) -> Option<Done> {
        if !origin.is_mirrored() {
            return Some(Done::Lost);
        }
        let (mirror, repository) = match self.mirrored(name, origin) {
            Ok(found) => found,
            Err(failed) => return Some(failed),
        };
        // A tag may come to the disk before its manifest.
        if let LinkFault::Tag { digest: Some(digest), .. } = fault
            && mirror.has_manifest(&repository, digest).await.unwrap_or(false)
        {
            return None;
        }
        if !repair {
            if let LinkFault::Tag { tag, digest: None } = fault {
                mirror.doubt_tag(&repository, tag);
            }
            return Some(if self.is_gone(fault) { Done::Gone } else { Done::Left });
        }
        let ended = match fault {
            LinkFault::Dangling { part, name: digest, .. } => {
                return Some(self.restore(name, origin, *part, digest).await);
            }
            LinkFault::Illegible { part, name: digest, .. } => {
                mirror.unlink(&repository, *part, digest).await
            }
            LinkFault::Tag { tag, digest } => {
                return Some(mend_tag(&mirror, &repository, tag, *digest).await);
            }
            // What is mirrored is not whole before all of it was asked for.
            LinkFault::Incomplete { .. } => return None,
        };
        Some(ended.map_or_else(|error| Done::Failed(error.to_string()), |()| Done::Unlinked))
    }
}

/// Fetches what a tag was `seen` to point to, else what the registry has it point to by now. The tag goes
/// only where the registry has it no more.
async fn mend_tag(mirror: &Arc<Mirror>, repository: &Repository, tag: &Tag, seen: Option<Digest>) -> Done {
    let mut restored = Ok(Restored::Gone);
    if let Some(digest) = &seen {
        restored = mirror.restore(repository, Part::Manifest, digest).await;
    }
    if let Ok(Restored::Gone) = restored {
        restored = mirror.restore_tag(repository, tag).await;
    }
    match restored {
        Ok(Restored::Held) => Done::Fetched,
        Ok(Restored::Gone) => {
            let forgot = mirror.forget_tag(repository, tag, seen).await;
            forgot.map_or_else(|error| Done::Failed(error.to_string()), |()| Done::Dropped)
        }
        Err(error) => Done::Failed(error.to_string()),
    }
}
