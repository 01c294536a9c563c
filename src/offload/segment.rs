//! One super-frame into the headers of its wire frames; the payload is never touched or copied.
//!
//! `[eth | ip | tcp | payload of 44 * MSS]` becomes 44 times `[eth | ip | tcp] -> payload slice`, as Linux's
//! own software segmentation does it (tcp_gso_segment, __udp_gso_segment).

use crate::model::DropReason;
use crate::wire::bytes::{be16, be32, put_be16, put_be32};
use crate::wire::checksum::{Sum, pseudo};
use crate::wire::{ETH_LEN, Gso, Headers, IPV6_LEN, L3, UDP_LEN, VnetHdr, proto};
use std::ops::Range;

/// Longest header block: Ethernet, IPv6 and TCP with all options, and some 140 bytes of extension headers. IPv4
/// with all options is shorter.
pub const MAX_HEADER: usize = 256;
/// Most wire frames of one super-frame: what UDP_SEGMENT takes. A pod's own kernel makes no more than its
/// interface's `gso_max_segs`, which is less; a header that asks for thousands would keep other pods waiting.
pub const MAX_SEGMENTS: usize = 128;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// A super-frame whose header was checked against the frame: the recipe for its wire frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    headers: Headers,
    header_len: usize,
    mss: usize,
    count: usize,
}

impl Segments {
    /// Check the virtio-net header's claims about `frame` against what the frame is.
    ///
    /// # Errors
    /// [`DropReason::BadVnetHdr`] when the two contradict each other, [`DropReason::BadL4Header`] when the
    /// transport header is malformed.
    pub fn checked(frame: &[u8], h: &Headers, v: &VnetHdr) -> Result<Segments, DropReason> {
        let fits = match v.gso {
            Gso::Tcp4 => h.l3 == L3::Ipv4 && h.proto == proto::TCP,
            Gso::Tcp6 => h.l3 == L3::Ipv6 && h.proto == proto::TCP,
            Gso::Udp => h.proto == proto::UDP,
            Gso::None => false,
        };
        let partial_fits = v
            .partial
            .is_some_and(|(s, o)| usize::from(s) == h.l4 && Some(o) == h.checksum_at());
        // The kernel keeps 65,535 for itself (GSO_BY_FRAGS), and no super-frame was ever padded.
        let possible =
            !matches!(v.gso_size, 0 | u16::MAX) && h.end == frame.len() && !(v.ecn && v.gso == Gso::Udp);
        if !fits || !partial_fits || h.fragment || !possible {
            return Err(DropReason::BadVnetHdr);
        }
        let l4_len = if h.proto == proto::TCP {
            let doff = frame.get(h.l4 + 12).map_or(0, |b| usize::from(b >> 4) * 4);
            if doff < 20 {
                return Err(DropReason::BadL4Header);
            }
            doff
        } else {
            UDP_LEN
        };
        let header_len = h.l4 + l4_len;
        if header_len > h.end {
            return Err(DropReason::BadL4Header);
        }
        let (payload, mss) = (h.end - header_len, usize::from(v.gso_size));
        // An empty super-frame is still one packet.
        let count = payload.div_ceil(mss).max(1);
        if count > MAX_SEGMENTS || header_len > MAX_HEADER {
            return Err(DropReason::BadVnetHdr);
        }
        Ok(Segments {
            headers: *h,
            header_len,
            mss,
            count,
        })
    }

    /// How many wire frames there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Length of each wire frame's header block.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Length of every wire frame but the last, which may be shorter.
    pub fn frame_len(&self) -> usize {
        self.header_len + self.mss.min(self.headers.end - self.header_len)
    }

    /// Where in the super-frame the payload of wire frame `i` lies.
    pub fn payload(&self, i: usize) -> Range<usize> {
        let start = (self.header_len + i * self.mss).min(self.headers.end);
        start..(start + self.mss).min(self.headers.end)
    }

