//! Hashes and random numbers: small, fast, and of a given seed.
//!
//! Pods choose addresses and ports, and with them what shares a bucket; so tables on a node hash with keys of the node's
//! own. Maglev must choose the same on each node and hashes with fixed ones.

use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Keys of a hash function: multiply to 128 bits and fold, as wyhash and foldhash do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keyed(u64, u64);

impl Keyed {
    /// The keys of a seed.
    pub fn new(seed: u64) -> Keyed {
        let mut rng = Rng::new(seed);
        Keyed(rng.next(), rng.next() | 1)
    }

    /// One word more into a hash.
    #[inline]
    pub fn word(self, state: u64, word: u64) -> u64 {
        let product = u128::from(state ^ word ^ self.0) * u128::from(self.1 ^ word.rotate_left(32));
        (product as u64 ^ (product >> 64) as u64).wrapping_add(ODD)
    }

    /// The hash when all is in. What goes in is often a row of numbers, ports above all; without this what comes out is one
    /// as well, in steps, which then hit few of the places of a table.
    #[inline]
    pub fn done(self, state: u64) -> u64 {
        scramble(state)
    }

    /// An address more into a hash.
    #[inline]
    pub fn address(self, state: u64, ip: IpAddr) -> u64 {
        match ip {
            IpAddr::V4(a) => self.word(state, u64::from(u32::from(a))),
            IpAddr::V6(a) => {
                let bits = u128::from(a);
                let state = self.word(state, (bits >> 64) as u64);
                self.word(state, bits as u64 ^ ODD)
            }
        }
    }
}

impl BuildHasher for Keyed {
    type Hasher = State;

    fn build_hasher(&self) -> State {
        State {
            keys: *self,
            state: ODD,
        }
    }
}

/// A hash of whatever derives `Hash`.
pub(super) struct State {
    keys: Keyed,
    state: u64,
}

impl Hasher for State {
    fn finish(&self) -> u64 {
        self.keys.done(self.state)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, v: u8) {
        self.write_u64(v.into());
    }

    fn write_u16(&mut self, v: u16) {
        self.write_u64(v.into());
    }

    fn write_u32(&mut self, v: u32) {
        self.write_u64(v.into());
    }

    fn write_u64(&mut self, v: u64) {
        self.state = self.keys.word(self.state, v);
    }

    fn write_usize(&mut self, v: usize) {
        self.write_u64(v as u64);
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): good enough to spread flows, and 8 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next one.
    #[inline]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(ODD);
        scramble(self.0)
    }

    /// One of `0..n`, with equal chances as far as matters for an `n` below 2^32; 0 when there are none.
    #[inline]
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// SplitMix64's own mixing: each bit depends on all.
#[inline]
fn scramble(z: u64) -> u64 {
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn neighbours_spread_and_seeds_differ() {
        let buckets = |seed| {
            let keys = Keyed::new(seed);
            let mut counts = [0u32; 256];
            for n in 0..25_600u32 {
                let hash = keys.address(0, Ipv4Addr::from(0x0af4_0000 + n).into());
                counts[(hash & 255) as usize] += 1;
            }
            counts
        };
        let counts = buckets(1);
        assert!(counts.iter().all(|c| (40..=180).contains(c)), "{counts:?}");
        assert_ne!(counts, buckets(2));
    }

    #[test]
    fn numbers_stay_below_their_bound() {
        let mut rng = Rng::new(7);
        let mut counts = [0; 10];
        (0..10_000).for_each(|_| counts[rng.below(10)] += 1);
        assert!(counts.iter().all(|c| (800..1200).contains(c)), "{counts:?}");
        assert_eq!(rng.below(0), 0);
    }
}
