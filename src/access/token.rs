//! What every token has in common: its claims on issuer, audience and time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Header, decode_header};
use serde::{Deserialize, Serialize};

/// Longest token that is looked at.
const TOKEN_MAX: usize = 24 * 1024;

/// The claims that say for whom and when (RFC 7519).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Frame {
    #[serde(default)]
    pub iss: String,
    #[serde(default)]
    pub aud: Audience,
    pub exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
}

/// One, or several.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl Audience {
    fn has(&self, wanted: &str) -> bool {
        match self {
            Self::One(audience) => audience == wanted,
            Self::Several(audiences) => audiences.iter().any(|audience| audience == wanted),
        }
    }
}

/// Whether this could be a JSON Web Token, so that it is read as one and not as a password.
pub fn is_token(text: &str) -> bool {
    text.starts_with("eyJ") && text.bytes().filter(|b| *b == b'.').count() == 2
}

/// The header. Algorithms that are not known, `none` among them, are an error here.
pub fn header(token: &str) -> Result<Header, String> {
    if token.len() > TOKEN_MAX {
        return Err("the token is too long".to_owned());
    }
    let header = decode_header(token)
        .map_err(|_| "what was sent is no token of a kind that is taken here".to_owned())?;
    if header.crit.is_some() {
        return Err("the token has a critical header that is not understood".to_owned());
    }
    Ok(header)
}

/// Who says to have issued the token. Nothing is checked yet.
pub fn issuer(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Issued {
        iss: String,
    }
    let issued = jsonwebtoken::dangerous::insecure_decode_claims::<Issued>(token);
    issued.ok().map(|issued| issued.iss)
}

impl Frame {
    /// `leeway`: what the issuer's clock may be off.
    pub fn check(
        &self,
        issuer: &str,
        audience: &[&str],
        now: SystemTime,
        leeway: Duration,
    ) -> Result<(), String> {
        if self.iss != issuer {
            return Err(format!("the token is not issued by {issuer}"));
        }
        if !audience.iter().any(|wanted| self.aud.has(wanted)) {
            return Err(format!(
                "the token is not meant for {}: its audience is another",
                audience.join(" or ")
            ));
        }
        let (now, leeway) = (seconds(now), leeway.as_secs());
        if self.exp.saturating_add(leeway) <= now {
            return Err("the token has expired".to_owned());
        }
        let begins = self.nbf.max(self.iat).unwrap_or(0);
        if begins > now.saturating_add(leeway) {
            return Err("the token is not valid yet: do the clocks agree?".to_owned());
        }
        Ok(())
    }
}

pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issuer_audience_and_time_all_count() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let frame = Frame {
            iss: "us".to_owned(),
            aud: Audience::One("here".to_owned()),
            exp: 1001,
            nbf: Some(1000),
            iat: Some(1000),
        };
        let check = |frame: &Frame| frame.check("us", &["here", "there"], now, Duration::ZERO);
        assert_eq!(check(&frame), Ok(()));
        let with = |change: fn(&mut Frame)| {
            let mut frame = frame.clone();
            change(&mut frame);
            check(&frame)
        };
        assert!(with(|f| f.aud = Audience::Several(vec!["x".into(), "there".into()])).is_ok());
        for (change, part) in [
            ((|f: &mut Frame| f.iss = "them".into()) as fn(&mut Frame), "not issued by us"),
            (|f| f.iss = String::new(), "not issued by us"),
            (|f| f.aud = Audience::One("elsewhere".into()), "audience"),
            (|f| f.aud = Audience::default(), "audience"),
            (|f| f.exp = 1000, "expired"),
            (|f| f.exp = 0, "expired"),
            (|f| f.nbf = Some(1001), "not valid yet"),
            (|f| f.iat = Some(1001), "not valid yet"),
        ] {
            let error = with(change).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let late = frame.check("us", &["here"], now + Duration::from_secs(30), Duration::from_secs(60));
        assert_eq!(late, Ok(()), "within the leeway");
    }

    #[test]
    fn what_is_no_token_is_told_from_one() {
        assert!(is_token("eyJhbGciOiJub25lIn0.e30."));
        for text in ["secret", "eyJ", "eyJ.a", "a.b.c", "eyJ.a.b.c"] {
            assert!(!is_token(text), "{text}");
        }
        // {"alg":"none"}, and a header that is none.
        assert!(header("eyJhbGciOiJub25lIn0.e30.").is_err());
        assert!(header("eyJ.e30.").is_err());
        assert!(header(&format!("eyJhbGciOiJFUzI1NiJ9.{}.x", "a".repeat(TOKEN_MAX))).is_err());
        assert!(header("eyJhbGciOiJFUzI1NiJ9.e30.x").is_ok());
    }
}
