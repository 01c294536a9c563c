//! The configuration of Services.

use super::dns::domain;
use super::given::Given;
use super::{Config, beside, keys, text};
use crate::control::services::{Rules, default_ranges};
use crate::control::strict::Mistake;
use crate::dns::name::Fqdn;
use ipnet::IpNet;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Node ports when nobody says which: Kubernetes' own.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Least and most bits a range leaves for addresses; the most is Kubernetes'.
const BITS: RangeInclusive<u8> = 4..=20;

/// Where Services are stated, and what the nodes of a cluster agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicesConfig {
    /// The folder of manifests.
    pub dir: Option<PathBuf>,
    /// Ranges of virtual addresses; empty means the usual ones.
    pub cluster_ip: Vec<IpNet>,
    /// Range of node ports.
    pub node_ports: RangeInclusive<u16>,
    /// Domain of their names.
    pub domain: Fqdn,
}

impl ServicesConfig {
    pub(super) fn understand(given: &Given) -> Result<ServicesConfig, Mistake> {
        let dir = given.value(&keys::SERVICES, text)?;
        let cluster_ip = given.values(&keys::CLUSTER_IP, range)?.unwrap_or_default();
        let sixes = cluster_ip.iter().filter(|n| n.network().is_ipv6()).count();
        if sixes > 1 || cluster_ip.len() - sixes > 1 {
            let what = "two ranges are of one family (give one of each at most)";
            return Err(given.mistake(&keys::CLUSTER_IP, what));
        }
        Ok(ServicesConfig {
            dir: dir.map(|p| beside(&given.origin(&keys::SERVICES), &p)),
            cluster_ip,
            node_ports: given.value(&keys::NODE_PORTS, ports)?.unwrap_or(NODE_PORTS),
            domain: match given.value(&keys::SERVICE_DOMAIN, domain)? {
                Some(domain) => domain,
                None => usual_domain(),
            },
        })
    }

    /// The range of node ports, as people write it.
    pub fn port_range(&self) -> String {
        format!("{}-{}", self.node_ports.start(), self.node_ports.end())
    }
}

impl Config {
    /// The ranges of Services' addresses, those left out that overlap with the pods' network.
    pub fn service_ranges(&self) -> Vec<IpNet> {
        let network = self.pod_network();
        let apart = |range: &IpNet| !network.iter().any(|n| n.contains(range) || range.contains(n));
        self.asked_ranges().into_iter().filter(apart).collect()
    }

    /// The ranges whose addresses never lead out: those of a node that is told of Services by a store or a folder, whatever
    /// it has heard so far, and those that somebody gave. The usual ones of a node on its own may be a network of the host's.
    pub fn closed_service_ranges(&self) -> Vec<IpNet> {
        let meant =
            !self.services.cluster_ip.is_empty() || self.services.dir.is_some() || self.store.is_some();
        if meant { self.service_ranges() } else { Vec::new() }
    }

    /// Which ranges of Services' addresses are not used, and why.
    pub fn service_range_problems(&self) -> Vec<String> {
        let used = self.service_ranges();
        let left = self.asked_ranges().into_iter().filter(|r| !used.contains(r));
        left.map(|range| {
            format!(
                "Services get no addresses of {range}, as it overlaps with the pods' network (set services.cluster_ip, on \
                 all nodes)"
            )
        })
        .collect()
    }

    fn asked_ranges(&self) -> Vec<IpNet> {
        match self.services.cluster_ip.is_empty() {
            true => default_ranges(self.subnet4.is_some(), self.subnet6.is_some()),
            false => self.services.cluster_ip.clone(),
        }
    }

    /// What counts for all Services.
    pub fn service_rules(&self) -> Rules {
        let own = [self.subnet4.map(IpNet::from), self.subnet6.map(IpNet::from)];
        Rules {
            node: self.node.clone(),
            ranges: self.service_ranges(),
            node_ports: self.services.node_ports.clone(),
            own: own.into_iter().flatten().map(|n| n.trunc()).collect(),
            network: self.pod_network(),
        }
    }
}

fn usual_domain() -> Fqdn {
    Fqdn::of_labels(["cluster", "local"]).unwrap_or_else(|| unreachable!("two short labels are a name"))
}

fn range(s: &str) -> Result<IpNet, String> {
    let net: IpNet = s
        .parse()
        .map_err(|_| format!("{s:?} is no range (write 10.96.0.0/16 or fd00:10:96::/112)"))?;
    let bits = net.max_prefix_len() - net.prefix_len();
    let (most, least) = (
        net.max_prefix_len() - BITS.end(),
        net.max_prefix_len() - BITS.start(),
    );
    match net.network() == net.addr() && BITS.contains(&bits) {
        true => Ok(net),
        false if net.network() != net.addr() => Err(format!(
            "{net} is not its network's address (write {})",
            net.trunc()
        )),
        false => Err(format!(
            "/{} is out of range (use /{most} to /{least})",
            net.prefix_len()
        )),
    }
}

fn ports(s: &str) -> Result<RangeInclusive<u16>, String> {
    let split = s
        .split_once('-')
        .and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    match split {
        Some((first, last)) if (1..=last).contains(&first) => Ok(first..=last),
        _ => Err(format!("{s:?} is no range of ports (write 30000-32767)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_are_meant_do_not_lead_out() {
        use super::super::keys::Key;
        use crate::daemon::links::Host;
        let closed = |key: Option<(&'static Key, &str)>| {
            let mut given = Given::default();
            given.flag(&keys::NODE, vec!["n1".into()]);
            given.flag(&keys::SUBNET, vec!["10.244.1.0/24".into()]);
            if let Some((key, value)) = key {
                given.flag(key, vec![value.into()]);
            }
            let config = Config::understand(&given, &Host::default()).unwrap();
            let nets = config.policy(&Host::default()).services;
            nets.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(closed(None), [""; 0]);
        assert_eq!(closed(Some((&keys::SERVICES, "/tmp"))), ["10.96.0.0/16"]);
        assert_eq!(
            closed(Some((&keys::CLUSTER_IP, "10.32.0.0/12"))),
            ["10.32.0.0/12"]
        );
        assert_eq!(
            closed(Some((&keys::CLUSTER_IP, "10.244.0.0/20"))),
            [""; 0],
            "the pods'"
        );
    }

    #[test]
    fn ranges_are_checked() {
        for good in [
            "10.96.0.0/16",
            "10.96.0.0/12",
            "10.0.0.0/28",
            "fd00:10:96::/112",
            "fd00::/108",
        ] {
            assert!(range(good).is_ok(), "{good}");
        }
        for (bad, told) in [
            ("10.96.0.0", "is no range"),
            ("10.96.0.1/16", "write 10.96.0.0/16"),
            ("10.0.0.0/8", "use /12 to /28"),
            ("10.0.0.0/30", "use /12 to /28"),
            ("fd00::/64", "use /108 to /124"),
        ] {
            assert!(range(bad).unwrap_err().contains(told), "{bad}");
        }
        assert_eq!(ports("30000-32767"), Ok(NODE_PORTS));
        for bad in ["30000", "0-5", "9-8", "a-b", "1-70000", ""] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
