//! A whole node as `daemon::worker` drives it, with a model of its ports and peers beside it.

use super::craft::{self, Crafted, Ends};
use super::input::Input;
use super::rules;
use super::watch::{Turn, Watch, owned};
use ipnet::{Ipv4Net, Ipv6Net};
use podwire::buf::{Arena, Progress, Received, Refusal, Span};
use podwire::datapath::{FRAME_ROOM, HEADROOM, Node, Settings};
use podwire::model::{
    Change, Duration, Instant, LocalNode, Mac, Peer, PodMtu, PortId, PortSpec, TapCaps, UnderlayMtu,
};
use podwire::offload::Segments;
use podwire::wire::vxlan;
use podwire::wire::{Gso, Headers, VnetHdr};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Operations one input may ask for.
pub const MOST_STEPS: usize = 48;
const ALL: TapCaps = TapCaps {
    vnet_hdr: true,
    csum: true,
    tso4: true,
    tso6: true,
    uso: true,
};
const PLAIN: TapCaps = TapCaps {
    vnet_hdr: false,
    csum: false,
    tso4: false,
    tso6: false,
    uso: false,
};

pub struct Lab {
    pub node: Node,
    pub watch: Watch,
    arena: Arena,
    now: Instant,
    /// As the worker keeps it: the underlay is full, TAPs are not read.
    blocked: bool,
}

fn subnet4(n: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, 244, n, 0), 24).expect("a prefix")
}

fn subnet6(n: u8) -> Ipv6Net {
    Ipv6Net::new(Ipv6Addr::new(0xfd00, n.into(), 0, 0, 0, 0, 0, 0), 64).expect("a prefix")
}

/// Pod `n` of node `node`: 2 and 3 take everything, 4 is plain, 5 has checksums only, 6 is IPv4 only, 7 IPv6
/// only, 8 has a MAC of its own choice and a small MTU.
pub fn pod(node: u8, n: u8) -> PortSpec {
    let ip4 = Ipv4Addr::new(10, 244, node, n);
    let ip6 = Ipv6Addr::new(0xfd00, node.into(), 0, 0, 0, 0, 0, n.into());
    let caps = match n {
        4 => PLAIN,
        5 => TapCaps {
            vnet_hdr: true,
            csum: true,
            ..PLAIN
        },
        6 => TapCaps { tso6: false, ..ALL },
        7 => TapCaps { uso: false, ..ALL },
        _ => ALL,
    };
    PortSpec {
        pod: format!("p{n}").parse().expect("a name"),
        mac: match n {
            7 => Mac::of_ipv6(ip6),
            8 => Mac([2, 0, 0, 0, 0, 8]),
            _ => Mac::of_ipv4(ip4),
        },
        ip4: (n != 7).then_some(ip4),
        ip6: (n != 6).then_some(ip6),
        mtu: PodMtu(if n == 8 { 1300 } else { 1450 }),
        caps,
        bandwidth: None,
    }
}

/// Peer `n` in one of its shapes: 2 is ordinary, 3 has an endpoint for each family, 4 is at IPv6 only, 5 shares
/// the address of 2 (a NAT) and has a smaller MTU.
pub fn peer(n: u8, shape: u8) -> Peer {
    let six = SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()), 8472));
    let four = SocketAddr::from(([192, 0, 2, n], 8472));
    let mut peer = Peer {
        name: format!("n{n}").parse().expect("a name"),
        underlay: match n {
            4 => six,
            5 => SocketAddr::from(([192, 0, 2, 2], 8473)),
            _ => four,
        },
        underlay6: (n == 3).then_some(six),
        subnet4: Some(subnet4(n)),
        subnet6: Some(subnet6(n)),
        vtep_mac: Mac::of_vtep(subnet4(n).network()),
        vtep_mac6: Mac([0x0e, 6, 0, 0, 0, n]),
        mtu: (n == 5).then_some(UnderlayMtu(1400)),
    };
    if shape & 1 != 0 {
        peer.underlay = SocketAddr::from(([192, 0, 2, 100 + n], 8472));
    }
    if shape & 2 != 0 {
        peer.subnet6 = None;
    }
    if shape & 4 != 0 {
        peer.vtep_mac = Mac([0x0e, 7, 0, 0, 0, n]);
    }
    if shape & 8 != 0 {
        peer.mtu = Some(UnderlayMtu(700));
    }
    peer
}

