//! Frames in both directions, and the life of a connection.

use super::conntrack::{BACKEND, Conn, End, Tuple, failed, second};
use super::fragment::PacketId;
use super::icmp::{self, Message};
use super::state::{Direction, Signal};
use super::translate::{self, transport, tuple};
use super::{Services, Verdict};
use crate::model::{ConnState, DropReason, Frontend, Instant, PortId, Scheduler, Transport};
use crate::wire::{Headers, L3};
use std::net::IpAddr;

/// Ports that stand for masked clients, from this one on.
pub(super) const FIRST_PORT: u16 = 32_768;
/// How many of them are tried in a row, and how many at random: long-lived connections may have many in a row.
const TRIES: usize = 64;

/// A checksum that a virtio-net header leaves to a device: where its data begin, and where in them its field is.
type Partial = Option<(u16, u16)>;

impl Services {
    /// Take a frame to a virtual address. `partial` is its virtio-net header's; the frame is changed in place only when
    /// it is [translated](Verdict::Translated). A client that is not a `pod` of this node is masked where the backend is
    /// not one either, since its answers would not pass here otherwise.
    pub fn forward(
        &mut self,
        frame: &mut [u8],
        h: &Headers,
        partial: Partial,
        pod: Option<PortId>,
        now: Instant,
    ) -> Verdict {
        let now = second(now);
        if h.l3 == L3::Arp {
            return Verdict::Drop(DropReason::ServiceProtocol);
        }
        if h.later_fragment {
            return match self.later_fragment(frame, h, now) {
                true => Verdict::Translated,
                false => Verdict::Drop(DropReason::EarlyFragment),
            };
        }
        let Some(transport) = transport(h.proto) else {
            return self.forward_icmp(frame, h);
        };
        let from = match tuple(frame, h, transport) {
            Ok(tuple) => tuple,
            Err(reason) => return Verdict::Drop(reason),
        };
        let signal = Signal::of(transport, frame, h);
        let known = self.conntrack.find(Direction::Original, &from);
        let n = match known.filter(|n| !self.is_over(*n, signal)) {
            Some(n) if self.spares_another(n, signal) => return Verdict::Drop(DropReason::UnknownConnection),
            Some(n) => {
                self.touch(n, Direction::Original, signal, now);
                n
            }
            None => match self.begin(known, &from, signal, pod, now) {
                Ok(n) => n,
                Err(verdict) => return verdict,
            },
        };
        let Some(to) = self.conntrack.conns.get(n).map(|c| c.reply.flipped()) else {
            return Verdict::Reset;
        };
        match self.pass(frame, h, partial, &to, now) {
            true => Verdict::Translated,
            false => Verdict::Drop(DropReason::ServiceProtocol),
        }
    }

    /// Take a frame to a pod, or one the gateway [may have](Services::wants_gateway): if it is of a backend's to a
    /// client, it comes from the virtual address then, and goes to the client. Whether it was changed.
    #[inline]
    pub fn reverse(&mut self, frame: &mut [u8], h: &Headers, partial: Partial, now: Instant) -> bool {
        if self.is_idle() {
            return false;
        }
        let dst = h.dst(frame);
        self.conntrack.concerns(dst, self.gateway(dst)) && self.back(frame, h, partial, second(now))
    }

    /// Take notice of a pod's packet that is to no virtual address. It may go straight to a backend from the port by which
    /// the pod is connected to it through a Service, and the backend could not tell the two apart: of UDP the one through
    /// the Service is masked from now on.
    ///
    /// # Errors
    /// Both have a handshake with the backend, or no port is left to tell them apart: this one is to be refused.
    #[inline]
    pub fn pass_by(&mut self, frame: &[u8], h: &Headers, now: Instant) -> Result<(), DropReason> {
        if self.is_idle() || h.l3 == L3::Arp || !self.conntrack.concerns(h.src(frame), None) {
            return Ok(());
        }
        self.beside(frame, h, second(now))
    }

    fn beside(&mut self, frame: &[u8], h: &Headers, now: u32) -> Result<(), DropReason> {
        let Some(transport) = transport(h.proto).filter(|_| !h.later_fragment) else {
            return Ok(());
        };
        let Ok(sent) = tuple(frame, h, transport) else {
            return Ok(());
        };
        let Some(n) = self.conntrack.find(Direction::Reply, &sent.flipped()) else {
            return Ok(());
        };
        let signal = Signal::of(transport, frame, h);
        let conn = self.conntrack.conns.get(n);
        let (state, abandoned) = (
            conn.map(|c| c.course.state),
            conn.is_some_and(|c| c.is_abandoned(now)),
        );
        match (transport, state) {
            _ if self.is_gone(n) => Ok(()),
            (Transport::Udp, _) => {
                let masked = self.masked(sent.flipped())?;
                self.conntrack.readdress(n, masked);
                Ok(())
            }
            // What the backend answers is to this one.
            _ if signal.opens && abandoned => {
                self.end(n, true);
                Ok(())
            }
            (_, Some(ConnState::Open)) => Err(DropReason::PortTaken),
            // While that one has no answer yet, what this one says shows that it was there before.
            (_, Some(ConnState::Opening)) if signal.opens => Err(DropReason::PortTaken),
            _ => Ok(()),
        }
    }

