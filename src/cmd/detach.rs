//! `podwire detach`: take a pod off the node.

use super::{Exit, Failure};
use crate::api::place::Socket;
use crate::api::{Client, Reply, Request};
use crate::model::PodName;

/// Take a pod off the node: its interface goes, its addresses become free.
///
/// Succeeds when there is no such pod. A pod made by `podwire run` ends with this; processes in a namespace that
/// was attached, or that `podwire exec` started, go on without a network.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire detach web
  podwire detach shop/db")]
pub struct Args {
    /// The pod: NAMESPACE/NAME, or NAME in the namespace "default"
    pub name: PodName,
}

/// Run it.
///
/// # Errors
/// When the node cannot be asked.
pub fn run(args: Args, socket: &Socket) -> Result<(), Failure> {
    let mut client = Client::connect(socket)?;
    let existed = detach(&mut client, &args.name)?;
    let said = if existed {
        "is detached"
    } else {
        "was not attached"
    };
    println!("{} {said}", args.name);
    Ok(())
}

/// Detach `pod`; whether there was one.
///
/// # Errors
/// When the node cannot be asked.
pub fn detach(client: &mut Client, pod: &PodName) -> Result<bool, Failure> {
    match client.call(&Request::Detach { pod: pod.clone() })? {
        Reply::Detached { existed } => Ok(existed),
        _ => Err(Failure::new(
            Exit::Failed,
            "the node's answer does not fit the question",
        )),
    }
}
