//! News of the store: what a watch tells and what a list shows, compared with what is known in one place.

use super::known::{Place, after};
use super::machine::{AFTER_BREAK, Cluster, REMEMBER, TICK};
use super::proof::{SECOND_LOOK, Sight};
use super::talk::Listing;
use super::{Entry, Revision, StoreError, SubnetKey, Watched};
use crate::model::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet};

impl Cluster {
    pub(super) fn watch_begun(&mut self, now: Instant) {
        if let Some(watch) = &mut self.talk.watch {
            watch.since = Some(now);
        }
        if std::mem::take(&mut self.talk.broken) {
            // The store may have been replaced. A lease that is still there says that it was not.
            match self.own_lease(now) {
                Some(_) => self.own.check(now),
                None => {
                    let ms = AFTER_BREAK.total_millis();
                    self.talk.list_by(now + Duration::from_millis(self.rng.below(ms)));
                }
            }
        }
    }

    pub(super) fn watch_ended(&mut self, id: u64, why: StoreError, now: Instant) {
        if self.talk.watch.as_ref().is_none_or(|w| w.id != id) {
            return;
        }
        let compacted = why == StoreError::Compacted;
        self.talk.hear::<()>(&Err(why.clone()), now);
        if self.talk.watch_failed(compacted, now, &mut self.rng) {
            match compacted {
                true => log::info!("the store compacted what changed meanwhile: listing all leases"),
                false => log::info!("the watch of the store broke: {why}; beginning it again"),
            }
        }
    }

    pub(super) fn watched(&mut self, id: u64, revision: Revision, mut changes: Vec<Watched>, now: Instant) {
        if self.talk.watch.as_ref().is_none_or(|w| w.id != id) {
            return;
        }
        self.talk.hear(&Ok(()), now);
        self.talk.watched();
        let applied = self.known.revision;
        if changes.is_empty() {
            self.known.revision = applied.max(revision);
        }
        changes.sort_by_key(Watched::modified);
        let mut gone = BTreeMap::new();
        for change in changes {
            let modified = change.modified();
            self.known.highest = self.known.highest.max(modified);
            if modified < applied {
                continue;
            }
            self.known.revision = self.known.revision.max(modified);
            match (self.known.place(change.key()), &change) {
                (Place::Config, Watched::Put(entry)) => self.configured(Some(&entry.value), modified, now),
                (Place::Config, Watched::Deleted { .. }) => self.configured(None, modified, now),
                (Place::Strange(why), Watched::Put(entry)) => self.known.note(&entry.key, why),
                (Place::Strange(_), Watched::Deleted { key, .. }) => self.known.forget(key),
                (Place::Subnet(key), Watched::Put(entry)) => {
                    gone.remove(&key);
                    self.put(key, entry, now);
                }
                (Place::Subnet(key), Watched::Deleted { key: whole, .. }) => {
                    self.known.forget(whole);
                    if let Some(listing) = &mut self.talk.list {
                        listing.deleted.insert(key, modified);
                    }
                    match self.known.leases.get_mut(&key) {
                        Some(lease) if lease.modified < modified => {
                            // What is older must not bring it back.
                            lease.modified = modified;
                            gone.insert(key, ());
                        }
                        _ => {}
                    }
                }
            }
        }
        self.remove(gone.into_keys().collect(), now);
    }

    /// The lease is in the store like that.
    fn put(&mut self, key: SubnetKey, entry: &Entry, now: Instant) {
        let own = self.own.subnet == Some(key);
        if own {
            self.own.shown(entry.modified);
        }
        if self
            .known
            .leases
            .get(&key)
            .is_some_and(|l| l.modified >= entry.modified)
        {
            return;
        }
        self.dirty |= self.known.put(key, entry, own, now);
        if own && entry.lease != 0 && entry.ttl_s.is_none() {
            self.own.check(now);
        }
    }

    fn configured(&mut self, value: Option<&[u8]>, at: Revision, now: Instant) {
        if self.config.set(value, at) {
            self.dirty = true;
            if self.own.subnet.is_some() {
                self.remember_by(now);
            }
        }
    }

    /// These leases are seen to be gone. The own one goes at once, since it is taken again; of the others, many at
    /// once wait for a second look.
    fn remove(&mut self, mut gone: Vec<SubnetKey>, now: Instant) {
        if let Some(at) = gone.iter().position(|key| self.own.subnet == Some(*key)) {
            let key = gone.swap_remove(at);
            if self.known.leases.remove(&key).is_some() {
                log::warn!("this node's lease of {key} is gone from the store; taking it again");
                self.own.gone();
                self.dirty = true;
            }
        }
        gone.retain(|key| self.known.leases.get(key).is_some_and(|l| l.gone.is_none()));
        if gone.is_empty() {
            return;
        }
        let of = self.known.leases.len() - usize::from(self.own_is_known());
        if self.proof.believe(gone.len(), of, now) {
            self.dirty = true;
            for key in &gone {
                self.known.leases.remove(key);
            }
            return;
        }
        log::warn!(
            "{} of {of} leases are gone from the store at once; their nodes stay peers until it is asked again",
            gone.len()
        );
        for key in &gone {
            if let Some(lease) = self.known.leases.get_mut(key) {
                lease.gone = Some(now);
            }
        }
        self.talk.list_by(now + SECOND_LOOK);
    }

