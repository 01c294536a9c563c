//! Services in the data path: frames to virtual addresses get the address of a backend, and the backends' answers the
//! virtual address, before anything else is decided of them (`service` says which).
//!
//! ```text
//! pod -> VIP        serve: Services::forward -> the way of the backend: pod here, peer, out
//! to a pod          deliver: Services::reverse, wherever the frame came from
//! to the gateway    where it stands for a client: Services::reverse -> a pod here, or a socket of the host
//! host's socket     egress -> emit as PortId::SERVICES -> onward: forward -> pod here at once, peer at the turn's end
//! ```
//!
//! Clients at sockets of the host are flows of `stack::egress` whose pod is the virtual address. Their packets are made
//! while others are under way, so that what is for peers waits, as the node's own packets do ([`super::originate`]), but
//! leaves in trains.

use super::flow::FlowKey;
use super::from_pod::{Parsed, hop};
use super::{Exits, FRAME_ROOM, HEADROOM, Node};
use crate::buf::{Arena, Span};
use crate::model::{DropReason, Frontend, Instant, PeerId, PortId, ServiceChange};
use crate::service::{ServiceView, Services, Verdict};
use crate::wire::bytes::{array, be16, be32, put, put_be16, put_be32};
use crate::wire::checksum::{self, transport_is_right};
use crate::wire::{ETH_LEN, Headers, IPV4_LEN, IPV6_LEN, L3, VnetHdr, proto};

/// Super-frames that wait for the end of the turn: two bursts of a flow.
const WAITING: usize = 128;
/// Flows of the host's sockets that are told in one turn that their backend is gone.
const RESETS: usize = 64;

