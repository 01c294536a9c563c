//! What a cluster agrees on about Services: ranges of addresses and ports, and what is the pods'.

use super::manifest::Family;
use crate::model::NodeName;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// What counts for all Services. Nodes of one cluster must agree on all but the first and `own`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// This node.
    pub node: NodeName,
    /// Where virtual addresses are from: one range of each family at most.
    pub ranges: Vec<IpNet>,
    /// Where node ports are from.
    pub node_ports: RangeInclusive<u16>,
    /// The subnets of this node's pods.
    pub own: Vec<IpNet>,
    /// The pods' network: no virtual address lies there.
    pub network: Vec<IpNet>,
}

/// Where virtual addresses are from when nobody says so: Kubernetes' usual range, and one of IPv6 where pods have that.
pub fn default_ranges(four: bool, six: bool) -> Vec<IpNet> {
    let four = four.then(|| {
        Ipv4Net::new(Ipv4Addr::new(10, 96, 0, 0), 16)
            .ok()
            .map(IpNet::from)
    });
    let base = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0);
    let six = six.then(|| Ipv6Net::new(base, 112).ok().map(IpNet::from));
    [four, six].into_iter().flatten().flatten().collect()
}

/// Consecutive numbers: addresses of a range, or ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pool {
    /// The first that is allocated.
    pub first: u128,
    /// How many there are.
    pub count: u32,
}

impl Rules {
    /// The families there are addresses of; the first is that of Services that ask for none.
    pub fn families(&self) -> Vec<Family> {
        [Family::V4, Family::V6]
            .into_iter()
            .filter(|f| self.range(*f).is_some())
            .collect()
    }

    fn range(&self, family: Family) -> Option<IpNet> {
        self.ranges
            .iter()
            .find(|r| Family::of(r.network()) == family)
            .copied()
    }

    /// What is allocated of a family. The range's beginning is left to those that are given by people, as in
    /// Kubernetes, so that these seldom find theirs in use.
    pub(super) fn addresses(&self, family: Family) -> Option<Pool> {
        let range = self.range(family)?;
        let (base, bits) = match range.network() {
            IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
            IpAddr::V6(ip) => (u128::from(ip), 128),
        };
        let size = 1u32 << u32::from(bits - range.prefix_len()).min(20);
        // The last of IPv4 is a broadcast's.
        let last = u32::from(range.network().is_ipv4());
        let given = (size / 16).clamp(16, 256).min(size / 2).max(1);
        Some(Pool {
            first: base + u128::from(given),
            count: size.saturating_sub(given + last),
        })
    }

    /// The node ports that are allocated: the first ones are left to people, too.
    pub(super) fn ports(&self) -> Pool {
        let (first, last) = (
            u32::from(*self.node_ports.start()),
            u32::from(*self.node_ports.end()),
        );
        let size = (last + 1).saturating_sub(first);
        let given = (size / 32).clamp(16, 128).min(size / 2);
        Pool {
            first: u128::from(first + given),
            count: size - given,
        }
    }

    /// Whether an address that somebody gives can be a Service's.
    ///
    /// # Errors
    /// The sentence why not.
    pub(super) fn check_virtual(&self, ip: IpAddr) -> Result<(), String> {
        self.check_foreign(ip)?;
        let Some(range) = self.range(Family::of(ip)) else {
            let what = format!(
                "{ip} is of a family without addresses for Services (add a range to services.cluster_ip)"
            );
            return Err(what);
        };
        match range.contains(&ip) && ip != range.network() && (ip.is_ipv6() || ip != range.broadcast()) {
            true => Ok(()),
            false => Err(format!(
                "{ip} is no address of services.cluster_ip, which is {range} (take one there, or leave it out)"
            )),
        }
    }

    /// Whether an address is none of the pods'.
    ///
    /// # Errors
    /// The sentence that it is.
    pub(super) fn check_foreign(&self, ip: IpAddr) -> Result<(), String> {
        let holds = |nets: &[IpNet]| nets.iter().find(|n| n.contains(&ip)).copied();
        if let Some(net) = holds(&self.own) {
            return Err(format!(
                "{ip} lies in {net}, which is this node's pods' subnet (take another)"
            ));
        }
        match holds(&self.network) {
            Some(net) => Err(format!(
                "{ip} lies in {net}, which is the pods' network (take another)"
            )),
            None => Ok(()),
        }
    }

    /// Whether an address is a virtual one's.
    pub(super) fn is_virtual(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|r| r.contains(&ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::services::catalogue::tests::rules;

    #[test]
    fn pools_leave_the_beginning_to_people() {
        let mut rules = rules();
        let four = rules.addresses(Family::V4).unwrap();
        assert_eq!(
            (
                IpAddr::from(Ipv4Addr::from(four.first as u32)).to_string(),
                four.count
            ),
            ("10.96.1.0".into(), 65_279)
        );
        let six = rules.addresses(Family::V6).unwrap();
        assert_eq!(
            (Ipv6Addr::from(six.first).to_string(), six.count),
            ("fd00:10:96::100".into(), 65_280)
        );
        assert_eq!(
            rules.ports(),
            Pool {
                first: 30_086,
                count: 2682
            }
        );
        rules.ranges = vec!["10.96.0.0/28".parse().unwrap()];
        assert_eq!(rules.addresses(Family::V4).unwrap().count, 7);
        rules.node_ports = 30_000..=30_000;
        assert_eq!(rules.ports().count, 1);
    }

    #[test]
    fn given_addresses_are_in_the_range_and_no_pods() {
        let rules = rules();
        for good in ["10.96.0.1", "10.96.255.254", "fd00:10:96::a"] {
            assert_eq!(rules.check_virtual(good.parse().unwrap()), Ok(()), "{good}");
        }
        for (bad, told) in [
            ("10.96.0.0", "services.cluster_ip"),
            ("10.96.255.255", "services.cluster_ip"),
            ("10.97.0.1", "services.cluster_ip"),
            ("10.244.1.7", "this node's pods"),
            ("10.244.9.7", "the pods' network"),
            ("fd00:10:97::1", "services.cluster_ip"),
        ] {
            let told_is = rules.check_virtual(bad.parse().unwrap()).unwrap_err();
            assert!(told_is.contains(told), "{bad}: {told_is}");
        }
    }
}
