//! The node as a whole, with frames in vectors. Stories over many nodes are in `tests/sim`.

mod bandwidth;
mod host;
mod many_peers;
mod node_ports;
mod pings;
mod recover;
mod refused;
mod services;
mod super_frames;
mod ways;

use super::*;
use crate::buf::Received;
use crate::model::{Mac, Peer, PodMtu, TapCaps, UnderlayMtu};
use crate::switch::neighbour;
use crate::wire::bytes::{be16, put_be16};
use crate::wire::checksum::{Sum, pseudo, transport_is_right};
use crate::wire::{EthView, Gso, Headers};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

const ALL: TapCaps = TapCaps {
    vnet_hdr: true,
    csum: true,
    tso4: true,
    tso6: true,
    uso: true,
};
const NOW: Instant = Instant::from_micros_const(5_000_000);

/// What left a node.
#[derive(Default)]
struct Out {
    to_pods: Vec<(PortId, VnetHdr, Vec<u8>)>,
    /// Destination and datagrams of each message.
    to_peers: Vec<(SocketAddr, Vec<Vec<u8>>)>,
    /// Outer traffic class of each message.
    classes: Vec<u8>,
    refuse: Option<Refusal>,
    /// Refuse only what goes there.
    refuse_to: Option<SocketAddr>,
    blocked: bool,
    /// Messages to be taken before the underlay is full.
    room: Option<usize>,
    /// Panic when a frame for a pod holds this.
    panic_at: Option<&'static [u8]>,
    /// Panic when something is sent to peers.
    panic_to_peers: bool,
}

impl Out {
    fn look(&self, bytes: &[u8]) {
        if let Some(mark) = self.panic_at
            && bytes.windows(mark.len()).any(|w| w == mark)
        {
            panic!("a test's panic");
        }
    }
}

impl crate::stack::egress::Host for Out {}

impl Exits for Out {
    fn to_pod(&mut self, port: PortId, vnet: &VnetHdr, head: &[u8], memory: &[u8], pieces: &[Span]) -> bool {
        let mut frame = head.to_vec();
        pieces.iter().for_each(|p| frame.extend(p.of(memory)));
        self.look(&frame);
        self.to_pods.push((port, *vnet, frame));
        true
    }

    fn to_peers(&mut self, messages: &[Message], memory: &[u8]) -> Progress {
        assert!(!self.panic_to_peers, "a test's panic");
        if self.blocked || self.room == Some(0) {
            return Progress::Blocked { sent: 0 };
        }
        let some = self.room.unwrap_or(messages.len()).min(messages.len());
        for (sent, m) in messages[..some].iter().enumerate() {
            let here = self.refuse_to.is_none_or(|to| to == m.to);
            if let Some(why) = self
                .refuse
                .filter(|r| here && (*r != Refusal::NoOffload || m.gso))
            {
                return Progress::Refused { sent, why };
            }
            self.room = self.room.map(|n| n - 1);
            let datagrams = m.pieces.chunks(usize::from(m.pieces_each));
            let joined = datagrams.map(|d| d.iter().flat_map(|p| p.of(memory).to_vec()).collect());
            self.to_peers.push((m.to, joined.collect()));
            self.classes.push(m.class);
        }
        match some == messages.len() {
            true => Progress::All,
            false => Progress::Blocked { sent: some },
        }
    }
}

struct Lab {
    node: Node,
    /// Outer traffic class of what is received.
    class: u8,
    now: Instant,
    arena: Arena,
    out: Out,
}

fn subnet4(n: u8) -> ipnet::Ipv4Net {
    format!("10.244.{n}.0/24").parse().unwrap()
}

fn subnet6(n: u8) -> ipnet::Ipv6Net {
    format!("fd00:{n}::/64").parse().unwrap()
}

