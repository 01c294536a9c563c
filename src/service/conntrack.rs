//! Connections, found by their packets in both directions.
//!
//! Each is in two hash tables (by what the client sends, by what the backend sends), on the [`Wheel`], in the list of
//! its holder (a pod, or a client outside) and in that of its backend. All of these are numbers within it: opening, finding and closing one costs the
//! same however many there are, and takes memory only where the slab grows by a piece.

use super::hash::Keyed;
use super::slab::{Link, Linked, List, NONE, Slab};
use super::state::{Course, Direction, Signal};
use super::wheel::Wheel;
use crate::model::{ConnState, DropReason, Duration, Instant, PortId, Transport};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Seconds without a word after which nobody is opening a connection any more: longer than TCP's first three tries are
/// apart (RFC 6298).
const GIVEN_UP: u32 = 5;

/// One end of a connection. As a [`SocketAddr`], without what IPv6 has in addition.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct End {
    pub ip: IpAddr,
    pub port: u16,
}

impl From<SocketAddr> for End {
    fn from(at: SocketAddr) -> End {
        End {
            ip: at.ip(),
            port: at.port(),
        }
    }
}

impl From<End> for SocketAddr {
    fn from(end: End) -> SocketAddr {
        SocketAddr::new(end.ip, end.port)
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

/// What packets of one direction have in their headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tuple {
    pub transport: Transport,
    pub src: End,
    pub dst: End,
}

impl Tuple {
    /// That of the other direction.
    pub fn flipped(self) -> Tuple {
        Tuple {
            src: self.dst,
            dst: self.src,
            ..self
        }
    }
}

/// Whose connections are counted together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Holder {
    /// A pod of this node, whatever address of its own it sends from.
    Pod(PortId),
    /// A client outside.
    Address(IpAddr),
}

/// The list a connection waits in to be looked at.
pub(super) const WHEEL: usize = 0;
/// That of connections that give way when the table is full, oldest first.
pub(super) const GIVING: usize = 1;
/// That of its holder: of those that give way, or of those that do not.
pub(super) const CLIENT: usize = 2;
/// That of its backend.
pub(super) const BACKEND: usize = 3;

/// A connection.
#[derive(Debug)]
pub(super) struct Conn {
    /// What the client sends: itself and the virtual address.
    pub original: Tuple,
    /// What the backend sends: itself, and the client or what stands for it.
    pub reply: Tuple,
    /// The client's port, where it is a pod of this node.
    pub pod: Option<PortId>,
    /// The backend's number in the table.
    pub backend: u32,
    pub course: Course,
    /// The seconds it was opened, something last passed, and it is looked at.
    pub since: u32,
    pub seen: u32,
    due: u32,
    links: [Link; 4],
    /// The next in the bucket of each hash table.
    chain: [u32; 2],
}

impl Linked for Conn {
    fn link(&mut self, kind: usize) -> &mut Link {
        &mut self.links[kind]
    }
}

impl Conn {
    fn tuple(&self, direction: Direction) -> &Tuple {
        match direction {
            Direction::Original => &self.original,
            Direction::Reply => &self.reply,
        }
    }

    /// The second it ends in if nothing passes.
    pub fn ends_at(&self) -> u32 {
        let patience = self.course.patience(self.original.transport);
        self.seen.saturating_add(patience.secs() as u32)
    }

    fn holder(&self) -> Holder {
        match self.pod {
            Some(port) => Holder::Pod(port),
            None => Holder::Address(self.original.src.ip),
        }
    }

    /// Whether it is certainly over for a client that begins another one with the same backend from the same port: it has
    /// ended its side, or tries no more to open it.
    pub fn is_abandoned(&self, now: u32) -> bool {
        match self.course.state {
            ConnState::Closing => true,
            ConnState::Opening if now.saturating_sub(self.seen) >= GIVEN_UP => true,
            _ => self.course.is_client_done(),
        }
    }

    /// Another source than the client's stands in what the backend sees.
    pub fn is_masked(&self) -> bool {
        self.reply.dst != self.original.src
    }
}

