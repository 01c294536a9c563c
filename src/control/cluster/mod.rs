//! Membership of a cluster that keeps its leases in a store: which subnet is this node's, and who the others are.
//!
//! Pure: [`Cluster`] takes [`Event`]s and the time, and gives [`Output`]s; it never waits. Requests to the store
//! go out as [`Request`]s and come back as events, so that a test can lose, delay and reorder them. The shell that
//! talks to etcd is `control::etcd`.
//!
//! ```text
//! Event -> [machine: talk with the store] -> known leases -> peers -> Output
//!                     |       ^  proof: what may be removed
//!                  own lease: choice, create, renew
//! ```
//!
//! The rules (`faults.md` section 3 of the project's notes; each file holds one):
//!
//! - What runs never changes: neither a lost lease nor another claimant renumbers a node or stops it. It says so
//!   ([`StoreStatus::alarms`], [`Output::Allocate`]) and takes the same subnet again when it is free (`own`).
//! - A removal needs proof: the deletion of a key on the watch, or its absence from a list of the same store that is
//!   not older than what is known. Many at once need a second list. A store that is empty, another one, or one that
//!   was set back proves nothing: what was known is carried on until its leases would have run out (`proof`).
//! - The outcome of a write that was not answered is not known: list, and look. At most one list, one watch, one
//!   write and one question for a lease's time are under way (`talk`).
//! - Keys and values of others are taken for what they may be: whatever anybody wrote there (`known`, `peers`).

pub(super) mod backoff;
mod choice;
mod config;
mod known;
mod machine;
mod memory;
mod news;
mod own;
mod peers;
mod proof;
mod spans;
mod status;
mod talk;
#[cfg(test)]
mod tests;

pub use machine::Cluster;

use super::flannel::{Abilities, Network, SubnetKey};
use crate::model::{Change, Duration, Mac};
pub use crate::model::{LeaseInfo, StoreStatus};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A number the store gives each of its states; grows by each change.
pub type Revision = i64;
/// Identity of a lease in the store. Zero is none: the key stays until somebody deletes it (a reservation).
pub type LeaseId = i64;

/// Who this node is in the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// What it tells of itself. `id` is kept on its disk.
    pub abilities: Abilities,
    /// Its underlay address.
    pub public_ip: Ipv4Addr,
    /// Its IPv6 underlay address.
    pub public_ip6: Option<Ipv6Addr>,
    /// A fixed VTEP MAC instead of the one derived from the subnet.
    pub vtep_mac: Option<Mac>,
}

/// What a person decides about a node's membership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where the network is kept in the store: `/coreos.com/network`.
    pub prefix: String,
    /// How long before its lease ends a node renews it: 1 to 1439 minutes of the 24 hours.
    pub renew_margin: Duration,
    /// Seconds a lease lives.
    pub ttl_s: i64,
    /// The subnet the node had according to its `subnet.env`; taken again when it is free.
    pub previous: Option<SubnetKey>,
    /// The only subnet the node may have.
    pub fixed: Option<SubnetKey>,
}

impl Default for Options {
    /// flannel's.
    fn default() -> Options {
        Options {
            prefix: "/coreos.com/network".into(),
            renew_margin: Duration::from_secs(60 * 60),
            ttl_s: 24 * 60 * 60,
            previous: None,
            fixed: None,
        }
    }
}

/// A key under `<prefix>/subnets`, as the store has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The whole key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// When it was created.
    pub created: Revision,
    /// When it was last written.
    pub modified: Revision,
    /// The lease it is bound to.
    pub lease: LeaseId,
    /// Seconds left of that lease, where known.
    pub ttl_s: Option<i64>,
}

/// What the shell shall do at the store. Each is answered by exactly one [`Event::Done`] with its `id`, except that
/// a watch goes on until [`Event::WatchEnded`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Its number, for the answer.
    pub id: u64,
    /// What to do.
    pub what: Ask,
}

