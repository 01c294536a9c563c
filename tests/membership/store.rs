//! A store like etcd, in memory: revisions, leases, transactions, watches from a revision, compaction. It can be
//! wiped, restored, made to answer from an old state, and made to lie.

use podwire::control::cluster::{Answer, Ask, Entry, LeaseId, Revision, StoreError, Watched};
use podwire::control::flannel::SubnetKey;
use podwire::model::{Duration, Instant};
use std::collections::BTreeMap;

pub const PREFIX: &str = "/coreos.com/network";

/// What a store holds.
#[derive(Clone, Default)]
struct State {
    revision: Revision,
    config: Option<Vec<u8>>,
    keys: BTreeMap<Vec<u8>, Entry>,
}

pub struct Store {
    pub cluster: u64,
    state: State,
    /// When each lease ends.
    leases: BTreeMap<LeaseId, Instant>,
    next_lease: LeaseId,
    /// Every change since `compacted`.
    history: Vec<(Revision, Watched)>,
    compacted: Revision,
    /// Lists are answered from this.
    stale: Option<State>,
    /// Renewals are said to be written and are not.
    pub lies: bool,
    pub lists: u64,
}

impl Store {
    pub fn new() -> Store {
        Store {
            cluster: 7,
            state: State {
                revision: 1,
                ..State::default()
            },
            leases: BTreeMap::new(),
            next_lease: 1000,
            history: Vec::new(),
            compacted: 0,
            stale: None,
            lies: false,
            lists: 0,
        }
    }

    pub fn revision(&self) -> Revision {
        self.state.revision
    }

    pub fn configure(&mut self, text: &str) {
        self.state.config = Some(text.into());
        self.write(format!("{PREFIX}/config").into_bytes(), text.into(), 0);
    }

    /// Put a key below `subnets/` with a lease of that many seconds; none is a reservation.
    pub fn put(&mut self, key: &str, value: &[u8], ttl_s: Option<i64>, now: Instant) {
        let lease = ttl_s.map_or(0, |s| self.grant(s, now));
        self.write(
            format!("{PREFIX}/subnets/{key}").into_bytes(),
            value.into(),
            lease,
        );
    }

    pub fn delete(&mut self, key: &str) {
        self.remove(format!("{PREFIX}/subnets/{key}").as_bytes());
    }

