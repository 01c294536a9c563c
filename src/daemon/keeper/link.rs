//! The node's end of the conversation with a keeper.

use super::{FromKeeper, Held, PROTOCOL, Parcel, Record, ToKeeper, VERB};
use crate::api::Broken;
use crate::api::packet::Packets;
use crate::model::PodName;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a keeper may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// How long a node that starts waits for an earlier one to be gone.
const EARLIER: Duration = Duration::from_secs(2);

/// Why a node cannot have the pods that are kept for it. None of them is harmed.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// Another node has them.
    #[error("node {node} already runs, pid {pid}, and has the pods kept at {} (stop it, or take another --name or --socket)", path.display())]
    Busy {
        /// The node's name.
        node: String,
        /// The other node.
        pid: u32,
        /// The keeper's socket.
        path: PathBuf,
    },
    /// They are another node's.
    #[error("process {pid} keeps pods of node {theirs} at {} (start that node there, or take another --socket)", path.display())]
    Other {
        /// The keeper.
        pid: u32,
        /// Whose pods it has.
        theirs: String,
        /// The keeper's socket.
        path: PathBuf,
    },
    /// It is of another generation.
    #[error(
        "process {pid}, which keeps this node's pods, is podwire {version} and speaks protocol {protocol}, this \
         program speaks {PROTOCOL} (start the node with podwire {version} and detach the pods, or end that process: \
         its pods lose their network)"
    )]
    Version {
        /// The keeper.
        pid: u32,
        /// Its protocol.
        protocol: u32,
        /// Its version.
        version: String,
    },
    /// Whether there is one cannot be found out.
    #[error(
        "the keeper of this node's pods at {} cannot be reached: {source} (start the node again; its pods are kept \
         meanwhile)",
        path.display()
    )]
    Unknown {
        /// The keeper's socket.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// This process may not open them all.
    #[error(
        "the pods that process {pid} keeps for this node at {} have more files than it may open (raise `ulimit -n` \
         where it is started, and start it again; its pods are kept meanwhile)",
        path.display()
    )]
    Files {
        /// The keeper.
        pid: u32,
        /// The keeper's socket.
        path: PathBuf,
    },
    /// It does not answer as it should.
    #[error(
        "process {pid}, which keeps this node's pods at {}, does not answer: {what} (end it: its pods lose their \
         network)",
        path.display()
    )]
    Silent {
        /// The keeper.
        pid: u32,
        /// The keeper's socket.
        path: PathBuf,
        /// What was seen.
        what: String,
    },
}

/// A keeper, and what it keeps.
#[derive(Debug)]
pub struct Taken {
    /// The keeper.
    pub link: Link,
    /// The pods.
    pub pods: Vec<Held>,
    /// Its version of podwire.
    pub version: String,
}

/// A keeper this node speaks to; never waits.
#[derive(Debug)]
pub struct Link {
    wire: Packets,
    /// Readable when its process has ended, and all it had is closed.
    pidfd: OwnedFd,
    /// To be awaited, when it is this process's own.
    child: Option<Child>,
    /// What the kernel had no room for yet.
    outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// How many answers are due, and since when none has come.
    due: usize,
    since: Instant,
}

/// What a keeper answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The pod's descriptors are closed there.
    Forgotten(PodName),
    /// The pod is kept.
    Kept(PodName),
    /// The pod is not kept, for this reason.
    Unkept(PodName, String),
    /// It listens beside the admin socket.
    Published,
    /// It cannot, for this reason.
    Unpublished(String),
}

