//! The host as a port: a TAP of the node's own in the network namespace it runs in, so that the host, and what shares its
//! network, reaches pods and is reached.
//!
//! ```text
//!  podwire0   10.244.1.1/32              the gateway's addresses, MTU of the pods
//!             10.244.0.0/16 via 10.244.1.0 onlink src 10.244.1.1
//!             fd00:10:244::/48 via fe80::.. src fd00:10:244:1::1
//! ```
//!
//! The next hop of all routes is the node itself (its VTEP's address, the gateway's link-local), so that the host has one
//! neighbour for all pods, which is written down, and asks for none of them. The interface ends with the node, its routes with the interface: there
//! is nothing to undo, and what a node that was killed had is gone before the next one is there.

mod networks;

use super::admin::Worker;
use super::command::Command;
use super::config::{Config, MapHost};
use super::links;
use crate::api::{AttachPlan, HostPortInfo};
use crate::model::{Change, Mac, PodName, PortCounters, PortSpec, TapCaps};
use crate::pod::link::{self, LinkError};
use crate::sys::netlink::{Batch, NetlinkError, family};
use crate::sys::tap::{self, TapError};
use crossbeam_channel::bounded;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use networks::{InTheWay, Networks, among_neighbours, in_the_way};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// What the interface's alias begins with; the node's name follows.
const OWNER: &str = "podwire node ";
/// How long the interface of a process that was killed is waited for to go.
const GOES_WITHIN: Duration = Duration::from_secs(2);
/// Where the host's own connections have to begin: ports below are clients' that the gateway stands for.
const OWN_PORTS: u16 = 32_768;
/// How long the worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Routes in one message to the kernel, which takes some hundred kilobytes.
const AT_ONCE: usize = 500;
/// Problems that are named; of thousands only the first can be read.
const FEW: usize = 5;

/// Why the host has no port.
#[derive(Debug, thiserror::Error)]
pub enum HostPortError {
    /// The host's network is not this user's to change.
    #[error(
        "{0} in this host's network needs CAP_NET_ADMIN there (run the node as root, or leave host_port off: published \
         ports and `podwire forward` need no rights)"
    )]
    NotPermitted(String),
    /// Another node has it.
    #[error(
        "{name} is the port of podwire node {node} (name another one, as --host-port podwire1, or end that node)"
    )]
    OtherNode {
        /// The interface.
        name: String,
        /// The node.
        node: String,
    },
    /// Something else has that name.
    #[error(
        "there is an interface {0} already, which is no podwire's (name another one, as --host-port podwire1, or `ip link \
         del {0}`)"
    )]
    Foreign(String),
    /// A route or address of the host is in the way.
    #[error("{}", in_words(.0))]
    InTheWay(InTheWay),
    /// All that is sent to the gateway's address goes to loopback.
    #[error(
        "egress.map_host has the gateway's address lead to this host's loopback, so it cannot be the host's own (map \
         another address, as --map-host 192.0.2.200, or leave host_port off)"
    )]
    Mapped,
    /// IPv6 is switched off.
    #[error(
        "{name} cannot have {ip}: IPv6 is off on this host (`sysctl -w net.ipv6.conf.all.disable_ipv6=0`, or run the node \
         without an IPv6 subnet)"
    )]
    NoIpv6 {
        /// The interface.
        name: String,
        /// The address it should have.
        ip: IpAddr,
    },
    /// There is no TAP.
    #[error(transparent)]
    Tap(TapError),
    /// The interface could not be configured.
    #[error("the host's interface cannot be set up: {0}")]
    Link(LinkError),
    /// The data path did not take it.
    #[error("the host's port cannot be put to work: {0}")]
    Worker(String),
    /// The kernel did not answer, or refused a route.
    #[error("the host's routes cannot be set up: {0}")]
    Routes(String),
}

fn in_words(what: &InTheWay) -> String {
    match what {
        InTheWay::Address { ip, by, net } => format!(
            "{net} is the pods', and this host has {ip} in it, at {by} (give the pods another network, or leave host_port \
             off)"
        ),
        InTheWay::Route { to, by, net } => format!(
            "this host has a route to {to} already ({by}), and {net} is the pods' (`ip route del {to}`, after whatever made \
             it, as flannel or a bridge of another CNI plugin, was removed; or leave host_port off)"
        ),
    }
}

