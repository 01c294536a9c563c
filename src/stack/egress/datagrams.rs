//! Datagrams out of the pod network: UDP, and ICMP echo.
//!
//! Each pair of a pod's address and port (or echo identifier) has one *mouth*, a socket of the host, whatever it talks
//! to: the mapping is independent of the endpoint (RFC 4787 REQ-1). What comes to it is handed to the pod only from
//! addresses it has sent to (address-dependent filtering, REQ-8). Whole trains of datagrams pass at once (UDP_SEGMENT,
//! UDP_GRO, USO); what the network says of them (ICMP) is told to the pod as it is.

use super::fragment::fragments;
use super::host::{Host, MouthId, Outside};
use super::key::FlowKey;
use super::link::Scratch;
use super::packet::{Ip, ip_len, transport_sum, write_ip, write_udp};
use super::policy::{Limits, Policy};
use super::published::{self, Clients, Entrance, Fars, Names};
use super::timers::Timers;
use crate::model::{DropReason, Duration, Heard, HostError, Instant, LocalEnd, MouthKind, Outward, PortId};
use crate::stack::Trouble;
use crate::wire::bytes::{be16, put_be16};
use crate::wire::checksum::Sum;
use crate::wire::{ETH_LEN, UDP_LEN, proto};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

/// Mouths of all pods.
pub const MAX_MOUTHS: usize = 16_384;
/// Mouths of one pod; at the limit the one that was silent for longest is closed.
pub const MAX_PER_PORT: usize = 4096;
/// How long a mouth may be silent (RFC 4787 REQ-5: two minutes at least, five recommended).
const IDLE: Duration = Duration::from_secs(300);
/// One that only asked a name server is over sooner (REQ-5b allows it for a well-known port).
const IDLE_DNS: Duration = Duration::from_secs(30);
/// Addresses a mouth remembers to have sent to; after more it forgets the first ones.
const REMOTES: usize = 64;
/// How often the clients of a published port are looked through.
const SWEEP: Duration = Duration::from_secs(60);
/// Names of the host's sockets that a mouth remembers.
const ASKED: usize = 16;
/// Datagrams of a mouth before another has its turn.
const BURST: usize = 64;
/// As much of a datagram as is told in an error.
const QUOTE: usize = 64;
/// Don't fragment.
const DF: u16 = 0x4000;

struct Mouth {
    kind: MouthKind,
    pod: SocketAddr,
    /// Family of its socket; the pod's, unless it is for something of the host that has the other one.
    six: bool,
    port: PortId,
    /// The addresses of the host's side it has sent to.
    remotes: VecDeque<IpAddr>,
    /// By which names the pod has asked something of the host, which may have several.
    asked: VecDeque<(SocketAddr, SocketAddr)>,
    /// Anybody may send to it, and it has no end: a published port, with those that have.
    public: Option<Box<Clients>>,
    /// It never sent anything but to port 53.
    dns: bool,
    last: Instant,
    /// Its place in `OfPort::silent`.
    seen: Instant,
    busy: bool,
}

impl Mouth {
    /// The address the pod knows something of the host by: that which it asked, if it did.
    fn name_of(&self, host: SocketAddr, policy: &Policy) -> Option<SocketAddr> {
        let asked = self.asked.iter().find(|(at, _)| *at == host);
        let named = || policy.name_of(host, self.pod.is_ipv6());
        asked.map(|(_, name)| *name).or_else(named)
    }

    fn expires(&self) -> Instant {
        self.last + if self.dns { IDLE_DNS } else { IDLE }
    }
}

#[derive(Default)]
struct OfPort {
    mouths: usize,
    /// Those that may have to give way, by when they were last looked at: not before that they said something.
    silent: BTreeSet<(Instant, MouthId)>,
}

/// A datagram of a pod, or several.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// The port it came from.
    pub port: PortId,
    /// The IP packet, as long as its header says.
    pub packet: &'a [u8],
    /// Where in it the transport header begins.
    pub l4: usize,
    /// UDP or echo.
    pub kind: MouthKind,
    /// Its addresses; for an echo request the pod's port is its identifier, and the other one zero.
    pub key: FlowKey,
    /// Hops it has left behind this node.
    pub hops: u8,
    /// Traffic class.
    pub class: u8,
    /// Payload of each datagram, when it is several.
    pub segment: Option<u16>,
    /// It may be cut on its way.
    pub may_fragment: bool,
}

