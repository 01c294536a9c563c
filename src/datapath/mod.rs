//! One node's whole behaviour as a pure state machine: frames and `now` in, frames out through [`Exits`].
//!
//! ```text
//! from_pod : parse -> guard -> ARP/ND? group? -> way (flow cache) -> deliver | tunnel | stack
//! from_peer: known peer? -> decap -> parse -> continues a train? (coalesce)
//!                                          -> else: way, open a train -> deliver at the end of the batch
//! out      : TCP in a smoltcp socket, datagrams as they are -> sockets of the host (Exits: Host)
//! limits   : to_pod waits in a ring, from_pod is not read, until the pod's bandwidth allows it (bandwidth)
//! panic    : what was half done is set right, a pod or a flow pays for it (recover)
//! tunnel   : Segments -> header blocks behind the frame -> Outbox: datagrams by peer and socket -> Exits
//! ```
//!
//! A frame is parsed once and decided once; a super-frame of 64 KiB is one frame here. The decision is kept
//! in the [`FlowCache`]. What is written to pods leaves at once, what goes to peers is gathered in the
//! [`Outbox`] until [`Node::flush`], so that small datagrams share a system call.
//!
//! Nothing here knows sockets, clocks or threads: `daemon::worker` carries bytes in and out, `tests/sim` does
//! the same for many nodes in one process.

mod bandwidth;
mod cut;
mod egress;
mod flow;
mod from_peer;
mod from_pod;
mod host;
mod originate;
mod outbox;
mod pings;
mod probes;
mod recover;
mod services;
mod to_pod;
mod way;

pub use flow::{FlowCache, FlowKey};
pub use outbox::Outbox;
pub use probes::News;
pub use recover::{Payer, Work};
pub use way::{Unreachable, Way};

use crate::buf::{Arena, Message, Progress, Refusal, Span};
use crate::model::{
    Change, DropReason, Drops, Instant, LocalNode, NodeCounters, PeerId, PodName, PortCounters, PortId,
    PortSpec,
};
use crate::offload::Coalescer;
use crate::overlay::{PeerState, Peers};
use crate::service::{Limits, Services};
use crate::stack::Gateway;
use crate::stack::egress::{Egress, Host, Policy};
use crate::switch::{BackOff, PortConflict, Ports, RateBucket, TokenBucket};
use crate::wire::{VNET_HDR_LEN, VnetHdr};
use bandwidth::Ingress;
use originate::Originated;
use pings::Pings;
use probes::Watch;
use recover::{Suspect, UnderWay};
use services::Onward;
use std::net::IpAddr;
use std::sync::Arc;

/// Bytes that must be free in front of each frame in the arena: there the TAP puts its virtio-net header, and
/// the tunnel its VXLAN header.
pub const HEADROOM: usize = VNET_HDR_LEN;
/// Room an arena needs before a frame is read into it: the longest frame, and header blocks for a train.
pub const FRAME_ROOM: usize = HEADROOM + 14 + 65_535 + outbox::HEADERS_ROOM;

/// Neighbour questions a port may ask per second, and at once.
const NEIGHBOUR_LIMIT: (u32, u32) = (1000, 1000);
/// ICMP errors a port may cause per second, and at once (RFC 1812 section 4.3.2.8 asks for a limit).
const PORT_ERROR_LIMIT: (u32, u32) = (100, 100);
/// The same for all peers together.
const PEER_ERROR_LIMIT: (u32, u32) = (1000, 200);

/// Where frames leave the node, and what the host has for those that leave the pod network.
pub trait Exits: Host {
    /// Write one frame to a pod's TAP: `head`, then the pieces of `memory`. Whether the kernel took it.
    fn to_pod(&mut self, port: PortId, vnet: &VnetHdr, head: &[u8], memory: &[u8], pieces: &[Span]) -> bool;

    /// Send messages to peers, in their order, as far as it goes.
    fn to_peers(&mut self, messages: &[Message], memory: &[u8]) -> Progress;
}

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its place in the pod network.
    pub local: LocalNode,
    /// Fixed DSCP of outer packets; `None` inherits the inner one.
    pub dscp: Option<u8>,
    /// Whether UDP_SEGMENT may be used.
    pub udp_gso: bool,
    /// Whether checksums stay partial between pods of this node.
    pub partial_checksums: bool,
    /// Whether the newest of several acknowledgements that wait may stand for all.
    pub merge_acks: bool,
    /// Broadcasts per second and port.
    pub broadcast_per_second: u32,
    /// Sending sockets per address family; flows are spread over them.
    pub sockets: u8,
    /// Families the underlay has: IPv4, IPv6.
    pub underlay: (bool, bool),
    /// What pods may reach outside of the pod network.
    pub egress: Arc<Policy>,
    /// For smoltcp's random numbers and the identifier of probes.
    pub seed: u64,
}