fn peer(n: u8) -> Peer {
    Peer {
        name: format!("n{n}").parse().unwrap(),
        underlay: SocketAddr::from(([192, 0, 2, n], 8472)),
        underlay6: None,
        subnet4: Some(subnet4(n)),
        subnet6: Some(subnet6(n)),
        vtep_mac: Mac::of_vtep(subnet4(n).network()),
        vtep_mac6: Mac::of_vtep(subnet4(n).network()),
        mtu: None,
    }
}

fn spec(node: u8, pod: u8) -> PortSpec {
    let ip4 = Ipv4Addr::new(10, 244, node, pod);
    PortSpec {
        pod: format!("p{pod}").parse().unwrap(),
        mac: Mac::of_ipv4(ip4),
        ip4: Some(ip4),
        ip6: Some(Ipv6Addr::new(0xfd00, node.into(), 0, 0, 0, 0, 0, pod.into())),
        mtu: PodMtu(1450),
        caps: ALL,
        bandwidth: None,
    }
}

impl Lab {
    /// Node `n` with pods 2 and 3 and the peers 1 to 3 without itself.
    fn new(n: u8) -> Lab {
        let local = LocalNode {
            name: format!("n{n}").parse().unwrap(),
            subnet4: Some(subnet4(n)),
            subnet6: Some(subnet6(n)),
            vtep_mac: peer(n).vtep_mac,
            vtep_mac6: peer(n).vtep_mac6,
            gateway_mac: Mac::of_ipv4(Ipv4Addr::new(10, 244, n, 1)),
            vni: 1.try_into().unwrap(),
            pod_mtu: PodMtu(1450),
            underlay_mtu: UnderlayMtu(1500),
        };
        let mut node = Node::new(Settings {
            local,
            dscp: None,
            udp_gso: true,
            partial_checksums: true,
            merge_acks: true,
            egress: Default::default(),
            broadcast_per_second: 10,
            sockets: 4,
            underlay: (true, false),
            seed: 7,
        });
        node.add_port(spec(n, 2)).unwrap();
        node.add_port(spec(n, 3)).unwrap();
        for other in (1..=3).filter(|o| *o != n) {
            node.apply(Change::PeerSet(peer(other))).unwrap();
        }
        Lab {
            node,
            class: 0,
            now: NOW,
            arena: Arena::new(4 * FRAME_ROOM),
            out: Out::default(),
        }
    }

    fn gateway(&self) -> Mac {
        self.node.settings.local.gateway_mac
    }

    fn send(&mut self, port: u16, vnet: &VnetHdr, frame: &[u8]) {
        self.read(port, vnet, frame);
        self.settle();
    }

    /// A frame in the midst of a turn, which stays in its batch until the next [`Lab::settle`].
    fn read(&mut self, port: u16, vnet: &VnetHdr, frame: &[u8]) {
        self.arena.free_mut()[..HEADROOM].copy_from_slice(&vnet.emit());
        self.arena.take(HEADROOM);
        self.arena.free_mut()[..frame.len()].copy_from_slice(frame);
        let span = self.arena.take(frame.len());
        self.node
            .from_pod(PortId(port), &mut self.arena, span, self.now, &mut self.out);
    }

    fn settle(&mut self) {
        self.node.send_own(&mut self.arena, self.now, &mut self.out);
        if self.node.flush(&mut self.arena, self.now, &mut self.out) {
            self.arena.rewind(0);
        }
    }

    /// Datagrams of equal length, as one message.
    fn receive(&mut self, from: u8, datagrams: &[Vec<u8>]) {
        let mut memory: Vec<u8> = datagrams.concat();
        let message = Received {
            span: Span::new(0, memory.len()),
            segment: (datagrams.len() > 1).then(|| datagrams[0].len() as u16),
            from: IpAddr::from([192, 0, 2, from]),
            class: self.class,
        };
        self.node
            .from_peer(&mut memory, &message, self.now, &mut self.out);
        self.node.deliver_trains(&mut memory, self.now, &mut self.out);
        self.settle();
    }

    fn balanced(&self) {
        assert_eq!(
            self.node.counters().imbalance(),
            0,
            "{:?} {:?}",
            self.node.counters(),
            self.node.drops()
        );
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.node.drops().count(reason)
    }
}

