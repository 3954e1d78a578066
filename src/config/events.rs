//! The tables `[[events.endpoint]]`.

use std::path::PathBuf;

use http::{HeaderName, HeaderValue, header};
use url::Url;

use crate::events::{Action, EndpointOptions, Options};

use super::error::ConfigError;
use super::section::Section;
use super::{defaults, files, units, upstreams};

/// Headers whose values give access to something.
const SECRET: [HeaderName; 3] = [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE];
/// Headers that are the sender's own business.
const OWN: [HeaderName; 6] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

pub fn read(mut section: Section, warnings: &mut Vec<String>) -> Result<Options, ConfigError> {
    let mut endpoints: Vec<EndpointOptions> = Vec::new();
    for mut table in section.sections("endpoint")? {
        let Some(name) = table.text("name")? else {
            return Err(table.missing("name", "logs and metrics need a name for it; add `name = \"ci\"`"));
        };
        name.read(|text| check_name(text))?;
        if endpoints.iter().any(|other| other.name == name.value) {
            return Err(name.error(format!("`{}` is there twice; choose another name", name.value)));
        }
        endpoints.push(endpoint(name.value, table, warnings)?);
    }
    section.finish()?;
    Ok(Options { endpoints })
}

fn endpoint(
    name: String,
    mut table: Section,
    warnings: &mut Vec<String>,
) -> Result<EndpointOptions, ConfigError> {
    let Some(url) = table.text("url")? else {
        return Err(table.missing("url", "where to? Add `url = \"https://ci.example/hooks/images\"`"));
    };
    let url = url.read(|text| address(text))?;
    let headers = headers(table.section("headers")?)?;
    let header_files = header_files(table.section("header_files")?, warnings)?;
    let has_secrets = !header_files.is_empty() || headers.iter().any(|(_, value)| value.is_sensitive());
    if has_secrets && url.scheme() == "http" && !upstreams::is_loopback(&url) {
        let path = table.path();
        warnings.push(format!(
            "{path}: the secret headers for `{name}` cross the network in the clear; use https"
        ));
    }
    let actions = match table.texts("actions")? {
        None => Action::ALL.to_vec(),
        Some(texts) => texts.iter().map(|found| found.read(|text| action(text))).collect::<Result<_, _>>()?,
    };
    let ignored = table.texts("ignore_media_types")?.unwrap_or_default();
    let options = EndpointOptions {
        name,
        url,
        headers,
        header_files,
        timeout: table.read("timeout", units::timeout)?.unwrap_or(defaults::EVENT_TIMEOUT),
        backoff: table.read("backoff", units::timeout)?.unwrap_or(defaults::EVENT_BACKOFF),
        attempts: table.number("attempts", 1..=1000)?.unwrap_or(defaults::EVENT_ATTEMPTS),
        queue: table.number("queue", 1..=100_000)?.unwrap_or(defaults::EVENT_QUEUE),
        actions,
        ignore_media_types: ignored.into_iter().map(|found| found.value).collect(),
    };
    table.finish()?;
    Ok(options)
}

/// It becomes the value of a label.
fn check_name(text: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        return Ok(());
    }
    Err("a name has 1 to 64 letters, digits, `-`, `_` or `.`; write it as in `ci`".into())
}

/// Not shown in errors: it may hold a secret.
fn address(text: &str) -> Result<Url, String> {
    let example = "write it as in `https://ci.example/hooks/images`";
    let url = Url::parse(text).map_err(|error| format!("this is no URL ({error}); {example}"))?;
    if !matches!(url.scheme(), "http" | "https") || !text.contains("://") {
        return Err(format!("the URL starts with neither https:// nor http://; {example}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "the URL holds a user or a password; write an Authorization header into a file and name that in \
                    `header_files`"
                .into(),
        );
    }
    Ok(url)
}

fn action(text: &str) -> Result<Action, String> {
    let found = Action::ALL.into_iter().find(|action| action.text() == text);
    found.ok_or_else(|| format!("`{text}` is no action; write `push`, `pull`, `delete` or `mount`"))
}

fn headers(mut section: Section) -> Result<Vec<(HeaderName, HeaderValue)>, ConfigError> {
    let secrets = section.secrets().into_iter().map(|(name, found)| {
        found.read(|secret| {
            let value = HeaderValue::from_str(secret.reveal()).ok().filter(|value| value.to_str().is_ok());
            let mut value = value.ok_or("this is no header value; write one line of ASCII text")?;
            value.set_sensitive(true);
            Ok::<_, String>((header_name(&name)?, value))
        })
    });
    let mut all = secrets.collect::<Result<Vec<_>, _>>()?;
    let pairs = section.pairs()?.into_iter().map(|(name, found)| {
        found.read(|text| {
            let name = header_name(&name)?;
            if SECRET.contains(&name) {
                return Err(
                    "secrets do not belong into this file; write the value into a file of its own and name that in \
                     `header_files`"
                        .to_owned(),
                );
            }
            let value = HeaderValue::try_from(text).ok().filter(|value| value.to_str().is_ok());
            Ok((name, value.ok_or("this is no header value; write one line of ASCII text")?))
        })
    });
    all.extend(pairs.collect::<Result<Vec<_>, _>>()?);
    Ok(all)
}

fn header_files(
    section: Section,
    warnings: &mut Vec<String>,
) -> Result<Vec<(HeaderName, PathBuf)>, ConfigError> {
    let mut read = Vec::new();
    for (name, found) in section.pairs()? {
        let (name, file) = found.read(|path| Ok::<_, String>((header_name(&name)?, files::secret(path)?)))?;
        warnings.extend(files::exposed(&file));
        read.push((name, file));
    }
    Ok(read)
}

fn header_name(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::try_from(text)
        .map_err(|_| format!("`{text}` is no header name; write it as in `X-Token`"))?;
    if OWN.contains(&name) {
        return Err(format!("`{name}` is set by Forebay itself; leave it out"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_checked() {
        for good in ["ci", "a.b-c_D9"] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in ["", "a b", "a\"b", &"a".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(address("https://ci.example/x?token=1").is_ok());
        for bad in ["ci.example", "ftp://a/", "http:/a", "https://u:p@a/", "https://u@a/"] {
            let error = address(bad).unwrap_err();
            assert!(!error.contains("u:p"), "{error}");
        }
        assert!(header_name("Content-Length").is_err() && header_name("a b").is_err());
        assert_eq!(action("delete"), Ok(Action::Delete));
        assert!(action("pul").unwrap_err().contains("`pull`"));
    }
}
