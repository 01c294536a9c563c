//! Answers to ARP and IPv6 neighbour discovery.
//!
//! The node knows the owner of every address its pods may ask for, so it answers in the owner's name and
//! floods nothing: a thousand pods asking cost a thousand answers, and not a million deliveries.
//!
//! The functions expect frames that passed [`guard::check`](super::guard::check): the Ethernet source is
//! the asker, and what it says of itself is true.

use crate::model::{DropReason, Mac};
use crate::wire::bytes::array;
use crate::wire::{ETH_LEN, EthView, Headers, IPV6_LEN, L3, proto};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
    RawHardwareAddress,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Room for the longest answer: an advertisement with its link-layer option.
pub const ANSWER_LEN: usize = ETH_LEN + IPV6_LEN + 32;

/// All nodes of the link (RFC 4291 section 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What becomes of an ARP or neighbour discovery message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Neighbour {
    /// Send the first so many bytes of `out` back to the port the question came from.
    Answer(usize),
    /// Nothing to say: an announcement, a probe for a free address, a reply to nobody.
    Consumed,
    /// Drop it for this reason.
    Drop(DropReason),
}

/// Answer an ARP message (RFC 826).
///
/// `resolve(address, probe)` tells the MAC that holds an address; `probe` is set when the asker has no
/// address yet and wants to know whether this one is free (RFC 5227). `out` needs [`ANSWER_LEN`] bytes. An
/// asker is never told of its own MAC: that would look like a conflict to it.
pub fn arp(frame: &[u8], resolve: impl Fn(Ipv4Addr, bool) -> Option<Mac>, out: &mut [u8]) -> Neighbour {
    let message = frame.get(ETH_LEN..).unwrap_or_default();
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: asker,
        source_protocol_addr: asker_ip,
        target_protocol_addr: wanted,
        ..
    }) = ArpPacket::new_checked(message).and_then(|p| ArpRepr::parse(&p))
    else {
        return Neighbour::Drop(DropReason::BadNeighbour);
    };
    match operation {
        ArpOperation::Request if asker_ip == wanted => return Neighbour::Consumed,
        ArpOperation::Request => {}
        ArpOperation::Reply => return Neighbour::Consumed,
        ArpOperation::Unknown(_) => return Neighbour::Drop(DropReason::BadNeighbour),
    }
    let probe = asker_ip.is_unspecified();
    match resolve(wanted, probe) {
        Some(mac) if mac.0 == asker.0 => Neighbour::Consumed,
        Some(mac) => {
            let reply = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr: EthernetAddress(mac.0),
                source_protocol_addr: wanted,
                target_hardware_addr: asker,
                target_protocol_addr: asker_ip,
            };
            answer(write_arp(mac, Mac(asker.0), &reply, out))
        }
        // No answer is what a probe hopes for.
        None if probe => Neighbour::Consumed,
        None => Neighbour::Drop(DropReason::NoSuchPod),
    }
}

/// Answer an IPv6 neighbour discovery message (RFC 4861).
///
/// `resolve(address)` tells the MAC that holds an address, and whether it is a router. `out` needs
/// [`ANSWER_LEN`] bytes. The pod's own duplicate address detection meets silence, that for another's address
/// is told so (RFC 4862 section 5.4.4).
pub fn ndisc(
    frame: &[u8],
    h: &Headers,
    resolve: impl Fn(Ipv6Addr) -> Option<(Mac, bool)>,
    out: &mut [u8],
) -> Neighbour {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (h.src(frame), h.dst(frame)) else {
        return Neighbour::Drop(DropReason::BadNeighbour);
    };
    let (target, lladdr) = match parse(frame, h, src, dst) {
        Some(NdiscRepr::NeighborSolicit { target_addr, lladdr }) => (target_addr, lladdr),
        Some(NdiscRepr::NeighborAdvert { .. } | NdiscRepr::RouterSolicit { .. }) => {
            return Neighbour::Consumed;
        }
        Some(NdiscRepr::RouterAdvert { .. } | NdiscRepr::Redirect { .. }) => {
            return Neighbour::Drop(DropReason::RogueControl);
        }
        None => return Neighbour::Drop(DropReason::BadNeighbour),
    };
    let detection = src.is_unspecified();
    // RFC 4861 section 7.1.1.
    if target.is_multicast() || (detection && (lladdr.is_some() || !is_solicited_node(dst))) {
        return Neighbour::Drop(DropReason::BadNeighbour);
    }
    let asker = EthView(frame).src();
    match resolve(target) {
        Some((mac, _)) if mac == asker => Neighbour::Consumed,
        Some((mac, router)) if detection => {
            let flags = NdiscNeighborFlags::OVERRIDE | router_flag(router);
            answer(write_advert(mac, all_nodes_mac(), target, ALL_NODES, flags, out))
        }
        Some((mac, router)) => {
            let flags = NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE | router_flag(router);
            answer(write_advert(mac, asker, target, src, flags, out))
        }
        None if detection => Neighbour::Consumed,
        None => Neighbour::Drop(DropReason::NoSuchPod),
    }
}

