//! Datagrams by hand at the tunnel's port (rows 8, 47, 48, 51 and 52 of the fault table): damaged, malformed, in
//! trains of any composition, without a checksum, and from a pod. Rows 49 and 50 are in `peers.rs`.

use super::frames::{MARK, arp, ethernet, ipv4, ipv4_with, ipv6, udp4, udp6, vxlan};
use super::netns::Netns;
use super::pod::{Family, Place, Pod};
use super::raw::{Raw, segment};
use super::underlay::Host;
use super::world::{Case, World, eventually};
use podwire::model::{DropReason, OffloadMode};
use rustix::net::{AddressFamily, SocketType, ipproto};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("damage_at_every_place", damage),
    Case::new("malformed_vxlan_of_every_kind", malformed),
    Case::new("no_outer_checksum", no_checksum),
    Case::new("trains_of_any_composition", trains)
        .pods(2)
        .whole_trains(),
    Case::new("a_pod_speaks_vxlan", from_a_pod).pods(2),
];

/// The longest a datagram may take on a busy machine.
const SOON: Duration = Duration::from_secs(2);
/// The port pods listen at.
const PORT: u16 = 4008;

/// n2's machine, as a sender of datagrams to n1 that are not n2's.
struct Peer<'a> {
    world: &'a World,
    /// The pods in whose name it speaks, and to whom.
    from: &'a Pod,
    to: &'a Pod,
    host: &'a Host,
}

impl<'a> Peer<'a> {
    fn new(world: &'a World) -> Peer<'a> {
        let (to, from) = world.pair();
        // The hosts know each other then: packets that wait for a neighbour are overtaken by those behind.
        to.reaches(from.ip4, 1, &[]);
        let host = &world.underlay.hosts[1];
        Peer {
            world,
            from,
            to,
            host,
        }
    }

    /// An ordinary socket.
    fn socket(&self) -> UdpSocket {
        let socket = self.host.netns.within(|| UdpSocket::bind((self.host.ip4, 0)));
        socket.expect("a socket")
    }

    /// A socket whose UDP header is ours to write.
    fn raw(&self) -> UdpSocket {
        let raw = self
            .host
            .netns
            .within(|| rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::UDP)));
        // Only to have its methods: sendto is the same for all.
        UdpSocket::from(raw.expect("a raw socket"))
    }

    fn n1(&self) -> Ipv4Addr {
        self.world.underlay.hosts[0].ip4
    }

    /// A frame between the nodes.
    fn frame(&self, ethertype: u16, packet: &[u8]) -> Vec<u8> {
        let (here, there) = (self.world.vtep_mac(1), self.world.vtep_mac(2));
        ethernet(here, there, ethertype, packet)
    }

    /// The tunnel's datagram with a datagram between the pods.
    fn good(&self, payload: &[u8]) -> Vec<u8> {
        self.between(self.from.ip4, self.to.ip4, PORT, payload)
    }

    fn between(&self, src: Ipv4Addr, dst: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
        let datagram = udp4(src, dst, (9, port), payload);
        // With DF, so that datagrams with the same identification may be merged.
        let packet = ipv4_with((src, dst), (64, 17), (1, 0x4000), &[], &datagram);
        vxlan(8, 1, &self.frame(0x0800, &packet))
    }
}

/// The next datagram a pod hears.
#[track_caller]
fn heard(ear: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 2000];
    let n = ear.recv(&mut buffer).expect("a datagram arrives");
    buffer[..n].to_vec()
}

/// Datagrams with a wrong checksum, as the kernel counted them in a namespace.
fn wrong_sums(netns: &Netns) -> u64 {
    let snmp = netns.within(|| std::fs::read_to_string("/proc/thread-self/net/snmp"));
    let snmp = snmp.expect("it can be read");
    let rows: Vec<Vec<&str>> = snmp
        .lines()
        .filter(|l| l.starts_with("Udp:"))
        .map(|l| l.split_whitespace().collect())
        .collect();
    let at = rows[0].iter().position(|name| *name == "InCsumErrors");
    rows[1][at.expect("a column")].parse().expect("a number")
}

