//! The nodes, the network between them, and the flows that check themselves.

use podwire::buf::{Arena, Message, Progress, Received, Span};
use podwire::datapath::{Exits, FRAME_ROOM, HEADROOM, News, Node, Settings};
use podwire::model::{
    Change, DropReason, Instant, LocalNode, Mac, Peer, PodMtu, PortId, PortSpec, TapCaps, UnderlayMtu,
};
use podwire::overlay::Path;
use podwire::wire::bytes::{be16, be32, put_be16};
use podwire::wire::checksum::{Sum, pseudo, transport_is_right};
use podwire::wire::{EthView, Gso, Headers, VnetHdr, proto};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Time a datagram travels when nothing delays it.
const LATENCY_US: i64 = 100;
/// Payload of one segment of the flows' super-frames.
const MSS: usize = 1380;
/// Each UDP datagram begins with its place in the flow.
const MARK: usize = 4;

/// What the network does to datagrams.
#[derive(Clone, Copy, Debug, Default)]
pub struct Impairment {
    pub loss_percent: u64,
    pub repeat_percent: u64,
    /// Extra delay of up to so much, different for each datagram: more than the distance of two reorders them.
    pub jitter_us: u64,
}

/// A small generator (splitmix64): the same seed gives the same run everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

struct Datagram {
    from: IpAddr,
    to: usize,
    bytes: Vec<u8>,
}

/// What leaves a node at one moment.
#[derive(Default)]
struct Out {
    to_pods: Vec<(PortId, VnetHdr, Vec<u8>)>,
    to_peers: Vec<(SocketAddr, Vec<u8>)>,
}

impl podwire::stack::egress::Host for Out {}

impl Exits for Out {
    fn to_pod(&mut self, port: PortId, vnet: &VnetHdr, head: &[u8], memory: &[u8], pieces: &[Span]) -> bool {
        let mut frame = head.to_vec();
        pieces.iter().for_each(|p| frame.extend(p.of(memory)));
        self.to_pods.push((port, *vnet, frame));
        true
    }

    fn to_peers(&mut self, messages: &[Message], memory: &[u8]) -> Progress {
        for m in messages {
            for pieces in m.pieces.chunks(usize::from(m.pieces_each)) {
                let bytes = pieces.iter().flat_map(|p| p.of(memory).to_vec()).collect();
                self.to_peers.push((m.to, bytes));
            }
        }
        Progress::All
    }
}

struct Member {
    node: Node,
    arena: Arena,
    received: Vec<u64>,
}

pub struct World {
    members: Vec<Member>,
    pods: usize,
    /// By arrival, then by the order of sending.
    network: BinaryHeap<Reverse<(i64, u64)>>,
    travelling: HashMap<u64, Datagram>,
    sent: u64,
    now_us: i64,
    random: Random,
    impairment: Impairment,
    /// Ways on which all vanishes, and the longest outer packet that passes any.
    cut: HashSet<(usize, usize)>,
    /// Nodes whose echo replies vanish.
    mute: HashSet<usize>,
    longest: Option<usize>,
    /// Datagrams sent on each way.
    traffic: HashMap<(usize, usize), u64>,
    /// ICMP errors that pods were told: node, type, code.
    told: Vec<(usize, u8, u8)>,
    /// Next byte of each flow.
    places: HashMap<u16, u32>,
    pub sent_bytes: usize,
    pub delivered_bytes: usize,
    pub lost_bytes: usize,
    pub repeated_bytes: usize,
    pub datagrams_lost: usize,
}

fn subnet4(node: usize) -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new(Ipv4Addr::new(10, 244, node as u8, 0), 24).unwrap()
}

fn subnet6(node: usize) -> ipnet::Ipv6Net {
    ipnet::Ipv6Net::new(Ipv6Addr::new(0xfd00, node as u16, 0, 0, 0, 0, 0, 0), 64).unwrap()
}

fn underlay(node: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, node as u8])
}

fn pod(node: usize, pod: usize) -> PortSpec {
    let ip4 = Ipv4Addr::new(10, 244, node as u8, pod as u8 + 2);
    PortSpec {
        pod: format!("n{node}/p{pod}").parse().unwrap(),
        mac: Mac::of_ipv4(ip4),
        ip4: Some(ip4),
        ip6: Some(Ipv6Addr::new(0xfd00, node as u16, 0, 0, 0, 0, 0, pod as u16 + 2)),
        mtu: PodMtu(1450),
        // The last pod of each node has a plain TAP.
        bandwidth: None,
        caps: match pod {
            2 => TapCaps::default(),
            _ => TapCaps {
                vnet_hdr: true,
                csum: true,
                tso4: true,
                tso6: true,
                uso: true,
            },
        },
    }
}