/// Whether the packet is a neighbour discovery message: such a packet goes to [`ndisc`], nowhere else.
#[inline]
pub fn is_neighbour_discovery(frame: &[u8], h: &Headers) -> bool {
    h.l3 == L3::Ipv6
        && h.proto == proto::ICMPV6
        && h.l4 < h.end
        && frame.get(h.l4).is_some_and(|kind| (133..=137).contains(kind))
}

/// The address a neighbour solicitation asks for, unless it is one of duplicate address detection. `frame`
/// was found to be neighbour discovery.
pub fn solicited(frame: &[u8], h: &Headers) -> Option<Ipv6Addr> {
    let asks = frame.get(h.l4) == Some(&135) && h.src(frame) != IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    asks.then(|| Ipv6Addr::from(array::<16>(frame, h.l4 + 8)))
}

/// Write a gratuitous ARP: tell all that `mac` holds `ip` (an ARP announcement, RFC 5227 section 2.3).
/// Gives its length, or `None` when `out` is shorter than that.
pub fn announce_arp(mac: Mac, ip: Ipv4Addr, out: &mut [u8]) -> Option<usize> {
    let announcement = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: ip,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: ip,
    };
    write_arp(mac, Mac::BROADCAST, &announcement, out)
}

/// Write an unsolicited neighbour advertisement: tell all that `mac` holds `ip` (RFC 4861 section 7.2.6).
/// Gives its length, or `None` when `out` is shorter than that.
pub fn announce_na(mac: Mac, ip: Ipv6Addr, router: bool, out: &mut [u8]) -> Option<usize> {
    let flags = NdiscNeighborFlags::OVERRIDE | router_flag(router);
    write_advert(mac, all_nodes_mac(), ip, ALL_NODES, flags, out)
}

/// A valid neighbour discovery message, or `None`. The checks of RFC 4861 sections 6.1 and 7.1 that are
/// common to all of them: hop limit 255, code 0, checksum, complete options; never in fragments (RFC 6980).
fn parse<'a>(frame: &'a [u8], h: &Headers, src: Ipv6Addr, dst: Ipv6Addr) -> Option<NdiscRepr<'a>> {
    if !is_neighbour_discovery(frame, h) || h.fragment || h.ttl(frame) != 255 {
        return None;
    }
    let message = frame.get(h.l4..h.end)?;
    let packet = Icmpv6Packet::new_checked(message).ok()?;
    match Icmpv6Repr::parse(&src, &dst, &packet, &ChecksumCapabilities::default()) {
        Ok(Icmpv6Repr::Ndisc(repr)) => Some(repr),
        _ => None,
    }
}

fn answer(written: Option<usize>) -> Neighbour {
    match written {
        Some(n) => Neighbour::Answer(n),
        None => Neighbour::Drop(DropReason::Truncated),
    }
}

fn router_flag(router: bool) -> NdiscNeighborFlags {
    if router {
        NdiscNeighborFlags::ROUTER
    } else {
        NdiscNeighborFlags::empty()
    }
}

/// The Ethernet address of `ff02::1` (RFC 2464 section 7).
fn all_nodes_mac() -> Mac {
    Mac([0x33, 0x33, 0, 0, 0, 1])
}

/// `ff02::1:ff00:0/104` (RFC 4291 section 2.7.1).
fn is_solicited_node(ip: Ipv6Addr) -> bool {
    ip.octets()[..13] == [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff]
}

