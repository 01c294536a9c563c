//! The ICMP errors a router must send (RFC 792, RFC 1812 section 4.3, RFC 4443).
//!
//! An error quotes the first bytes of the packet that caused it, exactly as they were: hosts find the socket
//! it concerns by addresses, ports and TCP sequence number. The packet may be a super-frame of up to 64 KiB
//! with a partial checksum; neither matters, since neither the end nor the checksum of a quote is looked at.

use crate::wire::bytes::{array, be16, put, put_be16, put_be32};
use crate::wire::{IPV4_LEN, IPV6_LEN, proto};
use smoltcp::wire::{IpProtocol, checksum};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Type, code, checksum and four more bytes.
const ICMP_LEN: usize = 8;
/// RFC 1812 section 4.3.2.3: as much as fits into the packet every host must accept.
const LONGEST_V4: usize = 576;
/// RFC 4443 section 2.4(c): as much as fits into the minimum MTU.
const LONGEST_V6: usize = 1280;
/// Room for the longest error.
pub const ERROR_LEN: usize = LONGEST_V6;

/// Why a packet could not be delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// The address lies in a known subnet but nobody holds it.
    HostUnreachable,
    /// No route leads to the address.
    NetUnreachable,
    /// Nothing listens at that port.
    PortUnreachable,
    /// It is not allowed there.
    Prohibited,
    /// TTL or hop limit ran out.
    TtlExceeded,
    /// The packet is larger than the next hop allows. Over IPv4 this is "fragmentation needed"; whether the
    /// packet forbade fragmentation is for the caller to look at.
    TooBig {
        /// The largest IP packet the next hop takes.
        mtu: u16,
    },
}

impl Trouble {
    /// ICMP type and code (RFC 792, RFC 1191 section 4, RFC 1812 section 5.2.7.1).
    fn v4(self) -> [u8; 2] {
        match self {
            Trouble::NetUnreachable => [3, 0],
            Trouble::HostUnreachable => [3, 1],
            Trouble::PortUnreachable => [3, 3],
            Trouble::Prohibited => [3, 13],
            Trouble::TooBig { .. } => [3, 4],
            Trouble::TtlExceeded => [11, 0],
        }
    }

    /// ICMPv6 type and code (RFC 4443 section 3).
    fn v6(self) -> [u8; 2] {
        match self {
            Trouble::NetUnreachable => [1, 0],
            Trouble::HostUnreachable => [1, 3],
            Trouble::PortUnreachable => [1, 4],
            Trouble::Prohibited => [1, 1],
            Trouble::TooBig { .. } => [2, 0],
            Trouble::TtlExceeded => [3, 0],
        }
    }
}

/// Write the IP packet that tells the sender of `packet` of its trouble, and give its length.
///
/// `packet` begins with its IP header and may be cut short; `source` is the node's own address, of the same
/// family. `out` needs [`ERROR_LEN`] bytes. `None` when no error may be sent (RFC 1122 section 3.2.2,
/// RFC 4443 section 2.4(e)): in answer to an error, to a later fragment, to a sender that is not a single
/// host, to a packet for many; also when `packet` is malformed or `out` too short. Limiting the rate, and
/// keeping frames with a group MAC away from here, is left to the caller.
pub fn error(trouble: Trouble, packet: &[u8], source: IpAddr, out: &mut [u8]) -> Option<usize> {
    match (packet.first()? >> 4, source) {
        (4, IpAddr::V4(source)) => error_v4(trouble, packet, source, out),
        (6, IpAddr::V6(source)) => error_v6(trouble, packet, source, out),
        _ => None,
    }
}

fn error_v4(trouble: Trouble, packet: &[u8], source: Ipv4Addr, out: &mut [u8]) -> Option<usize> {
    let header = usize::from(packet[0] & 15) * 4;
    let total = usize::from(be16(packet, 2));
    if header < IPV4_LEN || header > packet.len() || total < header {
        return None;
    }
    let later_fragment = be16(packet, 6) & 0x1fff != 0;
    let sender = Ipv4Addr::from(array::<4>(packet, 12));
    let receiver = Ipv4Addr::from(array::<4>(packet, 16));
    // Network zero, loopback, multicast, class E and broadcast define no single host (RFC 1122).
    if later_fragment || !is_one_host(sender) || !is_one_host(receiver) {
        return None;
    }
    // Only questions and answers are known not to be errors; redirects and types yet to come may be.
    let kind = packet.get(header).filter(|_| total > header);
    if packet[9] == proto::ICMP && !kind.is_some_and(|k| matches!(k, 0 | 8 | 13..=18)) {
        return None;
    }

    let quote = &packet[..packet.len().min(total).min(LONGEST_V4 - IPV4_LEN - ICMP_LEN)];
    let len = IPV4_LEN + ICMP_LEN + quote.len();
    let (ip, message) = out.get_mut(..len)?.split_at_mut(IPV4_LEN);
    ip.fill(0);
    // Precedence "internetwork control" as RFC 1812 section 4.3.2.5 asks. Never to be fragmented, so that an
    // identification of zero is right (RFC 6864 section 4.1).
    put(ip, 0, &[0x45, 0xc0]);
    put_be16(ip, 2, len as u16);
    put_be16(ip, 6, 0x4000);
    put(ip, 8, &[64, proto::ICMP]);
    put(ip, 12, &source.octets());
    put(ip, 16, &sender.octets());
    put_be16(ip, 10, !checksum::data(ip));

    write_message(message, trouble.v4(), quote);
    if let Trouble::TooBig { mtu } = trouble {
        put_be16(message, 6, mtu); // RFC 1191 section 4
    }
    put_be16(message, 2, !checksum::data(message));
    Some(len)
}