/// The interface on the host and its routes: the control thread's side of the port.
#[derive(Debug)]
pub struct HostLink {
    name: String,
    index: u32,
    /// The addresses it has, and the next hop of its routes, by family.
    ends: Vec<(IpAddr, IpAddr)>,
    networks: Networks,
    routes: BTreeSet<IpNet>,
    /// Networks without a route, and why.
    refused: BTreeMap<IpNet, String>,
    problems: Vec<String>,
}

impl HostLink {
    /// Make it, and give the worker its TAP.
    ///
    /// # Errors
    /// See [`HostPortError`]; nothing is left of it then.
    pub fn open(config: &Config, worker: &dyn Worker) -> Result<HostLink, HostPortError> {
        let (mut port, tap, spec) = HostLink::make(config, worker.gso_max_segs(config.pod_mtu))?;
        let (reply, answer) = bounded(1);
        worker
            .send(Command::AddHost { spec, tap, reply })
            .map_err(HostPortError::Worker)?;
        let late = "the data path did not answer within 1 s (see the log)";
        let answer = answer.recv_timeout(PATIENCE);
        answer
            .unwrap_or_else(|_| Err(late.into()))
            .map_err(HostPortError::Worker)?;
        log::info!("this host is in the pod network, by {}", port.name);
        if let Some(first) = first_own_port().filter(|first| *first < OWN_PORTS) {
            port.complain(format!(
                "connections of this host begin at port {first}, where clients are that the gateway stands for: some may fail \
                 (`sysctl -w net.ipv4.ip_local_port_range='{OWN_PORTS} 60999'`)"
            ));
        }
        Ok(port)
    }

    /// The interface with its addresses and the routes that are known already; its TAP, and what the worker must know.
    fn make(config: &Config, gso_max_segs: u32) -> Result<(HostLink, OwnedFd, PortSpec), HostPortError> {
        let name = config.host_port.interface();
        if config.egress.map_host.contains(&MapHost::Gateway) {
            return Err(HostPortError::Mapped);
        }
        let networks = Networks::new(config.host_networks());
        let (tap, caps) = create(name, config)?;
        // Not before: what a node that was killed had in the way is gone now.
        let others = ask()?.into_iter().filter(|l| l.name != name);
        let routes = links::main_routes().map_err(|e| HostPortError::Routes(e.to_string()))?;
        if let Some(what) = in_the_way(&networks.wanted(), &others.collect::<Vec<_>>(), &routes) {
            return Err(HostPortError::InTheWay(what));
        }
        let local = config.local_node();
        let (mac, mtu) = (local.host_mac(), local.pod_mtu);
        let (ip4, ip6) = (local.gateway4(), local.gateway6());
        let plan = AttachPlan {
            ip4: ip4.map(Ipv4Net::from),
            ip6: ip6.map(Ipv6Net::from),
            mac,
            mtu,
            gateway4: None,
            gateway6: None,
            gso_max_segs,
            gso_max_size: super::admin::GSO_MAX_SIZE,
            tx_queue_len: super::admin::TX_QUEUE_LEN,
            offload: config.tap,
        };
        let owner = format!("{OWNER}{}", config.node);
        link::configure_own(name, &plan, &owner).map_err(|e| match e {
            LinkError::NoIpv6 { name, address } => HostPortError::NoIpv6 {
                name,
                ip: address.into(),
            },
            e => HostPortError::Link(e),
        })?;
        let four = ip4.map(IpAddr::V4).zip(local.vtep4().map(IpAddr::V4));
        let six = ip6
            .map(IpAddr::V6)
            .map(|ip| (ip, local.gateway_mac.link_local().into()));
        let mut port = HostLink {
            name: name.into(),
            index: link::index(name).map_err(HostPortError::Link)?,
            ends: four.into_iter().chain(six).collect(),
            networks,
            routes: BTreeSet::new(),
            refused: BTreeMap::new(),
            problems: Vec::new(),
        };
        port.settle_neighbours(local.gateway_mac)?;
        port.route();
        let refused = port.problems().next().cloned();
        if let Some(why) = refused {
            return Err(HostPortError::Routes(why));
        }
        let spec = PortSpec {
            pod: PodName::of_host(),
            mac,
            ip4,
            ip6,
            mtu,
            caps,
            bandwidth: None,
        };
        Ok((port, tap, spec))
    }

