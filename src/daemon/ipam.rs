//! Who holds which address of the node's subnets. Pure: time comes in as an argument.
//!
//! `.0` is the VTEP, `.1` the gateway, the last IPv4 address the broadcast. Addresses are given round robin,
//! and a freed one rests for a minute unless nothing else is left, so that what still talks to the old holder
//! does not reach a new one. The IPv6 address of a pod mirrors the host number of its IPv4 address.

use crate::api::ErrorKind;
use crate::model::{Duration, Instant, LocalNode, Mac, PodName};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How long a freed address rests.
pub const REST: Duration = Duration::from_secs(60);
/// The first host number a pod may have.
const FIRST: u32 = 2;
/// Most resting addresses remembered; beyond it the oldest are forgotten.
const MAX_RESTING: usize = 1 << 16;

/// What a pod wants; `None` leaves the choice to the node.
#[derive(Clone, Copy, Default, Debug)]
pub struct Want {
    /// A fixed IPv4 address.
    pub ip4: Option<Ipv4Addr>,
    /// A fixed IPv6 address.
    pub ip6: Option<Ipv6Addr>,
    /// A fixed MAC.
    pub mac: Option<Mac>,
}

/// What a pod got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Its IPv4 address.
    pub ip4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ip6: Option<Ipv6Addr>,
    /// Its MAC.
    pub mac: Mac,
}

/// Why a pod got nothing.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum IpamError {
    /// The name is in use.
    #[error("pod {0} is attached already (take another name, or detach it: podwire detach {0})")]
    Name(PodName),
    /// The address or MAC is in use.
    #[error("{what} is held by pod {owner} (take another one, or detach that pod)")]
    Held {
        /// The address or MAC.
        what: String,
        /// Who holds it.
        owner: PodName,
    },
    /// The node itself needs the address.
    #[error("{what} is {role} of this node (use {range})")]
    Own {
        /// The address or MAC.
        what: String,
        /// What the node uses it for.
        role: &'static str,
        /// What pods may have.
        range: String,
    },
    /// The address is elsewhere.
    #[error("{ip} is outside this node's subnet {net} (use {range})")]
    Outside {
        /// The address.
        ip: IpAddr,
        /// The subnet.
        net: IpNet,
        /// What pods may have.
        range: String,
    },
    /// The node has no subnet of that family.
    #[error("{ip} cannot be had: this node has no {family} subnet (set {key} in its configuration)")]
    NoFamily {
        /// The address.
        ip: IpAddr,
        /// Its family.
        family: &'static str,
        /// The key that would give the node a subnet.
        key: &'static str,
    },
    /// Not a MAC of one host.
    #[error("{0} is not the address of one host (the first octet must be even)")]
    BadMac(Mac),
    /// Nothing is left.
    #[error("all {held} addresses of {net} are held (detach a pod, or give the node a larger subnet)")]
    Exhausted {
        /// The subnet.
        net: IpNet,
        /// How many pods there are.
        held: usize,
    },
}

impl IpamError {
    /// The kind of refusal.
    pub fn kind(&self) -> ErrorKind {
        match self {
            IpamError::Name(_) | IpamError::Held { .. } => ErrorKind::Taken,
            IpamError::Exhausted { .. } => ErrorKind::Exhausted,
            _ => ErrorKind::Usage,
        }
    }
}

/// The addresses of one node.
#[derive(Debug)]
pub struct Ipam {
    net4: Option<Ipv4Net>,
    net6: Option<Ipv6Net>,
    gateway_mac: Mac,
    /// The largest host number a pod may have.
    last: u32,
    /// Where the search for a free host number begins.
    cursor: u32,
    leases: BTreeMap<PodName, Lease>,
    by_ip: HashMap<IpAddr, PodName>,
    by_mac: HashMap<Mac, PodName>,
    /// Freed host numbers, those that rest longest last.
    resting: VecDeque<(u32, Resting)>,
    rests: HashMap<u32, Instant>,
}

/// An address that was freed and shall not be given yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resting {
    /// Who had it.
    pub pod: PodName,
    /// What it had.
    pub lease: Lease,
    /// Until when it rests.
    pub until: Instant,
}

