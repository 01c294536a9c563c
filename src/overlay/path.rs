//! What is known of one path to a peer.

use super::probes::{Ask, EXPIRES, Probes};
use crate::model::{Instant, UnderlayMtu};

/// A path: from this node to one underlay address of a peer, or to the only one.
#[derive(Debug, Default)]
pub struct Path {
    /// Path MTU that the kernel reported or probes found, when smaller than what was configured, and when.
    pub learned_mtu: Option<(UnderlayMtu, Instant)>,
    /// When the last valid datagram came along it.
    pub last_heard: Option<Instant>,
    /// What the echo requests to the VTEP tell.
    pub probes: Probes,
}

impl Path {
    /// That to another address of the same peer, of which nothing is known.
    pub fn anew(&self) -> Path {
        Path {
            probes: self.probes.anew(),
            ..Path::default()
        }
    }

    /// The kernel refused a datagram: the path takes `mtu` only. A peer that answers probes has to prove it.
    pub fn learn_mtu(&mut self, mtu: UnderlayMtu, now: Instant) {
        let least = self.learned_mtu.map_or(mtu, |(known, _)| known.min(mtu));
        self.learned_mtu = Some((least, now));
    }

    /// A frame with a packet of so many bytes goes to it: what to ask beside that. `top` is what the path should take.
    pub fn look(&mut self, packet: usize, top: UnderlayMtu, now: Instant) -> Option<Ask> {
        let limit = self.learned_mtu.map(|(limit, _)| limit);
        let ask = self.probes.look(packet, self.last_heard, top, limit, now);
        self.conclude(now);
        ask
    }

    /// An answer did not come in time: what to ask instead.
    pub fn expire(&mut self, now: Instant) -> Option<Ask> {
        let ask = self.probes.expire(now);
        self.conclude(now);
        ask
    }

    fn conclude(&mut self, now: Instant) {
        if let Some(limit) = self.probes.limit(now) {
            self.learned_mtu = Some((limit, now));
        }
    }

    /// A probe was answered; `size` is that of a large one's outer packet. What is proven to pass is no longer too
    /// large.
    pub fn answered(&mut self, seq: u16, size: Option<UnderlayMtu>, top: UnderlayMtu, now: Instant) {
        let proven = self.probes.answered(seq, size, now);
        if let (Some(size), Some((limit, _))) = (proven, self.learned_mtu)
            && size > limit
        {
            self.learned_mtu = (size < top).then_some((size, now));
        }
    }

    /// Try the configured MTU again where no probe can: paths get better too (RFC 1191 section 6.3). What was found as
    /// long as probes were answered stays, for nothing could find it again.
    pub(super) fn forget_old(&mut self, now: Instant) {
        let old = |at: Instant| now - at >= EXPIRES;
        if !self.probes.has_answered() && self.learned_mtu.is_some_and(|(_, at)| old(at)) {
            self.learned_mtu = None;
        }
    }
}
