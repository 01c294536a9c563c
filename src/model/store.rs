//! The store of leases, as people see it.

use serde::{Deserialize, Serialize};

/// How the membership stands, for `podwire status`, `leases` and the metrics page.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Whether the watch runs.
    pub connected: bool,
    /// One sentence: what it waits for or does.
    pub doing: String,
    /// Milliseconds since the store last said anything.
    pub silent_ms: Option<u64>,
    /// The revision applied.
    pub revision: i64,
    /// Requests that failed and watches that broke, since the start; compaction is no failure.
    #[serde(default)]
    pub failures: u64,
    /// What a person should look at, worst first.
    pub alarms: Vec<String>,
    /// Whether new pods get addresses: not while another node has this node's subnet.
    pub allocate: bool,
    /// Keys and values that were skipped, and why: at most 32, and how many there are in all.
    pub skipped: Vec<(String, String)>,
    /// How many were skipped in all.
    pub skipped_total: u64,
    /// All leases, own one included.
    pub leases: Vec<LeaseInfo>,
}

/// A lease, for tables.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// The subnet's key, `10.61.7.0-24`.
    pub subnet: String,
    /// The peer's name: what it calls itself, else the subnet's key.
    pub name: String,
    /// Where its VTEP is.
    pub public_ip: String,
    /// The program's version, of a podwire node; none for flannel.
    pub podwire: Option<String>,
    /// Whether it is this node's.
    pub own: bool,
    /// A reservation has no lease and never expires.
    pub reservation: bool,
    /// Seconds until it expires, where known.
    pub expires_s: Option<i64>,
    /// Seconds since it was last written, as far as this node has seen it.
    pub seen_s: u64,
}
