//! Where pods may go outside of the pod network: decided by address alone.

use super::datagrams::{self, MAX_MOUTHS};
use super::half_open::Share;
use super::tcp::{self, MAX_FLOWS};
use crate::model::{DropReason, PortId};
use crate::stack::Trouble;
use ipnet::{IpNet, Ipv4Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Loopback addresses pods come from where the host's programs are to tell them apart.
pub const POD_SOURCES: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 88, 0, 0), 16);

/// An address of the pod network behind which there is something of the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The address pods use.
    pub from: IpAddr,
    /// Only this port of it; all when none.
    pub port: Option<u16>,
    /// Where it leads, on the host.
    pub to: IpAddr,
    /// The port there; the same when none.
    pub to_port: Option<u16>,
    /// Each pod comes from a loopback address of its own (of [`POD_SOURCES`]), so that it can be told from others.
    pub by_pod: bool,
}

/// The addresses at which a host answers itself: those of its interfaces, and networks that a route makes its own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Own(
    /// In their order, none in another one.
    Vec<IpNet>,
);

impl Own {
    /// Whether an address is among them.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let after = self.0.partition_point(|n| n.network() <= ip);
        self.0[..after].last().is_some_and(|n| n.contains(&ip))
    }
}

impl FromIterator<IpNet> for Own {
    fn from_iter<T: IntoIterator<Item = IpNet>>(nets: T) -> Own {
        let mut nets = IpNet::aggregate(&nets.into_iter().collect());
        nets.sort_unstable();
        Own(nets)
    }
}

/// What pods may reach by the host's sockets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    /// Whether pods reach anything outside at all. What is mapped they reach anyway.
    pub open: bool,
    /// The pod network: what no pod or peer of it holds is nobody's, and goes nowhere else.
    pub network: Vec<IpNet>,
    /// Where virtual addresses of Services are from: those that no Service has are nobody's.
    pub services: Vec<IpNet>,
    /// Networks the administrator closed.
    pub denied: Vec<IpNet>,
    /// The host's own addresses, beside its loopback.
    pub own: Own,
    /// UDP port of the overlay: peers would take what comes from this host there for this node's own.
    pub overlay: Option<u16>,
    /// Descriptors the node may have; limits are as they stand when that is not known.
    pub descriptors: Option<usize>,
    /// What is open by name.
    pub mapped: Vec<Mapping>,
}

/// Why an address is closed to pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closed {
    /// Nothing of this node leads there.
    NoRoute,
    /// It would, but is not allowed.
    Denied,
    /// It is an address of Services, and no Service's.
    Unserved,
}

impl Closed {
    /// What it is counted under.
    pub fn reason(self) -> DropReason {
        match self {
            Closed::NoRoute => DropReason::NoRoute,
            Closed::Denied => DropReason::EgressDenied,
            Closed::Unserved => DropReason::NoService,
        }
    }

    /// What a sender is told that is not refused by a reset.
    pub fn trouble(self) -> Trouble {
        match self {
            Closed::NoRoute => Trouble::NetUnreachable,
            Closed::Denied => Trouble::Prohibited,
            Closed::Unserved => Trouble::PortUnreachable,
        }
    }
}

/// How many flows and mouths there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// TCP flows of all pods.
    pub flows: usize,
    /// Of one, or of one port of a Service.
    pub flows_per_pod: usize,
    /// Datagram sockets of all pods.
    pub mouths: usize,
    /// Of one.
    pub mouths_per_pod: usize,
}

impl Limits {
    /// Flows that one may have while there are so many of all. Clients at a port of a Service are strangers: they leave as
    /// many to all others as they take.
    pub(super) fn flows_of(&self, share: Share, open: usize) -> usize {
        match share {
            Share::Pod(_) => self.flows_per_pod,
            Share::Service(_) => self.flows_per_pod.min(self.flows.saturating_sub(open)),
        }
    }
}

impl Policy {
    /// The limits: so that a quarter of the node's descriptors is left for all else, and one pod leaves some to others.
    pub fn limits(&self) -> Limits {
        let most = self.descriptors.unwrap_or(usize::MAX);
        Limits {
            flows: MAX_FLOWS.min(most / 8 * 5),
            flows_per_pod: tcp::MAX_PER_PORT.min(most / 2),
            mouths: MAX_MOUTHS.min(most / 8),
            mouths_per_pod: datagrams::MAX_PER_PORT.min(most / 16),
        }
    }

