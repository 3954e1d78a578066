//! Manifests, and the quota that they cost.

use std::time::Duration;

use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};

use super::hops::read_stale;
use super::quota::{PROBE_FIRST, Quota, Step, retry_after};
use super::request::{Answer, Ask};
use super::round::{First, Turn};
use super::spend::Spending;
use super::told::Told;
use super::{Cause, Error, FetchedManifest, Hops, Identity, ManifestHead, Spender, Upstream, effective};
use crate::metrics::UpstreamCall;
use crate::oci::{Digest, MANIFEST_ACCEPT, MANIFEST_MAX, MediaType, Name, Reference};

/// Longest time between two probes of an exhausted quota.
const PROBE_LAST: Duration = Duration::from_secs(15 * 60);
/// How often a pause looks at the clock, which tests move.
const PAUSE_TICK: Duration = Duration::from_millis(250);

/// What a GET of a manifest brought.
struct Whole {
    bytes: Result<bytes::Bytes, Cause>,
    media_type: Option<MediaType>,
    told: Option<Digest>,
}

impl Upstream {
    /// Spends no quota (Docker Hub's does not count HEADs). Of a server that has no HEAD, nothing: then a
    /// GET is to tell whether there is such a manifest, and for whom.
    pub async fn manifest_head(
        &self,
        identity: Identity,
        name: &Name,
        reference: &Reference,
    ) -> Result<ManifestHead, Error> {
        Ok(self.any_head(identity, name, reference).await?.unwrap_or_default())
    }

    /// That there is such a manifest, and that this identity may pull it.
    pub async fn manifest_shown(
        &self,
        identity: Identity,
        name: &Name,
        reference: &Reference,
    ) -> Result<(), Error> {
        if self.any_head(identity, name, reference).await?.is_some() {
            return Ok(());
        }
        let why = "the upstream answers no HEAD of manifests, by which it is seen who may pull them; if all may \
                   who may pull from here, say `private = \"shared\"`";
        Err(self.error("HEAD manifest", name, &suffix(reference), Cause::Trouble(why.to_owned())))
    }

    /// None: the server has no HEAD.
    async fn any_head(
        &self,
        identity: Identity,
        name: &Name,
        reference: &Reference,
    ) -> Result<Option<ManifestHead>, Error> {
        let head = async {
            self.unless_all_paused(identity, Quota::heads_paused)?;
            let _place = self.request_gate.enter().await?;
            let mut round = self.round(identity, digest_of(reference), First::Mirrors);
            while let Some(turn) = round.next() {
                let head = turn.within(self.head(&turn, name, reference)).await;
                if let Some(head) = round.judge(turn, head) {
                    return head;
                }
            }
            Err(round.end())
        };
        head.await
            .map(|(head, _)| head)
            .map_err(|cause| self.error("HEAD manifest", name, &suffix(reference), cause))
    }

    /// Spends quota, where the budget lets `spender`.
    pub async fn manifest_get(
        &self,
        identity: Identity,
        spender: &Spender,
        name: &Name,
        reference: &Reference,
    ) -> Result<FetchedManifest, Error> {
        let fetched = async {
            self.unless_all_paused(identity, Quota::gets_paused)?;
            let _place = self.request_gate.enter().await?;
            let mut round = self.round(identity, digest_of(reference), First::Mirrors);
            while let Some(turn) = round.next() {
                let fetched = turn.within(self.get(&turn, spender, name, reference)).await;
                if let Some(fetched) = round.judge(turn, fetched) {
                    return fetched;
                }
            }
            Err(round.end())
        };
        fetched.await.map_err(|cause| self.error("GET manifest", name, &suffix(reference), cause))
    }

    /// Nobody waits for a place who would be refused then.
    fn unless_all_paused(
        &self,
        identity: Identity,
        paused: impl Fn(&Quota, Identity) -> Option<Duration>,
    ) -> Result<(), Cause> {
        match paused(&self.quota, effective(&self.options, identity)) {
            Some(wait) if !self.has_mirror_for(identity) => Err(Cause::Limited(wait)),
            _ => Ok(()),
        }
    }

    /// The quota is the upstream's own: a mirror has none that is known.
    fn unless_paused(
        &self,
        turn: &Turn<'_>,
        paused: impl Fn(&Quota, Identity) -> Option<Duration>,
    ) -> Result<(), Cause> {
        match paused(&self.quota, turn.identity) {
            Some(wait) if !turn.endpoint.is_mirror() => Err(Cause::Limited(wait)),
            _ => Ok(()),
        }
    }

