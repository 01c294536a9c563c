//! The published ports of the node's pods: who has which port of the host, what a request comes to in sockets, and what
//! is left when some of them go. Decided here, without a system call; [`bind`] makes the sockets, and [`owner`] finds out
//! who has a port that none of them got.

pub mod bind;
mod owner;

use super::admin::Refusal;
use super::command::{PublishedCounts, Socket};
use crate::api::{ErrorKind, PublishedPort};
use crate::model::{HostPort, Instant, PodName, PortMapping};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

/// Published sockets of a node: each takes a descriptor.
pub const MAX_SOCKETS: usize = 4096;
/// Ranges and single ports of a pod: as many as fit its record.
pub const MAX_MAPPINGS: usize = 256;

/// Addresses of a pod.
pub type Addresses = (Option<Ipv4Addr>, Option<Ipv6Addr>);

/// A socket to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Where it is bound.
    pub port: HostPort,
    /// Where on the pod it leads.
    pub to: SocketAddr,
    /// What asked for it.
    pub mapping: PortMapping,
    /// A host that has no such address goes without: nobody named it.
    pub optional: bool,
}

#[derive(Debug)]
struct Entry {
    pod: PodName,
    wanted: Wanted,
    /// The conversation it is for.
    tied: Option<u64>,
    since: Instant,
    /// Until the worker has it.
    socket: Option<OwnedFd>,
}

/// All published ports of a node.
#[derive(Debug, Default)]
pub struct Published {
    entries: BTreeMap<HostPort, Entry>,
}

impl Published {
    /// The sockets that a request for a pod comes to, if none of them is taken by another pod.
    ///
    /// # Errors
    /// What is wrong, and who has what is taken.
    pub fn plan(
        &self,
        pod: &PodName,
        addresses: Addresses,
        mappings: &[PortMapping],
        now: Instant,
    ) -> Result<Vec<Wanted>, Refusal> {
        let mut all = Vec::new();
        let mut named = BTreeSet::new();
        for mapping in mappings {
            for (host, ip, optional) in ends(pod, addresses, mapping)? {
                for (on_host, of_pod) in mapping.ports() {
                    let port = HostPort {
                        protocol: mapping.protocol,
                        at: SocketAddr::new(host, on_host),
                    };
                    if let Some((other, entry)) = self.collision(&port) {
                        return Err(taken(&port, other, entry, now));
                    }
                    all.push(Wanted {
                        port,
                        to: SocketAddr::new(ip, of_pod),
                        mapping: *mapping,
                        optional,
                    });
                }
            }
            // Before more is made of a long request.
            if self.entries.len() + all.len() > MAX_SOCKETS {
                let what = format!(
                    "a node publishes {MAX_SOCKETS} ports at most, an address each, and has {} already",
                    self.entries.len()
                );
                return Err(Refusal::new(ErrorKind::Exhausted, what));
            }
        }
        let twice = all.iter().find(|w| !named.insert(w.port));
        // Or at one address, and at every one of its family.
        let covered = all.iter().find(|w| {
            let at = SocketAddr::new(unspecified(w.port.at.ip()), w.port.at.port());
            w.port.at != at && named.contains(&HostPort { at, ..w.port })
        });
        if let Some(wanted) = twice.or(covered) {
            return Err(Refusal::new(
                ErrorKind::Usage,
                format!("{} is named twice", wanted.port),
            ));
        }
        let own = self.mappings(pod).len() + mappings.len();
        if own > MAX_MAPPINGS {
            let what =
                format!("a pod has {MAX_MAPPINGS} published ports and ranges at most, and this makes {own}");
            return Err(Refusal::new(ErrorKind::Exhausted, what));
        }
        Ok(all)
    }

    fn collision(&self, port: &HostPort) -> Option<(&HostPort, &Entry)> {
        let any = SocketAddr::new(unspecified(port.at.ip()), port.at.port());
        let at = |at: SocketAddr| self.entries.get_key_value(&HostPort { at, ..*port });
        at(port.at).or_else(|| at(any)).or_else(|| match port.at == any {
            true => self.entries.iter().find(|(other, _)| other.collides(port)),
            false => None,
        })
    }

    /// A socket is there, and waits to be given to the worker.
    pub fn insert(
        &mut self,
        pod: &PodName,
        wanted: Wanted,
        socket: OwnedFd,
        tied: Option<u64>,
        now: Instant,
    ) {
        let entry = Entry {
            pod: pod.clone(),
            wanted,
            tied,
            since: now,
            socket: Some(socket),
        };
        self.entries.insert(wanted.port, entry);
    }

    /// The sockets of a pod that the worker is to have, and has not.
    pub fn sockets(&mut self, pod: &PodName) -> Vec<Socket> {
        let own = self.entries.values_mut().filter(|e| e.pod == *pod);
        own.filter_map(|e| {
            Some(Socket {
                port: e.wanted.port,
                to: e.wanted.to,
                fd: e.socket.take()?,
            })
        })
        .collect()
    }

    /// Those of a pod that a request names; without an address, those at any.
    ///
    /// # Errors
    /// One that is not there.
    pub fn named(&self, pod: &PodName, mappings: &[PortMapping]) -> Result<Vec<HostPort>, PortMapping> {
        let mut all = BTreeSet::new();
        for mapping in mappings {
            for (on_host, of_pod) in mapping.ports() {
                let before = all.len();
                let fits = |(port, e): &(&HostPort, &Entry)| {
                    e.pod == *pod
                        && port.protocol == mapping.protocol
                        && port.at.port() == on_host
                        && e.wanted.to.port() == of_pod
                        && mapping.host.is_none_or(|host| host == port.at.ip())
                };
                all.extend(self.entries.iter().filter(fits).map(|(port, _)| *port));
                if all.len() == before {
                    return Err(*mapping);
                }
            }
        }
        Ok(all.into_iter().collect())
    }

