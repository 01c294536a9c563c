//! Which frontends there are and what stands behind them.
//!
//! A backend keeps its number for as long as it is a Service's, or has connections: those of one that is gone hold on to
//! it until they are closed. A change costs as much as its Service has backends, whatever the number of Services.

use super::choose::Choice;
use super::hash::Keyed;
use super::slab::{List, NONE, Slab};
use crate::model::{BackendPhase, Frontend, VirtualServer};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Most backends of a Service that are used: as many as Kubernetes' own limits allow for many times over.
pub(super) const MAX_BACKENDS: usize = 65_521;

/// A backend of one frontend.
#[derive(Debug)]
pub(super) struct Slot {
    pub at: SocketAddr,
    pub server: u32,
    /// No other backend of the node's life has it; numbers are used again.
    pub serial: u32,
    /// None: it is gone.
    pub phase: Option<BackendPhase>,
    pub local: bool,
    /// New flows may go to it.
    pub usable: bool,
    pub conns: List,
    /// Its connections; those of them that are not closing.
    held: u32,
    pub open: u32,
    pub opened: u64,
    /// When it was chosen last, in choices.
    pub chosen: u64,
    /// Its place among those that are usable.
    pub place: u32,
}

/// What stands behind a frontend.
#[derive(Debug)]
pub(super) struct Server {
    pub frontend: Frontend,
    pub what: Arc<VirtualServer>,
    /// False: its frontend is gone or is another's.
    pub alive: bool,
    /// Backends, in the order of their addresses.
    pub slots: Vec<u32>,
    /// Those that are gone and have connections.
    leaving: u32,
    pub choice: Choice,
    pub opened: u64,
    pub failed: u64,
    pub open: u64,
}

/// All frontends of a node.
#[derive(Debug)]
pub(super) struct Table {
    frontends: HashMap<Frontend, u32, Keyed>,
    /// Frontends of each address, and how many of them have it for themselves.
    addresses: HashMap<IpAddr, (u32, u32), Keyed>,
    pub servers: Slab<Server>,
    pub slots: Slab<Slot>,
    serial: u32,
    /// Backends that are gone and whose connections have to be, with their serials: a number is used again as soon as the
    /// last connection is closed, whoever does that.
    pub gone: Vec<(u32, u32)>,
}

impl Table {
    /// Nothing yet.
    pub fn new(keys: Keyed) -> Table {
        Table {
            frontends: HashMap::with_hasher(keys),
            addresses: HashMap::with_hasher(keys),
            servers: Slab::default(),
            slots: Slab::default(),
            serial: 0,
            gone: Vec::new(),
        }
    }

    /// Bytes allocated, without what names take.
    pub fn memory(&self) -> usize {
        let each = |s: &Server| {
            let behind = s.what.backends.capacity() * size_of::<crate::model::Backend>();
            size_of::<VirtualServer>() + behind + s.slots.capacity() * 4 + s.choice.memory()
        };
        self.frontends.capacity() * size_of::<(Frontend, u32)>()
            + self.addresses.capacity() * size_of::<(IpAddr, (u32, u32))>()
            + self.servers.memory()
            + self.slots.memory()
            + self.servers.iter().map(|(_, s)| each(s)).sum::<usize>()
    }

    /// Whether it is a virtual address.
    #[inline]
    pub fn has_address(&self, ip: IpAddr) -> bool {
        !self.addresses.is_empty() && self.addresses.contains_key(&ip)
    }

    /// Whether it is a host's as well: all Services there have only their ports of it.
    pub fn is_shared(&self, ip: IpAddr) -> bool {
        self.addresses.get(&ip).is_some_and(|(_, own)| *own == 0)
    }

    /// What stands behind a frontend.
    #[inline]
    pub fn lookup(&self, frontend: &Frontend) -> Option<u32> {
        self.frontends.get(frontend).copied()
    }

    /// This stands behind the frontend from now on.
    pub fn set(&mut self, frontend: Frontend, what: Arc<VirtualServer>) {
        let n = match self.lookup(&frontend) {
            Some(n) => n,
            None => {
                let n = self.servers.insert(Server {
                    frontend,
                    what: what.clone(),
                    alive: true,
                    slots: Vec::new(),
                    leaving: 0,
                    choice: Choice::default(),
                    opened: 0,
                    failed: 0,
                    open: 0,
                });
                self.frontends.insert(frontend, n);
                let (all, own) = self.addresses.entry(frontend.at.ip()).or_default();
                (*all, *own) = (*all + 1, *own + u32::from(!what.at_host));
                n
            }
        };
        let Some(server) = self.servers.get_mut(n) else {
            return;
        };
        let before = std::mem::take(&mut server.slots);
        let mut slots = Vec::with_capacity(what.backends.len());
        let mut wanted = what.backends.to_vec();
        wanted.retain(|b| b.at.is_ipv4() == frontend.at.is_ipv4() && b.at.port() != 0);
        // They come in order; where not, what is right matters more than time.
        if !wanted.is_sorted_by(|a, b| a.at < b.at) {
            wanted.sort_by_key(|b| b.at);
            wanted.dedup_by_key(|b| b.at);
        }
        wanted.truncate(MAX_BACKENDS);
        let was_own = !server.what.at_host;
        if let Some((_, own)) = self.addresses.get_mut(&frontend.at.ip()) {
            *own = *own + u32::from(!what.at_host) - u32::from(was_own);
        }
        server.what = what;
        let mut old = before.into_iter().peekable();
        for backend in wanted {
            let mut same = None;
            while let Some(slot) = old.peek().and_then(|n| self.slots.get(*n)) {
                if slot.at > backend.at {
                    break;
                }
                same = old.next();
                if slot.at == backend.at {
                    break;
                }
                if let Some(gone) = same.take() {
                    self.leave(gone);
                }
            }
            let slot = same.unwrap_or_else(|| {
                self.serial = self.serial.wrapping_add(1);
                self.slots.insert(Slot {
                    at: backend.at,
                    server: n,
                    serial: self.serial,
                    phase: None,
                    local: backend.local,
                    usable: false,
                    conns: List::default(),
                    held: 0,
                    open: 0,
                    opened: 0,
                    chosen: 0,
                    place: NONE,
                })
            });
            if let Some(known) = self.slots.get_mut(slot) {
                (known.phase, known.local) = (Some(backend.phase), backend.local);
            }
            slots.push(slot);
        }
        old.for_each(|gone| self.leave(gone));
        if let Some(server) = self.servers.get_mut(n) {
            server.slots = slots;
        }
        self.rebuild(n);
    }