    /// Its name.
    pub fn interface(&self) -> &str {
        &self.name
    }

    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ends.iter().map(|(own, _)| *own)
    }

    /// Have routes to the peers there are now.
    pub fn follow(&mut self, changes: &[Change]) {
        self.networks.follow(changes);
        self.route();
    }

    /// Something about it is not as it should be, and a person should know.
    pub fn complain(&mut self, what: String) {
        log::warn!("{what}");
        if self.problems.len() < FEW {
            self.problems.push(what);
        }
    }

    /// What a person should look at.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        self.problems.iter().chain(self.refused.values().take(FEW))
    }

    /// As `podwire status` shows it.
    pub fn info(&self, counters: Option<PortCounters>) -> HostPortInfo {
        let gone = counters
            .is_none()
            .then(|| "its interface was deleted (restart the node)".into());
        HostPortInfo {
            interface: self.name.clone(),
            missing: gone,
            addresses: self.addresses().collect(),
            networks: self.routes.iter().copied().collect(),
            counters: counters.unwrap_or_default(),
        }
    }

    /// Write down who the next hops are: for a process that is bound to another address of the host the kernel would ask in
    /// that address' name, and get no answer.
    fn settle_neighbours(&self, mac: Mac) -> Result<(), HostPortError> {
        let mut batch = Batch::default();
        for (_, via) in &self.ends {
            let mut message = NeighbourMessage::default();
            message.header.family = family(*via);
            message.header.ifindex = self.index;
            message.header.state = NeighbourState::Permanent;
            message.header.kind = RouteType::Unicast;
            message.attributes = vec![
                NeighbourAttribute::Destination((*via).into()),
                NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
            ];
            batch.create(
                &format!("writing down who {via} is"),
                RouteNetlinkMessage::NewNeighbour(message),
            );
        }
        batch
            .send()
            .map(drop)
            .map_err(|e| HostPortError::Routes(e.to_string()))
    }

    /// Make the routes that are missing, and delete those that lead to nobody.
    fn route(&mut self) {
        let mut wanted = self.networks.wanted();
        self.refused.retain(|net, _| wanted.contains(net));
        // The kernel is asked only when there is something to ask for.
        let mut refused = match wanted.is_subset(&self.routes) {
            true => BTreeMap::new(),
            false => self.hindered(&wanted),
        };
        for net in &wanted {
            if let Some((peer, ip)) = self.networks.peer_within(net) {
                let why = format!("peer {peer} is at {ip} there (give the pods another network)");
                refused.insert(*net, why);
            }
        }
        wanted.retain(|net| !refused.contains_key(net));
        let gone: Vec<IpNet> = self.routes.difference(&wanted).copied().collect();
        for some in gone.chunks(AT_ONCE) {
            let mut batch = Batch::default();
            for net in some.iter() {
                if let Some(route) = self.to(*net) {
                    batch.try_set(net.to_string(), RouteNetlinkMessage::DelRoute(route));
                }
                self.routes.remove(net);
            }
            // One that somebody else has deleted is as well.
            if let Err(e) = batch.send() {
                log::debug!("routes of the host are not deleted: {e}");
            }
        }
        let new: Vec<IpNet> = wanted.difference(&self.routes).copied().collect();
        for some in new.chunks(AT_ONCE) {
            let mut batch = Batch::default();
            for net in some {
                if let Some(route) = self.to(*net) {
                    batch.try_create(net.to_string(), RouteNetlinkMessage::NewRoute(route));
                    self.routes.insert(*net);
                }
            }
            for net in self.refused(batch, some) {
                self.routes.remove(&net);
                let why = format!(
                    "the kernel refuses the route, mostly since there is another one (`ip route get {}`; remove it and \
                     restart the node)",
                    net.network()
                );
                refused.insert(net, why);
            }
        }
        let before = std::mem::take(&mut self.refused);
        for (net, why) in refused {
            let what = format!("this host does not reach {net} by {}: {why}", self.name);
            if before.get(&net) != Some(&what) {
                log::warn!("{what}");
            }
            self.refused.insert(net, what);
        }
    }

    /// Which of `wanted` that have no route yet would take something of the host's away, and what.
    fn hindered(&self, wanted: &BTreeSet<IpNet>) -> BTreeMap<IpNet, String> {
        let new = wanted.difference(&self.routes);
        let asked = ask().and_then(|links| {
            let routes = links::main_routes().map_err(|e| HostPortError::Routes(e.to_string()))?;
            Ok((links, routes))
        });
        let (mut links, mut routes) = match asked {
            Ok(asked) => asked,
            Err(e) => return new.map(|net| (*net, e.to_string())).collect(),
        };
        links.retain(|l| l.index != self.index);
        routes.retain(|r| r.by != Some(self.index));
        let why = |net: &IpNet| {
            if let Some(what) = in_the_way([net], &links, &routes) {
                return Some(in_words(&what));
            }
            // Those of the configuration were chosen by a person, who may mean it so.
            let around = among_neighbours(net, &routes).filter(|_| !self.networks.is_fixed(net))?;
            Some(format!(
                "it is within {around}, where this host's own neighbours are (give the pods another network)"
            ))
        };
        new.filter_map(|net| Some((*net, why(net)?))).collect()
    }

    /// Send a batch of routes to `nets`; those that the kernel refused.
    fn refused(&self, batch: Batch, nets: &[IpNet]) -> Vec<IpNet> {
        match batch.send() {
            Ok(refused) => nets
                .iter()
                .filter(|n| refused.contains(&n.to_string()))
                .copied()
                .collect(),
            Err(e) => {
                log::warn!("routes of the host: {e}");
                nets.to_vec()
            }
        }
    }

    /// The route to a network; none when the port has no address of its family.
    fn to(&self, net: IpNet) -> Option<RouteMessage> {
        let same = |(own, _): &&(IpAddr, IpAddr)| own.is_ipv4() == net.network().is_ipv4();
        let (own, via) = *self.ends.iter().find(same)?;
        let mut message = RouteMessage::default();
        message.header.address_family = family(own);
        message.header.destination_prefix_length = net.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        // No network of the interface holds the next hop.
        message.header.flags = RouteFlags::Onlink;
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::from(net.network())),
            RouteAttribute::Gateway(RouteAddress::from(via)),
            RouteAttribute::PrefSource(RouteAddress::from(own)),
            RouteAttribute::Oif(self.index),
        ];
        Some(message)
    }
}

