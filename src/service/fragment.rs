//! Fragments: only the first one of a packet has ports. What became of it is remembered for the others, in a table of
//! fixed size.

use super::conntrack::age;
use super::hash::Keyed;
use crate::model::Duration;
use crate::wire::bytes::{array, be16, be32};
use crate::wire::{ETH_LEN, Headers, IPV6_LEN, L3};
use std::net::IpAddr;

/// How long the others may take (as Linux's reassembly, net.ipv4.ipfrag_time).
const PATIENCE: Duration = Duration::from_secs(30);
const WAYS: usize = 4;

/// What fragments of a packet have in common (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PacketId {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    ident: u32,
}

impl PacketId {
    /// Of a fragment. None when it is none, or when its fragment header is not found.
    pub fn of(frame: &[u8], h: &Headers) -> Option<PacketId> {
        let ident = match h.l3 {
            L3::Ipv4 => Some(be16(frame, ETH_LEN + 4).into()),
            L3::Ipv6 => ident6(frame, h),
            L3::Arp => None,
        };
        Some(PacketId {
            src: h.src(frame),
            dst: h.dst(frame),
            proto: match h.l3 {
                L3::Ipv4 => h.proto,
                // The first header behind the fragment header may not be the transport's; identifications are enough.
                _ => 0,
            },
            ident: ident.filter(|_| h.fragment)?,
        })
    }
}

/// The identification in the fragment header. The headers before it were found to be all there.
fn ident6(frame: &[u8], h: &Headers) -> Option<u32> {
    let [mut next] = array(frame, ETH_LEN + 6);
    let mut at = ETH_LEN + IPV6_LEN;
    while at + 8 <= h.end {
        let [following, len] = array(frame, at);
        at += match next {
            44 => return Some(be32(frame, at + 4)),
            0 | 43 | 60 => (usize::from(len) + 1) * 8,
            51 => (usize::from(len) + 2) * 4,
            _ => return None,
        };
        next = following;
    }
    None
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    packet: PacketId,
    to: (IpAddr, IpAddr),
    seen: u32,
}

/// Where packets went whose first fragments have passed.
#[derive(Debug)]
pub(super) struct Fragments {
    /// Allocated with the first one.
    entries: Vec<[Option<Entry>; WAYS]>,
    sets: usize,
    keys: Keyed,
}

impl Fragments {
    /// None yet, and never more than about `capacity`; beyond that the oldest gives way.
    pub fn new(capacity: usize, keys: Keyed) -> Fragments {
        let sets = (capacity / WAYS).clamp(1, 1 << 20).next_power_of_two();
        Fragments {
            entries: Vec::new(),
            sets,
            keys,
        }
    }

    /// Bytes allocated.
    pub fn memory(&self) -> usize {
        self.entries.len() * size_of::<[Option<Entry>; WAYS]>()
    }

    /// The addresses the first fragment was given.
    pub fn lookup(&self, packet: &PacketId, now: u32) -> Option<(IpAddr, IpAddr)> {
        let set = self.entries.get(self.set(packet))?;
        let mut own = set.iter().flatten().filter(|e| e.packet == *packet);
        own.next().filter(|e| age(now, e.seen) < PATIENCE).map(|e| e.to)
    }

    /// The first fragment of a packet was given these addresses.
    pub fn remember(&mut self, packet: PacketId, to: (IpAddr, IpAddr), now: u32) {
        if self.entries.is_empty() {
            self.entries = vec![[None; WAYS]; self.sets];
        }
        let at = self.set(&packet);
        let Some(set) = self.entries.get_mut(at) else {
            return;
        };
        let place = match set.iter().position(|e| e.is_some_and(|e| e.packet == packet)) {
            Some(own) => set.get_mut(own),
            None => set
                .iter_mut()
                .min_by_key(|e| e.map_or(0, |e| e.seen.saturating_add(1))),
        };
        if let Some(place) = place {
            let seen = now;
            *place = Some(Entry { packet, to, seen });
        }
    }

    fn set(&self, p: &PacketId) -> usize {
        let hash = self.keys.address(p.ident.into(), p.src);
        self.keys.done(self.keys.address(hash, p.dst)) as usize & (self.sets - 1)
    }
}
