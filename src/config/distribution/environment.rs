//! `REGISTRY_*`: variables that replace parts of the file, as CNCF distribution has it.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::super::error::{ConfigError, Origin, Place};
use super::yaml::{self, Value, Yaml};

pub const PREFIX: &str = "REGISTRY_";
/// Names the file.
pub const FILE: &str = "REGISTRY_CONFIGURATION_PATH";

/// The parts of a configuration.
pub const PARTS: [&str; 15] = [
    "version",
    "log",
    "loglevel",
    "storage",
    "auth",
    "middleware",
    "http",
    "notifications",
    "redis",
    "health",
    "catalog",
    "tags",
    "proxy",
    "validation",
    "policy",
];

/// Variables that name a part of the configuration; of what is not text, only the name.
pub fn variables(all: &BTreeMap<OsString, OsString>) -> impl Iterator<Item = (&str, Option<&str>)> {
    all.iter().filter_map(|(name, value)| {
        let name = name.to_str()?;
        let part = name.strip_prefix(PREFIX)?.split('_').next()?;
        let is_ours = PARTS.iter().any(|known| known.eq_ignore_ascii_case(part))
            // podman's, for its own logins
            && name != "REGISTRY_AUTH_FILE";
        is_ours.then_some((name, value.to_str()))
    })
}

/// Variables that begin as these do and name nothing.
pub fn strangers(all: &BTreeMap<OsString, OsString>) -> impl Iterator<Item = &str> {
    all.keys().filter_map(|name| {
        let name = name.to_str()?;
        let part = name.strip_prefix(PREFIX)?.split('_').next()?;
        // Kubernetes and Docker links set some for a service that is called `registry`.
        let known = ["PORT", "SERVICE"].contains(&part)
            || [FILE, "REGISTRY_AUTH_FILE"].contains(&name)
            || PARTS.iter().any(|known| known.eq_ignore_ascii_case(part));
        (!known).then_some(name)
    })
}

/// Puts every variable over the tree; parents come before their children, for names are sorted.
pub fn overlay(
    root: &mut Yaml,
    all: &BTreeMap<OsString, OsString>,
    warnings: &mut Vec<String>,
) -> Result<(), ConfigError> {
    for name in strangers(all) {
        warnings.push(format!("the environment variable {name} names no part of a registry's configuration"));
    }
    for (name, value) in variables(all) {
        let place = Place::Variable(name.into());
        let path: Vec<String> = name[PREFIX.len()..].split('_').map(str::to_ascii_lowercase).collect();
        let refused = |reason: String| {
            let origin = Origin::Distribution { key: path.join(".").into(), place: place.clone() };
            ConfigError::Distribution { origin, reason }
        };
        let Some(value) = value else { return Err(refused("the variable is not UTF-8 text".into())) };
        if path == ["version"] {
            warnings.push(format!("{name}: the version stands in the file alone; this is ignored"));
            continue;
        }
        let value = yaml::parse(value, |_| place.clone())
            .map_err(|error| refused(format!("the value is not YAML: {}", error.reason)))?;
        set(root, &path, 0, value).map_err(refused)?;
    }
    Ok(())
}

/// `depth` parts of the path have been followed.
fn set(node: &mut Yaml, path: &[String], depth: usize, value: Yaml) -> Result<(), String> {
    let Some(segment) = path.get(depth) else {
        *node = value;
        return Ok(());
    };
    if segment.is_empty() {
        return Err("an underscore too many; no key is empty".into());
    }
    make_container(node, path, depth, &value.place)?;
    match &mut node.value {
        Value::Table(entries) => {
            let key = renamed(path, depth);
            let index = entries.iter().position(|(name, _)| name.eq_ignore_ascii_case(key));
            let index = index.unwrap_or_else(|| {
                entries.push((key.to_owned(), Yaml { place: value.place.clone(), value: Value::Null }));
                entries.len() - 1
            });
            set(&mut entries[index].1, path, depth + 1, value)
        }
        Value::List(items) => {
            let index: usize = segment
                .parse()
                .map_err(|_| format!("`{}` is a list: its items go by number", path[..depth].join(".")))?;
            if index > items.len() {
                return Err(format!("the list has {} items; the next one is number {0}", items.len()));
            }
            if index == items.len() {
                items.push(Yaml { place: value.place.clone(), value: Value::Null });
            }
            set(&mut items[index], path, depth + 1, value)
        }
        Value::Null | Value::Text(_) => Ok(()),
    }
}

/// Lets `node` be what the next part of the path leads into.
fn make_container(node: &mut Yaml, path: &[String], depth: usize, place: &Place) -> Result<(), String> {
    match &node.value {
        Value::List(_) | Value::Table(_) => {}
        Value::Null => {
            let is_index = path[depth].bytes().all(|b| b.is_ascii_digit());
            node.value = if is_index { Value::List(Vec::new()) } else { Value::Table(Vec::new()) };
            node.place = place.clone();
        }
        // `auth: htpasswd` is a provider with nothing said of it.
        Value::Text(name) if depth == 1 && ["auth", "storage"].contains(&path[0].as_str()) => {
            let inner = Yaml { place: node.place.clone(), value: Value::Table(Vec::new()) };
            node.value = Value::Table(vec![(name.clone(), inner)]);
        }
        Value::Text(_) => {
            return Err(format!("`{}` is a single value and has nothing within", path[..depth].join(".")));
        }
    }
    Ok(())
}

