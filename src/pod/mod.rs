//! Pods from the outside: their namespaces, their interface, and the hand-over to the node.
//!
//! The node never enters a namespace. Whoever attaches a pod (a command of the same user, or the CNI plugin)
//! does the work and passes the finished TAP over the admin socket:
//!
//! ```text
//!  podwire attach                      node                     kernel, in the pod's network namespace
//!    | -- Attach(name, wishes) ---------> |  reserves addresses
//!    | <------------------- Plan -------- |
//!    | == setns =====================================================> (user and) network namespace
//!    | == TAP, link, addresses, routes ==============================> eth0
//!    | -- Commit + TAP fd (+ pidfd) ----> |  adds the port
//!    | <--------------- Attached -------- |
//! ```
//!
//! Nothing has to be undone by hand: closing the TAP deletes the interface, closing the connection frees the
//! reservation. When the last answer does not come, the node may have had the TAP kept already, so the interface is
//! deleted by name. A [`sandbox`] is a pod that podwire makes itself; its namespaces live as long as a tiny
//! [`pause`] process, which in turn lives as long as somebody holds its lifeline. That one travels beside the TAP,
//! so that closing it ends the pod.

pub mod attach;
pub mod hidden;
mod idmap;
pub mod link;
pub mod look;
pub mod pause;
mod resolv;
pub mod sandbox;
