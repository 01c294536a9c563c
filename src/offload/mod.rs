//! Between super-frames and wire frames. Linux hands a pod's bulk data over as one frame of up to 64 KiB
//! with an unfinished checksum; the tunnel wants MTU-sized packets with finished ones. `segment` makes the
//! headers of those packets and leaves the payload where it lies; `complete` finishes a single checksum.
//! `coalesce` goes the way back. `ack` lets the newest of several acknowledgements stand for all.
//!
//! What a virtio-net header claims is [checked](check) against the frame before
//! anything relies on it: a pod chooses it freely by a packet socket with PACKET_VNET_HDR, and its kernel
//! corrects little.

pub mod ack;
pub mod coalesce;
pub mod complete;
pub mod segment;
#[cfg(test)]
mod testing;

pub use coalesce::Coalescer;
pub use complete::complete;
pub use segment::Segments;

use crate::model::DropReason;
use crate::wire::{Gso, Headers, VnetHdr};

/// Whether a virtio-net header tells the truth about its frame.
///
/// # Errors
/// [`DropReason::BadVnetHdr`] when the two contradict each other, [`DropReason::BadL4Header`] when the
/// transport header of a super-frame is malformed.
#[inline]
pub fn check(frame: &[u8], h: &Headers, v: &VnetHdr) -> Result<(), DropReason> {
    match (v.gso, v.partial) {
        (Gso::None, None) => {}
        (Gso::None, Some(partial)) => complete::check(frame, h, partial)?,
        _ => {
            Segments::checked(frame, h, v)?;
        }
    }
    // The kernel's own rules where the frame goes on to another TAP (tun_get_user, virtio_net_hdr_to_skb).
    if usize::from(v.hdr_len) > frame.len() || v.ecn && v.gso == Gso::None {
        return Err(DropReason::BadVnetHdr);
    }
    Ok(())
}
