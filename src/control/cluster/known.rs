//! The leases of the store, as far as this node has seen them.

use super::{Entry, LeaseId, Revision, SubnetKey};
use crate::control::flannel::{LeaseValue, ValueError, config_key};
use crate::model::{Duration, Instant};
use std::collections::BTreeMap;

/// Most leases that are kept: the data path takes as many peers.
const MAX_LEASES: usize = 16_384;
/// Longest value that is looked at, in bytes; one of a node has some 300.
const MAX_VALUE: usize = 16 * 1024;
/// Most foreign keys that are kept by name, and how much of each.
const MAX_STRANGE: usize = 1024;
const MAX_STRANGE_KEY: usize = 256;
/// Longest time a lease is taken to live, in seconds: a number in the store must not overflow a clock.
const MAX_TTL_S: i64 = 10 * 365 * 86_400;

/// A lease, or what stands in the place of one.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    /// The bytes of `value`.
    pub(super) raw: Vec<u8>,
    /// The last good value; none when there never was one, or when it is not a VXLAN node's any more.
    pub(super) value: Option<LeaseValue>,
    /// Why the newest value is not good.
    pub(super) fault: Option<ValueError>,
    pub(super) created: Revision,
    pub(super) modified: Revision,
    pub(super) lease: LeaseId,
    /// When the lease runs out, where known.
    pub(super) expires: Option<Instant>,
    /// When this node saw it written last.
    pub(super) seen: Instant,
    /// Known from before the store was lost; kept until then unless the store tells of it again.
    pub(super) carried: Option<Instant>,
    /// Seen to be gone, with many others, since then; kept until a second list says so too.
    pub(super) gone: Option<Instant>,
}

impl Lease {
    /// Identity of the podwire node that says it is its lease.
    pub(super) fn id(&self) -> Option<&str> {
        let id = &self.value.as_ref()?.podwire.as_ref()?.id;
        (!id.is_empty()).then_some(id.as_str())
    }

    /// What comes first has the older claim. Claims of a lost store are younger than those of the present one.
    pub(super) fn age(&self) -> (bool, Revision) {
        (self.carried.is_some(), self.created)
    }

    /// Who holds it, in a few words.
    pub(super) fn holder(&self) -> String {
        match (&self.value, &self.fault) {
            (Some(v), _) => match &v.podwire {
                Some(p) if !p.name.is_empty() => format!("podwire node {} at {}", p.name, v.public_ip),
                Some(_) => format!("a podwire node at {}", v.public_ip),
                None => format!("the node at {}", v.public_ip),
            },
            (None, Some(ValueError::Backend(b))) => format!("a node with BackendType {b:?}"),
            (None, _) => "somebody unknown".into(),
        }
    }
}

/// Where a key of the store belongs.
pub(super) enum Place {
    /// The network's configuration.
    Config,
    /// A lease.
    Subnet(SubnetKey),
    /// Neither, and why.
    Strange(String),
}

/// All leases, and what else stands beside them.
#[derive(Debug)]
pub(super) struct Known {
    prefix: String,
    /// The leases.
    pub(super) leases: BTreeMap<SubnetKey, Lease>,
    /// Keys that are no leases, cut to size, and why.
    strange: BTreeMap<Vec<u8>, String>,
    /// How many more of them the last list had.
    beyond: u64,
    /// Identity of the store.
    pub(super) cluster: Option<u64>,
    /// Up to this revision everything was applied.
    pub(super) revision: Revision,
    /// The highest revision the store ever named.
    pub(super) highest: Revision,
}

impl Known {
    pub(super) fn new(prefix: &str) -> Known {
        Known {
            prefix: prefix.into(),
            leases: BTreeMap::new(),
            strange: BTreeMap::new(),
            beyond: 0,
            cluster: None,
            revision: 0,
            highest: 0,
        }
    }

    /// Where a key belongs. flannel looks at the end of keys only; a lease is taken from the one place where both
    /// write it, so that no two keys are for one subnet.
    pub(super) fn place(&self, key: &[u8]) -> Place {
        if key == config_key(&self.prefix).as_bytes() {
            return Place::Config;
        }
        match SubnetKey::of_etcd_key(key) {
            Ok(subnet) if subnet.etcd_key(&self.prefix).as_bytes() == key => Place::Subnet(subnet),
            Ok(subnet) => Place::Strange(format!(
                "this is not how the key of {subnet} is written ({})",
                subnet.etcd_key(&self.prefix)
            )),
            Err(e) => Place::Strange(e.to_string()),
        }
    }

