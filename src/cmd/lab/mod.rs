//! Networks on one machine, for the demo and for measurements: nodes, pods, and the load that runs in pods.
//!
//! Everything is this one binary under other names, so nothing needs to be installed. All processes are
//! children of the command that runs the lab: they end in order with it, and die with it when it is killed.

pub mod alone;
pub mod cpu;
mod crowd;
pub mod dir;
mod echo;
pub mod exchange;
pub mod flood;
pub mod load;
pub mod memory;
mod names;
pub mod nodes;
pub mod pod;
mod stream;
pub mod watch;
