//! Request and reply types of a node's admin socket.
//!
//! One JSON value per line over a Unix stream socket of mode 0600; file descriptors travel beside the line
//! they belong to (SCM_RIGHTS). A client opens with [`Request::Hello`]; a node that speaks another
//! [`PROTOCOL`] says so instead of misreading what follows.

mod client;
mod conn;
pub mod gone;
mod line;
pub mod packet;
pub mod place;

pub use client::{ApiError, Client};
pub use conn::{Connection, MAX_REQUEST, Received};
pub use line::{Broken, MAX_FDS};

use crate::model::{
    Attachment, AttachmentFilter, Bandwidth, ConnectionFilter, LabelChange, Labels, Mac, NamedPort,
    OffloadMode, PodMtu, PodName, PodState, PortId, PortMapping, Protocol, ServiceConnection, ServiceInfo,
    ServiceName, StoreStatus, TapCaps,
};
pub use crate::model::{NodeCounters, PortCounters};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Version of the conversation, raised when a request or reply changes incompatibly.
pub const PROTOCOL: u32 = 1;

/// What a client may ask.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// First line of each connection.
    Hello {
        /// The client's [`PROTOCOL`].
        protocol: u32,
    },
    /// Reserve a name and addresses for a pod. Answered by [`Reply::Plan`]; the reservation lives as long as
    /// the connection, until [`Request::Commit`].
    Attach(Box<AttachRequest>),
    /// Hand over the TAP made after the plan, as the first file descriptor beside this line. A pidfd of the
    /// process that holds the namespace may follow, and then a lifeline. Answered by [`Reply::Attached`].
    Commit {
        /// What the TAP accepts.
        caps: TapCaps,
        /// Whether the last descriptor is a lifeline: the node closes it when the pod's port goes, and the
        /// process at its other end takes that as its own end.
        #[serde(default)]
        lifeline: bool,
    },
    /// Remove a pod's port; succeeds when there is none.
    Detach {
        /// The pod.
        pod: PodName,
    },
    /// Remove the port of a container's interface, whatever its pod is called; succeeds when there is none. Answered by
    /// [`Reply::Detached`].
    Release {
        /// Which.
        attachment: Attachment,
    },
    /// Pods that container runtimes attached, without their counters. Answered by [`Reply::Pods`].
    Attachments {
        /// Which.
        filter: AttachmentFilter,
    },
    /// Have the gateway ping a pod of this node. Answered by [`Reply::Pinged`], within a second and a little.
    Ping {
        /// One of the pod's addresses.
        address: IpAddr,
    },
    /// Whether a pod could be attached now. Answered by [`Reply::Vacancy`], or by the refusal that a pod would meet.
    Vacancy,
    /// Connections through Services. Answered by [`Reply::Connections`].
    Connections {
        /// Which.
        filter: ConnectionFilter,
        /// Only those of this pod of the node.
        pod: Option<PodName>,
        /// How many are listed at most.
        limit: usize,
        /// End them instead.
        kill: bool,
    },
    /// All pods of the node.
    Pods,
    /// Everything `podwire status` shows.
    Status,
    /// The leases of the cluster, and how the store stands. A node that waits for its subnet answers it too.
    Store,
    /// The addresses of the node.
    Ipam,
    /// The names the node answers.
    Dns,
    /// Add a static record, or remove it. Answered by [`Reply::DnsChanged`].
    DnsChange {
        /// `NAME TYPE DATA`; to remove all records of a name, the name alone.
        record: String,
        /// Whether it is to be there.
        there: bool,
    },
    /// The resolv.conf of a pod. Answered by [`Reply::ResolvConf`].
    ResolvConf {
        /// The pod.
        pod: PodName,
    },
    /// Publish ports of a pod, all or none. Answered by [`Reply::Published`] with the new ones.
    Publish {
        /// The pod.
        pod: PodName,
        /// The ports.
        ports: Vec<PortMapping>,
        /// Only for as long as this connection; an [`Reply::Error`] comes when the pod goes before.
        #[serde(default)]
        tied: bool,
    },
    /// Publish ports of a pod no longer, all or none. Answered by [`Reply::Published`] with those that were.
    Unpublish {
        /// The pod.
        pod: PodName,
        /// The ports; without an address, those at any.
        ports: Vec<PortMapping>,
    },
    /// The published ports, of one pod or of all. Answered by [`Reply::Published`].
    Published {
        /// The pod.
        pod: Option<PodName>,
    },
    /// Change a pod's labels, all or none. Answered by [`Reply::Pod`].
    Label {
        /// The pod.
        pod: PodName,
        /// In this order.
        changes: Vec<LabelChange>,
    },
    /// Say whether a pod is ready; one that is drains no longer. Answered by [`Reply::Pod`].
    Ready {
        /// The pod.
        pod: PodName,
        /// Whether it is.
        ready: bool,
    },
    /// Have a pod get no new flows. Answered by [`Reply::Pod`].
    Drain {
        /// The pod.
        pod: PodName,
        /// Milliseconds until its port is removed; none leaves that to somebody else.
        grace_ms: Option<u64>,
    },
    /// All Services. Answered by [`Reply::Services`], without what stands behind each.
    Services,
    /// One Service. Answered by [`Reply::Service`].
    Service {
        /// Its name.
        name: ServiceName,
    },
    /// Have the objects of a manifest, all or none. Answered by [`Reply::Applied`].
    Apply {
        /// YAML or JSON, of one document or more.
        text: String,
    },
    /// Delete a Service, and the EndpointSlices about it. Answered by [`Reply::Applied`].
    DeleteService {
        /// Its name.
        name: ServiceName,
    },
}

