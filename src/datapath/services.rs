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
//! leaves in trains. Nobody tells such a client what the path to a peer takes: segments of TCP are made to fit it, and
//! datagrams are cut ([`super::cut`]).

use super::cut::cut;
use super::flow::FlowKey;
use super::from_pod::{Parsed, hop};
use super::recover::{Lent, Suspect};
use super::{Exits, FRAME_ROOM, HEADROOM, Node};
use crate::buf::{Arena, Span};
use crate::model::{DropReason, Frontend, Instant, PeerId, PortId, ServiceChange};
use crate::offload::{self, Segments, segment};
use crate::service::{ServiceView, Services, Verdict};
use crate::wire::bytes::{array, be16, be32, put, put_be16, put_be32};
use crate::wire::checksum::{self, transport_is_right};
use crate::wire::{ETH_LEN, Gso, Headers, IPV4_LEN, IPV6_LEN, L3, VnetHdr, proto};
use std::ops::Range;

/// Frames that wait for the end of the turn: some of each flow that may have a turn.
const WAITING: usize = 4096;
/// Bytes of them: two bursts of super-frames.
const WAITING_BYTES: usize = 8 << 20;
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
    /// Its place in [`Onward::bytes`].
    at: Range<usize>,
}

/// Frames for peers until [`Node::send_onward`], and room to put together what came from them. Buffers are kept for
/// reuse.
#[derive(Debug, Default)]
pub(super) struct Onward {
    waiting: Vec<Waiting>,
    /// Those that are sent, while that goes on.
    sent: usize,
    bytes: Vec<u8>,
    whole: Vec<u8>,
    /// For flows of the host's sockets whose backend is gone.
    resets: Vec<([u8; RESET_LEN], usize)>,
    /// The identification of the last packet that was cut.
    ident: u32,
}

impl Onward {
    fn push(&mut self, peer: PeerId, frame: &[u8], vnet: VnetHdr) -> Result<(), DropReason> {
        let begin = self.bytes.len();
        if self.waiting.len() >= WAITING || begin + frame.len() > WAITING_BYTES {
            return Err(DropReason::StackFull);
        }
        self.bytes.extend_from_slice(frame);
        let at = begin..self.bytes.len();
        self.waiting.push(Waiting { peer, vnet, at });
        Ok(())
    }

