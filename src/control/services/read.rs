//! Reading an object: values by type, and every mistake with its place.

use super::manifest::{Mistake, Source};
use super::yaml::{Node, quoted};
use crate::control::strict::unknown_key;
use crate::model::{Labels, is_label_key, is_label_value};
use std::net::IpAddr;

/// Most mistakes that are kept of one text.
const MAX_KEPT: usize = 256;
/// Most bytes of all annotations of an object, as Kubernetes has it.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// Gathers the mistakes of one document.
pub(super) struct Reader<'r> {
    source: &'r Source,
    document: usize,
    /// The object, for people.
    pub object: String,
    mistakes: &'r mut Vec<Mistake>,
    count: usize,
}

impl<'r> Reader<'r> {
    pub fn new(source: &'r Source, document: usize, mistakes: &'r mut Vec<Mistake>) -> Reader<'r> {
        Reader {
            source,
            document,
            object: String::new(),
            mistakes,
            count: 0,
        }
    }

    /// How many mistakes there are so far.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Something is wrong here.
    pub fn wrong(&mut self, line: usize, key: &str, what: impl Into<String>) {
        self.count += 1;
        if self.mistakes.len() < MAX_KEPT {
            self.mistakes.push(Mistake {
                source: self.source.clone(),
                line,
                document: self.document,
                object: self.object.clone(),
                key: key.into(),
                what: what.into(),
            });
        }
    }

    /// A key that nobody knows.
    pub fn unknown(&mut self, line: usize, key: &str, known: &[&str]) {
        let last = key.rsplit('.').next().unwrap_or(key);
        self.wrong(line, key, unknown_key(last, known.iter().copied()));
    }

    /// A value, unless it is wrong.
    pub fn take<T>(&mut self, node: &Node, key: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|what| self.wrong(node.line, key, what)).ok()
    }

    pub fn text(&mut self, node: &Node, key: &str) -> Option<String> {
        self.take(node, key, node.text().map(Into::into))
    }

    pub fn switch(&mut self, node: &Node, key: &str) -> Option<bool> {
        self.take(node, key, node.switch())
    }

    pub fn port(&mut self, node: &Node, key: &str) -> Option<u16> {
        let number = node.number(1, 65_535);
        self.take(node, key, number.map(|n| n as u16))
    }

    pub fn address(&mut self, node: &Node, key: &str) -> Option<IpAddr> {
        let address = node.text().and_then(|s| {
            s.parse()
                .map_err(|_| format!("{} is no address (write 10.96.0.10 or fd00::10)", quoted(s)))
        });
        self.take(node, key, address)
    }

    /// An address that one host can have for others; what it is told of any other, behind the address.
    pub fn host_address(&mut self, node: &Node, key: &str, otherwise: &str) -> Option<IpAddr> {
        let ip = self.address(node, key)?;
        let near = match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if near || ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
            self.wrong(node.line, key, format!("{ip} {otherwise}"));
            return None;
        }
        Some(ip)
    }

    /// The one of `words` that stands here.
    pub fn choice<T: Copy>(&mut self, node: &Node, key: &str, words: &[(&str, T)]) -> Option<T> {
        let all = || words.iter().map(|(w, _)| *w).collect::<Vec<_>>().join(", ");
        let chosen = node.text().and_then(|s| {
            let found = words.iter().find(|(w, _)| *w == s).map(|(_, v)| *v);
            found.ok_or_else(|| format!("{} is not supported (use {})", quoted(s), all()))
        });
        self.take(node, key, chosen)
    }

    /// The members of a list, with their keys; none of what is no list.
    pub fn list<'n>(&mut self, node: &'n Node, key: &str, most: usize) -> Vec<(String, &'n Node)> {
        let list = self.take(node, key, node.list()).unwrap_or_default();
        if list.len() > most {
            self.wrong(
                node.line,
                key,
                format!("{} are too many (use {most} at most)", list.len()),
            );
            return Vec::new();
        }
        let named = list.iter().enumerate();
        named.map(|(n, node)| (format!("{key}[{n}]"), node)).collect()
    }

    /// The keys and values of a map that say something; none of what is no map.
    pub fn map<'n>(&mut self, node: &'n Node, key: &str) -> Vec<(String, &'n str, &'n Node)> {
        let map = self.take(node, key, node.map()).unwrap_or_default();
        let said = map.iter().filter(|(_, v)| !v.is_null());
        let joined = |k: &str| match key {
            "" => shown(k),
            key => format!("{key}.{}", shown(k)),
        };
        said.map(|(k, v)| (joined(k), k.as_str(), v)).collect()
    }

    /// Labels, or what has to fit them.
    pub fn labels(&mut self, node: &Node, key: &str) -> Labels {
        let mut labels = Labels::new();
        for (at, name, value) in self.map(node, key) {
            let Some(text) = self.text(value, &at) else {
                continue;
            };
            if !is_label_key(name) {
                let what = format!("{} is no label (write name or example.org/name)", quoted(name));
                self.wrong(value.line, key, what);
            } else if !is_label_value(&text) {
                let what = format!(
                    "{} is no value of a label (letters, digits, '-', '_' and '.', at most 63)",
                    quoted(&text)
                );
                self.wrong(value.line, &at, what);
            } else {
                labels.insert(name.into(), text);
            }
        }
        labels
    }

    /// Annotations: any text.
    pub fn annotations(&mut self, node: &Node, key: &str) -> Labels {
        let mut all = Labels::new();
        let mut bytes = 0;
        for (at, name, value) in self.map(node, key) {
            let Some(text) = self.text(value, &at) else {
                continue;
            };
            bytes += name.len() + text.len();
            if !is_label_key(&name.to_ascii_lowercase()) {
                let what = format!(
                    "{} is no annotation (write name or example.org/name)",
                    quoted(name)
                );
                self.wrong(value.line, key, what);
            } else if bytes > MAX_ANNOTATIONS {
                let what = format!("are more than {} KiB (leave some out)", MAX_ANNOTATIONS >> 10);
                self.wrong(value.line, key, what);
                return all;
            } else {
                all.insert(name.into(), text);
            }
        }
        all
    }
}

/// A key for messages: as it is, or in quotes when it is an odd one.
pub(super) fn shown(key: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
    match (1..=120).contains(&key.len()) && key.bytes().all(plain) {
        true => key.into(),
        false => quoted(key),
    }
}
