//! What people write: Kubernetes' `Service` (v1) and `EndpointSlice` (discovery.k8s.io/v1), alone, many in one text, or
//! in a `List`.
//!
//! What is supported is understood with Kubernetes' defaults and rules. Everything else is refused, with the text's name,
//! line, document, key and what helps; the other objects of the text go on. What an API server only writes down for
//! itself (`status`, `uid`, `resourceVersion` and the like) changes nothing, and may stand there.

use super::catalogue::Pins;
use super::read::{Reader, shown};
use super::yaml::{self, Node, quoted};
use super::{slice, spec};
use crate::model::{Labels, NodeName, Scheduler, ServiceName, Transport};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Most mistakes that are told of one text.
const MAX_MISTAKES: usize = 64;

/// Where objects come from. Of two with one name the one from the lesser place counts: the store is everybody's.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Source {
    /// A key of the store.
    Store(String),
    /// A file.
    File(PathBuf),
    /// What somebody hands in.
    Given,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Store(key) => write!(f, "etcd:{}", key.escape_debug()),
            Source::File(path) => write!(f, "{}", path.to_string_lossy().escape_debug()),
            Source::Given => f.write_str("the manifest"),
        }
    }
}

/// What an object is called.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ObjectKey {
    /// A Service.
    Service(ServiceName),
    /// An EndpointSlice: namespace and name.
    Slice(String, String),
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectKey::Service(name) => write!(f, "Service {name}"),
            ObjectKey::Slice(namespace, name) => write!(f, "EndpointSlice {namespace}/{name}"),
        }
    }
}

/// An object that was understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    Slice(Arc<EndpointSlice>),
}

impl Object {
    /// What it is called.
    pub fn key(&self) -> ObjectKey {
        match self {
            Object::Service(s) => ObjectKey::Service(s.name.clone()),
            Object::Slice(s) => ObjectKey::Slice(s.namespace.clone(), s.name.clone()),
        }
    }
}

/// Kinds of Services.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ServiceType {
    /// Reached at a virtual address.
    #[default]
    ClusterIp,
    /// At a port of each node too.
    NodePort,
    /// An alias in DNS.
    ExternalName,
}

/// What is said of a Service's virtual addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ClusterIps {
    /// Nothing: they are allocated.
    #[default]
    Any,
    /// There is none (headless).
    None,
    /// These, one of each family at most; others are allocated as the families ask for.
    Given(Vec<IpAddr>),
}

/// How many families a Service has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FamilyPolicy {
    /// One.
    #[default]
    Single,
    /// Two where the cluster has two.
    PreferDual,
    /// Two.
    RequireDual,
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(ip: IpAddr) -> Family {
        match ip {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// Which port of a pod a Service's port leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetPort {
    /// This one.
    Number(u16),
    /// The one each pod has under this name.
    Name(String),
}

/// A port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Its name; empty when it is the only one.
    pub name: String,
    /// Its protocol.
    pub transport: Transport,
    /// Its number at the virtual address.
    pub port: u16,
    /// Where it leads.
    pub target: TargetPort,
    /// Its number on the nodes, as given.
    pub node_port: Option<u16>,
    /// What is spoken there: kept for people.
    pub app_protocol: Option<String>,
}

/// A Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Its labels.
    pub labels: Labels,
    /// Its annotations.
    pub annotations: Labels,
    /// Its type.
    pub kind: ServiceType,
    /// Its virtual addresses.
    pub cluster_ips: ClusterIps,
    /// Its families as given; empty when they follow from the rest.
    pub families: Vec<Family>,
    /// How many.
    pub family_policy: FamilyPolicy,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// The labels its pods have; empty when EndpointSlices say what stands behind it.
    pub selector: Labels,
    /// For how long a client stays with its backend.
    pub affinity: Option<Duration>,
    /// How backends are chosen.
    pub scheduler: Scheduler,
    /// Whether pods are sent to backends of their own node only.
    pub internal_local: bool,
    /// Whether clients from outside are.
    pub external_local: bool,
    /// Where nodes tell whether they have backends.
    pub health_check_port: Option<u16>,
    /// Addresses of nodes where it is reached too.
    pub external_ips: Vec<IpAddr>,
    /// Where its name leads (ExternalName).
    pub external_name: Option<String>,
    /// Whether backends that are not ready count.
    pub publish_not_ready: bool,
}