    async fn head(
        &self,
        turn: &Turn<'_>,
        name: &Name,
        reference: &Reference,
    ) -> Result<(Option<ManifestHead>, Told), Cause> {
        self.unless_paused(turn, Quota::heads_paused)?;
        let ask = self.ask_manifest(turn, UpstreamCall::ManifestHead, Method::HEAD, name, reference)?;
        let (answer, told) = self.send_manifest(turn, &ask, None).await?;
        let headers = answer.response.headers();
        if !turn.endpoint.is_mirror() {
            if answer.status() == StatusCode::TOO_MANY_REQUESTS {
                let wait = retry_after(headers, self.clock.wall());
                return Err(Cause::Limited(self.quota.pause_heads(turn.identity, wait)));
            }
            self.quota.heads_answered(turn.identity);
        }
        match answer.status() {
            StatusCode::OK => {}
            // What it cannot tell of, the next endpoint can.
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED if turn.endpoint.is_mirror() => {
                return Err(Cause::NotFound);
            }
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => return Ok((None, told)),
            _ => return Err(turn.endpoint.requests.refusal(answer).await),
        }
        let digest = told_digest(headers);
        if let (Some(told), Reference::Digest(asked)) = (digest, reference)
            && told.algorithm() == asked.algorithm()
            && told != *asked
        {
            return Err(Cause::Corrupt(format!("the upstream answers with {told}")));
        }
        let size = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let (media_type, stale) = (media_type(headers), read_stale(headers));
        Ok((Some(ManifestHead { digest, media_type, size, stale }), told))
    }

    async fn get(
        &self,
        turn: &Turn<'_>,
        spender: &Spender,
        name: &Name,
        reference: &Reference,
    ) -> Result<FetchedManifest, Cause> {
        self.unless_paused(turn, Quota::gets_paused)?;
        let mut spending = None;
        if !turn.endpoint.is_mirror() {
            // Whatever the HEAD comes to: where nothing is learned, what is known decides.
            let look = async { drop(self.head(turn, name, reference).await) };
            self.quota.renewed(turn.identity, spender, look).await;
            spending = self.quota.spend(turn.identity, spender).await?;
        }
        let mut whole = self.get_whole(turn, name, reference, spending).await?;
        if let Err(Cause::Trouble(why)) = &whole.bytes {
            // A body that broke off once is asked for once more: it is small, and clients wait.
            tracing::debug!(upstream = %self.options.host, why, "manifest broke off");
            let spending = match turn.endpoint.is_mirror() {
                true => None,
                false => self.quota.spend_again(turn.identity, spender),
            };
            whole = self.get_whole(turn, name, reference, spending).await?;
        }
        let Whole { bytes, media_type, told } = whole;
        let bytes = bytes?;
        let digest = match reference {
            Reference::Digest(asked) => Digest::of(asked.algorithm(), &bytes),
            Reference::Tag(_) => Digest::sha256(&bytes),
        };
        if *reference != Reference::Digest(digest) && matches!(reference, Reference::Digest(_)) {
            return Err(Cause::Corrupt(format!("what came has the digest {digest}")));
        }
        if let Some(told) = told.filter(|told| Digest::of(told.algorithm(), &bytes) != *told) {
            return Err(Cause::Corrupt(format!(
                "the upstream says {told}, what came has the digest {digest}"
            )));
        }
        Ok(FetchedManifest { bytes, digest, media_type })
    }

    /// One answer with its body, which may have broken off.
    async fn get_whole(
        &self,
        turn: &Turn<'_>,
        name: &Name,
        reference: &Reference,
        spending: Option<Spending<'_>>,
    ) -> Result<Whole, Cause> {
        let ask = self.ask_manifest(turn, UpstreamCall::ManifestGet, Method::GET, name, reference)?;
        let (answer, _) = self.send_manifest(turn, &ask, spending).await?;
        let headers = answer.response.headers();
        if answer.status() == StatusCode::TOO_MANY_REQUESTS && !turn.endpoint.is_mirror() {
            let wait = retry_after(headers, self.clock.wall());
            self.pause(turn.identity, wait, source(headers), name, reference);
            let paused = self.quota.gets_paused(turn.identity);
            return Err(Cause::Limited(paused.or(wait).unwrap_or(PROBE_FIRST)));
        }
        let requests = &turn.endpoint.requests;
        if answer.status() != StatusCode::OK {
            return Err(requests.refusal(answer).await);
        }
        let (media_type, told) = (media_type(headers), told_digest(headers));
        let bytes = requests.wire.reading.whole(answer.response, MANIFEST_MAX, "the manifest").await;
        Ok(Whole { bytes, media_type, told })
    }

