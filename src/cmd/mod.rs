//! One file (or folder) per subcommand, and what they share: the socket, exit codes, and how failures are told.

pub mod attach;
pub mod bench;
pub mod cni;
pub mod conn;
pub mod demo;
pub mod detach;
pub mod dns;
pub mod doctor;
pub mod exec;
pub mod forward;
pub mod install;
pub mod ipam;
mod lab;
pub mod label;
pub mod leases;
pub mod node;
pub mod peers;
pub mod pods;
pub mod port;
pub mod run;
pub mod service;
pub mod status;
pub mod table;

use crate::api::place::{PlaceError, for_client};
use crate::api::{ApiError, ErrorKind};
use crate::sys::ns::NsError;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit codes of `podwire`, the same for all subcommands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It did not work; the message tells why.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// Not permitted.
    Permission = 3,
    /// No node answers.
    Unavailable = 4,
    /// The name, address, MAC, port, socket or default route is taken.
    Taken = 5,
    /// No such pod, namespace or process.
    NotFound = 6,
    /// Out of addresses or ports.
    Exhausted = 7,
}

/// Why a subcommand failed.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// One sentence: the thing and the remedy.
    pub message: String,
}

impl Failure {
    /// A failure with an exit code.
    pub fn new(exit: Exit, message: impl std::fmt::Display) -> Failure {
        Failure {
            exit,
            message: message.to_string(),
        }
    }
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Exit {
        match kind {
            ErrorKind::Usage => Exit::Usage,
            ErrorKind::Taken => Exit::Taken,
            ErrorKind::NotFound => Exit::NotFound,
            ErrorKind::Exhausted => Exit::Exhausted,
            ErrorKind::Permission => Exit::Permission,
            ErrorKind::Waiting => Exit::Unavailable,
            ErrorKind::Internal => Exit::Failed,
        }
    }
}

impl From<ApiError> for Failure {
    fn from(e: ApiError) -> Failure {
        let exit = match &e {
            ApiError::Permission { .. } | ApiError::Stranger { .. } => Exit::Permission,
            ApiError::Refused { kind, .. } => Exit::from(*kind),
            ApiError::NoNode { .. }
            | ApiError::Timeout { .. }
            | ApiError::Late { .. }
            | ApiError::Broken { .. } => Exit::Unavailable,
            ApiError::Version { .. } | ApiError::Garbled { .. } => Exit::Unavailable,
        };
        Failure::new(exit, e)
    }
}

impl From<NsError> for Failure {
    fn from(e: NsError) -> Failure {
        let exit = match &e {
            NsError::Permission(_) | NsError::Rights { .. } => Exit::Permission,
            NsError::Missing(_) | NsError::NoProcess(_) => Exit::NotFound,
            NsError::NotNetns(_) => Exit::Usage,
            NsError::Call { .. } => Exit::Failed,
        };
        Failure::new(exit, e)
    }
}

impl From<PlaceError> for Failure {
    fn from(e: PlaceError) -> Failure {
        let exit = match &e {
            PlaceError::None(_) => Exit::Unavailable,
            PlaceError::Several(_) | PlaceError::Long(_) => Exit::Usage,
            PlaceError::NoDirectory(_) | PlaceError::State { .. } => Exit::Permission,
        };
        Failure::new(exit, e)
    }
}

const EXAMPLES: &str = "\
See it work:
  podwire demo

Measure it beside the kernel's own:
  podwire bench --quick

Two nodes, a pod on each:
  n1$ podwire node --name n1 --subnet 10.244.1.0/24 --peers peers.toml
  n1$ podwire attach --name a --netns /run/netns/a
  n2$ podwire node --name n2 --subnet 10.244.2.0/24 --peers peers.toml
  n1$ podwire status

A cluster whose subnets are leases in etcd, shared with flannel's nodes:
  n1$ podwire node --store etcd --etcd-endpoints http://192.0.2.9:2379
  n1$ podwire leases

Exit codes:
  0 done    1 failed    2 wrong usage or configuration    3 not permitted    4 no node answers, or it has no subnet yet
  5 name, address, MAC, port, socket or default route taken
  6 no such pod, Service, namespace or process    7 out of addresses or ports
run and exec end with their command's code; 126 and 127 tell that it could not be run.";

/// A pod network in user space: TAP, VXLAN over UDP, no root and no kernel module.
#[derive(Parser)]
#[command(name = "podwire", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    /// Admin socket of the node [default: $PODWIRE_SOCKET, or the only node of this user].
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

