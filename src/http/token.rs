//! `/token`: bearer tokens, by CNCF distribution's token (GET) and OAuth2 (POST) specifications.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, Method, Response, header, request};
use serde_json::json;

use super::address::{Address, Entrance};
use super::body::Payload;
use super::callers::login_in;
use super::connection::Arrival;
use super::error::{ApiError, Code};
use super::handler::{Answer, Service};
use super::receive::RequestBody;
use super::respond::header_value;
use crate::access::{Access, Action, Client, Issued, NotShown, Shown};
use crate::metrics::Outcome;

/// Largest form: a password, a refresh token, some scopes.
const FORM_MAX: usize = 64 * 1024;
/// Scopes of one request; each may name several actions.
const SCOPES_MAX: usize = 64;
/// Clients take a token that says less for one that lasts a minute.
const SHORTEST: Duration = Duration::from_secs(60);

/// What is asked for, by query or form.
#[derive(Default)]
pub(super) struct Asked {
    service: Option<String>,
    pub scopes: Vec<String>,
    /// By POST (OAuth2), whose answers say what was granted.
    pub is_form: bool,
    /// A token that fetches others is wanted too.
    offline: bool,
    grant_type: Option<String>,
    username: Option<String>,
    password: Option<String>,
    refresh_token: Option<String>,
}

impl Asked {
    fn parse(form: &[u8]) -> Result<Self, ApiError> {
        let mut asked = Self::default();
        for (key, value) in url::form_urlencoded::parse(form) {
            match &*key {
                // Several parameters, or one with blanks in between.
                "scope" => asked.scopes.extend(value.split_whitespace().map(str::to_owned)),
                "offline_token" => asked.offline |= value == "true",
                "access_type" => asked.offline |= value == "offline",
                "service" => asked.service = Some(value.into_owned()),
                "grant_type" => asked.grant_type = Some(value.into_owned()),
                "username" => asked.username = Some(value.into_owned()),
                "password" => asked.password = Some(value.into_owned()),
                "refresh_token" => asked.refresh_token = Some(value.into_owned()),
                _ => {}
            }
        }
        if asked.scopes.len() > SCOPES_MAX {
            return Err(ApiError::new(
                Code::Invalid,
                format!("more than {SCOPES_MAX} scopes are asked for at once"),
            ));
        }
        Ok(asked)
    }

    /// The name and the password of a form.
    fn password_login(&self) -> Result<(String, String), ApiError> {
        if self.grant_type.as_deref() != Some("password") {
            let message = "`grant_type` has to be `password` here";
            return Err(ApiError::new(Code::Invalid, message));
        }
        let user = self.username.clone().ok_or_else(|| missing("username"))?;
        let password = self.password.clone().ok_or_else(|| missing("password"))?;
        Ok((user, password))
    }
}

fn missing(what: &str) -> ApiError {
    ApiError::new(Code::Invalid, format!("`{what}` is missing in the form"))
}

impl Service {
    /// Whether this path is that of tokens.
    pub(super) fn gives_tokens_at(&self, path: &str) -> bool {
        path == "/token" && (self.gate.token_service().is_some() || self.asks_callers())
    }

    /// Gives out a token for as much of what is asked for as policy allows. That it is less is no
    /// error: the request that needs more is refused.
    pub(super) async fn token(
        &self,
        request: &request::Parts,
        arrival: &Arrival,
        client: Client,
        body: &mut RequestBody,
    ) -> Answer {
        let only_upstreams = || match self.gate.token_service() {
            Some(_) => Ok(()),
            None => {
                Err(ApiError::new(Code::Invalid, "`service` has to be the one that a challenge here names"))
            }
        };
        let (asked, shown) = match request.method {
            Method::GET | Method::HEAD => {
                let asked = Asked::parse(request.uri.query().unwrap_or_default().as_bytes())?;
                if let Some(host) = self.upstream_service(asked.service.as_deref()) {
                    let login = login_in(request.headers.get(header::AUTHORIZATION))?;
                    return self.pass(&host, &asked, login, client).await;
                }
                only_upstreams()?;
                (asked, self.shown_by_header(request, arrival, client).await)
            }
            Method::POST => {
                let asked = Asked { is_form: true, ..Asked::parse(&form(body).await?)? };
                if let Some(host) = self.upstream_service(asked.service.as_deref()) {
                    let login = asked.password_login()?;
                    return self.pass(&host, &asked, Some(login), client).await;
                }
                only_upstreams()?;
                let shown = self.shown_by_form(client, &asked).await?;
                (asked, shown)
            }
            _ => {
                let message = format!("{} /token is not served: use GET or POST", request.method);
                return Err(ApiError::method(message, "GET, HEAD, POST"));
            }
        };
        let shown = shown.map_err(|error| self.not_shown(error))?;
        let service = self.gate.token_service().unwrap_or_default();
        if asked.service.as_ref().is_some_and(|asked| asked != service) {
            let message = format!("tokens are given out for the service `{service}` here, and no other");
            return Err(ApiError::new(Code::Invalid, message));
        }
        // A token that fetched the next one would never end.
        if shown.grants.is_some() {
            let refused = "a token of this kind gives no further one: log in".to_owned();
            return Err(ApiError::unauthorized(refused, self.basic_challenge()));
        }
        let authority = self.external(request, arrival).authority;
        let entrance = Entrance { scope: &arrival.scope, authority: &authority };
        let address = Address::of(&self.owners, entrance, None, None)?;
        let access: Vec<Access> =
            asked.scopes.iter().filter_map(|scope| self.granted(&shown, &address, scope)).collect();
        let scope: Vec<String> = access.iter().map(written).collect();
        let Some(issued) = self.gate.issue(&shown, access).await else {
            return Err(ApiError::new(Code::NoEndpoint, "no tokens are given out here"));
        };
        let issued = issued.map_err(|error| ApiError::new(Code::Unknown, error))?;
        let refresh = match asked.refresh_token {
            _ if !asked.offline => None,
            // In a refresh, the one that was sent stays good.
            Some(token) => Some(token),
            None => self.gate.refresh_token(&shown).await,
        };
        Ok((granting(&issued, asked.is_form.then(|| scope.join(" ")), refresh), Outcome::Hit))
    }

