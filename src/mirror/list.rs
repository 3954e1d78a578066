//! Tag lists: upstream's and held ones merged; held ones alone when upstream is away.

use std::sync::Arc;
use std::time::Duration;

use super::memory::Subject;
use super::right::veiled;
use super::standing::Standing;
use super::{Asker, Mirror, lost};
use crate::answer::{Error, Served, TagsAnswer};
use crate::oci::Repository;

/// How long a list is taken as it was last seen, so that bots that ask all day cost nothing.
const FRESH: Duration = Duration::from_secs(60);

impl Mirror {
    pub async fn tags(
        self: &Arc<Self>,
        asker: Asker<'_>,
        repository: &Repository,
    ) -> Result<TagsAnswer, Error> {
        self.unless_loop(asker, repository)?;
        let standing = self.entry(asker, repository, &Subject::Tags).await;
        let standing = standing.map_err(|error| veiled(asker.caller, error))?;
        let who = standing.caller();
        let answer = self.listed(asker, repository, standing).await;
        answer.map_err(|error| veiled(who, error))
    }

    async fn listed(
        self: &Arc<Self>,
        asker: Asker<'_>,
        repository: &Repository,
        standing: Arc<Standing>,
    ) -> Result<TagsAnswer, Error> {
        let who = standing.caller();
        if let Some((answer, until)) = self.memory.lists.get(repository)
            && self.clock.now() < until
        {
            let served = if answer.served == Served::Miss { Served::Hit } else { answer.served };
            return Ok(TagsAnswer { served, ..answer });
        }
        self.refused(who, repository, &Subject::Tags)?;
        let key = ((who, asker.hops.depth()), repository.clone());
        if !self.lists.has(&key) {
            let subject = Subject::Tags.of(repository);
            asker
                .toll
                .cold_miss()
                .await
                .map_err(|retry_after| Error::ClientLimited { subject, retry_after })?;
        }
        let (mirror, hops) = (self.clone(), asker.hops.clone());
        let listed = self.lists.join(key, || {
            let repository = repository.clone();
            async move {
                let held = if standing.is_open() { mirror.held_tags(&repository).await } else { Vec::new() };
                let told = match mirror.access(&repository, &standing, &Subject::Tags, &hops).await {
                    Ok(access) => {
                        let upstream = mirror.upstream_for(&repository, &hops)?;
                        let told = upstream.tags(access.identity, &repository.name).await;
                        told.map_err(|error| mirror.refuse(who, &repository, &Subject::Tags, error))
                    }
                    Err(error) => Err(error),
                };
                let (mut tags, served) = match told {
                    Ok(tags) => (tags, Served::Miss),
                    // What somebody may no longer pull is not listed either.
                    Err(error)
                        if held.is_empty()
                            || matches!(error, Error::Denied { .. })
                            || (who.is_some() && matches!(error, Error::NotFound(_))) =>
                    {
                        return Err(error);
                    }
                    Err(error) => (Vec::new(), Served::Stale(error.why_stale())),
                };
                tags.extend(held);
                tags.sort();
                tags.dedup();
                let answer = TagsAnswer { tags, served };
                mirror.memory.lists.insert(repository, (answer.clone(), mirror.clock.now() + FRESH));
                Ok(answer)
            }
        });
        listed.await.unwrap_or_else(|| Err(lost(Subject::Tags.of(repository))))
    }

    async fn held_tags(&self, repository: &Repository) -> Vec<crate::oci::Tag> {
        let of = repository.clone();
        let held = self.store.run(move |store| store.tags(&of)).await;
        held.inspect_err(|error| tracing::error!(%repository, %error, "held tags cannot be listed"))
            .unwrap_or_default()
    }
}
