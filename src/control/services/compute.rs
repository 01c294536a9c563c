//! One Service: what the data path and DNS are to know of it, from what is said of it and what stands behind it.

use super::claims::{Claims, Slot, Thing, Wish};
use super::manifest::{
    ClusterIps, EndpointSlice, Family, FamilyPolicy, Service, ServicePort, ServiceType, TargetPort,
};
use super::pods::{PodFacts, PodId, Pods};
use super::rules::Rules;
use crate::model::{
    Backend, BackendPhase, Frontend, PodName, ServiceHost, ServiceName, ServicePortRecord, ServiceRecords,
    VirtualServer, is_dns_label,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Most names in one sentence.
const MAX_NAMED: usize = 3;

/// A port that clients from outside reach: a node port, or a port of an external address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodePort {
    /// The Service.
    pub service: ServiceName,
    /// Name of its port, empty when it has none.
    pub port: String,
    /// What a [`crate::model::ServiceChange`] is about: at the unspecified address of a family a node port, which every
    /// address of the node has; otherwise the external address.
    pub frontend: Frontend,
}

/// A port at which a node tells whether it has backends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// The Service.
    pub service: ServiceName,
    /// The port of the node.
    pub port: u16,
    /// How many ready backends this node has.
    pub local: usize,
}

/// What follows from one Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Output {
    pub servers: BTreeMap<Frontend, Arc<VirtualServer>>,
    pub records: Option<ServiceRecords>,
    pub node_ports: Vec<NodePort>,
    pub health: Option<HealthCheck>,
    pub problems: Vec<String>,
}

/// Something behind a Service.
#[derive(Clone, Debug)]
pub(super) struct Behind {
    pub at: IpAddr,
    /// None when it gets nothing.
    pub phase: Option<BackendPhase>,
    pub local: bool,
    /// Its name below a headless Service.
    pub host: String,
    /// The pod, or what the slice says it is.
    pub what: String,
    ports: Ports,
}

#[derive(Clone, Debug)]
enum Ports {
    OfPod(PodId, Arc<PodFacts>),
    OfSlice(Arc<EndpointSlice>),
}

impl Behind {
    /// Where a port of the Service leads here.
    pub fn port(&self, port: &ServicePort) -> Option<u16> {
        match (&self.ports, &port.target) {
            (Ports::OfPod(..), TargetPort::Number(number)) => Some(*number),
            (Ports::OfPod(_, pod), TargetPort::Name(name)) => {
                let found = pod
                    .ports
                    .iter()
                    .find(|p| p.name == *name && p.transport == port.transport);
                found.map(|p| p.port)
            }
            (Ports::OfSlice(slice), _) => {
                let fits =
                    |p: &&super::manifest::SlicePort| p.name == port.name && p.transport == port.transport;
                slice.ports.iter().find(fits).map(|p| p.port)
            }
        }
    }
}

/// The families of a Service, and why there are none.
///
/// # Errors
/// The sentence.
pub(super) fn families(service: &Service, rules: &Rules) -> Result<Vec<Family>, String> {
    let there = rules.families();
    let mut families = service.families.clone();
    if families.is_empty() {
        // What stands behind a headless Service without pods is of whatever family the slices are.
        let any = service.is_headless() && service.selector.is_empty();
        families.extend(there.first().filter(|_| !any));
        if any {
            families = vec![Family::V4, Family::V6];
        }
    }
    let missing =
        |f: &Family| format!("the cluster has no {f} addresses for Services (see services.cluster_ip)");
    if service.family_policy != FamilyPolicy::Single && families.len() < 2 {
        let other = match families.first() {
            Some(Family::V4) => Family::V6,
            _ => Family::V4,
        };
        match there.contains(&other) {
            true => families.push(other),
            false if service.family_policy == FamilyPolicy::RequireDual => return Err(missing(&other)),
            false => {}
        }
    }
    match families
        .iter()
        .find(|f| !service.is_headless() && !there.contains(f))
    {
        Some(f) if service.family_policy == FamilyPolicy::PreferDual && families.len() == 2 => {
            let f = *f;
            families.retain(|have| *have != f);
            Ok(families)
        }
        Some(f) => Err(missing(f)),
        None if families.is_empty() => Err(missing(&Family::V4)),
        None => Ok(families),
    }
}

