//! System calls, wrapped so that callers are safe. All `unsafe` of podwire lives below this module; beside
//! each block stands what must hold and why it does. Where rustix has a safe call, callers use that directly.

pub mod children;
pub mod errqueue;
pub mod ethtool;
pub mod memory;
pub mod net;
pub mod netlink;
pub mod ns;
pub mod probe;
pub mod rights;
pub mod signal;
pub mod tap;
pub mod way;
