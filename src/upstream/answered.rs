//! What a token server gives (CNCF distribution, token specification).

use std::time::{Duration, SystemTime};

use http::HeaderValue;
use serde::Deserialize;

const LONGEST_LIFE: Duration = Duration::from_secs(3600);
/// What a token without `expires_in` lives, in seconds.
const DEFAULT_LIFE: u64 = 60;
/// Left to requests under way before a token expires.
const MARGIN: Duration = Duration::from_secs(10);

/// How long a token is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Without a thought…
    pub fresh: Duration,
    /// …and while another one is being fetched.
    pub valid: Duration,
}

#[derive(Deserialize)]
pub struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    /// Seconds: a number, or one in quotes.
    #[serde(default)]
    expires_in: serde_json::Value,
    issued_at: Option<String>,
}

impl TokenAnswer {
    /// The token, whichever name it goes by.
    pub fn token(&self) -> Option<&str> {
        [&self.token, &self.access_token]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .find(|token| !token.is_empty())
    }

    pub fn life(&self, now: SystemTime) -> Life {
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
        let fresh = left.checked_sub(margin).unwrap_or_default().max((left / 2).min(Duration::from_secs(30)));
        Life { fresh, valid: left.saturating_sub(MARGIN).max(fresh) }
    }
}

/// A header value that no debug output shows.
pub fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_used_until_shortly_before_they_expire() {
        let now = SystemTime::now();
        let life = |expires_in: Option<i64>, issued: Option<String>| {
            let expires_in = serde_json::json!(expires_in);
            let life =
                TokenAnswer { token: None, access_token: None, expires_in, issued_at: issued }.life(now);
            (life.fresh.as_secs(), life.valid.as_secs())
        };
        let ago = |seconds| Some(humantime::format_rfc3339(now - Duration::from_secs(seconds)).to_string());
        assert_eq!(life(Some(300), None), (240, 290));
        assert_eq!(life(Some(100), None), (70, 90));
        assert_eq!(life(None, None), (30, 50));
        assert_eq!(life(Some(-5), None), (30, 50));
        assert_eq!(life(Some(10), None), (5, 5));
        assert_eq!(life(Some(0), None), (0, 0));
        assert_eq!(life(Some(86_400 * 365), None), (2880, 3590));
        assert_eq!(life(Some(i64::MAX), ago(5)), (2880, 3590));
        assert_eq!(life(Some(300), ago(200)), (70, 90));
        assert_eq!(life(Some(300), ago(9999)), (240, 290));
        assert_eq!(life(Some(300), Some("2999-01-01T00:00:00Z".into())), (240, 290));
        assert_eq!(life(Some(300), Some("yesterday".into())), (240, 290));
    }

    #[test]
    fn secrets_are_not_shown() {
        assert!(!format!("{:?}", secret("Bearer hidden").unwrap()).contains("hidden"));
        assert!(secret("Bearer a\nb").is_none());
    }
}