/// Row 8, place by place. The outer checksum finds all damage, and the node counts what the kernel threw away for
/// it. Where the checksum was made right again, the header in question is found out by itself; the payload is for
/// the pod's own stack to judge, and must come to it with the checksum it had.
fn damage(world: &mut World) {
    let peer = Peer::new(world);
    let node = &world.nodes[0];
    let (raw, ear) = (peer.raw(), peer.to.udp(Family::V4, PORT));
    let send = |datagram: &[u8], sum_of: &[u8]| {
        let sum = udp4(peer.host.ip4, peer.n1(), (9, 8472), sum_of);
        let mut bytes = udp4(peer.host.ip4, peer.n1(), (9, 8472), datagram);
        bytes[6..8].copy_from_slice(&sum[6..8]);
        raw.send_to(&bytes, (peer.n1(), 0)).expect("it is sent");
    };
    let good = peer.good(b"what is right arrives");
    // Not the node's to judge.
    let pod = None;
    // [vxlan 8 | eth 14 | ip 20 | udp 8 | payload]
    let places = [
        ("VXLAN flags", 0, Some(DropReason::BadVxlan)),
        ("VXLAN reserved", 2, Some(DropReason::BadVxlan)),
        ("VXLAN network", 6, Some(DropReason::WrongVni)),
        ("inner destination", 8 + 4, Some(DropReason::WrongVtepMac)),
        ("inner ethertype", 8 + 13, Some(DropReason::EtherType)),
        ("inner IP version", 8 + 14, Some(DropReason::BadIpHeader)),
        ("inner length", 8 + 17, Some(DropReason::BadIpHeader)),
        ("inner TTL", 8 + 22, Some(DropReason::BadIpHeader)),
        ("inner source", 8 + 27, Some(DropReason::BadIpHeader)),
        ("inner port", 8 + 37, pod),
        ("inner checksum", 8 + 40, pod),
        ("payload", good.len() - 1, pod),
    ];
    for (what, at, reason) in places {
        let mut bad = good.clone();
        // The lowest bit, so that lengths shrink or grow by one.
        bad[at] ^= 1;
        let lost = node.drops(DropReason::ReceiveOverflow);
        send(&bad, &good);
        eventually(what, SOON, || {
            // The next datagram brings the count.
            send(&good, &good);
            assert_eq!(heard(&ear), b"what is right arrives", "{what}");
            node.drops(DropReason::ReceiveOverflow) == lost + 1
        });
        let before = reason.map(|r| node.drops(r));
        let wrong = wrong_sums(&peer.to.netns);
        send(&bad, &bad);
        send(&good, &good);
        assert_eq!(heard(&ear), b"what is right arrives", "{what}, sum made right");
        match (reason, before) {
            (Some(reason), Some(before)) => eventually(what, SOON, || node.drops(reason) == before + 1),
            _ => {
                // At a port nobody listens at it is not looked at any further.
                let seen = u64::from(what != "inner port");
                eventually(what, SOON, || wrong_sums(&peer.to.netns) >= wrong + seen);
            }
        }
    }
    assert_eq!(wrong_sums(&world.underlay.hosts[0].netns), places.len() as u64);
}