fn error_v6(trouble: Trouble, packet: &[u8], source: Ipv6Addr, out: &mut [u8]) -> Option<usize> {
    if packet.len() < IPV6_LEN {
        return None;
    }
    let total = IPV6_LEN + usize::from(be16(packet, 4));
    let sender = Ipv6Addr::from(array::<16>(packet, 8));
    let receiver = Ipv6Addr::from(array::<16>(packet, 24));
    if sender.is_unspecified() || sender.is_loopback() || sender.is_multicast() {
        return None;
    }
    // Path MTU discovery works for multicast, nothing else does (RFC 4443 section 2.4(e.3)).
    let too_big = matches!(trouble, Trouble::TooBig { .. });
    if receiver.is_multicast() && !too_big {
        return None;
    }
    let known = &packet[..packet.len().min(total)];
    if !may_be_answered(known) {
        return None;
    }

    let quote = &known[..known.len().min(LONGEST_V6 - IPV6_LEN - ICMP_LEN)];
    let len = IPV6_LEN + ICMP_LEN + quote.len();
    let (ip, message) = out.get_mut(..len)?.split_at_mut(IPV6_LEN);
    ip.fill(0);
    ip[0] = 0x60;
    put_be16(ip, 4, message.len() as u16);
    put(ip, 6, &[proto::ICMPV6, 64]);
    put(ip, 8, &source.octets());
    put(ip, 24, &sender.octets());

    write_message(message, trouble.v6(), quote);
    if let Trouble::TooBig { mtu } = trouble {
        put_be32(message, 4, u32::from(mtu));
    }
    let pseudo = checksum::pseudo_header_v6(&source, &sender, IpProtocol::Icmpv6, message.len() as u32);
    put_be16(message, 2, !checksum::combine(&[pseudo, checksum::data(message)]));
    Some(len)
}

fn write_message(message: &mut [u8], type_and_code: [u8; 2], quote: &[u8]) {
    let (head, body) = message.split_at_mut(ICMP_LEN);
    head.fill(0);
    put(head, 0, &type_and_code);
    body.copy_from_slice(quote);
}

fn is_one_host(ip: Ipv4Addr) -> bool {
    !matches!(ip.octets()[0], 0 | 127 | 224..)
}

