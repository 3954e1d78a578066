//! Reads CNCF distribution's tables key by key, and keeps what nobody asked for.

use std::fmt::Display;
use std::time::Duration;

use super::super::error::{ConfigError, Origin, Place};
use super::super::section::nearest;
use super::yaml::{Value, Yaml};

/// A value that was found, with its dotted key.
#[derive(Clone, Debug)]
pub struct Given<T> {
    pub key: String,
    pub place: Place,
    pub value: T,
}

impl<T> Given<T> {
    pub fn origin(&self) -> Origin {
        Origin::Distribution { key: self.key.as_str().into(), place: self.place.clone() }
    }

    /// `reason` ends with what to do instead.
    pub fn error(&self, reason: impl Display) -> ConfigError {
        ConfigError::Distribution { origin: self.origin(), reason: reason.to_string() }
    }

    pub fn warning(&self, text: impl Display) -> String {
        format!("{}: {text}", self.origin())
    }

    pub fn with<U>(self, value: U) -> Given<U> {
        Given { key: self.key, place: self.place, value }
    }

    pub fn read<U, E: Display>(&self, reader: impl FnOnce(&T) -> Result<U, E>) -> Result<U, ConfigError> {
        reader(&self.value).map_err(|error| self.error(error))
    }
}

/// A table on its way to being read. A key without a value is one that is not there.
pub struct Table {
    path: String,
    place: Place,
    entries: Vec<(String, Yaml)>,
    known: Vec<&'static str>,
}

/// A list under a name of the user's choice.
type Named = (String, Given<Vec<String>>);
type Read<T> = Result<Option<Given<T>>, ConfigError>;

impl Table {
    /// What stands at the top.
    pub fn root(yaml: Yaml) -> Result<Self, ConfigError> {
        Self::of(Given { key: String::new(), place: yaml.place, value: yaml.value })
    }

    fn of(given: Given<Value>) -> Result<Self, ConfigError> {
        match given.value {
            Value::Table(entries) => {
                Ok(Self { path: given.key, place: given.place, entries, known: Vec::new() })
            }
            Value::Null => {
                Ok(Self { path: given.key, place: given.place, entries: Vec::new(), known: Vec::new() })
            }
            ref other => Err(given.error(format!("a table is wanted here, not {}", other.name()))),
        }
    }

    fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn take(&mut self, key: &'static str) -> Option<Given<Value>> {
        self.known.push(key);
        let index = self.entries.iter().position(|(name, _)| name == key)?;
        let (_, yaml) = self.entries.remove(index);
        (yaml.value != Value::Null).then(|| Given {
            key: self.key(key),
            place: yaml.place,
            value: yaml.value,
        })
    }

    /// What distribution does unless told otherwise, as if it were written.
    pub fn default<T>(&self, key: &str, value: T) -> Given<T> {
        Given { key: self.key(key), place: Place::Default, value }
    }

    /// Where this table is, for what concerns all of it.
    pub fn given(&self) -> Given<()> {
        Given { key: self.path.clone(), place: self.place.clone(), value: () }
    }

    /// Whether a key is there; one without a value counts.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(name, _)| name == key)
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The names of the keys that are left.
    pub fn names(&self) -> Vec<String> {
        self.entries.iter().map(|(name, _)| name.clone()).collect()
    }

    pub fn text(&mut self, key: &'static str) -> Read<String> {
        self.take(key).map(as_text).transpose().map(|text| text.filter(|given| !given.value.is_empty()))
    }

    /// A text without which its table has no meaning.
    pub fn required(&mut self, key: &'static str) -> Result<Given<String>, ConfigError> {
        let missing = Given { key: self.key(key), place: self.place.clone(), value: () };
        self.text(key)?.ok_or_else(|| missing.error("this is wanted and not there; add it"))
    }

