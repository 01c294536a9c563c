//! What the node itself sends: answers of its gateway, ICMP errors, and probes.

use super::from_pod::Parsed;
use super::recover::{Lent, Suspect};
use super::{Exits, FRAME_ROOM, HEADROOM, Node};
use crate::buf::Arena;
use crate::model::{DropReason, Instant, Mac, PortId};
use crate::stack::{Trouble, icmp};
use crate::switch::neighbour;
use crate::wire::bytes::put;
use crate::wire::{ETH_LEN, Headers};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Packets that wait for the end of the turn.
pub(super) const WAITING: usize = 128;

/// IP packets of the node itself, until [`Node::send_own`]. Buffers are kept for reuse.
#[derive(Debug, Default)]
pub(super) struct Originated {
    slots: Vec<Vec<u8>>,
    len: usize,
    /// Those that are sent, while that goes on.
    sent: usize,
}

impl Originated {
    fn push(&mut self, packet: &[u8]) -> bool {
        self.make(packet.len(), |slot| {
            slot.copy_from_slice(packet);
            true
        })
    }

    /// Put in a packet of so many bytes, which `write` writes into zeros. `false` when it does not, or there is no room.
    pub(super) fn make(&mut self, len: usize, write: impl FnOnce(&mut [u8]) -> bool) -> bool {
        if self.len == WAITING {
            return false;
        }
        if self.len == self.slots.len() {
            self.slots.push(Vec::new());
        }
        let slot = &mut self.slots[self.len];
        slot.clear();
        slot.resize(len, 0);
        let written = write(slot);
        self.len += usize::from(written);
        written
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// For how many more there is room.
    pub(super) fn room(&self) -> usize {
        WAITING - self.len
    }
}

impl Node {
    /// Let the gateway work, and send all packets of the node itself. To be called after each burst.
    pub fn send_own(&mut self, arena: &mut Arena, now: Instant, exits: &mut impl Exits) {
        self.send_onward(arena, now, exits);
        if !self.gateway.is_idle() {
            let (gateway, originated) = (&mut self.gateway, &mut self.originated);
            let (counters, drops) = (&mut self.counters, &mut self.drops);
            gateway.poll(now, |packet| {
                counters.originated += 1;
                if !originated.push(packet) {
                    drops.add(DropReason::StackFull, 1);
                }
            });
        }
        if self.originated.len == 0 {
            return;
        }
        let own = std::mem::take(&mut self.originated);
        let mut lent = Lent::new(self, own, |node, own| node.keep_unsent(own));
        let (node, own) = lent.parts();
        while let Some(packet) = own.slots[..own.len].get(own.sent) {
            own.sent += 1;
            if let Err(reason) = node.send_packet(packet, arena, now, exits) {
                node.drops.add(reason, 1);
            }
        }
    }

    /// After they were sent: what the kernel refused meanwhile may have made errors of its own, and what a panic kept from
    /// being sent is still there. Those go with the next turn.
    fn keep_unsent(&mut self, mut own: Originated) {
        if std::thread::panicking()
            && let Some(packet) = own.sent.checked_sub(1).and_then(|i| own.slots.get(i))
            && let Some(ip) = destination(packet)
        {
            self.suspect = Some(Suspect::Holder(ip));
        }
        let (sent, len) = (own.sent, own.len);
        own.slots[..len].rotate_left(sent);
        (own.len, own.sent) = (len - sent, 0);
        for packet in &self.originated.slots[..self.originated.len] {
            own.push(packet);
        }
        self.originated = own;
    }

    /// Tell the other pods who holds a new port's addresses now. Needed only where MACs were chosen by hand: one
    /// that follows from the address is the same for every holder, and no pod's neighbour table is wrong.
    pub fn announce(&mut self, port: PortId, now: Instant, exits: &mut impl Exits) {
        let Some(spec) = self.ports.spec(port) else { return };
        let (mac, ip4, ip6) = (spec.mac, spec.ip4, spec.ip6);
        let derived = ip4.map(Mac::of_ipv4).or(ip6.map(Mac::of_ipv6));
        self.odd_macs |= Some(mac) != derived;
        if !self.odd_macs {
            return;
        }
        let (mut four, mut six) = ([0; neighbour::ANSWER_LEN], [0; neighbour::ANSWER_LEN]);
        let four_len = ip4
            .and_then(|ip| neighbour::announce_arp(mac, ip, &mut four))
            .unwrap_or(0);
        let six_len = ip6
            .and_then(|ip| neighbour::announce_na(mac, ip, false, &mut six))
            .unwrap_or(0);
        let others: Vec<PortId> = self
            .ports
            .iter()
            .map(|(id, _)| id)
            .filter(|id| *id != port && !self.is_host(*id))
            .collect();
        for frame in [&four[..four_len], &six[..six_len]] {
            for to in others.iter().filter(|_| !frame.is_empty()) {
                self.counters.originated += 1;
                self.write_own(*to, frame, now, exits);
            }
        }
    }