    /// Where on the host a mapped address and port lead; none when it is not mapped.
    pub fn mapping(&self, to: SocketAddr) -> Option<SocketAddr> {
        let found = self.find(to)?;
        Some(SocketAddr::new(found.to, found.to_port.unwrap_or(to.port())))
    }

    fn find(&self, to: SocketAddr) -> Option<&Mapping> {
        let is = |m: &&Mapping| m.from == to.ip() && m.port.is_none_or(|p| p == to.port());
        self.mapped.iter().find(is)
    }

    /// Whether anything of this address is mapped.
    pub fn is_mapped(&self, ip: IpAddr) -> bool {
        self.mapped.iter().any(|m| m.from == ip)
    }

    /// The address a pod knows a host's socket by, which has sent something to it.
    pub fn name_of(&self, host: SocketAddr, six: bool) -> Option<SocketAddr> {
        let found = self.mapped.iter().find(|m| {
            m.to == host.ip() && m.from.is_ipv6() == six && m.to_port.is_none_or(|p| p == host.port())
        })?;
        Some(SocketAddr::new(found.from, found.port.unwrap_or(host.port())))
    }

    /// Which address of the host a port's packets to a mapped address come from; the host's choice when none.
    pub fn source(&self, to: SocketAddr, port: PortId) -> Option<IpAddr> {
        let found = self.find(to)?;
        let [a, b, ..] = POD_SOURCES.addr().octets();
        let [high, low] = port.0.to_be_bytes();
        (found.by_pod && found.to.is_ipv4()).then(|| Ipv4Addr::new(a, b, high, low).into())
    }

    /// Where a pod's packet to `to` goes on the host.
    ///
    /// # Errors
    /// Nowhere.
    pub fn judge(&self, to: SocketAddr) -> Result<SocketAddr, Closed> {
        match self.mapping(to) {
            Some(host) => Ok(host),
            None => self.permit(to.ip()).map(|()| to),
        }
    }

    /// The same for UDP.
    ///
    /// # Errors
    /// Nowhere.
    pub fn judge_udp(&self, to: SocketAddr) -> Result<SocketAddr, Closed> {
        match self.mapping(to) {
            None if self.overlay == Some(to.port()) => Err(Closed::Denied),
            _ => self.judge(to),
        }
    }

    /// Whether an address is of the pod network.
    pub fn is_inside(&self, ip: IpAddr) -> bool {
        self.network.iter().any(|n| n.contains(&ip))
    }

    /// Whether pods may go to an address that is not mapped.
    ///
    /// # Errors
    /// Why not.
    pub fn permit(&self, ip: IpAddr) -> Result<(), Closed> {
        if !self.open || self.is_inside(ip) {
            return Err(Closed::NoRoute);
        }
        // An IPv4 address in IPv6 clothes would reach the host's IPv4 (RFC 4291 section 2.5.5.2).
        let plain = match ip {
            IpAddr::V6(six) => six.to_ipv4_mapped().map_or(ip, IpAddr::V4),
            IpAddr::V4(_) => ip,
        };
        if self.services.iter().any(|n| n.contains(&plain)) {
            return Err(Closed::Unserved);
        }
        let closed = plain != ip
            || plain.is_loopback()
            || plain.is_unspecified()
            || plain == IpAddr::V4(Ipv4Addr::BROADCAST)
            || plain == IpAddr::V6(Ipv6Addr::LOCALHOST)
            || self.own.contains(plain)
            || self.denied.iter().any(|n| n.contains(&plain));
        if closed { Err(Closed::Denied) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            open: true,
            descriptors: None,
            network: vec!["10.244.0.0/16".parse().unwrap(), "fd00:1::/48".parse().unwrap()],
            services: vec!["10.96.0.0/16".parse().unwrap()],
            denied: vec![
                "192.168.0.0/16".parse().unwrap(),
                "169.254.169.254/32".parse().unwrap(),
            ],
            overlay: Some(8472),
            own: ["203.0.113.7/32", "2001:db8::7/128"]
                .iter()
                .map(|n| n.parse().unwrap())
                .collect(),
            mapped: vec![
                Mapping {
                    from: "10.244.1.1".parse().unwrap(),
                    port: Some(53),
                    to: "127.0.0.1".parse().unwrap(),
                    to_port: Some(5353),
                    by_pod: true,
                },
                Mapping {
                    from: "10.244.1.0".parse().unwrap(),
                    port: None,
                    to: "127.0.0.1".parse().unwrap(),
                    to_port: None,
                    by_pod: false,
                },
            ],
        }
    }

