//! Domain names as keys: absolute, lower case, in wire form.

use hickory_proto::rr::Name;
use std::borrow::Borrow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Most bytes of a name in wire form, the final zero included (RFC 1035 section 3.1).
pub const MAX_NAME: usize = 255;
/// Most bytes of a label.
const MAX_LABEL: usize = 63;

/// An absolute name in lower case, in wire form: each label after its length, and a zero at the end.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fqdn(Box<[u8]>);

/// The text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no domain name (labels of letters, digits, '-' and '_', at most 63 each and 255 in all)")]
pub struct NameError(String);

impl Fqdn {
    /// The name that `wire`, which must be whole and uncompressed, spells in any case; `None` when it is not.
    pub fn of_wire(wire: &[u8]) -> Option<Fqdn> {
        (wire_len(wire) == Some(wire.len())).then(|| Fqdn(wire.to_ascii_lowercase().into()))
    }

    /// The name of these labels, lowest first; `None` when a label or the whole is empty or too long.
    pub fn of_labels<'l>(labels: impl IntoIterator<Item = &'l str>) -> Option<Fqdn> {
        let mut wire = Vec::with_capacity(64);
        for label in labels {
            let len = u8::try_from(label.len()).ok()?;
            if len == 0 || usize::from(len) > MAX_LABEL {
                return None;
            }
            wire.push(len);
            wire.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
        }
        wire.push(0);
        (wire.len() > 1 && wire.len() <= MAX_NAME).then(|| Fqdn(wire.into()))
    }

    /// Where an address's name is told: `2.1.244.10.in-addr.arpa`, or below `ip6.arpa`.
    pub fn reverse(ip: IpAddr) -> Fqdn {
        let nibble = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0').to_string();
        let mut labels: Vec<String> = match ip {
            IpAddr::V4(ip) => ip.octets().iter().map(u8::to_string).collect(),
            IpAddr::V6(ip) => ip
                .octets()
                .iter()
                .flat_map(|b| [nibble(b >> 4), nibble(b & 15)])
                .collect(),
        };
        labels.reverse();
        labels.push(if ip.is_ipv4() { "in-addr" } else { "ip6" }.into());
        labels.push("arpa".into());
        // At most 74 bytes.
        Fqdn::of_labels(labels.iter().map(String::as_str)).unwrap_or_else(|| Fqdn(Box::new([0])))
    }

    /// Where the names of a subnet's addresses are told; a length that is no whole octet (nibble for IPv6) gives the
    /// zone above.
    pub fn reverse_zone(net: ipnet::IpNet) -> Fqdn {
        let unit = if net.network().is_ipv4() { 8 } else { 4 };
        let all = usize::from(net.max_prefix_len() / unit);
        let kept = usize::from(net.prefix_len() / unit);
        let mut name = Fqdn::reverse(net.network());
        for _ in kept..all {
            name = name.parent().unwrap_or(name);
        }
        name
    }

    /// The wire form.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// The name without its first label; `None` of the root.
    pub fn parent(&self) -> Option<Fqdn> {
        Some(Fqdn(parent(&self.0)?.into()))
    }

    /// The same for messages.
    pub fn to_name(&self) -> Name {
        name_of(&self.0)
    }
}

/// A name for messages, of a whole wire form. The root of anything else.
pub fn name_of(wire: &[u8]) -> Name {
    let mut rest = wire;
    let mut labels: Vec<&[u8]> = Vec::new();
    while let Some((label, more)) = split(rest) {
        labels.push(label);
        rest = more;
    }
    Name::from_labels(labels).unwrap_or_else(|_| Name::root())
}

/// First label of a wire form, and what follows it; `None` at its end.
fn split(wire: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = wire.split_first()?;
    match usize::from(*len) {
        0 => None,
        len => rest.split_at_checked(len),
    }
}

/// A wire form without its first label; `None` of the root.
pub fn parent(wire: &[u8]) -> Option<&[u8]> {
    Some(split(wire)?.1)
}

/// How many bytes the name at the beginning of `bytes` has; `None` when it is cut off, too long, or not spelled out
/// (a compression pointer).
pub fn wire_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let len = usize::from(*bytes.get(at)?);
        if len > MAX_LABEL {
            return None;
        }
        at += 1 + len;
        if at > MAX_NAME {
            return None;
        }
        if len == 0 {
            return Some(at);
        }
    }
}

impl FromStr for Fqdn {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Fqdn, NameError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        let text = s.strip_suffix('.').unwrap_or(s);
        text.bytes()
            .all(|b| good(b) || b == b'.')
            .then(|| Fqdn::of_labels(text.split('.')))
            .flatten()
            // The length is the writer's affair, the sentence is for people.
            .ok_or_else(|| NameError(s.chars().take(80).collect()))
    }
}

impl Borrow<[u8]> for Fqdn {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Fqdn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &*self.0;
        let mut dot = "";
        while let Some((label, more)) = split(rest) {
            write!(f, "{dot}{}", label.escape_ascii())?;
            dot = ".";
            rest = more;
        }
        if dot.is_empty() { f.write_str(".") } else { Ok(()) }
    }
}

impl fmt::Debug for Fqdn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_say_the_same_again() {
        let long = format!("{}.x", "a".repeat(63));
        for (text, said) in [
            ("Db-0.dB.Shop.pod.", "db-0.db.shop.pod"),
            ("_x.y", "_x.y"),
            (long.as_str(), long.as_str()),
        ] {
            let name: Fqdn = text.parse().unwrap();
            assert_eq!(name.to_string(), said);
            assert_eq!(name.to_name().to_string().trim_end_matches('.'), said);
            assert_eq!(Fqdn::of_wire(name.wire()), Some(name));
        }
        let label = "a".repeat(64);
        let name = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(63)].join(".");
        for bad in [
            "", ".", "..", "a..b", ".a", "a b", "a/b", "*.x", &label, &name, "\u{e4}.x",
        ] {
            assert!(bad.parse::<Fqdn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn wire_forms_are_measured() {
        assert_eq!(wire_len(b"\x01a\x02bc\x00rest"), Some(6));
        assert_eq!(wire_len(b"\x00"), Some(1));
        for bad in [
            &b""[..],
            b"\x01",
            b"\x01a",
            b"\xc0\x0c",
            b"\x40",
            b"\x01a\xc0\x00",
        ] {
            assert_eq!(wire_len(bad), None, "{bad:?}");
        }
        let longest = [[63u8; 64].as_slice(), &[63; 64], &[63; 64], &[61; 62], &[0]].concat();
        assert_eq!(wire_len(&longest), Some(255));
        let longer = [[63u8; 64].as_slice(), &[63; 64], &[63; 64], &[62; 63], &[0]].concat();
        assert_eq!(wire_len(&longer), None);
    }

    #[test]
    fn addresses_have_names() {
        let of = |s: &str| Fqdn::reverse(s.parse().unwrap()).to_string();
        assert_eq!(of("10.244.1.2"), "2.1.244.10.in-addr.arpa");
        assert_eq!(
            of("fd00::12"),
            "2.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa"
        );
        let zone = |s: &str| Fqdn::reverse_zone(s.parse().unwrap()).to_string();
        assert_eq!(zone("10.244.1.0/24"), "1.244.10.in-addr.arpa");
        assert_eq!(zone("10.244.16.0/20"), "244.10.in-addr.arpa");
        assert_eq!(zone("fd00:1::/30"), "0.0.0.0.0.d.f.ip6.arpa");
        assert_eq!(
            zone("fd00:1:2:3::/64"),
            "3.0.0.0.2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa"
        );
    }
}
