//! The store of a cluster, when it is etcd (v3): what connects [`super::cluster`] to it.
//!
//! ```text
//!  control thread        | thread "store", a tokio runtime of its own
//!                        |
//!   Handle  --wishes-->  |  loop: Cluster (pure) --Request--> Executor --> Sessions --> etcd
//!           <--Told----  |        ^      |                        |
//!   (bounded, woken)     |        '------|-------- Event ---------'
//!                        |               '--> Memory (disk), beside the loop
//! ```
//!
//! [`settings`] checks what a person says. [`session`] holds the connection to one member and changes the member when
//! it fails. [`ask`] and [`watch`] are the requests as etcd's calls, [`executor`] has them done, [`trouble`] sorts
//! what goes wrong into sentences. [`thread`] is the loop, [`outbox`] what waits for the control thread. [`shared`]
//! is what podwire's nodes tell each other beside the leases: another session and another watch, by the same means.
//!
//! Nothing waits without an end: a request has 5 s, members that are silent are left, a connection is asked for signs
//! of life. Neither thread ever blocks on the other.

mod ask;
mod executor;
mod outbox;
mod session;
mod settings;
mod shared;
mod thread;
mod trouble;
mod watch;

pub use executor::Executor;
pub use outbox::Told;
pub use settings::{Access, Settings, SettingsError};
pub use shared::{MAX_KEYS, Order, Shared, SharedNews};
pub use thread::{Handle, Wake, spawn};
