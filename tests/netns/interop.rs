//! A kernel VTEP as a peer, set up as flannel does it (see [`super::foreign`]): a vxlan device that learns
//! nothing, with an FDB entry for the node's VTEP.
//!
//! Over the relay each packet is a wire's: one segment, complete checksums, and a receiver that verifies each.
//! Over a veth the kernel hands its super-frames to the node whole, with checksums it never finished; the node
//! must take both.

use super::foreign::{Machine, have, is_up, outer_checksums, set};
use super::impair::Impairment;
use super::netns::Netns;
use super::node;
use super::pod::{FAMILIES, Family, Ping, Place};
use super::traffic::{MB, at_once, stream};
use super::ways::{meanwhile, told};
use super::world::{Case, World, eventually};
use podwire::api::PeerReach;
use podwire::model::DropReason;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("a_kernel_vtep_over_a_wire", |w| on_a_wire(w, FLANNEL, talk)),
    Case::new("a_kernel_vtep_over_a_wire_with_offloads", |w| {
        on_a_wire(w, FLANNEL, talk);
    })
    .whole_trains(),
    Case::new("a_kernel_vtep_over_a_veth", |w| on_a_veth(w, FLANNEL, talk)).bind_any(),
    Case::new("a_hundred_megabytes_over_a_wire", |w| on_a_wire(w, FLANNEL, bulk)),
    Case::new("a_hundred_megabytes_over_a_veth", |w| on_a_veth(w, FLANNEL, bulk)).bind_any(),
    Case::new("a_kernel_vtep_without_outer_checksums", |w| {
        on_a_wire(w, NO_CHECKSUM, talk_without_checksums);
    }),
    Case::new("a_kernel_vtep_without_outer_checksums_over_a_veth", |w| {
        on_a_veth(w, NO_CHECKSUM, talk);
    })
    .bind_any(),
    Case::new("a_kernel_vtep_at_another_vni_and_port", |w| {
        on_a_wire(w, OTHER, talk);
    })
    .node_args(&["--vni", "70000", "--port", "4789"]),
    Case::new("a_kernel_vtep_at_the_wrong_vni", |w| {
        on_a_wire(w, WRONG_VNI, wrong_vni);
    }),
    Case::new("a_kernel_vtep_over_ipv6", |w| on_a_wire(w, SIX, talk)).underlay6(),
    Case::new("a_kernel_vtep_over_an_ipv6_veth", |w| on_a_veth(w, SIX, talk))
        .underlay6()
        .bind_any(),
    Case::new("a_kernel_vtep_over_ipv6_with_flannels_mtu", |w| {
        on_a_wire(w, FLANNEL, flannels_mtu);
    })
    .underlay6(),
    Case::new("a_kernel_vtep_over_ipv6_without_outer_checksums", |w| {
        on_a_wire(w, NO_CHECKSUM6, no_checksum6);
    })
    .underlay6(),
    Case::new("a_kernel_vtep_without_offloads", |w| {
        on_a_veth(w, FLANNEL, no_offload);
    })
    .bind_any(),
    Case::new("a_kernel_vtep_that_learns", |w| on_a_wire(w, LEARNS, learns)),
    Case::new("a_kernel_vtep_vanishes_and_comes_back", |w| {
        on_a_wire(w, FLANNEL, vanishes);
    }),
    Case::new("a_kernel_vtep_that_answers_no_probes", |w| {
        on_a_wire(w, FLANNEL, mute);
    }),
    Case::new("a_kernel_vtep_behind_a_path_that_swallows_large_packets", |w| {
        on_a_wire(w, FLANNEL, swallowed);
    }),
    Case::new("a_kernel_vtep_with_jumbo_frames", |w| on_a_veth(w, JUMBO, talk))
        .bind_any()
        .node_args(&["--underlay-mtu", "9000", "--pod-mtu", "8950"]),
];

/// How a vxlan device is made.
#[derive(Clone, Copy)]
struct Device {
    vni: u32,
    port: u16,
    mtu: u16,
    /// More words of `ip link add type vxlan`.
    more: &'static str,
}

