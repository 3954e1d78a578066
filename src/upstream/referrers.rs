//! What refers to a manifest: from the referrers API, page by page, or where the upstream has no such
//! API, from the index under the fallback tag (OCI distribution-spec, "Listing Referrers").

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};

use super::body::code;
use super::endpoint::Endpoint;
use super::request::Answer;
use super::round::{First, Turn};
use super::tags::next_query;
use super::{Cause, Error, Identity, Spender, Upstream};
use crate::metrics::UpstreamCall;
use crate::oci::{self, Digest, MANIFEST_MAX, MediaType, Name, Reference, Referrer, Tag};
use crate::tasks::lock;

const MAX_PAGES: usize = 50;
/// Of one list.
pub const MAX_REFERRERS: usize = 10_000;
/// Of one page: what the largest index may have.
const MAX_PAGE_BYTES: usize = MANIFEST_MAX;
/// Of all pages together.
const MAX_BYTES: usize = 2 * MANIFEST_MAX;
/// How long it is taken as seen that an upstream has such an API, or has none.
const KNOWN: Duration = Duration::from_secs(600);

/// What an upstream told of a manifest's referrers.
#[derive(Clone, Debug, PartialEq)]
pub enum ToldReferrers {
    /// Unfiltered. `index`: the digest of the fallback tag's index, where the list is from there.
    List { referrers: Vec<Referrer>, index: Option<Digest> },
    /// The upstream itself failed, as `error` says. This is a mirror's list: perhaps only of what it holds.
    Mirrored { referrers: Vec<Referrer>, error: Error },
    /// The fallback tag's index is still the one that the caller knows.
    Unchanged,
    /// There is no list: no API, or not for this repository, and no fallback tag.
    Missing,
}

/// Whether the upstream has the referrers API, as far as is known.
#[derive(Default)]
pub struct ReferrersApi(Mutex<Option<(bool, Instant)>>);

impl ReferrersApi {
    /// What was seen a while ago at most.
    fn known(&self, now: Instant) -> Option<bool> {
        lock(&self.0).filter(|(_, until)| now < *until).map(|(known, _)| known)
    }

    fn learn(&self, is_there: bool, now: Instant) {
        *lock(&self.0) = Some((is_there, now + KNOWN));
    }
}

impl Upstream {
    /// The referrers of `subject`, each once, in the upstream's order. Beyond the limits (50 pages, 10,000 entries, 8 MiB)
    /// the list is cut. `known`: the digest of the fallback index that the caller has read already, so
    /// that a GET, which spends quota, is spared. The list of the API takes four deadlines at most.
    pub async fn referrers(
        &self,
        identity: Identity,
        spender: &Spender,
        name: &Name,
        subject: &Digest,
        known: Option<Digest>,
    ) -> Result<ToldReferrers, Error> {
        let listed = async {
            let _place = self.request_gate.enter().await?;
            let mut round = self.round(identity, None, First::Itself);
            while let Some(turn) = round.next() {
                if turn.endpoint.referrers_api.known(self.clock.now()) == Some(false) {
                    return Ok((None, round.failure()));
                }
                let listed = turn.within(self.by_api(&turn, name, subject)).await;
                if let Some(listed) = round.judge(turn, listed) {
                    return listed.map(|listed| (listed, round.failure()));
                }
            }
            Err(round.end())
        };
        let error = |cause| self.error("GET referrers", name, &format!("@{subject}"), cause);
        let (listed, failure) = listed.await.map_err(error)?;
        let told = match listed {
            Some(referrers) => ToldReferrers::List { referrers, index: None },
            None => self.by_fallback_tag(identity, spender, name, subject, known).await?,
        };
        match (told, failure.map(error)) {
            (ToldReferrers::List { referrers, .. }, Some(error)) => {
                Ok(ToldReferrers::Mirrored { referrers, error })
            }
            // The list may be in the API that the upstream has and the mirror has not.
            (ToldReferrers::Missing, Some(error)) => Err(error),
            (told, _) => Ok(told),
        }
    }