    /// Several keys in one revision, as leases run out together.
    pub fn delete_together(&mut self, keys: &[String]) {
        self.state.revision += 1;
        for key in keys {
            let key = format!("{PREFIX}/subnets/{key}").into_bytes();
            if self.state.keys.remove(&key).is_some() {
                let modified = self.state.revision;
                self.history.push((modified, Watched::Deleted { key, modified }));
            }
        }
    }

    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.state.keys.get(format!("{PREFIX}/subnets/{key}").as_bytes())
    }

    /// The keys below `subnets/`.
    pub fn subnets(&self) -> Vec<String> {
        let prefix = format!("{PREFIX}/subnets/");
        let text = |k: &Vec<u8>| String::from_utf8_lossy(k).into_owned();
        self.state
            .keys
            .keys()
            .map(text)
            .filter_map(|k| Some(k.strip_prefix(&prefix)?.to_string()))
            .collect()
    }

    /// Everything is gone, and revisions begin again. The identity may stay: etcd makes it from its settings.
    pub fn wipe(&mut self, cluster: u64) {
        let config = self.state.config.clone();
        // Numbers of leases are made of the time: they do not come twice.
        let (lists, next_lease) = (self.lists, self.next_lease);
        *self = Store::new();
        (self.lists, self.next_lease) = (lists, next_lease);
        self.cluster = cluster;
        if let Some(text) = config {
            self.configure(&String::from_utf8(text).unwrap());
        }
    }

    pub fn compact(&mut self) {
        self.compacted = self.state.revision;
        self.history.clear();
    }

    /// From now on lists are answered from the present state.
    pub fn freeze(&mut self) {
        self.stale = Some(self.state.clone());
    }

    pub fn thaw(&mut self) {
        self.stale = None;
    }

    /// Leases whose time is over.
    pub fn expire(&mut self, now: Instant) {
        let over: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(id, _)| *id)
            .collect();
        for lease in over {
            self.revoke(lease);
        }
    }

    /// When the next lease ends.
    pub fn next_end(&self) -> Option<Instant> {
        self.leases.values().min().copied()
    }

    pub fn revoke(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        let keys = self.state.keys.iter().filter(|(_, e)| e.lease == lease);
        for key in keys.map(|(k, _)| k.clone()).collect::<Vec<_>>() {
            self.remove(&key);
        }
    }

    /// Changes from `from` on.
    ///
    /// # Errors
    /// They are compacted.
    pub fn changes(&self, from: Revision) -> Result<Vec<Watched>, StoreError> {
        if from <= self.compacted {
            return Err(StoreError::Compacted);
        }
        let new = self.history.iter().filter(|(r, _)| *r >= from);
        Ok(new.map(|(_, c)| c.clone()).collect())
    }

    /// Do what is asked, but for watches.
    pub fn answer(&mut self, ask: &Ask, now: Instant) -> Answer {
        match ask {
            Ask::List => {
                self.lists += 1;
                let state = self.stale.as_ref().unwrap_or(&self.state);
                let left = |lease: LeaseId| {
                    let end = self.leases.get(&lease)?;
                    Some((end.total_millis() - now.total_millis()) / 1000)
                };
                let config = format!("{PREFIX}/config").into_bytes();
                let entries = state.keys.values().filter(|e| e.key != config).cloned();
                Answer::Listed {
                    cluster: self.cluster,
                    revision: state.revision,
                    config: state.keys.get(&config).map(|e| e.value.clone()),
                    entries: entries
                        .map(|e| Entry {
                            ttl_s: left(e.lease),
                            ..e
                        })
                        .collect(),
                }
            }
            Ask::Watch { .. } => Answer::Watching,
            Ask::Create { key, value, ttl_s } => {
                let key = whole(key);
                if self.state.keys.contains_key(&key) {
                    return Answer::Otherwise;
                }
                let lease = self.grant(*ttl_s, now);
                self.write(key, value.clone(), lease);
                Answer::Written {
                    revision: self.state.revision,
                    lease,
                }
            }
            Ask::Renew {
                key,
                value,
                modified,
                ttl_s,
            } => {
                let key = whole(key);
                if self.lies {
                    return Answer::Written {
                        revision: self.state.revision + 1,
                        lease: 1,
                    };
                }
                if self.state.keys.get(&key).is_none_or(|e| e.modified != *modified) {
                    return Answer::Otherwise;
                }
                let lease = ttl_s.map_or(0, |s| self.grant(s, now));
                self.write(key, value.clone(), lease);
                Answer::Written {
                    revision: self.state.revision,
                    lease,
                }
            }
            Ask::Delete { key, modified } => {
                let key = whole(key);
                if self.state.keys.get(&key).is_none_or(|e| e.modified != *modified) {
                    return Answer::Otherwise;
                }
                self.remove(&key);
                Answer::Deleted
            }
            Ask::TimeToLive { lease } => Answer::Left {
                ttl_s: self
                    .leases
                    .get(lease)
                    .map(|end| (end.total_millis() - now.total_millis()) / 1000),
            },
        }
    }

    fn grant(&mut self, ttl_s: i64, now: Instant) -> LeaseId {
        self.next_lease += 1;
        self.leases
            .insert(self.next_lease, now + Duration::from_secs(ttl_s as u64));
        self.next_lease
    }

    fn write(&mut self, key: Vec<u8>, value: Vec<u8>, lease: LeaseId) {
        self.state.revision += 1;
        let modified = self.state.revision;
        let created = self.state.keys.get(&key).map_or(modified, |e| e.created);
        let entry = Entry {
            key: key.clone(),
            value,
            created,
            modified,
            lease,
            ttl_s: None,
        };
        self.state.keys.insert(key, entry.clone());
        self.history.push((modified, Watched::Put(entry)));
    }

    fn remove(&mut self, key: &[u8]) {
        if self.state.keys.remove(key).is_some() {
            self.state.revision += 1;
            let modified = self.state.revision;
            let key = key.to_vec();
            self.history.push((modified, Watched::Deleted { key, modified }));
        }
    }
}

fn whole(key: &SubnetKey) -> Vec<u8> {
    key.etcd_key(PREFIX).into_bytes()
}
