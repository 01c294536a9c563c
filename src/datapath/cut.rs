//! Fragments of what the node itself sends for others (RFC 791 section 3.2, RFC 8200 section 4.5): a client of a node port
//! knows nothing of the path to a backend.

use crate::wire::bytes::{be16, put, put_be16, put_be32};
use crate::wire::checksum::Sum;
use crate::wire::{ETH_LEN, Headers, IPV4_LEN, IPV6_LEN, L3};

/// IPv6's fragment header.
const FRAGMENT_LEN: usize = 8;
/// Its number.
const FRAGMENT: u8 = 44;
/// More fragments follow, in IPv4.
const MORE: u16 = 0x2000;

/// Hand on a packet in fragments that fit `mtu`, as whole frames; one that is a fragment itself in smaller ones.
/// Its checksums are complete. `false`: it has headers that the node's own packets do not have, or nothing fits.
pub(super) fn cut(frame: &[u8], h: &Headers, mtu: usize, ident: u32, mut emit: impl FnMut(&[u8])) -> bool {
    let six = h.l3 == L3::Ipv6;
    let head = ETH_LEN + if six { IPV6_LEN } else { IPV4_LEN };
    let extra = if six { FRAGMENT_LEN } else { 0 };
    // Where its payload begins, what of the packet came before, and whether more comes after.
    let (begin, offset, more) = match (six, h.fragment) {
        (false, _) if frame.get(ETH_LEN) != Some(&0x45) => return false,
        (false, _) => {
            let field = be16(frame, ETH_LEN + 6);
            (head, usize::from(field & 0x1fff) * 8, field & MORE != 0)
        }
        (true, false) if h.l4 == head => (head, 0, false),
        (true, true) if frame.get(ETH_LEN + 6) == Some(&FRAGMENT) => {
            let field = be16(frame, head + 2);
            (head + FRAGMENT_LEN, usize::from(field & !7), field & 1 != 0)
        }
        _ => return false,
    };
    let room = (mtu + ETH_LEN).saturating_sub(head + extra) & !7;
    let Some(payload) = frame.get(begin..h.end).filter(|_| room > 0) else {
        return false;
    };
    let mut one = Vec::with_capacity(head + extra + room);
    for (n, part) in payload.chunks(room).enumerate() {
        let at = n * room;
        let follows = more || at + part.len() < payload.len();
        one.clear();
        one.extend_from_slice(&frame[..head]);
        if six {
            one.extend_from_slice(&[0; FRAGMENT_LEN]);
            put_be16(&mut one, ETH_LEN + 4, (FRAGMENT_LEN + part.len()) as u16);
            match h.fragment {
                true => put(&mut one, head, &frame[head..head + FRAGMENT_LEN]),
                false => {
                    put(&mut one, head, &[h.proto]);
                    put_be32(&mut one, head + 4, ident);
                }
            }
            put(&mut one, ETH_LEN + 6, &[FRAGMENT]);
            put_be16(&mut one, head + 2, (offset + at) as u16 | u16::from(follows));
        } else {
            put_be16(&mut one, ETH_LEN + 2, (IPV4_LEN + part.len()) as u16);
            if !h.fragment {
                put_be16(&mut one, ETH_LEN + 4, ident as u16);
            }
            let field = ((offset + at) / 8) as u16 | if follows { MORE } else { 0 };
            put_be16(&mut one, ETH_LEN + 6, field);
            put_be16(&mut one, ETH_LEN + 10, 0);
            let sum = Sum::default().with(&one[ETH_LEN..head]).finish();
            put_be16(&mut one, ETH_LEN + 10, sum);
        }
        one.extend_from_slice(part);
        emit(&one);
    }
    true
}
