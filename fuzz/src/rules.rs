//! What others ask of podwire's output: the kernel of a TAP, the kernel of a UDP socket, and a receiver that
//! verifies checksums. Written from their sources, without podwire's own arithmetic.

use podwire::model::TapCaps;
use podwire::wire::{Headers, L3, VnetHdr, proto};

/// The one's complement sum of `pieces`, each of which begins at an even offset (RFC 1071).
pub fn sum(pieces: &[&[u8]]) -> u16 {
    let mut total = 0u32;
    for piece in pieces {
        for pair in piece.chunks(2) {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            total += u32::from(word);
            total = (total & 0xffff) + (total >> 16);
        }
    }
    total as u16
}

/// Where the transport header has its checksum.
pub fn checksum_at(h: &Headers) -> Option<usize> {
    if h.fragment {
        return None;
    }
    match (h.proto, h.l3) {
        (proto::TCP, _) => Some(16),
        (proto::UDP, _) => Some(6),
        (proto::ICMP, L3::Ipv4) | (proto::ICMPV6, L3::Ipv6) => Some(2),
        _ => None,
    }
}

/// The sum over the pseudo header; none for ICMP over IPv4.
pub fn pseudo_sum(frame: &[u8], h: &Headers) -> u16 {
    let len = ((h.end - h.l4) as u32).to_be_bytes();
    let tail = [0, 0, 0, h.proto];
    match h.l3 {
        L3::Ipv4 if h.proto == proto::ICMP => 0,
        L3::Ipv4 => sum(&[&frame[26..34], &len, &tail]),
        _ => sum(&[&frame[22..54], &len, &tail]),
    }
}

/// Whether a receiver takes the transport checksum. `None` where there is none to verify.
pub fn checksum_is_right(frame: &[u8], h: &Headers) -> Option<bool> {
    let at = checksum_at(h)?;
    if h.l4 + at + 2 > h.end {
        return None;
    }
    if h.proto == proto::UDP && frame[h.l4 + 6..h.l4 + 8] == [0, 0] {
        return None;
    }
    Some(sum(&[&pseudo_sum(frame, h).to_be_bytes(), &frame[h.l4..h.end]]) == 0xffff)
}

/// Whether the checksum field holds just the pseudo-header sum.
pub fn checksum_is_partial(frame: &[u8], h: &Headers) -> bool {
    let at = checksum_at(h).filter(|at| h.l4 + at + 2 <= h.end);
    at.is_some_and(|at| frame[h.l4 + at..h.l4 + at + 2] == pseudo_sum(frame, h).to_be_bytes())
}

/// UDP_MAX_SEGMENTS (include/linux/udp.h).
const UDP_MAX_SEGMENTS: usize = 128;

/// Panics unless the kernel takes a frame with this header from a TAP with these offloads: tun_get_user
/// (drivers/net/tun.c) and virtio_net_hdr_to_skb (include/linux/virtio_net.h).
pub fn tap_takes(vnet: &VnetHdr, frame: &[u8], caps: &TapCaps) {
    let b = vnet.emit();
    let field = |at: usize| usize::from(u16::from_ne_bytes([b[at], b[at + 1]]));
    let (needs_csum, gso, ecn) = (b[0] & 1 != 0, b[1] & 0x7f, b[1] & 0x80 != 0);
    let (mut hdr_len, gso_size, start, offset) = (field(2), field(4), field(6), field(8));
    assert!(frame.len() >= 14, "tun: shorter than an Ethernet header");
    if !caps.vnet_hdr {
        // Its header is not written at all.
        assert!(b[0] == 0 && b[1] == 0, "a plain TAP has no offloads");
    }
    if needs_csum {
        hdr_len = hdr_len.max(start + offset + 2);
        assert!(caps.csum, "TUN_F_CSUM was not asked for");
    }
    assert!(
        hdr_len <= frame.len(),
        "tun: hdr_len {hdr_len} of {}",
        frame.len()
    );
    let (kind, header) = match gso {
        0 => (None, 0),
        1 => (Some((0x0800, proto::TCP)), 20),
        4 => (Some((0x86dd, proto::TCP)), 20),
        5 => (Some((u16::from_be_bytes([frame[12], frame[13]]), proto::UDP)), 8),
        other => panic!("unknown gso type {other}"),
    };
    if needs_csum {
        assert!(
            start >= 14 + 20,
            "virtio_net_hdr_to_skb: checksum within the IP header"
        );
        assert!(
            start + header <= frame.len(),
            "virtio_net_hdr_to_skb: transport header beyond the frame"
        );
    }
    let Some((ethertype, protocol)) = kind else {
        assert!(!ecn, "virtio_net_hdr_to_skb: ECN of no super-frame");
        return;
    };
    let h = Headers::parse(frame).expect("a super-frame is an IP packet");
    assert_eq!(
        frame[12..14],
        ethertype.to_be_bytes(),
        "virtio_net_hdr_match_proto"
    );
    assert_eq!(
        h.proto, protocol,
        "virtio_net_hdr_to_skb: transport of the super-frame"
    );
    assert!(
        gso_size != 0 && gso_size != 0xffff,
        "virtio_net_hdr_to_skb: gso_size {gso_size}"
    );
    assert!(match gso {
        1 => caps.tso4,
        4 => caps.tso6,
        _ => caps.uso,
    });
    assert!(needs_csum && start == h.l4, "super-frames have partial checksums");
    if gso == 5 {
        assert!(offset == 6 && !ecn);
        assert!(
            frame.len() - (start + 8) <= gso_size * UDP_MAX_SEGMENTS,
            "UDP_MAX_SEGMENTS"
        );
    } else {
        assert_eq!(offset, 16);
    }
}
