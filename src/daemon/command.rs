//! What the control thread asks of the worker, over one bounded channel with a waker.

use crate::api::{EgressInfo, NodeCounters, OffloadInfo, PeerInfo, PortCounters};
use crate::model::{Change, Drops, PodName, PortId, PortSpec};
use crate::stack::egress::Policy;
use crossbeam_channel::Sender;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// One order to the worker. Replies are sent without waiting; a caller that went away loses its answer only.
pub enum Command {
    /// Apply what the control plane learned, in this order, between two turns.
    Changes(Vec<Change>),
    /// Put a pod's TAP to work.
    AddPort {
        /// The pod's port.
        spec: PortSpec,
        /// Its TAP, non-blocking.
        tap: OwnedFd,
        /// Where the port's id, or the sentence why not, goes.
        reply: Sender<Result<PortId, String>>,
    },
    /// Forget a pod's port.
    RemovePort {
        /// The pod.
        pod: PodName,
        /// Gets the TAP, if there was one, to be closed.
        reply: Sender<Option<OwnedFd>>,
    },
    /// Give a second descriptor of each TAP.
    Taps {
        /// Gets them, or why there is none.
        reply: Sender<Vec<(PodName, io::Result<OwnedFd>)>>,
    },
    /// Tell which pods have lost their interface. A byte in the worker's stream says that it is worth asking.
    Lost {
        /// Gets their names.
        reply: Sender<Vec<PodName>>,
    },
    /// Report counters and peers.
    Report {
        /// Where the report goes.
        reply: Sender<Report>,
    },
    /// Pods may reach something else from now on.
    Policy(Arc<Policy>),
    /// End the worker.
    Stop,
}

/// The data path's share of `podwire status`.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Frame and call counters.
    pub counters: NodeCounters,
    /// Drops by reason.
    pub drops: Drops,
    /// Counters of each port.
    pub ports: Vec<(PodName, PortCounters)>,
    /// The peers.
    pub peers: Vec<PeerInfo>,
    /// Offloads in force.
    pub offloads: OffloadInfo,
    /// Flows that leave the pod network.
    pub egress: EgressInfo,
}