impl Lab {
    /// A node with pods 2 to 5 and peers 2 to 5, its settings chosen by the input.
    pub fn new(input: &mut Input) -> Lab {
        let bits = input.u8();
        let bit = |n: u8| bits >> n & 1 != 0;
        let mtu = input.pick(&[1500, 9000, 65_535, 1330, 650]);
        let families = [(true, true), (true, false), (false, true), (true, true)][usize::from(bits >> 6)];
        let sockets = input.pick(&[4, 0, 1, 64]);
        let local = LocalNode {
            name: "n1".parse().expect("a name"),
            subnet4: Some(subnet4(1)),
            subnet6: (!bit(3)).then(|| subnet6(1)),
            vtep_mac: Mac::of_vtep(subnet4(1).network()),
            vtep_mac6: Mac([0x0e, 6, 0, 0, 0, 1]),
            gateway_mac: Mac::of_ipv4(Ipv4Addr::new(10, 244, 1, 1)),
            vni: 1.try_into().expect("24 bits"),
            pod_mtu: UnderlayMtu(mtu).pod_mtu(families.1),
            underlay_mtu: UnderlayMtu(mtu),
        };
        let node = Node::new(Settings {
            local: local.clone(),
            dscp: bit(2).then_some(46),
            udp_gso: !bit(0),
            partial_checksums: !bit(1),
            merge_acks: !bit(5),
            egress: Default::default(),
            broadcast_per_second: if bit(4) { 1 } else { 1000 },
            sockets,
            underlay: families,
            seed: 7,
        });
        let mut lab = Lab {
            node,
            watch: Watch::new(local, families, sockets),
            arena: Arena::new(4 * FRAME_ROOM),
            now: Instant::from_secs(5),
            blocked: false,
        };
        for n in 2..=5 {
            lab.attach(n);
            lab.set_peer(n, 0);
        }
        lab
    }

    /// Take a pod's port into service, if it is not.
    pub fn attach(&mut self, n: u8) {
        let local = &self.watch.local;
        let mut spec = pod(1, n);
        spec.ip6 = spec.ip6.filter(|_| local.subnet6.is_some());
        spec.mtu = spec.mtu.min(local.pod_mtu);
        self.watch.begin(Turn::Own);
        if let Ok(port) = self.node.add_port(spec.clone()) {
            let at = usize::from(port.0);
            if self.watch.ports.len() <= at {
                self.watch.ports.resize(at + 1, None);
            }
            self.watch.sources.extend(owned(&spec));
            self.watch.ports[at] = Some(spec);
            self.node.announce(port, self.now, &mut self.watch);
        }
    }

    /// Take it out of service.
    pub fn detach(&mut self, n: u8) {
        let found = self.node.remove_port(&pod(1, n).pod, &mut self.watch);
        if let Some(port) = found {
            self.watch.ports[usize::from(port.0)] = None;
        }
    }

    pub fn set_peer(&mut self, n: u8, shape: u8) {
        let peer = peer(n, shape);
        self.watch.peers.retain(|p| p.name != peer.name);
        self.watch.peers.push(peer.clone());
        self.watch.known.push(peer.clone());
        self.node
            .apply(Change::PeerSet(peer))
            .expect("the table has room");
    }

    pub fn remove_peer(&mut self, n: u8) {
        let name = peer(n, 0).name;
        self.watch.peers.retain(|p| p.name != name);
        self.node
            .apply(Change::PeerGone(name))
            .expect("removal never fails");
    }