/// What one holder has.
#[derive(Debug, Default)]
struct Held {
    open: u32,
    giving: List,
    lasting: List,
}

impl Held {
    fn list(&mut self, gives_way: bool) -> &mut List {
        match gives_way {
            true => &mut self.giving,
            false => &mut self.lasting,
        }
    }
}

/// The second of an instant.
#[inline]
pub(super) fn second(now: Instant) -> u32 {
    u32::try_from(now.total_micros() / 1_000_000).unwrap_or(0)
}

/// All connections of a node.
#[derive(Debug)]
pub(super) struct Conntrack {
    pub conns: Slab<Conn>,
    /// First of each bucket, one more than its number: memory of zeros is the kernel's until it is used.
    buckets: [Vec<u32>; 2],
    keys: Keyed,
    wheel: Option<Wheel>,
    giving: List,
    holders: HashMap<Holder, Held, Keyed>,
    /// Connections of each client's address.
    clients: HashMap<IpAddr, u32, Keyed>,
    /// Those with another source than the client's.
    masked: usize,
    capacity: usize,
    per_holder: u32,
}

impl Conntrack {
    /// None yet, and no memory either.
    pub fn new(capacity: usize, per_holder: usize, keys: Keyed) -> Conntrack {
        Conntrack {
            conns: Slab::default(),
            buckets: [Vec::new(), Vec::new()],
            keys,
            wheel: None,
            giving: List::default(),
            holders: HashMap::with_hasher(keys),
            clients: HashMap::with_hasher(keys),
            masked: 0,
            // Numbers are of 32 bits, and the last one stands for none.
            capacity: capacity.clamp(1, 1 << 30),
            per_holder: per_holder.clamp(1, 1 << 30) as u32,
        }
    }

    /// Bytes allocated.
    pub fn memory(&self) -> usize {
        let buckets: usize = self.buckets.iter().map(|b| b.len() * size_of::<u32>()).sum();
        let holders = self.holders.capacity() * size_of::<(Holder, Held)>();
        let clients = self.clients.capacity() * size_of::<(IpAddr, u32)>();
        self.conns.memory() + buckets + holders + clients
    }

    /// Whether packets to an address may be of a connection: it is a client's, or the gateway's while something is
    /// masked by it.
    #[inline]
    pub fn concerns(&self, ip: IpAddr, gateway: Option<IpAddr>) -> bool {
        self.conns.len() > 0 && (self.masked > 0 && gateway == Some(ip) || self.clients.contains_key(&ip))
    }

    /// A connection of a pod.
    pub fn any_of(&self, pod: PortId) -> Option<u32> {
        let held = self.holders.get(&Holder::Pod(pod))?;
        held.giving.first().or(held.lasting.first())
    }

    /// Whether some client is masked.
    #[inline]
    pub fn masks(&self) -> bool {
        self.masked > 0
    }

    /// Connections of a client's address.
    pub fn of_client(&self, ip: IpAddr) -> usize {
        self.clients.get(&ip).map_or(0, |n| *n as usize)
    }

    /// The connection of a packet.
    #[inline]
    pub fn find(&self, direction: Direction, tuple: &Tuple) -> Option<u32> {
        if self.conns.len() == 0 {
            return None;
        }
        let heads = &self.buckets[direction as usize];
        let mut at = heads[self.bucket(tuple)].wrapping_sub(1);
        while let Some(conn) = self.conns.get(at) {
            if conn.tuple(direction) == tuple {
                return Some(at);
            }
            at = conn.chain[direction as usize];
        }
        None
    }

    /// Which connection must go, if any, before a client may have another one: a pod of this node, or an address outside.
    ///
    /// # Errors
    /// There is none that would give way.
    pub fn room(&self, pod: Option<PortId>, client: IpAddr) -> Result<Option<u32>, DropReason> {
        let holder = pod.map_or(Holder::Address(client), Holder::Pod);
        let known = self.holders.get(&holder);
        if known.is_some_and(|c| c.open >= self.per_holder) {
            let own = known.and_then(|c| c.giving.first());
            return own.map(Some).ok_or(DropReason::ConntrackLimit);
        }
        if self.conns.len() < self.capacity {
            return Ok(None);
        }
        let first = self.giving.first();
        first.map(Some).ok_or(DropReason::ConntrackFull)
    }