/// What a pod asks for at attach.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// The pod's name.
    pub pod: PodName,
    /// A fixed IPv4 address instead of the next free one.
    pub ip4: Option<Ipv4Addr>,
    /// A fixed IPv6 address instead of the one that mirrors the IPv4 address.
    pub ip6: Option<Ipv6Addr>,
    /// A fixed MAC instead of the one derived from the address.
    pub mac: Option<Mac>,
    /// A fixed MTU instead of the node's.
    pub mtu: Option<PodMtu>,
    /// Name of the interface in the pod.
    pub ifname: String,
    /// Path of the pod's network namespace, watched for removal; none when only the pidfd tells.
    pub netns: Option<PathBuf>,
    /// The process that holds the namespace, for `podwire exec`; none when a path holds it.
    pub holder: Option<u32>,
    /// What a container runtime calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// Its other names in its namespace, of DNS only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Ports of the host that shall lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<PortMapping>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Its ports that have names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NamedPort>,
    /// How much it may receive and send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
}

/// What the attaching helper must configure in the pod's namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttachPlan {
    /// The pod's IPv4 address with the length of the node's subnet.
    pub ip4: Option<Ipv4Net>,
    /// The pod's IPv6 address with the length of the node's subnet.
    pub ip6: Option<Ipv6Net>,
    /// The interface's MAC.
    pub mac: Mac,
    /// The interface's MTU.
    pub mtu: PodMtu,
    /// Default route for IPv4.
    pub gateway4: Option<Ipv4Addr>,
    /// Default route for IPv6.
    pub gateway6: Option<Ipv6Addr>,
    /// Most segments a super-frame may have so that it fits one UDP send (gso_max_segs).
    pub gso_max_segs: u32,
    /// Most bytes a super-frame may have (gso_max_size and gso_ipv4_max_size).
    pub gso_max_size: u32,
    /// Frames the TAP's ring holds (txqueuelen).
    pub tx_queue_len: u32,
    /// Whether to ask for vnet_hdr and offloads at all.
    pub offload: OffloadMode,
}

/// A pod, as `podwire pods` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodInfo {
    /// The pod's name.
    pub pod: PodName,
    /// Its port in the data path.
    pub port: PortId,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: PodMtu,
    /// Name of its interface.
    pub ifname: String,
    /// Path of its namespace, when attached by path.
    pub netns: Option<PathBuf>,
    /// The process that holds its namespace, when known.
    pub holder: Option<u32>,
    /// What its TAP accepts.
    pub caps: TapCaps,
    /// Seconds since it was attached.
    pub age_s: u64,
    /// What a container runtime calls it, when one attached it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// Its other names in its namespace, of DNS only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Ports of the host that lead to it.
    #[serde(default)]
    pub publish: Vec<PortMapping>,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// Its ports that have names.
    #[serde(default)]
    pub ports: Vec<NamedPort>,
    /// Whether it is there for others.
    #[serde(default)]
    pub state: PodState,
    /// Milliseconds until its port is removed, when it drains.
    #[serde(default)]
    pub drain_ms: Option<u64>,
    /// How much it may receive and send.
    #[serde(default)]
    pub bandwidth: Option<Bandwidth>,
    /// Counters of its port.
    pub counters: PortCounters,
}

