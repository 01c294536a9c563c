//! The worker thread: the one place where the data path meets system calls.
//!
//! ```text
//! poll (only when dry) -> a turn: each ready TAP, at most 32 frames; flush; each ready socket; own packets
//! ```
//!
//! Readiness is edge-triggered, so a TAP or socket stays on the list of the ready until a read says that it is
//! empty. An idle node sleeps in `poll`, without a timeout unless it awaits a peer's answer. One that passes single
//! packets to and fro looks again for some microseconds (`limits.linger_us`) before it sleeps: being woken costs more
//! than a round trip. It does not when the last wait was long, or bulk came a moment ago. When the underlay is full the
//! worker stops reading TAPs and waits for room: back-pressure, and the pods' own queues decide what is lost.

#[cfg(debug_assertions)]
mod failpoint;
mod limits;
mod pings;
mod published;
mod recovery;
mod report;

use super::admin::Worker;
use super::command::Command;
use super::config::{Config, Dscp};
use super::panics::caught;
use crate::buf::{Arena, Message, Progress, Span};
use crate::datapath::{Exits, FRAME_ROOM, Node, Settings, Work};
use crate::io::{self, Mouths, OpenError, Receiver, Sender, Streams, Tap, Timer};
use crate::model::{
    Heard, HostError, Instant, MouthKind, Moved, NodeCounters, OffloadMode, Outward, PodName, PortId,
    PortSpec,
};
use crate::stack::egress::rings::MIN_RING;
use crate::stack::egress::tcp::MAX_FLOWS;
use crate::stack::egress::{Failure, Host, Policy};
use crate::switch::PortConflict;
use crate::switch::Ports;
use crate::sys::memory;
use crate::wire::VnetHdr;
use crossbeam_channel::{Receiver as Orders, Sender as Outlet, bounded};
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use published::Entrances;
use recovery::Patience;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How a port comes into service: a pod's or the host's.
type AddPort = fn(&mut Node, PortSpec) -> Result<PortId, PortConflict>;

/// Frames read from a TAP before the next one has its turn.
const BUDGET: usize = 32;
/// Memory for frames of pods: a super-frame and its headers, and many small ones.
const ARENA: usize = 4 * FRAME_ROOM;
/// The node looks again before sleeping only when the last wait was no longer than this, or than it may look: who is
/// rarely woken saves nothing by staying awake.
const SOON: Duration = Duration::from_micros(100);
/// A turn that moved more than this was bulk, which fills queues while nobody looks: for some time the processor
/// is better left to the pods, also when only acknowledgements come.
const BULK: usize = 16 << 10;
const BULK_LASTS: Duration = Duration::from_millis(5);
/// Orders that may wait.
const ORDERS: usize = 256;

// Tokens below these are port numbers.
const WAKER: Token = Token(1 << 20);
const RECEIVE: usize = 1 << 21;
const SEND: Token = Token(1 << 22);
const STREAMS: usize = 1 << 23;
const MOUTHS: usize = 1 << 24;
const LISTENERS: usize = 1 << 25;
const TIMER: Token = Token(1 << 26);

/// A running worker.
pub struct Handle {
    orders: Outlet<Command>,
    waker: Arc<Waker>,
    underlay: Vec<SocketAddr>,
    thread: JoinHandle<Vec<OwnedFd>>,
}