// A variant without a comment is explained by its arguments' own, which is longer and has examples.
#[derive(Subcommand)]
enum Command {
    /// Run a node in the foreground.
    Node(node::Args),
    Attach(attach::Args),
    Detach(detach::Args),
    Pods(pods::Args),
    Ipam(ipam::Args),
    Run(run::Args),
    Exec(exec::Args),
    Port(port::Args),
    Forward(forward::Args),
    Service(service::Args),
    /// List connections through Services, or end them.
    Conn(conn::Args),
    Label(label::Args),
    Ready(label::ReadyArgs),
    Drain(label::DrainArgs),
    /// Show a node: peers, pods, drops, offloads, and what needs attention.
    Status(status::Args),
    Peers(peers::Args),
    Leases(leases::Args),
    Dns(dns::Args),
    Cni(cni::Args),
    Install(install::Args),
    Uninstall(install::RemoveArgs),
    Demo(demo::Args),
    /// Check what podwire needs of this host, with a remedy for each lack. Needs no node.
    Doctor(doctor::Args),
    /// Try to make a pod's namespaces and TAP; the exit code tells how far it came.
    #[command(name = doctor::PROBE, hide = true)]
    ProbeSandbox,
    Bench(bench::Args),
    /// Measure, within the sandbox of a benchmark.
    #[command(name = bench::VERB, hide = true)]
    BenchInside(bench::Args),
    /// Make traffic, or take it, inside a pod of a demo or a measurement.
    #[command(name = lab::load::VERB, hide = true)]
    Load(lab::load::Args),
    /// Run a program so that nothing of it can stay.
    #[command(name = lab::alone::VERB, hide = true)]
    Alone(lab::alone::Args),
    /// Be the first process of a PID namespace.
    #[command(name = lab::alone::FIRST, hide = true)]
    First(lab::alone::Args),
}

/// Entry point of the binary.
pub fn main() -> ExitCode {
    // Before anything that might make a thread: entering a user namespace needs a single-threaded process.
    if let Some(code) = crate::pod::hidden::main() {
        return code;
    }
    if let Some(code) = keeper() {
        return code;
    }
    if let Some(code) = crate::cni::main() {
        return code;
    }
    let parsed = Cli::command()
        .try_get_matches()
        .and_then(|m| Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    match dispatch(cli) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            complain(&failure.message);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Be a node's keeper, when the arguments say so.
fn keeper() -> Option<ExitCode> {
    let mut argv = std::env::args_os().skip(1);
    let verb = argv.next().filter(|verb| verb == crate::daemon::keeper::VERB);
    let node = verb.and(argv.next())?;
    Some(crate::daemon::keeper::main(&node.to_string_lossy()))
}

fn dispatch(cli: Cli) -> Result<Exit, Failure> {
    let socket = cli.socket.as_deref();
    let done = |()| Exit::Ok;
    match cli.command {
        Command::Node(args) => node::run(args, socket).map(done),
        Command::Attach(args) => attach::run(args, &for_client(socket)?).map(done),
        Command::Detach(args) => detach::run(args, &for_client(socket)?).map(done),
        Command::Pods(args) => pods::run(args, &for_client(socket)?).map(done),
        Command::Ipam(args) => ipam::run(args, &for_client(socket)?).map(done),
        Command::Run(args) => run::run(args, &for_client(socket)?).map(done),
        Command::Exec(args) => exec::run(args, &for_client(socket)?).map(done),
        Command::Port(args) => port::run(args, &for_client(socket)?).map(done),
        Command::Forward(args) => forward::run(args, &for_client(socket)?).map(done),
        Command::Service(args) => service::run(args, &for_client(socket)?).map(done),
        Command::Conn(args) => conn::run(args, &for_client(socket)?).map(done),
        Command::Label(args) => label::run(args, &for_client(socket)?).map(done),
        Command::Ready(args) => label::ready(&args, &for_client(socket)?).map(done),
        Command::Drain(args) => label::drain(&args, &for_client(socket)?).map(done),
        Command::Status(args) => status::run(&args, &for_client(socket)?).map(done),
        Command::Peers(args) => peers::run(&args, &for_client(socket)?).map(done),
        Command::Leases(args) => leases::run(&args, &for_client(socket)?).map(done),
        Command::Dns(args) => dns::run(args, &for_client(socket)?).map(done),
        Command::Cni(args) => cni::run(&args, socket).map(done),
        Command::Install(args) => install::run(args).map(done),
        Command::Uninstall(args) => install::remove(args).map(done),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::BenchInside(args) => bench::inside(&args),
        Command::Load(args) => lab::load::run(args).map(done),
        Command::Alone(args) => lab::alone::run(&args),
        Command::First(args) => lab::alone::first(&args),
        Command::Doctor(args) => doctor::run(&args, socket),
        Command::ProbeSandbox => doctor::probe(),
    }
}

/// Write to standard output; a reader that went away (`podwire status | head`) is no failure.
pub fn say(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, format!("cannot write: {e}")))
        }
        _ => Ok(()),
    }
}

/// Write a line to standard error; when that takes nothing there is nobody left to tell.
pub fn complain(what: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "podwire: {what}");
}

/// Colours, on a terminal whose user did not refuse them (<https://no-color.org>).
#[derive(Clone, Copy)]
pub struct Paint(bool);

impl Paint {
    /// For standard output.
    pub fn stdout() -> Paint {
        Paint(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()))
    }

    /// `text` with the SGR code `code` (1 bold, 31 red, 32 green, 33 yellow).
    pub fn with(self, code: u8, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