/// All mouths of a node.
pub struct Datagrams {
    table: Vec<Option<Mouth>>,
    free: Vec<MouthId>,
    keys: HashMap<(MouthKind, SocketAddr, bool), MouthId>,
    ports: HashMap<PortId, OfPort>,
    published: published::Mouths,
    names: Names,
    fars: Fars,
    timers: Timers,
    busy: VecDeque<MouthId>,
    /// The mouth whose datagrams are handed to its pod.
    at_work: Option<MouthId>,
    scratch: Scratch,
    ident: u32,
}

impl Datagrams {
    /// None yet.
    pub fn new(seed: u64) -> Datagrams {
        Datagrams {
            table: Vec::new(),
            free: Vec::new(),
            keys: HashMap::new(),
            ports: HashMap::new(),
            published: published::Mouths::new(),
            names: Names::default(),
            fars: Fars::default(),
            timers: Timers::default(),
            busy: VecDeque::new(),
            at_work: None,
            scratch: Scratch::default(),
            ident: seed as u32,
        }
    }

    /// How many mouths there are.
    pub fn len(&self) -> usize {
        self.table.len() - self.free.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many mouths a port has.
    pub fn of_port(&self, port: PortId) -> usize {
        self.ports.get(&port).map_or(0, |p| p.mouths)
    }

    /// Whether this is a pod's published port and one of its clients.
    pub fn knows(&self, key: &FlowKey) -> bool {
        self.clients_of(key.pod)
            .any(|(_, clients)| clients.knows(&key.far))
    }

    /// Whether a pod has published ports.
    pub fn has_clients(&self, pod: IpAddr) -> bool {
        let ports = SocketAddr::new(pod, 0)..=SocketAddr::new(pod, u16::MAX);
        self.published.range(ports).next().is_some()
    }

    /// The sockets at which a pod's port is published.
    fn clients_of(&self, pod: SocketAddr) -> impl Iterator<Item = (MouthId, &Clients)> {
        let mouths = self.published.get(&pod).into_iter().flatten();
        mouths.filter_map(|id| Some((*id, self.table.get(*id as usize)?.as_ref()?.public.as_deref()?)))
    }

    /// The client of a published port that a pod answers, and by which socket: that by which it was heard last.
    fn answered(&mut self, key: &FlowKey, now: Instant) -> Option<(MouthId, SocketAddr, Option<LocalEnd>)> {
        if self.published.is_empty() {
            return None;
        }
        let those = self.clients_of(key.pod);
        let known = those.filter_map(|(id, clients)| Some((clients.last(&key.far)?, id)));
        let (_, id) = known.max()?;
        let mouth = self.table.get_mut(id as usize)?.as_mut()?;
        let (client, here) = mouth.public.as_mut()?.answer(&key.far, now)?;
        Some((id, client, here))
    }

    /// Clients that a published port has, and how many it had in all.
    pub fn clients(&self, mouth: MouthId) -> (usize, u64) {
        let mouth = self.table.get(mouth as usize).and_then(Option::as_ref);
        let clients = mouth.and_then(|m| m.public.as_deref());
        clients.map_or((0, 0), |c| (c.len(), c.begun))
    }

    /// Send a pod's datagram.
    ///
    /// # Errors
    /// What it is to be counted under, when it goes nowhere.
    pub fn input(
        &mut self,
        d: &Datagram<'_>,
        policy: &Policy,
        now: Instant,
        out: &mut impl Outside,
    ) -> Result<(), DropReason> {
        let payload = payload_of(d)?;
        if d.kind == MouthKind::Udp
            && let Some((id, client, here)) = self.answered(&d.key, now)
        {
            return send(id, d, (here, client), payload, out);
        }
        let judged = match d.kind {
            MouthKind::Udp => policy.judge_udp(d.key.far),
            MouthKind::Echo => policy.judge(d.key.far),
        };
        let to = match judged {
            Ok(to) => to,
            Err(closed) => {
                out.complain(d.port, closed.trouble(), d.packet, None);
                return Err(closed.reason());
            }
        };
        if d.kind == MouthKind::Udp && (to.port() == 0 || d.key.pod.port() == 0) {
            return Err(DropReason::BadL4Header);
        }
        // Something of the host may have the other family: names are answered at one address.
        let six = to.is_ipv6();
        let id = match self.keys.get(&(d.kind, d.key.pod, six)) {
            Some(id) => *id,
            None => self.open(d, six, policy, now, out)?,
        };
        let Some(Some(mouth)) = self.table.get_mut(id as usize) else {
            return Err(DropReason::NoRoute);
        };
        mouth.last = now;
        // As the pod sees it: its gateway's answers come from another port of the host.
        mouth.dns &= d.key.far.port() == 53;
        if !mouth.remotes.contains(&to.ip()) {
            if mouth.remotes.len() == REMOTES {
                mouth.remotes.pop_front();
            }
            mouth.remotes.push_back(to.ip());
        }
        if to != d.key.far {
            mouth.asked.retain(|(host, _)| *host != to);
            if mouth.asked.len() == ASKED {
                mouth.asked.pop_front();
            }
            mouth.asked.push_back((to, d.key.far));
        }
        let from = policy
            .source(d.key.far, d.port)
            .map(|ip| LocalEnd { ip, interface: 0 });
        send(id, d, (from, to), payload, out)
    }

    fn open(
        &mut self,
        d: &Datagram<'_>,
        six: bool,
        policy: &Policy,
        now: Instant,
        out: &mut impl Outside,
    ) -> Result<MouthId, DropReason> {
        if self.of_port(d.port) >= policy.limits().mouths_per_pod {
            self.close_oldest(d.port, out);
        }
        if self.len() >= policy.limits().mouths {
            return Err(DropReason::FlowLimit);
        }
        let id = self.free_id();
        if let Err(e) = out.open(id, d.kind, six) {
            self.free.push(id);
            return Err(match e {
                HostError::Prohibited if d.kind == MouthKind::Echo => DropReason::PingForbidden,
                _ => DropReason::HostSockets,
            });
        }
        self.insert(id, (d.kind, d.key.pod, six), d.port, None, now);
        self.keys.insert((d.kind, d.key.pod, six), id);
        Ok(id)
    }

    fn free_id(&mut self) -> MouthId {
        self.free.pop().unwrap_or_else(|| {
            self.table.push(None);
            (self.table.len() - 1) as MouthId
        })
    }

    fn insert(
        &mut self,
        id: MouthId,
        (kind, pod, six): (MouthKind, SocketAddr, bool),
        port: PortId,
        public: Option<Box<Clients>>,
        now: Instant,
    ) {
        let of_port = self.ports.entry(port).or_default();
        of_port.mouths += 1;
        if public.is_none() {
            self.timers.set(id, now + IDLE_DNS);
            of_port.silent.insert((now, id));
        }
        let mouth = Mouth {
            kind,
            pod,
            six,
            port,
            remotes: VecDeque::new(),
            asked: VecDeque::new(),
            public,
            dns: true,
            last: now,
            seen: now,
            busy: false,
        };
        self.table[id as usize] = Some(mouth);
    }

    /// Make the mouth of a published UDP port: clients are answered by it. What else the pod sends from that port goes
    /// by it as well, if it is the first whose address leads further than the host itself. Gives the number its socket
    /// is to have.
    ///
    /// # Errors
    /// There are too many.
    pub fn publish(
        &mut self,
        port: PortId,
        entrance: Entrance,
        limits: Limits,
        now: Instant,
        out: &mut impl Host,
    ) -> Result<MouthId, DropReason> {
        if self.len() >= limits.mouths {
            return Err(DropReason::FlowLimit);
        }
        let Entrance { pod, at, .. } = entrance;
        if !at.ip().is_loopback()
            && let Some(&id) = self.keys.get(&(MouthKind::Udp, pod, pod.is_ipv6()))
            && self.table[id as usize]
                .as_ref()
                .is_some_and(|m| m.public.is_none())
        {
            self.remove(id, out);
        }
        let id = self.free_id();
        let clients = Box::new(Clients::new(entrance));
        self.insert(id, (MouthKind::Udp, pod, pod.is_ipv6()), port, Some(clients), now);
        self.published.entry(pod).or_default().push(id);
        self.lead(pod);
        Ok(id)
    }

    /// See to it that what a pod sends from a published port goes by the published socket, if that leads anywhere.
    fn lead(&mut self, pod: SocketAddr) {
        let leads = |c: &Clients| !c.entrance.at.ip().is_loopback();
        let first = self.clients_of(pod).find(|(_, c)| leads(c)).map(|(id, _)| id);
        if let Some(id) = first {
            self.keys
                .entry((MouthKind::Udp, pod, pod.is_ipv6()))
                .or_insert(id);
        }
    }

    fn close_oldest(&mut self, port: PortId, out: &mut impl Host) {
        let Some(of_port) = self.ports.get_mut(&port) else {
            return;
        };
        // Each of them is moved once for what it said since: no search of all for every newcomer.
        while let Some((seen, id)) = of_port.silent.first().copied() {
            match self.table.get_mut(id as usize) {
                Some(Some(mouth)) if mouth.last > seen => {
                    mouth.seen = mouth.last;
                    of_port.silent.remove(&(seen, id));
                    of_port.silent.insert((mouth.seen, id));
                }
                _ => return self.remove(id, out),
            }
        }
    }

    /// Close a mouth.
    pub fn remove(&mut self, id: MouthId, out: &mut impl Host) {
        let Some(mouth) = self.table.get_mut(id as usize).and_then(Option::take) else {
            return;
        };
        out.close_mouth(id);
        for far in mouth.public.iter().flat_map(|c| c.seen()) {
            self.fars.remove(mouth.port, far);
        }
        let key = (mouth.kind, mouth.pod, mouth.six);
        if self.keys.get(&key) == Some(&id) {
            self.keys.remove(&key);
        }
        if mouth.public.is_some()
            && let Some(ids) = self.published.get_mut(&mouth.pod)
        {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.published.remove(&mouth.pod);
            }
            self.lead(mouth.pod);
        }
        self.timers.clear(id);
        self.free.push(id);
        if let Some(of_port) = self.ports.get_mut(&mouth.port) {
            of_port.mouths = of_port.mouths.saturating_sub(1);
            of_port.silent.remove(&(mouth.seen, id));
        }
    }

