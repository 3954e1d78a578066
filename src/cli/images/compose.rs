//! The images of a compose file (Compose specification, "services" and "Interpolation").

use std::collections::BTreeMap;

use super::yaml::{Node, Value, documents};

/// Defaults within defaults, and how long a text may get.
const DEPTH: usize = 10;
const LONGEST: usize = 4096;

/// Variables, by their names.
pub type Variables = BTreeMap<String, String>;

/// The image of each service that is pulled: one with `build` is built. `Err`: the line and why.
pub fn images(text: &str, variables: &Variables) -> Result<Vec<String>, (usize, String)> {
    let mut found = Vec::new();
    for document in documents(text)? {
        let Some(services) = document.get("services") else {
            return Err((document.line, "there is no `services`; is this a compose file?".to_owned()));
        };
        let Value::Table(services) = &services.value else { continue };
        for (name, service) in services {
            if let Some(image) = image(name, service, variables)? {
                found.push(image);
            }
        }
    }
    Ok(found)
}

fn image(name: &Node, service: &Node, variables: &Variables) -> Result<Option<String>, (usize, String)> {
    let name = name.text().unwrap_or_default();
    // An extension (`x-…`) or what is merged into others is no service.
    if name.starts_with("x-") || name == "<<" || service.get("build").is_some() {
        return Ok(None);
    }
    let Some(image) = service.get("image") else {
        return Err((service.line, format!("the service `{name}` has neither `image` nor `build` here")));
    };
    let Some(text) = image.text() else {
        return Err((image.line, format!("the image of the service `{name}` is no text")));
    };
    interpolated(text, variables)
        .map(Some)
        .map_err(|why| (image.line, format!("the image of the service `{name}`, `{text}`: {why}")))
}

/// `$VAR`, `${VAR}`, `${VAR:-default}`, `${VAR-default}`, `${VAR:?why}`, `${VAR:+other}`, and `$$` for `$`.
/// A variable that is not set is refused: compose would take nothing for it.
fn interpolated(text: &str, variables: &Variables) -> Result<String, String> {
    let mut out = String::new();
    substitute(text, variables, DEPTH, &mut out)?;
    Ok(out)
}

fn substitute(text: &str, variables: &Variables, depth: usize, out: &mut String) -> Result<(), String> {
    if depth == 0 {
        return Err(format!("defaults stand more than {DEPTH} deep within each other"));
    }
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = after.strip_prefix('{') {
            let end = closing(inner).ok_or("a `${` has no `}`")?;
            expand(&inner[..end], variables, depth, out)?;
            rest = &inner[end + 1..];
        } else {
            let end = name_length(after);
            if end == 0 {
                return Err("a `$` stands alone; write `$$` for one".to_owned());
            }
            out.push_str(set(&after[..end], variables).ok_or_else(|| unset(&after[..end]))?);
            rest = &after[end..];
        }
        if out.len() > LONGEST {
            return Err("it gets too long".to_owned());
        }
    }
    out.push_str(rest);
    Ok(())
}

/// What stands between `${` and `}`.
fn expand(inner: &str, variables: &Variables, depth: usize, out: &mut String) -> Result<(), String> {
    let (name, rest) = inner.split_at(name_length(inner));
    let value = set(name, variables);
    // With a colon, an empty value counts as none.
    let (operator, known) = match rest.strip_prefix(':') {
        Some(operator) => (operator, value.filter(|value| !value.is_empty())),
        None => (rest, value),
    };
    let mut operator = operator.chars();
    match (operator.next(), known) {
        _ if name.is_empty() => return Err(format!("`${{{inner}}}` names no variable")),
        (None, _) if rest.is_empty() => out.push_str(value.ok_or_else(|| unset(name))?),
        (Some('-' | '?'), Some(value)) => out.push_str(value),
        (Some('-'), None) => substitute(operator.as_str(), variables, depth - 1, out)?,
        (Some('?'), None) => {
            let why: String = operator.as_str().chars().take(200).collect();
            return Err(format!("{}: {why}", unset(name)));
        }
        (Some('+'), Some(_)) => substitute(operator.as_str(), variables, depth - 1, out)?,
        (Some('+'), None) => {}
        _ => return Err(format!("`${{{inner}}}` is not understood")),
    }
    Ok(())
}

fn set<'a>(name: &str, variables: &'a Variables) -> Option<&'a str> {
    variables.get(name).map(String::as_str)
}

fn unset(name: &str) -> String {
    format!("the variable `{name}` is not set; set it, or give it a default as in `${{{name}:-1.0}}`")
}

