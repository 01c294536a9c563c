//! The names a node answers by itself: its pods', the host's, static entries, and the addresses of all these.
//!
//! ```text
//! web.default.pod           the pod default/web               2.1.244.10.in-addr.arpa   its address
//! db-0.db.shop.pod          the pod shop/db-0, by its set     db.shop.pod               all pods of the set db
//! cache.shop.pod            all pods of shop with this alias
//! host.podwire.internal     the gateway, which is the host    whatever a person adds    static entries
//! web.default.svc.cluster.local, db-0.db.shop.svc.cluster.local, _http._tcp.web...       Services ([`services`])
//! ```
//!
//! A name that several claim belongs to the lowest [`Rank`]; a set's name to all its pods, an alias to all that have it. Within the apexes (the
//! domain, that of Services, `podwire.internal`, the reverse zones of the node's subnets and of Services) nothing else exists, and nothing is forwarded;
//! outside of them only a static entry's very name is the node's.

mod services;

use super::entry::{Data, Entry};
use super::name::{self, Fqdn};
use crate::model::{PodName, ServiceName};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{HINFO, PTR, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Seconds a name of the node may be believed: pods come and go.
pub const TTL: u32 = 5;
/// Longest chain of aliases that is followed.
const MAX_ALIASES: usize = 8;
/// What `ANY` is answered with (RFC 8482 section 4.2).
const ANY: &str = "RFC8482";

/// A pod's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodAddresses {
    /// IPv4.
    pub ip4: Option<Ipv4Addr>,
    /// IPv6.
    pub ip6: Option<Ipv6Addr>,
}

impl PodAddresses {
    fn iter(self) -> impl Iterator<Item = IpAddr> {
        let four = self.ip4.map(IpAddr::from);
        four.into_iter().chain(self.ip6.map(IpAddr::from))
    }
}

/// Why a name is the node's. Of several the first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// It is what a person added.
    Entry,
    /// It is the host's.
    Host,
    /// It is a Service's; as an address's name, that of what stands behind one without an address of its own.
    Service,
    /// It is a pod's, by its own name.
    Pod,
    /// It is another name of a pod, or of several.
    Alias,
    /// It is a pod's, as one of a set: `db-0.db.shop.pod`.
    Member,
    /// It is that of the set: `db.shop.pod`.
    Set,
}

impl Rank {
    /// The word people see.
    pub fn label(self) -> &'static str {
        match self {
            Rank::Entry => "entry",
            Rank::Host => "host",
            Rank::Service => "service",
            Rank::Pod => "pod",
            Rank::Alias => "alias",
            Rank::Member => "member",
            Rank::Set => "set",
        }
    }
}

/// Who has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    rank: Rank,
    who: Who,
}

/// Whom a claim is of, when several may have one of its rank.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Nobody,
    Pod(PodName),
    Service(ServiceName),
}

/// What a claim says of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Says {
    Record(Data),
    Is(Fqdn),
}

/// What the node says to a question.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// The name is not the node's: others are to be asked.
    Elsewhere,
    /// The answer.
    Here {
        /// No error, or no such name.
        code: ResponseCode,
        /// Records of the name, aliases first.
        answers: Vec<Record>,
        /// The SOA, when there is nothing.
        authority: Vec<Record>,
        /// Addresses of what the records name.
        additionals: Vec<Record>,
    },
    /// Aliases that lead to a name that is not the node's: others are to be asked for that.
    Alias {
        /// The aliases.
        answers: Vec<Record>,
        /// Where they lead, in wire form.
        target: Fqdn,
    },
}

/// The names.
pub struct Zone {
    domain: Fqdn,
    apexes: Vec<Fqdn>,
    host: Fqdn,
    names: HashMap<Fqdn, BTreeMap<Claim, Vec<Says>>>,
    /// How many names lie below: those between exist, though they have nothing.
    below: HashMap<Fqdn, usize>,
    pods: HashMap<PodName, PodAddresses>,
    /// Other names of pods, also of those that are not there.
    aliases: HashMap<PodName, Vec<String>>,
    entries: Vec<Entry>,
    services: services::Services,
}

