//! The conversation with the store: what is under way, and when the next is due.

use super::backoff::{Backoff, Rng};
use super::{Ask, LeaseId, Output, Request, Revision, StoreError, SubnetKey};
use crate::model::{Duration, Instant};
use std::collections::BTreeMap;

/// A full list and compare at least this often: it heals what a watch lost. Up to a fifth sooner, by chance.
const COMPARE: Duration = Duration::from_secs(5 * 60);
/// A watch that lived so long was a good one.
const LIVED: Duration = Duration::from_secs(10);

/// A list under way.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) id: u64,
    /// The highest revision known when it was asked for: an honest answer is not older.
    pub(super) highest: Revision,
    /// What the watch saw deleted meanwhile, and at which revision.
    pub(super) deleted: BTreeMap<SubnetKey, Revision>,
}

/// A watch under way.
#[derive(Debug)]
pub(super) struct Watching {
    pub(super) id: u64,
    /// Since when it runs, once the store said so.
    pub(super) since: Option<Instant>,
}

/// Why the store does not answer as it should.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) since: Instant,
    pub(super) what: StoreError,
}

/// What is under way. There is at most one of each kind.
#[derive(Debug, Default)]
pub(super) struct Talk {
    last_id: u64,
    pub(super) list: Option<Listing>,
    pub(super) watch: Option<Watching>,
    pub(super) write: Option<Request>,
    pub(super) left: Option<(u64, LeaseId)>,
    /// When the next list is due.
    pub(super) list_at: Option<Instant>,
    /// When the next watch is due; none while a list must come first.
    pub(super) watch_at: Option<Instant>,
    /// Nothing may be written before a list that is asked for from now on says how things are.
    looking: Looking,
    /// A list was applied since the start.
    pub(super) based: bool,
    /// The watch broke, and what happened meanwhile was not looked at.
    pub(super) broken: bool,
    list_failing: bool,
    list_wait: Backoff,
    watch_wait: Backoff,
    /// When the store last said anything.
    pub(super) heard: Option<Instant>,
    /// What went wrong since the start, for people.
    pub(super) failures: u64,
    pub(super) trouble: Option<Trouble>,
}

/// Whether a list is needed before the next write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Looking {
    #[default]
    No,
    /// The list that is under way, or the next one, will do.
    Once,
    /// The one under way was asked for too early.
    Again,
}

impl Talk {
    fn request(&mut self, what: Ask, out: &mut Vec<Output>) -> Request {
        self.last_id += 1;
        let request = Request {
            id: self.last_id,
            what,
        };
        out.push(Output::Ask(request.clone()));
        request
    }

    /// Nothing is to be written before the store was looked at again.
    pub(super) fn look(&mut self, now: Instant) {
        self.looking = match self.list {
            Some(_) => Looking::Again,
            None => Looking::Once,
        };
        // A store that fails is not asked more often because somebody wants to know.
        if !self.list_failing {
            self.list_by(now);
        }
    }

    /// List at that time at the latest.
    pub(super) fn list_by(&mut self, at: Instant) {
        self.list_at = Some(self.list_at.map_or(at, |t| t.min(at)));
    }

    /// Whether something may be written.
    pub(super) fn may_write(&self) -> bool {
        self.based && self.looking == Looking::No && self.write.is_none()
    }

    /// Ask for what is due.
    pub(super) fn ask(&mut self, now: Instant, applied: Revision, highest: Revision, out: &mut Vec<Output>) {
        let due = |at: Option<Instant>| at.is_some_and(|t| t <= now);
        if self.list.is_none() && due(self.list_at) {
            let id = self.request(Ask::List, out).id;
            self.list_at = None;
            self.list = Some(Listing {
                id,
                highest,
                deleted: BTreeMap::new(),
            });
        }
        if self.watch.is_none() && due(self.watch_at) {
            let from = applied.saturating_add(1);
            let id = self.request(Ask::Watch { from }, out).id;
            self.watch_at = None;
            self.watch = Some(Watching { id, since: None });
        }
    }

    /// Write.
    pub(super) fn write(&mut self, what: Ask, out: &mut Vec<Output>) {
        self.write = Some(self.request(what, out));
    }

    /// Ask how long a lease lives.
    pub(super) fn ask_left(&mut self, lease: LeaseId, out: &mut Vec<Output>) {
        let id = self.request(Ask::TimeToLive { lease }, out).id;
        self.left = Some((id, lease));
    }

    /// A list is done and applied: when the next one is, and whether writing is allowed again.
    pub(super) fn listed(&mut self, now: Instant, rng: &mut Rng) {
        self.list_wait.reset();
        self.list_failing = false;
        self.based = true;
        self.broken = false;
        let next = match self.looking {
            Looking::Again => {
                self.looking = Looking::Once;
                now
            }
            _ => {
                self.looking = Looking::No;
                let ms = COMPARE.total_millis();
                now + Duration::from_millis(ms - rng.below(ms / 5))
            }
        };
        self.list_by(next);
        if self.watch.is_none() && self.watch_at.is_none() {
            self.watch_at = Some(now);
        }
    }

    /// A list failed: the next one is later.
    pub(super) fn list_failed(&mut self, now: Instant, rng: &mut Rng) {
        let at = now + self.list_wait.wait(rng);
        self.list_proved_nothing(at);
    }

    /// A list was of no use: the next one is then.
    pub(super) fn list_proved_nothing(&mut self, next: Instant) {
        if self.looking == Looking::Again {
            self.looking = Looking::Once;
        }
        self.list_failing = true;
        self.list_at = Some(next);
    }

    /// A watch is over, or did not begin. Whether it is the first time in a row.
    pub(super) fn watch_failed(&mut self, compacted: bool, now: Instant, rng: &mut Rng) -> bool {
        let since = self.watch.take().and_then(|w| w.since);
        if since.is_some_and(|t| now >= t + LIVED) {
            self.watch_wait.reset();
        }
        let first = !self.broken;
        self.broken = true;
        let at = now + self.watch_wait.wait(rng);
        if compacted {
            self.watch_at = None;
            self.list_by(at);
        } else {
            self.watch_at = Some(at);
        }
        first
    }

    /// The watch told something.
    pub(super) fn watched(&mut self) {
        self.watch_wait.reset();
    }

    /// Begin another watch in place of the one that may run.
    pub(super) fn watch_anew(&mut self, now: Instant) {
        self.watch = None;
        self.watch_at = Some(now);
    }

    /// What the store answered shows whether it is there.
    pub(super) fn hear<T>(&mut self, answer: &Result<T, StoreError>, now: Instant) {
        let what = match answer {
            Ok(_) | Err(StoreError::Compacted) => {
                self.trouble = None;
                self.heard = Some(now);
                return;
            }
            Err(e) => e,
        };
        self.failures += 1;
        if !matches!(what, StoreError::Unreachable(_)) {
            self.heard = Some(now);
        }
        let since = self.trouble.as_ref().map_or(now, |t| t.since);
        let what = what.clone();
        self.trouble = Some(Trouble { since, what });
    }

    /// When something is due here.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let list = self.list_at.filter(|_| self.list.is_none());
        let watch = self.watch_at.filter(|_| self.watch.is_none());
        [list, watch].into_iter().flatten().min()
    }
}