fn write_arp(src: Mac, dst: Mac, repr: &ArpRepr, out: &mut [u8]) -> Option<usize> {
    let len = ETH_LEN + repr.buffer_len();
    let payload = write_ethernet(src, dst, EthernetProtocol::Arp, out.get_mut(..len)?);
    repr.emit(&mut ArpPacket::new_unchecked(payload));
    Some(len)
}

fn write_advert(
    mac: Mac,
    eth_dst: Mac,
    target: Ipv6Addr,
    dst: Ipv6Addr,
    flags: NdiscNeighborFlags,
    out: &mut [u8],
) -> Option<usize> {
    let advert = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags,
        target_addr: target,
        lladdr: Some(RawHardwareAddress::from_bytes(&mac.0)),
    });
    let ip = Ipv6Repr {
        src_addr: target,
        dst_addr: dst,
        next_header: IpProtocol::Icmpv6,
        payload_len: advert.buffer_len(),
        hop_limit: 255,
    };
    let len = ETH_LEN + IPV6_LEN + advert.buffer_len();
    let payload = write_ethernet(mac, eth_dst, EthernetProtocol::Ipv6, out.get_mut(..len)?);
    let (header, message) = payload.split_at_mut(IPV6_LEN);
    // smoltcp leaves the option's padding and reserved bits as they are in the buffer.
    message.fill(0);
    ip.emit(&mut Ipv6Packet::new_unchecked(header));
    let mut packet = Icmpv6Packet::new_unchecked(message);
    advert.emit(&target, &dst, &mut packet, &ChecksumCapabilities::default());
    Some(len)
}

