//! Programs of others, run so that nothing of them can stay: neither after an orderly end nor after SIGKILL.
//!
//! ```text
//!  the lab ── podwire __alone ── podwire __first ── pasta ── whatever it forks
//!                                └──────── a PID namespace ────────┘
//! ```
//!
//! A program may fork, change its user (which voids a death signal) or make a session of its own. It cannot leave its
//! PID namespace, and the kernel kills all in there with the first of them, which has a death signal and keeps it. Of
//! the two that are podwire the outer one is there to await that: who has awaited it knows that all are gone.

use super::watch::Job;
use crate::cmd::{Exit, Failure, node};
use crate::pod::hidden;
use crate::sys::ns::{self, NetNs};
use signal_hook::consts::{SIGCHLD, SIGTERM};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The hidden command that makes the PID namespace.
pub const VERB: &str = "__alone";
/// The hidden command that is the first process in it.
pub const FIRST: &str = "__first";
/// How long the kernel may take to kill.
const END: Duration = Duration::from_secs(2);

/// What both hidden commands are given.
#[derive(clap::Args)]
pub struct Args {
    /// Show the program the numbers that its processes have among themselves: those it makes and looks for in /proc
    #[arg(long)]
    own_proc: bool,
    /// What to run
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

/// A running program. Dropping it ends all of its processes before it returns.
pub struct Alone(Job);

impl Alone {
    /// Start `program` in a network namespace; its output is gathered by the job, its complaints are nobody's.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        within: &NetNs,
        own_proc: bool,
        program: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Alone, Failure> {
        let mut command = again(VERB, own_proc);
        command.arg(program).args(args).stderr(Stdio::null());
        let job = within.within(|| Job::spawn(&mut command))?;
        let job = job.map_err(|e| failed(format!("{program} could not be started: {e}")))?;
        Ok(Alone(job))
    }

    /// Whether it was seen to have ended.
    pub fn ended(&mut self) -> bool {
        Job::look(&mut [&mut self.0]);
        self.0.ended()
    }

    /// Process ids of the program and of all it has started, parents first.
    pub fn processes(&self) -> Vec<u32> {
        // The first two are podwire.
        descendants(self.0.pid()).into_iter().skip(2).collect()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        Job::end(&mut [&mut self.0], END);
    }
}

/// A process and those it has started, these too and so on; it comes first.
fn descendants(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        // Each thread has its own.
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
        let threads = threads.into_iter().flatten().flatten();
        let children = threads.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
        let children: Vec<String> = children.collect();
        let each = children.iter().flat_map(|line| line.split_ascii_whitespace());
        all.extend(each.filter_map(|pid| pid.parse::<u32>().ok()));
        at += 1;
    }
    all
}

/// Podwire itself, as a command that dies with this process.
fn again(verb: &str, own_proc: bool) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("podwire")
        .args([hidden::TIED, &std::process::id().to_string(), verb])
        .args(own_proc.then_some("--own-proc"))
        .arg("--");
    command
}

/// Body of `__alone`: start `__first`, and end it when asked to.
///
/// # Errors
/// When there is no PID namespace to be had.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let unready = |e: io::Error| failed(format!("no PID namespace can be made: {e}"));
    let mut news = node::pipe(&[SIGTERM, SIGCHLD]).map_err(unready)?;
    ns::unshare_pids().map_err(unready)?;
    let mut first = again(FIRST, args.own_proc);
    let mut first = first.args(&args.program).spawn().map_err(unready)?;
    // It has ended, or shall.
    while news
        .read(&mut [0; 64])
        .is_err_and(|e| e.kind() == io::ErrorKind::Interrupted)
    {}
    // Fails when it has ended. It can be awaited only when nobody else is left in there (pid_namespaces(7)).
    let _ = first.kill();
    match first.wait().map(|status| status.code()) {
        Ok(Some(0)) => Ok(Exit::Ok),
        _ => Ok(Exit::Failed),
    }
}

/// Body of `__first`: run the program, and end with it.
///
/// # Errors
/// When it cannot be run.
pub fn first(args: &Args) -> Result<Exit, Failure> {
    let unready = |e: io::Error| failed(format!("it cannot be run: {e}"));
    if args.own_proc {
        ns::own_proc().map_err(unready)?;
    }
    let (program, args) = args
        .program
        .split_first()
        .ok_or_else(|| failed("no program".into()))?;
    let status = Command::new(program).args(args).status().map_err(unready)?;
    match status.code() {
        Some(0) => Ok(Exit::Ok),
        _ => Ok(Exit::Failed),
    }
}

fn failed(what: String) -> Failure {
    Failure::new(Exit::Failed, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_started_by_whom_is_found() {
        let script = "sleep 60 & exec sleep 60";
        let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let all = loop {
            let all = descendants(child.id());
            if all.len() == 2 || std::time::Instant::now() > deadline {
                break all;
            }
        };
        assert_eq!((all.len(), all[0]), (2, child.id()));
        let other = i32::try_from(all[1])
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(other.unwrap(), rustix::process::Signal::KILL).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(descendants(u32::MAX), [u32::MAX]);
    }
}