    /// A pod is gone, and its mouths with it.
    pub fn remove_port(&mut self, port: PortId, out: &mut impl Host) {
        if self.of_port(port) > 0 {
            for id in 0..self.table.len() as MouthId {
                if self.table[id as usize].as_ref().is_some_and(|m| m.port == port) {
                    self.remove(id, out);
                }
            }
        }
        self.ports.remove(&port);
    }

    /// Something was heard at a mouth.
    pub fn host_ready(&mut self, id: MouthId) {
        if let Some(Some(mouth)) = self.table.get_mut(id as usize)
            && !mouth.busy
        {
            mouth.busy = true;
            self.busy.push_back(id);
        }
    }

    /// Hand what was heard to the pods. Whether there is more.
    pub fn turn(&mut self, policy: &Policy, now: Instant, out: &mut impl Outside) -> bool {
        for _ in 0..self.busy.len() {
            let Some(id) = self.busy.pop_front() else { break };
            if let Some(Some(mouth)) = self.table.get_mut(id as usize) {
                mouth.busy = false;
            }
            self.at_work = Some(id);
            let more = self.hear(id, policy, now, out);
            self.at_work = None;
            if more {
                self.host_ready(id);
            }
        }
        !self.busy.is_empty()
    }

    /// After a panic: close the mouth that was at work, if one was; one of a published port stays. Whose it was.
    pub fn give_up_at(&mut self, out: &mut impl Host) -> Option<PortId> {
        let id = self.at_work.take()?;
        let mouth = self.table.get(id as usize)?.as_ref()?;
        let (port, is_public) = (mouth.port, mouth.public.is_some());
        match is_public {
            // There may be more to hear.
            true => self.host_ready(id),
            false => self.remove(id, out),
        }
        Some(port)
    }

