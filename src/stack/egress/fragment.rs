//! Fragments (RFC 791 section 3.2, RFC 8200 section 4.5): those of pods are put together before they leave by a host's
//! socket, and what is too long for a pod's interface is cut.

use super::packet::{Ip, ip_len, write_ip};
use crate::model::{DropReason, Duration, Instant};
use crate::wire::bytes::{array, be16, put_be16, put_be32};
use crate::wire::{ETH_LEN, IPV4_LEN, IPV6_LEN};
use std::net::IpAddr;

/// Packets that are being put together; the oldest gives way.
const PARTIAL: usize = 64;
/// Those of one sender, so that one pod does not spoil what others send.
const PARTIAL_OF_ONE: usize = 8;
/// How long all parts may take (RFC 1122 section 3.3.2 and RFC 8200 say 60 s; Linux waits for 30 s).
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest IP packet.
const LONGEST: usize = 65_535;
/// IPv6's fragment header.
const FRAGMENT_LEN: usize = 8;
/// Its number.
const FRAGMENT: u8 = 44;

/// Hand on a packet as it is, or in fragments that fit `mtu`. `frame` has the payload behind the room for Ethernet and IP
/// header; it is overwritten.
pub(super) fn fragments(
    frame: &mut [u8],
    (src, dst): (IpAddr, IpAddr),
    ip: &Ip,
    ident: u32,
    mtu: usize,
    mut emit: impl FnMut(&mut [u8]),
) {
    let six = dst.is_ipv6();
    let head = ip_len(six);
    if head + ip.len <= mtu {
        write_ip(&mut frame[ETH_LEN..], src, dst, ip);
        return emit(frame);
    }
    let extra = if six { FRAGMENT_LEN } else { 0 };
    let room = mtu.saturating_sub(head + extra) & !7;
    let start = ETH_LEN + head;
    if room == 0 || frame.len() < start + ip.len || ip.len > LONGEST {
        return;
    }
    // A fragment needs its headers in front of its payload, where those before it were: so each is put in a place of
    // its own.
    let mut one = vec![0; start + extra + room];
    let mut at = 0;
    while at < ip.len {
        let len = room.min(ip.len - at);
        let more = at + len < ip.len;
        let this = &mut one[..start + extra + len];
        let mut header = *ip;
        header.len = extra + len;
        header.ident = ident as u16;
        header.fragment = (at / 8) as u16 | if more { 0x2000 } else { 0 };
        if six {
            header.proto = FRAGMENT;
            this[start] = ip.proto;
            this[start + 1] = 0;
            put_be16(this, start + 2, at as u16 | u16::from(more));
            put_be32(this, start + 4, ident);
        }
        write_ip(&mut this[ETH_LEN..], src, dst, &header);
        this[start + extra..].copy_from_slice(&frame[start + at..start + at + len]);
        emit(this);
        at += len;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Name {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    ident: u32,
}

#[derive(Debug)]
struct Partial {
    name: Name,
    since: Instant,
    /// Header of the first fragment, then the payload as far as it is known.
    header: Vec<u8>,
    payload: Vec<u8>,
    /// Which parts of it are there, in order, without gaps between touching ones.
    have: Vec<(usize, usize)>,
    /// How long it is, once the last part is there.
    len: Option<usize>,
}

/// Packets of pods that are being put together.
#[derive(Default, Debug)]
pub struct Reassembly {
    partial: Vec<Partial>,
}

struct Part<'a> {
    name: Name,
    header: &'a [u8],
    /// The protocol of what follows the headers.
    next: u8,
    offset: usize,
    more: bool,
    payload: &'a [u8],
}

impl Reassembly {
    /// Take a fragment: an IP packet, as long as its header says. The whole packet, without any fragment header, when
    /// this was the last part.
    ///
    /// # Errors
    /// It contradicts itself or the parts that came before it.
    pub fn input(&mut self, packet: &[u8], now: Instant) -> Result<Option<Vec<u8>>, DropReason> {
        self.partial.retain(|p| p.since + PATIENCE > now);
        let part = parse(packet).ok_or(DropReason::BadFragment)?;
        let end = part.offset + part.payload.len();
        if part.payload.is_empty()
            || (part.more && part.payload.len() % 8 != 0)
            || part.header.len() + end > LONGEST
        {
            return Err(DropReason::BadFragment);
        }
        let at = match self.partial.iter().position(|p| p.name == part.name) {
            Some(at) => at,
            None => {
                let own = |p: &Partial| p.name.src == part.name.src;
                let oldest = match self.partial.iter().filter(|p| own(p)).count() {
                    PARTIAL_OF_ONE.. => self.partial.iter().position(own),
                    _ if self.partial.len() == PARTIAL => Some(0),
                    _ => None,
                };
                if let Some(oldest) = oldest {
                    self.partial.remove(oldest);
                }
                self.partial.push(Partial {
                    name: part.name,
                    since: now,
                    header: Vec::new(),
                    payload: Vec::new(),
                    have: Vec::new(),
                    len: None,
                });
                self.partial.len() - 1
            }
        };
        if !self.partial[at].add(&part, end) {
            // Overlaps are attacks (RFC 5722): all of it goes.
            self.partial.remove(at);
            return Err(DropReason::BadFragment);
        }
        let p = &self.partial[at];
        if p.len.is_none() || p.have != [(0, p.payload.len())] || p.header.is_empty() {
            return Ok(None);
        }
        let p = self.partial.remove(at);
        let mut whole = p.header;
        whole.extend_from_slice(&p.payload);
        if whole.len() > LONGEST {
            return Err(DropReason::BadFragment);
        }
        Ok(Some(whole))
    }
}

impl Partial {
    fn add(&mut self, part: &Part<'_>, end: usize) -> bool {
        let known = self.len.unwrap_or(LONGEST);
        if end > known || (!part.more && self.payload.len() > end) {
            return false;
        }
        if !part.more {
            if self.len.is_some_and(|len| len != end) {
                return false;
            }
            self.len = Some(end);
        }
        let at = self.have.partition_point(|(_, e)| *e <= part.offset);
        if self.have.get(at).is_some_and(|(s, _)| *s < end) {
            return false;
        }
        self.have.insert(at, (part.offset, end));
        if self.have.get(at + 1).is_some_and(|next| next.0 == end) {
            self.have[at].1 = self.have.remove(at + 1).1;
        }
        if at > 0 && self.have[at - 1].1 == part.offset {
            self.have[at - 1].1 = self.have.remove(at).1;
        }
        if self.payload.len() < end {
            self.payload.resize(end, 0);
        }
        self.payload[part.offset..end].copy_from_slice(part.payload);
        if part.offset == 0 {
            self.header = unfragmented(part);
        }
        // The total length goes in last, when it is known; headers are patched by whoever asks for the whole.
        if let (Some(len), false) = (self.len, self.header.is_empty()) {
            match part.name.src {
                IpAddr::V4(_) => put_be16(&mut self.header, 2, (IPV4_LEN + len) as u16),
                IpAddr::V6(_) => put_be16(&mut self.header, 4, len as u16),
            }
        }
        true
    }
}

/// The header of the whole packet, its length not yet right and its checksum not looked at again.
fn unfragmented(part: &Part<'_>) -> Vec<u8> {
    let mut header = part.header.to_vec();
    match part.name.src {
        IpAddr::V4(_) => put_be16(&mut header, 6, 0),
        IpAddr::V6(_) => header[6] = part.next,
    }
    header
}

/// Only packets without options and other extension headers are put together: no others come from a pod's kernel.
fn parse(packet: &[u8]) -> Option<Part<'_>> {
    match packet.first()? >> 4 {
        4 if packet[0] == 0x45 && packet.len() > IPV4_LEN => {
            let field = be16(packet, 6);
            Some(Part {
                name: Name {
                    src: IpAddr::from(array::<4>(packet, 12)),
                    dst: IpAddr::from(array::<4>(packet, 16)),
                    proto: packet[9],
                    ident: u32::from(be16(packet, 4)),
                },
                header: &packet[..IPV4_LEN],
                next: packet[9],
                offset: usize::from(field & 0x1fff) * 8,
                more: field & 0x2000 != 0,
                payload: &packet[IPV4_LEN..],
            })
        }
        6 if packet.len() > IPV6_LEN + FRAGMENT_LEN && packet[6] == FRAGMENT => {
            let field = be16(packet, IPV6_LEN + 2);
            Some(Part {
                name: Name {
                    src: IpAddr::from(array::<16>(packet, 8)),
                    dst: IpAddr::from(array::<16>(packet, 24)),
                    proto: FRAGMENT,
                    ident: u32::from_be_bytes(array::<4>(packet, IPV6_LEN + 4)),
                },
                header: &packet[..IPV6_LEN],
                next: packet[IPV6_LEN],
                offset: usize::from(field & !7),
                more: field & 1 != 0,
                payload: &packet[IPV6_LEN + FRAGMENT_LEN..],
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto;
    use proptest::prelude::*;

    fn ends(six: bool) -> (IpAddr, IpAddr) {
        match six {
            false => ("10.0.0.2".parse().unwrap(), "198.51.100.1".parse().unwrap()),
            true => ("fd00::2".parse().unwrap(), "2001:db8::1".parse().unwrap()),
        }
    }

    fn cut(six: bool, payload: &[u8], mtu: usize, ident: u32) -> Vec<Vec<u8>> {
        let mut frame = vec![0; ETH_LEN + ip_len(six)];
        frame.extend_from_slice(payload);
        let ip = Ip {
            proto: proto::UDP,
            hops: 64,
            len: payload.len(),
            ..Ip::default()
        };
        let mut all = Vec::new();
        fragments(&mut frame, ends(six), &ip, ident, mtu, |f| {
            all.push(f[ETH_LEN..].to_vec())
        });
        all
    }

    proptest! {
        #[test]
        fn what_was_cut_is_whole_again_in_any_order(
            six: bool,
            len in 1usize..65_000,
            mtu in 1280usize..9000,
            ident: u32,
            order in proptest::collection::vec(any::<prop::sample::Index>(), 64),
        ) {
            let payload: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let mut parts = cut(six, &payload, mtu, ident);
            prop_assert!(parts.iter().all(|p| p.len() <= mtu));
            if parts.len() == 1 {
                prop_assert!(parts[0].ends_with(&payload));
                return Ok(());
            }
            for (i, with) in order.iter().enumerate() {
                let n = parts.len();
                parts.swap(i % n, with.index(n));
            }
            let mut r = Reassembly::default();
            let last = parts.pop().unwrap();
            for part in &parts {
                prop_assert_eq!(r.input(part, Instant::ZERO), Ok(None));
            }
            let whole = r.input(&last, Instant::ZERO).unwrap().unwrap();
            prop_assert_eq!(&whole[ip_len(six)..], &payload[..]);
            let told = if six { IPV6_LEN + usize::from(be16(&whole, 4)) } else { usize::from(be16(&whole, 2)) };
            prop_assert_eq!(told, whole.len());
            prop_assert_eq!(whole[if six { 6 } else { 9 }], proto::UDP);
            prop_assert!(r.partial.is_empty());
        }

        #[test]
        fn no_fragments_break_it(
            parts in proptest::collection::vec(
                (any::<bool>(), 0u16..600, any::<bool>(), 0usize..300, 0u8..3), 0..200),
        ) {
            let mut r = Reassembly::default();
            for (six, offset, more, len, ident) in parts {
                let mut p = cut(six, &vec![1; 3000], 1280, u32::from(ident)).remove(0);
                p.truncate(ip_len(six) + 8 + len);
                match six {
                    false => put_be16(&mut p, 6, offset | u16::from(more) << 13),
                    true => put_be16(&mut p, IPV6_LEN + 2, offset << 3 | u16::from(more)),
                }
                let _ = r.input(&p, Instant::ZERO);
                prop_assert!(r.partial.len() <= PARTIAL);
                for p in &r.partial {
                    prop_assert!(p.have.windows(2).all(|w| w[0].1 < w[1].0));
                }
            }
        }
    }

    #[test]
    fn overlaps_lies_and_old_parts_are_dropped() {
        let parts = cut(false, &[1; 3000], 1280, 5);
        let mut r = Reassembly::default();
        assert_eq!(r.input(&parts[0], Instant::ZERO), Ok(None));
        assert_eq!(r.input(&parts[0], Instant::ZERO), Err(DropReason::BadFragment));
        assert!(r.partial.is_empty(), "twice the same is an overlap");
        // A last part in the middle of what is there.
        let mut r = Reassembly::default();
        r.input(&parts[2], Instant::ZERO).unwrap();
        let mut last = parts[0].clone();
        put_be16(&mut last, 6, 0);
        assert_eq!(r.input(&last, Instant::ZERO), Err(DropReason::BadFragment));
        // Too late.
        let mut r = Reassembly::default();
        r.input(&parts[0], Instant::ZERO).unwrap();
        r.input(&parts[1], Instant::ZERO + PATIENCE).unwrap();
        assert_eq!(r.input(&parts[2], Instant::ZERO + PATIENCE), Ok(None));
        // Beyond the longest packet.
        let mut far = parts[0].clone();
        put_be16(&mut far, 6, 0x1fff);
        assert_eq!(r.input(&far, Instant::ZERO), Err(DropReason::BadFragment));
        assert_eq!(r.input(&[], Instant::ZERO), Err(DropReason::BadFragment));
        // Many unfinished ones are bounded, the oldest goes.
        let mut r = Reassembly::default();
        for n in 0..2 * PARTIAL as u32 {
            r.input(&cut(false, &[1; 3000], 1280, n)[0], Instant::ZERO)
                .unwrap();
        }
        assert_eq!(r.partial.len(), PARTIAL_OF_ONE);
    }

    #[test]
    fn one_sender_spoils_nothing_of_another() {
        let mut r = Reassembly::default();
        let parts = cut(true, &[1; 2000], 1280, 5);
        assert_eq!(r.input(&parts[0], Instant::ZERO), Ok(None));
        for n in 0..2 * PARTIAL as u32 {
            let first = &cut(false, &[1; 3000], 1280, n)[0];
            assert_eq!(r.input(first, Instant::ZERO), Ok(None));
        }
        assert!(r.input(&parts[1], Instant::ZERO).unwrap().is_some());
    }
}
