//! The node's own lease: taken, kept, and taken again.

use super::backoff::{Backoff, Rng};
use super::choice::{Choice, Chooser};
use super::known::{Known, Lease};
use super::{Ask, Identity, Options, Revision, SubnetKey};
use crate::control::default_vtep_mac;
use crate::control::flannel::{LeaseValue, Network, ValueError};
use crate::model::{Duration, Instant, Mac};
use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;

/// After a failed renewal, the next try; sooner when little is left of the lease.
const RETRY: Duration = Duration::from_secs(60);
/// So long after a write it is looked at whether the store did what it said.
const CHECK: Duration = Duration::from_secs(10);
/// A write that stood so long was not fought over.
const STOOD: Duration = Duration::from_secs(60);
/// Most addresses and creations that are remembered.
const MAX_REMEMBERED: usize = 16;

/// Whose the node's key is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// It is not in the store.
    Absent,
    /// The node's.
    Mine,
    /// Nobody's: what it says is of no use.
    Spoilt,
    /// Somebody else's.
    Other(String),
}

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// The lease is the node's as it stands.
    Accept(SubnetKey),
    /// Write.
    Write(Ask),
    /// Nothing can be done, and why.
    Stuck(String),
}

/// The own lease.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// What the node runs with; never changes.
    pub(super) subnet: Option<SubnetKey>,
    /// Addresses this process gave as its own, newest last.
    addresses: VecDeque<Ipv4Addr>,
    /// Whether this process wrote its lease, or found it as it should be.
    settled: bool,
    /// Races lost since the last list.
    lost: BTreeSet<SubnetKey>,
    /// Creations that were not answered; they may happen later. Newest last.
    doubtful: VecDeque<SubnetKey>,
    /// No write before, no renewal before.
    hold: Option<Instant>,
    renew_hold: Option<Instant>,
    wait: Backoff,
    /// The last write: its revision, when it was answered, and whether the store showed it since.
    written: Option<(Revision, Instant, bool)>,
    /// When to ask how long the lease lives.
    check_at: Option<Instant>,
    /// Why the last write failed.
    pub(super) trouble: Option<String>,
    /// Why there is nothing to take.
    pub(super) stuck: Option<String>,
}

/// What the own lease depends on.
pub(super) struct View<'a> {
    pub(super) me: &'a Identity,
    pub(super) options: &'a Options,
    pub(super) network: Option<&'a Network>,
    pub(super) known: &'a Known,
    pub(super) now: Instant,
}

impl View<'_> {
    /// What the own lease should say.
    fn desired(&self, key: &SubnetKey, network: &Network) -> LeaseValue {
        let mac = vtep_mac(self.me, key);
        let six = self.me.public_ip6.filter(|_| key.net6.is_some());
        LeaseValue {
            public_ip: self.me.public_ip,
            public_ip6: six,
            vtep: (network.vni, mac),
            vtep6: six.map(|_| (network.vni, mac)),
            podwire: Some(self.me.abilities.clone()),
        }
    }

    /// How long before the end of a lease it is renewed. A lease that is shorter is renewed at half of its time.
    fn margin(&self) -> Duration {
        let ttl = Duration::from_secs(self.options.ttl_s.max(0) as u64);
        match self.options.renew_margin {
            margin if margin < ttl => margin,
            _ => ttl / 2,
        }
    }
}

impl Own {
    /// Whose the key of the running subnet is.
    pub(super) fn standing(&self, view: &View) -> Standing {
        let lease = self.subnet.and_then(|key| view.known.leases.get(&key));
        match lease {
            None => Standing::Absent,
            Some(Lease {
                fault: Some(ValueError::Malformed(_)),
                ..
            }) => Standing::Spoilt,
            Some(lease) => self.whose(lease, view),
        }
    }

    fn whose(&self, lease: &Lease, view: &View) -> Standing {
        let Some(value) = &lease.value else {
            return Standing::Other(lease.holder());
        };
        let mine = value.public_ip == view.me.public_ip || self.addresses.contains(&value.public_ip);
        match lease.id() {
            Some(id) if id == view.me.abilities.id => match mine || !self.settled {
                true => Standing::Mine,
                false => Standing::Other(format!(
                    "a node at {} with this node's own identity (a copied disk?)",
                    value.public_ip
                )),
            },
            None if mine => Standing::Mine,
            _ => Standing::Other(lease.holder()),
        }
    }

