//! Between super-frames and wire frames. Linux hands a pod's bulk data over as one frame of up to 64 KiB
//! with an unfinished checksum; the tunnel wants MTU-sized packets with finished ones. `segment` makes the
//! headers of those packets and leaves the payload where it lies; `complete` finishes a single checksum.
//! `coalesce` goes the way back. `ack` lets the newest of several acknowledgements stand for all.

pub mod ack;
pub mod coalesce;
pub mod complete;
pub mod segment;
#[cfg(test)]
mod testing;

pub use coalesce::Coalescer;
pub use complete::complete;
pub use segment::Segments;
