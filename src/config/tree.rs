//! What was written, in the file, the environment and the flags, as one tree that knows where each
//! value stands. A later layer replaces what an earlier one says.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::error::{ConfigError, Origin};
use crate::upstream::Secret;

/// A value and where it was written.
#[derive(Clone, Debug)]
pub struct Node {
    pub origin: Origin,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Text(String),
    Whole(i128),
    Fraction(f64),
    Switch(bool),
    List(Vec<Node>),
    Table(Entries),
    Date,
    /// Never shown. Only CNCF distribution's configuration holds any.
    Secret(Secret),
}

/// In the order of the file, which decides among freshness rules.
pub type Entries = Vec<(String, Node)>;

impl Kind {
    /// For error messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Whole(_) => "a number",
            Self::Fraction(_) => "a fraction",
            Self::Switch(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Date => "a date",
            Self::Secret(_) => "a secret",
        }
    }
}

/// Reads TOML. `path` is for error messages.
pub fn parse(path: &Path, text: &str) -> Result<Entries, ConfigError> {
    let source = Source { path: path.into(), text };
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        origin: source.origin(error.span().map_or(0, |span| span.start)),
        reason: error.message().replace('\n', ", "),
    })?;
    Ok(source.table(table.into_inner()))
}

struct Source<'a> {
    path: Arc<Path>,
    text: &'a str,
}

impl Source<'_> {
    fn origin(&self, offset: usize) -> Origin {
        let before = self.text.as_bytes().iter().take(offset);
        Origin::File { path: self.path.clone(), line: 1 + before.filter(|b| **b == b'\n').count() }
    }

    fn table(&self, table: DeTable<'_>) -> Entries {
        let mut entries: Vec<(Spanned<DeString<'_>>, Spanned<DeValue<'_>>)> = table.into_iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let entries = entries.into_iter().map(|(key, value)| {
            let origin = self.origin(key.span().start);
            (key.into_inner().into_owned(), Node { origin, kind: self.kind(value.into_inner()) })
        });
        entries.collect()
    }

    fn kind(&self, value: DeValue<'_>) -> Kind {
        match value {
            DeValue::String(text) => Kind::Text(text.into_owned()),
            // A number beyond i128 is beyond every bound that is checked later.
            DeValue::Integer(number) => {
                Kind::Whole(i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX))
            }
            DeValue::Float(number) => Kind::Fraction(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(switch) => Kind::Switch(switch),
            DeValue::Datetime(_) => Kind::Date,
            DeValue::Array(items) => Kind::List(
                items
                    .into_iter()
                    .map(|item| Node {
                        origin: self.origin(item.span().start),
                        kind: self.kind(item.into_inner()),
                    })
                    .collect(),
            ),
            DeValue::Table(table) => Kind::Table(self.table(table)),
        }
    }
}

/// Puts a value at a path, over what is there; tables on the way are made. A path that leads through
/// something other than a table is left alone: reading it reports that.
pub fn put(entries: &mut Entries, path: &[&str], node: Node) {
    let Some((key, rest)) = path.split_first() else { return };
    let found = entries.iter().position(|(name, _)| name == key);
    if rest.is_empty() {
        match found {
            Some(index) => entries[index].1 = node,
            None => entries.push(((*key).into(), node)),
        }
        return;
    }
    let index = found.unwrap_or_else(|| {
        let table = Node { origin: node.origin.clone(), kind: Kind::Table(Vec::new()) };
        entries.push(((*key).into(), table));
        entries.len() - 1
    });
    if let Kind::Table(inner) = &mut entries[index].1.kind {
        put(inner, rest, node);
    }
}

/// Makes an empty table at a path unless something is there already.
pub fn put_table(entries: &mut Entries, path: &[&str], origin: Origin) {
    let Some((key, rest)) = path.split_first() else { return };
    if !entries.iter().any(|(name, _)| name == key) {
        entries.push(((*key).into(), Node { origin: origin.clone(), kind: Kind::Table(Vec::new()) }));
    }
    let inner = entries.iter_mut().find(|(name, _)| name == key);
    if let Some((_, Node { kind: Kind::Table(inner), .. })) = inner {
        put_table(inner, rest, origin);
    }
}

/// Where each value was written, by its dotted key.
pub fn origins(entries: &Entries) -> BTreeMap<String, Origin> {
    fn walk(prefix: &str, entries: &Entries, origins: &mut BTreeMap<String, Origin>) {
        for (key, node) in entries {
            let path = join(prefix, key);
            match &node.kind {
                Kind::Table(inner) => walk(&path, inner, origins),
                _ => {
                    origins.insert(path, node.origin.clone());
                }
            }
        }
    }
    let mut origins = BTreeMap::new();
    walk("", entries, &mut origins);
    origins
}

/// `upstream` and `docker.io` make `upstream."docker.io"`.
pub fn join(prefix: &str, key: &str) -> String {
    let key = quote_key(key);
    if prefix.is_empty() { key } else { format!("{prefix}.{key}") }
}

/// A key as TOML wants it: bare where that is allowed.
pub fn quote_key(key: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !key.is_empty() && key.bytes().all(bare) { key.into() } else { toml::Value::from(key).to_string() }
}
