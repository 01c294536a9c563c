//! The way in by published ports: how a pod sees the clients of its ports, and what is known of those of UDP.
//!
//! A pod sees a client's own address and port wherever that means the same to both of them. It cannot where the address
//! is loopback, link-local, the host's own or of the pod network: the pod's answers would stay in the pod, or go to
//! another. Such a client is seen as the node's gateway, each at a port of its own there.

use super::host::MouthId;
use super::policy::Policy;
use crate::model::{Duration, Instant, LocalEnd, PortId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

/// Clients of all published UDP ports; each has an equal share.
const MAX_CLIENTS: usize = 65_536;
/// Least share of a port.
const MIN_SHARE: usize = 16;
/// How long a client may be silent, and not be sent anything, as any mouth (RFC 4787 REQ-5).
const IDLE: Duration = Duration::from_secs(300);
/// Ports of the gateway that stand for clients, from this one on.
const FIRST: u16 = 1024;
/// The last one: those behind it stand for clients of Services (`service`).
const LAST: u16 = 32_767;
/// How many names are tried for a client: they go round, so that where so many in a row are taken there are hardly others,
/// and whoever comes then shall not cost more than others.
const TRIES: usize = 256;

/// A socket of the host for a pod's UDP port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entrance {
    /// The pod's address and port.
    pub pod: SocketAddr,
    /// Where the host's socket is bound.
    pub at: SocketAddr,
    /// The gateway's address of that family.
    pub gateway: IpAddr,
}

/// Whether a pod can know a client by its own address.
pub fn is_presentable(ip: IpAddr, policy: &Policy) -> bool {
    let odd = match ip {
        IpAddr::V4(a) => a.is_link_local() || a.octets()[0] == 0,
        IpAddr::V6(a) => a.is_unicast_link_local() || a.to_ipv4_mapped().is_some(),
    };
    !(odd
        || ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || policy.own.contains(ip)
        || policy.is_inside(ip))
}

/// The gateway's ports, as names for clients. They go round, so that one that ended is not met by the next: the pod may
/// still remember it (TIME-WAIT).
#[derive(Clone, Copy, Debug)]
pub struct Names {
    next: u16,
}

impl Default for Names {
    fn default() -> Names {
        Names { next: FIRST }
    }
}

impl Names {
    /// What a pod is to see of a client: its own address, unless that [is another's](Fars::is_others); none when the
    /// gateway's next ports are all `taken`.
    pub fn far(
        &mut self,
        client: SocketAddr,
        gateway: IpAddr,
        policy: &Policy,
        is_others: impl Fn(SocketAddr) -> bool,
        taken: impl Fn(SocketAddr) -> bool,
    ) -> Option<SocketAddr> {
        // Without scope and flow label, which the pod cannot tell.
        let plain = SocketAddr::new(client.ip(), client.port());
        if is_presentable(client.ip(), policy) && !is_others(plain) {
            return Some(plain);
        }
        for _ in 0..TRIES {
            let far = SocketAddr::new(gateway, self.next);
            self.next = if self.next < LAST { self.next + 1 } else { FIRST };
            if !taken(far) {
                return Some(far);
            }
        }
        None
    }
}

/// How many flows each far end has, with pods and with Services. The backend of a Service may be the pod of another flow:
/// from a far end that has both, it could not tell whose packets are whose.
#[derive(Debug, Default)]
pub(super) struct Fars(HashMap<SocketAddr, [u32; 2]>);

impl Fars {
    fn kind(port: PortId) -> usize {
        usize::from(port == PortId::SERVICES)
    }

    /// Whether a far end has flows of the other kind than such a port's.
    pub fn is_others(&self, port: PortId, far: SocketAddr) -> bool {
        let flows = self.0.get(&far);
        flows.is_some_and(|f| f[1 - Fars::kind(port)] > 0)
    }

    /// It has another flow.
    pub fn add(&mut self, port: PortId, far: SocketAddr) {
        self.0.entry(far).or_default()[Fars::kind(port)] += 1;
    }

