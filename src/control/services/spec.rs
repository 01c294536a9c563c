//! `Service`, key by key; and what every object has.

use super::manifest::{ClusterIps, Family, FamilyPolicy, Service, ServicePort, ServiceType, TargetPort};
use super::read::Reader;
use super::yaml::{Node, quoted};
use crate::model::{Labels, Scheduler, ServiceName, Transport, is_dns_label, is_port_name};
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The annotation that says how backends are chosen.
const SCHEDULER: &str = "podwire/scheduler";
/// How long a client stays with its backend unless somebody says otherwise, as Kubernetes has it.
const AFFINITY: Duration = Duration::from_secs(10_800);
/// Most ports of a Service or a slice.
pub(super) const MAX_PORTS: usize = 100;
/// Most external addresses.
const MAX_EXTERNAL: usize = 16;

const METADATA: &[&str] = &["name", "namespace", "labels", "annotations"];
const SERVICE: &[&str] = &["apiVersion", "kind", "metadata", "spec"];
const SPEC: &[&str] = &[
    "type",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "ports",
    "selector",
    "sessionAffinity",
    "sessionAffinityConfig",
    "internalTrafficPolicy",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "externalIPs",
    "externalName",
    "publishNotReadyAddresses",
];
const PORT: &[&str] = &[
    "name",
    "protocol",
    "port",
    "targetPort",
    "nodePort",
    "appProtocol",
];

/// What is known and not supported, and what helps.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("loadBalancerIP", "use type NodePort, with externalIPs"),
    ("loadBalancerClass", "use type NodePort, with externalIPs"),
    ("loadBalancerSourceRanges", "use a firewall on the nodes"),
    ("allocateLoadBalancerNodePorts", "use type NodePort"),
    (
        "trafficDistribution",
        "use internalTrafficPolicy: Local, or leave it out",
    ),
];

pub(super) const TRANSPORTS: &[(&str, Transport)] = &[
    ("TCP", Transport::Tcp),
    ("UDP", Transport::Udp),
    ("SCTP", Transport::Sctp),
];
pub(super) const FAMILIES: &[(&str, Family)] = &[("IPv4", Family::V4), ("IPv6", Family::V6)];
const POLICIES: &[(&str, bool)] = &[("Cluster", false), ("Local", true)];

/// What every object has.
pub(super) struct Metadata {
    pub name: String,
    pub namespace: String,
    pub labels: Labels,
    pub annotations: Labels,
}

pub(super) fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.into(),
        path => format!("{path}.{key}"),
    }
}

/// Name, namespace, labels and annotations. What an API server writes down for itself is passed over.
pub(super) fn metadata(object: &Node, kind: &str, path: &str, reader: &mut Reader<'_>) -> Option<Metadata> {
    let path = join(path, "metadata");
    let Some(node) = object.at("metadata") else {
        reader.wrong(object.line, &path, "is missing (write metadata.name)");
        return None;
    };
    let (mut name, mut namespace) = (None, Some("default".to_string()));
    let (mut labels, mut annotations) = (Labels::new(), Labels::new());
    // First, so that mistakes can say whose they are.
    let word = |key: &str| node.at(key).and_then(|n| n.text().ok());
    if let Some(own) = word("name").filter(|n| is_dns_label(n)) {
        let of = word("namespace").filter(|n| is_dns_label(n)).unwrap_or("default");
        reader.object = format!("{kind} {of}/{own}");
    }
    for (at, key, value) in reader.map(node, &path) {
        match key {
            "name" => {
                let good = |s: &str| match kind {
                    // Those that a controller makes have dots at times.
                    "EndpointSlice" => s.len() <= 253 && s.split('.').all(is_dns_label),
                    _ => is_dns_label(s),
                };
                let text = value.text().and_then(|s| match good(s) {
                    true => Ok(s.to_string()),
                    false => Err(format!(
                        "{} is no name (lower-case letters, digits and '-', at most 63)",
                        quoted(s)
                    )),
                });
                name = Some(reader.take(value, &at, text));
            }
            "namespace" => {
                let text = value.text().and_then(|s| match is_dns_label(s) {
                    true => Ok(s.to_string()),
                    false => Err(format!(
                        "{} is no namespace (lower-case letters, digits and '-', at most 63)",
                        quoted(s)
                    )),
                });
                namespace = reader.take(value, &at, text);
            }
            "labels" => labels = reader.labels(value, &at),
            "annotations" => annotations = reader.annotations(value, &at),
            "generateName" => reader.wrong(value.line, &at, "is not supported (give it a name)"),
            // An API server's own.
            "uid" | "resourceVersion" | "generation" | "creationTimestamp" | "managedFields" | "selfLink"
            | "ownerReferences" | "finalizers" => {}
            _ => reader.unknown(value.line, &at, METADATA),
        }
    }
    if name.is_none() {
        reader.wrong(node.line, &join(&path, "name"), "is missing (give it a name)");
    }
    Some(Metadata {
        name: name.flatten()?,
        namespace: namespace?,
        labels,
        annotations,
    })
}