    fn own_is_known(&self) -> bool {
        self.own
            .subnet
            .is_some_and(|key| self.known.leases.contains_key(&key))
    }

    pub(super) fn listed(
        &mut self,
        listing: &Listing,
        cluster: u64,
        revision: Revision,
        config: Option<&[u8]>,
        entries: &[Entry],
        now: Instant,
    ) {
        let placed = entries.iter().map(|e| (self.known.place(&e.key), e));
        let (mut leases, mut strange) = (Vec::new(), Vec::new());
        for (place, entry) in placed {
            match place {
                Place::Subnet(key) => leases.push((key, entry)),
                Place::Strange(why) => strange.push((entry, why)),
                Place::Config => {}
            }
        }
        let mut deleted = &listing.deleted;
        let none = BTreeMap::new();
        let own = self.own.subnet;
        let sight = self
            .proof
            .sight(&self.known, listing, (cluster, revision), &leases, own, now);
        match sight {
            Sight::Later => {}
            Sight::Earlier => {
                self.talk.list_proved_nothing(now + SECOND_LOOK);
                return;
            }
            Sight::Another(why) => {
                let n = self.known.leases.len();
                log::warn!("the store is not what it was: {why}; {n} leases are carried on from before");
                self.replaced = Some(why);
                self.known.carry(after(now, self.options.ttl_s) + TICK);
                // What the store does not have is published again, and what it has goes before what is carried.
                if let Some(key) = self.own.subnet {
                    self.known.leases.remove(&key);
                }
                self.known.revision = revision;
                self.known.highest = revision;
                self.config.restart();
                deleted = &none;
                self.talk.watch_anew(now);
                self.dirty = true;
            }
        }
        if self.known.cluster != Some(cluster) {
            self.known.cluster = Some(cluster);
            self.remember_by(now + REMEMBER);
        }
        self.known.forget_strange();
        for (entry, why) in strange {
            self.known.note(&entry.key, why);
        }
        self.configured(config, revision, now);
        self.compare(deleted, revision, &leases, now);
        self.known.revision = self.known.revision.max(revision);
        self.known.highest = self.known.highest.max(revision);
        self.own.looked();
        self.talk.listed(now, &mut self.rng);
    }

    /// Apply the difference between a list and what is known.
    fn compare(
        &mut self,
        deleted: &BTreeMap<SubnetKey, Revision>,
        revision: Revision,
        leases: &[(SubnetKey, &Entry)],
        now: Instant,
    ) {
        let mut there = BTreeSet::new();
        for (key, entry) in leases {
            there.insert(*key);
            let deleted = deleted.get(key).is_some_and(|r| *r >= entry.modified);
            let overtaken = self.known.leases.get(key).is_some_and(|l| l.modified > revision);
            if deleted || overtaken {
                continue;
            }
            let own = self.own.subnet == Some(*key);
            if own {
                self.own.shown(entry.modified);
            }
            self.dirty |= self.known.put(*key, entry, own, now);
            if own && entry.lease != 0 && entry.ttl_s.is_none() {
                self.own.check(now);
            }
        }
        let mut gone = Vec::new();
        let mut confirmed = 0;
        let mut wait = None;
        self.known.leases.retain(|key, lease| {
            let over = lease.carried.is_none_or(|until| until <= now);
            if there.contains(key) || lease.modified > revision || !over {
                return true;
            }
            match lease.gone {
                Some(since) if now >= since + SECOND_LOOK => {
                    confirmed += 1;
                    return false;
                }
                Some(since) => wait = Some(since + SECOND_LOOK),
                None => gone.push(*key),
            }
            true
        });
        if confirmed > 0 {
            log::warn!(
                "a second list says so too: {confirmed} leases are gone, and their nodes no longer peers"
            );
            self.dirty = true;
        }
        if let Some(at) = wait {
            self.talk.list_by(at);
        }
        self.remove(gone, now);
    }
}

impl Watched {
    fn modified(&self) -> Revision {
        match self {
            Watched::Put(entry) => entry.modified,
            Watched::Deleted { modified, .. } => *modified,
        }
    }

    fn key(&self) -> &[u8] {
        match self {
            Watched::Put(entry) => &entry.key,
            Watched::Deleted { key, .. } => key,
        }
    }
}
