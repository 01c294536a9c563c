//! The one parse each frame gets. `Headers` holds offsets that later code relies on.
//!
//! `[eth 14 | ip 20..60, or 40 + extensions | transport | payload] [ethernet padding]`

use super::bytes::{array, be16};
use super::{ETH_LEN, IPV4_LEN, IPV6_LEN, UDP_LEN, proto};
use crate::model::{DropReason, Mac};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// At most this many IPv6 extension headers are walked; a longer chain is forwarded without looking at the
/// transport behind it (RFC 8200 section 4.1 has no case for more than seven).
const MAX_EXTENSIONS: usize = 8;

/// The Ethernet addresses of a frame of at least 14 bytes.
#[derive(Clone, Copy)]
pub struct EthView<'a>(pub &'a [u8]);

impl EthView<'_> {
    /// Destination MAC.
    #[inline]
    pub fn dst(&self) -> Mac {
        Mac(array(self.0, 0))
    }

    /// Source MAC.
    #[inline]
    pub fn src(&self) -> Mac {
        Mac(array(self.0, 6))
    }

    /// The ethertype.
    #[inline]
    pub fn ethertype(&self) -> u16 {
        be16(self.0, 12)
    }
}

/// What follows the Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum L3 {
    /// ARP (RFC 826).
    Arp,
    /// IPv4 (RFC 791).
    Ipv4,
    /// IPv6 (RFC 8200).
    Ipv6,
}

/// Offsets and facts found by [`Headers::parse`]; all offsets lie within the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    /// Which protocol the frame carries.
    pub l3: L3,
    /// IP protocol of the transport; 0 for ARP. For a later fragment the protocol the packet had.
    pub proto: u8,
    /// Offset of the transport header; equal to `end` when there is none to look at (ARP, later fragments,
    /// overlong extension chains).
    pub l4: usize,
    /// Where the packet ends according to its IP header; what follows is Ethernet padding.
    pub end: usize,
    /// Any fragment of a larger packet (first or later).
    pub fragment: bool,
    /// A fragment without the transport header.
    pub later_fragment: bool,
    /// No IPv4 options and no IPv6 extension headers: only such packets are merged.
    pub plain: bool,
}

impl Headers {
    /// Parse an Ethernet frame. The IPv4 header checksum is verified here, transport checksums are not.
    ///
    /// # Errors
    /// The reason the frame must be dropped for.
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<Headers, DropReason> {
        if frame.len() < ETH_LEN {
            return Err(DropReason::Truncated);
        }
        match be16(frame, 12) {
            0x0800 => Headers::ipv4(frame),
            0x86dd => Headers::ipv6(frame),
            0x0806 if frame.len() < ETH_LEN + 28 => Err(DropReason::Truncated),
            0x0806 => Ok(Headers {
                l3: L3::Arp,
                proto: 0,
                l4: ETH_LEN + 28,
                end: ETH_LEN + 28,
                fragment: false,
                later_fragment: false,
                plain: true,
            }),
            0x8100 | 0x88a8 | 0x9100 => Err(DropReason::Vlan),
            _ => Err(DropReason::EtherType),
        }
    }

    fn ipv4(frame: &[u8]) -> Result<Headers, DropReason> {
        let ip = &frame[ETH_LEN..];
        if ip.len() < IPV4_LEN {
            return Err(DropReason::Truncated);
        }
        let header = usize::from(ip[0] & 15) * 4;
        let total = usize::from(be16(ip, 2));
        if ip[0] >> 4 != 4 || header < IPV4_LEN || total < header {
            return Err(DropReason::BadIpHeader);
        }
        if total > ip.len() {
            return Err(DropReason::Truncated);
        }
        if !header_sum_is_right(&ip[..header]) {
            return Err(DropReason::BadIpHeader);
        }
        let frag = be16(ip, 6);
        let later_fragment = frag & 0x1fff != 0;
        let end = ETH_LEN + total;
        Ok(Headers {
            l3: L3::Ipv4,
            proto: ip[9],
            l4: if later_fragment { end } else { ETH_LEN + header },
            end,
            fragment: frag & 0x3fff != 0,
            later_fragment,
            plain: header == IPV4_LEN,
        })
    }

