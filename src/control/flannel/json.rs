//! JSON as Go's decoder takes it, which is what flannel reads its store with: keys in any case, the last of several
//! counts, those nobody knows are ignored.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// Longest text that is looked at, in bytes. Anybody may write to the store; a lease has 200 of them.
pub const MAX_BYTES: usize = 64 * 1024;

/// A value, with the keys of an object as they came.
#[derive(Clone, PartialEq, Debug)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number without sign, fraction and exponent.
    Whole(u64),
    /// Any other number.
    Number(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Json>),
    /// Keys and values, in order.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Read a text. What is not UTF-8 in it stands as U+FFFD.
    ///
    /// # Errors
    /// What is wrong, with line and column; or that it is too long.
    pub fn read(bytes: &[u8]) -> Result<Json, String> {
        if bytes.len() > MAX_BYTES {
            return Err(format!("it has {} bytes ({MAX_BYTES} are the most)", bytes.len()));
        }
        serde_json::from_str(&String::from_utf8_lossy(bytes)).map_err(|e| format!("it is not JSON: {e}"))
    }

    /// The value of a key, whatever its case; the last one, when there are several. `None` for `null` too, which
    /// leaves a field as it is.
    pub fn field(&self, key: &str) -> Option<&Json> {
        let Json::Object(members) = self else {
            return None;
        };
        let key = folded(key);
        let found = members.iter().rev().find(|(k, _)| folded(k) == key);
        found.map(|(_, v)| v).filter(|v| **v != Json::Null)
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// A key as the decoder compares it: without case, in the sense of Unicode's simple folding, which adds two
/// letters to ASCII's.
fn folded(key: &str) -> String {
    key.chars()
        .map(|c| match c {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            c => c.to_ascii_lowercase(),
        })
        .collect()
}

/// For messages: short, on one line, without characters that a terminal obeys.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(b) => write!(f, "{b}"),
            Json::Whole(n) => write!(f, "{n}"),
            Json::Number(n) => write!(f, "{n}"),
            Json::Text(text) => match text.char_indices().nth(40) {
                Some((cut, _)) => write!(f, "{:?}...", &text[..cut]),
                None => write!(f, "{text:?}"),
            },
            Json::List(_) => f.write_str("a list"),
            Json::Object(_) => f.write_str("an object"),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Json, D::Error> {
        d.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<Json, E> {
        Ok(Json::Bool(v))
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Json, E> {
        Ok(Json::Whole(v))
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<Json, E> {
        Ok(u64::try_from(v).map_or(Json::Number(v as f64), Json::Whole))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Json, E> {
        Ok(Json::Number(v))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Json, E> {
        Ok(Json::Text(v.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_as_gos_decoder_finds_them() {
        let text = r#"{"publicip": 1, "PUBLICIP": 2, "Publicip": 3, "vtep": null, "\u017fubnet": 4, "bac\u212aend": 5}"#;
        let json = Json::read(text.as_bytes()).unwrap();
        assert_eq!(json.field("PublicIP"), Some(&Json::Whole(3)));
        assert_eq!(json.field("Vtep"), None);
        assert_eq!(json.field("Subnet"), Some(&Json::Whole(4)));
        assert_eq!(json.field("Backend"), Some(&Json::Whole(5)));
        assert_eq!(json.field("Other"), None);
        assert_eq!(Json::List(Vec::new()).field("x"), None);
    }

    #[test]
    fn what_is_no_json_is_refused_and_so_is_too_much_of_it() {
        for bad in ["", "{", "{} {}", "{'a': 1}", "{\"a\": 1,}", "nul", "\"\n\""] {
            let told = Json::read(bad.as_bytes()).unwrap_err();
            assert!(told.starts_with("it is not JSON: "), "{bad:?}: {told}");
        }
        // Deeper than the stack is ever allowed to go.
        assert!(Json::read("[".repeat(10_000).as_bytes()).is_err());
        let long = format!("\"{}\"", "x".repeat(MAX_BYTES));
        let told = Json::read(long.as_bytes()).unwrap_err();
        assert_eq!(told, "it has 65538 bytes (65536 are the most)");
        assert_eq!(
            Json::read(b"\"a\xffb\""),
            Ok(Json::Text("a\u{fffd}b".into())),
            "not UTF-8"
        );
    }

    #[test]
    fn messages_are_short_and_do_nothing_to_a_terminal() {
        let long = Json::Text(format!("\u{1b}[31m{}", "x".repeat(100)));
        let told = long.to_string();
        assert!(
            told.starts_with("\"\\u{1b}[31mxx") && told.ends_with("\"..."),
            "{told}"
        );
        assert_eq!(Json::read(b"-1").unwrap().to_string(), "-1");
        assert_eq!(Json::read(b"1.5").unwrap().to_string(), "1.5");
    }
}
