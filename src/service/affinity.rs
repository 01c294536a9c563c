//! Which backend a client's flows go to (`sessionAffinity: ClientIP`): remembered in a table of fixed size, four places
//! for each hash, of which the one that ends first gives way.

use super::conntrack::age;
use super::hash::Keyed;
use crate::model::Duration;
use std::net::IpAddr;

const WAYS: usize = 4;

#[derive(Clone, Copy, Debug)]
struct Entry {
    server: u32,
    client: IpAddr,
    /// Number and serial of the backend.
    backend: (u32, u32),
    /// The second it was last used for a new flow.
    used: u32,
}

/// What is remembered of clients.
#[derive(Debug)]
pub(super) struct Affinity {
    /// Empty until there is a Service that needs it.
    entries: Vec<[Option<Entry>; WAYS]>,
    sets: usize,
    keys: Keyed,
}

impl Affinity {
    /// Nothing yet, and never more than about `capacity`.
    pub fn new(capacity: usize, keys: Keyed) -> Affinity {
        let sets = (capacity / WAYS).clamp(1, 1 << 24).next_power_of_two();
        Affinity {
            entries: Vec::new(),
            sets,
            keys,
        }
    }

    /// Take the memory for it, so that no packet has to wait for that.
    pub fn prepare(&mut self) {
        if self.entries.is_empty() {
            self.entries = vec![[None; WAYS]; self.sets];
        }
    }

    /// Bytes allocated.
    pub fn memory(&self) -> usize {
        self.entries.len() * size_of::<[Option<Entry>; WAYS]>()
    }

    /// The backend a client's last flow went to, if that is not longer ago than `lasts`.
    pub fn lookup(&self, server: u32, client: IpAddr, lasts: Duration, now: u32) -> Option<(u32, u32)> {
        let set = self.entries.get(self.set(server, client))?;
        let known = set.iter().flatten();
        let mut own = known.filter(|e| e.server == server && e.client == client);
        own.next().filter(|e| age(now, e.used) < lasts).map(|e| e.backend)
    }

    /// Its next flow goes there too.
    pub fn remember(&mut self, server: u32, client: IpAddr, backend: (u32, u32), now: u32) {
        let at = self.set(server, client);
        let Some(set) = self.entries.get_mut(at) else {
            return;
        };
        let is_own = |e: &Option<Entry>| e.is_some_and(|e| e.server == server && e.client == client);
        let oldest = |e: &&mut Option<Entry>| e.map_or(0, |e| e.used.saturating_add(1));
        let place = match set.iter().position(is_own) {
            Some(own) => set.get_mut(own),
            None => set.iter_mut().min_by_key(oldest),
        };
        if let Some(place) = place {
            *place = Some(Entry {
                server,
                client,
                backend,
                used: now,
            });
        }
    }

    fn set(&self, server: u32, client: IpAddr) -> usize {
        self.keys.done(self.keys.address(server.into(), client)) as usize & (self.sets - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn the_last_backend_is_remembered_for_a_while_and_no_more_than_fit() {
        let mut table = Affinity::new(64, Keyed::new(1));
        assert_eq!(table.memory(), 0);
        table.prepare();
        let client = |n: u32| Ipv4Addr::from(n).into();
        let lasts = Duration::from_secs(10);
        table.remember(1, client(1), (5, 50), 100);
        assert_eq!(table.lookup(1, client(1), lasts, 109), Some((5, 50)));
        assert_eq!(table.lookup(1, client(1), lasts, 110), None);
        assert_eq!(table.lookup(2, client(1), lasts, 100), None);
        table.remember(1, client(1), (6, 60), 108);
        assert_eq!(table.lookup(1, client(1), lasts, 117), Some((6, 60)));
        let memory = table.memory();
        (0..10_000).for_each(|n| table.remember(3, client(n), (n, n), 120 + n));
        assert_eq!(table.memory(), memory);
        // The newest are those that are kept.
        assert_eq!(
            table.lookup(3, client(9_999), lasts, 10_120),
            Some((9_999, 9_999))
        );
        let kept = (0..10_000).filter(|n| {
            table
                .lookup(3, client(*n), Duration::from_secs(1 << 20), 10_120)
                .is_some()
        });
        assert!(kept.count() <= 64);
    }
}
