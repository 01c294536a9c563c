//! Which backend a new flow goes to.

use super::affinity::Affinity;
use super::conntrack::End;
use super::hash::Rng;
use super::maglev::Maglev;
use super::slab::{NONE, Slab};
use super::table::{Slot, Table};
use crate::model::Scheduler;

/// The usable backends of a Service, as its scheduler needs them.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// In the order of their addresses; for [`Scheduler::LeastConnections`] a heap with the least one first.
    usable: Vec<u32>,
    scheduler: Scheduler,
    maglev: Option<Maglev>,
    /// Choices so far.
    round: u64,
}

impl Choice {
    /// These are usable from now on.
    pub fn set(&mut self, scheduler: Scheduler, usable: Vec<u32>, slots: &mut Slab<Slot>) {
        let same = self.scheduler == scheduler && self.usable == usable;
        let maglev = self.maglev.take().filter(|_| same);
        self.scheduler = scheduler;
        self.usable = usable;
        match scheduler {
            // One for other backends is made when a flow asks for it: a change of a thousand Services makes a thousand of
            // them otherwise, 33 us each for 10 backends, while nothing is forwarded.
            Scheduler::Maglev => self.maglev = maglev,
            Scheduler::LeastConnections => {
                for (place, n) in self.usable.iter().enumerate() {
                    if let Some(slot) = slots.get_mut(*n) {
                        slot.place = place as u32;
                    }
                }
                for place in (0..self.usable.len() / 2).rev() {
                    self.sink(slots, place);
                }
            }
            Scheduler::Random | Scheduler::RoundRobin => {}
        }
    }

    /// Whether no backend is usable.
    pub fn is_empty(&self) -> bool {
        self.usable.is_empty()
    }

    /// Bytes allocated.
    pub fn memory(&self) -> usize {
        self.usable.capacity() * 4 + self.maglev.as_ref().map_or(0, Maglev::memory)
    }

    /// The backend has more flows, or fewer, than it had.
    pub fn moved(&mut self, slots: &mut Slab<Slot>, n: u32) {
        let Some(slot) = slots.get(n).filter(|s| s.place != NONE) else {
            return;
        };
        let place = self.rise(slots, slot.place as usize);
        self.sink(slots, place);
    }

    /// One of them.
    fn next(&mut self, client: End, sticky: bool, slots: &mut Slab<Slot>, rng: &mut Rng) -> Option<u32> {
        let count = self.usable.len();
        if count == 0 {
            return None;
        }
        self.round += 1;
        let place = match self.scheduler {
            Scheduler::Random => rng.below(count),
            Scheduler::RoundRobin => (self.round % count as u64) as usize,
            Scheduler::LeastConnections => 0,
            Scheduler::Maglev => {
                let port = if sticky { 0 } else { client.port };
                self.table(slots)?.choose(client.ip, port)
            }
        };
        let n = *self.usable.get(place)?;
        if let Some(slot) = slots.get_mut(n) {
            slot.chosen = self.round;
        }
        self.moved(slots, n);
        Some(n)
    }

    /// Maglev's table of the usable backends.
    fn table(&mut self, slots: &Slab<Slot>) -> Option<&Maglev> {
        if self.maglev.is_none() {
            let ends = self.usable.iter().filter_map(|n| Some(slots.get(*n)?.at));
            let ends: Vec<_> = ends.collect();
            self.maglev = Maglev::new(ends.into_iter());
        }
        self.maglev.as_ref()
    }

    /// What the heap is ordered by: the fewest flows, and among equals the one whose turn is longest ago, so that flows
    /// that come one by one do not all go to the same one.
    fn weight(&self, slots: &Slab<Slot>, place: usize) -> (u32, u64) {
        let slot = self.usable.get(place).and_then(|n| slots.get(*n));
        slot.map_or((u32::MAX, u64::MAX), |s| (s.open, s.chosen))
    }

    fn swap(&mut self, slots: &mut Slab<Slot>, a: usize, b: usize) {
        self.usable.swap(a, b);
        for place in [a, b] {
            if let Some(slot) = slots.get_mut(self.usable[place]) {
                slot.place = place as u32;
            }
        }
    }

    fn rise(&mut self, slots: &mut Slab<Slot>, mut place: usize) -> usize {
        while place > 0 {
            let above = (place - 1) / 2;
            if self.weight(slots, above) <= self.weight(slots, place) {
                break;
            }
            self.swap(slots, above, place);
            place = above;
        }
        place
    }

    fn sink(&mut self, slots: &mut Slab<Slot>, mut place: usize) {
        loop {
            let below = 2 * place + 1;
            if below >= self.usable.len() {
                break;
            }
            let least = match self.weight(slots, below + 1) < self.weight(slots, below) {
                true => below + 1,
                false => below,
            };
            if self.weight(slots, place) <= self.weight(slots, least) {
                break;
            }
            self.swap(slots, least, place);
            place = least;
        }
    }
}

impl Table {
    /// The backend for a new flow of a client. None when no backend is usable.
    pub fn choose(
        &mut self,
        server: u32,
        client: End,
        affinity: &mut Affinity,
        rng: &mut Rng,
        now: u32,
    ) -> Option<u32> {
        let it = self.servers.get_mut(server)?;
        let lasts = it.what.affinity;
        if let Some(lasts) = lasts
            && let Some((n, serial)) = affinity.lookup(server, client.ip, lasts.into(), now)
            && self.slots.get(n).is_some_and(|s| s.serial == serial && s.usable)
        {
            affinity.remember(server, client.ip, (n, serial), now);
            return Some(n);
        }
        let n = it.choice.next(client, lasts.is_some(), &mut self.slots, rng)?;
        if let Some(serial) = self.slots.get(n).map(|s| s.serial).filter(|_| lasts.is_some()) {
            affinity.remember(server, client.ip, (n, serial), now);
        }
        Some(n)
    }
}
