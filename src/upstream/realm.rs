//! Asking a token server for one token (CNCF distribution, token and OAuth2 specifications).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use reqwest::Response;
use url::Url;

use super::answered::{Life, TokenAnswer, secret};
use super::body::message;
use super::callers::Callers;
use super::client::{Failure, Hop, Wire};
use super::credential::{Login, LoginSecret};
use super::guard::{self, Reach};
use super::login::{Logins, Opened};
use super::quota::retry_after;
use super::retry::Tries;
use super::{Cause, Credential, EndpointOptions, Identity, Options};
use crate::clock::Clock;
use crate::metrics::UpstreamCall;
use crate::tasks::Tasks;

/// How long a refusal of one scope is taken as said, and a rate limit that names no end.
pub const REFUSED_FOR: Duration = Duration::from_secs(60);
const MAX_TOKEN_BODY: usize = 1 << 20;

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
    /// For so long no other scope would fare better: a rate limit.
    pub for_all: Option<Duration>,
}

impl From<Cause> for Refusal {
    fn from(cause: Cause) -> Self {
        Self { cause, for_all: None }
    }
}

/// A token as `Authorization` header, and how long to use it.
pub type Token = (HeaderValue, Life);

/// What of an endpoint decides how it is logged in to.
pub struct RealmOptions {
    pub url: Url,
    /// Up to `/v2/`.
    pub api: Url,
    /// A redirect led there, not the configuration.
    pub is_stranger: bool,
    pub credential: Option<Credential>,
    /// Who else may come with logins for it.
    pub callers: Option<Arc<Callers>>,
    /// Further hosts that may be sent the login as token servers.
    pub realm_hosts: Vec<String>,
    pub header_timeout: Duration,
}

impl RealmOptions {
    pub fn of(
        options: &Options,
        endpoint: &EndpointOptions,
        api: Url,
        callers: Option<&Arc<Callers>>,
    ) -> Self {
        Self {
            url: endpoint.url.clone(),
            api,
            is_stranger: false,
            credential: endpoint.credential.clone(),
            callers: callers.cloned(),
            realm_hosts: options.realm_hosts.clone(),
            header_timeout: options.header_timeout,
        }
    }

    /// Of a registry that a redirect led to: no login is for it.
    pub fn stranger(options: &Options, url: &Url) -> Self {
        let endpoint = EndpointOptions { url: url.clone(), credential: None, ..options.own() };
        Self { is_stranger: true, ..Self::of(options, &endpoint, url.clone(), None) }
    }
}

/// The token servers of one endpoint, and the login for them.
pub struct Realms {
    pub(super) wire: Arc<Wire>,
    /// Up to `/v2/`.
    pub(super) api: Url,
    is_stranger: bool,
    pub logins: Logins,
    /// Taken to judge a login that was refused.
    pub(super) judging: tokio::sync::Mutex<()>,
    callers: Option<Arc<Callers>>,
    realm_hosts: Vec<String>,
    header_timeout: Duration,
    clock: Clock,
}

impl Realms {
    pub fn new(options: RealmOptions, wire: Arc<Wire>, clock: Clock, tasks: Tasks) -> Self {
        let RealmOptions { url, api, is_stranger, credential, callers, realm_hosts, header_timeout } =
            options;
        let logins = Logins::new(&url, credential, &wire.metrics, clock.clone(), tasks);
        let judging = tokio::sync::Mutex::default();
        Self { wire, api, is_stranger, logins, judging, callers, realm_hosts, header_timeout, clock }
    }

    /// The login of an identity, where it has one that may be used.
    pub async fn login(&self, identity: Identity) -> Result<Option<Arc<Login>>, Cause> {
        match identity {
            Identity::Configured => self.logins.current().await,
            Identity::Anonymous => Ok(None),
            Identity::Caller(id) => {
                let login = self.callers.as_ref().and_then(|callers| callers.login(id));
                // It must not go on as somebody else.
                let forgotten = || Cause::Denied(": the caller's login is forgotten by now".to_owned());
                login.map(Some).ok_or_else(forgotten)
            }
        }
    }

