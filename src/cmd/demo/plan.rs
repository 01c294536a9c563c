//! Who gets which name and address, settled before anything is made.
//!
//! | | underlay | pods |
//! |---|---|---|
//! | node a | 127.77.x.y, the first of the demo's slot | 10.244.1.0/24 and fd00:10:244:1::/64: demo/a1, demo/a2 ... |
//! | node b | the next | 10.244.2.0/24 and fd00:10:244:2::/64: demo/b1, demo/b2 ... |

use super::report::Path;
use crate::cmd::lab::nodes::NodeSpec;
use crate::daemon::config::DEFAULT_PORT;
use crate::model::PodName;
use ipnet::{Ipv4Net, Ipv6Net};
use std::fmt::Write;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, UdpSocket};

/// Most nodes: their names are letters.
pub const MAX_NODES: u8 = 26;
/// Most pods in all: each pings each other one, and a person is waiting.
pub const MAX_PODS: usize = 128;

/// Addresses of one demo; 2048 such slots fill 127.77.0.0/16.
const SLOT: u32 = 32;
const SLOTS: u32 = 65_536 / SLOT;
/// Slots that are looked at before giving up.
const TRIES: u32 = 64;

/// Whether this machine can hold a demo of that size.
///
/// # Errors
/// What is too many, and the remedy.
pub fn fits(nodes: u8, pods: usize) -> Result<(), String> {
    fits_room(usize::from(nodes), pods, neighbour_room())
}

fn fits_room(nodes: usize, pods: usize, room: usize) -> Result<(), String> {
    if nodes * pods > MAX_PODS {
        return Err(format!(
            "{nodes} nodes with {pods} pods each are more than {MAX_PODS} pods (lower --nodes or --pods)"
        ));
    }
    // A pod knows the other pods of its node, and the gateway.
    let neighbours = nodes * pods * pods;
    if neighbours > room - room / 16 {
        return Err(format!(
            "{pods} pods a node have {neighbours} neighbours in all, but this kernel keeps {room} \
             for all pods together (lower --pods, or as root: sysctl -w \
             net.ipv4.neigh.default.gc_thresh3={more} net.ipv6.neigh.default.gc_thresh3={more})",
            more = (neighbours * 2).next_power_of_two()
        ));
    }
    Ok(())
}

/// How many neighbours the kernel keeps, of each family: its tables are shared by all network namespaces, and
/// beyond their end pods cannot reach even those who answer ("neighbor table overflow" in dmesg, Linux 6.18).
fn neighbour_room() -> usize {
    let limit = |family| {
        let path = format!("/proc/sys/net/{family}/neigh/default/gc_thresh3");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    // The kernel's default, where the file is not shown.
    let limits = ["ipv4", "ipv6"].map(|family| limit(family).unwrap_or(1024));
    limits[0].min(limits[1])
}

/// A demo that fits together.
#[derive(Debug)]
pub struct Plan {
    /// Its nodes.
    pub nodes: Vec<NodePlan>,
    /// Its pods, node by node.
    pub pods: Vec<PodPlan>,
}

/// One node.
#[derive(Debug)]
pub struct NodePlan {
    /// Its name: a letter.
    pub name: String,
    /// Where its VXLAN socket will be.
    pub underlay: SocketAddrV4,
    /// Its pods' IPv4 addresses.
    pub subnet4: Ipv4Net,
    /// Its pods' IPv6 addresses.
    pub subnet6: Ipv6Net,
}

/// One pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodPlan {
    /// Its name: the node's letter and a number.
    pub name: PodName,
    /// The index of its node.
    pub node: usize,
}

