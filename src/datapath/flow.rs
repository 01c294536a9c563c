//! Remembered decisions: a direct-mapped table, so that a lookup is one comparison and nothing is evicted
//! but what shares the slot.

use super::Way;
use crate::model::{Mac, PortId};
use std::net::IpAddr;

/// Slots; a power of two. 96 KiB in all.
const SLOTS: usize = 2048;

/// What a decision depends on, beside the tables: where a frame came from and where it wants to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowKey {
    /// The port it came from.
    pub port: PortId,
    /// Its destination MAC.
    pub mac: Mac,
    /// Its destination address.
    pub dst: IpAddr,
}

#[derive(Clone, Copy)]
struct Entry {
    key: FlowKey,
    way: Way,
    generation: u32,
}

/// Decisions made since the tables last changed. Any change of ports or peers makes all of them void at once
/// ([`forget`](FlowCache::forget)); there is no other invalidation to get wrong.
pub struct FlowCache {
    entries: Vec<Option<Entry>>,
    generation: u32,
}

impl Default for FlowCache {
    fn default() -> FlowCache {
        FlowCache {
            entries: vec![None; SLOTS],
            generation: 0,
        }
    }
}

impl FlowCache {
    /// The decision for `key`, if it was made since the last change.
    #[inline]
    pub fn lookup(&self, key: &FlowKey) -> Option<Way> {
        let entry = self.entries[slot(key)].as_ref()?;
        (entry.generation == self.generation && entry.key == *key).then_some(entry.way)
    }

    /// Remember a decision.
    #[inline]
    pub fn insert(&mut self, key: FlowKey, way: Way) {
        let generation = self.generation;
        self.entries[slot(&key)] = Some(Entry { key, way, generation });
    }

    /// Something changed: no decision made so far may be used.
    pub fn forget(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            // Generations begin anew: entries of the first round must not come back to life.
            self.entries.fill(None);
        }
    }
}

#[inline]
fn slot(key: &FlowKey) -> usize {
    let ip = match key.dst {
        IpAddr::V4(a) => u64::from(u32::from(a)),
        IpAddr::V6(a) => {
            let bits = u128::from(a);
            (bits >> 64) as u64 ^ (bits as u64).rotate_left(17)
        }
    };
    let m = key.mac.0;
    let mac = u64::from_be_bytes([m[0], m[1], m[2], m[3], m[4], m[5], 0, 0]);
    let mixed = (ip ^ mac.rotate_left(29) ^ u64::from(key.port.0) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (64 - SLOTS.trailing_zeros())) as usize
}