/// What a Service wants of what there is one of; what it cannot have by the rules is left out, and told in `problems`.
pub(super) fn wishes(service: &Service, rules: &Rules) -> Vec<(Slot, Wish)> {
    let mut wishes = Vec::new();
    if service.kind == ServiceType::ExternalName || service.is_headless() {
        return wishes;
    }
    let Ok(families) = families(service, rules) else {
        return wishes;
    };
    let given = match &service.cluster_ips {
        ClusterIps::Given(given) => given.as_slice(),
        _ => &[],
    };
    if given.iter().any(|ip| rules.check_virtual(*ip).is_err()) {
        return wishes;
    }
    for family in &families {
        let own = given.iter().find(|ip| Family::of(**ip) == *family);
        let wish = own.map_or(Wish::Address(*family), |ip| Wish::Given(Thing::Address(*ip)));
        wishes.push((Slot::Address(*family), wish));
    }
    for (n, port) in service.ports.iter().enumerate() {
        let n = n as u16;
        if service.kind == ServiceType::NodePort {
            match port.node_port {
                None => wishes.push((Slot::Port(n), Wish::Port(port.port, port.transport))),
                Some(number) if rules.node_ports.contains(&number) => {
                    wishes.push((Slot::Port(n), Wish::Given(Thing::Port(number, port.transport))));
                }
                Some(_) => {}
            }
        }
        for (m, ip) in service.external_ips.iter().enumerate() {
            if check_external(*ip, rules).is_ok() {
                let thing = Thing::Outside(SocketAddr::new(*ip, port.port), port.transport);
                wishes.push((Slot::Outside(m as u16, n), Wish::Given(thing)));
            }
        }
    }
    if let Some(port) = service.health_check_port
        && rules.node_ports.contains(&port)
    {
        let thing = Thing::Port(port, crate::model::Transport::Tcp);
        wishes.push((Slot::Health, Wish::Given(thing)));
    }
    wishes
}

fn check_external(ip: IpAddr, rules: &Rules) -> Result<(), String> {
    match rules.is_virtual(ip) {
        true => Err(format!(
            "{ip} is one of services.cluster_ip (write an address of a node)"
        )),
        false => rules.check_foreign(ip),
    }
}

/// What the computation looks into.
pub(super) struct World<'w> {
    pub rules: &'w Rules,
    pub claims: &'w Claims,
    pub pods: &'w Pods,
    /// External addresses, and the Services that have ports of them.
    pub external: &'w HashMap<IpAddr, BTreeSet<ServiceName>>,
}

