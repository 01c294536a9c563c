//! The published ports: sockets of the host at which clients of pods come in.
//!
//! Listeners are edge-triggered as everything: one that had somebody is asked again, a few clients each turn, until it
//! has nobody. When there is no descriptor for a client all wait for a moment, with the clients in the kernel's queue.

use super::Loop;
use crate::daemon::command::{PublishedCounts, Socket};
use crate::io::{Knock, Listeners, turn_away};
use crate::model::{Duration, HostPort, Instant, MouthKind, PodName, Protocol};
use crate::stack::egress::{FlowId, MouthId};
use mio::Registry;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, UdpSocket};

/// Clients taken in at one listener before others have their turn: fewer than frames of a TAP, so that pods' answers to
/// them are heard as fast, and they are not taken for clients that a pod does not answer.
const BATCH: usize = 16;
/// How long to wait for a descriptor to be given back.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Published {
    port: HostPort,
    /// The pod it leads to; none when that is a Service.
    pod: Option<PodName>,
    to: SocketAddr,
    /// The mouth of a UDP port.
    mouth: Option<MouthId>,
    counts: PublishedCounts,
    /// It waits in `Entrances::ready`.
    ready: bool,
}

/// All published ports of the node.
pub struct Entrances {
    listeners: Listeners,
    slots: Vec<Option<Published>>,
    by_port: HashMap<HostPort, u32>,
    /// At which one the client of a flow came in.
    flows: HashMap<FlowId, u32>,
    ready: VecDeque<u32>,
    /// There was no descriptor: all wait until then.
    resume: Option<Instant>,
    /// A warning said so.
    warned: bool,
}

impl Entrances {
    /// None yet; their events come under tokens from `first` on.
    pub fn new(registry: Registry, first: usize) -> Entrances {
        Entrances {
            listeners: Listeners::new(registry, first),
            slots: Vec::new(),
            by_port: HashMap::new(),
            flows: HashMap::new(),
            ready: VecDeque::new(),
            resume: None,
            warned: false,
        }
    }

    /// A listener has somebody.
    pub fn listener_is_ready(&mut self, n: u32) {
        if let Some(Some(published)) = self.slots.get_mut(n as usize)
            && !published.ready
        {
            published.ready = true;
            self.ready.push_back(n);
        }
    }

    /// Whether somebody can be taken in at once.
    pub fn is_busy(&self) -> bool {
        self.resume.is_none() && !self.ready.is_empty()
    }

    /// When to try again although nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        self.resume
    }

    /// A flow ended.
    pub fn flow_ended(&mut self, flow: FlowId) {
        if let Some(n) = self.flows.remove(&flow)
            && let Some(Some(published)) = self.slots.get_mut(n as usize)
        {
            published.counts.open = published.counts.open.saturating_sub(1);
        }
    }

    fn insert(&mut self, published: Published) -> u32 {
        let free = self.slots.iter().position(Option::is_none);
        let n = free.unwrap_or(self.slots.len());
        if n == self.slots.len() {
            self.slots.push(None);
        }
        self.by_port.insert(published.port, n as u32);
        self.slots[n] = Some(published);
        n as u32
    }

    /// Forget one; the mouth it had. To be followed by [`Entrances::tidy`].
    fn remove(&mut self, n: u32) -> Option<MouthId> {
        let published = self.slots.get_mut(n as usize)?.take()?;
        self.by_port.remove(&published.port);
        if published.mouth.is_none() {
            self.listeners.close(n);
        }
        published.mouth
    }

    /// Nothing points to what was removed any more. Connections that came in there go on.
    fn tidy(&mut self) {
        let there = |n: &u32| self.slots.get(*n as usize).is_some_and(Option::is_some);
        self.ready.retain(there);
        self.flows.retain(|_, n| there(n));
    }

    /// Forget those of a pod; its mouths go with its port.
    pub fn remove_pod(&mut self, pod: &PodName) {
        for n in 0..self.slots.len() as u32 {
            if self.slots[n as usize]
                .as_ref()
                .is_some_and(|p| p.pod.as_ref() == Some(pod))
            {
                self.remove(n);
            }
        }
        self.tidy();
    }
}

impl Loop {
    /// Put sockets to work, all or none.
    pub(super) fn publish(&mut self, pod: Option<&PodName>, sockets: Vec<Socket>) -> Result<(), String> {
        let mut done = Vec::new();
        for socket in sockets {
            let port = socket.port;
            match self.publish_one(pod, socket) {
                Ok(()) => done.push(port),
                Err(why) => {
                    self.unpublish(&done);
                    return Err(format!("port {port} cannot be published: {why}"));
                }
            }
        }
        Ok(())
    }