    /// What to write next, if anything is due.
    pub(super) fn step(&mut self, view: &View, rng: &mut Rng) -> Option<Step> {
        if self.hold.is_some_and(|t| view.now < t) {
            return None;
        }
        let network = view.network?;
        let Some(key) = self.subnet else {
            return self.choose(view, network, rng);
        };
        let value = view.desired(&key, network);
        match (self.standing(view), view.known.leases.get(&key)) {
            (Standing::Absent, _) => Some(Step::Write(Ask::Create {
                key,
                value: value.write(),
                ttl_s: view.options.ttl_s,
            })),
            (Standing::Spoilt, Some(lease)) => Some(self.renew(key, lease, &value, view)),
            (Standing::Mine, Some(lease)) => {
                let is_due = self.renew_at(lease, view).is_some_and(|t| t <= view.now);
                if is_due || !says(lease, &value) {
                    return Some(self.renew(key, lease, &value, view));
                }
                self.settled = true;
                self.stray(view)
            }
            _ => None,
        }
    }

    fn choose(&mut self, view: &View, network: &Network, rng: &mut Rng) -> Option<Step> {
        let chooser = Chooser {
            me: view.me,
            options: view.options,
            network,
            known: view.known,
            lost: &self.lost,
            doubtful: self.doubtful.back().copied(),
        };
        let choice = chooser.choose(rng);
        self.stuck = None;
        let of = |key: &SubnetKey| view.known.leases.get(key);
        match choice {
            Choice::Take(key) => {
                let (lease, value) = (of(&key)?, view.desired(&key, network));
                let is_due = self.renew_at(lease, view).is_some_and(|t| t <= view.now);
                Some(match says(lease, &value) && !is_due {
                    true => Step::Accept(key),
                    false => self.renew(key, lease, &value, view),
                })
            }
            Choice::Create(key) => Some(Step::Write(Ask::Create {
                key,
                value: view.desired(&key, network).write(),
                ttl_s: view.options.ttl_s,
            })),
            Choice::Delete(key) => {
                let modified = of(&key)?.modified;
                Some(Step::Write(Ask::Delete { key, modified }))
            }
            Choice::Nothing(why) => {
                self.stuck = Some(why.clone());
                Some(Step::Stuck(why))
            }
        }
    }

    fn renew(&self, key: SubnetKey, lease: &Lease, value: &LeaseValue, view: &View) -> Step {
        Step::Write(Ask::Renew {
            key,
            value: value.write(),
            modified: lease.modified,
            // A reservation stays one.
            ttl_s: (lease.lease != 0).then_some(view.options.ttl_s),
        })
    }

    /// When the lease is renewed.
    fn renew_at(&self, lease: &Lease, view: &View) -> Option<Instant> {
        let expires = lease.expires.filter(|_| lease.lease != 0)?;
        let at = expires - view.margin().min(since_zero(expires));
        Some(self.renew_hold.map_or(at, |hold| at.max(hold)))
    }

    /// A lease of a creation that was given up as lost, and happened after all: delete it.
    fn stray(&mut self, view: &View) -> Option<Step> {
        let own = self.subnet;
        self.doubtful.retain(|key| Some(*key) != own);
        let stray = self.doubtful.iter().find_map(|key| {
            let lease = view.known.leases.get(key)?;
            let mine = lease.id() == Some(view.me.abilities.id.as_str());
            (mine && self.whose(lease, view) == Standing::Mine).then_some((*key, lease.modified))
        });
        stray.map(|(key, modified)| Step::Write(Ask::Delete { key, modified }))
    }

    /// The address changed; what was written before stays known as this node's.
    pub(super) fn address(&mut self, old: Ipv4Addr) {
        remember(&mut self.addresses, old);
    }

    /// A write was done at this revision.
    pub(super) fn wrote(&mut self, revision: Revision, view: &View, rng: &mut Rng) {
        // Whoever rewrites what another rewrites does it ever more slowly.
        let stood = self.written.is_none_or(|(_, at, _)| view.now >= at + STOOD);
        if stood {
            self.wait.reset();
        }
        self.hold = Some(view.now + self.wait.wait(rng));
        self.renew_hold = None;
        self.written = Some((revision, view.now, false));
        self.check_at = Some(view.now + CHECK);
        self.settled = true;
        self.trouble = None;
        remember(&mut self.addresses, view.me.public_ip);
    }

