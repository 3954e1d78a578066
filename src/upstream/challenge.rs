//! `WWW-Authenticate` (RFC 9110, section 11.6.1), read as tolerantly as registries write it.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// Longest header line and most challenges that are looked at.
const MAX_LINE: usize = 8 * 1024;
const MAX_CHALLENGES: usize = 16;

/// One way that the server offers to prove who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// In lower case: `bearer`, `basic`.
    pub scheme: String,
    /// Keys in lower case, values unquoted.
    params: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter, the first where it is repeated. May be empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.params.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }
}

/// All challenges of an answer, in order, from all its header lines. What is no challenge is skipped.
pub fn parse(headers: &HeaderMap) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    for line in headers.get_all(WWW_AUTHENTICATE) {
        let line = line.as_bytes();
        parse_line(&String::from_utf8_lossy(&line[..line.len().min(MAX_LINE)]), &mut challenges);
    }
    challenges.truncate(MAX_CHALLENGES);
    challenges
}

/// Whether a scope names a repository. Split from the right, for the name may hold a port:
/// `repository:host:5000/x:pull,push`.
pub fn is_repository_scope(scope: &str) -> bool {
    let head = scope.rsplit_once(':').map(|(head, _actions)| head);
    head.and_then(|head| head.split_once(':')).is_some_and(|(kind, _name)| {
        // `repository(plugin)` is a kind with a class (distribution spec, token scope).
        kind.split('(').next() == Some("repository")
    })
}

fn parse_line(line: &str, challenges: &mut Vec<Challenge>) {
    let mut rest = line;
    // Whether the last parameter was an unquoted scope, whose commas end it too early.
    let mut cut_scope = false;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return;
        }
        let (token, after) = split_token(rest);
        let value = after.trim_start_matches([' ', '\t']).strip_prefix('=');
        if token.is_empty() {
            // A stray quote or sign: no token starts here.
            rest = skip_one(rest);
        } else if let Some(value) = value {
            let value = value.trim_start_matches([' ', '\t']);
            let quoted = value.starts_with('"');
            let (value, after) = if quoted { quoted_string(value) } else { bare_value(value) };
            let key = token.to_ascii_lowercase();
            cut_scope = key == "scope" && !quoted;
            if let Some(challenge) = challenges.last_mut() {
                challenge.params.push((key, value));
            }
            rest = after;
        } else if cut_scope && matches!(token, "pull" | "push" | "delete" | "*") {
            if let Some((_, scope)) = challenges.last_mut().and_then(|c| c.params.last_mut()) {
                scope.push(',');
                scope.push_str(token);
            }
            rest = after;
        } else {
            challenges.push(Challenge { scheme: token.to_ascii_lowercase(), params: Vec::new() });
            cut_scope = false;
            rest = after;
        }
    }
}

/// The longest run of characters that a token may hold, and the rest.
fn split_token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_graphic() && !matches!(c, ',' | '=' | '"');
    text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()))
}

fn skip_one(text: &str) -> &str {
    let mut chars = text.chars();
    chars.next();
    chars.as_str()
}

/// An unquoted value, up to a comma or space: servers put more into it than a token may hold.
fn bare_value(text: &str) -> (String, &str) {
    let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
    (text[..end].to_owned(), &text[end..])
}