/// Bind the sockets and start the thread. It holds `lifeline` until it ends, and writes a byte there when
/// [`Command::Lost`] has something to tell.
///
/// # Errors
/// A sentence for people: which socket cannot be bound, and what to set.
pub fn spawn(config: &Config, policy: Arc<Policy>, lifeline: UnixStream) -> Result<Handle, OpenError> {
    // Two rings of each flow, and whatever else is as large.
    memory::map_from(MIN_RING, 2 * MAX_FLOWS + 4096);
    let options = io::Options {
        senders: config.source_ports,
        gso: config.udp_gso,
        gro: config.udp_gro,
        receive_buffer: config.receive_buffer,
        send_buffer: config.send_buffer,
    };
    let (receiver, sender) = io::open(&config.underlay(), &options)?;
    let underlay = receiver.addresses();
    let node = Node::new(Settings {
        local: config.local_node(),
        dscp: match config.dscp {
            Dscp::Inherit => None,
            Dscp::Fixed(dscp) => Some(dscp),
        },
        udp_gso: sender.gso,
        partial_checksums: config.partial_checksums,
        merge_acks: config.merge_acks,
        broadcast_per_second: config.broadcast_per_second,
        sockets: config.source_ports,
        underlay: sender.families(),
        egress: policy,
        seed: RandomState::new().hash_one(std::process::id()),
    });
    let failed = |e: std::io::Error| OpenError {
        kind: e.kind(),
        message: format!("the data path cannot be set up: {e}"),
    };
    let poll = Poll::new().map_err(failed)?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(failed)?);
    for (i, fd) in receiver.raw().enumerate() {
        let source = &mut SourceFd(&fd);
        poll.registry()
            .register(source, Token(RECEIVE + i), Interest::READABLE)
            .map_err(failed)?;
    }
    let timer = Timer::new().map_err(failed)?;
    poll.registry()
        .register(&mut SourceFd(&timer.raw()), TIMER, Interest::READABLE)
        .map_err(failed)?;
    let registry = || poll.registry().try_clone().map_err(failed);
    let streams = Streams::new(registry()?, STREAMS);
    let mouths = Mouths::new(registry()?, MOUTHS);
    let entrances = Entrances::new(registry()?, LISTENERS);
    lifeline.set_nonblocking(true).map_err(failed)?;
    let (orders, inlet) = bounded(ORDERS);
    let sockets = underlay.len();
    let mut worker = Loop {
        node,
        exits: Outlets {
            taps: Vec::new(),
            lost: false,
            sender,
            streams,
            mouths,
            entrances,
        },
        receiver,
        arena: Arena::new(ARENA),
        poll,
        orders: inlet,
        ready_taps: Vec::new(),
        paused: Vec::with_capacity(Ports::MAX),
        looked: Instant::ZERO,
        timer,
        ready_sockets: vec![true; sockets],
        busy_egress: false,
        blocked: false,
        moved: 0,
        bulk: std::time::Instant::now(),
        soon: false,
        linger: config.linger,
        mode: config.tap,
        counters: NodeCounters::default(),
        start: std::time::Instant::now(),
        lifeline,
        pingers: pings::Pingers::default(),
        patience: Patience::default(),
    };
    let thread = std::thread::Builder::new().name("worker".into()).spawn(move || {
        worker.run();
        let taps = worker.exits.taps.into_iter().flatten();
        taps.map(OwnedFd::from).collect()
    });
    Ok(Handle {
        orders,
        waker,
        underlay,
        thread: thread.map_err(failed)?,
    })
}

impl Handle {
    /// Wait for its end, which [`Command::Stop`] brings about; the TAPs it had, to be closed.
    pub fn join(self) -> Vec<OwnedFd> {
        self.thread.join().unwrap_or_default()
    }
}

impl Worker for Handle {
    fn send(&self, command: Command) -> Result<(), String> {
        self.orders
            .send_timeout(command, Duration::from_secs(1))
            .map_err(|_| "the data path takes no orders (see the log)".to_string())?;
        self.waker.wake().map_err(|e| e.to_string())
    }

    fn underlay(&self) -> Vec<SocketAddr> {
        self.underlay.clone()
    }
}

/// Where the data path's frames go.
struct Outlets {
    taps: Vec<Option<Tap>>,
    /// One of them has lost its interface, and the control thread was not told yet.
    lost: bool,
    sender: Sender,
    streams: Streams,
    mouths: Mouths,
    entrances: Entrances,
}

