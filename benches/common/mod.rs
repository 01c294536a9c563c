//! What the benches work on: nodes without sockets, and frames as pods and peers send them.

use podwire::buf::{Arena, Message, Progress, Received, Span};
use podwire::datapath::{Exits, FRAME_ROOM, HEADROOM, Node, Settings};
use podwire::model::{Change, Instant, LocalNode, Mac, Peer, PodMtu, PortId, PortSpec, TapCaps, UnderlayMtu};
use podwire::wire::bytes::put_be16;
use podwire::wire::checksum::{Sum, pseudo};
use podwire::wire::{Gso, Headers, VnetHdr, proto};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Wire frames of a super-frame at MTU 1450: what one UDP_SEGMENT send takes.
pub const SEGMENTS: usize = 44;
/// Small frames that share a message.
pub const BATCH: usize = 32;

/// A kind of frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Tcp4,
    Tcp6,
    Udp4,
}

impl Kind {
    fn v6(self) -> bool {
        self == Kind::Tcp6
    }

    /// Bytes of Ethernet, IP and transport header.
    pub fn headers(self) -> usize {
        match self {
            Kind::Tcp4 => 14 + 20 + 20,
            Kind::Tcp6 => 14 + 40 + 20,
            Kind::Udp4 => 14 + 20 + 8,
        }
    }

    /// Payload of a wire frame at MTU 1450.
    pub fn mss(self) -> usize {
        1464 - self.headers()
    }

    fn address(self, node: u8, host: u8) -> IpAddr {
        match self.v6() {
            false => Ipv4Addr::new(10, 244, node, host).into(),
            true => Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, host.into()).into(),
        }
    }
}

/// A node of number `own` with two pods, and `peers` peers numbered from 2 (from 1 for another node than 1).
pub fn node(own: u8, peers: usize) -> Node {
    let subnet4 = |n: u32| ipnet::Ipv4Net::new(Ipv4Addr::from((10 << 24) + (244 << 16) + (n << 8)), 24);
    let subnet6 = |n: u32| {
        let high = [0xfd00, 0x10, 0x244 + (n >> 16) as u16, n as u16];
        ipnet::Ipv6Net::new(Ipv6Addr::new(high[0], high[1], high[2], high[3], 0, 0, 0, 0), 64)
    };
    let mac = |n: u32| Mac::of_vtep(subnet4(n).expect("a subnet").network());
    let mut node = Node::new(Settings {
        local: LocalNode {
            name: format!("n{own}").parse().expect("a name"),
            subnet4: subnet4(own.into()).ok(),
            subnet6: subnet6(own.into()).ok(),
            vtep_mac: mac(own.into()),
            vtep_mac6: mac(own.into()),
            gateway_mac: gateway(own),
            vni: 1.try_into().expect("24 bits"),
            pod_mtu: PodMtu(1450),
            underlay_mtu: UnderlayMtu(1500),
        },
        dscp: None,
        udp_gso: true,
        partial_checksums: true,
        merge_acks: true,
        egress: Default::default(),
        broadcast_per_second: 1000,
        sockets: 8,
        underlay: (true, false),
        seed: 1,
    });
    for host in [2, 3] {
        let ip4 = Ipv4Addr::new(10, 244, own, host);
        let spec = PortSpec {
            pod: format!("p{host}").parse().expect("a name"),
            mac: Mac::of_ipv4(ip4),
            ip4: Some(ip4),
            ip6: match Kind::Tcp6.address(own, host) {
                IpAddr::V6(ip) => Some(ip),
                IpAddr::V4(_) => None,
            },
            mtu: PodMtu(1450),
            bandwidth: None,
            caps: TapCaps {
                vnet_hdr: true,
                csum: true,
                tso4: true,
                tso6: true,
                uso: true,
            },
        };
        node.add_port(spec).expect("no conflict");
    }
    for n in (1..).filter(|n| *n != u32::from(own)).take(peers) {
        let peer = Peer {
            name: format!("n{n}").parse().expect("a name"),
            underlay: SocketAddr::from((Ipv4Addr::from((198 << 24) + (18 << 16) + n), 8472)),
            underlay6: None,
            subnet4: subnet4(n).ok(),
            subnet6: subnet6(n).ok(),
            vtep_mac: mac(n),
            vtep_mac6: mac(n),
            mtu: None,
        };
        node.apply(Change::PeerSet(peer)).expect("room");
    }
    node
}

/// The MAC of a node's gateway.
pub fn gateway(node: u8) -> Mac {
    Mac::of_ipv4(Ipv4Addr::new(10, 244, node, 1))
}