/// A Service; what it gives counts only if there was no mistake.
pub(super) fn service(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Arc<Service>> {
    let metadata = metadata(node, "Service", path, reader)?;
    let mut service = Service {
        name: ServiceName {
            namespace: metadata.namespace,
            name: metadata.name,
        },
        labels: metadata.labels,
        annotations: metadata.annotations,
        kind: ServiceType::default(),
        cluster_ips: ClusterIps::default(),
        families: Vec::new(),
        family_policy: FamilyPolicy::default(),
        ports: Vec::new(),
        selector: Labels::new(),
        affinity: None,
        scheduler: Scheduler::default(),
        internal_local: false,
        external_local: false,
        health_check_port: None,
        external_ips: Vec::new(),
        external_name: None,
        publish_not_ready: false,
    };
    for (at, key, value) in reader.map(node, path) {
        match key {
            "apiVersion" | "kind" | "metadata" | "spec" | "status" => {}
            _ => reader.unknown(value.line, &at, SERVICE),
        }
    }
    if let Some(notes) = node.at("metadata").and_then(|m| m.at("annotations")) {
        let at = join(path, "metadata.annotations");
        service.scheduler = scheduler(notes, &at, reader);
    }
    let at = join(path, "spec");
    match node.at("spec") {
        Some(spec) => Spec::default().read(spec, &at, service, reader).map(Arc::new),
        None => {
            reader.wrong(
                node.line,
                &at,
                "is missing (a Service needs ports, or type ExternalName)",
            );
            None
        }
    }
}

/// How backends are chosen. podwire's own annotations are its affair as keys are.
fn scheduler(notes: &Node, path: &str, reader: &mut Reader<'_>) -> Scheduler {
    let mut scheduler = Scheduler::default();
    for (at, key, value) in reader.map(notes, path) {
        match key {
            SCHEDULER => {
                let words = [
                    ("random", Scheduler::Random),
                    ("round-robin", Scheduler::RoundRobin),
                    ("least-connections", Scheduler::LeastConnections),
                    ("maglev", Scheduler::Maglev),
                ];
                scheduler = reader.choice(value, &at, &words).unwrap_or_default();
            }
            key if key.starts_with("podwire/") => {
                reader.wrong(
                    value.line,
                    &at,
                    format!("there is no such annotation (there is {SCHEDULER})"),
                );
            }
            _ => {}
        }
    }
    scheduler
}

/// What the keys of a spec say, and where, until all are known.
#[derive(Default)]
struct Spec<'n> {
    cluster_ip: Option<(&'n Node, Option<IpAddr>)>,
    cluster_ips: Option<(&'n Node, Vec<Option<IpAddr>>)>,
    policy: Option<FamilyPolicy>,
    families: Option<&'n Node>,
    affinity: Option<bool>,
    timeout: Option<&'n Node>,
    timeout_s: Option<u32>,
    external: Option<&'n Node>,
    health: Option<&'n Node>,
    ports: Option<&'n Node>,
    alias: Option<&'n Node>,
    ips: Option<&'n Node>,
}

impl<'n> Spec<'n> {
    fn read(
        mut self,
        spec: &'n Node,
        path: &str,
        mut to: Service,
        reader: &mut Reader<'_>,
    ) -> Option<Service> {
        for (at, key, value) in reader.map(spec, path) {
            match key {
                "type" => to.kind = kind(value, &at, reader),
                "clusterIP" => self.cluster_ip = cluster_ip(value, &at, reader).map(|ip| (value, ip)),
                "clusterIPs" => {
                    let mut all = Vec::new();
                    for (at, one) in reader.list(value, &at, 2) {
                        all.extend(cluster_ip(one, &at, reader));
                    }
                    self.cluster_ips = Some((value, all));
                }
                "ipFamilies" => {
                    for (at, one) in reader.list(value, &at, 2) {
                        to.families.extend(reader.choice(one, &at, FAMILIES));
                    }
                    self.families = Some(value);
                }
                "ipFamilyPolicy" => {
                    let words = [
                        ("SingleStack", FamilyPolicy::Single),
                        ("PreferDualStack", FamilyPolicy::PreferDual),
                        ("RequireDualStack", FamilyPolicy::RequireDual),
                    ];
                    self.policy = reader.choice(value, &at, &words);
                }
                "ports" => {
                    for (at, one) in reader.list(value, &at, MAX_PORTS) {
                        to.ports.extend(port(one, &at, reader));
                    }
                    self.ports = Some(value);
                }
                "selector" => to.selector = reader.labels(value, &at),
                "sessionAffinity" => {
                    self.affinity = reader.choice(value, &at, &[("None", false), ("ClientIP", true)]);
                }
                "sessionAffinityConfig" => {
                    self.timeout = Some(value);
                    self.timeout_s = timeout(value, &at, reader);
                }
                "internalTrafficPolicy" => {
                    to.internal_local = reader.choice(value, &at, POLICIES).unwrap_or_default();
                }
                "externalTrafficPolicy" => {
                    to.external_local = reader.choice(value, &at, POLICIES).unwrap_or_default();
                    self.external = Some(value);
                }
                // 0 is what an API server writes for none.
                "healthCheckNodePort" => {
                    let number = reader.take(value, &at, value.number(0, 65_535));
                    to.health_check_port = number.map(|n| n as u16).filter(|n| *n != 0);
                    self.health = Some(value);
                }
                "externalIPs" => {
                    for (at, one) in reader.list(value, &at, MAX_EXTERNAL) {
                        to.external_ips.extend(external_ip(one, &at, reader));
                    }
                    self.ips = Some(value);
                }
                "externalName" => {
                    to.external_name = external_name(value, &at, reader);
                    self.alias = Some(value);
                }
                "publishNotReadyAddresses" => {
                    to.publish_not_ready = reader.switch(value, &at).unwrap_or_default();
                }
                key => match UNSUPPORTED.iter().find(|(k, _)| *k == key) {
                    Some((_, remedy)) => {
                        reader.wrong(value.line, &at, format!("is not supported ({remedy})"))
                    }
                    None => reader.unknown(value.line, &at, SPEC),
                },
            }
        }
        // What follows would be told of what is wrong already.
        if reader.count() > 0 {
            return None;
        }
        self.addresses(&mut to, path, reader);
        self.together(spec, path, &mut to, reader);
        Some(to)
    }

    /// Addresses and families, which have to fit each other.
    fn addresses(&self, to: &mut Service, path: &str, reader: &mut Reader<'_>) {
        to.family_policy = self.policy.unwrap_or_default();
        if let Some(node) = self.families {
            let at = join(path, "ipFamilies");
            if to.families.len() == 2 && to.families[0] == to.families[1] {
                reader.wrong(node.line, &at, "one family stands here twice (leave one out)");
            }
            if to.families.len() == 2 && to.family_policy == FamilyPolicy::Single {
                reader.wrong(
                    node.line,
                    &at,
                    "two need ipFamilyPolicy PreferDualStack or RequireDualStack",
                );
            }
        }
        let mut given = match (&self.cluster_ips, &self.cluster_ip) {
            (Some((_, all)), _) => all.clone(),
            (None, Some((_, one))) => vec![*one],
            (None, None) => Vec::new(),
        };
        let at = join(path, "clusterIPs");
        if let (Some((node, all)), Some((_, one))) = (&self.cluster_ips, &self.cluster_ip)
            && all.first() != Some(one)
        {
            reader.wrong(
                node.line,
                &at,
                "its first is not clusterIP (write the same, or leave one out)",
            );
        }
        let line = [
            &self.cluster_ips.as_ref().map(|c| c.0.line),
            &self.cluster_ip.as_ref().map(|c| c.0.line),
        ];
        let line = line.into_iter().flatten().next().copied().unwrap_or_default();
        if given.contains(&None) {
            if given.len() > 1 {
                reader.wrong(line, &at, "None stands beside an address (leave one out)");
            }
            to.cluster_ips = ClusterIps::None;
            return;
        }
        let given: Vec<IpAddr> = given.drain(..).flatten().collect();
        if given.is_empty() {
            return;
        }
        let families: Vec<Family> = given.iter().map(|ip| Family::of(*ip)).collect();
        if families.len() == 2 && families[0] == families[1] {
            reader.wrong(line, &at, "are of one family (give one of each)");
        }
        if families.len() == 2 && to.family_policy == FamilyPolicy::Single {
            reader.wrong(
                line,
                &at,
                "two need ipFamilyPolicy PreferDualStack or RequireDualStack",
            );
        }
        if to.families.iter().zip(&families).any(|(a, b)| a != b) {
            reader.wrong(
                line,
                &at,
                "do not have the families of ipFamilies, in their order",
            );
        }
        if to.families.len() < families.len() {
            to.families = families;
        }
        to.cluster_ips = ClusterIps::Given(given);
    }

    /// What goes together, and what does not.
    fn together(&self, spec: &Node, path: &str, to: &mut Service, reader: &mut Reader<'_>) {
        let at = |key: &str| join(path, key);
        let timeout = Duration::from_secs(self.timeout_s.map_or(AFFINITY.as_secs(), Into::into));
        to.affinity = (self.affinity == Some(true)).then_some(timeout);
        if let (Some(node), None) = (self.timeout, to.affinity) {
            reader.wrong(
                node.line,
                &at("sessionAffinityConfig"),
                "needs sessionAffinity: ClientIP",
            );
        }
        if to.kind == ServiceType::ExternalName {
            let given = [
                (self.cluster_ip.as_ref().map(|c| c.0), "clusterIP"),
                (self.cluster_ips.as_ref().map(|c| c.0), "clusterIPs"),
                (self.families, "ipFamilies"),
                (self.ips, "externalIPs"),
                (self.external, "externalTrafficPolicy"),
                (self.health, "healthCheckNodePort"),
            ];
            for (node, key) in given {
                if let Some(node) = node {
                    reader.wrong(
                        node.line,
                        &at(key),
                        "does not go with type ExternalName, which is an alias in DNS",
                    );
                }
            }
            if to.external_name.is_none() {
                reader.wrong(
                    spec.line,
                    &at("externalName"),
                    "is missing (type ExternalName leads there)",
                );
            }
            if let (Some(node), Some(_)) = (spec.at("sessionAffinity"), to.affinity) {
                reader.wrong(
                    node.line,
                    &at("sessionAffinity"),
                    "does not go with type ExternalName",
                );
            }
        } else if let Some(node) = self.alias {
            reader.wrong(node.line, &at("externalName"), "needs type: ExternalName");
        }
        if to.is_headless() && to.kind == ServiceType::NodePort {
            reader.wrong(spec.line, &at("clusterIP"), "None does not go with type NodePort");
        }
        if to.ports.is_empty() && to.kind != ServiceType::ExternalName && !to.is_headless() {
            let line = self.ports.map_or(spec.line, |p| p.line);
            reader.wrong(
                line,
                &at("ports"),
                "is missing (name one port at least; only a headless Service has none)",
            );
        }
        let outside = to.kind == ServiceType::NodePort || !to.external_ips.is_empty();
        if let (Some(node), false, true) = (self.external, outside, to.kind != ServiceType::ExternalName) {
            reader.wrong(
                node.line,
                &at("externalTrafficPolicy"),
                "needs type NodePort, or externalIPs",
            );
        }
        if let (Some(node), Some(_), false) = (
            self.health,
            to.health_check_port,
            outside && to.external_local || to.kind == ServiceType::ExternalName,
        ) {
            reader.wrong(
                node.line,
                &at("healthCheckNodePort"),
                "needs externalTrafficPolicy: Local",
            );
        }
        self.ports_together(to, path, reader);
    }

    fn ports_together(&self, to: &Service, path: &str, reader: &mut Reader<'_>) {
        let Some(node) = self.ports else { return };
        let nodes = node.list().unwrap_or_default();
        let (mut names, mut numbers, mut outside) = (HashSet::new(), HashSet::new(), HashSet::new());
        for (n, port) in to.ports.iter().enumerate() {
            let at = |key: &str| format!("{}[{n}].{key}", join(path, "ports"));
            let line = nodes.get(n).map_or(node.line, |p| p.line);
            if to.ports.len() > 1 && port.name.is_empty() {
                reader.wrong(
                    line,
                    &at("name"),
                    "is missing (with several ports each has a name)",
                );
            } else if !names.insert(&port.name) {
                reader.wrong(
                    line,
                    &at("name"),
                    format!("{} is another port's too", quoted(&port.name)),
                );
            }
            if !numbers.insert((port.port, port.transport)) {
                let what = format!("{}/{} is another port's too", port.port, port.transport);
                reader.wrong(line, &at("port"), what);
            }
            if let Some(number) = port.node_port {
                if to.kind != ServiceType::NodePort {
                    reader.wrong(line, &at("nodePort"), "needs type: NodePort");
                }
                if !outside.insert((number, port.transport)) {
                    let what = format!("{number}/{} is another port's too", port.transport);
                    reader.wrong(line, &at("nodePort"), what);
                }
            }
        }
    }
}

fn kind(value: &Node, at: &str, reader: &mut Reader<'_>) -> ServiceType {
    if value.text() == Ok("LoadBalancer") {
        reader.wrong(
            value.line,
            at,
            "LoadBalancer is not supported (use NodePort, with externalIPs for the nodes' addresses)",
        );
        return ServiceType::default();
    }
    let words = [
        ("ClusterIP", ServiceType::ClusterIp),
        ("NodePort", ServiceType::NodePort),
        ("ExternalName", ServiceType::ExternalName),
    ];
    reader.choice(value, at, &words).unwrap_or_default()
}

/// An address, or none for `None`; `Some(None)` is that, `None` a mistake. What is empty counts as not given.
#[allow(clippy::option_option)]
fn cluster_ip(value: &Node, at: &str, reader: &mut Reader<'_>) -> Option<Option<IpAddr>> {
    match value.text() {
        Ok("None") => return Some(None),
        Ok("") => return None,
        _ => {}
    }
    let ip = reader.address(value, at)?;
    match ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        true => {
            reader.wrong(
                value.line,
                at,
                format!("{ip} cannot be a Service's (take one of services.cluster_ip)"),
            );
            None
        }
        false => Some(Some(ip)),
    }
}

fn external_ip(value: &Node, at: &str, reader: &mut Reader<'_>) -> Option<IpAddr> {
    reader.host_address(
        value,
        at,
        "is no address that clients reach (write one of a node)",
    )
}

/// A domain name; the final dot is left out.
fn external_name(value: &Node, at: &str, reader: &mut Reader<'_>) -> Option<String> {
    let name = value.text().and_then(|s| {
        let name = s.strip_suffix('.').unwrap_or(s);
        match name.len() <= 253 && name.split('.').all(is_dns_label) && name.parse::<IpAddr>().is_err() {
            true => Ok(name.to_string()),
            false => Err(format!("{} is no domain name (write db.example.org)", quoted(s))),
        }
    });
    reader.take(value, at, name)
}

/// `{clientIP: {timeoutSeconds: N}}`.
fn timeout(value: &Node, path: &str, reader: &mut Reader<'_>) -> Option<u32> {
    let mut found = None;
    for (at, key, value) in reader.map(value, path) {
        if key != "clientIP" {
            reader.unknown(value.line, &at, &["clientIP"]);
            continue;
        }
        for (at, key, value) in reader.map(value, &at) {
            match key {
                "timeoutSeconds" => found = reader.take(value, &at, value.number(1, 86_400)),
                _ => reader.unknown(value.line, &at, &["timeoutSeconds"]),
            }
        }
    }
    found
}

fn port(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<ServicePort> {
    let (mut number, mut target) = (None, None);
    let mut port = ServicePort {
        name: String::new(),
        transport: Transport::Tcp,
        port: 0,
        target: TargetPort::Number(0),
        node_port: None,
        app_protocol: None,
    };
    for (at, key, value) in reader.map(node, path) {
        match key {
            "name" => port.name = port_label(value, &at, reader).unwrap_or_default(),
            "protocol" => port.transport = reader.choice(value, &at, TRANSPORTS).unwrap_or(Transport::Tcp),
            "port" => number = Some(reader.port(value, &at)?),
            "targetPort" => target = Some(target_port(value, &at, reader)?),
            // 0 is what an API server writes for none.
            "nodePort" => {
                let given = reader.take(value, &at, value.number(0, 65_535))?;
                port.node_port = Some(given as u16).filter(|n| *n != 0);
            }
            "appProtocol" => port.app_protocol = reader.text(value, &at),
            _ => reader.unknown(value.line, &at, PORT),
        }
    }
    let Some(number) = number else {
        reader.wrong(
            node.line,
            &format!("{path}.port"),
            "is missing (give it a number)",
        );
        return None;
    };
    port.port = number;
    port.target = target.unwrap_or(TargetPort::Number(number));
    Some(port)
}

pub(super) fn port_label(value: &Node, at: &str, reader: &mut Reader<'_>) -> Option<String> {
    let name = value.text().and_then(|s| match s.is_empty() || is_dns_label(s) {
        true => Ok(s.to_string()),
        false => Err(format!(
            "{} is no name of a port (lower-case letters, digits and '-', at most 63)",
            quoted(s)
        )),
    });
    reader.take(value, at, name)
}

fn target_port(value: &Node, at: &str, reader: &mut Reader<'_>) -> Option<TargetPort> {
    if let Ok(number) = value.number(1, 65_535) {
        return Some(TargetPort::Number(number as u16));
    }
    let name = value
        .text()
        .ok()
        .filter(|s| is_port_name(s))
        .map(|s| TargetPort::Name(s.into()));
    if name.is_none() {
        let what = "is neither a number (use 1 to 65535) nor the name of a pod's port (at most 15 lower-case letters, \
                    digits and '-')";
        reader.wrong(value.line, at, what);
    }
    name
}
