//! When each flow has something to do although nothing happens.

use crate::model::Instant;

/// A time for each number that has one: a heap in which every number knows its place, so that setting and clearing
/// take no memory but for numbers higher than any before.
#[derive(Default)]
pub(super) struct Timers {
    /// No time is before that of the one at half its place.
    heap: Vec<(Instant, u32)>,
    /// Places in the heap.
    places: Vec<Option<usize>>,
}

impl Timers {
    /// The earliest time.
    pub fn first(&self) -> Option<Instant> {
        self.heap.first().map(|(at, _)| *at)
    }

    /// When it is this number's time.
    pub fn of(&self, id: u32) -> Option<Instant> {
        let place = self.places.get(id as usize).copied().flatten()?;
        self.heap.get(place).map(|(at, _)| *at)
    }

    /// Set the time of a number, which may have one.
    pub fn set(&mut self, id: u32, at: Instant) {
        if self.places.len() <= id as usize {
            self.places.resize(id as usize + 1, None);
        }
        let place = match self.places[id as usize] {
            Some(place) => place,
            None => {
                self.heap.push((at, id));
                self.heap.len() - 1
            }
        };
        self.heap[place] = (at, id);
        self.sift(place);
    }

    /// A number has no time any more.
    pub fn clear(&mut self, id: u32) {
        let Some(place) = self.places.get_mut(id as usize).and_then(Option::take) else {
            return;
        };
        self.heap.swap_remove(place);
        if place < self.heap.len() {
            self.sift(place);
        }
    }

    /// A number whose time has come; it has none any more.
    pub fn pop(&mut self, now: Instant) -> Option<u32> {
        let (at, id) = *self.heap.first()?;
        (at <= now).then(|| self.clear(id))?;
        Some(id)
    }

    /// Move what is at a place to where it belongs.
    fn sift(&mut self, mut place: usize) {
        while place > 0 && self.heap[place] < self.heap[(place - 1) / 2] {
            self.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
        loop {
            let below = 2 * place + 1..(2 * place + 3).min(self.heap.len());
            let Some(least) = below.min_by_key(|b| self.heap[*b]) else {
                break;
            };
            if self.heap[place] <= self.heap[least] {
                break;
            }
            self.swap(place, least);
            place = least;
        }
        self.places[self.heap[place].1 as usize] = Some(place);
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        for place in [a, b] {
            self.places[self.heap[place].1 as usize] = Some(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_table_with_a_first(
            steps in proptest::collection::vec((0..3u8, 0..20u32, 0..50i64), 0..300),
        ) {
            let (mut timers, mut model) = (Timers::default(), BTreeMap::new());
            for (kind, id, at) in steps {
                let time = Instant::from_millis(at);
                match kind {
                    0 => {
                        timers.set(id, time);
                        model.insert(id, time);
                    }
                    1 => {
                        timers.clear(id);
                        model.remove(&id);
                    }
                    _ => {
                        let first = model.values().copied().min().filter(|at| *at <= time);
                        let popped = timers.pop(time);
                        prop_assert_eq!(popped.and_then(|id| model.remove(&id)), first);
                    }
                }
                prop_assert_eq!(timers.first(), model.values().copied().min());
                prop_assert_eq!(timers.heap.len(), model.len());
                for id in 0..20 {
                    prop_assert_eq!(timers.of(id), model.get(&id).copied());
                }
            }
        }
    }
}
