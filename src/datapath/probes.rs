//! Probes of the peers: who is asked when, and what answers mean for frames ([`crate::overlay::Probes`] decides).

use super::originate::WAITING;
use super::{Node, Settings};
use crate::model::{DropReason, Instant, NodeName, PeerId, PodMtu, UnderlayMtu};
use crate::overlay::{Ask, MOST_PROBES, PeerState, Reach};
use crate::stack::Trouble;
use crate::stack::probe::{self, Echo, Probe};
use crate::wire::ETH_LEN;
use crate::wire::bytes::array;
use std::net::IpAddr;

/// Peers whose answers are awaited by the clock; those beyond are met again with the next frame to them.
const LISTED: usize = 256;
/// Changes that wait to be told.
const NEWS: usize = 32;

/// A peer fell silent or was heard again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct News {
    /// The peer.
    pub peer: NodeName,
    /// Which of both.
    pub silent: bool,
}

/// What the node keeps for its probes.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Peers whose answers are awaited.
    listed: Vec<PeerId>,
    news: Vec<News>,
}

impl Node {
    /// Ask peers' VTEPs for an echo, so that the next report knows how far away they are: as many as there is room
    /// for, none twice within a second, and all in turn.
    pub fn probe_peers(&mut self, now: Instant) {
        let second_ago = |at: Instant| (now - at).total_millis() >= 1000;
        let first = self.probe_first;
        let rest = self.peers.iter().filter(|(id, _)| *id >= first);
        let due: Vec<PeerId> = rest
            .chain(self.peers.iter().filter(|(id, _)| *id < first))
            .filter(|(_, s)| s.probes.last_sent().is_none_or(second_ago))
            .map(|(id, _)| id)
            .take((WAITING / 2).min(self.originated.room()))
            .collect();
        for peer in due {
            self.probe_first = PeerId(peer.0.wrapping_add(1));
            self.conclude(peer, Some(Ask::Small), now);
        }
    }

    /// A pod's packet of so many bytes goes to a peer, and it is time to look what is known of the way.
    pub(super) fn look(&mut self, id: PeerId, packet: usize, now: Instant) {
        let Some(state) = self.peers.state_mut(id) else {
            return;
        };
        // What cannot be sent would only look like a loss: the next frame is as good a reason.
        if self.originated.room() < state.probes.most(packet) {
            return;
        }
        state.forget_old(now);
        let top = top(state, &self.settings);
        let ask = state.look(packet, top, now);
        self.conclude(id, ask, now);
    }

    /// When [`Node::on_timeout`] has something to do. Never, unless an answer is awaited.
    pub fn deadline(&mut self) -> Option<Instant> {
        let peers = &mut self.peers;
        let mut first = None;
        self.watch.listed.retain(|id| {
            let Some(state) = peers.state_mut(*id) else {
                return false;
            };
            let Some(at) = state.probes.deadline() else {
                state.probes.listed = false;
                return false;
            };
            first = Some(first.map_or(at, |first: Instant| first.min(at)));
            true
        });
        first
    }

    /// Answers that were awaited until now are missing. What this sends goes with [`Node::send_own`].
    pub fn on_timeout(&mut self, now: Instant) {
        for i in 0..self.watch.listed.len() {
            // The others' turn comes: their deadlines stay.
            if self.originated.room() < MOST_PROBES {
                return;
            }
            let id = self.watch.listed[i];
            if let Some(state) = self.peers.state_mut(id)
                && state.probes.deadline().is_some_and(|at| at <= now)
            {
                let ask = state.expire(now);
                self.conclude(id, ask, now);
            }
        }
    }

    /// Ask what is to be asked, and tell of a silence that was found out meanwhile.
    fn conclude(&mut self, id: PeerId, ask: Option<Ask>, now: Instant) {
        if let Some(ask) = ask {
            self.ask(id, ask, now);
        }
        if self
            .peer(id)
            .is_some_and(|s| s.probes.reach() == Reach::Silent(now))
        {
            self.tell(id, true, now);
        }
    }

    fn ask(&mut self, id: PeerId, ask: Ask, now: Instant) {
        let ident = self.probe_ident();
        let Some(state) = self.peers.state_mut(id) else {
            return;
        };
        let Some((src, dst)) = ends(state, &self.settings) else {
            return;
        };
        let (six, outer6) = (dst.is_ipv6(), state.endpoint(dst.is_ipv6()).is_ipv6());
        let heard = state.last_heard.map(|at| (now - at).total_millis());
        let heard_ms = heard.map(|ms| u32::try_from(ms).unwrap_or(u32::MAX));
        let mut send = |seq: u16, len: usize| {
            let probe = Probe {
                src,
                dst,
                ident,
                seq,
                heard_ms,
            };
            self.counters.originated += 1;
            let written = self.originated.make(len, |out| probe::echo_request(&probe, out));
            if !written {
                self.drops.add(DropReason::StackFull, 1);
            }
        };
        let small = probe::small_len(six);
        for size in ask.sizes() {
            let len = usize::from(size.pod_mtu(outer6).0);
            if len > small {
                send(state.probes.next_large(), len);
            }
        }
        send(state.probes.next(now), small);
        if !state.probes.listed && state.probes.deadline().is_some() && self.watch.listed.len() < LISTED {
            state.probes.listed = true;
            self.watch.listed.push(id);
        }
    }

