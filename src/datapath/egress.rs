//! The way out: packets of pods that leave the pod network by the host's own sockets, and what comes back.

use super::from_pod::Parsed;
use super::recover::Lent;
use super::{Exits, Node};
use crate::buf::Span;
use crate::model::{
    DropReason, Frontend, Heard, HostError, Instant, Mac, MouthKind, Moved, Outward, PodMtu, PodName, PortId,
    Transport,
};
use crate::stack::Trouble;
use crate::stack::egress::{
    Egress, Entrance, Failure, FlowId, FlowKey, Host, MouthId, Outside, Packet, Policy,
};
use crate::wire::bytes::{put, put_be16};
use crate::wire::{ETH_LEN, Gso, Headers, VnetHdr, checksum, proto};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Least MTU a pod may have (RFC 8200 section 5).
const MIN_MTU: PodMtu = PodMtu(1280);

/// A node, as the stacks of the way out see what is outside of them.
pub(super) struct Beside<'a, E: Exits> {
    node: &'a mut Node,
    exits: &'a mut E,
    now: Instant,
}

impl<E: Exits> Host for Beside<'_, E> {
    fn connect(
        &mut self,
        flow: FlowId,
        to: SocketAddr,
        from: Option<IpAddr>,
        hops: Option<u8>,
    ) -> Result<(), HostError> {
        self.exits.connect(flow, to, from, hops)
    }
    fn outcome(&mut self, flow: FlowId) -> Option<Result<(), Failure>> {
        self.exits.outcome(flow)
    }
    fn read(&mut self, flow: FlowId, into: &mut [u8]) -> Moved {
        self.exits.read(flow, into)
    }
    fn write(&mut self, flow: FlowId, from: &[u8]) -> Moved {
        self.exits.write(flow, from)
    }
    fn shut(&mut self, flow: FlowId) {
        self.exits.shut(flow);
    }
    fn close(&mut self, flow: FlowId, reset: bool) {
        self.exits.close(flow, reset);
    }
    fn open(&mut self, mouth: MouthId, kind: MouthKind, six: bool) -> Result<(), HostError> {
        self.exits.open(mouth, kind, six)
    }
    fn send(&mut self, mouth: MouthId, what: &Outward<'_>) -> Result<(), HostError> {
        self.exits.send(mouth, what)
    }
    fn hear(&mut self, mouth: MouthId, into: &mut [u8]) -> Option<Heard> {
        self.exits.hear(mouth, into)
    }
    fn close_mouth(&mut self, mouth: MouthId) {
        self.exits.close_mouth(mouth);
    }
}

impl<E: Exits> Outside for Beside<'_, E> {
    fn emit(&mut self, port: PortId, frame: &mut [u8], segment: Option<u16>) {
        self.node.counters.originated += 1;
        if let Err(reason) = self.node.emit(port, frame, segment, self.now, self.exits) {
            self.node.drops.add(reason, 1);
        }
    }

    fn complain(&mut self, port: PortId, trouble: Trouble, packet: &[u8], by: Option<IpAddr>) {
        match by {
            None => self.node.complain(port, trouble, packet, self.now),
            Some(by) => self.node.complain_as(port, trouble, packet, by, self.now),
        }
    }

    fn lost(&mut self, _port: PortId, reason: DropReason) {
        // It was consumed already, or never a frame: what is counted as dropped must have come from somewhere.
        self.node.counters.originated += 1;
        self.node.drops.add(reason, 1);
    }

    fn mtu(&self, port: PortId) -> PodMtu {
        let mtu = match port {
            PortId::SERVICES => Some(self.node.settings.local.pod_mtu),
            _ => self.node.ports.spec(port).map(|s| s.mtu),
        };
        mtu.map_or(MIN_MTU, |mtu| mtu.max(MIN_MTU))
    }

    fn room_at(&self, port: PortId) -> Option<Instant> {
        self.node.room_at(port, self.now)
    }
}

