//! Frames to pods of this node, in the form their TAP accepts.

use super::{Exits, Node};
use crate::buf::Span;
use crate::model::{DropReason, Instant, PortId, TapCaps};
use crate::offload::{self, Segments, segment};
use crate::wire::bytes::{be16, put_be16};
use crate::wire::{Gso, Headers, VnetHdr};

/// Whether a TAP takes super-frames of this kind.
pub(super) fn takes(caps: &TapCaps, gso: Gso) -> bool {
    match gso {
        Gso::None => true,
        Gso::Tcp4 => caps.tso4,
        Gso::Tcp6 => caps.tso6,
        Gso::Udp => caps.uso,
    }
}

impl Node {
    /// Write a frame to a port: as it is when the TAP takes it so, segmented and completed in software when
    /// not. Frames that need software are always in one piece.
    ///
    /// # Errors
    /// The kernel refused it, or its headers contradict each other.
    pub(super) fn deliver(
        &mut self,
        to: PortId,
        memory: &mut [u8],
        (h, vnet): (&Headers, &VnetHdr),
        pieces: &[Span],
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let caps = self.ports.spec(to).ok_or(DropReason::PortGone)?.caps;
        let first = pieces.first().copied().unwrap_or_default();
        self.services.reverse(first.of_mut(memory), h, vnet.partial, now);
        if self.is_limited(to) && !self.may_pass(to, (h, vnet), &[], memory, pieces, now)? {
            return Ok(());
        }
        self.write(to, caps, memory, (h, vnet), pieces, exits)
    }

    /// The same, whatever the port's limit is.
    pub(super) fn write(
        &mut self,
        to: PortId,
        caps: TapCaps,
        memory: &mut [u8],
        (h, vnet): (&Headers, &VnetHdr),
        pieces: &[Span],
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let first = pieces.first().copied().unwrap_or_default();
        let bytes: u64 = pieces.iter().map(|p| u64::from(p.len)).sum();
        let ok = if !takes(&caps, vnet.gso) {
            self.split(to, memory, h, vnet, first, exits)?
        } else if vnet.gso == Gso::None
            && vnet.partial.is_some()
            && !(caps.csum && self.settings.partial_checksums)
        {
            let partial = vnet.partial.unwrap_or_default();
            let field = first.start() + usize::from(partial.0) + usize::from(partial.1);
            let unfinished = be16(memory, field);
            offload::complete(first.of_mut(memory), h, partial)?;
            let ok = exits.to_pod(to, &VnetHdr::default(), &[], memory, pieces);
            // A broadcast goes on to other ports, which expect it as it was.
            put_be16(memory, field, unfinished);
            ok
        } else {
            exits.to_pod(to, vnet, &[], memory, pieces)
        };
        if !ok {
            return Err(DropReason::TapWrite);
        }
        self.wrote(to, bytes);
        Ok(())
    }

    /// Write a frame of the node itself, complete and in one piece.
    pub(super) fn write_own(&mut self, to: PortId, frame: &[u8], now: Instant, exits: &mut impl Exits) {
        if self.is_limited(to) {
            match self.own_may_pass(to, frame, now) {
                Ok(true) => {}
                Ok(false) => return,
                Err(reason) => return self.drops.add(reason, 1),
            }
        }
        if exits.to_pod(to, &VnetHdr::default(), frame, &[], &[]) {
            self.wrote(to, frame.len() as u64);
        } else {
            self.drops.add(DropReason::TapWrite, 1);
        }
    }

    fn wrote(&mut self, to: PortId, bytes: u64) {
        self.counters.frames_to_pods += 1;
        if let Some(port) = self.port(to) {
            port.counters.frames_to_pod += 1;
            port.counters.bytes_to_pod += bytes;
        }
    }

    fn split(
        &self,
        to: PortId,
        memory: &[u8],
        h: &Headers,
        vnet: &VnetHdr,
        span: Span,
        exits: &mut impl Exits,
    ) -> Result<bool, DropReason> {
        let frame = span.of(memory);
        let segments = Segments::checked(frame, h, vnet)?;
        let mut head = [0; segment::MAX_HEADER];
        let mut ok = false;
        for i in 0..segments.count() {
            let n = segments.header(frame, i, &mut head);
            let payload = segments.payload(i);
            let piece = span.part(payload.start, payload.end);
            ok |= exits.to_pod(to, &VnetHdr::default(), &head[..n], memory, &[piece]);
        }
        Ok(ok)
    }
}
