//! The key of a lease: the subnet itself, after `<prefix>/subnets/`.

use ipnet::{Ipv4Net, Ipv6Net};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Longest key that is looked at, in bytes.
const MAX_BYTES: usize = 4096;

/// The subnet a lease is for, as its key says: `10.61.7.0-24`, or `10.61.7.0-24&fd61:0:0:7::-64`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SubnetKey {
    /// The IPv4 subnet, without host bits.
    pub net4: Ipv4Net,
    /// The IPv6 subnet of a dual-stack lease.
    pub net6: Option<Ipv6Net>,
}

/// Why a key under `<prefix>/subnets` is not that of a lease. It is skipped and named, never fatal.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// Not the form of a subnet's key.
    #[error("it does not end like the key of a subnet (10.61.7.0-24, or 10.61.7.0-24&fd61:0:0:7::-64)")]
    Form,
    /// An address or a length out of range.
    #[error("{0:?} is not a subnet")]
    Range(String),
    /// Bits are set behind the prefix.
    #[error("{0} has host bits set (the subnet is {1})")]
    HostBits(String, String),
    /// An IPv6 subnet among the addresses that stand for IPv4 ones. flannel writes them as IPv4, so that no node
    /// finds the key again.
    #[error("{0} is no range for IPv6 pods")]
    Embedded(Ipv6Net),
}

/// As flannel writes it: IPv6 in the form of RFC 5952.
impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.net4.addr(), self.net4.prefix_len())?;
        match self.net6 {
            Some(net) => write!(f, "&{}-{}", net.addr(), net.prefix_len()),
            None => Ok(()),
        }
    }
}

impl FromStr for SubnetKey {
    type Err = KeyError;

    fn from_str(s: &str) -> Result<SubnetKey, KeyError> {
        SubnetKey::of_etcd_key(s.as_bytes())
    }
}

impl SubnetKey {
    /// The whole key in the store, below `prefix` (`/coreos.com/network`).
    pub fn etcd_key(&self, prefix: &str) -> String {
        path(prefix, &format!("subnets/{self}"))
    }

    /// The subnet a key of the store is for. flannel looks at the end only (`(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$`),
    /// so anything may stand before it. What flannel takes is taken, with the exception of what cannot be a subnet.
    ///
    /// # Errors
    /// Why it is none.
    pub fn of_etcd_key(key: &[u8]) -> Result<SubnetKey, KeyError> {
        let tail = &key[key.len().saturating_sub(MAX_BYTES)..];
        let (rest, len) = ending(tail, |b| b.is_ascii_digit(), b"-").ok_or(KeyError::Form)?;
        // With an IPv6 part what was read is that part's length.
        let six = ending(
            rest,
            |b| b.is_ascii_digit() || (b'a'..=b'f').contains(b) || *b == b':',
            b"&",
        );
        let (four, len4, six) = match six {
            Some((rest, addr)) => {
                let (rest, len4) = ending(rest, |b| b.is_ascii_digit(), b"-").ok_or(KeyError::Form)?;
                (rest, len4, Some((addr, len)))
            }
            None => (rest, len, None),
        };
        Ok(SubnetKey {
            net4: net4(four, len4)?,
            net6: six.map(|(addr, len)| net6(addr, len)).transpose()?,
        })
    }
}

/// The key of the network's configuration.
pub fn config_key(prefix: &str) -> String {
    path(prefix, "config")
}

/// What the keys of all leases begin with. There is no slash at its end: flannel lists and watches it like that.
pub fn subnets_key(prefix: &str) -> String {
    path(prefix, "subnets")
}

/// What the keys begin with that podwire's nodes share and flannel's do not know.
pub fn shared_key(prefix: &str) -> String {
    path(prefix, "podwire") + "/"
}

/// Both joined by one slash, without empty parts: Go's `path.Join`, which makes flannel's keys.
fn path(prefix: &str, below: &str) -> String {
    let root = if prefix.starts_with('/') { "/" } else { "" };
    let parts = prefix.split('/').filter(|p| !p.is_empty() && *p != ".");
    let parts: Vec<&str> = parts.chain([below]).collect();
    format!("{root}{}", parts.join("/"))
}

/// What stands at the end of `text` and is made of `class` only, and what is before the separator in front of it.
/// `None` when there is nothing of it, or no separator.
fn ending<'a>(text: &'a [u8], class: impl Fn(&u8) -> bool, separator: &[u8]) -> Option<(&'a [u8], &'a str)> {
    let long = text.iter().rev().take_while(|b| class(b)).count();
    let (rest, found) = text.split_at(text.len() - long);
    let found = std::str::from_utf8(found).ok().filter(|f| !f.is_empty())?;
    Some((rest.strip_suffix(separator)?, found))
}

