//! ICMP errors about packets that were translated: they quote the packet as it was where it failed, and whoever sent it
//! knows it by other addresses and ports.
//!
//! `[eth | ip | type code checksum rest 4 | quoted ip | 8 bytes or more of its transport]`

use super::conntrack::{End, Tuple};
use super::translate::{Difference, addresses, ip_addresses, segment_sum, transport};
use crate::model::Transport;
use crate::wire::bytes::{array, be16, put_be16};
use crate::wire::{ETH_LEN, Headers, IPV4_LEN, IPV6_LEN, L3, proto};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// ICMP's own header.
const ICMP_LEN: usize = 8;

/// An ICMP message, as far as Services care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Message {
    /// It asks for an answer.
    Echo,
    /// It tells of trouble with a packet of a connection.
    Error(Quote),
    /// Something else.
    Other,
}

/// The packet an error is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Quote {
    /// Where its headers are in the frame.
    ip: usize,
    l4: usize,
    /// Its ends as they stand there.
    pub tuple: Tuple,
    /// Nobody is at that port (or at all).
    pub refused: bool,
}

/// Look into a packet; none when it is not ICMP, or not all there.
pub(super) fn parse(frame: &[u8], h: &Headers) -> Option<Message> {
    let six = match (h.l3, h.proto) {
        (L3::Ipv4, proto::ICMP) => false,
        (L3::Ipv6, proto::ICMPV6) => true,
        _ => return None,
    };
    if h.l4 + ICMP_LEN > h.end {
        return None;
    }
    let [kind, code] = array(frame, h.l4);
    // RFC 792: unreachable, source quench, redirect is none of ours, time exceeded, parameter problem. RFC 4443 section
    // 2.1: types below 128 are errors.
    let (echo, error) = match six {
        false => (kind == 8, matches!(kind, 3 | 4 | 11 | 12)),
        true => (kind == 128, kind < 128),
    };
    if echo {
        return Some(Message::Echo);
    }
    let refused = match six {
        false => kind == 3 && code == 3,
        true => kind == 1 && code == 4,
    };
    let quoted = error.then(|| quote(frame, h.l4 + ICMP_LEN, h.end, six)).flatten();
    Some(quoted.map_or(Message::Other, |(ip, l4, tuple)| {
        Message::Error(Quote {
            ip,
            l4,
            tuple,
            refused,
        })
    }))
}

/// The quoted packet at `ip`: where its transport header is, and its ends. None for later fragments, for what is cut
/// before the ports, and for other protocols.
fn quote(frame: &[u8], ip: usize, end: usize, six: bool) -> Option<(usize, usize, Tuple)> {
    let (l4, protocol, src, dst) = match six {
        false => {
            let [version] = array(frame, ip);
            let header = usize::from(version & 15) * 4;
            if version >> 4 != 4
                || header < IPV4_LEN
                || ip + header > end
                || be16(frame, ip + 6) & 0x1fff != 0
            {
                return None;
            }
            let src: IpAddr = Ipv4Addr::from(array::<4>(frame, ip + 12)).into();
            let dst: IpAddr = Ipv4Addr::from(array::<4>(frame, ip + 16)).into();
            let [protocol] = array(frame, ip + 9);
            (ip + header, protocol, src, dst)
        }
        true => {
            let [version] = array(frame, ip);
            if version >> 4 != 6 || ip + IPV6_LEN > end {
                return None;
            }
            let src: IpAddr = Ipv6Addr::from(array::<16>(frame, ip + 8)).into();
            let dst: IpAddr = Ipv6Addr::from(array::<16>(frame, ip + 24)).into();
            let (l4, protocol) = skip_extensions(frame, ip, end)?;
            (l4, protocol, src, dst)
        }
    };
    let transport = transport(protocol)?;
    if l4 + 4 > end {
        return None;
    }
    let (sport, dport) = (be16(frame, l4), be16(frame, l4 + 2));
    let tuple = Tuple {
        transport,
        src: End { ip: src, port: sport },
        dst: End { ip: dst, port: dport },
    };
    Some((ip, l4, tuple))
}

/// Where the transport header of a quoted IPv6 packet is, and which it is. None when it is cut before, or a later
/// fragment.
fn skip_extensions(frame: &[u8], ip: usize, end: usize) -> Option<(usize, u8)> {
    let [mut next] = array(frame, ip + 6);
    let mut at = ip + IPV6_LEN;
    // As many as `Headers::parse` walks.
    for _ in 0..=8 {
        if !matches!(next, 0 | 43 | 44 | 51 | 60) {
            return Some((at, next));
        }
        if at + 8 > end || next == 44 && be16(frame, at + 2) & 0xfff8 != 0 {
            return None;
        }
        let [following, len] = array(frame, at);
        at += match next {
            44 => 8,
            51 => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * 8,
        };
        next = following;
    }
    None
}

/// Give the quoted packet the ends of `inner`, and the error the addresses `outer`. All checksums follow, the quoted
/// ones as far as they are there.
pub(super) fn rewrite(frame: &mut [u8], h: &Headers, quote: &Quote, inner: &Tuple, outer: (IpAddr, IpAddr)) {
    let six = h.l3 == L3::Ipv6;
    let header_sum = quote.ip + 10;
    let sum_before = be16(frame, header_sum);
    let inside = ip_addresses(frame, quote.ip, six, inner.src.ip, inner.dst.ip);
    let mut all = inside;
    if !six {
        let sum_after = be16(frame, header_sum);
        put_be16(frame, header_sum, sum_before);
        all = all.replace(frame, header_sum, &sum_after.to_be_bytes());
    }
    let mut ports = [0; 4];
    put_be16(&mut ports, 0, inner.src.port);
    put_be16(&mut ports, 2, inner.dst.port);
    let ports = Difference::default().replace(frame, quote.l4, &ports);
    all = all.and(ports);
    // SCTP's covers what is not quoted; nobody can look at it.
    let field = match inner.transport {
        Transport::Tcp => Some(quote.l4 + 16),
        Transport::Udp => Some(quote.l4 + 6),
        Transport::Sctp => None,
    };
    if let Some(at) = field.filter(|at| at + 2 <= h.end) {
        let sum = segment_sum(inner.transport, be16(frame, at), inside.and(ports));
        all = all.replace(frame, at, &sum.to_be_bytes());
    }
    let outside = addresses(frame, h, outer.0, outer.1);
    if six {
        all = all.and(outside);
    }
    let sum = all.apply(be16(frame, h.l4 + 2));
    put_be16(frame, h.l4 + 2, sum);
    debug_assert!(h.l4 > ETH_LEN);
}