    /// Put one in. There is [room](Conntrack::room), and none with these tuples.
    pub fn insert(
        &mut self,
        (original, reply): (Tuple, Tuple),
        pod: Option<PortId>,
        backend: u32,
        first: Signal,
        now: u32,
    ) -> u32 {
        if self.buckets[0].is_empty() {
            let n = self.capacity.next_power_of_two();
            self.buckets = [vec![0; n], vec![0; n]];
        }
        let course = Course::new(first);
        let conn = Conn {
            original,
            reply,
            pod,
            backend,
            course,
            since: now,
            seen: now,
            due: 0,
            links: [Link::default(); 4],
            chain: [NONE; 2],
        };
        let holder = conn.holder();
        let n = self.conns.insert(conn);
        self.chain(Direction::Original, &original, n);
        self.chain(Direction::Reply, &reply, n);
        self.masked += usize::from(original.src != reply.dst);
        self.giving.push(&mut self.conns, n, GIVING);
        *self.clients.entry(original.src.ip).or_default() += 1;
        let held = self.holders.entry(holder).or_default();
        held.open += 1;
        held.giving.push(&mut self.conns, n, CLIENT);
        self.schedule(n, now);
        n
    }

    /// Take one out. Its backend's list is the caller's.
    pub fn remove(&mut self, n: u32) -> Option<Conn> {
        let conn = self.conns.get(n)?;
        let (original, reply, due) = (conn.original, conn.reply, conn.due);
        let (gives_way, holder) = (conn.course.gives_way(), conn.holder());
        for (direction, tuple) in [(Direction::Original, original), (Direction::Reply, reply)] {
            self.unchain(direction, &tuple, n);
        }
        self.masked -= usize::from(original.src != reply.dst);
        if gives_way {
            self.giving.remove(&mut self.conns, n, GIVING);
        }
        if let Some(held) = self.holders.get_mut(&holder) {
            held.list(gives_way).remove(&mut self.conns, n, CLIENT);
            held.open -= 1;
            if held.open == 0 {
                self.holders.remove(&holder);
            }
        }
        if let Some(open) = self.clients.get_mut(&original.src.ip) {
            *open -= 1;
            if *open == 0 {
                self.clients.remove(&original.src.ip);
            }
        }
        if let Some(wheel) = &mut self.wheel {
            wheel.remove(&mut self.conns, n, WHEEL, due);
        }
        self.conns.remove(n)
    }

    /// The backend sees the client as another one from now on; no connection has this tuple.
    pub fn readdress(&mut self, n: u32, reply: Tuple) {
        let Some(before) = self.conns.get(n).map(|c| c.reply) else {
            return;
        };
        self.unchain(Direction::Reply, &before, n);
        if let Some(conn) = self.conns.get_mut(n) {
            self.masked -= usize::from(conn.is_masked());
            conn.reply = reply;
            self.masked += usize::from(conn.is_masked());
        }
        self.chain(Direction::Reply, &reply, n);
    }

    /// A packet of it passes. Its backend, if it is closing from now on.
    #[inline]
    pub fn touch(&mut self, n: u32, direction: Direction, signal: Signal, now: u32) -> Option<u32> {
        let conn = self.conns.get_mut(n)?;
        conn.seen = now;
        let before = conn.course.gives_way();
        if !conn.course.step(conn.original.transport, direction, signal) {
            return None;
        }
        let closing = conn.course.state == ConnState::Closing;
        let backend = closing.then_some(conn.backend);
        self.moved_on(n, before, now);
        backend
    }