/// An IPv4 frame from pod `src` of node 1 with a complete checksum.
fn ipv4(dst_mac: Mac, src: u8, dst: Ipv4Addr, protocol: u8, l4: &[u8]) -> Vec<u8> {
    let from = spec(1, src);
    let mut f = [dst_mac.0, from.mac.0].concat();
    f.extend([8, 0, 0x45, 0]);
    f.extend(((20 + l4.len()) as u16).to_be_bytes());
    f.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    f.extend(from.ip4.unwrap().octets());
    f.extend(dst.octets());
    let sum = Sum::default().with(&f[14..34]).finish();
    put_be16(&mut f, 24, sum);
    f.extend(l4);
    f
}

/// A TCP super-frame to `dst` whose checksum is left to the device, and its virtio-net header.
fn bulk(dst_mac: Mac, dst: Ipv4Addr, payload: usize) -> (VnetHdr, Vec<u8>) {
    let mut tcp = vec![
        0x30, 0x39, 0, 80, 0, 0, 1, 0, 0, 0, 0, 9, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
    ];
    tcp.extend((0..payload).map(|i| (i * 7) as u8));
    let mut f = ipv4(dst_mac, 2, dst, 6, &tcp);
    let h = Headers::parse(&f).unwrap();
    let sum = pseudo(&f, &h, h.end - h.l4).fold();
    put_be16(&mut f, 50, sum);
    let gso = if payload > 1410 { Gso::Tcp4 } else { Gso::None };
    let gso_size = if payload > 1410 { 1410 } else { 0 };
    (
        VnetHdr {
            partial: Some((34, 16)),
            gso,
            ecn: false,
            hdr_len: 54,
            gso_size,
        },
        f,
    )
}

#[test]
fn a_super_frame_crosses_the_node_unchanged() {
    let mut lab = Lab::new(1);
    let (vnet, frame) = bulk(spec(1, 3).mac, spec(1, 3).ip4.unwrap(), 60_000);
    lab.send(0, &vnet, &frame);
    assert_eq!(lab.out.to_pods, [(PortId(1), vnet, frame)]);
    lab.balanced();
}

#[test]
fn a_super_frame_crosses_the_tunnel_and_is_whole_again() {
    let (mut a, mut b) = (Lab::new(1), Lab::new(2));
    let dst = Ipv4Addr::new(10, 244, 2, 2);
    let (vnet, frame) = bulk(a.gateway(), dst, 60_000);
    a.send(0, &vnet, &frame);
    // A probe goes along with the first frame to a peer.
    let trains: Vec<_> = a.out.to_peers.iter().filter(|(_, d)| d.len() > 1).collect();
    assert_eq!(trains.len(), 1, "one message");
    let (to, datagrams) = trains[0];
    assert_eq!((*to, datagrams.len()), (peer(2).underlay, 43));
    for d in datagrams {
        let inner = &d[8..];
        let h = Headers::parse(inner).unwrap();
        assert!(transport_is_right(inner, &h));
        assert_eq!(
            (EthView(inner).dst(), EthView(inner).src()),
            (peer(2).vtep_mac, peer(1).vtep_mac)
        );
        assert_eq!(h.ttl(inner), 63);
        assert!(d.len() <= 1472);
    }
    b.receive(1, datagrams);
    let (port, v, got) = &b.out.to_pods[0];
    assert_eq!((*port, *v), (PortId(0), vnet));
    let h = Headers::parse(got).unwrap();
    assert_eq!((h.ttl(got), &got[54..]), (62, &frame[54..]));
    assert_eq!(
        (EthView(got).dst(), EthView(got).src()),
        (spec(2, 2).mac, b.gateway())
    );
    assert_eq!(b.node.counters().coalesced, 42);
    a.balanced();
    b.balanced();
}

