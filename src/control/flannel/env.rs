//! `/run/flannel/subnet.env`: what flannel's CNI plugin and podwire's next start read.

use ipnet::{Ipv4Net, Ipv6Net};

/// The content of `subnet.env`. Subnets carry the gateway's address (`.1`), as flannel writes them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubnetEnv {
    /// The whole IPv4 network.
    pub network4: Option<Ipv4Net>,
    /// The node's IPv4 subnet, with the gateway's address.
    pub subnet4: Option<Ipv4Net>,
    /// The whole IPv6 network.
    pub network6: Option<Ipv6Net>,
    /// The node's IPv6 subnet, with the gateway's address.
    pub subnet6: Option<Ipv6Net>,
    /// MTU of pods.
    pub mtu: u16,
    /// Whether the node masquerades what leaves the network.
    pub ipmasq: bool,
}