    /// Whether a packet to the gateway is for a client that is masked by it: [`Services::reverse`] then changes it.
    pub fn wants_gateway(&self, frame: &[u8], h: &Headers, now: Instant) -> bool {
        let dst = h.dst(frame);
        if !self.conntrack.masks() || self.gateway(dst) != Some(dst) {
            return false;
        }
        if h.later_fragment {
            let packet = PacketId::of(frame, h);
            return packet.is_some_and(|p| self.fragments.lookup(&p, second(now)).is_some());
        }
        let wanted = match transport(h.proto) {
            Some(transport) => tuple(frame, h, transport).ok(),
            None => match icmp::parse(frame, h) {
                Some(Message::Error(quote)) => Some(quote.tuple.flipped()),
                _ => None,
            },
        };
        wanted.is_some_and(|t| self.conntrack.find(Direction::Reply, &t).is_some())
    }

    /// Whether a new flow to a frontend would get a backend.
    pub fn has_backend(&self, frontend: &Frontend) -> bool {
        let server = self
            .table
            .lookup(frontend)
            .and_then(|n| self.table.servers.get(n));
        server.is_some_and(|s| !s.choice.is_empty())
    }

    /// Close a connection. `told` counts one that never came about as failed.
    pub(super) fn close(&mut self, n: u32, told: bool) {
        let Some(conn) = self.conntrack.conns.get(n) else {
            return;
        };
        let (slot, was_closing) = (conn.backend, conn.course.state == ConnState::Closing);
        if told && failed(conn) {
            self.table.failed(slot);
        }
        if let Some(it) = self.table.slots.get_mut(slot) {
            it.conns.remove(&mut self.conntrack.conns, n, BACKEND);
        }
        self.conntrack.remove(n);
        self.table.closed(slot, was_closing);
    }

    /// Close a connection whose packets are to lead nowhere from now on: Maglev would take it on in its midst.
    pub(super) fn end(&mut self, n: u32, told: bool) {
        if let Some(conn) = self.conntrack.conns.get(n)
            && conn.original.transport == Transport::Tcp
            && self.server_of(conn).map(|s| s.what.scheduler) == Some(Scheduler::Maglev)
        {
            let (hash, until) = (self.conntrack.hash(&conn.original), conn.ends_at());
            self.ended.remember(hash, until);
        }
        self.close(n, told);
    }

    /// A packet of a connection passes.
    #[inline]
    fn touch(&mut self, n: u32, direction: Direction, signal: Signal, now: u32) {
        if let Some(backend) = self.conntrack.touch(n, direction, signal, now) {
            self.table.closing(backend);
        }
    }

    /// Whether a packet would break off a connection that the client has to the backend itself, from the same port: then
    /// the next try at this one is masked. Where it cannot be, the packet goes on.
    fn spares_another(&mut self, n: u32, signal: Signal) -> bool {
        let conn = self.conntrack.conns.get(n);
        let Some(conn) = conn.filter(|c| c.pod.is_some() && !c.is_masked()) else {
            return false;
        };
        if !conn.course.breaks_another(signal) {
            return false;
        }
        let Ok(masked) = self.masked(conn.reply) else {
            return false;
        };
        self.conntrack.readdress(n, masked);
        if let Some(conn) = self.conntrack.conns.get_mut(n) {
            conn.course.begin_again();
        }
        true
    }

    /// Whether a known connection is none for this packet: its backend is gone, or it is over and the client begins
    /// another one from the same port.
    fn is_over(&self, n: u32, signal: Signal) -> bool {
        self.is_gone(n) || signal.opens && self.is_closing(n)
    }

    /// Whether a connection's backend is gone.
    fn is_gone(&self, n: u32) -> bool {
        let conn = self.conntrack.conns.get(n);
        let slot = conn.and_then(|c| self.table.slots.get(c.backend));
        slot.is_none_or(|s| s.phase.is_none())
    }

