//! `podwire detach`: take a pod off the node.

use super::{Exit, Failure};
use crate::api::{Client, Reply, Request};
use crate::model::PodName;
use crate::pod::pause;
use std::path::Path;

/// Take a pod off the node: its interface goes, its addresses become free.
///
/// Succeeds when there is no such pod. A pod made by `podwire run --detach` ends with this; processes in other
/// pods go on without a network.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pod: NAMESPACE/NAME, or NAME in the namespace "default"
    pub name: PodName,
}

/// Run it.
///
/// # Errors
/// When the node cannot be asked.
pub fn run(args: Args, socket: &Path) -> Result<(), Failure> {
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

/// Detach `pod`, and end the pause process that podwire started for it.
///
/// # Errors
/// When the node cannot be asked.
pub fn detach(client: &mut Client, pod: &PodName) -> Result<bool, Failure> {
    let holder = super::pods::find(client, pod)?.and_then(|p| p.holder);
    let Reply::Detached { existed } = client.call(&Request::Detach { pod: pod.clone() })? else {
        return Err(Failure::new(
            Exit::Failed,
            "the node's answer does not fit the question",
        ));
    };
    if let Some(pid) = holder {
        pause::end(pid);
    }
    Ok(existed)
}
