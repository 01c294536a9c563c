//! The bodies of podwire's fuzz targets, as ordinary functions of bytes.
//!
//! `fuzz_targets/` hands them to libFuzzer; `tests/fuzz.rs` of the main package includes this file by its path
//! and replays every input kept in `corpus/` and `regression/`, on stable and without libFuzzer.
//!
//! ```text
//! Input (bytes -> choices) -> craft (frames made right where asked) -> Lab (a Node) -> Watch (its exits)
//! ```
//!
//! Raw bytes hardly get past the first length or checksum, so [`craft`] repairs what an input asks it to. The
//! input format is podwire's own rather than that of a derive: [`seeds`] can then write inputs by hand, and
//! inputs keep their meaning. The properties stand in [`watch`] and [`rules`], and in the targets themselves.

pub mod cni;
pub mod config;
pub mod craft;
pub mod dns;
pub mod egress;
pub mod input;
pub mod lab;
pub mod manifest;
pub mod neighbour;
pub mod node;
pub mod offload;
pub mod pod;
pub mod rules;
pub mod seeds;
pub mod service;
pub mod store;
pub mod underlay;
pub mod watch;

/// A target: takes any bytes, panics when a property does not hold.
pub type Target = fn(&[u8]);

/// All targets, by the name of their folder of inputs; first what anyone on the network can reach.
pub const TARGETS: &[(&str, Target)] = &[
    ("underlay", underlay::run),
    ("pod", pod::run),
    ("offload", offload::run),
    ("node", node::run),
    ("egress", egress::run),
    ("service", service::run),
    ("neighbour", neighbour::run),
    ("dns", dns::run),
    ("store", store::run),
    ("manifest", manifest::run),
    ("cni", cni::run),
    ("config", config::run),
];