    /// A connection for its first packet, or what the packet gets instead. `old` is one with the same ends.
    fn begin(
        &mut self,
        old: Option<u32>,
        from: &Tuple,
        signal: Signal,
        pod: Option<PortId>,
        now: u32,
    ) -> Result<u32, Verdict> {
        match old {
            Some(old) if self.is_gone(old) => self.end(old, false),
            Some(old) => self.close(old, false),
            None => {}
        }
        let frontend = Frontend {
            at: from.dst.into(),
            transport: from.transport,
        };
        let server = self
            .table
            .lookup(&frontend)
            .and_then(|n| self.table.servers.get(n));
        let server = server.ok_or(Verdict::Unserved)?;
        if from.transport == Transport::Tcp && !signal.opens {
            if signal.breaks {
                return Err(Verdict::Drop(DropReason::UnknownConnection));
            }
            // Maglev finds the backend of a connection that another node, or this one before it was started anew, had
            // opened; but not of one that somebody has ended.
            if old.is_some()
                || server.what.scheduler != Scheduler::Maglev
                || self.ended.knows(self.conntrack.hash(from), now)
            {
                return Err(Verdict::Reset);
            }
        }
        let victim = self.conntrack.room(pod, from.src.ip);
        let victim = victim.map_err(Verdict::Drop)?;
        let slot = self.choose(&frontend, from.src, now)?;
        let it = self.table.slots.get(slot).ok_or(Verdict::NoBackend)?;
        let (backend, is_local): (End, bool) = (it.at.into(), pod.is_some() || it.local);
        let reply = self.reply(from, backend, is_local).map_err(Verdict::Drop)?;
        if let Some(victim) = victim {
            self.close(victim, true);
        }
        self.ended.forget(self.conntrack.hash(from));
        let n = self.conntrack.insert((*from, reply), pod, slot, signal, now);
        if let Some(it) = self.table.slots.get_mut(slot) {
            it.conns.push(&mut self.conntrack.conns, n, BACKEND);
        }
        self.table.opened(slot);
        Ok(n)
    }

    fn choose(&mut self, frontend: &Frontend, client: End, now: u32) -> Result<u32, Verdict> {
        let server = self.table.lookup(frontend).ok_or(Verdict::Unserved)?;
        let chosen = self
            .table
            .choose(server, client, &mut self.affinity, &mut self.rng, now);
        if chosen.is_none()
            && let Some(server) = self.table.servers.get_mut(server)
        {
            server.failed += 1;
        }
        chosen.ok_or(Verdict::NoBackend)
    }

    /// What the backend's packets will have in their headers: none other may have the same.
    fn reply(&mut self, from: &Tuple, backend: End, is_local: bool) -> Result<Tuple, DropReason> {
        let plain = Tuple {
            transport: from.transport,
            src: backend,
            dst: from.src,
        };
        if is_local && from.src.ip != backend.ip {
            match self.conntrack.find(Direction::Reply, &plain) {
                None => return Ok(plain),
                Some(old) if self.is_closing(old) => {
                    self.close(old, false);
                    return Ok(plain);
                }
                Some(_) => {}
            }
        }
        self.masked(plain)
    }

    /// The same with the gateway, at a port of its own, in the client's place.
    fn masked(&mut self, plain: Tuple) -> Result<Tuple, DropReason> {
        let ip = self.gateway(plain.src.ip).ok_or(DropReason::GatewayPorts)?;
        // They go round, so that one that ended is not met by the next: the backend may still remember it (TIME-WAIT).
        let mut closing = None;
        for attempt in 0..2 * TRIES {
            let port = match attempt < TRIES {
                true => self.next_port,
                false => FIRST_PORT + self.rng.below(usize::from(u16::MAX - FIRST_PORT) + 1) as u16,
            };
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            let masked = Tuple {
                dst: End { ip, port },
                ..plain
            };
            match self.conntrack.find(Direction::Reply, &masked) {
                None => return Ok(masked),
                Some(old) if closing.is_none() && self.is_closing(old) => closing = Some((old, masked)),
                Some(_) => {}
            }
        }
        if let Some((old, masked)) = closing {
            self.close(old, false);
            return Ok(masked);
        }
        Err(DropReason::GatewayPorts)
    }

    fn is_closing(&self, n: u32) -> bool {
        let conn = self.conntrack.conns.get(n);
        conn.is_none_or(|c| c.course.state == ConnState::Closing)
    }

