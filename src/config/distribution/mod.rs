//! CNCF distribution's configuration (`registry:2`, `registry:3`), read as if it were ours: what it
//! says becomes the tree that a `forebay.toml` would, so that one set of checks serves both.
//!
//! What cannot be honoured and matters (who may do what, where data is) is refused by name; what
//! cannot be honoured and does not is warned of, once.

mod access;
mod environment;
mod others;
mod reader;
mod server;
mod storage;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use super::error::{ConfigError, Origin, Place};
use super::section::Found;
use super::tree::{Entries, Kind, Node, put};

use reader::{Given, Table};

pub use environment::{FILE, variables};

/// What a configuration of distribution's says, as ours.
#[derive(Debug)]
pub struct Translated {
    pub entries: Entries,
    /// Whose repositories without a record are: a proxy's are its upstream's, all others are hosted.
    pub adopt: Found<String>,
    pub warnings: Vec<String>,
}

/// `text` is the file's, which is at `path`; `variables` are the process's, all of them.
pub fn translate(
    path: &Path,
    text: &str,
    variables: &BTreeMap<OsString, OsString>,
) -> Result<Translated, ConfigError> {
    let path: Arc<Path> = path.into();
    let place = |line| Place::File { path: path.clone(), line };
    let mut root = yaml::parse(text, place).map_err(|refused| ConfigError::Yaml {
        origin: Origin::File { path: path.clone(), line: refused.line },
        reason: format!("{}{}", refused.reason, hint(&path)),
    })?;
    let mut mapping = Mapping::default();
    check_version(&root, &path)?;
    environment::overlay(&mut root, variables, &mut mapping.warnings)?;
    let mut root = Table::root(root)?;
    root.skip(&["version"]);
    server::log(&mut mapping, &mut root)?;
    server::http(&mut mapping, root.table("http")?)?;
    let proxy = storage::proxy(&mut mapping, root.table("proxy")?)?;
    let has_auth = access::auth(&mut mapping, root.choice("auth")?)?;
    storage::storage(&mut mapping, root.choice("storage")?, proxy.is_some(), has_auth)?;
    others::notifications(&mut mapping, root.table("notifications")?)?;
    others::rest(&mut mapping, &mut root)?;
    root.finish(&mut mapping.warnings);
    let adopt = proxy.unwrap_or_else(|| Given {
        key: "storage".into(),
        place: Place::Default,
        value: "hosted".into(),
    });
    let adopt = Found { key: "adopt".into(), origin: adopt.origin(), value: adopt.value };
    Ok(mapping.finish(&path, adopt))
}

/// Before anything else, for what else there is depends on it.
fn check_version(root: &yaml::Yaml, path: &Arc<Path>) -> Result<(), ConfigError> {
    let wanted = "a configuration of CNCF distribution begins with `version: 0.1`";
    let found = match &root.value {
        yaml::Value::Table(entries) => entries.iter().find(|(key, _)| key == "version"),
        _ => None,
    };
    let Some((_, version)) = found else {
        let origin = Origin::Distribution {
            key: "version".into(),
            place: Place::File { path: path.clone(), line: 1 },
        };
        return Err(ConfigError::Distribution { origin, reason: format!("{wanted}{}", hint(path)) });
    };
    match &version.value {
        yaml::Value::Text(text) if text == "0.1" => Ok(()),
        _ => {
            let origin = Origin::Distribution { key: "version".into(), place: version.place.clone() };
            Err(ConfigError::Distribution { origin, reason: format!("this version is not known; {wanted}") })
        }
    }
}

fn hint(path: &Path) -> &'static str {
    match path.extension().is_some_and(|extension| extension == "toml") {
        true => "; a configuration of Forebay's own is named by --config",
        false => "",
    }
}

/// The tree as it grows, and what is to be told.
#[derive(Default)]
struct Mapping {
    entries: Entries,
    warnings: Vec<String>,
    /// Keys without a counterpart whose absence changes nothing for clients.
    ignored: Vec<String>,
}

impl Mapping {
    fn put<T>(&mut self, key: &[&str], from: &Given<T>, kind: Kind) {
        put(&mut self.entries, key, Node { origin: from.origin(), kind });
    }

    fn text<T>(&mut self, key: &[&str], from: &Given<T>, text: impl Into<String>) {
        self.put(key, from, Kind::Text(text.into()));
    }

    fn switch<T>(&mut self, key: &[&str], from: &Given<T>, switch: bool) {
        self.put(key, from, Kind::Switch(switch));
    }

    fn texts<T>(&mut self, key: &[&str], from: &Given<T>, texts: impl IntoIterator<Item = String>) {
        self.put(key, from, Kind::List(text_nodes(from, texts)));
    }

    fn warn<T>(&mut self, from: &Given<T>, text: &str) {
        self.warnings.push(from.warning(text));
    }

    /// Takes keys that change nothing; they are named together, for usual files have many of them.
    fn ignore(&mut self, table: &mut Table, keys: &[&'static str]) {
        self.ignored.extend(table.skip(keys).into_iter().map(|given| given.key));
    }

    fn finish(mut self, path: &Path, adopt: Found<String>) -> Translated {
        if !self.ignored.is_empty() {
            self.warnings.push(format!(
                "{}: without effect here: {}",
                path.display(),
                self.ignored.join(", ")
            ));
        }
        Translated { entries: self.entries, adopt, warnings: self.warnings }
    }
}

fn text_nodes<T>(from: &Given<T>, texts: impl IntoIterator<Item = String>) -> Vec<Node> {
    texts.into_iter().map(|text| Node { origin: from.origin(), kind: Kind::Text(text) }).collect()
}
