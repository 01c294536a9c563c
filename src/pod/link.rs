//! The pod's interface: MAC, MTU, queue, offload limits, addresses and routes, by rtnetlink.
//!
//! Everything goes to the kernel as one batch and comes back as one train of acknowledgements, because each
//! round trip takes the kernel's network configuration lock again. IPv6 is kept from inventing addresses: the
//! kernel neither derives a link-local address nor listens to router advertisements, and what podwire gives is
//! usable at once, without duplicate address detection (the node lets nobody else use it).

use crate::api::AttachPlan;
use crate::model::Attachment;
use crate::sys::netlink::{self, Batch, LOOPBACK, NetlinkError, address, family, link, up};
use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// The alias of interfaces that podwire made, by which they are told from those of others; that of a container's says more.
pub const MARK: &str = "podwire";
/// Longest alias: the kernel's IFALIASZ, without the final zero and one more that messages have.
const MAX_ALIAS: usize = 254;
/// Smallest MTU an IPv4 host must take (RFC 791).
const MIN_MTU: u16 = 68;
/// Smallest MTU of an IPv6 link (RFC 8200 section 5).
const MIN_MTU_V6: u16 = 1280;
/// Largest super-frame a TAP can carry; the kernel refuses a larger limit.
const TAP_GSO_MAX: u32 = 65_536;

/// How long an IPv6 address is waited for.
const FINISHED_WITHIN: Duration = Duration::from_millis(500);

/// Why an interface could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The plan itself is wrong; nothing was changed.
    #[error(
        "the node's plan for {name} cannot be carried out: {why} (this is a bug in podwire, please report it)"
    )]
    Plan {
        /// The interface.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The interface is not there.
    #[error("the interface {name} is gone: {source}")]
    Gone {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused a step.
    #[error("configuring {name} in the pod failed: {source}")]
    Netlink {
        /// The interface.
        name: String,
        /// The step and the kernel's answer.
        source: NetlinkError,
    },
    /// IPv6 is switched off.
    #[error(
        "{name} cannot have {address}: IPv6 is off in the pod's network namespace (`sysctl -w \
         net.ipv6.conf.all.disable_ipv6=0` in it, or run the node without an IPv6 subnet)"
    )]
    NoIpv6 {
        /// The interface.
        name: String,
        /// The address it should have.
        address: Ipv6Addr,
    },
    /// Another interface is the way out already.
    #[error(
        "{name} cannot be the way to {gateway}: the pod's network namespace has a default route already (`ip {} \
         route del default` in it, or detach the pod that brought it)",
        if .gateway.is_ipv4() { "-4" } else { "-6" }
    )]
    RouteTaken {
        /// The interface.
        name: String,
        /// The gateway it should lead to.
        gateway: IpAddr,
    },
}

/// Bring up `lo`, and make the interface `name` of the current network namespace what `plan` says, with `mark` as its alias.
///
/// # Errors
/// See [`LinkError`]. The plan is checked before the first change; undoing the rest is closing the TAP, which
/// takes the interface with its addresses and routes away.
pub fn configure(name: &str, plan: &AttachPlan, mark: &str) -> Result<(), LinkError> {
    let mut batch = Batch::default();
    batch.set("bringing lo up", up(LOOPBACK));
    carry_out(batch, name, plan, mark)
}

/// The alias of a pod's interface: whose it is, when a container runtime attached it, so that no other network's DEL takes it
/// for its own.
pub fn mark(attachment: Option<&Attachment>) -> String {
    /// What is left of a network's name that does not fit; a character that no name has and a hash follow.
    const CUT: usize = 90;
    let Some(Attachment {
        network, container, ..
    }) = attachment
    else {
        return MARK.into();
    };
    let whole = format!("{MARK} {network}/{container}");
    if whole.len() <= MAX_ALIAS {
        return whole;
    }
    // FNV-1a, which is the same in every version of podwire.
    let step = |hash: u64, b: u8| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    let hash = network.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    let begin: String = network.chars().take(CUT).collect();
    format!("{MARK} {begin}~{hash:016x}/{container}")
}

