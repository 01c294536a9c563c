//! The value of a lease: who has the subnet, and how frames get there.

use crate::model::Mac;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

/// What a node says of itself in its lease, as far as it is a VXLAN node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseValue {
    /// Where its VTEP is reached over IPv4.
    pub public_ip: Ipv4Addr,
    /// Where its VTEP is reached over IPv6, for IPv6 pods.
    pub public_ip6: Option<Ipv6Addr>,
    /// VNI and MAC of its VTEP.
    pub vtep: (u32, Mac),
    /// The same of the VTEP for IPv6 pods.
    pub vtep6: Option<(u32, Mac)>,
    /// What a podwire node adds under a key of its own, which flannel ignores.
    pub podwire: Option<Abilities>,
}

/// What a podwire node tells other podwire nodes: options are used when both sides have them, never assumed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Abilities {
    /// The node's name.
    pub name: String,
    /// Identity of the node, kept on its disk: the same after a restart and with another address.
    pub id: String,
    /// Version of its program.
    pub version: String,
    /// Options of the wire it can do. Those unknown here are kept and ignored.
    pub wire: Vec<String>,
}

/// Why a value is not one of a VXLAN node. It is skipped and named, never fatal.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ValueError {
    /// Not the JSON of a lease.
    #[error("{0}")]
    Malformed(String),
    /// Another backend than VXLAN, as flannel skips it too.
    #[error("its BackendType is {0:?}, not \"vxlan\"")]
    Backend(String),
}
