//! Echo requests for measuring the way to a peer (RFC 792, RFC 4443 section 4), and their replies.
//!
//! Pure bytes: the caller keeps the time of each sequence number, and limits how many it waits for.

use crate::wire::{IPV4_LEN, IPV6_LEN};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet,
    Ipv6Repr,
};
use std::net::IpAddr;

/// Tells a person with a packet capture where the ping comes from.
const PAYLOAD: &[u8; 16] = b"podwire probe...";

/// Length of the longest probe.
pub const PROBE_LEN: usize = IPV6_LEN + 8 + PAYLOAD.len();

/// Write an echo request as an IP packet and give its length: zero when the two addresses are of different
/// families, or `out` is shorter than [`PROBE_LEN`].
pub fn echo_request(src: IpAddr, dst: IpAddr, ident: u16, seq: u16, out: &mut [u8]) -> usize {
    let caps = ChecksumCapabilities::default();
    let Some(out) = out.get_mut(..PROBE_LEN) else {
        return 0;
    };
    match (src, dst) {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            let echo = Icmpv4Repr::EchoRequest {
                ident,
                seq_no: seq,
                data: PAYLOAD,
            };
            let payload_len = echo.buffer_len();
            let next_header = IpProtocol::Icmp;
            let ip = Ipv4Repr {
                src_addr,
                dst_addr,
                next_header,
                payload_len,
                hop_limit: 64,
            };
            let (header, message) = out.split_at_mut(IPV4_LEN);
            ip.emit(&mut Ipv4Packet::new_unchecked(header), &caps);
            echo.emit(
                &mut Icmpv4Packet::new_unchecked(&mut message[..payload_len]),
                &caps,
            );
            IPV4_LEN + payload_len
        }
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
            let echo = Icmpv6Repr::EchoRequest {
                ident,
                seq_no: seq,
                data: PAYLOAD,
            };
            let payload_len = echo.buffer_len();
            let next_header = IpProtocol::Icmpv6;
            let ip = Ipv6Repr {
                src_addr,
                dst_addr,
                next_header,
                payload_len,
                hop_limit: 64,
            };
            let (header, message) = out.split_at_mut(IPV6_LEN);
            ip.emit(&mut Ipv6Packet::new_unchecked(header));
            let mut packet = Icmpv6Packet::new_unchecked(&mut message[..payload_len]);
            echo.emit(&src_addr, &dst_addr, &mut packet, &caps);
            IPV6_LEN + payload_len
        }
        _ => 0,
    }
}

/// Source, identifier and sequence number of an echo reply; `None` for every other packet. Checksums are
/// verified. `packet` begins with its IP header.
pub fn parse_echo_reply(packet: &[u8]) -> Option<(IpAddr, u16, u16)> {
    let caps = ChecksumCapabilities::default();
    match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            let header = Ipv4Repr::parse(&ip, &caps).ok()?;
            if header.next_header != IpProtocol::Icmp || ip.more_frags() || ip.frag_offset() != 0 {
                return None;
            }
            let message = Icmpv4Packet::new_checked(ip.payload()).ok()?;
            match Icmpv4Repr::parse(&message, &caps).ok()? {
                Icmpv4Repr::EchoReply { ident, seq_no, .. } => Some((header.src_addr.into(), ident, seq_no)),
                _ => None,
            }
        }
        6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            if ip.next_header() != IpProtocol::Icmpv6 {
                return None;
            }
            let message = Icmpv6Packet::new_checked(ip.payload()).ok()?;
            match Icmpv6Repr::parse(&ip.src_addr(), &ip.dst_addr(), &message, &caps).ok()? {
                Icmpv6Repr::EchoReply { ident, seq_no, .. } => Some((ip.src_addr().into(), ident, seq_no)),
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Instant, PodMtu};
    use crate::stack::Gateway;

    fn pairs() -> [(IpAddr, IpAddr); 2] {
        [("10.244.1.0", "10.244.2.0"), ("fd00:1::", "fd00:2::")]
            .map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap()))
    }

    /// What a peer's gateway answers to a probe.
    fn reply(src: IpAddr, dst: IpAddr) -> Vec<u8> {
        let mut out = [0xee; PROBE_LEN];
        let n = echo_request(src, dst, 0x1234, 77, &mut out);
        assert_eq!(parse_echo_reply(&out[..n]), None, "a request is no reply");
        let mut peer = Gateway::new(&[dst], PodMtu(1450), 1);
        peer.input(&out[..n], Instant::ZERO).unwrap();
        let mut answers = Vec::new();
        peer.poll(Instant::ZERO, |p| answers.push(p.to_vec()));
        assert_eq!(answers.len(), 1);
        answers.remove(0)
    }

    #[test]
    fn a_peers_gateway_answers_a_probe() {
        for (src, dst) in pairs() {
            assert_eq!(parse_echo_reply(&reply(src, dst)), Some((dst, 0x1234, 77)));
        }
        let [(v4, _), (v6, _)] = pairs();
        assert_eq!(echo_request(v4, v6, 1, 1, &mut [0; PROBE_LEN]), 0);
        assert_eq!(echo_request(v4, v4, 1, 1, &mut [0; 10]), 0);
    }

    #[test]
    fn every_damaged_byte_of_a_reply_that_is_summed_is_noticed() {
        for (src, dst) in pairs() {
            let good = reply(src, dst);
            // From the addresses on everything is under a checksum in both families.
            for at in good.len() - 16 - 8 - 8..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x55;
                assert_eq!(parse_echo_reply(&bad), None, "byte {at}");
            }
            for n in 0..good.len() {
                assert_eq!(parse_echo_reply(&good[..n]), None);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_break_it(mut b in proptest::collection::vec(proptest::num::u8::ANY, 0..100), six: bool) {
            if let Some(first) = b.first_mut() { *first = if six { 0x60 } else { 0x45 }; }
            let _ = parse_echo_reply(&b);
        }
    }
}
