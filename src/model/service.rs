//! Services as the data path knows them: virtual addresses and ports, and the backends that stand behind them.
//!
//! What people write (Kubernetes manifests, labels) becomes these in `control::services`; the data path balances and
//! translates by them in `service`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// A Service's name within the cluster: `namespace/name`; `name` alone means `default/name`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// The namespace part.
    pub namespace: String,
    /// The Service part: a DNS label.
    pub name: String,
}

/// The text is not a Service name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a Service name (write NAMESPACE/NAME or NAME; lower-case letters, digits and '-', at most 63 each)"
)]
pub struct ServiceNameError(String);

/// Whether `s` is a DNS label as Kubernetes has them (RFC 1123 section 2.1).
pub fn is_dns_label(s: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&s.len())
        && s.bytes().all(|b| good(b) || b == b'-')
        && s.bytes().next().is_some_and(good)
        && s.bytes().last().is_some_and(good)
}

impl FromStr for ServiceName {
    type Err = ServiceNameError;

    fn from_str(s: &str) -> Result<ServiceName, ServiceNameError> {
        let (namespace, name) = s.split_once('/').unwrap_or(("default", s));
        if is_dns_label(namespace) && is_dns_label(name) {
            Ok(ServiceName {
                namespace: namespace.into(),
                name: name.into(),
            })
        } else {
            Err(ServiceNameError(s.into()))
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ServiceName {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceName {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<ServiceName, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Transport protocol of a Service's port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP (RFC 9260).
    Sctp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
            Transport::Sctp => "SCTP",
        })
    }
}

/// What is balanced: a virtual address, a port there, and its protocol. The key the data path looks up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Frontend {
    /// Address and port; the port is not zero.
    pub at: SocketAddr,
    /// Protocol.
    pub transport: Transport,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.at, self.transport)
    }
}

/// How a backend is chosen for a new flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduler {
    /// Any, with equal chances.
    #[default]
    Random,
    /// One after the other.
    RoundRobin,
    /// The one with the fewest open connections through this node.
    LeastConnections,
    /// The same one for the same client address and port, on every node (Maglev, NSDI 2016): few flows move when
    /// backends change.
    Maglev,
}

/// What a backend is there for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendPhase {
    /// For old flows and new ones.
    Ready,
    /// It ends: for the flows it has, and for new ones only when no backend is ready (Kubernetes' `serving` and
    /// `terminating`).
    Draining,
}

/// One address and port that answers for a Service.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Backend {
    /// Address and port, of the family of the frontend.
    pub at: SocketAddr,
    /// What it is there for.
    pub phase: BackendPhase,
    /// Whether it is a pod of this node.
    pub local: bool,
}

/// All that stands behind one [`Frontend`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VirtualServer {
    /// The Service, for people.
    pub service: ServiceName,
    /// Name of its port, empty when it has none.
    pub port: String,
    /// How backends are chosen.
    pub scheduler: Scheduler,
    /// For how long a client's flows go to the backend the last one went to (`sessionAffinity: ClientIP`).
    pub affinity: Option<Duration>,
    /// Only backends of this node are used (`internalTrafficPolicy` or `externalTrafficPolicy: Local`).
    pub local_only: bool,
    /// It stands at an address of a host (`externalIPs`, node ports), whose other ports are that host's.
    pub at_host: bool,
    /// The backends, each address once, in the order of their addresses.
    pub backends: Vec<Backend>,
}

/// One step from what the data path knows of Services to what is so now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceChange {
    /// From now on this stands behind the frontend. Flows to backends that are no longer among them end: TCP is reset
    /// with the next packet, UDP chooses anew.
    Set(Frontend, Arc<VirtualServer>),
    /// The frontend is no more; nor are its flows.
    Gone(Frontend),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_names_are_dns_labels() {
        let name: ServiceName = "web".parse().unwrap();
        assert_eq!(name.to_string(), "default/web");
        assert_eq!("prod/db-0".parse::<ServiceName>().unwrap().namespace, "prod");
        for wrong in [
            "",
            "/",
            "a/",
            "A",
            "a_b",
            "-a",
            "a-",
            "a/b/c",
            "a.b",
            &"a".repeat(64),
        ] {
            assert!(wrong.parse::<ServiceName>().is_err(), "{wrong}");
        }
    }
}
