//! YAML as a tree, for files that others wrote. Aliases share what they stand for, so that a small file
//! makes no large tree.

use std::collections::HashMap;
use std::rc::Rc;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle};

/// Values of one file, and how deep they stand within each other.
const NODES: usize = 1_000_000;
const DEPTH: usize = 100;
/// Tables that are looked into for one key: merges of merges could lead on for ever.
const MERGES: usize = 100;

/// A value with the line that it begins on.
#[derive(Debug)]
pub struct Node {
    pub line: usize,
    pub value: Value,
    height: usize,
}

#[derive(Debug)]
pub enum Value {
    Null,
    Text(String),
    List(Vec<Rc<Node>>),
    Table(Vec<(Rc<Node>, Rc<Node>)>),
}

impl Node {
    /// The value of a key, or what a `<<` beside it brings.
    pub fn get(&self, key: &str) -> Option<&Rc<Node>> {
        let mut tables = vec![self];
        for _ in 0..MERGES {
            let table = tables.pop()?;
            if let Some(found) = table.own(key) {
                return Some(found);
            }
            match table.own("<<").map(Rc::as_ref) {
                Some(Node { value: Value::List(merged), .. }) => {
                    tables.extend(merged.iter().rev().map(Rc::as_ref))
                }
                Some(merged) => tables.push(merged),
                None => {}
            }
        }
        None
    }

    fn own(&self, key: &str) -> Option<&Rc<Node>> {
        let Value::Table(entries) = &self.value else { return None };
        entries.iter().find(|(name, _)| name.text() == Some(key)).map(|(_, value)| value)
    }

    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn list(&self) -> &[Rc<Node>] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }
}

/// All documents of a text; why not, and on which line.
pub fn documents(text: &str) -> Result<Vec<Rc<Node>>, (usize, String)> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| (error.marker().line(), error.info().to_owned()))?;
        let line = span.start.line().max(1);
        builder.take(event, line).map_err(|reason| (line, reason.to_owned()))?;
    }
    Ok(builder.documents)
}

/// A list or table that is not at its end yet.
struct Frame {
    line: usize,
    anchor: usize,
    parts: Vec<Rc<Node>>,
    is_table: bool,
}

#[derive(Default)]
struct Builder {
    frames: Vec<Frame>,
    anchors: HashMap<usize, Rc<Node>>,
    nodes: usize,
    documents: Vec<Rc<Node>>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), &'static str> {
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let is_null =
                    style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if is_null { Value::Null } else { Value::Text(text.into_owned()) };
                self.add(Rc::new(Node { line, value, height: 0 }), anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.open(line, anchor, false),
            Event::MappingStart(_, anchor, _) => self.open(line, anchor, true),
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.add(node, 0),
                None => Err("an alias stands within what it is an alias of"),
            },
            _ => Ok(()),
        }
    }

    fn open(&mut self, line: usize, anchor: usize, is_table: bool) -> Result<(), &'static str> {
        check_depth(self.frames.len() + 1)?;
        self.frames.push(Frame { line, anchor, parts: Vec::new(), is_table });
        Ok(())
    }

    fn close(&mut self) -> Result<(), &'static str> {
        let Some(Frame { line, anchor, parts, is_table }) = self.frames.pop() else { return Ok(()) };
        let height = 1 + parts.iter().map(|part| part.height).max().unwrap_or(0);
        let value = if is_table {
            let mut parts = parts.into_iter();
            let pairs = std::iter::from_fn(|| Some((parts.next()?, parts.next()?)));
            Value::Table(pairs.collect())
        } else {
            Value::List(parts)
        };
        self.add(Rc::new(Node { line, value, height }), anchor)
    }

    fn add(&mut self, node: Rc<Node>, anchor: usize) -> Result<(), &'static str> {
        self.nodes += 1;
        if self.nodes > NODES {
            return Err("there are more than a million values");
        }
        // Aliases of aliases are deep too.
        check_depth(self.frames.len() + node.height)?;
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.frames.last_mut() {
            Some(frame) => frame.parts.push(node),
            None => self.documents.push(node),
        }
        Ok(())
    }
}

fn check_depth(depth: usize) -> Result<(), &'static str> {
    if depth > DEPTH { Err("values are nested more than 100 deep") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> String {
        documents(text).unwrap_err().1
    }

    #[test]
    fn documents_aliases_and_merges_are_read() {
        let read = documents("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n---\nc: [~, 'null']\n").unwrap();
        assert_eq!(read.len(), 2);
        let b = read[0].get("b").unwrap();
        assert_eq!((b.get("x").unwrap().text(), b.get("y").unwrap().text()), (Some("1"), Some("3")));
        assert_eq!((b.line, b.get("x").unwrap().line), (2, 1));
        let c = read[1].get("c").unwrap().list();
        assert_eq!((c[0].text(), c[1].text()), (None, Some("null")));
        assert!(documents("").unwrap().is_empty());
    }

    #[test]
    fn bombs_cycles_and_pits_are_refused_or_small() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..45 {
            let alias = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", [alias.as_str(); 9].join(", "));
        }
        // It is shared, not multiplied.
        assert_eq!(documents(&bomb).unwrap().len(), 1);
        let merges = bomb
            .replace("[x, x, x, x, x, x, x, x, x]", "{x: 1}")
            .replace("[*", "{<<: [*")
            .replace("]\n", "]}\n");
        let read = documents(&merges).unwrap();
        assert!(read[0].get("a44").unwrap().get("absent").is_none());
        assert!(read[0].get("a44").unwrap().get("x").is_some());
        let mut deep = "a0: &a0 [x]\n".to_owned();
        for level in 1..5000 {
            deep += &format!("a{level}: &a{level} [*a{}]\n", level - 1);
        }
        assert!(refused(&deep).contains("100 deep"));
        assert!(refused("a: &a [*a]\n").contains("within what it is an alias of"));
        assert!(documents(&"[".repeat(5000)).is_err());
        assert!(documents(&"- ".repeat(5000)).is_err());
        let wide = format!("[{}]", vec!["x"; NODES].join(","));
        assert!(refused(&wide).contains("a million values"));
        assert!(documents(&("[".repeat(DEPTH) + &"]".repeat(DEPTH))).is_ok());
        assert!(refused(&("[".repeat(DEPTH + 1) + &"]".repeat(DEPTH + 1))).contains("deep"));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,200}|([-a-z:&*<{}\\[\\],'\"#!|>% \\n]{0,200})") {
            let _ = documents(&text);
        }
    }
}
