//! Referrers: signatures, attestations and the like, as upstream lists them. Fresh for a time, then
//! asked for anew, and stale rather than missing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::memory::Subject;
use super::right::veiled;
use super::standing::Standing;
use super::tag::{LONGEST_HOLD, PATIENCE, TROUBLE_HOLD};
use super::{Asker, Mirror, lost};
use crate::answer::{Error, Referrer, ReferrersAnswer, Served};
use crate::oci::{Digest, Repository};
use crate::upstream::{self, Hops, MAX_REFERRERS, Spender, ToldReferrers};

/// A list as last told.
pub struct KnownReferrers {
    pub list: Arc<Vec<Referrer>>,
    /// The fallback tag's index that it stands in, where upstream has no referrers API.
    index: Option<Digest>,
    /// Until then it is answered without asking.
    fresh_until: Instant,
    /// What a mirror lists besides, while upstream is in trouble.
    mirrored: Arc<Vec<Referrer>>,
    /// Since when upstream has no list any more.
    gone_since: Option<Instant>,
    /// Why it is stale, where upstream could not confirm it.
    stale: Option<String>,
}

impl KnownReferrers {
    fn new(list: Arc<Vec<Referrer>>, index: Option<Digest>, fresh_until: Instant) -> Self {
        Self { list, index, fresh_until, mirrored: Arc::default(), gone_since: None, stale: None }
    }

    /// The same, and what a mirror lists besides.
    fn with(&self, mut mirrored: Vec<Referrer>) -> Self {
        let digests: HashSet<&str> = self.list.iter().map(|referrer| referrer.digest.as_str()).collect();
        mirrored.retain(|referrer| !digests.contains(referrer.digest.as_str()));
        mirrored.truncate(MAX_REFERRERS.saturating_sub(self.list.len()));
        let (list, stale) = (self.list.clone(), self.stale.clone());
        Self { list, mirrored: Arc::new(mirrored), stale, ..*self }
    }

    fn answer(&self, served: Served) -> ReferrersAnswer {
        let served = self.stale.clone().map_or(served, Served::Stale);
        let referrers = match self.mirrored.is_empty() {
            true => self.list.clone(),
            false => Arc::new(self.list.iter().chain(&*self.mirrored).cloned().collect()),
        };
        ReferrersAnswer { referrers, served }
    }
}

impl ReferrersAnswer {
    fn none(served: Served) -> Self {
        Self { referrers: Arc::default(), served }
    }
}

type Key = (Repository, Digest);

impl Mirror {
    /// All referrers of a manifest that upstream lists; none where upstream knows nothing of it.
    pub async fn referrers(
        self: &Arc<Self>,
        asker: Asker<'_>,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<ReferrersAnswer, Error> {
        self.unless_loop(asker, repository)?;
        let wanted = Subject::Referrers(*subject);
        let (answer, who) = match self.entry(asker, repository, &wanted).await {
            Ok(standing) => {
                let who = standing.caller();
                (self.referrers_for(asker, repository, subject, standing).await, who)
            }
            Err(error) => (Err(error), asker.caller),
        };
        match answer.map_err(|error| veiled(who, error)) {
            // Nobody can be shown to have access to what upstream knows nothing of.
            Err(Error::NotFound(_)) => Ok(ReferrersAnswer::none(Served::Miss)),
            answer => answer,
        }
    }

    async fn referrers_for(
        self: &Arc<Self>,
        asker: Asker<'_>,
        repository: &Repository,
        subject: &Digest,
        standing: Arc<Standing>,
    ) -> Result<ReferrersAnswer, Error> {
        let who = standing.caller();
        let key = (repository.clone(), *subject);
        let known = self.known_referrers(&standing, &key).await;
        if let Some(known) = known.as_ref().filter(|known| self.clock.now() < known.fresh_until) {
            return Ok(known.answer(Served::Hit));
        }
        let wanted = Subject::Referrers(*subject);
        match self.refused(who, repository, &wanted) {
            Err(Error::NotFound(_)) if known.is_none() => return Ok(ReferrersAnswer::none(Served::Hit)),
            // What somebody may no longer pull is not listed either.
            Err(error) if known.is_none() || matches!(error, Error::Denied { .. }) => return Err(error),
            _ => {}
        }
        let flight_key = ((who, asker.hops.depth()), key.0.clone(), key.1);
        if known.is_none() && !self.referrers.has(&flight_key) {
            let subject = wanted.of(repository);
            asker
                .toll
                .cold_miss()
                .await
                .map_err(|retry_after| Error::ClientLimited { subject, retry_after })?;
        }
        let spender = asker.spender(false, known.is_some());
        let (mirror, before, hops) = (self.clone(), known.clone(), asker.hops.clone());
        let flight = self.referrers.join(flight_key, || {
            let key = key.clone();
            async move { mirror.ask_referrers(&standing, key, before, spender, &hops).await }
        });
        let lost = || Err(lost(wanted.of(repository)));
        let Some(known) = known else { return flight.await.unwrap_or_else(lost) };
        match tokio::time::timeout(PATIENCE, flight).await {
            Ok(answer) => answer.unwrap_or_else(lost),
            Err(_) => Ok(self.stale_referrers(key, &known, "the upstream is slow to answer", TROUBLE_HOLD)),
        }
    }