    async fn shown_by_header(
        &self,
        request: &request::Parts,
        arrival: &Arrival,
        client: Client,
    ) -> Result<Shown, NotShown> {
        let authorization = request.headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        self.gate.show(client, authorization, arrival.certificate.as_ref()).await
    }

    async fn shown_by_form(
        &self,
        client: Client,
        asked: &Asked,
    ) -> Result<Result<Shown, NotShown>, ApiError> {
        match asked.grant_type.as_deref() {
            Some("password") => {
                let (user, password) = asked.password_login()?;
                Ok(self.gate.by_password(client, &user, &password).await)
            }
            Some("refresh_token") => {
                let token = asked.refresh_token.as_deref().ok_or_else(|| missing("refresh_token"))?;
                Ok(self.gate.by_refresh_token(token).await)
            }
            _ => {
                let message = "`grant_type` has to be `password` or `refresh_token`";
                Err(ApiError::new(Code::Invalid, message))
            }
        }
    }

    fn not_shown(&self, error: NotShown) -> ApiError {
        match error {
            NotShown::Busy => ApiError::logins_busy(),
            NotShown::Wrong(refused) => ApiError::unauthorized(refused.why, self.basic_challenge()),
        }
    }

    fn basic_challenge(&self) -> HeaderValue {
        header_value(format!("Basic realm=\"{}\"", self.gate.options().realm))
    }

    /// What of a scope, `repository:NAME:pull,push`, policy allows. None: nothing.
    fn granted(&self, shown: &Shown, address: &Address, scope: &str) -> Option<Access> {
        let (kind, rest) = scope.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        // `repository(plugin)` names a class of images, which are all the same here.
        let kind = kind.split('(').next().unwrap_or_default();
        let mut asked = actions.split(',').map(str::trim);
        let all = actions.split(',').any(|action| action.trim() == "*");
        let mut name = name.to_owned();
        let actions: Vec<String> = match kind {
            "registry" if name == "catalog" => asked.take(4).map(str::to_owned).collect(),
            "repository" => {
                let repository = address.scope(&self.owners, &name).ok()?;
                // Where a host says whose it is, the name alone does not.
                if address.upstream().is_some() {
                    name = repository.to_string();
                }
                let is_allowed = |action: &Action| {
                    self.gate.policy().decide(&shown.identity, false, *action, &repository).is_allowed()
                };
                let asked: Vec<&str> = asked.by_ref().collect();
                let wanted = |action: &Action| all || asked.contains(&action.to_string().as_str());
                let known = [Action::Pull, Action::Push, Action::Delete].into_iter();
                known.filter(wanted).filter(is_allowed).map(|action| action.to_string()).collect()
            }
            _ => return None,
        };
        let access = Access { kind: kind.to_owned(), name, actions };
        (!access.actions.is_empty()).then_some(access)
    }
}

fn written(access: &Access) -> String {
    format!("{}:{}:{}", access.kind, access.name, access.actions.join(","))
}

async fn form(body: &mut RequestBody) -> Result<Vec<u8>, ApiError> {
    let (mut chunks, mut form) = (body.take(), Vec::new());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| ApiError::new(Code::Invalid, "the form broke off"))?;
        if form.len() + chunk.len() > FORM_MAX {
            return Err(ApiError::new(Code::Invalid, "the form is larger than 64 KiB"));
        }
        form.extend_from_slice(&chunk);
    }
    Ok(form)
}

/// The answer that gives out a token. `scope`: what it is for, where the answer is to say so.
pub(super) fn granting(issued: &Issued, scope: Option<String>, refresh: Option<String>) -> Response<Payload> {
    let mut answer = json!({
        "token": issued.token,
        "access_token": issued.token,
        "expires_in": issued.lifetime.max(SHORTEST).as_secs(),
        "issued_at": humantime::format_rfc3339_nanos(issued.at).to_string(),
    });
    let further = [("scope", scope), ("refresh_token", refresh)];
    for (key, value) in further.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        answer[key] = value.into();
    }
    secret(answer.to_string())
}

/// JSON that no cache keeps (RFC 6749, section 5.1).
fn secret(body: String) -> Response<Payload> {
    let mut response = Response::new(Payload::Full(Bytes::from(body)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
