//! Whom a rule speaks of.

use std::fmt;

use serde_json::Value;

use super::{Identity, Subject};

/// Text with `*` for any characters, slashes too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wild(String);

impl Wild {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        // `split` gives one part at least.
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            // The leftmost place leaves the most for what follows.
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        true
    }
}

/// `alice`, `ci-*`; `*` for everybody who is logged in; `anonymous` for who is not; `certificate:ci`;
/// of an issuer, `gitlab:NAME` or, by claims, `gitlab:project_path=corp/*,ref=main`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    Anonymous,
    LoggedIn,
    User(Wild),
    Certificate(Wild),
    Named { issuer: String, name: Wild },
    Claiming { issuer: String, claims: Vec<(String, Wild)> },
}

const HOW: &str = "write a user's name, `*` for everybody who is logged in, `anonymous`, `certificate:NAME`, or \
                   `ISSUER:NAME` or `ISSUER:claim=value` with an issuer of [auth.issuer]";

impl Who {
    /// `issuers`: the names of those that are configured.
    pub fn parse(text: &str, issuers: &[&str]) -> Result<Self, String> {
        match text {
            "" => return Err(format!("the name is empty; {HOW}")),
            "anonymous" => return Ok(Self::Anonymous),
            "*" => return Ok(Self::LoggedIn),
            _ => {}
        }
        let Some((kind, rest)) = text.split_once(':') else { return Ok(Self::User(Wild::new(text))) };
        if rest.is_empty() {
            return Err(format!("nothing stands behind the colon of `{text}`; {HOW}"));
        }
        if kind == "certificate" {
            return Ok(Self::Certificate(Wild::new(rest)));
        }
        if !issuers.contains(&kind) {
            let known = if issuers.is_empty() { "none".to_owned() } else { issuers.join(", ") };
            return Err(format!("`{kind}` is no issuer; configured are: {known}; {HOW}"));
        }
        let issuer = kind.to_owned();
        if !rest.contains('=') {
            return Ok(Self::Named { issuer, name: Wild::new(rest) });
        }
        let claim = |pair: &str| {
            let (claim, value) = pair.split_once('=').filter(|(claim, _)| !claim.is_empty())?;
            Some((claim.to_owned(), Wild::new(value)))
        };
        let claims = rest.split(',').map(claim).collect::<Option<Vec<_>>>();
        let claims = claims.ok_or_else(|| {
            format!("`{rest}` is no list of claims; write it as in `{kind}:project_path=corp/*,ref=main`")
        })?;
        Ok(Self::Claiming { issuer, claims })
    }

    pub fn includes(&self, identity: &Identity) -> bool {
        match (self, identity) {
            (Self::Anonymous, identity) => identity.is_anonymous(),
            (Self::LoggedIn, identity) => !identity.is_anonymous(),
            (Self::User(wild), Identity::User(name)) => wild.matches(name),
            (Self::Certificate(wild), Identity::Certificate(name)) => wild.matches(name),
            (Self::Named { issuer, name }, Identity::Subject(subject)) => {
                *issuer == subject.issuer && name.matches(&subject.name)
            }
            (Self::Claiming { issuer, claims }, Identity::Subject(subject)) => {
                *issuer == subject.issuer
                    && claims.iter().all(|(claim, wild)| claims_it(subject, claim, wild))
            }
            _ => false,
        }
    }
}

/// Of a list, one value that fits is enough: group memberships come so.
fn claims_it(subject: &Subject, claim: &str, wild: &Wild) -> bool {
    let fits = |value: &Value| match value {
        Value::String(text) => wild.matches(text),
        Value::Bool(_) | Value::Number(_) => wild.matches(&value.to_string()),
        _ => false,
    };
    match subject.claim(claim) {
        Some(Value::Array(values)) => values.iter().any(fits),
        Some(value) => fits(value),
        None => false,
    }
}

