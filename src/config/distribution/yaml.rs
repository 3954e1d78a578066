//! YAML as a tree whose values know where they stand.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle};

use super::super::error::Place;

/// More than any configuration has, aliases counted as what they stand for.
const NODES: usize = 10_000;
const DEPTH: usize = 64;

#[derive(Clone, Debug, PartialEq)]
pub struct Yaml {
    pub place: Place,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    /// Numbers and switches too: what a text means is for who reads it.
    Text(String),
    List(Vec<Yaml>),
    Table(Vec<(String, Yaml)>),
}

impl Value {
    /// For error messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Text(_) => "a single value",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// Why a text is not taken, and on which line.
#[derive(Debug, PartialEq)]
pub struct Refused {
    pub line: usize,
    pub reason: String,
}

/// Reads one document. `place` says where a line is.
pub fn parse(text: &str, place: impl Fn(usize) -> Place) -> Result<Yaml, Refused> {
    let mut builder = Builder { place, frames: Vec::new(), anchors: HashMap::new(), nodes: 0, root: None };
    for event in Parser::new_from_str(text) {
        let (event, span) = event
            .map_err(|error| Refused { line: error.marker().line(), reason: error.info().to_owned() })?;
        let line = span.start.line().max(1);
        builder.take(event, line).map_err(|reason| Refused { line, reason })?;
    }
    let empty = Yaml { place: (builder.place)(1), value: Value::Null };
    Ok(builder.root.map_or(empty, |built| built.yaml))
}

/// A whole value, and how deep it goes.
#[derive(Clone)]
struct Built {
    yaml: Yaml,
    nodes: usize,
    height: usize,
}

/// A list or table that is not at its end yet.
struct Frame {
    line: usize,
    anchor: usize,
    /// Keys of a table and their values, or a list's items, as they come.
    parts: Vec<(usize, Built)>,
    is_table: bool,
}

struct Builder<F> {
    place: F,
    frames: Vec<Frame>,
    anchors: HashMap<usize, Built>,
    nodes: usize,
    root: Option<Built>,
}

impl<F: Fn(usize) -> Place> Builder<F> {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let is_null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if is_null { Value::Null } else { Value::Text(text.into_owned()) };
                let yaml = Yaml { place: (self.place)(line), value };
                self.add(Built { yaml, nodes: 1, height: 0 }, line, anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.open(line, anchor, false),
            Event::MappingStart(_, anchor, _) => self.open(line, anchor, true),
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(built) => self.add(built, line, 0),
                None => Err("an alias stands within what it is an alias of".into()),
            },
            Event::DocumentStart(..) if self.root.is_some() => {
                Err("a second document begins here; keep one in this file".into())
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, line: usize, anchor: usize, is_table: bool) -> Result<(), String> {
        self.check_depth(self.frames.len() + 1)?;
        self.frames.push(Frame { line, anchor, parts: Vec::new(), is_table });
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        let Some(Frame { line, anchor, parts, is_table }) = self.frames.pop() else { return Ok(()) };
        let nodes = 1 + parts.iter().map(|(_, part)| part.nodes).sum::<usize>();
        let height = 1 + parts.iter().map(|(_, part)| part.height).max().unwrap_or(0);
        let value = if is_table {
            Value::Table(table(parts)?)
        } else {
            Value::List(parts.into_iter().map(|(_, part)| part.yaml).collect())
        };
        // Its parts were counted as they came.
        self.nodes = self.nodes.saturating_sub(nodes - 1);
        self.add(Built { yaml: Yaml { place: (self.place)(line), value }, nodes, height }, line, anchor)
    }

    fn add(&mut self, built: Built, line: usize, anchor: usize) -> Result<(), String> {
        self.nodes += built.nodes;
        if self.nodes > NODES {
            return Err(format!("there are more than {NODES} values, or aliases stand for that many"));
        }
        self.check_depth(self.frames.len() + built.height)?;
        if anchor != 0 {
            self.anchors.insert(anchor, built.clone());
        }
        match self.frames.last_mut() {
            Some(frame) => frame.parts.push((line, built)),
            None => self.root = Some(built),
        }
        Ok(())
    }

