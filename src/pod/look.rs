//! What there is in the current network namespace: an interface with its addresses, and default routes.

use super::link::MARK;
use crate::model::Mac;
use crate::sys::netlink::dump;
use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An interface.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Seen {
    /// Its MAC.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it was brought up.
    pub up: bool,
    /// Whether it is a TUN or TAP.
    pub tap: bool,
    /// What it is called besides (`ip link set NAME alias TEXT`).
    pub alias: Option<String>,
    /// Its addresses, with the lengths of their networks.
    pub addresses: Vec<IpNet>,
}

impl Seen {
    /// Whether podwire made it for the attachment of this mark ([`super::link::mark`]).
    pub fn is_marked(&self, mark: &str) -> bool {
        self.tap && self.alias.as_deref() == Some(mark)
    }

    /// Whether podwire made it for another attachment.
    pub fn is_anothers(&self, mark: &str) -> bool {
        let other = |alias: &&str| alias.strip_prefix(MARK).is_some_and(|rest| rest.starts_with(' '));
        self.alias
            .as_deref()
            .filter(other)
            .is_some_and(|alias| alias != mark)
    }
}

/// The interface of that name, if there is one.
///
/// # Errors
/// When the kernel does not answer on rtnetlink.
pub fn interface(name: &str) -> io::Result<Option<Seen>> {
    let mut found: Option<(u32, Seen)> = None;
    dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
        if let RouteNetlinkMessage::NewLink(m) = message
            && m.attributes
                .iter()
                .any(|a| *a == LinkAttribute::IfName(name.into()))
        {
            found = Some((m.header.index, seen(&m)));
        }
    })?;
    let Some((index, mut seen)) = found else {
        return Ok(None);
    };
    let ask = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    dump(ask, |message| {
        let RouteNetlinkMessage::NewAddress(m) = message else {
            return;
        };
        let ip = m.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(ip) | AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        let net = ip.and_then(|ip| IpNet::new(ip, m.header.prefix_len).ok());
        if m.header.index == index {
            seen.addresses.extend(net);
        }
    })?;
    Ok(Some(seen))
}

fn seen(m: &LinkMessage) -> Seen {
    let mut seen = Seen {
        up: m.header.flags.contains(LinkFlags::Up),
        ..Seen::default()
    };
    for attribute in &m.attributes {
        match attribute {
            LinkAttribute::Address(mac) => seen.mac = mac.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => seen.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => seen.alias = Some(alias.clone()),
            LinkAttribute::LinkInfo(infos) => {
                seen.tap = infos.contains(&LinkInfo::Kind(InfoKind::Tun));
            }
            _ => {}
        }
    }
    seen
}

/// Whether packets to everywhere have a way, of one family.
pub fn has_default_route(six: bool) -> bool {
    !default_routes(six).is_empty()
}

/// The default routes of a family: interface, and gateway (none for one without).
pub fn default_routes(six: bool) -> Vec<(String, Option<IpAddr>)> {
    let file = if six { "ipv6_route" } else { "route" };
    // A kernel without that family has no such file, and no route.
    let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
    let parse = if six { default6 } else { default4 };
    text.lines().filter_map(parse).collect()
}

/// `/proc/net/route`: interface, destination, gateway, flags, three counts, mask; numbers as they lie in memory.
fn default4(line: &str) -> Option<(String, Option<IpAddr>)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [device, "00000000", gateway, _, _, _, _, "00000000", ..] = fields[..] else {
        return None;
    };
    let gateway = u32::from_str_radix(gateway, 16).ok()?;
    let gateway = Ipv4Addr::from(gateway.to_ne_bytes());
    let gateway = (!gateway.is_unspecified()).then_some(IpAddr::V4(gateway));
    Some((device.into(), gateway))
}

/// `/proc/net/ipv6_route`: destination, length, source, length, next hop, metric, two counts, flags, interface.
fn default6(line: &str) -> Option<(String, Option<IpAddr>)> {
    /// The kernel's own, which leads nowhere (RTF_REJECT).
    const REJECT: u32 = 0x200;
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [dst, "00", _, "00", hop, _, _, _, flags, device] = fields[..] else {
        return None;
    };
    let everywhere = dst.bytes().all(|b| b == b'0');
    let flags = u32::from_str_radix(flags, 16).ok()?;
    if !everywhere || flags & REJECT != 0 || device == "lo" {
        return None;
    }
    let hop = Ipv6Addr::from(u128::from_str_radix(hop, 16).ok()?);
    let gateway = (!hop.is_unspecified()).then_some(IpAddr::V6(hop));
    Some((device.into(), gateway))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_seen() {
        let lo = interface("lo").unwrap().unwrap();
        assert!(!lo.tap && lo.mtu > 0);
        assert_eq!(interface("no-such-device").unwrap(), None);
    }

    #[test]
    fn podwires_own_is_told_from_others() {
        let of = |tap, mac: &str, alias: Option<&str>| Seen {
            mac: mac.parse().ok(),
            tap,
            alias: alias.map(Into::into),
            ..Seen::default()
        };
        let mac = "0a:58:0a:f4:01:02";
        let own = "podwire pods/abc";
        for (tap, alias, marked, anothers) in [
            (true, Some(own), true, false),
            (false, Some(own), false, false),
            (true, Some("podwire other/abc"), false, true),
            (true, Some("podwire node n1"), false, true),
            // An older podwire's, and such as podwire did not make.
            (true, Some("podwire"), false, false),
            (true, Some("podwires pods/abc"), false, false),
            (true, Some("vm"), false, false),
            (true, None, false, false),
        ] {
            let seen = of(tap, mac, alias);
            assert_eq!(
                (seen.is_marked(own), seen.is_anothers(own)),
                (marked, anothers),
                "{seen:?}"
            );
        }
    }

    #[test]
    fn default_routes_are_told_from_others() {
        // As Linux 6.18 prints them.
        let line = "eth0\t00000000\t0101F40A\t0003\t0\t0\t0\t00000000\t0\t0\t0";
        let via: IpAddr = "10.244.1.1".parse().unwrap();
        if cfg!(target_endian = "little") {
            assert_eq!(default4(line), Some(("eth0".into(), Some(via))));
        }
        assert_eq!(
            default4("eth0\t0001F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0"),
            None
        );
        assert_eq!(default4("Iface\tDestination\tGateway"), None);
        let zero = "0".repeat(32);
        let hop = "fd000010024400010000000000000001";
        let six = format!("{zero} 00 {zero} 00 {hop} 00000400 00000001 00000000 00000003     eth0");
        let via: IpAddr = "fd00:10:244:1::1".parse().unwrap();
        assert_eq!(default6(&six), Some(("eth0".into(), Some(via))));
        let own = format!("{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo");
        assert_eq!(default6(&own), None);
    }
}
