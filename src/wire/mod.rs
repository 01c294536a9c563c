//! Bytes to meaning and back: one-pass header parse, flow key, checksums, virtio-net and VXLAN headers, and
//! the few in-place rewrites a router makes. No I/O, no clock, no allocation.

pub mod bytes;
pub mod checksum;
pub mod headers;
pub mod vnet_hdr;
pub mod vxlan;

pub use headers::{EthView, Headers, L3};
pub use vnet_hdr::{Gso, VNET_HDR_LEN, VnetHdr, VnetHdrError};

/// Length of an Ethernet header without tags.
pub const ETH_LEN: usize = 14;
/// Length of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Length of an IPv6 header without extensions.
pub const IPV6_LEN: usize = 40;
/// Length of a UDP header.
pub const UDP_LEN: usize = 8;

/// IP protocol numbers podwire looks at (IANA protocol-numbers).
pub mod proto {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}