    fn publish_one(&mut self, pod: Option<&PodName>, socket: Socket) -> Result<(), String> {
        let Socket { port, to, fd } = socket;
        let now = self.now();
        let mut published = Published {
            port,
            pod: pod.cloned(),
            to,
            mouth: None,
            counts: PublishedCounts::default(),
            ready: false,
        };
        let unwatched = "its socket cannot be watched";
        match port.protocol {
            Protocol::Tcp => {
                let n = self.exits.entrances.insert(published);
                if self.exits.entrances.listeners.put(n, fd).is_err() {
                    self.exits.entrances.remove(n);
                    self.exits.entrances.tidy();
                    return Err(unwatched.into());
                }
                self.exits.entrances.listener_is_ready(n);
            }
            Protocol::Udp => {
                let mouth = self.node.publish(pod, (to, port.at), now, &mut self.exits);
                let mouth = mouth.map_err(|why| why.explain().to_string())?;
                let socket = UdpSocket::from(fd);
                if self.exits.mouths.put(mouth, socket, MouthKind::Udp).is_err() {
                    self.node.unpublish(mouth, &mut self.exits);
                    return Err(unwatched.into());
                }
                published.mouth = Some(mouth);
                self.exits.entrances.insert(published);
            }
        }
        Ok(())
    }

    /// Close sockets.
    pub(super) fn unpublish(&mut self, ports: &[HostPort]) {
        for port in ports {
            let n = self.exits.entrances.by_port.get(port).copied();
            if let Some(mouth) = n.and_then(|n| self.exits.entrances.remove(n)) {
                self.node.unpublish(mouth, &mut self.exits);
            }
        }
        self.exits.entrances.tidy();
    }

    /// Take in clients.
    pub(super) fn accept(&mut self, now: Instant) {
        if self.exits.entrances.resume.is_some_and(|at| at > now) {
            return;
        }
        self.exits.entrances.resume = None;
        for _ in 0..self.exits.entrances.ready.len() {
            // It is not forgotten when a panic comes at a client.
            let Some(n) = self.exits.entrances.ready.front().copied() else {
                return;
            };
            let more = self.accept_at(n, now);
            if more.is_ok() {
                self.exits.entrances.ready.pop_front();
            }
            match more {
                Ok(true) => self.exits.entrances.ready.push_back(n),
                Ok(false) => {
                    if let Some(Some(published)) = self.exits.entrances.slots.get_mut(n as usize) {
                        published.ready = false;
                    }
                }
                Err(why) => {
                    self.exits.entrances.resume = Some(now + PAUSE);
                    if !std::mem::replace(&mut self.exits.entrances.warned, true) {
                        log::warn!(
                            "clients of published ports wait: {why} (raise `ulimit -n` where the node is started)"
                        );
                    }
                    return;
                }
            }
        }
    }

    /// Take in a few clients at one listener; whether there may be more.
    ///
    /// # Errors
    /// There is no descriptor, or no memory, for one.
    fn accept_at(&mut self, n: u32, now: Instant) -> io::Result<bool> {
        for _ in 0..BATCH {
            let (stream, client) = match self.exits.entrances.listeners.accept(n) {
                Knock::Client(stream, client) => (stream, client),
                Knock::Nobody => return Ok(false),
                Knock::Short(why) => return Err(why),
            };
            let Some(Some(published)) = self.exits.entrances.slots.get(n as usize) else {
                return Ok(false);
            };
            let (pod, to) = (published.pod.clone(), published.to);
            let taken = self.node.accept(pod.as_ref(), (to, client), now, &mut self.exits);
            let entrances = &mut self.exits.entrances;
            let Some(Some(published)) = entrances.slots.get_mut(n as usize) else {
                return Ok(false);
            };
            let Ok(flow) = taken else {
                turn_away(stream);
                published.counts.refused += 1;
                continue;
            };
            published.counts.accepted += 1;
            published.counts.open += 1;
            entrances.flows.insert(flow, n);
            if self.exits.streams.put(flow, stream).is_err() {
                // Its first read tells, and ends it.
                self.node.stream_ready(flow, true, true, now, &mut self.exits);
            }
        }
        Ok(true)
    }

    /// What goes on at each.
    pub(super) fn published(&self) -> HashMap<HostPort, PublishedCounts> {
        let all = self.exits.entrances.slots.iter().flatten();
        all.map(|p| {
            let counts = match p.mouth.zip(self.node.egress()) {
                None => p.counts,
                Some((mouth, egress)) => {
                    let (open, begun) = egress.clients(mouth);
                    PublishedCounts {
                        open: open as u64,
                        accepted: begun,
                        ..p.counts
                    }
                }
            };
            (p.port, counts)
        })
        .collect()
    }
}
