//! `podwire exec`: run a command in a pod.

use super::{Exit, Failure};
use crate::api::Client;
use crate::api::place::Socket;
use crate::model::PodName;
use crate::pod::attach::AttachError;
use crate::pod::hidden;
use crate::sys::ns::{self, NetNs, Target};
use crate::sys::rights::Whose;
use std::ffi::OsString;

/// Run a command in a pod.
///
/// The command takes the place of podwire: it gets its terminal and its signals, and its exit code is the
/// result. All commands in a pod share its network, localhost included.
///
/// In a pod that another user made, whose programs are that user's, the command is run as the pod's root with
/// nothing of yours: no groups, no open files but standard input and output, and of the environment only
/// PATH, TERM, COLORTERM, NO_COLOR, LANG and LC_*. A pod without a root is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire exec web -- ip address
  podwire exec shop/db                              (your shell)")]
pub struct Args {
    /// The pod: NAMESPACE/NAME, or NAME in the namespace "default"
    pub name: PodName,
    /// The command and its arguments; your shell when there is none
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Run it; returns only when the command could not be started.
///
/// # Errors
/// No such pod, or it cannot be entered.
pub fn run(args: Args, socket: &Socket) -> Result<(), Failure> {
    let found = super::pods::find(&mut Client::connect(socket)?, &args.name)?;
    let Some(pod) = found else {
        let message = format!(
            "there is no pod {} on this node (`podwire pods` lists them)",
            args.name
        );
        return Err(Failure::new(Exit::NotFound, message));
    };
    let whose = match (pod.holder, pod.netns) {
        (Some(pid), _) => ns::join(pid).map_err(AttachError::Ns)?,
        (None, Some(path)) => {
            let netns = NetNs::open(&Target::Path(path)).map_err(AttachError::Ns)?;
            netns.enter().map_err(AttachError::Ns)?;
            // The files are still the host's.
            Whose::Own
        }
        (None, None) => {
            let message = format!("nobody told the node where the namespaces of {} are", args.name);
            return Err(Failure::new(Exit::Failed, message));
        }
    };
    // Nothing needs to be dropped on this side: descriptors close on exec, and on failure this process ends.
    let code = hidden::exec(&command_or_shell(args.command), whose);
    std::process::exit(code.into())
}

/// `command`, or the user's shell when it is empty.
pub fn command_or_shell(command: Vec<OsString>) -> Vec<OsString> {
    if !command.is_empty() {
        return command;
    }
    let shell = std::env::var_os("SHELL").filter(|s| !s.is_empty());
    vec![shell.unwrap_or_else(|| "/bin/sh".into())]
}
