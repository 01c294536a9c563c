//! What a node keeps on disk, and takes back.

use super::config::Config;
use super::known::Place;
use super::{Cluster, Entry, Remembered, SubnetKey};
use crate::model::Instant;

impl Cluster {
    /// What is to be kept on disk.
    pub fn remember(&self) -> Remembered {
        let fits = |key: &SubnetKey| self.config.network.as_ref().is_some_and(|n| n.fits(key));
        let own = self.own.subnet.filter(|key| !self.released && fits(key));
        let peers = self
            .known
            .leases
            .iter()
            .filter(|(key, _)| self.own.subnet != Some(**key));
        let peers = peers.filter_map(|(key, lease)| {
            lease.value.as_ref()?;
            let value = std::str::from_utf8(&lease.raw).ok()?;
            Some((key.to_string(), value.to_string(), lease.modified))
        });
        Remembered {
            cluster: self.known.cluster.unwrap_or_default(),
            revision: self.known.highest,
            config: self.config.text.clone(),
            own: own.map(|key| key.to_string()),
            peers: peers.collect(),
        }
    }

    /// Take back what was kept. The subnet to run with at once, if there is one: it is that of the configuration,
    /// if that names one, and fits the network.
    pub(super) fn recall(&mut self, remembered: Remembered, now: Instant) -> Option<SubnetKey> {
        self.config.set(Some(remembered.config.as_bytes()), 0);
        if self.config.network.is_none() {
            self.config = Config::default();
            return None;
        }
        let network = self.config.network.as_ref()?;
        let own = remembered.own.and_then(|text| text.parse::<SubnetKey>().ok());
        let own = own.filter(|key| network.fits(key) && self.options.fixed.is_none_or(|f| f == *key));
        self.known.cluster = Some(remembered.cluster).filter(|id| *id != 0);
        self.known.revision = remembered.revision;
        for (key, value, modified) in remembered.peers {
            let whole = key.parse().map(|k: SubnetKey| k.etcd_key(&self.options.prefix));
            if let Ok(whole) = whole
                && let Place::Subnet(key) = self.known.place(whole.as_bytes())
                && own != Some(key)
            {
                self.known.put(key, &entry(whole, value, modified), false, now);
            }
        }
        self.known.highest = self.known.highest.max(remembered.revision);
        own
    }
}

/// A lease as it is remembered. When it was created is not: its last change is near enough until the store says.
fn entry(key: String, value: String, modified: i64) -> Entry {
    Entry {
        key: key.into_bytes(),
        value: value.into_bytes(),
        created: modified,
        modified,
        lease: 0,
        ttl_s: None,
    }
}
