//! Two nodes and three pods, in a form that all contenders share: hosts in network namespaces, a veth between
//! them, two pods on the first and one on the second.
//!
//! ```text
//!   pod a1   pod a2            pod b1
//!      \\       /                 |
//!      host a == ul0 ==== ul0 == host b      198.18.0.1 and 198.18.0.2 (RFC 2544 section C.2.2)
//! ```

use super::kernel;
use super::plan::{Path, Underlay};
use crate::api::{Client, Reply, Request};
use crate::cmd::lab::nodes::{NodeSpec, Nodes};
use crate::cmd::lab::pod::Pod;
use crate::cmd::lab::watch::Watch;
use crate::cmd::{Exit, Failure, table};
use crate::model::PodName;
use crate::sys::ethtool;
use crate::sys::netlink::{Batch, LOOPBACK, NetlinkError, address, link, up};
use crate::sys::ns::NetNs;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use rustix::net::{AddressFamily, SocketType};
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The device of a host that leads to the other.
pub const DEVICE: &str = "ul0";
/// Addresses of the hosts there.
pub const HOSTS: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2)];
/// What a veth must not do to be like a wire: hand on what only a network card could cut.
const WHOLE: [&str; 8] = [
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-generic-segmentation",
    "tx-udp-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
];

/// A contender's network. Dropping it leaves nothing.
pub struct Lab {
    /// What is measured.
    pub contender: &'static str,
    // In this order: pods go before the nodes they hang on, these before their hosts.
    pods: [Pod; 3],
    nodes: Option<Nodes>,
    hosts: [NetNs; 2],
}

impl Lab {
    /// Podwire: a node on each host.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn podwire(watch: &mut Watch) -> Result<Lab, Failure> {
        watch.stage("making two hosts with a podwire node each");
        let hosts = hosts(DEVICE, HOSTS)?;
        let nodes = nodes(&hosts, &[], watch)?;
        let pod = |name: &str, node: &str| Pod::attach(pod_name(name), &nodes.socket(node), Vec::new());
        Ok(Lab {
            contender: "podwire",
            pods: [pod("a1", "n1")?, pod("a2", "n1")?, pod("b1", "n2")?],
            nodes: Some(nodes),
            hosts,
        })
    }

    /// The kernel's own: a bridge on each host, and a VXLAN device on it.
    ///
    /// # Errors
    /// When the kernel lacks one of them.
    pub fn kernel(watch: &mut Watch) -> Result<Lab, Failure> {
        watch.stage("making two hosts with a kernel bridge and a VXLAN device each");
        let hosts = hosts(DEVICE, HOSTS)?;
        kernel::bridges(&hosts, HOSTS)?;
        let pod =
            |name: &str, host: &NetNs, n| kernel::bridged_pod(name, host, Ipv4Addr::new(10, 244, 0, n), None);
        Ok(Lab {
            contender: "kernel",
            pods: [
                pod("a1", &hosts[0], 1)?,
                pod("a2", &hosts[0], 2)?,
                pod("b1", &hosts[1], 3)?,
            ],
            nodes: None,
            hosts,
        })
    }

    /// The two pods of a path: who sends, and who receives.
    pub fn pair(&self, path: Path) -> (&Pod, &Pod) {
        let [a1, a2, b1] = &self.pods;
        match path {
            Path::Cross => (a1, b1),
            Path::Same => (a1, a2),
        }
    }

    /// Make the veth between the hosts what `underlay` says.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lay(&self, underlay: Underlay) -> Result<(), Failure> {
        let wire = underlay == Underlay::Wire;
        let mut features: Vec<(&str, bool)> = WHOLE.iter().map(|name| (*name, !wire)).collect();
        features.push(("rx-gro", wire));
        for host in &self.hosts {
            host.within(|| ethtool::set_features(DEVICE, &features))?
                .map_err(|e| failed(format!("offloads of the veth cannot be switched: {e}")))?;
        }
        Ok(())
    }

    /// How the nodes did it, in sentences.
    pub fn remarks(&self) -> Vec<String> {
        let nodes = self.nodes.iter();
        nodes
            .flat_map(|nodes| ["n1", "n2"].map(|name| remark(nodes, name)))
            .collect()
    }
}

