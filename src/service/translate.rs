//! Other addresses and ports in a packet, in place. Lengths never change, so that a super-frame is one packet here.
//!
//! Checksums are updated by the difference (RFC 1624): what was wrong before stays wrong, and the payload is not read.

use super::conntrack::{End, Tuple};
use super::crc32c;
use super::state::SCTP_LEN;
use crate::model::{DropReason, Transport};
use crate::wire::bytes::{array, be16, put, put_be16};
use crate::wire::checksum::Sum;
use crate::wire::{ETH_LEN, Headers, L3, UDP_LEN, proto};
use std::net::IpAddr;

/// What words that were replaced add to a one's complement sum. Zero: nothing was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Difference(u16);

impl Difference {
    /// Put `new` where other bytes are; both are whole words of the message.
    pub fn replace(self, frame: &mut [u8], at: usize, new: &[u8]) -> Difference {
        let Some(place) = frame.get_mut(at..).and_then(|f| f.get_mut(..new.len())) else {
            return self;
        };
        let mut sum = Sum::default().with16(self.0);
        for (old, new) in place.chunks_exact(2).zip(new.chunks_exact(2)) {
            let (old, new) = (be16(old, 0), be16(new, 0));
            if old != new {
                sum = sum.with16(!old).with16(new);
            }
        }
        place.copy_from_slice(new);
        Difference(sum.fold())
    }

    /// Both.
    pub fn and(self, other: Difference) -> Difference {
        Difference(Sum::default().with16(self.0).with16(other.0).fold())
    }

    /// A checksum after it.
    pub fn apply(self, checksum: u16) -> u16 {
        match self.0 {
            0 => checksum,
            difference => Sum::default().with16(!checksum).with16(difference).finish(),
        }
    }

    /// A partial checksum, which is the sum itself, after it.
    fn apply_partial(self, sum: u16) -> u16 {
        match self.0 {
            0 => sum,
            difference => Sum::default().with16(sum).with16(difference).fold(),
        }
    }
}

/// The transport of a packet, if Services have it.
#[inline]
pub(super) fn transport(protocol: u8) -> Option<Transport> {
    match protocol {
        proto::TCP => Some(Transport::Tcp),
        proto::UDP => Some(Transport::Udp),
        proto::SCTP => Some(Transport::Sctp),
        _ => None,
    }
}

/// Ends of a packet with a transport header.
///
/// # Errors
/// The header is not all there.
#[inline]
pub(super) fn tuple(frame: &[u8], h: &Headers, transport: Transport) -> Result<Tuple, DropReason> {
    let least = match transport {
        Transport::Tcp => 20,
        Transport::Udp => UDP_LEN,
        Transport::Sctp => SCTP_LEN,
    };
    if h.l4 + least > h.end {
        return Err(DropReason::BadL4Header);
    }
    let (src, dst) = h.ports(frame);
    Ok(Tuple {
        transport,
        src: End {
            ip: h.src(frame),
            port: src,
        },
        dst: End {
            ip: h.dst(frame),
            port: dst,
        },
    })
}

/// Give a packet, whose transport header is all there, the ends of `to`. `partial` says that its checksum is left to a
/// device: the field holds the sum over the pseudo header, which knows no ports.
pub(super) fn rewrite(frame: &mut [u8], h: &Headers, partial: bool, to: &Tuple) {
    let addresses = self::addresses(frame, h, to.src.ip, to.dst.ip);
    let old = array::<4>(frame, h.l4);
    let mut new = [0; 4];
    put_be16(&mut new, 0, to.src.port);
    put_be16(&mut new, 2, to.dst.port);
    let ports = Difference::default().replace(frame, h.l4, &new);
    match to.transport {
        Transport::Sctp if partial || old == new => {}
        Transport::Sctp => {
            let sum = u32::from_le_bytes(array(frame, h.l4 + 8));
            let sum = crc32c::update(sum, old, new, h.end - h.l4);
            put(frame, h.l4 + 8, &sum.to_le_bytes());
        }
        Transport::Tcp | Transport::Udp => {
            let at = h.l4 + if to.transport == Transport::Tcp { 16 } else { 6 };
            let field = be16(frame, at);
            if partial {
                put_be16(frame, at, addresses.apply_partial(field));
            } else {
                let sum = segment_sum(to.transport, field, addresses.and(ports));
                put_be16(frame, at, sum);
            }
        }
    }
}

/// A complete checksum of TCP or UDP after a difference. Zero means none for UDP (RFC 768): it stays so, and no other
/// becomes so.
pub(super) fn segment_sum(transport: Transport, field: u16, difference: Difference) -> u16 {
    match (transport, field) {
        (Transport::Udp, 0) => 0,
        (Transport::Udp, _) => match difference.apply(field) {
            0 => 0xffff,
            sum => sum,
        },
        _ => difference.apply(field),
    }
}

/// Other addresses, and an IPv4 header checksum that is right with them. What they add to the sum of a pseudo header.
pub(super) fn addresses(frame: &mut [u8], h: &Headers, src: IpAddr, dst: IpAddr) -> Difference {
    ip_addresses(frame, ETH_LEN, h.l3 == L3::Ipv6, src, dst)
}

/// The same for the IP header at an offset. Addresses of the other family are not written.
pub(super) fn ip_addresses(frame: &mut [u8], ip: usize, six: bool, src: IpAddr, dst: IpAddr) -> Difference {
    match (six, src, dst) {
        (false, IpAddr::V4(src), IpAddr::V4(dst)) => {
            let d = Difference::default().replace(frame, ip + 12, &src.octets());
            let d = d.replace(frame, ip + 16, &dst.octets());
            let sum = d.apply(be16(frame, ip + 10));
            put_be16(frame, ip + 10, sum);
            d
        }
        (true, IpAddr::V6(src), IpAddr::V6(dst)) => {
            let d = Difference::default().replace(frame, ip + 8, &src.octets());
            d.replace(frame, ip + 24, &dst.octets())
        }
        _ => Difference::default(),
    }
}
