//! What DNS says of a Service.

use super::{Labels, Scheduler, ServiceName, Transport};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The names of one Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceRecords {
    /// Addresses of the Service's own name: its virtual ones, or those of what stands behind a headless one.
    pub addresses: Vec<IpAddr>,
    /// What stands behind a headless Service, each with a name below the Service's.
    pub hosts: Vec<ServiceHost>,
    /// Its ports that have names, when the addresses are virtual.
    pub ports: Vec<ServicePortRecord>,
    /// Where the name leads instead (ExternalName).
    pub alias: Option<String>,
}

/// Something behind a headless Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceHost {
    /// Its name: one label.
    pub name: String,
    /// Its address.
    pub at: IpAddr,
    /// Its ports, by the names they have in the Service.
    pub ports: Vec<ServicePortRecord>,
}

/// A port for SRV records.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ServicePortRecord {
    /// Its name: one label.
    pub name: String,
    /// Its protocol.
    pub transport: Transport,
    /// Its number.
    pub port: u16,
}

/// A Service, as `podwire service` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// Its name.
    pub name: ServiceName,
    /// `ClusterIP`, `NodePort`, `Headless` or `ExternalName`; `missing` when only EndpointSlices speak of it.
    pub kind: String,
    /// Its virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Addresses of nodes where it is reached too.
    pub external_ips: Vec<IpAddr>,
    /// Where its name leads.
    pub external_name: Option<String>,
    /// Its ports.
    pub ports: Vec<ServicePortInfo>,
    /// Its labels.
    pub labels: Labels,
    /// Its annotations.
    pub annotations: Labels,
    /// The labels of its pods.
    pub selector: Labels,
    /// How backends are chosen.
    pub scheduler: Scheduler,
    /// For how many seconds a client stays with its backend.
    pub affinity_s: Option<u64>,
    /// Whether pods are sent to backends of their own node only.
    pub internal_local: bool,
    /// Whether clients from outside are.
    pub external_local: bool,
    /// Where nodes tell whether they have backends.
    pub health_check_port: Option<u16>,
    /// Whether backends that are not ready count.
    pub publish_not_ready: bool,
    /// How many of what stands behind it are ready.
    pub ready: usize,
    /// How many stand behind it in all.
    pub in_all: usize,
    /// Flows that are open through this node.
    pub open: u64,
    /// Flows there have been through this node.
    pub opened: u64,
    /// Flows that no backend was there for, that it refused, or that it never answered.
    pub failed: u64,
    /// What stands behind it.
    pub endpoints: Vec<EndpointInfo>,
    /// Where it is stated.
    pub source: String,
    /// The document there, from 1.
    pub document: usize,
    /// Whether it is reached, or has its names.
    pub in_force: bool,
    /// What a person should look at.
    pub problems: Vec<String>,
}

impl Default for ServiceInfo {
    fn default() -> ServiceInfo {
        ServiceInfo {
            name: ServiceName {
                namespace: String::new(),
                name: String::new(),
            },
            kind: String::new(),
            addresses: Vec::new(),
            external_ips: Vec::new(),
            external_name: None,
            ports: Vec::new(),
            labels: Labels::new(),
            annotations: Labels::new(),
            selector: Labels::new(),
            scheduler: Scheduler::default(),
            affinity_s: None,
            internal_local: false,
            external_local: false,
            health_check_port: None,
            publish_not_ready: false,
            ready: 0,
            in_all: 0,
            open: 0,
            opened: 0,
            failed: 0,
            endpoints: Vec::new(),
            source: String::new(),
            document: 0,
            in_force: false,
            problems: Vec::new(),
        }
    }
}

/// A port of a Service, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortInfo {
    /// Its name.
    pub name: String,
    /// Its protocol.
    pub transport: Transport,
    /// Its number.
    pub port: u16,
    /// The backends' port: a number, or the name of one.
    pub target: String,
    /// Its number on the nodes.
    pub node_port: Option<u16>,
    /// What is spoken there.
    pub app_protocol: Option<String>,
}

/// Something behind a Service, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// Its address.
    pub at: IpAddr,
    /// Its ports, in the order of the Service's; those it does not have are left out.
    pub ports: Vec<u16>,
    /// `ready`, `draining` or `not ready`.
    pub state: String,
    /// Whether it is a pod of this node.
    pub local: bool,
    /// The pod, or what is said of it.
    pub what: String,
    /// Its name below a headless Service.
    pub host: String,
    /// Flows that are open to it through this node.
    #[serde(default)]
    pub open: u64,
}
