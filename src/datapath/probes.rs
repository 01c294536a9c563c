//! Probes of the peers: who is asked when, and what answers mean for frames ([`crate::overlay::Probes`] decides).

use super::originate::WAITING;
use super::{Node, Settings};
use crate::model::{DropReason, Instant, NodeName, PeerId, PodMtu, UnderlayMtu};
use crate::overlay::{Ask, MOST_PROBES, Path, PeerState, Reach};
use crate::stack::Trouble;
use crate::stack::probe::{self, Echo, Probe};
use crate::wire::ETH_LEN;
use crate::wire::bytes::array;
use std::net::{IpAddr, SocketAddr};

/// Paths whose answers are awaited by the clock; those beyond are met again with the next frame to them.
const LISTED: usize = 256;
/// Changes that wait to be told.
const NEWS: usize = 32;

/// A path: the peer, and the inner family that takes it.
pub(super) type PathId = (PeerId, bool);

/// A peer fell silent or was heard again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct News {
    /// The peer.
    pub peer: NodeName,
    /// Which of its addresses it is about.
    pub at: SocketAddr,
    /// Which of both.
    pub silent: bool,
}

/// What the node keeps for its probes.
#[derive(Debug)]
pub(super) struct Watch {
    /// Paths on which answers are awaited. Each knows its place here; one that says another is not meant.
    listed: Vec<PathId>,
    /// No deadline of theirs is earlier.
    next: Instant,
    news: Vec<News>,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch {
            listed: Vec::with_capacity(LISTED),
            next: Instant::ZERO,
            news: Vec::with_capacity(NEWS),
        }
    }
}

impl Node {
    /// Ask peers' VTEPs for an echo, so that the next report knows how far away they are: as many as there is room
    /// for, none twice within a second, and all in turn.
    pub fn probe_peers(&mut self, now: Instant) {
        let recent = |path: &Path| {
            let sent = path.probes.last_sent();
            sent.is_some_and(|at| (now - at).total_millis() < 1000)
        };
        let paths = |(id, state): (PeerId, &PeerState)| {
            let due =
                |six: &&bool| !recent(state.path(**six)) && ends(state, **six, &self.settings).is_some();
            let due: [Option<PathId>; 2] = {
                let mut due = state.families().iter().filter(due).map(|six| (id, *six));
                [due.next(), due.next()]
            };
            due.into_iter().flatten()
        };
        let first = self.probe_first;
        let rest = self.peers.iter().filter(|(id, _)| *id >= first);
        let due: Vec<PathId> = rest
            .chain(self.peers.iter().filter(|(id, _)| *id < first))
            .flat_map(paths)
            .take((WAITING / 2).min(self.originated.room()))
            .collect();
        for id in due {
            self.probe_first = PeerId(id.0.0.wrapping_add(1));
            self.conclude(id, Some(Ask::Small), now);
        }
    }

    /// A path, to be changed.
    pub(super) fn path_mut(&mut self, id: PathId) -> Option<&mut Path> {
        Some(self.peers.state_mut(id.0)?.path_mut(id.1))
    }

    /// A pod's packet of so many bytes goes to a peer, and it is time to look what is known of the path.
    pub(super) fn look(&mut self, id: PathId, packet: usize, now: Instant) {
        let Some(state) = self.peers.state_mut(id.0) else {
            return;
        };
        // What cannot be sent would only look like a loss: the next frame is as good a reason.
        if self.originated.room() < state.path(id.1).probes.most(packet) {
            return;
        }
        state.forget_old(now);
        let top = top(state, id.1, &self.settings);
        let ask = state.path_mut(id.1).look(packet, top, now);
        self.conclude(id, ask, now);
    }

    /// When [`Node::on_timeout`] may have something to do. Never, unless an answer is awaited.
    pub fn deadline(&self) -> Option<Instant> {
        (!self.watch.listed.is_empty()).then_some(self.watch.next)
    }

    /// Answers that were awaited until now are missing. What this sends goes with [`Node::send_own`].
    pub fn on_timeout(&mut self, now: Instant) {
        if self.deadline().is_none_or(|at| now < at) {
            return;
        }
        let mut next = None;
        let mut i = 0;
        while let Some(id) = self.watch.listed.get(i).copied() {
            let listed = |path: &&mut Path| path.probes.place.map(usize::from) == Some(i);
            let path = self.peers.state_mut(id.0).map(|state| state.path_mut(id.1));
            let Some(deadline) = path.filter(listed).and_then(|path| path.probes.deadline()) else {
                self.unlist(i);
                continue;
            };
            // The others' turn comes: their deadlines stay.
            if deadline <= now && self.originated.room() >= MOST_PROBES {
                let ask = self.path_mut(id).and_then(|path| path.expire(now));
                self.conclude(id, ask, now);
            }
            if self.watch.listed.get(i) != Some(&id) {
                continue;
            }
            let Some(deadline) = self.path_mut(id).and_then(|path| path.probes.deadline()) else {
                self.unlist(i);
                continue;
            };
            next = Some(next.map_or(deadline, |next: Instant| next.min(deadline)));
            i += 1;
        }
        self.watch.next = next.unwrap_or(Instant::ZERO);
    }

