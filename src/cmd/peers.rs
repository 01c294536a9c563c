//! `podwire peers`: the other nodes, and how the way to each is.

use super::attach::json;
use super::status::{self, PEERS};
use super::table::table;
use super::{Exit, Failure, say};
use crate::api::place::Socket;
use crate::api::{Client, Reply, Request};

/// List the peers of this node: where they are, when they were heard, round-trip time, loss and MTU of the way.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire peers
  podwire peers --json | jq -r '.[] | select(.last_heard_ms == null).name'")]
pub struct Args {
    /// Print JSON: all there is, for programs
    #[arg(long)]
    json: bool,
}

/// Run it.
///
/// # Errors
/// When the node cannot be asked.
pub fn run(args: &Args, socket: &Socket) -> Result<(), Failure> {
    let peers = match Client::connect(socket)?.call(&Request::Status)? {
        Reply::Status(status) => status.peers,
        _ => {
            return Err(Failure::new(
                Exit::Failed,
                "the node's answer does not fit the question",
            ));
        }
    };
    if args.json {
        return say(&json(&peers)?);
    }
    let rows: Vec<_> = peers.iter().map(status::peer).collect();
    say(&table(&PEERS, &rows))
}