/// Get the pods that are kept at `path` for `node`; none when there is no keeper. Waits a second for each answer.
///
/// # Errors
/// [`TakeError`]: the pods are there, and this node cannot have them.
pub fn take(path: &Path, node: &str) -> Result<Option<Taken>, TakeError> {
    let begun = Instant::now();
    loop {
        match take_once(path, node) {
            // The kernel may be closing what an earlier node had, which was killed.
            Err(TakeError::Busy { .. }) if begun.elapsed() < EARLIER => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

fn take_once(path: &Path, node: &str) -> Result<Option<Taken>, TakeError> {
    let connected = connect(path).map_err(|source| TakeError::Unknown {
        path: path.into(),
        source,
    });
    let Some((wire, pid)) = connected? else {
        return Ok(None);
    };
    let silent = |what: &dyn std::fmt::Display| TakeError::Silent {
        pid,
        path: path.into(),
        what: what.to_string(),
    };
    let files = || TakeError::Files {
        pid,
        path: path.into(),
    };
    // Before anything is said: a process that has ended meanwhile has no pods.
    let pidfd = match pidfd(pid) {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::EMFILE) => return Err(files()),
        other => other.map_err(|e| silent(&e))?,
    };
    let hello = ToKeeper::Hello {
        protocol: PROTOCOL,
        node: node.into(),
    };
    if let Err(e) = wire.send(&serde_json::to_vec(&hello).unwrap_or_default(), &[]) {
        return gone_or(&pidfd, silent(&e));
    }
    let mut version = None;
    let mut pods = Vec::new();
    loop {
        let packet = match wire.receive() {
            Ok(packet) => packet,
            Err(e) => return gone_or(&pidfd, silent(&e)),
        };
        match serde_json::from_slice(&packet.bytes).map_err(|e| silent(&e))? {
            FromKeeper::Busy { pid } => {
                return Err(TakeError::Busy {
                    node: node.into(),
                    pid,
                    path: path.into(),
                });
            }
            FromKeeper::Hello {
                protocol, version, ..
            } if protocol != PROTOCOL => {
                return Err(TakeError::Version {
                    pid,
                    protocol,
                    version,
                });
            }
            FromKeeper::Hello { node: theirs, .. } if theirs != node => {
                return Err(TakeError::Other {
                    pid,
                    theirs,
                    path: path.into(),
                });
            }
            FromKeeper::Hello { version: v, .. } => version = Some(v),
            FromKeeper::Pod(parcel) => {
                let pod = parcel.record.pod.clone();
                if packet.short {
                    return Err(files());
                }
                let held = parcel
                    .open(packet.fds)
                    .ok_or_else(|| silent(&format!("the descriptors of pod {pod} are not as announced")))?;
                pods.push(held);
            }
            FromKeeper::All => break,
            other => return Err(silent(&format!("{other:?}"))),
        }
    }
    let version = version.ok_or_else(|| silent(&"it did not greet"))?;
    rustix::io::ioctl_fionbio(&wire, true).map_err(|e| silent(&e))?;
    Ok(Some(Taken {
        link: Link::new(wire, pidfd, None),
        pods,
        version,
    }))
}

/// A connection to whoever of this user listens at `path`, and its process; nobody waits there for more than a second.
///
/// # Errors
/// Anything but that nobody is there: pods may be kept, and this process has no descriptor left to ask for them.
fn connect(path: &Path) -> io::Result<Option<(Packets, u32)>> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // Before it is connected: one with a full backlog would be waited for.
    for side in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        sockopt::set_socket_timeout(&socket, side, Some(PATIENCE))?;
    }
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => {}
        Err(Errno::NOENT | Errno::CONNREFUSED | Errno::NOTDIR) => return Ok(None),
        Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
        Err(e) => return Err(e.into()),
    }
    let wire = Packets::new(socket);
    match wire.of_this_user() {
        Ok(pid) => Ok(Some((wire, pid))),
        Err((pid, uid)) => {
            log::warn!(
                "process {pid} of the user with id {uid} listens at {}, and is not asked for pods",
                path.display()
            );
            Ok(None)
        }
    }
}

/// Nothing, when the process is gone and its pods with it; otherwise the error.
fn gone_or(pidfd: &OwnedFd, e: TakeError) -> Result<Option<Taken>, TakeError> {
    if ended(pidfd, PATIENCE / 10) {
        Ok(None)
    } else {
        Err(e)
    }
}

/// Start a keeper for `node` without pods. It ends when this process lets go of it before it is published.
///
/// # Errors
/// What the kernel says.
pub fn spawn(program: &Path, node: &str) -> io::Result<Link> {
    let (near, far) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&near, true)?;
    // It shares nothing that somebody may wait for the end of: neither a log's pipe nor a directory's mount.
    let mut child = Command::new(program)
        .arg0("podwire")
        .args([VERB, node])
        .stdin(far)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()?;
    match pidfd(child.id()) {
        Ok(pidfd) => {
            let mut link = Link::new(Packets::new(near), pidfd, Some(child));
            link.say(&ToKeeper::Hello {
                protocol: PROTOCOL,
                node: node.into(),
            });
            Ok(link)
        }
        Err(e) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(e)
        }
    }
}

impl Link {
    fn new(wire: Packets, pidfd: OwnedFd, child: Option<Child>) -> Link {
        Link {
            wire,
            pidfd,
            child,
            outbox: VecDeque::new(),
            due: 0,
            since: Instant::now(),
        }
    }

    /// Its process, when it is this process's child.
    #[cfg(test)]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The number of its socket, for the poller.
    pub fn as_raw(&self) -> RawFd {
        self.wire.as_fd().as_raw_fd()
    }

    /// The descriptor that becomes readable when its process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Have a pod kept.
    ///
    /// # Errors
    /// This process may open no more files: the keeper was not asked then.
    pub fn keep(
        &mut self,
        record: &Record,
        tap: BorrowedFd<'_>,
        process: Option<BorrowedFd<'_>>,
        lifeline: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let parcel = Parcel {
            record: record.clone(),
            process: process.is_some(),
            lifeline: lifeline.is_some(),
        };
        let fds: Vec<_> = [Some(tap), process, lifeline].into_iter().flatten().collect();
        self.send(&ToKeeper::Keep(Box::new(parcel)), &fds)
    }