    /// Await what the path does, if anything: list it or not.
    fn list(&mut self, (peer, six): PathId) {
        let Some(state) = self.peers.state_mut(peer) else {
            return;
        };
        // One path has one name.
        let id = (peer, six && state.has_two_paths());
        let path = state.path_mut(six);
        let watch = &mut self.watch;
        let place = path.probes.place.map(usize::from);
        let place = place.filter(|at| watch.listed.get(*at) == Some(&id));
        match (path.probes.deadline(), place) {
            (None, None) => {}
            (None, Some(at)) => self.unlist(at),
            (Some(deadline), Some(_)) => watch.next = watch.next.min(deadline),
            (Some(deadline), None) if watch.listed.len() < LISTED => {
                watch.next = match watch.listed.is_empty() {
                    true => deadline,
                    false => watch.next.min(deadline),
                };
                path.probes.place = Some(watch.listed.len() as u16);
                watch.listed.push(id);
            }
            (Some(_), None) => path.probes.place = None,
        }
    }

    /// Take a path off the list. The last takes its place.
    fn unlist(&mut self, at: usize) {
        let id = self.watch.listed.swap_remove(at);
        let moved = self.watch.listed.get(at).copied();
        let last = self.watch.listed.len();
        let mut put = |id: PathId, from: usize, to: Option<u16>| {
            if let Some(path) = self.path_mut(id)
                && path.probes.place.map(usize::from) == Some(from)
            {
                path.probes.place = to;
            }
        };
        put(id, at, None);
        if let Some(moved) = moved {
            put(moved, last, Some(at as u16));
        }
    }

    /// Something was heard along a path on which it was awaited.
    pub(super) fn settled(&mut self, id: PathId, was_silent: bool, now: Instant) {
        self.list(id);
        if was_silent {
            self.tell(id, false, now);
        }
    }

    /// Ask what is to be asked, and tell of a silence that was found out meanwhile.
    fn conclude(&mut self, id: PathId, ask: Option<Ask>, now: Instant) {
        if let Some(ask) = ask {
            self.ask(id, ask, now);
        }
        if self
            .peer(id.0)
            .is_some_and(|s| s.path(id.1).probes.reach() == Reach::Silent(now))
        {
            self.tell(id, true, now);
        }
    }

    fn ask(&mut self, id: PathId, ask: Ask, now: Instant) {
        let ident = self.probe_ident();
        let Some(state) = self.peers.state_mut(id.0) else {
            return;
        };
        let Some((src, dst)) = ends(state, id.1, &self.settings) else {
            return;
        };
        let (six, outer6) = (dst.is_ipv6(), state.endpoint(id.1).is_ipv6());
        let path = state.path_mut(id.1);
        let heard = path.last_heard.map(|at| (now - at).total_millis());
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
                send(path.probes.next_large(), len);
            }
        }
        send(path.probes.next(now), small);
        self.list(id);
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
        if let Echo::Reply { ident: other, seq } = echo
            && other == self.ping_ident()
        {
            return self.pings.answered(from, seq, now);
        }
        let settings = &self.settings;
        let six = from.is_ipv6();
        let id = self.peers.route(from);
        let state = id.and_then(|id| self.peers.state_mut(id));
        // What a pod of it says is not its word, nor does the VTEP speak for a path that is not asked through it.
        let vtep = state.filter(|s| ends(s, six, settings).is_some_and(|(_, vtep)| vtep == from));
        match echo {
            Echo::Reply { ident: other, .. } if other != ident => false,
            Echo::Reply { seq, .. } => {
                if let (Some(state), Some(id)) = (vtep, id) {
                    let large = packet.len() > probe::small_len(six);
                    let size = large.then(|| outer(state, packet.len(), six));
                    let top = top(state, six, settings);
                    state.path_mut(six).answered(seq, size, top, now);
                    self.list((id, six));
                }
                true
            }
            Echo::Probe { heard_ms } => {
                if let Some(state) = vtep {
                    state.path_mut(six).probes.told(heard_ms, now);
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
            let size = outer(state, packet.len(), src.is_ipv6());
            let path = state.path_mut(src.is_ipv6());
            path.probes.refused(size, now);
            if let Some(mtu) = mtu.filter(|_| port.is_some()) {
                path.learn_mtu(mtu, now);
            }
        }
        let own = self.settings.local.underlay_mtu;
        let fits = self.peer(id).map(|p| p.pod_mtu(src.is_ipv6(), own));
        if let (Some(port), Some(PodMtu(mtu))) = (port, fits) {
            self.complain(port, Trouble::TooBig { mtu }, packet, now);
        }
    }

    /// A peer fell silent, or something came from it again.
    fn tell(&mut self, id: PathId, silent: bool, now: Instant) {
        if let Some(state) = self.peers.state_mut(id.0)
            && self.watch.news.len() < NEWS
            && state.path_mut(id.1).probes.is_news(silent, now)
        {
            let (peer, at) = (state.peer.name.clone(), state.endpoint(id.1));
            self.watch.news.push(News { peer, at, silent });
        }
    }

    /// What became of peers since the last time, for the log: bounded, and seldom for each.
    pub fn news(&mut self) -> std::vec::Drain<'_, News> {
        self.watch.news.drain(..)
    }
}

/// The addresses a path is probed with, the node's and the peer's: of the family that takes it, and if both do, of
/// IPv4 where there is one.
fn ends(state: &PeerState, six: bool, settings: &Settings) -> Option<(IpAddr, IpAddr)> {
    let local = &settings.local;
    let families = settings.underlay;
    if !(if state.endpoint(six).is_ipv6() {
        families.1
    } else {
        families.0
    }) {
        return None;
    }
    let four = local.vtep4().map(IpAddr::V4).zip(state.vtep(false));
    let other = local.vtep6().map(IpAddr::V6).zip(state.vtep(true));
    match (state.has_two_paths(), six) {
        (true, false) => four,
        (true, true) => other,
        (false, _) => four.or(other),
    }
}

/// What a path should take: as much as is configured, if pods make use of it.
fn top(state: &PeerState, six: bool, settings: &Settings) -> UnderlayMtu {
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
