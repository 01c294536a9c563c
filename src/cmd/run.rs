//! `podwire run`: make a pod, run a command in it, and leave nothing behind.

use super::attach::{Wishes, json, sentence};
use super::detach::say_or_undo;
use super::exec::command_or_shell;
use super::label::{drain_only, grace};
use super::{Exit, Failure, complain};
use crate::api::place::Socket;
use crate::api::{Client, Reply, Request};
use crate::model::PodName;
use crate::pod::sandbox::{Sandbox, SandboxError, Spec};
use crate::sys::children;
use crate::sys::signal::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, Signals};
use rustix::process::{Pid, Signal};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// How long what a command left running may take to die.
const END: Duration = Duration::from_secs(2);

/// Make a pod and run a command in it.
///
/// The pod lives as long as the command and the node: when it is detached, or the node is told to end, the command
/// gets SIGTERM. A node that is killed leaves it to its next start.
///
/// The pod has namespaces of its own for users, network, mounts, host name and IPC; files and processes are
/// the host's, but for /etc/resolv.conf, which names the node (unless that runs with --dns off). You are root inside. When the command ends, so does the pod, and the command's exit code is the
/// result (128 and the signal's number when a signal ended it). What the command left running is killed then, in
/// the background or not; what `podwire exec` started lives on without a network. No root needed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podwire run --name web -p 8080:80 -- python3 -m http.server 80     (then: curl http://127.0.0.1:8080)
  podwire run --name web-1 --label app=web --grace 30s -- ./server   (behind a Service, see podwire service)
  podwire run --name play                           (your shell)
  podwire run --name box --detach                   (then: podwire exec box -- ...)")]
pub struct Args {
    /// What the pod shall have.
    #[command(flatten)]
    pub wishes: Wishes,
    /// Only make the pod and print the process id that holds it; it stays until `podwire detach`, or until
    /// that process ends or the node is told to
    #[arg(short, long, conflicts_with = "command")]
    pub detach: bool,
    /// When this command gets SIGTERM, first let the pod drain for so long (30s, 5m): Services send it no new flows, and it
    /// keeps those it has
    #[arg(long, value_name = "TIME", value_parser = grace, conflicts_with = "detach")]
    pub grace: Option<Duration>,
    /// With --detach: print the pod as JSON
    #[arg(long, requires = "detach")]
    pub json: bool,
    /// The command and its arguments; your shell when there is none
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Run it. Ends the process with the command's exit code when that is not zero.
///
/// # Errors
/// Whatever keeps the pod from being made or the command from being started; nothing is left then.
pub fn run(args: Args, socket: &Socket) -> Result<(), Failure> {
    // Ask first: without a node there is no need to make anything.
    let resolv_conf = resolv_conf(&mut Client::connect(socket)?, &args.wishes.name);
    let failed = |e: std::io::Error| Failure::new(Exit::Failed, e);
    let signals = Signals::hold(&[SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM]).map_err(failed)?;
    let mut spec = Spec::new(&args.wishes.name.name);
    spec.tied = !args.detach;
    spec.resolv_conf = resolv_conf;
    let mut sandbox = spec.spawn()?;
    for note in sandbox.notes() {
        complain(format_args!("the pod has the host's {note}"));
    }
    let attached = sandbox.attach(socket, args.wishes.request())?;
    if args.detach {
        let said = if args.json {
            json(&attached.pod)?
        } else {
            format!("{}, held by process {}\n", sentence(&attached), sandbox.pid())
        };
        say_or_undo(&said, &attached.pod.pod, socket)?;
        sandbox.release();
        return Ok(());
    }
    sandbox.leave_to_node();
    children::inherit().map_err(failed)?;
    let command = command_or_shell(args.command);
    let child = sandbox.command(&command[0], &command[1..]).spawn();
    let drain = || match drain_only(socket, &args.wishes.name) {
        Ok(()) => true,
        Err(e) => {
            complain(format_args!("the pod does not drain: {}", e.message));
            false
        }
    };
    let status = child.and_then(|child| look_after(child, &sandbox, &signals, args.grace, drain));
    // The node sees the pause end as well; asking frees name and addresses before this command returns.
    // Without a node there is nothing to free, and the command's result counts more than its complaint.
    if let Ok(mut client) = Client::connect(socket) {
        let _ = super::detach::detach(&mut client, &args.wishes.name);
    }
    drop(sandbox);
    let left = children::end(END);
    if !left.is_empty() {
        complain(format_args!("processes of the pod do not end: {left:?}"));
    }
    match code(status.map_err(failed)?) {
        0 => Ok(()),
        code => std::process::exit(code),
    }
}

/// The pod's resolv.conf; none when its node does not answer names, or is of a version that cannot.
fn resolv_conf(client: &mut Client, pod: &PodName) -> Option<String> {
    match client.call(&Request::ResolvConf { pod: pod.clone() }) {
        Ok(Reply::ResolvConf { text }) => text,
        _ => None,
    }
}

/// Await the command, and pass on what is meant for it. The first SIGTERM has it drain instead for the time of `grace`, if
/// `drain` can; a second one does not wait.
fn look_after(
    mut child: Child,
    sandbox: &Sandbox,
    signals: &Signals,
    mut grace: Option<Duration>,
    drain: impl Fn() -> bool,
) -> std::io::Result<ExitStatus> {
    let mut told = false;
    let mut until: Option<Instant> = None;
    loop {
        // Before waiting: the end of a child that came earlier left no signal behind.
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if sandbox.ended() && !told {
            complain("the pod was detached, or its node ended; its command is told to end");
            send(&child, SIGTERM);
            told = true;
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let Some(caught) = signals.wait(left)? else {
            until = None;
            send(&child, SIGTERM);
            continue;
        };
        if caught.signal == SIGTERM
            && let Some(time) = grace.take()
            && drain()
        {
            until = Some(Instant::now() + time);
            continue;
        }
        // A terminal signals the whole foreground group, so the command has had its Ctrl-C already.
        if caught.signal != SIGCHLD && !caught.by_kernel {
            send(&child, caught.signal);
        }
        children::bury_others(&[child.id(), sandbox.pid()]);
    }
}

fn send(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(signal)) {
        // The child is not awaited yet, so the number is its own still.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn code(status: ExitStatus) -> i32 {
    let signal = status.signal().map_or(1, |s| 128 + s);
    status.code().unwrap_or(signal)
}

impl From<SandboxError> for Failure {
    fn from(e: SandboxError) -> Failure {
        let exit = match &e {
            SandboxError::NoUserNs(_) | SandboxError::IdMap(_) => Exit::Permission,
            _ => Exit::Failed,
        };
        Failure::new(exit, e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_shells() {
        assert_eq!(code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(code(ExitStatus::from_raw(SIGTERM)), 143);
    }
}