    /// A packet of a connection gets its other ends. False: it cannot.
    fn pass(&mut self, frame: &mut [u8], h: &Headers, partial: Partial, to: &Tuple, now: u32) -> bool {
        if h.fragment {
            // The checksum of SCTP is known with the whole packet only; it does not fragment by itself (RFC 9260
            // section 6.9).
            if to.transport == Transport::Sctp && h.ports(frame) != (to.src.port, to.dst.port) {
                return false;
            }
            if let Some(packet) = PacketId::of(frame, h) {
                self.fragments.remember(packet, (to.src.ip, to.dst.ip), now);
            }
        }
        // What a pod tunnels may have a checksum of its own inside; the outer one is complete then.
        let own = match to.transport {
            Transport::Sctp => Some(8),
            _ => h.checksum_at(),
        };
        let partial = partial.is_some_and(|(start, at)| usize::from(start) == h.l4 && Some(at) == own);
        translate::rewrite(frame, h, partial, to);
        true
    }

    fn later_fragment(&mut self, frame: &mut [u8], h: &Headers, now: u32) -> bool {
        let packet = PacketId::of(frame, h);
        let Some((src, dst)) = packet.and_then(|p| self.fragments.lookup(&p, now)) else {
            return false;
        };
        translate::addresses(frame, h, src, dst);
        true
    }

    /// A backend's frame to a client.
    fn back(&mut self, frame: &mut [u8], h: &Headers, partial: Partial, now: u32) -> bool {
        if h.later_fragment {
            return self.later_fragment(frame, h, now);
        }
        let Some(transport) = transport(h.proto) else {
            return self.back_icmp(frame, h);
        };
        let Ok(from) = tuple(frame, h, transport) else {
            return false;
        };
        let Some(n) = self.conntrack.find(Direction::Reply, &from) else {
            return false;
        };
        let Some(conn) = self.conntrack.conns.get(n) else {
            return false;
        };
        let signal = Signal::of(transport, frame, h);
        let (to, slot, refused) = (
            conn.original.flipped(),
            conn.backend,
            failed(conn) && signal.breaks,
        );
        if self.table.slots.get(slot).is_none_or(|s| s.phase.is_none()) {
            // It is not the Service's any more: the client knows nothing of it, and says so.
            return false;
        }
        if signal.accepts && self.is_closing(n) {
            // The client asked the backend itself, from a port that it has used again: it knows nothing of the old
            // connection.
            self.close(n, false);
            return false;
        }
        if refused {
            self.table.failed(slot);
        }
        self.touch(n, Direction::Reply, signal, now);
        self.pass(frame, h, partial, &to, now)
    }

    /// ICMP from a client to a virtual address.
    fn forward_icmp(&mut self, frame: &mut [u8], h: &Headers) -> Verdict {
        let quote = match icmp::parse(frame, h) {
            Some(Message::Error(quote)) => quote,
            Some(Message::Echo) if h.fragment => return Verdict::Drop(DropReason::FragmentForNode),
            Some(Message::Echo) => return Verdict::Echo,
            _ => return Verdict::Drop(DropReason::ServiceProtocol),
        };
        // It is about an answer as the client saw it.
        let known = self.conntrack.find(Direction::Original, &quote.tuple.flipped());
        let Some(conn) = known.and_then(|n| self.conntrack.conns.get(n)) else {
            return Verdict::Drop(DropReason::UnknownConnection);
        };
        if h.src(frame) != conn.original.src.ip || h.dst(frame) != conn.original.dst.ip {
            return Verdict::Drop(DropReason::UnknownConnection);
        }
        let inner = conn.reply;
        icmp::rewrite(frame, h, &quote, &inner, (inner.dst.ip, inner.src.ip));
        Verdict::Translated
    }

    /// ICMP to a client or to what stands for it.
    fn back_icmp(&mut self, frame: &mut [u8], h: &Headers) -> bool {
        let Some(Message::Error(quote)) = icmp::parse(frame, h) else {
            return false;
        };
        // It is about a packet as the backend's network saw it.
        let Some(n) = self.conntrack.find(Direction::Reply, &quote.tuple.flipped()) else {
            return false;
        };
        let Some(conn) = self.conntrack.conns.get(n) else {
            return false;
        };
        let (src, dst) = (h.src(frame), h.dst(frame));
        if dst != conn.reply.dst.ip {
            return false;
        }
        let (client, outer) = (conn.original.src.ip, error_source(conn, src));
        let (inner, is_udp) = (conn.original, conn.original.transport == Transport::Udp);
        let slot = conn.backend;
        let unanswered = src == conn.reply.src.ip && quote.refused;
        icmp::rewrite(frame, h, &quote, &inner, (outer, client));
        if is_udp && unanswered {
            // Nobody is at the backend's port: what the client says next is for another one.
            self.table.failed(slot);
            self.close(n, false);
        }
        true
    }
}

/// Who an error comes from: of the backend only the virtual address is known to the client, routers are themselves.
fn error_source(conn: &Conn, src: IpAddr) -> IpAddr {
    match src == conn.reply.src.ip {
        true => conn.original.dst.ip,
        false => src,
    }
}