impl Service {
    /// Whether it has no virtual address, and DNS tells what stands behind it.
    pub fn is_headless(&self) -> bool {
        self.cluster_ips == ClusterIps::None
    }
}

/// One thing that stands behind a Service, as an EndpointSlice has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Its address.
    pub at: IpAddr,
    /// Whether it takes new flows.
    pub ready: bool,
    /// Whether it answers.
    pub serving: bool,
    /// Whether it ends.
    pub terminating: bool,
    /// Its name in DNS.
    pub hostname: Option<String>,
    /// Its node.
    pub node: Option<NodeName>,
    /// What it is: kept for people.
    pub target: Option<String>,
}

/// A port of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// The Service's port, by name.
    pub name: String,
    /// Its protocol.
    pub transport: Transport,
    /// The endpoints' port.
    pub port: u16,
}

/// An EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The Service it is about.
    pub service: ServiceName,
    /// The family of its addresses.
    pub family: Family,
    /// What stands behind the Service.
    pub endpoints: Vec<Endpoint>,
    /// At these ports.
    pub ports: Vec<SlicePort>,
}

/// A mistake, or something that is not supported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistake {
    /// Where the text is.
    pub source: Source,
    /// The line, from 1; 0 means the text as a whole.
    pub line: usize,
    /// The document in the text, from 1; 0 means none in particular.
    pub document: usize,
    /// The object, as far as it has told its name.
    pub object: String,
    /// The key, dotted; empty when none is meant.
    pub key: String,
    /// What is wrong, and what helps.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        match (self.document, self.object.as_str()) {
            (0, _) => {}
            (n, "") => write!(f, " (document {n})")?,
            (n, object) => write!(f, " (document {n}, {object})")?,
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.what)
    }
}

/// An object and what it was made of.
#[derive(Clone, PartialEq, Debug)]
pub struct Manifest {
    /// What it means.
    pub object: Object,
    /// The document it stood in, from 1.
    pub document: usize,
    /// The same as one JSON text, which reads back to it.
    pub json: serde_json::Value,
}

impl Manifest {
    /// Have a Service's JSON say these addresses and node ports itself.
    pub fn pin(&mut self, pins: &Pins) {
        let Some(spec) = self.json.get_mut("spec").and_then(|s| s.as_object_mut()) else {
            return;
        };
        let all: Vec<String> = pins.addresses.iter().map(ToString::to_string).collect();
        if let Some(first) = all.first() {
            spec.insert("clusterIP".into(), first.as_str().into());
            spec.insert("clusterIPs".into(), all.into());
        }
        let ports = spec.get_mut("ports").and_then(|p| p.as_array_mut());
        for (port, pin) in ports.into_iter().flatten().zip(&pins.node_ports) {
            if let (Some(port), Some(pin)) = (port.as_object_mut(), pin) {
                port.insert("nodePort".into(), (*pin).into());
            }
        }
    }
}

/// What a text says.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Read {
    /// What was understood, in order.
    pub manifests: Vec<Manifest>,
    /// What was not, in order.
    pub mistakes: Vec<Mistake>,
}

