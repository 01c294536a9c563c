//! Frames that a pod sent.

use super::flow::FlowKey;
use super::outbox::{self, Destination};
use super::probes::PathId;
use super::way::{Unreachable, is_routable};
use super::{Exits, Node, Way};
use crate::buf::{Arena, Span};
use crate::model::{DropReason, Instant, PeerId, PodMtu, PortId};
use crate::offload::{self, Segments, ack};
use crate::overlay::{self, Admit};
use crate::stack::Trouble;
use crate::switch::{Neighbour, guard, neighbour};
use crate::wire::bytes::{be16, be32, put, put_be16};
use crate::wire::vxlan::VXLAN_LEN;
use crate::wire::{ETH_LEN, EthView, Gso, Headers, L3, VNET_HDR_LEN, VnetHdr, checksum, proto};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A frame with all that was found out about it.
#[derive(Clone, Copy)]
pub(super) struct Parsed {
    pub span: Span,
    pub h: Headers,
    pub vnet: VnetHdr,
}

impl Parsed {
    /// A frame as it is on the wire, with nothing left to a device.
    pub fn plain(span: Span, h: Headers) -> Parsed {
        let vnet = VnetHdr::default();
        Parsed { span, h, vnet }
    }

    /// Length of the largest IP packet it stands for.
    pub(super) fn packet_len(&self, frame: &[u8]) -> usize {
        let whole = self.h.end.saturating_sub(ETH_LEN);
        if self.vnet.gso == Gso::None {
            return whole;
        }
        let headers = self.h.l4 - ETH_LEN + self.h.l4_len(frame);
        whole.min(headers + usize::from(self.vnet.gso_size))
    }
}

impl Node {
    /// Take a frame that was read from a pod's TAP. `span` is the Ethernet frame in `arena`; the [`super::HEADROOM`]
    /// bytes before it hold its virtio-net header if the port has one. The frame is changed in place. The
    /// arena may be rewound afterwards unless the node [is blocked](Node::is_blocked).
    pub fn from_pod(
        &mut self,
        port: PortId,
        arena: &mut Arena,
        span: Span,
        now: Instant,
        exits: &mut impl Exits,
    ) {
        self.counters.frames_from_pods += 1;
        if let Some(state) = self.port(port) {
            state.counters.frames_from_pod += 1;
            state.counters.bytes_from_pod += u64::from(span.len);
            if state.egress.is_some() {
                self.charge_sender(port, arena.memory(), span);
            }
        }
        if let Err(reason) = self.take(port, arena, span, now, exits) {
            self.drop_from_pod(port, reason);
        }
    }

    fn take(
        &mut self,
        port: PortId,
        arena: &mut Arena,
        span: Span,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let spec = self.ports.spec(port).ok_or(DropReason::PortGone)?;
        let vnet = match spec.caps.vnet_hdr {
            false => VnetHdr::default(),
            true => {
                let at = Span::new(span.start().saturating_sub(VNET_HDR_LEN), span.start());
                VnetHdr::parse(at.of(arena.memory())).map_err(|_| DropReason::BadVnetHdr)?
            }
        };
        let frame = span.of(arena.memory());
        let h = Headers::parse(frame)?;
        guard::check(spec, frame, &h)?;
        offload::check(frame, &h, &vnet)?;
        if h.l3 == L3::Arp || neighbour::is_neighbour_discovery(frame, &h) {
            return self.neighbour(port, frame, &h, now, exits);
        }
        let f = Parsed { span, h, vnet };
        let mac = EthView(frame).dst();
        if mac.is_multicast() {
            return self.flood(port, arena, &f, now, exits);
        }
        let dst = h.dst(frame);
        let key = FlowKey { port, mac, dst };
        if self.way(key) == Ok(Way::Service) {
            return self.serve(port, arena, &f, now, exits);
        }
        if let Err(reason) = self.services.pass_by(frame, &h, now) {
            self.reset_beside(port, frame, &h, now, exits);
            return Err(reason);
        }
        self.go(port, key, arena, &f, now, exits)
    }