/// The IPv4 subnet whose address `text` ends with. The address begins with the digits before the third dot from
/// the end, as many as there are: that is the leftmost match of flannel's expression.
fn net4(text: &[u8], len: &str) -> Result<Ipv4Net, KeyError> {
    let mut dots = 0;
    let long = text.iter().rev().take_while(|b| {
        dots += usize::from(**b == b'.');
        b.is_ascii_digit() || (**b == b'.' && dots <= 3)
    });
    let from = text.len() - long.count();
    let addr = std::str::from_utf8(&text[from..]).unwrap_or_default();
    if addr.matches('.').count() < 3 || !addr.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(KeyError::Form);
    }
    let range = || KeyError::Range(format!("{}-{}", short(addr), short(len)));
    let ip: Ipv4Addr = addr.parse().map_err(|_| range())?;
    // flannel's length has five bits, so that a /32 is none.
    let net = prefix_len(len)
        .filter(|len| *len < 32)
        .and_then(|len| Ipv4Net::new(ip, len).ok());
    let net = net.ok_or_else(range)?;
    match net == net.trunc() {
        true => Ok(net),
        false => Err(KeyError::HostBits(net.to_string(), net.trunc().to_string())),
    }
}

fn net6(addr: &str, len: &str) -> Result<Ipv6Net, KeyError> {
    let range = || KeyError::Range(format!("{}-{}", short(addr), short(len)));
    let ip: Ipv6Addr = addr.parse().map_err(|_| range())?;
    let net = prefix_len(len)
        .filter(|len| *len < 128)
        .and_then(|len| Ipv6Net::new(ip, len).ok());
    let net = net.ok_or_else(range)?;
    if net != net.trunc() {
        return Err(KeyError::HostBits(net.to_string(), net.trunc().to_string()));
    }
    // ::/96 and ::ffff:0:0/96, and the zeros above them, which flannel takes for "no subnet".
    match u128::from(ip) >> 32 {
        0 | 0xffff => Err(KeyError::Embedded(net)),
        _ => Ok(net),
    }
}

/// A length of a prefix, as Go's `ParseUint` takes it: leading zeros do not matter.
fn prefix_len(text: &str) -> Option<u8> {
    match text.trim_start_matches('0') {
        "" => Some(0),
        digits => digits.parse().ok(),
    }
}