impl Ipam {
    /// All addresses of `local` free.
    pub fn new(local: &LocalNode) -> Ipam {
        let last4 = local
            .subnet4
            .map(|n| ((1u64 << (32 - n.prefix_len())) - 2) as u32);
        let last6 = local.subnet6.map(|n| match 128 - u32::from(n.prefix_len()) {
            bits @ ..32 => (1u32 << bits) - 1,
            _ => u32::MAX - 1,
        });
        Ipam {
            net4: local.subnet4,
            net6: local.subnet6,
            gateway_mac: local.gateway_mac,
            last: last4.unwrap_or(u32::MAX).min(last6.unwrap_or(u32::MAX)),
            cursor: FIRST,
            leases: BTreeMap::new(),
            by_ip: HashMap::new(),
            by_mac: HashMap::new(),
            resting: VecDeque::new(),
            rests: HashMap::new(),
        }
    }

    /// Give `pod` what it wants, until [`Ipam::release`] or [`Ipam::cancel`].
    ///
    /// # Errors
    /// With the owner's name or the range that is right; nothing changed then.
    pub fn reserve(&mut self, pod: &PodName, want: Want, now: Instant) -> Result<Lease, IpamError> {
        if self.leases.contains_key(pod) {
            return Err(IpamError::Name(pod.clone()));
        }
        self.check(want)?;
        let host = match (want.ip4, want.ip6, self.net4, self.net6) {
            (Some(ip), ..) => self.net4.map(|n| u32::from(ip) - u32::from(n.network())),
            (None, Some(_), None, _) => None,
            _ => Some(self.next(want, now)?),
        };
        let ip4 = want.ip4.or(self.ip4(host));
        let ip6 = want.ip6.or(self.ip6(host));
        let mac = want.mac.unwrap_or_else(|| derived(ip4, ip6));
        for ip in ip4.map(IpAddr::from).into_iter().chain(ip6.map(IpAddr::from)) {
            if let Some(owner) = self.by_ip.get(&ip) {
                return Err(held(ip, owner));
            }
        }
        if let Some(owner) = self.by_mac.get(&mac) {
            return Err(held(mac, owner));
        }
        if let (Some(ip), Some(net)) = (ip6, self.net6)
            && !net.contains(&ip)
        {
            return Err(self.outside(ip.into(), net.into()));
        }
        let lease = Lease { ip4, ip6, mac };
        self.grant(pod, lease);
        if let (Some(host), None) = (host, want.ip4) {
            self.cursor = self.after(host);
        }
        Ok(lease)
    }

    /// Let `pod` hold what it held under an earlier process of this node.
    ///
    /// # Errors
    /// When somebody else holds it; nothing changed then.
    pub fn adopt(&mut self, pod: &PodName, lease: Lease) -> Result<(), IpamError> {
        if self.leases.contains_key(pod) {
            return Err(IpamError::Name(pod.clone()));
        }
        if let Some((ip, owner)) = addresses(&lease).find_map(|ip| Some((ip, self.by_ip.get(&ip)?))) {
            return Err(held(ip, owner));
        }
        if let Some(owner) = self.by_mac.get(&lease.mac) {
            return Err(held(lease.mac, owner));
        }
        self.grant(pod, lease);
        Ok(())
    }

    /// Let what a pod had under an earlier process of this node rest. To be called before any is released, and in
    /// the order in which the rests end. What is not of this node's subnets is left out.
    pub fn rest(&mut self, resting: Resting) {
        if let Some(host) = self.host(&resting.lease) {
            self.rests.insert(host, resting.until);
            self.resting.push_back((host, resting));
        }
    }

    /// The host number the search for a free one begins at.
    pub fn next_host(&self) -> u32 {
        self.cursor
    }

    /// Begin the search at `host`, as far as it is one.
    pub fn go_on_at(&mut self, host: u32) {
        if (FIRST..=self.last).contains(&host) {
            self.cursor = host;
        }
    }

    /// How many pods there can be, as far as host numbers go.
    pub fn room(&self) -> u64 {
        (u64::from(self.last) + 1).saturating_sub(u64::from(FIRST))
    }