impl Zone {
    /// The names of a node without pods. `gateways` are the addresses at which pods reach the host.
    pub fn new(domain: Fqdn, subnets: &[IpNet], gateways: PodAddresses) -> Zone {
        let labels = |l: &[&str]| Fqdn::of_labels(l.iter().copied());
        let internal = labels(&["podwire", "internal"]);
        let host = labels(&["host", "podwire", "internal"]);
        let reverse = subnets.iter().map(|n| Fqdn::reverse_zone(*n));
        // A subnet wider than whole octets shares its zone with others.
        let own = reverse
            .zip(subnets)
            .filter(|(_, n)| n.prefix_len() % if n.network().is_ipv4() { 8 } else { 4 } == 0);
        let apexes = [domain.clone()]
            .into_iter()
            .chain(internal)
            .chain(own.map(|(name, _)| name));
        let mut zone = Zone {
            apexes: apexes.collect(),
            host: host.unwrap_or_else(|| domain.clone()),
            domain,
            names: HashMap::new(),
            below: HashMap::new(),
            pods: HashMap::new(),
            aliases: HashMap::new(),
            entries: Vec::new(),
            services: services::Services::default(),
        };
        let claim = Claim {
            rank: Rank::Host,
            who: Who::Nobody,
        };
        for ip in gateways.iter() {
            let entry = Entry::address(zone.host.clone(), ip);
            zone.say(entry.name, claim.clone(), Says::Record(entry.data));
            zone.say(Fqdn::reverse(ip), claim.clone(), Says::Is(zone.host.clone()));
        }
        zone
    }

    /// Give a pod its names, or take them away.
    pub fn set_pod(&mut self, pod: &PodName, addresses: Option<PodAddresses>) {
        if let Some(old) = self.pods.remove(pod) {
            for (name, rank, _) in self.names_of(pod, old) {
                self.unsay(&name, rank, &Who::Pod(pod.clone()));
            }
        }
        if let Some(new) = addresses {
            for (name, rank, says) in self.names_of(pod, new) {
                let claim = Claim {
                    rank,
                    who: Who::Pod(pod.clone()),
                };
                self.say(name, claim, says);
            }
            self.pods.insert(pod.clone(), new);
        }
    }

    /// Give a pod these other names in its namespace instead of the former ones. What is no label of a name is left out.
    pub fn set_aliases(&mut self, pod: &PodName, aliases: &[String]) {
        if self.aliases.get(pod).map(Vec::as_slice).unwrap_or_default() == aliases {
            return;
        }
        let addresses = self.pods.get(pod).copied();
        self.set_pod(pod, None);
        match aliases {
            [] => drop(self.aliases.remove(pod)),
            some => drop(self.aliases.insert(pod.clone(), some.into())),
        }
        self.set_pod(pod, addresses);
    }

    /// Have these entries instead of the former ones.
    pub fn set_entries(&mut self, entries: Vec<Entry>) {
        let reverse = |e: &Entry| e.data.ip().map(Fqdn::reverse);
        for entry in std::mem::take(&mut self.entries) {
            self.unsay(&entry.name, Rank::Entry, &Who::Nobody);
            if let Some(name) = reverse(&entry) {
                // Behind a pod of that address, which is told first.
                self.unsay(&name, Rank::Set, &Who::Nobody);
            }
        }
        for entry in &entries {
            let claim = |rank| Claim {
                rank,
                who: Who::Nobody,
            };
            self.say(
                entry.name.clone(),
                claim(Rank::Entry),
                Says::Record(entry.data.clone()),
            );
            if let Some(name) = reverse(entry) {
                self.say(name, claim(Rank::Set), Says::Is(entry.name.clone()));
            }
        }
        self.entries = entries;
    }

