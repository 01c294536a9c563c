//! The network's configuration, written by the administrator at `<prefix>/config`.

use ipnet::{Ipv4Net, Ipv6Net};

/// The network all subnets are cut from, and how nodes reach each other. Complete: defaults are filled in, bounds
/// checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// Where IPv4 subnets come from.
    pub range4: Range4,
    /// Where IPv6 subnets come from, when the network is dual-stack.
    pub range6: Option<Range6>,
    /// VNI of the overlay.
    pub vni: u32,
    /// UDP port of the overlay; flannel's zero is 8472 here.
    pub port: u16,
    /// MTU of pods the administrator asks for (flannel: that of the VXLAN device).
    pub mtu: Option<u16>,
}

/// IPv4 subnets of `len` bits, from `min` to `max`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range4 {
    /// The whole network.
    pub net: Ipv4Net,
    /// The first subnet.
    pub min: Ipv4Net,
    /// The last subnet.
    pub max: Ipv4Net,
}

/// IPv6 subnets of `len` bits, from `min` to `max`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range6 {
    /// The whole network.
    pub net: Ipv6Net,
    /// The first subnet.
    pub min: Ipv6Net,
    /// The last subnet.
    pub max: Ipv6Net,
}

/// What is wrong with a network's configuration: the key, what it says, what would be right.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key}: {what}")]
pub struct NetworkError {
    /// The key of the JSON, `config` for the whole.
    pub key: String,
    /// What is wrong and what would be right.
    pub what: String,
}
