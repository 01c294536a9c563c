//! How many flows there may be whose share of them all is one, and how many that are there on one side only.

use super::host::FlowId;
use super::key::FlowKey;
use crate::model::PortId;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Flows of one pod that the host has not connected yet, and as many that the pod has not taken yet: beyond that the
/// oldest gives way, so that a flood of SYNs hurts only itself, and one of clients at a pod that does not answer only
/// them.
pub const MAX_HALF_OPEN: usize = 1024;

/// Whose flows are counted together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Share {
    /// A pod's.
    Pod(PortId),
    /// Those of clients at one port of a Service. All Services have one port of the node.
    Service(SocketAddr),
}

impl Share {
    /// Where a flow is counted.
    pub fn of(port: PortId, key: &FlowKey) -> Share {
        match port {
            PortId::SERVICES => Share::Service(key.pod),
            _ => Share::Pod(port),
        }
    }
}

/// Whose answer a flow waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Awaited {
    /// The pod opened it, and the host is about to connect.
    Host,
    /// The host has connected, and the pod was sent a SYN-ACK; or a client of a published port connected to the host,
    /// and the pod was sent a SYN.
    Pod,
}

/// How many flows a share has, and which of them are not there on both sides yet.
#[derive(Default)]
pub(super) struct OfPort {
    /// All of them.
    pub flows: usize,
    /// In the order of their beginning.
    by_host: VecDeque<FlowId>,
    by_pod: VecDeque<FlowId>,
}

impl OfPort {
    fn queue(&mut self, whom: Awaited) -> &mut VecDeque<FlowId> {
        match whom {
            Awaited::Host => &mut self.by_host,
            Awaited::Pod => &mut self.by_pod,
        }
    }

    /// A flow waits; the one that gives way to it, if there are too many.
    pub fn awaits(&mut self, whom: Awaited, id: FlowId) -> Option<FlowId> {
        let queue = self.queue(whom);
        queue.push_back(id);
        queue.front().copied().filter(|_| queue.len() > MAX_HALF_OPEN)
    }

    /// A flow waits no longer.
    pub fn is_there(&mut self, whom: Awaited, id: FlowId) {
        let queue = self.queue(whom);
        if let Some(at) = queue.iter().position(|o| *o == id) {
            queue.remove(at);
        }
    }
}