fn name_length(text: &str) -> usize {
    let is_part = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    match text.bytes().next() {
        Some(first) if !first.is_ascii_digit() => text.bytes().take_while(|b| is_part(*b)).count(),
        _ => 0,
    }
}

/// Where the `}` stands that ends this.
fn closing(text: &str) -> Option<usize> {
    let (mut open, mut before) = (0, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' if before == b'$' => open += 1,
            b'}' if open == 0 => return Some(at),
            b'}' => open -= 1,
            _ => {}
        }
        before = byte;
    }
    None
}

/// The lines `NAME=value` of an `.env` file, quotes taken off.
pub fn env_file(text: &str) -> Variables {
    let entry = |line: &str| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').filter(|_| !line.starts_with('#'))?;
        let value = value.trim();
        let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.split_once(*quote));
        let value = match quoted {
            Some((value, _)) => value,
            None => value.split(" #").next().unwrap_or_default().trim_end(),
        };
        Some((name.trim().to_owned(), value.to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn variables() -> Variables {
        let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        [("TAG", "1.2"), ("EMPTY", ""), ("A_1", "a")].map(pair).into()
    }

    #[test]
    fn services_that_are_pulled_are_found() {
        let text = "name: x\nx-base: &base {image: 'redis:7', restart: always}\nservices:\n  web:\n    image: nginx:${TAG}\n  \
                    cache: {<<: *base, ports: [1]}\n  own: {build: ., image: own}\n  other:\n    image: \"ghcr.io/org/app\"\n";
        assert_eq!(images(text, &variables()).unwrap(), ["nginx:1.2", "redis:7", "ghcr.io/org/app"]);
        assert!(images("services:\n", &variables()).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_understood_is_refused_by_line_and_name() {
        for (text, line, part) in [
            ("a: 1\n", 1, "no `services`"),
            ("services:\n  web:\n    image: nginx:$X\n", 3, "service `web`"),
            ("services:\n  web:\n    image: nginx:$X\n", 3, "variable `X` is not set"),
            ("services:\n  web: {ports: []}\n", 2, "neither `image` nor `build`"),
            ("services:\n  web:\n    image: [a]\n", 3, "no text"),
            ("services: {\n", 1, "bracket"),
        ] {
            let (at, why) = images(text, &variables()).unwrap_err();
            assert!(at == line && why.contains(part), "{text}: {at}: {why}");
        }
    }

    #[test]
    fn variables_are_put_in_as_compose_does() {
        let put = |text: &str| interpolated(text, &variables());
        for (text, expected) in [
            ("a:$TAG", "a:1.2"),
            ("a:${TAG}-x", "a:1.2-x"),
            ("$A_1/b", "a/b"),
            ("a:${X:-3}", "a:3"),
            ("a:${X-3}", "a:3"),
            ("a:${EMPTY:-3}", "a:3"),
            ("a${EMPTY-3}", "a"),
            ("a:${TAG:-3}", "a:1.2"),
            ("a:${X:-${Y:-${TAG}}}", "a:1.2"),
            ("a:${TAG:?say which}", "a:1.2"),
            ("a${TAG:+:x}${X:+:y}", "a:x"),
            ("a$$b", "a$b"),
            ("${X:-localhost:5000/}a", "localhost:5000/a"),
        ] {
            assert_eq!(put(text).unwrap(), expected, "{text}");
        }
        let deep = "${X:-".repeat(20) + &"}".repeat(20);
        for (text, part) in [
            ("${X}", "`X` is not set"),
            ("${X:?say which}", "say which"),
            ("${TAG", "no `}`"),
            ("$", "stands alone"),
            ("${}", "names no variable"),
            ("${1}", "names no variable"),
            ("${TAG!x}", "not understood"),
            ("${TAG:}", "not understood"),
            (&deep, "10 deep"),
        ] {
            assert!(put(text).unwrap_err().contains(part), "{text}: {:?}", put(text));
        }
    }

    #[test]
    fn an_env_file_is_read() {
        let read = env_file("# x\nTAG=1\nexport B = 'two # 2'\nC=\"c\" # c\nD=d # d\nnothing\nE=\n");
        let pairs: Vec<(&str, &str)> =
            read.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("B", "two # 2"), ("C", "c"), ("D", "d"), ("E", ""), ("TAG", "1")]);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "([${}:?+A-Za-z_0-9ä-]|TAG){0,60}") {
            let _ = interpolated(&text, &variables());
            let _ = env_file(&text);
        }
    }
}
