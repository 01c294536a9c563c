//! From leases to peers: who is one, what it is called, and who claims what another has.

use super::known::Known;
use super::known::Lease;
use super::spans::{Spans, overlaps};
use super::{Identity, SubnetKey};
use crate::control::flannel::{LeaseValue, Network};
use crate::model::{Change, Mac, NodeName, Peer, Snapshot};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

/// Most leases that are skipped, and most conflicts, that are named.
pub(super) const MAX_NAMED: usize = 32;

/// This node, among the peers.
pub(super) struct Ours<'a> {
    pub(super) key: SubnetKey,
    /// How old its claim is; none while the store does not have it.
    pub(super) age: Option<(bool, i64)>,
    pub(super) me: &'a Identity,
    pub(super) vtep_mac: Mac,
}

/// The peers as they were last told.
#[derive(Debug, Default)]
pub(super) struct PeerTable {
    snapshot: Snapshot,
    /// What each is called, and what it called itself then.
    names: BTreeMap<SubnetKey, (String, NodeName)>,
    /// Leases that are no peers, and why; the first [`MAX_NAMED`].
    pub(super) skipped: Vec<(SubnetKey, String)>,
    pub(super) skipped_total: u64,
    /// What two nodes claim; the first [`MAX_NAMED`].
    pub(super) conflicts: Vec<String>,
    pub(super) conflicts_total: u64,
    /// Who has an older claim to what this node runs with.
    pub(super) rival: Option<String>,
}

impl PeerTable {
    /// What a lease's node is called.
    pub(super) fn name(&self, key: &SubnetKey) -> Option<&NodeName> {
        self.names.get(key).map(|(_, name)| name)
    }

    /// Make the peers anew. The work grows with the number of leases (and its logarithm), not with its square.
    pub(super) fn rebuild(&mut self, known: &Known, ours: &Ours, network: &Network) -> Vec<Change> {
        self.skipped.clear();
        self.conflicts.clear();
        (self.skipped_total, self.conflicts_total) = (0, 0);
        self.rival = None;
        let mut leases: Vec<_> = known.leases.iter().filter(|(key, _)| **key != ours.key).collect();
        // The older claim wins.
        leases.sort_by_key(|(key, lease)| (lease.age(), **key));
        let mut claims = Claims::new(ours);
        let mut accepted = Vec::new();
        for (key, lease) in leases {
            if let Some(fault) = &lease.fault {
                let stays = if lease.value.is_some() {
                    "; its node stays as it was"
                } else {
                    ""
                };
                self.skip(key, format!("{fault}{stays}"));
            }
            let Some(value) = &lease.value else {
                self.rivalry(key, lease, ours);
                continue;
            };
            match self.judge(key, lease, value, ours, network, &mut claims) {
                Ok(()) => accepted.push((key, value)),
                Err(why) => self.skip(key, why),
            }
        }
        let names = self.christen(&accepted, ours);
        let peers = accepted
            .iter()
            .zip(&names)
            .map(|((key, value), (_, name))| peer(key, value, name.clone(), network));
        let next = Snapshot {
            peers: peers.collect(),
        };
        self.names = accepted.iter().map(|(key, _)| **key).zip(names).collect();
        let changes = self.snapshot.diff(&next);
        self.snapshot = next;
        changes
    }

    /// Whether a lease makes a peer; claims of things that can be had twice are named only.
    fn judge(
        &mut self,
        key: &SubnetKey,
        lease: &Lease,
        value: &LeaseValue,
        ours: &Ours,
        network: &Network,
        claims: &mut Claims,
    ) -> Result<(), String> {
        let outside = !network.range4.net.contains(&key.net4)
            || key
                .net6
                .is_some_and(|net| !network.range6.is_some_and(|r| r.net.contains(&net)));
        if outside {
            return Err("it is not in the network".into());
        }
        let vni = value.vtep6.into_iter().chain([value.vtep]).map(|(vni, _)| vni);
        if let Some(other) = vni.into_iter().find(|vni| *vni != network.vni) {
            return Err(format!("its VNI is {other}, not {}", network.vni));
        }
        self.rivalry(key, lease, ours);
        if overlaps(key, &ours.key) {
            return Err(format!("it overlaps {} of this node", ours.key));
        }
        let mine = lease.id() == Some(ours.me.abilities.id.as_str());
        if value.public_ip == ours.me.public_ip {
            let why = format!("its address {} is this node's own", value.public_ip);
            self.conflict(format!("{key} ({}): {why}", lease.holder()));
            return Err(why);
        }
        if mine {
            self.conflict(format!(
                "{key} ({}) has this node's identity (a copied disk? remove the copy's identity)",
                lease.holder()
            ));
        }
        if let Some(older) = claims.spans.overlap(key) {
            let older_holder = known_holder(&claims.holders, &older);
            self.conflict(format!(
                "{key} ({}) overlaps {older} ({older_holder}), which is older and wins",
                lease.holder()
            ));
            return Err(format!("it overlaps {older}"));
        }
        claims.spans.cover(key);
        claims.holders.insert(*key, lease.holder());
        let underlay = format!("address {}", value.public_ip);
        let mac = format!("VTEP MAC {}", value.vtep.1);
        let id = lease.id().filter(|_| !mine).map(|id| format!("identity {id}"));
        for claim in [Some(underlay), Some(mac), id].into_iter().flatten() {
            if let Some(older) = claims.things.get(&claim) {
                let older_holder = known_holder(&claims.holders, older);
                let text = format!(
                    "{key} ({}) and {older} ({older_holder}) both have {claim}",
                    lease.holder()
                );
                self.conflict(text);
            } else {
                claims.things.insert(claim, *key);
            }
        }
        Ok(())
    }