/// Row 48: each under its reason, and none of them heard.
fn malformed(world: &mut World) {
    use DropReason::*;
    let peer = Peer::new(world);
    let (from, to) = (peer.from, peer.to);
    let node = &world.nodes[0];
    let mouth = peer.socket();
    let good = peer.good(MARK);
    let inner = |ethertype, packet: &[u8]| vxlan(8, 1, &peer.frame(ethertype, packet));
    let four = ipv4(from.ip4, to.ip4, 17, &udp4(from.ip4, to.ip4, (9, PORT), MARK));
    let six = ipv6(from.ip6, to.ip6, 64, 17, &udp6(from.ip6, to.ip6, (9, PORT), MARK));
    let with = |packet: &[u8], at: usize, value: u8| {
        let mut packet = packet.to_vec();
        packet[at] = value;
        packet
    };
    let sent_by = |src: Ipv4Addr, dst: Ipv4Addr, ttl| {
        let datagram = udp4(src, dst, (9, PORT), MARK);
        inner(0x0800, &ipv4_with((src, dst), (ttl, 17), (1, 0), &[], &datagram))
    };
    let tagged = [&[0, 5, 8, 0][..], &four].concat();
    let outside = Ipv4Addr::new(198, 51, 100, 1);
    let router: Ipv6Addr = "fe80::1".parse().expect("an address");
    let mut cases: Vec<(String, Vec<u8>, DropReason)> = Vec::new();
    for len in 0..8 {
        cases.push((format!("{len} bytes"), good[..len].to_vec(), Truncated));
    }
    for bit in 0..64 {
        let (byte, mask) = (bit / 8, 0x80u8 >> (bit % 8));
        let reason = if (4..7).contains(&byte) {
            WrongVni
        } else {
            BadVxlan
        };
        cases.push((
            format!("bit {bit} of the header"),
            with(&good, byte, good[byte] ^ mask),
            reason,
        ));
    }
    // Remote checksum offload (bit 10 and a start in the last byte), which nobody asked for: also where the start
    // is behind the end.
    for start in [0, 17, 0x7f, 0xff] {
        let rco = with(&with(&good, 1, 0x20), 7, start);
        cases.push((format!("remote checksum at {start}"), rco, BadVxlan));
    }
    for len in 8..good.len() - MARK.len() - 8 {
        cases.push((format!("cut after {len} bytes"), good[..len].to_vec(), Truncated));
    }
    let named: Vec<(&str, Vec<u8>, DropReason)> = vec![
        ("an inner tag", inner(0x8100, &tagged), Vlan),
        (
            "two inner tags",
            inner(0x88a8, &[&[0, 6, 0x81, 0], &tagged[..]].concat()),
            Vlan,
        ),
        ("LLDP inside", inner(0x88cc, MARK), EtherType),
        ("VXLAN as a frame", inner(0x12b5, &good), EtherType),
        (
            "an inner length beyond the end",
            inner(0x0800, &with(&four, 2, 5)),
            Truncated,
        ),
        (
            "an inner length of nothing",
            inner(0x0800, &with(&with(&four, 2, 0), 3, 0)),
            BadIpHeader,
        ),
        (
            "an inner header of 16 bytes",
            inner(0x0800, &with(&four, 0, 0x44)),
            BadIpHeader,
        ),
        (
            "an inner header of 60 bytes",
            inner(0x0800, &with(&four[..40], 0, 0x4f)),
            BadIpHeader,
        ),
        (
            "an inner checksum",
            inner(0x0800, &with(&four, 10, four[10] ^ 1)),
            BadIpHeader,
        ),
        (
            "IPv6 that is IPv4",
            inner(0x86dd, &[&four[..], &[0; 40]].concat()),
            BadIpHeader,
        ),
        (
            "an inner payload beyond the end",
            inner(0x86dd, &with(&six, 4, 5)),
            Truncated,
        ),
        (
            "ARP inside",
            inner(0x0806, &arp(1, (from.mac, from.ip4), (to.mac, to.ip4))),
            NotRoutable,
        ),
        (
            "to a group",
            sent_by(from.ip4, Ipv4Addr::new(224, 0, 0, 1), 64),
            NotRoutable,
        ),
        ("to all", sent_by(from.ip4, Ipv4Addr::BROADCAST, 64), NotRoutable),
        (
            "to loopback",
            sent_by(from.ip4, Ipv4Addr::LOCALHOST, 64),
            NotRoutable,
        ),
        (
            "to the pod's link-local",
            inner(0x86dd, &ipv6(from.ip6, router, 64, 59, MARK)),
            NotRoutable,
        ),
        (
            "to nobody here",
            sent_by(from.ip4, Ipv4Addr::new(10, 244, 1, 222), 64),
            NoSuchPod,
        ),
        (
            "to another node",
            sent_by(from.ip4, Ipv4Addr::new(10, 244, 2, 2), 64),
            NoRoute,
        ),
        ("no hop left", sent_by(from.ip4, to.ip4, 1), TtlExceeded),
        (
            "from the pod itself",
            sent_by(to.ip4, to.ip4, 64),
            NotPeersAddress,
        ),
        (
            "from the gateway",
            sent_by(Ipv4Addr::new(10, 244, 1, 1), to.ip4, 64),
            NotPeersAddress,
        ),
        ("from outside", sent_by(outside, to.ip4, 64), NotPeersAddress),
        (
            "from nobody",
            sent_by(Ipv4Addr::UNSPECIFIED, to.ip4, 64),
            NotPeersAddress,
        ),
        (
            "from a link-local",
            inner(0x86dd, &ipv6(router, to.ip6, 64, 59, MARK)),
            NotPeersAddress,
        ),
        (
            "to the other family's VTEP as well: to all",
            vxlan(
                8,
                1,
                &ethernet(podwire::model::Mac([0xff; 6]), world.vtep_mac(2), 0x0800, &four),
            ),
            WrongVtepMac,
        ),
    ];
    cases.extend(
        named
            .into_iter()
            .map(|(what, bytes, reason)| (what.to_string(), bytes, reason)),
    );
    let ear = Raw::listener(to);
    let mut want = std::collections::BTreeMap::new();
    for (_, bytes, reason) in &cases {
        mouth.send_to(bytes, (peer.n1(), 8472)).expect("it is sent");
        *want.entry(reason.label().to_string()).or_insert(0) += 1;
        // What is sent in one go must not overrun the relay.
        std::thread::sleep(Duration::from_micros(100));
    }
    let total: u64 = want.values().sum();
    let mut drops = Default::default();
    eventually("all are counted", SOON, || {
        drops = node.status().drops;
        drops.values().sum::<u64>() >= total
    });
    if drops != want {
        // One by one, to name the culprit.
        for (what, bytes, reason) in &cases {
            let before = node.drops(*reason);
            mouth.send_to(bytes, (peer.n1(), 8472)).expect("it is sent");
            eventually(&format!("{what} is {}", reason.label()), SOON, || {
                node.drops(*reason) > before
            });
        }
    }
    assert_eq!(drops, want);
    assert!(!ear.heard(MARK), "the pod heard one of them");
    mouth.send_to(&good, (peer.n1(), 8472)).expect("it is sent");
    eventually("what is right is heard", SOON, || ear.heard(MARK));
}

