//! TOML files in which every mistake is found and placed: file, line, dotted key, what is wrong, what is right.

use std::fmt;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// A mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it was made.
    pub origin: Origin,
    /// The key, dotted; empty when the file as a whole is meant.
    pub key: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of a file, counted from 1; 0 means the whole file.
    File(PathBuf, usize),
    /// A flag of the command line, without its dashes.
    Flag(&'static str),
    /// A variable of the environment.
    Environment(String),
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File(path, 0) => write!(f, "{}: ", path.display())?,
            Origin::File(path, line) => write!(f, "{}:{line}: ", path.display())?,
            Origin::Flag(flag) => return write!(f, "--{flag}: {}", self.what),
            Origin::Environment(name) => return write!(f, "{name}: {}", self.what),
            Origin::Default => {}
        }
        if self.key.is_empty() {
            f.write_str(&self.what)
        } else {
            write!(f, "{}: {}", self.key, self.what)
        }
    }
}

impl std::error::Error for Mistake {}

/// A parsed file, with what is needed to place mistakes in it.
pub struct Document<'a> {
    path: &'a Path,
    text: &'a str,
    root: DeTable<'a>,
}

impl<'a> Document<'a> {
    /// Parse `text`, the content of the file at `path`.
    ///
    /// # Errors
    /// The first syntax error, with its line.
    pub fn parse(path: &'a Path, text: &'a str) -> Result<Document<'a>, Mistake> {
        match DeTable::parse(text) {
            Ok(root) => Ok(Document {
                path,
                text,
                root: root.into_inner(),
            }),
            Err(e) => Err(Mistake {
                origin: Origin::File(path.into(), e.span().map_or(0, |s| line_of(text, s.start))),
                key: String::new(),
                what: format!("not TOML: {}", e.message()),
            }),
        }
    }

    /// The outermost table.
    pub fn root(&self) -> &DeTable<'a> {
        &self.root
    }

    /// The place of a byte of the text.
    pub fn origin(&self, at: usize) -> Origin {
        Origin::File(self.path.into(), line_of(self.text, at))
    }

    /// A mistake at a byte of the text.
    pub fn mistake(&self, at: usize, key: impl Into<String>, what: impl Into<String>) -> Mistake {
        Mistake {
            origin: self.origin(at),
            key: key.into(),
            what: what.into(),
        }
    }
}

/// What a key nobody knows is answered with: the nearest known key, or all of them.
pub fn unknown_key<'k>(key: &str, known: impl Iterator<Item = &'k str> + Clone) -> String {
    match nearest(key, known.clone()) {
        Some(near) => format!("there is no such key (did you mean `{near}`?)"),
        None => format!(
            "there is no such key (there are {})",
            known.collect::<Vec<_>>().join(", ")
        ),
    }
}

/// The known word that `word` most likely means.
pub fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let plain = |s: &str| s.replace('-', "_").to_ascii_lowercase();
    let last = |s: &str| s.rsplit('.').next().unwrap_or_default().to_string();
    let word = plain(word);
    let cost = |k: &str| {
        // The right key in the wrong section is as near as a typing error.
        let misplaced = if last(k) == last(&word) { 1 } else { usize::MAX };
        distance(&word, k).min(misplaced)
    };
    known
        .map(|k| (cost(k), k))
        .min()
        .filter(|(d, k)| *d <= (k.len() / 3).max(2))
        .map(|(_, k)| k)
}

/// A value as text, when it has one of the types `allowed`.
///
/// # Errors
/// The sentence that names the type found and those wanted.
pub fn scalar(value: &DeValue<'_>, allowed: Allowed) -> Result<String, String> {
    match value {
        DeValue::String(s) if allowed.text => Ok(s.to_string()),
        DeValue::Integer(i) if allowed.number => match i64::from_str_radix(i.as_str(), i.radix()) {
            Ok(n) => Ok(n.to_string()),
            Err(_) => Err(format!(
                "{} is out of range (fewer digits are wanted)",
                i.as_str()
            )),
        },
        other => {
            let wanted = match (allowed.text, allowed.number) {
                (true, true) => "text in quotes or a whole number",
                (true, false) => "text in quotes",
                _ => "a whole number",
            };
            let found = other.type_str();
            let article = if found.starts_with(['a', 'i']) { "an" } else { "a" };
            Err(format!("{article} {found} stands here ({wanted} is wanted)"))
        }
    }
}

/// The types of TOML a scalar may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// A string.
    pub text: bool,
    /// An integer.
    pub number: bool,
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|b| *b == b'\n').count()
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let change = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_keys() {
        let known = [
            "node",
            "subnet",
            "subnet6",
            "overlay.port",
            "overlay.source_ports",
        ];
        let near = |w: &str| nearest(w, known.into_iter());
        assert_eq!(near("subnett"), Some("subnet"));
        assert_eq!(near("overlay.prot"), Some("overlay.port"));
        assert_eq!(near("port"), Some("overlay.port"));
        assert_eq!(near("overlay.source-ports"), Some("overlay.source_ports"));
        assert_eq!(near("colour"), None);
    }

    #[test]
    fn syntax_errors_have_a_line() {
        let path = Path::new("/etc/x.toml");
        let Err(e) = Document::parse(path, "a = 1\nb = \n") else {
            panic!()
        };
        assert!(e.to_string().starts_with("/etc/x.toml:2: not TOML"), "{e}");
    }
}