/// The byte a flow has at a place.
fn pattern(flow: u16, place: u32) -> u8 {
    (place.wrapping_mul(31) ^ place >> 8 ^ u32::from(flow)) as u8
}

impl World {
    pub fn new(seed: u64, nodes: usize, pods: usize, impairment: Impairment) -> World {
        let peers: Vec<Peer> = (0..nodes).map(peer).collect();
        let member = |n: usize| {
            let local = LocalNode {
                name: peers[n].name.clone(),
                subnet4: peers[n].subnet4,
                subnet6: peers[n].subnet6,
                vtep_mac: peers[n].vtep_mac,
                vtep_mac6: peers[n].vtep_mac6,
                gateway_mac: gateway(n),
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
                broadcast_per_second: 1000,
                sockets: 8,
                underlay: (true, false),
                seed,
            });
            for p in 0..pods {
                node.add_port(pod(n, p)).unwrap();
            }
            for other in peers.iter().filter(|p| p.name != peers[n].name) {
                node.apply(Change::PeerSet(other.clone())).unwrap();
            }
            Member {
                node,
                arena: Arena::new(4 * FRAME_ROOM),
                received: vec![0; pods],
            }
        };
        World {
            members: (0..nodes).map(member).collect(),
            pods,
            network: BinaryHeap::new(),
            travelling: Default::default(),
            sent: 0,
            now_us: 1_000_000,
            random: Random(seed),
            impairment,
            cut: HashSet::new(),
            mute: HashSet::new(),
            longest: None,
            traffic: HashMap::new(),
            told: Vec::new(),
            places: Default::default(),
            sent_bytes: 0,
            delivered_bytes: 0,
            lost_bytes: 0,
            repeated_bytes: 0,
            datagrams_lost: 0,
        }
    }

    pub fn peer(&self, n: usize) -> Peer {
        peer(n)
    }

    pub fn change_all(&mut self, change: &Change) {
        for member in &mut self.members {
            let own = match change {
                Change::PeerSet(p) => &p.name,
                Change::PeerGone(name) => name,
            };
            if member.node.settings().local.name != *own {
                member.node.apply(change.clone()).unwrap();
            }
        }
    }

    /// A super-frame of random length, kind and direction.
    pub fn send_random_frame(&mut self) {
        let (nodes, pods) = (self.members.len() as u64, self.pods as u64);
        let mut pick = |n| self.random.below(n) as usize;
        let (a, b) = ((pick(nodes), pick(pods)), (pick(nodes), pick(pods)));
        if a != b {
            self.send(a.0, a.1, b.0, b.1);
        }
    }

    /// A super-frame from pod to pod, of random length and kind.
    pub fn send(&mut self, node: usize, port: usize, to_node: usize, to_port: usize) {
        self.send_some(node, port, to_node, to_port, 40_000);
    }

    /// A frame from pod to pod with at most so many bytes, of random length and kind.
    pub fn send_some(&mut self, node: usize, port: usize, to_node: usize, to_port: usize, most: usize) {
        let (six, tcp) = (self.random.below(2) == 1, self.random.below(3) > 0);
        let len = 1 + self.random.below(most as u64) as usize;
        // Ports name the flow: who, to whom, and how.
        let ends = ((node * 8 + port) * 64 + to_node * 8 + to_port) as u16;
        let flow = ends << 2 | u16::from(six) << 1 | u16::from(tcp);
        let (from, to) = (pod(node, port), pod(to_node, to_port));
        let place = *self.places.entry(flow).or_insert(0);
        self.places.insert(flow, place + len as u32);
        let mac = if node == to_node { to.mac } else { gateway(node) };
        let frame = build(mac, &from, &to, flow, six, tcp, place, len);
        let h = Headers::parse(&frame).unwrap();
        let gso = match (tcp, six) {
            _ if len <= MSS => Gso::None,
            (true, false) => Gso::Tcp4,
            (true, true) => Gso::Tcp6,
            (false, _) => Gso::Udp,
        };
        let vnet = VnetHdr {
            partial: Some((h.l4 as u16, if tcp { 16 } else { 6 })),
            gso,
            ecn: false,
            hdr_len: (h.end - len) as u16,
            gso_size: if len > MSS { MSS as u16 } else { 0 },
        };
        self.sent_bytes += len;
        if from.caps.vnet_hdr {
            return self.put_in(node, port, &vnet, &frame);
        }
        // A plain TAP: its kernel has segmented and summed.
        if len <= MSS {
            let mut frame = frame;
            podwire::offload::complete(&mut frame, &h, vnet.partial.unwrap()).unwrap();
            return self.put_in(node, port, &vnet, &frame);
        }
        let segments = podwire::offload::Segments::checked(&frame, &h, &vnet).unwrap();
        for i in 0..segments.count() {
            let mut one = vec![0; segments.header_len()];
            segments.header(&frame, i, &mut one);
            one.extend(&frame[segments.payload(i)]);
            self.put_in(node, port, &vnet, &one);
        }
    }

    fn put_in(&mut self, node: usize, port: usize, vnet: &VnetHdr, frame: &[u8]) {
        let now = self.now();
        let member = &mut self.members[node];
        let mut out = Out::default();
        member.arena.free_mut()[..HEADROOM].copy_from_slice(&vnet.emit());
        member.arena.take(HEADROOM);
        member.arena.free_mut()[..frame.len()].copy_from_slice(frame);
        let span = member.arena.take(frame.len());
        member
            .node
            .from_pod(PortId(port as u16), &mut member.arena, span, now, &mut out);
        self.finish_turn(node, out);
    }

    fn finish_turn(&mut self, node: usize, mut out: Out) {
        let now = self.now();
        let member = &mut self.members[node];
        member.node.send_own(&mut member.arena, now, &mut out);
        assert!(member.node.flush(&mut member.arena, now, &mut out));
        member.arena.rewind(0);
        for (port, vnet, frame) in out.to_pods {
            self.check(node, port, &vnet, &frame);
        }
        for (to, bytes) in out.to_peers {
            self.transmit(node, to, bytes);
        }
    }

    fn transmit(&mut self, from: usize, to: SocketAddr, bytes: Vec<u8>) {
        let to = (0..self.members.len()).find(|n| underlay(*n) == to.ip()).unwrap();
        let payload = flow_payload(&bytes[8..]).map_or(0, |(_, _, p)| p.len());
        *self.traffic.entry((from, to)).or_default() += 1;
        let swallowed = self.longest.is_some_and(|most| bytes.len() + 28 > most);
        let filtered = self.mute.contains(&from) && is_echo_reply(&bytes[8..]);
        let lost = self.random.below(100) < self.impairment.loss_percent;
        if filtered || lost || swallowed || self.cut.contains(&(from, to)) {
            self.datagrams_lost += 1;
            self.lost_bytes += payload;
            return;
        }
        let twice = self.random.below(100) < self.impairment.repeat_percent;
        if twice {
            self.repeated_bytes += payload;
        }
        for _ in 0..=usize::from(twice) {
            let jitter = self.random.below(self.impairment.jitter_us + 1) as i64;
            self.sent += 1;
            self.network
                .push(Reverse((self.now_us + LATENCY_US + jitter, self.sent)));
            let datagram = Datagram {
                from: underlay(from),
                to,
                bytes: bytes.clone(),
            };
            self.travelling.insert(self.sent, datagram);
        }
    }

    /// Let a little time pass.
    pub fn advance(&mut self) {
        self.run_until(self.now_us + 50);
    }

    /// Let everything arrive.
    pub fn settle(&mut self) {
        while !self.network.is_empty() {
            self.run_until(self.now_us + 1000);
        }
    }

    fn run_until(&mut self, end: i64) {
        loop {
            let arrival = self.network.peek().map(|Reverse((at, _))| *at);
            let deadlines = self.members.iter().filter_map(|m| m.node.deadline());
            let deadline = deadlines.map(|at| at.total_micros()).min();
            let next = [arrival, deadline].into_iter().flatten().min();
            let Some(at) = next.filter(|at| *at <= end) else {
                break;
            };
            self.now_us = self.now_us.max(at);
            if arrival == Some(at) {
                self.arrive();
                continue;
            }
            for n in 0..self.members.len() {
                let now = self.now();
                self.members[n].node.on_timeout(now);
                self.finish_turn(n, Out::default());
            }
        }
        self.now_us = end;
    }

    /// Let so much time pass.
    pub fn pass(&mut self, ms: i64) {
        self.run_until(self.now_us + ms * 1000);
    }

    /// From now on nothing passes from one node to another, or all does again.
    pub fn cut(&mut self, from: usize, to: usize, cut: bool) {
        match cut {
            true => self.cut.insert((from, to)),
            false => self.cut.remove(&(from, to)),
        };
    }

    /// From now on a node answers no echo request, or does again.
    pub fn mute(&mut self, node: usize, mute: bool) {
        match mute {
            true => self.mute.insert(node),
            false => self.mute.remove(&node),
        };
    }

    /// Longer outer packets vanish from now on, on all ways.
    pub fn swallow(&mut self, longest: Option<usize>) {
        self.longest = longest;
    }

    /// What node `n` knows of the way to another.
    pub fn state(&self, n: usize, other: usize) -> &Path {
        let peers = self.members[n].node.peers();
        let id = peers.at_underlay(underlay(other)).unwrap();
        peers.state(id).unwrap().path(false)
    }

    /// Datagrams sent from one node to another so far, whether they arrived or not.
    pub fn traffic(&self, from: usize, to: usize) -> u64 {
        self.traffic.get(&(from, to)).copied().unwrap_or(0)
    }

    /// ICMP errors of a type and code that pods of a node were told so far, of either family.
    pub fn told(&self, node: usize, kinds: [(u8, u8); 2]) -> usize {
        let of = |(n, kind, code): &&(usize, u8, u8)| *n == node && kinds.contains(&(*kind, *code));
        self.told.iter().filter(of).count()
    }

    /// What a node has to say of its peers.
    pub fn news(&mut self, node: usize) -> Vec<News> {
        self.members[node].node.news().collect()
    }

    /// What arrives at one moment at one node is one batch, and equal datagrams of one sender in it are one
    /// message, as UDP_GRO has it.
    fn arrive(&mut self) {
        let now = self.now();
        let mut batch: Vec<Datagram> = Vec::new();
        while let Some(Reverse((at, id))) = self.network.peek().copied() {
            let to = self.travelling[&id].to;
            if at != self.now_us || batch.first().is_some_and(|d| d.to != to) {
                break;
            }
            self.network.pop();
            batch.extend(self.travelling.remove(&id));
        }
        let to = batch[0].to;
        let mut out = Out::default();
        let mut memory: Vec<u8> = batch.iter().flat_map(|d| d.bytes.clone()).collect();
        let (mut i, mut at) = (0, 0);
        while i < batch.len() {
            let (first, start) = (&batch[i], at);
            let mut n = 0;
            while let Some(d) = batch.get(i) {
                let fits = d.from == first.from && d.bytes.len() <= first.bytes.len() && n < 64;
                if !fits {
                    break;
                }
                at += d.bytes.len();
                n += 1;
                i += 1;
                if d.bytes.len() < first.bytes.len() {
                    break;
                }
            }
            let message = Received {
                span: Span::new(start, at),
                segment: (n > 1).then_some(first.bytes.len() as u16),
                from: first.from,
                class: 0,
            };
            self.members[to]
                .node
                .from_peer(&mut memory, &message, now, &mut out);
        }
        self.members[to].node.deliver_trains(&mut memory, now, &mut out);
        self.finish_turn(to, out);
    }

    /// A frame came out at a pod: it must be that pod's, and every byte the one its flow has there.
    fn check(&mut self, node: usize, port: PortId, vnet: &VnetHdr, frame: &[u8]) {
        let to = pod(node, usize::from(port.0));
        let h = Headers::parse(frame).unwrap();
        let Some((flow, _, _)) = flow_payload(frame) else {
            if matches!(h.proto, proto::ICMP | proto::ICMPV6) {
                self.told.push((node, frame[h.l4], frame[h.l4 + 1]));
            }
            return;
        };
        let dst = h.dst(frame);
        assert_eq!(EthView(frame).dst(), to.mac);
        assert!(Some(dst) == to.ip4.map(IpAddr::V4) || Some(dst) == to.ip6.map(IpAddr::V6));
        match vnet.partial {
            Some((start, offset)) => {
                let sum = pseudo(frame, &h, h.end - h.l4).fold();
                assert_eq!(be16(frame, usize::from(start + offset)), sum);
            }
            None => assert!(transport_is_right(frame, &h)),
        }
        assert!(to.caps.vnet_hdr || *vnet == VnetHdr::default());
        let mss = if vnet.gso == Gso::None {
            frame.len()
        } else {
            usize::from(vnet.gso_size)
        };
        let (_, mut place, payload) = flow_payload(frame).unwrap();
        for segment in payload.chunks(mss) {
            let marked = h.proto == proto::UDP && segment.len() > MARK;
            if marked {
                place = be32(segment, 0);
            }
            for (i, byte) in segment
                .iter()
                .enumerate()
                .skip(if h.proto == proto::UDP { MARK } else { 0 })
            {
                assert_eq!(
                    *byte,
                    pattern(flow, place.wrapping_add(i as u32)),
                    "flow {flow} at {place} + {i}"
                );
            }
            place = place.wrapping_add(segment.len() as u32);
        }
        self.delivered_bytes += payload.len();
        self.members[node].received[usize::from(port.0)] += 1;
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.now_us)
    }

    pub fn check_balance(&self) {
        for m in &self.members {
            assert_eq!(m.node.counters().imbalance(), 0, "{:?}", m.node.counters());
        }
    }

    pub fn total_drops(&self) -> u64 {
        self.members.iter().map(|m| m.node.drops().total()).sum()
    }

    pub fn drops(&self, node: usize, reason: DropReason) -> u64 {
        self.members[node].node.drops().count(reason)
    }

    pub fn coalesced(&self) -> u64 {
        self.members.iter().map(|m| m.node.counters().coalesced).sum()
    }

    pub fn frames_received(&self, node: usize, port: usize) -> u64 {
        self.members[node].received[port]
    }
}