    /// A packet for the node's own addresses.
    pub(super) fn stack(&mut self, memory: &mut [u8], f: &Parsed, now: Instant) -> Result<(), DropReason> {
        // A checksum that is not finished is one of TCP or UDP, which the gateway does not look at.
        let frame = f.span.of(memory);
        let packet = &frame[ETH_LEN..f.h.end];
        if !self.learn(packet, now) {
            self.gateway.input(packet, now)?;
        }
        self.counters.consumed += 1;
        Ok(())
    }

    /// Tell a pod why its packet went nowhere, within its limit, from the gateway's address; the host from the VTEP's.
    pub(super) fn complain(&mut self, port: PortId, trouble: Trouble, packet: &[u8], now: Instant) {
        let local = &self.settings.local;
        // The host has the gateway's address itself, and believes nobody else who speaks from it.
        let source = match self.is_host(port) {
            true => same_family(packet, local.vtep4(), local.vtep6()),
            false => same_family(packet, local.gateway4(), local.gateway6()),
        };
        if self.port(port).is_some_and(|p| p.errors.take(now, 1)) {
            self.error(trouble, packet, source);
        }
    }

    /// Tell a pod what a router, or another host, said of its packet.
    pub(super) fn complain_as(
        &mut self,
        port: PortId,
        trouble: Trouble,
        packet: &[u8],
        by: IpAddr,
        now: Instant,
    ) {
        if self.port(port).is_some_and(|p| p.errors.take(now, 1)) {
            self.error(trouble, packet, Some(by));
        }
    }

    /// Tell a pod of a peer, from the VTEP's address as the last router of the way.
    pub(super) fn complain_to_peer(&mut self, trouble: Trouble, packet: &[u8], now: Instant) {
        let local = &self.settings.local;
        let source = same_family(packet, local.vtep4(), local.vtep6());
        if self.peer_errors.take(now, 1) {
            self.error(trouble, packet, source);
        }
    }

    fn error(&mut self, trouble: Trouble, packet: &[u8], source: Option<IpAddr>) {
        let Some(source) = source else { return };
        let mut out = [0; icmp::ERROR_LEN];
        if let Some(n) = icmp::error(trouble, packet, source, &mut out) {
            self.originate(&out[..n]);
        }
    }

    fn originate(&mut self, packet: &[u8]) {
        self.counters.originated += 1;
        if !self.originated.push(packet) {
            self.drops.add(DropReason::StackFull, 1);
        }
    }

    /// Send an IP packet of the node itself to the pod or peer that holds its destination.
    fn send_packet(
        &mut self,
        packet: &[u8],
        arena: &mut Arena,
        now: Instant,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let ethertype: [u8; 2] = match packet.first().map(|b| b >> 4) {
            Some(4) => [8, 0],
            _ => [0x86, 0xdd],
        };
        if arena.room() < FRAME_ROOM {
            if !self.flush(arena, now, exits) {
                return Err(DropReason::UnderlayFull);
            }
            arena.rewind(0);
        }
        arena.take(HEADROOM);
        let len = ETH_LEN + packet.len();
        put(arena.free_mut(), 0, &[0; 12]);
        put(arena.free_mut(), 12, &ethertype);
        put(arena.free_mut(), ETH_LEN, packet);
        let span = arena.take(len);
        let h = Headers::parse(span.of(arena.memory()))?;
        let dst = h.dst(span.of(arena.memory()));
        if let Some(port) = self.ports.by_ip(dst) {
            let mac = self.ports.spec(port).ok_or(DropReason::PortGone)?.mac;
            let gateway = self.settings.local.gateway_mac;
            let frame = span.of_mut(arena.memory_mut());
            put(frame, 0, &mac.0);
            put(frame, 6, &gateway.0);
            // An error may be about a packet to a Service, which the pod knows by its virtual address.
            self.services.reverse(frame, &h, None, now);
            self.write_own(port, span.of(arena.memory()), now, exits);
            return Ok(());
        }
        let Some(peer) = self.peers.route(dst).filter(|_| !self.is_local(dst)) else {
            return Err(DropReason::NoRoute);
        };
        self.tunnel(None, peer, arena, &Parsed::plain(span, h), now, exits)
    }
}

/// Whom a packet is for.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(*packet.get(16..)?.first_chunk::<4>()?)),
        _ => Some(IpAddr::from(*packet.get(24..)?.first_chunk::<16>()?)),
    }
}

/// The address of the packet's own family.
fn same_family(packet: &[u8], four: Option<Ipv4Addr>, six: Option<Ipv6Addr>) -> Option<IpAddr> {
    match packet.first().map(|b| b >> 4) {
        Some(4) => four.map(IpAddr::V4),
        _ => six.map(IpAddr::V6),
    }
}
