//! YAML as a tree that knows its lines, within bounds: no aliases (a few of them can mean gigabytes), no tags, no key
//! twice.
//!
//! A scalar without quotes keeps its text; what it is (a number, a switch, nothing) is decided where it is used, by the
//! rules of YAML 1.1, which are Kubernetes'.

use granit_parser::{Event, Options, Parser, ScalarStyle};
use std::fmt::Write;

/// Longest text that is read, in bytes: some ten thousand Services.
pub const MAX_TEXT: usize = 16 << 20;
/// Most things in each other.
const MAX_DEPTH: usize = 32;
/// Most scalars, lists and maps of one text.
const MAX_NODES: usize = 1 << 20;
/// Most keys of one map.
const MAX_KEYS: usize = 1024;
/// Most of a word that a message repeats, in characters.
const QUOTED: usize = 40;

/// Something in a YAML text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// The line it begins at, from 1.
    pub line: usize,
    /// What it is.
    pub value: Value,
}

/// What can stand in a YAML text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// A scalar without quotes.
    Plain(String),
    /// A scalar in quotes, or a block of text.
    Quoted(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the text; no key stands in it twice.
    Map(Vec<(String, Node)>),
}

/// The text is no YAML, or more than podwire reads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct YamlError {
    /// The line, from 1; 0 means the text as a whole.
    pub line: usize,
    /// The sentence.
    pub what: String,
}

fn error(line: usize, what: impl Into<String>) -> YamlError {
    YamlError {
        line,
        what: what.into(),
    }
}

/// The documents of a text, in order; those that say nothing are left out, and counted in their numbers (from 1).
///
/// # Errors
/// The first mistake of syntax.
pub fn documents(text: &str) -> Result<Vec<(usize, Node)>, YamlError> {
    if text.len() > MAX_TEXT {
        let what = format!(
            "{} bytes are too many (split it into files of {} MiB at most)",
            text.len(),
            MAX_TEXT >> 20
        );
        return Err(error(0, what));
    }
    let mut options = Options::default();
    options.flow_nesting_limit = MAX_DEPTH;
    options.block_nesting_limit = MAX_DEPTH;
    let mut building = Building::default();
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = match next {
            Ok(next) => next,
            Err(e) => return Err(error(e.marker().line().max(1), format!("not YAML: {}", e.info()))),
        };
        building.take(event, span.start.line().max(1))?;
    }
    Ok(building.documents)
}

/// What is being put together.
#[derive(Default)]
struct Building {
    documents: Vec<(usize, Node)>,
    document: usize,
    nodes: usize,
    open: Vec<Open>,
}

/// A list or a map whose end has not come.
struct Open {
    node: Node,
    /// The key that waits for its value.
    key: Option<String>,
}

impl Building {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), YamlError> {
        match event {
            Event::DocumentStart(..) => self.document += 1,
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                return Err(error(
                    line,
                    "an alias (*) stands here (write out what it stands for)",
                ));
            }
            Event::Scalar(text, style, _, tag) => {
                self.untagged(tag.is_some(), line)?;
                let value = match style {
                    ScalarStyle::Plain => Value::Plain(text.into_owned()),
                    _ => Value::Quoted(text.into_owned()),
                };
                self.put(Node { line, value })?;
            }
            Event::SequenceStart(_, _, tag) => {
                self.untagged(tag.is_some(), line)?;
                self.begin(line, Value::List(Vec::new()))?;
            }
            Event::MappingStart(_, _, tag) => {
                self.untagged(tag.is_some(), line)?;
                self.begin(line, Value::Map(Vec::new()))?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    self.put(open.node)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn untagged(&self, tagged: bool, line: usize) -> Result<(), YamlError> {
        match tagged {
            true => Err(error(line, "a tag (!) stands here (leave it out)")),
            false => Ok(()),
        }
    }

    fn begin(&mut self, line: usize, value: Value) -> Result<(), YamlError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(error(
                line,
                format!("more than {MAX_DEPTH} things are in each other"),
            ));
        }
        if matches!(
            self.open.last(),
            Some(Open {
                node: Node {
                    value: Value::Map(_),
                    ..
                },
                key: None
            })
        ) {
            return Err(error(line, "a key is a list or a map (keys are words)"));
        }
        self.open.push(Open {
            node: Node { line, value },
            key: None,
        });
        Ok(())
    }

    fn put(&mut self, node: Node) -> Result<(), YamlError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(error(
                node.line,
                format!("there are more than {MAX_NODES} things (split the file)"),
            ));
        }
        let Some(open) = self.open.last_mut() else {
            if !node.is_null() {
                self.documents.push((self.document, node));
            }
            return Ok(());
        };
        match (&mut open.node.value, open.key.take()) {
            (Value::Map(map), Some(key)) => map.push((key, node)),
            (Value::Map(map), None) => {
                let line = node.line;
                let (Value::Plain(key) | Value::Quoted(key)) = node.value else {
                    return Err(error(line, "a key is a list or a map (keys are words)"));
                };
                if map.len() >= MAX_KEYS {
                    return Err(error(
                        line,
                        format!("a map has more than {MAX_KEYS} keys (leave some out)"),
                    ));
                }
                if map.iter().any(|(k, _)| *k == key) {
                    return Err(error(
                        line,
                        format!("{} stands here twice (leave one out)", quoted(&key)),
                    ));
                }
                open.key = Some(key);
            }
            (Value::List(list), _) => list.push(node),
            // Scalars are never open.
            _ => {}
        }
        Ok(())
    }
}

