//! Connections that were ended: by a person, or as their backend left. Maglev takes on one in its midst that the node does not know, so that connections
//! outlive their node; these it must not take on again.

use super::hash::Keyed;
use std::collections::{HashMap, VecDeque};

/// Entries looked through in one go.
const BUDGET: usize = 256;

/// Hashes of what their clients send, and for how long they are remembered.
#[derive(Debug)]
pub(super) struct Ended {
    until: HashMap<u64, u32, Keyed>,
    /// In the order in which they were ended, with what was remembered then.
    order: VecDeque<(u64, u32)>,
    capacity: usize,
}

impl Ended {
    /// None yet, and never more than `capacity`: beyond that the first one is forgotten.
    pub fn new(capacity: usize, keys: Keyed) -> Ended {
        Ended {
            until: HashMap::with_hasher(keys),
            order: VecDeque::new(),
            capacity: capacity.max(1),
        }
    }

    /// Bytes allocated.
    pub fn memory(&self) -> usize {
        self.until.capacity() * size_of::<(u64, u32)>() + self.order.capacity() * size_of::<(u64, u32)>()
    }

    /// One is ended; it would have been kept until the second `until`.
    pub fn remember(&mut self, hash: u64, until: u32) {
        if self.order.len() >= self.capacity {
            self.forget_first();
        }
        self.until.insert(hash, until);
        self.order.push_back((hash, until));
    }

    /// Whether one was ended, and not begun again since.
    pub fn knows(&self, hash: u64, now: u32) -> bool {
        self.until.get(&hash).is_some_and(|until| now < *until)
    }

    /// It begins anew.
    pub fn forget(&mut self, hash: u64) {
        if !self.until.is_empty() {
            self.until.remove(&hash);
        }
    }

    /// The second [`Ended::turn`] has something to do in next.
    pub fn next(&self) -> Option<u32> {
        self.order.front().map(|(_, until)| *until)
    }

    /// Forget those whose time is up, some of them at most.
    pub fn turn(&mut self, now: u32) {
        for _ in 0..BUDGET {
            match self.next() {
                Some(until) if until <= now => self.forget_first(),
                _ => break,
            }
        }
        if self.order.is_empty() {
            // Whoever ended so many has had the memory for it.
            self.until.shrink_to_fit();
            self.order.shrink_to_fit();
        }
    }

    fn forget_first(&mut self) {
        // One that began anew may have been ended again since.
        if let Some((hash, until)) = self.order.pop_front()
            && self.until.get(&hash) == Some(&until)
        {
            self.until.remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_ended_is_known_for_its_time_and_no_more_than_fit() {
        let mut ended = Ended::new(4, Keyed::new(1));
        ended.turn(0);
        assert_eq!(ended.memory(), 0);
        ended.remember(7, 100);
        assert!(ended.knows(7, 99) && !ended.knows(7, 100) && !ended.knows(8, 0));
        ended.forget(7);
        assert!(!ended.knows(7, 0));
        ended.remember(7, 200);
        ended.turn(100);
        assert!(ended.knows(7, 100), "ended again since");
        (8..11).for_each(|n| ended.remember(n, 300));
        assert!(ended.knows(7, 100));
        ended.remember(11, 300);
        assert!(!ended.knows(7, 100) && ended.knows(8, 100) && ended.knows(11, 100));
        assert_eq!((ended.until.len(), ended.order.len()), (4, 4));
        ended.turn(300);
        ended.turn(300);
        assert_eq!((ended.until.len(), ended.memory()), (0, 0));
    }
}
