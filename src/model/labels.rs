//! What tells pods apart beside their names: labels, states, and ports with names.

use super::{Transport, is_dns_label};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// Most labels, or named ports, of one pod.
pub const MAX_LABELS: usize = 64;

/// The text is no label, or no named port.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct LabelError(String);

/// Whether `s` can be a label's key: `name` or `prefix/name`, as Kubernetes has them.
pub fn is_label_key(s: &str) -> bool {
    match s.split_once('/') {
        Some((prefix, name)) => {
            prefix.len() <= 253 && prefix.split('.').all(is_dns_label) && is_qualified(name)
        }
        None => is_qualified(s),
    }
}

/// Whether `s` can be a label's value: nothing, or what a key's name may be.
pub fn is_label_value(s: &str) -> bool {
    s.is_empty() || is_qualified(s)
}

fn is_qualified(s: &str) -> bool {
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    (1..=63).contains(&s.len())
        && s.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && ends(s.bytes().next())
        && ends(s.bytes().last())
}

/// Whether `s` can be the name of a pod's port (RFC 6335 section 5.1).
pub fn is_port_name(s: &str) -> bool {
    s.len() <= 15 && is_dns_label(s) && s.bytes().any(|b| b.is_ascii_lowercase()) && !s.contains("--")
}

/// One change of a pod's labels: `key=value` sets it, `key-` takes it away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelChange {
    /// The key.
    pub key: String,
    /// The value; none when it goes.
    pub value: Option<String>,
}

impl FromStr for LabelChange {
    type Err = LabelError;

    fn from_str(s: &str) -> Result<LabelChange, LabelError> {
        let (key, value) = match (s.split_once('='), s.strip_suffix('-')) {
            (Some((key, value)), _) => (key, Some(value)),
            (None, Some(key)) => (key, None),
            (None, None) => (s, None),
        };
        let whole = value.is_some() || s.ends_with('-');
        match whole && is_label_key(key) && value.is_none_or(is_label_value) {
            true => Ok(LabelChange {
                key: key.into(),
                value: value.map(Into::into),
            }),
            false => Err(LabelError(format!(
                "{s:?} is no label (write key=value, or key- to take it away; letters, digits, '-', '_' and '.', at most \
                 63 each)"
            ))),
        }
    }
}

impl fmt::Display for LabelChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => write!(f, "{}-", self.key),
        }
    }
}

/// A port of a pod that has a name: `NAME:PORT[/tcp|/udp|/sctp]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// Its number, not zero.
    pub port: u16,
    /// Its protocol.
    pub transport: Transport,
}

impl FromStr for NamedPort {
    type Err = LabelError;

    fn from_str(s: &str) -> Result<NamedPort, LabelError> {
        let (front, transport) = match s.split_once('/') {
            None => (s, Some(Transport::Tcp)),
            Some((front, "tcp")) => (front, Some(Transport::Tcp)),
            Some((front, "udp")) => (front, Some(Transport::Udp)),
            Some((front, "sctp")) => (front, Some(Transport::Sctp)),
            Some((front, _)) => (front, None),
        };
        let split = front.split_once(':').filter(|(name, _)| is_port_name(name));
        let parsed = split.and_then(|(name, port)| Some((name, port.parse().ok().filter(|p| *p != 0)?)));
        match (parsed, transport) {
            (Some((name, port)), Some(transport)) => Ok(NamedPort {
                name: name.into(),
                port,
                transport,
            }),
            _ => Err(LabelError(format!(
                "{s:?} is no named port (write http:8080 or dns:53/udp; the name has lower-case letters, digits and '-', \
                 at most 15)"
            ))),
        }
    }
}

impl fmt::Display for NamedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = self.transport.to_string().to_lowercase();
        write!(f, "{}:{}/{transport}", self.name, self.port)
    }
}

/// Whether a pod is there for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    /// It answers.
    pub ready: bool,
    /// It ends: it keeps the flows it has, and gets no new ones while another is ready.
    pub draining: bool,
}

impl Default for PodState {
    fn default() -> PodState {
        PodState {
            ready: true,
            draining: false,
        }
    }
}

impl fmt::Display for PodState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.draining, self.ready) {
            (true, _) => "draining",
            (false, true) => "ready",
            (false, false) => "not ready",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_kubernetes() {
        for (text, said) in [
            ("app=web", "app=web"),
            ("app=", "app="),
            ("example.org/tier=Front_end.1", "example.org/tier=Front_end.1"),
            ("app-", "app-"),
            ("a-b=c-d", "a-b=c-d"),
        ] {
            let change: LabelChange = text.parse().unwrap();
            assert_eq!(change.to_string(), said);
        }
        let long = format!("{}=x", "a".repeat(64));
        for bad in [
            "", "app", "=x", "-", "a=b=c", "a/b/c=x", "A.b/x=1", "a=-x", "a=x y", "a--", &long,
        ] {
            assert!(bad.parse::<LabelChange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_have_names() {
        for (text, said) in [
            ("http:8080", "http:8080/tcp"),
            ("dns:53/udp", "dns:53/udp"),
            ("a:1/sctp", "a:1/sctp"),
        ] {
            assert_eq!(text.parse::<NamedPort>().unwrap().to_string(), said);
        }
        for bad in [
            "",
            "http",
            "http:",
            "http:0",
            "http:70000",
            "80:80",
            "HTTP:80",
            "a--b:80",
            "http:80/icmp",
            "abcdefghijklmnop:1",
        ] {
            assert!(bad.parse::<NamedPort>().is_err(), "{bad}");
        }
    }
}
