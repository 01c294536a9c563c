//! Membership in a cluster, as the control thread sees it: a thread elsewhere keeps it.

use super::cluster::{Output, StoreStatus};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The thread that keeps the node's lease and knows those of the others. Nothing here waits for the store itself.
pub trait Store {
    /// The next of its outputs that are for the node: membership, changes of the peers, readiness. What wakes the
    /// control thread is told to the store where it is started.
    fn take(&self) -> Option<Output>;

    /// How it stands; `None` when the thread did not answer within a second.
    fn report(&self) -> Option<StoreStatus>;

    /// The node's underlay address is another one now.
    fn address_changed(&self, public_ip: Ipv4Addr, public_ip6: Option<Ipv6Addr>);
}