/// A TCP header without options (RFC 9293 section 3.1).
const TCP_LEN: usize = 20;
/// An IPv6 packet with nothing but a TCP header.
const RESET_LEN: usize = ETH_LEN + IPV6_LEN + TCP_LEN;

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
    /// For flows of the host's sockets whose backend is gone.
    resets: Vec<([u8; RESET_LEN], usize)>,
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
    /// Services and connections to them.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The same, to list and to end connections.
    pub fn services_mut(&mut self) -> &mut Services {
        &mut self.services
    }

    /// Apply what the control plane learned of Services.
    pub fn apply_services(&mut self, changes: Vec<ServiceChange>, now: Instant) {
        self.flows.forget();
        for change in changes {
            let change = match change {
                ServiceChange::Set(frontend, what) => {
                    self.here(&frontend).map(|f| ServiceChange::Set(f, what))
                }
                ServiceChange::Gone(frontend) => self.here(&frontend).map(ServiceChange::Gone),
            };
            if let Some(change) = change {
                self.services.apply(change, now);
            }
        }
    }

    /// Where a frontend is in the data path: node ports have an address there.
    fn here(&self, frontend: &Frontend) -> Option<Frontend> {
        let at = self.settings.local.service_address(frontend.at)?;
        Some(Frontend { at, ..*frontend })
    }

    /// What goes on at a frontend.
    pub fn served(&self, frontend: &Frontend) -> Option<ServiceView> {
        self.services.describe(&self.here(frontend)?)
    }

    /// Let go of connections whose time is up, or whose backend is gone. Whether there is more to do at once.
    pub fn turn_services(&mut self, now: Instant) -> bool {
        self.services.next_deadline().is_some_and(|at| at <= now) && self.services.turn(now)
    }

    /// A pod's frame to a virtual address.
    pub(super) fn serve(
        &mut self,
        port: PortId,
        arena: &mut Arena,
        f: &Parsed,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let frame = f.span.of_mut(arena.memory_mut());
        let gateway = self.settings.local.gateway_mac;
        match self.services.forward(frame, &f.h, f.vnet.partial, true, now) {
            Verdict::Translated => {
                let dst = f.h.dst(frame);
                let key = FlowKey {
                    port,
                    mac: gateway,
                    dst,
                };
                self.go(port, key, arena, f, now, exits)
            }
            Verdict::Echo => {
                let mac = self.ports.spec(port).ok_or(DropReason::PortGone)?.mac;
                put(frame, 0, &mac.0);
                put(frame, 6, &gateway.0);
                echo(frame, &f.h);
                self.counters.consumed += 1;
                self.counters.originated += 1;
                self.deliver(port, arena.memory_mut(), (&f.h, &f.vnet), &[f.span], now, exits)
                    .unwrap_or_else(|reason| self.drops.add(reason, 1));
                Ok(())
            }
            Verdict::Unserved if self.settings.local.owns(f.h.dst(frame)) => {
                self.stack(arena.memory_mut(), f, now)
            }
            verdict @ (Verdict::Unserved | Verdict::NoBackend | Verdict::Reset) => {
                self.refuse(port, &frame[ETH_LEN..f.h.end], f.h.proto, now, exits);
                Err(reason(verdict))
            }
            Verdict::Drop(reason) => Err(reason),
        }
    }

    /// Tell a pod at once that nobody serves it.
    fn refuse(&mut self, port: PortId, packet: &[u8], protocol: u8, now: Instant, exits: &mut impl Exits) {
        if protocol == proto::TCP {
            self.break_off(port, packet, now, exits);
        } else {
            self.complain(port, crate::stack::Trouble::PortUnreachable, packet, now);
        }
    }

    /// A packet to one of the node's own addresses, or out of the pod network: if it is a backend's to a client, the
    /// client gets it, from the virtual address. `None`: it is not.
    pub(super) fn return_to_client(
        &mut self,
        port: PortId,
        arena: &mut Arena,
        f: &Parsed,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Option<Result<(), DropReason>> {
        let frame = f.span.of_mut(arena.memory_mut());
        if !self.services.reverse(frame, &f.h, f.vnet.partial, now) {
            return None;
        }
        let dst = f.h.dst(frame);
        Some(match self.ports.by_ip(dst) {
            // To itself, but for the address.
            Some(to) => self.local(Some(port), to, arena, f, true, now, exits),
            None => self.out(PortId::SERVICES, arena.memory(), f, now, exits),
        })
    }

    /// A frame of a flow that came in at a socket of the host, for a Service, or for a pod anywhere.
    pub(super) fn onward(
        &mut self,
        frame: &mut [u8],
        f: &Parsed,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        if self.services.has_address(f.h.dst(frame)) {
            match self.services.forward(frame, &f.h, f.vnet.partial, false, now) {
                Verdict::Translated => {}
                Verdict::Reset => {
                    self.reset_later(frame, &f.h);
                    return Err(reason(Verdict::Reset));
                }
                Verdict::Drop(reason) => return Err(reason),
                verdict => return Err(reason(verdict)),
            }
        }
        let dst = f.h.dst(frame);
        if let Some(port) = self.ports.by_ip(dst) {
            let mac = self.ports.spec(port).ok_or(DropReason::PortGone)?.mac;
            put(frame, 0, &mac.0);
            return self.deliver(port, frame, (&f.h, &f.vnet), &[f.span], now, exits);
        }
        let peer = self.peers.route(dst).filter(|_| !self.is_local(dst));
        self.onward.push(peer.ok_or(DropReason::NoRoute)?, frame, f.vnet)
    }

    /// The flow that sent this is to end: what its backend would have said waits until the flows have had their turn.
    fn reset_later(&mut self, frame: &[u8], h: &Headers) {
        if h.proto != proto::TCP || self.onward.resets.len() == RESETS {
            // It is told with its next packet.
            return;
        }
        let mut out = [0; RESET_LEN];
        let len = reset(frame, h, &mut out);
        self.onward.resets.push((out, len));
    }

    /// Tell the flows whose backend is gone.
    pub(super) fn tell_resets(&mut self, now: Instant, exits: &mut impl Exits) {
        while let Some((frame, len)) = self.onward.resets.pop() {
            let frame = &frame[..len];
            let Ok(h) = Headers::parse(frame) else { continue };
            self.counters.originated += 1;
            let f = Parsed::plain(Span::new(0, len), h);
            if let Err(reason) = self.out(PortId::SERVICES, frame, &f, now, exits) {
                self.drops.add(reason, 1);
            }
        }
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

    /// Whether a peer's packet to one of the node's own addresses is for a client the gateway stands for.
    pub(super) fn is_for_client(&self, frame: &[u8], h: &Headers, now: Instant) -> bool {
        self.services.wants_gateway(frame, h, now) || self.leaves(frame, h)
    }

    /// What a peer's pod sent to such a client: put together if it is in pieces, and on to a pod or a socket.
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
        let result = self.inward_whole(&mut whole, *vnet, now, exits);
        self.onward.whole = whole;
        result
    }

    fn inward_whole(
        &mut self,
        frame: &mut [u8],
        vnet: VnetHdr,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let span = Span::new(0, frame.len());
        let h = Headers::parse(frame)?;
        let f = Parsed { span, h, vnet };
        self.services.reverse(frame, &h, vnet.partial, now);
        if let Some(port) = self.ports.by_ip(h.dst(frame)) {
            self.check_hop(None, frame, &h, now)?;
            let mac = self.ports.spec(port).ok_or(DropReason::PortGone)?.mac;
            put(frame, 0, &mac.0);
            put(frame, 6, &self.settings.local.gateway_mac.0);
            hop(frame, &h);
            return self.deliver(port, frame, (&h, &vnet), &[span], now, exits);
        }
        // The coalescer looked at those it merged; a single one has crossed a wire as well, and no kernel looks at it
        // before the socket has it.
        if vnet.partial.is_none() && !is_right(frame, &h) {
            return Err(DropReason::BadChecksum);
        }
        self.out(PortId::SERVICES, frame, &f, now, exits)
    }
}

