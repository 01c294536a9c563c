//! TCP out of the pod network: each flow ends in a smoltcp socket of its own here, and goes on in a stream of the host.
//!
//! ```text
//! pod: SYN -> policy, limits -> connect the stream; the SYN-ACK is held
//!            connected -> SYN-ACK          refused -> RST          unreachable -> ICMP
//! pod: data -> receive ring -> write to the stream     FIN -> shut the stream's other half
//! stream: data -> send ring -> super-frames to the pod  end -> FIN      broken -> RST
//! ```
//!
//! A flow is found by a hash of its addresses, and its socket is the only one in its set: ten thousand others cost it
//! nothing. Bytes are copied once in user space, into the ring. Back-pressure is TCP's own: a host that takes nothing
//! leaves the ring full, and the pod sees its window close.

mod turns;

use super::half_open::{Awaited, OfPort, Share};
use super::host::{Failure, FlowId, Host, Outside};
use super::key::FlowKey;
use super::link::{Link, Scratch, mss_of, segment_size};
use super::policy::{Closed, Limits, Policy};
use super::published::Fars;
use super::rings::ring;
use super::timers::Timers;
use crate::model::{DropReason, Duration, HostError, Instant, Moved, PortId};
use crate::stack::Trouble;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Flows of all pods.
pub const MAX_FLOWS: usize = 65_536;
/// Flows of one pod, or of clients at one port of a Service.
pub const MAX_PER_PORT: usize = 16_384;
/// Bytes that are taken from the host before they are sent on, while they are in the processor's cache.
const CHUNK: usize = 256 << 10;
/// Bytes that are taken from a pod before they are written to the host.
const CHUNK_UP: usize = 128 << 10;
/// Chunks of one flow before another has its turn.
const CHUNKS: usize = 4;
/// Packets of one flow in one go.
const BURST: usize = 64;
/// An established flow may be silent for so long (RFC 5382 REQ-5: not less than 2 hours 4 minutes).
const IDLE: Duration = Duration::from_secs(7440);
/// One that is being opened or closed (RFC 5382 REQ-5: not less than 4 minutes).
const TRANSITORY: Duration = Duration::from_secs(240);
/// How long an acknowledgement of little data waits for an answer to go along with.
const ACK_DELAY: Duration = Duration::from_millis(2);
/// As much of a SYN as is kept to answer it later.
const SYN_KEPT: usize = 120;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

struct Flow {
    key: FlowKey,
    port: PortId,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// The pod's SYN, until the host has connected.
    syn: Option<Vec<u8>>,
    /// It is not there on both sides yet.
    awaited: Option<Awaited>,
    /// What the pod's side takes in one segment.
    mss: u16,
    /// The stream may have something to read, or has room: what the last event, and the calls since, said.
    readable: bool,
    writable: bool,
    /// The host sends no more.
    ended: bool,
    /// The host was told that the pod sends no more.
    shut: bool,
    /// The stream is broken; the pod is told behind what was read before.
    broken: bool,
    /// What the pod sent and the host has not taken yet, once both sides have ended: smoltcp does not keep it.
    rest: Vec<u8>,
    /// It waits in `Flows::dirty`.
    dirty: bool,
    /// Something moved last.
    last: Instant,
    /// Until when the pod's bandwidth limit has no room for what it has to send.
    held: Option<Instant>,
}

impl Flow {
    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// When it has been silent for too long.
    fn expires(&mut self) -> Instant {
        let transitory = self.syn.is_some() || self.ended || self.shut || !self.is_established();
        self.last + if transitory { TRANSITORY } else { IDLE }
    }

    /// The pod has yet to say something.
    fn is_opening(&mut self) -> bool {
        matches!(self.socket().state(), State::SynSent | State::SynReceived)
    }

    fn is_established(&mut self) -> bool {
        self.socket().state() == State::Established
    }
}

/// All flows of a node.
pub struct Flows {
    table: Vec<Option<Box<Flow>>>,
    free: Vec<FlowId>,
    keys: HashMap<FlowKey, FlowId>,
    shares: HashMap<Share, OfPort>,
    pub(super) fars: Fars,
    four: Interface,
    six: Interface,
    nobody: SocketSet<'static>,
    scratch: Scratch,
    /// Flows something happened to since the last turn.
    dirty: Vec<FlowId>,
    /// Those that have their turn, and how many have had it.
    todo: Vec<FlowId>,
    done: usize,
    /// The flow whose stack is at work.
    at_work: Option<FlowId>,
    /// Whose flow is being made, which may not be there yet.
    begun: Option<PortId>,
    timers: Timers,
}

