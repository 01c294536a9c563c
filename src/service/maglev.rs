//! Maglev's table (Eisenbud and others, NSDI 2016, section 3.4): each backend takes places in an order of its own, in
//! turn, until all are taken. Every node that knows the same backends has the same table, and a backend that comes or
//! goes takes or leaves about its own share of places.

use super::hash::Keyed;
use std::net::{IpAddr, SocketAddr};

/// Sizes of tables, all prime: the smallest that gives each backend 100 places (the paper's advice), so that their
/// shares differ by some percent, or the largest. Few, since where the size changes all flows move.
const SIZES: [usize; 3] = [2039, 16_381, 65_521];
const PLACES: usize = 100;

/// The same on each node.
const SEED: u64 = 0x6d61_676c_6576;

/// Which backend, by its position, has each place.
#[derive(Debug)]
pub(super) struct Maglev(Box<[u16]>);

impl Maglev {
    /// The table of backends in the order of their addresses. None for no backends; those beyond 65,521 have no place.
    pub fn new(backends: impl ExactSizeIterator<Item = SocketAddr>) -> Option<Maglev> {
        let wanted = backends.len() * PLACES;
        let last = SIZES[SIZES.len() - 1];
        let size = SIZES.into_iter().find(|s| *s >= wanted).unwrap_or(last);
        let keys = Keyed::new(SEED);
        // Where each looks next, and how far it goes from there.
        let mut turns: Vec<(usize, usize)> = backends
            .take(last)
            .map(|at| {
                let hash = client_hash(keys, at.ip(), at.port());
                let skip = keys.word(hash, 1) % (size as u64 - 1) + 1;
                ((hash % size as u64) as usize, skip as usize)
            })
            .collect();
        if turns.is_empty() {
            return None;
        }
        let mut places = vec![u16::MAX; size].into_boxed_slice();
        let mut left = size;
        loop {
            for (n, (at, skip)) in turns.iter_mut().enumerate() {
                // The size is prime, so each order visits all places, and one is free.
                while places[*at] != u16::MAX {
                    // Without a division, which would be most of the work.
                    *at += *skip;
                    if *at >= size {
                        *at -= size;
                    }
                }
                places[*at] = n as u16;
                left -= 1;
                if left == 0 {
                    return Some(Maglev(places));
                }
            }
        }
    }

    /// The position of the backend for a client; with port 0 the same for all its ports.
    pub fn choose(&self, client: IpAddr, port: u16) -> usize {
        let hash = client_hash(Keyed::new(SEED), client, port);
        self.0[(hash % self.0.len() as u64) as usize].into()
    }

    /// Bytes allocated.
    pub fn memory(&self) -> usize {
        self.0.len() * size_of::<u16>()
    }
}

fn client_hash(keys: Keyed, ip: IpAddr, port: u16) -> u64 {
    keys.word(keys.address(0, ip), port.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn backend(n: u32) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::from(0x0af4_0000 + n).into(), 8080)
    }

    #[test]
    fn shares_are_even_and_nobody_is_needed() {
        assert!(Maglev::new([].into_iter()).is_none());
        for n in [1, 3, 10, 20, 150, 600] {
            let table = Maglev::new((0..n).map(backend).collect::<Vec<_>>().into_iter()).unwrap();
            let mut shares = vec![0usize; n as usize];
            table.0.iter().for_each(|b| shares[usize::from(*b)] += 1);
            let fair = table.0.len() / n as usize;
            for share in shares {
                assert!((fair..=fair + 1).contains(&share), "{share} of {fair} for {n}");
            }
        }
    }

    #[test]
    fn a_table_is_the_same_on_every_node() {
        // Held as a number: a change of it breaks clusters whose nodes are of different versions.
        let table = Maglev::new((0..5).map(backend).collect::<Vec<_>>().into_iter()).unwrap();
        let chosen: Vec<usize> = (0..12)
            .map(|n| table.choose(backend(900 + n).ip(), 5000))
            .collect();
        assert_eq!(chosen, [0, 3, 4, 1, 0, 2, 1, 3, 1, 4, 1, 3]);
    }

    proptest! {
        #[test]
        fn few_flows_move(
            hosts in proptest::collection::btree_set(0u32..60_000, 4..60),
            gone in any::<proptest::sample::Index>(),
        ) {
            let before: Vec<SocketAddr> = hosts.into_iter().map(backend).collect();
            let gone = before[gone.index(before.len())];
            let after: Vec<SocketAddr> = before.iter().copied().filter(|b| *b != gone).collect();
            let tables = [&before, &after].map(|b| Maglev::new(b.clone().into_iter()).unwrap());
            prop_assume!(tables[0].0.len() == tables[1].0.len());
            let (mut moved, mut lost) = (0, 0);
            for port in 1..4000u16 {
                let client = backend(70_000).ip();
                let was = before[tables[0].choose(client, port)];
                let is = after[tables[1].choose(client, port)];
                if was == gone {
                    lost += 1;
                } else if was != is {
                    moved += 1;
                }
            }
            // Those of the one that went must move. The others hardly: the paper has some percent.
            prop_assert!(lost > 0);
            prop_assert!(moved < 4000 / 10, "{} of 4000 moved beside {}", moved, lost);
        }
    }
}