/// Where distribution's variables go by other names than the file's keys.
fn renamed(path: &[String], depth: usize) -> &str {
    let key = path[depth].as_str();
    match (path[0].as_str(), depth, key) {
        ("notifications", 1, "eventconfig") => "events",
        ("health", 1, "filecheckers") => "file",
        ("health", 1, "httpcheckers") => "http",
        ("health", 1, "tcpcheckers") => "tcp",
        _ => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlaid(file: &str, variables: &[(&str, &str)]) -> (Result<String, String>, Vec<String>) {
        let mut root = yaml::parse(file, |_| Place::Default).unwrap();
        let all = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let mut warnings = Vec::new();
        let done = overlay(&mut root, &all, &mut warnings);
        (done.map(|()| shown(&root.value)).map_err(|error| error.to_string()), warnings)
    }

    fn shown(value: &Value) -> String {
        match value {
            Value::Null => "~".to_owned(),
            Value::Text(text) => text.clone(),
            Value::List(items) => {
                format!("[{}]", items.iter().map(|item| shown(&item.value)).collect::<Vec<_>>().join(" "))
            }
            Value::Table(entries) => {
                let entries = entries.iter().map(|(key, item)| format!("{key}:{}", shown(&item.value)));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(" "))
            }
        }
    }

    #[test]
    fn variables_replace_parts_of_the_file() {
        for (file, variables, expected) in [
            ("{}", &[("REGISTRY_HTTP_ADDR", ":5001")][..], "{http:{addr::5001}}"),
            (
                "http: {addr: ':5000', secret: x}",
                &[("REGISTRY_HTTP_ADDR", ":1")],
                "{http:{addr::1 secret:x}}",
            ),
            (
                "{}",
                &[("REGISTRY_AUTH", "htpasswd"), ("REGISTRY_AUTH_HTPASSWD_REALM", "r")],
                "{auth:{htpasswd:{realm:r}}}",
            ),
            // The parent comes first, whatever the order.
            (
                "storage: {filesystem: {rootdirectory: /a}}",
                &[
                    ("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "/b"),
                    ("REGISTRY_STORAGE", "{filesystem: {maxthreads: 7}}"),
                ],
                "{storage:{filesystem:{maxthreads:7 rootdirectory:/b}}}",
            ),
            (
                "notifications: {endpoints: [{name: a}]}",
                &[
                    ("REGISTRY_NOTIFICATIONS_ENDPOINTS_0_URL", "http://a"),
                    ("REGISTRY_NOTIFICATIONS_ENDPOINTS_1_NAME", "b"),
                ],
                "{notifications:{endpoints:[{name:a url:http://a} {name:b}]}}",
            ),
            (
                "{}",
                &[("REGISTRY_NOTIFICATIONS_ENDPOINTS_0_NAME", "a")],
                "{notifications:{endpoints:[{name:a}]}}",
            ),
            ("proxy: {remoteurl: x}", &[("REGISTRY_PROXY_REMOTEURL", "")], "{proxy:{remoteurl:~}}"),
            (
                "http: {headers: {X-Thing: [a]}}",
                &[("REGISTRY_HTTP_HEADERS_X-THING", "[b, c]")],
                "{http:{headers:{X-Thing:[b c]}}}",
            ),
            (
                "{}",
                &[("REGISTRY_NOTIFICATIONS_EVENTCONFIG_INCLUDEREFERENCES", "true")],
                "{notifications:{events:{includereferences:true}}}",
            ),
        ] {
            assert_eq!(overlaid(file, variables).0.as_deref(), Ok(expected), "{variables:?}");
        }
    }

    #[test]
    fn what_cannot_be_put_is_named() {
        for (file, name, value, part) in [
            ("{}", "REGISTRY_HTTP_ADDR", "[", "REGISTRY_HTTP_ADDR (http.addr): the value is not YAML"),
            ("http: {addr: x}", "REGISTRY_HTTP_ADDR_PORT", "1", "`http.addr` is a single value"),
            ("http: [a]", "REGISTRY_HTTP_ADDR", "1", "go by number"),
            ("http: [a]", "REGISTRY_HTTP_7", "1", "the next one is number 1"),
            ("{}", "REGISTRY_HTTP__ADDR", "1", "an underscore too many"),
        ] {
            let error = overlaid(file, &[(name, value)]).0.unwrap_err();
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn strangers_are_warned_of_and_the_version_stays() {
        let (done, warnings) = overlaid(
            "version: 0.1",
            &[
                ("REGISTRY_VERSION", "9"),
                ("REGISTRY_HTPP_ADDR", "x"),
                ("REGISTRY_PORT", "tcp://10.0.0.1:5000"),
                ("REGISTRY_SERVICE_HOST", "10.0.0.1"),
                ("REGISTRY_AUTH_FILE", "/auth.json"),
                ("OTHER", "x"),
            ],
        );
        assert_eq!(done.as_deref(), Ok("{version:0.1}"));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("REGISTRY_HTPP_ADDR") && warnings[1].contains("REGISTRY_VERSION"));
    }
}