impl Plan {
    /// A plan for `nodes` nodes with `pods` pods each, at underlay addresses that are free now.
    ///
    /// Which addresses are tried first follows from `seed`, so that demos that start together rarely look at
    /// the same ones.
    ///
    /// # Errors
    /// What the kernel said of the last address that was tried.
    pub fn new(nodes: u8, pods: usize, seed: u32) -> io::Result<Plan> {
        let mut last = io::ErrorKind::AddrInUse.into();
        for attempt in 0..TRIES {
            let slot = seed.wrapping_add(attempt) % SLOTS;
            // The usual port is lost on every address to a node or a kernel tunnel that has all of them.
            let port = DEFAULT_PORT + if attempt % 2 == 0 { 0 } else { 10_000 };
            let plan = Plan::at(nodes, pods, slot, port);
            match plan.nodes.iter().try_for_each(|n| vacant(n.underlay)) {
                Ok(()) => return Ok(plan),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// The plan for one slot of addresses.
    fn at(nodes: u8, pods: usize, slot: u32, port: u16) -> Plan {
        let base = u32::from(Ipv4Addr::new(127, 77, 0, 0)) + slot * SLOT;
        let nodes: Vec<NodePlan> = (1..=nodes).map(|n| NodePlan::number(n, base, port)).collect();
        let on = |(i, node): (usize, &NodePlan)| {
            let letter = node.name.clone();
            (1..=pods).map(move |k| PodPlan {
                name: PodName {
                    namespace: "demo".into(),
                    name: format!("{letter}{k}"),
                },
                node: i,
            })
        };
        let pods = nodes.iter().enumerate().flat_map(on).collect();
        Plan { nodes, pods }
    }

    /// The peers file; one serves all nodes, as each skips itself.
    pub fn peers(&self) -> String {
        let mut text = String::new();
        for n in &self.nodes {
            let _ = writeln!(
                text,
                "[[peer]]\nname = \"{}\"\nunderlay = \"{}\"\nsubnet = \"{}\"\nsubnet6 = \"{}\"\n",
                n.name, n.underlay, n.subnet4, n.subnet6
            );
        }
        text
    }

    /// The way between two pods, named by their indices.
    pub fn path(&self, from: usize, to: usize) -> Path {
        if self.pods[from].node == self.pods[to].node {
            Path::SameNode
        } else {
            Path::CrossNode
        }
    }

    /// The pairs whose throughput tells of their path: the first of each kind.
    pub fn samples(&self) -> Vec<(usize, usize)> {
        let first = |path| (1..self.pods.len()).find(|to| self.path(0, *to) == path);
        let found = [Path::SameNode, Path::CrossNode].map(first);
        found.into_iter().flatten().map(|to| (0, to)).collect()
    }
}

impl NodePlan {
    /// What it is started with.
    pub fn spec(&self) -> NodeSpec<'static> {
        let value = |flag: &str, value: String| [format!("--{flag}"), value];
        let flags = [
            value("name", self.name.clone()),
            value("subnet", self.subnet4.to_string()),
            value("subnet6", self.subnet6.to_string()),
            value("bind", self.underlay.ip().to_string()),
            value("port", self.underlay.port().to_string()),
            // An ordinary network's, so that the figures mean something beyond loopback.
            value("underlay-mtu", "1500".into()),
        ];
        NodeSpec {
            name: self.name.clone(),
            args: flags.into_iter().flatten().collect(),
            netns: None,
        }
    }

    fn number(n: u8, base: u32, port: u16) -> NodePlan {
        let subnet6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(n), 0, 0, 0, 0);
        NodePlan {
            name: char::from(b'a' + n - 1).to_string(),
            underlay: SocketAddrV4::new(Ipv4Addr::from(base + u32::from(n)), port),
            subnet4: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, n, 0), 24),
            subnet6: Ipv6Net::new_assert(subnet6, 64),
        }
    }
}

fn vacant(at: SocketAddrV4) -> io::Result<()> {
    UdpSocket::bind(at).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::peers::parse;
    use crate::daemon::config::{Config, given::Given, keys};
    use crate::daemon::links::Host;
    use std::collections::HashSet;

    #[test]
    fn names_and_addresses_follow_from_the_numbers() {
        let plan = Plan::at(2, 2, 9, 8472);
        let names: Vec<_> = plan.pods.iter().map(|p| p.name.to_string()).collect();
        assert_eq!(names, ["demo/a1", "demo/a2", "demo/b1", "demo/b2"]);
        let b = &plan.nodes[1];
        assert_eq!(b.underlay, "127.77.1.34:8472".parse().unwrap());
        assert_eq!(b.subnet4, "10.244.2.0/24".parse().unwrap());
        assert_eq!(b.subnet6, "fd00:10:244:2::/64".parse().unwrap());
        assert_eq!(plan.samples(), [(0, 1), (0, 2)]);
        assert_eq!(Plan::at(1, 1, 0, 1).samples(), []);
        assert_eq!(Plan::at(2, 1, 0, 1).samples(), [(0, 1)]);
        assert_eq!(Plan::at(1, 2, 0, 1).path(0, 1), Path::SameNode);
    }

    #[test]
    fn a_demo_fits_the_kernels_neighbour_tables() {
        assert_eq!(fits_room(2, 2, 1024), Ok(()));
        assert_eq!(fits_room(26, 4, 1024), Ok(()));
        assert_eq!(fits_room(1, 30, 1024), Ok(()));
        let e = fits_room(1, 32, 1024).unwrap_err();
        assert!(
            e.contains("have 1024 neighbours") && e.contains("gc_thresh3=2048"),
            "{e}"
        );
        assert_eq!(fits_room(1, 100, 65_536), Ok(()));
        assert!(
            fits_room(2, 100, 65_536)
                .unwrap_err()
                .contains("more than 128 pods")
        );
    }

    #[test]
    fn slots_share_no_address() {
        let mut seen = HashSet::new();
        for slot in 0..SLOTS {
            for node in Plan::at(MAX_NODES, 1, slot, 1).nodes {
                let ip = *node.underlay.ip();
                assert_eq!(ip.octets()[..2], [127, 77]);
                assert!(seen.insert(ip), "{ip}");
            }
        }
    }

    #[test]
    fn demos_at_once_find_addresses_of_their_own() {
        let first = Plan::new(2, 1, 77).unwrap();
        let held: Vec<_> = first.nodes.iter().map(|n| UdpSocket::bind(n.underlay)).collect();
        assert!(held.iter().all(Result::is_ok));
        let second = Plan::new(2, 1, 77).unwrap();
        assert_ne!(first.nodes[0].underlay, second.nodes[0].underlay);
    }

    #[test]
    fn nodes_understand_the_peers_file() {
        let plan = Plan::at(3, 1, 0, 9000);
        let mut given = Given::default();
        given.flag(&keys::NODE, vec!["b".into()]);
        given.flag(&keys::SUBNET, vec![plan.nodes[1].subnet4.to_string()]);
        let own = Config::understand(&given, &Host::default()).unwrap().local_node();
        let found = parse("peers.toml".as_ref(), &plan.peers(), &own, 1).unwrap();
        let names: Vec<_> = found.peers.iter().map(|p| p.name.to_string()).collect();
        assert_eq!(names, ["a", "c"]);
        assert_eq!(found.peers[1].underlay, plan.nodes[2].underlay.into());
    }
}
