//! Waiting: for child processes, with a deadline, an ear for Ctrl-C, and a word to a person who waits too.

use crate::cmd::{Exit, Failure, complain, node};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::borrow::Cow;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// From when on a person wonders what is going on.
const QUIET: Duration = Duration::from_secs(1);

/// A lab's patience: knows when it was asked to end, and tells what it waits for.
pub struct Watch {
    /// Readable for good once a signal asked for the end.
    stop: UnixStream,
    begun: Instant,
    talks: bool,
    untold: Option<String>,
}

impl Watch {
    /// Take the signals that ask for the end, and speak to standard error when `talks`.
    ///
    /// # Errors
    /// When signals cannot be taken.
    pub fn new(talks: bool) -> io::Result<Watch> {
        Ok(Watch {
            stop: node::pipe(&[SIGINT, SIGTERM, SIGHUP])?,
            begun: Instant::now(),
            talks,
            untold: None,
        })
    }

    /// How long it has taken so far.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// What is done now; told once it takes longer than a second.
    pub fn stage(&mut self, what: impl Into<String>) {
        self.untold = self.talks.then(|| what.into());
        self.tell();
    }

    /// Fail when the end was asked for.
    ///
    /// # Errors
    /// Then.
    pub fn check(&self) -> Result<(), Failure> {
        if readable(&[self.stop.as_fd()], Instant::now())[0] {
            Err(Failure::new(
                Exit::Failed,
                "interrupted; everything was taken down",
            ))
        } else {
            Ok(())
        }
    }

    /// Wait until `enough` holds for each of `jobs`, or until `deadline`; which it was, the jobs tell.
    ///
    /// # Errors
    /// When the end was asked for meanwhile.
    pub fn gather(
        &mut self,
        jobs: &mut [&mut Job],
        deadline: Instant,
        enough: fn(&Job) -> bool,
    ) -> Result<(), Failure> {
        while jobs.iter().any(|j| !enough(j)) && Instant::now() < deadline {
            let told = self.untold.as_ref().map(|_| self.begun + QUIET);
            listen(jobs, told.map_or(deadline, |t| t.min(deadline)), Some(&self.stop));
            self.check()?;
            self.tell();
        }
        Ok(())
    }

    /// Wait until the end is asked for, or until one of `jobs` ends by itself.
    pub fn until_asked(&self, jobs: &mut [&mut Job]) {
        while self.check().is_ok() && !jobs.iter().any(|j| j.ended()) {
            listen(jobs, Instant::now() + Duration::from_secs(3600), Some(&self.stop));
        }
    }

    fn tell(&mut self) {
        if self.begun.elapsed() >= QUIET
            && let Some(what) = self.untold.take()
        {
            complain(what);
        }
    }
}

/// A child process whose standard output is gathered. Dropping it kills it.
///
/// To be started by the main thread: the processes of a lab die with the thread that started them.
pub struct Job {
    child: Child,
    out: Option<ChildStdout>,
    said: Vec<u8>,
}

impl Job {
    /// Start one, away from the terminal: Ctrl-C is for this one, which ends the others in order.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(command: &mut Command) -> io::Result<Job> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.process_group(0).spawn()?;
        let out = child.stdout.take();
        Ok(Job {
            child,
            out,
            said: Vec::new(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn said(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.said)
    }

    /// Whether it has written a whole line, or ended.
    pub fn spoke(&self) -> bool {
        self.said.contains(&b'\n') || self.ended()
    }

    /// Whether it was seen to have ended (or to have closed its output, which none does before).
    pub fn ended(&self) -> bool {
        self.out.is_none()
    }

    /// Wait for its end and give its exit code; none when a signal ended it.
    pub fn exit_code(mut self) -> Option<i32> {
        self.child.wait().ok()?.code()
    }

    /// Take in what `jobs` have written, or that they ended, without waiting.
    pub fn look(jobs: &mut [&mut Job]) {
        listen(jobs, Instant::now(), None);
    }

    /// Ask all of `jobs` to end, and wait for them at most `patience`.
    pub fn end(jobs: &mut [&mut Job], patience: Duration) {
        for job in jobs.iter() {
            job.signal(Signal::TERM);
        }
        let deadline = Instant::now() + patience;
        while jobs.iter().any(|j| !j.ended()) && Instant::now() < deadline {
            listen(jobs, deadline, None);
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // The child is not awaited before it is dropped, so the number is its own still.
            let _ = kill_process(pid, signal);
        }
    }

    fn read(&mut self) {
        let mut piece = [0; 4096];
        match self.out.as_mut().map(|out| out.read(&mut piece)) {
            Some(Ok(n)) if n > 0 => self.said.extend_from_slice(&piece[..n]),
            Some(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            _ => self.out = None,
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Take in what `jobs` write; returns when one wrote, when `also` can be read, or at `until`.
fn listen(jobs: &mut [&mut Job], until: Instant, also: Option<&UnixStream>) {
    let (at, mut fds): (Vec<_>, Vec<_>) = jobs
        .iter()
        .enumerate()
        .filter_map(|(i, job)| Some((i, job.out.as_ref()?.as_fd())))
        .unzip();
    fds.extend(also.map(AsFd::as_fd));
    let ready = readable(&fds, until);
    for (i, _) in at.into_iter().zip(ready).filter(|(_, ready)| *ready) {
        jobs[i].read();
    }
}

/// Which of `fds` can be read, or are at their end; waits for the first until `until`.
fn readable(fds: &[std::os::fd::BorrowedFd<'_>], until: Instant) -> Vec<bool> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).unwrap_or_default();
    // An interrupted poll found nothing; callers look again.
    let _ = poll(&mut polled, Some(&timeout));
    polled.iter().map(|p| !p.revents().is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Job {
        Job::spawn(Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn a_hung_child_costs_its_deadline_and_no_more() {
        let mut watch = Watch::new(false).unwrap();
        let (mut quick, mut hung) = (sh("echo one; echo two"), sh("echo begun; exec sleep 60"));
        let pid = hung.child.id();
        let begun = Instant::now();
        let jobs = &mut [&mut quick, &mut hung];
        watch
            .gather(jobs, begun + Duration::from_secs(20), Job::spoke)
            .unwrap();
        assert_eq!(hung.said(), "begun\n");
        let jobs = &mut [&mut quick, &mut hung];
        let soon = Instant::now() + Duration::from_millis(50);
        watch.gather(jobs, soon, Job::ended).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(15));
        assert_eq!(quick.said(), "one\ntwo\n");
        assert!(quick.ended() && !hung.ended());
        drop(hung);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn asked_to_end_it_does() {
        let mut job = sh("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done");
        let jobs = &mut [&mut job];
        listen(jobs, Instant::now() + Duration::from_secs(20), None);
        Job::end(jobs, Duration::from_secs(20));
        assert!(job.ended());
    }
}