/// What the data path keeps of a port beside its [`PortSpec`].
#[derive(Debug)]
struct Port {
    counters: PortCounters,
    broadcasts: TokenBucket,
    neighbours: TokenBucket,
    errors: TokenBucket,
    /// Its limits, where it has some.
    ingress: Option<Box<Ingress>>,
    egress: Option<Box<RateBucket>>,
    /// Since when it is not read.
    paused: Option<Instant>,
    /// How long it is not read after a panic.
    rest: BackOff,
}

/// One node.
pub struct Node {
    settings: Settings,
    ports: Ports,
    states: Vec<Option<Port>>,
    /// The port that is the host's.
    host: Option<PortId>,
    peers: Peers,
    flows: FlowCache,
    gateway: Gateway,
    /// The way out; taken while it works.
    egress: Option<Box<Egress>>,
    services: Services,
    coalescer: Coalescer<PortId>,
    outbox: Outbox,
    originated: Originated,
    onward: Onward,
    watch: Watch,
    pings: Pings,
    /// Ports for which frames wait.
    waiting: Vec<PortId>,
    peer_errors: TokenBucket,
    /// The first peer that has its turn when peers are probed.
    probe_first: PeerId,
    /// Some pod has, or had, a MAC that does not follow from its address.
    odd_macs: bool,
    /// Messages are being sent to peers.
    sending: bool,
    /// Whose a packet of the node's own was, at which a panic came.
    suspect: Option<Suspect>,
    under_way: UnderWay,
    counters: NodeCounters,
    drops: Drops,
}

impl Node {
    /// A node without pods and peers.
    pub fn new(settings: Settings) -> Node {
        let l = &settings.local;
        let link_local = l.subnet6.map(|_| l.gateway_mac.link_local());
        let four = [l.gateway4(), l.vtep4()].into_iter().flatten().map(IpAddr::V4);
        let six = [l.gateway6(), l.vtep6(), link_local]
            .into_iter()
            .flatten()
            .map(IpAddr::V6);
        let own: Vec<IpAddr> = four.chain(six).collect();
        Node {
            gateway: Gateway::new(&own, l.pod_mtu, settings.seed),
            egress: Some(Box::new(Egress::new(settings.egress.clone(), settings.seed))),
            services: Services::new(Limits::default(), settings.seed, l.gateway4(), l.gateway6()),
            ports: Ports::default(),
            states: Vec::new(),
            host: None,
            peers: Peers::default(),
            flows: FlowCache::default(),
            coalescer: Coalescer::default(),
            outbox: Outbox::default(),
            originated: Originated::default(),
            onward: Onward::default(),
            watch: Watch::default(),
            pings: Pings::default(),
            waiting: Vec::new(),
            peer_errors: TokenBucket::new(PEER_ERROR_LIMIT.0, PEER_ERROR_LIMIT.1),
            probe_first: PeerId(0),
            odd_macs: false,
            sending: false,
            suspect: None,
            under_way: UnderWay::default(),
            counters: NodeCounters::default(),
            drops: Drops::default(),
            settings,
        }
    }

    /// Take a pod's port into service.
    ///
    /// # Errors
    /// The conflict; nothing has changed then.
    pub fn add_port(&mut self, spec: PortSpec) -> Result<PortId, PortConflict> {
        let limits = spec.bandwidth.unwrap_or_default();
        let id = self.ports.insert(spec)?;
        let at = usize::from(id.0);
        if self.states.len() <= at {
            self.states.resize_with(at + 1, || None);
        }
        let limit = self.settings.broadcast_per_second;
        self.states[at] = Some(Port {
            counters: PortCounters::default(),
            broadcasts: TokenBucket::new(limit, limit),
            neighbours: TokenBucket::new(NEIGHBOUR_LIMIT.0, NEIGHBOUR_LIMIT.1),
            errors: TokenBucket::new(PORT_ERROR_LIMIT.0, PORT_ERROR_LIMIT.1),
            ingress: limits.ingress.map(|rate| Box::new(Ingress::new(&rate))),
            egress: limits.egress.map(|rate| Box::new(RateBucket::new(&rate))),
            paused: None,
            rest: BackOff::default(),
        });
        // Each has its place, so that nothing is allocated when frames begin to wait.
        self.waiting.reserve(self.states.len() - self.waiting.len());
        self.flows.forget();
        Ok(id)
    }

