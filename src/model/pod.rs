//! Pods and the ports they hang on.

use super::{Bandwidth, Mac};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A pod's name within the cluster: `namespace/name`; `name` alone means `default/name`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodName {
    /// The namespace part.
    pub namespace: String,
    /// The pod part.
    pub name: String,
}

/// The text is not a pod name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a pod name (write NAMESPACE/NAME or NAME; letters, digits, '-', '_' and '.', at most 63 each)"
)]
pub struct PodNameError(String);

impl PodName {
    /// What the host's own port goes by in the data path: no pod's name has an empty part.
    pub fn of_host() -> PodName {
        PodName {
            namespace: String::new(),
            name: "host".into(),
        }
    }
}

impl FromStr for PodName {
    type Err = PodNameError;

    fn from_str(s: &str) -> Result<PodName, PodNameError> {
        let (namespace, name) = s.split_once('/').unwrap_or(("default", s));
        let good = |p: &str| {
            (1..=63).contains(&p.len())
                && p.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                && p.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        };
        if good(namespace) && good(name) {
            Ok(PodName {
                namespace: namespace.into(),
                name: name.into(),
            })
        } else {
            Err(PodNameError(s.into()))
        }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PodName {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PodName {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<PodName, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Index of a port (a pod's TAP) in the node's port table. Reused after detach.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct PortId(pub u16);

impl PortId {
    /// No pod's: what the node itself carries between the host's sockets and Services.
    pub const SERVICES: PortId = PortId(u16::MAX);
}

/// MTU of a pod's interface: the largest IP packet, in bytes, a pod may send.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodMtu(pub u16);

/// How a port treats checksum and segmentation offload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OffloadMode {
    /// Super-frames and partial checksums cross the TAP (vnet_hdr).
    #[default]
    On,
    /// One complete MTU-sized frame per read and write (plain TAP through `tun-tap`).
    Off,
}

/// What a TAP was found to accept when it was made (TUNSETOFFLOAD, probed bit by bit).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TapCaps {
    /// Frames carry a 10-byte virtio-net header.
    pub vnet_hdr: bool,
    /// Checksums may be left partial (TUN_F_CSUM).
    pub csum: bool,
    /// TCP over IPv4 super-frames (TUN_F_TSO4).
    pub tso4: bool,
    /// TCP over IPv6 super-frames (TUN_F_TSO6).
    pub tso6: bool,
    /// UDP super-frames (TUN_F_USO4 and TUN_F_USO6, Linux 6.2).
    pub uso: bool,
}

/// All that the data path knows of one pod's port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortSpec {
    /// The pod that owns it.
    pub pod: PodName,
    /// Its only legal source MAC.
    pub mac: Mac,
    /// Its only legal IPv4 source address.
    pub ip4: Option<Ipv4Addr>,
    /// Its only legal global IPv6 source address (beside the link-local of its MAC).
    pub ip6: Option<Ipv6Addr>,
    /// MTU of its interface.
    pub mtu: PodMtu,
    /// What its TAP accepts.
    pub caps: TapCaps,
    /// How much it may receive and send.
    pub bandwidth: Option<Bandwidth>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_names_are_checked() {
        assert_eq!("a".parse::<PodName>().unwrap().to_string(), "default/a");
        assert_eq!("ns/db-0".parse::<PodName>().unwrap().to_string(), "ns/db-0");
        for bad in ["", "/", "a/", "/a", "a/b/c", "a b", "../x", "-a"] {
            assert!(bad.parse::<PodName>().is_err(), "{bad}");
        }
    }
}