impl Node {
    /// Do something with the way out, which needs the node beside itself.
    pub(super) fn beside<E: Exits, R>(
        &mut self,
        now: Instant,
        exits: &mut E,
        work: impl FnOnce(&mut Egress, &mut Beside<'_, E>) -> R,
    ) -> Option<R> {
        let egress = self.egress.take();
        let mut lent = Lent::new(self, egress, |node, egress| node.egress = egress);
        let (node, egress) = lent.parts();
        Some(work(egress.as_mut()?, &mut Beside { node, exits, now }))
    }

    /// A pod's packet leaves the pod network.
    pub(super) fn out(
        &mut self,
        port: PortId,
        memory: &[u8],
        f: &Parsed,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let frame = f.span.of(memory);
        self.check_hop(Some(port), frame, &f.h, now)?;
        if self.is_tunnel(frame, &f.h) {
            self.complain(port, Trouble::Prohibited, &frame[ETH_LEN..f.h.end], now);
            return Err(DropReason::EgressDenied);
        }
        let packet = Packet {
            port,
            bytes: &frame[ETH_LEN..f.h.end],
            ends: (f.h.src(frame), f.h.dst(frame)),
            proto: f.h.proto,
            l4: f.h.l4 - ETH_LEN,
            fragment: f.h.fragment,
            hops: f.h.ttl(frame) - 1,
            class: f.h.traffic_class(frame),
            segment: (f.vnet.gso == Gso::Udp).then_some(f.vnet.gso_size),
        };
        let taken = self.beside(now, exits, |egress, beside| egress.input(&packet, now, beside));
        taken.unwrap_or(Err(DropReason::NoRoute))?;
        self.counters.consumed += 1;
        Ok(())
    }

    /// Answer a pod's TCP packet by a reset.
    pub(super) fn break_off(&mut self, port: PortId, packet: &[u8], now: Instant, exits: &mut impl Exits) {
        self.beside(now, exits, |egress, beside| {
            egress.refuse(port, packet, now, beside);
        });
    }

    /// Whether a packet would reach a peer's VXLAN socket, which takes what comes from this host for this node's. Ports
    /// are unknown in fragments.
    fn is_tunnel(&self, frame: &[u8], h: &Headers) -> bool {
        let is_udp = h.proto == proto::UDP || h.fragment;
        let peer = self.peers.at_underlay(h.dst(frame)).filter(|_| is_udp);
        let Some(peer) = peer.and_then(|id| self.peers.state(id)) else {
            return false;
        };
        let port = h.ports(frame).1;
        h.fragment || [false, true].iter().any(|six| peer.endpoint(*six).port() == port)
    }

    /// Whether a pod's packet for the node's own addresses leaves it: it belongs to a flow, or is for something mapped.
    pub(super) fn leaves(&self, frame: &[u8], h: &Headers) -> bool {
        let (_, to) = h.ports(frame);
        let far = SocketAddr::new(h.dst(frame), to);
        let mapped = || self.egress().is_some_and(|e| e.policy().mapping(far).is_some());
        let has_ports = !h.fragment && matches!(h.proto, proto::TCP | proto::UDP);
        self.belongs(frame, h) || has_ports && mapped()
    }

    /// Whether a packet for the node's own addresses belongs to a flow there is.
    pub(super) fn belongs(&self, frame: &[u8], h: &Headers) -> bool {
        let Some(egress) = &self.egress else { return false };
        if h.fragment {
            return egress.wants_fragment(h.proto, h.src(frame));
        }
        if !matches!(h.proto, proto::TCP | proto::UDP) {
            return false;
        }
        let (from, to) = h.ports(frame);
        let key = FlowKey {
            pod: SocketAddr::new(h.src(frame), from),
            far: SocketAddr::new(h.dst(frame), to),
        };
        egress.knows(h.proto, &key)
    }

    /// Write a packet from outside to a pod: `frame` has room for the Ethernet header.
    fn emit(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        segment: Option<u16>,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let mac = match port {
            // Known when a backend is.
            PortId::SERVICES => Mac([0; 6]),
            _ => self.ports.spec(port).ok_or(DropReason::PortGone)?.mac,
        };
        put(frame, 0, &mac.0);
        put(frame, 6, &self.settings.local.gateway_mac.0);
        let six = frame.get(ETH_LEN).is_some_and(|b| b >> 4 == 6);
        put_be16(frame, 12, if six { 0x86dd } else { 0x0800 });
        let h = Headers::parse(frame)?;
        let mut vnet = VnetHdr::default();
        if let Some(offset) = h.checksum_at().filter(|_| !h.fragment) {
            let sum = checksum::pseudo(frame, &h, h.end - h.l4).fold();
            put_be16(frame, h.l4 + usize::from(offset), sum);
            vnet.partial = Some((h.l4 as u16, offset));
        }
        if let Some(segment) = segment {
            vnet.gso = Gso::of(&h);
            vnet.gso_size = segment;
            vnet.hdr_len = (h.l4 + h.l4_len(frame)) as u16;
        }
        let whole = Span::new(0, frame.len());
        if port == PortId::SERVICES {
            return self.onward(frame, &Parsed { span: whole, h, vnet }, now, exits);
        }
        self.deliver(port, frame, (&h, &vnet), &[whole], now, exits)
    }

    /// Something happened at a flow's stream.
    pub fn stream_ready(
        &mut self,
        flow: FlowId,
        readable: bool,
        writable: bool,
        now: Instant,
        exits: &mut impl Exits,
    ) {
        self.beside(now, exits, |egress, beside| {
            egress.stream_ready(flow, readable, writable, now, beside);
        });
    }

    /// Something was heard at a mouth.
    pub fn mouth_ready(&mut self, mouth: MouthId) {
        if let Some(egress) = &mut self.egress {
            egress.mouth_ready(mouth);
        }
    }

    /// Go on with the flows that leave the node. To be called after each burst. Whether there is more to do at once.
    pub fn turn_egress(&mut self, now: Instant, exits: &mut impl Exits) -> bool {
        let busy = self.beside(now, exits, |egress, beside| {
            egress.turn(now, beside);
            egress.is_busy()
        });
        self.tell_resets(now, exits) || busy.unwrap_or(false)
    }

    /// Pods may reach something else from now on.
    pub fn set_policy(&mut self, policy: Arc<Policy>) {
        self.flows.forget();
        if let Some(egress) = &mut self.egress {
            egress.set_policy(policy);
        }
    }

    /// The flows that leave the node.
    pub fn egress(&self) -> Option<&Egress> {
        self.egress.as_deref()
    }

    /// A client from outside connected to a port of the host that leads to this pod, or to a Service; the number its
    /// stream is to have.
    ///
    /// # Errors
    /// There is no such pod, or no room; it is counted.
    pub fn accept(
        &mut self,
        pod: Option<&PodName>,
        (to, client): (SocketAddr, SocketAddr),
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<FlowId, DropReason> {
        let taken = self
            .port_of(pod, to)
            .and_then(|port| self.let_in(port, (to, client), now, exits));
        taken.inspect_err(|reason| {
            self.counters.originated += 1;
            self.drops.add(*reason, 1);
        })
    }

    /// The port of a pod, or of Services, where a client's flow to `at` leads.
    fn port_of(&self, pod: Option<&PodName>, at: SocketAddr) -> Result<PortId, DropReason> {
        if let Some(pod) = pod {
            return self.ports.by_name(pod).ok_or(DropReason::PortGone);
        }
        let transport = Transport::Tcp;
        match self.services.has_backend(&Frontend { at, transport }) {
            true => Ok(PortId::SERVICES),
            false => Err(DropReason::NoBackend),
        }
    }

    /// Take in a client at a port's address and TCP port.
    pub(super) fn let_in(
        &mut self,
        port: PortId,
        (to, client): (SocketAddr, SocketAddr),
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<FlowId, DropReason> {
        let gateway = self.gateway_of(to);
        let egress = self.egress.as_mut().zip(gateway);
        let (egress, gateway) = egress.ok_or(DropReason::NoRoute)?;
        egress.accept(port, (to, client), gateway, now, exits)
    }

    /// Give a UDP port of a pod, or of a Service, the socket of the host that is bound to `at`; the number it is to have.
    ///
    /// # Errors
    /// There is no such pod, or no room.
    pub fn publish(
        &mut self,
        pod: Option<&PodName>,
        (to, at): (SocketAddr, SocketAddr),
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<MouthId, DropReason> {
        let port = match pod {
            Some(pod) => self.ports.by_name(pod).ok_or(DropReason::PortGone)?,
            None => PortId::SERVICES,
        };
        let gateway = self.gateway_of(to);
        let egress = self.egress.as_mut().zip(gateway);
        let (egress, gateway) = egress.ok_or(DropReason::NoRoute)?;
        let entrance = Entrance { pod: to, at, gateway };
        egress.publish(port, entrance, now, exits)
    }

    /// Close the socket of a published UDP port.
    pub fn unpublish(&mut self, mouth: MouthId, exits: &mut impl Exits) {
        if let Some(egress) = &mut self.egress {
            egress.unpublish(mouth, exits);
        }
    }

    /// The gateway of the family of an address.
    fn gateway_of(&self, pod: SocketAddr) -> Option<IpAddr> {
        let local = &self.settings.local;
        match pod {
            SocketAddr::V4(_) => local.gateway4().map(IpAddr::V4),
            SocketAddr::V6(_) => local.gateway6().map(IpAddr::V6),
        }
    }

    /// All that a pod's port had outside ends.
    pub(super) fn end_flows(&mut self, port: PortId, exits: &mut impl Exits) {
        if let Some(egress) = &mut self.egress {
            egress.remove_port(port, exits);
        }
    }
}
