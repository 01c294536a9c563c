//! The way out of the pod network: what pods send to the world leaves by ordinary sockets of the host, and needs no
//! rights for that. TCP ends here in smoltcp sockets ([`tcp`]); UDP and echo are mapped to the host's datagram sockets
//! ([`datagrams`]); where pods may go is [`policy`]'s.
//!
//! ```text
//! pod -> IP packet -> Egress::input -> Flows | Datagrams (| Reassembly first) -> Host: connect, write, send
//! host's socket ready -> Egress::stream_ready, mouth_ready -> Egress::turn -> Outside::emit -> pod
//! ```
//!
//! No socket, clock or thread is in here: [`Host`] is what the shell fulfils.

pub mod datagrams;
pub mod fragment;
pub mod half_open;
pub mod host;
mod key;
mod link;
mod packet;
pub mod policy;
pub mod published;
pub mod rings;
pub mod tcp;
#[cfg(test)]
mod tests;
mod timers;

pub use host::{Failure, FlowId, Host, MouthId, Outside};
pub use key::FlowKey;
pub use policy::{Closed, Mapping, Own, Policy};
pub use published::Entrance;

use crate::model::{DropReason, Instant, MouthKind, PortId};
use crate::wire::bytes::be16;
use crate::wire::proto;
use datagrams::{Datagram, Datagrams};
use fragment::Reassembly;
use key::key_of;
use published::Names;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tcp::{Flows, Segment};

/// A packet of a pod for the world.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The port it came from.
    pub port: PortId,
    /// The IP packet, as long as its header says.
    pub bytes: &'a [u8],
    /// Source and destination.
    pub ends: (IpAddr, IpAddr),
    /// IP protocol of the transport.
    pub proto: u8,
    /// Where in it the transport header begins.
    pub l4: usize,
    /// It is a fragment.
    pub fragment: bool,
    /// Hops it has left behind this node.
    pub hops: u8,
    /// Traffic class.
    pub class: u8,
    /// Payload of each packet, when it stands for several.
    pub segment: Option<u16>,
}

/// All of a node's flows to the world.
pub struct Egress {
    policy: Arc<Policy>,
    flows: Flows,
    datagrams: Datagrams,
    reassembly: Reassembly,
    names: Names,
    /// Clients came in, or may.
    entered: bool,
    /// Some have more to do at once.
    busy: bool,
}

impl Egress {
    /// None yet. `seed` is for sequence numbers and identifications.
    pub fn new(policy: Arc<Policy>, seed: u64) -> Egress {
        Egress {
            policy,
            flows: Flows::new(seed),
            datagrams: Datagrams::new(seed),
            reassembly: Reassembly::default(),
            names: Names::default(),
            entered: false,
            busy: false,
        }
    }

    /// What pods may reach.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Pods may reach something else from now on; flows there are go on.
    pub fn set_policy(&mut self, policy: Arc<Policy>) {
        self.policy = policy;
    }

