//! ARP and neighbour discovery, and the guard before them: whatever a pod sends, it speaks for itself only,
//! and what it is answered is valid for the strictest reader.

use super::craft::{self, Crafted, Ends};
use super::input::Input;
use super::lab::pod;
use super::watch::owned;
use podwire::model::{DropReason, Mac, PortSpec};
use podwire::switch::neighbour::{self, ANSWER_LEN};
use podwire::switch::{Neighbour, guard};
use podwire::wire::{EthView, Headers, L3};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, Icmpv6Packet, Icmpv6Repr, Ipv6Packet, NdiscRepr,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `[pod] [frame]*`
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let n = 2 + input.u8() % 7;
    let spec = pod(1, n);
    for _ in 0..16 {
        if input.is_empty() {
            break;
        }
        let ends = Ends {
            src_mac: spec.mac,
            dst_mac: Mac::BROADCAST,
            src4: spec.ip4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            src6: spec.ip6.unwrap_or(Ipv6Addr::UNSPECIFIED),
            dst4: Ipv4Addr::new(10, 244, 1, 3),
            dst6: Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 3),
        };
        let room = usize::from(input.u8());
        let Crafted { frame, .. } = craft::frame(&mut input, &ends);
        one(&spec, &frame, room);
    }
}

fn one(spec: &PortSpec, frame: &[u8], room: usize) {
    let Ok(h) = Headers::parse(frame) else { return };
    if guard::check(spec, frame, &h).is_err() {
        return;
    }
    speaks_for_itself(spec, frame, &h);
    let mut out = [0xa5; ANSWER_LEN];
    // Room for part of an answer only: nothing is written beyond it.
    let short = room.min(ANSWER_LEN);
    let verdict = answer(frame, &h, &mut out[..short]);
    assert!(!matches!(verdict, Some(Neighbour::Answer(n)) if n > short));
    match answer(frame, &h, &mut out) {
        Some(Neighbour::Answer(n)) => is_right(frame, &h, &out[..n]),
        Some(Neighbour::Drop(reason)) => assert!(
            [
                DropReason::BadNeighbour,
                DropReason::NoSuchPod,
                DropReason::RogueControl
            ]
            .contains(&reason),
            "{reason:?}"
        ),
        Some(Neighbour::Consumed) | None => {}
    }
}

/// Pods 2 to 8 are there, and the gateway.
fn holder(ip: IpAddr) -> Option<Mac> {
    let gateway = Mac::of_ipv4(Ipv4Addr::new(10, 244, 1, 1));
    if ip == IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1)) || ip == IpAddr::V6(gateway.link_local()) {
        return Some(gateway);
    }
    let mut pods = (2..=8).map(|n| pod(1, n));
    pods.find(|p| owned(p).contains(&ip)).map(|p| p.mac)
}

fn answer(frame: &[u8], h: &Headers, out: &mut [u8]) -> Option<Neighbour> {
    let router = |ip| ip == Mac::of_ipv4(Ipv4Addr::new(10, 244, 1, 1)).link_local();
    match h.l3 {
        L3::Arp => Some(neighbour::arp(frame, |ip, _| holder(ip.into()), out)),
        _ if neighbour::is_neighbour_discovery(frame, h) => {
            let _ = neighbour::solicited(frame, h);
            let resolve = |ip: Ipv6Addr| Some((holder(ip.into())?, router(ip)));
            Some(neighbour::ndisc(frame, h, resolve, out))
        }
        _ => None,
    }
}