/// A frame from the first pod of node 1 to a pod of node `to`, with its checksum left out, and its virtio-net
/// header: a super-frame when the payload is longer than one wire frame's.
pub fn from_pod(kind: Kind, to: u8, payload: usize) -> (VnetHdr, Vec<u8>) {
    let (src, dst) = (kind.address(1, 2), kind.address(to, 3 - u8::from(to != 1)));
    let near = Mac::of_ipv4(Ipv4Addr::new(10, 244, 1, 3));
    let mac = if to == 1 { near } else { gateway(1) };
    let mut l4 = vec![0x30, 0x39, 0, 80];
    if kind == Kind::Udp4 {
        l4.extend(((8 + payload) as u16).to_be_bytes());
        l4.extend([0, 0]);
    } else {
        l4.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    }
    l4.extend((0..payload).map(|i| (i * 7) as u8));
    let protocol = if kind == Kind::Udp4 {
        proto::UDP
    } else {
        proto::TCP
    };
    let mut f = [mac.0, Mac::of_ipv4(Ipv4Addr::new(10, 244, 1, 2)).0].concat();
    match (src, dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            f.extend((l4.len() as u16).to_be_bytes());
            f.extend([protocol, 64]);
            f.extend([src.octets(), dst.octets()].concat());
        }
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            f.extend([8, 0, 0x45, 0]);
            f.extend(((20 + l4.len()) as u16).to_be_bytes());
            f.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
            f.extend([src.octets(), dst.octets()].concat());
            let sum = Sum::default().with(&f[14..34]).finish();
            put_be16(&mut f, 24, sum);
        }
        _ => unreachable!("both are of one family"),
    }
    f.extend(l4);
    let h = Headers::parse(&f).expect("a good frame");
    let at = h.checksum_at().expect("a transport with a checksum");
    let sum = pseudo(&f, &h, h.end - h.l4).fold();
    put_be16(&mut f, h.l4 + usize::from(at), sum);
    let train = payload > kind.mss();
    let vnet = VnetHdr {
        partial: Some((h.l4 as u16, at)),
        gso: if train { Gso::of(&h) } else { Gso::None },
        ecn: false,
        hdr_len: kind.headers() as u16,
        gso_size: if train { kind.mss() as u16 } else { 0 },
    };
    (vnet, f)
}

/// Exits that look at all they are given, and copy what goes to peers when they are asked to.
#[derive(Default)]
pub struct Sink {
    /// Frames and pieces that came out.
    pub frames: usize,
    copy: Option<Vec<u8>>,
    step: usize,
}

impl podwire::stack::egress::Host for Sink {}

impl Exits for Sink {
    fn to_pod(&mut self, port: PortId, vnet: &VnetHdr, head: &[u8], memory: &[u8], pieces: &[Span]) -> bool {
        black_box((port, vnet, head, memory, pieces));
        self.frames += 1;
        true
    }

    fn to_peers(&mut self, messages: &[Message], memory: &[u8]) -> Progress {
        black_box((messages, memory));
        for m in messages {
            self.frames += usize::from(m.frames);
            if let Some(copy) = &mut self.copy {
                self.step = usize::from(m.segment);
                m.pieces.iter().for_each(|p| copy.extend(p.of(memory)));
            }
        }
        Progress::All
    }
}

/// Node 1, its arena, and a frame that one of its pods sends again and again.
pub struct Sending {
    pub node: Node,
    arena: Arena,
    vnet: VnetHdr,
    frame: Vec<u8>,
    /// Bytes of it that the node may change, its headers; the others are put into the arena once.
    fresh: usize,
    pub sink: Sink,
}

impl Sending {
    /// The frame is one of [`from_pod`].
    pub fn new(peers: usize, (vnet, frame): (VnetHdr, Vec<u8>)) -> Sending {
        let mut arena = Arena::new(4 * FRAME_ROOM);
        let large = vnet.gso != Gso::None;
        if large {
            arena.free_mut()[HEADROOM..HEADROOM + frame.len()].copy_from_slice(&frame);
        }
        Sending {
            node: node(1, peers),
            arena,
            vnet,
            fresh: if large { 128 } else { frame.len() },
            frame,
            sink: Sink::default(),
        }
    }

    /// Send it and flush; `times` times, if it is small.
    pub fn turn(&mut self, times: usize) {
        // Probes go out at most every ten seconds; this is one moment.
        let now = Instant::from_secs(20);
        self.arena.rewind(0);
        for _ in 0..times {
            self.arena.free_mut()[..HEADROOM].copy_from_slice(&self.vnet.emit());
            self.arena.take(HEADROOM);
            let fresh = self.fresh;
            self.arena.free_mut()[..fresh].copy_from_slice(&self.frame[..fresh]);
            let span = self.arena.take(self.frame.len());
            self.node
                .from_pod(PortId(0), &mut self.arena, span, now, &mut self.sink);
        }
        self.node.send_own(&mut self.arena, now, &mut self.sink);
        assert!(self.node.flush(&mut self.arena, now, &mut self.sink));
    }

    /// What a peer receives of one turn: the datagrams, and the length of each but the last.
    pub fn datagrams(mut self, times: usize) -> (Vec<u8>, usize) {
        // Once before, so that the probe is not among them.
        self.turn(1);
        self.sink.copy = Some(Vec::new());
        self.turn(times);
        (self.sink.copy.take().unwrap_or_default(), self.sink.step)
    }
}

/// Node 2, and a message that it receives again and again.
pub struct Receiving {
    node: Node,
    fresh: Vec<u8>,
    memory: Vec<u8>,
    step: usize,
    pub sink: Sink,
}

impl Receiving {
    /// `bytes` are datagrams of `step` bytes each, from node 1.
    pub fn new((bytes, step): (Vec<u8>, usize)) -> Receiving {
        Receiving {
            node: node(2, 10),
            memory: bytes.clone(),
            fresh: bytes,
            step,
            sink: Sink::default(),
        }
    }

    /// Receive it. Only headers are restored: the node changes nothing else.
    pub fn turn(&mut self) {
        let now = Instant::from_secs(20);
        for at in (0..self.fresh.len()).step_by(self.step) {
            let end = self.fresh.len().min(at + 100);
            self.memory[at..end].copy_from_slice(&self.fresh[at..end]);
        }
        let message = Received {
            span: Span::new(0, self.memory.len()),
            segment: Some(self.step as u16),
            from: Ipv4Addr::new(198, 18, 0, 1).into(),
            class: 0,
        };
        self.node
            .from_peer(&mut self.memory, &message, now, &mut self.sink);
        self.node.deliver_trains(&mut self.memory, now, &mut self.sink);
    }
}
