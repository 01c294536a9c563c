//! Connections through virtual addresses, as people see them.

use super::{ServiceName, Transport};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnState {
    /// The backend has not answered, or the handshake is not done.
    Opening,
    /// Both sides talk.
    Open,
    /// Both have said that they are done, or one has given up.
    Closing,
}

impl fmt::Display for ConnState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConnState::Opening => "opening",
            ConnState::Open => "open",
            ConnState::Closing => "closing",
        })
    }
}

/// A connection through a virtual address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceConnection {
    /// Its protocol.
    pub transport: Transport,
    /// The Service.
    pub service: ServiceName,
    /// Who opened it.
    pub client: SocketAddr,
    /// The virtual address it was opened to.
    pub frontend: SocketAddr,
    /// The backend it goes to.
    pub backend: SocketAddr,
    /// What the backend sees in place of the client, if anything.
    pub masked: Option<SocketAddr>,
    /// How far it has come.
    pub state: ConnState,
    /// The backend has answered.
    pub answered: bool,
    /// Seconds since it was opened.
    pub age_s: u64,
    /// Seconds since something passed.
    pub idle_s: u64,
    /// Seconds until it is forgotten if nothing passes.
    pub left_s: u64,
}

/// Which connections are meant: those for which all that is given is so.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ConnectionFilter {
    /// Of this protocol.
    pub transport: Option<Transport>,
    /// To this Service.
    pub service: Option<ServiceName>,
    /// Of this client.
    pub client: Option<IpAddr>,
    /// From this port of the client.
    pub client_port: Option<u16>,
    /// To this virtual address.
    pub frontend: Option<IpAddr>,
    /// To this port of the virtual address.
    pub frontend_port: Option<u16>,
    /// To this backend.
    pub backend: Option<IpAddr>,
    /// To this port of the backend.
    pub backend_port: Option<u16>,
    /// That have come so far.
    pub state: Option<ConnState>,
}
