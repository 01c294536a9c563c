//! What the node itself says in the pod network: the gateway that answers, the errors a router must send and
//! the probes to peers.
//!
//! - [`Gateway`] is a small smoltcp host that owns the node's addresses. It answers echo requests, refuses TCP
//!   with a reset and UDP with port unreachable. Layer 2 is the switch's business; here are IP packets only.
//! - [`icmp::error`] writes the errors of the forwarding path, or refuses where the RFCs forbid an answer. It
//!   keeps no state and works on whatever bytes the packet begins with, super-frames included.
//! - [`egress`] takes what pods send to the world out by sockets of the host.
//! - [`probe`] writes echo requests for measuring the way to a peer, and recognises those of peers, and replies.
//!
//! ```text
//! for the node's own address -> probe::parse -> Gateway::input ... Gateway::poll -> emit
//! cannot be forwarded        -> icmp::error -> back to its sender
//! ```

pub mod egress;
mod gateway;
pub mod icmp;
pub mod probe;

pub use gateway::Gateway;
pub use icmp::Trouble;