/// Whether a peer is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerReach {
    /// Nothing was ever heard of it.
    Unheard,
    /// It was heard.
    Up,
    /// It answered probes once, and does so no longer: frames to it are dropped, but for a few that try, and for ten
    /// minutes at most.
    Silent,
}

/// A peer, as `podwire status` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerInfo {
    /// The peer's name.
    pub name: String,
    /// Where its VXLAN socket is: of two the one that is silent, or deaf, or used.
    pub underlay: SocketAddr,
    /// Its pod subnets.
    pub subnets: Vec<IpNet>,
    /// Whether it is there, at that address.
    pub state: PeerReach,
    /// Milliseconds since it is; none as long as nothing was heard.
    pub state_ms: Option<u64>,
    /// Milliseconds since it has heard nothing of this node, as it says itself; none when it hears, or does not say.
    pub deaf_ms: Option<u64>,
    /// Milliseconds since the last valid datagram from it; none when nothing was ever heard.
    pub last_heard_ms: Option<u64>,
    /// Round-trip time of the last answered probe, in microseconds.
    pub rtt_us: Option<u64>,
    /// Probes sent and not answered, in percent of the last probes.
    pub loss_percent: Option<u8>,
    /// MTU of pods' packets to this peer: of IPv4, or of IPv6 where it has no IPv4 subnet.
    pub pod_mtu: PodMtu,
    /// Whether UDP segmentation offload is in force towards it.
    pub gso: bool,
    /// Datagrams sent to it.
    pub datagrams_to_peer: u64,
    /// Bytes sent to it (UDP payload).
    pub bytes_to_peer: u64,
    /// Datagrams accepted from it.
    pub datagrams_from_peer: u64,
    /// Bytes accepted from it (UDP payload).
    pub bytes_from_peer: u64,
}

/// Offloads in force, and what the kernel granted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffloadInfo {
    /// Configured mode of the TAPs.
    pub tap: OffloadMode,
    /// UDP_SEGMENT works.
    pub udp_gso: bool,
    /// UDP_GRO works.
    pub udp_gro: bool,
    /// Receive buffer granted by the kernel, in bytes.
    pub receive_buffer: usize,
    /// Send buffer granted by the kernel, in bytes.
    pub send_buffer: usize,
    /// Most segments in one send.
    pub gso_max_segs: u32,
}

/// Everything `podwire status` shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// Version of the program.
    pub version: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Process id.
    pub pid: u32,
    /// Addresses of the VXLAN sockets.
    pub underlay: Vec<SocketAddr>,
    /// Pod subnets of this node.
    pub subnets: Vec<IpNet>,
    /// The overlay's VNI.
    pub vni: u32,
    /// MTU of the pods.
    pub pod_mtu: PodMtu,
    /// Offloads in force.
    pub offloads: OffloadInfo,
    /// What pods have outside of the pod network.
    #[serde(default)]
    pub egress: EgressInfo,
    /// How the store of leases stands; none when there is none. The leases themselves are left out.
    #[serde(default)]
    pub store: Option<StoreStatus>,
    /// How DNS stands; none when it is off.
    #[serde(default)]
    pub dns: Option<DnsStatus>,
    /// The host's own port; none when it is off.
    #[serde(default)]
    pub host_port: Option<HostPortInfo>,
    /// The peers.
    pub peers: Vec<PeerInfo>,
    /// The pods.
    pub pods: Vec<PodInfo>,
    /// The counters.
    pub counters: NodeCounters,
    /// Drops by reason label.
    pub drops: std::collections::BTreeMap<String, u64>,
    /// What a person should look at, worst first.
    pub problems: Vec<String>,
}