    /// A switch in any of YAML 1.1's spellings.
    pub fn switch(&mut self, key: &'static str) -> Read<bool> {
        let Some(given) = self.text(key)? else { return Ok(None) };
        let value = given.read(|text| match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Ok(true),
            "false" | "no" | "off" | "n" => Ok(false),
            _ => Err("true or false is wanted here"),
        })?;
        Ok(Some(given.with(value)))
    }

    /// A time as Go writes it.
    pub fn time(&mut self, key: &'static str) -> Read<Duration> {
        let Some(given) = self.text(key)? else { return Ok(None) };
        let value = given.read(|text| go_duration(text))?;
        Ok(Some(given.with(value)))
    }

    /// A list of texts; a single one is a list of one.
    pub fn texts(&mut self, key: &'static str) -> Read<Vec<String>> {
        self.take(key).map(as_texts).transpose()
    }

    /// The table under a key; an empty one if there is none.
    pub fn table(&mut self, key: &'static str) -> Result<Table, ConfigError> {
        let nothing = Given { key: self.key(key), place: self.place.clone(), value: Value::Null };
        Self::of(self.take(key).unwrap_or(nothing))
    }

    /// A table that may be a text instead, which names its one key: `auth: htpasswd`.
    pub fn choice(&mut self, key: &'static str) -> Result<Table, ConfigError> {
        let nothing = Given { key: self.key(key), place: self.place.clone(), value: Value::Null };
        let mut given = self.take(key).unwrap_or(nothing);
        if let Value::Text(name) = given.value {
            given.value = Value::Table(vec![(
                name,
                Yaml { place: given.place.clone(), value: Value::Table(Vec::new()) },
            )]);
        }
        Self::of(given)
    }

    pub fn tables(&mut self, key: &'static str) -> Result<Vec<Table>, ConfigError> {
        let Some(given) = self.take(key) else { return Ok(Vec::new()) };
        let Value::List(items) = given.value else {
            return Err(given.error("a list is wanted here"));
        };
        let tables = items.into_iter().enumerate().map(|(index, item)| {
            Self::of(Given { key: format!("{}.{index}", given.key), place: item.place, value: item.value })
        });
        tables.collect()
    }

    /// All entries as lists of texts with names of the user's choice.
    pub fn lists(self) -> Result<Vec<Named>, ConfigError> {
        let path = self.path;
        let lists = self.entries.into_iter().map(|(name, yaml)| {
            let given = Given { key: format!("{path}.{name}"), place: yaml.place, value: yaml.value };
            Ok((name, as_texts(given)?))
        });
        lists.collect()
    }

    /// Takes keys that mean nothing here; tells which of them were there.
    pub fn skip(&mut self, keys: &[&'static str]) -> Vec<Given<()>> {
        keys.iter().filter_map(|key| self.take(key)).map(|given| given.with(())).collect()
    }

    /// Warns of what was not asked for: distribution takes no notice of such keys.
    pub fn finish(self, warnings: &mut Vec<String>) {
        for (name, yaml) in &self.entries {
            let given = Given { key: self.key(name), place: yaml.place.clone(), value: () };
            warnings.push(match nearest(name, &self.known) {
                Some(near) => given.warning(format!("unknown key, ignored; did you mean `{near}`?")),
                None => given.warning("unknown key, ignored"),
            });
        }
    }
}

fn as_text(given: Given<Value>) -> Result<Given<String>, ConfigError> {
    match given.value {
        Value::Text(text) => Ok(Given { key: given.key, place: given.place, value: text }),
        ref other => Err(given.error(format!("a single value is wanted here, not {}", other.name()))),
    }
}

fn as_texts(given: Given<Value>) -> Result<Given<Vec<String>>, ConfigError> {
    let Given { key, place, value } = given;
    let items = match value {
        Value::List(items) => items,
        value => vec![Yaml { place: place.clone(), value }],
    };
    let texts = items.into_iter().map(|item| {
        as_text(Given { key: key.clone(), place: item.place, value: item.value }).map(|given| given.value)
    });
    let value = texts.collect::<Result<_, _>>()?;
    Ok(Given { key, place, value })
}

/// A duration of Go: `1h30m`, `1.5s`, `250ms`. No signs; a bare number has no unit but for `0`.
pub fn go_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time; write it as in `30s`, `168h` or `1h30m`");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    if text.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        seconds += number * unit;
        rest = &rest[end..];
    }
    // Finer than what Forebay's own times are written in.
    let millis = (seconds * 1000.0).round();
    if millis > 1e15 {
        return Err(wrong());
    }
    Ok(Duration::from_millis(millis as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("168h", 604_800_000),
            ("1h30m", 5_400_000),
            ("1.5s", 1500),
            ("250ms", 250),
            ("1m0.5s", 60_500),
            ("1500us", 2),
            (".5h", 1_800_000),
        ] {
            assert_eq!(go_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "60", "-1s", "1d", "h", "1.2.3s", "1h 30m", "99999999999999999999h", "s1"] {
            assert!(go_duration(text).unwrap_err().contains("`30s`"), "{text}");
        }
    }
}
