//! Nodes: this one, and its peers in the overlay.

use super::{Mac, PodMtu};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Bytes VXLAN adds over an IPv4 underlay: IP 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348 section 5).
pub const VXLAN_OVERHEAD_V4: u16 = 50;
/// Bytes VXLAN adds over an IPv6 underlay.
pub const VXLAN_OVERHEAD_V6: u16 = 70;

/// A node's name: unique in the cluster, used in files, tables and socket paths.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(String);

/// The text is not a node name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a node name (letters, digits, '-', '_' and '.', beginning with a letter or digit, at most 63)"
)]
pub struct NodeNameError(String);

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(s: &str) -> Result<NodeName, NodeNameError> {
        let good = (1..=63).contains(&s.len())
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && s.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if good {
            Ok(NodeName(s.into()))
        } else {
            Err(NodeNameError(s.into()))
        }
    }
}

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for NodeName {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<NodeName, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A VXLAN network identifier: 24 bits (RFC 7348 section 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl TryFrom<u32> for Vni {
    type Error = String;

    fn try_from(v: u32) -> Result<Vni, String> {
        if v < 1 << 24 {
            Ok(Vni(v))
        } else {
            Err(format!("VNI {v} does not fit 24 bits (use 0 to 16777215)"))
        }
    }
}

impl From<Vni> for u32 {
    fn from(v: Vni) -> u32 {
        v.0
    }
}

/// MTU of the network the tunnel runs over, in bytes of outer IP packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnderlayMtu(pub u16);

impl UnderlayMtu {
    /// The pod MTU that fits through a tunnel over this underlay.
    pub fn pod_mtu(self, underlay_is_ipv6: bool) -> PodMtu {
        PodMtu(self.0.saturating_sub(if underlay_is_ipv6 {
            VXLAN_OVERHEAD_V6
        } else {
            VXLAN_OVERHEAD_V4
        }))
    }
}

impl PodMtu {
    /// The MTU an underlay needs to carry a pod's largest packet through a tunnel.
    pub fn underlay_mtu(self, underlay_is_ipv6: bool) -> UnderlayMtu {
        UnderlayMtu(self.0.saturating_add(if underlay_is_ipv6 {
            VXLAN_OVERHEAD_V6
        } else {
            VXLAN_OVERHEAD_V4
        }))
    }
}

/// Most peers a node takes, from whichever source: [`PeerId`] must number them.
pub const MAX_PEERS: usize = 16_384;

/// Index of a peer in the overlay's peer table. Reused after the peer is removed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct PeerId(pub u16);

/// Another node, as the control plane tells of it. Validated by its source: at least one underlay address
/// and one subnet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its name, the key of all changes.
    pub name: NodeName,
    /// Where its VXLAN socket is. Carries both families of pods unless `underlay6` is set too.
    pub underlay: SocketAddr,
    /// A second, IPv6 endpoint for IPv6 pod traffic (flannel's dual-stack shape); optional.
    pub underlay6: Option<SocketAddr>,
    /// Its IPv4 pod subnet.
    pub subnet4: Option<Ipv4Net>,
    /// Its IPv6 pod subnet.
    pub subnet6: Option<Ipv6Net>,
    /// Inner destination MAC of IPv4 frames sent to it.
    pub vtep_mac: Mac,
    /// Inner destination MAC of IPv6 frames sent to it (flannel may use another one).
    pub vtep_mac6: Mac,
    /// MTU of the path to it when smaller than the node's own underlay MTU.
    pub mtu: Option<UnderlayMtu>,
}

/// A change of what the control plane knows, applied between two bursts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A peer appeared or changed; the name is the key.
    PeerSet(Peer),
    /// A peer is gone.
    PeerGone(NodeName),
}

impl Change {
    /// Whose change it is.
    pub fn name(&self) -> &NodeName {
        match self {
            Change::PeerSet(peer) => &peer.name,
            Change::PeerGone(name) => name,
        }
    }
}

/// All that a control source knows at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// The peers, without this node.
    pub peers: Vec<Peer>,
}

impl Snapshot {
    /// The changes that lead from `self` to `next`: removals first, so that an address or subnet may move
    /// from one name to another.
    pub fn diff(&self, next: &Snapshot) -> Vec<Change> {
        let before: HashMap<&NodeName, &Peer> = self.peers.iter().map(|p| (&p.name, p)).collect();
        let after: HashSet<&NodeName> = next.peers.iter().map(|p| &p.name).collect();
        let gone = self.peers.iter().filter(|p| !after.contains(&p.name));
        let set = next.peers.iter().filter(|p| before.get(&p.name) != Some(p));
        gone.map(|p| Change::PeerGone(p.name.clone()))
            .chain(set.map(|p| Change::PeerSet(p.clone())))
            .collect()
    }
}