/// Acknowledgements with these numbers, in one batch to a peer: the numbers that leave.
fn acks(lab: &mut Lab, numbers: &[u32]) -> Vec<u32> {
    // The first frame to a peer has a probe beside it.
    lab.node.probe_peers(NOW);
    lab.settle();
    lab.out.to_peers.clear();
    for number in numbers {
        let mut tcp = [
            0x30, 0x39, 0, 80, 0, 0, 1, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
        ];
        tcp[8..12].copy_from_slice(&number.to_be_bytes());
        let frame = ipv4(lab.gateway(), 2, Ipv4Addr::new(10, 244, 2, 2), 6, &tcp);
        lab.read(0, &VnetHdr::default(), &frame);
    }
    lab.settle();
    let datagrams = lab.out.to_peers.iter().flat_map(|(_, datagrams)| datagrams);
    datagrams
        .map(|d| u32::from_be_bytes(d[8 + 42..8 + 46].try_into().unwrap()))
        .collect()
}

#[test]
fn the_newest_acknowledgement_of_a_batch_stands_for_all() {
    let mut lab = Lab::new(1);
    assert_eq!(acks(&mut lab, &[1000, 2000, 3000]), [3000]);
    assert_eq!(acks(&mut lab, &[4000]), [4000], "none waits for the next batch");
    assert_eq!(lab.node.counters().acks_merged, 2);
    // Repeated ones tell of a loss: all of them arrive.
    assert_eq!(acks(&mut lab, &[5000, 5000, 5000, 6000]), [5000, 5000, 6000]);
    // And the sender's window moves by bounded steps.
    let many: Vec<u32> = (1..=20).map(|n| 10_000 * n).collect();
    assert_eq!(acks(&mut lab, &many), [80_000, 160_000, 200_000]);
    lab.balanced();
    lab.node.settings.merge_acks = false;
    assert_eq!(acks(&mut lab, &[1, 2, 3]), [1, 2, 3]);
    lab.balanced();
}

#[test]
fn a_plain_tap_gets_ordinary_frames() {
    let mut lab = Lab::new(1);
    let plain = PortSpec {
        caps: TapCaps::default(),
        ..spec(1, 9)
    };
    let to = lab.node.add_port(plain.clone()).unwrap();
    let (vnet, frame) = bulk(plain.mac, plain.ip4.unwrap(), 5000);
    lab.send(0, &vnet, &frame);
    let joined: Vec<u8> = lab
        .out
        .to_pods
        .iter()
        .flat_map(|(_, _, f)| f[54..].to_vec())
        .collect();
    assert_eq!((lab.out.to_pods.len(), &joined[..]), (4, &frame[54..]));
    for (port, vnet, f) in &lab.out.to_pods {
        assert_eq!((*port, *vnet), (to, VnetHdr::default()));
        assert!(transport_is_right(f, &Headers::parse(f).unwrap()));
    }
    // An ordinary frame with a partial checksum is completed.
    let (vnet, frame) = bulk(plain.mac, plain.ip4.unwrap(), 100);
    lab.send(0, &vnet, &frame);
    let (_, vnet, f) = lab.out.to_pods.last().unwrap();
    assert!(transport_is_right(f, &Headers::parse(f).unwrap()) && *vnet == VnetHdr::default());
    lab.balanced();
}