    /// Every name with one record, as text, in order; those that another has are left out.
    pub fn list(&self) -> Vec<(Fqdn, RecordType, String, Rank)> {
        let mut all: Vec<_> = self
            .names
            .iter()
            .flat_map(|(name, claims)| {
                claims_in_force(claims).flat_map(move |(claim, says)| {
                    // An entry's address is claimed behind everybody, and an entry's all the same.
                    let rank = match claim.rank {
                        Rank::Set if claim.who == Who::Nobody => Rank::Entry,
                        rank => rank,
                    };
                    says.iter().map(move |s| match s {
                        Says::Record(data) => (name.clone(), data.kind(), data.to_string(), rank),
                        Says::Is(who) => (name.clone(), RecordType::PTR, who.to_string(), rank),
                    })
                })
            })
            .collect();
        all.sort();
        all
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// What the node says of `asked`, a whole name in wire form in any spelling.
    pub fn lookup(&self, asked: &[u8], kind: RecordType) -> Found {
        let Some(mut name) = Fqdn::of_wire(asked) else {
            return Found::Elsewhere;
        };
        // The first record is that of the name as it was spelled.
        let mut owner = name::name_of(asked);
        let mut answers: Vec<Record> = Vec::new();
        for _ in 0..MAX_ALIASES {
            let Some(claims) = self.names.get(&name) else {
                return match self.apex(&name) {
                    Some(apex) => {
                        let code = match self.below.contains_key(&name) || name == *apex {
                            true => ResponseCode::NoError,
                            false => ResponseCode::NXDomain,
                        };
                        self.apex_records(&name, apex, &owner, kind, answers, code)
                    }
                    None if answers.is_empty() => Found::Elsewhere,
                    None => Found::Alias {
                        answers,
                        target: name,
                    },
                };
            };
            let says: Vec<&Says> = claims_in_force(claims).flat_map(|(_, s)| s).collect();
            let alias = says.iter().find_map(|s| match s {
                Says::Record(Data::Cname(to)) if kind != RecordType::CNAME && kind != RecordType::ANY => {
                    Some(to)
                }
                _ => None,
            });
            if let Some(to) = alias {
                answers.push(Record::from_rdata(owner, TTL, Data::Cname(to.clone()).rdata()));
                name = to.clone();
                owner = to.to_name();
                continue;
            }
            return self.records(&name, &owner, kind, &says, answers);
        }
        // Aliases that end nowhere, as an authority would say.
        Found::Here {
            code: ResponseCode::ServFail,
            answers,
            authority: Vec::new(),
            additionals: Vec::new(),
        }
    }

    fn records(
        &self,
        name: &Fqdn,
        owner: &Name,
        kind: RecordType,
        says: &[&Says],
        mut answers: Vec<Record>,
    ) -> Found {
        let mut additionals = Vec::new();
        let before = answers.len();
        for says in says {
            let rdata = match says {
                Says::Record(data) if data.kind() == kind => data.rdata(),
                Says::Is(who) if kind == RecordType::PTR => RData::PTR(PTR(who.to_name())),
                _ => continue,
            };
            if let Says::Record(Data::Srv { target, .. }) = says {
                additionals.extend(self.addresses(target));
            }
            answers.push(Record::from_rdata(owner.clone(), TTL, rdata));
        }
        if kind == RecordType::ANY {
            answers.push(Record::from_rdata(
                owner.clone(),
                TTL,
                RData::HINFO(HINFO::new(ANY.into(), String::new())),
            ));
        }
        let empty = answers.len() == before;
        Found::Here {
            code: ResponseCode::NoError,
            authority: empty
                .then(|| soa(self.apex(name).unwrap_or(name)))
                .into_iter()
                .collect(),
            answers,
            additionals,
        }
    }

    /// What is said of a name within an apex that has no records; the apex itself has an SOA.
    fn apex_records(
        &self,
        name: &Fqdn,
        apex: &Fqdn,
        owner: &Name,
        kind: RecordType,
        mut answers: Vec<Record>,
        code: ResponseCode,
    ) -> Found {
        let own = name == apex && kind == RecordType::SOA;
        let mut record = soa(apex);
        if own {
            record.name = owner.clone();
            answers.push(record.clone());
        }
        Found::Here {
            code,
            answers,
            authority: (!own).then_some(record).into_iter().collect(),
            additionals: Vec::new(),
        }
    }

    /// The addresses of a name of the node.
    fn addresses(&self, name: &Fqdn) -> impl Iterator<Item = Record> {
        let claims = self.names.get(name).into_iter().flat_map(claims_in_force);
        claims.flat_map(|(_, says)| says).filter_map(|says| match says {
            Says::Record(data) if data.ip().is_some() => {
                Some(Record::from_rdata(name.to_name(), TTL, data.rdata()))
            }
            _ => None,
        })
    }

    /// The apex a name lies in.
    fn apex(&self, name: &Fqdn) -> Option<&Fqdn> {
        let mut rest = name.wire();
        loop {
            if let Some(apex) = self.apexes.iter().find(|a| a.wire() == rest) {
                return Some(apex);
            }
            rest = name::parent(rest)?;
        }
    }

    /// The names a pod has with these addresses, and what they say.
    fn names_of(&self, pod: &PodName, addresses: PodAddresses) -> Vec<(Fqdn, Rank, Says)> {
        let domain = self.domain.to_string();
        let join = |front: &str| format!("{front}.{}.{domain}", pod.namespace).parse::<Fqdn>().ok();
        let mut names: Vec<(Fqdn, Rank)> = Vec::new();
        // A pod whose name has an empty label ("a..b") has none here.
        let Some(own) = join(&pod.name) else {
            return Vec::new();
        };
        names.push((own.clone(), Rank::Pod));
        if let Some(set) = set_of(&pod.name) {
            let member = join(&format!("{}.{set}", pod.name));
            names.extend(member.map(|n| (n, Rank::Member)));
            names.extend(join(set).map(|n| (n, Rank::Set)));
        }
        let aliases = self.aliases.get(pod).into_iter().flatten();
        let aliases = aliases.filter(|a| !a.contains('.')).filter_map(|a| join(a));
        names.extend(aliases.filter(|n| *n != own).map(|n| (n, Rank::Alias)));
        let mut all = Vec::new();
        for ip in addresses.iter() {
            for (name, rank) in &names {
                let entry = Entry::address(name.clone(), ip);
                all.push((entry.name, *rank, Says::Record(entry.data)));
            }
            all.push((Fqdn::reverse(ip), Rank::Pod, Says::Is(own.clone())));
        }
        all
    }

    fn say(&mut self, name: Fqdn, claim: Claim, says: Says) {
        if !self.names.contains_key(&name) {
            let mut above = name.parent();
            while let Some(name) = above {
                above = name.parent();
                *self.below.entry(name).or_default() += 1;
            }
        }
        let said = self.names.entry(name).or_default().entry(claim).or_default();
        if !said.contains(&says) {
            said.push(says);
        }
    }

    fn unsay(&mut self, name: &Fqdn, rank: Rank, who: &Who) {
        let Some(claims) = self.names.get_mut(name) else {
            return;
        };
        claims.remove(&Claim {
            rank,
            who: who.clone(),
        });
        if claims.is_empty() {
            self.names.remove(name);
            let mut above = name.parent();
            while let Some(name) = above {
                above = name.parent();
                if let Some(count) = self.below.get_mut(&name) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        self.below.remove(&name);
                    }
                }
            }
        }
    }
}