/// Make the interface `name` of the current network namespace what `plan` says, touch nothing else, and write down there
/// whose it is (`ip link` shows it as its alias).
///
/// # Errors
/// As [`configure`].
pub fn configure_own(name: &str, plan: &AttachPlan, owner: &str) -> Result<(), LinkError> {
    carry_out(Batch::default(), name, plan, owner)
}

fn carry_out(mut batch: Batch, name: &str, plan: &AttachPlan, alias: &str) -> Result<(), LinkError> {
    check(plan).map_err(|why| LinkError::Plan {
        name: name.into(),
        why,
    })?;
    let index = index(name)?;
    // Absent where IPv6 is compiled out or off, read-only in some containers: there the address generation
    // mode below still keeps the pod from making addresses of its own.
    let accept_ra = format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
    if let Err(e) = std::fs::write(&accept_ra, "0") {
        log::debug!("{accept_ra} stays as it is: {e}");
    }
    add_steps(&mut batch, index, plan, alias);
    let optional = batch.send().map_err(|e| netlink_error(name, plan, e))?;
    for refused in optional {
        log::debug!("{name}: this kernel refuses {refused}");
    }
    if let Some(net) = plan.ip6 {
        await_address(name, net.addr());
    }
    Ok(())
}

/// Delete the interface `name` of the current network namespace, whoever has its TAP.
///
/// # Errors
/// [`LinkError::Gone`], [`LinkError::Netlink`].
pub fn delete(name: &str) -> Result<(), LinkError> {
    let mut batch = Batch::default();
    batch.set("deleting it", netlink::gone(index(name)?));
    let failed = |source| LinkError::Netlink {
        name: name.into(),
        source,
    };
    batch.send().map(drop).map_err(failed)
}

/// The number of the interface `name` of the current network namespace.
///
/// # Errors
/// [`LinkError::Gone`].
pub fn index(name: &str) -> Result<u32, LinkError> {
    let family = rustix::net::AddressFamily::INET;
    rustix::net::socket(family, rustix::net::SocketType::DGRAM, None)
        .and_then(|s| rustix::net::netdevice::name_to_index(&s, name))
        .map_err(|e| LinkError::Gone {
            name: name.into(),
            source: e.into(),
        })
}

/// Wait until packets for `ip` are taken. The kernel finishes a new IPv6 address on a work queue of its own:
/// for some milliseconds it has the address, but no local route to it, and drops what comes (seen on 6.18).
/// On a kernel that shows no routes, or not within the time, the pod is ready when it is ready.
fn await_address(name: &str, ip: Ipv6Addr) {
    let begun = Instant::now();
    while let Ok(routes) = std::fs::read_to_string("/proc/thread-self/net/ipv6_route") {
        if has_local_route(&routes, name, ip) {
            return;
        }
        if begun.elapsed() > FINISHED_WITHIN {
            log::warn!(
                "{ip} is not ready on {name} after {} ms",
                FINISHED_WITHIN.as_millis()
            );
            return;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Whether `/proc/net/ipv6_route` has a host route for `ip` that is the interface's own (RTF_LOCAL).
fn has_local_route(routes: &str, name: &str, ip: Ipv6Addr) -> bool {
    const RTF_LOCAL: u32 = 0x8000_0000;
    let wanted = format!("{:032x}", u128::from(ip));
    routes.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [dst, len, .., flags, device] = fields[..] else {
            return false;
        };
        let local = u32::from_str_radix(flags, 16).is_ok_and(|f| f & RTF_LOCAL != 0);
        dst == wanted && len == "80" && local && device == name
    })
}

fn check(plan: &AttachPlan) -> Result<(), &'static str> {
    let least = if plan.ip6.is_some() { MIN_MTU_V6 } else { MIN_MTU };
    match () {
        () if plan.ip4.is_none() && plan.ip6.is_none() => Err("it has no address"),
        () if plan.mtu.0 < least => Err("its MTU is below the minimum of the IP version"),
        () if plan.mac.is_multicast() => Err("its MAC is a multicast address"),
        () if plan.mac.0 == [0; 6] => Err("its MAC is zero"),
        () => Ok(()),
    }
}