impl World<'_> {
    /// What stands behind a Service, each address once, in the order of the addresses; and what is wrong with the rest.
    pub fn behind(
        &self,
        service: &Service,
        pods: impl Iterator<Item = PodId>,
        slices: &[Arc<EndpointSlice>],
        problems: &mut Vec<String>,
    ) -> Vec<Behind> {
        let mut all: BTreeMap<IpAddr, Behind> = BTreeMap::new();
        for pod in pods {
            let Some(facts) = self.pods.get(&pod) else {
                continue;
            };
            let state = facts.state;
            let phase = match (state.ready, state.draining) {
                _ if service.publish_not_ready => Some(BackendPhase::Ready),
                (true, false) => Some(BackendPhase::Ready),
                (true, true) => Some(BackendPhase::Draining),
                (false, _) => None,
            };
            for at in facts.addresses() {
                let behind = Behind {
                    at,
                    phase,
                    local: facts.node == self.rules.node,
                    host: host(Some(&pod.name.name), at),
                    what: pod.name.to_string(),
                    ports: Ports::OfPod(pod.clone(), facts.clone()),
                };
                put(&mut all, behind);
            }
        }
        for slice in slices {
            let name = format!("EndpointSlice {}/{}", slice.namespace, slice.name);
            for endpoint in &slice.endpoints {
                let at = endpoint.at;
                if let Err(why) = self.check_endpoint(service, at) {
                    problems.push(format!("{name}: {why}: it is left out"));
                    continue;
                }
                let phase = match (endpoint.ready && !endpoint.terminating, endpoint.serving) {
                    _ if service.publish_not_ready => Some(BackendPhase::Ready),
                    (true, _) => Some(BackendPhase::Ready),
                    (false, true) if endpoint.terminating => Some(BackendPhase::Draining),
                    _ => None,
                };
                // What a slice says of nodes proves nothing: answers find back by where the address is.
                let local = self.is_own(at);
                if let Some(node) = &endpoint.node
                    && (*node == self.rules.node) != local
                {
                    let is = if local { "is" } else { "is not" };
                    problems.push(format!(
                        "{name}: nodeName of {at} is {node}, but the address {is} of this node's subnet, and that counts \
                         (write the node that has it, or leave nodeName out)"
                    ));
                }
                let pod = self.pods.at(at).map(|id| id.name.to_string());
                let behind = Behind {
                    at,
                    phase,
                    local,
                    host: host(endpoint.hostname.as_deref(), at),
                    what: pod.or_else(|| endpoint.target.clone()).unwrap_or_default(),
                    ports: Ports::OfSlice(slice.clone()),
                };
                let beside = put(&mut all, behind).map(|other| other.ports);
                if let Some(Ports::OfSlice(other)) = beside.filter(|_| !service.ports.is_empty())
                    && other.ports != slice.ports
                {
                    problems.push(format!(
                        "{name}: {at} stands in EndpointSlice {}/{} too, with other ports: only those of one count (put \
                         all ports of an address into one slice)",
                        other.namespace, other.name
                    ));
                }
            }
        }
        all.into_values().collect()
    }

    fn check_endpoint(&self, service: &Service, at: IpAddr) -> Result<(), String> {
        if self.rules.is_virtual(at) {
            return Err(format!(
                "{at} is a Service's own address, which cannot stand behind another"
            ));
        }
        // Of a headless Service it is a name's address only, and clients go there by themselves.
        let external = self.external.get(&at).and_then(BTreeSet::first);
        if let Some(other) = external.filter(|_| !service.is_headless()) {
            return Err(format!(
                "{at} is an external address of {other}, which cannot stand behind a Service"
            ));
        }
        match self.is_own(at) && self.pods.at(at).is_none() {
            true => Err(format!("no pod of this node has {at}")),
            false => Ok(()),
        }
    }

    fn is_own(&self, at: IpAddr) -> bool {
        self.rules.own.iter().any(|n| n.contains(&at))
    }

    /// All that follows from a Service.
    pub fn compute(&self, service: &Service, behind: &[Behind], mut problems: Vec<String>) -> Output {
        let mut output = Output::default();
        if service.kind == ServiceType::ExternalName {
            output.records = Some(ServiceRecords {
                alias: service.external_name.clone(),
                ..ServiceRecords::default()
            });
            output.problems = problems;
            return output;
        }
        let families = match families(service, self.rules) {
            Ok(families) => families,
            Err(why) => {
                problems.push(format!("it is not in force: {why}"));
                output.problems = problems;
                return output;
            }
        };
        self.nameless(service, behind, &mut problems);
        if service.is_headless() {
            output.records = Some(headless(service, behind, &families));
            output.problems = problems;
            return output;
        }
        match self.virtual_addresses(service, &families) {
            Ok(addresses) => {
                self.serve(service, &addresses, &families, behind, &mut output, &mut problems);
            }
            Err(why) => problems.push(format!("it is not in force: {why}")),
        }
        output.problems = problems;
        output
    }

    fn virtual_addresses(&self, service: &Service, families: &[Family]) -> Result<Vec<IpAddr>, String> {
        if let ClusterIps::Given(given) = &service.cluster_ips {
            for ip in given {
                self.rules.check_virtual(*ip)?;
                let holder = self.claims.holder(Thing::Address(*ip));
                if let Some(other) = holder.filter(|h| **h != service.name) {
                    return Err(format!(
                        "{ip} is the address of {other} (take another, or leave it out)"
                    ));
                }
            }
        }
        let address = |family: &Family| match self.claims.has(&service.name, Slot::Address(*family)) {
            Some(Thing::Address(ip)) => Ok(ip),
            _ => Err(format!(
                "no {family} address is free (make services.cluster_ip larger, or give one by clusterIP)"
            )),
        };
        families.iter().map(address).collect()
    }

    /// The servers of a Service that has addresses.
    fn serve(
        &self,
        service: &Service,
        addresses: &[IpAddr],
        families: &[Family],
        behind: &[Behind],
        output: &mut Output,
        problems: &mut Vec<String>,
    ) {
        let name = &service.name;
        for (n, port) in service.ports.iter().enumerate() {
            let n = n as u16;
            for family in families {
                let inside = Arc::new(server(service, port, *family, behind, false));
                let outside = Arc::new(server(service, port, *family, behind, true));
                let mut put = |at: IpAddr, number: u16, server: &Arc<VirtualServer>| {
                    let frontend = Frontend {
                        at: SocketAddr::new(at, number),
                        transport: port.transport,
                    };
                    output.servers.insert(frontend, server.clone());
                    frontend
                };
                for ip in addresses.iter().filter(|ip| Family::of(**ip) == *family) {
                    put(*ip, port.port, &inside);
                }
                let mut open = Vec::new();
                if let Some(Thing::Port(number, _)) = self.claims.has(name, Slot::Port(n)) {
                    let any: IpAddr = match family {
                        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
                    };
                    open.push(put(any, number, &outside));
                }
                let external = service.external_ips.iter().enumerate();
                for (m, ip) in external.filter(|(_, ip)| Family::of(**ip) == *family) {
                    if self.claims.has(name, Slot::Outside(m as u16, n)).is_some() {
                        open.push(put(*ip, port.port, &outside));
                    }
                }
                output
                    .node_ports
                    .extend(open.into_iter().map(|frontend| NodePort {
                        service: name.clone(),
                        port: port.name.clone(),
                        frontend,
                    }));
            }
        }
        output.node_ports.sort_by_key(|p| p.frontend);
        self.refused(service, families, problems);
        if let Some(Thing::Port(port, _)) = self.claims.has(name, Slot::Health) {
            // A pod of two families is one.
            let first = families.first();
            let ready = |b: &&Behind| {
                b.local && b.phase == Some(BackendPhase::Ready) && first == Some(&Family::of(b.at))
            };
            output.health = Some(HealthCheck {
                service: name.clone(),
                port,
                local: behind.iter().filter(ready).count(),
            });
        }
        let named = service.ports.iter().filter(|p| !p.name.is_empty());
        output.records = Some(ServiceRecords {
            addresses: addresses.to_vec(),
            ports: named.map(|p| record(p, p.port)).collect(),
            ..ServiceRecords::default()
        });
    }

    /// What it cannot have, while the rest goes on.
    fn refused(&self, service: &Service, families: &[Family], problems: &mut Vec<String>) {
        let (name, rules) = (&service.name, self.rules);
        let range = || format!("{}-{}", rules.node_ports.start(), rules.node_ports.end());
        let node_port = |number: u16| match rules.node_ports.contains(&number) {
            true => match self
                .claims
                .holder(Thing::Port(number, crate::model::Transport::Tcp))
            {
                Some(other) => format!("is one of {other} (take another, or leave it out)"),
                None => "is another's (take another, or leave it out)".into(),
            },
            false => format!(
                "is not within services.node_port_range, which is {} (take another)",
                range()
            ),
        };
        for (n, port) in service.ports.iter().enumerate() {
            let n = n as u16;
            if service.kind == ServiceType::NodePort && self.claims.has(name, Slot::Port(n)).is_none() {
                problems.push(match port.node_port {
                    Some(number) if rules.node_ports.contains(&number) => {
                        let holder = self.claims.holder(Thing::Port(number, port.transport));
                        let whose = holder.map_or("another".into(), ToString::to_string);
                        format!(
                            "node port {number}/{} is one of {whose} (take another, or leave it out); the rest goes on",
                            port.transport
                        )
                    }
                    Some(number) => format!("node port {number} {}; the rest goes on", node_port(number)),
                    None => format!("no node port of {} is free (make services.node_port_range larger)", range()),
                });
            }
            for (m, ip) in service.external_ips.iter().enumerate() {
                if self.claims.has(name, Slot::Outside(m as u16, n)).is_none() {
                    let thing = Thing::Outside(SocketAddr::new(*ip, port.port), port.transport);
                    let holder = self.claims.holder(thing);
                    let why = match (check_external(*ip, rules), holder) {
                        (Err(why), _) => why,
                        (Ok(()), Some(other)) => {
                            format!("port {} at {ip} is one of {other} (take another)", port.port)
                        }
                        (Ok(()), None) => format!("{ip} cannot be had"),
                    };
                    problems.push(format!("externalIPs: {why}; the rest goes on"));
                }
            }
        }
        for ip in &service.external_ips {
            if !families.contains(&Family::of(*ip)) {
                problems.push(format!(
                    "externalIPs: {ip} is not of the Service's family (set ipFamilyPolicy: PreferDualStack); the rest goes on"
                ));
            }
        }
        if let (Some(port), None) = (service.health_check_port, self.claims.has(name, Slot::Health)) {
            problems.push(format!(
                "healthCheckNodePort {port} {}; the rest goes on",
                node_port(port)
            ));
        }
    }

    /// Pods that have no port of the name a Service asks for.
    fn nameless(&self, service: &Service, behind: &[Behind], problems: &mut Vec<String>) {
        for port in &service.ports {
            let TargetPort::Name(target) = &port.target else {
                continue;
            };
            let mut without: Vec<&PodName> = behind
                .iter()
                .filter_map(|b| match &b.ports {
                    Ports::OfPod(pod, _) if b.port(port).is_none() => Some(&pod.name),
                    _ => None,
                })
                .collect();
            without.dedup();
            without.sort();
            without.dedup();
            if let Some(first) = without.first() {
                let named: Vec<String> = without.iter().take(MAX_NAMED).map(ToString::to_string).collect();
                let more = match without.len().saturating_sub(MAX_NAMED) {
                    0 => String::new(),
                    n => format!(" and {n} more"),
                };
                problems.push(format!(
                    "{}{more} have no {} port named {target}, and are left out there (attach them with --container-port \
                     {target}:PORT, as {first})",
                    named.join(", "),
                    port.transport
                ));
            }
        }
    }
}