    /// The list as last told: from memory, else from disk, where its time says when that was.
    async fn known_referrers(&self, standing: &Standing, key: &Key) -> Option<Arc<KnownReferrers>> {
        if let Some(known) = self.memory.referrers.get(key) {
            return Some(known);
        }
        if !standing.is_open() {
            return None;
        }
        let (repository, subject) = key.clone();
        let held = self.store.run(move |store| store.referrers(&repository, &subject)).await;
        let held = held.inspect_err(|error| {
            tracing::error!(repository = %key.0, subject = %key.1, %error, "held referrers cannot be read");
        });
        let held = held.ok()??;
        // A time in the future is a clock that jumped: the list is then unconfirmed.
        let age = self.clock.wall().duration_since(held.seen).unwrap_or(Duration::MAX);
        let fresh_until = self.clock.now() + self.referrers_fresh_for(&held.referrers).saturating_sub(age);
        let known = Arc::new(KnownReferrers::new(Arc::new(held.referrers), held.index, fresh_until));
        self.memory.referrers.insert(key.clone(), known.clone());
        Some(known)
    }

    /// As long as a tag that is moved now and then. That there are none is believed no longer than a
    /// 404: a signature often comes a minute after its image.
    fn referrers_fresh_for(&self, list: &[Referrer]) -> Duration {
        let fresh = self.options.freshness.of_others();
        if list.is_empty() { fresh.min(self.options.negative_not_found) } else { fresh }
    }

    async fn ask_referrers(
        self: &Arc<Self>,
        standing: &Standing,
        key: Key,
        known: Option<Arc<KnownReferrers>>,
        spender: Spender,
        hops: &Hops,
    ) -> Result<ReferrersAnswer, Error> {
        // Whoever was first may have landed since this was found outdated.
        if let Some(fresh) = self.memory.referrers.get(&key)
            && self.clock.now() < fresh.fresh_until
        {
            return Ok(fresh.answer(Served::Hit));
        }
        let (repository, subject) = (&key.0, Subject::Referrers(key.1));
        let who = standing.caller();
        let told = match self.access(repository, standing, &subject, hops).await {
            Ok(access) => {
                let index = known.as_ref().and_then(|known| known.index);
                let upstream = self.upstream_for(repository, hops)?;
                let told =
                    upstream.referrers(access.identity, &spender, &repository.name, &key.1, index).await;
                told.map_err(|error| (error.to_string(), self.translate(who, repository, &subject, error)))
            }
            // It was proof of access that failed, and it is remembered.
            Err(error) => Err((error.why_stale(), (error, Duration::ZERO))),
        };
        match (told, known) {
            (Ok(ToldReferrers::Missing), Some(known)) if self.outlives_its_end(&known) => {
                let since = known.gone_since.unwrap_or_else(|| self.clock.now());
                let (list, hold) = (known.list.clone(), self.options.freshness.of_others());
                let known = KnownReferrers {
                    gone_since: Some(since),
                    ..KnownReferrers::new(list, known.index, since)
                };
                Ok(self.stale_referrers(key, &known, "the upstream has no list any more", hold))
            }
            (Ok(told), known) => self.told_referrers(standing, key, told, known),
            // Nobody can be shown to have access to what upstream knows nothing of.
            (Err((_, (Error::NotFound(_), _))), None) => Ok(ReferrersAnswer::none(Served::Miss)),
            (Err((_, (error @ Error::Denied { .. }, hold))), _) | (Err((_, (error, hold))), None) => {
                Err(if hold.is_zero() {
                    error
                } else {
                    self.remember(who, repository, &subject, error, hold)
                })
            }
            (Err((why, (error, _))), Some(known)) => {
                Ok(self.stale_referrers(key, &known, &why, trouble_hold(&error)))
            }
        }
    }