fn add_steps(batch: &mut Batch, index: u32, plan: &AttachPlan, alias: &str) {
    let basic = vec![
        LinkAttribute::Address(plan.mac.0.to_vec()),
        LinkAttribute::Mtu(u32::from(plan.mtu.0)),
        LinkAttribute::TxQueueLen(plan.tx_queue_len),
        LinkAttribute::IfAlias(alias.into()),
    ];
    batch.set("setting MAC, MTU, queue length and alias", link(index, basic));
    for attribute in limits(plan) {
        let what = format!("the super-frame limit {attribute:?}");
        batch.try_set(what, link(index, vec![attribute]));
    }
    // Must come before the interface goes up: that is when the kernel makes its link-local address.
    let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let quiet = link(index, vec![LinkAttribute::AfSpecUnspec(vec![inet6])]);
    match plan.ip6 {
        Some(_) => batch.set("stopping IPv6 address generation", quiet),
        None => batch.try_set("stopping IPv6 address generation".into(), quiet),
    }
    batch.set("bringing it up", up(index));
    if let Some(net) = plan.ip4 {
        batch.create(
            &format!("adding {net}"),
            address(index, net.into(), AddressScope::Universe),
        );
    }
    if let Some(net) = plan.ip6 {
        batch.create(
            &format!("adding {net}"),
            address(index, net.into(), AddressScope::Universe),
        );
        // 64 is a valid prefix length, so the fallback is never taken.
        let ll = ipnet::Ipv6Net::new(plan.mac.link_local(), 64).unwrap_or(net);
        batch.create(
            &format!("adding {ll}"),
            address(index, ll.into(), AddressScope::Link),
        );
    }
    let via4 = plan.gateway4.map(|g| (IpAddr::V4(g), plan.ip4.map(IpNet::V4)));
    let via6 = plan.gateway6.map(|g| (IpAddr::V6(g), plan.ip6.map(IpNet::V6)));
    for (gateway, net) in [via4, via6].into_iter().flatten() {
        // A gateway outside of the pod's subnet is still on this link: there is nothing else on it.
        let onlink = !net.is_some_and(|n| n.contains(&gateway));
        batch.create(&route_step(gateway), default_route(index, gateway, onlink));
    }
}

fn route_step(gateway: IpAddr) -> String {
    format!("adding the default route via {gateway}")
}

/// The limits an older kernel may not know; without them super-frames are split over more sends.
fn limits(plan: &AttachPlan) -> Vec<LinkAttribute> {
    let size = plan.gso_max_size.min(TAP_GSO_MAX);
    vec![
        LinkAttribute::GsoMaxSegs(plan.gso_max_segs.max(1)),
        LinkAttribute::GsoMaxSize(size),
        LinkAttribute::GsoIpv4MaxSize(size),
    ]
}

/// A default route by a gateway; with `onlink` the gateway need not be of a network of the interface.
pub fn default_route(index: u32, gateway: IpAddr, onlink: bool) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    if onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    message.attributes = vec![
        RouteAttribute::Gateway(RouteAddress::from(gateway)),
        RouteAttribute::Oif(index),
    ];
    RouteNetlinkMessage::NewRoute(message)
}