    /// Note a key that is no lease.
    pub(super) fn note(&mut self, key: &[u8], why: String) {
        let short = &key[..key.len().min(MAX_STRANGE_KEY)];
        if self.strange.len() < MAX_STRANGE || self.strange.contains_key(short) {
            self.strange.insert(short.into(), why);
        } else {
            self.beyond += 1;
        }
    }

    /// It is no longer there.
    pub(super) fn forget(&mut self, key: &[u8]) {
        self.strange.remove(&key[..key.len().min(MAX_STRANGE_KEY)]);
    }

    /// A list begins: it names all keys that are no leases again.
    pub(super) fn forget_strange(&mut self) {
        self.strange.clear();
        self.beyond = 0;
    }

    /// Keys that are no leases: their names and why, and how many there are in all.
    pub(super) fn strange(&self) -> (impl Iterator<Item = (String, &str)> + '_, u64) {
        let named = self.strange.iter().map(|(k, why)| (readable(k), why.as_str()));
        (named, self.strange.len() as u64 + self.beyond)
    }

    /// Take a lease as the store has it now. Whether anything changed that a peer is made of, or whose it is.
    pub(super) fn put(&mut self, key: SubnetKey, entry: &Entry, always: bool, now: Instant) -> bool {
        self.highest = self.highest.max(entry.modified);
        let old = self.leases.remove(&key);
        if old.is_none() && self.leases.len() >= MAX_LEASES && !always {
            self.note(&entry.key, format!("there are more than {MAX_LEASES} leases"));
            return false;
        }
        let same = old
            .as_ref()
            .is_some_and(|o| o.raw == entry.value && o.fault.is_none() && o.value.is_some());
        let written = old.as_ref().is_none_or(|o| o.modified != entry.modified);
        let expires = match entry.ttl_s {
            _ if entry.lease == 0 => None,
            Some(s) => Some(after(now, s)),
            None if written => None,
            None => old.as_ref().and_then(|o| o.expires),
        };
        let seen = old.as_ref().filter(|_| !written).map_or(now, |o| o.seen);
        let kept = old
            .as_ref()
            .is_some_and(|o| o.created == entry.created && o.carried.is_none() && o.gone.is_none());
        let (raw, value, fault) = match old {
            Some(old) if same => (old.raw, old.value, None),
            old => match (read(&entry.value), old) {
                (Ok(value), _) => (entry.value.clone(), Some(value), None),
                // Its last good state stays until it is deleted.
                (Err(fault @ ValueError::Malformed(_)), Some(old)) => (old.raw, old.value, Some(fault)),
                (Err(fault), _) => (Vec::new(), None, Some(fault)),
            },
        };
        let lease = Lease {
            raw,
            value,
            fault,
            created: entry.created,
            modified: entry.modified,
            lease: entry.lease,
            expires,
            seen,
            carried: None,
            gone: None,
        };
        self.leases.insert(key, lease);
        !(same && kept)
    }

    /// The store is lost: what is known is carried on until then, and whatever the next one says goes before it.
    pub(super) fn carry(&mut self, until: Instant) {
        for lease in self.leases.values_mut() {
            lease.carried = Some(lease.carried.map_or(until, |u| u.min(until)));
            lease.gone = None;
            lease.modified = 0;
        }
    }
}

fn read(value: &[u8]) -> Result<LeaseValue, ValueError> {
    match value.len() {
        ..=MAX_VALUE => LeaseValue::read(value),
        n => Err(ValueError::Malformed(format!(
            "it has {n} bytes (at most {MAX_VALUE} are looked at)"
        ))),
    }
}

/// The moment `ttl_s` seconds from now.
pub(super) fn after(now: Instant, ttl_s: i64) -> Instant {
    now + Duration::from_secs(ttl_s.clamp(0, MAX_TTL_S) as u64)
}

/// Text of a key, cut to size, without what a terminal would take for commands.
fn readable(key: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(key).chars().take(80).collect();
    text.escape_debug().to_string()
}
