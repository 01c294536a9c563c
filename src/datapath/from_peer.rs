//! Datagrams that came from the underlay.

use super::from_pod::{Parsed, hop};
use super::probes::PathId;
use super::recover::{Lent, UnderWay};
use super::to_pod::takes;
use super::way::is_routable;
use super::{Exits, Node};
use crate::buf::{Received, Span};
use crate::model::{DropReason, Instant, PeerId, PortId};
use crate::offload::coalesce;
use crate::overlay;
use crate::stack::Trouble;
use crate::wire::bytes::{be16, put, put_be16};
use crate::wire::vxlan::{self, VXLAN_LEN};
use crate::wire::{ETH_LEN, EthView, Gso, Headers, L3, VnetHdr, checksum};
use std::net::IpAddr;

/// Where an inner packet goes.
enum Inbound {
    /// A pod, or [`PortId::SERVICES`].
    Port(PortId),
    Stack,
}

impl Node {
    /// Take a message from the underlay. What can be merged waits for [`Node::deliver_trains`], which must be
    /// called before `memory` is used again.
    pub fn from_peer(&mut self, memory: &mut [u8], message: &Received, now: Instant, exits: &mut impl Exits) {
        let whole = message.span;
        let step = message.segment.map_or(whole.len(), usize::from).max(1);
        self.under_way = UnderWay {
            before: self.counters.datagrams_from_peers,
            len: whole.len(),
            step,
        };
        let Some(known) = self.peers.at_underlay(message.from) else {
            let n = whole.len().div_ceil(step).max(1) as u64;
            self.counters.datagrams_from_peers += n;
            return self.drops.add(DropReason::UnknownPeer, n);
        };
        if let Some(headers) = self.already_whole(memory, whole, step) {
            self.counters.datagrams_from_peers += 1;
            self.under_way.len = 0;
            let frame = whole.part(VXLAN_LEN, whole.len());
            if let Err(reason) = self.super_frame(memory, frame, headers, step, message, now, exits) {
                self.drops.add(reason, 1);
            }
            return;
        }
        let mut sender = known;
        let mut at = 0;
        loop {
            let end = (at + step).min(whole.len());
            self.counters.datagrams_from_peers += 1;
            match self.datagram(memory, whole.part(at, end), message, known, now, exits) {
                Ok((peer, six)) => {
                    sender = peer.unwrap_or(sender);
                    self.heard((sender, six), end - at, now);
                }
                Err(reason) => self.drops.add(reason, 1),
            }
            at = end;
            if at >= whole.len() {
                break;
            }
        }
    }

    /// Deliver the merged frames of this batch. After a panic the next call goes on behind the one it came at.
    pub fn deliver_trains(&mut self, memory: &mut [u8], now: Instant, exits: &mut impl Exits) {
        if self.coalescer.is_empty() {
            return;
        }
        let coalescer = std::mem::take(&mut self.coalescer);
        let mut lent = Lent::new(self, coalescer, |node, coalescer| node.coalescer = coalescer);
        let (node, coalescer) = lent.parts();
        coalescer.drain(memory, |memory, port, h, vnet, pieces| {
            if let Err(reason) = node.hand_over(port, memory, (h, vnet), pieces, now, exits) {
                node.drops.add(reason, 1);
            }
        });
    }

