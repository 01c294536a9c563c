//! How the membership stands, in words and numbers.

use super::known::Lease;
use super::machine::Stop;
use super::own::Standing;
use super::peers::MAX_NAMED;
use super::{Cluster, LeaseInfo, StoreError, StoreStatus, SubnetKey};
use crate::model::Instant;

impl Cluster {
    /// How it stands.
    pub fn status(&self, now: Instant) -> StoreStatus {
        let now = now.max(self.clock);
        let (strange, strange_total) = self.known.strange();
        let leases = self
            .peers
            .skipped
            .iter()
            .map(|(key, why)| (key.to_string(), why.clone()));
        let skipped = strange.map(|(key, why)| (key, why.to_string())).chain(leases);
        StoreStatus {
            connected: self.is_connected(),
            doing: self.doing(now),
            silent_ms: self.talk.heard.map(|t| (now - t).total_millis()),
            revision: self.known.revision,
            failures: self.talk.failures,
            alarms: self.alarms(now),
            allocate: self.allocate,
            skipped: skipped.take(MAX_NAMED).collect(),
            skipped_total: strange_total + self.peers.skipped_total,
            leases: self
                .known
                .leases
                .iter()
                .map(|(key, lease)| self.info(key, lease, now))
                .collect(),
        }
    }

    fn is_connected(&self) -> bool {
        self.talk.watch.as_ref().is_some_and(|w| w.since.is_some())
    }

    fn doing(&self, now: Instant) -> String {
        let own = self.own.subnet;
        let lease = own.and_then(|key| self.known.leases.get(&key));
        match (self.stop, own) {
            (Stop::Done, _) => "has stopped".into(),
            (Stop::Wanted { .. }, _) => "stops".into(),
            (Stop::No, Some(key)) => match (self.own.standing(&self.view(now)), lease) {
                _ if !self.talk.based => format!("runs with {key} as remembered and waits for the store"),
                (Standing::Absent, _) => format!("runs with {key} and takes its lease again"),
                (Standing::Spoilt, _) => format!("runs with {key} and writes its lease again"),
                (Standing::Other(_), _) => format!("runs with {key} and waits until it is free in the store"),
                (Standing::Mine, Some(lease)) if lease.lease == 0 => format!("has {key}, reserved for it"),
                (Standing::Mine, _) => format!("has {key}"),
            },
            (Stop::No, None) if !self.talk.based => "waits for the store".into(),
            (Stop::No, None) if self.config.network.is_none() => {
                format!(
                    "waits for the network's configuration at {}/config",
                    self.prefix()
                )
            }
            (Stop::No, None) => match &self.own.stuck {
                Some(_) => "waits for a subnet".into(),
                None => "takes a subnet".into(),
            },
        }
    }

    fn prefix(&self) -> &str {
        self.options.prefix.trim_end_matches('/')
    }

    /// The worst first.
    fn alarms(&self, now: Instant) -> Vec<String> {
        let mut alarms = Vec::new();
        let own = self.own.subnet;
        if let (Some(key), Standing::Other(who)) = (own, self.own.standing(&self.view(now))) {
            alarms.push(format!(
                "this node's subnet {key} belongs to {who} now: pods here go on without traffic from other nodes, \
                 new ones are refused, and it is taken again when it is free"
            ));
        }
        if let (Some(key), Some(rival)) = (own, &self.peers.rival) {
            alarms.push(format!(
                "this node's subnet {key} is claimed by another: {rival}; new pods are refused until it is gone"
            ));
        }
        if let Some(why) = self.own.stuck.as_ref().filter(|_| own.is_none()) {
            alarms.push(why.clone());
        }
        if let Some(trouble) = &self.talk.trouble {
            let s = (now - trouble.since).secs();
            alarms.push(match &trouble.what {
                StoreError::Refused(why) => format!("the store does not let this node in ({why}), for {s} s"),
                why => format!("the store does not answer as it should ({why}), for {s} s"),
            });
        }
        let lease = own.and_then(|key| self.known.leases.get(&key));
        if let Some(at) = lease.and_then(|l| l.expires).filter(|at| *at <= now) {
            alarms.push(format!(
                "this node's lease ran out {} s ago and could not be renewed: others may take its subnet",
                (now - at).secs()
            ));
        }
        if let Some(why) = &self.own.trouble {
            alarms.push(format!("this node's lease could not be written: {why}"));
        }
        self.config_alarms(&mut alarms);
        let held = self.known.leases.values().filter(|l| l.gone.is_some()).count();
        if held > 0 {
            alarms.push(format!(
                "{held} leases are gone from the store at once: asking it again before they are believed gone"
            ));
        }
        if self.proof.doubts() {
            alarms.push(
                "the store's revision is lower than before: looking again before anything is changed".into(),
            );
        }
        let carried = self.known.leases.values().filter(|l| l.carried.is_some()).count();
        if let Some(why) = self.replaced.filter(|_| carried > 0) {
            alarms.push(format!(
                "the store is not what it was: {why}; {carried} leases of before are carried on until their nodes write them again"
            ));
        }
        alarms.extend(self.peers.conflicts.iter().cloned());
        let more = self.peers.conflicts_total - self.peers.conflicts.len() as u64;
        if more > 0 {
            alarms.push(format!("{more} more conflicts between leases"));
        }
        alarms
    }

    fn config_alarms(&self, alarms: &mut Vec<String>) {
        let place = format!("{}/config", self.prefix());
        let running = self.own.subnet.is_some();
        if let Some(why) = &self.config.fault {
            let then = if running {
                "what is running stays"
            } else {
                "waiting for a better one"
            };
            alarms.push(format!(
                "the network's configuration at {place} is not usable: {why} ({then})"
            ));
        }
        if self.config.missing {
            let then = if running {
                "what is running stays"
            } else {
                "an administrator writes it, as for flannel"
            };
            alarms.push(format!("there is no network configuration at {place} ({then})"));
        }
        if let Some(what) = self.config.differs() {
            alarms.push(format!(
                "the network's configuration changed: {what}; restart this node to apply it"
            ));
        }
        if let (Some(key), Some(network)) = (self.own.subnet, &self.config.network)
            && self.config.differs().is_none()
            && !network.fits(&key)
        {
            alarms.push(format!(
                "this node's subnet {key} is none of the network's any more; a restart takes another"
            ));
        }
    }

    fn info(&self, key: &SubnetKey, lease: &Lease, now: Instant) -> LeaseInfo {
        let own = self.own.subnet == Some(*key);
        let podwire = lease.value.as_ref().and_then(|v| v.podwire.as_ref());
        let said = podwire.map(|p| p.name.clone()).filter(|n| !n.is_empty());
        let name = match self.peers.name(key) {
            Some(name) if !own => name.to_string(),
            _ => said.unwrap_or_else(|| key.to_string()),
        };
        LeaseInfo {
            subnet: key.to_string(),
            name,
            public_ip: lease
                .value
                .as_ref()
                .map(|v| v.public_ip.to_string())
                .unwrap_or_default(),
            podwire: podwire.map(|p| p.version.clone()),
            own,
            reservation: lease.lease == 0 && lease.carried.is_none() && self.talk.based,
            expires_s: lease
                .expires
                .map(|at| (at.total_micros() - now.total_micros()) / 1_000_000),
            seen_s: (now - lease.seen).total_micros() / 1_000_000,
        }
    }
}