/// The host's own port in the pod network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPortInfo {
    /// Its interface on the host.
    pub interface: String,
    /// Why there is none; none when it is there.
    pub missing: Option<String>,
    /// Its addresses, which are the gateway's.
    pub addresses: Vec<IpAddr>,
    /// What the host reaches by it.
    pub networks: Vec<IpNet>,
    /// Counters of its port: the host is the pod there.
    pub counters: PortCounters,
}

/// Flows that leave the pod network by the host's sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressInfo {
    /// Whether pods reach the world.
    pub open: bool,
    /// TCP flows.
    pub tcp_flows: u64,
    /// Sockets of UDP and echo.
    pub datagram_sockets: u64,
}

/// The addresses of a node's pods, as `podwire ipam` shows them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IpamInfo {
    /// Pod subnets of the node.
    pub subnets: Vec<IpNet>,
    /// How many pods hold addresses.
    pub held: u64,
    /// How many pods' addresses rest.
    pub resting: u64,
    /// How many pods more there is room for.
    pub free: u64,
    /// Those held, by pod, then those that rest.
    pub addresses: Vec<AddressInfo>,
}

/// What a pod holds, or held until a moment ago.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddressInfo {
    /// The pod.
    pub pod: PodName,
    /// Its IPv4 address.
    pub ip4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ip6: Option<Ipv6Addr>,
    /// Its MAC.
    pub mac: Mac,
    /// Whether it holds them.
    #[serde(flatten)]
    pub state: AddressState,
}

/// How it is with an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum AddressState {
    /// The pod is there.
    Held {
        /// Seconds since it was attached.
        age_s: u64,
        /// Path of its namespace, when attached by path.
        netns: Option<PathBuf>,
        /// The process that holds its namespace, when known.
        holder: Option<u32>,
    },
    /// The pod is gone, and nobody gets its addresses yet.
    Resting {
        /// Seconds until somebody may.
        left_s: u64,
    },
}

/// How a node's DNS stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsStatus {
    /// Domain of the pods' names.
    pub domain: String,
    /// Where others than pods may ask.
    pub listen: Vec<SocketAddr>,
    /// The resolvers that are asked for what is not the node's.
    pub servers: Vec<DnsServer>,
    /// Names of the node.
    pub names: usize,
    /// Answers in the cache.
    pub cached: usize,
    /// Questions to resolvers under way.
    pub in_flight: usize,
    /// Answers given, by kind.
    pub answers: std::collections::BTreeMap<String, u64>,
    /// What got no answer, or a failure at once, by reason.
    pub drops: std::collections::BTreeMap<String, u64>,
    /// Questions that a resolver did not answer in time.
    pub timeouts: u64,
}

/// A resolver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsServer {
    /// Where it is.
    pub at: SocketAddr,
    /// Whether it was silent a moment ago, so that others are asked first.
    pub silent: bool,
}

/// A record of a name the node answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DnsRecord {
    /// The name.
    pub name: String,
    /// The record's type.
    pub kind: String,
    /// What it says.
    pub data: String,
    /// Whose it is: of a pod, a member of a set, a set, the host, the configuration, or added while the node ran.
    pub source: String,
}

/// A published port, as `podwire port ls` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The pod.
    pub pod: PodName,
    /// Its protocol.
    pub protocol: Protocol,
    /// Address and port on the host.
    pub host: SocketAddr,
    /// The pod's address and port.
    pub to: SocketAddr,
    /// Only for as long as a client of the node is there (`podwire forward`).
    pub tied: bool,
    /// Seconds since it was published.
    pub age_s: u64,
    /// Connections open; for UDP the clients of the last minutes.
    pub connections: u64,
    /// Those there were in all.
    pub accepted: u64,
    /// Clients turned away, as there was no room.
    pub refused: u64,
}

/// What became of an object that was applied or deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedObject {
    /// `Service default/web`, `EndpointSlice default/web-1`.
    pub object: String,
    /// `created`, `changed`, `unchanged` or `deleted`.
    pub done: String,
    /// Where it is kept.
    pub place: String,
}