    /// Take a pod's port out of service, and end what it has outside.
    pub fn remove_port(&mut self, pod: &PodName, exits: &mut impl Exits) -> Option<PortId> {
        let (id, _) = self.ports.remove(pod)?;
        self.services.forget(id);
        self.end_flows(id, exits);
        self.host = self.host.filter(|host| *host != id);
        self.forget_waiting(id);
        self.states[usize::from(id.0)] = None;
        self.flows.forget();
        Some(id)
    }

    /// Apply what the control plane learned.
    ///
    /// # Errors
    /// The sentence why not, for the log.
    pub fn apply(&mut self, change: Change) -> Result<(), String> {
        self.flows.forget();
        match change {
            Change::PeerSet(peer) => match self.peers.set(peer, self.settings.udp_gso) {
                Ok(_) => Ok(()),
                Err(full) => Err(full.to_string()),
            },
            Change::PeerGone(name) => {
                self.peers.remove(&name);
                Ok(())
            }
        }
    }

    /// Send what waits for peers. `false` when the underlay takes no more: then the arena must be kept, and no
    /// frame be read from pods, until a later call gives `true`.
    pub fn flush(&mut self, arena: &mut Arena, now: Instant, exits: &mut impl Exits) -> bool {
        while !self.outbox.is_empty() {
            self.sending = true;
            let progress = exits.to_peers(self.outbox.messages(), arena.memory());
            self.sending = false;
            let (sent, refusal) = match progress {
                Progress::All => (self.outbox.messages().len(), None),
                Progress::Blocked { sent } => {
                    self.account_sent(sent);
                    return false;
                }
                Progress::Refused { sent, why } => (sent, Some(why)),
            };
            self.account_sent(sent);
            if let Some(why) = refusal {
                self.refused(why, arena, now);
            }
        }
        true
    }

    fn account_sent(&mut self, sent: usize) {
        for message in &self.outbox.messages()[..sent] {
            self.counters.datagrams_to_peers += u64::from(message.datagrams);
            if let Some(peer) = self.peers.state_mut(message.peer) {
                peer.datagrams_to += u64::from(message.datagrams);
                peer.bytes_to += u64::from(message.bytes);
            }
        }
        self.outbox.shift(sent);
    }

    /// The kernel refused the first message that waits.
    fn refused(&mut self, why: Refusal, arena: &Arena, now: Instant) {
        let Some(message) = self.outbox.messages().first() else {
            return;
        };
        let (peer, frames) = (message.peer, u64::from(message.frames));
        let to = message.to;
        match why {
            Refusal::NoOffload if message.gso => {
                // Not along this way: one by one for a while, these datagrams too.
                if let Some(state) = self.peers.state_mut(peer) {
                    state.refuse_gso(now);
                }
                self.outbox.without_gso(to);
            }
            Refusal::TooBig { mtu } => {
                let inner = message.first_frame(arena.memory()).to_vec();
                self.outbox.shift(1);
                self.counters.frames_to_peers -= frames;
                self.drops.add(DropReason::TooBig, frames);
                self.too_big(peer, &inner, mtu, now);
            }
            Refusal::NoOffload | Refusal::Other => {
                self.outbox.shift(1);
                // They had been counted as sent when they were put there.
                self.counters.frames_to_peers -= frames;
                self.drops.add(DropReason::UnderlaySend, frames);
            }
        }
    }

    /// Whether datagrams wait for the underlay.
    pub fn is_blocked(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The ports.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// The peers.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Frame counters; those of system calls are the caller's. What the node made, and what waits for the underlay to
    /// take it, is counted when that does.
    pub fn counters(&self) -> NodeCounters {
        let mut counters = self.counters.clone().with_drops(&self.drops);
        counters.originated -= (self.onward.len() + self.originated.len()) as u64;
        counters
    }

    /// Drops by reason.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Counters of one port.
    pub fn port_counters(&self, port: PortId) -> Option<&PortCounters> {
        Some(&self.states.get(usize::from(port.0))?.as_ref()?.counters)
    }

    /// Count drops the caller learned of from the kernel. They never were frames of this node.
    pub fn lost_by_kernel(&mut self, n: u64) {
        self.counters.datagrams_from_peers += n;
        self.drops.add(DropReason::ReceiveOverflow, n);
    }

    fn port(&mut self, port: PortId) -> Option<&mut Port> {
        self.states.get_mut(usize::from(port.0))?.as_mut()
    }

    fn drop_from_pod(&mut self, port: PortId, reason: DropReason) {
        self.drops.add(reason, 1);
        if let Some(port) = self.port(port) {
            port.counters.drops += 1;
        }
    }

    fn peer(&self, id: PeerId) -> Option<&PeerState> {
        self.peers.state(id)
    }
}

#[cfg(test)]
mod tests;