    /// Write the header block of wire frame `i` to `out`, checksums complete, and return its length; 0 when
    /// `out` is shorter than [`Segments::header_len`] or there is no such frame.
    pub fn header(&self, frame: &[u8], i: usize, out: &mut [u8]) -> usize {
        let h = &self.headers;
        let (Some(from), Some(out)) = (frame.get(..self.header_len), out.get_mut(..self.header_len)) else {
            return 0;
        };
        let payload = self.payload(i);
        let Some(bytes) = frame.get(payload.clone()).filter(|_| i < self.count) else {
            return 0;
        };
        out.copy_from_slice(from);
        let l4_len = self.header_len - h.l4 + payload.len();
        // All lengths are at most those of the super-frame, which fit their 16-bit fields.
        match h.l3 {
            L3::Ipv4 => {
                put_be16(out, ETH_LEN + 2, (h.l4 - ETH_LEN + l4_len) as u16);
                put_be16(out, ETH_LEN + 4, be16(from, ETH_LEN + 4).wrapping_add(i as u16));
                put_be16(out, ETH_LEN + 10, 0);
                put_be16(
                    out,
                    ETH_LEN + 10,
                    Sum::default().with(&out[ETH_LEN..h.l4]).finish(),
                );
            }
            // Extension headers count as payload.
            _ => put_be16(out, ETH_LEN + 4, (h.l4 - ETH_LEN - IPV6_LEN + l4_len) as u16),
        }
        let checksum_at = if h.proto == proto::TCP {
            put_be32(
                out,
                h.l4 + 4,
                be32(from, h.l4 + 4).wrapping_add((i * self.mss) as u32),
            );
            if i + 1 < self.count {
                out[h.l4 + 13] &= !(TCP_FIN | TCP_PSH);
            }
            if i > 0 {
                out[h.l4 + 13] &= !TCP_CWR;
            }
            h.l4 + 16
        } else {
            put_be16(out, h.l4 + 4, l4_len as u16);
            h.l4 + 6
        };
        put_be16(out, checksum_at, 0);
        let sum = self.pseudo(from, checksum_at, l4_len);
        let mut sum = sum.with(&out[h.l4..]).with(bytes).finish();
        if sum == 0 && h.proto == proto::UDP {
            sum = 0xffff;
        }
        put_be16(out, checksum_at, sum);
        self.header_len
    }

