//! What happens, in order: events in, what follows from them out.

use super::backoff::Rng;
use super::config::Config;
use super::known::{Known, after};
use super::own::{Own, Standing, Step, View, vtep_mac};
use super::peers::{Ours, PeerTable};
use super::proof::Proof;
use super::talk::Talk;
use super::{
    Answer, Ask, Entry, Event, Identity, LeaseId, Membership, Options, Output, Remembered, Revision,
};
use super::{StoreError, SubnetKey};
use crate::model::{Duration, Instant};

/// The machine wakes up at least this often...
pub(super) const TICK: Duration = Duration::from_secs(60);
/// ...and one that comes so much later was stopped, and has old news.
const STOPPED: Duration = Duration::from_secs(15);
/// What peers do is kept on disk once in so long.
pub(super) const REMEMBER: Duration = Duration::from_secs(1);
/// How long the end of a node waits for the store.
const STOP: Duration = Duration::from_secs(5);
/// When there is nothing to take, look again after so long.
const STUCK: Duration = Duration::from_secs(60);
/// After a lost connection to the store, list within so long where nothing quicker shows whether it is the same.
pub(super) const AFTER_BREAK: Duration = Duration::from_secs(30);

/// A node's membership: a state machine without a clock or a connection.
///
/// Its shell calls [`Cluster::poll`] at first and at [`Cluster::deadline`], [`Cluster::on`] for what happens, and
/// does what comes out, in order. `now` is monotonic; a smaller one than before counts as the one before.
#[derive(Debug)]
pub struct Cluster {
    pub(super) me: Identity,
    pub(super) options: Options,
    pub(super) rng: Rng,
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
    pub(super) dirty: bool,
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

    /// The lease of the own key, if the key is this node's and no reservation.
    pub(super) fn own_lease(&self, now: Instant) -> Option<LeaseId> {
        let mine = self.own.standing(&self.view(now)) == Standing::Mine;
        let key = self.own.subnet.filter(|_| mine)?;
        let lease = self.known.leases.get(&key)?.lease;
        (lease != 0).then_some(lease)
    }

    /// Look whether the own lease lives, and whether what was written last is there.
    fn check(&mut self, now: Instant, out: &mut Vec<Output>) {
        if let (Some(lease), None) = (self.own_lease(now), &self.talk.left) {
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

    pub(super) fn remember_by(&mut self, at: Instant) {
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
}
