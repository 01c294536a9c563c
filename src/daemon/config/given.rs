//! What people said, by key, before it is understood: a file, and flags over it.

use super::keys::{KEYS, Key};
use crate::control::strict::{Document, Mistake, Origin, scalar, unknown_key};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::DeValue;

/// Values by the name of their key, with where they came from.
#[derive(Debug, Default)]
pub struct Given {
    values: BTreeMap<&'static str, (Vec<String>, Origin)>,
    /// The file that was read: where a key that is missing would stand.
    file: Option<PathBuf>,
}

impl Given {
    /// Read the file at `path`, whose content is `text`.
    ///
    /// # Errors
    /// The first syntax error, unknown key or wrong type.
    pub fn from_file(path: &Path, text: &str) -> Result<Given, Mistake> {
        let doc = Document::parse(path, text)?;
        let mut given = Given {
            file: Some(path.into()),
            ..Given::default()
        };
        for (name, value) in doc.root() {
            match value.get_ref().as_table() {
                Some(section) if KEYS.iter().any(|k| k.split().0 == Some(name.get_ref())) => {
                    for (inner, value) in section {
                        let dotted = format!("{}.{}", name.get_ref(), inner.get_ref());
                        given.take(&doc, inner.span().start, &dotted, value)?;
                    }
                }
                _ => given.take(&doc, name.span().start, name.get_ref(), value)?,
            }
        }
        Ok(given)
    }

    /// Let a flag speak; it overrides the file.
    pub fn flag(&mut self, key: &'static Key, values: Vec<String>) {
        self.values.insert(key.name, (values, Origin::Flag(key.flag)));
    }

    /// Let a variable of the environment speak where nobody else did.
    pub fn environment(&mut self, key: &'static Key, name: String, value: &str) {
        let values = match key.list {
            true => value.split(',').map(|v| v.trim().into()).collect(),
            false => vec![value.into()],
        };
        let unsaid = self.values.entry(key.name);
        unsaid.or_insert((values, Origin::Environment(name)));
    }

    /// The value of `key`, understood by `read`; `None` when nobody gave it.
    ///
    /// # Errors
    /// The sentence of `read`, placed.
    pub fn value<T>(
        &self,
        key: &Key,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Mistake> {
        let Some((values, _)) = self.values.get(key.name) else {
            return Ok(None);
        };
        match &values[..] {
            [one] => read(one).map(Some).map_err(|what| self.mistake(key, what)),
            _ => Err(self.mistake(key, format!("one value is wanted (as {})", key.example))),
        }
    }

    /// All values of `key`, each understood by `read`; `None` when nobody gave it.
    ///
    /// # Errors
    /// The sentence of `read`, placed.
    pub fn values<T>(
        &self,
        key: &Key,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<Vec<T>>, Mistake> {
        let Some((values, _)) = self.values.get(key.name) else {
            return Ok(None);
        };
        let all: Result<Vec<T>, String> = values.iter().map(|v| read(v)).collect();
        all.map(Some).map_err(|what| self.mistake(key, what))
    }

    /// Whether somebody gave `key`.
    pub fn has(&self, key: &Key) -> bool {
        self.values.contains_key(key.name)
    }

    /// Whether `key` was given this one value.
    pub fn says(&self, key: &Key, value: &str) -> bool {
        self.values
            .get(key.name)
            .is_some_and(|(values, _)| values == &[value])
    }

    /// A mistake in the value of `key`, placed where the value was given.
    pub fn mistake(&self, key: &Key, what: impl Into<String>) -> Mistake {
        Mistake {
            origin: self.origin(key),
            key: key.name.into(),
            what: what.into(),
        }
    }

    /// Where the value of `key` was given, or could be.
    pub fn origin(&self, key: &Key) -> Origin {
        match (self.values.get(key.name), &self.file) {
            (Some((_, origin)), _) => origin.clone(),
            (None, Some(file)) => Origin::File(file.clone(), 0),
            (None, None) => Origin::Default,
        }
    }

    fn take(
        &mut self,
        doc: &Document<'_>,
        at: usize,
        name: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), Mistake> {
        let Some(key) = KEYS.iter().find(|k| k.name == name) else {
            return Err(doc.mistake(at, name, unknown_key(name, KEYS.iter().map(|k| k.name))));
        };
        let place = |what| doc.mistake(value.span().start, name, what);
        let values = match value.get_ref().as_array() {
            Some(list) if key.list => list.iter().map(|v| scalar(v.get_ref(), key.allowed)).collect(),
            _ => scalar(value.get_ref(), key.allowed).map(|v| vec![v]),
        };
        let values =
            values.map_err(|what| place(format!("{what}, as {} = {}", key.split().1, key.example)))?;
        self.values.insert(key.name, (values, doc.origin(at)));
        Ok(())
    }
}
