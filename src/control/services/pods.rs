//! The pods as Services see them, found by name, label and address.

use crate::model::{Labels, NamedPort, NodeName, PodName, PodState, ServiceName};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// A pod among all nodes': each node has names of its own.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PodId {
    /// Its name.
    pub name: PodName,
    /// Its node.
    pub node: NodeName,
}

/// What Services must know of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its node.
    pub node: NodeName,
    /// Its labels.
    pub labels: Labels,
    /// Its IPv4 address.
    pub ip4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ip6: Option<Ipv6Addr>,
    /// Whether it is there for others.
    pub state: PodState,
    /// Its ports with names.
    pub ports: Vec<NamedPort>,
}

impl PodFacts {
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let four = self.ip4.map(IpAddr::from);
        four.into_iter().chain(self.ip6.map(IpAddr::from))
    }
}

/// A label in a namespace.
type Label = (String, String, String);

/// All pods.
#[derive(Default)]
pub(super) struct Pods {
    all: HashMap<PodId, Arc<PodFacts>>,
    labelled: HashMap<Label, BTreeSet<PodId>>,
    at: HashMap<IpAddr, BTreeSet<PodId>>,
}

impl Pods {
    pub fn get(&self, pod: &PodId) -> Option<&Arc<PodFacts>> {
        self.all.get(pod)
    }

    /// Who has an address.
    pub fn at(&self, ip: IpAddr) -> Option<&PodId> {
        self.at.get(&ip)?.first()
    }

    /// Put a pod there, or take it away; what was there before.
    pub fn set(&mut self, pod: &PodId, facts: Option<PodFacts>) -> Option<Arc<PodFacts>> {
        let before = self.all.remove(pod);
        if let Some(before) = &before {
            for (key, value) in &before.labels {
                remove(&mut self.labelled, &label(&pod.name.namespace, key, value), pod);
            }
            for ip in before.addresses() {
                remove(&mut self.at, &ip, pod);
            }
        }
        if let Some(facts) = facts {
            for (key, value) in &facts.labels {
                let all = self
                    .labelled
                    .entry(label(&pod.name.namespace, key, value))
                    .or_default();
                all.insert(pod.clone());
            }
            for ip in facts.addresses() {
                self.at.entry(ip).or_default().insert(pod.clone());
            }
            self.all.insert(pod.clone(), Arc::new(facts));
        }
        before
    }

    /// Those of a namespace that have all these labels; none when there are no labels.
    pub fn select(&self, namespace: &str, selector: &Labels) -> BTreeSet<PodId> {
        let sets = selector
            .iter()
            .map(|(k, v)| self.labelled.get(&label(namespace, k, v)));
        let Some(mut sets) = sets.collect::<Option<Vec<_>>>() else {
            return BTreeSet::new();
        };
        sets.sort_by_key(|s| s.len());
        let Some((smallest, others)) = sets.split_first() else {
            return BTreeSet::new();
        };
        smallest
            .iter()
            .filter(|p| others.iter().all(|s| s.contains(p)))
            .cloned()
            .collect()
    }
}

fn label(namespace: &str, key: &str, value: &str) -> Label {
    (namespace.into(), key.into(), value.into())
}

fn remove<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<PodId>>, key: &K, pod: &PodId) {
    if let Some(all) = index.get_mut(key) {
        all.remove(pod);
        if all.is_empty() {
            index.remove(key);
        }
    }
}

/// The selectors of Services, found by the labels of a pod.
#[derive(Default)]
pub(super) struct Selectors {
    /// By one label of each selector: the one fewest others are found by.
    by_label: HashMap<Label, BTreeSet<ServiceName>>,
    chosen: HashMap<ServiceName, (Label, Labels)>,
}

impl Selectors {
    /// A Service's selector is this now; none, or an empty one, selects nothing.
    pub fn set(&mut self, service: &ServiceName, selector: Option<&Labels>) {
        if let Some((label, _)) = self.chosen.remove(service)
            && let Some(all) = self.by_label.get_mut(&label)
        {
            all.remove(service);
            if all.is_empty() {
                self.by_label.remove(&label);
            }
        }
        let Some(selector) = selector else { return };
        let labels = selector.iter().map(|(k, v)| label(&service.namespace, k, v));
        let few = |l: &Label| self.by_label.get(l).map_or(0, BTreeSet::len);
        if let Some(label) = labels.min_by_key(few) {
            self.by_label
                .entry(label.clone())
                .or_default()
                .insert(service.clone());
            self.chosen.insert(service.clone(), (label, selector.clone()));
        }
    }

    /// The Services that select a pod of this namespace and these labels.
    pub fn of(&self, namespace: &str, labels: &Labels) -> BTreeSet<ServiceName> {
        let found = labels
            .iter()
            .filter_map(|(k, v)| self.by_label.get(&label(namespace, k, v)));
        let fits = |s: &&ServiceName| {
            let chosen = self.chosen.get(*s);
            chosen.is_some_and(|(_, all)| all.iter().all(|(k, v)| labels.get(k) == Some(v)))
        };
        found.flatten().filter(fits).cloned().collect()
    }
}