    /// A unicast frame goes its way.
    pub(super) fn go(
        &mut self,
        port: PortId,
        key: FlowKey,
        arena: &mut Arena,
        f: &Parsed,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let way = self.way(key);
        self.follow(port, way, arena, f, now, exits)
    }

    /// The same, once it is known.
    pub(super) fn follow(
        &mut self,
        port: PortId,
        way: Result<Way, Unreachable>,
        arena: &mut Arena,
        f: &Parsed,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let from_host = self.is_host(port);
        let way = if from_host { self.not_out(way) } else { way };
        if matches!(way, Ok(Way::Out | Way::Stack))
            && !from_host
            && let Some(done) = self.return_to_client(port, arena, f, now, exits)
        {
            return done;
        }
        let frame = f.span.of(arena.memory());
        match way {
            Ok(Way::Switch(to)) => self.local(Some(port), to, arena, f, false, now, exits),
            Ok(Way::Route(to)) => self.local(Some(port), to, arena, f, true, now, exits),
            Ok(Way::Tunnel(peer)) => self.tunnel(Some(port), peer, arena, f, now, exits),
            Ok(Way::Out) => self.out(port, arena.memory(), f, now, exits),
            Ok(Way::Stack) if from_host => self.stack(arena.memory_mut(), f, now),
            Ok(Way::Stack) if self.leaves(frame, &f.h) => self.out(port, arena.memory(), f, now, exits),
            Ok(Way::Stack) => match self.host_for(frame, &f.h) {
                Some(host) => self.local(Some(port), host, arena, f, true, now, exits),
                None => self.stack(arena.memory_mut(), f, now),
            },
            // The backend of a Service is no other Service.
            Ok(Way::Service) => Err(DropReason::NoRoute),
            Err(unreachable) => {
                if let Some(trouble) = unreachable.trouble {
                    self.complain(port, trouble, &frame[ETH_LEN..f.h.end], now);
                }
                Err(unreachable.reason)
            }
        }
    }

    /// ARP and neighbour discovery are answered here and go no further.
    fn neighbour(
        &mut self,
        port: PortId,
        frame: &[u8],
        h: &Headers,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let limit = self.port(port).ok_or(DropReason::PortGone)?;
        if !limit.neighbours.take(now, 1) {
            return Err(DropReason::NeighbourLimit);
        }
        let local = &self.settings.local;
        let (ports, host) = (&self.ports, self.host);
        // The host is found as the gateway, which it stands behind, and never by a MAC of its own.
        let pod = |ip: IpAddr| ports.by_ip(ip).filter(|port| Some(*port) != host);
        let holder = |ip: IpAddr| Some(ports.spec(pod(ip)?)?.mac);
        let mut out = [0; neighbour::ANSWER_LEN];
        let verdict = match h.l3 {
            L3::Arp => {
                let resolve = |ip: Ipv4Addr, probe: bool| match holder(IpAddr::V4(ip)) {
                    Some(mac) => Some(mac),
                    None if local.owns(IpAddr::V4(ip)) => Some(local.gateway_mac),
                    // For the others of the subnet the gateway answers too, so that a pod that asks for one
                    // nobody has gets "host unreachable" at once instead of waiting for ARP to give up.
                    None if !probe && local.subnet4.is_some_and(|n| n.contains(&ip)) => {
                        Some(local.gateway_mac)
                    }
                    None => None,
                };
                neighbour::arp(frame, resolve, &mut out)
            }
            _ => {
                let resolve = |ip: Ipv6Addr| match holder(IpAddr::V6(ip)) {
                    Some(mac) => Some((mac, false)),
                    None if local.owns(IpAddr::V6(ip)) => Some((local.gateway_mac, true)),
                    None => None,
                };
                let verdict = neighbour::ndisc(frame, h, resolve, &mut out);
                match (verdict, neighbour::solicited(frame, h)) {
                    (Neighbour::Drop(DropReason::NoSuchPod), Some(ip))
                        if local.subnet6.is_some_and(|n| n.contains(&ip)) =>
                    {
                        let proxy = |_| Some((local.gateway_mac, false));
                        neighbour::ndisc(frame, h, proxy, &mut out)
                    }
                    (verdict, _) => verdict,
                }
            }
        };
        match verdict {
            Neighbour::Answer(n) => {
                self.counters.consumed += 1;
                self.counters.originated += 1;
                self.write_own(port, &out[..n], now, exits);
                Ok(())
            }
            Neighbour::Consumed => {
                self.counters.consumed += 1;
                Ok(())
            }
            Neighbour::Drop(reason) => Err(reason),
        }
    }

