//! Finish the checksum of one ordinary frame, and what a virtio-net header may claim at all.

use crate::model::DropReason;
use crate::wire::bytes::{be16, put_be16};
use crate::wire::checksum::Sum;
use crate::wire::{Headers, proto};

/// Ports, or type and code of ICMP: what was decided by. ICMP's own checksum lies there too; Linux always finishes
/// that itself.
const DECIDED: usize = 4;

/// Sum `frame` from `start` to the end of its packet and store the checksum at `start + offset`, whose field
/// holds the pseudo-header sum (virtio 1.2 section 5.1.6.2: VIRTIO_NET_HDR_F_NEEDS_CSUM).
///
/// # Errors
/// The header's claims do not fit the frame.
pub fn complete(frame: &mut [u8], h: &Headers, (start, offset): (u16, u16)) -> Result<(), DropReason> {
    check(frame, h, (start, offset))?;
    let (start, offset) = (usize::from(start), usize::from(offset));
    let mut sum = Sum::default().with(&frame[start..h.end]).finish();
    // A UDP checksum of zero would mean "none" (RFC 768); all ones is the same number.
    if sum == 0 && h.proto == proto::UDP {
        sum = 0xffff;
    }
    put_be16(frame, start + offset, sum);
    debug_assert_eq!(be16(frame, start + offset), sum);
    Ok(())
}

/// Whether there is a field to store a checksum in: within the packet, and behind everything that was decided by.
/// The kernel asks for 20 bytes of IP header only (virtio_net_hdr_to_skb), so that a pod could have the sum stored
/// in the source address of its IPv6 packet, behind the source guard's back. What the pod itself tunnels has its
/// checksum farther back than `l4`.
///
/// # Errors
/// [`DropReason::BadVnetHdr`].
pub fn check(frame: &[u8], h: &Headers, (start, offset): (u16, u16)) -> Result<(), DropReason> {
    let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
    let fits = start >= h.l4 && field >= h.l4 + DECIDED && field + 2 <= h.end && h.end <= frame.len();
    fits.then_some(()).ok_or(DropReason::BadVnetHdr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::check;
    use crate::offload::testing::{super_frame, vnet};
    use crate::wire::VnetHdr;

    #[test]
    fn a_checksum_goes_nowhere_but_behind_what_was_decided_by() {
        for v6 in [false, true] {
            let mut f = super_frame(v6, false, 0, b"payload", 0);
            let h = Headers::parse(&f).unwrap();
            let (l4, end) = (h.l4 as u16, h.end as u16);
            for (partial, good) in [
                ((l4, 6), true),
                ((l4, 4), true),
                ((l4 + 8, 2), true), // of what the pod tunnels
                ((end - 2, 0), true),
                ((34, 0), false), // ports; with IPv6 the source address
                ((34, 4), !v6),
                ((l4, 2), false),
                ((l4 - 2, 8), false),
                ((l4, end - l4 - 1), false),
                ((end, 0), false),
                ((u16::MAX, u16::MAX), false),
            ] {
                let v = VnetHdr {
                    partial: Some(partial),
                    ..VnetHdr::default()
                };
                let want = if good { Ok(()) } else { Err(DropReason::BadVnetHdr) };
                assert_eq!(check(&f, &h, &v), want, "{partial:?} in {h:?}");
                assert_eq!(complete(&mut f, &h, partial), want, "{partial:?} in {h:?}");
                f = super_frame(v6, false, 0, b"payload", 0);
            }
            let long = VnetHdr {
                hdr_len: f.len() as u16 + 1,
                ..VnetHdr::default()
            };
            assert_eq!(check(&f, &h, &long), Err(DropReason::BadVnetHdr));
            let marked = VnetHdr {
                ecn: true,
                ..VnetHdr::default()
            };
            assert_eq!(check(&f, &h, &marked), Err(DropReason::BadVnetHdr));
            assert_eq!(check(&f, &h, &vnet(v6, false, 4)), Ok(()));
            assert_eq!(check(&f, &h, &vnet(v6, false, 0)), Err(DropReason::BadVnetHdr));
        }
    }
}
