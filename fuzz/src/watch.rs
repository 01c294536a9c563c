//! The exits of a node under watch: every frame and every datagram that leaves is held to what must be true
//! of it, whatever came in.

use super::rules;
use podwire::buf::{Message, Progress, Span};
use podwire::datapath::Exits;
use podwire::model::{LocalNode, Mac, Peer, PortId, PortSpec};
use podwire::wire::{EthView, Gso, Headers, L3, VnetHdr, vxlan};
use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

/// Sends one turn may need at most: a super-frame of one-byte segments, 64 datagrams at a time.
const MOST_SENDS: usize = 2 * 65_536 / 64;
/// Slices of one TAP write that `io::Tap` has room for, beside the virtio-net header and a made header.
const MOST_PIECES: usize = 128;

/// Whose frames the node works on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Turn {
    /// A pod's. Whether its checksum is right, or right to be left to a device.
    Pod(PortId, bool),
    /// Those that came from these underlay addresses.
    Peers(Vec<IpAddr>),
    /// Its own.
    Own,
}

/// The exits.
pub struct Watch {
    pub local: LocalNode,
    pub families: (bool, bool),
    pub sockets: u8,
    /// Specs by port number.
    pub ports: Vec<Option<PortSpec>>,
    /// Addresses of all pods there ever were: what waits for the underlay may outlive its pod.
    pub sources: HashSet<IpAddr>,
    pub peers: Vec<Peer>,
    /// Everything a peer ever was, for the same reason.
    pub known: Vec<Peer>,
    pub turn: Turn,
    /// All frames that may wait for the underlay had right checksums.
    pub sound: bool,
    /// Outcomes of the next sends; all go through when it is empty.
    pub outcomes: VecDeque<Progress>,
    /// The next TAP writes fail.
    pub refuse_writes: u8,
    pub sends: usize,
    /// Datagrams sent and frames written so far.
    pub sent: usize,
    pub written: usize,
    frame: Vec<u8>,
}

impl Watch {
    pub fn new(local: LocalNode, families: (bool, bool), sockets: u8) -> Watch {
        Watch {
            local,
            families,
            sockets,
            ports: Vec::new(),
            sources: HashSet::new(),
            peers: Vec::new(),
            known: Vec::new(),
            turn: Turn::Own,
            sound: true,
            outcomes: VecDeque::new(),
            refuse_writes: 0,
            sends: 0,
            sent: 0,
            written: 0,
            frame: Vec::new(),
        }
    }

    /// Begin a turn.
    pub fn begin(&mut self, turn: Turn) {
        self.turn = turn;
        self.sends = 0;
    }