    /// A token for the login that is configured, or for another one that its helper knows once that is
    /// refused, or for nobody where none is any good. A caller's login is its only one.
    pub async fn fetch(&self, identity: Identity, grant: &Grant) -> Result<Token, Refusal> {
        let configured = identity == Identity::Configured;
        for _ in 0..2 {
            let Some(login) = self.login(identity).await? else { break };
            if matches!(login.secret, LoginSecret::RegistryToken(_)) {
                break;
            }
            guard::check_realm(&self.api, &grant.realm, &self.realm_hosts, true)?;
            let response = self.ask(grant, Some(&login)).await?;
            let status = response.status();
            let said = match status {
                StatusCode::OK => {
                    let token = self.read(grant, response).await?;
                    if configured {
                        self.logins.accepted(&login, Some(Opened::Token(grant.clone())));
                    }
                    return Ok(token);
                }
                StatusCode::FORBIDDEN if configured => {
                    let refusal = self.refusal(grant, response).await;
                    match self.forbidden(grant, &login, refusal).await {
                        Some(outcome) => return outcome,
                        None => continue,
                    }
                }
                StatusCode::UNAUTHORIZED | StatusCode::BAD_REQUEST => self.wire.reading.start(response).await,
                _ => return Err(self.refusal(grant, response).await),
            };
            let place = guard::place(&grant.realm);
            let why = format!("its token server {place} answered {status}{}", message(&said));
            // OAuth 2.0 (RFC 6749, section 5.2) has no 401 for this.
            if status == StatusCode::BAD_REQUEST && !String::from_utf8_lossy(&said).contains("invalid_grant")
            {
                return Err(Cause::Trouble(why).into());
            }
            if !configured {
                let cause = Cause::Denied(format!(": {why}"));
                return Err(Refusal { cause, for_all: Some(REFUSED_FOR) });
            }
            self.logins.refused(&login, &why).await;
        }
        self.anonymous(grant).await.map_err(|refusal| match (refusal.cause, self.refused_login(identity)) {
            (Cause::Denied(said), Some(why)) => {
                Cause::Denied(format!("{said}; the configured login is refused: {why}")).into()
            }
            (cause, _) => Refusal { cause, ..refusal },
        })
    }

    /// Why an identity's requests go without its login.
    pub fn refused_login(&self, identity: Identity) -> Option<String> {
        self.logins.refusal().filter(|_| identity == Identity::Configured)
    }