    /// TCP flows and datagram sockets there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.flows.len(), self.datagrams.len())
    }

    /// Those of one port.
    pub fn counts_of(&self, port: PortId) -> (usize, usize) {
        (self.flows.of_port(port), self.datagrams.of_port(port))
    }

    /// Whether a packet for one of the node's own addresses is of a flow here after all.
    pub fn knows(&self, protocol: u8, key: &FlowKey) -> bool {
        match protocol {
            proto::TCP => self.flows.knows(key),
            proto::UDP => self.datagrams.knows(key),
            _ => false,
        }
    }

    /// Whether a fragment for one of the node's own addresses may be of an answer to a client that the pod sees as
    /// that: which port it is of is known when it is whole.
    pub fn wants_fragment(&self, protocol: u8, pod: IpAddr) -> bool {
        protocol == proto::UDP && self.datagrams.has_clients(pod)
    }

    /// Take a packet of a pod. The answers of TCP go out with [`Egress::turn`].
    ///
    /// # Errors
    /// What it is to be counted under, when it goes nowhere.
    pub fn input(&mut self, p: &Packet<'_>, now: Instant, out: &mut impl Outside) -> Result<(), DropReason> {
        if !p.fragment {
            return self.whole(p, false, now, out);
        }
        let Some(whole) = self.reassembly.input(p.bytes, now)? else {
            return Ok(());
        };
        let (l4, protocol) = match whole.first().map(|b| b >> 4) {
            Some(4) => (20, whole[9]),
            _ => (40, whole.get(6).copied().unwrap_or(0)),
        };
        let p = Packet {
            bytes: &whole,
            l4,
            proto: protocol,
            fragment: false,
            ..*p
        };
        self.whole(&p, true, now, out)
    }

    fn whole(
        &mut self,
        p: &Packet<'_>,
        was_cut: bool,
        now: Instant,
        out: &mut impl Outside,
    ) -> Result<(), DropReason> {
        let key = key_of(p.ends.0, p.ends.1, p.bytes, p.l4);
        let (kind, key) = match p.proto {
            proto::TCP => {
                let segment = Segment {
                    port: p.port,
                    packet: p.bytes,
                    l4: p.l4,
                    key,
                    hops: p.hops,
                };
                return self.flows.input(&segment, &self.policy, now, out);
            }
            proto::UDP => (MouthKind::Udp, key),
            proto::ICMP | proto::ICMPV6 if is_echo_request(p) => {
                let ident = be16(p.bytes, p.l4 + 4);
                let ends = FlowKey {
                    pod: SocketAddr::new(p.ends.0, ident),
                    far: SocketAddr::new(p.ends.1, 0),
                };
                (MouthKind::Echo, ends)
            }
            _ => return self.told(p, out),
        };
        let dont_fragment = p.ends.0.is_ipv6() || be16(p.bytes, 6) & 0x4000 != 0;
        let datagram = Datagram {
            port: p.port,
            packet: p.bytes,
            l4: p.l4,
            kind,
            key,
            hops: p.hops,
            class: p.class,
            segment: p.segment,
            may_fragment: was_cut || !dont_fragment,
        };
        self.datagrams.input(&datagram, &self.policy, now, out)
    }

    /// Anything else of a pod. An ICMP error is about what somebody outside had sent: no socket can tell it, but a client
    /// need not wait for what cannot be reached.
    fn told(&mut self, p: &Packet<'_>, out: &mut impl Host) -> Result<(), DropReason> {
        let told = key::told(p.bytes, p.proto, p.l4).ok_or(DropReason::EgressProtocol)?;
        match Some(told.key).filter(|_| told.ends_tcp) {
            Some(key) if self.flows.unreachable(p.port, &key, out) => Ok(()),
            _ => Err(DropReason::UntoldError),
        }
    }

    /// A client from outside connected to a pod's published port; see [`Flows::accept`]. `gateway` stands for clients
    /// that the pod cannot know by their own address.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn accept(
        &mut self,
        port: PortId,
        (pod, client): (SocketAddr, SocketAddr),
        gateway: IpAddr,
        now: Instant,
        out: &mut impl Host,
    ) -> Result<FlowId, DropReason> {
        let (flows, policy) = (&self.flows, &self.policy);
        let is_others = |far| flows.fars.is_others(port, far);
        let taken = |far| is_others(far) || flows.knows(&FlowKey { pod, far });
        let far = self.names.far(client, gateway, policy, is_others, taken);
        let far = far.ok_or(DropReason::FlowLimit)?;
        (self.busy, self.entered) = (true, true);
        self.flows
            .accept(port, FlowKey { pod, far }, policy.limits(), now, out)
    }

    /// Give a pod's UDP port a socket of its own; see [`Datagrams::publish`].
    ///
    /// # Errors
    /// There is no room for it.
    pub fn publish(
        &mut self,
        port: PortId,
        entrance: Entrance,
        now: Instant,
        out: &mut impl Host,
    ) -> Result<MouthId, DropReason> {
        self.entered = true;
        self.datagrams
            .publish(port, entrance, self.policy.limits(), now, out)
    }

    /// Close the socket of a published UDP port.
    pub fn unpublish(&mut self, mouth: MouthId, out: &mut impl Host) {
        self.datagrams.remove(mouth, out);
    }

    /// Whether there may be clients to be answered, also where pods reach nothing by themselves.
    pub fn has_entrances(&self) -> bool {
        self.entered
    }

    /// Clients that a published UDP port has, and how many it had in all.
    pub fn clients(&self, mouth: MouthId) -> (usize, u64) {
        self.datagrams.clients(mouth)
    }

    /// Answer a TCP packet of a pod by a reset, unless it is one.
    pub fn refuse(&mut self, port: PortId, packet: &[u8], now: Instant, out: &mut impl Outside) {
        self.flows.refuse(port, packet, now, out);
    }

    /// Something happened at a flow's stream.
    pub fn stream_ready(
        &mut self,
        flow: FlowId,
        readable: bool,
        writable: bool,
        now: Instant,
        out: &mut impl Outside,
    ) {
        self.flows.host_ready(flow, readable, writable, now, out);
        self.busy = true;
    }

    /// Something was heard at a mouth.
    pub fn mouth_ready(&mut self, mouth: MouthId) {
        self.datagrams.host_ready(mouth);
        self.busy = true;
    }

    /// Go on with everything something happened to, and with what is due.
    pub fn turn(&mut self, now: Instant, out: &mut impl Outside) {
        if self.deadline().is_some_and(|at| at <= now) {
            self.flows.on_time(now, out);
            self.datagrams.on_time(now, out);
        }
        let flows = self.flows.turn(now, out);
        let datagrams = self.datagrams.turn(&self.policy, now, out);
        self.busy = flows || datagrams;
    }

    /// After a panic: end the flow, or the mouth, that was at work, if one was. Whose it was. To be followed by
    /// [`Egress::turn`], which goes on with the others.
    pub fn give_up(&mut self, now: Instant, out: &mut impl Outside) -> Option<PortId> {
        self.busy = true;
        let of_flow = self.flows.give_up_at(now, out);
        self.datagrams.give_up_at(out).or(of_flow)
    }

    /// Whether [`Egress::turn`] has more to do at once.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// When [`Egress::turn`] has something to do although nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        self.flows
            .deadline()
            .into_iter()
            .chain(self.datagrams.deadline())
            .min()
    }

    /// A pod is gone, and with it all it had.
    pub fn remove_port(&mut self, port: PortId, out: &mut impl Host) {
        self.flows.remove_port(port, out);
        self.datagrams.remove_port(port, out);
    }
}

fn is_echo_request(p: &Packet<'_>) -> bool {
    let kind = p.bytes.get(p.l4).copied();
    match p.proto {
        proto::ICMP => kind == Some(8),
        _ => kind == Some(128),
    }
}