    fn ask_manifest(
        &self,
        turn: &Turn<'_>,
        call: UpstreamCall,
        method: Method,
        name: &Name,
        reference: &Reference,
    ) -> Result<Ask, Cause> {
        let accept = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MANIFEST_ACCEPT))]);
        self.ask(turn, call, method, name, &format!("manifests/{reference}"), accept)
    }

    async fn send_manifest(
        &self,
        turn: &Turn<'_>,
        ask: &Ask,
        mut spending: Option<Spending<'_>>,
    ) -> Result<(Answer, Told), Cause> {
        let sent = self.clock.now();
        let answer = turn.endpoint.requests.send(ask).await?;
        let headers = answer.response.headers();
        let told = Told::read(headers);
        if answer.status() == StatusCode::OK {
            spending.iter_mut().for_each(Spending::is_given);
        }
        if !turn.endpoint.is_mirror() {
            self.quota.note(turn.identity, told, source(headers), sent, spending);
        }
        Ok((answer, told))
    }

    /// Pauses GETs, and sees to it that the pause ends.
    fn pause(
        &self,
        identity: Identity,
        wait: Option<Duration>,
        source: Option<&str>,
        name: &Name,
        reference: &Reference,
    ) {
        if !self.quota.pause_gets(identity, wait) {
            return;
        }
        let host = self.options.host.clone();
        tracing::warn!(upstream = %host, ?identity, ?wait, source, "rate limit exhausted: manifest GETs pause");
        let (me, name, reference) = (self.me.clone(), name.clone(), reference.clone());
        let stopping = self.tasks.stopping();
        let end_of_pause = async move {
            let mut failed_probes = 0;
            while let Some(shared) = me.upgrade() {
                let upstream = Upstream { shared, hops: Hops::default() };
                match upstream.quota.next_step(identity) {
                    Step::Done => return tracing::info!(upstream = %host, ?identity, "manifest GETs resume"),
                    Step::Wait(until) => {
                        let left = until.saturating_duration_since(upstream.clock.now());
                        drop(upstream);
                        tokio::time::sleep(left.min(PAUSE_TICK)).await;
                    }
                    Step::Probe if upstream.probe(identity, &name, &reference).await => {
                        upstream.quota.resume_gets(identity);
                    }
                    Step::Probe => {
                        failed_probes = (failed_probes + 1).min(8);
                        let wait = (PROBE_FIRST * 2u32.pow(failed_probes)).min(PROBE_LAST);
                        upstream.quota.next_probe(identity, upstream.clock.now() + wait);
                    }
                }
            }
        };
        self.tasks.spawn("quota pause", async move {
            tokio::select! {
                () = stopping => {}
                () = end_of_pause => {}
            }
        });
    }

    /// Whether there is quota again, as far as a HEAD of what was refused can tell.
    async fn probe(&self, identity: Identity, name: &Name, reference: &Reference) -> bool {
        let Some(turn) = self.round(identity, None, First::Itself).next() else { return false };
        // The upstream itself is asked as whom the pause is for.
        let _place = self.request_gate.enter().await;
        let head = turn.within(self.head(&turn, name, reference)).await;
        match head {
            Ok((_, told)) => told.remaining.is_none_or(|remaining| remaining > 0),
            // Nothing can be learned from it any more: the next GET finds out.
            Err(Cause::NotFound | Cause::Denied(_)) => true,
            Err(_) => false,
        }
    }
}

fn digest_of(reference: &Reference) -> Option<Digest> {
    match reference {
        Reference::Tag(_) => None,
        Reference::Digest(digest) => Some(*digest),
    }
}

fn suffix(reference: &Reference) -> String {
    match reference {
        Reference::Tag(tag) => format!(":{tag}"),
        Reference::Digest(digest) => format!("@{digest}"),
    }
}

/// Whose limit it is: an address, or the id of an account.
fn source(headers: &HeaderMap) -> Option<&str> {
    headers.get("docker-ratelimit-source")?.to_str().ok().filter(|source| source.len() <= 64)
}

/// `Docker-Content-Digest`, where it is well formed.
fn told_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.trim().parse().ok()
}

fn media_type(headers: &HeaderMap) -> Option<MediaType> {
    MediaType::parse(headers.get(CONTENT_TYPE)?.to_str().ok()?)
}