/// Row 52: foreign senders leave the outer checksum out over IPv4, as RFC 7348 recommends.
fn no_checksum(world: &mut World) {
    let peer = Peer::new(world);
    let (raw, ear) = (peer.raw(), peer.to.udp(Family::V4, PORT));
    for n in 0..200u8 {
        let datagram = peer.good(&[n; 100]);
        let mut bytes = udp4(peer.host.ip4, peer.n1(), (9, 8472), &datagram);
        bytes[6..8].fill(0);
        raw.send_to(&bytes, (peer.n1(), 0)).expect("it is sent");
        if n % 50 == 49 {
            for n in n - 49..=n {
                assert_eq!(heard(&ear), [n; 100]);
            }
        }
    }
    assert_eq!(world.nodes[0].status().drops, Default::default());
}

/// Row 51: what one UDP_GRO message may hold. Whole trains cross the relay as over a veth, with up to 128 datagrams
/// and up to 65,493 bytes; the pods hear each datagram once, in the order of its flow, and the last one at once.
fn trains(world: &mut World) {
    let peer = Peer::new(world);
    let second = &world.pods[0][1];
    let ears = [peer.to.udp(Family::V4, PORT), second.udp(Family::V4, PORT)];
    let mouth = peer.socket();
    let merged = || world.nodes[0].status().counters.coalesced;
    // Headers take 8 + 14 + 20 + 8 bytes of each datagram. The last may be shorter.
    let cases = [
        ("one", 1, 100, 100),
        ("64 of equal length", 64, 400, 400),
        ("65, one more than GRO merges", 65, 400, 400),
        ("128, the most one call takes", 128, 400, 400),
        ("the last is short", 40, 1000, 1),
        ("the last is empty", 40, 1000, 0),
        ("65,493 bytes: the most that goes as one", 45, 1422, 725 - 50),
        ("65,494 bytes: the kernel sends each alone", 45, 1422, 726 - 50),
    ];
    for (what, count, len, last) in cases {
        let before = merged();
        let payload = |n: usize| vec![n as u8; if n + 1 == count { last } else { len }];
        let train: Vec<u8> = (0..count).flat_map(|n| peer.good(&payload(n))).collect();
        segment(&mouth, 50 + len as u16);
        mouth.send_to(&train, (peer.n1(), 8472)).expect(what);
        for n in 0..count {
            assert_eq!(heard(&ears[0]), payload(n), "{what}: datagram {n} of {count}");
        }
        let merged = merged() - before;
        // A datagram without payload is never merged; the kernel may hand over one that came alone.
        let whole = count as u64 - 1 - u64::from(last == 0);
        let alone = what.starts_with("65,494");
        let most = if world.mode == OffloadMode::On { whole } else { 0 };
        assert!(
            merged == most || (alone && merged <= most),
            "{what}: {merged} merged of {most}"
        );
    }
    // Two flows in turn, to two pods in turn, and what belongs to nobody in between.
    segment(&mouth, 150);
    let wrong = world.nodes[0].drops(DropReason::WrongVni);
    let mut train = Vec::new();
    for n in 0..24u8 {
        train.extend(peer.good(&[n; 100]));
        train.extend(peer.between(peer.from.ip4, second.ip4, PORT, &[n; 100]));
        let mut foreign = peer.good(&[n; 100]);
        foreign[6] = 9;
        train.extend(foreign);
    }
    mouth.send_to(&train, (peer.n1(), 8472)).expect("it is sent");
    for n in 0..24u8 {
        for ear in &ears {
            assert_eq!(heard(ear), [n; 100]);
        }
    }
    eventually("strange ones are counted", SOON, || {
        world.nodes[0].drops(DropReason::WrongVni) == wrong + 24
    });
}

