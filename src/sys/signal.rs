//! Waiting for signals in line, for commands that look after a child.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

pub use libc::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};

/// Signals that are held back until [`Signals::wait`] takes them. Children made with `std::process` start
/// with none held back.
pub struct Signals(libc::sigset_t);

/// A signal that came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caught {
    /// Its number.
    pub signal: i32,
    /// Whether the kernel made it (a terminal's Ctrl-C goes to each process of the group by itself), not a
    /// process that meant only this one.
    pub by_kernel: bool,
}

impl Signals {
    /// Hold back `signals` in the calling thread.
    ///
    /// # Errors
    /// When a number is not a signal's.
    pub fn hold(signals: &[i32]) -> io::Result<Signals> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset fills the whole set and cannot fail.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for signal in signals {
            // SAFETY: `set` is a valid signal set.
            if unsafe { libc::sigaddset(&raw mut set, *signal) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: `set` is valid, and a null old set is allowed.
        let rc = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if rc == 0 {
            Ok(Signals(set))
        } else {
            Err(io::Error::from_raw_os_error(rc))
        }
    }

    /// The next of the signals; none when `patience` is over before.
    ///
    /// # Errors
    /// What the kernel says, apart from interruptions.
    pub fn wait(&self, patience: Option<Duration>) -> io::Result<Option<Caught>> {
        let end = patience.map(|p| Instant::now() + p);
        let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
        loop {
            let left = end.map(|end| {
                let left = end.saturating_duration_since(Instant::now());
                libc::timespec {
                    tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: left.subsec_nanos().into(),
                }
            });
            let timeout = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
            // SAFETY: the pointers are to live objects of the right type, or null, which is no time-out.
            let signal = unsafe { libc::sigtimedwait(&raw const self.0, info.as_mut_ptr(), timeout) };
            if signal > 0 {
                // SAFETY: sigtimedwait filled `info`, since it returned a signal.
                let by_kernel = unsafe { info.assume_init_ref() }.si_code > 0;
                return Ok(Some(Caught { signal, by_kernel }));
            }
            match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::EAGAIN) => return Ok(None),
                e if e.kind() != io::ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
        }
    }
}

/// Unblock every signal in this thread. A held signal stays held across fork and exec; a pod's processes
/// must not inherit what `podwire run` waits for.
pub fn unblock_all() {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset fills the set before pthread_sigmask reads it; the old mask is not asked for.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_signal_is_taken_in_line() {
        let signals = Signals::hold(&[libc::SIGUSR2]).unwrap();
        // SAFETY: pthread_kill to the calling thread, with a signal that this thread holds back.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
        let caught = signals.wait(None).unwrap().unwrap();
        assert_eq!(caught.signal, libc::SIGUSR2);
        assert!(!caught.by_kernel);
        assert_eq!(signals.wait(Some(Duration::from_millis(1))).unwrap(), None);
    }
}
