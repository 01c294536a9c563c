//! What one node does between its own ports: who owns which address, what a port may send, and the answers
//! to ARP and neighbour discovery.
//!
//! Each port (a pod's TAP) has exactly one MAC and at most one address of each family, and all of them are
//! registered before its first frame. Everything else follows from that:
//!
//! - [`Ports`] finds ports by MAC, address and name. It never learns from traffic: nothing to age, nothing to
//!   overflow, and an unknown destination is a drop rather than a flood.
//! - [`guard::check`] comes first for every frame of a pod. What it lets through carries the pod's own
//!   addresses, so the rest of the node can believe a source address.
//! - [`neighbour`] answers ARP requests and neighbour solicitations itself. They are never flooded, so pods
//!   see no one else's questions and cannot answer in another's name.
//! - [`TokenBucket`] bounds what a port may make the node do: broadcasts, neighbour questions, ICMP errors.
//! - [`RateBucket`] is a pod's bandwidth limit in one direction, [`FrameQueue`] what waits for it.
//! - [`BackOff`] is for how long a port whose frames made the node panic is not read.
//!
//! ```text
//! frame -> Headers::parse -> guard::check -> ARP / ND?  -> neighbour::{arp, ndisc} -> answer to the same port
//!                                         -> group MAC? -> TokenBucket -> every other port (split horizon)
//!                                         -> a port's MAC -> that port
//!                                         -> the gateway's MAC -> routing (datapath)
//! ```

mod backoff;
pub mod guard;
mod limit;
pub mod neighbour;
mod ports;
mod queue;
mod rate;
#[cfg(test)]
mod testing;

pub use backoff::BackOff;
pub use limit::TokenBucket;
pub use neighbour::Neighbour;
pub use ports::{PortConflict, Ports};
pub use queue::{FrameQueue, Waiting};
pub use rate::RateBucket;