    fn hear(&mut self, id: MouthId, policy: &Policy, now: Instant, out: &mut impl Outside) -> bool {
        for _ in 0..BURST {
            let Some(Some(mouth)) = self.table.get_mut(id as usize) else {
                return false;
            };
            let six = mouth.pod.is_ipv6();
            let l4 = ETH_LEN + ip_len(six);
            let at = match mouth.kind {
                MouthKind::Udp => l4 + UDP_LEN,
                MouthKind::Echo => l4,
            };
            let all = self.scratch.all();
            let Some(heard) = out.hear(id, &mut all[at..]) else {
                return false;
            };
            match heard {
                Heard::Datagram {
                    from,
                    len,
                    segment,
                    class,
                    at: end_here,
                } => {
                    let end = (at + len).min(all.len());
                    mouth.last = now;
                    let (kind, pod, port) = (mouth.kind, mouth.pod, mouth.port);
                    let welcome = mouth.public.is_some() || mouth.remotes.contains(&from.ip());
                    if !welcome {
                        out.lost(port, DropReason::UnaskedDatagram);
                        continue;
                    }
                    if mouth.public.is_some() && policy.overlay == Some(from.port()) {
                        // The answer to a forged one would speak to a peer's VXLAN socket for this node.
                        out.lost(port, DropReason::EgressDenied);
                        continue;
                    }
                    let named = mouth
                        .name_of(from, policy)
                        .filter(|_| mouth.remotes.contains(&from.ip()));
                    let known = match &mut mouth.public {
                        // What the pod asked itself, of something of the host, is no client.
                        Some(clients) => clients.heard(from, end_here, now).or(named),
                        None => Some(named.unwrap_or(from)),
                    };
                    let Some(from) = known.or_else(|| self.introduce(id, (from, end_here), policy, now))
                    else {
                        out.lost(port, DropReason::FlowLimit);
                        continue;
                    };
                    if from.is_ipv6() != six {
                        out.lost(port, DropReason::UnaskedDatagram);
                        continue;
                    }
                    let all = self.scratch.all();
                    let ends = (from, pod);
                    match kind {
                        MouthKind::Udp => {
                            let ident = &mut self.ident;
                            udp_to_pod(&mut all[..end], ends, class, segment, port, ident, out);
                        }
                        MouthKind::Echo => {
                            echo_to_pod(&mut all[..end], ends, class, port, &mut self.ident, out);
                        }
                    }
                }
                Heard::Error { to, by, what, len } => {
                    let Some(trouble) = trouble_of(what) else { continue };
                    let client = mouth.public.as_ref().and_then(|c| c.far_of(to));
                    let to = client.or_else(|| mouth.name_of(to, policy)).unwrap_or(to);
                    if to.is_ipv6() != six {
                        continue;
                    }
                    let (kind, pod, port) = (mouth.kind, mouth.pod, mouth.port);
                    let quoted = len.min(QUOTE);
                    let (message, proto) = match kind {
                        MouthKind::Udp => {
                            write_udp(&mut all[l4..], pod, to, len);
                            (UDP_LEN + quoted, proto::UDP)
                        }
                        MouthKind::Echo if len < 8 => continue,
                        MouthKind::Echo => {
                            put_be16(all, l4 + 4, pod.port());
                            (quoted, icmp(six))
                        }
                    };
                    let ip = Ip {
                        proto,
                        hops: 1,
                        len: message,
                        fragment: DF,
                        ..Ip::default()
                    };
                    write_ip(&mut all[ETH_LEN..], pod.ip(), to.ip(), &ip);
                    // Only the host that has no such port says so itself.
                    let by = match trouble {
                        Trouble::PortUnreachable => Some(to.ip()),
                        _ => by,
                    };
                    out.complain(port, trouble, &all[ETH_LEN..l4 + message], by);
                }
            }
        }
        true
    }

