//! Where the host's routes lead: the networks it reaches by its own port, of configuration and peers. No system calls.

use crate::daemon::links::{Link, Route};
use crate::model::{Change, NodeName};
use ipnet::IpNet;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// The networks the host shall reach.
#[derive(Debug)]
pub struct Networks {
    /// Whoever the peers are.
    fixed: Vec<IpNet>,
    peers: HashMap<NodeName, Vec<IpNet>>,
    /// Where the peers are themselves.
    underlay: HashMap<NodeName, Vec<IpAddr>>,
}

impl Networks {
    /// These, and those of peers as they come.
    pub fn new(fixed: Vec<IpNet>) -> Networks {
        Networks {
            fixed,
            peers: HashMap::new(),
            underlay: HashMap::new(),
        }
    }

    /// Take what is new of the peers.
    pub fn follow(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::PeerSet(peer) => {
                    let four = peer.subnet4.map(IpNet::from);
                    let all = four.into_iter().chain(peer.subnet6.map(IpNet::from));
                    let all = all.map(|net| net.trunc()).collect();
                    self.peers.insert(peer.name.clone(), all);
                    let at = std::iter::once(peer.underlay).chain(peer.underlay6);
                    let at = at.map(|a| a.ip()).collect();
                    self.underlay.insert(peer.name.clone(), at);
                }
                Change::PeerGone(name) => {
                    self.peers.remove(name);
                    self.underlay.remove(name);
                }
            }
        }
    }

    /// Whether it is one of configuration.
    pub fn is_fixed(&self, net: &IpNet) -> bool {
        self.fixed.contains(net)
    }

    /// A peer that is itself in a network of a peer: its tunnel would lead into itself.
    pub fn peer_within(&self, net: &IpNet) -> Option<(&NodeName, IpAddr)> {
        let all = self.underlay.iter().filter(|_| !self.is_fixed(net));
        let mut all = all.flat_map(|(name, at)| at.iter().map(move |ip| (name, *ip)));
        all.find(|(_, ip)| net.contains(ip))
    }

    /// All of them, without those that lie within another.
    pub fn wanted(&self) -> BTreeSet<IpNet> {
        // The large ones first, so that each is compared with what it may lie in.
        let mut all: Vec<IpNet> = self.fixed.clone();
        all.sort_by_key(IpNet::prefix_len);
        let mut wanted = Vec::<IpNet>::new();
        for net in all {
            if !wanted.iter().any(|w| w.contains(&net)) {
                wanted.push(net);
            }
        }
        let fixed = wanted.clone();
        let peers = self.peers.values().flatten();
        wanted.extend(peers.filter(|net| !fixed.iter().any(|f| f.contains(*net))));
        wanted.into_iter().collect()
    }
}

/// Something of the host's that is in the way.
#[derive(Debug, PartialEq, Eq)]
pub enum InTheWay {
    /// It has an address in a network that would lead to its own port.
    Address {
        /// The address.
        ip: IpAddr,
        /// The interface.
        by: String,
        /// The network.
        net: IpNet,
    },
    /// It has a route into such a network already.
    Route {
        /// The route's destination.
        to: IpNet,
        /// The interface it leads to, if any.
        by: String,
        /// The network.
        net: IpNet,
    },
}

/// Why there is no route to a peer's network, beside what [`in_the_way`] finds: the host's own neighbours are in it.
pub fn among_neighbours(net: &IpNet, routes: &[Route]) -> Option<IpNet> {
    let around = |r: &&Route| r.on_link && r.to.prefix_len() > 0 && r.to.contains(net);
    routes.iter().find(around).map(|r| r.to)
}

