//! The node as a process: configuration, the worker thread that owns the data path, and the control thread
//! that owns admin socket, metrics endpoint, peers file, signals and addresses. Beside it runs a [`keeper`], so that pods
//! outlive the process.

pub mod addresses;
pub mod admin;
pub mod closer;
pub mod command;
pub mod config;
pub mod dns;
pub mod host_port;
pub mod ipam;
pub mod keeper;
pub mod links;
pub mod listener;
pub mod lobby;
pub mod metrics;
pub mod panics;
pub mod published;
pub mod records;
pub mod server;
pub mod source;
#[cfg(test)]
pub mod standin;
pub mod status;
pub mod watch;
pub mod worker;