impl Host for Outlets {
    fn connect(
        &mut self,
        flow: u32,
        to: SocketAddr,
        from: Option<IpAddr>,
        hops: Option<u8>,
    ) -> Result<(), HostError> {
        self.streams.connect(flow, to, from, hops)
    }
    fn outcome(&mut self, flow: u32) -> Option<Result<(), Failure>> {
        self.streams.outcome(flow)
    }
    fn read(&mut self, flow: u32, into: &mut [u8]) -> Moved {
        let moved = self.streams.read(flow, into);
        #[cfg(debug_assertions)]
        if let Moved::Bytes(n) = moved {
            failpoint::pass("stream", &into[..n]);
        }
        moved
    }
    fn write(&mut self, flow: u32, from: &[u8]) -> Moved {
        self.streams.write(flow, from)
    }
    fn shut(&mut self, flow: u32) {
        self.streams.shut(flow);
    }
    fn close(&mut self, flow: u32, reset: bool) {
        self.streams.close(flow, reset);
        self.entrances.flow_ended(flow);
    }
    fn open(&mut self, mouth: u32, kind: MouthKind, six: bool) -> Result<(), HostError> {
        self.mouths.open(mouth, kind, six)
    }
    fn send(&mut self, mouth: u32, what: &Outward<'_>) -> Result<(), HostError> {
        self.mouths.send(mouth, what)
    }
    fn hear(&mut self, mouth: u32, into: &mut [u8]) -> Option<Heard> {
        self.mouths.hear(mouth, into)
    }
    fn close_mouth(&mut self, mouth: u32) {
        self.mouths.close(mouth);
    }
}

impl Exits for Outlets {
    fn to_pod(&mut self, port: PortId, vnet: &VnetHdr, head: &[u8], memory: &[u8], pieces: &[Span]) -> bool {
        match self.taps.get_mut(usize::from(port.0)) {
            Some(Some(tap)) => {
                #[cfg(debug_assertions)]
                std::iter::once(head)
                    .chain(pieces.iter().map(|p| p.of(memory)))
                    .for_each(|bytes| failpoint::pass("to_pod", bytes));
                let before = tap.lost;
                let written = tap.write(vnet, head, memory, pieces);
                self.lost |= tap.lost != before;
                written
            }
            _ => false,
        }
    }

    fn to_peers(&mut self, messages: &[Message], memory: &[u8]) -> Progress {
        #[cfg(debug_assertions)]
        for piece in messages.iter().flat_map(|m| &m.pieces) {
            failpoint::pass("to_peers", piece.of(memory));
        }
        self.sender.send(messages, memory)
    }
}

struct Loop {
    node: Node,
    exits: Outlets,
    receiver: Receiver,
    arena: Arena,
    poll: Poll,
    orders: Orders<Command>,
    /// Ports whose TAP may have frames, each at most once.
    ready_taps: Vec<PortId>,
    /// Ports whose TAP is not read, and not watched, until their bandwidth limit allows it.
    paused: Vec<PortId>,
    /// When it was looked whether their interfaces are still there.
    looked: Instant,
    timer: Timer,
    ready_sockets: Vec<bool>,
    /// Flows that leave the node have more to do.
    busy_egress: bool,
    /// The underlay is full.
    blocked: bool,
    /// Bytes taken in during this turn.
    moved: usize,
    /// The last turn that was bulk.
    bulk: std::time::Instant,
    /// The last wait was a short one.
    soon: bool,
    /// How long to look again before sleeping.
    linger: Duration,
    mode: OffloadMode,
    /// Of TAPs that are gone, and wake-ups.
    counters: NodeCounters,
    start: std::time::Instant,
    /// To the control thread.
    lifeline: UnixStream,
    pingers: pings::Pingers,
    /// With panics.
    patience: Patience,
}

