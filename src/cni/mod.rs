//! The CNI plugin: what a container runtime runs to hang a container on the node (CNI specification 0.3.0 to 1.1.0).
//!
//! ```text
//!  runtime: environment + configuration on standard input
//!    [call] verb, container, namespace, interface, [args]      [conf] keys, [capabilities], what came before ([result])
//!                         \                                   /
//!   [plugin] --- [add] names ([names]), request --- [node]: admin socket, one policy for what passes by itself
//!            \-- [check] kernel, node and a ping against what was given       `--> pod::attach, as `podwire attach`
//!  runtime: a result in the version it asked in, or an error ([error]) on standard output
//! ```
//!
//! It is the program `podwire` under another name, and cheap to start: no runtime, no logger, one thread. What decides is
//! plain: text in, values out. A DEL while the node is away leaves word for its next start (`api::gone`), and deletes the
//! interface, so that it always succeeds; whatever else is left of a runtime or plugin that was killed, GC finds in the
//! node's list of attachments.

mod add;
pub mod args;
pub mod call;
pub mod capabilities;
mod check;
pub mod conf;
mod conflist;
pub mod error;
mod json;
pub mod names;
mod node;
mod plugin;
pub mod result;
pub mod version;

pub use conflist::conflist;
pub use plugin::main;

/// The plugin's file name.
pub const PROGRAM: &str = "podwire-cni";
