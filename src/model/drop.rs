//! Why a frame went nowhere. One closed enum serves as counter, metric label, test assertion and status row.

use serde::{Serialize, Serializer, ser::SerializeMap};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// The reason a frame or datagram was dropped.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $name,)+ }

        impl DropReason {
            /// All reasons, in the order of their declaration.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)+];

            /// The stable label used in tables, JSON and metrics.
            pub fn label(self) -> &'static str {
                match self { $(DropReason::$name => $label,)+ }
            }

            /// One sentence for people.
            pub fn explain(self) -> &'static str {
                match self { $(DropReason::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    // What a pod sent.
    /// The frame is shorter than its headers say.
    Truncated = "truncated",
    /// The virtio-net header contradicts the frame.
    BadVnetHdr = "bad_vnet_hdr",
    /// The IP header is malformed (version, header length, total length or checksum).
    BadIpHeader = "bad_ip_header",
    /// The transport header of a super-frame is malformed.
    BadL4Header = "bad_l4_header",
    /// The frame is longer than any interface of the node allows.
    Oversized = "oversized",
    /// The frame carries an 802.1Q or 802.1ad tag.
    Vlan = "vlan",
    /// The ethertype is neither IPv4, IPv6 nor ARP.
    EtherType = "ethertype",
    /// The source MAC is not the pod's own.
    SpoofedMac = "spoofed_mac",
    /// The source IP address is not the pod's own.
    SpoofedIp = "spoofed_ip",
    /// An ARP or neighbour message claims an address that is not the sender's own.
    SpoofedNeighbour = "spoofed_neighbour",
    /// A pod sent what only a router or a DHCP server may send.
    RogueControl = "rogue_control",
    /// A DHCP client asked; podwire gives addresses at attach time.
    Dhcp = "dhcp",
    /// A malformed ARP or neighbour discovery message.
    BadNeighbour = "bad_neighbour",
    /// More ARP or neighbour questions than the port's limit.
    NeighbourLimit = "neighbour_limit",
    /// More broadcast or multicast than the port's limit.
    StormLimit = "storm_limit",
    /// The destination MAC belongs to no port of this node.
    UnknownMac = "unknown_mac",
    /// A multicast or broadcast frame that has no other pod to go to.
    NoListener = "no_listener",
    // Routing.
    /// No pod and no peer holds the destination address.
    NoRoute = "no_route",
    /// The address lies in this node's subnet but no pod holds it.
    NoSuchPod = "no_such_pod",
    /// The peer that holds the address fell silent: it answers no probes any more, and nothing else comes from it.
    PeerSilent = "peer_silent",
    /// TTL or hop limit ran out here.
    TtlExceeded = "ttl_exceeded",
    /// The packet is larger than the path allows and must not be fragmented.
    TooBig = "too_big",
    /// A multicast, broadcast or link-local address cannot be routed.
    NotRoutable = "not_routable",
    /// The node itself has no use for this packet (no service at that port).
    NotForNode = "not_for_node",
    /// A fragment for the node itself, which puts none together (a ping of it must fit one packet).
    FragmentForNode = "fragment_for_node",
    // The way out by the host's sockets.
    /// The address is the host's own, or closed to pods by the configuration.
    EgressDenied = "egress_denied",
    /// Only TCP, UDP and echo requests leave by the host's sockets.
    EgressProtocol = "egress_protocol",
    /// The pod, the Service's port at the host, or the node has as many flows to the outside as it may.
    FlowLimit = "flow_limit",
    /// The host has no more sockets, or descriptors, for a new flow.
    HostSockets = "host_sockets",
    /// The host's socket refused to send the datagram.
    HostSend = "host_send",
    /// The host lets this user send no echo requests (net.ipv4.ping_group_range).
    PingForbidden = "ping_forbidden",
    /// A fragment that contradicts itself or the others of its packet.
    BadFragment = "bad_fragment",
    /// A datagram from outside that no pod had asked for.
    UnaskedDatagram = "unasked_datagram",
    /// An ICMP error about what somebody outside had sent, whom no socket of the host can tell.
    UntoldError = "untold_error",
    // Services.
    /// No Service has this address of their range, or this port of it; the sender is told at once.
    NoService = "no_service",
    /// The Service has no backend; the sender is told at once.
    NoBackend = "no_backend",
    /// The node has as many connections to Services as it may, and none of them gives way.
    ConntrackFull = "conntrack_full",
    /// The pod, or the client outside, has as many connections to Services as it may, and none of them gives way.
    ConntrackLimit = "conntrack_limit",
    /// A packet straight to a backend from the port by which the client is connected to it through a Service; TCP is
    /// answered by a reset.
    PortTaken = "port_taken",
    /// The gateway has no port left to stand for a client of a Service.
    GatewayPorts = "gateway_ports",
    /// Only TCP, UDP, SCTP (not in fragments) and echo requests go to a Service.
    ServiceProtocol = "service_protocol",
    /// A fragment to a Service that came before the first one of its packet, which has the ports.
    EarlyFragment = "early_fragment",
    /// The end of a connection to a Service, or an error about one, that is not known.
    UnknownConnection = "unknown_connection",
    // What the underlay brought.
    /// The datagram came from an address that is no peer.
    UnknownPeer = "unknown_peer",
    /// Not a VXLAN header, or reserved bits were set.
    BadVxlan = "bad_vxlan",
    /// The VXLAN network identifier is not ours.
    WrongVni = "wrong_vni",
    /// The inner destination MAC is not this node's VTEP.
    WrongVtepMac = "wrong_vtep_mac",
    /// The inner source address does not belong to the peer that sent it.
    NotPeersAddress = "not_peers_address",
    /// Outer congestion mark on a packet that cannot carry it (RFC 6040 section 4.2).
    EcnCongested = "ecn_congested",
    /// A packet that a peer's pod sent to a socket of the host has a wrong TCP or UDP checksum.
    BadChecksum = "bad_checksum",
    /// The kernel threw the datagram away: the receive buffer was full, or the UDP checksum wrong.
    ReceiveOverflow = "receive_overflow",
    // Limits and outputs.
    /// The underlay socket is full.
    UnderlayFull = "underlay_full",
    /// The kernel refused the datagram.
    UnderlaySend = "underlay_send",
    /// The node has no socket for the peer's address family.
    NoUnderlay = "no_underlay",
    /// The kernel refused the frame for the pod's TAP.
    TapWrite = "tap_write",
    /// More waits for the pod already than its bandwidth limit lets through in a while.
    BandwidthLimit = "bandwidth_limit",
    /// The pod's interface is going away.
    PortGone = "port_gone",
    /// The gateway's own queue is full.
    StackFull = "stack_full",
    /// A panic of podwire itself, which is a bug, ended the work at it (the log says where).
    Panic = "panic",
}

/// A counter for each [`DropReason`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Drops([0; DropReason::ALL.len()])
    }
}

impl Drops {
    /// Count `n` drops for `reason`.
    pub fn add(&mut self, reason: DropReason, n: u64) {
        self.0[reason as usize] += n;
    }

    /// How often `reason` was counted.
    pub fn count(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// All drops together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons that were counted at least once.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|r| (*r, self.count(*r)))
            .filter(|(_, n)| *n > 0)
    }
}

impl Serialize for Drops {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        for (reason, n) in self.iter() {
            map.serialize_entry(reason.label(), &n)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique_and_counters_independent() {
        let mut labels: Vec<_> = DropReason::ALL.iter().map(|r| r.label()).collect();
        labels.sort();
        labels.dedup();
        assert_eq!(labels.len(), DropReason::ALL.len());
        let mut d = Drops::default();
        d.add(DropReason::StackFull, 2);
        d.add(DropReason::Truncated, 1);
        assert_eq!(
            d.iter().collect::<Vec<_>>(),
            [(DropReason::Truncated, 1), (DropReason::StackFull, 2)]
        );
        assert_eq!(
            serde_json::to_string(&d).unwrap(),
            r#"{"truncated":1,"stack_full":2}"#
        );
        assert!(DropReason::Vlan.explain().starts_with("The frame"));
    }
}