/// As much of a text as a message needs.
fn short(text: &str) -> &str {
    &text[..text.len().min(48)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<String, KeyError> {
        text.parse::<SubnetKey>().map(|k| k.to_string())
    }

    #[test]
    fn keys_flannel_accepts_are_accepted() {
        let same = [
            "10.61.7.0-24",
            "10.61.7.0-24&fd61:0:0:7::-64",
            "10.12.13.0-24&fd00:12:13::-56",
            "10.61.7.0-31",
            "0.0.0.0-0",
            "10.61.7.0-24&fd61::-127",
            "10.61.7.0-24&fd61::7:0:1:0:0-96",
        ];
        for key in same {
            assert_eq!(read(key).as_deref(), Ok(key));
            for before in [
                "/coreos.com/network/subnets/",
                "x",
                "/",
                "-",
                "&",
                "1.",
                ".",
                "\u{e9}",
            ] {
                assert_eq!(
                    read(&format!("{before}{key}")).as_deref(),
                    Ok(key),
                    "{before}{key}"
                );
            }
        }
        let written_otherwise = [
            ("10.61.7.0-024", "10.61.7.0-24"),
            ("10.61.7.0-0000000000000000000000024", "10.61.7.0-24"),
            (
                "10.61.7.0-24&fd61:0:0:7:0:0:0:0-64",
                "10.61.7.0-24&fd61:0:0:7::-64",
            ),
            ("10.61.7.0-24&fd61:0000::0-48", "10.61.7.0-24&fd61::-48"),
            ("12.10.61.17.0-24", "10.61.17.0-24"),
        ];
        for (key, want) in written_otherwise {
            assert_eq!(read(key).as_deref(), Ok(want), "{key}");
        }
        // What is before the subnet may be anything, also no text.
        let key = SubnetKey::of_etcd_key(b"\xff\xfe/10.61.7.0-24").unwrap();
        assert_eq!(key.to_string(), "10.61.7.0-24");
    }

    #[test]
    fn what_is_no_subnet_is_refused_with_the_reason() {
        let form = [
            "",
            "10",
            "10.12.13.0",
            "10.12.13-24",
            "10.12.13.0-24hi",
            "10.12.13.0-24/",
            "10.12.13.0-24 ",
            "10.12.13.0-",
            "10.12.13.0_24",
            "10.12.13.x-24",
            "&2001::-56",
            "10.12.13.0-24&2001::",
            "10.12.13.0-24&2001::-56hi",
            "10.12.13.0-24&FD61::-64",
            "10.12.13.0-24&-64",
            "10.12.13.0&fd61::-64",
            "fd61::-64",
            "..0.0-8",
            ".12.13.0-24",
        ];
        for key in form {
            assert_eq!(read(key), Err(KeyError::Form), "{key:?}");
        }
        let range = [
            "10.12.13.300-24",
            "110.12.13.0-32",
            "10.12.13.0-33",
            "10.12.13.0-99999999999999999999",
            "1110.12.13.0-24",
            "10.012.13.0-24",
            "10.12.13.0-24&:12:13:-56",
            "10.12.13.0-24&20011::-56",
            "10.12.13.0-24&2001-56",
            "10.12.13.0-24&2001::-128",
            "10.12.13.0-24&1:2:3:4:5:6:7:8:9-64",
            "10.12.13.0-24&1::2::3-64",
        ];
        for key in range {
            assert!(
                matches!(read(key), Err(KeyError::Range(_))),
                "{key:?}: {:?}",
                read(key)
            );
        }
        for (key, net, right) in [
            ("10.61.7.1-24", "10.61.7.1/24", "10.61.7.0/24"),
            (
                "10.61.7.0-24&fd61:0:0:7::1-64",
                "fd61:0:0:7::1/64",
                "fd61:0:0:7::/64",
            ),
        ] {
            assert_eq!(read(key), Err(KeyError::HostBits(net.into(), right.into())));
        }
        for six in ["::-0", "::-64", "::a00:0-112", "::ffff:a00:0-104"] {
            let key = format!("10.61.7.0-24&{six}");
            assert!(matches!(read(&key), Err(KeyError::Embedded(_))), "{key}");
        }
        let long = read(&format!("{}.1.1.1-{}", "1".repeat(1000), "2".repeat(1000)));
        assert!(long.unwrap_err().to_string().len() < 200);
        let long = format!("{}-24", "1".repeat(1 << 20));
        assert_eq!(read(&long), Err(KeyError::Form));
        let long = format!("10.0.0.0-24&{}-24", ":".repeat(1 << 20));
        assert_eq!(read(&long), Err(KeyError::Form));
    }

    #[test]
    fn keys_are_joined_as_flannel_joins_them() {
        let key: SubnetKey = "10.61.7.0-24&fd61:0:0:7::-64".parse().unwrap();
        for (prefix, root) in [
            ("/coreos.com/network", "/coreos.com/network/"),
            ("/coreos.com/network/", "/coreos.com/network/"),
            ("//coreos.com//./network//", "/coreos.com/network/"),
            ("coreos.com/network", "coreos.com/network/"),
            ("/", "/"),
            ("", ""),
        ] {
            assert_eq!(
                key.etcd_key(prefix),
                format!("{root}subnets/10.61.7.0-24&fd61:0:0:7::-64")
            );
            assert_eq!(config_key(prefix), format!("{root}config"));
            assert_eq!(subnets_key(prefix), format!("{root}subnets"));
            assert_eq!(SubnetKey::of_etcd_key(key.etcd_key(prefix).as_bytes()), Ok(key));
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(four: u32, len4 in 0u8..32, six in proptest::option::of((any::<u128>(), 1u8..128))) {
            let net6 = six.map(|(ip, len)| Ipv6Net::new(ip.into(), len).unwrap().trunc());
            let net6 = net6.filter(|n| ![0, 0xffff].contains(&(u128::from(n.addr()) >> 32)));
            let key = SubnetKey { net4: Ipv4Net::new(four.into(), len4).unwrap().trunc(), net6 };
            prop_assert_eq!(key.to_string().parse::<SubnetKey>(), Ok(key));
        }

        #[test]
        fn no_key_panics_and_what_is_read_prints_to_the_same(key in "[0-9a-f.:&/-]{0,40}") {
            if let Ok(read) = key.parse::<SubnetKey>() {
                prop_assert_eq!(read.to_string().parse::<SubnetKey>(), Ok(read));
            }
        }
    }
}
