//! One call to the upstream: its tokens, redirects and retries.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use http::{Method, StatusCode};
use moka::sync::Cache;
use reqwest::Response;
use url::Url;

use super::body::message;
use super::challenge::{self, Challenge};
use super::client::{Failure, Hop, Wire};
use super::gate::Pace;
use super::guard::{self, Reach};
use super::hops::read_loop;
use super::quota::retry_after;
use super::realm::{RealmOptions, Realms};
use super::retry::Tries;
use super::token::{Proof, Tokens};
use super::{Cause, Identity, Options};
use crate::clock::Clock;
use crate::metrics::UpstreamCall;
use crate::oci::Name;
use crate::tasks::{Tasks, lock};

const MAX_REDIRECTS: usize = 5;
/// One that is known, another one that a helper gives, and none.
const LOGINS: usize = 3;
/// The pause after a 429 that names none.
const DEFAULT_LIMITED: Duration = Duration::from_secs(60);

/// After that, the next endpoint is the better try.
const MIRROR_RETRIES: u32 = 1;
/// Registries that others redirect to, remembered for their tokens.
const ELSEWHERE: u64 = 64;
/// How long it is taken as seen that the registry does not say how to log in.
const SILENT_FOR: Duration = Duration::from_secs(60);

/// What is asked for.
pub struct Ask {
    pub call: UpstreamCall,
    pub method: Method,
    pub identity: Identity,
    /// As the endpoint has it.
    pub name: Name,
    pub url: Url,
    pub headers: HeaderMap,
    /// Waits for a server that is not asked just now, rather than fail: who asks has begun to answer.
    pub patient: bool,
}

/// The head of the answer after all redirects, whatever its status.
pub struct Answer {
    pub response: Response,
    /// It comes from where a redirect led, not from the endpoint itself.
    pub foreign: bool,
    /// Why the request went without the configured login, where that is refused: then a 404 tells nothing.
    pub refused_login: Option<String>,
    /// Where a redirect led is a registry too, and was shown a token of its own.
    known_there: bool,
}

impl Answer {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }
}

/// Sends requests to one endpoint.
pub struct Requests {
    pub wire: Arc<Wire>,
    tokens: Arc<Tokens>,
    /// Of registries that this one redirects to, by their origin; asked anonymously.
    elsewhere: Cache<String, Arc<Tokens>>,
    pace: Pace,
    /// After the first try.
    retries: u32,
    options: Options,
    /// Up to `/v2/`.
    api: Url,
    /// When a ping last brought no challenge.
    silent_since: Mutex<Option<Instant>>,
    clock: Clock,
    tasks: Tasks,
}

impl Requests {
    pub fn new(
        options: &Options,
        api: Url,
        is_mirror: bool,
        wire: Arc<Wire>,
        tokens: Arc<Tokens>,
        clock: &Clock,
        tasks: &Tasks,
    ) -> Self {
        let per_minute = options.requests_per_minute.filter(|_| !is_mirror);
        Self {
            wire,
            tokens,
            elsewhere: Cache::new(ELSEWHERE),
            pace: Pace::new(per_minute, options.queue_timeout, clock.clone()),
            retries: if is_mirror { MIRROR_RETRIES } else { u32::MAX },
            options: options.clone(),
            api,
            silent_since: Mutex::default(),
            clock: clock.clone(),
            tasks: tasks.clone(),
        }
    }

    pub fn refuses_login(&self, identity: Identity) -> bool {
        self.tokens.refuses_login(identity)
    }

    pub fn took_login(&self, identity: Identity) -> bool {
        self.tokens.took_login(identity)
    }

    /// The answer, whatever its status: see [`Requests::refusal`] for those that are no success.
    pub async fn send(&self, ask: &Ask) -> Result<Answer, Cause> {
        let mut tries = Tries::new(&self.wire.metrics, self.options.header_timeout).at_most(self.retries);
        let answer = loop {
            let outcome = self.authorized(ask).await;
            if let Err(Failure::Tripped(wait, _)) = &outcome
                && let Some(wait) = if ask.patient { Some(*wait) } else { tries.worth_waiting(*wait) }
            {
                tokio::time::sleep(wait).await;
                continue;
            }
            if !tries.again(outcome.as_ref().map(Answer::status)).await {
                break outcome.map_err(Cause::from)?;
            }
        };
        if answer.status().is_success() { check_form(&answer.response).map(|()| answer) } else { Ok(answer) }
    }

