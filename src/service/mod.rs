//! Services: a virtual address is a pod's way to whichever backend is there, and no interface has it.
//!
//! ```text
//! client's frame to VIP -> forward: conntrack (or table -> choose) -> translate -> to the backend
//! frame to a client     -> reverse: conntrack                      -> translate -> from the VIP
//! ServiceChange -> table; time -> turn: connections whose backend is gone, or whose time is up
//! ```
//!
//! It happens on the client's node, where frames of both directions pass, once for each super-frame. A backend sees the
//! client's own address, with two exceptions: a pod that reaches itself through a virtual address would answer itself
//! past the node, and two connections of a client that would look alike to the backend, also where one of them goes
//! straight to it. Then the gateway's address and a port of its own stand for the client (it is *masked*).
//!
//! No socket, clock or thread is in here, and every table is bounded by [`Limits`].

mod affinity;
mod choose;
mod conntrack;
mod crc32c;
mod ended;
mod flows;
mod fragment;
mod hash;
mod icmp;
mod maglev;
mod slab;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod translate;
mod view;
mod wheel;

pub use state::Direction;
pub use view::{BackendView, ServiceView};

use crate::model::{DropReason, Instant, ServiceChange};
use affinity::Affinity;
use conntrack::Conntrack;
use ended::Ended;
use fragment::Fragments;
use hash::{Keyed, Rng};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use table::Table;

/// How much a node keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections through virtual addresses.
    pub connections: usize,
    /// Those of one pod, by all its addresses, or of one client outside.
    pub per_client: usize,
    /// Clients whose backend is remembered, of all Services with session affinity.
    pub affinities: usize,
    /// Fragmented packets on their way.
    pub fragments: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 262_144,
            per_client: 65_536,
            affinities: 65_536,
            fragments: 1024,
        }
    }
}

/// What becomes of a frame to a virtual address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It has another destination now: its way is to be looked up again.
    Translated,
    /// No Service has this port of the address: to be answered by TCP RST, or ICMP port unreachable.
    Unserved,
    /// A Service has it, and no backend to give: to be answered in the same way.
    NoBackend,
    /// A packet within a TCP connection whose backend is gone, or that is not known: to be answered by TCP RST.
    Reset,
    /// An echo request: to be answered by the node, which stands for all its virtual addresses.
    Echo,
    /// It goes nowhere.
    Drop(DropReason),
}

/// All that a node knows of Services and of connections to them.
#[derive(Debug)]
pub struct Services {
    table: Table,
    conntrack: Conntrack,
    affinity: Affinity,
    fragments: Fragments,
    ended: Ended,
    rng: Rng,
    /// The gateway's port for the next masked client.
    next_port: u16,
    gateway4: Option<IpAddr>,
    gateway6: Option<IpAddr>,
}

impl Services {
    /// None yet. The seed is for choices, and for hashes that nobody shall foresee. The gateway's addresses stand for
    /// masked clients; nobody else may use ports of it from 32768 on towards pods.
    pub fn new(
        limits: Limits,
        seed: u64,
        gateway4: Option<Ipv4Addr>,
        gateway6: Option<Ipv6Addr>,
    ) -> Services {
        let keys = Keyed::new(seed);
        Services {
            table: Table::new(keys),
            conntrack: Conntrack::new(limits.connections, limits.per_client, keys),
            affinity: Affinity::new(limits.affinities, keys),
            fragments: Fragments::new(limits.fragments, keys),
            ended: Ended::new(limits.connections, keys),
            rng: Rng::new(seed ^ 0x5e55_1011),
            next_port: flows::FIRST_PORT,
            gateway4: gateway4.map(IpAddr::V4),
            gateway6: gateway6.map(IpAddr::V6),
        }
    }

    /// Take a change. It costs as much as its Service has backends; connections it ends are told at their next packet,
    /// and closed by [`Services::turn`].
    pub fn apply(&mut self, change: ServiceChange, now: Instant) {
        match change {
            ServiceChange::Set(frontend, what) => {
                if what.affinity.is_some() {
                    self.affinity.prepare();
                }
                self.table.set(frontend, what);
            }
            ServiceChange::Gone(frontend) => self.table.gone(&frontend),
        }
        // The usual few at once, so that nobody sees them open.
        self.turn(now);
    }

    /// Whether it is a virtual address of any Service.
    #[inline]
    pub fn has_address(&self, ip: IpAddr) -> bool {
        self.table.has_address(ip)
    }

    /// Whether such an address is a host's as well, which has what no Service has of it.
    pub fn is_shared(&self, ip: IpAddr) -> bool {
        self.table.is_shared(ip)
    }

    /// Whether there are no connections, so that [`Services::reverse`] has nothing to do for any frame.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.conntrack.conns.len() == 0
    }

    /// Close connections whose backend is gone or whose time is up, some hundred at most. True: there are more.
    pub fn turn(&mut self, now: Instant) -> bool {
        let second = conntrack::second(now);
        self.ended.turn(second);
        let mut budget = BUDGET;
        while budget > 0
            && let Some(gone) = self.table.gone.last().copied()
        {
            match self.table.first_conn(gone) {
                Some(n) => {
                    self.end(n, false);
                    budget -= 1;
                }
                None => _ = self.table.gone.pop(),
            }
        }
        while let Some(n) = self.conntrack.expired(second, &mut budget) {
            self.close(n, true);
        }
        budget == 0 || self.ended.next().is_some_and(|until| until <= second)
    }

    /// When [`Services::turn`] has something to do next. A time that is past: at once.
    pub fn next_deadline(&self) -> Option<Instant> {
        if !self.table.gone.is_empty() {
            return Some(Instant::ZERO);
        }
        let ended = self.ended.next().map(|s| Instant::from_secs(i64::from(s)));
        self.conntrack.deadline().into_iter().chain(ended).min()
    }

    /// Bytes allocated for all of it.
    pub fn memory(&self) -> usize {
        self.table.memory()
            + self.conntrack.memory()
            + self.affinity.memory()
            + self.fragments.memory()
            + self.ended.memory()
    }

    fn gateway(&self, of: IpAddr) -> Option<IpAddr> {
        match of {
            IpAddr::V4(_) => self.gateway4,
            IpAddr::V6(_) => self.gateway6,
        }
    }
}

/// Connections looked at in one turn: some tens of microseconds.
const BUDGET: usize = 256;
