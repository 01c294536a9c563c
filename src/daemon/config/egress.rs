//! What pods may reach outside of the pod network.

use super::given::Given;
use super::{Config, keys, switch};
use crate::control::strict::Mistake;
use crate::daemon::links::Host;
use crate::stack::egress::{Mapping, Policy};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::process::{Resource, getrlimit};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How much around a node's subnet is taken for the pod network when nobody says what is: flannel's usual network.
const AROUND4: u8 = 16;
/// The same for IPv6.
const AROUND6: u8 = 48;

/// The keys of `[egress]`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EgressConfig {
    /// Whether pods reach anything outside.
    pub open: bool,
    /// What they never reach.
    pub deny: Vec<IpNet>,
    /// The pod network; empty when it follows from the subnet, or the store.
    pub network: Vec<IpNet>,
    /// The pod network as the store says.
    pub cluster: Vec<IpNet>,
    /// Where on the host their questions for names are answered.
    pub names: Option<SocketAddr>,
    /// Addresses under which they reach the host's loopback.
    pub map_host: Vec<MapHost>,
}

/// An address under which pods reach the host's loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapHost {
    /// Their gateway's.
    Gateway,
    /// This one, outside of the pod network.
    At(IpAddr),
}

impl fmt::Display for MapHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapHost::Gateway => f.write_str("gateway"),
            MapHost::At(ip) => ip.fmt(f),
        }
    }
}

impl EgressConfig {
    pub(super) fn understand(given: &Given) -> Result<EgressConfig, Mistake> {
        let net = |s: &str| {
            let net: Result<IpNet, _> = s.parse();
            let host = || s.parse::<IpAddr>().map(IpNet::from);
            net.or_else(|_| host()).map(|n| n.trunc()).map_err(|_| {
                format!("{s:?} is no network (write 192.168.0.0/16, 2001:db8::/32 or an address)")
            })
        };
        let map = |s: &str| match s {
            "gateway" => Ok(MapHost::Gateway),
            _ => match s.parse::<IpAddr>() {
                Ok(ip) if !ip.is_loopback() && !ip.is_multicast() && !ip.is_unspecified() => {
                    Ok(MapHost::At(ip))
                }
                _ => Err(format!(
                    "{s:?} is no address for the host (write gateway, or an address outside of the pod network)"
                )),
            },
        };
        Ok(EgressConfig {
            open: switch(given, &keys::EGRESS)?,
            deny: given.values(&keys::EGRESS_DENY, net)?.unwrap_or_default(),
            network: given.values(&keys::POD_NETWORK, net)?.unwrap_or_default(),
            cluster: Vec::new(),
            names: None,
            map_host: given.values(&keys::MAP_HOST, map)?.unwrap_or_default(),
        })
    }
}

impl Config {
    /// What pods may reach, with the addresses this host has now.
    pub fn policy(&self, host: &Host) -> Policy {
        let local = self.local_node();
        let four = local.gateway4().map(IpAddr::V4);
        let gateways = four.into_iter().chain(local.gateway6().map(IpAddr::V6));
        let names = self.egress.names.into_iter().flat_map(|at| {
            gateways.clone().map(move |from| Mapping {
                from,
                port: Some(53),
                to: at.ip(),
                to_port: Some(at.port()),
                by_pod: true,
            })
        });
        Policy {
            open: self.egress.open,
            network: self.pod_network(),
            services: self.closed_service_ranges(),
            denied: self.egress.deny.clone(),
            overlay: self.port,
            descriptors: getrlimit(Resource::Nofile)
                .current
                .map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            own: host.own().collect(),
            mapped: names
                .chain(self.hosts().into_iter().map(|from| Mapping {
                    from,
                    port: None,
                    to: match from {
                        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                    },
                    to_port: None,
                    by_pod: false,
                }))
                .collect(),
        }
    }

    /// Addresses under which pods reach the host's loopback: what `host.podwire.internal` stands for.
    pub fn hosts(&self) -> Vec<IpAddr> {
        let local = self.local_node();
        let mut all = Vec::new();
        for host in &self.egress.map_host {
            match host {
                MapHost::At(ip) => all.push(*ip),
                MapHost::Gateway => {
                    all.extend(local.gateway4().map(IpAddr::V4));
                    all.extend(local.gateway6().map(IpAddr::V6));
                }
            }
        }
        all
    }

    /// What is pods' and never leaves by the host's sockets.
    pub fn pod_network(&self) -> Vec<IpNet> {
        let mut all = if self.egress.network.is_empty() {
            self.egress.cluster.clone()
        } else {
            self.egress.network.clone()
        };
        if all.is_empty() {
            let around4 = |n: Ipv4Net| Ipv4Net::new(n.network(), n.prefix_len().min(AROUND4));
            let around6 = |n: Ipv6Net| Ipv6Net::new(n.network(), n.prefix_len().min(AROUND6));
            all.extend(
                self.subnet4
                    .and_then(|n| around4(n).ok())
                    .map(|n| IpNet::from(n.trunc())),
            );
            all.extend(
                self.subnet6
                    .and_then(|n| around6(n).ok())
                    .map(|n| IpNet::from(n.trunc())),
            );
        }
        all.extend(self.subnet4.map(IpNet::from));
        all.extend(self.subnet6.map(IpNet::from));
        all
    }
}
