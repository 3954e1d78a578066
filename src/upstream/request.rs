//! One call to the upstream: its tokens, redirects and retries.

use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use http::{Method, StatusCode};
use reqwest::Response;
use url::Url;

use super::body::message;
use super::challenge;
use super::client::{Failure, Hop, Wire};
use super::gate::Pace;
use super::guard::{self, Reach};
use super::quota::retry_after;
use super::retry::Tries;
use super::token::{Proof, Tokens};
use super::{Cause, Identity, Options};
use crate::clock::Clock;
use crate::metrics::UpstreamCall;
use crate::oci::Name;

const MAX_REDIRECTS: usize = 5;
/// One that is known, another one that a helper gives, and none.
const LOGINS: usize = 3;
/// The pause after a 429 that names none.
const DEFAULT_LIMITED: Duration = Duration::from_secs(60);

/// What is asked for.
pub struct Ask<'a> {
    pub call: UpstreamCall,
    pub method: Method,
    pub identity: Identity,
    pub name: &'a Name,
    pub url: Url,
    pub headers: HeaderMap,
}

/// The head of the answer after all redirects, whatever its status.
pub struct Answer {
    pub response: Response,
    /// It comes from where a redirect led, not from the upstream itself.
    pub foreign: bool,
    /// Why the request went without the configured login, where that is refused: then a 404 tells nothing.
    pub refused_login: Option<String>,
}

impl Answer {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }
}

/// Sends requests to one upstream.
pub struct Requests {
    pub wire: Arc<Wire>,
    tokens: Arc<Tokens>,
    pace: Pace,
    origin: Url,
    redirect_hosts: Vec<String>,
    header_timeout: Duration,
    /// Longest time for one call, with its token, redirects and retries.
    longest: Duration,
    clock: Clock,
}

impl Requests {
    pub fn new(options: &Options, wire: Arc<Wire>, tokens: Arc<Tokens>, clock: Clock) -> Self {
        Self {
            wire,
            tokens,
            pace: Pace::new(options.requests_per_minute, options.queue_timeout),
            origin: options.url.clone(),
            redirect_hosts: options.redirect_hosts.clone(),
            header_timeout: options.header_timeout,
            longest: options.header_timeout.saturating_mul(3).saturating_add(options.queue_timeout),
            clock,
        }
    }

    /// The answer, whatever its status: see [`Requests::refusal`] for those that are no success.
    pub async fn send(&self, ask: &Ask<'_>) -> Result<Answer, Cause> {
        let tries = async {
            let mut tries = Tries::new(&self.wire.metrics, self.header_timeout);
            loop {
                let outcome = self.authorized(ask).await;
                if !tries.again(outcome.as_ref().map(Answer::status)).await {
                    return outcome.map_err(Cause::from);
                }
            }
        };
        let answer = tokio::time::timeout(self.longest, tries)
            .await
            .unwrap_or_else(|_| Err(Cause::Trouble(format!("no answer within {:?}", self.longest))))?;
        if answer.status().is_success() { check_form(&answer.response).map(|()| answer) } else { Ok(answer) }
    }

    /// What an answer without success means. 404, 401, 403 and 429 speak for themselves. Every other
    /// status is trouble: the two of us do not understand each other, which tells nothing of the content.
    pub async fn refusal(&self, answer: Answer) -> Cause {
        let Answer { response, foreign, refused_login } = answer;
        let (status, mut place) = (response.status(), guard::place(response.url()));
        let wait = retry_after(response.headers(), self.clock.wall());
        let said = if foreign {
            // What a storage service says of a signed URL is not for clients.
            place.push_str(", where the upstream redirects to,");
            String::new()
        } else {
            message(&self.wire.reading.start(response).await)
        };
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
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !foreign => Cause::Denied(said),
            StatusCode::TOO_MANY_REQUESTS => Cause::Limited(wait.unwrap_or(DEFAULT_LIMITED)),
            _ => Cause::Trouble(format!("{place} answered {status}{said}")),
        }
    }

    /// One try: with the token that is known, and where that is none or refused, with a new one.
    async fn authorized(&self, ask: &Ask<'_>) -> Result<Answer, Failure> {
        let mut proof = self.tokens.known(ask.identity, ask.name).await?;
        let mut answer = self.follow(ask, proof.as_ref()).await?;
        let refused = |answer: &Answer| answer.status() == StatusCode::UNAUTHORIZED && !answer.foreign;
        for round in 0..LOGINS {
            // A new token that is refused is the last word; after a login there may be another, or none.
            if !refused(&answer) || (round > 0 && proof.as_ref().is_none_or(Proof::is_token)) {
                break;
            }
            let challenges = challenge::parse(answer.response.headers());
            let public = !self.wire.is_private_answer(&answer.response);
            self.wire.reading.start(answer.response).await;
            proof = Some(self.tokens.answer(ask.identity, ask.name, &challenges, public, proof).await?);
            answer = self.follow(ask, proof.as_ref()).await?;
        }
        if let Some(proof) = proof.as_ref().filter(|_| answer.status().is_success()) {
            self.tokens.accepted(proof);
        }
        // Signed URLs expire: a new one, once. (A HEAD tells enough by having been redirected.)
        if answer.foreign && ask.method == Method::GET && matches!(answer.status().as_u16(), 400 | 401 | 403)
        {
            answer = self.follow(ask, proof.as_ref()).await?;
        }
        answer.refused_login = self.tokens.refused_login(ask.identity);
        Ok(answer)
    }

    /// Sends the request along redirects. Authorization goes to the upstream itself, and not even there
    /// once a redirect has led elsewhere.
    async fn follow(&self, ask: &Ask<'_>, proof: Option<&Proof>) -> Result<Answer, Failure> {
        let mut url = ask.url.clone();
        let mut visited = Vec::new();
        let (mut foreign, mut public) = (false, false);
        while visited.len() <= MAX_REDIRECTS {
            foreign |= !guard::same_origin(&url, &self.origin);
            let mut headers = ask.headers.clone();
            if !foreign {
                self.pace.turn().await?;
                headers.extend(proof.map(|proof| (AUTHORIZATION, proof.header.clone())));
            }
            let trusted = !foreign || !public || guard::is_listed(&url, &self.redirect_hosts);
            let reach = if trusted { Reach::Anywhere } else { Reach::Public("redirect_hosts") };
            let hop =
                Hop { call: ask.call, method: ask.method.clone(), url: &url, headers, form: None, reach };
            let response = self.wire.send(hop).await?;
            let Some(next) = redirect(&response)? else {
                return Ok(Answer { response, foreign, refused_login: None });
            };
            public |= !self.wire.is_private_answer(&response);
            guard::check_redirect(&url, &next)?;
            self.wire.reading.start(response).await;
            visited.push(std::mem::replace(&mut url, next));
            if visited.contains(&url) {
                let why = format!("{} redirects in a circle", guard::place(&self.origin));
                return Err(Cause::Trouble(why).into());
            }
        }
        Err(Cause::Trouble(format!("more than {MAX_REDIRECTS} redirects")).into())
    }
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
