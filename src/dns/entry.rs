//! Static entries: names a person has given, each with one record, as `NAME TYPE DATA`.

use super::name::Fqdn;
use hickory_proto::rr::rdata::{self, TXT};
use hickory_proto::rr::{RData, RecordType};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Most static entries of a node.
pub const MAX_ENTRIES: usize = 4096;
/// Most bytes of a text: what one character string holds (RFC 1035 section 3.3).
const MAX_TEXT: usize = 255;

/// A name and one record of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The name.
    pub name: Fqdn,
    /// The record.
    pub data: Data,
}

/// What an entry says of its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// Another name for the same.
    Cname(Fqdn),
    /// Where a service is (RFC 2782).
    Srv {
        /// Lower ones are asked first.
        priority: u16,
        /// Share among those of one priority.
        weight: u16,
        /// The port.
        port: u16,
        /// The host.
        target: Fqdn,
    },
    /// A text.
    Txt(String),
}

/// The text is no entry; the sentence says what would be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EntryError(String);

impl Entry {
    /// An address's entry.
    pub fn address(name: Fqdn, ip: IpAddr) -> Entry {
        let data = match ip {
            IpAddr::V4(ip) => Data::A(ip),
            IpAddr::V6(ip) => Data::Aaaa(ip),
        };
        Entry { name, data }
    }
}

impl Data {
    /// The record's type.
    pub fn kind(&self) -> RecordType {
        match self {
            Data::A(_) => RecordType::A,
            Data::Aaaa(_) => RecordType::AAAA,
            Data::Cname(_) => RecordType::CNAME,
            Data::Srv { .. } => RecordType::SRV,
            Data::Txt(_) => RecordType::TXT,
        }
    }

    /// The address it is, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Data::A(ip) => Some((*ip).into()),
            Data::Aaaa(ip) => Some((*ip).into()),
            _ => None,
        }
    }

    /// The same for messages.
    pub fn rdata(&self) -> RData {
        match self {
            Data::A(ip) => RData::A((*ip).into()),
            Data::Aaaa(ip) => RData::AAAA((*ip).into()),
            Data::Cname(to) => RData::CNAME(rdata::CNAME(to.to_name())),
            Data::Srv {
                priority,
                weight,
                port,
                target,
            } => RData::SRV(rdata::SRV::new(*priority, *weight, *port, target.to_name())),
            Data::Txt(text) => RData::TXT(TXT::new(vec![text.clone()])),
        }
    }
}

impl FromStr for Entry {
    type Err = EntryError;

    /// `NAME TYPE DATA`; without a type, an address is one and anything else the name it is an alias of.
    fn from_str(s: &str) -> Result<Entry, EntryError> {
        let wrong = |what: String| EntryError(what);
        let shown: String = s.chars().take(80).collect();
        let usage = || {
            wrong(format!(
                "{shown:?} is no record (write NAME ADDRESS, NAME CNAME OTHER, NAME SRV PRIORITY WEIGHT PORT HOST, or \
                 NAME TXT TEXT)"
            ))
        };
        if s.chars().any(|c| c.is_control() && c != '\t') {
            return Err(usage());
        }
        let mut words = s.split_ascii_whitespace();
        let name: Fqdn = words
            .next()
            .ok_or_else(usage)?
            .parse()
            .map_err(|e| wrong(format!("{e}")))?;
        let rest: Vec<&str> = words.collect();
        let host = |s: &str| s.parse::<Fqdn>().map_err(|e| wrong(format!("{e}")));
        let address = |s: &str| s.parse::<IpAddr>();
        let kind = rest.first().map(|k| k.to_ascii_uppercase()).unwrap_or_default();
        let data = match (kind.as_str(), &rest[..]) {
            ("A" | "AAAA", [_, ip]) => match address(ip) {
                Ok(IpAddr::V4(ip)) if kind == "A" => Data::A(ip),
                Ok(IpAddr::V6(ip)) if kind == "AAAA" => Data::Aaaa(ip),
                _ => {
                    let family = if kind == "A" { "IPv4" } else { "IPv6" };
                    return Err(wrong(format!(
                        "{ip:?} is no {family} address, which {kind} wants"
                    )));
                }
            },
            ("CNAME", [_, to]) => Data::Cname(host(to)?),
            ("SRV", [_, priority, weight, port, target]) => {
                let number = |s: &&str| {
                    s.parse()
                        .map_err(|_| wrong(format!("{s:?} is no number of SRV (use 0 to 65535)")))
                };
                Data::Srv {
                    priority: number(priority)?,
                    weight: number(weight)?,
                    port: number(port)?,
                    target: host(target)?,
                }
            }
            ("TXT", [_, _, ..]) => {
                let word = s.find(|c: char| c.is_ascii_whitespace()).unwrap_or(0);
                let rest = s[word..].trim_start();
                let text = rest.get(3..).unwrap_or_default().trim();
                let text = text
                    .strip_prefix('"')
                    .and_then(|t| t.strip_suffix('"'))
                    .unwrap_or(text);
                if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
                    return Err(wrong(format!(
                        "the text of {name} is too long or has control characters (at most {MAX_TEXT} bytes)"
                    )));
                }
                Data::Txt(text.into())
            }
            (_, [ip]) if address(ip).is_ok() => {
                return address(ip)
                    .map(|ip| Entry::address(name, ip))
                    .map_err(|_| usage());
            }
            (_, [to]) => Data::Cname(host(to)?),
            _ => return Err(usage()),
        };
        if data == Data::Cname(name.clone()) {
            return Err(wrong(format!("{name} would be an alias of itself")));
        }
        Ok(Entry { name, data })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.name, self.data.kind(), self.data)
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Data::A(ip) => ip.fmt(f),
            Data::Aaaa(ip) => ip.fmt(f),
            Data::Cname(to) => to.fmt(f),
            Data::Srv {
                priority,
                weight,
                port,
                target,
            } => write!(f, "{priority} {weight} {port} {target}"),
            Data::Txt(text) => write!(f, "\"{text}\""),
        }
    }
}

