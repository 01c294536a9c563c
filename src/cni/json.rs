//! Reading JSON key by key, so that what is wrong is named by its place. `null` is as good as absent, and a key may be in
//! any case, as for the reference plugins, which are Go: containerd counts on that.

use super::error::CniError;
use serde_json::{Map, Value};

/// An object, and where it stands.
#[derive(Clone, Copy)]
pub(super) struct Keys<'v> {
    map: Option<&'v Map<String, Value>>,
    place: Place<'v>,
}

/// Where something stands: `a.b[2].c`.
#[derive(Clone, Copy)]
pub(super) enum Place<'v> {
    Root,
    Key(&'v Place<'v>, &'v str),
    Item(&'v Place<'v>, usize),
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Root => Ok(()),
            Place::Key(Place::Root, key) => f.write_str(&shown(key)),
            Place::Key(above, key) => write!(f, "{above}.{}", shown(key)),
            Place::Item(above, n) => write!(f, "{above}[{n}]"),
        }
    }
}

impl<'v> Keys<'v> {
    /// The value as an object; an absent one has no keys.
    pub(super) fn of(value: Option<&'v Value>, place: Place<'v>) -> Result<Keys<'v>, CniError> {
        match value {
            None | Some(Value::Null) => Ok(Keys { map: None, place }),
            Some(Value::Object(map)) => Ok(Keys {
                map: Some(map),
                place,
            }),
            Some(other) => Err(expected(place, "an object", other)),
        }
    }

    pub(super) fn at(&'v self, key: &'v str) -> Place<'v> {
        Place::Key(&self.place, key)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'v String> + use<'v> {
        self.map.into_iter().flat_map(Map::keys)
    }

    /// The value of a key; one in another case where there is none just so.
    pub(super) fn get(&self, key: &str) -> Option<&'v Value> {
        let map = self.map?;
        let in_another_case = || Some(map.iter().find(|(k, _)| k.eq_ignore_ascii_case(key))?.1);
        map.get(key).or_else(in_another_case).filter(|v| !v.is_null())
    }

    pub(super) fn text(&'v self, key: &'v str) -> Result<Option<&'v str>, CniError> {
        self.get(key).map(|v| text(v, self.at(key))).transpose()
    }

    pub(super) fn flag(&'v self, key: &'v str) -> Result<Option<bool>, CniError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(expected(self.at(key), "true or false", other)),
        }
    }

    /// A whole number from 0 on.
    pub(super) fn number(&'v self, key: &'v str) -> Result<Option<u64>, CniError> {
        let value = self.get(key);
        let number = |v: &Value| {
            v.as_u64()
                .ok_or_else(|| expected(self.at(key), "a whole number from 0 on", v))
        };
        value.map(number).transpose()
    }

    pub(super) fn list(&self, key: &'v str) -> Result<&'v [Value], CniError> {
        match self.get(key) {
            None => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(expected(Place::Key(&self.place, key), "a list", other)),
        }
    }

    pub(super) fn texts(&'v self, key: &'v str) -> Result<Vec<String>, CniError> {
        let at = self.at(key);
        let items = self.list(key)?.iter().enumerate();
        items
            .map(|(n, v)| text(v, Place::Item(&at, n)).map(Into::into))
            .collect()
    }
}

pub(super) fn text<'v>(value: &'v Value, place: Place<'_>) -> Result<&'v str, CniError> {
    value.as_str().ok_or_else(|| expected(place, "a text", value))
}

/// Something else stands there.
pub(super) fn expected(place: Place<'_>, what: &str, found: &Value) -> CniError {
    CniError::config(place, format!("{} is not {what}", shown(&found.to_string())))
}

/// As much of it as a line takes, and nothing that a terminal obeys.
pub(super) fn shown(text: &str) -> String {
    let harmless = |c: char| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    let mut short: String = text.chars().take(60).map(harmless).collect();
    if text.chars().nth(60).is_some() {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_shown_in_one_short_line() {
        let value = serde_json::json!({ "a\u{7f}\n".repeat(100): "\u{85}".repeat(100) });
        let keys = Keys::of(Some(&value), Place::Root).unwrap();
        let key = keys.names().next().unwrap();
        let e = keys.number(key).unwrap_err();
        assert!(e.msg.len() < 600 && !e.msg.chars().any(char::is_control), "{e}");
        assert_eq!(shown("short"), "short");
    }
}
