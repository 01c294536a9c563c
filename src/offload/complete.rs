//! Finish the checksum of one ordinary frame.

use crate::model::DropReason;
use crate::wire::bytes::{be16, put_be16};
use crate::wire::checksum::Sum;
use crate::wire::{Headers, proto};

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

/// Whether there is a field to store a checksum in: within the packet, and behind all of its IP headers. The
/// kernel asks for 20 bytes of them only (virtio_net_hdr_to_skb), so that a pod could have the sum stored in the
/// source address of its IPv6 packet, behind the source guard's back.
///
/// # Errors
/// [`DropReason::BadVnetHdr`].
pub fn check(frame: &[u8], h: &Headers, (start, offset): (u16, u16)) -> Result<(), DropReason> {
    let (start, offset) = (usize::from(start), usize::from(offset));
    let fits = start >= h.l4 && start + offset + 2 <= h.end && h.end <= frame.len();
    fits.then_some(()).ok_or(DropReason::BadVnetHdr)
}
