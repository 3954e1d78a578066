//! The htpasswd file: a name and a bcrypt hash on each line.

use std::collections::HashMap;

/// What a hash costs to make or check, as a power of two. 10 takes some 50 ms.
pub const COST: u32 = 10;
const COST_MIN: u32 = 4;
/// Seconds. More would let one login hold a core for minutes.
pub const COST_MAX: u32 = 16;
/// bcrypt reads no more of a password than this.
const PASSWORD_MAX: usize = 72;

/// Names and hashes, as the file has them.
#[derive(Debug)]
pub struct Entries {
    hashes: HashMap<String, String>,
    /// Checked for names that are not there, so that they take as long as those that are.
    decoy: String,
}

/// A line that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct InvalidLine {
    pub line: usize,
    pub why: String,
}

impl Entries {
    pub fn parse(text: &str) -> Result<Self, InvalidLine> {
        let mut hashes = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let invalid = |why| InvalidLine { line: index + 1, why };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, hash)) = line.split_once(':') else {
                let why = "no colon: each line is `name:hash`; `forebay htpasswd` writes them".to_owned();
                return Err(invalid(why));
            };
            check_name(name).map_err(invalid)?;
            check_hash(name, hash).map_err(invalid)?;
            if hashes.insert(name.to_owned(), hash.to_owned()).is_some() {
                return Err(invalid(format!("`{name}` is there twice; leave one of the two out")));
            }
        }
        let cost = |hash: &String| hash.get(4..6).and_then(|cost| cost.parse().ok()).unwrap_or(COST);
        let decoy = decoy(hashes.values().map(cost).max().unwrap_or(COST));
        Ok(Self { hashes, decoy })
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.hashes.get(name).map(String::as_str)
    }

    /// The name's hash, or one that no password has.
    pub fn hash(&self, name: &str) -> &str {
        self.get(name).unwrap_or(&self.decoy)
    }

    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }
}

/// Of the given cost, and of no password: the odds are those of guessing 184 bits.
fn decoy(cost: u32) -> String {
    format!("$2b${cost:02}${}", ".".repeat(53))
}

/// Whether this is the password. Takes as long as the hash's cost says: call it on a blocking thread.
pub fn verify(password: &str, hash: &str) -> bool {
    bcrypt::verify(password, hash).unwrap_or(false)
}

/// Hashes a new password. Takes as long as [`verify`].
pub fn hash(password: &str, cost: u32) -> Result<String, String> {
    if password.is_empty() {
        return Err("the password is empty".to_owned());
    }
    if password.len() > PASSWORD_MAX {
        return Err(format!(
            "the password has {} bytes, and bcrypt would look at the first {PASSWORD_MAX} only; take a shorter one",
            password.len()
        ));
    }
    if password.contains('\0') {
        return Err("the password holds a NUL byte".to_owned());
    }
    bcrypt::hash(password, cost).map_err(|error| error.to_string())
}

/// The file's text with the user's line replaced, added, or, with no hash, taken out. All other lines
/// stay as they are. None: there was no such user to take out.
pub fn edit(text: &str, name: &str, hash: Option<&str>) -> Option<String> {
    let is_of = |line: &&str| line.trim_start().split_once(':').is_some_and(|(of, _)| of == name);
    let known = text.lines().any(|line| is_of(&line));
    if hash.is_none() && !known {
        return None;
    }
    let (mut lines, mut hash) = (Vec::new(), hash);
    for line in text.lines() {
        if !is_of(&line) {
            lines.push(line.to_owned());
        } else if let Some(hash) = hash.take() {
            lines.push(format!("{name}:{hash}"));
        }
    }
    lines.extend(hash.map(|hash| format!("{name}:{hash}")));
    lines.push(String::new());
    Some(lines.join("\n"))
}

/// What can stand in front of the colon and in a rule.
pub fn check_name(name: &str) -> Result<(), String> {
    let printable = |c: char| !c.is_control() && !c.is_whitespace();
    if name.is_empty() || name.len() > 255 || !name.chars().all(printable) || name.contains([':', '*', ',']) {
        return Err(format!(
            "`{}` is no name of a user: 1 to 255 characters, no blanks, no colon, no comma, no star",
            name.escape_debug().to_string().chars().take(80).collect::<String>()
        ));
    }
    if name == "anonymous" || name.starts_with('#') {
        return Err(format!("`{name}` cannot be a user's name; choose another"));
    }
    Ok(())
}

