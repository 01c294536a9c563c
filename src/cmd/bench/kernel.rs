//! What one would use instead, on the same hosts: a kernel bridge, veth pods, and a VXLAN device on the bridge.

use super::lab::{device, failed, index, net, pod_name, veth};
use crate::cmd::Failure;
use crate::cmd::lab::pod::{IFNAME, Pod};
use crate::sys::netlink::{Batch, NetlinkError, address, link, up};
use crate::sys::ns::{NetNs, Target};
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute};
use std::net::Ipv4Addr;

/// The pods, each with the host it is on.
const PODS: [(&str, usize); 3] = [("a1", 0), ("a2", 0), ("b1", 1)];
/// UDP port of the tunnel (RFC 7348 section 8).
const PORT: u16 = 4789;
/// What the tunnel leaves of the veth's MTU.
const MTU: u32 = 1450;

/// Make bridges, tunnels and pods on two hosts with these addresses.
///
/// # Errors
/// When the kernel lacks one of them.
pub fn set_up(hosts: &[NetNs; 2], addresses: [Ipv4Addr; 2]) -> Result<[Pod; 3], Failure> {
    let refused = |e: NetlinkError| failed(format!("no kernel bridge with VXLAN can be made: {e}"));
    for (i, host) in hosts.iter().enumerate() {
        host.within(|| bridge_and_tunnel(addresses[i], addresses[1 - i]))?
            .map_err(refused)?;
    }
    let mut pods = Vec::new();
    for (n, (name, host)) in (1..).zip(PODS) {
        let four = Ipv4Addr::new(10, 244, 0, n);
        let pod = Pod::bare(pod_name(name), four, four.to_ipv6_mapped())?;
        let inside = NetNs::open(&Target::Pid(pod.pid()))?;
        hosts[host].within(|| plug(name, &inside))?.map_err(refused)?;
        inside.within(|| configure(four))?.map_err(refused)?;
        pods.push(pod);
    }
    pods.try_into()
        .map_err(|_| failed("a pod is missing (a bug in podwire, please report it)".into()))
}

fn bridge_and_tunnel(own: Ipv4Addr, other: Ipv4Addr) -> Result<(), NetlinkError> {
    let vxlan = vec![
        InfoVxlan::Id(1),
        InfoVxlan::Group(other),
        InfoVxlan::Local(own),
        InfoVxlan::Port(PORT),
    ];
    let mut batch = Batch::default();
    batch.create("a bridge", device("br0", InfoKind::Bridge, None));
    batch.create(
        "a VXLAN device",
        device("vx0", InfoKind::Vxlan, Some(InfoData::Vxlan(vxlan))),
    );
    batch.send()?;
    let (bridge, tunnel) = (index("br0")?, index("vx0")?);
    let mut batch = Batch::default();
    let port = vec![LinkAttribute::Mtu(MTU), LinkAttribute::Controller(bridge)];
    batch.set("the VXLAN device on the bridge", link(tunnel, port));
    batch.set("the VXLAN device up", up(tunnel));
    batch.set("the bridge up", up(bridge));
    batch.send().map(drop)
}

/// A veth between the bridge and a pod.
fn plug(pod: &str, inside: &NetNs) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    batch.create("a pod's veth", veth(pod, IFNAME, inside.fd()));
    batch.send()?;
    let (port, bridge) = (index(pod)?, index("br0")?);
    let mut batch = Batch::default();
    let attributes = vec![LinkAttribute::Mtu(MTU), LinkAttribute::Controller(bridge)];
    batch.set("a pod's veth on the bridge", link(port, attributes));
    batch.set("a pod's veth up", up(port));
    batch.send().map(drop)
}

fn configure(four: Ipv4Addr) -> Result<(), NetlinkError> {
    let eth0 = index(IFNAME)?;
    let mut batch = Batch::default();
    batch.set("a pod's MTU", link(eth0, vec![LinkAttribute::Mtu(MTU)]));
    batch.set("a pod's lo up", up(1));
    batch.set("a pod's interface up", up(eth0));
    batch.create(
        "a pod's address",
        address(eth0, net(four), AddressScope::Universe),
    );
    batch.send().map(drop)
}