    /// The pseudo-header sum of a segment of `len` bytes. With a source route or a routing header it has the
    /// final destination, which only the sender's own sum tells (RFC 8200 section 8.1): its length is replaced.
    fn pseudo(&self, frame: &[u8], checksum_at: usize, len: usize) -> Sum {
        let h = &self.headers;
        if h.plain {
            return pseudo(frame, h, len);
        }
        let whole = Sum::default().with16(be16(frame, checksum_at));
        whole.with16(!((h.end - h.l4) as u16)).with16(len as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::testing::{super_frame, vnet};
    use crate::wire::checksum::transport_is_right;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn wire_frames_are_right_and_hold_the_payload(
            v6: bool, tcp: bool, options in 0usize..=10, flags: u8,
            payload in proptest::collection::vec(any::<u8>(), 1..9000), mss in 71u16..2000,
        ) {
            let f = super_frame(v6, tcp, options, &payload, flags);
            let h = Headers::parse(&f).unwrap();
            let mss = mss.max(payload.len().div_ceil(MAX_SEGMENTS) as u16);
            let s = Segments::checked(&f, &h, &vnet(v6, tcp, mss)).unwrap();
            let mut joined: Vec<u8> = Vec::new();
            for i in 0..s.count() {
                let mut wire = vec![0; MAX_HEADER];
                let n = s.header(&f, i, &mut wire);
                prop_assert_eq!(n, s.header_len());
                wire.truncate(n);
                wire.extend(&f[s.payload(i)]);
                let full = wire.len() == s.frame_len();
                prop_assert!(full || i + 1 == s.count() && wire.len() < s.frame_len());
                // Parsing verifies the IPv4 header checksum and all lengths.
                let w = Headers::parse(&wire).unwrap();
                prop_assert_eq!(w.end, wire.len());
                prop_assert!(transport_is_right(&wire, &w));
                if tcp {
                    prop_assert_eq!(be32(&wire, w.l4 + 4), 0xffff_ff00u32.wrapping_add(joined.len() as u32));
                    let last = i + 1 == s.count();
                    let keep = !(if last { 0 } else { TCP_FIN | TCP_PSH } | if i == 0 { 0 } else { TCP_CWR });
                    prop_assert_eq!(wire[w.l4 + 13], flags & keep);
                }
                joined.extend(&f[s.payload(i)]);
            }
            prop_assert_eq!(joined, payload);
        }

        #[test]
        fn no_claim_breaks_it(
            mut f in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..60, byte: u8,
            start: u16, offset in 0u16..40, gso in 0usize..4, gso_size: u16, valid: bool,
        ) {
            if valid {
                f = super_frame(gso == 1, gso < 2, 0, &f, 0x18);
                let at = 14 + at.min(f.len() - 15);
                f[at] = byte;
            }
            let gso = [Gso::Tcp4, Gso::Tcp6, Gso::Udp, Gso::None][gso];
            let v = VnetHdr { partial: Some((if valid { 34 } else { start }, offset)), gso, ecn: false, hdr_len: start, gso_size };
            if let Ok(h) = Headers::parse(&f) {
                if let Ok(s) = Segments::checked(&f, &h, &v) {
                    let mut out = [0; MAX_HEADER];
                    for i in [0, s.count() - 1, s.count()] {
                        s.header(&f, i, &mut out);
                    }
                }
                let _ = super::super::complete(&mut f, &h, (start, offset));
            }
        }
    }

    /// [eth | ip | options | tcp]: options and extension headers are copied to each wire frame, and the sum
    /// over the pseudo header stays the sender's, which may know of another destination.
    #[test]
    fn options_are_in_every_wire_frame() {
        let payload: Vec<u8> = (0..3000u32).map(|i| i as u8).collect();
        for (v6, chain) in [
            (false, &[1u8; 8][..]),
            (true, &[6, 0, 1, 4, 0, 0, 0, 0]),
            (
                true,
                &[
                    6, 2, 4, 1, 0, 0, 0, 0, 0xfe, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
                ],
            ),
        ] {
            let mut f = super_frame(v6, true, 3, &payload, 0x18);
            let l4 = if v6 { 54 } else { 34 };
            f.splice(l4..l4, chain.iter().copied());
            if v6 {
                f[20] = if chain.len() == 24 { 43 } else { 60 };
                let len = be16(&f, 18) + chain.len() as u16;
                put_be16(&mut f, 18, len);
            } else {
                f[14] = 0x47;
                let len = be16(&f, 16) + 8;
                put_be16(&mut f, 16, len);
                put_be16(&mut f, 24, 0);
                let sum = Sum::default().with(&f[14..42]).finish();
                put_be16(&mut f, 24, sum);
            }
            let h = Headers::parse(&f).unwrap();
            // A routing header's last address is the one the receiver sums over.
            let mut seen = f.clone();
            if v6 && f[20] == 43 {
                seen[38..54].copy_from_slice(&chain[8..24]);
            }
            let partial = pseudo(&seen, &h, h.end - h.l4).fold();
            put_be16(&mut f, h.l4 + 16, partial);
            let v = VnetHdr {
                partial: Some((h.l4 as u16, 16)),
                ..vnet(v6, true, 1000)
            };
            let s = Segments::checked(&f, &h, &v).unwrap();
            for i in 0..3 {
                let mut wire = vec![0; MAX_HEADER];
                let n = s.header(&f, i, &mut wire);
                wire.truncate(n);
                assert_eq!(wire[l4..h.l4], *chain, "frame {i}");
                wire.extend(&f[s.payload(i)]);
                if v6 && f[20] == 43 {
                    wire[38..54].copy_from_slice(&chain[8..24]);
                }
                assert!(
                    transport_is_right(&wire, &Headers::parse(&wire).unwrap()),
                    "frame {i} of {chain:?}"
                );
            }
        }
    }

    #[test]
    fn lying_headers_are_refused() {
        let f = super_frame(false, true, 0, &[7; 3000], 0x18);
        let h = Headers::parse(&f).unwrap();
        let good = vnet(false, true, 1000);
        assert_eq!(Segments::checked(&f, &h, &good).unwrap().count(), 3);
        for bad in [
            VnetHdr { gso_size: 0, ..good },
            VnetHdr { gso_size: 23, ..good },
            VnetHdr {
                gso: Gso::Tcp6,
                ..good
            },
            VnetHdr {
                gso: Gso::Udp,
                ..good
            },
            VnetHdr {
                gso: Gso::None,
                ..good
            },
            VnetHdr {
                partial: None,
                ..good
            },
            VnetHdr {
                partial: Some((34, 6)),
                ..good
            },
            VnetHdr {
                partial: Some((60000, 16)),
                ..good
            },
            VnetHdr {
                gso_size: u16::MAX,
                ..good
            },
        ] {
            assert_eq!(
                Segments::checked(&f, &h, &bad),
                Err(DropReason::BadVnetHdr),
                "{bad:?}"
            );
        }
        let padded = [&f[..], &[0; 6]].concat();
        assert_eq!(Segments::checked(&padded, &h, &good), Err(DropReason::BadVnetHdr));
        let u = super_frame(false, false, 0, &[7; 3000], 0);
        let uh = Headers::parse(&u).unwrap();
        let datagrams = |v: VnetHdr| Segments::checked(&u, &uh, &v).map(|s| s.count());
        let few = vnet(false, false, 24);
        assert_eq!(datagrams(few), Ok(125));
        assert_eq!(
            datagrams(VnetHdr { gso_size: 23, ..few }),
            Err(DropReason::BadVnetHdr)
        );
        assert_eq!(
            datagrams(VnetHdr { ecn: true, ..few }),
            Err(DropReason::BadVnetHdr)
        );
        let mut short = f.clone();
        short[34 + 12] = 0x40;
        assert_eq!(Segments::checked(&short, &h, &good), Err(DropReason::BadL4Header));
    }

    #[test]
    fn completion_writes_a_right_checksum() {
        for (v6, tcp) in [(false, true), (false, false), (true, true), (true, false)] {
            let mut f = super_frame(v6, tcp, 2, b"odd", 0x18);
            let h = Headers::parse(&f).unwrap();
            let partial = vnet(v6, tcp, 1).partial.unwrap();
            let at = h.l4 + usize::from(partial.1);
            let unfinished = pseudo(&f, &h, h.end - h.l4).fold();
            put_be16(&mut f, at, unfinished);
            assert!(crate::wire::checksum::is_partial(&f, &h, usize::from(partial.1)));
            super::super::complete(&mut f, &h, partial).unwrap();
            assert!(transport_is_right(&f, &h), "v6 {v6} tcp {tcp}");
        }
    }
}