impl Node {
    /// Whether it says nothing.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Plain(s) if matches!(s.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// Its text.
    ///
    /// # Errors
    /// The sentence that it is none; of what YAML takes for a number or a switch, too.
    pub fn text(&self) -> Result<&str, String> {
        match &self.value {
            Value::Quoted(s) => Ok(s),
            Value::Plain(s) if !is_number(s) && !is_switch(s) && !self.is_null() => Ok(s),
            Value::Plain(s) => Err(format!(
                "{} is no text to YAML (write it in quotes: \"{}\")",
                quoted(s),
                plain(s)
            )),
            _ => Err(format!("{} stands here (text is wanted)", self.kind())),
        }
    }

    /// Its number.
    ///
    /// # Errors
    /// The sentence that it is none, or out of range.
    pub fn number(&self, least: u32, most: u32) -> Result<u32, String> {
        match &self.value {
            Value::Plain(s) if is_number(s) => match s.parse::<u32>() {
                // Not everybody takes 010 for ten, and as JSON it would be a text.
                Ok(n) if n.to_string() != *s => Err(format!("{} is not plain (write {n})", quoted(s))),
                Ok(n) if (least..=most).contains(&n) => Ok(n),
                _ => Err(format!("{} is out of range (use {least} to {most})", quoted(s))),
            },
            Value::Plain(s) | Value::Quoted(s) => Err(format!(
                "{} is no number (use {least} to {most}, without quotes)",
                quoted(s)
            )),
            _ => Err(format!("{} stands here (a number is wanted)", self.kind())),
        }
    }

    /// Whether it is on.
    ///
    /// # Errors
    /// The sentence that it is no switch.
    pub fn switch(&self) -> Result<bool, String> {
        match &self.value {
            Value::Plain(s) if s == "true" => Ok(true),
            Value::Plain(s) if s == "false" => Ok(false),
            Value::Plain(s) | Value::Quoted(s) => Err(format!(
                "{} is neither true nor false (write one, without quotes)",
                quoted(s)
            )),
            _ => Err(format!("{} stands here (true or false is wanted)", self.kind())),
        }
    }

    /// Its members.
    ///
    /// # Errors
    /// The sentence that it is no list.
    pub fn list(&self) -> Result<&[Node], String> {
        match &self.value {
            Value::List(list) => Ok(list),
            _ => Err(format!("{} stands here (a list is wanted)", self.kind())),
        }
    }

    /// Its keys and values.
    ///
    /// # Errors
    /// The sentence that it is no map.
    pub fn map(&self) -> Result<&[(String, Node)], String> {
        match &self.value {
            Value::Map(map) => Ok(map),
            _ => Err(format!(
                "{} stands here (keys and values are wanted)",
                self.kind()
            )),
        }
    }

    /// What stands at a key; none when nothing does, or this is no map.
    pub fn at(&self, key: &str) -> Option<&Node> {
        let map = self.map().ok()?;
        let found = map.iter().find(|(k, _)| k == key).map(|(_, v)| v);
        found.filter(|v| !v.is_null())
    }

    /// The same as JSON, which is YAML too.
    pub fn json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Quoted(s) => Json::String(s.clone()),
            Value::Plain(_) if self.is_null() => Json::Null,
            Value::Plain(s) => match s.as_str() {
                "true" => Json::Bool(true),
                "false" => Json::Bool(false),
                // The rest, which no key of podwire's takes, reads back as what it is not: a text.
                s => match s.parse::<i64>() {
                    Ok(n) if n.to_string() == s => Json::from(n),
                    _ => Json::String(s.into()),
                },
            },
            Value::List(list) => Json::Array(list.iter().map(Node::json).collect()),
            Value::Map(map) => Json::Object(map.iter().map(|(k, v)| (k.clone(), v.json())).collect()),
        }
    }

    fn kind(&self) -> &'static str {
        match &self.value {
            Value::Plain(_) if self.is_null() => "nothing",
            Value::Plain(_) | Value::Quoted(_) => "a word",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

/// What YAML 1.1 takes for a number: whole, with a fraction, to another base, or none at all.
fn is_number(s: &str) -> bool {
    let digits = s.trim_start_matches(['-', '+']);
    let word = digits.to_ascii_lowercase();
    let begins = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let based = ["0x", "0o", "0b"].iter().any(|base| {
        word.strip_prefix(base)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_hexdigit() || b == b'_'))
    });
    let plain = digits.replace('_', "");
    [".inf", ".nan"].contains(&word.as_str()) || based || (begins && plain.parse::<f64>().is_ok())
}