    /// Broadcast and multicast go to every other pod of the node, and never into the tunnel; neither to the host nor from it,
    /// whose daemons speak to other networks so.
    fn flood(
        &mut self,
        port: PortId,
        arena: &mut Arena,
        f: &Parsed,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let frame = f.span.of(arena.memory());
        if is_membership_report(frame, &f.h) {
            // For multicast routers; the only one here is the node, and it has no use for it.
            self.counters.consumed += 1;
            return Ok(());
        }
        if self.is_host(port) {
            return Err(DropReason::NoListener);
        }
        let limit = self.port(port).ok_or(DropReason::PortGone)?;
        if !limit.broadcasts.take(now, 1) {
            return Err(DropReason::StormLimit);
        }
        let mut copies = 0;
        for n in 0..self.states.len() as u16 {
            let to = PortId(n);
            if to != port && !self.is_host(to) && self.ports.spec(to).is_some() {
                copies += 1;
                if copies > 1 {
                    self.counters.copied += 1;
                }
                if let Err(reason) = self.local(None, to, arena, f, false, now, exits) {
                    self.drop_from_pod(port, reason);
                }
            }
        }
        if copies == 0 {
            Err(DropReason::NoListener)
        } else {
            Ok(())
        }
    }

    /// To a pod of this node. `from` is told when the packet is too big; none for copies of a broadcast.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn local(
        &mut self,
        from: Option<PortId>,
        to: PortId,
        arena: &mut Arena,
        f: &Parsed,
        routed: bool,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let spec = self.ports.spec(to).ok_or(DropReason::PortGone)?;
        let (mtu, mac) = (spec.mtu, spec.mac);
        let frame = f.span.of(arena.memory());
        self.check_size(from, f, frame, mtu, now)?;
        if routed {
            self.check_hop(from, frame, &f.h, now)?;
            let gateway = self.settings.local.gateway_mac;
            let frame = f.span.of_mut(arena.memory_mut());
            put(frame, 0, &mac.0);
            put(frame, 6, &gateway.0);
            hop(frame, &f.h);
        }
        self.deliver(to, arena.memory_mut(), (&f.h, &f.vnet), &[f.span], now, exits)
    }

    /// Each packet of a frame must fit the next hop. The sender is told also without DF, as hosts take it for
    /// what it is; podwire does not fragment for others.
    fn check_size(
        &mut self,
        from: Option<PortId>,
        f: &Parsed,
        frame: &[u8],
        PodMtu(mtu): PodMtu,
        now: Instant,
    ) -> Result<(), DropReason> {
        if f.packet_len(frame) <= usize::from(mtu) {
            return Ok(());
        }
        if let Some(from) = from {
            self.complain(from, Trouble::TooBig { mtu }, &frame[ETH_LEN..f.h.end], now);
        }
        Err(DropReason::TooBig)
    }

    /// A router passes on only what has hops left and addresses that mean something elsewhere.
    pub(super) fn check_hop(
        &mut self,
        from: Option<PortId>,
        frame: &[u8],
        h: &Headers,
        now: Instant,
    ) -> Result<(), DropReason> {
        if !is_routable(h.src(frame)) {
            return Err(DropReason::NotRoutable);
        }
        if h.ttl(frame) <= 1 {
            if let Some(from) = from {
                self.complain(from, Trouble::TtlExceeded, &frame[ETH_LEN..h.end], now);
            }
            return Err(DropReason::TtlExceeded);
        }
        Ok(())
    }

    /// To a pod of a peer: route, encapsulate, segment. `from` is none for packets of the node itself: they keep their
    /// TTL, and go also where no other is sent, since among them are probes, which find out whether they arrive, and
    /// the answers to those of peers.
    pub(super) fn tunnel(
        &mut self,
        from: Option<PortId>,
        peer: PeerId,
        arena: &mut Arena,
        f: &Parsed,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let frame = f.span.of(arena.memory());
        let six = f.h.l3 == L3::Ipv6;
        if from.is_some() {
            self.check_hop(from, frame, &f.h, now)?;
        }
        let mut state = self.peer(peer).ok_or(DropReason::NoRoute)?;
        let to = state.endpoint(six);
        let families = self.settings.underlay;
        if !(if to.is_ipv4() { families.0 } else { families.1 }) {
            return Err(DropReason::NoUnderlay);
        }
        if from.is_some() {
            let packet = f.packet_len(frame);
            if state.path(six).probes.is_due(packet, now) {
                self.look((peer, six), packet, now);
                state = self.peer(peer).ok_or(DropReason::NoRoute)?;
            }
        }
        let local = &self.settings.local;
        let (own_mtu, vni) = (local.underlay_mtu, local.vni);
        let own_mac = if six { local.vtep_mac6 } else { local.vtep_mac };
        let mtu = state.pod_mtu(six, own_mtu);
        let (peer_mac, gso) = (state.vtep_mac(six), state.gso);
        if let Some(port) = from {
            if state.path(six).probes.is_silent() {
                self.admit(port, (peer, six), frame, &f.h, now)?;
            }
            self.check_size(from, f, frame, mtu, now)?;
        }
        let dest = Destination {
            peer,
            to,
            socket: (flow_hash(frame, &f.h) % u32::from(self.settings.sockets.max(1))) as u8,
            class: overlay::outer_class(f.h.traffic_class(frame), self.settings.dscp),
            // In a train with larger ones a probe would share their fate.
            gso: gso && from.is_some(),
        };
        if self.outbox.is_full() && !self.flush(arena, now, exits) {
            return Err(DropReason::UnderlayFull);
        }
        let frame = f.span.of_mut(arena.memory_mut());
        if from.is_some() {
            hop(frame, &f.h);
        }
        if f.vnet.gso != Gso::None {
            put(frame, 0, &peer_mac.0);
            put(frame, 6, &own_mac.0);
            let segments = Segments::checked(frame, &f.h, &f.vnet)?;
            return self.train(dest, arena, f.span, &segments, now, exits);
        }
        if let Some(partial) = f.vnet.partial {
            offload::complete(frame, &f.h, partial)?;
        }
        // The VXLAN header takes the place of the virtio-net header: one piece in all.
        let datagram = Span::new(f.span.start() - VXLAN_LEN, f.span.start() + f.h.end);
        overlay::encap(datagram.of_mut(arena.memory_mut()), vni, own_mac, peer_mac);
        let frame = datagram.part(VXLAN_LEN, datagram.len()).of(arena.memory());
        let is_ack = self.settings.merge_acks && ack::is_pure(frame, &f.h);
        if is_ack && self.outbox.merge_ack(&dest, arena.memory(), datagram, &f.h) {
            self.counters.acks_merged += 1;
            return Ok(());
        }
        self.outbox.push(dest, datagram, is_ack);
        self.counters.frames_to_peers += 1;
        Ok(())
    }

    /// A frame for a silent peer: most are refused.
    fn admit(
        &mut self,
        from: PortId,
        path: PathId,
        frame: &[u8],
        h: &Headers,
        now: Instant,
    ) -> Result<(), DropReason> {
        let flow = flow_hash(frame, h);
        let path = self.path_mut(path).ok_or(DropReason::NoRoute)?;
        let admit = path.probes.admit(flow, now);
        if admit != Admit::Send {
            self.complain(from, Trouble::HostUnreachable, &frame[ETH_LEN..h.end], now);
        }
        match admit {
            Admit::Refuse => Err(DropReason::PeerSilent),
            Admit::Send | Admit::Doubt => Ok(()),
        }
    }

    /// A super-frame: header blocks behind it in the arena, each followed by its slice of the payload.
    fn train(
        &mut self,
        dest: Destination,
        arena: &mut Arena,
        span: Span,
        segments: &Segments,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let mark = arena.used();
        let header_len = VXLAN_LEN + segments.header_len();
        let vxlan = crate::wire::vxlan::emit(self.settings.local.vni);
        let mut i = 0;
        while i < segments.count() {
            if arena.room() < outbox::HEADERS_ROOM || self.outbox.is_full() {
                // More than one message's worth: send what there is, then reuse the room.
                if !self.flush(arena, now, exits) {
                    return Err(DropReason::UnderlayFull);
                }
                arena.rewind(mark);
            }
            let message = self.outbox.begin(dest, VXLAN_LEN + segments.frame_len(), 2);
            while i < segments.count() {
                let payload = segments.payload(i);
                let len = header_len + payload.len();
                let block = arena.take(header_len);
                let payload = span.part(payload.start, payload.end);
                if !outbox::add(message, len, &[block, payload]) {
                    arena.rewind(block.start());
                    break;
                }
                debug_assert!(span.end() <= block.start());
                let (frame, free) = arena.memory_mut().split_at_mut(block.start());
                let frame = &frame[span.start()..span.end()];
                put(free, 0, &vxlan);
                segments.header(frame, i, &mut free[VXLAN_LEN..header_len]);
                i += 1;
            }
            if i == segments.count() {
                // The last message stands for the frame: one that the underlay stopped half way was not sent.
                message.frames = 1;
                self.counters.frames_to_peers += 1;
            }
        }
        // Large enough to be worth a call of its own, and its memory can be reused while it is warm.
        self.flush(arena, now, exits);
        Ok(())
    }
}