    fn ipv6(frame: &[u8]) -> Result<Headers, DropReason> {
        let ip = &frame[ETH_LEN..];
        if ip.len() < IPV6_LEN {
            return Err(DropReason::Truncated);
        }
        if ip[0] >> 4 != 6 {
            return Err(DropReason::BadIpHeader);
        }
        let total = IPV6_LEN + usize::from(be16(ip, 4));
        if total > ip.len() {
            return Err(DropReason::Truncated);
        }
        let end = ETH_LEN + total;
        let mut h = Headers {
            l3: L3::Ipv6,
            proto: ip[6],
            l4: ETH_LEN + IPV6_LEN,
            end,
            fragment: false,
            later_fragment: false,
            plain: true,
        };
        let mut walked = 0;
        // Hop-by-hop, routing, destination options, fragment and authentication headers come before the
        // transport (RFC 8200 section 4, RFC 4302).
        while matches!(h.proto, 0 | 43 | 44 | 51 | 60) {
            h.plain = false;
            if walked == MAX_EXTENSIONS {
                h.l4 = end;
                return Ok(h);
            }
            walked += 1;
            if h.l4 + 8 > end {
                return Err(DropReason::Truncated);
            }
            let here = h.proto;
            let len = match here {
                44 => 8,
                51 => (usize::from(frame[h.l4 + 1]) + 2) * 4,
                _ => (usize::from(frame[h.l4 + 1]) + 1) * 8,
            };
            h.proto = frame[h.l4];
            if here == 44 {
                let frag = be16(frame, h.l4 + 2);
                h.fragment = frag & 0xfff9 != 0;
                if frag & 0xfff8 != 0 {
                    h.later_fragment = true;
                    h.l4 = end;
                    return Ok(h);
                }
            }
            if h.l4 + len > end {
                return Err(DropReason::Truncated);
            }
            h.l4 += len;
        }
        Ok(h)
    }

    /// Source address of an IP packet; of an ARP message the sender's protocol address.
    #[inline]
    pub fn src(&self, frame: &[u8]) -> IpAddr {
        match self.l3 {
            L3::Ipv4 => IpAddr::V4(Ipv4Addr::from(array::<4>(frame, ETH_LEN + 12))),
            L3::Ipv6 => IpAddr::V6(Ipv6Addr::from(array::<16>(frame, ETH_LEN + 8))),
            L3::Arp => IpAddr::V4(Ipv4Addr::from(array::<4>(frame, ETH_LEN + 14))),
        }
    }

    /// Destination address of an IP packet; of an ARP message the target's protocol address.
    #[inline]
    pub fn dst(&self, frame: &[u8]) -> IpAddr {
        match self.l3 {
            L3::Ipv4 => IpAddr::V4(Ipv4Addr::from(array::<4>(frame, ETH_LEN + 16))),
            L3::Ipv6 => IpAddr::V6(Ipv6Addr::from(array::<16>(frame, ETH_LEN + 24))),
            L3::Arp => IpAddr::V4(Ipv4Addr::from(array::<4>(frame, ETH_LEN + 24))),
        }
    }

    /// Source and destination port of TCP, UDP and SCTP, zeros for everything else.
    #[inline]
    pub fn ports(&self, frame: &[u8]) -> (u16, u16) {
        match self.proto {
            proto::TCP | proto::UDP | proto::SCTP if self.l4 + 4 <= self.end => {
                (be16(frame, self.l4), be16(frame, self.l4 + 2))
            }
            _ => (0, 0),
        }
    }

    /// Length of the TCP header as it says itself, of the UDP header, or zero for everything else. A claim: it
    /// may be shorter than a header can be, and longer than the packet.
    #[inline]
    pub fn l4_len(&self, frame: &[u8]) -> usize {
        match self.proto {
            proto::TCP => usize::from(array::<1>(frame, self.l4 + 12)[0] >> 4) * 4,
            proto::UDP => UDP_LEN,
            _ => 0,
        }
    }

    /// Where in the transport header TCP and UDP have their checksum.
    #[inline]
    pub fn checksum_at(&self) -> Option<u16> {
        match self.proto {
            proto::TCP => Some(16),
            proto::UDP => Some(6),
            _ => None,
        }
    }

    /// TTL or hop limit.
    #[inline]
    pub fn ttl(&self, frame: &[u8]) -> u8 {
        match self.l3 {
            L3::Ipv4 => array::<1>(frame, ETH_LEN + 8)[0],
            L3::Ipv6 => array::<1>(frame, ETH_LEN + 7)[0],
            L3::Arp => 0,
        }
    }

    /// The traffic class octet: DSCP in the upper six bits, ECN in the lower two.
    #[inline]
    pub fn traffic_class(&self, frame: &[u8]) -> u8 {
        match self.l3 {
            L3::Ipv4 => array::<1>(frame, ETH_LEN + 1)[0],
            L3::Ipv6 => (be16(frame, ETH_LEN) >> 4) as u8,
            L3::Arp => 0,
        }
    }
}