/// A quoted string with its escapes undone. One that never ends goes to the end.
fn quoted_string(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = skip_one(text).chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    (value, chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (WWW_AUTHENTICATE, HeaderValue::from_str(line).unwrap())).collect()
    }

    fn one(line: &str) -> Challenge {
        let mut all = parse(&headers(&[line]));
        assert_eq!(all.len(), 1, "{line}: {all:?}");
        all.remove(0)
    }

    #[test]
    fn reads_what_registries_send() {
        let hub = one(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull,push""#,
        );
        assert_eq!(hub.scheme, "bearer");
        assert_eq!(hub.get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(hub.get("scope"), Some("repository:library/alpine:pull,push"));
        let gcr = one(r#"Bearer realm="https://gcr.io/v2/token",service=gcr.io"#);
        assert_eq!(gcr.get("service"), Some("gcr.io"));
        assert_eq!(gcr.get("scope"), None);
        let quay = one(r#"bearer REALM="r", scope=repository:a/b:pull,push,service="quay.io""#);
        assert_eq!(quay.get("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(quay.get("service"), Some("quay.io"));
        let nvcr = one(r#"Bearer realm="https://nvcr.io/proxy_auth",scope="""#);
        assert_eq!(nvcr.get("scope"), Some(""));
        let expired = one(
            r#"Bearer realm = "r" , error="invalid_token", error_description="expired, \"really\"",scope=,service=s"#,
        );
        assert_eq!(expired.get("error_description"), Some(r#"expired, "really""#));
        assert_eq!(expired.get("scope"), Some(""));
        assert_eq!(expired.get("service"), Some("s"));
    }

    #[test]
    fn tells_challenges_apart_on_one_line_and_on_several() {
        let line = r#"Negotiate, Basic realm="a, b", charset="UTF-8", Bearer realm="r",scope="x y""#;
        let schemes = |lines: &[&str]| -> Vec<String> {
            parse(&headers(lines)).into_iter().map(|c| c.scheme).collect()
        };
        assert_eq!(schemes(&[line]), ["negotiate", "basic", "bearer"]);
        assert_eq!(schemes(&["Basic realm=\"a\"", "Bearer realm=\"r\""]), ["basic", "bearer"]);
        assert_eq!(parse(&headers(&[line]))[2].get("scope"), Some("x y"));
        assert!(schemes(&["", "=", "\"", ", ,", "\"x"]).len() <= 2);
        assert_eq!(schemes(&["A, ".repeat(40).as_str()]).len(), MAX_CHALLENGES);
    }

    #[test]
    fn scopes_are_split_from_the_right() {
        for repository in
            ["repository:a/b:pull", "repository:host:5000/x:pull,push", "repository(plugin):a:pull"]
        {
            assert!(is_repository_scope(repository), "{repository}");
        }
        for other in ["aws", "", "registry:catalog:*", "repository", "repository:pull"] {
            assert!(!is_repository_scope(other), "{other}");
        }
    }

    /// Scheme, and parameters with whether they are quoted.
    type Plan = Vec<(String, Vec<(String, String, bool)>)>;

    fn plan() -> impl Strategy<Value = Plan> {
        let param = ("[a-z_]{1,8}", "[ -~]{0,20}", any::<bool>());
        prop::collection::vec(("[A-Z][a-z]{5,9}", prop::collection::vec(param, 1..4)), 1..4)
    }

    fn render((scheme, params): &(String, Vec<(String, String, bool)>)) -> String {
        let params = params.iter().map(|(key, value, quoted)| {
            let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric());
            if *quoted || !plain {
                format!("{key}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
            } else {
                format!("{key}={value}")
            }
        });
        format!("{scheme} {}", params.collect::<Vec<_>>().join(","))
    }

    proptest! {
        #[test]
        fn no_line_panics(line in ".{0,200}", bytes: Vec<u8>) {
            parse_line(&line, &mut Vec::new());
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                parse(&HeaderMap::from_iter([(WWW_AUTHENTICATE, value)]));
            }
        }

        #[test]
        fn well_formed_challenges_round_trip(plan in plan(), one_line: bool) {
            let lines: Vec<String> = plan.iter().map(render).collect();
            let lines = if one_line { vec![lines.join(", ")] } else { lines };
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let expected: Vec<Challenge> = plan.into_iter().map(|(scheme, params)| Challenge {
                scheme: scheme.to_lowercase(),
                params: params.into_iter().map(|(key, value, _)| (key, value)).collect(),
            }).collect();
            prop_assert_eq!(parse(&headers(&lines)), expected);
        }
    }
}