impl fmt::Display for Wild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::LoggedIn => f.write_str("*"),
            Self::User(name) => name.fmt(f),
            Self::Certificate(name) => write!(f, "certificate:{name}"),
            Self::Named { issuer, name } => write!(f, "{issuer}:{name}"),
            Self::Claiming { issuer, claims } => {
                let claims: Vec<String> =
                    claims.iter().map(|(claim, value)| format!("{claim}={value}")).collect();
                write!(f, "{issuer}:{}", claims.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::Arc;

    fn subject(claims: Value) -> Identity {
        let Value::Object(claims) = claims else { panic!("an object") };
        let name = claims["sub"].as_str().unwrap().to_owned();
        Identity::Subject(Arc::new(Subject { issuer: "gitlab".to_owned(), name, claims }))
    }

    fn includes(who: &str, identity: &Identity) -> bool {
        let who = Who::parse(who, &["gitlab", "k8s"]).unwrap();
        assert_eq!(Who::parse(&who.to_string(), &["gitlab", "k8s"]).as_ref(), Ok(&who));
        who.includes(identity)
    }

    #[test]
    fn a_star_is_any_text() {
        let wild = |pattern: &str, text: &str| Wild::new(pattern).matches(text);
        for text in ["", "a", "a/b"] {
            assert!(wild("*", text), "{text}");
        }
        assert!(wild("ci-*", "ci-") && wild("ci-*", "ci-1/2") && !wild("ci-*", "xci-1"));
        assert!(wild("*/app", "a/b/app") && !wild("*/app", "a/apps"));
        assert!(wild("a*b*c", "a1b2b3c") && wild("a*b*c", "abc") && !wild("a*b*c", "acb"));
        assert!(wild("alice", "alice") && !wild("alice", "alice2") && !wild("alice", "alic"));
        assert!(!wild("a*a", "a"), "one letter cannot stand for both ends");
        assert!(wild("*b*", "abc") && !wild("*x*", "abc") && wild("**", "a"));
    }

    #[test]
    fn each_kind_of_identity_is_its_own() {
        let user = Identity::User("ci".into());
        let certificate = Identity::Certificate("ci".into());
        let subject = subject(json!({"sub": "ci"}));
        let all = [&Identity::Anonymous, &user, &certificate, &subject];
        for (who, expected) in [
            ("anonymous", [true, false, false, false]),
            ("*", [false, true, true, true]),
            ("ci", [false, true, false, false]),
            ("c*", [false, true, false, false]),
            ("certificate:ci", [false, false, true, false]),
            ("certificate:*", [false, false, true, false]),
            ("gitlab:ci", [false, false, false, true]),
            ("gitlab:*", [false, false, false, true]),
            ("k8s:ci", [false, false, false, false]),
        ] {
            assert_eq!(all.map(|identity| includes(who, identity)), expected, "{who}");
        }
    }

    #[test]
    fn claims_are_compared_one_by_one() {
        let identity = subject(json!({
            "sub": "project_path:corp/app:ref:main", "project_path": "corp/app", "ref_protected": true, "user_id": 7,
            "groups": ["dev", "ops"], "kubernetes.io": {"namespace": "build"}, "nothing": null,
        }));
        for yes in [
            "gitlab:project_path=corp/app",
            "gitlab:project_path=corp/*,ref_protected=true",
            "gitlab:user_id=7",
            "gitlab:groups=ops",
            "gitlab:kubernetes.io/namespace=build",
        ] {
            assert!(includes(yes, &identity), "{yes}");
        }
        for no in [
            "gitlab:project_path=corp",
            "gitlab:project_path=corp/app,ref_protected=false",
            "gitlab:groups=admin",
            "gitlab:absent=*",
            "gitlab:nothing=*",
            "gitlab:kubernetes.io=*",
            "k8s:project_path=corp/app",
        ] {
            assert!(!includes(no, &identity), "{no}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_remedy() {
        for (text, part) in [
            ("", "empty"),
            ("github:x", "configured are: gitlab"),
            ("certificate:", "behind the colon"),
            ("gitlab:", "behind the colon"),
            ("gitlab:=x", "project_path=corp/*"),
            ("gitlab:a=b,c", "project_path=corp/*"),
        ] {
            let error = Who::parse(text, &["gitlab"]).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_made_of_a_text_matches_it(text in "[a-c/]{0,8}", cut in 0usize..9, drop in 0usize..4) {
            let cut = cut.min(text.len());
            let end = (cut + drop).min(text.len());
            let pattern = format!("{}*{}", &text[..cut], &text[end..]);
            prop_assert!(Wild::new(pattern).matches(&text));
            prop_assert!(Wild::new(text.clone()).matches(&text));
        }
    }
}
