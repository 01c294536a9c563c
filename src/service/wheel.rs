//! When to look at which connection: one list for each second of the next minutes.
//!
//! A packet only notes the time in its connection. The wheel comes by at the time a connection was due when it was put
//! in, and puts it in again if something has passed since; one that may be silent for hours is looked at each
//! [`SLOTS`] seconds. So no packet moves anything, and nobody looks at all connections.

use super::slab::{Linked, List, Slab};

/// Seconds ahead; a power of two.
pub(super) const SLOTS: u32 = 512;

/// The lists, and how far they have been looked through.
#[derive(Debug)]
pub(super) struct Wheel {
    lists: Vec<List>,
    /// A bit for each list that is not empty.
    used: [u64; (SLOTS / 64) as usize],
    /// The second looked at next.
    at: u32,
}

impl Wheel {
    /// An empty one that begins at a second.
    pub fn new(at: u32) -> Wheel {
        Wheel {
            lists: vec![List::default(); SLOTS as usize],
            used: Default::default(),
            at,
        }
    }

    /// Put one in, for `due` or as late as there are lists; never for a second that was looked at already. When it is
    /// looked at then.
    pub fn insert<T: Linked>(&mut self, slab: &mut Slab<T>, n: u32, kind: usize, due: u32) -> u32 {
        let due = due.clamp(self.at, self.at.saturating_add(SLOTS - 1));
        let slot = due % SLOTS;
        self.lists[slot as usize].push(slab, n, kind);
        self.used[(slot / 64) as usize] |= 1 << (slot % 64);
        due
    }

    /// Take out one that is in for `due`.
    pub fn remove<T: Linked>(&mut self, slab: &mut Slab<T>, n: u32, kind: usize, due: u32) {
        let slot = due % SLOTS;
        let list = &mut self.lists[slot as usize];
        list.remove(slab, n, kind);
        if list.first().is_none() {
            self.used[(slot / 64) as usize] &= !(1 << (slot % 64));
        }
    }

    /// The first that is due by the second `now`; it stays in. None moves the wheel past `now`.
    pub fn due(&mut self, now: u32) -> Option<u32> {
        while self.at <= now {
            if let Some(n) = self.lists[(self.at % SLOTS) as usize].first() {
                return Some(n);
            }
            self.at = match self.next() {
                Some(next) => next.min(now.saturating_add(1)),
                None => now.saturating_add(1),
            };
        }
        None
    }

    /// Nothing is in, and it is the second `now`.
    pub fn rest(&mut self, now: u32) {
        self.at = self.at.max(now);
    }

    /// The second at which one is due.
    pub fn next(&self) -> Option<u32> {
        let start = self.at % SLOTS;
        let words = SLOTS / 64;
        for step in 0..=words {
            let word = (start / 64 + step) % words;
            let mut bits = self.used[word as usize];
            // The first word is looked at twice: what is ahead in it, and at the end what lies before.
            let ahead = u64::MAX << (start % 64);
            match step {
                0 => bits &= ahead,
                s if s == words => bits &= !ahead,
                _ => {}
            }
            if bits != 0 {
                let slot = word * 64 + bits.trailing_zeros();
                return Some(self.at + (slot + SLOTS - start) % SLOTS);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::slab::Link;
    use super::*;
    use proptest::prelude::*;

    struct Node(Link, u32);

    impl Linked for Node {
        fn link(&mut self, _: usize) -> &mut Link {
            &mut self.0
        }
    }

    fn node(slab: &mut Slab<Node>, wheel: &mut Wheel, due: u32) -> u32 {
        let n = slab.insert(Node(Link::default(), 0));
        let due = wheel.insert(slab, n, 0, due);
        slab.get_mut(n).unwrap().1 = due;
        n
    }

    proptest! {
        #[test]
        fn each_comes_up_in_its_second_and_not_before(
            start in 0u32..2000,
            steps in proptest::collection::vec((0u32..700, 0u32..600), 1..60),
        ) {
            let (mut slab, mut wheel) = (Slab::default(), Wheel::new(start));
            let mut now = start;
            let mut waiting: Vec<(u32, u32)> = Vec::new();
            for (ahead, pass) in steps {
                let n = node(&mut slab, &mut wheel, now + ahead);
                let due = slab.get(n).unwrap().1;
                prop_assert_eq!(due, (now + ahead).clamp(wheel.at, wheel.at + SLOTS - 1));
                waiting.push((due, n));
                prop_assert_eq!(wheel.next(), waiting.iter().map(|w| w.0).min());
                now += pass;
                while let Some(n) = wheel.due(now) {
                    let at = waiting.iter().position(|w| w.1 == n).unwrap();
                    let (due, _) = waiting.remove(at);
                    prop_assert!(due <= now);
                    wheel.remove(&mut slab, n, 0, due);
                    slab.remove(n);
                }
                prop_assert!(waiting.iter().all(|w| w.0 > now));
            }
        }
    }
}