    /// Its state is another one: it waits for another time, and gives way or does not.
    fn moved_on(&mut self, n: u32, gave_way: bool, now: u32) {
        let Some(conn) = self.conns.get(n) else { return };
        let (gives_way, due, holder) = (conn.course.gives_way(), conn.due, conn.holder());
        if let Some(wheel) = &mut self.wheel {
            wheel.remove(&mut self.conns, n, WHEEL, due);
        }
        self.schedule(n, now);
        if gave_way == gives_way {
            return;
        }
        match gives_way {
            true => self.giving.push(&mut self.conns, n, GIVING),
            false => self.giving.remove(&mut self.conns, n, GIVING),
        }
        if let Some(held) = self.holders.get_mut(&holder) {
            held.list(gave_way).remove(&mut self.conns, n, CLIENT);
            held.list(gives_way).push(&mut self.conns, n, CLIENT);
        }
    }

    /// The next whose time is up. Those that had more time are put off, `budget` of them at most.
    pub fn expired(&mut self, now: u32, budget: &mut usize) -> Option<u32> {
        while *budget > 0 {
            let n = self.wheel.as_mut()?.due(now)?;
            *budget -= 1;
            let conn = self.conns.get(n)?;
            let due = conn.due;
            if conn.ends_at() <= now {
                return Some(n);
            }
            if let Some(wheel) = &mut self.wheel {
                wheel.remove(&mut self.conns, n, WHEEL, due);
            }
            self.schedule(n, now);
        }
        None
    }

    /// When one has to be looked at.
    pub fn deadline(&self) -> Option<Instant> {
        let next = self.wheel.as_ref()?.next()?;
        Some(Instant::from_secs(i64::from(next)))
    }

    fn schedule(&mut self, n: u32, now: u32) {
        let Some(ends) = self.conns.get(n).map(Conn::ends_at) else {
            return;
        };
        let wheel = self.wheel.get_or_insert_with(|| Wheel::new(now));
        if self.conns.len() == 1 {
            // Nobody turned it while there was nothing to do.
            wheel.rest(now);
        }
        // Never for a second that is being looked at.
        let due = wheel.insert(&mut self.conns, n, WHEEL, ends.max(now.saturating_add(1)));
        if let Some(conn) = self.conns.get_mut(n) {
            conn.due = due;
        }
    }

    fn chain(&mut self, direction: Direction, tuple: &Tuple, n: u32) {
        let kind = direction as usize;
        let bucket = self.bucket(tuple);
        let head = std::mem::replace(&mut self.buckets[kind][bucket], n + 1);
        if let Some(conn) = self.conns.get_mut(n) {
            conn.chain[kind] = head.wrapping_sub(1);
        }
    }

    fn unchain(&mut self, direction: Direction, tuple: &Tuple, n: u32) {
        let kind = direction as usize;
        let bucket = self.bucket(tuple);
        let next = self.conns.get(n).map_or(NONE, |c| c.chain[kind]);
        let mut at = self.buckets[kind][bucket].wrapping_sub(1);
        if at == n {
            self.buckets[kind][bucket] = next.wrapping_add(1);
            return;
        }
        while let Some(conn) = self.conns.get_mut(at) {
            if conn.chain[kind] == n {
                conn.chain[kind] = next;
                return;
            }
            at = conn.chain[kind];
        }
    }

    #[inline]
    fn bucket(&self, tuple: &Tuple) -> usize {
        (self.hash(tuple) as usize) & (self.buckets[0].len() - 1)
    }

    /// A hash of a tuple that nobody can foresee.
    #[inline]
    pub fn hash(&self, t: &Tuple) -> u64 {
        let ports = u64::from(t.src.port) << 32 | u64::from(t.dst.port) << 8 | t.transport as u64;
        let hash = self.keys.address(self.keys.address(ports, t.src.ip), t.dst.ip);
        self.keys.done(hash)
    }
}

/// For how long a connection has been as it is.
pub(super) fn age(now: u32, then: u32) -> Duration {
    Duration::from_secs(u64::from(now.saturating_sub(then)))
}

/// Whether a connection has not come about: nobody has answered. UDP need not be answered.
pub(super) fn failed(conn: &Conn) -> bool {
    conn.original.transport != Transport::Udp
        && conn.course.state == ConnState::Opening
        && !conn.course.answered
}
