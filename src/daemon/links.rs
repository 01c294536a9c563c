//! The host's interfaces and addresses, and what else it answers as its own, asked of the kernel (rtnetlink), since sysfs may show another
//! namespace's.

use crate::sys::netlink::dump;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// An interface.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is a loopback.
    pub loopback: bool,
    /// Whether it was brought up.
    pub up: bool,
    /// The UDP port of a kernel VXLAN device.
    pub vxlan: Option<u16>,
    /// What somebody wrote down of it (ip-link(8): alias).
    pub alias: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What a configuration takes from the host it is for.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The host's name.
    pub name: String,
    /// Its interfaces.
    pub links: Vec<Link>,
    /// Networks whose every address is its own by a route.
    pub local: Vec<IpNet>,
    /// The address IPv4 packets to far away leave from.
    pub default4: Option<IpAddr>,
    /// The same for IPv6.
    pub default6: Option<IpAddr>,
}

impl Host {
    /// Ask this host. What cannot be learned is left out.
    pub fn ask() -> Host {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        // Connecting a UDP socket sends nothing: it makes the kernel choose a route and a source address.
        let leaves = |from: IpAddr, to: IpAddr| {
            let socket = UdpSocket::bind((from, 0)).ok()?;
            socket.connect((to, 9)).ok()?;
            // A route through an interface without an address leaves from none.
            socket
                .local_addr()
                .ok()
                .map(|a| a.ip())
                .filter(|ip| !ip.is_unspecified())
        };
        Host {
            name: name.split('.').next().unwrap_or_default().into(),
            links: links()
                .inspect_err(|e| log::debug!("the kernel does not list interfaces: {e}"))
                .unwrap_or_default(),
            local: local_routes()
                .inspect_err(|e| log::debug!("the kernel does not list local routes: {e}"))
                .unwrap_or_default(),
            default4: leaves(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
            default6: leaves(
                Ipv6Addr::UNSPECIFIED.into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
            ),
        }
    }

    /// All that is its own: addresses of its interfaces, and networks by routes.
    pub fn own(&self) -> impl Iterator<Item = IpNet> {
        let addresses = self.links.iter().flat_map(|l| &l.addresses);
        addresses
            .map(|ip| IpNet::from(*ip))
            .chain(self.local.iter().copied())
    }

    /// The MTU a tunnel bound to `ip` has; that of the default route for the unspecified address. `None` when
    /// unknown, and for loopback, whose 65,536 bytes no wire has.
    pub fn mtu_behind(&self, ip: IpAddr) -> Option<u16> {
        let ip = match ip {
            IpAddr::V4(a) if a.is_unspecified() => self.default4?,
            IpAddr::V6(a) if a.is_unspecified() => self.default6?,
            other => other,
        };
        let link = self.links.iter().find(|l| l.addresses.contains(&ip))?;
        (!link.loopback).then(|| u16::try_from(link.mtu).unwrap_or(u16::MAX))
    }
}

/// All interfaces of this network namespace, with their addresses.
///
/// # Errors
/// When the kernel does not answer on rtnetlink.
pub fn links() -> io::Result<Vec<Link>> {
    let mut links: BTreeMap<u32, Link> = BTreeMap::new();
    dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
        if let RouteNetlinkMessage::NewLink(m) = message {
            links.insert(m.header.index, link(&m));
        }
    })?;
    dump(
        RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        |message| {
            if let RouteNetlinkMessage::NewAddress(m) = message {
                // Beside a point-to-point peer, IFA_LOCAL is the own address.
                let own = m.attributes.iter().find_map(|a| match a {
                    AddressAttribute::Local(ip) => Some(*ip),
                    _ => None,
                });
                let any = m.attributes.iter().find_map(|a| match a {
                    AddressAttribute::Address(ip) => Some(*ip),
                    _ => None,
                });
                if let (Some(link), Some(ip)) = (links.get_mut(&m.header.index), own.or(any)) {
                    link.addresses.push(ip);
                }
            }
        },
    )?;
    Ok(links.into_values().collect())
}

/// What the table `local` says is to be delivered on this host (ip-route(8)). Those of other tables hold for some packets
/// only (TPROXY).
fn local_routes() -> io::Result<Vec<IpNet>> {
    let mut nets = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut ask = RouteMessage::default();
        (ask.header.address_family, ask.header.table) = (family, libc::RT_TABLE_LOCAL);
        let each = |message| {
            if let RouteNetlinkMessage::NewRoute(m) = message {
                nets.extend(local_net(&m));
            }
        };
        match dump(RouteNetlinkMessage::GetRoute(ask), each) {
            // There is no such table of a family that is turned off.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            done => done?,
        }
    }
    Ok(nets)
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub to: IpNet,
    /// By which interface; none for those that lead nowhere.
    pub by: Option<u32>,
    /// Whether its addresses are neighbours: no router is between.
    pub on_link: bool,
}

/// The routes of the main table, what ip-route(8) shows unless asked for more.
///
/// # Errors
/// When the kernel does not answer on rtnetlink.
pub fn main_routes() -> io::Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut ask = RouteMessage::default();
        (ask.header.address_family, ask.header.table) = (family, libc::RT_TABLE_MAIN);
        let each = |message| {
            if let RouteNetlinkMessage::NewRoute(m) = message
                && m.header.table == libc::RT_TABLE_MAIN
                && let Some(to) = destination(&m)
            {
                let by = m.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
                let is_router =
                    |a: &RouteAttribute| matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
                let on_link = by.is_some() && !m.attributes.iter().any(is_router);
                routes.push(Route { to, by, on_link });
            }
        };
        match dump(RouteNetlinkMessage::GetRoute(ask), each) {
            // There is no such table of a family that is turned off.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            done => done?,
        }
    }
    Ok(routes)
}

fn local_net(m: &RouteMessage) -> Option<IpNet> {
    let is_local = matches!(m.header.kind, RouteType::Local | RouteType::Anycast);
    (is_local && m.header.table == libc::RT_TABLE_LOCAL)
        .then(|| destination(m))
        .flatten()
}

fn destination(m: &RouteMessage) -> Option<IpNet> {
    let to = m.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    });
    // That for everything names none.
    let to = to.unwrap_or(match m.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    });
    Some(IpNet::new(to, m.header.destination_prefix_length).ok()?.trunc())
}

fn link(m: &LinkMessage) -> Link {
    let mut link = Link {
        index: m.header.index,
        loopback: m.header.flags.contains(LinkFlags::Loopback),
        up: m.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in &m.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::LinkInfo(infos) => {
                let port = infos.iter().find_map(|i| match i {
                    LinkInfo::Data(InfoData::Vxlan(data)) => data.iter().find_map(|d| match d {
                        InfoVxlan::Port(port) => Some(*port),
                        _ => None,
                    }),
                    _ => None,
                });
                link.vxlan = link.vxlan.or(port);
            }
            _ => {}
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_a_loopback() {
        let links = links().unwrap();
        let lo = links.iter().find(|l| l.loopback).unwrap();
        assert!(lo.mtu > 0 && lo.name == "lo");
        let host = Host::ask();
        assert_eq!(host.mtu_behind("127.0.0.1".parse().unwrap()), None);
        let all: IpNet = "127.0.0.0/8".parse().unwrap();
        assert!(!lo.up || host.local.contains(&all), "{:?}", host.local);
    }
}