    fn is_subnet_of_peer(peer: &Peer, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => peer.subnet4.is_some_and(|n| n.contains(&ip)),
            IpAddr::V6(ip) => peer.subnet6.is_some_and(|n| n.contains(&ip)),
        }
    }

    fn is_local(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.local.subnet4.is_some_and(|n| n.contains(&ip)),
            IpAddr::V6(ip) => self.local.subnet6.is_some_and(|n| n.contains(&ip)),
        }
    }

    /// A frame for a pod.
    fn check_frame(&self, to: &PortSpec, vnet: &VnetHdr, frame: &[u8]) {
        rules::tap_takes(vnet, frame, &to.caps);
        let eth = EthView(frame);
        assert!(
            eth.dst() == to.mac || eth.dst().is_multicast(),
            "another pod's MAC: {}",
            eth.dst()
        );
        let h = Headers::parse(frame).expect("what is written to a pod is well-formed");
        let ethernet = self.turn_source(&h, frame);
        assert!(
            ethernet.contains(&eth.src()),
            "{:?}: source MAC {}",
            self.turn,
            eth.src()
        );
        match vnet.partial {
            Some(partial) if self.frames_are_sound() => {
                let field = rules::checksum_at(&h).map(|at| (h.l4 as u16, at as u16));
                assert_eq!(Some(partial), field);
                assert!(rules::checksum_is_partial(frame, &h), "the unfinished sum");
            }
            None if self.frames_are_sound() => {
                assert_ne!(
                    rules::checksum_is_right(frame, &h),
                    Some(false),
                    "a wrong checksum was made"
                );
            }
            _ => {}
        }
        if matches!(self.turn, Turn::Peers(_)) {
            assert_eq!(h.end, frame.len(), "padding of the tunnel goes no further");
            let dst = h.dst(frame);
            let own = to.ip4.map(IpAddr::V4) == Some(dst) || to.ip6.map(IpAddr::V6) == Some(dst);
            assert!(own, "{dst} is not this pod's");
            assert_eq!(eth.src(), self.local.gateway_mac);
            assert!(
                vnet.gso == Gso::None || rules::checksum_is_partial(frame, &h),
                "the unfinished sum"
            );
        }
    }

    fn frames_are_sound(&self) -> bool {
        match self.turn {
            Turn::Pod(_, sound) => sound,
            Turn::Own => true,
            // What a peer sent wrong is the pod's to reject.
            Turn::Peers(_) => false,
        }
    }

    /// The MACs that may have sent such a frame, after its source address was looked at.
    fn turn_source(&self, h: &Headers, frame: &[u8]) -> Vec<Mac> {
        let src = h.src(frame);
        let gateway = self.local.gateway_mac;
        let holder = |ip: IpAddr| {
            let holds = |s: &&PortSpec| owned(s).contains(&ip);
            self.ports.iter().flatten().find(holds).map(|s| s.mac)
        };
        // ARP and neighbour answers speak for the address asked for, or for the gateway.
        let answers =
            h.l3 == L3::Arp || h.proto == 58 && frame.get(h.l4) == Some(&136) && h.ttl(frame) == 255;
        match &self.turn {
            _ if answers => holder(src).into_iter().chain([gateway]).collect(),
            Turn::Pod(port, _) => {
                let from = self.ports[usize::from(port.0)].as_ref().expect("the sender");
                // Duplicate detection and multicast reports have no source yet.
                let own = owned(from).contains(&src) || src == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
                assert!(own || self.local.owns(src), "{src} was spoofed by {}", from.pod);
                vec![from.mac, gateway]
            }
            Turn::Peers(from) => {
                let is_at = |p: &&Peer| {
                    from.contains(&p.underlay.ip()) || p.underlay6.is_some_and(|six| from.contains(&six.ip()))
                };
                let mut senders = self.peers.iter().filter(is_at);
                assert!(
                    senders.any(|p| Self::is_subnet_of_peer(p, src)),
                    "{src} was spoofed by a peer"
                );
                vec![gateway]
            }
            Turn::Own => {
                assert!(self.local.owns(src), "{src} is not the node's");
                vec![gateway]
            }
        }
    }

    /// A message for the underlay.
    fn check_message(&mut self, m: &Message, memory: &[u8]) {
        let each = usize::from(m.pieces_each);
        assert!(m.datagrams > 0 && m.datagrams <= 64, "{} datagrams", m.datagrams);
        assert_eq!(m.pieces.len(), usize::from(m.datagrams) * each);
        assert!(m.socket < self.sockets.max(1), "socket {}", m.socket);
        assert!(if m.to.is_ipv4() {
            self.families.0
        } else {
            self.families.1
        });
        // With the outer headers an IP packet of at most 65,535 bytes.
        let most = if m.to.is_ipv4() { 65_507 } else { 65_527 };
        // More in one call, and the kernel sends them one by one.
        let most_of_many = if m.to.is_ipv4() { 65_493 } else { 65_473 };
        assert!(m.bytes as usize <= if m.datagrams > 1 { most_of_many } else { most });
        let mut bytes = 0;
        let mut frame = std::mem::take(&mut self.frame);
        for (i, datagram) in m.pieces.chunks(each).enumerate() {
            frame.clear();
            for piece in datagram {
                assert!(piece.end() <= memory.len());
                frame.extend(piece.of(memory));
            }
            bytes += frame.len();
            let segment = usize::from(m.segment);
            let last = i + 1 == usize::from(m.datagrams);
            assert!(
                frame.len() == segment || last && frame.len() < segment,
                "UDP_SEGMENT lengths"
            );
            self.check_datagram(m, &frame);
        }
        assert_eq!(bytes, m.bytes as usize);
        self.sent += usize::from(m.datagrams);
        self.frame = frame;
    }

    fn check_datagram(&self, m: &Message, datagram: &[u8]) {
        let inner = vxlan::decap(datagram, self.local.vni).expect("a VXLAN header");
        let h = Headers::parse(inner).expect("what is sent to a peer is well-formed");
        assert_eq!(h.end, inner.len(), "padding of pods goes no further");
        let (src, dst) = (h.src(inner), h.dst(inner));
        // Of a pod here, or the node's own: what came out of the tunnel is neither.
        assert!(
            self.sources.contains(&src) || self.local.owns(src),
            "{src} is of no pod here"
        );
        assert!(!self.is_local(src) || h.ttl(inner) > 0);
        let six = h.l3 == L3::Ipv6;
        let is_for = |p: &&Peer| {
            let to = if six {
                p.underlay6.unwrap_or(p.underlay)
            } else {
                p.underlay
            };
            let mac = if six { p.vtep_mac6 } else { p.vtep_mac };
            to == m.to && mac == EthView(inner).dst() && Self::is_subnet_of_peer(p, dst)
        };
        assert!(
            self.known.iter().any(|p| is_for(&p)),
            "{dst} is not of a peer at {}",
            m.to
        );
        assert!(!self.is_local(dst), "{dst} is this node's");
        let own = if six {
            self.local.vtep_mac6
        } else {
            self.local.vtep_mac
        };
        assert_eq!(EthView(inner).src(), own);
        let floor = if six { 1280 } else { 576 };
        let fits = self.local.underlay_mtu.pod_mtu(m.to.is_ipv6()).0.max(floor);
        assert!(
            inner.len() - 14 <= usize::from(fits),
            "{} bytes do not fit {fits}",
            inner.len() - 14
        );
        if self.sound {
            assert_ne!(
                rules::checksum_is_right(inner, &h),
                Some(false),
                "a wrong checksum was made"
            );
        }
    }
}

