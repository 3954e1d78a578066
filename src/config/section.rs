//! Reads a table key by key, each as what it should be, and refuses the keys that nobody asked for.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::error::{ConfigError, Origin};
use super::tree::{Entries, Kind, Node, join};
use crate::upstream::Secret;

/// A value that was found, for checks that come later.
#[derive(Clone, Debug)]
pub struct Found<T> {
    pub key: String,
    pub origin: Origin,
    pub value: T,
}

impl<T> Found<T> {
    /// `reason` ends with what to write instead.
    pub fn error(&self, reason: impl Display) -> ConfigError {
        ConfigError::Value { origin: self.origin.clone(), key: self.key.clone(), reason: reason.to_string() }
    }

    /// The value as something narrower; an error is placed here.
    pub fn read<U, E: Display>(&self, reader: impl FnOnce(&T) -> Result<U, E>) -> Result<U, ConfigError> {
        reader(&self.value).map_err(|error| self.error(error))
    }
}

/// A table on its way to being read.
pub struct Section {
    path: String,
    /// Where it begins; None of one that nobody wrote.
    origin: Option<Origin>,
    entries: Entries,
    known: Vec<&'static str>,
}

type Read<T> = Result<Option<T>, ConfigError>;

impl Section {
    pub fn new(path: impl Into<String>, entries: Entries) -> Self {
        Self { path: path.into(), origin: None, entries, known: Vec::new() }
    }

