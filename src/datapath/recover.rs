//! What a panic leaves behind. Whoever drives a node catches panics around the parts of its turn and calls
//! [`Node::panicked`]: what was half done is forgotten and counted, and a pod or a flow pays for it, nobody else.
//!
//! Each part of a node that is taken out of it while it works is [`Lent`], so that it is put back when a panic passes by.
//! Lists that are worked through know how far that came: what is behind the place of the panic is done by the next call.

use super::{Exits, Node};
use crate::model::{DropReason, Instant, PortId};
use std::net::IpAddr;

/// What a node was doing when a panic came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Taking frames of a pod.
    Pod(PortId),
    /// Taking datagrams of peers. [`Node::settle`] must be called once the batch is through.
    Peers,
    /// Anything else.
    Rest,
}

/// Who pays for a panic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payer {
    /// This pod, which is not to be read before [`Node::next_read`].
    Pod(PortId),
    /// A flow to the outside, or from there, of this port: it was ended.
    Flow(PortId),
    /// A peer, or a pod there: what it sent is lost.
    Peer,
    /// Some frames, whoever sent them: they are lost, and nothing else is.
    Frames,
    /// Nobody in particular.
    Node,
}

/// Whose a packet was that the node sends by itself, or after a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Suspect {
    /// Whoever holds this address.
    Holder(IpAddr),
    /// A client of a Service, at a socket of the host.
    Client,
    /// Somebody's, who may be long gone: the packet had waited for a limited pod.
    Nobody,
}

/// How much of a peer's message was still to be taken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UnderWay {
    /// Datagrams that had come before it.
    pub before: u64,
    /// Its length, and that of each datagram but the last.
    pub len: usize,
    pub step: usize,
}

/// A part of a node that works beside the rest of it. It is put back in its place when this goes, also by a panic.
pub(super) struct Lent<'n, T: Default, B: FnMut(&mut Node, T)> {
    node: &'n mut Node,
    what: T,
    back: B,
}

impl<'n, T: Default, B: FnMut(&mut Node, T)> Lent<'n, T, B> {
    /// `what` was taken from `node`, and `back` puts it back. It must not panic: a second panic beside one that passes by
    /// ends the process.
    pub fn new(node: &'n mut Node, what: T, back: B) -> Lent<'n, T, B> {
        Lent { node, what, back }
    }

    /// The rest of the node, and the part.
    pub fn parts(&mut self) -> (&mut Node, &mut T) {
        (self.node, &mut self.what)
    }
}

impl<T: Default, B: FnMut(&mut Node, T)> Drop for Lent<'_, T, B> {
    fn drop(&mut self) {
        (self.back)(self.node, std::mem::take(&mut self.what));
    }
}

impl Node {
    /// Set right what a panic left half done: a flow whose stack was at work ends, what was about to be sent to peers is
    /// lost, a pod rests. Who pays for it.
    pub fn panicked(&mut self, work: Work, now: Instant, exits: &mut impl Exits) -> Payer {
        let was_sending = self.forget_unsent();
        let asked = self.gateway.give_up().map(Suspect::Holder);
        let suspect = self.suspect.take().or(asked);
        let flow = self.beside(now, exits, |egress, beside| egress.give_up(now, beside));
        let payer = match work {
            // Whose the message is at which the sockets failed, nobody knows.
            _ if was_sending => Payer::Frames,
            Work::Pod(port) => Payer::Pod(port),
            Work::Peers => Payer::Peer,
            Work::Rest => match (flow.flatten(), suspect) {
                (Some(port), _) => Payer::Flow(port),
                (None, Some(Suspect::Holder(ip))) => self.ports.by_ip(ip).map_or(Payer::Peer, Payer::Pod),
                (None, Some(Suspect::Client)) => Payer::Flow(PortId::SERVICES),
                (None, Some(Suspect::Nobody)) => Payer::Frames,
                (None, None) => Payer::Node,
            },
        };
        if work == Work::Peers {
            let w = self.under_way;
            let begun = self.counters.datagrams_from_peers.saturating_sub(w.before);
            let all = w.len.div_ceil(w.step.max(1)) as u64;
            self.counters.datagrams_from_peers += all.saturating_sub(begun);
        } else {
            self.settle();
        }
        let panics = &mut self.counters.panics;
        match payer {
            Payer::Pod(port) => {
                panics.pod += 1;
                if let Some(port) = self.port(port) {
                    port.rest.failed(now);
                    port.counters.panics += 1;
                    port.counters.drops += 1;
                }
            }
            Payer::Flow(_) => panics.flow += 1,
            Payer::Peer => panics.peer += 1,
            Payer::Frames => panics.frames += 1,
            Payer::Node => panics.node += 1,
        }
        payer
    }

    /// Count what panics took: what came in and became nothing. Not while a batch of datagrams is under way.
    pub fn settle(&mut self) {
        let lost = self.counters().imbalance();
        let frames = u64::try_from(lost.unsigned_abs()).unwrap_or(u64::MAX);
        match lost > 0 {
            true => self.drops.add(DropReason::Panic, frames),
            // It went its way, and was not yet counted as made.
            false => self.counters.originated += frames,
        }
    }

    /// Until when a pod is not read, as a panic came at its frames; none when it is.
    pub fn rests_until(&self, port: PortId, now: Instant) -> Option<Instant> {
        let rest = &self.states.get(usize::from(port.0))?.as_ref()?.rest;
        rest.until().filter(|until| *until > now)
    }

    /// Forget messages that are not complete; all of them when the panic came while they were sent, which is told.
    fn forget_unsent(&mut self) -> bool {
        let was_sending = std::mem::take(&mut self.sending);
        if was_sending {
            let frames: u64 = self.outbox.messages().iter().map(|m| u64::from(m.frames)).sum();
            self.counters.frames_to_peers -= frames;
            self.outbox.shift(usize::MAX);
        } else {
            self.outbox.forget_unfinished();
        }
        was_sending
    }
}
