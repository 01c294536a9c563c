//! What the control thread is to be told, until it has room for it.

use crate::control::cluster::Membership;
use crate::model::{Change, NodeName};
use crossbeam_channel::{Sender, TrySendError};
use std::collections::{HashSet, VecDeque};

/// News for the control thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// The subnet is this node's: told once.
    Acquired(Membership),
    /// These changes of the peers are proven.
    Peers(Vec<Change>),
    /// The node has its subnet, and all there is to know: told once.
    Ready,
    /// Whether new pods may get addresses.
    Allocate(bool),
    /// Everything that was asked for before the end is done; nothing more comes.
    Stopped,
}

/// Waiting changes are thinned out beyond so many.
const MANY: usize = 4096;

/// News that wait, in order.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Told>,
    /// Waiting changes may be so many before the next thinning: twice what the last one left.
    many: usize,
}

impl Outbox {
    /// Tell this after all that waits.
    pub fn push(&mut self, told: Told) {
        match (told, self.waiting.back_mut()) {
            (Told::Peers(more), Some(Told::Peers(changes))) => {
                changes.extend(more);
                if changes.len() > self.many.max(MANY) {
                    thin_out(changes);
                    self.many = 2 * changes.len();
                }
            }
            (Told::Allocate(now), Some(Told::Allocate(before))) => *before = now,
            (told, _) => self.waiting.push_back(told),
        }
    }

    /// Send as much as there is room for; whether anything was.
    pub fn send(&mut self, to: &Sender<Told>) -> bool {
        let mut sent = false;
        while let Some(told) = self.waiting.pop_front() {
            match to.try_send(told) {
                Ok(()) => sent = true,
                Err(TrySendError::Full(told)) => {
                    self.waiting.push_front(told);
                    break;
                }
                // Nobody wants to know.
                Err(TrySendError::Disconnected(_)) => self.waiting.clear(),
            }
        }
        sent
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Of each peer the last change only, in the order of the last changes: what is left has the same outcome, and is
/// bounded by the number of peers.
fn thin_out(changes: &mut Vec<Change>) {
    let mut seen: HashSet<NodeName> = HashSet::new();
    let mut kept: Vec<Change> = Vec::new();
    for change in changes.drain(..).rev() {
        let name = match &change {
            Change::PeerSet(peer) => &peer.name,
            Change::PeerGone(name) => name,
        };
        if seen.insert(name.clone()) {
            kept.push(change);
        }
    }
    kept.reverse();
    *changes = kept;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;

    fn gone(n: usize) -> Change {
        Change::PeerGone(format!("n{n}").parse().unwrap())
    }

    #[test]
    fn a_full_channel_loses_nothing() {
        let (to, from) = bounded(1);
        let mut outbox = Outbox::default();
        outbox.push(Told::Peers(vec![gone(1)]));
        outbox.push(Told::Ready);
        outbox.push(Told::Peers(vec![gone(2)]));
        outbox.push(Told::Peers(vec![gone(3)]));
        outbox.push(Told::Allocate(false));
        outbox.push(Told::Allocate(true));
        let mut told = Vec::new();
        while !outbox.is_empty() {
            assert!(outbox.send(&to));
            assert!(!outbox.send(&to));
            told.extend(from.try_iter());
        }
        let expected = [
            Told::Peers(vec![gone(1)]),
            Told::Ready,
            Told::Peers(vec![gone(2), gone(3)]),
            Told::Allocate(true),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_waits_is_bounded_by_the_peers() {
        let mut outbox = Outbox::default();
        for n in 0..50 * MANY {
            outbox.push(Told::Peers(vec![gone(n % 10)]));
        }
        let [Told::Peers(changes)] = outbox.waiting.make_contiguous() else {
            panic!("one of them");
        };
        assert!(changes.len() <= MANY, "{}", changes.len());
        assert_eq!(changes.last(), Some(&gone((50 * MANY - 1) % 10)));
        thin_out(changes);
        assert_eq!(changes.len(), 10);
    }
}
