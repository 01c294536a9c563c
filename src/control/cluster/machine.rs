//! What happens, in order: events in, what follows from them out.

use super::backoff::Rng;
use super::config::Config;
use super::known::{Known, Place, after};
use super::own::{Own, Standing, Step, View, vtep_mac};
use super::peers::{Ours, PeerTable};
use super::proof::{Proof, SECOND_LOOK, Sight};
use super::talk::{Listing, Talk};
use super::{Answer, Ask, Entry, Event, Identity, Membership, Options, Output, Remembered, Revision};
use super::{StoreError, SubnetKey, Watched};
use crate::model::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet};

/// The machine wakes up at least this often...
const TICK: Duration = Duration::from_secs(60);
/// ...and one that comes so much later was stopped, and has old news.
const STOPPED: Duration = Duration::from_secs(15);
/// What peers do is kept on disk once in so long.
const REMEMBER: Duration = Duration::from_secs(1);
/// How long the end of a node waits for the store.
const STOP: Duration = Duration::from_secs(5);
/// When there is nothing to take, look again after so long.
const STUCK: Duration = Duration::from_secs(60);
/// After a lost connection to the store, list within so long where nothing quicker shows whether it is the same.
const AFTER_BREAK: Duration = Duration::from_secs(30);

/// A node's membership: a state machine without a clock or a connection.
///
/// Its shell calls [`Cluster::poll`] at first and at [`Cluster::deadline`], [`Cluster::on`] for what happens, and
/// does what comes out, in order. `now` is monotonic; a smaller one than before counts as the one before.
#[derive(Debug)]
pub struct Cluster {
    pub(super) me: Identity,
    pub(super) options: Options,
    rng: Rng,
    pub(super) clock: Instant,
    tick_at: Option<Instant>,
    start: Option<Remembered>,
    pub(super) talk: Talk,
    pub(super) known: Known,
    pub(super) proof: Proof,
    pub(super) config: Config,
    pub(super) own: Own,
    pub(super) peers: PeerTable,
    /// How the present store came in the place of the one before.
    pub(super) replaced: Option<&'static str>,
    /// Peers are to be made anew.
    dirty: bool,
    remember_at: Option<Instant>,
    /// The subnet was given back.
    pub(super) released: bool,
    pub(super) ready: bool,
    pub(super) allocate: bool,
    pub(super) stop: Stop,
}

/// The end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    No,
    /// Until then at the latest; first the subnet is given back, if so wanted.
    Wanted {
        release: bool,
        by: Instant,
    },
    Done,
}

impl Cluster {
    /// A node that was not yet started: the first [`Cluster::poll`] does. `remembered` is what it kept when it ran
    /// last; `seed` gives it its chance.
    pub fn new(me: Identity, remembered: Option<Remembered>, options: Options, seed: u64) -> Cluster {
        Cluster {
            known: Known::new(&options.prefix),
            me,
            options,
            rng: Rng::new(seed),
            clock: Instant::from_micros(i64::MIN),
            tick_at: None,
            start: remembered,
            talk: Talk::default(),
            proof: Proof::default(),
            config: Config::default(),
            own: Own::default(),
            peers: PeerTable::default(),
            replaced: None,
            dirty: false,
            remember_at: None,
            released: false,
            ready: false,
            allocate: true,
            stop: Stop::No,
        }
    }

    /// Something happened. What follows is pushed to `out`.
    pub fn on(&mut self, event: Event, now: Instant, out: &mut Vec<Output>) {
        let now = self.begin(now, out);
        match event {
            _ if self.stop == Stop::Done => return,
            Event::Done { id, answer } => self.done(id, answer, now, out),
            Event::Watched {
                id,
                revision,
                changes,
            } => self.watched(id, revision, changes, now),
            Event::WatchEnded { id, why } => self.watch_ended(id, why, now),
            Event::Address {
                public_ip,
                public_ip6,
            } => {
                self.own.address(self.me.public_ip);
                self.me.public_ip = public_ip;
                self.me.public_ip6 = public_ip6;
                self.dirty = true;
            }
            Event::Stop { release } => {
                if self.stop == Stop::No {
                    self.stop = Stop::Wanted {
                        release,
                        by: now + STOP,
                    };
                }
            }
        }
        self.settle(now, out);
    }

