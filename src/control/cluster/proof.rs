//! What a list or a deletion proves.
//!
//! A store that was wiped, restored from a backup, or replaced says "there are no peers" as calmly as one from which
//! they really went. What tells them apart: the identity of the store, its revision, and how much is gone at once.

use super::known::{Known, Lease};
use super::talk::Listing;
use super::{Entry, Revision, SubnetKey};
use crate::model::{Duration, Instant};
use std::collections::VecDeque;

/// How much later the second list must be.
pub(super) const SECOND_LOOK: Duration = Duration::from_secs(5);
/// Removals within this time count as one.
const AT_ONCE: Duration = Duration::from_secs(30);
/// So many at once are not believed at once...
const MANY: usize = 3;
/// ...if they are more than one in so many.
const SHARE: usize = 5;

/// What a list is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Sight {
    /// The same store, later: absence is proof.
    Later,
    /// Older than what is known: a member that lags, or a store that was set back. Look again.
    Earlier,
    /// Another store, and how that shows: nothing is proven.
    Another(&'static str),
}

/// What was removed lately, and what looked odd.
#[derive(Debug, Default)]
pub(super) struct Proof {
    removed: VecDeque<Instant>,
    earlier: Option<Instant>,
}

impl Proof {
    /// What a list is, by its store's identity, its revision, and its leases; `own` is this node's.
    pub(super) fn sight(
        &mut self,
        known: &Known,
        asked: &Listing,
        (cluster, revision): (u64, Revision),
        entries: &[(SubnetKey, &Entry)],
        own: Option<SubnetKey>,
        now: Instant,
    ) -> Sight {
        let Some(before) = known.cluster else {
            return Sight::Later;
        };
        let earlier = self.earlier.take();
        if cluster != before {
            return Sight::Another("it has another identity");
        }
        if revision < asked.highest {
            let since = earlier.unwrap_or(now);
            if now >= since + SECOND_LOOK {
                return Sight::Another("its revision went back");
            }
            self.earlier = Some(since);
            return Sight::Earlier;
        }
        // A lease that was written at a revision this list covers is not older in it. Of the own one a store may
        // have said what was not so.
        let older = |(key, entry): &(SubnetKey, &Entry)| {
            let lease = known.leases.get(key).filter(|_| own != Some(*key));
            lease.is_some_and(|l| entry.modified < l.modified && l.modified <= revision)
        };
        if entries.iter().any(older) {
            return Sight::Another("it has older leases than before");
        }
        let peer = |(key, l): (&SubnetKey, &Lease)| own != Some(*key) && l.carried.is_none();
        if entries.is_empty() && known.leases.iter().any(peer) {
            return Sight::Another("it is empty");
        }
        Sight::Later
    }

    /// Whether an earlier revision was seen, and a second look is due.
    pub(super) fn doubts(&self) -> bool {
        self.earlier.is_some()
    }

    /// Whether `n` of `of` peers may be removed at once. If so, they count for what follows.
    pub(super) fn believe(&mut self, n: usize, of: usize, now: Instant) -> bool {
        while self.removed.front().is_some_and(|t| now >= *t + AT_ONCE) {
            self.removed.pop_front();
        }
        let lately = self.removed.len() + n;
        let many = lately >= MANY && lately * SHARE > of + self.removed.len();
        if !many {
            self.removed.extend(std::iter::repeat_n(now, n));
        }
        !many
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_at_once_needs_a_second_look() {
        let at = Instant::from_secs;
        let mut proof = Proof::default();
        assert!(proof.believe(2, 2, at(0)), "two are not many");
        assert!(!proof.believe(1, 5, at(1)), "the third within 30 s is");
        assert!(proof.believe(1, 5, at(31)));
        let mut proof = Proof::default();
        assert!(proof.believe(20, 100, at(0)));
        assert!(!proof.believe(1, 80, at(29)));
        assert!(proof.believe(1, 80, at(30)));
        assert!(!proof.believe(3, 3, at(90)));
    }
}