    /// One datagram: merged with an open train (`None`: from the same peer as before), or decided afresh; and whether
    /// it holds an IPv6 packet.
    fn datagram(
        &mut self,
        memory: &mut [u8],
        datagram: Span,
        message: &Received,
        known: PeerId,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(Option<PeerId>, bool), DropReason> {
        let frame = datagram.part(VXLAN_LEN, datagram.len());
        vxlan::decap(datagram.of(memory), self.settings.local.vni)?;
        let h = Headers::parse(frame.of(memory))?;
        mark(frame.of_mut(memory), &h, message.class)?;
        let six = h.l3 == L3::Ipv6;
        let from = u32::from(known.0);
        if self.coalescer.merge(memory, from, frame, &h) {
            self.counters.coalesced += 1;
            return Ok((None, six));
        }
        let (peer, inbound) = self.inbound(frame.of(memory), &h, message.from, now)?;
        match inbound {
            Inbound::Stack => self.stack(memory, &Parsed::plain(frame, h), now)?,
            Inbound::Port(port) => {
                let alone = match port {
                    PortId::SERVICES => false,
                    _ => !takes(
                        &self.ports.spec(port).ok_or(DropReason::PortGone)?.caps,
                        Gso::of(&h),
                    ),
                };
                if self.coalescer.is_full() {
                    self.deliver_trains(memory, now, exits);
                }
                self.coalescer.open(memory, from, frame, &h, alone, port);
                if port == PortId::SERVICES && h.fragment {
                    // What becomes of the first fragment is what the next ones are known by.
                    self.deliver_trains(memory, now, exits);
                }
            }
        }
        Ok((Some(peer), six))
    }

    /// The headers of a message that is one super-frame: a kernel VTEP on this machine passes its own on
    /// without segmenting them, and the inner packet is then as long as the message.
    fn already_whole(&self, memory: &[u8], whole: Span, step: usize) -> Option<Headers> {
        let own = usize::from(self.settings.local.pod_mtu.0) + ETH_LEN + VXLAN_LEN;
        if whole.len() <= step.min(own) {
            return None;
        }
        let frame = vxlan::decap(whole.of(memory), self.settings.local.vni).ok()?;
        Headers::parse(frame).ok().filter(|h| h.end == frame.len())
    }

    #[allow(clippy::too_many_arguments)]
    fn super_frame(
        &mut self,
        memory: &mut [u8],
        span: Span,
        h: Headers,
        step: usize,
        message: &Received,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let frame = span.of_mut(memory);
        mark(frame, &h, message.class)?;
        let (peer, inbound) = self.inbound(frame, &h, message.from, now)?;
        self.heard((peer, h.l3 == L3::Ipv6), span.len() + VXLAN_LEN, now);
        // What came before must not be overtaken.
        self.deliver_trains(memory, now, exits);
        let port = match inbound {
            Inbound::Stack => return self.stack(memory, &Parsed::plain(span, h), now),
            Inbound::Port(port) => port,
        };
        let frame = span.of_mut(memory);
        let headers = h.l4 - ETH_LEN + h.l4_len(frame);
        let fits = usize::from(self.settings.local.pod_mtu.0).saturating_sub(headers);
        // The kernel tells the inner segment size as that of the message; without it the pod MTU bounds it.
        let segment = if step < span.len() { step } else { fits };
        let vnet = coalesce::already(frame, &h, segment).unwrap_or_default();
        self.hand_over(port, memory, (&h, &vnet), &[span], now, exits)
    }

    /// Where an inner packet goes, once its sender has proven to be the peer it claims to be.
    fn inbound(
        &mut self,
        frame: &[u8],
        h: &Headers,
        from: IpAddr,
        now: Instant,
    ) -> Result<(PeerId, Inbound), DropReason> {
        let local = &self.settings.local;
        let own = if h.l3 == L3::Ipv6 {
            local.vtep_mac6
        } else {
            local.vtep_mac
        };
        if EthView(frame).dst() != own {
            return Err(DropReason::WrongVtepMac);
        }
        if h.l3 == L3::Arp {
            return Err(DropReason::NotRoutable);
        }
        let (src, dst) = (h.src(frame), h.dst(frame));
        let peer = self.peers.route(src).ok_or(DropReason::NotPeersAddress)?;
        if !self.peers.state(peer).is_some_and(|p| p.is_at(from)) {
            return Err(DropReason::NotPeersAddress);
        }
        let packet = &frame[ETH_LEN..h.end];
        let owned = local.owns(dst);
        if owned && self.is_for_client(frame, h, now) {
            return Ok((peer, Inbound::Port(PortId::SERVICES)));
        }
        let host = self.host_for(frame, h).filter(|_| owned);
        if owned && host.is_none() {
            return Ok((peer, Inbound::Stack));
        }
        if !is_routable(dst) {
            return Err(DropReason::NotRoutable);
        }
        let Some(port) = host.or_else(|| self.ports.by_ip(dst)) else {
            // Never on to another peer: what comes out of the tunnel does not go back into it.
            let (reason, trouble) = match self.is_local(dst) {
                true => (DropReason::NoSuchPod, Trouble::HostUnreachable),
                false => (DropReason::NoRoute, Trouble::NetUnreachable),
            };
            self.complain_to_peer(trouble, packet, now);
            return Err(reason);
        };
        if h.ttl(frame) <= 1 {
            self.complain_to_peer(Trouble::TtlExceeded, packet, now);
            return Err(DropReason::TtlExceeded);
        }
        Ok((peer, Inbound::Port(port)))
    }

    /// The last hop: new MACs, TTL less one, and into the pod.
    fn hand_over(
        &mut self,
        port: PortId,
        memory: &mut [u8],
        (h, vnet): (&Headers, &VnetHdr),
        pieces: &[Span],
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        if port == PortId::SERVICES {
            return self.inward(memory, vnet, pieces, now, exits);
        }
        let mac = self.ports.spec(port).ok_or(DropReason::PortGone)?.mac;
        let gateway = self.settings.local.gateway_mac;
        let frame = pieces.first().copied().unwrap_or_default().of_mut(memory);
        put(frame, 0, &mac.0);
        put(frame, 6, &gateway.0);
        hop(frame, h);
        self.deliver(port, memory, (h, vnet), pieces, now, exits)
    }

    fn heard(&mut self, id: PathId, bytes: usize, now: Instant) {
        let Some(state) = self.peers.state_mut(id.0) else {
            return;
        };
        state.datagrams_from += 1;
        state.bytes_from += bytes as u64;
        let path = state.path_mut(id.1);
        path.last_heard = Some(now);
        if !path.probes.is_settled() {
            let was_silent = path.probes.heard(now);
            self.settled(id, was_silent, now);
        }
    }
}

/// Carry the outer packet's congestion mark over to the inner one (RFC 6040 section 4.2).
fn mark(frame: &mut [u8], h: &Headers, outer: u8) -> Result<(), DropReason> {
    if outer & 3 == 0 || h.l3 == L3::Arp {
        return Ok(());
    }
    let class = h.traffic_class(frame);
    let ecn = overlay::inner_ecn(class, outer).ok_or(DropReason::EcnCongested)?;
    if ecn == class & 3 {
        return Ok(());
    }
    let before = be16(frame, ETH_LEN);
    if h.l3 == L3::Ipv4 {
        let after = before & !3 | u16::from(ecn);
        put_be16(frame, ETH_LEN, after);
        let sum = checksum::update(be16(frame, ETH_LEN + 10), before, after);
        put_be16(frame, ETH_LEN + 10, sum);
    } else {
        // Version 4 bits, traffic class 8, the flow label's first 4.
        put_be16(frame, ETH_LEN, before & !0x30 | u16::from(ecn) << 4);
    }
    Ok(())
}