    /// Do what is due.
    pub fn poll(&mut self, now: Instant, out: &mut Vec<Output>) {
        let now = self.begin(now, out);
        if self.stop != Stop::Done {
            self.settle(now, out);
        }
    }

    /// When [`Cluster::poll`] is to be called next, whatever happens before; none when the node has stopped.
    pub fn deadline(&self) -> Option<Instant> {
        let timers = match self.stop {
            Stop::Done => return None,
            Stop::Wanted { by, .. } => [Some(by), None, None, None],
            Stop::No => [
                self.tick_at,
                self.talk.deadline(),
                self.own.deadline(&self.view(self.clock), self.talk.may_write()),
                self.remember_at,
            ],
        };
        Some(timers.into_iter().flatten().min().unwrap_or(self.clock))
    }

    pub(super) fn view(&self, now: Instant) -> View<'_> {
        View {
            me: &self.me,
            options: &self.options,
            network: self.config.running.as_ref().or(self.config.network.as_ref()),
            known: &self.known,
            now,
        }
    }

    fn begin(&mut self, now: Instant, out: &mut Vec<Output>) -> Instant {
        let now = now.max(self.clock);
        self.clock = now;
        match self.tick_at {
            None => self.begin_first(now, out),
            Some(at) if now >= at + STOPPED => {
                log::info!(
                    "this process stood still for {} s or more: looking at the store first",
                    (now - at).secs()
                );
                self.talk.look(now);
            }
            Some(_) => {}
        }
        if self.tick_at.is_none_or(|at| now >= at) {
            self.tick_at = Some(now + TICK);
        }
        now
    }

    fn begin_first(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.talk.list_by(now);
        if let Some(remembered) = self.start.take()
            && let Some(key) = self.recall(remembered, now)
        {
            self.acquire(key, out);
        }
    }

    /// The subnet is this node's from now on.
    fn acquire(&mut self, key: SubnetKey, out: &mut Vec<Output>) {
        let Some(network) = self.config.network.clone() else {
            return;
        };
        log::info!("this node's subnet is {key}");
        self.own.subnet = Some(key);
        self.config.running = Some(network.clone());
        self.dirty = true;
        self.remember_at = Some(self.clock);
        out.push(Output::Acquired(Membership { network, subnet: key }));
    }

    /// Ask for what is due, tell what changed.
    fn settle(&mut self, now: Instant, out: &mut Vec<Output>) {
        if let Stop::Wanted { release, by } = self.stop {
            self.finish(release, by, now, out);
            return;
        }
        // Each step but the last leads to another state of the own lease.
        for _ in 0..2 {
            if !self.talk.may_write() {
                break;
            }
            match self.with_own(|own, view, rng| own.step(view, rng), now) {
                Some(Step::Accept(key)) => self.acquire(key, out),
                Some(Step::Write(ask)) => self.talk.write(ask, out),
                Some(Step::Stuck(_)) => {
                    self.talk.list_by(now + STUCK);
                    break;
                }
                None => break,
            }
        }
        if self.own.is_check_due(now) {
            self.check(now, out);
        }
        self.talk.ask(now, self.known.revision, self.known.highest, out);
        self.tell(now, out);
    }

    /// Call `f` of the own lease with what it depends on.
    fn with_own<T>(&mut self, f: impl FnOnce(&mut Own, &View, &mut Rng) -> T, now: Instant) -> T {
        let view = View {
            me: &self.me,
            options: &self.options,
            network: self.config.running.as_ref().or(self.config.network.as_ref()),
            known: &self.known,
            now,
        };
        f(&mut self.own, &view, &mut self.rng)
    }

    /// Look whether the own lease lives, and whether what was written last is there.
    fn check(&mut self, now: Instant, out: &mut Vec<Output>) {
        let lease = self.own.subnet.and_then(|key| self.known.leases.get(&key));
        if let (Some(lease), None) = (lease.filter(|l| l.lease != 0), &self.talk.left) {
            let lease = lease.lease;
            self.talk.ask_left(lease, out);
        }
        if self.own.is_unseen() && self.talk.watch.is_some() {
            self.talk.look(now);
        }
    }

    /// Tell what changed.
    fn tell(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.tell_peers(now, out);
        if self.remember_at.is_some_and(|t| t <= now) {
            self.remember_at = None;
            out.push(Output::Remember);
        }
    }

    fn tell_peers(&mut self, now: Instant, out: &mut Vec<Output>) {
        let (Some(key), Some(network)) = (self.own.subnet, self.config.running.as_ref()) else {
            return;
        };
        let standing = self.own.standing(&self.view(now));
        if std::mem::take(&mut self.dirty) {
            let mine = self.known.leases.get(&key).filter(|_| standing == Standing::Mine);
            let ours = Ours {
                key,
                age: mine.map(|l| l.age()),
                me: &self.me,
                vtep_mac: vtep_mac(&self.me, &key),
            };
            let changes = self.peers.rebuild(&self.known, &ours, network);
            if !changes.is_empty() {
                out.push(Output::Peers(changes));
                self.remember_by(now + REMEMBER);
            }
        }
        let allocate = !matches!(standing, Standing::Other(_)) && self.peers.rival.is_none();
        if allocate != self.allocate {
            self.allocate = allocate;
            out.push(Output::Allocate(allocate));
        }
        if !self.ready && self.talk.based && standing == Standing::Mine {
            self.ready = true;
            out.push(Output::Ready);
        }
    }

    fn remember_by(&mut self, at: Instant) {
        self.remember_at = Some(self.remember_at.map_or(at, |t| t.min(at)));
    }

    /// The end: what is to be kept, the subnet given back if wanted.
    fn finish(&mut self, release: bool, by: Instant, now: Instant, out: &mut Vec<Output>) {
        if self.talk.write.is_some() && now < by {
            return;
        }
        let own = self.own.subnet.filter(|_| release && now < by);
        if let Some(key) = own
            && let Some(lease) = self.known.leases.get(&key)
            && self.own.standing(&self.view(now)) == Standing::Mine
        {
            let modified = lease.modified;
            self.talk.write(Ask::Delete { key, modified }, out);
            self.stop = Stop::Wanted { release: false, by };
            return;
        }
        if self.remember_at.take().is_some() {
            out.push(Output::Remember);
        }
        self.stop = Stop::Done;
        out.push(Output::Stopped);
    }

    fn done(&mut self, id: u64, answer: Result<Answer, StoreError>, now: Instant, out: &mut Vec<Output>) {
        if let Some(listing) = self.talk.list.take_if(|l| l.id == id) {
            self.talk.hear(&answer, now);
            match answer {
                Ok(Answer::Listed {
                    cluster,
                    revision,
                    config,
                    entries,
                }) => {
                    self.listed(&listing, cluster, revision, config.as_deref(), &entries, now);
                }
                _ => self.talk.list_failed(now, &mut self.rng),
            }
        } else if self.talk.watch.as_ref().is_some_and(|w| w.id == id) {
            self.talk.hear(&answer, now);
            match answer {
                Ok(Answer::Watching) => self.watch_begun(now),
                Ok(_) => self.watch_ended(id, StoreError::Other("no answer to a watch".into()), now),
                Err(why) => self.watch_ended(id, why, now),
            }
        } else if let Some(request) = self.talk.write.take_if(|w| w.id == id) {
            self.talk.hear(&answer, now);
            self.written(request.what, answer, now, out);
        } else if let Some((_, lease)) = self.talk.left.take_if(|(i, _)| *i == id) {
            self.talk.hear(&answer, now);
            let own = self.own.subnet.and_then(|key| self.known.leases.get_mut(&key));
            let own = own.filter(|l| l.lease == lease);
            match (answer, own) {
                (Ok(Answer::Left { ttl_s: Some(s) }), Some(own)) if s > 0 => {
                    own.expires = Some(after(now, s))
                }
                // A lease that ended and a key that is there do not go together.
                (Ok(Answer::Left { .. }), Some(_)) => self.talk.look(now),
                (Ok(_), _) => {}
                (Err(_), _) => self.own.check(now + AFTER_BREAK),
            }
        }
    }

    fn written(&mut self, ask: Ask, answer: Result<Answer, StoreError>, now: Instant, out: &mut Vec<Output>) {
        match (&ask, answer) {
            (Ask::Create { key, value, ttl_s }, Ok(Answer::Written { revision, lease })) => {
                self.put_own(*key, value, Some(*ttl_s), (revision, lease), now);
                if self.own.subnet.is_none() {
                    match key.net6 {
                        // Nodes that pair subnets otherwise may have taken one of the two: look before using it.
                        Some(_) => self.talk.look(now),
                        None => self.acquire(*key, out),
                    }
                }
            }
            (
                Ask::Renew {
                    key, value, ttl_s, ..
                },
                Ok(Answer::Written { revision, lease }),
            ) => {
                self.put_own(*key, value, *ttl_s, (revision, lease), now);
                if self.own.subnet.is_none() {
                    self.acquire(*key, out);
                }
            }
            (Ask::Delete { key, .. }, Ok(Answer::Deleted)) => {
                self.known.leases.remove(key);
                self.dirty = true;
                if self.own.subnet == Some(*key) {
                    log::info!("this node's subnet {key} is given back");
                    self.released = true;
                    self.remember_at = Some(now);
                }
            }
            (ask, Ok(Answer::Otherwise)) => {
                if self.own.otherwise(ask, &self.options, now, &mut self.rng) {
                    self.talk.look(now);
                }
            }
            (ask, answer) => {
                let why = answer
                    .err()
                    .map_or("no answer to a write".into(), |e| e.to_string());
                log::debug!("writing this node's lease: {why}");
                self.with_own(|own, view, rng| own.failed(ask, why, view, rng), now);
                self.talk.look(now);
            }
        }
    }

    /// The own lease is as it was written.
    fn put_own(
        &mut self,
        key: SubnetKey,
        value: &[u8],
        ttl_s: Option<i64>,
        (revision, lease): (Revision, i64),
        now: Instant,
    ) {
        let before = self.known.leases.get(&key);
        let created = before
            .filter(|l| l.carried.is_none())
            .map_or(revision, |l| l.created);
        let entry = Entry {
            key: key.etcd_key(&self.options.prefix).into_bytes(),
            value: value.into(),
            created,
            modified: revision,
            lease,
            ttl_s,
        };
        self.dirty |= self.known.put(key, &entry, true, now);
        self.with_own(|own, view, rng| own.wrote(revision, view, rng), now);
    }

    fn watch_begun(&mut self, now: Instant) {
        if let Some(watch) = &mut self.talk.watch {
            watch.since = Some(now);
        }
        if std::mem::take(&mut self.talk.broken) {
            // The store may have been replaced. A lease that is still there says that it was not.
            let own = self.own.subnet.and_then(|key| self.known.leases.get(&key));
            match own {
                Some(own) if own.lease != 0 => self.own.check(now),
                _ => {
                    let ms = AFTER_BREAK.total_millis();
                    self.talk.list_by(now + Duration::from_millis(self.rng.below(ms)));
                }
            }
        }
    }

    fn watch_ended(&mut self, id: u64, why: StoreError, now: Instant) {
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

    fn watched(&mut self, id: u64, revision: Revision, mut changes: Vec<Watched>, now: Instant) {
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

    fn listed(
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
        match self
            .proof
            .sight(&self.known, listing, (cluster, revision), &leases, now)
        {
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
            let known = self.known.leases.get(key);
            if deleted || known.is_some_and(|l| l.modified > entry.modified) {
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