/// What YAML 1.1 takes for a switch.
fn is_switch(s: &str) -> bool {
    let words = ["y", "n", "yes", "no", "on", "off", "true", "false"];
    words.contains(&s.to_ascii_lowercase().as_str())
}

/// A word of somebody else's for a message: short, and nothing that a terminal obeys.
pub fn quoted(s: &str) -> String {
    format!("\"{}\"", plain(s))
}

fn plain(s: &str) -> String {
    let mut out = String::new();
    for c in s.chars().take(QUOTED) {
        match c {
            c if c.is_control() => {
                let _ = write!(out, "{}", c.escape_unicode());
            }
            c => out.push(c),
        }
    }
    if s.chars().nth(QUOTED).is_some() {
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Node {
        let mut all = documents(text).unwrap_or_else(|e| panic!("{text}: {}", e.what));
        assert_eq!(all.len(), 1, "{text}");
        all.remove(0).1
    }

    #[test]
    fn a_tree_with_lines() {
        let text = "# first\n---\na: 1\nb:\n- x\n- {c: 'yes', d: }\n---\n---\n{\"e\": [true, null]}\n";
        let all = documents(text).unwrap();
        let numbers: Vec<usize> = all.iter().map(|(n, _)| *n).collect();
        assert_eq!(numbers, [1, 3]);
        let first = &all[0].1;
        assert_eq!(first.at("a").unwrap().number(0, 9), Ok(1));
        let list = first.at("b").unwrap().list().unwrap();
        assert_eq!((list[0].text(), list[0].line, list[1].line), (Ok("x"), 5, 6));
        assert_eq!(list[1].at("c").unwrap().text(), Ok("yes"));
        assert_eq!(list[1].at("d"), None);
        assert_eq!(all[1].1.json().to_string(), r#"{"e":[true,null]}"#);
        assert_eq!(
            first.json().to_string(),
            r#"{"a":1,"b":["x",{"c":"yes","d":null}]}"#
        );
    }

    #[test]
    fn words_that_yaml_takes_for_something_else() {
        for s in [
            "1", "-1", "1.5", "0x1f", "0o7", "1e3", ".5", ".inf", "1_000", "yes", "NO", "on", "y", "true",
            "~", "",
        ] {
            assert!(one(&format!("a: {s}")).map().unwrap()[0].1.text().is_err(), "{s}");
        }
        for s in [
            "a1",
            "1.2.3.4",
            "v1",
            "0xg",
            "fd00::1",
            "inf",
            "1a",
            "e3",
            "'1'",
            "\"yes\"",
            "10.0.0.0/8",
        ] {
            assert!(one(&format!("a: {s}")).map().unwrap()[0].1.text().is_ok(), "{s}");
        }
    }

    #[test]
    fn what_could_grow_or_lie_is_refused() {
        let deep = |n: usize| format!("a: {}{}", "[".repeat(n), "]".repeat(n));
        assert!(documents(&deep(20)).is_ok());
        let blocks = (0..40)
            .map(|n| format!("{}a:\n", " ".repeat(n)))
            .collect::<String>();
        for (text, line, told) in [
            ("a: &x [1]\nb: *x\n", 2, "alias"),
            ("a: *x\n", 1, ""),
            ("a: !!str 1\n", 1, "tag"),
            ("a: 1\nb: 2\na: 3\n", 3, "twice"),
            ("? [a]\n: 1\n", 1, "keys are words"),
            ("? {a: 1}\n: 1\n", 1, "keys are words"),
            ("a: [1\nb: 2\n", 0, "not YAML"),
            ("a: 'x\n", 0, "not YAML"),
            (&deep(100), 1, ""),
            (&blocks, 0, ""),
        ] {
            let e = documents(text).unwrap_err();
            assert!(
                e.what.contains(told) && (line == 0 || e.line == line),
                "{text}: {e:?}"
            );
        }
        assert_eq!(documents(&" ".repeat(MAX_TEXT + 1)).unwrap_err().line, 0);
        assert_eq!(documents("").unwrap(), []);
    }
}
