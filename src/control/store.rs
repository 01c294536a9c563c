//! Membership in a cluster, as the control thread sees it: a thread elsewhere keeps it.

use super::cluster::StoreStatus;
use super::etcd::{Handle, Shared, Told};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The thread that keeps the node's lease and knows those of the others. Nothing here waits for the store itself.
pub trait Store {
    /// The next news, if there is any. What wakes the control thread is told to the store where it is started.
    fn told(&self) -> Option<Told>;

    /// Whether its thread has ended, which it does on its own only by a fault.
    fn ended(&self) -> bool;

    /// What nodes share beside their leases; none where they do not.
    fn shared(&self) -> Option<&Shared> {
        None
    }

    /// How it stands; `None` when the thread did not answer within a second.
    fn report(&self) -> Option<StoreStatus>;

    /// The node's underlay address is another one now.
    fn address_changed(&self, public_ip: Ipv4Addr, public_ip6: Option<Ipv6Addr>);

    /// Keep what is known, with the subnet, for the next start, and end.
    fn stop(&self);
}

impl Store for Handle {
    fn told(&self) -> Option<Told> {
        Handle::told(self)
    }

    fn ended(&self) -> bool {
        Handle::ended(self)
    }

    fn shared(&self) -> Option<&Shared> {
        Some(Handle::shared(self))
    }

    fn report(&self) -> Option<StoreStatus> {
        Handle::report(self)
    }

    fn address_changed(&self, public_ip: Ipv4Addr, public_ip6: Option<Ipv6Addr>) {
        Handle::address_changed(self, public_ip, public_ip6);
    }

    fn stop(&self) {
        Handle::stop(self, false);
    }
}