    /// One of its flows ended.
    pub fn remove(&mut self, port: PortId, far: SocketAddr) {
        let Some(flows) = self.0.get_mut(&far) else { return };
        let of_kind = &mut flows[Fars::kind(port)];
        *of_kind = of_kind.saturating_sub(1);
        if *flows == [0; 2] {
            self.0.remove(&far);
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Client {
    at: SocketAddr,
    /// Where on the host it sends to.
    here: Option<LocalEnd>,
    last: Instant,
    timer: Instant,
}

/// The clients of one published UDP port.
#[derive(Debug)]
pub(super) struct Clients {
    pub entrance: Entrance,
    /// By what the pod sees.
    table: HashMap<SocketAddr, Client>,
    /// What the pod sees of them.
    fars: HashMap<SocketAddr, SocketAddr>,
    timers: BTreeSet<(Instant, SocketAddr)>,
    /// What was seen of those that are forgotten, until [`Clients::forgotten`].
    gone: Vec<SocketAddr>,
    /// Datagrams that began a conversation.
    pub begun: u64,
}

impl Clients {
    pub fn new(entrance: Entrance) -> Clients {
        Clients {
            entrance,
            table: HashMap::new(),
            fars: HashMap::new(),
            timers: BTreeSet::new(),
            gone: Vec::new(),
            begun: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// What the pod sees of a client it knows, which has sent something.
    pub fn heard(&mut self, from: SocketAddr, here: Option<LocalEnd>, now: Instant) -> Option<SocketAddr> {
        let far = *self.fars.get(&from)?;
        let client = self.table.get_mut(&far)?;
        (client.last, client.here) = (now, here);
        Some(far)
    }

    /// What the pod sees of a client.
    pub fn far_of(&self, client: SocketAddr) -> Option<SocketAddr> {
        self.fars.get(&client).copied()
    }

    /// When the client that the pod sees as `far` was last heard or answered.
    pub fn last(&self, far: &SocketAddr) -> Option<Instant> {
        self.table.get(far).map(|c| c.last)
    }

    /// The client that the pod answers, and where on the host it awaits that from.
    pub fn answer(&mut self, far: &SocketAddr, now: Instant) -> Option<(SocketAddr, Option<LocalEnd>)> {
        let client = self.table.get_mut(far)?;
        client.last = now;
        Some((client.at, client.here))
    }

    pub fn knows(&self, far: &SocketAddr) -> bool {
        self.table.contains_key(far)
    }

    /// A new client, which the pod sees as `far`; of `mouths` published ports one that has more than its share forgets
    /// those that it knows for longest.
    pub fn insert(&mut self, client: SocketAddr, far: SocketAddr, mouths: usize, now: Instant) {
        let share = (MAX_CLIENTS / mouths.max(1)).max(MIN_SHARE);
        while self.table.len() >= share
            && let Some((_, oldest)) = self.timers.first().copied()
        {
            self.remove(oldest);
        }
        self.remove(far);
        let timer = now + IDLE;
        let at = Client {
            at: client,
            here: None,
            last: now,
            timer,
        };
        self.table.insert(far, at);
        self.fars.insert(client, far);
        self.timers.insert((timer, far));
        self.begun += 1;
    }

    fn remove(&mut self, far: SocketAddr) {
        if let Some(client) = self.table.remove(&far) {
            self.fars.remove(&client.at);
            self.timers.remove(&(client.timer, far));
            self.gone.push(far);
        }
    }

    /// What was seen of those that were forgotten since this was asked last.
    pub fn forgotten(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.gone)
    }

    /// What is seen of all of them.
    pub fn seen(&self) -> impl Iterator<Item = SocketAddr> {
        self.table.keys().copied()
    }

    /// Forget who was silent for too long.
    pub fn on_time(&mut self, now: Instant) {
        while let Some((at, far)) = self.timers.first().copied()
            && at <= now
        {
            let Some(client) = self.table.get_mut(&far) else {
                self.timers.pop_first();
                continue;
            };
            let expires = client.last + IDLE;
            if expires <= now {
                self.remove(far);
            } else {
                client.timer = expires;
                self.timers.pop_first();
                self.timers.insert((expires, far));
            }
        }
    }
}

/// The published ports of UDP: a pod's port may be at several of the host's.
pub(super) type Mouths = BTreeMap<SocketAddr, Vec<MouthId>>;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy() -> Policy {
        Policy {
            own: ["203.0.113.7/32", "2001:db8::7/128"]
                .iter()
                .map(|n| n.parse().unwrap())
                .collect(),
            network: vec!["10.244.0.0/16".parse().unwrap(), "fd00:1::/48".parse().unwrap()],
            ..Policy::default()
        }
    }

    fn at(s: &str) -> SocketAddr {
        s.parse().unwrap()
    }

    #[test]
    fn only_an_address_that_means_the_same_to_the_pod_is_kept() {
        let policy = policy();
        let gateway: IpAddr = "10.244.1.1".parse().unwrap();
        let mut names = Names::default();
        for kept in ["198.51.100.1:4000", "192.168.1.9:80", "[2001:db8::8]:1"] {
            assert_eq!(
                names.far(at(kept), gateway, &policy, |_| false, |_| true),
                Some(at(kept))
            );
        }
        for (n, told) in [
            "127.0.0.1:4000",
            "[::1]:4000",
            "203.0.113.7:4000",
            "[2001:db8::7]:4000",
            "10.244.9.9:4000",
            "[fd00:1:0:3::4]:4000",
            "[fe80::1]:4000",
            "169.254.7.7:4000",
            "[::ffff:198.51.100.1]:4000",
        ]
        .iter()
        .enumerate()
        {
            let far = names.far(at(told), gateway, &policy, |_| false, |_| false);
            assert_eq!(far, Some(SocketAddr::new(gateway, FIRST + n as u16)), "{told}");
        }
        assert_eq!(
            names.far(at("127.0.0.1:1"), gateway, &policy, |_| false, |_| true),
            None
        );
        let one = at("10.244.1.1:32767");
        let tried = std::cell::Cell::new(0);
        let found = (0..=u16::MAX).find_map(|_| {
            names.far(
                at("127.0.0.1:1"),
                gateway,
                &policy,
                |_| false,
                |far| {
                    tried.set(tried.get() + 1);
                    far != one
                },
            )
        });
        assert_eq!(found, Some(one));
        tried.set(0);
        assert_eq!(
            names.far(
                at("127.0.0.1:1"),
                gateway,
                &policy,
                |_| false,
                |_| {
                    tried.set(tried.get() + 1);
                    true
                }
            ),
            None
        );
        assert!(tried.get() <= TRIES, "a stranger costs {} look-ups", tried.get());
    }

    #[test]
    fn far_ends_are_known_by_the_kind_of_their_flows() {
        let mut fars = Fars::default();
        let (pod, services) = (PortId(3), PortId::SERVICES);
        fars.add(pod, at("198.51.100.1:1"));
        fars.add(PortId(4), at("198.51.100.1:1"));
        fars.add(services, at("198.51.100.1:2"));
        for (far, of_pod, of_service) in [("1", false, true), ("2", true, false), ("3", false, false)] {
            let far = at(&format!("198.51.100.1:{far}"));
            assert_eq!(
                (fars.is_others(pod, far), fars.is_others(services, far)),
                (of_pod, of_service)
            );
        }
        fars.remove(pod, at("198.51.100.1:1"));
        assert!(fars.is_others(services, at("198.51.100.1:1")));
        fars.remove(pod, at("198.51.100.1:1"));
        fars.remove(services, at("198.51.100.1:2"));
        fars.remove(services, at("198.51.100.1:2"));
        assert!(fars.0.is_empty());
    }

    fn clients() -> Clients {
        Clients::new(Entrance {
            pod: at("10.244.1.2:53"),
            at: at("0.0.0.0:53"),
            gateway: "10.244.1.1".parse().unwrap(),
        })
    }

    #[test]
    fn who_is_silent_is_forgotten_and_who_is_not_is_kept() {
        let mut clients = clients();
        let s = Instant::from_secs;
        clients.insert(at("127.0.0.1:7"), at("10.244.1.1:1024"), 1, s(0));
        clients.insert(at("127.0.0.1:8"), at("10.244.1.1:1025"), 1, s(0));
        assert_eq!(
            clients.heard(at("127.0.0.1:7"), None, s(200)),
            Some(at("10.244.1.1:1024"))
        );
        clients.on_time(s(299));
        assert_eq!(clients.len(), 2);
        clients.on_time(s(300));
        assert_eq!(clients.len(), 1);
        assert_eq!(
            clients.answer(&at("10.244.1.1:1024"), s(400)),
            Some((at("127.0.0.1:7"), None))
        );
        clients.on_time(s(500));
        assert_eq!(clients.len(), 1);
        clients.on_time(s(700));
        assert_eq!((clients.len(), clients.begun), (0, 2));
        assert!(clients.fars.is_empty() && clients.timers.is_empty());
    }

    proptest! {
        #[test]
        fn the_table_is_bounded_and_agrees_with_itself(
            steps in proptest::collection::vec((0..3u8, 0..40u16, 0..200i64), 0..200),
        ) {
            let mut clients = clients();
            let mut now = 0;
            for (kind, n, later) in steps {
                now += later;
                let now = Instant::from_secs(now);
                let client = SocketAddr::new([198, 51, 100, 1].into(), n);
                match kind {
                    // So many mouths that each has the least share.
                    0 if clients.far_of(client).is_none() => clients.insert(client, client, 1 << 20, now),
                    1 => clients.on_time(now),
                    _ => drop(clients.heard(client, None, now)),
                }
                prop_assert!(clients.len() <= MIN_SHARE);
                prop_assert_eq!(clients.table.len(), clients.fars.len());
                prop_assert_eq!(clients.table.len(), clients.timers.len());
            }
        }
    }
}