#[test]
fn strangers_and_liars_from_the_underlay_are_named() {
    let mut a = Lab::new(1);
    let dst = Ipv4Addr::new(10, 244, 2, 2);
    let (vnet, frame) = bulk(a.gateway(), dst, 100);
    a.send(0, &vnet, &frame);
    let good = a
        .out
        .to_peers
        .iter()
        .map(|(_, d)| d[0].clone())
        .find(|d| d.len() > 100)
        .unwrap();
    let with = |at: usize, v: u8| {
        let mut d = good.clone();
        d[at] = v;
        vec![d]
    };
    for (reason, from, datagrams) in [
        (DropReason::UnknownPeer, 9, vec![good.clone()]),
        (DropReason::NotPeersAddress, 3, vec![good.clone()]),
        (DropReason::WrongVni, 1, with(6, 2)),
        (DropReason::BadVxlan, 1, with(0, 0)),
        (DropReason::BadVxlan, 1, with(7, 1)),
        (DropReason::WrongVtepMac, 1, with(8, 0x0a)),
        (DropReason::EtherType, 1, with(20, 0x12)),
        (DropReason::BadIpHeader, 1, with(30, 1)),
        (DropReason::Truncated, 1, vec![good[..30].to_vec()]),
        (DropReason::Truncated, 1, vec![vec![8]]),
    ] {
        let mut b = Lab::new(2);
        b.receive(from, &datagrams);
        assert_eq!(
            (b.dropped(reason), b.out.to_pods.len()),
            (1, 0),
            "{reason:?} {:?}",
            b.node.drops()
        );
        b.balanced();
    }
    let mut b = Lab::new(2);
    b.receive(1, &[good]);
    assert_eq!(b.out.to_pods.len(), 1);
}

#[test]
fn nowhere_to_go_is_told_to_the_sender() {
    let ping = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    let cases = [
        (Ipv4Addr::new(10, 244, 1, 99), DropReason::NoSuchPod, [3, 1]),
        (Ipv4Addr::new(192, 0, 2, 1), DropReason::NoRoute, [3, 0]),
    ];
    for (dst, reason, kind) in cases {
        let mut lab = Lab::new(1);
        lab.send(0, &VnetHdr::default(), &ipv4(lab.gateway(), 2, dst, 1, &ping));
        assert_eq!(lab.dropped(reason), 1);
        let (port, _, error) = &lab.out.to_pods[0];
        assert_eq!((*port, &error[34..36]), (PortId(0), &kind[..]));
        lab.balanced();
    }
    // Not routable, nobody's MAC: silence.
    let mut lab = Lab::new(1);
    lab.send(
        0,
        &VnetHdr::default(),
        &ipv4(lab.gateway(), 2, Ipv4Addr::new(127, 0, 0, 1), 1, &ping),
    );
    lab.send(
        0,
        &VnetHdr::default(),
        &ipv4(Mac([2; 6]), 2, Ipv4Addr::new(10, 244, 1, 3), 1, &ping),
    );
    assert_eq!(
        (
            lab.dropped(DropReason::NotRoutable),
            lab.dropped(DropReason::UnknownMac)
        ),
        (1, 1)
    );
    // The gateway answers a ping itself.
    lab.send(
        0,
        &VnetHdr::default(),
        &ipv4(lab.gateway(), 2, Ipv4Addr::new(10, 244, 1, 1), 1, &ping),
    );
    assert_eq!(&lab.out.to_pods[0].2[34..36], &[0, 0]);
    lab.balanced();
}

#[test]
fn broadcasts_reach_the_others_within_a_limit() {
    let mut lab = Lab::new(1);
    lab.node.add_port(spec(1, 4)).unwrap();
    let all = Ipv4Addr::new(10, 244, 1, 255);
    for _ in 0..12 {
        lab.send(
            0,
            &VnetHdr::default(),
            &ipv4(Mac::BROADCAST, 2, all, 17, &[0, 9, 0, 9, 0, 8, 0, 0]),
        );
    }
    assert_eq!(
        (lab.out.to_pods.len(), lab.dropped(DropReason::StormLimit)),
        (20, 2)
    );
    assert!(lab.out.to_pods.iter().all(|(p, ..)| *p != PortId(0)) && lab.out.to_peers.is_empty());
    lab.balanced();
}

