//! Children of this process, those it inherits included: a command's background processes have nobody else when
//! the command is gone, and there is no process namespace that would end with it.

#![allow(unsafe_code)]

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// From now on inherit the children of descendants that end, wherever they went (PR_SET_CHILD_SUBREAPER).
///
/// # Errors
/// What the kernel says.
pub fn inherit() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Await the children that have ended, but not those in `own`, whose end is somebody's to see. Stops at the first
/// of these.
pub fn bury_others(own: &[u32]) {
    while let Ok(Some(pid)) = ended() {
        if own.contains(&pid.as_raw_nonzero().get().unsigned_abs()) || !bury(pid) {
            return;
        }
    }
}

/// Kill all children and what they leave, until there are no more or `patience` is over; gives those left.
pub fn end(patience: Duration) -> Vec<u32> {
    let deadline = Instant::now() + patience;
    loop {
        while let Ok(Some(pid)) = ended() {
            bury(pid);
        }
        // ECHILD: there are none, the usual case.
        if ended().is_err() {
            return Vec::new();
        }
        let left = children();
        if Instant::now() >= deadline {
            return left
                .iter()
                .map(|p| p.as_raw_nonzero().get().unsigned_abs())
                .collect();
        }
        for pid in left {
            // A child's number is its own until it is awaited, which only this thread does. One that gained
            // other rights than ours may refuse.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A child that has ended and was not awaited; fails with ECHILD when there are no children at all.
fn ended() -> io::Result<Option<Pid>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is writable for the length of the call.
    if unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeros are a value of siginfo_t, which waitid has overwritten or, when no child has ended, left or
    // set to zero (waitid(2)); it makes SIGCHLD's variant, which has a process id.
    let pid = unsafe { info.assume_init_ref().si_pid() };
    Ok(Pid::from_raw(pid))
}

fn bury(pid: Pid) -> bool {
    waitpid(Some(pid), WaitOptions::NOHANG).is_ok_and(|buried| buried.is_some())
}

/// All children, as /proc tells.
fn children() -> Vec<Pid> {
    let own = getpid().as_raw_nonzero().to_string();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let child = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // The name may hold anything, a parenthesis too; state and parent follow the last one.
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit(") ").next()?.split(' ').nth(1)?;
        (parent == own).then(|| Pid::from_raw(pid)).flatten()
    };
    all.filter_map(child).collect()
}