    /// How many frames wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
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
        match self
            .services
            .forward(frame, &f.h, f.vnet.partial, Some(port), now)
        {
            Verdict::Translated => {
                let dst = f.h.dst(frame);
                let key = FlowKey {
                    port,
                    mac: gateway,
                    dst,
                };
                self.go(port, key, arena, f, now, exits)
            }
            Verdict::Unserved
            | Verdict::Echo
            | Verdict::Drop(
                DropReason::ServiceProtocol | DropReason::EarlyFragment | DropReason::UnknownConnection,
            ) if self.services.is_shared(f.h.dst(frame)) => {
                let way = self.routed_way(f.h.dst(frame));
                self.follow(port, way, arena, f, now, exits)
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

    /// Tell a pod's TCP that its port is taken: not as others are told, since that would be taken for what the backend
    /// says by its virtual address.
    pub(super) fn reset_beside(
        &mut self,
        port: PortId,
        frame: &[u8],
        h: &Headers,
        now: Instant,
        exits: &mut impl Exits,
    ) {
        if h.proto != proto::TCP || flags(frame, h) & RST != 0 {
            return;
        }
        let mut out = [0; RESET_LEN];
        let len = reset(frame, h, &mut out);
        let out = &mut out[..len];
        put(out, 0, &array::<6>(frame, 6));
        put(out, 6, &array::<6>(frame, 0));
        if let Ok(h) = Headers::parse(out) {
            let sum = checksum::pseudo(out, &h, h.end - h.l4).with(&out[h.l4..h.end]);
            put_be16(out, h.l4 + 16, sum.finish());
            self.counters.originated += 1;
            self.write_own(port, out, now, exits);
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
        let result = self.carry_on(frame, f, now, exits);
        let over = match result {
            Err(DropReason::UnknownConnection | DropReason::NoService | DropReason::NoBackend) => true,
            // What is open goes on if the way comes back; a client that begins is told.
            Err(DropReason::NoRoute | DropReason::PortGone) => flags(frame, &f.h) & SYN != 0,
            _ => false,
        };
        if over {
            self.reset_later(frame, &f.h);
        }
        result
    }

    fn carry_on(
        &mut self,
        frame: &mut [u8],
        f: &Parsed,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let dst = f.h.dst(frame);
        if self.services.has_address(dst) {
            match self.services.forward(frame, &f.h, f.vnet.partial, None, now) {
                Verdict::Translated => {}
                Verdict::Drop(reason) => return Err(reason),
                verdict => return Err(reason(verdict)),
            }
        } else if self.ports.by_ip(dst).is_none() && self.peers.route(dst).is_none() {
            // Nothing else of that address is a Service's any more.
            return Err(DropReason::NoService);
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
        let is_reset = flags(frame, h) & RST != 0;
        if h.proto != proto::TCP || is_reset || self.onward.resets.len() == RESETS {
            // It is told with its next packet.
            return;
        }
        let mut out = [0; RESET_LEN];
        let len = reset(frame, h, &mut out);
        self.onward.resets.push((out, len));
    }

    /// Tell the flows whose backend is gone. Whether there were any, which have more to do then.
    pub(super) fn tell_resets(&mut self, now: Instant, exits: &mut impl Exits) -> bool {
        let any = !self.onward.resets.is_empty();
        while let Some((mut frame, len)) = self.onward.resets.pop() {
            let frame = &mut frame[..len];
            let Ok(h) = Headers::parse(frame) else { continue };
            // What nothing led to had the backend's address already.
            self.services.reverse(frame, &h, None, now);
            self.counters.originated += 1;
            let f = Parsed::plain(Span::new(0, len), h);
            if let Err(reason) = self.out(PortId::SERVICES, frame, &f, now, exits) {
                self.drops.add(reason, 1);
            }
        }
        any
    }

    /// Whether flows of the host's sockets are to be [told](Node::turn_egress) that their backend is gone.
    pub fn has_resets(&self) -> bool {
        !self.onward.resets.is_empty()
    }

    /// Send what waits for peers.
    pub(super) fn send_onward(&mut self, arena: &mut Arena, now: Instant, exits: &mut impl Exits) {
        if self.onward.waiting.is_empty() {
            return;
        }
        let onward = std::mem::take(&mut self.onward);
        let mut lent = Lent::new(self, onward, |node, onward| node.keep_onward(onward));
        let (node, onward) = lent.parts();
        while let Some(waiting) = onward.waiting.get(onward.sent) {
            onward.sent += 1;
            let frame = &onward.bytes[waiting.at.clone()];
            let sent = match node.too_long(waiting, frame) {
                Some(mtu) => node.send_cut(waiting, (frame, mtu, &mut onward.ident), arena, now, exits),
                None => node.send_waiting((waiting.peer, waiting.vnet), frame, arena, now, exits),
            };
            if let Err(reason) = sent {
                node.drops.add(reason, 1);
                node.tell_opening(reason, frame);
            }
        }
    }

    /// After they were sent; what a panic kept from being sent waits for the next turn.
    fn keep_onward(&mut self, mut onward: Onward) {
        if std::thread::panicking() {
            self.suspect = Some(Suspect::Client);
        }
        onward.waiting.drain(..onward.sent);
        onward.sent = 0;
        if onward.waiting.is_empty() {
            onward.bytes.clear();
        }
        onward.resets.append(&mut self.onward.resets);
        self.onward = onward;
    }

    /// A frame went nowhere for lack of a way: a client that begins is told.
    fn tell_opening(&mut self, reason: DropReason, frame: &[u8]) {
        if let DropReason::PeerSilent | DropReason::NoUnderlay | DropReason::NoRoute = reason
            && let Ok(h) = Headers::parse(frame)
            && flags(frame, &h) & SYN != 0
        {
            self.reset_later(frame, &h);
        }
    }

    /// What the path to a peer takes, if a datagram is longer.
    fn too_long(&self, waiting: &Waiting, frame: &[u8]) -> Option<usize> {
        let h = Headers::parse(frame).ok().filter(|h| h.proto == proto::UDP)?;
        let own = self.settings.local.underlay_mtu;
        let mtu = self.peer(waiting.peer)?.pod_mtu(h.l3 == L3::Ipv6, own).0;
        let (span, vnet) = (Span::new(0, frame.len()), waiting.vnet);
        (Parsed { span, h, vnet }.packet_len(frame) > usize::from(mtu)).then_some(mtu.into())
    }

    /// Send datagrams in fragments. The first one stands for the frame, the others are the node's own.
    fn send_cut(
        &mut self,
        waiting: &Waiting,
        (frame, mtu, ident): (&[u8], usize, &mut u32),
        arena: &mut Arena,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let mut results = Vec::new();
        let mut whole = |packet: &[u8]| {
            let Ok(h) = Headers::parse(packet) else { return };
            *ident = ident.wrapping_add(1);
            cut(packet, &h, mtu, *ident, |part| {
                let to = (waiting.peer, VnetHdr::default());
                results.push(self.send_waiting(to, part, arena, now, exits));
            });
        };
        let h = Headers::parse(frame)?;
        if waiting.vnet.gso == Gso::None {
            let mut packet = frame.to_vec();
            if let Some(partial) = waiting.vnet.partial {
                offload::complete(&mut packet, &h, partial)?;
            }
            whole(&packet);
        } else {
            let segments = Segments::checked(frame, &h, &waiting.vnet)?;
            let mut packet = vec![0; segment::MAX_HEADER];
            for i in 0..segments.count() {
                packet.resize(segment::MAX_HEADER, 0);
                let header = segments.header(frame, i, &mut packet);
                packet.truncate(header);
                packet.extend_from_slice(&frame[segments.payload(i)]);
                whole(&packet);
            }
        }
        let mut results = results.into_iter();
        let first = results.next().unwrap_or(Err(DropReason::TooBig));
        for other in results {
            self.counters.originated += 1;
            if let Err(reason) = other {
                self.drops.add(reason, 1);
            }
        }
        first
    }

    fn send_waiting(
        &mut self,
        (peer, vnet): (PeerId, VnetHdr),
        frame: &[u8],
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
        put(arena.free_mut(), 0, frame);
        let span = arena.take(frame.len());
        let h = Headers::parse(span.of(arena.memory()))?;
        let vnet = self.fitting(peer, vnet, frame, &h);
        let f = Parsed { span, h, vnet };
        self.tunnel(Some(PortId::SERVICES), peer, arena, &f, now, exits)
    }

    /// The virtio-net header of a frame that waits, with segments that fit the path: a flow of the host's knows no other
    /// size than its backend's, and nobody could tell it.
    fn fitting(&self, peer: PeerId, vnet: VnetHdr, frame: &[u8], h: &Headers) -> VnetHdr {
        let Some(state) = self.peer(peer) else {
            return vnet;
        };
        if h.proto != proto::TCP || vnet.partial.is_none() {
            return vnet;
        }
        let mtu = state
            .pod_mtu(h.l3 == L3::Ipv6, self.settings.local.underlay_mtu)
            .0;
        let begin = h.l4 + h.l4_len(frame);
        let fits = (usize::from(mtu) + ETH_LEN).saturating_sub(begin).max(1);
        let size = match vnet.gso {
            Gso::None => h.end.saturating_sub(begin),
            _ => vnet.gso_size.into(),
        };
        if size <= fits {
            return vnet;
        }
        VnetHdr {
            gso: Gso::of(h),
            gso_size: fits as u16,
            hdr_len: begin as u16,
            ..vnet
        }
    }

    /// Whether a peer's packet to one of the node's own addresses is for a client the gateway stands for. What is open to
    /// this node's pods there is not open to those of others.
    pub(super) fn is_for_client(&self, frame: &[u8], h: &Headers, now: Instant) -> bool {
        self.services.wants_gateway(frame, h, now) || self.belongs(frame, h)
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

const SYN: u8 = 2;
const RST: u8 = 4;

/// The flags of a TCP segment; none of anything else.
fn flags(frame: &[u8], h: &Headers) -> u8 {
    match h.proto {
        proto::TCP => frame.get(h.l4 + 13).copied().unwrap_or(0),
        _ => 0,
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
