//! Whose fault a refusal is: the login's, which is no good any more, or nobody's, for what was asked for is
//! not this login's.

use http::header::{AUTHORIZATION, HeaderMap};
use http::{Method, StatusCode};
use reqwest::Response;
use url::Url;

use super::Cause;
use super::client::Hop;
use super::credential::{Login, LoginSecret};
use super::guard::{self, Reach};
use super::login::Opened;
use super::realm::{Grant, Realms, Refusal, Token, basic};
use crate::metrics::UpstreamCall;

/// What is known of a login that was refused for one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It opens something else that is closed without it.
    Good,
    /// It is refused wherever it is shown.
    Bad,
    /// There is nothing that would tell.
    Untold,
}

impl Realms {
    /// What the registry says of a login that it refused for one repository, by 401. It is asked at `/v2/`;
    /// where that is open to all, for what the login opened last. An error: it cannot be asked now.
    pub async fn judge(&self, login: &Login) -> Result<Verdict, Cause> {
        let Some(basic) = basic(login) else { return Ok(Verdict::Bad) };
        let shown = || HeaderMap::from_iter([(AUTHORIZATION, basic.clone())]);
        let status = self.status(Method::GET, &self.api, shown()).await?;
        if is_refusal(status) {
            return Ok(Verdict::Bad);
        }
        let without = || self.status(Method::GET, &self.api, HeaderMap::new());
        if status.is_success() && is_refusal(without().await?) {
            return Ok(Verdict::Good);
        }
        let Some(Opened::Content(url)) = self.logins.opened(login) else { return Ok(Verdict::Untold) };
        let is_bad = is_refusal(self.status(Method::HEAD, &url, shown()).await?);
        Ok(if is_bad { Verdict::Bad } else { Verdict::Good })
    }

    async fn status(&self, method: Method, url: &Url, headers: HeaderMap) -> Result<StatusCode, Cause> {
        let (call, reach) = (UpstreamCall::Token, Reach::Anywhere);
        let response = self.wire.send(Hop { call, method, url, headers, form: None, reach }).await?;
        self.told(response, url).await
    }

    /// A status that tells something.
    async fn told(&self, response: Response, url: &Url) -> Result<StatusCode, Cause> {
        let status = response.status();
        self.wire.reading.start(response).await;
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let place = guard::place(url);
            return Err(Cause::Trouble(format!("whether the login is good, {place} does not say: {status}")));
        }
        Ok(status)
    }

    /// What becomes of a request for a token that was answered 403. Some servers say that of a bad login,
    /// all of a repository that is not this login's. Who may have the repository without a login is given
    /// that. None: the login was bad, and there is another one by now.
    pub async fn forbidden(
        &self,
        grant: &Grant,
        login: &Login,
        refusal: Refusal,
    ) -> Option<Result<Token, Refusal>> {
        let open = self.anonymous(grant).await;
        let _one = self.judging.lock().await;
        // Whoever was refused at the same time has judged it.
        if !self.logins.is_laid_aside(login)
            && self.is_to_blame(grant, login, open.is_ok()).await
            && self.logins.refused(login, &refusal.cause.to_string()).await
        {
            return None;
        }
        Some(open.or(Err(refusal)))
    }

    /// What everybody may have is not refused for its own sake, save to a good login that never had it.
    /// Every other refusal raises a doubt; where there are enough of them, it is found out.
    async fn is_to_blame(&self, grant: &Grant, login: &Login, is_public: bool) -> bool {
        let known = self.logins.opened(login);
        let opened_it = matches!(&known, Some(Opened::Token(opened)) if opened == grant);
        if is_public && (opened_it || !self.logins.is_proven(login)) {
            return true;
        }
        if !self.logins.doubt(login) {
            return false;
        }
        let other = match known {
            Some(Opened::Token(opened)) if opened != *grant => Some(opened),
            _ => None,
        };
        match self.judge_elsewhere(grant, login, other).await {
            Ok(verdict) => verdict == Verdict::Bad,
            // The doubts stay for the next refusal; for one that was refused before, this is that.
            Err(_) => self.logins.is_refused(),
        }
    }

    /// What the token server says of the login when asked for something else: what the login opened, and
    /// nothing at all, as `docker login` does.
    async fn judge_elsewhere(
        &self,
        grant: &Grant,
        login: &Login,
        opened: Option<Grant>,
    ) -> Result<Verdict, Cause> {
        let nothing = Grant { scope: String::new(), ..grant.clone() };
        let mut verdict = Verdict::Untold;
        for other in opened.into_iter().chain([nothing]) {
            let response = self.ask(&other, Some(login)).await?;
            match self.told(response, &other.realm).await? {
                StatusCode::OK => {
                    self.logins.accepted(login, None);
                    return Ok(Verdict::Good);
                }
                status if is_refusal(status) || is_bad_token(status, login) => verdict = Verdict::Bad,
                // Some servers have no answer to an empty scope.
                _ => {}
            }
        }
        Ok(verdict)
    }
}

/// OAuth 2.0 (RFC 6749, section 5.2) has no 401 for this.
fn is_bad_token(status: StatusCode, login: &Login) -> bool {
    status == StatusCode::BAD_REQUEST && matches!(login.secret, LoginSecret::IdentityToken(_))
}

fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}
