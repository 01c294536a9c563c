//! What the nodes of a cluster share by their store: Services, EndpointSlices and pods, as keys and values; and what a
//! node knows of them.
//!
//! ```text
//! <prefix>/podwire/services/NAMESPACE/NAME     a manifest, as JSON; stays until somebody deletes it
//! <prefix>/podwire/slices/NAMESPACE/NAME       the same of an EndpointSlice
//! <prefix>/podwire/pods/NODE/NAMESPACE/NAME    labels, addresses, state and ports; bound to a lease of the node's
//! ```
//!
//! [`Mirror`] fails static as `control::cluster` does: a store that is another one, or was set back, proves nothing of what
//! it lacks. Pods are carried on for as long as their leases would have lived, manifests until they are written or deleted
//! again.

use super::manifest::ObjectKey;
use super::pods::{PodFacts, PodId};
use crate::control::cluster::{Entry, Revision, Watched};
use crate::model::{
    Duration, Instant, Labels, MAX_LABELS, NamedPort, NodeName, PodState, ServiceName, is_dns_label,
    is_label_key, is_label_value,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Seconds the lease of a node's pods lives: so long others send to pods of a node that is gone.
pub const TTL_S: i64 = 60;
/// Most keys that are known; others are left out.
const MAX_KEYS: usize = 1 << 17;
/// Longest value of a manifest.
pub const MAX_VALUE: usize = 60 << 10;

/// What a key is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SharedKey {
    /// A Service, or a slice.
    Object(ObjectKey),
    /// A pod.
    Pod(PodId),
}

impl SharedKey {
    /// Read a key, without the prefix (`services/default/web`).
    pub fn parse(key: &str) -> Option<SharedKey> {
        let parts: Vec<&str> = key.split('/').collect();
        let label = |s: &str| is_dns_label(s).then(|| s.to_string());
        match parts[..] {
            ["services", namespace, name] => Some(SharedKey::Object(ObjectKey::Service(ServiceName {
                namespace: label(namespace)?,
                name: label(name)?,
            }))),
            ["slices", namespace, name] if name.len() <= 253 && name.split('.').all(is_dns_label) => Some(
                SharedKey::Object(ObjectKey::Slice(label(namespace)?, name.into())),
            ),
            ["pods", node, namespace, name] => Some(SharedKey::Pod(PodId {
                name: format!("{namespace}/{name}").parse().ok()?,
                node: node.parse().ok()?,
            })),
            _ => None,
        }
    }

    /// The key, without the prefix.
    pub fn path(&self) -> String {
        match self {
            SharedKey::Object(ObjectKey::Service(name)) => {
                format!("services/{}/{}", name.namespace, name.name)
            }
            SharedKey::Object(ObjectKey::Slice(namespace, name)) => format!("slices/{namespace}/{name}"),
            SharedKey::Pod(id) => format!("pods/{}/{}/{}", id.node, id.name.namespace, id.name.name),
        }
    }
}

/// A pod, as its node tells of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SharedPod {
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
    ip4: Option<Ipv4Addr>,
    ip6: Option<Ipv6Addr>,
    #[serde(default)]
    state: PodState,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ports: Vec<NamedPort>,
}

impl SharedPod {
    /// Of what is known of a pod.
    pub fn of(facts: &PodFacts) -> SharedPod {
        SharedPod {
            labels: facts.labels.clone(),
            ip4: facts.ip4,
            ip6: facts.ip6,
            state: facts.state,
            ports: facts.ports.clone(),
        }
    }

    /// The value.
    pub fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// What a value says of a pod of `node`; none of what is no pod.
    pub fn read(value: &[u8], node: &NodeName) -> Option<PodFacts> {
        let pod: SharedPod = serde_json::from_slice(value).ok()?;
        let fits = pod.labels.len() <= MAX_LABELS
            && pod.ports.len() <= MAX_LABELS
            && pod
                .labels
                .iter()
                .all(|(k, v)| is_label_key(k) && is_label_value(v));
        fits.then(|| PodFacts {
            node: node.clone(),
            labels: pod.labels,
            ip4: pod.ip4,
            ip6: pod.ip6,
            state: pod.state,
            ports: pod.ports,
        })
    }
}

