//! The peer table.

use super::Routes;
use super::path::Path;
use super::probes::{EXPIRES, Reach};
use crate::model::{Instant, MAX_PEERS, Mac, NodeName, Peer, PeerId, PodMtu, UnderlayMtu};
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// No pod may be told of a smaller MTU than these, whatever the network claims (RFC 791, RFC 8200): a forged
/// "fragmentation needed" must not slow a path to a crawl.
const MIN_POD_MTU4: u16 = 576;
const MIN_POD_MTU6: u16 = 1280;

/// A peer, and what is known of the way to it.
#[derive(Debug)]
pub struct PeerState {
    /// What the control plane says.
    pub peer: Peer,
    /// What is known of the paths for IPv4 and IPv6 packets; the first is for both when it has one address.
    paths: [Path; 2],
    /// Whether UDP_SEGMENT works towards it.
    pub gso: bool,
    /// When the kernel refused it along this way.
    pub gso_refused: Option<Instant>,
    /// Datagrams sent to it.
    pub datagrams_to: u64,
    /// Bytes sent to it (UDP payload).
    pub bytes_to: u64,
    /// Datagrams accepted from it.
    pub datagrams_from: u64,
    /// Bytes accepted from it (UDP payload).
    pub bytes_from: u64,
}

impl PeerState {
    /// Where packets of this inner family are sent to.
    #[inline]
    pub fn endpoint(&self, inner_is_ipv6: bool) -> SocketAddr {
        match self.peer.underlay6 {
            Some(six) if inner_is_ipv6 => six,
            _ => self.peer.underlay,
        }
    }

    /// Whether packets of the two families go to addresses of their own.
    #[inline]
    pub fn has_two_paths(&self) -> bool {
        self.peer.underlay6.is_some()
    }

    /// The path that packets of this inner family take.
    #[inline]
    pub fn path(&self, inner_is_ipv6: bool) -> &Path {
        &self.paths[usize::from(inner_is_ipv6 && self.has_two_paths())]
    }

    /// The same, to be changed.
    #[inline]
    pub fn path_mut(&mut self, inner_is_ipv6: bool) -> &mut Path {
        &mut self.paths[usize::from(inner_is_ipv6 && self.has_two_paths())]
    }

    /// The inner families of its paths, one for each: the first stands for both when there is one.
    pub fn families(&self) -> &'static [bool] {
        if self.has_two_paths() {
            &[false, true]
        } else {
            &[false]
        }
    }

    /// The inner family of the path that a person should look at: one that is silent, one on which the peer does not
    /// hear this node, one that is in use.
    pub fn worst(&self) -> bool {
        let rank = |six: &&bool| {
            let probes = &self.path(**six).probes;
            match probes.reach() {
                Reach::Silent(_) => 0,
                _ if probes.deaf().is_some() => 1,
                Reach::Up(_) => 2,
                Reach::Unheard => 3,
            }
        };
        self.families()
            .iter()
            .min_by_key(rank)
            .copied()
            .unwrap_or_default()
    }

    /// When the last valid datagram came from it.
    pub fn last_heard(&self) -> Option<Instant> {
        self.paths.iter().filter_map(|path| path.last_heard).max()
    }

    /// Inner destination MAC of frames to it.
    #[inline]
    pub fn vtep_mac(&self, inner_is_ipv6: bool) -> Mac {
        if inner_is_ipv6 {
            self.peer.vtep_mac6
        } else {
            self.peer.vtep_mac
        }
    }

    /// Its VTEP's address in the pod network, which its kernel or gateway answers for.
    pub fn vtep(&self, is_ipv6: bool) -> Option<IpAddr> {
        match is_ipv6 {
            false => self.peer.subnet4.map(|n| n.network().into()),
            true => self.peer.subnet6.map(|n| n.network().into()),
        }
    }

    /// The largest inner packet of this family that fits the path.
    #[inline]
    pub fn pod_mtu(&self, inner_is_ipv6: bool, own: UnderlayMtu) -> PodMtu {
        let configured = self.configured_mtu(own);
        let learned = self.path(inner_is_ipv6).learned_mtu;
        let path = learned.map_or(configured, |(m, _)| m.min(configured));
        let fits = path.pod_mtu(self.endpoint(inner_is_ipv6).is_ipv6());
        let least = if inner_is_ipv6 { MIN_POD_MTU6 } else { MIN_POD_MTU4 };
        PodMtu(fits.0.max(least))
    }

    /// What the path to it should take.
    #[inline]
    pub fn configured_mtu(&self, own: UnderlayMtu) -> UnderlayMtu {
        self.peer.mtu.map_or(own, |m| m.min(own))
    }

    /// The kernel refused a train: datagrams go one by one for now.
    pub fn refuse_gso(&mut self, now: Instant) {
        self.gso = false;
        self.gso_refused = Some(now);
    }

    /// Try again what was refused once that is old.
    pub fn forget_old(&mut self, now: Instant) {
        self.paths.iter_mut().for_each(|path| path.forget_old(now));
        if self.gso_refused.is_some_and(|at| now - at >= EXPIRES) {
            self.gso_refused = None;
            self.gso = true;
        }
    }

    /// Whether datagrams from this address are this peer's.
    #[inline]
    pub fn is_at(&self, ip: IpAddr) -> bool {
        self.peer.underlay.ip() == ip || self.peer.underlay6.is_some_and(|six| six.ip() == ip)
    }
}

