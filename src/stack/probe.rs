//! Echo requests for measuring the way to a peer (RFC 792, RFC 4443 section 4), and their replies.
//!
//! Pure bytes: what numbers, sizes and times mean is for the overlay's probes to know.

use crate::wire::bytes::put;
use crate::wire::{IPV4_LEN, IPV6_LEN};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Message, Icmpv4Packet, Icmpv4Repr, Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet,
    Ipv4Repr, Ipv6Packet, Ipv6Repr,
};
use std::net::IpAddr;

/// Tells a person with a packet capture where the ping comes from, and a podwire that four more bytes follow: how many
/// milliseconds ago the sender heard the node it asks.
const TAG: &[u8; 12] = b"podwire hear";
/// It never did.
const NEVER: u32 = u32::MAX;
const ICMP_LEN: usize = 8;
const PAYLOAD: usize = TAG.len() + 4;

/// Length of the smallest probe of a family, as an IP packet.
pub fn small_len(is_ipv6: bool) -> usize {
    ip_len(is_ipv6) + ICMP_LEN + PAYLOAD
}

fn ip_len(is_ipv6: bool) -> usize {
    if is_ipv6 { IPV6_LEN } else { IPV4_LEN }
}

/// What a probe says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Who asks.
    pub src: IpAddr,
    /// Who is asked, an address of the same family.
    pub dst: IpAddr,
    /// The identifier of the one who asks.
    pub ident: u16,
    /// The number of the probe.
    pub seq: u16,
    /// How many milliseconds ago the one who is asked was heard; none when it never was.
    pub heard_ms: Option<u32>,
}

/// Fill `out` with an echo request as an IP packet of just that length, zeros at its end. `false`, and `out` is of no
/// use, when the two addresses are of different families, or `out` is shorter than [`small_len`] or longer than an IP
/// packet.
pub fn echo_request(probe: &Probe, out: &mut [u8]) -> bool {
    let six = probe.src.is_ipv6();
    if out.len() < small_len(six) || out.len() > usize::from(u16::MAX) {
        return false;
    }
    let caps = ChecksumCapabilities::default();
    let hop_limit = 64;
    let (header, message) = out.split_at_mut(ip_len(six));
    let payload_len = message.len();
    let (tag, rest) = message[ICMP_LEN..].split_at_mut(TAG.len());
    tag.copy_from_slice(TAG);
    rest.fill(0);
    let heard = probe.heard_ms.map_or(NEVER, |ms| ms.min(NEVER - 1));
    put(rest, 0, &heard.to_be_bytes());
    match (probe.src, probe.dst) {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            let next_header = IpProtocol::Icmp;
            let ip = Ipv4Repr {
                src_addr,
                dst_addr,
                next_header,
                payload_len,
                hop_limit,
            };
            ip.emit(&mut Ipv4Packet::new_unchecked(header), &caps);
            let mut echo = Icmpv4Packet::new_unchecked(message);
            echo.set_msg_type(Icmpv4Message::EchoRequest);
            echo.set_msg_code(0);
            echo.set_echo_ident(probe.ident);
            echo.set_echo_seq_no(probe.seq);
            echo.fill_checksum();
        }
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
            let next_header = IpProtocol::Icmpv6;
            let ip = Ipv6Repr {
                src_addr,
                dst_addr,
                next_header,
                payload_len,
                hop_limit,
            };
            ip.emit(&mut Ipv6Packet::new_unchecked(header));
            let mut echo = Icmpv6Packet::new_unchecked(message);
            echo.set_msg_type(Icmpv6Message::EchoRequest);
            echo.set_msg_code(0);
            echo.set_echo_ident(probe.ident);
            echo.set_echo_seq_no(probe.seq);
            echo.fill_checksum(&src_addr, &dst_addr);
        }
        _ => return false,
    }
    true
}

/// A message that has to do with probes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Echo {
    /// A reply, to whomever.
    Reply {
        /// Its identifier.
        ident: u16,
        /// Its number.
        seq: u16,
    },
    /// A probe of another podwire, which is answered as every echo request is.
    Probe {
        /// How many milliseconds ago it heard this node; none when it never did.
        heard_ms: Option<u32>,
    },
}

