//! Frames by hand: what a pod's own kernel would not send.

use podwire::model::Mac;
use std::net::{Ipv4Addr, Ipv6Addr};

/// What the payload of frames made here holds, so that they are known again.
pub const MARK: &[u8] = b"made-by-hand";

/// An Ethernet frame.
pub fn ethernet(dst: Mac, src: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst.0, &src.0, &ethertype.to_be_bytes()[..], payload].concat()
}

/// An IPv4 packet with options and a fragment field; lengths and checksum are right.
pub fn ipv4_with(
    (src, dst): (Ipv4Addr, Ipv4Addr),
    (ttl, protocol): (u8, u8),
    (id, fragment): (u16, u16),
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let header = 20 + options.len();
    let mut packet = vec![0; header];
    packet[0] = 0x40 | (header / 4) as u8;
    packet[2..4].copy_from_slice(&((header + payload.len()) as u16).to_be_bytes());
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[8..10].copy_from_slice(&[ttl, protocol]);
    packet[12..16].copy_from_slice(&src.octets());
    packet[16..20].copy_from_slice(&dst.octets());
    packet[20..].copy_from_slice(options);
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// An ordinary IPv4 packet.
pub fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_with((src, dst), (64, protocol), (1, 0), &[], payload)
}

/// An IPv6 packet; `payload` begins with what `next` names.
pub fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, hops: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    let head = [0x60, 0, 0, 0, len[0], len[1], next, hops];
    [&head[..], &src.octets(), &dst.octets(), payload].concat()
}

/// A UDP datagram over IPv4, without a checksum (RFC 768 allows that).
pub fn udp(src: u16, dst: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let words = [src, dst, len, 0];
    let head: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
    [&head[..], payload].concat()
}

/// A UDP datagram over IPv4 with its checksum.
pub fn udp4(src: Ipv4Addr, dst: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = udp(ports.0, ports.1, payload);
    let len = (datagram.len() as u16).to_be_bytes();
    let sum = checksum(&[&src.octets(), &dst.octets(), &[0, 17], &len, &datagram]);
    let sum = if sum == 0 { 0xffff } else { sum };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// A UDP datagram over IPv6, which needs its checksum.
pub fn udp6(src: Ipv6Addr, dst: Ipv6Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = udp(ports.0, ports.1, payload);
    let sum = pseudo6(src, dst, 17, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// An IPv4 echo request.
pub fn echo4(src: Ipv4Addr, dst: Ipv4Addr, ttl: u8) -> Vec<u8> {
    let mut message = [&[8, 0, 0, 0, 0x12, 0x34, 0, 1], MARK].concat();
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4_with((src, dst), (ttl, 1), (1, 0), &[], &message)
}

/// An ICMP message of a type and code, without an IP header: four more bytes of header, and what follows.
pub fn icmp4(kind: u8, code: u8, more: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], &more[..], body].concat();
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// An ICMPv6 message of a type and code, with what follows its checksum.
pub fn icmp6(src: Ipv6Addr, dst: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0], body].concat();
    let sum = pseudo6(src, dst, 58, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv6(src, dst, 255, 58, &message)
}

/// A neighbour advertisement (flags override, not solicited) of `target` at `mac`.
pub fn advertisement(src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let body = [&[0x20, 0, 0, 0][..], &target.octets(), &[2, 1], &mac.0].concat();
    icmp6(src, dst, 136, &body)
}

/// An ARP message: 1 asks, 2 answers.
pub fn arp(operation: u8, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    let (mac, ip) = sender;
    let (to_mac, to_ip) = target;
    [&head[..], &mac.0, &ip.octets(), &to_mac.0, &to_ip.octets()].concat()
}

/// A VXLAN datagram around an Ethernet frame.
pub fn vxlan(flags: u8, vni: u32, inner: &[u8]) -> Vec<u8> {
    let vni = vni.to_be_bytes();
    [&[flags, 0, 0, 0, vni[1], vni[2], vni[3], 0][..], inner].concat()
}

fn pseudo6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, message: &[u8]) -> u16 {
    let len = (message.len() as u32).to_be_bytes();
    let sum = checksum(&[&src.octets(), &dst.octets(), &len, &[0, 0, 0, next], message]);
    // In UDP zero means "none".
    if sum == 0 { 0xffff } else { sum }
}

/// The internet checksum (RFC 1071); all parts but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