fn netlink_error(name: &str, plan: &AttachPlan, source: NetlinkError) -> LinkError {
    let gateways = plan.gateway4.map(IpAddr::V4).into_iter();
    let mut gateways = gateways.chain(plan.gateway6.map(IpAddr::V6));
    if let NetlinkError::Refused { what, errno } = &source
        && *errno == libc::EEXIST
        && let Some(gateway) = gateways.find(|g| *what == route_step(*g))
    {
        return LinkError::RouteTaken {
            name: name.into(),
            gateway,
        };
    }
    let off = [libc::EACCES, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];
    match (&source, plan.ip6) {
        // What the kernel answers to an IPv6 address while disable_ipv6 is set, or without IPv6 at all.
        (NetlinkError::Refused { errno, .. }, Some(net)) if off.contains(errno) => LinkError::NoIpv6 {
            name: name.into(),
            address: net.addr(),
        },
        _ => LinkError::Netlink {
            name: name.into(),
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Mac, OffloadMode, PodMtu};

    fn plan() -> AttachPlan {
        AttachPlan {
            ip4: Some("10.244.1.2/24".parse().unwrap()),
            ip6: Some("fd00:10:244:1::2/64".parse().unwrap()),
            mac: "0a:58:0a:f4:01:02".parse().unwrap(),
            mtu: PodMtu(1450),
            gateway4: Some("10.244.1.1".parse().unwrap()),
            gateway6: Some("fd00:10:244:1::1".parse().unwrap()),
            gso_max_segs: 44,
            gso_max_size: 65_536,
            tx_queue_len: 4000,
            offload: OffloadMode::On,
        }
    }

    #[test]
    fn a_local_route_is_told_from_others() {
        // As Linux 6.18 prints them: destination, length, source, length, next hop, metric, use, flags, device.
        let zero = "0".repeat(32);
        let line = |dst: &str, len, flags, dev| {
            format!("{dst} {len} {zero} 00 {zero} 00000000 00000002 00000000 {flags} {dev}\n")
        };
        let own = "fd000010024400010000000000000002";
        let ip: Ipv6Addr = "fd00:10:244:1::2".parse().unwrap();
        assert!(has_local_route(&line(own, "80", "80200001", "eth0"), "eth0", ip));
        let others = [
            line(own, "80", "00000001", "eth0"),
            line(own, "40", "80200001", "eth0"),
            line(own, "80", "80200001", "eth1"),
            line("fd000010024400010000000000000003", "80", "80200001", "eth0"),
            "nonsense\n".into(),
        ];
        assert!(!has_local_route(&others.concat(), "eth0", ip));
    }

    #[test]
    fn each_container_and_network_has_a_mark_of_its_own() {
        let of = |network: &str, container: &str| {
            mark(Some(&Attachment {
                network: network.into(),
                container: container.into(),
                ifname: "eth0".into(),
                namespace: None,
                mounts: None,
                uid: None,
            }))
        };
        assert_eq!(mark(None), MARK);
        assert_eq!(of("pods", "c0ffee"), "podwire pods/c0ffee");
        let long = "n".repeat(127);
        let (a, b) = (format!("{long}a"), format!("{long}b"));
        let container = "c".repeat(128);
        assert_ne!(of(&a, &container), of(&b, &container));
        assert!(of(&a, &container).len() <= MAX_ALIAS);
        assert!(of(&a, &container).ends_with(&container));
    }

    #[test]
    fn a_plan_is_checked_before_the_first_change() {
        assert!(check(&plan()).is_ok());
        let wrong = |change: fn(&mut AttachPlan)| {
            let mut p = plan();
            change(&mut p);
            check(&p).is_err()
        };
        assert!(wrong(|p| (p.ip4, p.ip6) = (None, None)));
        assert!(wrong(|p| p.mtu = PodMtu(1279)));
        assert!(wrong(|p| p.mac = Mac::BROADCAST));
        assert!(wrong(|p| p.mac = Mac::default()));
        assert!(!wrong(|p| (p.ip6, p.mtu) = (None, PodMtu(576))));
    }

    #[test]
    fn a_gateway_off_the_subnet_is_onlink() {
        let flags = |gateway: &str, onlink| match default_route(7, gateway.parse().unwrap(), onlink) {
            RouteNetlinkMessage::NewRoute(m) => m.header.flags,
            _ => unreachable!(),
        };
        assert_eq!(flags("10.244.1.1", false), RouteFlags::empty());
        assert_eq!(flags("fd00::1", true), RouteFlags::Onlink);
    }
}