/// As flannel makes it.
const FLANNEL: Device = Device {
    vni: 1,
    port: 8472,
    mtu: 1450,
    more: "nolearning",
};

const NO_CHECKSUM: Device = Device {
    more: "nolearning noudpcsum",
    ..FLANNEL
};

const NO_CHECKSUM6: Device = Device {
    more: "nolearning udp6zerocsumtx udp6zerocsumrx",
    ..SIX
};

/// Not as flannel makes it: with one peer for all that it does not know.
const LEARNS: Device = Device {
    more: "remote 192.0.2.1",
    ..FLANNEL
};

const WRONG_VNI: Device = Device { vni: 2, ..FLANNEL };

const OTHER: Device = Device {
    vni: 70_000,
    port: 4789,
    ..FLANNEL
};

/// As flannel should make it over IPv6; it forgets that IPv6's header is longer.
const SIX: Device = Device { mtu: 1430, ..FLANNEL };

const JUMBO: Device = Device { mtu: 8950, ..FLANNEL };

impl Device {
    /// Make it in `netns`, which is `own` on the underlay, with n1 at `peer` as its only peer.
    fn make(&self, world: &World, netns: &Netns, own: IpAddr, peer: IpAddr) {
        let [theirs, ours] = [1, 9].map(|n| world.vtep_mac(n).to_string());
        let Device { vni, port, more, .. } = self;
        netns.ip(&format!(
            "link add flannel.{vni} type vxlan id {vni} local {own} dstport {port} {more}\n\
             link set flannel.{vni} address {ours} addrgenmode none\n"
        ));
        let peer = peer.to_string();
        let device = format!("flannel.{vni}");
        if more.contains("nolearning") {
            netns.ask("bridge", &["fdb", "add", &theirs, "dev", &device, "dst", &peer]);
        }
    }

    fn name(&self) -> String {
        format!("flannel.{}", self.vni)
    }
}

/// The underlay interface of a machine on the relay.
const ETH0: &str = "eth0";

/// For pings that nobody answers.
const BRIEFLY: &[&str] = &["-W", "0.1", "-w", "1"];

