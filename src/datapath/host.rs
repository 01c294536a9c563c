//! The host as a port: a TAP in the host's own network namespace, which has the gateway's addresses there.
//!
//! ```text
//! to the gateway's address   DNS, mapped ports, flows of the node's own: as without it (egress, services)
//!                            echo requests: the node answers; replies to its own pings: the node's
//!                            all else, of pods here and of peers: the host's TAP
//! from the host's TAP        from the gateway's address only: pods here, peers, Services; never out
//! ```
//!
//! To the rest of the data path it is a port like a pod's. What is special is here, and that is little: the host is found by
//! its address and never by its MAC, as it would take a packet for any of its addresses that comes by its MAC.

use super::Node;
use super::way::{Unreachable, Way};
use crate::model::{DropReason, PortId, PortSpec};
use crate::stack::Trouble;
use crate::switch::PortConflict;
use crate::wire::{ETH_LEN, Headers, L3, proto};
use std::net::IpAddr;

/// Types of an echo request (RFC 792, RFC 4443).
const ECHO4: u8 = 8;
const ECHO6: u8 = 128;
/// Of an echo reply.
const REPLY4: u8 = 0;
const REPLY6: u8 = 129;

impl Node {
    /// Take the host's own port into service. There is one at most.
    ///
    /// # Errors
    /// The conflict; nothing has changed then.
    pub fn add_host(&mut self, spec: PortSpec) -> Result<PortId, PortConflict> {
        let id = self.add_port(spec)?;
        self.host = Some(id);
        Ok(id)
    }

    /// The host's port.
    pub fn host(&self) -> Option<PortId> {
        self.host
    }

    /// Whether a port is the host's.
    #[inline]
    pub(super) fn is_host(&self, port: PortId) -> bool {
        self.host == Some(port)
    }

    /// The host's port, if a packet to the node's own addresses is for the host. Its own flows, and what is mapped, the
    /// node has taken out before.
    pub(super) fn host_for(&self, frame: &[u8], h: &Headers) -> Option<PortId> {
        let host = self.host?;
        let local = &self.settings.local;
        let is_gateway = match h.dst(frame) {
            IpAddr::V4(ip) => local.gateway4() == Some(ip),
            IpAddr::V6(ip) => local.gateway6() == Some(ip),
        };
        let is_nodes = match icmp_type(frame, h) {
            Some(ECHO4 | ECHO6) => true,
            // The host pings from this address too.
            Some(REPLY4 | REPLY6) => self.is_pong(&frame[ETH_LEN..h.end]),
            _ => false,
        };
        (is_gateway && !is_nodes).then_some(host)
    }

    /// The way of what the host sends: it has a way out of its own, and this is none.
    pub(super) fn not_out(&self, way: Result<Way, Unreachable>) -> Result<Way, Unreachable> {
        match way {
            Ok(Way::Out) => Err(Unreachable {
                reason: DropReason::NoRoute,
                trouble: Some(Trouble::NetUnreachable),
            }),
            way => way,
        }
    }
}

/// The type of an echo request or reply, of its own family. One in fragments is not looked into.
fn icmp_type(frame: &[u8], h: &Headers) -> Option<u8> {
    let types = match (h.l3, h.proto) {
        (L3::Ipv4, proto::ICMP) => [ECHO4, REPLY4],
        (L3::Ipv6, proto::ICMPV6) => [ECHO6, REPLY6],
        _ => return None,
    };
    let kind = frame.get(h.l4).filter(|_| !h.fragment && h.l4 < h.end)?;
    types.contains(kind).then_some(*kind)
}