    fn written(path: String, origin: Origin, entries: Entries) -> Self {
        Self { origin: Some(origin), ..Self::new(path, entries) }
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether anybody wrote it, if only its heading.
    pub fn is_written(&self) -> bool {
        self.origin.is_some()
    }

    /// The dotted key of a value in this table.
    pub fn key(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// A key that has to be in this table and is not.
    pub fn missing(&self, key: &str, reason: &str) -> ConfigError {
        let (key, reason) = (self.key(key), reason.to_owned());
        match self.origin.clone() {
            Some(origin) => ConfigError::Value { origin, key, reason },
            None => ConfigError::Missing { key, reason },
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Found<Kind>> {
        self.known.push(key);
        let index = self.entries.iter().position(|(name, _)| name == key)?;
        let (_, Node { origin, kind }) = self.entries.remove(index);
        Some(Found { key: self.key(key), origin, value: kind })
    }

    pub fn text(&mut self, key: &'static str) -> Read<Found<String>> {
        self.take(key).map(|found| as_text(found, "a text")).transpose()
    }

    /// A list of texts; a single text is a list of one.
    pub fn texts(&mut self, key: &'static str) -> Read<Vec<Found<String>>> {
        Ok(self.list(key)?.map(|found| found.value))
    }

    /// The same, with where the list stands.
    pub fn list(&mut self, key: &'static str) -> Read<Found<Vec<Found<String>>>> {
        let Some(found) = self.take(key) else { return Ok(None) };
        let Found { key, origin, value } = found;
        let items = match value {
            Kind::List(items) => items,
            kind => vec![Node { origin: origin.clone(), kind }],
        };
        let items: Result<_, _> = items
            .into_iter()
            .map(|Node { origin, kind }| {
                as_text(Found { key: key.clone(), origin, value: kind }, "a list of texts")
            })
            .collect();
        Ok(Some(Found { value: items?, key, origin }))
    }

    /// A text that `reader` understands. Bare numbers are shown to it too: it asks for the unit.
    pub fn read<T, E: Display>(
        &mut self,
        key: &'static str,
        reader: impl FnOnce(&str) -> Result<T, E>,
    ) -> Read<T> {
        let Some(mut found) = self.take(key) else { return Ok(None) };
        if let Kind::Whole(number) = found.value {
            found.value = Kind::Text(number.to_string());
        }
        as_text(found, "a text")?.read(|text| reader(text)).map(Some)
    }

    pub fn switch(&mut self, key: &'static str) -> Read<bool> {
        let Some(found) = self.take(key) else { return Ok(None) };
        match found.value {
            Kind::Switch(switch) => Ok(Some(switch)),
            ref kind => {
                Err(found.error(format!("true or false is wanted here, without quotes, not {}", kind.name())))
            }
        }
    }

    /// A whole number within bounds.
    pub fn number<T: TryFrom<i128> + PartialOrd + Display>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
    ) -> Read<T> {
        let Some(found) = self.take(key) else { return Ok(None) };
        let (low, high) = (range.start(), range.end());
        let Kind::Whole(number) = found.value else {
            let kind = found.value.name();
            return Err(
                found.error(format!("a whole number from {low} to {high} is wanted here, not {kind}"))
            );
        };
        match T::try_from(number) {
            Ok(value) if range.contains(&value) => Ok(Some(value)),
            _ => {
                Err(found
                    .error(format!("{number} is out of bounds; write a whole number from {low} to {high}")))
            }
        }
    }

    /// A number from 0 to `high`.
    pub fn share(&mut self, key: &'static str, high: f64) -> Read<f64> {
        let Some(found) = self.take(key) else { return Ok(None) };
        let number = match found.value {
            Kind::Fraction(number) => number,
            Kind::Whole(number) => number as f64,
            _ => f64::NAN,
        };
        if (0.0..=high).contains(&number) {
            return Ok(Some(number));
        }
        Err(found.error(format!("a fraction from 0.0 to {high:?} is wanted here, such as `0.1` for 10 %")))
    }

    /// The table under a key; an empty one if there is none.
    pub fn section(&mut self, key: &'static str) -> Result<Section, ConfigError> {
        let path = self.key(key);
        match self.take(key) {
            None => Ok(Section::new(path, Vec::new())),
            Some(Found { value: Kind::Table(entries), origin, .. }) => {
                Ok(Section::written(path, origin, entries))
            }
            Some(found) => {
                Err(found.error(format!("a table is wanted here: `[{path}]`, not {}", found.value.name())))
            }
        }
    }

    /// The tables of a list: `[[path]]`.
    pub fn sections(&mut self, key: &'static str) -> Result<Vec<Section>, ConfigError> {
        let path = self.key(key);
        let Some(found) = self.take(key) else { return Ok(Vec::new()) };
        let wrong = found.error(format!("tables are wanted here: `[[{path}]]`"));
        let Kind::List(items) = found.value else { return Err(wrong) };
        let items = items.into_iter().map(|item| match item.kind {
            Kind::Table(entries) => Ok(Section::written(path.clone(), item.origin, entries)),
            _ => Err(wrong.clone()),
        });
        items.collect()
    }

    /// All entries as tables with names of the user's choice.
    pub fn named(self) -> Result<Vec<(Found<String>, Section)>, ConfigError> {
        let path = self.path;
        let sections = self.entries.into_iter().map(|(name, Node { origin, kind })| {
            let key = join(&path, &name);
            let found = Found { key: key.clone(), origin: origin.clone(), value: name };
            match kind {
                Kind::Table(entries) => Ok((found, Section::written(key, origin, entries))),
                _ => Err(found.error(format!("a table is wanted here: `[{key}]`, not {}", kind.name()))),
            }
        });
        sections.collect()
    }

    /// All entries as texts with names of the user's choice, in the order of the file.
    pub fn pairs(self) -> Result<Vec<(String, Found<String>)>, ConfigError> {
        let path = self.path;
        let pairs = self.entries.into_iter().map(|(name, Node { origin, kind })| {
            let found = Found { key: join(&path, &name), origin, value: kind };
            Ok((name, as_text(found, "a text")?))
        });
        pairs.collect()
    }

    /// A text that was marked as a secret where it was read, which no file of ours can do.
    pub fn secret(&mut self, key: &'static str) -> Option<Secret> {
        let is_secret = |(name, node): &(String, Node)| name == key && matches!(node.kind, Kind::Secret(_));
        let index = self.entries.iter().position(is_secret)?;
        match self.entries.remove(index).1.kind {
            Kind::Secret(secret) => Some(secret),
            _ => None,
        }
    }

    /// All entries of that kind, as pairs of a table with names of the user's choice.
    pub fn secrets(&mut self) -> Vec<(String, Found<Secret>)> {
        let (secrets, others): (Entries, Entries) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(|(_, node)| matches!(node.kind, Kind::Secret(_)));
        self.entries = others;
        let secrets = secrets.into_iter().filter_map(|(name, Node { origin, kind })| match kind {
            Kind::Secret(value) => {
                Some((name.clone(), Found { key: join(&self.path, &name), origin, value }))
            }
            _ => None,
        });
        secrets.collect()
    }

    /// Refuses a key that people try, with what to write instead.
    pub fn refuse(&mut self, key: &'static str, remedy: &str) -> Result<(), ConfigError> {
        let found = self.take(key);
        self.known.pop();
        found.map_or(Ok(()), |found| Err(found.error(remedy)))
    }

    /// A table that nobody asked for; its value is the names that lead to the innermost one.
    pub fn stray_table(&self) -> Option<Found<String>> {
        fn table(entries: &Entries) -> Option<(&String, &Node, &Entries)> {
            entries.iter().find_map(|(name, node)| match &node.kind {
                Kind::Table(inner) => Some((name, node, inner)),
                _ => None,
            })
        }
        let (name, node, mut inner) = table(&self.entries)?;
        let mut value = name.clone();
        while let Some((next, _, deeper)) = table(inner) {
            value = format!("{value}.{next}");
            inner = deeper;
        }
        Some(Found { key: self.key(name), origin: node.origin.clone(), value })
    }

    /// Refuses what was not asked for.
    pub fn finish(self) -> Result<(), ConfigError> {
        let Some((name, node)) = self.entries.into_iter().next() else { return Ok(()) };
        let place = if self.path.is_empty() { "at the top" } else { &*format!("in [{}]", self.path) };
        let reason = match nearest(&name, &self.known) {
            Some(near) => format!("unknown key; did you mean `{near}`?"),
            None => format!("unknown key; {place} these are known: {}", self.known.join(", ")),
        };
        Err(ConfigError::Value { origin: node.origin, key: join(&self.path, &name), reason })
    }
}

fn as_text(found: Found<Kind>, wanted: &str) -> Result<Found<String>, ConfigError> {
    match found.value {
        Kind::Text(value) => Ok(Found { key: found.key, origin: found.origin, value }),
        ref kind => Err(found.error(format!("{wanted} in quotes is wanted here, not {}", kind.name()))),
    }
}

/// The known name that was probably meant.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let likeness =
        |known: &str| strsim::jaro_winkler(&name.to_ascii_lowercase(), &known.to_ascii_lowercase());
    let best = known.iter().map(|known| (likeness(known), *known)).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(likeness, _)| *likeness > 0.8).map(|(_, known)| known)
}
