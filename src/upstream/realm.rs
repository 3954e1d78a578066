//! Asking a token server for one token (CNCF distribution, token and OAuth2 specifications).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use reqwest::Response;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use url::Url;

use super::body::message;
use super::client::{Failure, Hop, Wire};
use super::guard::{self, Reach};
use super::quota::retry_after;
use super::retry::Tries;
use super::{Cause, Credential, Identity, Options, Password};
use crate::clock::Clock;
use crate::metrics::UpstreamCall;

/// How long a refusal is taken as said: bad passwords, repeated, lock accounts.
pub const REFUSED_FOR: Duration = Duration::from_secs(60);
const MAX_TOKEN_BODY: usize = 1 << 20;
const PASSWORD_MAX: u64 = 64 * 1024;
const LONGEST_LIFE: Duration = Duration::from_secs(3600);
/// What a token without `expires_in` lives, in seconds (token specification).
const DEFAULT_LIFE: u64 = 60;

/// What a token is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    pub realm: Url,
    pub service: Option<String>,
    /// One or more, separated by spaces.
    pub scope: String,
    /// The challenge came from a public address, so the realm must have one too.
    pub public: bool,
}

/// Why there is no token.
pub struct Refusal {
    pub cause: Cause,
    /// For so long no other scope would fare better: a bad password, a rate limit.
    pub for_all: Option<Duration>,
}

impl From<Cause> for Refusal {
    fn from(cause: Cause) -> Self {
        Self { cause, for_all: None }
    }
}

/// The token servers of one upstream, and the credential for them.
pub struct Realms {
    wire: Arc<Wire>,
    origin: Url,
    credential: Option<Credential>,
    realm_hosts: Vec<String>,
    header_timeout: Duration,
    clock: Clock,
}

impl Realms {
    pub fn new(options: &Options, wire: Arc<Wire>, clock: Clock) -> Self {
        Self {
            wire,
            origin: options.url.clone(),
            credential: options.credential.clone(),
            realm_hosts: options.realm_hosts.clone(),
            header_timeout: options.header_timeout,
            clock,
        }
    }

    /// A token as `Authorization` header, and how long to use it.
    pub async fn fetch(&self, identity: Identity, grant: &Grant) -> Result<(HeaderValue, Duration), Refusal> {
        let basic = self.basic(identity).await?;
        guard::check_realm(&self.origin, &grant.realm, &self.realm_hosts, basic.is_some())?;
        let mut response = self.get(grant, basic.as_ref()).await?;
        let wants_post = matches!(response.status(), StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_FOUND);
        if wants_post && let Some(password) = self.password(identity).await? {
            response = self.post(grant, &password).await?;
        }
        if response.status() != StatusCode::OK {
            return Err(self.refusal(grant, basic.is_some(), response).await);
        }
        let trouble =
            |why: &str| Cause::Trouble(format!("the token server {} {why}", guard::place(&grant.realm)));
        let body = self.wire.reading.whole(response, MAX_TOKEN_BODY, "the token").await;
        let body = body.map_err(|cause| trouble(&format!("failed: {cause}")))?;
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| trouble("answered no JSON"))?;
        let life = answer.usable_for(self.clock.wall());
        let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
        let token = token.ok_or_else(|| trouble("answered without a token"))?;
        let header =
            secret(&format!("Bearer {token}")).ok_or_else(|| trouble("answered an unusable token"))?;
        Ok((header, life))
    }

    /// Redirects are not followed: a token server is where its realm says.
    async fn get(&self, grant: &Grant, basic: Option<&HeaderValue>) -> Result<Response, Cause> {
        let mut url = grant.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &grant.service {
                query.append_pair("service", service);
            }
            for scope in grant.scope.split_ascii_whitespace() {
                query.append_pair("scope", scope);
            }
            if let (Some(_), Some(credential)) = (basic, &self.credential) {
                query.append_pair("account", &credential.username);
            }
        }
        let headers = HeaderMap::from_iter(basic.map(|basic| (AUTHORIZATION, basic.clone())));
        let mut tries = Tries::new(&self.wire.metrics, self.header_timeout);
        loop {
            let sent = self.send(grant, Method::GET, &url, headers.clone(), None).await;
            if !tries.again(sent.as_ref().map(Response::status)).await {
                return sent.map_err(Cause::from);
            }
        }
    }

    /// The OAuth2 form of the request, for servers that have no other.
    async fn post(&self, grant: &Grant, password: &str) -> Result<Response, Cause> {
        let username = self.credential.as_ref().map_or("", |credential| &credential.username);
        let form = [
            ("grant_type", "password"),
            ("client_id", "forebay"),
            ("service", grant.service.as_deref().unwrap_or_default()),
            ("scope", &grant.scope),
            ("username", username),
            ("password", password),
        ];
        let sent = self.send(grant, Method::POST, &grant.realm, HeaderMap::new(), Some(&form)).await;
        sent.map_err(Cause::from)
    }

    async fn send(
        &self,
        grant: &Grant,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        form: Option<&[(&str, &str)]>,
    ) -> Result<Response, Failure> {
        let trusted =
            grant.realm.host() == self.origin.host() || guard::is_listed(&grant.realm, &self.realm_hosts);
        let reach = if grant.public && !trusted { Reach::Public("realm_hosts") } else { Reach::Anywhere };
        self.wire.send(Hop { call: UpstreamCall::Token, method, url, headers, form, reach }).await
    }

    async fn refusal(&self, grant: &Grant, credential: bool, response: Response) -> Refusal {
        let status = response.status();
        let wait = retry_after(response.headers(), self.clock.wall());
        let said = message(&self.wire.reading.start(response).await);
        let place = guard::place(&grant.realm);
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let bad_password = credential && status == StatusCode::UNAUTHORIZED;
                let cause = Cause::Denied(format!(": its token server {place} answered {status}{said}"));
                Refusal { cause, for_all: bad_password.then_some(REFUSED_FOR) }
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let wait = wait.unwrap_or(REFUSED_FOR);
                Refusal { cause: Cause::Limited(wait), for_all: Some(wait) }
            }
            _ => Cause::Trouble(format!("the token server {place} answered {status}{said}")).into(),
        }
    }

    /// The credential as Basic `Authorization`; None where the identity has none.
    pub async fn basic(&self, identity: Identity) -> Result<Option<HeaderValue>, Cause> {
        let (Some(password), Some(credential)) = (self.password(identity).await?, &self.credential) else {
            return Ok(None);
        };
        let pair = BASE64_STANDARD.encode(format!("{}:{password}", credential.username));
        Ok(secret(&format!("Basic {pair}")))
    }

    /// The password, read anew each time; None where the identity has none.
    async fn password(&self, identity: Identity) -> Result<Option<String>, Cause> {
        let Some(credential) = self.credential.as_ref().filter(|_| identity == Identity::Configured) else {
            return Ok(None);
        };
        let path = match &credential.password {
            Password::File(path) => path,
            Password::Inline(secret) => return Ok(Some(secret.reveal().to_owned())),
        };
        let trouble = |why: &dyn std::fmt::Display| {
            Cause::Trouble(format!("the password file {} cannot be read: {why}", path.display()))
        };
        let file = tokio::fs::File::open(path).await.map_err(|e| trouble(&e))?;
        let mut text = String::new();
        file.take(PASSWORD_MAX).read_to_string(&mut text).await.map_err(|e| trouble(&e))?;
        text.truncate(text.trim_end_matches(['\n', '\r', '\0']).len());
        Ok(Some(text))
    }
}

