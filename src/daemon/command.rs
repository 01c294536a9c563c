//! What the control thread asks of the worker, over one bounded channel with a waker.

use crate::api::{EgressInfo, NodeCounters, OffloadInfo, PeerInfo, PortCounters};
use crate::model::{
    Change, ConnectionFilter, Drops, Frontend, HostPort, PodName, PortId, PortSpec, ServiceChange,
    ServiceConnection,
};
use crate::service::ServiceView;
use crate::stack::egress::Policy;
use crossbeam_channel::Sender;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// One order to the worker. Replies are sent without waiting; a caller that went away loses its answer only.
pub enum Command {
    /// Apply what the control plane learned, in this order, between two turns.
    Changes(Vec<Change>),
    /// Apply what is different about Services, in this order, between two turns.
    Services(Vec<ServiceChange>),
    /// List connections through Services, or end them.
    Connections {
        /// Which.
        filter: ConnectionFilter,
        /// How many are listed at most.
        limit: usize,
        /// End them.
        kill: bool,
        /// Gets them, and how many there are.
        reply: Sender<(Vec<ServiceConnection>, usize)>,
    },
    /// Tell what goes on at these frontends.
    Served {
        /// As the control plane knows them.
        frontends: Vec<Frontend>,
        /// Gets what there is of each that is known.
        reply: Sender<Vec<ServiceView>>,
    },
    /// Put a pod's TAP to work.
    AddPort {
        /// The pod's port.
        spec: PortSpec,
        /// Its TAP, non-blocking.
        tap: OwnedFd,
        /// Where the port's id, or the sentence why not, goes.
        reply: Sender<Result<PortId, String>>,
    },
    /// Put the host's own TAP to work.
    AddHost {
        /// The host's port.
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
    /// Put sockets to work for published ports, all or none.
    Publish {
        /// The pod whose ports they lead to; none when they lead to Services.
        pod: Option<PodName>,
        /// The sockets.
        sockets: Vec<Socket>,
        /// Gets the sentence why not.
        reply: Sender<Result<(), String>>,
    },
    /// Close published sockets; those of a pod that is removed are closed anyway. Connections there are go on.
    Unpublish {
        /// Which.
        ports: Vec<HostPort>,
        /// Gets word when they are closed.
        reply: Sender<()>,
    },
    /// Give a second descriptor of each pod's TAP.
    Taps {
        /// Of this pod only.
        of: Option<PodName>,
        /// Gets them, or why there is none.
        reply: Sender<Vec<(PodName, io::Result<OwnedFd>)>>,
    },
    /// Tell which pods have lost their interface. A byte in the worker's stream says that it is worth asking.
    Lost {
        /// Gets their names.
        reply: Sender<Vec<PodName>>,
    },
    /// Ping a pod of this node from the gateway.
    Ping {
        /// One of its addresses.
        to: IpAddr,
        /// Gets what became of it.
        tell: TellPing,
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

impl Command {
    /// Whether it changes nothing: what a panic leaves undone then is one answer.
    pub fn only_asks(&self) -> bool {
        match self {
            Command::Connections { kill, .. } => !kill,
            Command::Served { .. } | Command::Taps { .. } | Command::Ping { .. } | Command::Report { .. } => {
                true
            }
            Command::Changes(_)
            | Command::Services(_)
            | Command::AddPort { .. }
            | Command::AddHost { .. }
            | Command::RemovePort { .. }
            | Command::Publish { .. }
            | Command::Unpublish { .. }
            | Command::Lost { .. }
            | Command::Policy(_)
            | Command::Stop => false,
        }
    }
}

/// What became of a ping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pinged {
    /// It was answered after so many microseconds.
    Answered(u64),
    /// There was no answer within a second.
    Silent,
    /// It was not sent: the node has too much of its own to send.
    Unsent,
}

/// Gets what became of a ping.
pub type TellPing = Box<dyn FnOnce(Pinged) + Send>;

/// A socket of the host for one port of a pod.
#[derive(Debug)]
pub struct Socket {
    /// Where it is bound.
    pub port: HostPort,
    /// The pod's address and port.
    pub to: SocketAddr,
    /// The socket, non-blocking; one of TCP listens.
    pub fd: OwnedFd,
}

/// What went on at a published port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublishedCounts {
    /// Connections open, or clients of UDP that are remembered.
    pub open: u64,
    /// Those there were in all.
    pub accepted: u64,
    /// Clients turned away, as there was no room.
    pub refused: u64,
}

/// The data path's share of `podwire status`.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Frame and call counters.
    pub counters: NodeCounters,
    /// Drops by reason.
    pub drops: Drops,
    /// Counters of each pod's port.
    pub ports: Vec<(PodName, PortCounters)>,
    /// Counters of the host's own port, when there is one.
    pub host: Option<PortCounters>,
    /// The peers.
    pub peers: Vec<PeerInfo>,
    /// Offloads in force.
    pub offloads: OffloadInfo,
    /// The published ports.
    pub published: HashMap<HostPort, PublishedCounts>,
    /// Flows that leave the pod network.
    pub egress: EgressInfo,
    /// Addresses and ports of Services.
    pub frontends: usize,
    /// Connections to them.
    pub connections: usize,
}