    fn check_depth(&self, depth: usize) -> Result<(), String> {
        let reason = || format!("values are nested more than {DEPTH} deep");
        if depth > DEPTH { Err(reason()) } else { Ok(()) }
    }
}

/// Pairs keys with values, takes in what `<<` names, and refuses a key that is there twice.
fn table(parts: Vec<(usize, Built)>) -> Result<Vec<(String, Yaml)>, String> {
    let mut entries: Vec<(String, Yaml)> = Vec::new();
    let mut merged = Vec::new();
    let mut parts = parts.into_iter();
    while let (Some((line, key)), Some((_, value))) = (parts.next(), parts.next()) {
        let key = match key.yaml.value {
            Value::Text(key) => key,
            Value::Null => String::new(),
            Value::List(_) | Value::Table(_) => return Err(format!("line {line}: a key is a single text")),
        };
        if key == "<<" {
            merged.push(value.yaml);
        } else if entries.iter().any(|(other, _)| *other == key) {
            return Err(format!("line {line}: `{}` is there twice; leave one out", shortened(&key)));
        } else {
            entries.push((key, value.yaml));
        }
    }
    for Yaml { value, .. } in merged {
        let tables = match value {
            Value::List(items) => items.into_iter().map(|item| item.value).collect(),
            value => vec![value],
        };
        for table in tables {
            let Value::Table(table) = table else { return Err("`<<` takes in tables only".into()) };
            for (key, value) in table {
                if !entries.iter().any(|(other, _)| *other == key) {
                    entries.push((key, value));
                }
            }
        }
    }
    Ok(entries)
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Yaml, Refused> {
        parse(text, |line| Place::File { path: std::path::Path::new("f").into(), line })
    }

    /// The tree as JSON, without places.
    fn shown(yaml: &Yaml) -> serde_json::Value {
        match &yaml.value {
            Value::Null => serde_json::Value::Null,
            Value::Text(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(shown).collect(),
            Value::Table(entries) => entries.iter().map(|(key, value)| (key.clone(), shown(value))).collect(),
        }
    }

    fn refused(text: &str) -> (usize, String) {
        let refused = read(text).unwrap_err();
        (refused.line, refused.reason)
    }

    #[test]
    fn values_keep_their_spelling_and_line() {
        let yaml = read("version: 0.1\na:\n  - 007\n  - 'null'\n  - ~\nb: {c: yes, d: \"x\"}\n").unwrap();
        let expected =
            serde_json::json!({"version": "0.1", "a": ["007", "null", null], "b": {"c": "yes", "d": "x"}});
        assert_eq!(shown(&yaml), expected);
        let Value::Table(entries) = yaml.value else { panic!("a table") };
        let line = |yaml: &Yaml| match yaml.place {
            Place::File { line, .. } => line,
            _ => 0,
        };
        assert_eq!(entries.iter().map(|(_, value)| line(value)).collect::<Vec<_>>(), [1, 3, 6]);
        assert_eq!(read("").unwrap().value, Value::Null);
    }

    #[test]
    fn aliases_and_merges_are_taken() {
        let yaml = read("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\nc: *a\n").unwrap();
        let expected = serde_json::json!({"a": {"x": "1", "y": "2"}, "b": {"y": "3", "x": "1"}, "c": {"x": "1", "y": "2"}});
        assert_eq!(shown(&yaml), expected);
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_line() {
        let (line, reason) = refused("a: 1\nb:\n  c: 1\n  c: 2\n");
        assert!(reason.contains("line 4: `c` is there twice"), "{line} {reason}");
        assert_eq!(refused("a: 1\n b: [\n").0, 2);
        assert!(refused("a: 1\n---\nb: 2\n").1.contains("second document"));
        assert!(refused("a: *b\n").0 == 1);
        assert!(refused("[a, b]: 1\n").1.contains("a key is a single text"));
        assert!(refused("a: &a [*a]\n").0 == 1);
    }

    #[test]
    fn bombs_do_not_go_off() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let alias = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", [alias.as_str(); 9].join(", "));
        }
        assert!(refused(&bomb).1.contains("more than 10000 values"));
        let mut deep = "a0: &a0 [x]\n".to_owned();
        for level in 1..100 {
            deep += &format!("a{level}: &a{level} [*a{}]\n", level - 1);
        }
        assert!(refused(&deep).1.contains("64 deep"));
        assert!(read(&"[".repeat(5000)).is_err());
        assert!(read(&"- ".repeat(5000)).is_err());
        let wide = |values: usize| format!("[{}]", vec!["x"; values].join(","));
        assert!(read(&wide(NODES - 1)).is_ok());
        assert!(refused(&wide(NODES)).1.contains("more than"));
        assert!(read(&("[".repeat(DEPTH) + &"]".repeat(DEPTH))).is_ok());
        assert!(refused(&("[".repeat(DEPTH + 1) + &"]".repeat(DEPTH + 1))).1.contains("deep"));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,200}|([-a-z:&*<{}\\[\\],'\"#!|>% \\n]{0,200})") {
            let _ = read(&text);
        }
    }
}
