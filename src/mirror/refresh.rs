//! Tags that are asked for often are confirmed shortly before they go stale, so that nobody has to wait
//! for it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};

use super::manifest::Request;
use super::memory::{Cache, Subject, cache};
use super::tag::{PATIENCE, Resolved};
use super::warm::Background;
use super::{Mirror, lost};
use crate::answer::Error;
use crate::clock::Pacer;
use crate::metrics::Refreshed;
use crate::oci::{Digest, Owner, Reference, Repository, Tag, UpstreamHost};
use crate::upstream::Purpose;

/// How often a tag is asked for within its freshness to be worth a request.
const OFTEN: u32 = 2;
/// Tags that are looked at.
const TAGS_MAX: u64 = 4096;
const TICK: Duration = Duration::from_secs(1);
/// How long before its end: not for all tags the same, and no more than a quarter of the freshness.
const LEAD: std::ops::Range<u64> = 4_000..12_000;
const AT_ONCE: usize = 8;
/// How long an upstream that did not answer is left alone.
const REST: Duration = Duration::from_secs(60);

/// How often tags are asked for, of those asked for most.
pub struct Hot(Option<Cache<(Repository, Tag), Arc<Heat>>>);

pub struct Heat {
    /// Since it was last confirmed here.
    asked: AtomicU32,
    lead: Duration,
}

impl Hot {
    /// Where nothing is to be refreshed, nothing is counted.
    pub fn new(per_minute: u32) -> Self {
        Self((per_minute > 0).then(|| cache(TAGS_MAX)))
    }

    pub fn note(&self, repository: &Repository, tag: &Tag) {
        let Some(tags) = &self.0 else { return };
        let heat = tags.get_with((repository.clone(), tag.clone()), || {
            let lead = Duration::from_millis(rand::random_range(LEAD));
            Arc::new(Heat { asked: AtomicU32::new(0), lead })
        });
        heat.asked.fetch_add(1, Ordering::Relaxed);
    }
}

/// Refreshes tags as long as there is the mirror.
pub fn start(mirror: &Arc<Mirror>) {
    let Some(per_minute) = NonZeroU32::new(mirror.options.ahead.refreshes_per_minute) else { return };
    let mut refresher = Refresher { pace: mirror.clock.pace(per_minute), resting: Vec::new() };
    let (stopping, weak) = (mirror.tasks.stopping(), Arc::downgrade(mirror));
    mirror.tasks.spawn("refresh tags", async move {
        let refresh = async {
            loop {
                tokio::time::sleep(TICK).await;
                let Some(mirror) = weak.upgrade() else { return };
                refresher.refresh(&mirror).await;
            }
        };
        tokio::select! { () = refresh => {}, () = stopping => {} }
    });
}

struct Refresher {
    pace: Pacer,
    /// Upstreams that did not answer, and until when they are left alone.
    resting: Vec<(UpstreamHost, Instant)>,
}

impl Refresher {
    /// Confirms the tags that will soon be stale.
    async fn refresh(&mut self, mirror: &Arc<Mirror>) {
        let now = mirror.clock.now();
        self.resting.retain(|(_, until)| now < *until);
        let mut due = mirror.soon_stale(now);
        due.retain(|tag| mirror.is_well(&tag.repository) && !self.rests(&tag.repository));
        due.sort_unstable_by_key(|tag| tag.fresh_until);
        due.retain(|_| self.pace.check().is_ok());
        let asked = due.into_iter().map(|tag| async move { (mirror.refresh(&tag).await, tag.repository) });
        let ended: Vec<_> = stream::iter(asked.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).collect().await;
        for (asked, repository) in ended {
            let refreshed = asked.as_ref().map_or(Refreshed::Failed, |refreshed| *refreshed);
            mirror.store.metrics().warm.refreshed.cell(refreshed).inc();
            // What it says of one repository is no word on the others.
            let has_answered = matches!(asked, Ok(_) | Err(Error::NotFound(_) | Error::Denied { .. }));
            if let (false, Owner::Upstream(host)) = (has_answered, repository.owner) {
                self.resting.push((host, mirror.clock.now() + REST));
            }
        }
    }