/// The source of an echo reply or a probe, and what it says; `None` for every other packet. Checksums are verified.
/// `packet` begins with its IP header.
pub fn parse(packet: &[u8]) -> Option<(IpAddr, Echo)> {
    let caps = ChecksumCapabilities::default();
    match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            let header = Ipv4Repr::parse(&ip, &caps).ok()?;
            if header.next_header != IpProtocol::Icmp || ip.more_frags() || ip.frag_offset() != 0 {
                return None;
            }
            let message = Icmpv4Packet::new_checked(ip.payload()).ok()?;
            let echo = match Icmpv4Repr::parse(&message, &caps).ok()? {
                Icmpv4Repr::EchoReply { ident, seq_no, .. } => Echo::Reply { ident, seq: seq_no },
                Icmpv4Repr::EchoRequest { data, .. } => request(data)?,
                _ => return None,
            };
            Some((header.src_addr.into(), echo))
        }
        6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            if ip.next_header() != IpProtocol::Icmpv6 {
                return None;
            }
            let message = Icmpv6Packet::new_checked(ip.payload()).ok()?;
            let repr = Icmpv6Repr::parse(&ip.src_addr(), &ip.dst_addr(), &message, &caps).ok()?;
            let echo = match repr {
                Icmpv6Repr::EchoReply { ident, seq_no, .. } => Echo::Reply { ident, seq: seq_no },
                Icmpv6Repr::EchoRequest { data, .. } => request(data)?,
                _ => return None,
            };
            Some((ip.src_addr().into(), echo))
        }
        _ => None,
    }
}

/// What a podwire asks; `None` for what kernels, people and older ones put there.
fn request(data: &[u8]) -> Option<Echo> {
    let heard = data.strip_prefix(TAG)?.first_chunk::<4>()?;
    let heard = u32::from_be_bytes(*heard);
    Some(Echo::Probe {
        heard_ms: (heard != NEVER).then_some(heard),
    })
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

    fn probe((src, dst): (IpAddr, IpAddr), len: usize, heard_ms: Option<u32>) -> Vec<u8> {
        let probe = Probe {
            src,
            dst,
            ident: 0x1234,
            seq: 77,
            heard_ms,
        };
        let mut out = vec![0xee; len];
        assert!(echo_request(&probe, &mut out));
        out
    }

    /// What a peer's gateway answers to a probe.
    fn reply(ends: (IpAddr, IpAddr), len: usize) -> Vec<u8> {
        let mut peer = Gateway::new(&[ends.1], PodMtu(1450), 1);
        peer.input(&probe(ends, len, None), Instant::ZERO).unwrap();
        let mut answers = Vec::new();
        peer.poll(Instant::ZERO, |p| answers.push(p.to_vec()));
        assert_eq!(answers.len(), 1);
        answers.remove(0)
    }

    #[test]
    fn a_peers_gateway_answers_a_probe_of_any_length() {
        let answer = Echo::Reply {
            ident: 0x1234,
            seq: 77,
        };
        for ends in pairs() {
            for len in [small_len(ends.0.is_ipv6()), 1001, 1450] {
                let reply = reply(ends, len);
                assert_eq!((parse(&reply), reply.len()), (Some((ends.1, answer)), len));
            }
        }
        let [(v4, _), (v6, _)] = pairs();
        let of = |src, dst| Probe {
            src,
            dst,
            ident: 1,
            seq: 1,
            heard_ms: None,
        };
        assert!(!echo_request(&of(v4, v6), &mut [0; 100]));
        assert!(!echo_request(&of(v4, v4), &mut [0; 43]));
        assert!(!echo_request(&of(v6, v6), &mut [0; 70_000]));
    }

    #[test]
    fn a_probe_tells_when_its_sender_heard_the_one_it_asks() {
        for ends in pairs() {
            for (said, heard) in [
                (None, None),
                (Some(0), Some(0)),
                (Some(81_000), Some(81_000)),
                (Some(u32::MAX), Some(u32::MAX - 1)),
            ] {
                for len in [64, 1450] {
                    let told = parse(&probe(ends, len, said));
                    assert_eq!(told, Some((ends.0, Echo::Probe { heard_ms: heard })));
                }
            }
        }
        // Pings of others, and of those before: answered, but no news.
        let mut ping = probe(pairs()[0], 44, None);
        ping[28..].copy_from_slice(b"podwire probe...");
        let mut message = Icmpv4Packet::new_unchecked(&mut ping[20..]);
        message.fill_checksum();
        assert_eq!(parse(&ping), None);
    }

    #[test]
    fn every_damaged_byte_that_is_summed_is_noticed() {
        for ends in pairs() {
            let small = small_len(ends.0.is_ipv6());
            for good in [reply(ends, small), probe(ends, small, Some(7))] {
                // From the addresses on everything is under a checksum in both families.
                for at in good.len() - PAYLOAD - ICMP_LEN - 8..good.len() {
                    let mut bad = good.clone();
                    bad[at] ^= 0x55;
                    assert_eq!(parse(&bad), None, "byte {at}");
                }
                for n in 0..good.len() {
                    assert_eq!(parse(&good[..n]), None);
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_break_it(mut b in proptest::collection::vec(proptest::num::u8::ANY, 0..100), six: bool) {
            if let Some(first) = b.first_mut() { *first = if six { 0x60 } else { 0x45 }; }
            let _ = parse(&b);
        }
    }
}