/// What the guard let through is of this pod, by a reading of its own.
fn speaks_for_itself(spec: &PortSpec, frame: &[u8], h: &Headers) {
    assert_eq!(EthView(frame).src(), spec.mac);
    match h.l3 {
        L3::Arp => {
            assert_eq!(frame[22..28], spec.mac.0, "sender's MAC");
            let sender: [u8; 4] = frame[28..32].try_into().expect("four bytes");
            assert!(sender == [0; 4] || Some(Ipv4Addr::from(sender)) == spec.ip4);
        }
        L3::Ipv4 => {
            assert_eq!(h.src(frame), IpAddr::V4(spec.ip4.expect("an address")));
            if !h.later_fragment {
                let message = &frame[h.l4..h.end];
                // Shorter than its header, UDP is nobody's.
                let udp = h.proto == 17 && message.len() >= 8;
                assert!(!udp || message[..2] != [0, 67], "a DHCP server");
                assert!(
                    h.proto != 1 || !matches!(message.first(), Some(5 | 9)),
                    "a redirect"
                );
            }
        }
        L3::Ipv6 => {
            let src = h.src(frame);
            let unspecified = src == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && spec.ip6.is_some();
            assert!(owned(spec).contains(&src) || unspecified, "{src}");
            if let Some((protocol, message)) = walk(&frame[14..h.end]) {
                assert!(!(unspecified && protocol != 58), "a source is missing");
                let rogue = protocol == 58 && matches!(message.first(), Some(134 | 137));
                assert!(!rogue, "a router");
                let udp = protocol == 17 && message.len() >= 8;
                assert!(!udp || message[..2] != [0x02, 0x23], "a DHCPv6 server");
                if protocol == 58 && message.first() == Some(&136) {
                    let target: [u8; 16] = message[8..24].try_into().expect("an address");
                    assert!(
                        owned(spec).contains(&IpAddr::V6(target.into())),
                        "another's address"
                    );
                }
            }
        }
    }
}

/// The upper-layer protocol of an IPv6 packet and its bytes, however long the chain before it is (RFC 8200
/// section 4). `None` for later fragments and for chains that are cut off.
fn walk(packet: &[u8]) -> Option<(u8, &[u8])> {
    let (mut next, mut rest) = (*packet.get(6)?, packet.get(40..)?);
    loop {
        let len = match next {
            0 | 43 | 60 => (usize::from(*rest.get(1)?) + 1) * 8,
            51 => (usize::from(*rest.get(1)?) + 2) * 4,
            44 if u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]) & 0xfff8 != 0 => return None,
            44 => 8,
            _ => return Some((next, rest)),
        };
        (next, rest) = (*rest.first()?, rest.get(len..)?);
    }
}

/// An answer reads as one to strict eyes, goes to the asker, and tells the truth.
fn is_right(question: &[u8], h: &Headers, answer: &[u8]) {
    let (asker, speaker) = (EthView(question).src(), EthView(answer).src());
    assert_ne!(speaker, asker, "nobody is told of itself");
    if h.l3 == L3::Arp {
        assert_eq!(EthView(answer).dst(), asker);
        let packet = ArpPacket::new_checked(&answer[14..]).expect("an ARP message");
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_hardware_addr,
            ..
        } = ArpRepr::parse(&packet).expect("a valid one")
        else {
            panic!("another kind of ARP");
        };
        assert_eq!(operation, ArpOperation::Reply);
        assert_eq!(target_hardware_addr, EthernetAddress(asker.0));
        assert_eq!(source_hardware_addr, EthernetAddress(speaker.0));
        assert_eq!(holder(source_protocol_addr.into()), Some(speaker));
        assert_eq!(source_protocol_addr.octets(), question[38..42]);
        return;
    }
    let packet = Ipv6Packet::new_checked(&answer[14..]).expect("an IPv6 packet");
    assert_eq!(packet.hop_limit(), 255);
    let message = Icmpv6Packet::new_checked(packet.payload()).expect("an ICMPv6 message");
    let caps = ChecksumCapabilities::default();
    let repr = Icmpv6Repr::parse(&packet.src_addr(), &packet.dst_addr(), &message, &caps);
    let Ok(Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        target_addr, lladdr, ..
    })) = repr
    else {
        panic!("{repr:?} is no advertisement");
    };
    assert_eq!(holder(target_addr.into()), Some(speaker));
    assert_eq!(lladdr.expect("a target's address").as_bytes(), speaker.0);
    assert_eq!(target_addr.octets(), question[h.l4 + 8..h.l4 + 24]);
    let to_all = EthView(answer).dst() == Mac([0x33, 0x33, 0, 0, 0, 1]);
    assert!(EthView(answer).dst() == asker || to_all && h.src(question) == IpAddr::V6(Ipv6Addr::UNSPECIFIED));
}