    /// A client that is new to a published port: what the pod sees of it.
    fn introduce(
        &mut self,
        id: MouthId,
        (client, here): (SocketAddr, Option<LocalEnd>),
        policy: &Policy,
        now: Instant,
    ) -> Option<SocketAddr> {
        let mut names = self.names;
        let mouth = self.table.get(id as usize)?.as_ref()?;
        let (pod, port) = (mouth.pod, mouth.port);
        let gateway = mouth.public.as_ref()?.entrance.gateway;
        let is_others = |far| self.fars.is_others(port, far);
        let taken = |far| is_others(far) || self.clients_of(pod).any(|(_, clients)| clients.knows(&far));
        let far = names.far(client, gateway, policy, is_others, taken)?;
        self.names = names;
        let mouths = self.published.values().map(Vec::len).sum();
        let mouth = self.table.get_mut(id as usize)?.as_mut()?;
        let clients = mouth.public.as_mut()?;
        clients.on_time(now);
        self.timers.set(id, now + SWEEP);
        clients.insert(client, far, mouths, now);
        self.fars.add(port, far);
        clients
            .forgotten()
            .into_iter()
            .for_each(|far| self.fars.remove(port, far));
        clients.heard(client, here, now);
        Some(far)
    }

    /// When [`Datagrams::on_time`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.first()
    }

    /// Close what was silent for too long.
    pub fn on_time(&mut self, now: Instant, out: &mut impl Host) {
        while let Some(id) = self.timers.pop(now) {
            let Some(Some(mouth)) = self.table.get_mut(id as usize) else {
                continue;
            };
            if let Some(clients) = &mut mouth.public {
                clients.on_time(now);
                let forgotten = clients.forgotten().into_iter();
                forgotten.for_each(|far| self.fars.remove(mouth.port, far));
                if clients.len() > 0 {
                    self.timers.set(id, now + SWEEP);
                }
                continue;
            }
            let expires = mouth.expires();
            if expires <= now {
                self.remove(id, out);
            } else {
                self.timers.set(id, expires);
            }
        }
    }
}

