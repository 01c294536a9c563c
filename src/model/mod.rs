//! The words of podwire: names, addresses, peers, changes and drop reasons. Plain data, no behaviour that
//! needs a clock or a socket.

mod attachment;
mod bandwidth;
mod connection;
mod counters;
mod drop;
mod host;
mod labels;
mod mac;
mod peer;
mod pod;
mod publish;
mod records;
mod service;
mod store;

pub use attachment::{Attachment, AttachmentFilter, MAX_IDENTIFIER, is_alias, is_identifier};
pub use bandwidth::{Bandwidth, Rate, RateError};
pub use connection::{ConnState, ConnectionFilter, ServiceConnection};
pub use counters::{NodeCounters, Panics, PortCounters};
pub use drop::{DropReason, Drops};
pub use host::{Heard, HostError, LocalEnd, MouthKind, Moved, Outward};
pub use labels::{
    LabelChange, LabelError, Labels, MAX_LABELS, NamedPort, PodState, is_label_key, is_label_value,
    is_port_name,
};
pub use mac::Mac;
pub use peer::{
    Change, LocalNode, MAX_PEERS, NodeName, Peer, PeerId, Snapshot, UnderlayMtu, VXLAN_OVERHEAD_V4,
    VXLAN_OVERHEAD_V6, Vni,
};
pub use pod::{OffloadMode, PodMtu, PodName, PortId, PortSpec, TapCaps};
pub use publish::{HostPort, MAX_RANGE, PortMapping, PortMappingError, Protocol};
pub use records::{
    EndpointInfo, ServiceHost, ServiceInfo, ServicePortInfo, ServicePortRecord, ServiceRecords,
};
pub use service::{
    Backend, BackendPhase, Frontend, Scheduler, ServiceChange, ServiceName, Transport, VirtualServer,
    is_dns_label,
};
pub use smoltcp::time::{Duration, Instant};
pub use store::{LeaseInfo, StoreStatus};