    /// The store shows the own key as of this revision.
    pub(super) fn shown(&mut self, modified: Revision) {
        if let Some((revision, _, shown)) = &mut self.written {
            *shown |= modified >= *revision;
        }
    }

    /// A write was not done because the key is not as expected. Whether to look at the store.
    pub(super) fn otherwise(&mut self, ask: &Ask, options: &Options, now: Instant, rng: &mut Rng) -> bool {
        match ask {
            Ask::Create { key, .. } if self.subnet.is_none() && options.fixed.is_none() => {
                self.lost.insert(*key);
                self.doubtful.back() == Some(key)
            }
            Ask::Delete { key, .. } => {
                self.doubtful.retain(|k| k != key);
                true
            }
            _ => {
                self.hold = Some(now + self.wait.wait(rng));
                true
            }
        }
    }

    /// A write failed; whether it was done is not known.
    pub(super) fn failed(&mut self, ask: &Ask, why: String, view: &View, rng: &mut Rng) {
        self.trouble = Some(why);
        self.hold = Some(view.now + self.wait.wait(rng));
        match ask {
            Ask::Create { key, .. } => {
                self.doubtful.retain(|k| k != key);
                remember(&mut self.doubtful, *key);
            }
            Ask::Renew { key, .. } => {
                let expires = view.known.leases.get(key).and_then(|l| l.expires);
                let left = expires.filter(|e| *e > view.now).map_or(RETRY, |e| e - view.now);
                let wait = (left / 4).max(Duration::from_secs(1)).min(RETRY);
                self.renew_hold = Some(view.now + wait);
                self.hold = self.hold.max(self.renew_hold.filter(|_| self.subnet.is_some()));
            }
            _ => {}
        }
    }

    /// The store was looked at.
    pub(super) fn looked(&mut self) {
        self.lost.clear();
    }

    /// The own key is gone: what holds a renewal does not hold its creation.
    pub(super) fn gone(&mut self) {
        if self.renew_hold.take().is_some() {
            self.hold = None;
        }
    }

    /// Ask soon how long the lease lives.
    pub(super) fn check(&mut self, at: Instant) {
        self.check_at = Some(self.check_at.map_or(at, |t| t.min(at)));
    }

    /// Whether it is time to ask how long the lease lives.
    pub(super) fn is_check_due(&mut self, now: Instant) -> bool {
        let due = self.check_at.is_some_and(|t| t <= now);
        if due {
            self.check_at = None;
        }
        due
    }

    /// Whether the store said that a write was done and did not show it since.
    pub(super) fn is_unseen(&self) -> bool {
        self.written.is_some_and(|(_, _, shown)| !shown)
    }

    /// When something is due here. `may_write` is whether writing is possible at all; what waits for an answer or a
    /// change has no time.
    pub(super) fn deadline(&self, view: &View, may_write: bool) -> Option<Instant> {
        let write = || {
            let key = self.subnet?;
            let at = match (self.standing(view), view.known.leases.get(&key)) {
                (Standing::Other(_), _) => return None,
                (Standing::Mine, Some(lease)) if says(lease, &view.desired(&key, view.network?)) => {
                    self.renew_at(lease, view)?
                }
                _ => view.now,
            };
            Some(self.hold.map_or(at, |hold| hold.max(at)))
        };
        let first = || self.hold.filter(|t| *t > view.now && self.subnet.is_none());
        let write = may_write.then(|| write().or_else(first)).flatten();
        [write, self.check_at].into_iter().flatten().min()
    }
}

/// The VTEP MAC of a node with this subnet.
pub(super) fn vtep_mac(me: &Identity, key: &SubnetKey) -> Mac {
    me.vtep_mac
        .unwrap_or_else(|| default_vtep_mac(Some(key.net4), key.net6))
}

/// Whether a lease says what it should.
fn says(lease: &Lease, value: &LeaseValue) -> bool {
    lease.fault.is_none() && (lease.value.as_ref() == Some(value) || lease.raw == value.write())
}

fn remember<T: PartialEq>(list: &mut VecDeque<T>, item: T) {
    if !list.contains(&item) {
        list.push_back(item);
    }
    if list.len() > MAX_REMEMBERED {
        list.pop_front();
    }
}

fn since_zero(at: Instant) -> Duration {
    Duration::from_micros(at.total_micros().max(0) as u64)
}