fn icmp(six: bool) -> u8 {
    if six { proto::ICMPV6 } else { proto::ICMP }
}

/// Send a pod's datagram by a mouth.
fn send(
    id: MouthId,
    d: &Datagram<'_>,
    (from, to): (Option<LocalEnd>, SocketAddr),
    payload: &[u8],
    out: &mut impl Outside,
) -> Result<(), DropReason> {
    let what = Outward {
        to,
        from,
        // As many as the host's own, unless this is a traceroute.
        hops: (d.hops < 30).then_some(d.hops),
        class: d.class,
        segment: d.segment,
        may_fragment: d.may_fragment,
        payload,
    };
    let Err(why) = out.send(id, &what) else {
        return Ok(());
    };
    let (reason, trouble) = match why {
        // The socket's error queue knows the size, and tells it.
        HostError::TooBig(0) => (DropReason::TooBig, None),
        HostError::TooBig(mtu) => (DropReason::TooBig, Some(Trouble::TooBig { mtu })),
        HostError::NetUnreachable => (DropReason::HostSend, Some(Trouble::NetUnreachable)),
        HostError::HostUnreachable => (DropReason::HostSend, Some(Trouble::HostUnreachable)),
        HostError::Prohibited => (DropReason::EgressDenied, Some(Trouble::Prohibited)),
        _ => (DropReason::HostSend, None),
    };
    if let Some(trouble) = trouble {
        out.complain(d.port, trouble, d.packet, None);
    }
    Err(reason)
}

/// What of a pod's packet the host's socket is to send.
fn payload_of<'a>(d: &Datagram<'a>) -> Result<&'a [u8], DropReason> {
    let message = d.packet.get(d.l4..).unwrap_or_default();
    if message.len() < UDP_LEN {
        return Err(DropReason::Truncated);
    }
    match d.kind {
        MouthKind::Echo => Ok(message),
        MouthKind::Udp if d.segment.is_some() => Ok(&message[UDP_LEN..]),
        MouthKind::Udp => {
            let len = usize::from(be16(message, 4));
            message.get(UDP_LEN..len).ok_or(DropReason::BadL4Header)
        }
    }
}