impl Loop {
    fn run(&mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            let busy = self.ready_sockets.contains(&true)
                || self.busy_egress
                || self.exits.entrances.is_busy()
                || !(self.blocked || self.ready_taps.is_empty());
            match self.wait(&mut events, busy) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    log::error!("the data path cannot wait for events: {e}");
                    return;
                }
            }
            let mut woken = false;
            for event in &events {
                match event.token() {
                    WAKER => woken = true,
                    SEND => drop(self.guarded(Work::Rest, Loop::unblock)),
                    // The turn sees to it.
                    TIMER => {}
                    Token(t) if t >= LISTENERS => {
                        self.exits.entrances.listener_is_ready((t - LISTENERS) as u32);
                    }
                    Token(t) if t >= MOUTHS => self.node.mouth_ready((t - MOUTHS) as u32),
                    Token(t) if t >= STREAMS => {
                        let flow = (t - STREAMS) as u32;
                        self.guarded(Work::Rest, |this| this.stream_is_ready(flow, event));
                    }
                    Token(t) if t >= RECEIVE => self.ready_sockets[t - RECEIVE] = true,
                    Token(t) => self.tap_is_ready(PortId(t as u16)),
                }
            }
            while woken && let Ok(order) = self.orders.try_recv() {
                let go_on = match order.only_asks() {
                    true => self.guarded(Work::Rest, |this| this.obey(order)).unwrap_or(true),
                    // A part of it would be lost for ever: the node is better begun anew.
                    false => self.obey(order),
                };
                if !go_on {
                    return;
                }
            }
            self.turn();
        }
    }

    /// Take the events there are; wait for the first unless there is other work.
    fn wait(&mut self, events: &mut Events, busy: bool) -> std::io::Result<()> {
        if busy {
            return self.poll.poll(events, Some(Duration::ZERO));
        }
        // What is awaited of peers has its time, but is not asked again while nothing can be sent.
        let asked = if self.blocked { None } else { self.node.deadline() };
        let flows = self.node.egress().and_then(|egress| egress.deadline());
        let clients = self.exits.entrances.deadline();
        let services = self.node.services().next_deadline();
        let limits = self.next_limit();
        let deadline = asked
            .into_iter()
            .chain(limits)
            .chain(flows)
            .chain(clients)
            .chain(services)
            .chain(self.node.ping_deadline())
            .min();
        let begun = std::time::Instant::now();
        let linger = self.soon && !self.blocked && begun - self.bulk > BULK_LASTS;
        while linger && begun.elapsed() < self.linger {
            self.poll.poll(events, Some(Duration::ZERO))?;
            if !events.is_empty() {
                return Ok(());
            }
            // Whoever has something to send may be waiting for this very processor.
            std::thread::yield_now();
        }
        self.counters.wakeups += 1;
        self.set_timer(limits);
        let timeout =
            deadline.map(|at| Duration::from_micros((at.max(self.now()) - self.now()).total_micros()));
        let waited = self.poll.poll(events, timeout);
        self.soon = begun.elapsed() < SOON.max(2 * self.linger);
        waited
    }

    fn now(&self) -> Instant {
        let us = self.start.elapsed().as_micros();
        // From one second on, so that zero is never "now".
        Instant::from_micros(i64::try_from(us).unwrap_or(i64::MAX - 1_000_000) + 1_000_000)
    }

    fn tap_is_ready(&mut self, port: PortId) {
        if !self.ready_taps.contains(&port) {
            self.ready_taps.push(port);
        }
    }

    fn stream_is_ready(&mut self, flow: u32, event: &Event) {
        let now = self.now();
        let readable = event.is_readable() || event.is_read_closed() || event.is_error();
        let writable = event.is_writable() || event.is_error();
        self.node
            .stream_ready(flow, readable, writable, now, &mut self.exits);
    }

    /// Each ready TAP and socket once.
    fn turn(&mut self) {
        let now = self.now();
        self.moved = 0;
        self.busy_egress = false;
        self.guarded(Work::Rest, |this| {
            this.look_at_paused(now);
            this.resume(now);
            this.node.release(now, &mut this.exits);
        });
        if !self.blocked {
            let mut ready = std::mem::take(&mut self.ready_taps);
            ready.retain(|port| self.drain_guarded(*port, now));
            self.ready_taps = ready;
            self.guarded(Work::Rest, |this| this.flush(now));
        }
        for i in 0..self.ready_sockets.len() {
            if self.ready_sockets[i] {
                let more = self.guarded(Work::Rest, |this| this.drain_socket(i, now));
                self.ready_sockets[i] = more.unwrap_or(true);
            }
        }
        self.guarded(Work::Rest, |this| this.accept(now));
        self.guarded(Work::Rest, |this| this.leave(now));
        if self.moved >= BULK {
            self.bulk = std::time::Instant::now();
        }
        self.guarded(Work::Rest, |this| this.speak(now));
        if std::mem::take(&mut self.exits.lost) {
            // A stream that is full has not been read yet.
            let _ = self.lifeline.write(&[0]);
        }
    }

    /// Flows that leave the node, and connections to Services, go on.
    fn leave(&mut self, now: Instant) {
        for mouth in self.exits.mouths.untold() {
            self.node.mouth_ready(mouth);
        }
        self.busy_egress |= self.node.turn_egress(now, &mut self.exits);
        self.busy_egress |= self.node.turn_services(now);
    }

    /// What the node itself has to say.
    fn speak(&mut self, now: Instant) {
        if !self.blocked {
            self.node.on_timeout(now);
            self.node.send_own(&mut self.arena, now, &mut self.exits);
            // What had no way then is told in the next turn: that is to be at once.
            self.busy_egress |= self.node.has_resets();
            self.flush(now);
        }
        for news in self.node.news() {
            match news.silent {
                true => log::warn!(
                    "peer {} is silent at {}: frames to it are dropped until it is heard, but for a few that try",
                    news.peer,
                    news.at
                ),
                false => log::info!("peer {} is heard again at {}", news.peer, news.at),
            }
        }
        self.tell_pings();
    }

    /// Read a TAP's frames; whether there may be more.
    fn drain_tap(&mut self, port: PortId, now: Instant) -> bool {
        for _ in 0..BUDGET {
            if self.arena.room() < FRAME_ROOM {
                self.flush(now);
            } else if !self.node.is_blocked() {
                self.arena.rewind(0);
            }
            if self.blocked {
                return true;
            }
            if !self.node.may_read(port, now) {
                self.pause(port);
                return false;
            }
            let Some(Some(tap)) = self.exits.taps.get_mut(usize::from(port.0)) else {
                return false;
            };
            match tap.read(&mut self.arena) {
                Ok(Some(frame)) => {
                    self.moved += frame.len();
                    self.node
                        .from_pod(port, &mut self.arena, frame, now, &mut self.exits);
                }
                Ok(None) => {
                    self.exits.lost |= tap.lost;
                    return false;
                }
                Err(e) => {
                    let pod = self.node.ports().spec(port).map(|s| s.pod.to_string());
                    log::warn!("the TAP of pod {} cannot be read: {e}", pod.unwrap_or_default());
                    return false;
                }
            }
        }
        true
    }

    /// Take a socket's messages; whether there may be more.
    fn drain_socket(&mut self, i: usize, now: Instant) -> bool {
        let mut taken = 0;
        while taken < io::SLOTS {
            let outcome = self.receiver.receive(i);
            #[cfg(debug_assertions)]
            failpoint::received(self.receiver.batch());
            self.node.lost_by_kernel(outcome.lost);
            taken += self.take_batch(now).max(1);
            if !outcome.more {
                return false;
            }
        }
        true
    }

    /// Take the messages that were received: how many. One at which a panic comes is lost with what it has behind that
    /// place, the others are taken all the same.
    fn take_batch(&mut self, now: Instant) -> usize {
        let (memory, messages) = self.receiver.batch();
        let (node, exits) = (&mut self.node, &mut self.exits);
        let mut rest = messages.iter();
        let mut panicked = false;
        // Each panic is behind a message, or a train, that is not tried again.
        while let Err(panic) = caught(|| {
            for message in rest.by_ref() {
                self.moved += message.span.len();
                node.from_peer(memory, message, now, exits);
            }
            node.deliver_trains(memory, now, exits);
        }) {
            panicked = true;
            let blame = recovery::set_right(node, Work::Peers, now, exits);
            self.patience
                .bear(blame, panic, now, || "a peer's datagram".into());
        }
        if panicked {
            node.settle();
        }
        messages.len()
    }

    /// Send what waits; when the underlay is full, begin to wait for room.
    fn flush(&mut self, now: Instant) {
        if self.node.flush(&mut self.arena, now, &mut self.exits) {
            self.arena.rewind(0);
            return;
        }
        if !self.blocked {
            self.blocked = true;
            for fd in self.exits.sender.raw() {
                self.watch_send(fd, true);
            }
        }
    }

    /// There may be room again.
    fn unblock(&mut self) {
        let now = self.now();
        if self.blocked && self.node.flush(&mut self.arena, now, &mut self.exits) {
            self.arena.rewind(0);
            self.blocked = false;
            for fd in self.exits.sender.raw() {
                self.watch_send(fd, false);
            }
        }
    }

    /// Sending sockets are watched only while one is full: otherwise each datagram sent would be an event.
    fn watch_send(&self, fd: RawFd, on: bool) {
        let registry = self.poll.registry();
        let source = &mut SourceFd(&fd);
        let done = match on {
            true => registry.register(source, SEND, Interest::WRITABLE),
            false => registry.deregister(source),
        };
        if let Err(e) = done {
            log::error!("a sending socket cannot be watched: {e}");
        }
    }

    /// Do what the control thread ordered; `false` at the end.
    fn obey(&mut self, order: Command) -> bool {
        match order {
            Command::Changes(changes) => {
                for change in changes {
                    if let Err(what) = self.node.apply(change) {
                        log::warn!("{what}");
                    }
                }
            }
            Command::Services(changes) => {
                let now = self.now();
                self.node.apply_services(changes, now);
            }
            Command::Connections {
                filter,
                limit,
                kill,
                reply,
            } => {
                let now = self.now();
                let listed = match kill {
                    true => (Vec::new(), self.node.services_mut().kill(&filter)),
                    false => self.node.services().list(&filter, limit, now),
                };
                let _ = reply.send(listed);
            }
            Command::Served { frontends, reply } => {
                let all = frontends.iter().filter_map(|f| self.node.served(f));
                let _ = reply.send(all.collect());
            }
            Command::AddPort { spec, tap, reply } => {
                let _ = reply.send(self.add_port(spec, tap, Node::add_port));
            }
            Command::AddHost { spec, tap, reply } => {
                let _ = reply.send(self.add_port(spec, tap, Node::add_host));
            }
            Command::RemovePort { pod, reply } => {
                let _ = reply.send(self.remove_port(&pod));
            }
            Command::Publish { pod, sockets, reply } => {
                let _ = reply.send(self.publish(pod.as_ref(), sockets));
            }
            Command::Unpublish { ports, reply } => {
                self.unpublish(&ports);
                let _ = reply.send(());
            }
            Command::Taps { of, reply } => {
                let _ = reply.send(self.copies(of.as_ref()));
            }
            Command::Lost { reply } => {
                // Who waits no longer is told again.
                self.exits.lost |= reply.send(self.lost()).is_err();
            }
            Command::Ping { to, tell } => self.ping(to, tell),
            Command::Report { reply } => {
                let now = self.now();
                let _ = reply.send(self.report(now));
                // After the report, so that what waits to be sent is in no count yet.
                self.node.probe_peers(now);
            }
            Command::Policy(policy) => self.node.set_policy(policy),
            Command::Stop => return false,
        }
        true
    }

    fn add_port(&mut self, spec: PortSpec, fd: OwnedFd, add: AddPort) -> Result<PortId, String> {
        let pod = spec.pod.clone();
        let tap = Tap::new(fd, spec.caps.vnet_hdr);
        let port = add(&mut self.node, spec).map_err(|e| e.to_string())?;
        let token = Token(usize::from(port.0));
        let fd = tap.raw();
        if let Err(e) = self
            .poll
            .registry()
            .register(&mut SourceFd(&fd), token, Interest::READABLE)
        {
            self.node.remove_port(&pod, &mut self.exits);
            return Err(format!("the TAP of pod {pod} cannot be watched: {e}"));
        }
        let at = usize::from(port.0);
        if self.exits.taps.len() <= at {
            self.exits.taps.resize_with(at + 1, || None);
        }
        self.exits.taps[at] = Some(tap);
        let now = self.now();
        self.node.announce(port, now, &mut self.exits);
        self.tap_is_ready(port);
        Ok(port)
    }

    fn remove_port(&mut self, pod: &PodName) -> Option<OwnedFd> {
        #[cfg(debug_assertions)]
        failpoint::pass("remove_port", pod.name.as_bytes());
        self.exits.entrances.remove_pod(pod);
        let port = self.node.remove_port(pod, &mut self.exits)?;
        self.ready_taps.retain(|p| *p != port);
        let paused = self.paused.iter().position(|p| *p == port);
        paused.map(|at| self.paused.swap_remove(at));
        let tap = self.exits.taps.get_mut(usize::from(port.0))?.take()?;
        let fd = tap.raw();
        if paused.is_none() {
            let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        }
        add(&mut self.counters, &tap);
        Some(tap.into())
    }

    /// The ports of pods.
    fn pods(&self) -> impl Iterator<Item = (PortId, &PortSpec)> {
        let host = self.node.host();
        self.node
            .ports()
            .iter()
            .filter(move |(port, _)| Some(*port) != host)
    }

    /// A second descriptor of each pod's TAP.
    fn copies(&self, of: Option<&PodName>) -> Vec<(PodName, std::io::Result<OwnedFd>)> {
        let ports = self.pods();
        let ports = ports.filter(|(_, spec)| of.is_none_or(|pod| spec.pod == *pod));
        let ports = ports.filter_map(|(port, spec)| {
            let tap = self.exits.taps.get(usize::from(port.0))?.as_ref()?;
            Some((spec.pod.clone(), tap.try_clone()))
        });
        ports.collect()
    }

    fn is_lost(&self, port: PortId) -> bool {
        let tap = self.exits.taps.get(usize::from(port.0));
        tap.and_then(Option::as_ref).is_some_and(|tap| tap.lost)
    }

    /// The pods whose interface is gone. When it is the host's, the gateway's address is the node's alone again.
    fn lost(&mut self) -> Vec<PodName> {
        if self.node.host().is_some_and(|host| self.is_lost(host)) {
            log::warn!(
                "this host's interface in the pod network was deleted (restart the node to have it again)"
            );
            self.remove_port(&PodName::of_host());
        }
        let ports = self.pods().filter(|(port, _)| self.is_lost(*port));
        ports.map(|(_, spec)| spec.pod.clone()).collect()
    }
}

/// Add a TAP's share of the calls.
fn add(counters: &mut NodeCounters, tap: &Tap) {
    counters.tap_reads += tap.reads;
    counters.tap_read_bytes += tap.read_bytes;
    counters.tap_writes += tap.writes;
    counters.tap_write_bytes += tap.written_bytes;
}