/// What a frame that nobody serves is counted under.
fn reason(verdict: Verdict) -> DropReason {
    match verdict {
        Verdict::NoBackend => DropReason::NoBackend,
        Verdict::Reset => DropReason::UnknownConnection,
        _ => DropReason::NoService,
    }
}

/// Whether a packet's transport checksum is right, as far as it has one.
fn is_right(frame: &[u8], h: &Headers) -> bool {
    let without = h.l3 == L3::Ipv4 && h.proto == proto::UDP && frame.get(h.l4 + 6..h.l4 + 8) == Some(&[0, 0]);
    h.fragment || without || !matches!(h.proto, proto::TCP | proto::UDP) || transport_is_right(frame, h)
}

/// Make an echo request its own reply (RFC 792, RFC 4443 section 4.2). Sums do not feel the addresses change places.
fn echo(frame: &mut [u8], h: &Headers) {
    let before = be16(frame, h.l4);
    let after = if h.l3 == L3::Ipv4 {
        before & 0xff
    } else {
        129 << 8 | before & 0xff
    };
    put_be16(frame, h.l4, after);
    let sum = checksum::update(be16(frame, h.l4 + 2), before, after);
    put_be16(frame, h.l4 + 2, sum);
    swap_addresses(frame, h);
}

fn swap_addresses(frame: &mut [u8], h: &Headers) {
    match h.l3 {
        L3::Ipv4 => {
            let (src, dst) = (array::<4>(frame, ETH_LEN + 12), array::<4>(frame, ETH_LEN + 16));
            put(frame, ETH_LEN + 12, &dst);
            put(frame, ETH_LEN + 16, &src);
        }
        _ => {
            let (src, dst) = (array::<16>(frame, ETH_LEN + 8), array::<16>(frame, ETH_LEN + 24));
            put(frame, ETH_LEN + 8, &dst);
            put(frame, ETH_LEN + 24, &src);
        }
    }
}

/// The reset that answers a TCP segment (RFC 9293 section 3.10.7.1): its length. The checksum is left out, as nobody
/// looks at it on its way to the flow.
fn reset(frame: &[u8], h: &Headers, out: &mut [u8; RESET_LEN]) -> usize {
    let ip_len = if h.l3 == L3::Ipv4 { IPV4_LEN } else { IPV6_LEN };
    let l4 = ETH_LEN + ip_len;
    let len = l4 + TCP_LEN;
    put(out, 0, &array::<14>(frame, 0));
    put(out, ETH_LEN, &frame[ETH_LEN..l4.min(frame.len())]);
    let to = Headers { l4, end: len, ..*h };
    swap_addresses(out, &to);
    match h.l3 {
        L3::Ipv4 => {
            put(out, ETH_LEN, &[0x45]);
            put_be16(out, ETH_LEN + 2, (IPV4_LEN + TCP_LEN) as u16);
            put_be16(out, ETH_LEN + 10, 0);
            let sum = checksum::Sum::default().with(&out[ETH_LEN..l4]).finish();
            put_be16(out, ETH_LEN + 10, sum);
        }
        _ => {
            put_be16(out, ETH_LEN + 4, TCP_LEN as u16);
            put(out, ETH_LEN + 6, &[proto::TCP]);
        }
    }
    let (from, dest) = h.ports(frame);
    put_be16(out, l4, dest);
    put_be16(out, l4 + 2, from);
    let (seq, ack, flags) = (
        be32(frame, h.l4 + 4),
        be32(frame, h.l4 + 8),
        frame.get(h.l4 + 13).copied().unwrap_or(0),
    );
    let payload = h.end.saturating_sub(h.l4 + h.l4_len(frame)) as u32;
    // SYN and FIN count as a byte each.
    let next = seq.wrapping_add(payload + u32::from(flags & 1) + u32::from(flags >> 1 & 1));
    put_be32(out, l4 + 4, ack);
    put_be32(out, l4 + 8, next);
    put(out, l4 + 12, &[0x50, 0x14]);
    len
}