#[test]
fn the_longest_datagrams_of_a_train_go_one_by_one() {
    // Over an underlay of 65,535 bytes one datagram of a super-frame is longer than UDP_SEGMENT takes in all.
    let mut lab = Lab::new(1);
    lab.node.settings.local.underlay_mtu = UnderlayMtu(65_535);
    lab.out.room = Some(9);
    let (mut vnet, frame) = bulk(lab.gateway(), Ipv4Addr::new(10, 244, 2, 2), 65_450);
    vnet.gso_size = 65_445;
    lab.send(0, &vnet, &frame);
    let mut lengths = lab.out.to_peers.iter().flat_map(|(_, d)| d.iter().map(Vec::len));
    assert_eq!(
        (lengths.next(), lengths.next()),
        (Some(8 + 54 + 65_445), Some(8 + 54 + 5))
    );
    lab.balanced();
}

#[test]
fn a_checksum_asked_for_elsewhere_changes_no_address_and_no_port() {
    // PACKET_VNET_HDR lets a pod with raw sockets choose where its checksum goes: the guard has seen the frame
    // as it was before that.
    for (partial, dst_mac) in [
        ((34, 0), true),
        ((26, 8), true),
        ((20, 6), false),
        ((200, 6), false),
    ] {
        let mut lab = Lab::new(1);
        let (mut vnet, frame) = bulk(lab.gateway(), Ipv4Addr::new(10, 244, 2, 2), 100);
        vnet.partial = Some(partial);
        let frame = if dst_mac {
            frame
        } else {
            [&spec(1, 3).mac.0, &frame[6..]].concat()
        };
        lab.send(0, &vnet, &frame);
        assert_eq!(lab.dropped(DropReason::BadVnetHdr), 1, "{partial:?}");
        assert!(lab.out.to_pods.is_empty() && lab.out.to_peers.is_empty());
        lab.balanced();
    }
}

#[test]
fn checksums_are_completed_when_told_so() {
    let mut lab = Lab::new(1);
    lab.node.settings.partial_checksums = false;
    let (vnet, frame) = bulk(spec(1, 3).mac, spec(1, 3).ip4.unwrap(), 100);
    lab.send(0, &vnet, &frame);
    let (_, vnet, f) = &lab.out.to_pods[0];
    assert_eq!(vnet.partial, None);
    assert!(transport_is_right(f, &Headers::parse(f).unwrap()));
}

#[test]
fn the_network_identifier_is_on_every_datagram() {
    let mut lab = Lab::new(1);
    lab.node.settings.local.vni = 70_000.try_into().unwrap();
    let (vnet, frame) = bulk(lab.gateway(), Ipv4Addr::new(10, 244, 2, 2), 5000);
    lab.send(0, &vnet, &frame);
    let mut all = lab.out.to_peers.iter().flat_map(|(_, d)| d);
    assert!(all.all(|d| d[..8] == [8, 0, 0, 0, 0x01, 0x11, 0x70, 0]));
}

#[test]
fn each_copy_of_a_broadcast_has_a_right_checksum() {
    let mut lab = Lab::new(1);
    // Ports with checksum offload before, between and behind plain ones.
    for (pod, caps) in [
        (4, TapCaps::default()),
        (5, ALL),
        (6, TapCaps::default()),
        (7, ALL),
    ] {
        lab.node.add_port(PortSpec { caps, ..spec(1, pod) }).unwrap();
    }
    let mut frame = ipv4(
        Mac::BROADCAST,
        2,
        Ipv4Addr::new(10, 244, 1, 255),
        17,
        &[0, 9, 0, 9, 0, 12, 0, 0, 1, 2, 3, 4],
    );
    let h = Headers::parse(&frame).unwrap();
    let sum = pseudo(&frame, &h, h.end - h.l4).fold();
    put_be16(&mut frame, 40, sum);
    let vnet = VnetHdr {
        partial: Some((34, 6)),
        ..VnetHdr::default()
    };
    lab.send(0, &vnet, &frame);
    assert_eq!(lab.out.to_pods.len(), 5);
    for (port, v, f) in &lab.out.to_pods {
        match v.partial {
            Some(_) => assert_eq!(f, &frame, "{port:?}"),
            None => assert!(transport_is_right(f, &h), "{port:?}"),
        }
    }
    lab.balanced();
}