    /// Have a pod let go.
    pub fn forget(&mut self, pod: &PodName) {
        self.say(&ToKeeper::Forget { pod: pod.clone() });
    }

    /// Have it listen at `path`.
    pub fn publish(&mut self, path: &Path) {
        self.say(&ToKeeper::Publish { path: path.into() });
    }

    /// Have it let go of everything and end.
    pub fn end(&mut self) {
        self.say(&ToKeeper::End);
    }

    /// Kill it: whoever is killed answers no more, and its end is seen at [`Link::pidfd`].
    pub fn kill(&mut self) {
        // Fails only when it has ended.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.outbox.clear();
        self.due = 0;
    }

    /// Wait until its process has ended, and is buried; whether it has.
    pub fn await_end(&mut self, patience: Duration) -> bool {
        let ended = ended(&self.pidfd, patience);
        if let (true, Some(child)) = (ended, &mut self.child) {
            // At once: it has ended.
            let _ = child.wait();
        }
        ended
    }

    /// Wait until all is sent; whether it is.
    pub fn finish(&mut self, patience: Duration) -> bool {
        let begun = Instant::now();
        while self.go_on().is_ok() {
            if !self.is_full() {
                return true;
            }
            if begun.elapsed() >= patience {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// Whether it has answered everything.
    pub fn has_answered(&self) -> bool {
        self.due == 0
    }

    /// Whether something is still to be sent.
    pub fn is_full(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// When it must have answered; none while nothing is due.
    pub fn deadline(&self) -> Option<Instant> {
        (self.due > 0).then(|| self.since + PATIENCE)
    }

    /// Send what there was no room for, and take the answers there are.
    ///
    /// # Errors
    /// It has hung up, or speaks in riddles: to be killed.
    pub fn go_on(&mut self) -> Result<Vec<Answer>, String> {
        self.flush()?;
        let mut answers = Vec::new();
        loop {
            let packet = match self.wire.receive() {
                Ok(packet) => packet,
                Err(Broken::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.to_string()),
            };
            self.since = Instant::now();
            let answer = match serde_json::from_slice(&packet.bytes).map_err(|e| e.to_string())? {
                FromKeeper::Hello { protocol, .. } if protocol == PROTOCOL => continue,
                FromKeeper::All => None,
                FromKeeper::Kept { pod } => Some(Answer::Kept(pod)),
                FromKeeper::Forgotten { pod } => Some(Answer::Forgotten(pod)),
                FromKeeper::Refused { pod: Some(pod), why } => Some(Answer::Unkept(pod, why)),
                FromKeeper::Published => Some(Answer::Published),
                FromKeeper::Refused { pod: None, why } => Some(Answer::Unpublished(why)),
                other => return Err(format!("an answer to nothing: {other:?}")),
            };
            self.due = self.due.saturating_sub(1);
            answers.extend(answer);
        }
        self.flush()?;
        Ok(answers)
    }

    /// Say something that needs no descriptors.
    fn say(&mut self, what: &ToKeeper) {
        // Only copies of descriptors can fail.
        let _ = self.send(what, &[]);
    }

    fn send(&mut self, what: &ToKeeper, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(what).unwrap_or_default();
        let sent = self.outbox.is_empty() && self.wire.send(&bytes, fds).is_ok();
        if !sent {
            // Full, or broken: that is seen when it is tried again.
            let copies: io::Result<Vec<OwnedFd>> = fds.iter().map(|fd| fd.try_clone_to_owned()).collect();
            self.outbox.push_back((bytes, copies?));
        }
        if self.due == 0 {
            self.since = Instant::now();
        }
        self.due += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        while let Some((bytes, fds)) = self.outbox.front() {
            let beside: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match self.wire.send(bytes, &beside) {
                Ok(()) => drop(self.outbox.pop_front()),
                // ETOOMANYREFS: as many of the user's descriptors are under way as may be.
                Err(e)
                    if e.kind() == io::ErrorKind::WouldBlock
                        || e.raw_os_error() == Some(libc::ETOOMANYREFS) =>
                {
                    break;
                }
                Err(e) => return Err(e.to_string()),
            }
        }
        Ok(())
    }
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Whether the process of `pidfd` ends within `patience`.
fn ended(pidfd: &OwnedFd, patience: Duration) -> bool {
    let begun = Instant::now();
    loop {
        let left = patience.saturating_sub(begun.elapsed());
        let left = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        });
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.is_ok_and(|n| n > 0),
        }
    }
}