/// All addresses a pod may send from.
pub fn owned(spec: &PortSpec) -> Vec<IpAddr> {
    let link_local = spec.ip6.map(|_| spec.mac.link_local());
    let six = spec.ip6.into_iter().chain(link_local).map(IpAddr::V6);
    spec.ip4.map(IpAddr::V4).into_iter().chain(six).collect()
}

impl podwire::stack::egress::Host for Watch {}

impl Exits for Watch {
    fn to_pod(&mut self, port: PortId, vnet: &VnetHdr, head: &[u8], memory: &[u8], pieces: &[Span]) -> bool {
        let to = self.ports.get(usize::from(port.0)).and_then(Option::as_ref);
        let to = to.expect("written to a port that is not there");
        assert!(pieces.len() <= MOST_PIECES, "{} slices", pieces.len());
        let mut frame = head.to_vec();
        for piece in pieces {
            assert!(piece.end() <= memory.len());
            frame.extend(piece.of(memory));
        }
        self.check_frame(to, vnet, &frame);
        self.written += 1;
        let refused = self.refuse_writes > 0;
        self.refuse_writes = self.refuse_writes.saturating_sub(1);
        !refused
    }

    fn to_peers(&mut self, messages: &[Message], memory: &[u8]) -> Progress {
        assert!(!matches!(self.turn, Turn::Peers(_)), "split horizon");
        self.sends += 1;
        assert!(self.sends < MOST_SENDS, "it goes on and on");
        assert!(!messages.is_empty());
        let outcome = self.outcomes.pop_front().unwrap_or(Progress::All);
        let (sent, outcome) = match outcome {
            Progress::All => (messages.len(), outcome),
            Progress::Blocked { sent } => {
                let sent = sent.min(messages.len() - 1);
                (sent, Progress::Blocked { sent })
            }
            Progress::Refused { sent, why } => {
                let sent = sent.min(messages.len() - 1);
                (sent, Progress::Refused { sent, why })
            }
        };
        for message in &messages[..sent] {
            self.check_message(message, memory);
        }
        outcome
    }
}