/// The table is full.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("peer {0} is left out: a node has at most {MAX_PEERS} peers")]
pub struct PeersFull(NodeName);

/// All peers, found by name, by route and by underlay address.
#[derive(Debug, Default)]
pub struct Peers {
    slots: Vec<Option<PeerState>>,
    free: Vec<PeerId>,
    names: HashMap<NodeName, PeerId>,
    /// Peers at each underlay address; several may share one behind a NAT.
    underlay: HashMap<IpAddr, Vec<PeerId>>,
    routes: Routes,
}

impl Peers {
    /// Add a peer, or change what is known of the one with that name. Its counters stay.
    ///
    /// # Errors
    /// The table is full; it is unchanged then.
    pub fn set(&mut self, peer: Peer, gso: bool) -> Result<PeerId, PeersFull> {
        let before = self.remove(&peer.name);
        if before.is_none() && self.names.len() >= MAX_PEERS {
            return Err(PeersFull(peer.name));
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            PeerId((self.slots.len() - 1) as u16)
        });
        self.names.insert(peer.name.clone(), id);
        for net in subnets(&peer) {
            self.routes.insert(net, id);
        }
        for ip in addresses(&peer) {
            self.underlay.entry(ip).or_default().push(id);
        }
        let state = match before {
            // What was learned of the way holds only while the way is the same.
            Some((_, old)) if same_way(&old.peer, &peer) => PeerState { peer, ..old },
            Some((_, old)) => PeerState {
                peer,
                paths: old.paths.map(|path| path.anew()),
                gso,
                gso_refused: None,
                ..old
            },
            None => PeerState {
                peer,
                paths: Default::default(),
                gso,
                gso_refused: None,
                datagrams_to: 0,
                bytes_to: 0,
                datagrams_from: 0,
                bytes_from: 0,
            },
        };
        self.slots[usize::from(id.0)] = Some(state);
        Ok(id)
    }

    /// Remove a peer.
    pub fn remove(&mut self, name: &NodeName) -> Option<(PeerId, PeerState)> {
        let id = self.names.remove(name)?;
        let state = self.slots.get_mut(usize::from(id.0))?.take()?;
        for net in subnets(&state.peer) {
            self.routes.remove(net, id);
        }
        for ip in addresses(&state.peer) {
            if let Some(ids) = self.underlay.get_mut(&ip) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.underlay.remove(&ip);
                }
            }
        }
        self.free.push(id);
        Some((id, state))
    }

    /// A peer.
    #[inline]
    pub fn state(&self, id: PeerId) -> Option<&PeerState> {
        self.slots.get(usize::from(id.0))?.as_ref()
    }

    /// A peer, to be changed.
    #[inline]
    pub fn state_mut(&mut self, id: PeerId) -> Option<&mut PeerState> {
        self.slots.get_mut(usize::from(id.0))?.as_mut()
    }

    /// The peer whose subnet holds a pod's address.
    #[inline]
    pub fn route(&self, ip: IpAddr) -> Option<PeerId> {
        self.routes.lookup(ip)
    }

    /// A peer at this underlay address.
    #[inline]
    pub fn at_underlay(&self, ip: IpAddr) -> Option<PeerId> {
        self.underlay.get(&ip)?.first().copied()
    }

    /// All peers in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (PeerId, &PeerState)> + '_ {
        let numbered = self.slots.iter().zip(0u16..);
        numbered.filter_map(|(slot, n)| Some((PeerId(n), slot.as_ref()?)))
    }
}

fn subnets(peer: &Peer) -> impl Iterator<Item = IpNet> + use<> {
    let four = peer.subnet4.map(IpNet::from);
    four.into_iter().chain(peer.subnet6.map(IpNet::from))
}

/// Whether what was learned of the way to a peer holds: the addresses are the same, and the VTEP that answers probes.
fn same_way(old: &Peer, new: &Peer) -> bool {
    let way = |p: &Peer| (p.underlay, p.underlay6, p.vtep_mac, p.vtep_mac6);
    way(old) == way(new)
}

