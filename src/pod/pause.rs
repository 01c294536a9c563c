//! The process that holds a sandbox's namespaces: made by re-executing podwire, it sets itself up in step with
//! its parent and then sleeps until its lifeline is cut.
//!
//! ```text
//!  parent                          pause
//!    | == spawn =====================> |  new session, new namespaces
//!    | <--------------- "unshared" --- |
//!    |  writes its uid and gid maps    |
//!    | --- "mapped", resolv.conf ----> |  host name, /sys, resolv.conf, death signal
//!    | <------------------ "ready" --- |  lets go of the terminal, sleeps
//!    |  keeps its end of the pipe      |  ends when nobody holds the other end of the pipe
//! ```
//!
//! The pipe to its standard input becomes the lifeline. Its parent holds an end, and the node gets one beside
//! the TAP, so that a pod which podwire made ends with its port: at a detach, and when the node ends. (One that is
//! killed has a keeper, which has another end for the next start.) Nobody ever signals a process by its number, and what `podwire attach --pid` names has no lifeline to
//! be cut.
//!
//! It is a process and not a thread or a bind mount because a rootless namespace can be kept by nothing else,
//! and an image of its own because a fork of a threaded program may do next to nothing safely.

use super::resolv::ResolvConf;
use crate::sys::ns;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::process::Signal;
use std::io::{self, BufRead, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

/// The hidden verb: `podwire __pause HOSTNAME PARENT`, where PARENT is the process whose death ends the
/// pause, or `-` for none.
pub const VERB: &str = "__pause";

/// Body of the hidden command.
pub fn main(hostname: &str, parent: Option<u32>) -> ExitCode {
    match settle(hostname, parent) {
        Ok(resolv_conf) => {
            let mut lifeline = io::stdin().lock();
            match resolv_conf {
                Some(conf) => conf.keep(&mut lifeline),
                // Nobody writes; what comes all the same means nothing.
                None => drop(io::copy(&mut lifeline, &mut io::sink())),
            }
            ExitCode::SUCCESS
        }
        Err((step, e)) => {
            // To the parent, which turns it into a sentence; when it is gone, nobody wants to know.
            let errno = e.raw_os_error().unwrap_or_default();
            let _ = writeln!(io::stdout(), "failed {step} {errno}");
            ExitCode::FAILURE
        }
    }
}

fn settle(hostname: &str, parent: Option<u32>) -> Result<Option<ResolvConf>, (&'static str, io::Error)> {
    // Away from the terminal's process group: Ctrl-C is for the command in the pod, not for the pod.
    let _ = rustix::process::setsid();
    ns::unshare_pod().map_err(|e| ("unshare", e))?;
    say("unshared")?;
    let mut line = String::new();
    io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|e| ("handshake", e))?;
    let broken = || ("handshake", io::ErrorKind::UnexpectedEof.into());
    if line != "mapped\n" {
        return Err(broken());
    }
    line.clear();
    io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|e| ("handshake", e))?;
    let resolv_conf: Option<String> = serde_json::from_str(&line).map_err(|_| broken())?;
    rustix::system::sethostname(hostname.as_bytes()).map_err(|e| ("sethostname", e.into()))?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(|e| ("mount", e.into()))?;
    if let Err(e) = own_sys() {
        log::debug!("the pod keeps the host's /sys: {e}");
    }
    let mut conf = None;
    match resolv_conf.map(ResolvConf::mount) {
        Some(Ok(mounted)) => conf = Some(mounted),
        Some(Err((step, e))) => say(&format!("note resolv.conf: {step}: {e}"))?,
        None => {}
    }
    if let Some(parent) = parent {
        die_with(parent).map_err(|e| ("prctl", e))?;
    }
    std::env::set_current_dir("/").map_err(|e| ("chdir", e))?;
    say("ready")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let redirected = null.and_then(|null: OwnedFd| {
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)
    });
    redirected.map_err(|e| ("redirect", e.into()))?;
    Ok(conf)
}

/// A word to the parent; without one there is no use in going on.
fn say(word: &str) -> Result<(), (&'static str, io::Error)> {
    writeln!(io::stdout(), "{word}").map_err(|e| ("handshake", e))
}

/// Ask for SIGKILL when the parent dies.
///
/// # Errors
/// When it has died already, or the kernel refuses.
pub(super) fn die_with(parent: u32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = rustix::process::getppid().map(|p| p.as_raw_nonzero().get().unsigned_abs());
    // The first process of a PID namespace has a parent outside of it, which has a number in the /proc of there.
    if now.or_else(parent_outside) == Some(parent) {
        Ok(())
    } else {
        Err(io::Error::other("the parent process has ended"))
    }
}

fn parent_outside() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))?
        .trim()
        .parse()
        .ok()
}

/// Mount a /sys that shows the pod's network devices, with the control groups of the old one.
fn own_sys() -> io::Result<()> {
    let tree =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let cgroup = rustix::mount::open_tree(CWD, "/sys/fs/cgroup", tree);
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("sysfs", "/sys", "sysfs", flags, None)
        // Where the old one is read-only, the kernel grants a read-only one.
        .or_else(|_| rustix::mount::mount("sysfs", "/sys", "sysfs", flags | MountFlags::RDONLY, None))?;
    if let Ok(cgroup) = cgroup {
        let place = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&cgroup, "", CWD, "/sys/fs/cgroup", place)?;
    }
    Ok(())
}