    /// What an answer without success means. 404, 401, 403 and 429 speak for themselves. Every other
    /// status is trouble: the two of us do not understand each other, which tells nothing of the content.
    pub async fn refusal(&self, answer: Answer) -> Cause {
        let Answer { response, foreign, known_there, refused_login } = answer;
        let is_registry = !foreign || known_there;
        let (status, mut place) = (response.status(), guard::place(response.url()));
        let wait = retry_after(response.headers(), self.clock.wall());
        if foreign {
            place.push_str(", where the upstream redirects to,");
        }
        if let Some(why) = read_loop(response.headers()) {
            return Cause::Loop(why);
        }
        let mut said = String::new();
        // What a storage service says of a signed URL is not for clients.
        if is_registry {
            said = message(&self.wire.reading.start(response).await);
        }
        match (status, refused_login) {
            (StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(why))
                if !foreign =>
            {
                return Cause::Denied(format!("{said}; the configured login is refused: {why}"));
            }
            _ => {}
        }
        match status {
            StatusCode::NOT_FOUND => Cause::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if is_registry => Cause::Denied(said),
            StatusCode::TOO_MANY_REQUESTS => Cause::Limited(wait.unwrap_or(DEFAULT_LIMITED)),
            _ => Cause::Trouble(format!("{place} answered {status}{said}")),
        }
    }

    /// One try: with the token that is known, and where that is none or refused, with a new one.
    async fn authorized(&self, ask: &Ask) -> Result<Answer, Failure> {
        let mut proof = self.tokens.known(ask.identity, &ask.name).await?;
        let mut answer = self.follow(ask, proof.as_ref()).await?;
        let refused = |answer: &Answer| answer.status() == StatusCode::UNAUTHORIZED && !answer.foreign;
        for round in 0..LOGINS {
            // A new token that is refused is the last word; after a login there may be another, or none.
            if !refused(&answer) || (round > 0 && proof.as_ref().is_none_or(Proof::is_token)) {
                break;
            }
            let mut challenges = challenge::parse(answer.response.headers());
            let public = !self.wire.is_private_answer(&answer.response);
            self.wire.reading.start(answer.response).await;
            if challenges.is_empty() && proof.is_none() {
                challenges = self.ping().await?;
            }
            proof = Some(self.tokens.answer(ask.identity, &ask.name, &challenges, public, proof).await?);
            answer = self.follow(ask, proof.as_ref()).await?;
        }
        if let Some(proof) = &proof {
            self.tokens.answered(ask, proof, answer.status());
        }
        // Signed URLs expire: a new one, once. (A HEAD tells enough by having been redirected.)
        let is_storage = answer.foreign && !answer.known_there;
        if is_storage && ask.method == Method::GET && matches!(answer.status().as_u16(), 400 | 401 | 403) {
            answer = self.follow(ask, proof.as_ref()).await?;
        }
        answer.refused_login = self.tokens.refused_login(ask.identity);
        Ok(answer)
    }

    /// The challenges of `/v2/`, for registries that do not repeat them elsewhere (gcr.io). What they
    /// say is remembered with the tokens.
    async fn ping(&self) -> Result<Vec<Challenge>, Failure> {
        let now = self.clock.now();
        if lock(&self.silent_since).is_some_and(|since| now < since + SILENT_FOR) {
            return Ok(Vec::new());
        }
        self.pace.turn().await?;
        let (url, method, headers) = (&self.api, Method::GET, HeaderMap::new());
        let hop = Hop { call: UpstreamCall::Ping, method, url, headers, form: None, reach: Reach::Anywhere };
        let response = self.wire.send(hop).await?;
        let challenges = challenge::parse(response.headers());
        self.wire.reading.start(response).await;
        *lock(&self.silent_since) = challenges.is_empty().then_some(now);
        Ok(challenges)
    }

    /// Sends the request along redirects. Authorization goes to the endpoint itself, and not even there
    /// once a redirect has led elsewhere. A registry that it leads to is shown a token of its own.
    async fn follow(&self, ask: &Ask, proof: Option<&Proof>) -> Result<Answer, Failure> {
        let mut url = ask.url.clone();
        let mut visited = Vec::new();
        let (mut foreign, mut public) = (false, false);
        while visited.len() <= MAX_REDIRECTS {
            foreign |= !guard::same_origin(&url, &self.api);
            let trusted = !foreign || !public || guard::is_listed(&url, &self.options.redirect_hosts);
            let reach = if trusted { Reach::Anywhere } else { Reach::Public("redirect_hosts") };
            let (response, known_there) = if foreign {
                self.elsewhere(ask, &url, reach).await?
            } else {
                self.pace.turn().await?;
                (self.hop(ask, &url, proof, reach).await?, false)
            };
            let Some(next) = redirect(&response)? else {
                return Ok(Answer { response, foreign, known_there, refused_login: None });
            };
            public |= !self.wire.is_private_answer(&response);
            guard::check_redirect(&url, &next)?;
            self.wire.reading.start(response).await;
            visited.push(std::mem::replace(&mut url, next));
            if visited.contains(&url) {
                let why = format!("{} redirects in a circle", guard::place(&self.api));
                return Err(Cause::Trouble(why).into());
            }
        }
        Err(Cause::Trouble(format!("more than {MAX_REDIRECTS} redirects")).into())
    }