/// One hop less, for a router; the IPv4 header checksum follows (RFC 1624).
pub(super) fn hop(frame: &mut [u8], h: &Headers) {
    match h.l3 {
        L3::Ipv4 => {
            let before = be16(frame, ETH_LEN + 8);
            let after = before.wrapping_sub(0x100);
            put_be16(frame, ETH_LEN + 8, after);
            let sum = checksum::update(be16(frame, ETH_LEN + 10), before, after);
            put_be16(frame, ETH_LEN + 10, sum);
        }
        _ => {
            let left = h.ttl(frame).wrapping_sub(1);
            put(frame, ETH_LEN + 7, &[left]);
        }
    }
}

/// Spreads flows over sockets. All fragments of a packet go the same way, so ports count only without them.
fn flow_hash(frame: &[u8], h: &Headers) -> u32 {
    let words = match h.l3 {
        L3::Ipv4 => be32(frame, ETH_LEN + 12) ^ be32(frame, ETH_LEN + 16).rotate_left(7),
        _ => (ETH_LEN + 8..ETH_LEN + 40)
            .step_by(4)
            .fold(0u32, |a, at| a.rotate_left(5) ^ be32(frame, at)),
    };
    let (src, dst) = if h.fragment { (0, 0) } else { h.ports(frame) };
    let mixed = words ^ (u32::from(src) << 16 | u32::from(dst)) ^ u32::from(h.proto);
    mixed
        .wrapping_mul(0x9e37_79b1)
        .rotate_left(13)
        .wrapping_mul(0x85eb_ca6b)
        >> 8
}

/// IGMP (RFC 3376), and MLD reports and dones (RFC 3810).
fn is_membership_report(frame: &[u8], h: &Headers) -> bool {
    match h.l3 {
        L3::Ipv4 => h.proto == 2,
        L3::Ipv6 => h.proto == proto::ICMPV6 && matches!(frame.get(h.l4), Some(131 | 132 | 143)),
        L3::Arp => false,
    }
}
