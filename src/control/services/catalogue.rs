//! All Services and pods together, and what follows from each change of them.

use super::claims::{Claims, Slot, Thing, Wish};
use super::compute::{Behind, HealthCheck, NodePort, Output, World, families, wishes};
use super::manifest::{
    ClusterIps, EndpointSlice, Family, Object, ObjectKey, Service, ServiceType, Source, TargetPort,
};
use super::pods::{PodFacts, PodId, Pods, Selectors};
use super::rules::Rules;
use crate::model::{
    BackendPhase, EndpointInfo, Frontend, ServiceChange, ServiceInfo, ServiceName, ServicePortInfo,
    ServiceRecords, VirtualServer,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Most Services, and most EndpointSlices: more are refused, and named.
pub const MAX_OBJECTS: usize = 1 << 15;

/// What is to be told after changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// For the data path.
    pub services: Vec<ServiceChange>,
    /// For DNS: the names of these Services are these now, or none.
    pub names: Vec<(ServiceName, Option<ServiceRecords>)>,
    /// Whether [`Catalogue::node_ports`] or [`Catalogue::health_checks`] are others now.
    pub outside: bool,
}

impl Update {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.names.is_empty() && !self.outside
    }
}

/// What a Service would better say itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pins {
    /// Its addresses; none when it gives one, or has none.
    pub addresses: Vec<IpAddr>,
    /// The node port of each of its ports that has none of its own.
    pub node_ports: Vec<Option<u16>>,
}

/// What Services of one manifest are given, so that no two get the same.
#[derive(Default)]
pub struct Taken(HashSet<Thing>);

/// An object as one source has it.
#[derive(Clone, Debug)]
struct Stated<T> {
    what: Arc<T>,
    document: usize,
}

/// What is known of one Service.
#[derive(Default)]
struct Entry {
    /// By source; the first counts.
    stated: BTreeMap<Source, Stated<Service>>,
    /// The slices that are about it.
    slices: BTreeSet<SliceName>,
    /// The pods it selects.
    pods: BTreeSet<PodId>,
    output: Output,
}

type SliceName = (String, String);

/// Services and pods, and what follows from them. Inputs are told by [`Catalogue::set_source`] and
/// [`Catalogue::set_pod`], what follows is taken by [`Catalogue::update`].
pub struct Catalogue {
    rules: Rules,
    services: BTreeMap<ServiceName, Entry>,
    slices: BTreeMap<SliceName, BTreeMap<Source, Stated<EndpointSlice>>>,
    /// What each source states.
    sources: BTreeMap<Source, BTreeMap<ObjectKey, (Object, usize)>>,
    /// What there is no room for.
    excess: BTreeSet<(Source, ObjectKey)>,
    pods: Pods,
    selectors: Selectors,
    claims: Claims,
    /// External addresses, and the Services that have ports of them.
    external: HashMap<IpAddr, BTreeSet<ServiceName>>,
    /// Who has an endpoint at an address that may be a pod's of this node, or a Service's external one.
    waits_for: HashMap<IpAddr, BTreeSet<ServiceName>>,
    dirty: BTreeSet<ServiceName>,
    troubled: BTreeSet<ServiceName>,
    outside: BTreeSet<ServiceName>,
}

impl Catalogue {
    /// One without Services and pods.
    pub fn new(rules: Rules) -> Catalogue {
        Catalogue {
            claims: Claims::new(&rules),
            external: HashMap::new(),
            rules,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            sources: BTreeMap::new(),
            excess: BTreeSet::new(),
            pods: Pods::default(),
            selectors: Selectors::default(),
            waits_for: HashMap::new(),
            dirty: BTreeSet::new(),
            troubled: BTreeSet::new(),
            outside: BTreeSet::new(),
        }
    }