/// The first thing of the host's that is in the way of routes to `nets`. A route around them all is none: the more precise
/// one counts.
pub fn in_the_way<'n>(
    nets: impl IntoIterator<Item = &'n IpNet> + Clone,
    links: &[Link],
    routes: &[Route],
) -> Option<InTheWay> {
    for net in nets.clone() {
        let has = |link: &Link| {
            let ip = link.addresses.iter().find(|ip| net.contains(*ip))?;
            Some((*ip, link.name.clone()))
        };
        if let Some((ip, by)) = links.iter().find_map(has) {
            return Some(InTheWay::Address { ip, by, net: *net });
        }
    }
    for net in nets {
        if let Some(route) = routes.iter().find(|r| net.contains(&r.to)) {
            let link = links.iter().find(|l| Some(l.index) == route.by);
            let by = link.map_or("nowhere".into(), |l| format!("dev {}", l.name));
            return Some(InTheWay::Route {
                to: route.to,
                by,
                net: *net,
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Mac, Peer};

    fn nets(all: &[&str]) -> Vec<IpNet> {
        all.iter().map(|n| n.parse().unwrap()).collect()
    }

    fn peer(name: &str, four: &str) -> Change {
        Change::PeerSet(Peer {
            name: name.parse().unwrap(),
            underlay: "192.0.2.2:8472".parse().unwrap(),
            underlay6: None,
            subnet4: Some(four.parse().unwrap()),
            subnet6: None,
            vtep_mac: Mac::default(),
            vtep_mac6: Mac::default(),
            mtu: None,
        })
    }

    #[test]
    fn peers_bring_their_networks_and_take_them_away() {
        let mut networks = Networks::new(nets(&["10.244.1.0/24"]));
        networks.follow(&[peer("n2", "10.244.2.0/24"), peer("n3", "10.244.3.0/24")]);
        let wanted = |n: &Networks| n.wanted().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            wanted(&networks),
            ["10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"]
        );
        networks.follow(&[
            peer("n2", "10.244.9.0/24"),
            Change::PeerGone("n3".parse().unwrap()),
        ]);
        assert_eq!(wanted(&networks), ["10.244.1.0/24", "10.244.9.0/24"]);
    }

    #[test]
    fn what_lies_within_another_needs_no_route() {
        let mut networks = Networks::new(nets(&["10.244.1.0/24", "10.244.0.0/16", "fd00:1::/64"]));
        networks.follow(&[peer("n2", "10.244.2.0/24"), peer("n3", "10.5.3.0/24")]);
        let wanted: Vec<_> = networks.wanted().iter().map(ToString::to_string).collect();
        assert_eq!(wanted, ["10.5.3.0/24", "10.244.0.0/16", "fd00:1::/64"]);
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let link = |index, name: &str, ip: &str| Link {
            index,
            name: name.into(),
            addresses: vec![ip.parse().unwrap()],
            ..Link::default()
        };
        let host = [link(1, "lo", "127.0.0.1"), link(2, "eth0", "10.0.0.5")];
        let route = |to: &str, by| Route {
            to: to.parse().unwrap(),
            by,
            on_link: to != "0.0.0.0/0",
        };
        let pods = nets(&["10.244.0.0/16"]);
        let around = [route("0.0.0.0/0", Some(2)), route("10.0.0.0/8", Some(2))];
        assert_eq!(in_the_way(&pods, &host, &around), None);
        let within = [route("10.244.7.0/24", Some(2))];
        assert_eq!(
            in_the_way(&pods, &host, &within),
            Some(InTheWay::Route {
                to: within[0].to,
                by: "dev eth0".into(),
                net: pods[0]
            })
        );
        assert!(in_the_way(&pods, &host, &[route("10.244.0.0/16", None)]).is_some());
        let wide = nets(&["10.0.0.0/8"]);
        assert_eq!(
            in_the_way(&wide, &host, &[]),
            Some(InTheWay::Address {
                ip: "10.0.0.5".parse().unwrap(),
                by: "eth0".into(),
                net: wide[0]
            })
        );
    }

    #[test]
    fn a_peers_network_takes_no_neighbours_and_no_peers_away() {
        let lan = Route {
            to: "192.0.2.0/24".parse().unwrap(),
            by: Some(2),
            on_link: true,
        };
        let far = Route {
            to: "10.0.0.0/8".parse().unwrap(),
            by: Some(2),
            on_link: false,
        };
        let routes = [far, lan.clone()];
        assert_eq!(
            among_neighbours(&nets(&["192.0.2.128/25"])[0], &routes),
            Some(lan.to)
        );
        assert_eq!(among_neighbours(&nets(&["10.1.0.0/24"])[0], &routes), None);
        let mut networks = Networks::new(nets(&["10.244.1.0/24"]));
        networks.follow(&[peer("n2", "10.244.2.0/24")]);
        let taken = nets(&["192.0.2.0/30"])[0];
        assert!(networks.peer_within(&taken).is_some());
        assert!(networks.peer_within(&nets(&["10.244.2.0/24"])[0]).is_none());
        networks.follow(&[Change::PeerGone("n2".parse().unwrap())]);
        assert!(networks.peer_within(&taken).is_none());
    }
}