#[test]
fn arp_is_answered_for_pods_gateway_and_nobody_but_not_for_probes() {
    let mut lab = Lab::new(1);
    let ask = |sender: Ipv4Addr, wanted: Ipv4Addr| {
        let mac = spec(1, 2).mac;
        let mut f = [Mac::BROADCAST.0, mac.0].concat();
        f.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        f.extend(mac.0);
        f.extend(sender.octets());
        f.extend([0; 6]);
        f.extend(wanted.octets());
        f
    };
    let own = spec(1, 2).ip4.unwrap();
    for (last, mac) in [(3, spec(1, 3).mac), (1, lab.gateway()), (99, lab.gateway())] {
        lab.send(0, &VnetHdr::default(), &ask(own, Ipv4Addr::new(10, 244, 1, last)));
        let (_, _, reply) = lab.out.to_pods.pop().unwrap();
        assert_eq!((reply.len(), EthView(&reply).src()), (42, mac));
    }
    lab.send(
        0,
        &VnetHdr::default(),
        &ask(Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 244, 1, 99)),
    );
    assert!(lab.out.to_pods.is_empty());
    lab.balanced();
    assert_eq!(neighbour::ANSWER_LEN, 86);
}

#[test]
fn marks_are_carried_over_in_both_directions() {
    let dst = Ipv4Addr::new(10, 244, 2, 2);
    let (mut a, mut b) = (Lab::new(1), Lab::new(2));
    let (vnet, mut frame) = bulk(a.gateway(), dst, 100);
    // DSCP 46 and ECT(0); the IPv4 header checksum follows.
    frame[15] = 0xba;
    put_be16(&mut frame, 24, 0);
    let sum = Sum::default().with(&frame[14..34]).finish();
    put_be16(&mut frame, 24, sum);
    a.send(0, &vnet, &frame);
    assert!(a.out.classes.contains(&0xba), "inherited: {:?}", a.out.classes);
    let marked = a
        .out
        .to_peers
        .iter()
        .map(|(_, d)| d[0].clone())
        .find(|d| d.len() > 100)
        .unwrap();
    b.class = 0xbb;
    b.receive(1, std::slice::from_ref(&marked));
    let got = &b.out.to_pods[0].2;
    assert_eq!(got[15], 0xbb, "congestion experienced on the way");
    assert!(Headers::parse(got).is_ok(), "with a right header checksum");
    // A packet that cannot carry the mark is dropped.
    let (vnet, frame) = bulk(a.gateway(), dst, 200);
    a.send(0, &vnet, &frame);
    let unmarked = a
        .out
        .to_peers
        .iter()
        .map(|(_, d)| d[0].clone())
        .find(|d| d.len() > 200)
        .unwrap();
    b.receive(1, &[unmarked]);
    assert_eq!(b.dropped(DropReason::EcnCongested), 1);
    // A fixed DSCP leaves the ECN bits alone.
    let mut c = Lab::new(1);
    c.node.settings.dscp = Some(8);
    let (vnet, frame) = bulk(c.gateway(), dst, 100);
    c.send(0, &vnet, &frame);
    assert!(c.out.classes.contains(&0x20));
    b.balanced();
}

#[test]
fn a_mac_chosen_by_hand_is_announced() {
    let mut lab = Lab::new(1);
    let usual = lab.node.add_port(spec(1, 8)).unwrap();
    lab.node.announce(usual, NOW, &mut lab.out);
    assert!(
        lab.out.to_pods.is_empty(),
        "no pod can know another MAC for that address"
    );
    let odd = PortSpec {
        mac: Mac([2, 0, 0, 0, 0, 9]),
        ..spec(1, 9)
    };
    let port = lab.node.add_port(odd).unwrap();
    lab.node.announce(port, NOW, &mut lab.out);
    let told: Vec<_> = lab
        .out
        .to_pods
        .iter()
        .map(|(p, _, f)| (p.0, be16(f, 12)))
        .collect();
    assert_eq!(
        told,
        [
            (0, 0x806),
            (1, 0x806),
            (2, 0x806),
            (0, 0x86dd),
            (1, 0x86dd),
            (2, 0x86dd)
        ]
    );
    lab.balanced();
}

