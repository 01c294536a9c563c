//! Where a pod's frame goes: the decision itself, without any effect.

use super::Node;
use super::flow::FlowKey;
use crate::model::{DropReason, PeerId, PortId};
use crate::stack::Trouble;
use crate::stack::egress::Closed;
use std::net::IpAddr;

/// Where a frame goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Switched to a port of this node, unchanged.
    Switch(PortId),
    /// Routed to a port of this node: new MACs, TTL less one.
    Route(PortId),
    /// Through the tunnel.
    Tunnel(PeerId),
    /// To the node's own addresses.
    Stack,
    /// Out of the pod network, by the host's sockets.
    Out,
    /// To a virtual address, which leads elsewhere.
    Service,
}

/// It goes nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreachable {
    /// What it is counted under.
    pub reason: DropReason,
    /// What its sender is told.
    pub trouble: Option<Trouble>,
}

impl Node {
    /// The way of a unicast frame, remembered. Nothing is sent or counted.
    ///
    /// # Errors
    /// It goes nowhere; the reason, and what its sender is to be told.
    #[inline]
    pub fn way(&mut self, key: FlowKey) -> Result<Way, Unreachable> {
        if let Some(way) = self.flows.lookup(&key) {
            return Ok(way);
        }
        let way = self.fresh_way(&key)?;
        self.flows.insert(key, way);
        Ok(way)
    }

    /// The way of a unicast frame, looked up in the tables.
    pub(super) fn fresh_way(&self, key: &FlowKey) -> Result<Way, Unreachable> {
        if key.mac != self.settings.local.gateway_mac {
            return match self.ports.by_mac(key.mac) {
                Some(port) if !self.is_host(port) => Ok(Way::Switch(port)),
                _ => Err(Unreachable {
                    reason: DropReason::UnknownMac,
                    trouble: None,
                }),
            };
        }
        match self.services.has_address(key.dst) {
            true => Ok(Way::Service),
            false => self.routed_way(key.dst),
        }
    }

    /// The way of what is sent to the gateway, and to no Service.
    pub(super) fn routed_way(&self, dst: IpAddr) -> Result<Way, Unreachable> {
        let local = &self.settings.local;
        if local.owns(dst) {
            return Ok(Way::Stack);
        }
        if !is_routable(dst) {
            return Err(Unreachable {
                reason: DropReason::NotRoutable,
                trouble: None,
            });
        }
        if let Some(port) = self.ports.by_ip(dst) {
            return Ok(Way::Route(port));
        }
        if self.is_local(dst) {
            return Err(Unreachable {
                reason: DropReason::NoSuchPod,
                trouble: Some(Trouble::HostUnreachable),
            });
        }
        if let Some(peer) = self.peers.route(dst) {
            return Ok(Way::Tunnel(peer));
        }
        let egress = self.egress.as_deref();
        match egress.map(|egress| {
            let policy = egress.policy();
            if policy.is_mapped(dst) || egress.has_entrances() && !policy.is_inside(dst) {
                Ok(())
            } else {
                policy.permit(dst)
            }
        }) {
            // An address outside may have a flow that began there, whatever pods may reach by themselves.
            Some(Ok(()) | Err(Closed::Denied | Closed::Unserved)) => Ok(Way::Out),
            Some(Err(Closed::NoRoute)) | None => Err(Unreachable {
                reason: DropReason::NoRoute,
                trouble: Some(Trouble::NetUnreachable),
            }),
        }
    }

    /// Whether `ip` lies in this node's pod subnet.
    pub(super) fn is_local(&self, ip: IpAddr) -> bool {
        let local = &self.settings.local;
        match ip {
            IpAddr::V4(a) => local.subnet4.is_some_and(|n| n.contains(&a)),
            IpAddr::V6(a) => local.subnet6.is_some_and(|n| n.contains(&a)),
        }
    }
}

/// Whether a router may pass a packet with this address on: it must be a single host's, valid beyond its
/// own link (RFC 1812 section 5.3.7, RFC 4291 section 2.5.6).
pub(super) fn is_routable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => !(matches!(a.octets()[0], 0 | 127 | 224..) || a.is_link_local()),
        IpAddr::V6(a) => {
            !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || a.is_unicast_link_local())
        }
    }
}