/// A podwire node on each host, n1 and n2, peers of each other.
///
/// # Errors
/// When one does not come up.
pub fn nodes(hosts: &[NetNs; 2], also: &[String], watch: &mut Watch) -> Result<Nodes, Failure> {
    let mut peers = String::new();
    let mut specs = Vec::new();
    for (n, (netns, at)) in (1..).zip(hosts.iter().zip(HOSTS)) {
        let (four, six) = (format!("10.244.{n}.0/24"), format!("fd00:10:244:{n}::/64"));
        let _ = writeln!(
            peers,
            "[[peer]]\nname = \"n{n}\"\nunderlay = \"{at}\"\nsubnet = \"{four}\"\nsubnet6 = \"{six}\""
        );
        let name = format!("n{n}");
        let bind = at.to_string();
        let args = [
            "--name",
            &name,
            "--subnet",
            &four,
            "--subnet6",
            &six,
            "--bind",
            &bind,
        ];
        specs.push(NodeSpec {
            args: args
                .into_iter()
                .map(String::from)
                .chain(also.iter().cloned())
                .collect(),
            name,
            netns: Some(netns),
        });
    }
    Nodes::start(&specs, &peers, watch)
}

/// What a node's counters tell of its work.
fn remark(nodes: &Nodes, name: &str) -> String {
    let asked = Client::connect(&nodes.socket(name)).and_then(|mut c| c.call(&Request::Status));
    let Ok(Reply::Status(s)) = asked else {
        return format!("{name} gives no status");
    };
    let c = &s.counters;
    let each = |bytes: u64, calls: u64| table::bytes(bytes / calls.max(1));
    format!(
        "{name}: pod MTU {}, at most {} segments a send, receive buffer {}; {} a TAP read, {} a TAP write, {:.1} \
         datagrams a message received; {} drops",
        s.pod_mtu.0,
        s.offloads.gso_max_segs,
        table::bytes(s.offloads.receive_buffer as u64),
        each(c.tap_read_bytes, c.tap_reads),
        each(c.tap_write_bytes, c.tap_writes),
        c.datagrams_from_peers as f64 / c.underlay_messages.max(1) as f64,
        c.dropped
    )
}

/// Name of a pod of a lab.
pub fn pod_name(name: &str) -> PodName {
    PodName {
        namespace: "bench".into(),
        name: name.into(),
    }
}

/// Two network namespaces with a veth between them, `device` in each with its address.
///
/// # Errors
/// When the kernel refuses.
pub fn hosts(device: &str, addresses: [Ipv4Addr; 2]) -> Result<[NetNs; 2], Failure> {
    let hosts = [NetNs::make()?, NetNs::make()?];
    let refused = |e: NetlinkError| failed(format!("no veth can be made: {e}"));
    hosts[0]
        .within(|| {
            let mut batch = Batch::default();
            batch.create("a veth pair", veth(device, device, hosts[1].fd()));
            batch.send()
        })?
        .map_err(refused)?;
    for (host, at) in hosts.iter().zip(addresses) {
        host.within(|| {
            let mut batch = Batch::default();
            let index = index(device)?;
            batch.set("lo up", up(LOOPBACK));
            batch.set("the veth up", up(index));
            batch.create("its address", address(index, net(at), AddressScope::Universe));
            batch.send()
        })?
        .map_err(refused)?;
    }
    Ok(hosts)
}

/// A veth pair: `name` here, `other` in the namespace `there`.
pub fn veth(name: &str, other: &str, there: BorrowedFd<'_>) -> RouteNetlinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(other.into()),
        LinkAttribute::NetNsFd(there.as_raw_fd()),
    ];
    device(name, InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(peer))))
}

/// A device of some kind.
pub fn device(name: &str, kind: InfoKind, data: Option<InfoData>) -> RouteNetlinkMessage {
    let info = [Some(LinkInfo::Kind(kind)), data.map(LinkInfo::Data)];
    let RouteNetlinkMessage::SetLink(mut message) = link(0, Vec::new()) else {
        unreachable!("it is what link() makes");
    };
    message.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::LinkInfo(info.into_iter().flatten().collect()),
    ];
    RouteNetlinkMessage::NewLink(message)
}

/// The number of an interface of the current network namespace.
///
/// # Errors
/// When there is none of that name.
pub fn index(name: &str) -> Result<u32, NetlinkError> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None);
    let found = socket.and_then(|s| rustix::net::netdevice::name_to_index(&s, name));
    found.map_err(|e| NetlinkError::Socket(e.into()))
}

/// An address in the network of all of its kind here: /24.
pub fn net(ip: Ipv4Addr) -> ipnet::IpNet {
    ipnet::Ipv4Net::new_assert(ip, 24).into()
}

/// Require that a program is there.
///
/// # Errors
/// When it is not installed.
pub fn installed(program: &str) -> Result<(), Failure> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let also = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    let found = std::env::split_paths(&paths)
        .chain(also)
        .any(|dir| dir.join(program).is_file());
    match found {
        true => Ok(()),
        false => Err(failed(format!("{program} is not installed"))),
    }
}

/// A failure of the lab.
pub fn failed(message: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_installed_or_not() {
        assert!(installed("sh").is_ok());
        assert!(installed("no-such-program-here").is_err());
    }
}
