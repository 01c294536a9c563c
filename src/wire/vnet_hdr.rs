//! The virtio-net header in front of each frame of a TAP with IFF_VNET_HDR (linux/virtio_net.h), 10 bytes
//! in the machine's byte order.

use super::bytes::{array, put};
use super::{Headers, L3, proto};

/// Length of the header podwire uses.
pub const VNET_HDR_LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What kind of super-frame follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Gso {
    /// An ordinary frame.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

impl Gso {
    /// The kind of super-frame that packets with these headers can be merged to.
    #[inline]
    pub fn of(h: &Headers) -> Gso {
        match (h.proto, h.l3) {
            (proto::TCP, L3::Ipv4) => Gso::Tcp4,
            (proto::TCP, L3::Ipv6) => Gso::Tcp6,
            (proto::UDP, _) => Gso::Udp,
            _ => Gso::None,
        }
    }
}

/// The header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VnetHdr {
    /// Where the unfinished checksum's data begin and where in them its field is; none when complete.
    pub partial: Option<(u16, u16)>,
    /// Kind of super-frame.
    pub gso: Gso,
    /// The sender marks congestion on the first segment only (TCP with ECN).
    pub ecn: bool,
    /// Length of all headers of a super-frame; a hint of the sender.
    pub hdr_len: u16,
    /// Payload bytes of each segment of a super-frame.
    pub gso_size: u16,
}

/// The header names a kind of super-frame podwire did not ask for, or is not all there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed virtio-net header")]
pub struct VnetHdrError;

impl VnetHdr {
    /// Decode the first 10 bytes of `b`. The fields are the sender's claims: `offload` checks them against
    /// the frame before use.
    ///
    /// # Errors
    /// Too short, or an unknown kind of super-frame.
    pub fn parse(b: &[u8]) -> Result<VnetHdr, VnetHdrError> {
        if b.len() < VNET_HDR_LEN {
            return Err(VnetHdrError);
        }
        let u16_at = |at| u16::from_ne_bytes(array(b, at));
        let gso = match b[1] & !GSO_ECN {
            0 => Gso::None,
            GSO_TCPV4 => Gso::Tcp4,
            GSO_TCPV6 => Gso::Tcp6,
            GSO_UDP_L4 => Gso::Udp,
            _ => return Err(VnetHdrError),
        };
        Ok(VnetHdr {
            partial: (b[0] & NEEDS_CSUM != 0).then(|| (u16_at(6), u16_at(8))),
            gso,
            ecn: b[1] & GSO_ECN != 0,
            hdr_len: u16_at(2),
            gso_size: u16_at(4),
        })
    }

    /// Encode.
    pub fn emit(&self) -> [u8; VNET_HDR_LEN] {
        let mut b = [0; VNET_HDR_LEN];
        if let Some((start, offset)) = self.partial {
            b[0] = NEEDS_CSUM;
            put(&mut b, 6, &start.to_ne_bytes());
            put(&mut b, 8, &offset.to_ne_bytes());
        }
        b[1] = match self.gso {
            Gso::None => 0,
            Gso::Tcp4 => GSO_TCPV4,
            Gso::Tcp6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
        } | if self.ecn { GSO_ECN } else { 0 };
        put(&mut b, 2, &self.hdr_len.to_ne_bytes());
        put(&mut b, 4, &self.gso_size.to_ne_bytes());
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_unknown_kinds() {
        let h = VnetHdr {
            partial: Some((34, 16)),
            gso: Gso::Tcp4,
            ecn: true,
            hdr_len: 66,
            gso_size: 1398,
        };
        assert_eq!(VnetHdr::parse(&h.emit()), Ok(h));
        assert_eq!(VnetHdr::parse(&[0; 10]), Ok(VnetHdr::default()));
        assert_eq!(VnetHdr::parse(&[0; 9]), Err(VnetHdrError));
        assert_eq!(VnetHdr::parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), Err(VnetHdrError)); // old UFO
    }
}
