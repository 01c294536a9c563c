//! What one would use instead, on the same hosts: a kernel bridge, veth pods, a VXLAN device on the bridge, and nftables.

use super::lab::{device, failed, index, installed, net, pod_name, veth};
use crate::cmd::Failure;
use crate::cmd::lab::pod::{IFNAME, Pod};
use crate::pod::link::default_route;
use crate::sys::netlink::{Batch, LOOPBACK, NetlinkError, address, link, up};
use crate::sys::ns::{NetNs, Target};
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

/// The device that joins the pods of a host.
const BRIDGE: &str = "br0";
/// UDP port of the tunnel (RFC 7348 section 8).
const PORT: u16 = 4789;
/// What the tunnel leaves of the veth's MTU.
pub const MTU: u32 = 1450;

/// Make a bridge and a tunnel on each of two hosts with these addresses.
///
/// # Errors
/// When the kernel lacks one of them.
pub fn bridges(hosts: &[NetNs; 2], addresses: [Ipv4Addr; 2]) -> Result<(), Failure> {
    let refused = |e: NetlinkError| failed(format!("no kernel bridge with VXLAN can be made: {e}"));
    for (i, host) in hosts.iter().enumerate() {
        host.within(|| bridge_and_tunnel(addresses[i], addresses[1 - i]))?
            .map_err(refused)?;
    }
    Ok(())
}

/// Make a pod on the bridge of a host, with an address of all pods' network.
///
/// # Errors
/// When the kernel refuses.
pub fn bridged_pod(
    name: &str,
    host: &NetNs,
    four: Ipv4Addr,
    router: Option<Ipv4Addr>,
) -> Result<Pod, Failure> {
    let pod = Pod::bare(pod_name(name), four, four.to_ipv6_mapped())?;
    let inside = NetNs::open(&Target::Pid(pod.pid()))?;
    host.within(|| plug(name, &inside))?.map_err(no_pod)?;
    inside.within(|| configure(four, MTU, router))?.map_err(no_pod)?;
    Ok(pod)
}

/// Make a pod at the end of a veth: the host's address there, which is its router, and its own.
///
/// # Errors
/// When the kernel refuses.
pub fn routed_pod(name: &str, host: &NetNs, [router, four]: [Ipv4Addr; 2], mtu: u32) -> Result<Pod, Failure> {
    let pod = Pod::bare(pod_name(name), four, four.to_ipv6_mapped())?;
    let inside = NetNs::open(&Target::Pid(pod.pid()))?;
    host.within(|| {
        let mut batch = Batch::default();
        batch.create("a pod's veth", veth(name, IFNAME, inside.fd()));
        batch.send()?;
        let port = index(name)?;
        let mut batch = Batch::default();
        batch.set("a pod's veth up", link(port, vec![LinkAttribute::Mtu(mtu)]));
        batch.set("a pod's veth up", up(port));
        batch.create("its address", address(port, net(router), AddressScope::Universe));
        batch.send()
    })?
    .map_err(no_pod)?;
    inside
        .within(|| configure(four, mtu, Some(router)))?
        .map_err(no_pod)?;
    Ok(pod)
}

/// Have the kernel translate addresses on a host, as nft(8) has it.
///
/// # Errors
/// When nft is not there, or the kernel refuses.
pub fn translate(host: &NetNs, rules: &str) -> Result<(), Failure> {
    installed("nft")?;
    let failure = |e: io::Error| failed(format!("nft: {e}"));
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut nft = host.within(|| nft.spawn())?.map_err(failure)?;
    if let Some(mut pipe) = nft.stdin.take() {
        pipe.write_all(rules.as_bytes()).map_err(failure)?;
    }
    match nft.wait().map_err(failure)?.success() {
        true => Ok(()),
        false => Err(failed(
            "the kernel does not translate addresses here (nft refuses)",
        )),
    }
}

/// Give a host's bridge an address, so that it routes for pods on bridges.
///
/// # Errors
/// When the kernel refuses.
pub fn route(host: &NetNs, router: Ipv4Addr) -> Result<(), Failure> {
    host.within(|| {
        let mut batch = Batch::default();
        let bridge = index(BRIDGE)?;
        batch.create(
            "the bridge's address",
            address(bridge, net(router), AddressScope::Universe),
        );
        batch.send()
    })?
    .map_err(no_pod)?;
    host.within(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?
        .map_err(|e| failed(format!("a host cannot be made a router: {e}")))
}

fn no_pod(e: NetlinkError) -> Failure {
    failed(format!("no pod can be made: {e}"))
}

fn bridge_and_tunnel(own: Ipv4Addr, other: Ipv4Addr) -> Result<(), NetlinkError> {
    let vxlan = vec![
        InfoVxlan::Id(1),
        InfoVxlan::Group(other),
        InfoVxlan::Local(own),
        InfoVxlan::Port(PORT),
    ];
    let mut batch = Batch::default();
    batch.create("a bridge", device(BRIDGE, InfoKind::Bridge, None));
    batch.create(
        "a VXLAN device",
        device("vx0", InfoKind::Vxlan, Some(InfoData::Vxlan(vxlan))),
    );
    batch.send()?;
    let (bridge, tunnel) = (index(BRIDGE)?, index("vx0")?);
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
    let (port, bridge) = (index(pod)?, index(BRIDGE)?);
    let mut batch = Batch::default();
    let attributes = vec![LinkAttribute::Mtu(MTU), LinkAttribute::Controller(bridge)];
    batch.set("a pod's veth on the bridge", link(port, attributes));
    batch.set("a pod's veth up", up(port));
    batch.send().map(drop)
}

fn configure(four: Ipv4Addr, mtu: u32, router: Option<Ipv4Addr>) -> Result<(), NetlinkError> {
    let eth0 = index(IFNAME)?;
    let mut batch = Batch::default();
    batch.set("a pod's MTU", link(eth0, vec![LinkAttribute::Mtu(mtu)]));
    batch.set("a pod's lo up", up(LOOPBACK));
    batch.set("a pod's interface up", up(eth0));
    batch.create(
        "a pod's address",
        address(eth0, net(four), AddressScope::Universe),
    );
    batch.send()?;
    let Some(router) = router else { return Ok(()) };
    let mut batch = Batch::default();
    let way = default_route(eth0, IpAddr::V4(router), false);
    batch.create("a pod's default route", way);
    batch.send().map(drop)
}