    pub(super) fn probe_ident(&self) -> u16 {
        self.settings.seed as u16
    }

    /// A packet for the node itself from a peer, or a pod: if it has to do with probes, learn from it. Whether it was
    /// an answer to one of them, which is of no use to anybody else.
    pub(super) fn learn(&mut self, packet: &[u8], now: Instant) -> bool {
        let Some((from, echo)) = probe::parse(packet) else {
            return false;
        };
        let ident = self.probe_ident();
        let settings = &self.settings;
        let state = self.peers.route(from).and_then(|id| self.peers.state_mut(id));
        // What a pod of it says is not its word.
        let vtep = state.filter(|s| s.vtep(from.is_ipv6()) == Some(from));
        match echo {
            Echo::Reply { ident: other, .. } if other != ident => false,
            Echo::Reply { seq, .. } => {
                if let Some(state) = vtep {
                    let large = packet.len() > probe::small_len(from.is_ipv6());
                    let size = large.then(|| outer(state, packet.len(), from.is_ipv6()));
                    let top = top(state, settings);
                    state.answered(seq, size, top, now);
                }
                true
            }
            Echo::Probe { heard_ms } => {
                if let Some(state) = vtep {
                    state.probes.told(heard_ms, now);
                }
                false
            }
        }
    }

    /// The kernel refused to send a datagram with this frame: too large for the path. The pod it is from is told what
    /// fits; a probe was sent to find that out.
    pub(super) fn too_big(&mut self, id: PeerId, frame: &[u8], mtu: Option<UnderlayMtu>, now: Instant) {
        let Some(packet) = frame.get(ETH_LEN..).filter(|p| !p.is_empty()) else {
            return;
        };
        let src = source(packet);
        let port = self.ports.by_ip(src);
        if let Some(state) = self.peers.state_mut(id) {
            state
                .probes
                .refused(outer(state, packet.len(), src.is_ipv6()), now);
            if let Some(mtu) = mtu.filter(|_| port.is_some()) {
                state.learn_mtu(mtu, now);
            }
        }
        let own = self.settings.local.underlay_mtu;
        let fits = self.peer(id).map(|p| p.pod_mtu(src.is_ipv6(), own));
        if let (Some(port), Some(PodMtu(mtu))) = (port, fits) {
            self.complain(port, Trouble::TooBig { mtu }, packet, now);
        }
    }

    /// A peer fell silent, or something came from it again.
    pub(super) fn tell(&mut self, id: PeerId, silent: bool, now: Instant) {
        if let Some(state) = self.peers.state_mut(id)
            && self.watch.news.len() < NEWS
            && state.probes.is_news(silent, now)
        {
            let peer = state.peer.name.clone();
            self.watch.news.push(News { peer, silent });
        }
    }

    /// What became of peers since the last time, for the log: bounded, and seldom for each.
    pub fn news(&mut self) -> std::vec::Drain<'_, News> {
        self.watch.news.drain(..)
    }
}

/// The addresses a peer is probed with, the node's and the peer's.
fn ends(state: &PeerState, settings: &Settings) -> Option<(IpAddr, IpAddr)> {
    let local = &settings.local;
    let four = local.vtep4().map(IpAddr::V4).zip(state.vtep(false));
    four.or_else(|| local.vtep6().map(IpAddr::V6).zip(state.vtep(true)))
}

/// What the path to a peer should take: as much as is configured, if pods make use of it.
fn top(state: &PeerState, settings: &Settings) -> UnderlayMtu {
    let six = ends(state, settings).is_some_and(|(_, dst)| dst.is_ipv6());
    let pods = settings.local.pod_mtu.underlay_mtu(state.endpoint(six).is_ipv6());
    state.configured_mtu(settings.local.underlay_mtu).min(pods)
}

/// Length of the outer packet of an inner one.
fn outer(state: &PeerState, packet: usize, six: bool) -> UnderlayMtu {
    let packet = PodMtu(u16::try_from(packet).unwrap_or(u16::MAX));
    packet.underlay_mtu(state.endpoint(six).is_ipv6())
}

/// The source of an IP packet, of which there is something.
fn source(packet: &[u8]) -> IpAddr {
    match packet[0] >> 4 {
        6 => IpAddr::V6(array::<16>(packet, 8).into()),
        _ => IpAddr::V4(array::<4>(packet, 12).into()),
    }
}
