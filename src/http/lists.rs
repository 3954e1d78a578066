//! Lists: tags, repositories, referrers, what is found by a search.

use super::address::Address;
use super::error::{ApiError, Code};
use super::handler::{Answer, Service};
use super::respond;
use super::route::{Page, Search};
use crate::access::Caller;
use crate::answer::{ReferrersAnswer, TagsAnswer};
use crate::metrics::{Kind, Outcome};
use crate::oci::{Digest, Owner, Repository};
use crate::store::{Origin, OriginState};
use crate::upstream::Hops;

impl Service {
    pub(super) async fn tags(
        &self,
        hops: &Hops,
        caller: &Caller,
        repository: &Repository,
    ) -> Result<TagsAnswer, ApiError> {
        let content = self.content(Kind::Tags, Some(repository))?;
        let answer = match repository.owner {
            Owner::Upstream(_) => {
                let toll = self.limits.toll(caller);
                content.mirror.tags(self.asker(&toll, hops, caller, repository), repository).await
            }
            Owner::Hosted => content.hosted.tags(repository).await,
        };
        answer.map_err(|error| self.without_content(caller, &error, Kind::Tags, repository))
    }

    pub(super) async fn referrers(
        &self,
        hops: &Hops,
        caller: &Caller,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<ReferrersAnswer, ApiError> {
        let content = self.content(Kind::Referrers, Some(repository))?;
        let answer = match repository.owner {
            Owner::Upstream(_) => {
                let toll = self.limits.toll(caller);
                content
                    .mirror
                    .referrers(self.asker(&toll, hops, caller, repository), repository, subject)
                    .await
            }
            Owner::Hosted => content.hosted.referrers(repository, subject).await,
        };
        answer.map_err(|error| self.without_content(caller, &error, Kind::Referrers, repository))
    }

    /// The repositories of what is addressed: all, one upstream's or the hosted ones.
    pub(super) async fn catalog(
        &self,
        path: &str,
        caller: &Caller,
        address: &Address,
        page: &Page,
    ) -> Answer {
        let held = self.held(Kind::Catalog).await?;
        let last = page.last.as_deref().unwrap_or_default();
        let listed = |name: &str, origin: &OriginState| {
            // One upstream's names are told without it: only then do they differ from what is stored.
            if address.upstream().is_none() && name <= last {
                return None;
            }
            address.listed(&self.owners, &self.shows(caller, name, origin)?, name.to_owned())
        };
        let mut names: Vec<String> = held
            .iter()
            .filter_map(|(name, origin)| listed(name, origin).filter(|listed| listed.as_str() > last))
            .take(page.count.saturating_add(1))
            .collect();
        let more = names.len() > page.count;
        names.truncate(page.count);
        Ok((respond::catalog(&names, more, page, path), Outcome::Hit))
    }

    /// Repositories whose name has the term in it, for `docker search`.
    pub(super) async fn search(&self, caller: &Caller, address: &Address, search: &Search) -> Answer {
        let held = self.held(Kind::Search).await?;
        let term = search.term.to_lowercase();
        let found = held.iter().filter_map(|(name, origin)| self.shows(caller, name, origin));
        // The default upstream's are asked for here without their host, all others with it.
        let named = found.filter_map(|repository| {
            let (name, whose) = match &repository.owner {
                Owner::Upstream(host) if host.is_default() => {
                    (repository.name.to_string(), format!("mirrored from {host}"))
                }
                Owner::Upstream(host) => (repository.to_string(), format!("mirrored from {host}")),
                Owner::Hosted => (repository.to_string(), "hosted here".to_owned()),
            };
            Some((address.listed(&self.owners, &repository, name)?, whose))
        });
        let found: Vec<_> = named.filter(|(name, _)| name.contains(&term)).take(search.count).collect();
        Ok((respond::search(&search.term, &found), Outcome::Hit))
    }

    async fn held(&self, kind: Kind) -> Result<Vec<(String, OriginState)>, ApiError> {
        let held = self.content(kind, None)?.hosted.held().await;
        held.map_err(|error| ApiError::new(Code::Unknown, error.to_string()))
    }

    /// The repository that is held under this name, where it is served and the caller may pull it.
    fn shows(&self, caller: &Caller, name: &str, origin: &OriginState) -> Option<Repository> {
        self.served(name, origin).filter(|repository| self.may_pull(caller, repository))
    }

    /// The repository that is held under this name, where configuration and origin agree.
    pub(super) fn served(&self, name: &str, origin: &OriginState) -> Option<Repository> {
        match origin {
            OriginState::Known(origin @ Origin { owner: Owner::Upstream(_), .. }) => {
                self.content.as_ref()?.mirror.stored(name, origin)
            }
            OriginState::Known(Origin { owner: Owner::Hosted, .. }) | OriginState::Unknown => {
                self.owners.resolve(None, name).ok().filter(|repository| repository.owner == Owner::Hosted)
            }
            OriginState::Absent => None,
        }
    }
}