/// What can be asked of the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Read `<prefix>/config` and all of `<prefix>/subnets`, of one revision.
    List,
    /// Tell of every change of `<prefix>/config` and `<prefix>/subnets` from this revision on. A new watch replaces
    /// the old one.
    Watch {
        /// The first revision to tell of.
        from: Revision,
    },
    /// Create the key if nobody has it: a new lease of `ttl_s` seconds, then a transaction; the lease is given back
    /// when the transaction fails.
    Create {
        /// The subnet.
        key: SubnetKey,
        /// The value.
        value: Vec<u8>,
        /// Seconds the lease lives.
        ttl_s: i64,
    },
    /// Write the own key again if it is as this node last saw it.
    Renew {
        /// The subnet.
        key: SubnetKey,
        /// The value.
        value: Vec<u8>,
        /// The revision it was last modified at; nothing is written when that is no longer so.
        modified: Revision,
        /// Seconds a new lease lives; none for a reservation, which stays without a lease.
        ttl_s: Option<i64>,
    },
    /// Delete the own key if it is as this node last saw it.
    Delete {
        /// The subnet.
        key: SubnetKey,
        /// The revision it was last modified at.
        modified: Revision,
    },
    /// Seconds that are left of a lease.
    TimeToLive {
        /// The lease.
        lease: LeaseId,
    },
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A request is done.
    Done {
        /// Its number.
        id: u64,
        /// The outcome.
        answer: Result<Answer, StoreError>,
    },
    /// A watch tells of changes, in the order of the store.
    Watched {
        /// The number of the watch.
        id: u64,
        /// Without changes: a revision up to which all was told. With changes it does not count, since a store that
        /// catches up says its newest revision beside old changes.
        revision: Revision,
        /// What changed.
        changes: Vec<Watched>,
    },
    /// A watch is over and must be begun again.
    WatchEnded {
        /// The number of the watch.
        id: u64,
        /// Why: compaction is one of the reasons.
        why: StoreError,
    },
    /// The node's underlay address changed.
    Address {
        /// The new IPv4 address.
        public_ip: Ipv4Addr,
        /// The new IPv6 address.
        public_ip6: Option<Ipv6Addr>,
    },
    /// The node ends. `release` gives the subnet back; otherwise it is kept for the next start.
    Stop {
        /// Whether to give the subnet back.
        release: bool,
    },
}

/// A change of a watched key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Watched {
    /// It was written. `ttl_s` is not known.
    Put(Entry),
    /// It was deleted, or its lease ran out.
    Deleted {
        /// The whole key.
        key: Vec<u8>,
        /// The revision of the deletion.
        modified: Revision,
    },
}

/// The outcome of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// To [`Ask::List`].
    Listed {
        /// Identity of the store: another one is another store, or one that was restored.
        cluster: u64,
        /// The revision of what was read.
        revision: Revision,
        /// The network's configuration.
        config: Option<Vec<u8>>,
        /// The leases and whatever else is there.
        entries: Vec<Entry>,
    },
    /// To [`Ask::Watch`]: it has begun.
    Watching,
    /// To [`Ask::Create`] and [`Ask::Renew`]: it was written.
    Written {
        /// The revision it was written at.
        revision: Revision,
        /// The lease it is bound to.
        lease: LeaseId,
    },
    /// To [`Ask::Create`], [`Ask::Renew`] and [`Ask::Delete`]: the key is not as expected; nothing was written.
    Otherwise,
    /// To [`Ask::Delete`].
    Deleted,
    /// To [`Ask::TimeToLive`]; none when there is no such lease any more.
    Left {
        /// Seconds left.
        ttl_s: Option<i64>,
    },
}

/// Why the store did not do what was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or did not answer in time. Whether a write was done is not known.
    #[error("{0}")]
    Unreachable(String),
    /// It does not let us in: user, password or certificate.
    #[error("{0}")]
    Refused(String),
    /// The revision is compacted: list again.
    #[error("compacted")]
    Compacted,
    /// Anything else it said.
    #[error("{0}")]
    Other(String),
}

/// What the node shall do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Ask this of the store.
    Ask(Request),
    /// The subnet is this node's: told once, at first. What a running node has never changes.
    Acquired(Membership),
    /// These changes of the peers are proven.
    Peers(Vec<Change>),
    /// Keep [`Cluster::remember`] on disk: it changed.
    Remember,
    /// The first snapshot is applied and the subnet is leased: the node is ready.
    Ready,
    /// Whether new pods may get addresses. They may from the beginning; no longer while another has this node's
    /// subnet according to the store. Pods that exist go on.
    Allocate(bool),
    /// Everything that [`Event::Stop`] asked for is done.
    Stopped,
}

/// This node's place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Membership {
    /// The network's configuration.
    pub network: Network,
    /// The subnet.
    pub subnet: SubnetKey,
}

/// What is kept on disk so that a node forwards with its store down. `config`, keys and values are the store's own
/// bytes (as text), so that one parser reads both.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Remembered {
    /// Identity of the store.
    pub cluster: u64,
    /// The revision of what was last applied.
    pub revision: Revision,
    /// The network's configuration.
    pub config: String,
    /// The own subnet's key (without prefix).
    pub own: Option<String>,
    /// Peers: key (without prefix), value, and revision of last change.
    pub peers: Vec<(String, String, Revision)>,
}