fn gateway(node: usize) -> Mac {
    Mac::of_ipv4(Ipv4Addr::new(10, 244, node as u8, 1))
}

fn peer(n: usize) -> Peer {
    let mac = Mac::of_vtep(subnet4(n).network());
    Peer {
        name: format!("n{n}").parse().unwrap(),
        underlay: SocketAddr::new(underlay(n), 8472),
        underlay6: None,
        subnet4: Some(subnet4(n)),
        subnet6: Some(subnet6(n)),
        vtep_mac: mac,
        vtep_mac6: mac,
        mtu: None,
    }
}

fn is_echo_reply(frame: &[u8]) -> bool {
    let kind = |h: Headers| (h.proto, frame[h.l4]);
    Headers::parse(frame)
        .is_ok_and(|h| h.l4 < frame.len() && matches!(kind(h), (proto::ICMP, 0) | (proto::ICMPV6, 129)))
}

/// Flow, place of the first byte, and payload of a frame of the flows; `None` for others (probes, errors).
fn flow_payload(frame: &[u8]) -> Option<(u16, u32, &[u8])> {
    let h = Headers::parse(frame).ok()?;
    let (flow, nine) = h.ports(frame);
    let (header, place) = match h.proto {
        proto::TCP => (20, be32(frame, h.l4 + 4)),
        proto::UDP => (8, 0),
        _ => return None,
    };
    (nine == 9).then(|| (flow, place, &frame[h.l4 + header..h.end]))
}