/// One server: what stands behind a port, of one family.
fn server(
    service: &Service,
    port: &ServicePort,
    family: Family,
    behind: &[Behind],
    at_host: bool,
) -> VirtualServer {
    let of_family = behind.iter().filter(|b| Family::of(b.at) == family);
    let backends = of_family.filter_map(|b| {
        Some(Backend {
            at: SocketAddr::new(b.at, b.port(port)?),
            phase: b.phase?,
            local: b.local,
        })
    });
    VirtualServer {
        service: service.name.clone(),
        port: port.name.clone(),
        scheduler: service.scheduler,
        affinity: service.affinity,
        local_only: match at_host {
            true => service.external_local,
            false => service.internal_local,
        },
        at_host,
        backends: backends.collect(),
    }
}

/// The names of what stands behind a headless Service.
fn headless(service: &Service, behind: &[Behind], families: &[Family]) -> ServiceRecords {
    let there = behind
        .iter()
        .filter(|b| b.phase == Some(BackendPhase::Ready) && families.contains(&Family::of(b.at)));
    let named = || service.ports.iter().filter(|p| !p.name.is_empty());
    let hosts: Vec<ServiceHost> = there
        .map(|b| ServiceHost {
            name: b.host.clone(),
            at: b.at,
            ports: named().filter_map(|p| Some(record(p, b.port(p)?))).collect(),
        })
        .collect();
    ServiceRecords {
        addresses: hosts.iter().map(|h| h.at).collect(),
        hosts,
        ..ServiceRecords::default()
    }
}

fn record(port: &ServicePort, number: u16) -> ServicePortRecord {
    ServicePortRecord {
        name: port.name.clone(),
        transport: port.transport,
        port: number,
    }
}

/// The name of something behind a headless Service: its own, or its address, as others have it.
fn host(name: Option<&str>, at: IpAddr) -> String {
    match name.filter(|n| is_dns_label(n)) {
        Some(name) => name.into(),
        None => at
            .to_string()
            .replace("::", "-0-")
            .replace(['.', ':'], "-")
            .trim_matches('-')
            .into(),
    }
}

/// Of two at one address the better one counts; the other one, if there are two.
fn put(all: &mut BTreeMap<IpAddr, Behind>, new: Behind) -> Option<Behind> {
    let rank = |b: &Behind| match b.phase {
        Some(BackendPhase::Ready) => 0,
        Some(BackendPhase::Draining) => 1,
        None => 2,
    };
    match all.get(&new.at) {
        Some(there) if rank(there) <= rank(&new) => Some(there.clone()),
        _ => all.insert(new.at, new),
    }
}