    pub(super) async fn anonymous(&self, grant: &Grant) -> Result<Token, Refusal> {
        guard::check_realm(&self.api, &grant.realm, &self.realm_hosts, false)?;
        let response = self.ask(grant, None).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(grant, response).await);
        }
        Ok(self.read(grant, response).await?)
    }

    /// By GET, which every server but some takes; identity tokens are for POST alone.
    pub(super) async fn ask(&self, grant: &Grant, login: Option<&Login>) -> Result<Response, Cause> {
        let login = match login {
            Some(Login { secret: LoginSecret::IdentityToken(token), .. }) => {
                let form = [("grant_type", "refresh_token"), ("refresh_token", token.reveal())];
                return self.post(grant, &form).await;
            }
            other => other,
        };
        let response = self.get(grant, login).await?;
        let wants_post = matches!(response.status(), StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_FOUND);
        match login {
            Some(Login { username, secret: LoginSecret::Password(password) }) if wants_post => {
                self.wire.reading.start(response).await;
                let form =
                    [("grant_type", "password"), ("username", username), ("password", password.reveal())];
                self.post(grant, &form).await
            }
            _ => Ok(response),
        }
    }

    /// Redirects are not followed: a token server is where its realm says.
    async fn get(&self, grant: &Grant, login: Option<&Login>) -> Result<Response, Cause> {
        let mut url = grant.realm.clone();
        let basic = login.and_then(basic);
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &grant.service {
                query.append_pair("service", service);
            }
            for scope in grant.scope.split_ascii_whitespace() {
                query.append_pair("scope", scope);
            }
            if let (Some(_), Some(login)) = (&basic, login) {
                query.append_pair("account", &login.username);
            }
        }
        let headers = HeaderMap::from_iter(basic.map(|basic| (AUTHORIZATION, basic)));
        let mut tries = Tries::new(&self.wire.metrics, self.header_timeout);
        loop {
            let sent = self.send(grant, Method::GET, &url, headers.clone(), None).await;
            if !tries.again(sent.as_ref().map(Response::status)).await {
                return sent.map_err(Cause::from);
            }
        }
    }

    /// The OAuth2 form of the request.
    async fn post(&self, grant: &Grant, proof: &[(&str, &str)]) -> Result<Response, Cause> {
        let mut form = vec![("client_id", "forebay"), ("scope", &grant.scope)];
        form.extend(grant.service.as_deref().map(|service| ("service", service)));
        form.extend(proof);
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
        let reach = self.reach(grant);
        self.wire.send(Hop { call: UpstreamCall::Token, method, url, headers, form, reach }).await
    }

    /// The configuration's own host is where that says, wherever its name leads. A stranger's is asked
    /// for a token as it was for content: its name may lead elsewhere by now.
    fn reach(&self, grant: &Grant) -> Reach {
        let is_own = !self.is_stranger && grant.realm.host() == self.api.host();
        let trusted = is_own || guard::is_listed(&grant.realm, &self.realm_hosts);
        if grant.public && !trusted { Reach::Public("realm_hosts") } else { Reach::Anywhere }
    }

    async fn read(&self, grant: &Grant, response: Response) -> Result<Token, Cause> {
        let trouble =
            |why: &str| Cause::Trouble(format!("the token server {} {why}", guard::place(&grant.realm)));
        let body = self.wire.reading.whole(response, MAX_TOKEN_BODY, "the token").await;
        let body = body.map_err(|cause| trouble(&format!("failed: {cause}")))?;
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| trouble("answered no JSON"))?;
        let token = answer.token().ok_or_else(|| trouble("answered without a token"))?;
        let header =
            secret(&format!("Bearer {token}")).ok_or_else(|| trouble("answered an unusable token"))?;
        Ok((header, answer.life(self.clock.wall())))
    }

    async fn refusal(&self, grant: &Grant, response: Response) -> Refusal {
        let status = response.status();
        let wait = retry_after(response.headers(), self.clock.wall());
        let said = message(&self.wire.reading.start(response).await);
        let place = guard::place(&grant.realm);
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Cause::Denied(format!(": its token server {place} answered {status}{said}")).into()
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let wait = wait.unwrap_or(REFUSED_FOR);
                Refusal { cause: Cause::Limited(wait), for_all: Some(wait) }
            }
            _ => Cause::Trouble(format!("the token server {place} answered {status}{said}")).into(),
        }
    }
}

/// A login as Basic `Authorization`; None of one that is a token.
pub fn basic(login: &Login) -> Option<HeaderValue> {
    let LoginSecret::Password(password) = &login.secret else { return None };
    secret(&format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{}", login.username, password.reveal()))))
}

/// A login that goes to the registry as it is.
pub fn as_it_is(login: &Login) -> Option<HeaderValue> {
    let LoginSecret::RegistryToken(token) = &login.secret else { return None };
    secret(&format!("Bearer {}", token.reveal()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn a_stranger_s_own_name_is_trusted_no_further_than_it_was() {
        let url = |text: &str| Url::parse(text).unwrap();
        let listed = vec!["listed.example".to_owned()];
        let options =
            Options { realm_hosts: listed, ..crate::upstream::tests::options(url("http://hub.example/")) };
        let metrics = Arc::new(Metrics::new().upstream("docker.io"));
        let wire = Wire::new(&options, &options.own(), metrics, Clock::default()).unwrap();
        let wire = Arc::new(wire);
        let realms = |of| Realms::new(of, wire.clone(), Clock::default(), Tasks::default());
        let own = realms(RealmOptions::of(&options, &options.own(), url("http://hub.example/v2/"), None));
        let stranger = realms(RealmOptions::stranger(&options, &url("http://evil.example/v2/a/manifests/1")));
        let grant =
            |realm: &str, public| Grant { realm: url(realm), service: None, scope: String::new(), public };
        let guarded = Reach::Public("realm_hosts");
        for (realms, realm, public, reach) in [
            (&own, "http://hub.example/token", true, Reach::Anywhere),
            (&own, "http://auth.example/token", true, guarded),
            (&own, "http://auth.example/token", false, Reach::Anywhere),
            (&stranger, "http://evil.example/token", true, guarded),
            (&stranger, "http://listed.example/token", true, Reach::Anywhere),
            (&stranger, "http://evil.example/token", false, Reach::Anywhere),
        ] {
            assert_eq!(realms.reach(&grant(realm, public)), reach, "{realm} {public}");
        }
    }
}