type Then = fn(&World, &Machine<'_>);

fn on_a_wire(world: &mut World, device: Device, then: Then) {
    let [near, .., far] = &world.underlay.hosts[..] else {
        unreachable!("there are more than two");
    };
    let (own, peer): (IpAddr, IpAddr) = match world.underlay6 {
        false => (far.ip4.into(), near.ip4.into()),
        true => (far.ip6.into(), near.ip6.into()),
    };
    device.make(world, &far.netns, own, peer);
    let pod = Netns::new();
    let machine = Machine {
        floods: !device.more.contains("nolearning"),
        ..Machine::new(world, (&far.netns, &pod), &device.name(), device.mtu, own)
    };
    then(world, &machine);
}

fn on_a_veth(world: &mut World, device: Device, then: Then) {
    let (netns, pod) = (Netns::new(), Netns::new());
    let host = &world.underlay.hosts[0].netns;
    let mtu = device.mtu + if world.underlay6 { 70 } else { 50 };
    host.ip(&format!("link add v0 mtu {mtu} type veth peer name v1 mtu {mtu}"));
    netns.adopt(host, "v1");
    for (netns, end, n) in [(host, "v0", 1), (&netns, "v1", 9)] {
        netns.ip(&format!(
            "addr add 198.51.100.{n}/24 dev {end}\n\
             addr add 2001:db8:9::{n}/64 dev {end} nodad\n\
             link set {end} up\n"
        ));
    }
    eventually("the veth is up", Duration::from_secs(3), || {
        is_up(host, "v0") && is_up(&netns, "v1")
    });
    let at = |n: u8| -> IpAddr {
        match world.underlay6 {
            false => [198, 51, 100, n].into(),
            true => [0x2001, 0xdb8, 9, 0, 0, 0, 0, u16::from(n)].into(),
        }
    };
    device.make(world, &netns, at(9), at(1));
    let machine = Machine::new(world, (&netns, &pod), &device.name(), device.mtu, at(9));
    then(world, &machine);
}

fn talk(world: &World, machine: &Machine<'_>) {
    machine.talks(world);
}

fn talk_without_checksums(world: &World, machine: &Machine<'_>) {
    machine.talks(world);
    let (a, _) = world.pair();
    let (theirs, ours) = outer_checksums(machine, ETH0, a, 8472);
    assert!(!theirs && ours);
}

/// Every byte is compared, which is more than a hash of them.
fn bulk(world: &World, machine: &Machine<'_>) {
    let (a, _) = world.pair();
    stream(a, &machine.pod, Family::V4, 100 * MB);
    stream(&machine.pod, a, Family::V4, 100 * MB);
}

fn wrong_vni(world: &World, machine: &Machine<'_>) {
    let (a, _) = world.pair();
    let before = world.nodes[0].drops(DropReason::WrongVni);
    for family in FAMILIES {
        machine.pod.ping(a.ip(family), BRIEFLY).none();
        a.unanswered(machine.pod.ip(family), 3);
    }
    assert!(world.nodes[0].drops(DropReason::WrongVni) >= before + 6);
}

/// The VTEP may send packets that do not fit the underlay. TCP takes podwire's MTU from the handshake, and
/// IPv6 learns of it; but what IPv4 routes, the kernel throws away without a word, unless told to look.
fn flannels_mtu(world: &World, machine: &Machine<'_>) {
    let (a, _) = world.pair();
    for family in FAMILIES {
        let (fits, over) = match family {
            Family::V4 => ("1402", "1422"),
            Family::V6 => ("1382", "1402"),
        };
        machine.pod.reaches(a.ip(family), &["-M", "do", "-s", fits]);
        let near = a.ping(machine.pod.ip(family), 1, &["-M", "do", "-s", over]);
        assert!(tells_1430(&near), "{}", near.text);
        at_once(&machine.pod, a, family);
        stream(&machine.pod, a, family, 2 * MB);
        stream(a, &machine.pod, family, 2 * MB);
    }
    let over = |size| [BRIEFLY, &["-M", "do", "-s", size]].concat();
    let told = machine.pod.ping(a.ip6.into(), &over("1402"));
    assert!(tells_1430(&told), "{}", told.text);
    let lost = machine.pod.ping(a.ip4.into(), &over("1422"));
    lost.none();
    assert!(!lost.text.contains("mtu"), "{}", lost.text);
    set(machine.host.netns(), "ipv4/ip_forward_use_pmtu", "1");
    let told = machine.pod.ping(a.ip4.into(), &over("1422"));
    assert!(tells_1430(&told), "{}", told.text);
}

/// Whether a ping got no answer, but was told what fits, by its own stack or by a router.
fn tells_1430(ping: &Ping) -> bool {
    let told = ["mtu=1430", "mtu = 1430", "mtu: 1430"];
    ping.answered == 0 && told.iter().any(|mtu| ping.text.contains(mtu))
}

/// IPv6's header has no checksum: without one over UDP, what was meant for another may be taken (RFC 8200
/// section 8.1, RFC 6936). The node's socket refuses such packets as the kernel's VTEP does; its own have one,
/// also for a VTEP that would do without.
fn no_checksum6(world: &World, machine: &Machine<'_>) {
    let (a, _) = world.pair();
    for family in FAMILIES {
        machine.pod.ping(a.ip(family), BRIEFLY).none();
        a.unanswered(machine.pod.ip(family), 3);
    }
    let refused = world.underlay.hosts[0].netns.troubles();
    assert!(refused.contains("Udp6InCsumErrors"), "{refused}");
    let status = world.nodes[0].status();
    let peer = status.peers.iter().find(|p| p.name.as_str() == "n9");
    let heard = peer.expect("it is known").last_heard_ms;
    assert_eq!(heard, None, "the status says that nothing is heard");
    let (theirs, ours) = outer_checksums(machine, ETH0, a, 8472);
    assert!(!theirs && ours);
}

/// What flannel's users do against wrong checksums (`ethtool -K flannel.1 tx off`), and a receiver that trusts
/// none.
fn no_offload(world: &World, machine: &Machine<'_>) {
    if !have(&["ethtool"]) {
        return;
    }
    let off = |netns: &Netns, device: &str, features: &[&str]| {
        let words = features.iter().flat_map(|f| [*f, "off"]);
        let args: Vec<&str> = ["-K", device].into_iter().chain(words).collect();
        netns.ask("ethtool", &args);
    };
    let (near, far) = (&world.underlay.hosts[0].netns, machine.host.netns());
    let all = ["rx", "tx", "sg", "tso", "gso", "gro"];
    off(far, "flannel.1", &["tx"]);
    off(far, "v1", &all);
    off(near, "v0", &all);
    machine.talks(world);
}

/// Kernels answer probes as podwire does.
fn vanishes(world: &World, machine: &Machine<'_>) {
    let (a, _) = world.pair();
    let (node, relay) = (&world.nodes[0], &world.underlay.relay);
    machine.pod.reaches(a.ip4.into(), &[]);
    a.reaches(machine.pod.ip(Family::V4), 3, &[]);
    relay.isolate(world.underlay.hosts.len() - 1);
    meanwhile(&[(a, &machine.pod)], || {
        eventually("it is silent", Duration::from_secs(30), || {
            told(node, 9).state == PeerReach::Silent
        });
        relay.impair_all(Impairment::default());
        eventually("it is back", Duration::from_secs(3), || {
            told(node, 9).state == PeerReach::Up
        });
    });
    assert_eq!(told(node, 9).deaf_ms, None, "it does not say");
    machine.pod.reaches(a.ip4.into(), &[]);
    stream(a, &machine.pod, Family::V4, MB);
}

/// A firewall that drops echo requests is no death, nor a narrow path.
fn mute(world: &World, machine: &Machine<'_>) {
    let (a, _) = world.pair();
    set(machine.host.netns(), "ipv4/icmp_echo_ignore_all", "1");
    // It answered before: it must not be remembered.
    let node = &world.nodes[0];
    let known = |n: usize| {
        eventually("it is in force", Duration::from_secs(1), || {
            node.status().peers.len() == n
        });
    };
    node.set_peers(&world.peers_but(1));
    known(1);
    node.set_peers(&(world.peers_but(1) + &node::peer(9, machine.underlay)));
    known(2);
    let begun = Instant::now();
    meanwhile(&[(a, &machine.pod)], || {
        while begun.elapsed() < Duration::from_secs(7) {
            let info = told(node, 9);
            assert!(
                info.state != PeerReach::Silent && info.rtt_us.is_none(),
                "{info:?}"
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    stream(a, &machine.pod, Family::V6, MB);
    stream(&machine.pod, a, Family::V4, MB);
    assert_eq!(told(node, 9).pod_mtu.0, 1450);
}

/// What the node's pods send gets through; what the kernel's VTEP sends is its own affair.
fn swallowed(world: &World, machine: &Machine<'_>) {
    let (a, _) = world.pair();
    world.underlay.relay.impair_all(Impairment {
        longest: Some(14 + 1400),
        ..Impairment::default()
    });
    for family in FAMILIES {
        let begun = Instant::now();
        stream(a, &machine.pod, family, 2 * MB);
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(told(&world.nodes[0], 9).pod_mtu.0, 1350);
}

/// A VTEP that learns takes the node's first frame for an entry in its FDB, and asks the node for nothing but
/// addresses: the node answers no ARP from the tunnel, so the neighbour must be permanent.
fn learns(world: &World, machine: &Machine<'_>) {
    let (a, _) = world.pair();
    machine.talks(world);
    let netns = machine.host.netns();
    let fdb = netns.ask("bridge", &["fdb", "show", "dev", "flannel.1"]);
    let learned = format!("{} dst 192.0.2.1 self", world.vtep_mac(1));
    assert!(fdb.contains(&learned), "{fdb}");
    let before = world.nodes[0].drops(DropReason::WrongVtepMac);
    netns.ip("neigh del 10.244.1.0 dev flannel.1");
    machine.pod.ping(a.ip4.into(), BRIEFLY).none();
    let asked = world.nodes[0].drops(DropReason::WrongVtepMac) - before;
    assert!(asked > 0, "the broadcast is dropped");
}