/// The TAP. An interface of this node's that is there is one of a process that was killed, and about to go.
fn create(name: &str, config: &Config) -> Result<(OwnedFd, TapCaps), HostPortError> {
    let begun = Instant::now();
    loop {
        match tap::create(name, config.tap) {
            Err(TapError::Taken(_)) => {}
            made => return made.map_err(|e| tap_error(name, e)),
        }
        let link = ask()?.into_iter().find(|l| l.name == name);
        // Gone meanwhile, when there is none.
        let alias = link.map(|l| l.alias.unwrap_or_default());
        let late = begun.elapsed() > GOES_WITHIN;
        match alias.as_deref().map(|a| a.strip_prefix(OWNER)) {
            Some(Some(node)) if late || node != config.node.as_str() => {
                let (name, node) = (name.into(), node.into());
                return Err(HostPortError::OtherNode { name, node });
            }
            Some(None) => return Err(HostPortError::Foreign(name.into())),
            None if late => return Err(HostPortError::Foreign(name.into())),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn tap_error(name: &str, e: TapError) -> HostPortError {
    match e {
        TapError::NotPermitted(_) => HostPortError::NotPermitted(format!("making {name}")),
        e => HostPortError::Tap(e),
    }
}

/// The first port of connections that the kernel chooses for the programs of this host, when it says so.
fn first_own_port() -> Option<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    range.split_whitespace().next()?.parse().ok()
}

fn ask() -> Result<Vec<links::Link>, HostPortError> {
    let failed = |e: io::Error| HostPortError::Routes(NetlinkError::Socket(e).to_string());
    links::links().map_err(failed)
}