/// Read a text of one or more documents, in YAML or JSON. Never fails as a whole: what can be used is, as far as it can
/// be told apart.
pub fn read(source: &Source, text: &str) -> Read {
    let documents = match yaml::documents(text) {
        Ok(documents) => documents,
        Err(e) => {
            return Read {
                manifests: Vec::new(),
                mistakes: vec![Mistake {
                    source: source.clone(),
                    line: e.line,
                    document: 0,
                    object: String::new(),
                    key: String::new(),
                    what: e.what,
                }],
            };
        }
    };
    let mut read = Read::default();
    for (document, node) in &documents {
        whole(source, *document, "", node, &mut read);
    }
    let mut seen = std::collections::HashMap::new();
    let (mistakes, manifests) = (&mut read.mistakes, &mut read.manifests);
    manifests.retain(|m| match seen.insert(m.object.key(), m.document) {
        None => true,
        Some(first) => {
            mistakes.push(Mistake {
                source: source.clone(),
                line: 0,
                document: m.document,
                object: m.object.key().to_string(),
                key: "metadata.name".into(),
                what: format!("document {first} has that name already (leave one out)"),
            });
            seen.insert(m.object.key(), first);
            false
        }
    });
    read.mistakes.truncate(MAX_MISTAKES);
    read
}

/// One document, or one item of a List.
fn whole(source: &Source, document: usize, path: &str, node: &Node, read: &mut Read) {
    let mut reader = Reader::new(source, document, &mut read.mistakes);
    let before = reader.count();
    let word = |key: &str| node.at(key).and_then(|n| n.text().ok()).unwrap_or_default();
    let (version, kind) = (word("apiVersion"), word("kind"));
    let name = node.at("metadata").and_then(|m| m.at("name")?.text().ok());
    let at = |key: &str| match path {
        "" => key.to_string(),
        path => format!("{path}.{key}"),
    };
    if let Err(what) = node.map() {
        return reader.wrong(node.line, path, what);
    }
    let object = match (kind, version) {
        ("Service", "v1") => spec::service(node, path, &mut reader).map(Object::Service),
        ("EndpointSlice", "discovery.k8s.io/v1") => slice::slice(node, path, &mut reader).map(Object::Slice),
        ("List", "v1") if path.is_empty() => return list(source, document, node, read),
        ("List", "v1") => {
            return reader.wrong(
                node.line,
                &at("kind"),
                "a List stands in a List (write its items out)",
            );
        }
        ("Service" | "List", _) => {
            return reader.wrong(
                node.line,
                &at("apiVersion"),
                format!("{} is not that of a {kind} (write v1)", quoted(version)),
            );
        }
        ("EndpointSlice", _) => {
            let what = format!(
                "{} is not that of an EndpointSlice (write discovery.k8s.io/v1)",
                quoted(version)
            );
            return reader.wrong(node.line, &at("apiVersion"), what);
        }
        ("", _) => {
            return reader.wrong(
                node.line,
                &at("kind"),
                "is missing (write Service, EndpointSlice or List)",
            );
        }
        ("Endpoints", _) => {
            return reader.wrong(
                node.line,
                &at("kind"),
                "Endpoints is not supported (write an EndpointSlice)",
            );
        }
        (kind, _) => {
            let what = format!(
                "{} is not supported (Service, EndpointSlice and List are; keep others elsewhere)",
                quoted(kind)
            );
            reader.object = name
                .map(|n| format!("{} {}", yaml::quoted(kind), yaml::quoted(n)))
                .unwrap_or_default();
            return reader.wrong(node.line, &at("kind"), what);
        }
    };
    let clean = reader.count() == before;
    if let (Some(object), true) = (object, clean) {
        read.manifests.push(Manifest {
            object,
            document,
            json: node.json(),
        });
    }
}

fn list(source: &Source, document: usize, node: &Node, read: &mut Read) {
    let mut reader = Reader::new(source, document, &mut read.mistakes);
    for (key, value) in node.map().unwrap_or_default() {
        match key.as_str() {
            "apiVersion" | "kind" | "metadata" | "items" => {}
            key => reader.unknown(
                value.line,
                &shown(key),
                &["apiVersion", "kind", "metadata", "items"],
            ),
        }
    }
    let items = match node.at("items").map(|n| n.list()) {
        None => return reader.wrong(node.line, "items", "is missing (a List has items)"),
        Some(Err(what)) => return reader.wrong(node.line, "items", what),
        Some(Ok(items)) => items,
    };
    for (n, item) in items.iter().enumerate() {
        whole(source, document, &format!("items[{n}]"), item, read);
    }
}

#[cfg(test)]
mod tests;