    /// Whether what upstream listed is still listed though it has no list any more, as a tag is still
    /// served for a while that upstream has dropped. (A list that is empty there is empty here at once.)
    fn outlives_its_end(&self, known: &KnownReferrers) -> bool {
        let gone_for = known.gone_since.map(|since| self.clock.now().saturating_duration_since(since));
        !known.list.is_empty()
            && self.options.stale.not_found.is_none_or(|longest| gone_for.unwrap_or_default() < longest)
    }

    /// Upstream has answered: that is answered from now on, and kept.
    fn told_referrers(
        self: &Arc<Self>,
        standing: &Standing,
        key: Key,
        told: ToldReferrers,
        known: Option<Arc<KnownReferrers>>,
    ) -> Result<ReferrersAnswer, Error> {
        let (list, index) = match (told, &known) {
            (ToldReferrers::List { referrers, index }, _) => (Arc::new(referrers), index),
            (ToldReferrers::Missing, _) => (Arc::default(), None),
            (ToldReferrers::Unchanged, Some(known)) => (known.list.clone(), known.index),
            (ToldReferrers::Mirrored { referrers, error }, _) => {
                return Ok(self.mirrored_referrers(standing, key, referrers, error, known.as_deref()));
            }
            // An index can be unchanged only for who knows it.
            (ToldReferrers::Unchanged, None) => return Err(lost(Subject::Referrers(key.1).of(&key.0))),
        };
        let served = match &known {
            Some(known) if known.list == list => Served::Revalidated,
            _ => Served::Miss,
        };
        let fresh_until = self.clock.now() + self.referrers_fresh_for(&list);
        let known = Arc::new(KnownReferrers::new(list, index, fresh_until));
        self.memory.referrers.insert(key.clone(), known.clone());
        self.keep_referrers(standing, &key, known.clone(), self.clock.wall());
        Ok(known.answer(served))
    }

    /// The upstream is in trouble, and a mirror has a list. That is not kept: a mirror may list no more
    /// than it holds.
    fn mirrored_referrers(
        &self,
        standing: &Standing,
        key: Key,
        referrers: Vec<Referrer>,
        error: upstream::Error,
        known: Option<&KnownReferrers>,
    ) -> ReferrersAnswer {
        let why = error.to_string();
        let subject = Subject::Referrers(key.1);
        let (error, _) = self.translate(standing.caller(), &key.0, &subject, error);
        let nothing = KnownReferrers::new(Arc::default(), None, self.clock.now());
        let known = known.unwrap_or(&nothing).with(referrers);
        self.stale_referrers(key, &known, &why, trouble_hold(&error))
    }

    fn keep_referrers(
        self: &Arc<Self>,
        standing: &Standing,
        key: &Key,
        known: Arc<KnownReferrers>,
        seen: SystemTime,
    ) {
        let Ok(grant) = self.grant(&key.0, standing) else { return };
        let subject = key.1;
        self.writes.add(&key.0, "a list of referrers", move |store| {
            store.put_referrers(&grant, &subject, &known.list, known.index, seen)
        });
    }

    /// Keeps what is known for a while without asking again, marked.
    fn stale_referrers(
        &self,
        key: Key,
        known: &KnownReferrers,
        why: &str,
        hold: Duration,
    ) -> ReferrersAnswer {
        tracing::info!(repository = %key.0, subject = %key.1, why, "referrers are served stale");
        let fresh_until = self.clock.now() + hold;
        let (list, mirrored, stale) = (known.list.clone(), known.mirrored.clone(), Some(why.to_owned()));
        let known = Arc::new(KnownReferrers { list, mirrored, stale, fresh_until, ..*known });
        self.memory.referrers.insert(key, known.clone());
        known.answer(Served::Hit)
    }
}

/// For how long what is held is served without asking again.
fn trouble_hold(error: &Error) -> Duration {
    match error {
        Error::UpstreamLimited { retry_after, .. } => (*retry_after).min(LONGEST_HOLD),
        _ => TROUBLE_HOLD,
    }
}