/// RFC 1071 over an IPv4 header including its checksum field gives all ones.
#[inline]
fn header_sum_is_right(header: &[u8]) -> bool {
    let mut sum = 0u32;
    for pair in header.chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eth(ethertype: u16, rest: &[u8]) -> Vec<u8> {
        let mut f = vec![0u8; 12];
        f.extend(ethertype.to_be_bytes());
        f.extend(rest);
        f
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut ip = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 64];
        ip.extend([0xfd; 16]);
        ip.extend([0xfc; 16]);
        ip.extend(payload);
        eth(0x86dd, &ip)
    }

    /// A UDP packet captured from Linux: 10.0.0.1:53 > 10.0.0.2:4660, no payload, then padding.
    const UDP4: [u8; 46] = [
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0x66, 0xcf, 10, 0, 0,
        1, 10, 0, 0, 2, 0, 53, 0x12, 0x34, 0, 8, 0, 0, 0xde, 0xad, 0xbe, 0xef,
    ];

    #[test]
    fn ipv4_offsets_and_padding() {
        let h = Headers::parse(&UDP4).unwrap();
        assert_eq!(
            (h.l4, h.end, h.proto, h.plain, h.fragment),
            (34, 42, 17, true, false)
        );
        assert_eq!(h.ports(&UDP4), (53, 0x1234));
        assert_eq!(h.dst(&UDP4), IpAddr::from([10, 0, 0, 2]));
        assert_eq!(h.ttl(&UDP4), 64);
    }

    #[test]
    fn malformed_ipv4_is_named() {
        let with = |at: usize, v: u8| {
            let mut f = UDP4;
            f[at] = v;
            Headers::parse(&f)
        };
        assert_eq!(with(14, 0x44), Err(DropReason::BadIpHeader)); // header of 16 bytes
        assert_eq!(with(14, 0x65), Err(DropReason::BadIpHeader)); // version 6 in an IPv4 frame
        assert_eq!(with(17, 19), Err(DropReason::BadIpHeader)); // total shorter than the header
        assert_eq!(with(16, 4), Err(DropReason::Truncated)); // total longer than the frame
        assert_eq!(with(22, 63), Err(DropReason::BadIpHeader)); // checksum wrong
        for n in 0..34 {
            assert_eq!(
                Headers::parse(&UDP4[..n]),
                Err(DropReason::Truncated),
                "{n} bytes"
            );
        }
    }

    #[test]
    fn ipv6_extension_chains_are_walked_or_left_alone() {
        let h = Headers::parse(&v6(17, &[0; 8])).unwrap();
        assert_eq!((h.l4, h.plain), (54, true));
        let h = Headers::parse(&v6(
            0,
            &[&[60, 0][..], &[0; 6], &[17, 0], &[0; 6], &[0; 8]].concat(),
        ))
        .unwrap();
        assert_eq!((h.l4, h.proto, h.plain), (70, 17, false));
        // A later fragment has no transport header to look at.
        let h = Headers::parse(&v6(44, &[6, 0, 0, 9, 0, 0, 0, 1, 1, 2, 3, 4])).unwrap();
        assert!(h.fragment && h.later_fragment && h.l4 == h.end && h.proto == 6);
        // An "atomic fragment" (RFC 6946) is not a fragment.
        let h = Headers::parse(&v6(44, &[&[17, 0, 0, 0, 0, 0, 0, 1][..], &[0; 8]].concat())).unwrap();
        assert!(!h.fragment && h.l4 == 62);
        assert_eq!(
            Headers::parse(&v6(0, &[17, 200, 0, 0, 0, 0, 0, 0])),
            Err(DropReason::Truncated)
        );
        let chain: Vec<u8> = std::iter::repeat_n([60u8, 0, 0, 0, 0, 0, 0, 0], 20)
            .flatten()
            .collect();
        let h = Headers::parse(&v6(60, &chain)).unwrap();
        assert_eq!(h.l4, h.end);
    }

    #[test]
    fn tags_and_unknown_ethertypes_are_named() {
        assert_eq!(Headers::parse(&eth(0x8100, &[0; 60])), Err(DropReason::Vlan));
        assert_eq!(Headers::parse(&eth(0x88a8, &[0; 60])), Err(DropReason::Vlan));
        assert_eq!(Headers::parse(&eth(0x88cc, &[0; 60])), Err(DropReason::EtherType));
        assert_eq!(Headers::parse(&eth(0x0806, &[0; 27])), Err(DropReason::Truncated));
        assert_eq!(Headers::parse(&eth(0x0806, &[0; 28])).unwrap().l3, L3::Arp);
    }

    proptest::proptest! {
        #[test]
        fn offsets_stay_within_any_frame(mut f in proptest::collection::vec(proptest::num::u8::ANY, 0..200), kind in 0..3) {
            if f.len() >= 14 {
                let t = [0x0800u16, 0x86dd, 0x0806][kind as usize];
                f[12..14].copy_from_slice(&t.to_be_bytes());
                if f.len() > 14 { f[14] = if t == 0x86dd { 0x60 } else { 0x45 }; }
            }
            if let Ok(h) = Headers::parse(&f) {
                assert!(h.l4 <= h.end && h.end <= f.len());
                h.ports(&f);
            }
        }
    }
}
