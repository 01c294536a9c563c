//! What the node itself carries between sockets of the host and backends of Services: to pods here, and to those of
//! peers.
//!
//! It has the port [`PortId::SERVICES`]. Its packets are made while others are under way, so that what is for peers
//! waits for the end of the turn, as the node's own packets do ([`super::originate`]), but leaves in trains.

use super::from_pod::Parsed;
use super::{Exits, FRAME_ROOM, HEADROOM, Node};
use crate::buf::{Arena, Span};
use crate::model::{DropReason, Instant, PeerId, PortId};
use crate::wire::bytes::put;
use crate::wire::checksum::transport_is_right;
use crate::wire::{Headers, L3, VnetHdr, proto};

/// Super-frames that wait for the end of the turn: two bursts of a flow.
const WAITING: usize = 128;

/// A frame that waits.
#[derive(Debug)]
struct Waiting {
    peer: PeerId,
    vnet: VnetHdr,
    bytes: Vec<u8>,
}

/// Frames for peers until [`Node::send_onward`], and room to put together what came from them. Buffers are kept for
/// reuse.
#[derive(Debug, Default)]
pub(super) struct Onward {
    slots: Vec<Waiting>,
    len: usize,
    whole: Vec<u8>,
}

impl Onward {
    fn push(&mut self, peer: PeerId, frame: &[u8], vnet: VnetHdr) -> Result<(), DropReason> {
        if self.len == WAITING {
            return Err(DropReason::StackFull);
        }
        if self.len == self.slots.len() {
            let bytes = Vec::new();
            self.slots.push(Waiting { peer, vnet, bytes });
        }
        let slot = &mut self.slots[self.len];
        (slot.peer, slot.vnet) = (peer, vnet);
        slot.bytes.clear();
        slot.bytes.extend_from_slice(frame);
        self.len += 1;
        Ok(())
    }
}

impl Node {
    /// A frame of a flow that came in at a socket of the host, for a backend.
    pub(super) fn onward(
        &mut self,
        frame: &mut [u8],
        f: &Parsed,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let dst = f.h.dst(frame);
        if let Some(port) = self.ports.by_ip(dst) {
            let mac = self.ports.spec(port).ok_or(DropReason::PortGone)?.mac;
            put(frame, 0, &mac.0);
            return self.deliver(port, frame, &f.h, &f.vnet, &[f.span], exits);
        }
        let peer = self.peers.route(dst).filter(|_| !self.is_local(dst));
        self.onward.push(peer.ok_or(DropReason::NoRoute)?, frame, f.vnet)
    }

    /// Send what waits for peers.
    pub(super) fn send_onward(&mut self, arena: &mut Arena, now: Instant, exits: &mut impl Exits) {
        if self.onward.len == 0 {
            return;
        }
        let mut onward = std::mem::take(&mut self.onward);
        for waiting in &onward.slots[..onward.len] {
            if let Err(reason) = self.send_waiting(waiting, arena, now, exits) {
                self.drops.add(reason, 1);
            }
        }
        onward.len = 0;
        self.onward = onward;
    }

    fn send_waiting(
        &mut self,
        waiting: &Waiting,
        arena: &mut Arena,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        if !self.is_blocked() {
            // All has left: the same memory again, while it is warm.
            arena.rewind(0);
        } else if arena.room() < FRAME_ROOM {
            if !self.flush(arena, now, exits) {
                return Err(DropReason::UnderlayFull);
            }
            arena.rewind(0);
        }
        arena.take(HEADROOM);
        put(arena.free_mut(), 0, &waiting.bytes);
        let span = arena.take(waiting.bytes.len());
        let h = Headers::parse(span.of(arena.memory()))?;
        let vnet = waiting.vnet;
        let f = Parsed { span, h, vnet };
        self.tunnel(Some(PortId::SERVICES), waiting.peer, arena, &f, now, exits)
    }

    /// What a peer's pod sent to a client of ours: put together if it is in pieces, and out to its socket.
    pub(super) fn inward(
        &mut self,
        memory: &[u8],
        vnet: &VnetHdr,
        pieces: &[Span],
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let mut whole = std::mem::take(&mut self.onward.whole);
        whole.clear();
        for piece in pieces {
            whole.extend_from_slice(piece.of(memory));
        }
        let result = self.inward_whole(&whole, *vnet, now, exits);
        self.onward.whole = whole;
        result
    }

    fn inward_whole(
        &mut self,
        frame: &[u8],
        vnet: VnetHdr,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let span = Span::new(0, frame.len());
        let h = Headers::parse(frame)?;
        // The coalescer looked at those it merged; a single one has crossed a wire as well, and no kernel looks at it
        // before the socket has it.
        if vnet.partial.is_none() && !is_right(frame, &h) {
            return Err(DropReason::BadChecksum);
        }
        self.out(PortId::SERVICES, frame, &Parsed { span, h, vnet }, now, exits)
    }
}

/// Whether a packet's transport checksum is right, as far as it has one.
fn is_right(frame: &[u8], h: &Headers) -> bool {
    let without = h.l3 == L3::Ipv4 && h.proto == proto::UDP && frame.get(h.l4 + 6..h.l4 + 8) == Some(&[0, 0]);
    h.fragment || without || !matches!(h.proto, proto::TCP | proto::UDP) || transport_is_right(frame, h)
}