    #[test]
    fn the_world_is_open_and_the_host_is_not() {
        let p = policy();
        for open in ["198.51.100.1:80", "[2001:db8::1]:443", "8.8.8.8:53"] {
            let to: SocketAddr = open.parse().unwrap();
            assert_eq!(p.judge(to), Ok(to), "{open}");
        }
        for (to, why) in [
            ("127.0.0.1:22", Closed::Denied),
            ("127.8.0.1:22", Closed::Denied),
            ("[::1]:22", Closed::Denied),
            ("[::ffff:127.0.0.1]:22", Closed::Denied),
            ("[::ffff:198.51.100.1]:22", Closed::Denied),
            ("203.0.113.7:22", Closed::Denied),
            ("[2001:db8::7]:22", Closed::Denied),
            ("192.168.7.1:80", Closed::Denied),
            ("169.254.169.254:80", Closed::Denied),
            ("255.255.255.255:67", Closed::Denied),
            ("0.0.0.0:22", Closed::Denied),
            ("10.244.9.9:80", Closed::NoRoute),
            ("[fd00:1:0:5::2]:80", Closed::NoRoute),
            ("10.244.1.1:80", Closed::NoRoute),
            ("10.96.200.1:80", Closed::Unserved),
        ] {
            assert_eq!(p.judge(to.parse().unwrap()), Err(why), "{to}");
        }
        let peer = "198.51.100.1:8472".parse().unwrap();
        assert_eq!(
            (p.judge_udp(peer), p.judge(peer)),
            (Err(Closed::Denied), Ok(peer))
        );
        let shut = Policy {
            open: false,
            ..policy()
        };
        assert_eq!(shut.judge("8.8.8.8:53".parse().unwrap()), Err(Closed::NoRoute));
        assert!(shut.judge("10.244.1.1:53".parse().unwrap()).is_ok());
        assert_eq!(
            p.judge_udp("10.96.200.1:53".parse().unwrap()),
            Err(Closed::Unserved)
        );
    }

    proptest::proptest! {
        #[test]
        fn own_addresses_are_found_as_one_by_one(
            nets in proptest::collection::vec((proptest::num::u8::ANY, proptest::num::u8::ANY, 0u8..=32, proptest::bool::ANY), 0..20),
            a in proptest::num::u8::ANY,
            b in proptest::num::u8::ANY,
        ) {
            let six = |ip: [u8; 4]| Ipv6Addr::from(u128::from(u32::from_be_bytes(ip)) << 96);
            let nets: Vec<IpNet> = nets.iter().map(|(a, b, len, is_six)| match is_six {
                true => IpNet::new(six([*a, 0, 0, *b]).into(), *len).unwrap(),
                false => IpNet::new([*a, 0, 0, *b].into(), *len).unwrap(),
            }).collect();
            let own: Own = nets.iter().copied().collect();
            for ip in [IpAddr::from([a, 0, 0, b]), six([a, 0, 0, b]).into()] {
                proptest::prop_assert_eq!(own.contains(ip), nets.iter().any(|n| n.contains(&ip)), "{:?}", own);
            }
        }
    }

    #[test]
    fn what_is_mapped_has_two_names() {
        let p = policy();
        for (name, host) in [
            ("10.244.1.1:53", "127.0.0.1:5353"),
            ("10.244.1.0:8080", "127.0.0.1:8080"),
        ] {
            let (name, host): (SocketAddr, SocketAddr) = (name.parse().unwrap(), host.parse().unwrap());
            assert_eq!(p.judge(name), Ok(host));
            assert_eq!(p.name_of(host, false), Some(name));
        }
        assert!(p.is_mapped("10.244.1.1".parse().unwrap()));
        assert_eq!(p.name_of("127.0.0.2:9".parse().unwrap(), false), None);
        let port = PortId(0x0102);
        assert_eq!(
            p.source("10.244.1.1:53".parse().unwrap(), port),
            Some([127, 88, 1, 2].into())
        );
        assert_eq!(p.source("10.244.1.0:53".parse().unwrap(), port), None);
        assert_eq!(p.source("8.8.8.8:53".parse().unwrap(), port), None);
    }
}
