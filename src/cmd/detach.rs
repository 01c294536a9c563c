//! `podwire detach`: take a pod off the node.

use super::{Exit, Failure, say};
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
    say(&format!("{} {said}\n", args.name))
}

/// Tell of a pod that was just made. One that nobody can be told of is taken off again, because a command that
/// failed leaves nothing.
///
/// # Errors
/// When standard output takes nothing.
pub fn say_or_undo(text: &str, pod: &PodName, socket: &Socket) -> Result<(), Failure> {
    say(text).map_err(|mut failure| {
        let undone = Client::connect(socket)
            .map_err(Failure::from)
            .and_then(|mut client| detach(&mut client, pod));
        failure.message += &match undone {
            Ok(_) => format!("; the pod {pod} was taken off again"),
            Err(e) => format!("; the pod {pod} is attached still: {}", e.message),
        };
        failure
    })
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
