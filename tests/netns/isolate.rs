//! The suite's own namespaces, and what must not be left when it ends.
//!
//! ```text
//!  supervisor (started by cargo) --- temporary directory, subreaper
//!    '-- the suite, in new user, network, mount, UTS and IPC namespaces: root there, nobody outside
//!          '-- nodes, pods' pause processes, pings ...
//! ```
//!
//! Whatever the suite makes lies in namespaces that end with it, so the host's network is never touched and
//! no root is needed. Processes that outlive the suite fall to the supervisor, which fails for each of them.

use rustix::mount::MountPropagationFlags;
use rustix::process::{Pid, Signal, WaitOptions};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Tells the suite that it runs under a supervisor: its directory.
const DIR: &str = "PODWIRE_NETNS_DIR";

/// The directory for the suite's files, which the supervisor finds empty at the end.
pub fn dir() -> PathBuf {
    std::env::var_os(DIR)
        .map(PathBuf::from)
        .expect("the suite runs under its supervisor")
}

/// Run `suite` isolated. To be called first thing in `main`: a process with threads cannot enter a user
/// namespace.
pub fn main(suite: impl FnOnce() -> ExitCode) -> ExitCode {
    let outcome = match std::env::var_os(DIR) {
        Some(_) => isolate().map(|()| suite()),
        None => supervise(),
    };
    outcome.unwrap_or_else(|missing| {
        eprintln!("netns: {missing}");
        ExitCode::FAILURE
    })
}

fn isolate() -> Result<(), String> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    podwire::sys::ns::unshare_pod().map_err(|e| {
        format!(
            "these tests need user namespaces, and this kernel gives none: {e} (look at `sysctl \
             user.max_user_namespaces`, `kernel.unprivileged_userns_clone` and \
             `kernel.apparmor_restrict_unprivileged_userns`; `podwire doctor` tells more)"
        )
    })?;
    let mapped = fs::write("/proc/self/setgroups", "deny")
        .and_then(|()| fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw())))
        .and_then(|()| fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw())));
    mapped.map_err(|e| format!("user ids cannot be mapped into a user namespace: {e}"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(|e| format!("mounts cannot be made private: {e}"))?;
    let tun = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    tun.map_err(|e| {
        format!(
            "these tests need /dev/net/tun, readable and writable by you: {e} (`sudo chmod 666 /dev/net/tun`, \
             `sudo modprobe tun`)"
        )
    })?;
    for tool in ["ip", "ping"] {
        let found = Command::new(tool).arg("-V").output();
        found.map_err(|e| format!("these tests need the tool {tool}: {e} (tests/run installs it)"))?;
    }
    Ok(())
}

fn supervise() -> Result<ExitCode, String> {
    let failed = |e: io::Error| format!("the suite cannot be started: {e}");
    let dir = tempfile::Builder::new().prefix("podwire-netns-").tempdir();
    let dir = dir.map_err(failed)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(|e| failed(e.into()))?;
    let mut suite = Command::new("/proc/self/exe");
    suite.args(std::env::args_os().skip(1)).env(DIR, dir.path());
    // Debian keeps some of the tools where only root's PATH leads.
    let path = std::env::var("PATH").unwrap_or_default();
    suite.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    // Ctrl-C and the like end the suite, not this process: it has to clear up.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, stop.clone()).map_err(failed)?;
    }
    let mut suite = suite.spawn().map_err(failed)?;
    let status = loop {
        if let Some(status) = suite.try_wait().map_err(failed)? {
            break status;
        }
        if stop.load(Ordering::Relaxed) {
            // Fails only when it has ended, which the next look finds.
            let _ = suite.kill();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let left = left_behind(dir.path());
    for thing in &left {
        eprintln!("netns: left behind: {thing}");
    }
    Ok(match status.code() {
        Some(0) if left.is_empty() => ExitCode::SUCCESS,
        Some(code @ 1..=255) => ExitCode::from(code as u8),
        Some(_) => ExitCode::FAILURE,
        None => {
            eprintln!("netns: the suite ended by {status}");
            ExitCode::FAILURE
        }
    })
}

/// Processes, files and mounts of a suite that has ended.
fn left_behind(dir: &Path) -> Vec<String> {
    let mut left = processes();
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    left.extend(files.map(|f| format!("the file {}", f.path().display())));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let ours = mounts.lines().filter(|l| l.contains(&*dir.to_string_lossy()));
    left.extend(ours.map(|l| format!("the mount {l}")));
    left
}

/// Descendants that are still there after a grace for those already killed; ended here.
fn processes() -> Vec<String> {
    let begun = Instant::now();
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) if begun.elapsed() < Duration::from_secs(1) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(None) => break,
            // No child is left.
            Err(_) => return Vec::new(),
        }
    }
    let mut left = Vec::new();
    // Whose parent is ended here comes to this process next.
    loop {
        let children = children();
        if children.is_empty() {
            return left;
        }
        for pid in children {
            let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            left.push(format!("process {}: {line}", pid.as_raw_nonzero()));
            // It is our child and not awaited, so the number is its own still.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

fn children() -> Vec<Pid> {
    let own = format!("PPid:\t{}", std::process::id());
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let ours = pids.filter(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == own)
    });
    ours.filter_map(Pid::from_raw).collect()
}
