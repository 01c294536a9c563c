//! Frames from an input, made right where the input asks for it.
//!
//! ```text
//! [what to repair, u8] [length, u16] [bytes] [grow by, u16] [padding, u8]
//! ```

use super::input::Input;
use super::rules::{checksum_at, pseudo_sum, sum};
use podwire::model::Mac;
use podwire::wire::Headers;
use podwire::wire::bytes::{put, put_be16};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Put the MACs of [`Ends`] in.
pub const MACS: u8 = 1;
/// Put the source address in.
pub const SOURCE: u8 = 2;
/// Put the destination address in.
pub const DESTINATION: u8 = 4;
/// Make the lengths of IP and UDP right, and the IPv4 header checksum.
pub const LENGTHS: u8 = 8;
/// Make the transport checksum right.
pub const SUM: u8 = 16;
/// Append a payload: its length follows the bytes.
pub const GROW: u8 = 32;
/// Append Ethernet padding behind the packet: its length follows.
pub const PAD: u8 = 64;
/// For datagrams: the bytes are all of it, with their own VXLAN header.
pub const BARE: u8 = 128;

/// Longest frame a TAP gives: Ethernet header and 65,535 bytes.
pub const LONGEST: usize = 14 + 65_535;

/// Who a frame is from and to, if the input wants it to be.
#[derive(Clone, Copy)]
pub struct Ends {
    pub src_mac: Mac,
    pub dst_mac: Mac,
    pub src4: Ipv4Addr,
    pub src6: Ipv6Addr,
    pub dst4: Ipv4Addr,
    pub dst6: Ipv6Addr,
}

/// What the input asked for.
pub struct Crafted {
    pub repair: u8,
    pub frame: Vec<u8>,
}

/// Read a frame.
pub fn frame(input: &mut Input, ends: &Ends) -> Crafted {
    let repair = input.u8();
    let len = usize::from(input.u16());
    let mut frame = input.bytes(len).to_vec();
    if repair & GROW != 0 {
        let room = LONGEST.saturating_sub(frame.len());
        let more = usize::from(input.u16()).min(room);
        frame.extend((0..more).map(|i| (i ^ i >> 8) as u8));
    }
    if repair & BARE == 0 {
        mend(&mut frame, repair, ends);
    }
    if repair & PAD != 0 {
        let padding = usize::from(input.u8());
        frame.resize((frame.len() + padding).min(LONGEST), 0);
    }
    Crafted { repair, frame }
}

/// Repair a frame in place.
pub fn mend(frame: &mut [u8], repair: u8, ends: &Ends) {
    if repair & MACS != 0 {
        put(frame, 0, &ends.dst_mac.0);
        put(frame, 6, &ends.src_mac.0);
    }
    let four = frame.get(12..14) == Some(&[8, 0]);
    let (src_at, dst_at) = if four { (26, 30) } else { (22, 38) };
    let ip = four || frame.get(12..14) == Some(&[0x86, 0xdd]);
    if repair & SOURCE != 0 && ip {
        match four {
            true => put(frame, src_at, &ends.src4.octets()),
            false => put(frame, src_at, &ends.src6.octets()),
        }
    }
    if repair & DESTINATION != 0 && ip {
        match four {
            true => put(frame, dst_at, &ends.dst4.octets()),
            false => put(frame, dst_at, &ends.dst6.octets()),
        }
    }
    if repair & LENGTHS != 0 && ip {
        lengths(frame, four);
    }
    if repair & SUM != 0
        && let Ok(h) = Headers::parse(frame)
    {
        finish(frame, &h);
    }
}

fn lengths(frame: &mut [u8], four: bool) {
    let len = frame.len();
    match four {
        true => put_be16(frame, 16, len.saturating_sub(14) as u16),
        false => put_be16(frame, 18, len.saturating_sub(54) as u16),
    }
    if four && len >= 34 {
        let end = (14 + usize::from(frame[14] & 15) * 4).clamp(34, len.min(74));
        put_be16(frame, 24, 0);
        let header = !sum(&[&frame[14..end]]);
        put_be16(frame, 24, header);
    }
    if let Ok(h) = Headers::parse(frame)
        && h.proto == 17
        && !h.later_fragment
        && h.l4 + 8 <= h.end
    {
        put_be16(frame, h.l4 + 4, (h.end - h.l4) as u16);
    }
}

/// Make the checksum of TCP, UDP, ICMP or ICMPv6 right.
pub fn finish(frame: &mut [u8], h: &Headers) {
    let Some(at) = checksum_at(h).filter(|at| h.l4 + at + 2 <= h.end) else {
        return;
    };
    put_be16(frame, h.l4 + at, 0);
    let value = !sum(&[&pseudo_sum(frame, h).to_be_bytes(), &frame[h.l4..h.end]]);
    // Zero would mean "none" (RFC 768).
    let value = if h.proto == 17 && value == 0 {
        0xffff
    } else {
        value
    };
    put_be16(frame, h.l4 + at, value);
}

/// Leave the checksum of TCP or UDP to the device: its field holds the sum over the pseudo header.
pub fn unfinish(frame: &mut [u8], h: &Headers) {
    if let Some(at) = checksum_at(h).filter(|at| h.l4 + at + 2 <= h.end) {
        let value = pseudo_sum(frame, h);
        put_be16(frame, h.l4 + at, value);
    }
}