    pub fn wait(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    pub fn probe(&mut self) {
        self.node.probe_peers(self.now);
    }

    /// What the next sends come to.
    pub fn outcome(&mut self, input: &mut Input) {
        let sent = usize::from(input.u8());
        let why = match input.u8() % 5 {
            0 => {
                self.watch.outcomes.push_back(Progress::Blocked { sent });
                return;
            }
            1 => Refusal::TooBig { mtu: None },
            2 => Refusal::TooBig {
                mtu: Some(UnderlayMtu(input.u16())),
            },
            3 => Refusal::NoOffload,
            _ => Refusal::Other,
        };
        self.watch.outcomes.push_back(Progress::Refused { sent, why });
    }

    /// A pod sends a frame more often than anything has room for.
    pub fn burst(&mut self, input: &mut Input) {
        let (times, frame) = (input.u8() % 140, *input);
        for _ in 0..times {
            *input = frame;
            self.pod_sends(input);
        }
    }

    /// A pod sends a frame: `[port][to whom][frame][how the virtio-net header is made]`.
    pub fn pod_sends(&mut self, input: &mut Input) {
        let port = PortId(u16::from(input.u8()) % 8);
        let to = input.u8();
        let spec = self.watch.ports.get(usize::from(port.0)).cloned().flatten();
        let Crafted { repair, mut frame } = craft::frame(input, &self.pods_ends(spec.as_ref(), to));
        let vnet = vnet(input, &mut frame, repair);
        if self.arena.room() < FRAME_ROOM {
            self.flush();
        } else if !self.node.is_blocked() {
            self.arena.rewind(0);
        }
        if self.blocked {
            return;
        }
        let sound = spec
            .as_ref()
            .is_some_and(|s| is_sound(&frame, s.caps.vnet_hdr.then_some(&vnet)));
        self.watch.sound = sound && (self.watch.sound || !self.node.is_blocked());
        self.watch.begin(Turn::Pod(port, sound));
        self.arena.free_mut()[..HEADROOM].copy_from_slice(&vnet);
        self.arena.take(HEADROOM);
        self.arena.free_mut()[..frame.len()].copy_from_slice(&frame);
        let span = self.arena.take(frame.len());
        // Who reads a TAP knows its port: a frame cannot come from one that is gone.
        if spec.is_some() {
            self.node
                .from_pod(port, &mut self.arena, span, self.now, &mut self.watch);
        }
    }

    fn pods_ends(&self, spec: Option<&PortSpec>, to: u8) -> Ends {
        let (node, n) = (to >> 4 & 7, to & 15);
        let gateway = self.watch.local.gateway_mac;
        let own = spec.cloned().unwrap_or_else(|| pod(1, 2));
        let other = pod(node, n);
        Ends {
            src_mac: own.mac,
            // The uppermost bit asks for the pod itself rather than for the router.
            dst_mac: if to & 0x80 != 0 { other.mac } else { gateway },
            src4: own.ip4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            src6: own.ip6.unwrap_or(own.mac.link_local()),
            dst4: Ipv4Addr::new(10, 244, node, n),
            dst6: Ipv6Addr::new(0xfd00, node.into(), 0, 0, 0, 0, 0, n.into()),
        }
    }

    /// A batch arrives: `[messages]` and for each `[from][to][class][segment][frame][cut into]` and more.
    pub fn peers_send(&mut self, input: &mut Input) {
        let count = 1 + input.u8() % 8;
        let mut memory = Vec::new();
        let mut messages = Vec::new();
        for _ in 0..count {
            messages.push(self.message(input, &mut memory));
            if input.is_empty() {
                break;
            }
        }
        self.watch
            .begin(Turn::Peers(messages.iter().map(|m| m.from).collect()));
        for message in &messages {
            self.node
                .from_peer(&mut memory, message, self.now, &mut self.watch);
        }
        self.node.deliver_trains(&mut memory, self.now, &mut self.watch);
    }

    fn message(&self, input: &mut Input, memory: &mut Vec<u8>) -> Received {
        let (sender, to, class, segment) = (input.u8(), input.u8(), input.u8(), input.u16());
        let n = 2 + sender % 8;
        let from = match sender >> 3 & 7 {
            0 => peer(n, 0).underlay.ip(),
            1 => peer(n, 1).underlay.ip(),
            2 => peer(3, 0)
                .underlay6
                .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |six| six.ip()),
            _ => peer(2 + sender % 4, 0).underlay.ip(),
        };
        let start = memory.len();
        let ends = self.peers_ends(n, to);
        let Crafted { repair, frame } = craft::frame(input, &ends);
        let mss = input.u16();
        let mut first = 0;
        for datagram in cut(&frame, repair, mss) {
            first = first.max(datagram.len());
            memory.extend(datagram);
        }
        // A datagram is at most so long, and so is what the kernel merges them to.
        memory.truncate(start + 65_527);
        let damage = input.u8();
        if damage != 0 {
            let at = start + usize::from(input.u16());
            if let Some(byte) = memory.get_mut(at) {
                *byte ^= damage;
            }
        }
        let span = Span::new(start, memory.len());
        let segment = match segment {
            0 => None,
            1 => Some(first as u16),
            other => Some(other),
        };
        // The kernel tells a size only where it merged, or the sender segmented.
        Received {
            span,
            segment,
            from,
            class,
        }
    }