/// Row 47: a pod's VXLAN is a datagram as any other. Hosts are out of its reach, a node has no such service for
/// pods, and what one pod sends another is not looked into.
fn from_a_pod(world: &mut World) {
    let (eve, near, far) = (&world.pods[0][0], &world.pods[0][1], &world.pods[1][0]);
    let (n1, n2) = (&world.nodes[0], &world.nodes[1]);
    for to in [near, far] {
        eve.reaches(to.ip4, 1, &[]);
    }
    // As it would come from the other node, to either victim.
    let forged: Vec<Vec<u8>> = [(2, far.ip4, 1, near.ip4), (1, eve.ip4, 2, far.ip4)]
        .iter()
        .map(|(from, src, to, dst)| {
            let datagram = udp4(*src, *dst, (9, PORT), MARK);
            let packet = ipv4(*src, *dst, 17, &datagram);
            vxlan(
                8,
                1,
                &ethernet(world.vtep_mac(*to), world.vtep_mac(*from), 0x0800, &packet),
            )
        })
        .collect();
    let ears = [near, far].map(Raw::listener);
    let received = |node: &super::node::Node| node.status().counters.datagrams_from_peers;
    let text = |s: &str| s.parse::<IpAddr>().expect("an address");
    let hosts = ["192.0.2.1", "192.0.2.2", "2001:db8::2"];
    // Gateways and VTEPs, of both nodes.
    let nodes = [
        "10.244.1.1",
        "10.244.1.0",
        "fd00:10:244:1::1",
        "10.244.2.0",
        "10.244.2.1",
        "fd00:10:244:2::",
    ];
    let own = [text("192.0.2.1")];
    let mut denied = 0;
    for to in hosts.iter().chain(&nodes).map(|to| text(to)) {
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        for port in [8472, 4789] {
            for datagram in &forged {
                let mouth = eve.udp(family, 0);
                mouth.connect((to, port)).expect("a route");
                mouth.send(datagram).expect("it is sent");
                if hosts.iter().any(|host| text(host) == to) {
                    // Its own host is closed to a pod, and everybody's overlay.
                    denied += u64::from(port == 8472 || own.contains(&to));
                    let what = format!("{to} port {port} is out of reach");
                    eventually(&what, SOON, || n1.drops(DropReason::EgressDenied) == denied);
                } else {
                    let told = mouth.recv(&mut [0; 100]).map_err(|e| e.kind());
                    assert_eq!(told, Err(ErrorKind::ConnectionRefused), "{to} port {port}");
                }
            }
        }
    }
    for (ear, victim) in ears.iter().zip([near, far]) {
        assert!(!ear.heard(MARK), "{} heard of it", victim.name);
    }
    // From pod to pod it is data, and arrives as it was, once.
    let before = received(n2);
    for (victim, ear) in [near, far].iter().zip(&ears) {
        let socket = victim.udp(Family::V4, 8472);
        let mouth = eve.udp(Family::V4, 0);
        for datagram in &forged {
            mouth.send_to(datagram, (victim.ip4, 8472)).expect("it is sent");
            assert_eq!(heard(&socket), *datagram);
        }
        assert!(ear.heard(MARK), "the ear hears such things");
    }
    let more = received(n2) - before;
    assert!(
        (2..=6).contains(&more),
        "each crossed the tunnel once, beside probes: {more}"
    );
}