impl Request {
    /// Whether it changes nothing that outlives its conversation.
    pub fn only_asks(&self) -> bool {
        match self {
            Request::Hello { .. }
            | Request::Attachments { .. }
            | Request::Ping { .. }
            | Request::Vacancy
            | Request::Pods
            | Request::Status
            | Request::Store
            | Request::Ipam
            | Request::Dns
            | Request::ResolvConf { .. }
            | Request::Published { .. }
            | Request::Services
            | Request::Service { .. } => true,
            Request::Connections { kill, .. } => !kill,
            Request::Attach(_)
            | Request::Commit { .. }
            | Request::Detach { .. }
            | Request::Release { .. }
            | Request::DnsChange { .. }
            | Request::Publish { .. }
            | Request::Unpublish { .. }
            | Request::Label { .. }
            | Request::Ready { .. }
            | Request::Drain { .. }
            | Request::Apply { .. }
            | Request::DeleteService { .. } => false,
        }
    }
}

/// What a node answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello {
        /// The node's [`PROTOCOL`].
        protocol: u32,
        /// The node's name.
        node: String,
        /// The program's version.
        version: String,
    },
    /// To [`Request::Attach`].
    Plan(AttachPlan),
    /// To [`Request::Commit`].
    Attached(Box<PodInfo>),
    /// To [`Request::Detach`] and [`Request::Release`].
    Detached {
        /// Whether there was such a pod.
        existed: bool,
    },
    /// To [`Request::Pods`] and [`Request::Attachments`].
    Pods {
        /// The pods, by name.
        pods: Vec<PodInfo>,
    },
    /// To [`Request::Ping`].
    Pinged {
        /// How long the answer took, in microseconds; none when there was none within a second.
        rtt_us: Option<u64>,
    },
    /// To [`Request::Vacancy`].
    Vacancy {
        /// How many pods more there is room for, those counted whose addresses rest.
        free: u64,
        /// Pod subnets of the node.
        subnets: Vec<IpNet>,
    },
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Store`].
    Store {
        /// None when the node has no store.
        store: Option<Box<StoreStatus>>,
    },
    /// To [`Request::Ipam`].
    Ipam(IpamInfo),
    /// To [`Request::Dns`].
    Dns {
        /// The records, by name.
        records: Vec<DnsRecord>,
    },
    /// To [`Request::DnsChange`].
    DnsChanged {
        /// The records that are new, or gone.
        records: Vec<String>,
    },
    /// To [`Request::ResolvConf`].
    ResolvConf {
        /// The text; none when the node does not answer names.
        text: Option<String>,
    },
    /// To [`Request::Publish`], [`Request::Unpublish`] and [`Request::Published`].
    Published {
        /// The ports.
        ports: Vec<PublishedPort>,
    },
    /// To [`Request::Label`], [`Request::Ready`] and [`Request::Drain`].
    Pod(Box<PodInfo>),
    /// To [`Request::Connections`].
    Connections {
        /// Those there are, as far as the limit; none when they were ended.
        connections: Vec<ServiceConnection>,
        /// How many there are, or were ended.
        count: usize,
    },
    /// To [`Request::Services`].
    Services {
        /// The Services, by name.
        services: Vec<ServiceInfo>,
        /// What is wrong with manifests and ranges; what is wrong with a Service stands there.
        problems: Vec<String>,
    },
    /// To [`Request::Service`].
    Service(Box<ServiceInfo>),
    /// To [`Request::Apply`] and [`Request::DeleteService`].
    Applied {
        /// What was done, object by object.
        objects: Vec<AppliedObject>,
        /// What a person should look at now, about these.
        problems: Vec<String>,
    },
    /// The request was refused.
    Error {
        /// One sentence: what is wrong and what would be right.
        message: String,
        /// The kind, which decides the exit code of the command.
        kind: ErrorKind,
    },
}

/// Kinds of refusal; the numbers of exit codes are in `cmd::Exit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong.
    Usage,
    /// Name, address, MAC or port is held by another pod, or program.
    Taken,
    /// No such pod.
    NotFound,
    /// Out of addresses or ports.
    Exhausted,
    /// The kernel does not let the node's user do that.
    Permission,
    /// The node waits for something itself: try again later.
    Waiting,
    /// Anything else that went wrong inside the node.
    Internal,
}