    /// `None` where the fallback tag is to be read.
    async fn by_api(
        &self,
        turn: &Turn<'_>,
        name: &Name,
        subject: &Digest,
    ) -> Result<Option<Vec<Referrer>>, Cause> {
        let endpoint = turn.endpoint;
        let path = format!("referrers/{subject}");
        let (mut list, mut bytes) = (Vec::new(), 0);
        let (mut digests, mut asked, mut next) = (HashSet::new(), HashSet::new(), None::<String>);
        loop {
            let accept = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MediaType::OCI_INDEX))]);
            let mut ask = self.ask(turn, UpstreamCall::Referrers, Method::GET, name, &path, accept)?;
            ask.url.set_query(next.as_deref());
            let is_first = next.is_none();
            asked.extend(next.take());
            let answer = match endpoint.requests.send(&ask).await {
                // The API's answer is no web page: a server that sends one does not know the path.
                Err(Cause::Corrupt(why)) if is_first => return self.no_api(endpoint, why).map(|()| None),
                answer => answer?,
            };
            if answer.status() != StatusCode::OK {
                if is_first {
                    return self.without_api(endpoint, answer).await;
                }
                return Err(match endpoint.requests.refusal(answer).await {
                    Cause::NotFound => {
                        Cause::Corrupt("a page of the list of referrers is missing".to_owned())
                    }
                    cause => cause,
                });
            }
            let following = next_query(answer.response.headers()).filter(|query| !asked.contains(query));
            let says_json = says_json(answer.response.headers());
            let reading = &endpoint.requests.wire.reading;
            let body = reading.whole(answer.response, MAX_PAGE_BYTES, "a page of referrers").await?;
            let page = match oci::referrers(&body) {
                Ok(Some(page)) => page,
                Ok(None) | Err(_) if is_first && !says_json => {
                    let why = "the list of referrers is no JSON".to_owned();
                    return self.no_api(endpoint, why).map(|()| None);
                }
                Ok(None) => return Err(Cause::Corrupt("the list of referrers is no index".to_owned())),
                Err(error) => {
                    return Err(Cause::Corrupt(format!(
                        "the list of referrers is not as specified: {error}"
                    )));
                }
            };
            endpoint.referrers_api.learn(true, self.clock.now());
            bytes += body.len();
            list.extend(page.into_iter().filter(|entry| digests.insert(entry.digest.clone())));
            let full = list.len() >= MAX_REFERRERS || asked.len() + 1 >= MAX_PAGES || bytes >= MAX_BYTES;
            if full && following.is_some() {
                self.cut(name, subject);
            }
            next = following.filter(|_| !full);
            if next.is_none() {
                return Ok(Some(self.limited(list, name, subject)));
            }
        }
    }

    /// Whether an answer without success means that there is no such API. That the repository or the
    /// manifest is not known says nothing of the API; the fallback tag then says the same.
    async fn without_api(&self, endpoint: &Endpoint, answer: Answer) -> Result<Option<Vec<Referrer>>, Cause> {
        let status = answer.status();
        let is_absent = match status.as_u16() {
            404 => {
                let body = endpoint.requests.wire.reading.start(answer.response).await;
                !code(&body).is_some_and(|code| KNOWS_THE_PATH.contains(&code.as_str()))
            }
            405 | 406 | 410 | 501 => true,
            401 | 403 | 408 | 425 | 429 => return Err(endpoint.requests.refusal(answer).await),
            // Of this digest, perhaps: not every registry knows every algorithm.
            400..=499 => false,
            _ => return Err(endpoint.requests.refusal(answer).await),
        };
        if is_absent {
            let why = format!("the upstream answered {status} in place of a list of referrers");
            self.no_api(endpoint, why)?;
        }
        Ok(None)
    }

    /// Remembers that there is no such API. Where it was seen a moment ago this is trouble: what is
    /// held is not to give way to a fallback tag that nobody keeps there.
    fn no_api(&self, endpoint: &Endpoint, why: String) -> Result<(), Cause> {
        let now = self.clock.now();
        if endpoint.referrers_api.known(now) == Some(true) {
            return Err(Cause::Trouble(why));
        }
        tracing::debug!(upstream = %self.options.host, why, "no referrers API: fallback tags are read");
        endpoint.referrers_api.learn(false, now);
        Ok(())
    }

    /// The index under the fallback tag. First a HEAD, which spends no quota.
    async fn by_fallback_tag(
        &self,
        identity: Identity,
        spender: &Spender,
        name: &Name,
        subject: &Digest,
        known: Option<Digest>,
    ) -> Result<ToldReferrers, Error> {
        let is_missing = |error: &Error| matches!(error.cause, Cause::NotFound);
        let tag = Reference::Tag(Tag::of_referrers(subject));
        match self.manifest_head(identity, name, &tag).await {
            Ok(head) if head.digest.is_some() && head.digest == known => return Ok(ToldReferrers::Unchanged),
            Ok(_) => {}
            Err(error) if is_missing(&error) => return Ok(ToldReferrers::Missing),
            Err(error) => return Err(error),
        }
        // By the tag: tools remove the old index once the tag points to a new one.
        let got = match self.manifest_get(identity, spender, name, &tag).await {
            Err(error) if is_missing(&error) => return Ok(ToldReferrers::Missing),
            got => got?,
        };
        // What else may stand under that tag lists no referrers.
        let referrers = oci::referrers(&got.bytes).ok().flatten().unwrap_or_default();
        let referrers = self.limited(referrers, name, subject);
        Ok(ToldReferrers::List { referrers, index: Some(got.digest) })
    }

    fn limited(&self, mut list: Vec<Referrer>, name: &Name, subject: &Digest) -> Vec<Referrer> {
        if list.len() > MAX_REFERRERS {
            self.cut(name, subject);
            list.truncate(MAX_REFERRERS);
        }
        list
    }

    fn cut(&self, name: &Name, subject: &Digest) {
        tracing::warn!(upstream = %self.options.host, %name, %subject, "the list of referrers is cut: too many");
    }
}

/// Error codes of a 404 from who knows the path and not what it names. (Forebay's and CNCF
/// distribution's words for an unknown path are others.)
const KNOWS_THE_PATH: [&str; 5] =
    ["NAME_UNKNOWN", "NAME_INVALID", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "DIGEST_INVALID"];

fn says_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.to_ascii_lowercase().contains("json"))
}
