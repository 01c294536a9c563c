//! Panics in the worker: who pays for one, how often one is told, and when there is no going on.

use super::{Loop, Outlets};
use crate::daemon::panics::{Panic, caught};
use crate::datapath::{Node, Payer, Work};
use crate::model::{Instant, PortId};
use crate::switch::TokenBucket;
use std::panic::resume_unwind;

/// Panics that are nobody's, in a second and at once: with more the node is better begun anew.
const MOST: u32 = 10;
/// Panics that are told in the log: in a second, and at once.
const TOLD: (u32, u32) = (1, 5);

/// How much the worker bears.
pub(super) struct Patience {
    nobodys: TokenBucket,
    told: TokenBucket,
    /// Those that were not told.
    untold: u64,
    /// There is no going on: the panic that was the last straw is on its way out.
    over: bool,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            nobodys: TokenBucket::new(MOST, MOST),
            told: TokenBucket::new(TOLD.0, TOLD.1),
            untold: 0,
            over: false,
        }
    }
}

impl Patience {
    /// Tell of a panic, and throw it on if there were too many that nobody pays for: that ends the node, and its keeper
    /// has the pods.
    pub fn bear(&mut self, payer: Payer, panic: Panic, now: Instant, at: impl FnOnce() -> String) {
        let over = payer == Payer::Node && !self.nobodys.take(now, 1);
        if over || self.told.take(now, 1) {
            let more = match std::mem::take(&mut self.untold) {
                0 => String::new(),
                n => format!(" ({n} more were not told of before)"),
            };
            log::error!(
                "podwire panicked at {}, which is a bug (please report it): {}{more}",
                at(),
                panic.said
            );
        } else {
            self.untold += 1;
        }
        if over {
            self.over = true;
            log::error!(
                "the data path ends, as {MOST} panics in a second were at nothing that could be given up"
            );
            resume_unwind(panic.payload);
        }
    }
}

/// Have the node set right what a panic left half done; who pays for it.
pub(super) fn set_right(node: &mut Node, work: Work, now: Instant, exits: &mut Outlets) -> Payer {
    // Where even that fails, too much is broken.
    caught(|| node.panicked(work, now, exits)).unwrap_or(Payer::Node)
}

impl Loop {
    /// Do a part of a turn: a panic in it ends that part. None then.
    pub(super) fn guarded<R>(&mut self, work: Work, part: impl FnOnce(&mut Loop) -> R) -> Option<R> {
        match caught(|| part(self)) {
            Ok(result) => Some(result),
            Err(panic) => {
                self.recover(work, panic);
                None
            }
        }
    }

    /// Read a pod's frames; whether it stays ready: its TAP does not say again that it is. It does too after a panic,
    /// unless the pod paid for that and rests.
    pub(super) fn drain_guarded(&mut self, port: PortId, now: Instant) -> bool {
        match caught(|| self.drain_tap(port, now)) {
            Ok(more) => more,
            Err(panic) => self.recover(Work::Pod(port), panic) != Payer::Pod(port),
        }
    }

    #[cold]
    fn recover(&mut self, work: Work, panic: Panic) -> Payer {
        if self.patience.over {
            resume_unwind(panic.payload);
        }
        let now = self.now();
        let payer = set_right(&mut self.node, work, now, &mut self.exits);
        // What was behind the place of the panic is to be done at once.
        self.busy_egress = true;
        let (node, patience) = (&self.node, &mut self.patience);
        patience.bear(payer, panic, now, || match payer {
            Payer::Pod(port) => {
                let until = node.rests_until(port, now).unwrap_or(now);
                let ms = (until - now).total_millis();
                format!(
                    "a frame of {}, from which none is read for {ms} ms now",
                    pod(node, port)
                )
            }
            Payer::Flow(PortId::SERVICES) => "a client of a Service, whose flow was ended".into(),
            Payer::Flow(port) => format!("a flow of {}, which was ended", pod(node, port)),
            Payer::Peer => "what a peer sent".into(),
            Payer::Frames => "frames on their way to a peer or to a limited pod, which are lost".into(),
            Payer::Node => "the node's own work".into(),
        });
        if self.blocked && !self.node.is_blocked() {
            // What waited for room is gone, and nobody would tell of it.
            self.unblock();
        }
        if let Payer::Pod(port) = payer {
            self.ready_taps.retain(|p| *p != port);
            self.pause(port);
        }
        payer
    }
}

fn pod(node: &Node, port: PortId) -> String {
    if node.host() == Some(port) {
        return "this host".into();
    }
    let spec = node.ports().spec(port);
    spec.map_or("a pod that is gone".into(), |s| format!("pod {}", s.pod))
}