/// A header value that no debug output shows.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    /// Seconds: a number, or one in quotes.
    #[serde(default)]
    expires_in: serde_json::Value,
    issued_at: Option<String>,
}

impl TokenAnswer {
    /// How long to use the token: a margin before it expires is left for requests under way.
    fn usable_for(&self, now: std::time::SystemTime) -> Duration {
        let seconds = self.expires_in.as_u64().or_else(|| self.expires_in.as_str()?.parse().ok());
        let life = Duration::from_secs(seconds.unwrap_or(DEFAULT_LIFE));
        let issued = self.issued_at.as_deref().and_then(|text| {
            let text = text.strip_suffix("+00:00").map(|text| format!("{text}Z")).unwrap_or(text.to_owned());
            humantime::parse_rfc3339(&text).ok()
        });
        let age = issued.and_then(|issued| now.duration_since(issued).ok()).unwrap_or_default();
        // A token that is expired when it comes tells of two clocks, not of its life.
        let left = life.checked_sub(age).filter(|left| !left.is_zero()).unwrap_or(life).min(LONGEST_LIFE);
        let margin = (left / 5).max(Duration::from_secs(30));
        left.checked_sub(margin).unwrap_or_default().max((left / 2).min(Duration::from_secs(30)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn tokens_are_used_until_shortly_before_they_expire() {
        let now = SystemTime::now();
        let usable = |expires_in: Option<i64>, issued: Option<String>| {
            let expires_in = serde_json::json!(expires_in);
            TokenAnswer { token: None, access_token: None, expires_in, issued_at: issued }
                .usable_for(now)
                .as_secs()
        };
        let ago = |seconds| Some(humantime::format_rfc3339(now - Duration::from_secs(seconds)).to_string());
        assert_eq!(usable(Some(300), None), 240);
        assert_eq!(usable(Some(100), None), 70);
        assert_eq!(usable(None, None), 30);
        assert_eq!(usable(Some(-5), None), 30);
        assert_eq!(usable(Some(10), None), 5);
        assert_eq!(usable(Some(0), None), 0);
        assert_eq!(usable(Some(86_400 * 365), None), 2880);
        assert_eq!(usable(Some(i64::MAX), ago(5)), 2880);
        assert_eq!(usable(Some(300), ago(200)), 70);
        assert_eq!(usable(Some(300), ago(9999)), 240);
        assert_eq!(usable(Some(300), Some("2999-01-01T00:00:00Z".into())), 240);
        assert_eq!(usable(Some(300), Some("yesterday".into())), 240);
    }

    #[test]
    fn secrets_are_not_shown() {
        assert!(!format!("{:?}", secret("Bearer hidden").unwrap()).contains("hidden"));
        assert!(secret("Bearer a\nb").is_none());
    }
}