/// This node's own place in the pod network. `.0` of the subnet is the VTEP, `.1` the gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalNode {
    /// Its name.
    pub name: NodeName,
    /// Its IPv4 pod subnet.
    pub subnet4: Option<Ipv4Net>,
    /// Its IPv6 pod subnet.
    pub subnet6: Option<Ipv6Net>,
    /// Source MAC of frames it puts into the tunnel, destination MAC of those it takes out.
    pub vtep_mac: Mac,
    /// The same for IPv6 frames (equal to `vtep_mac` unless told otherwise).
    pub vtep_mac6: Mac,
    /// MAC its pods see as the gateway.
    pub gateway_mac: Mac,
    /// The network identifier of the overlay.
    pub vni: Vni,
    /// MTU of pods that do not ask for another one.
    pub pod_mtu: PodMtu,
    /// MTU of the underlay.
    pub underlay_mtu: UnderlayMtu,
}

impl LocalNode {
    /// The VTEP's IPv4 address: the first of the subnet.
    pub fn vtep4(&self) -> Option<Ipv4Addr> {
        self.subnet4.map(|n| n.network())
    }

    /// The VTEP's IPv6 address: the first of the subnet.
    pub fn vtep6(&self) -> Option<Ipv6Addr> {
        self.subnet6.map(|n| n.network())
    }

    /// Where in the pod network a Service is reached that has this address on the host: a node port, which stands at the
    /// unspecified address of its family, is the VTEP's, which nothing else has use for.
    pub fn service_address(&self, at: SocketAddr) -> Option<SocketAddr> {
        let ip = match at.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => self.vtep4()?.into(),
            IpAddr::V6(_) => self.vtep6()?.into(),
        };
        Some(SocketAddr::new(ip, at.port()))
    }

    /// The gateway's IPv4 address: the second of the subnet.
    pub fn gateway4(&self) -> Option<Ipv4Addr> {
        self.vtep4().map(|a| Ipv4Addr::from(u32::from(a).wrapping_add(1)))
    }

    /// The gateway's IPv6 address: the second of the subnet.
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.vtep6()
            .map(|a| Ipv6Addr::from(u128::from(a).wrapping_add(1)))
    }

    /// MAC of the host's own port: unlike the gateway's in one digit, and no pod's that follows from an address.
    pub fn host_mac(&self) -> Mac {
        let mut mac = self.gateway_mac;
        mac.0[1] ^= 0x0f;
        mac
    }

    /// Whether `ip` is one of the node's own addresses (gateway, VTEP, or the gateway's link-local).
    pub fn owns(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(a) => self.gateway4() == Some(a) || self.vtep4() == Some(a),
            IpAddr::V6(a) => {
                self.gateway6() == Some(a)
                    || self.vtep6() == Some(a)
                    || (self.subnet6.is_some() && self.gateway_mac.link_local() == a)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, last: u8) -> Peer {
        Peer {
            name: name.parse().unwrap(),
            underlay: SocketAddr::from(([192, 0, 2, last], 8472)),
            underlay6: None,
            subnet4: Some(Ipv4Net::new(Ipv4Addr::new(10, 244, last, 0), 24).unwrap()),
            subnet6: None,
            vtep_mac: Mac([2, 0, 0, 0, 0, last]),
            vtep_mac6: Mac([2, 0, 0, 0, 0, last]),
            mtu: None,
        }
    }

    #[test]
    fn diff_removes_before_it_sets_and_skips_the_unchanged() {
        let old = Snapshot {
            peers: vec![peer("a", 1), peer("b", 2), peer("c", 3)],
        };
        let new = Snapshot {
            peers: vec![peer("a", 1), peer("c", 4), peer("d", 2)],
        };
        let changes = old.diff(&new);
        assert_eq!(
            changes,
            [
                Change::PeerGone("b".parse().unwrap()),
                Change::PeerSet(peer("c", 4)),
                Change::PeerSet(peer("d", 2))
            ]
        );
        assert!(new.diff(&new).is_empty());
    }

    #[test]
    fn mtu_arithmetic() {
        assert_eq!(UnderlayMtu(1500).pod_mtu(false), PodMtu(1450));
        assert_eq!(UnderlayMtu(1500).pod_mtu(true), PodMtu(1430));
    }
}