#[allow(clippy::too_many_arguments)]
fn build(
    mac: Mac,
    from: &PortSpec,
    to: &PortSpec,
    flow: u16,
    six: bool,
    tcp: bool,
    place: u32,
    len: usize,
) -> Vec<u8> {
    let mut l4 = [flow.to_be_bytes(), 9u16.to_be_bytes()].concat();
    if tcp {
        l4.extend(place.to_be_bytes());
        l4.extend([0, 0, 0, 1, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    } else {
        l4.extend(((8 + len) as u16).to_be_bytes());
        l4.extend([0, 0]);
    }
    for start in (0..len).step_by(MSS) {
        for i in start..(start + MSS).min(len) {
            let mark = (place + start as u32).to_be_bytes();
            l4.push(match i - start {
                k if !tcp && k < MARK => mark[k],
                _ => pattern(flow, place + i as u32),
            });
        }
    }
    let protocol = if tcp { proto::TCP } else { proto::UDP };
    let mut f = [mac.0, from.mac.0].concat();
    if six {
        f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        f.extend((l4.len() as u16).to_be_bytes());
        f.extend([protocol, 64]);
        f.extend(from.ip6.unwrap().octets());
        f.extend(to.ip6.unwrap().octets());
    } else {
        f.extend([8, 0, 0x45, 0]);
        f.extend(((20 + l4.len()) as u16).to_be_bytes());
        f.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
        f.extend(from.ip4.unwrap().octets());
        f.extend(to.ip4.unwrap().octets());
        let sum = Sum::default().with(&f[14..34]).finish();
        put_be16(&mut f, 24, sum);
    }
    f.extend(l4);
    let h = Headers::parse(&f).unwrap();
    let at = h.l4 + if tcp { 16 } else { 6 };
    let sum = pseudo(&f, &h, h.end - h.l4).fold();
    put_be16(&mut f, at, sum);
    f
}