    async fn hop(
        &self,
        ask: &Ask,
        url: &Url,
        proof: Option<&Proof>,
        reach: Reach,
    ) -> Result<Response, Failure> {
        let mut headers = ask.headers.clone();
        headers.extend(proof.map(|proof| (AUTHORIZATION, proof.header.clone())));
        self.wire
            .send(Hop { call: ask.call, method: ask.method.clone(), url, headers, form: None, reach })
            .await
    }

    /// Where a redirect leads: mostly a storage service, and sometimes a registry that wants a token
    /// (lscr.io, registry.k8s.io). Whether it was shown one is told too. The credential is not for it.
    async fn elsewhere(&self, ask: &Ask, url: &Url, reach: Reach) -> Result<(Response, bool), Failure> {
        let (origin, name) = (guard::place(url), name_in(url).unwrap_or_else(|| ask.name.clone()));
        let tokens = self.elsewhere.get(&origin);
        let known = match &tokens {
            Some(tokens) => tokens.known(Identity::Anonymous, &name).await?,
            None => None,
        };
        let response = self.hop(ask, url, known.as_ref(), reach).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok((response, known.is_some()));
        }
        let challenges = challenge::parse(response.headers());
        if !challenges.iter().any(|challenge| challenge.scheme == "bearer") {
            return Ok((response, known.is_some()));
        }
        let public = !self.wire.is_private_answer(&response);
        self.wire.reading.start(response).await;
        let tokens = tokens.unwrap_or_else(|| self.elsewhere.get_with(origin, || self.tokens_at(url)));
        let fresh = tokens.answer(Identity::Anonymous, &name, &challenges, public, known).await?;
        Ok((self.hop(ask, url, Some(&fresh), reach).await?, true))
    }

    fn tokens_at(&self, url: &Url) -> Arc<Tokens> {
        let options = RealmOptions::stranger(&self.options, url);
        let realms = Realms::new(options, self.wire.clone(), self.clock.clone(), self.tasks.clone());
        Arc::new(Tokens::new(realms, self.clock.clone(), self.tasks.clone()))
    }
}

/// The repository that a registry's URL is about.
fn name_in(url: &Url) -> Option<Name> {
    let (_, below) = url.path().split_once("/v2/")?;
    let ends = ["/manifests/", "/blobs/", "/tags/", "/referrers/"];
    let end = ends.iter().filter_map(|end| below.rfind(end)).max()?;
    below[..end].parse().ok()
}

/// Where a response leads, if it is a redirect.
fn redirect(response: &Response) -> Result<Option<Url>, Cause> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let mut url = location.and_then(|location| response.url().join(location).ok()).ok_or_else(|| {
        Cause::Trouble(format!("{} redirects without a usable Location", guard::place(response.url())))
    })?;
    url.set_fragment(None);
    // No credential of theirs either: reqwest would send it as Basic. Neither call fails for http URLs.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    Ok(Some(url))
}

/// Refuses what is no content of a registry, whatever its status says.
fn check_form(response: &Response) -> Result<(), Cause> {
    let header = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if let Some(encoding) =
        header(CONTENT_ENCODING).filter(|e| !e.is_empty() && !e.eq_ignore_ascii_case("identity"))
    {
        let encoding: String = encoding.chars().take(20).collect();
        return Err(Cause::Corrupt(format!("the answer is encoded as {encoding}, which was not asked for")));
    }
    let essence = header(CONTENT_TYPE).and_then(|t| t.split(';').next()).unwrap_or_default().trim();
    if ["text/html", "application/xhtml+xml"].iter().any(|html| essence.eq_ignore_ascii_case(html)) {
        let place = guard::place(response.url());
        return Err(Cause::Corrupt(format!(
            "a page of HTML came from {place}: a proxy or a login page in between?"
        )));
    }
    Ok(())
}
