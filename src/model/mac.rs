//! Ethernet addresses.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An Ethernet (MAC-48) address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// The pod MAC that belongs to an IPv4 address: `0a:58` and the four octets, as CNI's bridge plugin
    /// does it. Deriving it means that reuse of an address never leaves a stale neighbour entry behind.
    pub fn of_ipv4(ip: Ipv4Addr) -> Mac {
        let o = ip.octets();
        Mac([0x0a, 0x58, o[0], o[1], o[2], o[3]])
    }

    /// The pod MAC of an IPv6-only pod: `0a:59` and the last four octets of the address.
    pub fn of_ipv6(ip: Ipv6Addr) -> Mac {
        let o = ip.octets();
        Mac([0x0a, 0x59, o[12], o[13], o[14], o[15]])
    }

    /// The VTEP MAC podwire uses unless told otherwise: `0e:57` and the octets of the node's subnet base, so
    /// that two nodes with nothing but a static file agree on it.
    pub fn of_vtep(base: Ipv4Addr) -> Mac {
        let o = base.octets();
        Mac([0x0e, 0x57, o[0], o[1], o[2], o[3]])
    }

    /// Whether the group bit is set (multicast or broadcast).
    pub fn is_multicast(&self) -> bool {
        self.0[0] & 1 == 1
    }

    /// The link-local IPv6 address a host derives from this MAC (RFC 4291, appendix A).
    pub fn link_local(&self) -> Ipv6Addr {
        let m = self.0;
        Ipv6Addr::from([
            0xfe,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            m[0] ^ 2,
            m[1],
            m[2],
            0xff,
            0xfe,
            m[3],
            m[4],
            m[5],
        ])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.0;
        write!(
            f,
            "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}",
            m[0], m[1], m[2], m[3], m[4], m[5]
        )
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six colon-separated hexadecimal octets.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a MAC address (write it as 0a:58:0a:f4:01:02)")]
pub struct MacError(String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(s: &str) -> Result<Mac, MacError> {
        let mut out = [0u8; 6];
        let mut parts = s.split(':');
        for o in &mut out {
            let p = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            let p = p.ok_or_else(|| MacError(s.into()))?;
            *o = u8::from_str_radix(p, 16).map_err(|_| MacError(s.into()))?;
        }
        if parts.next().is_some() {
            Err(MacError(s.into()))
        } else {
            Ok(Mac(out))
        }
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Mac, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_refuses_nonsense() {
        let m: Mac = "0a:58:0a:f4:01:02".parse().unwrap();
        assert_eq!(m, Mac::of_ipv4(Ipv4Addr::new(10, 244, 1, 2)));
        assert_eq!(m.to_string(), "0a:58:0a:f4:01:02");
        for bad in [
            "",
            "0a:58",
            "0a:58:0a:f4:01:02:03",
            "0a:58:0a:f4:01:+2",
            "0a:58:0a:f4:01:2",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn link_local_follows_rfc_4291() {
        let m: Mac = "34:56:78:9a:bc:de".parse().unwrap();
        assert_eq!(
            m.link_local(),
            "fe80::3656:78ff:fe9a:bcde".parse::<Ipv6Addr>().unwrap()
        );
    }
}