    /// What rests at `now`.
    pub fn resting(&self, now: Instant) -> impl Iterator<Item = &Resting> {
        let rests =
            move |(host, r): &&(u32, Resting)| r.until > now && self.rests.get(host) == Some(&r.until);
        self.resting.iter().filter(rests).map(|(_, r)| r)
    }

    /// Free what `pod` holds; its address rests. The lease that ended, if there was one.
    pub fn release(&mut self, pod: &PodName, now: Instant) -> Option<Lease> {
        let lease = self.cancel(pod)?;
        if let Some(host) = self.host(&lease) {
            let until = now + REST;
            let pod = pod.clone();
            self.rests.insert(host, until);
            self.resting.push_back((host, Resting { pod, lease, until }));
        }
        self.wake(now);
        Some(lease)
    }

    /// Free what `pod` holds without rest: it was never used.
    pub fn cancel(&mut self, pod: &PodName) -> Option<Lease> {
        let lease = self.leases.remove(pod)?;
        for ip in addresses(&lease) {
            self.by_ip.remove(&ip);
        }
        self.by_mac.remove(&lease.mac);
        Some(lease)
    }

    /// The host number of `lease`, when it is one that is given to pods.
    fn host(&self, lease: &Lease) -> Option<u32> {
        let host = match (lease.ip4, self.net4, lease.ip6, self.net6) {
            (Some(ip), Some(net), ..) => u32::from(ip).checked_sub(u32::from(net.network())),
            (_, _, Some(ip), Some(net)) => {
                let host = u128::from(ip).checked_sub(u128::from(net.network()));
                host.and_then(|h| u32::try_from(h).ok())
            }
            _ => None,
        };
        host.filter(|h| (FIRST..=self.last).contains(h))
    }

    fn grant(&mut self, pod: &PodName, lease: Lease) {
        for ip in addresses(&lease) {
            self.by_ip.insert(ip, pod.clone());
        }
        self.by_mac.insert(lease.mac, pod.clone());
        self.leases.insert(pod.clone(), lease);
    }

    /// What `pod` holds.
    pub fn lease(&self, pod: &PodName) -> Option<&Lease> {
        self.leases.get(pod)
    }

    /// Whether fixed wishes can be had at all, whoever holds them.
    fn check(&self, want: Want) -> Result<(), IpamError> {
        if let Some(ip) = want.ip4 {
            let Some(net) = self.net4 else {
                return Err(no_family(ip.into()));
            };
            if !net.contains(&ip) {
                return Err(self.outside(ip.into(), net.into()));
            }
            let role = match u32::from(ip) - u32::from(net.network()) {
                0 => "the tunnel endpoint",
                1 => "the gateway",
                _ if ip == net.broadcast() => "the broadcast address",
                _ => "",
            };
            if !role.is_empty() {
                return Err(self.own(ip, role, net.into()));
            }
        }
        if let Some(ip) = want.ip6 {
            let Some(net) = self.net6 else {
                return Err(no_family(ip.into()));
            };
            if !net.contains(&ip) {
                return Err(self.outside(ip.into(), net.into()));
            }
            match u128::from(ip) - u128::from(net.network()) {
                0 => return Err(self.own(ip, "the tunnel endpoint", net.into())),
                1 => return Err(self.own(ip, "the gateway", net.into())),
                _ => {}
            }
        }
        match want.mac {
            Some(mac) if mac.is_multicast() || mac == Mac::default() => Err(IpamError::BadMac(mac)),
            Some(mac) if mac == self.gateway_mac => Err(IpamError::Own {
                what: mac.to_string(),
                role: "the gateway's MAC",
                range: "any other".into(),
            }),
            _ => Ok(()),
        }
    }

    /// The next free host number: the first that does not rest, else the one that rested longest.
    fn next(&mut self, want: Want, now: Instant) -> Result<u32, IpamError> {
        self.wake(now);
        // Each pod stands in the way with two addresses and a MAC at most.
        let span = u64::from(self.last).saturating_sub(u64::from(FIRST)) + 1;
        let steps = span.min(3 * self.leases.len() as u64 + self.rests.len() as u64 + 2);
        let mut host = self.cursor;
        for _ in 0..steps {
            if !self.rests.contains_key(&host) && self.is_free(host, want) {
                return Ok(host);
            }
            host = self.after(host);
        }
        let rested = self.resting.iter().map(|(h, _)| *h);
        let mut rested = rested.filter(|h| self.rests.contains_key(h));
        rested
            .find(|h| self.is_free(*h, want))
            .ok_or_else(|| IpamError::Exhausted {
                net: self
                    .net4
                    .map(IpNet::from)
                    .or(self.net6.map(IpNet::from))
                    .unwrap_or_default(),
                held: self.leases.len(),
            })
    }