/// Whether these entries go together.
///
/// # Errors
/// The sentence why not: too many, or an alias beside other records of its name (RFC 1034 section 3.6.2).
pub fn check(entries: &[Entry]) -> Result<(), EntryError> {
    if entries.len() > MAX_ENTRIES {
        return Err(EntryError(format!(
            "there are {} static records, {MAX_ENTRIES} are the most",
            entries.len()
        )));
    }
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort();
    sorted.dedup();
    for pair in sorted.windows(2) {
        let alias = pair.iter().any(|e| matches!(e.data, Data::Cname(_)));
        if alias && pair[0].name == pair[1].name {
            return Err(EntryError(format!(
                "{} is an alias and cannot have other records (an alias has none but its CNAME)",
                pair[0].name
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_read_back_to_the_same() {
        for (text, said) in [
            ("db.internal 10.0.0.5", "db.internal A 10.0.0.5"),
            ("Db.internal aaaa fd00::5", "db.internal AAAA fd00::5"),
            ("www.internal db.internal.", "www.internal CNAME db.internal"),
            ("a cname b", "a CNAME b"),
            (
                "_http._tcp.web SRV 0 5 8080 web.default.pod",
                "_http._tcp.web SRV 0 5 8080 web.default.pod",
            ),
            ("t.x TXT  two words ", "t.x TXT \"two words\""),
            ("txt TXT \"TXT\"", "txt TXT \"TXT\""),
        ] {
            let entry: Entry = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(entry.to_string(), said);
            assert_eq!(said.parse(), Ok(entry), "{said}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        for (text, told) in [
            ("", "write NAME ADDRESS"),
            ("a", "write NAME ADDRESS"),
            ("a b c", "write NAME ADDRESS"),
            ("a A ::1", "no IPv4 address"),
            ("a AAAA 1.2.3.4", "no IPv6 address"),
            ("a SRV 1 2 70000 b", "0 to 65535"),
            ("a..b 1.2.3.4", "no domain name"),
            ("a a", "alias of itself"),
            ("a\nb", "write NAME ADDRESS"),
            ("a TXT x\u{7f}", "write NAME ADDRESS"),
        ] {
            let e = text.parse::<Entry>().unwrap_err().to_string();
            assert!(e.contains(told), "{text}: {e}");
        }
    }

    #[test]
    fn an_alias_stands_alone() {
        let all = |texts: &[&str]| check(&texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<_>>());
        assert!(all(&["a b", "a b", "c 1.2.3.4", "c 1.2.3.5"]).is_ok());
        assert!(all(&["a b", "a 1.2.3.4"]).is_err());
        assert!(all(&["a b", "a c"]).is_err());
    }
}