/// Write the Ethernet header and give what follows it. `out` is longer than a header.
fn write_ethernet(src: Mac, dst: Mac, ethertype: EthernetProtocol, out: &mut [u8]) -> &mut [u8] {
    let repr = EthernetRepr {
        src_addr: EthernetAddress(src.0),
        dst_addr: EthernetAddress(dst.0),
        ethertype,
    };
    repr.emit(&mut EthernetFrame::new_unchecked(&mut *out));
    &mut out[ETH_LEN..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::guard;
    use crate::switch::testing::{self, lladdr, nd, solicited, spec};
    use ArpOperation::{Reply, Request};

    const ASKER: u16 = 2;
    const OWNER: u16 = 3;
    const NONE: Mac = Mac([0; 6]);
    const NOBODY4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 99);
    const NOBODY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 99);

    fn addresses(n: u16) -> (Mac, Ipv4Addr, Ipv6Addr) {
        (spec(n).mac, spec(n).ip4.unwrap(), spec(n).ip6.unwrap())
    }

    fn resolve4(ip: Ipv4Addr, _probe: bool) -> Option<Mac> {
        [ASKER, OWNER]
            .map(spec)
            .into_iter()
            .find(|s| s.ip4 == Some(ip))
            .map(|s| s.mac)
    }

    fn resolve6(ip: Ipv6Addr) -> Option<(Mac, bool)> {
        let mut all = [ASKER, OWNER].map(spec).into_iter();
        all.find(|s| s.ip6 == Some(ip)).map(|s| (s.mac, false))
    }

    fn ask6(frame: &[u8], out: &mut [u8]) -> Neighbour {
        ndisc(frame, &Headers::parse(frame).unwrap(), resolve6, out)
    }

    #[test]
    fn arp_stories() {
        let (mac, ip, _) = addresses(ASKER);
        let (owner, owner_ip, _) = addresses(OWNER);
        let zero = Ipv4Addr::UNSPECIFIED;
        let answered = |target| testing::arp(Reply, owner, (owner, owner_ip), (mac, target));
        for (name, frame, want) in [
            (
                "request",
                testing::arp(Request, mac, (mac, ip), (NONE, owner_ip)),
                Ok(answered(ip)),
            ),
            (
                "probe of a taken address",
                testing::arp(Request, mac, (mac, zero), (NONE, owner_ip)),
                Ok(answered(zero)),
            ),
            (
                "probe of the own",
                testing::arp(Request, mac, (mac, zero), (NONE, ip)),
                Err(Neighbour::Consumed),
            ),
            (
                "probe of a free one",
                testing::arp(Request, mac, (mac, zero), (NONE, NOBODY4)),
                Err(Neighbour::Consumed),
            ),
            (
                "gratuitous",
                testing::arp(Request, mac, (mac, ip), (NONE, ip)),
                Err(Neighbour::Consumed),
            ),
            (
                "reply",
                testing::arp(Reply, mac, (mac, ip), (owner, owner_ip)),
                Err(Neighbour::Consumed),
            ),
            (
                "nobody's address",
                testing::arp(Request, mac, (mac, ip), (NONE, NOBODY4)),
                Err(Neighbour::Drop(DropReason::NoSuchPod)),
            ),
            (
                "unknown operation",
                testing::arp(ArpOperation::Unknown(9), mac, (mac, ip), (NONE, owner_ip)),
                Err(Neighbour::Drop(DropReason::BadNeighbour)),
            ),
        ] {
            let mut out = [0xaa; ANSWER_LEN];
            match (arp(&frame, resolve4, &mut out), want) {
                (Neighbour::Answer(n), Ok(mut reply)) => {
                    reply[..6].copy_from_slice(&mac.0); // straight to the asker
                    assert_eq!(&out[..n], reply, "{name}");
                }
                (got, want) => assert_eq!(Err(got), want, "{name}"),
            }
        }
        let silent_on_probes = |ip, probe: bool| resolve4(ip, probe).filter(|_| !probe);
        let probe = testing::arp(Request, mac, (mac, zero), (NONE, owner_ip));
        assert_eq!(
            arp(&probe, silent_on_probes, &mut [0; ANSWER_LEN]),
            Neighbour::Consumed
        );
        assert_eq!(
            arp(&probe, resolve4, &mut [0; 41]),
            Neighbour::Drop(DropReason::Truncated)
        );
    }

    #[test]
    fn a_solicitation_is_answered_to_the_asker() {
        let (mac, _, ip) = addresses(ASKER);
        let (owner, _, owner_ip) = addresses(OWNER);
        let ns = nd(135, mac, ip, solicited(owner_ip), owner_ip, &lladdr(1, mac));
        for (router, flags) in [(false, 0x60), (true, 0xe0)] {
            let mut out = [0xaa; ANSWER_LEN];
            let h = Headers::parse(&ns).unwrap();
            let got = ndisc(&ns, &h, |t| resolve6(t).map(|(m, _)| (m, router)), &mut out);
            let mut want = nd(136, owner, owner_ip, ip, owner_ip, &lladdr(2, owner));
            want[..6].copy_from_slice(&mac.0);
            want[58] = flags;
            Icmpv6Packet::new_unchecked(&mut want[54..]).fill_checksum(&owner_ip, &ip);
            assert_eq!((got, &out[..]), (Neighbour::Answer(ANSWER_LEN), &want[..]));
            // The answer is one the owner itself would be allowed to send.
            let h = Headers::parse(&out).unwrap();
            assert_eq!(guard::check(&spec(OWNER), &out, &h), Ok(()));
        }
        assert_eq!(
            ask6(&ns, &mut [0; ANSWER_LEN - 1]),
            Neighbour::Drop(DropReason::Truncated)
        );
    }

    #[test]
    fn duplicate_detection_is_answered_to_all_nodes_when_the_address_is_taken() {
        let (mac, _, ip) = addresses(ASKER);
        let (owner, _, owner_ip) = addresses(OWNER);
        let any = Ipv6Addr::UNSPECIFIED;
        let mut out = [0; ANSWER_LEN];
        let dad = |target| nd(135, mac, any, solicited(target), target, &[]);
        assert_eq!(ask6(&dad(ip), &mut out), Neighbour::Consumed);
        assert_eq!(ask6(&dad(NOBODY6), &mut out), Neighbour::Consumed);
        assert_eq!(ask6(&dad(owner_ip), &mut out), Neighbour::Answer(ANSWER_LEN));
        assert_eq!(out[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(EthView(&out).src(), owner);
        assert_eq!(Headers::parse(&out).unwrap().dst(&out), IpAddr::V6(ALL_NODES));
        assert_eq!(out[58], 0x20, "override, not solicited");
    }

    #[test]
    fn other_neighbour_messages_are_consumed_or_refused() {
        let (mac, _, ip) = addresses(ASKER);
        let (_, _, other) = addresses(OWNER);
        let any = Ipv6Addr::UNSPECIFIED;
        let bad = Neighbour::Drop(DropReason::BadNeighbour);
        let rogue = Neighbour::Drop(DropReason::RogueControl);
        let message = |kind: u8, rest: &[u8]| {
            let b = testing::icmp6(ip, ALL_NODES, [kind, 0, 0, 0, 0, 0, 0, 0], rest);
            testing::ipv6(mac, ip, ALL_NODES, 255, 58, &b)
        };
        let change = |at: usize, v: u8| {
            let mut f = nd(135, mac, ip, solicited(other), other, &[]);
            f[at] = v;
            f
        };
        for (name, frame, want) in [
            (
                "advertisement",
                nd(136, mac, ip, ALL_NODES, ip, &lladdr(2, mac)),
                Neighbour::Consumed,
            ),
            ("router solicitation", message(133, &[]), Neighbour::Consumed),
            ("router advertisement", message(134, &[0; 8]), rogue),
            ("redirect", message(137, &[0; 32]), rogue),
            (
                "nobody's",
                nd(135, mac, ip, solicited(NOBODY6), NOBODY6, &[]),
                Neighbour::Drop(DropReason::NoSuchPod),
            ),
            ("echo", message(128, &[]), bad),
            ("wrong checksum", change(56, 0xee), bad),
            ("hop limit", change(21, 254), bad),
            ("code", change(55, 1), bad),
            ("too short", message(135, &[0; 8]), bad),
            (
                "option of length zero",
                nd(135, mac, ip, solicited(other), other, &[1, 0, 0, 0, 0, 0, 0, 0]),
                bad,
            ),
            (
                "multicast target",
                nd(135, mac, ip, ALL_NODES, ALL_NODES, &[]),
                bad,
            ),
            (
                "detection with an option",
                nd(135, mac, any, solicited(other), other, &lladdr(1, mac)),
                bad,
            ),
            (
                "detection to all nodes",
                nd(135, mac, any, ALL_NODES, other, &[]),
                bad,
            ),
            (
                "IPv4",
                testing::ipv4(mac, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 58, &[135, 0]),
                bad,
            ),
        ] {
            assert_eq!(ask6(&frame, &mut [0; ANSWER_LEN]), want, "{name}");
        }
    }

    #[test]
    fn announcements_pass_the_guard_of_their_owner() {
        let (mac, ip4, ip6) = addresses(OWNER);
        let mut out = [0xaa; ANSWER_LEN];
        let n = announce_arp(mac, ip4, &mut out).unwrap();
        assert_eq!(out[..n], testing::arp(Request, mac, (mac, ip4), (NONE, ip4)));
        let n = announce_na(mac, ip6, false, &mut out).unwrap();
        let h = Headers::parse(&out[..n]).unwrap();
        assert!(is_neighbour_discovery(&out[..n], &h));
        assert_eq!(guard::check(&spec(OWNER), &out[..n], &h), Ok(()));
        assert_eq!(announce_arp(mac, ip4, &mut [0; 10]), None);
        assert_eq!(announce_na(mac, ip6, true, &mut [0; 80]), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_break_it(
            kind in 0..4,
            cut in 0usize..140,
            changes in proptest::collection::vec((12usize..120, proptest::num::u8::ANY), 0..6),
            noise in proptest::collection::vec(proptest::num::u8::ANY, 0..120),
        ) {
            let (mac, ip4, ip6) = addresses(ASKER);
            let mut f = match kind {
                0 => testing::arp(Request, mac, (mac, ip4), (NONE, ip4)),
                1 => testing::ethernet(mac, mac, 0x0806, &noise),
                _ => nd(135, mac, ip6, solicited(ip6), NOBODY6, &noise),
            };
            for (at, v) in changes {
                if let Some(b) = f.get_mut(at) { *b = v; }
            }
            if kind == 3 && f.len() > 58 {
                // With the checksum put right, more of it is believed.
                let (src, dst) = (ip6, solicited(ip6));
                Icmpv6Packet::new_unchecked(&mut f[54..]).fill_checksum(&src, &dst);
            }
            f.truncate(cut);
            let mut out = [0; ANSWER_LEN];
            let _ = arp(&f, |_, _| Some(Mac([2; 6])), &mut out);
            if let Ok(h) = Headers::parse(&f) {
                let _ = ndisc(&f, &h, |_| Some((Mac([2; 6]), true)), &mut out);
            }
        }
    }
}