    fn is_free(&self, host: u32, want: Want) -> bool {
        if !(FIRST..=self.last).contains(&host) {
            return false;
        }
        let (ip4, ip6) = (self.ip4(Some(host)), want.ip6.or(self.ip6(Some(host))));
        let mac = want.mac.unwrap_or_else(|| derived(ip4, ip6));
        let free = |ip: IpAddr| !self.by_ip.contains_key(&ip);
        ip4.is_none_or(|ip| free(ip.into()))
            && (want.ip6.is_some() || ip6.is_none_or(|ip| free(ip.into())))
            && (want.mac.is_some() || !self.by_mac.contains_key(&mac))
    }

    /// Forget rests that are over, and the oldest beyond the bound.
    fn wake(&mut self, now: Instant) {
        while let Some((host, until)) = self.resting.front().map(|(h, r)| (*h, r.until)) {
            if until > now && self.resting.len() <= MAX_RESTING {
                break;
            }
            self.resting.pop_front();
            // A number that was freed twice rests from the second time.
            if self.rests.get(&host) == Some(&until) {
                self.rests.remove(&host);
            }
        }
    }

    fn after(&self, host: u32) -> u32 {
        if host >= self.last { FIRST } else { host + 1 }
    }

    fn ip4(&self, host: Option<u32>) -> Option<Ipv4Addr> {
        let base = u32::from(self.net4?.network());
        Some(Ipv4Addr::from(base.wrapping_add(host?)))
    }

    fn ip6(&self, host: Option<u32>) -> Option<Ipv6Addr> {
        let base = u128::from(self.net6?.network());
        Some(Ipv6Addr::from(base.wrapping_add(host?.into())))
    }

    fn own(&self, what: impl ToString, role: &'static str, net: IpNet) -> IpamError {
        IpamError::Own {
            what: what.to_string(),
            role,
            range: range(net),
        }
    }

    fn outside(&self, ip: IpAddr, net: IpNet) -> IpamError {
        IpamError::Outside {
            ip,
            net,
            range: range(net),
        }
    }
}

fn addresses(lease: &Lease) -> impl Iterator<Item = IpAddr> {
    let four = lease.ip4.map(IpAddr::from);
    four.into_iter().chain(lease.ip6.map(IpAddr::from))
}

fn derived(ip4: Option<Ipv4Addr>, ip6: Option<Ipv6Addr>) -> Mac {
    match (ip4, ip6) {
        (Some(ip), _) => Mac::of_ipv4(ip),
        (None, Some(ip)) => Mac::of_ipv6(ip),
        (None, None) => Mac::default(),
    }
}

fn held(what: impl ToString, owner: &PodName) -> IpamError {
    IpamError::Held {
        what: what.to_string(),
        owner: owner.clone(),
    }
}

fn no_family(ip: IpAddr) -> IpamError {
    match ip {
        IpAddr::V4(_) => IpamError::NoFamily {
            ip,
            family: "IPv4",
            key: "subnet",
        },
        IpAddr::V6(_) => IpamError::NoFamily {
            ip,
            family: "IPv6",
            key: "subnet6",
        },
    }
}

/// What pods may have of `net`, in words.
fn range(net: IpNet) -> String {
    match net {
        IpNet::V4(n) => {
            let base = u32::from(n.network());
            let last = u32::from(n.broadcast()) - 1;
            format!("{} to {}", Ipv4Addr::from(base + FIRST), Ipv4Addr::from(last))
        }
        IpNet::V6(n) => {
            let base = u128::from(n.network());
            format!("{} to {}", Ipv6Addr::from(base + 2), n.broadcast())
        }
    }
}

#[cfg(test)]
mod tests;