fn check_hash(name: &str, hash: &str) -> Result<(), String> {
    let remedy = format!("write it anew with `forebay htpasswd FILE {name}`, or `htpasswd -B`");
    let scheme = match hash {
        _ if ["$2a$", "$2b$", "$2y$"].iter().any(|version| hash.starts_with(version)) => None,
        _ if hash.starts_with("$apr1$") || hash.starts_with("$1$") => Some("MD5"),
        _ if hash.starts_with("{SHA}") => Some("SHA-1"),
        _ if hash.starts_with("$5$") || hash.starts_with("$6$") => Some("SHA-crypt"),
        _ if hash.starts_with("$argon2") => Some("Argon2"),
        _ if hash.len() == 13 => Some("crypt"),
        _ => Some("something unknown"),
    };
    if let Some(scheme) = scheme {
        return Err(format!(
            "the password of `{name}` is hashed by {scheme}, and only bcrypt is taken; {remedy}"
        ));
    }
    let rest = hash.get(4..).unwrap_or_default();
    let (cost, body) = rest.split_once('$').unwrap_or_default();
    let in_body = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/');
    if cost.len() != 2 || body.len() != 53 || !body.bytes().all(in_body) {
        return Err(format!("the hash of `{name}` is no bcrypt hash: cut short, or altered; {remedy}"));
    }
    match cost.parse() {
        Ok(COST_MIN..=COST_MAX) => Ok(()),
        _ => Err(format!(
            "the hash of `{name}` has the cost {cost}, and {COST_MIN} to {COST_MAX} is taken; {remedy}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_others_write_is_read() {
        // Made by `htpasswd -nbB`, by Python's bcrypt and by Go's.
        let a = hash("secret", 4).unwrap();
        for version in ["$2a$", "$2b$", "$2y$"] {
            let text = format!("# people\n\nalice:{version}{}\r\n", &a[4..]);
            let entries = Entries::parse(&text).unwrap();
            assert!(verify("secret", entries.hash("alice")), "{version}");
            assert!(!verify("wrong", entries.hash("alice")), "{version}");
            assert!(!verify("secret", entries.hash("bob")), "{version}");
            assert_eq!((entries.len(), entries.get("bob")), (1, None));
        }
        assert!(Entries::parse("").unwrap().is_empty());
    }

    #[test]
    fn the_decoy_costs_what_the_dearest_hash_costs() {
        let entries = Entries::parse(&format!("a:{}\nb:{}\n", hash("x", 4).unwrap(), hash("x", 6).unwrap()));
        let entries = entries.unwrap();
        let decoy: bcrypt::HashParts = entries.hash("nobody").parse().unwrap();
        assert_eq!(decoy.get_cost(), 6);
        assert!(bcrypt::verify("x", entries.hash("nobody")).is_ok(), "it can be computed");
    }

    #[test]
    fn what_is_no_bcrypt_is_refused_by_line_and_name() {
        let good = hash("x", 4).unwrap();
        for (line, part) in [
            ("bob:$apr1$abc$def", "MD5"),
            ("bob:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "SHA-1"),
            ("bob:$6$x$y", "SHA-crypt"),
            ("bob:rqXexS6ZhobKA", "crypt"),
            ("bob:secret", "something unknown"),
            ("bob:$2x$04$aaaa", "something unknown"),
            ("bob:$2b$04$short", "cut short"),
            ("bob", "no colon"),
            (":x", "no name"),
            ("anonymous:x", "cannot be"),
            ("a b:x", "no name"),
            (&format!("bob:{}", good.replace("$04$", "$31$")), "cost 31"),
            (&format!("alice:{good}"), "twice"),
        ] {
            let error = Entries::parse(&format!("alice:{good}\n{line}\n")).unwrap_err();
            assert_eq!(error.line, 2, "{line}");
            assert!(error.why.contains(part), "{line}: {error}");
            assert!(!error.why.contains("secret"), "nothing of the file's secrets: {error}");
        }
    }

    #[test]
    fn editing_leaves_the_other_lines() {
        let text = "# people\nalice:1\n\nbob:2\nalice:3";
        assert_eq!(edit(text, "alice", Some("9")).unwrap(), "# people\nalice:9\n\nbob:2\n");
        assert_eq!(edit(text, "carol", Some("9")).unwrap(), format!("{text}\ncarol:9\n"));
        assert_eq!(edit(text, "bob", None).unwrap(), "# people\nalice:1\n\nalice:3\n");
        assert_eq!(edit(text, "carol", None), None);
        assert_eq!(edit("", "a", Some("1")).unwrap(), "a:1\n");
    }

    #[test]
    fn passwords_that_bcrypt_would_cut_are_not_hashed() {
        assert!(hash(&"x".repeat(72), 4).is_ok());
        assert!(hash(&"x".repeat(73), 4).unwrap_err().contains("72"));
        assert!(hash("", 4).unwrap_err().contains("empty"));
        assert!(hash("a\0b", 4).is_err());
    }

    proptest! {
        #[test]
        fn no_file_panics(text in "[ -~\\n]{0,80}|(a|b):\\$2[abxy]\\$[0-9]{2}\\$[./A-Za-z0-9é]{50,55}") {
            let _ = Entries::parse(&text);
            let _ = edit(&text, "a", Some("h"));
        }
    }
}
