//! `podwire forward`: a pod's port on this host for as long as a command runs.

use super::port::{ask, sentence};
use super::{Exit, Failure, say};
use crate::api::place::Socket;
use crate::api::{ApiError, Client, Request};
use crate::model::{PodName, PortMapping};

/// Reach ports of a pod from this host, for as long as this command runs.
///
/// As `podwire port add`, and `podwire port rm` when it ends, however that is. It ends by itself when the pod does, or
/// the node.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire forward web 8080:80                  (then, elsewhere: curl http://127.0.0.1:8080)
  podwire forward shop/db 5432")]
pub struct Args {
    /// The pod
    pub pod: PodName,
    /// LOCAL[:REMOTE], a port of this host and one of the pod; ranges, addresses and /udp as for `podwire port add`
    #[arg(required = true, value_name = "LOCAL:REMOTE")]
    pub ports: Vec<PortMapping>,
}

/// Run it; it ends by a signal, or when there is nothing more to forward.
///
/// # Errors
/// What the node refuses, and the end of pod or node.
pub fn run(args: Args, socket: &Socket) -> Result<(), Failure> {
    let mut client = Client::connect(socket)?;
    let request = Request::Publish {
        pod: args.pod,
        ports: args.ports,
        tied: true,
    };
    let ports = ask(&mut client, &request)?;
    let lines = ports
        .iter()
        .map(|p| format!("{}, until this command ends\n", sentence(p)));
    say(&lines.collect::<String>())?;
    match client.listen() {
        Ok(reply) => Err(Failure::new(
            Exit::Failed,
            format!("the node said something nobody asked for: {reply:?}"),
        )),
        Err(ApiError::Broken { .. }) => Err(Failure::new(Exit::Unavailable, "the node ended")),
        Err(e) => Err(e.into()),
    }
}