    fn rests(&self, repository: &Repository) -> bool {
        self.resting.iter().any(|(host, _)| matches!(&repository.owner, Owner::Upstream(of) if of == host))
    }
}

/// A tag that is asked for often and will soon be stale.
struct Due {
    repository: Repository,
    tag: Tag,
    digest: Digest,
    fresh_until: Instant,
    heat: Arc<Heat>,
}

impl Mirror {
    fn soon_stale(&self, now: Instant) -> Vec<Due> {
        let Some(tags) = &self.hot.0 else { return Vec::new() };
        let mut due = Vec::new();
        for (key, heat) in tags {
            let (repository, tag) = (&key.0, &key.1);
            if heat.asked.load(Ordering::Relaxed) < OFTEN {
                continue;
            }
            // Where it is stale already, or was confirmed by nobody, whoever asks next has it confirmed.
            let Some(known) = self.memory.tags.get(&*key).filter(|known| known.stale.is_none()) else {
                continue;
            };
            let left = known.fresh_until.saturating_duration_since(now);
            let lead = heat.lead.min(self.options.freshness.of(repository, tag) / 4);
            if !left.is_zero() && left <= lead {
                let (repository, tag, fresh_until) = (repository.clone(), tag.clone(), known.fresh_until);
                due.push(Due { repository, tag, digest: known.digest, fresh_until, heat });
            }
        }
        due
    }

    /// Whether an upstream has quota to spare, as far as it is known.
    fn is_well(&self, repository: &Repository) -> bool {
        let quota = self.upstream(repository).map(|upstream| upstream.quota());
        !self.options.offline
            && quota.is_ok_and(|quota| quota.paused_for.is_none() && quota.remaining != Some(0))
    }

    async fn refresh(self: &Arc<Self>, due: &Due) -> Result<Refreshed, Error> {
        let Due { repository, tag, .. } = due;
        // Whatever comes of it, it is asked for often anew before it is tried again.
        due.heat.asked.store(0, Ordering::Relaxed);
        let (work, subject) = (Background::default(), Subject::Manifest(Reference::Tag(tag.clone())));
        let asked = async {
            let standing = self.entry(work.asker(), repository, &subject).await?;
            self.confirm(&Request { asker: work.asker(), standing, repository }, tag).await
        };
        let timely = tokio::time::timeout(PATIENCE, asked).await;
        match timely.unwrap_or_else(|_| Err(lost(subject.of(repository)))) {
            Ok(Resolved::Known(known, _)) if known.digest == due.digest => Ok(Refreshed::Same),
            Ok(Resolved::Known(..)) => Ok(Refreshed::Moved),
            Ok(Resolved::Untold) => Ok(Refreshed::Failed),
            Err(error) => {
                tracing::debug!(%repository, %tag, %error, "a tag could not be confirmed before it goes stale");
                Err(error)
            }
        }
    }

    /// Asks upstream about a tag, fresh or not. Where it does not answer, what is known stays as it is.
    pub(super) async fn confirm(
        self: &Arc<Self>,
        request: &Request<'_>,
        tag: &Tag,
    ) -> Result<Resolved, Error> {
        let repository = request.repository;
        let reference = Reference::Tag(tag.clone());
        let subject = Subject::Manifest(reference.clone());
        let purpose = request.asker.spender(false, true).purpose;
        if let Some(held_back) = self.unconfirmed_for_now(request, purpose)? {
            return Err(self.held_back(subject.of(repository), held_back));
        }
        let access = self.access(repository, &request.standing, &subject, request.asker.hops).await?;
        let upstream = self.upstream_for(repository, &access.hops)?;
        let head = upstream.manifest_head(access.identity, &repository.name, &reference).await;
        let head = head.map_err(|error| self.translate(request.who(), repository, &subject, error).0)?;
        let known = self.known_tag(request, tag).await;
        // Whether it may be renewed is for whoever asks for it then.
        let held_back = upstream.holds_back(access.identity, Purpose::Revalidation);
        self.told(repository, tag, head, known.as_deref(), held_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_refreshed_is_not_counted() {
        assert!(Hot::new(0).0.is_none());
    }
}
