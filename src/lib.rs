//! podwire: a pod network that needs nothing from the kernel but TAP and UDP.
//!
//! One process per node terminates the TAP devices of its pods, switches and routes their frames, answers
//! what the network must answer with smoltcp, and tunnels frames to its peers as VXLAN over UDP.
//!
//! # The layers, lowest first
//!
//! | layer | modules | rule |
//! |---|---|---|
//! | foundations | [`model`], [`wire`], [`buf`] | words, bytes and memory; no I/O, no clock |
//! | cores | [`offload`], [`switch`], [`overlay`], [`stack`], [`service`], [`dns`] | pure state machines; frames and `now` in, verdicts out |
//! | composition | [`datapath`] | parse once, decide once; still no I/O |
//! | shell | [`sys`], [`io`] | system calls (all `unsafe` lives in `sys`), and safe owners over them |
//! | edges | [`control`], [`pod`], [`cni`], [`daemon`], [`api`], [`cmd`] | files, namespaces, container runtimes, sockets, people |
//!
//! Imports point downwards only, cores never import each other, and `io` meets `datapath` in one place:
//! `daemon::worker`. `tests/layers.rs` holds these rules. `docs/architecture.md` follows one frame through.
//!
//! # Invariants
//!
//! - No byte from a pod or the underlay can panic or block a node, or grow a table without bound.
//! - A frame that goes nowhere is counted under a [`model::DropReason`]; in = out + consumed + drops.
//! - The forwarding path neither allocates nor locks; work is done per super-frame, not per packet.

pub mod api;
pub mod buf;
pub mod cmd;
pub mod cni;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod dns;
pub mod io;
pub mod model;
pub mod offload;
pub mod overlay;
pub mod pod;
pub mod service;
pub mod stack;
pub mod switch;
pub mod sys;
pub mod wire;