/// Walk the extension headers: the packet must show that it is no error, redirect or later fragment. One
/// whose chain is too long, or cut off, shows nothing.
fn may_be_answered(packet: &[u8]) -> bool {
    let (mut next, mut at) = (packet[6], IPV6_LEN);
    for _ in 0..=8 {
        let Some(&[follows, units]) = packet.get(at..).and_then(|b| b.first_chunk::<2>()) else {
            return !matches!(next, 0 | 43 | 44 | 51 | 60 | proto::ICMPV6);
        };
        let len = match next {
            0 | 43 | 60 => (usize::from(units) + 1) * 8,
            51 => (usize::from(units) + 2) * 4,
            44 if be16(packet, at + 2) & 0xfff8 != 0 => return false,
            44 => 8,
            // Informational messages have the upper bit set (RFC 4443 section 2.1); 137 is a redirect.
            proto::ICMPV6 => return follows >= 128 && follows != 137,
            _ => return true,
        };
        next = follows;
        at += len;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, Icmpv6Repr, Ipv4Packet, Ipv6Packet};

    const POD4: [u8; 4] = [10, 244, 1, 2];
    const FAR4: [u8; 4] = [10, 244, 9, 9];
    const NODE4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1));
    const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
    const FAR6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9);
    const NODE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1));

    fn v4(src: [u8; 4], dst: [u8; 4], proto: u8, payload: &[u8]) -> Vec<u8> {
        let total = (20 + payload.len() as u16).to_be_bytes();
        let head = [
            0x45, 0, total[0], total[1], 0xab, 0xcd, 0x40, 0, 64, proto, 0x12, 0x34,
        ];
        [&head[..], &src, &dst, payload].concat()
    }

    fn v6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u16).to_be_bytes();
        let head = [0x60, 0, 0, 0, len[0], len[1], next, 64];
        [&head[..], &src.octets(), &dst.octets(), payload].concat()
    }

    fn all() -> [Trouble; 5] {
        use Trouble::*;
        [
            HostUnreachable,
            NetUnreachable,
            PortUnreachable,
            TtlExceeded,
            TooBig { mtu: 1450 },
        ]
    }

    #[test]
    fn ipv4_errors_quote_the_packet_and_fit_576_bytes() {
        // A super-frame with options, a partial checksum and a TCP header to be recognised by.
        let tcp = [&[0x1f, 0x90, 0, 80, 1, 2, 3, 4][..], &vec![7; 60_000]].concat();
        for (payload, len) in [(&tcp[..], 576), (&tcp[..100], 20 + 8 + 120)] {
            let packet = v4(POD4, FAR4, 6, payload);
            for (trouble, head) in all().into_iter().zip([
                [3, 1, 0, 0, 0, 0],
                [3, 0, 0, 0, 0, 0],
                [3, 3, 0, 0, 0, 0],
                [11, 0, 0, 0, 0, 0],
                [3, 4, 0, 0, 0x05, 0xaa],
            ]) {
                let mut out = [0xee; ERROR_LEN];
                assert_eq!(error(trouble, &packet, NODE4, &mut out), Some(len));
                let ip = Ipv4Packet::new_checked(&out[..len]).unwrap();
                assert!(ip.verify_checksum());
                assert_eq!((IpAddr::V4(ip.src_addr()), ip.dst_addr().octets()), (NODE4, POD4));
                assert_eq!(
                    (out[1], ip.hop_limit(), usize::from(ip.total_len())),
                    (0xc0, 64, len)
                );
                let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
                assert!(icmp.verify_checksum());
                assert_eq!([&out[20..22], &out[24..28]].concat(), head, "{trouble:?}");
                assert_eq!(out[28..len], packet[..len - 28]);
            }
        }
    }

    #[test]
    fn ipv6_errors_quote_the_packet_and_fit_1280_bytes() {
        let tcp = [&[0x1f, 0x90, 0, 80, 1, 2, 3, 4][..], &vec![7; 60_000]].concat();
        for (payload, len) in [(&tcp[..], 1280), (&tcp[..100], 40 + 8 + 140)] {
            let packet = v6(POD6, FAR6, 6, payload);
            for (trouble, head) in all().into_iter().zip([
                [1, 3, 0, 0, 0, 0],
                [1, 0, 0, 0, 0, 0],
                [1, 4, 0, 0, 0, 0],
                [3, 0, 0, 0, 0, 0],
                [2, 0, 0, 0, 0x05, 0xaa],
            ]) {
                let mut out = [0xee; ERROR_LEN];
                assert_eq!(error(trouble, &packet, NODE6, &mut out), Some(len));
                let ip = Ipv6Packet::new_checked(&out[..len]).unwrap();
                assert_eq!(
                    (IpAddr::V6(ip.src_addr()), ip.dst_addr(), ip.total_len()),
                    (NODE6, POD6, len)
                );
                let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
                let caps = ChecksumCapabilities::default();
                assert!(Icmpv6Repr::parse(&ip.src_addr(), &POD6, &icmp, &caps).is_ok());
                assert_eq!([&out[40..42], &out[44..48]].concat(), head, "{trouble:?}");
                assert_eq!(out[48..len], packet[..len - 48]);
            }
        }
    }

    #[test]
    fn ethernet_padding_is_not_quoted() {
        let mut packet = v4(POD4, FAR4, 17, &[0; 8]);
        packet.extend([0; 18]);
        let mut out = [0; ERROR_LEN];
        assert_eq!(error(Trouble::TtlExceeded, &packet, NODE4, &mut out), Some(56));
    }

    #[test]
    fn ipv4_silence() {
        let mut later = v4(POD4, FAR4, 17, &[0; 64]);
        later[7] = 1;
        let mut short_header = v4(POD4, FAR4, 17, &[0; 8]);
        short_header[0] = 0x44;
        for (name, packet, answered) in [
            ("udp", v4(POD4, FAR4, 17, &[0; 8]), true),
            ("echo request", v4(POD4, FAR4, 1, &[8, 0, 0, 0]), true),
            ("echo reply", v4(POD4, FAR4, 1, &[0, 0, 0, 0]), true),
            ("unreachable", v4(POD4, FAR4, 1, &[3, 1, 0, 0]), false),
            ("redirect", v4(POD4, FAR4, 1, &[5, 1, 0, 0]), false),
            ("time exceeded", v4(POD4, FAR4, 1, &[11, 0, 0, 0]), false),
            (
                "icmp of an unknown type",
                v4(POD4, FAR4, 1, &[77, 0, 0, 0]),
                false,
            ),
            ("icmp without a type", v4(POD4, FAR4, 1, &[]), false),
            ("later fragment", later, false),
            ("from nowhere", v4([0; 4], FAR4, 17, &[0; 8]), false),
            ("from loopback", v4([127, 0, 0, 1], FAR4, 17, &[0; 8]), false),
            ("from a group", v4([224, 0, 0, 1], FAR4, 17, &[0; 8]), false),
            ("from class E", v4([240, 0, 0, 1], FAR4, 17, &[0; 8]), false),
            ("to a group", v4(POD4, [239, 1, 1, 1], 17, &[0; 8]), false),
            ("to all", v4(POD4, [255; 4], 17, &[0; 8]), false),
            ("malformed", short_header, false),
        ] {
            let got = error(Trouble::HostUnreachable, &packet, NODE4, &mut [0; ERROR_LEN]);
            assert_eq!(got.is_some(), answered, "{name}");
        }
        let udp = v4(POD4, FAR4, 17, &[0; 8]);
        assert_eq!(
            error(Trouble::TtlExceeded, &udp, NODE6, &mut [0; ERROR_LEN]),
            None
        );
        assert_eq!(error(Trouble::TtlExceeded, &udp, NODE4, &mut [0; 55]), None);
        assert_eq!(error(Trouble::TtlExceeded, &[], NODE4, &mut [0; 55]), None);
    }

    #[test]
    fn ipv6_silence() {
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let fragment = |offset: u8| [17, 0, 0, offset, 0, 0, 0, 1];
        let chain: Vec<u8> = std::iter::repeat_n(options(60), 20).flatten().collect();
        for (name, packet, answered) in [
            ("udp", v6(POD6, FAR6, 17, &[0; 8]), true),
            ("echo request", v6(POD6, FAR6, 58, &[128, 0]), true),
            (
                "udp behind options",
                v6(POD6, FAR6, 60, &[options(17), [0; 8]].concat()),
                true,
            ),
            (
                "first fragment",
                v6(POD6, FAR6, 44, &[fragment(1), [0; 8]].concat()),
                true,
            ),
            (
                "later fragment",
                v6(POD6, FAR6, 44, &[fragment(8), [0; 8]].concat()),
                false,
            ),
            ("error", v6(POD6, FAR6, 58, &[1, 0]), false),
            (
                "error behind options",
                v6(POD6, FAR6, 60, &[options(58), [3; 8]].concat()),
                false,
            ),
            ("redirect", v6(POD6, FAR6, 58, &[137, 0]), false),
            ("icmp without a type", v6(POD6, FAR6, 58, &[]), false),
            ("a chain too long", v6(POD6, FAR6, 60, &chain), false),
            ("a chain cut off", v6(POD6, FAR6, 60, &[58]), false),
            (
                "from nowhere",
                v6(Ipv6Addr::UNSPECIFIED, FAR6, 17, &[0; 8]),
                false,
            ),
            ("from loopback", v6(Ipv6Addr::LOCALHOST, FAR6, 17, &[0; 8]), false),
            ("from a group", v6(group, FAR6, 17, &[0; 8]), false),
            ("to a group", v6(POD6, group, 17, &[0; 8]), false),
        ] {
            let got = error(Trouble::HostUnreachable, &packet, NODE6, &mut [0; ERROR_LEN]);
            assert_eq!(got.is_some(), answered, "{name}");
        }
        let to_group = v6(POD6, group, 17, &[0; 8]);
        assert!(
            error(
                Trouble::TooBig { mtu: 1400 },
                &to_group,
                NODE6,
                &mut [0; ERROR_LEN]
            )
            .is_some()
        );
        assert_eq!(
            error(Trouble::TtlExceeded, &to_group[..39], NODE6, &mut [0; ERROR_LEN]),
            None
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_break_it_and_no_error_begets_another(
            mut b in proptest::collection::vec(proptest::num::u8::ANY, 0..700),
            six: bool, next in 0..7, room in 0usize..1300,
        ) {
            let next = [0, 1, 6, 43, 44, 58, 60][next as usize];
            if b.len() > 9 {
                b[0] = if six { 0x60 } else { 0x45 };
                b[if six { 6 } else { 9 }] = next;
                b[if six { 4 } else { 2 }] = 0;
                if !six { b[6] = 0; b[7] = 0; }
            }
            let mut out = [0; ERROR_LEN];
            for trouble in all() {
                for node in [NODE4, NODE6] {
                    let _ = error(trouble, &b, node, &mut vec![0; room]);
                    if let Some(n) = error(trouble, &b, node, &mut out) {
                        assert_eq!(error(trouble, &out[..n], node, &mut [0; ERROR_LEN]), None);
                    }
                }
            }
        }
    }
}
