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
//! again. It can be [remembered](Mirror::remember) over a restart. What it cannot use is [named](Mirror::problems).

use super::manifest::ObjectKey;
use super::pods::{PodFacts, PodId};
use crate::control::cluster::{Entry, Revision, Watched};
use crate::model::{
    Duration, Instant, Labels, MAX_LABELS, NamedPort, NodeName, PodState, ServiceName, is_dns_label,
    is_label_key, is_label_value,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Seconds the lease of a node's pods lives: so long others send to pods of a node that is gone.
pub const TTL_S: i64 = 60;
/// Most keys that are known; others are left out, and named.
const MAX_KEYS: usize = 1 << 17;
/// Most keys that are remembered as left out: those beyond are in force as little, and not counted.
const MAX_REFUSED: usize = 1 << 10;
/// Most keys that are named in one sentence.
const MAX_NAMED: usize = 3;
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
    /// Keys that are not used.
    refused: BTreeMap<String, Refused>,
    /// Most keys that are known.
    room: usize,
    /// Something else is known than was remembered last.
    unkept: bool,
}

/// Why a key is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refused {
    /// There are too many.
    Full,
    /// It is that of no Service, slice or pod.
    Odd,
    /// Its value is longer than any that a node writes.
    Long,
}

/// What is kept of a [`Mirror`] on disk.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RememberedKeys {
    /// What all keys begin with.
    pub prefix: String,
    /// The store.
    pub cluster: u64,
    /// Its revision.
    pub revision: Revision,
    /// Keys without the prefix, with their values.
    pub keys: BTreeMap<String, String>,
    /// Those of them that the store lacked without having proven anything.
    pub lost: BTreeSet<String>,
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
            room: MAX_KEYS,
            ..Mirror::default()
        }
    }

    /// What is to be kept over a restart. A value that is no text nobody could use.
    pub fn remember(&mut self) -> RememberedKeys {
        self.unkept = false;
        let text = |(key, k): (&String, &Known)| {
            let value = std::str::from_utf8(&k.value).ok()?;
            Some((key.clone(), value.to_string()))
        };
        let lost = self.known.iter().filter(|(_, k)| k.missing.is_some());
        RememberedKeys {
            prefix: self.prefix.clone(),
            cluster: self.cluster,
            revision: self.revision,
            keys: self.known.iter().filter_map(text).collect(),
            lost: lost.map(|(key, _)| key.clone()).collect(),
        }
    }

    /// Whether something else is known than was remembered last.
    pub fn is_unkept(&self) -> bool {
        self.unkept
    }

    /// What was remembered last could not be kept.
    pub fn forget_kept(&mut self) {
        self.unkept = true;
    }

    /// Begin with what was remembered; what is known by that. Nothing, when it is of other keys.
    pub fn recall(&mut self, kept: RememberedKeys, now: Instant) -> Vec<SharedChange> {
        if kept.prefix != self.prefix {
            return Vec::new();
        }
        (self.cluster, self.revision) = (kept.cluster, kept.revision);
        let mut changes = Vec::new();
        for (key, value) in kept.keys.into_iter().take(self.room) {
            let whole = format!("{}{key}", self.prefix);
            if self.key(whole.as_bytes()) != Ok(Some(key.clone())) {
                continue;
            }
            let known = Known {
                value: value.clone().into_bytes(),
                missing: kept.lost.contains(&key).then_some(now),
            };
            self.known.insert(key.clone(), known);
            changes.push((key, Some(value.into_bytes())));
        }
        changes
    }

    /// What a person should look at.
    pub fn problems(&self) -> Vec<String> {
        let mut all = Vec::new();
        let carried = self.carried();
        if carried > 0 {
            all.push(format!(
                "etcd does not have {carried} manifests any more, without having been told to delete them (was it wiped or \
                 restored?): they hold still (apply them again, or delete them with `podwire service delete`)"
            ));
        }
        let of = |why: Refused| {
            self.refused
                .iter()
                .filter(move |(_, r)| **r == why)
                .map(|(k, _)| k)
        };
        if let Some(first) = of(Refused::Full).next() {
            let (n, most) = (of(Refused::Full).count(), self.room);
            let at_least = if self.refused.len() < MAX_REFUSED {
                ""
            } else {
                "at least "
            };
            all.push(format!(
                "etcd has more than {most} Services, slices and pods: {at_least}{n} are not used, {first} the first of them \
                 (delete some)"
            ));
        }
        for key in of(Refused::Odd).take(MAX_NAMED) {
            let shown: String = key.chars().flat_map(char::escape_debug).take(256).collect();
            all.push(format!(
                "etcd: the key {shown} is no Service, slice or pod, and is not used (delete it)"
            ));
        }
        for key in of(Refused::Long).take(MAX_NAMED) {
            all.push(format!(
                "etcd:{key} is longer than {} KiB: what was stated there before stays (apply it again)",
                MAX_VALUE >> 10
            ));
        }
        let odd = |why| of(why).count().saturating_sub(MAX_NAMED);
        let more = odd(Refused::Odd) + odd(Refused::Long);
        if more > 0 {
            all.push(format!("etcd: {more} keys more are not used"));
        }
        all
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
        self.unkept = true;
        self.refused.clear();
        let mut listed: BTreeMap<String, &Entry> = BTreeMap::new();
        for entry in entries {
            match self.key(&entry.key) {
                Ok(Some(key)) => drop(listed.insert(key, entry)),
                Ok(None) => {}
                Err(odd) => self.refuse(odd, Refused::Odd),
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
                match self.key(&entry.key) {
                    Ok(key) => self.put(key?, entry),
                    Err(odd) => {
                        self.refuse(odd, Refused::Odd);
                        None
                    }
                }
            }
            Watched::Deleted { key, modified } => {
                self.revision = self.revision.max(*modified);
                let key = match self.key(key) {
                    Ok(key) => key?,
                    Err(odd) => odd,
                };
                self.refused.remove(&key);
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
        self.known.remove(key)?;
        self.unkept = true;
        Some((key.to_string(), None))
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
        let known = self.known.contains_key(&key);
        if entry.value.len() > MAX_VALUE {
            self.refuse(key, Refused::Long);
            return None;
        }
        if self.known.len() >= self.room && !known {
            self.refuse(key, Refused::Full);
            return None;
        }
        self.refused.remove(&key);
        let known = Known {
            value: entry.value.clone(),
            missing: None,
        };
        let before = self.known.insert(key.clone(), known);
        let found = before.as_ref().is_some_and(|b| b.missing.is_some());
        let same = before.is_some_and(|b| b.value == entry.value);
        self.unkept |= found || !same;
        (!same).then(|| (key, Some(entry.value.clone())))
    }

    fn refuse(&mut self, key: String, why: Refused) {
        if self.refused.len() < MAX_REFUSED || self.refused.contains_key(&key) {
            self.refused.insert(key, why);
        }
    }

    /// A key without its prefix; none when it is about something else.
    ///
    /// # Errors
    /// It is to be about a Service, a slice or a pod, and cannot be; what it is then.
    fn key(&self, key: &[u8]) -> Result<Option<String>, String> {
        let Some(key) = key.strip_prefix(self.prefix.as_bytes()) else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(key).into_owned();
        let is_ours = |begin: &&str| text.starts_with(*begin);
        if !["services/", "slices/", "pods/"].iter().any(is_ours) {
            return Ok(None);
        }
        match SharedKey::parse(&text) {
            Some(parsed) if parsed.path().as_bytes() == key => Ok(Some(text)),
            _ => Err(text),
        }
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
    fn what_is_remembered_goes_on_where_it_was() {
        let at = |s: i64| Instant::from_micros(s * S);
        let mut mirror = Mirror::new("/p/podwire/");
        let first = [
            entry("services/default/a", 5, "1"),
            entry("pods/n2/default/x", 6, "{}"),
        ];
        mirror.listed(9, 10, &first, at(0));
        assert!(mirror.is_unkept());
        let kept = mirror.remember();
        assert!(!mirror.is_unkept());
        let again = || {
            let mut mirror = Mirror::new("/p/podwire/");
            let said = said(&mirror.recall(kept.clone(), at(0)));
            assert_eq!(said, ["pods/n2/default/x={}", "services/default/a=1"]);
            mirror
        };
        // The same store proves what it lacks; one that was set back does not, nor after another restart.
        assert_eq!(
            said(&again().listed(9, 11, &first[..1], at(1))),
            ["pods/n2/default/x gone"]
        );
        let mut mirror = again();
        assert_eq!(said(&mirror.listed(8, 11, &[], at(1))), [""; 0]);
        let kept = mirror.remember();
        let mut mirror = Mirror::new("/p/podwire/");
        mirror.recall(kept.clone(), at(0));
        assert_eq!(said(&mirror.listed(8, 12, &[], at(1))), [""; 0]);
        assert_eq!(mirror.carried(), 1);
        assert_eq!(said(&mirror.expire(at(60))), ["pods/n2/default/x gone"]);
        // What is of other keys, or could not have been written, is nothing.
        assert_eq!(Mirror::new("/q/podwire/").recall(kept.clone(), at(0)), []);
        let odd = RememberedKeys {
            keys: [("services/A/b".into(), "1".into()), ("x".into(), "2".into())].into(),
            ..kept
        };
        assert_eq!(Mirror::new("/p/podwire/").recall(odd, at(0)), []);
    }

    #[test]
    fn what_is_not_used_is_named() {
        let at = Instant::ZERO;
        let mut mirror = Mirror::new("/p/podwire/");
        mirror.room = 2;
        let named = |m: &Mirror, told: &str| {
            let all = m.problems();
            assert!(all.iter().any(|p| p.contains(told)), "{told}: {all:?}");
        };
        let all = [
            entry("services/default/a", 5, "1"),
            entry("services/default/b", 5, "1"),
            entry("services/default/c", 5, "1"),
            entry("services/Default/d", 5, "1"),
            entry("else", 5, "1"),
        ];
        assert_eq!(mirror.listed(9, 10, &all, at).len(), 2);
        assert_eq!(mirror.problems().len(), 2);
        named(
            &mirror,
            "more than 2 Services, slices and pods: 1 are not used, services/default/c",
        );
        named(&mirror, "the key services/Default/d is no Service");
        mirror.watched(&Watched::Put(entry("pods/n2/default/x", 11, "1")));
        mirror.watched(&Watched::Put(entry("pods/n2/default/x", 12, "2")));
        named(&mirror, "2 are not used, pods/n2/default/x");
        let long = "x".repeat(MAX_VALUE + 1);
        assert_eq!(
            mirror.watched(&Watched::Put(entry("services/default/a", 13, &long))),
            None
        );
        named(&mirror, "services/default/a is longer than 60 KiB");
        let gone = |key: &str| Watched::Deleted {
            key: format!("/p/podwire/{key}").into_bytes(),
            modified: 14,
        };
        mirror.watched(&Watched::Put(entry("services/default/a", 13, "3")));
        mirror.watched(&gone("services/Default/d"));
        assert_eq!(mirror.problems().len(), 1);
        assert_eq!(
            mirror.listed(9, 15, &all[..2], at),
            [("services/default/a".into(), Some(b"1".to_vec()))]
        );
        assert_eq!(mirror.problems(), [""; 0]);
        for n in 0..2 * MAX_REFUSED {
            mirror.watched(&Watched::Put(entry(&format!("services/x/s{n}"), 16, "")));
        }
        named(&mirror, &format!("at least {MAX_REFUSED} are not used"));
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
