//! The DNS of a node, without sockets and clocks: bytes and times go in, bytes and orders come out.
//!
//! ```text
//!                     +-- cache     answered before, and still true
//! a question -- Resolver-- zone     the node's own names: pods, the host, what people added
//!                     +-- forward   everything else, to the host's resolvers
//! ```
//!
//! [`message`] reads questions strictly and writes answers by copying; [`resolver::Resolver`] brings all together;
//! `daemon::dns` owns the sockets. Messages of others are taken apart by `hickory-proto`, and what clients get is
//! encoded anew: no byte of an answer reaches a pod unread.
//!
//! Bounds: [`cache::Limits`], [`forward::MAX_FLIGHTS`], [`forward::MAX_PER_CLIENT`], [`forward::MAX_WAITERS`],
//! [`entry::MAX_ENTRIES`]. Whoever asks in vain because of one is counted under a [`counters::DnsDrop`].

pub mod cache;
pub mod counters;
pub mod entry;
pub mod forward;
pub mod message;
pub mod name;
pub mod resolv;
pub mod resolver;
pub mod zone;