/// What is otherwise than before: the key without its prefix, and its value if there is one.
pub type SharedChange = (String, Option<Vec<u8>>);

/// What a node knows of the shared keys.
#[derive(Debug, Default)]
pub struct Mirror {
    prefix: String,
    cluster: u64,
    revision: Revision,
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    value: Vec<u8>,
    /// Since when the store lacks it without having proven anything.
    missing: Option<Instant>,
}

impl Mirror {
    /// One that knows nothing of what is below `prefix`, which ends in a slash.
    pub fn new(prefix: &str) -> Mirror {
        Mirror {
            prefix: prefix.into(),
            ..Mirror::default()
        }
    }

    /// The revision all changes up to which are known.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// How many manifests the store lacks and that are carried on.
    pub fn carried(&self) -> usize {
        let missing = |(key, k): &(&String, &Known)| k.missing.is_some() && !key.starts_with("pods/");
        self.known.iter().filter(missing).count()
    }

    /// Whether a store at this revision is another one than was known, or was set back: what it lacks is not proven to be gone.
    pub fn is_set_back(&self, cluster: u64, revision: Revision) -> bool {
        self.cluster != 0 && (self.cluster != cluster || revision < self.revision)
    }

    /// A list of everything, at this revision of this store.
    pub fn listed(
        &mut self,
        cluster: u64,
        revision: Revision,
        entries: &[Entry],
        now: Instant,
    ) -> Vec<SharedChange> {
        let proof = !self.is_set_back(cluster, revision);
        (self.cluster, self.revision) = (cluster, revision);
        let mut listed: BTreeMap<String, &Entry> = BTreeMap::new();
        for entry in entries {
            if let Some(key) = self.key(&entry.key) {
                listed.insert(key, entry);
            }
        }
        let mut changes = Vec::new();
        let absent: Vec<String> = self
            .known
            .keys()
            .filter(|k| !listed.contains_key(*k))
            .cloned()
            .collect();
        for key in absent {
            let Some(known) = self.known.get_mut(&key) else {
                continue;
            };
            // What was carried on so far is no more proven to be gone by the same store.
            if proof && known.missing.is_none() {
                self.known.remove(&key);
                changes.push((key, None));
            } else {
                known.missing.get_or_insert(now);
            }
        }
        for (key, entry) in listed {
            changes.extend(self.put(key, entry));
        }
        changes
    }

    /// A change, in the order of the store.
    pub fn watched(&mut self, change: &Watched) -> Option<SharedChange> {
        match change {
            Watched::Put(entry) => {
                self.revision = self.revision.max(entry.modified);
                let key = self.key(&entry.key)?;
                self.put(key, entry)
            }
            Watched::Deleted { key, modified } => {
                self.revision = self.revision.max(*modified);
                let key = self.key(key)?;
                self.deleted(&key)
            }
        }
    }

    /// All changes up to there are told.
    pub fn told(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }

    /// A key is certainly gone.
    pub fn deleted(&mut self, key: &str) -> Option<SharedChange> {
        self.known.remove(key).map(|_| (key.to_string(), None))
    }

    /// Pods that the store lacks for as long as a lease lives are gone.
    pub fn expire(&mut self, now: Instant) -> Vec<SharedChange> {
        let over = |(key, k): &(&String, &Known)| {
            let since = k.missing.filter(|_| key.starts_with("pods/"));
            since.is_some_and(|since| now >= since + Duration::from_secs(TTL_S.unsigned_abs()))
        };
        let over: Vec<String> = self.known.iter().filter(over).map(|(k, _)| k.clone()).collect();
        over.iter().filter_map(|key| self.deleted(key)).collect()
    }

    fn put(&mut self, key: String, entry: &Entry) -> Option<SharedChange> {
        if self.known.len() >= MAX_KEYS && !self.known.contains_key(&key) {
            return None;
        }
        let known = Known {
            value: entry.value.clone(),
            missing: None,
        };
        let before = self.known.insert(key.clone(), known);
        let same = before.is_some_and(|b| b.value == entry.value);
        (!same).then(|| (key, Some(entry.value.clone())))
    }

