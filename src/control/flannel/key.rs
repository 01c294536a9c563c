//! The key of a lease: the subnet itself, after `<prefix>/subnets/`.

use ipnet::{Ipv4Net, Ipv6Net};

/// The subnet a lease is for, as its key says: `10.61.7.0-24`, or `10.61.7.0-24&fd61:0:0:7::-64`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SubnetKey {
    /// The IPv4 subnet, without host bits.
    pub net4: Ipv4Net,
    /// The IPv6 subnet of a dual-stack lease.
    pub net6: Option<Ipv6Net>,
}