    /// Forget some of a pod's. What is left of a range is ports by themselves from now on.
    pub fn remove(&mut self, pod: &PodName, ports: &[HostPort]) {
        let gone = ports.iter().filter_map(|port| self.entries.remove(port));
        let touched: BTreeSet<PortMapping> = gone.map(|e| e.wanted.mapping).collect();
        for entry in self.entries.values_mut().filter(|e| e.pod == *pod) {
            let wanted = &mut entry.wanted;
            if touched.contains(&wanted.mapping) {
                wanted.mapping = PortMapping {
                    host: Some(wanted.port.at.ip()),
                    first: wanted.port.at.port(),
                    pod: wanted.to.port(),
                    count: 1,
                    protocol: wanted.port.protocol,
                };
            }
        }
    }

    /// Forget all of a pod's; the conversations for which there is nothing more.
    pub fn remove_pod(&mut self, pod: &PodName) -> BTreeSet<u64> {
        let gone = self.entries.extract_if(.., |_, e| e.pod == *pod);
        let mut over: BTreeSet<u64> = gone.filter_map(|(_, e)| e.tied).collect();
        for left in self.entries.values().filter_map(|e| e.tied) {
            over.remove(&left);
        }
        over
    }

    /// Forget what was for a conversation.
    pub fn remove_tied(&mut self, tied: u64) -> Vec<HostPort> {
        let gone = self.entries.extract_if(.., |_, e| e.tied == Some(tied));
        gone.map(|(port, _)| port).collect()
    }

    /// What is to be remembered of a pod: not what is there for a conversation.
    pub fn mappings(&self, pod: &PodName) -> Vec<PortMapping> {
        let own = self
            .entries
            .values()
            .filter(|e| e.pod == *pod && e.tied.is_none());
        let all: BTreeSet<PortMapping> = own.map(|e| e.wanted.mapping).collect();
        let mut condensed: Vec<PortMapping> = Vec::new();
        for next in all {
            match condensed.last_mut() {
                Some(last) if follows(last, &next) => last.count += next.count,
                _ => condensed.push(next),
            }
        }
        condensed
    }

    /// How many sockets there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Those of one pod, or of all, by pod.
    pub fn list(
        &self,
        of: Option<&PodName>,
        counts: &HashMap<HostPort, PublishedCounts>,
        now: Instant,
    ) -> Vec<PublishedPort> {
        let those = self
            .entries
            .iter()
            .filter(|(_, e)| of.is_none_or(|pod| e.pod == *pod));
        let mut all: Vec<PublishedPort> = those
            .map(|(port, e)| {
                let counts = counts.get(port).copied().unwrap_or_default();
                PublishedPort {
                    pod: e.pod.clone(),
                    protocol: port.protocol,
                    host: port.at,
                    to: e.wanted.to,
                    tied: e.tied.is_some(),
                    age_s: (now - e.since).secs(),
                    connections: counts.open,
                    accepted: counts.accepted,
                    refused: counts.refused,
                }
            })
            .collect();
        all.sort_by(|a, b| a.pod.cmp(&b.pod));
        all
    }
}

/// The host's addresses of a mapping, where each leads, and whether it may be missing.
fn ends(
    pod: &PodName,
    (ip4, ip6): Addresses,
    mapping: &PortMapping,
) -> Result<Vec<(IpAddr, IpAddr, bool)>, Refusal> {
    let (four, six) = (ip4.map(IpAddr::V4), ip6.map(IpAddr::V6));
    let none = |family: &str, other: &str| {
        let what =
            format!("pod {pod} has no {family} address that {mapping} could lead to (publish at {other})");
        Err(Refusal::new(ErrorKind::Usage, what))
    };
    match mapping.host {
        Some(host @ IpAddr::V4(_)) => match four {
            Some(ip) => Ok(vec![(host, ip, false)]),
            None => none("IPv4", "[::], [::1] or another IPv6 address"),
        },
        Some(host @ IpAddr::V6(_)) => match six {
            Some(ip) => Ok(vec![(host, ip, false)]),
            None => none("IPv6", "0.0.0.0, 127.0.0.1 or another IPv4 address"),
        },
        None => {
            let at4 = four.map(|ip| (Ipv4Addr::LOCALHOST.into(), ip, false));
            let at6 = six.map(|ip| (Ipv6Addr::LOCALHOST.into(), ip, four.is_some()));
            Ok(at4.into_iter().chain(at6).collect())
        }
    }
}

fn unspecified(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Whether one range goes on where another ends.
fn follows(last: &PortMapping, next: &PortMapping) -> bool {
    last.host.is_some()
        && (last.host, last.protocol) == (next.host, next.protocol)
        && last.first.checked_add(last.count) == Some(next.first)
        && last.pod.checked_add(last.count) == Some(next.pod)
        && last.count + next.count <= crate::model::MAX_RANGE
}

fn taken(port: &HostPort, other: &HostPort, entry: &Entry, now: Instant) -> Refusal {
    let same = match port == other {
        true => String::new(),
        false => format!(", at {}", other.at),
    };
    let what = format!(
        "{port} is held by pod {}{same}, since {} s (`podwire port rm {} {}` frees it)",
        entry.pod,
        (now - entry.since).secs(),
        entry.pod,
        entry.wanted.mapping,
    );
    Refusal::new(ErrorKind::Taken, what)
}

#[cfg(test)]
mod tests;