    /// A key without its prefix, if it is one that can be understood.
    fn key(&self, key: &[u8]) -> Option<String> {
        let key = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?;
        let parsed = SharedKey::parse(key)?;
        Some(parsed.path()).filter(|path| path == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, modified: Revision, value: &str) -> Entry {
        Entry {
            key: format!("/p/podwire/{key}").into_bytes(),
            value: value.into(),
            created: 1,
            modified,
            lease: 0,
            ttl_s: None,
        }
    }

    fn said(changes: &[SharedChange]) -> Vec<String> {
        let one = |(k, v): &SharedChange| match v {
            Some(v) => format!("{k}={}", String::from_utf8_lossy(v)),
            None => format!("{k} gone"),
        };
        changes.iter().map(one).collect()
    }

    const S: i64 = 1_000_000;

    #[test]
    fn a_mirror_follows_and_fails_static() {
        let at = |s: i64| Instant::from_micros(s * S);
        let mut mirror = Mirror::new("/p/podwire/");
        let first = [
            entry("services/default/a", 5, "1"),
            entry("pods/n2/default/x", 6, "{}"),
            entry("odd", 7, "?"),
        ];
        assert_eq!(
            said(&mirror.listed(9, 10, &first, at(0))),
            ["pods/n2/default/x={}", "services/default/a=1"]
        );
        let put = Watched::Put(entry("services/default/b", 11, "2"));
        assert_eq!(
            mirror.watched(&put),
            Some(("services/default/b".into(), Some(b"2".to_vec())))
        );
        assert_eq!(mirror.revision(), 11);
        // A list of the same store, not older: proof.
        assert_eq!(
            said(&mirror.listed(9, 12, &first, at(1))),
            ["services/default/b gone"]
        );
        // Set back, or wiped: nothing is proven.
        assert_eq!(said(&mirror.listed(9, 3, &[], at(2))), [""; 0]);
        assert_eq!(said(&mirror.listed(8, 4, &[], at(3))), [""; 0]);
        assert_eq!(mirror.carried(), 1);
        assert_eq!(
            said(&mirror.listed(8, 5, &[], at(4))),
            [""; 0],
            "nor by the next one of that store"
        );
        assert_eq!(said(&mirror.expire(at(61))), [""; 0]);
        assert_eq!(said(&mirror.expire(at(62))), ["pods/n2/default/x gone"]);
        let again = [entry("services/default/a", 6, "3")];
        assert_eq!(
            said(&mirror.listed(8, 6, &again, at(70))),
            ["services/default/a=3"]
        );
        assert_eq!(mirror.carried(), 0);
        let gone = Watched::Deleted {
            key: b"/p/podwire/services/default/a".to_vec(),
            modified: 9,
        };
        assert_eq!(mirror.watched(&gone), Some(("services/default/a".into(), None)));
    }

    #[test]
    fn keys_and_pods_read_back_to_the_same() {
        for key in [
            "services/default/web",
            "slices/shop/web-1.x",
            "pods/n1/default/web",
            "pods/n1/a.b/C_d",
        ] {
            assert_eq!(SharedKey::parse(key).unwrap().path(), key);
        }
        for bad in [
            "",
            "services/web",
            "services/a/B",
            "services/a/b/c",
            "pods/n1/web",
            "pods//a/b",
            "slices/a/..",
            "config",
        ] {
            assert_eq!(SharedKey::parse(bad), None, "{bad}");
        }
        let facts = PodFacts {
            node: "n2".parse().unwrap(),
            labels: [("app".into(), "web".into())].into(),
            ip4: Some([10, 244, 2, 2].into()),
            ip6: None,
            state: PodState {
                ready: false,
                draining: true,
            },
            ports: vec!["http:80".parse().unwrap()],
        };
        let value = SharedPod::of(&facts).write();
        assert_eq!(SharedPod::read(&value, &facts.node), Some(facts.clone()));
        for bad in [
            "",
            "[]",
            "{\"labels\":{\"a b\":\"c\"},\"ip4\":null,\"ip6\":null}",
            "{\"ip4\":\"x\"}",
        ] {
            assert_eq!(SharedPod::read(bad.as_bytes(), &facts.node), None, "{bad}");
        }
    }
}