    /// Nothing stands there any more.
    pub fn gone(&mut self, frontend: &Frontend) {
        let Some(n) = self.frontends.remove(frontend) else {
            return;
        };
        let Some(server) = self.servers.get_mut(n) else {
            return;
        };
        if let Some((all, own)) = self.addresses.get_mut(&frontend.at.ip()) {
            (*all, *own) = (*all - 1, *own - u32::from(!server.what.at_host));
            if *all == 0 {
                self.addresses.remove(&frontend.at.ip());
            }
        }
        server.alive = false;
        server.choice = Choice::default();
        for slot in std::mem::take(&mut server.slots) {
            self.leave(slot);
        }
        self.free_server(n);
    }

    /// A flow to a backend begins.
    pub fn opened(&mut self, slot: u32) {
        let Some(it) = self.slots.get_mut(slot) else {
            return;
        };
        it.held += 1;
        it.open += 1;
        it.opened += 1;
        if let Some(server) = self.servers.get_mut(it.server) {
            server.open += 1;
            server.opened += 1;
            server.choice.moved(&mut self.slots, slot);
        }
    }

    /// A flow to a backend is closing: it is no load any more.
    pub fn closing(&mut self, slot: u32) {
        let Some(it) = self.slots.get_mut(slot) else {
            return;
        };
        it.open = it.open.saturating_sub(1);
        if let Some(server) = self.servers.get_mut(it.server) {
            server.open = server.open.saturating_sub(1);
            server.choice.moved(&mut self.slots, slot);
        }
    }

    /// A flow to a backend, closing before or not, is no more.
    pub fn closed(&mut self, slot: u32, was_closing: bool) {
        if !was_closing {
            self.closing(slot);
        }
        let Some(it) = self.slots.get_mut(slot) else {
            return;
        };
        it.held = it.held.saturating_sub(1);
        if it.phase.is_some() || it.held > 0 {
            return;
        }
        let n = it.server;
        self.slots.remove(slot);
        if let Some(server) = self.servers.get_mut(n) {
            server.leaving = server.leaving.saturating_sub(1);
        }
        self.free_server(n);
    }

    /// A flow to a backend never came about.
    pub fn failed(&mut self, slot: u32) {
        let server = self.slots.get(slot).map(|s| s.server);
        if let Some(server) = server.and_then(|n| self.servers.get_mut(n)) {
            server.failed += 1;
        }
    }

    /// A connection of a backend that is gone.
    pub fn first_conn(&self, (slot, serial): (u32, u32)) -> Option<u32> {
        let slot = self.slots.get(slot).filter(|s| s.serial == serial)?;
        slot.conns.first()
    }

    /// How many frontends there are.
    pub fn len(&self) -> usize {
        self.frontends.len()
    }

    /// A backend is no more; its number is until its connections are.
    fn leave(&mut self, n: u32) {
        let Some(slot) = self.slots.get_mut(n) else {
            return;
        };
        (slot.phase, slot.usable, slot.place) = (None, false, NONE);
        if slot.held == 0 {
            self.slots.remove(n);
            return;
        }
        if let Some(server) = self.servers.get_mut(slot.server) {
            server.leaving += 1;
        }
        self.gone.push((n, slot.serial));
    }

    fn free_server(&mut self, n: u32) {
        if self.servers.get(n).is_some_and(|s| !s.alive && s.leaving == 0) {
            self.servers.remove(n);
        }
    }

    /// Which backends are for new flows: those that are ready, or else those that are draining.
    fn rebuild(&mut self, n: u32) {
        let Some(server) = self.servers.get_mut(n) else {
            return;
        };
        let local_only = server.what.local_only;
        let slots = &mut self.slots;
        let is = |slot: &Slot, phase| slot.phase == Some(phase) && (slot.local || !local_only);
        let any_ready = server.slots.iter().filter_map(|n| slots.get(*n));
        let any_ready = any_ready.into_iter().any(|s| is(s, BackendPhase::Ready));
        let phase = match any_ready {
            true => BackendPhase::Ready,
            false => BackendPhase::Draining,
        };
        let mut usable = Vec::with_capacity(server.slots.len());
        for n in &server.slots {
            if let Some(slot) = slots.get_mut(*n) {
                slot.usable = is(slot, phase);
                slot.place = NONE;
                if slot.usable {
                    usable.push(*n);
                }
            }
        }
        server.choice.set(server.what.scheduler, usable, slots);
    }
}