    /// A source states these objects now, each with the number of its document, and nothing else.
    pub fn set_source(&mut self, source: &Source, objects: impl IntoIterator<Item = (Object, usize)>) {
        let mut after: BTreeMap<ObjectKey, (Object, usize)> = BTreeMap::new();
        for (object, document) in objects {
            after.entry(object.key()).or_insert((object, document));
        }
        let before = self.sources.remove(source).unwrap_or_default();
        for (key, (object, _)) in &before {
            if !after.contains_key(key) {
                self.unstate(source, key, object);
            }
        }
        for (key, (object, document)) in &after {
            if before.get(key).is_none_or(|(o, d)| o != object || d != document) {
                self.state(source, key, object, *document);
            }
        }
        if !after.is_empty() {
            self.sources.insert(source.clone(), after);
        }
    }

    /// The sources there are.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.sources.keys()
    }

    /// A pod came, is another, or went.
    pub fn set_pod(&mut self, pod: &PodId, facts: Option<PodFacts>) {
        if self.pods.get(pod).map(|p| p.as_ref()) == facts.as_ref() {
            return;
        }
        let after = match &facts {
            Some(facts) => self.selectors.of(&pod.name.namespace, &facts.labels),
            None => BTreeSet::new(),
        };
        let here: Vec<IpAddr> = facts.iter().flat_map(PodFacts::addresses).collect();
        let was = self.pods.set(pod, facts);
        let before = match &was {
            Some(was) => self.selectors.of(&pod.name.namespace, &was.labels),
            None => BTreeSet::new(),
        };
        for service in before.difference(&after) {
            if let Some(entry) = self.services.get_mut(service) {
                entry.pods.remove(pod);
            }
        }
        for service in &after {
            if let Some(entry) = self.services.get_mut(service) {
                entry.pods.insert(pod.clone());
            }
        }
        self.dirty.extend(before);
        self.dirty.extend(after);
        for ip in was.iter().flat_map(|w| w.addresses()).chain(here) {
            self.tell_waiting(ip);
        }
    }

    /// Something else is to be said of an address: who has an endpoint there is computed anew.
    fn tell_waiting(&mut self, ip: IpAddr) {
        self.dirty
            .extend(self.waits_for.get(&ip).into_iter().flatten().cloned());
    }

    /// What follows from all that was told since the last time. Whoever applies all of them, in order, knows what one
    /// knows who is told everything at once.
    pub fn update(&mut self) -> Update {
        let mut update = Update::default();
        let mut servers: BTreeMap<Frontend, Option<Arc<VirtualServer>>> = BTreeMap::new();
        loop {
            self.dirty.extend(self.claims.take_moved());
            let Some(name) = self.dirty.pop_first() else {
                if self.excess.is_empty() || !self.take_up() {
                    break;
                }
                continue;
            };
            self.refresh(&name, &mut servers, &mut update);
        }
        let change = |(frontend, server)| match server {
            Some(server) => ServiceChange::Set(frontend, server),
            None => ServiceChange::Gone(frontend),
        };
        update.services = servers.into_iter().map(change).collect();
        update
    }

    /// Take up what there was no room for; whether anything was.
    fn take_up(&mut self) -> bool {
        let waiting = std::mem::take(&mut self.excess);
        for (source, key) in &waiting {
            let stated = self.sources.get(source).and_then(|all| all.get(key)).cloned();
            if let Some((object, document)) = stated {
                self.state(source, key, &object, document);
            }
        }
        self.excess.len() < waiting.len()
    }

    /// Compute one Service anew, and note what is different.
    fn refresh(
        &mut self,
        name: &ServiceName,
        servers: &mut BTreeMap<Frontend, Option<Arc<VirtualServer>>>,
        update: &mut Update,
    ) {
        let Some(mut entry) = self.services.remove(name) else {
            return;
        };
        let next = self.compute(&entry);
        for frontend in entry.output.servers.keys() {
            if !next.servers.contains_key(frontend) {
                // Another Service may have it already.
                servers.entry(*frontend).or_insert(None);
            }
        }
        let mut output = next;
        for (frontend, server) in &mut output.servers {
            match entry.output.servers.get(frontend) {
                Some(before) if before == server => *server = before.clone(),
                _ => drop(servers.insert(*frontend, Some(server.clone()))),
            }
        }
        if output.records != entry.output.records {
            update.names.push((name.clone(), output.records.clone()));
        }
        let (before, after) = (&entry.output, &output);
        update.outside |= before.node_ports != after.node_ports || before.health != after.health;
        keep(
            &mut self.outside,
            name,
            !output.node_ports.is_empty() || output.health.is_some(),
        );
        keep(&mut self.troubled, name, !output.problems.is_empty());
        entry.output = output;
        if !entry.stated.is_empty() || !entry.slices.is_empty() {
            self.services.insert(name.clone(), entry);
        }
    }

    fn compute(&self, entry: &Entry) -> Output {
        let mut problems = Vec::new();
        let slices = self.slices_of(entry);
        let Some((source, stated)) = entry.stated.first_key_value() else {
            let named = slices.iter().map(|s| format!("{}/{}", s.namespace, s.name));
            let named: Vec<String> = named.take(3).collect();
            return Output {
                problems: match named.is_empty() {
                    true => Vec::new(),
                    false => vec![format!(
                        "there is no such Service, which the EndpointSlices {} are about (apply it, or delete them)",
                        named.join(", ")
                    )],
                },
                ..Output::default()
            };
        };
        let service = &stated.what;
        for other in entry.stated.keys().skip(1) {
            problems.push(format!(
                "it stands in {source} and in {other}: the first counts (delete one)"
            ));
        }
        self.check_slices(entry, service, &mut problems);
        let world = self.world();
        let used = if service.selector.is_empty() {
            slices
        } else {
            Vec::new()
        };
        let behind = world.behind(service, entry.pods.iter().cloned(), &used, &mut problems);
        world.compute(service, &behind, problems)
    }

    fn check_slices(&self, entry: &Entry, service: &Service, problems: &mut Vec<String>) {
        for name in &entry.slices {
            let Some(stated) = self.slices.get(name) else {
                continue;
            };
            let (namespace, slice) = name;
            let mut sources = stated.keys();
            if let (Some(first), Some(second)) = (sources.next(), sources.next()) {
                problems.push(format!(
                    "EndpointSlice {namespace}/{slice} stands in {first} and in {second}: the first counts (delete one)"
                ));
            }
            if service.kind == ServiceType::ExternalName {
                problems.push(format!(
                    "EndpointSlice {namespace}/{slice} is not used, as the Service is an alias in DNS (delete one)"
                ));
            } else if !service.selector.is_empty() {
                problems.push(format!(
                    "EndpointSlice {namespace}/{slice} is not used, as the Service selects pods (delete it, or the selector)"
                ));
            } else if let Some((_, first)) = stated.first_key_value() {
                let fits = |p: &super::manifest::SlicePort| {
                    service
                        .ports
                        .iter()
                        .any(|s| s.name == p.name && s.transport == p.transport)
                };
                let odd = first
                    .what
                    .ports
                    .iter()
                    .find(|p| !fits(p) && !service.ports.is_empty());
                if let Some(odd) = odd {
                    problems.push(format!(
                        "EndpointSlice {namespace}/{slice} has a port {:?} of {}, which the Service does not have",
                        odd.name, odd.transport
                    ));
                }
            }
        }
    }

    fn world(&self) -> World<'_> {
        World {
            rules: &self.rules,
            claims: &self.claims,
            pods: &self.pods,
            external: &self.external,
        }
    }

    fn slices_of(&self, entry: &Entry) -> Vec<Arc<EndpointSlice>> {
        let stated = entry
            .slices
            .iter()
            .filter_map(|name| self.slices.get(name)?.first_key_value());
        stated.map(|(_, s)| s.what.clone()).collect()
    }

    fn state(&mut self, source: &Source, key: &ObjectKey, object: &Object, document: usize) {
        let excess = match object {
            Object::Service(s) => self.services.len() >= MAX_OBJECTS && !self.services.contains_key(&s.name),
            Object::Slice(s) => {
                let name = (s.namespace.clone(), s.name.clone());
                self.slices.len() >= MAX_OBJECTS && !self.slices.contains_key(&name)
            }
        };
        if excess {
            self.excess.insert((source.clone(), key.clone()));
            return;
        }
        match object {
            Object::Service(service) => {
                let entry = self.services.entry(service.name.clone()).or_default();
                let stated = Stated {
                    what: service.clone(),
                    document,
                };
                entry.stated.insert(source.clone(), stated);
                self.restate(&service.name);
            }
            Object::Slice(slice) => {
                let name = (slice.namespace.clone(), slice.name.clone());
                let before = self.slice_in_force(&name);
                let stated = Stated {
                    what: slice.clone(),
                    document,
                };
                self.slices
                    .entry(name.clone())
                    .or_default()
                    .insert(source.clone(), stated);
                self.rebind(&name, before);
            }
        }
    }

    fn unstate(&mut self, source: &Source, key: &ObjectKey, object: &Object) {
        if self.excess.remove(&(source.clone(), key.clone())) {
            return;
        }
        match object {
            Object::Service(service) => {
                if let Some(entry) = self.services.get_mut(&service.name) {
                    entry.stated.remove(source);
                    self.restate(&service.name);
                }
            }
            Object::Slice(slice) => {
                let name = (slice.namespace.clone(), slice.name.clone());
                let before = self.slice_in_force(&name);
                if let Some(stated) = self.slices.get_mut(&name) {
                    stated.remove(source);
                    if stated.is_empty() {
                        self.slices.remove(&name);
                    }
                }
                self.rebind(&name, before);
            }
        }
    }

    /// What is said of a Service may be another now.
    fn restate(&mut self, name: &ServiceName) {
        self.dirty.insert(name.clone());
        let Some(entry) = self.services.get_mut(name) else {
            return;
        };
        let service = entry.stated.first_key_value().map(|(_, s)| s.what.clone());
        let selector = service
            .as_ref()
            .filter(|s| s.kind != ServiceType::ExternalName)
            .map(|s| &s.selector);
        self.selectors.set(name, selector);
        entry.pods = match selector {
            Some(selector) => self.pods.select(&name.namespace, selector),
            None => BTreeSet::new(),
        };
        let wishes = service.map(|s| wishes(&s, &self.rules)).unwrap_or_default();
        let before = self.claims.external(name);
        self.claims.want(name, wishes);
        let after = self.claims.external(name);
        for ip in before.symmetric_difference(&after) {
            let all = self.external.entry(*ip).or_default();
            keep(all, name, after.contains(ip));
            if all.is_empty() {
                self.external.remove(ip);
            }
            self.tell_waiting(*ip);
        }
    }

    fn slice_in_force(&self, name: &SliceName) -> Option<Arc<EndpointSlice>> {
        let (_, stated) = self.slices.get(name)?.first_key_value()?;
        Some(stated.what.clone())
    }

    /// A slice may be about another Service now, or have other endpoints.
    fn rebind(&mut self, name: &SliceName, before: Option<Arc<EndpointSlice>>) {
        let after = self.slice_in_force(name);
        let of = |s: &Option<Arc<EndpointSlice>>| s.as_ref().map(|s| s.service.clone());
        if let Some(service) = of(&before) {
            if let Some(entry) = self.services.get_mut(&service) {
                entry.slices.remove(name);
            }
            self.await_endpoints(&service, before.as_deref(), false);
            self.dirty.insert(service);
        }
        if let Some(service) = of(&after) {
            let entry = self.services.entry(service.clone()).or_default();
            entry.slices.insert(name.clone());
            self.await_endpoints(&service, after.as_deref(), true);
            self.dirty.insert(service.clone());
        }
        // Others of its slices may have the same addresses.
        if let Some(service) = of(&before) {
            let entry = self.services.get(&service);
            let others: Vec<_> = entry.map(|e| self.slices_of(e)).unwrap_or_default();
            for slice in others {
                self.await_endpoints(&service, Some(&slice), true);
            }
        }
    }

    fn await_endpoints(&mut self, service: &ServiceName, slice: Option<&EndpointSlice>, wait: bool) {
        let here = |ip: &IpAddr| {
            let holds = |nets: &[ipnet::IpNet]| nets.iter().any(|n| n.contains(ip));
            // Pods of other nodes are neither.
            holds(&self.rules.own) || !holds(&self.rules.network)
        };
        let addresses = slice.into_iter().flat_map(|s| s.endpoints.iter().map(|e| e.at));
        for ip in addresses.filter(here).collect::<Vec<_>>() {
            let all = self.waits_for.entry(ip).or_default();
            match wait {
                true => drop(all.insert(service.clone())),
                false => drop(all.remove(service)),
            }
            if all.is_empty() {
                self.waits_for.remove(&ip);
            }
        }
    }

    /// Everything the data path is to know, as one step from nothing.
    pub fn whole(&self) -> Vec<ServiceChange> {
        let all = self.services.values().flat_map(|e| &e.output.servers);
        all.map(|(frontend, server)| ServiceChange::Set(*frontend, server.clone()))
            .collect()
    }

    /// The names of all Services.
    pub fn names(&self) -> impl Iterator<Item = (&ServiceName, &ServiceRecords)> {
        self.services
            .iter()
            .filter_map(|(name, e)| Some((name, e.output.records.as_ref()?)))
    }

    /// Ports that clients from outside reach.
    pub fn node_ports(&self) -> impl Iterator<Item = &NodePort> {
        let entries = self.outside.iter().filter_map(|name| self.services.get(name));
        entries.flat_map(|e| &e.output.node_ports)
    }

    /// Ports where the node tells whether it has backends.
    pub fn health_checks(&self) -> impl Iterator<Item = &HealthCheck> {
        let entries = self.outside.iter().filter_map(|name| self.services.get(name));
        entries.filter_map(|e| e.output.health.as_ref())
    }

    /// What a person should look at, by Service.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        let of = self
            .troubled
            .iter()
            .filter_map(|name| Some((name, self.services.get(name)?)));
        let of = of.flat_map(|(name, e)| {
            e.output
                .problems
                .iter()
                .map(move |p| format!("Service {name}: {p}"))
        });
        let excess = self.excess.iter().map(|(source, key)| {
            format!("{key} of {source} is not used: there are {MAX_OBJECTS} already (delete some)")
        });
        of.chain(excess)
    }

    /// The frontends of a Service.
    pub fn frontends(&self, name: &ServiceName) -> impl Iterator<Item = Frontend> {
        let entry = self.services.get(name).into_iter();
        entry.flat_map(|e| e.output.servers.keys().copied())
    }

    /// How many Services there are.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// All Services, for people.
    pub fn list(&self) -> Vec<ServiceInfo> {
        self.services
            .keys()
            .filter_map(|name| self.describe(name))
            .collect()
    }

    /// One Service, for people.
    pub fn describe(&self, name: &ServiceName) -> Option<ServiceInfo> {
        let entry = self.services.get(name)?;
        let problems = entry.output.problems.clone();
        let Some((source, stated)) = entry.stated.first_key_value() else {
            return Some(ServiceInfo {
                name: name.clone(),
                kind: "missing".into(),
                problems,
                ..ServiceInfo::default()
            });
        };
        let service = &stated.what;
        let slices = match service.selector.is_empty() {
            true => self.slices_of(entry),
            false => Vec::new(),
        };
        let mut behind = self
            .world()
            .behind(service, entry.pods.iter().cloned(), &slices, &mut Vec::new());
        let families = families(service, &self.rules).unwrap_or_default();
        behind.retain(|b| families.contains(&Family::of(b.at)));
        // A pod of two families is one.
        let is_one = |b: &&_| service.selector.is_empty() || families.first() == Some(&family_of(b));
        let one = || behind.iter().filter(is_one);
        let records = entry.output.records.as_ref();
        let addresses = records.map(|r| r.addresses.clone()).unwrap_or_default();
        let node_port = |n: usize| match self.claims.has(name, Slot::Port(n as u16)) {
            Some(Thing::Port(port, _)) => Some(port),
            _ => None,
        };
        let ports = service.ports.iter().enumerate().map(|(n, port)| ServicePortInfo {
            name: port.name.clone(),
            transport: port.transport,
            port: port.port,
            target: match &port.target {
                TargetPort::Number(number) => number.to_string(),
                TargetPort::Name(name) => name.clone(),
            },
            node_port: node_port(n),
            app_protocol: port.app_protocol.clone(),
        });
        let endpoints = behind.iter().map(|b| EndpointInfo {
            open: 0,
            at: b.at,
            ports: service.ports.iter().filter_map(|p| b.port(p)).collect(),
            state: match b.phase {
                Some(BackendPhase::Ready) => "ready",
                Some(BackendPhase::Draining) => "draining",
                None => "not ready",
            }
            .into(),
            local: b.local,
            what: b.what.clone(),
            host: b.host.clone(),
        });
        Some(ServiceInfo {
            open: 0,
            opened: 0,
            failed: 0,
            name: name.clone(),
            kind: match service.kind {
                ServiceType::ClusterIp if service.is_headless() => "Headless",
                ServiceType::ClusterIp => "ClusterIP",
                ServiceType::NodePort => "NodePort",
                ServiceType::ExternalName => "ExternalName",
            }
            .into(),
            addresses: if service.is_headless() {
                Vec::new()
            } else {
                addresses
            },
            external_ips: service.external_ips.clone(),
            external_name: service.external_name.clone(),
            ports: ports.collect(),
            labels: service.labels.clone(),
            annotations: service.annotations.clone(),
            selector: service.selector.clone(),
            scheduler: service.scheduler,
            affinity_s: service.affinity.map(|a| a.as_secs()),
            internal_local: service.internal_local,
            external_local: service.external_local,
            health_check_port: service.health_check_port,
            publish_not_ready: service.publish_not_ready,
            ready: one().filter(|b| b.phase == Some(BackendPhase::Ready)).count(),
            in_all: one().count(),
            endpoints: endpoints.collect(),
            source: source.to_string(),
            document: stated.document,
            in_force: records.is_some(),
            problems,
        })
    }

    /// What a Service that is to be stated would better say itself, so that no other Service changes it later: its addresses,
    /// when it gives none, and the node port of each port that has none. `taken` is what others of the same manifest are given.
    pub fn pins(&self, service: &Service, taken: &mut Taken) -> Pins {
        let mut pins = Pins {
            addresses: Vec::new(),
            node_ports: vec![None; service.ports.len()],
        };
        for (slot, wish) in wishes(service, &self.rules) {
            if matches!(wish, Wish::Given(_)) {
                continue;
            }
            let thing = self.claims.could_have(&service.name, slot, wish, &taken.0);
            taken.0.extend(thing);
            match (thing, slot) {
                (Some(Thing::Address(ip)), _) if service.cluster_ips == ClusterIps::Any => {
                    pins.addresses.push(ip)
                }
                (Some(Thing::Port(port, _)), Slot::Port(n)) => {
                    if let Some(pin) = pins.node_ports.get_mut(usize::from(n)) {
                        *pin = Some(port);
                    }
                }
                _ => {}
            }
        }
        pins
    }

    /// Where a Service and the slices about it are stated: what counts, and what does not.
    pub fn places(&self, name: &ServiceName) -> Vec<(Source, ObjectKey)> {
        let Some(entry) = self.services.get(name) else {
            return Vec::new();
        };
        let own = entry
            .stated
            .keys()
            .map(|s| (s.clone(), ObjectKey::Service(name.clone())));
        let slices = entry.slices.iter().flat_map(|slice| {
            let sources = self.slices.get(slice).into_iter().flat_map(BTreeMap::keys);
            let key = ObjectKey::Slice(slice.0.clone(), slice.1.clone());
            sources.map(move |s| (s.clone(), key.clone()))
        });
        own.chain(slices).collect()
    }
}

fn family_of(behind: &Behind) -> Family {
    Family::of(behind.at)
}

fn keep(set: &mut BTreeSet<ServiceName>, name: &ServiceName, there: bool) {
    match there {
        true => drop(set.insert(name.clone())),
        false => drop(set.remove(name)),
    }
}

#[cfg(test)]
#[path = "catalogue/tests.rs"]
pub(super) mod tests;
