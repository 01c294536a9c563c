//! A kernel VTEP as a peer, set up as flannel does it (`formats.md` F3): a vxlan device that learns nothing, a
//! permanent neighbour and an FDB entry for the node's VTEP, and an onlink route to its pods.
//!
//! Over the relay each packet is a wire's: one segment, complete checksums. Over a veth the kernel hands its
//! super-frames to the node whole, with checksums it never finished; the node must take both.

use super::netns::Netns;
use super::node;
use super::pod::{FAMILIES, Family, Ping, Place};
use super::traffic::{MB, datagrams, stream};
use super::world::{Case, World, eventually};
use std::net::IpAddr;
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("a_kernel_vtep_over_a_wire", over_a_wire),
    Case::new("a_kernel_vtep_over_a_wire_with_offloads", over_a_wire).whole_trains(),
    Case::new("a_kernel_vtep_over_a_veth", over_a_veth).bind_any(),
];

/// A machine with a kernel VTEP, number 9. Its pod's addresses are on its loopback.
struct Kernel<'a>(&'a Netns);

impl Place for Kernel<'_> {
    fn name(&self) -> &str {
        "the kernel's pod"
    }

    fn netns(&self) -> &Netns {
        self.0
    }

    fn ip(&self, family: Family) -> IpAddr {
        let text = match family {
            Family::V4 => "10.244.9.2",
            Family::V6 => "fd00:10:244:9::2",
        };
        text.parse().expect("an address")
    }
}

impl<'a> Kernel<'a> {
    /// Set up the VTEP in `netns` at `own`, with n1 at `peer` as its only peer.
    fn new(world: &World, netns: &'a Netns, own: &str, peer: &str) -> Kernel<'a> {
        let [theirs, ours] = [1, 9].map(|n| world.vtep_mac(n).to_string());
        netns.ip(&format!(
            "link add flannel.1 type vxlan id 1 local {own} dstport 8472 nolearning\n\
             link set flannel.1 address {ours} mtu 1450 addrgenmode none up\n\
             addr add 10.244.9.0/32 dev flannel.1\n\
             addr add fd00:10:244:9::/128 dev flannel.1 nodad\n\
             addr add 10.244.9.2/32 dev lo\n\
             addr add fd00:10:244:9::2/128 dev lo nodad\n\
             neigh add 10.244.1.0 lladdr {theirs} dev flannel.1 nud permanent\n\
             neigh add fd00:10:244:1:: lladdr {theirs} dev flannel.1 nud permanent\n\
             route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink src 10.244.9.2\n\
             route add fd00:10:244:1::/64 via fd00:10:244:1:: dev flannel.1 onlink src fd00:10:244:9::2\n"
        ));
        netns.ask(
            "bridge",
            &["fdb", "add", &theirs, "dev", "flannel.1", "dst", peer],
        );
        let node = &world.nodes[0];
        let at = own.parse().expect("an address");
        node.set_peers(&(world.peers_but(9) + &node::peer(9, at)));
        eventually("the kernel is known", Duration::from_secs(1), || {
            node.status().peers.len() == 2
        });
        Kernel(netns)
    }
}

fn over_a_wire(world: &mut World) {
    let host = world.underlay.hosts.last().expect("there is one");
    let kernel = Kernel::new(world, &host.netns, &host.ip4.to_string(), "192.0.2.1");
    talk(world, &kernel);
}

fn over_a_veth(world: &mut World) {
    let netns = Netns::new();
    let host = &world.underlay.hosts[0].netns;
    host.ip("link add v0 type veth peer name v1\n");
    netns.adopt(host, "v1");
    host.ip("addr add 198.51.100.1/24 dev v0\nlink set v0 up\n");
    netns.ip("addr add 198.51.100.9/24 dev v1\nlink set v1 up\n");
    // The kernel takes up to a second to see that both ends of a veth are up.
    eventually("the veth is up", Duration::from_secs(3), || {
        let up = |netns: &Netns, end| netns.ask("ip", &["link", "show", end]).contains("state UP");
        up(host, "v0") && up(&netns, "v1")
    });
    let kernel = Kernel::new(world, &netns, "198.51.100.9", "198.51.100.1");
    talk(world, &kernel);
}

fn talk(world: &World, kernel: &Kernel<'_>) {
    let (a, b) = world.pair();
    for family in FAMILIES {
        a.reaches(kernel.ip(family), 3, &[]);
        let own = a.ip(family).to_string();
        let args = [&["-n", "-c", "3", "-i", "0.01", &own], Ping::PATIENT].concat();
        Ping::of(&kernel.0.run("ping", &args)).all(3);
        datagrams(
            a,
            kernel,
            family,
            &[0, 1, 17, 1000, 1402, 1422, 1500, 9000, 60_000],
        );
        datagrams(
            kernel,
            a,
            family,
            &[0, 1, 17, 1000, 1402, 1422, 1500, 9000, 60_000],
        );
        stream(a, kernel, family, 6 * MB);
        stream(kernel, a, family, 6 * MB);
    }
    // The VTEPs themselves, as flannel's hosts talk to pods.
    let vtep: [IpAddr; 2] = ["10.244.9.0", "fd00:10:244:9::"].map(|a| a.parse().expect("an address"));
    for address in vtep {
        a.reaches(address, 3, &[]);
    }
    a.reaches(b.ip4, 3, &[]);
}