fn trouble_of(what: HostError) -> Option<Trouble> {
    Some(match what {
        HostError::Refused => Trouble::PortUnreachable,
        HostError::NetUnreachable => Trouble::NetUnreachable,
        HostError::HostUnreachable | HostError::TimedOut => Trouble::HostUnreachable,
        HostError::Prohibited => Trouble::Prohibited,
        HostError::TtlExceeded => Trouble::TtlExceeded,
        HostError::TooBig(mtu) => Trouble::TooBig { mtu },
        HostError::Reset | HostError::NoSockets | HostError::Other => return None,
    })
}

/// One datagram or several for a pod: `frame` has the payload in its place, room for the headers before it.
fn udp_to_pod(
    frame: &mut [u8],
    (from, pod): (SocketAddr, SocketAddr),
    class: u8,
    segment: Option<u16>,
    port: PortId,
    ident: &mut u32,
    out: &mut impl Outside,
) {
    let six = pod.is_ipv6();
    let head = ip_len(six) + UDP_LEN;
    let at = ETH_LEN + head;
    let mtu = usize::from(out.mtu(port).0);
    let len = frame.len() - at;
    let ip = Ip {
        proto: proto::UDP,
        hops: 64,
        class,
        len: UDP_LEN + len,
        fragment: DF,
        ..Ip::default()
    };
    let segment = segment.filter(|s| usize::from(*s) < len && *s > 0);
    let single = segment.map_or(len, usize::from);
    // The longest datagrams the kernel merged may be more than one IP packet can say.
    if head + single <= mtu && head + len <= 65_535 {
        write_ip(&mut frame[ETH_LEN..], from.ip(), pod.ip(), &ip);
        write_udp(&mut frame[at - UDP_LEN..], from, pod, len);
        out.emit(port, frame, segment);
        return;
    }
    // One by one, and in fragments if need be. The headers are written over what was sent already.
    let mut start = at;
    while start < frame.len() {
        let end = (start + single).min(frame.len());
        let one = &mut frame[start - at..end];
        let len = one.len() - at;
        write_udp(&mut one[at - UDP_LEN..], from, pod, len);
        let sum = match transport_sum(from.ip(), pod.ip(), proto::UDP, &one[at - UDP_LEN..]) {
            0 => 0xffff,
            sum => sum,
        };
        put_be16(one, at - UDP_LEN + 6, sum);
        let ip = Ip {
            len: UDP_LEN + len,
            ..ip
        };
        *ident = ident.wrapping_add(1);
        let ends = (from.ip(), pod.ip());
        fragments(one, ends, &ip, *ident, mtu, |frame| out.emit(port, frame, None));
        start = end;
    }
}

/// An echo reply for a pod, with the identifier the pod gave.
fn echo_to_pod(
    frame: &mut [u8],
    (from, pod): (SocketAddr, SocketAddr),
    class: u8,
    port: PortId,
    ident: &mut u32,
    out: &mut impl Outside,
) {
    let six = pod.is_ipv6();
    let l4 = ETH_LEN + ip_len(six);
    let Some(message) = frame.get_mut(l4..).filter(|m| m.len() >= 8) else {
        return;
    };
    put_be16(message, 4, pod.port());
    put_be16(message, 2, 0);
    let sum = match six {
        true => transport_sum(from.ip(), pod.ip(), proto::ICMPV6, message),
        false => Sum::default().with(message).finish(),
    };
    put_be16(message, 2, sum);
    let ip = Ip {
        proto: icmp(six),
        hops: 64,
        class,
        len: message.len(),
        fragment: DF,
        ..Ip::default()
    };
    *ident = ident.wrapping_add(1);
    let mtu = usize::from(out.mtu(port).0);
    fragments(frame, (from.ip(), pod.ip()), &ip, *ident, mtu, |frame| {
        out.emit(port, frame, None);
    });
}