    /// Whether a lease is an older claim to this node's subnet.
    fn rivalry(&mut self, key: &SubnetKey, lease: &Lease, ours: &Ours) {
        if !overlaps(key, &ours.key) {
            return;
        }
        let older = ours.age.is_none_or(|age| lease.age() < age);
        let holder = lease.holder();
        if older && self.rival.is_none() {
            self.rival = Some(format!("{holder} has {key}, which is older"));
        }
        if !older {
            self.conflict(format!(
                "{key} ({holder}) overlaps {} of this node, which is older",
                ours.key
            ));
        }
    }

    /// What each is called: what it was called before, else what it calls itself if that is a name and nobody has
    /// it (the older claim first), else its subnet.
    fn christen(&self, accepted: &[(&SubnetKey, &LeaseValue)], ours: &Ours) -> Vec<(String, NodeName)> {
        let says = |value: &LeaseValue| value.podwire.as_ref().map(|p| p.name.clone()).unwrap_or_default();
        let mut taken: HashSet<NodeName> = ours.me.abilities.name.parse().into_iter().collect();
        let mut names: Vec<Option<(String, NodeName)>> = Vec::with_capacity(accepted.len());
        for (key, value) in accepted {
            let before = self.names.get(*key).filter(|(said, _)| *said == says(value));
            let kept = before.filter(|(_, name)| taken.insert(name.clone())).cloned();
            names.push(kept);
        }
        let named = accepted.iter().zip(names).map(|((key, value), kept)| {
            kept.unwrap_or_else(|| {
                let said = says(value);
                // A name that looks like a subnet could be another's.
                let free = said.parse().ok().filter(|_| said.parse::<SubnetKey>().is_err());
                let name = free.filter(|name| taken.insert(NodeName::clone(name)));
                (said, name.unwrap_or_else(|| of_subnet(key)))
            })
        });
        named.collect()
    }

    fn skip(&mut self, key: &SubnetKey, why: String) {
        self.skipped_total += 1;
        if self.skipped.len() < MAX_NAMED {
            self.skipped.push((*key, why));
        }
    }

    fn conflict(&mut self, what: String) {
        self.conflicts_total += 1;
        if self.conflicts.len() < MAX_NAMED {
            self.conflicts.push(what);
        }
    }
}

/// What the leases so far have.
struct Claims {
    spans: Spans,
    /// Addresses, MACs and identities.
    things: HashMap<String, SubnetKey>,
    holders: HashMap<SubnetKey, String>,
}

impl Claims {
    fn new(ours: &Ours) -> Claims {
        let mut claims = Claims {
            spans: Spans::default(),
            things: HashMap::new(),
            holders: HashMap::new(),
        };
        claims
            .things
            .insert(format!("VTEP MAC {}", ours.vtep_mac), ours.key);
        claims.holders.insert(ours.key, "this node".into());
        claims
    }
}

fn known_holder<'a>(holders: &'a HashMap<SubnetKey, String>, key: &SubnetKey) -> &'a str {
    holders.get(key).map_or("somebody", String::as_str)
}

/// A node without a name is called by its IPv4 subnet, which no other peer has.
fn of_subnet(key: &SubnetKey) -> NodeName {
    let four = SubnetKey {
        net4: key.net4,
        net6: None,
    };
    match four.to_string().parse() {
        Ok(name) => name,
        Err(_) => unreachable!("digits, dots and a dash are a name"),
    }
}

fn peer(key: &SubnetKey, value: &LeaseValue, name: NodeName, network: &Network) -> Peer {
    let six = value
        .public_ip6
        .filter(|_| key.net6.is_some() && network.range6.is_some());
    Peer {
        name,
        underlay: SocketAddr::from((value.public_ip, network.port)),
        underlay6: six.map(|ip| SocketAddr::from((ip, network.port))),
        subnet4: Some(key.net4),
        // Its route must not reach beyond the network.
        subnet6: key.net6.filter(|_| network.range6.is_some()),
        vtep_mac: value.vtep.1,
        vtep_mac6: value.vtep6.map_or(value.vtep.1, |(_, mac)| mac),
        mtu: None,
    }
}