/// A change of the tables, or a question.
#[derive(Clone, Debug)]
enum Step {
    Port(u8),
    NoPort(u8),
    Peer(u8),
    NoPeer(u8),
    Ask(FlowKey),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let mac = prop_oneof![
        Just(Mac::of_ipv4(Ipv4Addr::new(10, 244, 1, 1))),
        (2u8..8).prop_map(|p| spec(1, p).mac)
    ];
    let dst = (0u8..5, 0u8..8, any::<bool>()).prop_map(|(node, pod, six)| match six {
        false => IpAddr::V4(Ipv4Addr::new(10, 244, node, pod)),
        true => IpAddr::V6(Ipv6Addr::new(0xfd00, node.into(), 0, 0, 0, 0, 0, pod.into())),
    });
    let ask = (0u16..4, mac, dst).prop_map(|(port, mac, dst)| {
        Step::Ask(FlowKey {
            port: PortId(port),
            mac,
            dst,
        })
    });
    let step = prop_oneof![
        8 => ask,
        1 => (2u8..8).prop_map(Step::Port),
        1 => (2u8..8).prop_map(Step::NoPort),
        1 => (2u8..5).prop_map(Step::Peer),
        1 => (2u8..5).prop_map(Step::NoPeer),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn the_flow_cache_agrees_with_a_fresh_decision(steps in steps()) {
        let mut node = Lab::new(1).node;
        for step in steps {
            match step {
                Step::Port(p) => { let _ = node.add_port(spec(1, p)); }
                Step::NoPort(p) => { node.remove_port(&spec(1, p).pod, &mut Out::default()); }
                Step::Peer(n) => { let _ = node.apply(Change::PeerSet(peer(n))); }
                Step::NoPeer(n) => { let _ = node.apply(Change::PeerGone(peer(n).name)); }
                Step::Ask(key) => {
                    let fresh = node.fresh_way(&key);
                    prop_assert_eq!(node.way(key), fresh);
                    prop_assert_eq!(node.way(key), fresh);
                }
            }
        }
    }

    #[test]
    fn no_bytes_break_a_node(
        kind in 0usize..4, at in 0usize..60, byte: u8, cut in 0usize..200, vnet in any::<[u8; 10]>(), trust: bool,
        noise in proptest::collection::vec(any::<u8>(), 0..300), segment in 1u16..400,
    ) {
        let mut a = Lab::new(1);
        let dst = Ipv4Addr::new(10, 244, 2, 2);
        let (good_vnet, mut frame) = bulk(a.gateway(), dst, if kind == 0 { 4000 } else { 100 });
        if kind == 3 { frame = noise.clone(); } else if kind > 0 && at < frame.len() { frame[at] = byte; }
        frame.truncate(frame.len().saturating_sub(if kind == 2 { cut } else { 0 }));
        let vnet = if trust { good_vnet } else { VnetHdr::parse(&vnet).unwrap_or_default() };
        a.send(0, &vnet, &frame);
        a.balanced();
        let mut b = Lab::new(2);
        let mut datagrams: Vec<_> = std::mem::take(&mut a.out.to_peers).into_iter().flat_map(|(_, d)| d).collect();
        if let Some(d) = datagrams.first_mut() && at < d.len() { d[at] = byte; }
        datagrams.push(noise.clone());
        for d in datagrams {
            let mut memory = d.clone();
            let message = Received {
                span: Span::new(0, memory.len()),
                segment: Some(segment).filter(|_| !trust),
                from: IpAddr::from([192, 0, 2, 1]),
                class: byte,
            };
            b.node.from_peer(&mut memory, &message, NOW, &mut b.out);
            b.node.deliver_trains(&mut memory, NOW, &mut b.out);
            b.settle();
        }
        b.balanced();
    }
}