/// What [`Flows::input`] needs of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The port it came from.
    pub port: PortId,
    /// The IP packet, as long as its header says.
    pub packet: &'a [u8],
    /// Where in it the TCP header begins.
    pub l4: usize,
    /// Its addresses.
    pub key: FlowKey,
    /// Hops it has left behind this node.
    pub hops: u8,
}

impl Flows {
    /// None yet.
    pub fn new(seed: u64) -> Flows {
        let interface = |own: IpAddr| {
            let mut config = Config::new(HardwareAddress::Ip);
            config.random_seed = seed;
            let mut scratch = Scratch::default();
            let mut nowhere = |_: &mut [u8]| {};
            let mut link = Link::new(None, &mut scratch, &mut nowhere);
            let mut interface = Interface::new(config, &mut link, Instant::ZERO);
            // It answers for every address: routes to itself say so (smoltcp's AnyIP). Its own is the dummy one.
            interface.set_any_ip(true);
            let address = IpAddress::from(own);
            interface.update_ip_addrs(|all| {
                let _ = all.push(IpCidr::new(address, if own.is_ipv4() { 32 } else { 128 }));
            });
            let _ = match own {
                IpAddr::V4(ip) => interface.routes_mut().add_default_ipv4_route(ip),
                IpAddr::V6(ip) => interface.routes_mut().add_default_ipv6_route(ip),
            };
            interface
        };
        Flows {
            table: Vec::new(),
            free: Vec::new(),
            keys: HashMap::new(),
            shares: HashMap::new(),
            fars: Fars::default(),
            // RFC 7600, and the discard prefix of RFC 6666.
            four: interface(Ipv4Addr::new(192, 0, 0, 8).into()),
            six: interface(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 8).into()),
            nobody: SocketSet::new(Vec::new()),
            scratch: Scratch::default(),
            dirty: Vec::new(),
            todo: Vec::new(),
            done: 0,
            at_work: None,
            begun: None,
            timers: Timers::default(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a packet belongs to a flow there is.
    pub fn knows(&self, key: &FlowKey) -> bool {
        self.keys.contains_key(key)
    }

    /// How many a pod's port has.
    pub fn of_port(&self, port: PortId) -> usize {
        self.shares.get(&Share::Pod(port)).map_or(0, |s| s.flows)
    }

    /// Whether there may be one more.
    fn has_room(&self, port: PortId, key: &FlowKey, limits: Limits) -> bool {
        let (share, all) = (Share::of(port, key), self.keys.len());
        let own = self.shares.get(&share).map_or(0, |s| s.flows);
        own < limits.flows_of(share, all) && all < limits.flows
    }

    /// Take a TCP segment of a pod. Answers go out with [`Flows::turn`].
    ///
    /// # Errors
    /// What it is to be counted under, when it goes nowhere.
    pub fn input(
        &mut self,
        s: &Segment<'_>,
        policy: &Policy,
        now: Instant,
        out: &mut impl Outside,
    ) -> Result<(), DropReason> {
        let flags = *s.packet.get(s.l4 + 13).ok_or(DropReason::BadL4Header)?;
        let begins = flags & (SYN | ACK | RST | FIN) == SYN;
        if let Some(&id) = self.keys.get(&s.key) {
            let Some(flow) = self.table.get_mut(id as usize).and_then(Option::as_mut) else {
                return Err(DropReason::NoRoute);
            };
            if flow.syn.is_some() {
                match flags & RST {
                    // The pod asks again; it is told when the host knows.
                    0 => return Ok(()),
                    _ => {
                        self.remove(id, true, out);
                        return Ok(());
                    }
                }
            }
            flow.last = now;
            if flags & SYN != 0 {
                // The pod's answer to a client.
                flow.mss = mss_of(&s.packet[s.l4..], s.key.far.is_ipv6());
            }
            self.feed(id, s.packet, now, out);
            return Ok(());
        }
        if !begins {
            // Of a flow that is over, or was another node's: who sends must learn that it leads nowhere.
            self.refuse(s.port, s.packet, now, out);
            return Ok(());
        }
        let to = match policy.judge(s.key.far) {
            Ok(to) => to,
            Err(closed) => {
                match closed {
                    // As of a Service that lacks the port.
                    Closed::Unserved => self.refuse(s.port, s.packet, now, out),
                    _ => out.complain(s.port, closed.trouble(), s.packet, None),
                }
                return Err(closed.reason());
            }
        };
        self.begin(
            s,
            (to, policy.source(s.key.far, s.port)),
            policy.limits(),
            now,
            out,
        )
    }

    fn begin(
        &mut self,
        s: &Segment<'_>,
        ends: (SocketAddr, Option<IpAddr>),
        limits: Limits,
        now: Instant,
        out: &mut impl Outside,
    ) -> Result<(), DropReason> {
        self.begun = Some(s.port);
        let begun = self.try_begin(s, ends, limits, now, out);
        (self.begun, self.at_work) = (None, None);
        begun
    }

    fn try_begin(
        &mut self,
        s: &Segment<'_>,
        (to, from): (SocketAddr, Option<IpAddr>),
        limits: Limits,
        now: Instant,
        out: &mut impl Outside,
    ) -> Result<(), DropReason> {
        if s.key.far.port() == 0 || s.key.pod.port() == 0 {
            return Err(DropReason::BadL4Header);
        }
        if !self.has_room(s.port, &s.key, limits) {
            return Err(DropReason::FlowLimit);
        }
        let six = s.key.far.is_ipv6();
        let mut socket = self.socket();
        socket.pause_synack(true);
        let local = IpListenEndpoint {
            addr: Some(s.key.far.ip().into()),
            port: s.key.far.port(),
        };
        socket.listen(local).map_err(|_| DropReason::BadL4Header)?;
        let mss = mss_of(&s.packet[s.l4..], six);
        let id = self.insert(s.key, s.port, socket, mss, now);
        // The host's own hops are as many as it likes, unless this is a traceroute.
        let hops = (s.hops < 30).then_some(s.hops);
        if let Err(e) = out.connect(id, to, from, hops) {
            self.remove(id, false, out);
            return self.failed(s.port, s.packet, (e, None), now, out);
        }
        self.feed(id, s.packet, now, out);
        self.at_work = Some(id);
        if let Some(Some(flow)) = self.table.get_mut(id as usize)
            && flow.socket().state() == State::SynReceived
        {
            flow.syn = Some(s.packet[..s.packet.len().min(SYN_KEPT)].to_vec());
            self.await_from(Awaited::Host, id, out);
            self.wake_at(id, now);
            return Ok(());
        }
        self.remove(id, true, out);
        Err(DropReason::BadL4Header)
    }

    /// A connection from outside to a pod: the host's stream is there already. `far` is what the pod sees of the
    /// client. Gives the number that the stream is to have.
    ///
    /// # Errors
    /// There are too many, or just this one.
    pub fn accept(
        &mut self,
        port: PortId,
        key: FlowKey,
        limits: Limits,
        now: Instant,
        out: &mut impl Host,
    ) -> Result<FlowId, DropReason> {
        self.begun = Some(port);
        let id = self.try_accept(port, key, limits, now, out);
        (self.begun, self.at_work) = (None, None);
        id
    }

    fn try_accept(
        &mut self,
        port: PortId,
        key: FlowKey,
        limits: Limits,
        now: Instant,
        out: &mut impl Host,
    ) -> Result<FlowId, DropReason> {
        if !self.has_room(port, &key, limits) || self.keys.contains_key(&key) {
            return Err(DropReason::FlowLimit);
        }
        let mut socket = self.socket();
        let six = key.far.is_ipv6();
        let context = if six {
            self.six.context()
        } else {
            self.four.context()
        };
        let remote = (IpAddress::from(key.pod.ip()), key.pod.port());
        let local = (IpAddress::from(key.far.ip()), key.far.port());
        socket
            .connect(context, remote, local)
            .map_err(|_| DropReason::BadL4Header)?;
        let id = self.insert(key, port, socket, if six { 1220 } else { 536 }, now);
        self.await_from(Awaited::Pod, id, out);
        self.touch(id);
        Ok(id)
    }

    fn socket(&self) -> Socket<'static> {
        let ring = ring(self.keys.len());
        let buffer = || SocketBuffer::new(vec![0; ring]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        socket
    }

    fn insert(
        &mut self,
        key: FlowKey,
        port: PortId,
        socket: Socket<'static>,
        mss: u16,
        now: Instant,
    ) -> FlowId {
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let flow = Box::new(Flow {
            key,
            port,
            sockets,
            handle,
            syn: None,
            awaited: None,
            mss,
            readable: false,
            writable: true,
            ended: false,
            shut: false,
            broken: false,
            rest: Vec::new(),
            dirty: false,
            last: now,
            held: None,
        });
        let id = self.free.pop().unwrap_or(self.table.len() as FlowId);
        self.at_work = Some(id);
        match self.table.get_mut(id as usize) {
            Some(slot) => *slot = Some(flow),
            None => self.table.push(Some(flow)),
        }
        self.keys.insert(key, id);
        self.shares.entry(Share::of(port, &key)).or_default().flows += 1;
        self.fars.add(port, key.far);
        id
    }

    /// Let smoltcp have a packet of a flow.
    fn feed(&mut self, id: FlowId, packet: &[u8], now: Instant, out: &mut impl Outside) {
        let Some(Some(flow)) = self.table.get_mut(id as usize) else {
            return;
        };
        self.at_work = Some(id);
        let (port, mss, mtu) = (flow.port, flow.mss, out.mtu(flow.port).0);
        let interface = match flow.key.far {
            SocketAddr::V4(_) => &mut self.four,
            SocketAddr::V6(_) => &mut self.six,
        };
        // smoltcp counts segments, of which a super-frame is one: bulk is acknowledged at once.
        let bulk = packet.len() > usize::from(mtu);
        flow.socket()
            .set_ack_delay(if bulk { None } else { Some(ACK_DELAY) });
        let mut emit = |frame: &mut [u8]| send(port, frame, mss, mtu, out);
        let mut link = Link::new(Some(packet), &mut self.scratch, &mut emit);
        interface.poll_ingress_single(now, &mut link, &mut flow.sockets);
        if flow.awaited == Some(Awaited::Pod) && !flow.is_opening() {
            flow.awaited = None;
            let share = Share::of(port, &flow.key);
            self.shares.entry(share).or_default().is_there(Awaited::Pod, id);
        }
        if flow.syn.is_none() && flow.socket().recv_queue() >= CHUNK_UP {
            // On with it while it is warm, and the pod shall not wait for the end of the turn to send more.
            self.pump(id, now, out);
            self.dispatch(id, now, out);
        }
        self.at_work = None;
        self.touch(id);
    }

    fn touch(&mut self, id: FlowId) {
        if let Some(Some(flow)) = self.table.get_mut(id as usize)
            && !flow.dirty
        {
            flow.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Answer a packet that belongs to no flow with a reset, unless it is one.
    pub fn refuse(&mut self, port: PortId, packet: &[u8], now: Instant, out: &mut impl Outside) {
        let interface = match packet.first().map(|b| b >> 4) {
            Some(4) => &mut self.four,
            _ => &mut self.six,
        };
        let mtu = out.mtu(port).0;
        let mut emit = |frame: &mut [u8]| send(port, frame, u16::MAX, mtu, out);
        let mut link = Link::new(Some(packet), &mut self.scratch, &mut emit);
        interface.poll_ingress_single(now, &mut link, &mut self.nobody);
    }

    /// The host could not connect: the pod learns just that.
    fn failed(
        &mut self,
        port: PortId,
        syn: &[u8],
        (why, by): Failure,
        now: Instant,
        out: &mut impl Outside,
    ) -> Result<(), DropReason> {
        let trouble = match why {
            HostError::Refused | HostError::Reset => {
                self.refuse(port, syn, now, out);
                return Ok(());
            }
            HostError::NoSockets => return Err(DropReason::HostSockets),
            // It has asked often enough meanwhile; its own time-out is about to come.
            HostError::TimedOut | HostError::HostUnreachable => Trouble::HostUnreachable,
            HostError::Prohibited => Trouble::Prohibited,
            HostError::TtlExceeded => Trouble::TtlExceeded,
            HostError::TooBig(mtu) => Trouble::TooBig { mtu },
            HostError::NetUnreachable | HostError::Other => Trouble::NetUnreachable,
        };
        out.complain(port, trouble, syn, by);
        Ok(())
    }

    /// Something happened at a flow's stream.
    pub fn host_ready(
        &mut self,
        id: FlowId,
        readable: bool,
        writable: bool,
        now: Instant,
        out: &mut impl Outside,
    ) {
        self.at_work = Some(id);
        self.host_told(id, readable, writable, now, out);
        self.at_work = None;
    }

    fn host_told(
        &mut self,
        id: FlowId,
        readable: bool,
        writable: bool,
        now: Instant,
        out: &mut impl Outside,
    ) {
        let Some(Some(flow)) = self.table.get_mut(id as usize) else {
            return;
        };
        if flow.syn.is_some() {
            match out.outcome(id) {
                None => return,
                Some(Ok(())) => {
                    (flow.syn, flow.last) = (None, now);
                    flow.socket().pause_synack(false);
                    self.await_from(Awaited::Pod, id, out);
                }
                Some(Err(why)) => {
                    self.give_up(id, why, now, out);
                    return;
                }
            }
        }
        if let Some(Some(flow)) = self.table.get_mut(id as usize) {
            flow.readable |= readable;
            flow.writable |= writable;
        }
        self.touch(id);
    }

    /// A flow the host did not connect.
    fn give_up(&mut self, id: FlowId, why: Failure, now: Instant, out: &mut impl Outside) {
        let Some(Some(flow)) = self.table.get_mut(id as usize) else {
            return;
        };
        let (port, syn) = (flow.port, flow.syn.take().unwrap_or_default());
        self.remove(id, false, out);
        if let Err(reason) = self.failed(port, &syn, why, now, out) {
            out.lost(port, reason);
        }
    }

    /// A flow waits for somebody from now on; of too many of its pod the oldest gives way.
    fn await_from(&mut self, whom: Awaited, id: FlowId, out: &mut impl Host) {
        let Some(Some(flow)) = self.table.get_mut(id as usize) else {
            return;
        };
        let of_port = self.shares.entry(Share::of(flow.port, &flow.key)).or_default();
        if let Some(before) = flow.awaited.replace(whom) {
            of_port.is_there(before, id);
        }
        if let Some(oldest) = of_port.awaits(whom, id) {
            self.remove(oldest, true, out);
        }
    }

    /// Move bytes between a flow's socket and its stream. Whether more could be read at once.
    fn pump(&mut self, id: FlowId, now: Instant, out: &mut impl Host) -> bool {
        let Some(Some(flow)) = self.table.get_mut(id as usize) else {
            return false;
        };
        if flow.syn.is_some() || flow.broken {
            return false;
        }
        let flow = flow.as_mut();
        let socket = flow.sockets.get_mut::<Socket>(flow.handle);
        let mut writable = flow.writable;
        let mut write = |bytes: &[u8]| {
            let (n, writable) = match out.write(id, bytes) {
                Moved::Bytes(n) => (n.min(bytes.len()), n >= bytes.len()),
                Moved::Blocked => (0, false),
                Moved::End | Moved::Failed(_) => {
                    flow.broken = true;
                    (0, false)
                }
            };
            flow.writable = writable;
            (n, writable)
        };
        while writable && socket.can_recv() {
            match socket.recv(|bytes| write(bytes)) {
                Ok(goes_on) => writable = goes_on,
                Err(_) => break,
            }
            flow.last = now;
        }
        let rested = !flow.rest.is_empty();
        while writable && !flow.rest.is_empty() {
            let (n, goes_on) = write(&flow.rest);
            flow.rest.drain(..n);
            (flow.last, writable) = (now, goes_on);
        }
        let over = rested
            || matches!(
                socket.state(),
                State::CloseWait | State::LastAck | State::Closing | State::TimeWait
            );
        if over && socket.recv_queue() == 0 && flow.rest.is_empty() && !flow.shut && !flow.broken {
            flow.shut = true;
            out.shut(id);
        }
        let mut more = false;
        let mut taken = 0;
        // Also of a stream that takes nothing more: what it has to say is often why.
        while flow.readable && !flow.ended && socket.can_send() {
            if taken >= CHUNK {
                more = true;
                break;
            }
            let sent = socket.send(|room| {
                let room = &mut room[..];
                let len = room.len().min(CHUNK);
                match out.read(id, &mut room[..len]) {
                    Moved::Bytes(n) => {
                        taken += n.min(len);
                        (n.min(len), ())
                    }
                    Moved::Blocked => {
                        flow.readable = false;
                        (0, ())
                    }
                    Moved::End => {
                        flow.ended = true;
                        (0, ())
                    }
                    Moved::Failed(_) => {
                        (flow.readable, flow.broken) = (false, true);
                        (0, ())
                    }
                }
            });
            if sent.is_err() {
                break;
            }
            flow.last = now;
        }
        if flow.broken {
            flow.rest = Vec::new();
            return false;
        }
        if flow.ended && matches!(socket.state(), State::Established | State::CloseWait) {
            socket.close();
        }
        if flow.ended && matches!(socket.state(), State::LastAck | State::Closing | State::TimeWait) {
            // The pod's last acknowledgement, or some seconds, would be the end of it, however slow the host is.
            let rest = &mut flow.rest;
            let mut take = |bytes: &mut [u8]| {
                rest.extend_from_slice(bytes);
                (bytes.len(), bytes.len())
            };
            while socket.recv(&mut take).is_ok_and(|n| n > 0) {}
        }
        more
    }

    /// Send what smoltcp has to send for a flow; whether it has more.
    fn dispatch(&mut self, id: FlowId, now: Instant, out: &mut impl Outside) -> bool {
        let Some(Some(flow)) = self.table.get_mut(id as usize) else {
            return false;
        };
        let (port, mss, mtu) = (flow.port, flow.mss, out.mtu(flow.port).0);
        let interface = match flow.key.far {
            SocketAddr::V4(_) => &mut self.four,
            SocketAddr::V6(_) => &mut self.six,
        };
        for _ in 0..BURST {
            // A reset finds room anyway.
            flow.held = out
                .room_at(port)
                .filter(|_| flow.socket().state() != State::Closed);
            if flow.held.is_some() {
                return false;
            }
            let mut emit = |frame: &mut [u8]| send(port, frame, mss, mtu, out);
            let mut link = Link::new(None, &mut self.scratch, &mut emit);
            interface.poll_egress(now, &mut link, &mut flow.sockets);
            if link.sent == 0 {
                return false;
            }
        }
        true
    }

    /// See to it that a flow's time is met.
    fn wake_at(&mut self, id: FlowId, now: Instant) {
        let Some(Some(flow)) = self.table.get_mut(id as usize) else {
            return;
        };
        let interface = match flow.key.far {
            SocketAddr::V4(_) => &mut self.four,
            SocketAddr::V6(_) => &mut self.six,
        };
        let expires = flow.expires();
        let at = match flow.held.or(interface.poll_at(now, &flow.sockets)) {
            // A held SYN-ACK would be sent at once, if it were not held.
            Some(at) if flow.syn.is_none() => at.max(now + Duration::from_millis(1)).min(expires),
            _ => expires,
        };
        if self.timers.of(id).is_none_or(|t| at < t) {
            self.timers.set(id, at);
        }
    }

    /// What a client sent does not arrive, as somebody on its way says: if nobody has answered it yet it need not wait.
    /// Whether that was so.
    pub fn unreachable(&mut self, port: PortId, key: &FlowKey, out: &mut impl Host) -> bool {
        let id = self.keys.get(key).copied();
        let flow = id.and_then(|id| self.table.get(id as usize)?.as_ref());
        let waits = flow.is_some_and(|f| f.port == port && f.awaited == Some(Awaited::Pod));
        if let Some(id) = id.filter(|_| waits) {
            self.remove(id, true, out);
        }
        waits
    }

    /// A pod is gone, and its flows with it.
    pub fn remove_port(&mut self, port: PortId, out: &mut impl Host) {
        if self.of_port(port) > 0 {
            for id in 0..self.table.len() as FlowId {
                if self.table[id as usize].as_ref().is_some_and(|f| f.port == port) {
                    self.remove(id, true, out);
                }
            }
        }
        self.shares.remove(&Share::Pod(port));
    }

    fn remove(&mut self, id: FlowId, reset: bool, out: &mut impl Host) {
        let Some(flow) = self.table.get_mut(id as usize).and_then(Option::take) else {
            return;
        };
        out.close(id, reset);
        self.keys.remove(&flow.key);
        self.timers.clear(id);
        self.free.push(id);
        self.fars.remove(flow.port, flow.key.far);
        let share = Share::of(flow.port, &flow.key);
        if let Some(of_port) = self.shares.get_mut(&share) {
            of_port.flows = of_port.flows.saturating_sub(1);
            if let Some(whom) = flow.awaited {
                of_port.is_there(whom, id);
            }
            if of_port.flows == 0 {
                self.shares.remove(&share);
            }
        }
    }
}

/// A packet of smoltcp's, to the pod.
fn send(port: PortId, frame: &mut [u8], mss: u16, mtu: u16, out: &mut impl Outside) {
    let segment = segment_size(&frame[crate::wire::ETH_LEN..], mss, mtu);
    out.emit(port, frame, segment);
}