fn addresses(peer: &Peer) -> impl Iterator<Item = IpAddr> + use<> {
    let one = peer.underlay.ip();
    let two = peer.underlay6.map(|six| six.ip()).filter(|ip| *ip != one);
    std::iter::once(one).chain(two)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, last: u8, subnet: u8) -> Peer {
        Peer {
            name: name.parse().unwrap(),
            underlay: SocketAddr::from(([192, 0, 2, last], 8472)),
            underlay6: None,
            subnet4: Some(format!("10.244.{subnet}.0/24").parse().unwrap()),
            subnet6: Some(format!("fd00:{subnet}::/64").parse().unwrap()),
            vtep_mac: Mac([2, 0, 0, 0, 0, last]),
            vtep_mac6: Mac([2, 0, 0, 0, 6, last]),
            mtu: None,
        }
    }

    fn at(p: &Peers, ip: &str) -> Option<String> {
        let id = p.route(ip.parse().unwrap())?;
        Some(p.state(id)?.peer.name.to_string())
    }

    #[test]
    fn peers_come_change_and_go() {
        let mut p = Peers::default();
        p.set(peer("a", 1, 1), true).unwrap();
        p.set(peer("b", 2, 2), true).unwrap();
        assert_eq!(at(&p, "10.244.2.9").as_deref(), Some("b"));
        assert_eq!(at(&p, "fd00:1::9").as_deref(), Some("a"));
        let known = |p: &Peers, last| p.at_underlay(IpAddr::from([192, 0, 2, last])).is_some();
        assert!(known(&p, 1) && known(&p, 2) && !known(&p, 3));

        let id = p.route("10.244.2.9".parse().unwrap()).unwrap();
        p.state_mut(id).unwrap().datagrams_to = 7;
        p.state_mut(id).unwrap().path_mut(false).learned_mtu = Some((UnderlayMtu(1400), Instant::ZERO));
        p.set(peer("b", 3, 4), true).unwrap();
        assert_eq!(
            (at(&p, "10.244.2.9"), at(&p, "10.244.4.9").as_deref()),
            (None, Some("b"))
        );
        assert!(!known(&p, 2) && known(&p, 3));
        let state = p.state(p.route("10.244.4.9".parse().unwrap()).unwrap()).unwrap();
        assert_eq!((state.datagrams_to, state.path(false).learned_mtu), (7, None));

        assert!(p.remove(&"b".parse().unwrap()).is_some());
        assert!(p.remove(&"b".parse().unwrap()).is_none());
        assert!(!known(&p, 3) && at(&p, "10.244.4.9").is_none());
        assert_eq!(p.iter().count(), 1);
    }

    #[test]
    fn mtu_follows_family_path_and_floor() {
        let mut p = Peers::default();
        let id = p.set(peer("a", 1, 1), true).unwrap();
        let own = UnderlayMtu(1500);
        let s = p.state_mut(id).unwrap();
        assert_eq!(s.pod_mtu(false, own), PodMtu(1450));
        s.peer.underlay6 = Some("[2001:db8::1]:8472".parse().unwrap());
        assert_eq!(
            (s.pod_mtu(false, own), s.pod_mtu(true, own)),
            (PodMtu(1450), PodMtu(1430))
        );
        s.peer.mtu = Some(UnderlayMtu(1400));
        assert_eq!(s.pod_mtu(false, own), PodMtu(1350));
        s.path_mut(true).learned_mtu = Some((UnderlayMtu(68), Instant::ZERO));
        assert_eq!(
            (s.pod_mtu(false, own), s.pod_mtu(true, own)),
            (PodMtu(1350), PodMtu(1280))
        );
        s.path_mut(false).learned_mtu = Some((UnderlayMtu(68), Instant::ZERO));
        assert_eq!(
            (s.pod_mtu(false, own), s.pod_mtu(true, own)),
            (PodMtu(576), PodMtu(1280))
        );
    }

    #[test]
    fn refusals_are_believed_for_a_while_only() {
        let mut p = Peers::default();
        let id = p.set(peer("a", 1, 1), true).unwrap();
        let at = Instant::from_secs(100);
        let later = |s: i64| Instant::from_secs(100 + s);
        let s = p.state_mut(id).unwrap();
        s.refuse_gso(at);
        s.path_mut(false).learn_mtu(UnderlayMtu(1400), at);
        s.forget_old(later(59));
        assert!(!s.gso && s.path(false).learned_mtu.is_some());
        s.forget_old(later(60));
        assert!(s.gso && s.path(false).learned_mtu.is_none());
        // What was switched off stays off.
        let off = p.set(peer("b", 2, 2), false).unwrap();
        let s = p.state_mut(off).unwrap();
        s.forget_old(later(60));
        assert!(!s.gso);
        // Another way may be another matter.
        p.state_mut(id).unwrap().refuse_gso(at);
        let id = p.set(peer("a", 9, 1), true).unwrap();
        let s = p.state(id).unwrap();
        assert!(s.gso && s.gso_refused.is_none());
    }
}
