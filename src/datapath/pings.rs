//! Pings of this node's pods, from its gateway: whether a pod can be reached at all, for whom asks (`podwire-cni CHECK`).

use super::Node;
use crate::model::{Duration, Instant};
use crate::stack::probe::{self, Echo, Probe, echo_request, small_len};
use std::net::IpAddr;

/// How long an answer is awaited.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most pings under way.
const MOST: usize = 1024;

/// Pings under way, and what has become of others.
#[derive(Debug, Default)]
pub(super) struct Pings {
    next: u16,
    waiting: Vec<Waiting>,
    over: Vec<(u16, Option<Duration>)>,
}

#[derive(Debug)]
struct Waiting {
    number: u16,
    to: IpAddr,
    since: Instant,
}

impl Pings {
    fn awaits(&self, from: IpAddr, number: u16) -> bool {
        self.waiting.iter().any(|w| (w.number, w.to) == (number, from))
    }

    /// An answer came; whether it was awaited.
    pub(super) fn answered(&mut self, from: IpAddr, number: u16, now: Instant) -> bool {
        let awaited = |w: &Waiting| (w.number, w.to) == (number, from);
        let Some(at) = self.waiting.iter().position(awaited) else {
            return false;
        };
        let since = self.waiting.swap_remove(at).since;
        self.over.push((number, Some(now - since)));
        true
    }
}

impl Node {
    /// Ping an address from the gateway; gives the number by which [`Node::pongs`] tells of it. `None` when the node has no
    /// gateway of that family, or too many pings are under way.
    pub fn ping(&mut self, to: IpAddr, now: Instant) -> Option<u16> {
        let local = &self.settings.local;
        let src = match to {
            IpAddr::V4(_) => IpAddr::V4(local.gateway4()?),
            IpAddr::V6(_) => IpAddr::V6(local.gateway6()?),
        };
        if self.pings.waiting.len() == MOST {
            return None;
        }
        let number = self.pings.next;
        let probe = Probe {
            src,
            dst: to,
            ident: self.ping_ident(),
            seq: number,
            heard_ms: None,
        };
        let write = |out: &mut [u8]| echo_request(&probe, out);
        if !self.originated.make(small_len(to.is_ipv6()), write) {
            return None;
        }
        self.counters.originated += 1;
        self.pings.next = number.wrapping_add(1);
        let since = now;
        self.pings.waiting.push(Waiting { number, to, since });
        Some(number)
    }

    /// The pings that are over: how long the answer took, or none when there was none within a second.
    pub fn pongs(&mut self, now: Instant) -> impl Iterator<Item = (u16, Option<Duration>)> + '_ {
        let pings = &mut self.pings;
        let over = &mut pings.over;
        pings.waiting.retain(|w| {
            let late = now - w.since >= PATIENCE;
            if late {
                over.push((w.number, None));
            }
            !late
        });
        pings.over.drain(..)
    }

    /// When a ping is given up.
    pub fn ping_deadline(&self) -> Option<Instant> {
        self.pings.waiting.iter().map(|w| w.since + PATIENCE).min()
    }

    /// Whether a packet answers a ping that is under way.
    pub(super) fn is_pong(&self, packet: &[u8]) -> bool {
        let Some((from, Echo::Reply { ident, seq })) = probe::parse(packet) else {
            return false;
        };
        ident == self.ping_ident() && self.pings.awaits(from, seq)
    }

    /// Beside the one of probes.
    pub(super) fn ping_ident(&self) -> u16 {
        self.probe_ident().wrapping_add(1)
    }
}