    fn peers_ends(&self, n: u8, to: u8) -> Ends {
        let local = &self.watch.local;
        let to = pod(1, to % 10);
        let from = pod(n, 2);
        Ends {
            src_mac: peer(n, 0).vtep_mac,
            dst_mac: local.vtep_mac,
            src4: from.ip4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            src6: from.ip6.unwrap_or(Ipv6Addr::UNSPECIFIED),
            dst4: to.ip4.unwrap_or(Ipv4Addr::new(10, 244, 1, 0)),
            dst6: to.ip6.unwrap_or(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0)),
        }
    }

    /// The end of the worker's turn.
    pub fn end_turn(&mut self) {
        self.watch.begin(Turn::Own);
        if !self.blocked {
            self.node.on_timeout(self.now);
            self.node.send_own(&mut self.arena, self.now, &mut self.watch);
            self.flush();
        }
    }

    /// There is room in the underlay again.
    pub fn unblock(&mut self) {
        self.watch.begin(Turn::Own);
        if self.blocked && self.node.flush(&mut self.arena, self.now, &mut self.watch) {
            self.arena.rewind(0);
            self.blocked = false;
        }
    }

    fn flush(&mut self) {
        if self.node.flush(&mut self.arena, self.now, &mut self.watch) {
            self.arena.rewind(0);
        } else {
            self.blocked = true;
        }
    }

    /// Let everything out that waits; then nothing may be unaccounted for.
    pub fn settle(&mut self) {
        self.watch.outcomes.clear();
        self.watch.refuse_writes = 0;
        self.unblock();
        // What was refused before made errors of its own, and an answer may be owed to those.
        for _ in 0..2 {
            self.end_turn();
        }
        assert!(!self.blocked && !self.node.is_blocked());
        self.balanced();
    }

    /// Everything that came in went out, was used, or was dropped for a reason.
    pub fn balanced(&self) {
        let counters = self.node.counters();
        assert_eq!(counters.imbalance(), 0, "{counters:?} {:?}", self.node.drops());
    }
}

/// Datagrams for a frame: one, or the wire frames of a super-frame, each behind its VXLAN header.
fn cut(frame: &[u8], repair: u8, mss: u16) -> Vec<Vec<u8>> {
    if repair & craft::BARE != 0 {
        let len = if mss == 0 {
            frame.len().max(1)
        } else {
            usize::from(mss)
        };
        return frame.chunks(len).map(<[u8]>::to_vec).collect();
    }
    let mut whole = frame.to_vec();
    // The tunnel has a MAC of its own for each family.
    if repair & craft::MACS != 0 && frame.get(12..14) == Some(&[0x86, 0xdd]) {
        whole[..6].copy_from_slice(&[0x0e, 6, 0, 0, 0, 1]);
    }
    let head = vxlan::emit(1.try_into().expect("24 bits"));
    let one = |frame: &[u8]| [&head[..], frame].concat();
    let split = || {
        let h = Headers::parse(&whole).ok().filter(|h| h.end == whole.len())?;
        let vnet = VnetHdr {
            partial: Some((h.l4 as u16, h.checksum_at()?)),
            gso: Gso::of(&h),
            gso_size: mss,
            ..VnetHdr::default()
        };
        let segments = Segments::checked(&whole, &h, &vnet).ok()?;
        let wire = |i| {
            let mut frame = vec![0; segments.header_len()];
            segments.header(&whole, i, &mut frame);
            frame.extend(&whole[segments.payload(i)]);
            one(&frame)
        };
        Some((0..segments.count().min(200)).map(wire).collect())
    };
    split().unwrap_or_else(|| vec![one(&whole)])
}

/// The virtio-net header of a frame: none, ten bytes of the input, or what an honest kernel writes.
fn vnet(input: &mut Input, frame: &mut [u8], repair: u8) -> [u8; HEADROOM] {
    let mut raw = [0; HEADROOM];
    let kind = input.u8();
    if kind == 1 {
        let bytes = input.bytes(HEADROOM);
        raw[..bytes.len()].copy_from_slice(bytes);
    }
    if kind < 2 {
        return raw;
    }
    let size = input.u16();
    let Some(h) = Headers::parse(frame).ok().filter(|h| !h.fragment) else {
        return raw;
    };
    let Some(at) = h.checksum_at() else { return raw };
    if repair & craft::SUM != 0 {
        craft::unfinish(frame, &h);
    }
    let headers = h.l4 + h.l4_len(frame);
    let many = size > 0 && h.end.saturating_sub(headers) > usize::from(size);
    VnetHdr {
        partial: Some((h.l4 as u16, at)),
        gso: if many { Gso::of(&h) } else { Gso::None },
        ecn: kind == 3,
        hdr_len: headers as u16,
        gso_size: if many { size } else { 0 },
    }
    .emit()
}

/// Whether the checksum of a frame is right, or right to be finished by a device.
fn is_sound(frame: &[u8], vnet: Option<&[u8; HEADROOM]>) -> bool {
    let Ok(h) = Headers::parse(frame) else {
        return false;
    };
    let vnet = vnet.and_then(|v| VnetHdr::parse(v).ok()).unwrap_or_default();
    match vnet.partial {
        None => vnet.gso == Gso::None && rules::checksum_is_right(frame, &h) != Some(false),
        Some((start, offset)) => {
            usize::from(start) == h.l4
                && h.checksum_at() == Some(offset)
                && rules::checksum_is_partial(frame, &h)
        }
    }
}