/// The claims that count: the first, or all of a set, or of those with the alias.
fn claims_in_force(claims: &BTreeMap<Claim, Vec<Says>>) -> impl Iterator<Item = (&Claim, &Vec<Says>)> {
    let rank = claims.keys().next().map(|c| c.rank);
    let all = matches!(rank, Some(Rank::Set | Rank::Alias));
    let same = claims.iter().take_while(move |(c, _)| Some(c.rank) == rank);
    same.take(if all { usize::MAX } else { 1 })
}

/// The set a pod of this name is one of: `db` of `db-0`.
fn set_of(pod: &str) -> Option<&str> {
    let (set, ordinal) = pod.rsplit_once('-')?;
    let number = !ordinal.is_empty() && ordinal.bytes().all(|b| b.is_ascii_digit());
    (number && !set.is_empty()).then_some(set)
}

/// The SOA of an apex; its times are those of names that may come any moment.
fn soa(apex: &Fqdn) -> Record {
    let name = apex.to_name();
    let child = |label: &str| name.prepend_label(label).unwrap_or_else(|_| name.clone());
    let soa = SOA::new(child("ns"), child("hostmaster"), 1, 3600, 600, 86_400, TTL);
    Record::from_rdata(name.clone(), TTL, RData::SOA(soa))
}

#[cfg(test)]
mod tests;
