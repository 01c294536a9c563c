//! Frames for the tests of this folder, built with smoltcp's representations.

use crate::model::{Mac, PodMtu, PortSpec, TapCaps};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::*;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The pod `p<n>` with addresses that end in `n`.
pub fn spec(n: u16) -> PortSpec {
    let ip4 = Ipv4Addr::from(0x0af4_0100 + u32::from(n));
    PortSpec {
        pod: format!("p{n}").parse().unwrap(),
        mac: Mac::of_ipv4(ip4),
        ip4: Some(ip4),
        ip6: Some(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, n)),
        mtu: PodMtu(1450),
        caps: TapCaps::default(),
        bandwidth: None,
    }
}

pub fn ethernet(src: Mac, dst: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst.0[..], &src.0, &ethertype.to_be_bytes(), payload].concat()
}

/// An ARP message in a broadcast frame of its sender.
pub fn arp(op: ArpOperation, eth_src: Mac, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: op,
        source_hardware_addr: EthernetAddress(sender.0.0),
        source_protocol_addr: sender.1,
        target_hardware_addr: EthernetAddress(target.0.0),
        target_protocol_addr: target.1,
    };
    let mut b = vec![0; repr.buffer_len()];
    repr.emit(&mut ArpPacket::new_unchecked(&mut b[..]));
    ethernet(eth_src, Mac::BROADCAST, 0x0806, &b)
}

/// An IPv4 packet in a frame.
pub fn ipv4(eth_src: Mac, src: Ipv4Addr, dst: Ipv4Addr, proto: u8, payload: &[u8]) -> Vec<u8> {
    let repr = Ipv4Repr {
        src_addr: src,
        dst_addr: dst,
        next_header: IpProtocol::from(proto),
        payload_len: payload.len(),
        hop_limit: 64,
    };
    let mut b = vec![0; repr.buffer_len()];
    repr.emit(
        &mut Ipv4Packet::new_unchecked(&mut b[..]),
        &ChecksumCapabilities::default(),
    );
    b.extend(payload);
    ethernet(eth_src, Mac([2; 6]), 0x0800, &b)
}

/// An IPv6 packet in a frame.
pub fn ipv6(eth_src: Mac, src: Ipv6Addr, dst: Ipv6Addr, hops: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let repr = Ipv6Repr {
        src_addr: src,
        dst_addr: dst,
        next_header: IpProtocol::from(next),
        payload_len: payload.len(),
        hop_limit: hops,
    };
    let mut b = vec![0; repr.buffer_len()];
    repr.emit(&mut Ipv6Packet::new_unchecked(&mut b[..]));
    b.extend(payload);
    ethernet(eth_src, Mac([2; 6]), 0x86dd, &b)
}

/// A UDP header without payload.
pub fn udp(src: u16, dst: u16) -> [u8; 8] {
    let (s, d) = (src.to_be_bytes(), dst.to_be_bytes());
    [s[0], s[1], d[0], d[1], 0, 8, 0, 0]
}

/// The bytes of an ICMPv6 message with the right checksum.
pub fn icmp6(src: Ipv6Addr, dst: Ipv6Addr, head: [u8; 8], rest: &[u8]) -> Vec<u8> {
    let mut b = [&head[..], rest].concat();
    Icmpv6Packet::new_unchecked(&mut b[..]).fill_checksum(&src, &dst);
    b
}

/// A neighbour message (135 solicitation, 136 advertisement) in a frame with hop limit 255.
pub fn nd(kind: u8, eth_src: Mac, src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let rest = [&target.octets()[..], options].concat();
    let message = icmp6(src, dst, [kind, 0, 0, 0, 0, 0, 0, 0], &rest);
    ipv6(eth_src, src, dst, 255, 58, &message)
}

/// A link-layer address option: 1 source, 2 target.
pub fn lladdr(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac.0].concat()
}

/// The solicited-node multicast address (RFC 4291 section 2.7.1).
pub fn solicited(ip: Ipv6Addr) -> Ipv6Addr {
    let o = ip.octets();
    Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(o[13]),
        u16::from(o[14]) << 8 | u16::from(o[15]),
    )
}

/// Make an IPv4 header's checksum right again after bytes of it were changed.
pub fn fix_ipv4_sum(frame: &mut [u8]) {
    if frame.len() >= 34 && frame[12..14] == [8, 0] {
        let len = 14 + usize::from(frame[14] & 15) * 4;
        if (34..=frame.len()).contains(&len) {
            frame[24..26].fill(0);
            let sum = !checksum::data(&frame[14..len]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
    }
}
