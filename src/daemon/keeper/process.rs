//! The keeper's own process: one thread, that sleeps until the node, a newcomer or a pod's process does something.

use super::{FromKeeper, Held, PROTOCOL, Parcel, ToKeeper, newcomer};
use crate::api::Broken;
use crate::api::packet::{Packet, Packets};
use crate::model::PodName;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The hidden verb: `podwire __keeper NODE`, with a socket to the node as stdin.
pub const VERB: &str = "__keeper";

/// How long a newcomer that is turned away may take to greet.
const COURTESY: Duration = Duration::from_millis(100);
/// Most pods: as many as a node has ports.
const MAX_PODS: usize = 1 << 16;
/// How often, and how soon, descriptors are sent again that the kernel did not take for there being too many.
const RETRIES: usize = 100;
const RETRY: Duration = Duration::from_millis(10);
/// How often a keeper without a node looks whether its socket is there.
const LOOK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Body of the hidden command.
pub fn main(node: &str) -> ExitCode {
    // Away from the terminal's process group: Ctrl-C is for the node.
    let _ = rustix::process::setsid();
    // It was started by a name that says nothing (/proc/self/exe).
    let _ = rustix::thread::set_name(c"podwire");
    // The socket is never open to others.
    rustix::process::umask(Mode::from_raw_mode(0o177));
    let Ok(stdin) = io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    // The other side may be the only one to close it.
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, Mode::empty());
    if null.and_then(|null| rustix::stdio::dup2_stdin(&null)).is_err() {
        return ExitCode::FAILURE;
    }
    serve(node, stdin);
    ExitCode::SUCCESS
}

/// Keep pods for `node`, at first the one at the other end of `link`, until there is no need any more.
pub fn serve(node: &str, link: OwnedFd) {
    Keeper {
        node: node.into(),
        link: Some(Link::new(link)),
        door: None,
        pods: BTreeMap::new(),
    }
    .run();
}

struct Keeper {
    node: String,
    link: Option<Link>,
    /// Where the next node comes in, once it is published.
    door: Option<Door>,
    pods: BTreeMap<PodName, Held>,
}

/// The node that is served. Its socket waits: who does not read is not served further.
struct Link {
    wire: Packets,
    /// Whether it has said hello, and shall not make way for another.
    greeted: bool,
}

impl Link {
    fn new(socket: OwnedFd) -> Link {
        Link {
            wire: Packets::new(socket),
            greeted: false,
        }
    }
}

/// What there is to do next.
enum Next {
    Say,
    Newcomer,
    /// This pod's process has ended.
    Over(PodName),
    /// A second has passed without a node.
    Look,
}

impl Keeper {
    fn run(mut self) {
        while let Ok(next) = self.wait() {
            let go_on = match next {
                Next::Say => self.listen(),
                Next::Newcomer => {
                    self.let_in();
                    true
                }
                // One at a time: the last one to close a TAP waits for the kernel, and a node may be at the door.
                Next::Over(pod) => {
                    self.pods.remove(&pod);
                    true
                }
                Next::Look => self.door.as_ref().is_some_and(Door::is_there),
            };
            let wanted = self.link.is_some() || (self.door.is_some() && !self.pods.is_empty());
            if !go_on || !wanted {
                return;
            }
        }
    }

    /// What comes first; a node at the door before the end of pods.
    fn wait(&self) -> io::Result<Next> {
        let mut all: Vec<(BorrowedFd<'_>, Next)> = Vec::new();
        all.extend(self.link.as_ref().map(|l| (l.wire.as_fd(), Next::Say)));
        all.extend(self.door.as_ref().map(|d| (d.socket.as_fd(), Next::Newcomer)));
        // While there is a node, that is its business.
        let unwatched = self.pods.iter().filter(|_| self.link.is_none());
        all.extend(unwatched.filter_map(|(pod, held)| {
            let process = held.process.as_ref()?;
            Some((process.as_fd(), Next::Over(pod.clone())))
        }));
        let mut fds: Vec<PollFd<'_>> = all.iter().map(|(fd, _)| PollFd::new(fd, PollFlags::IN)).collect();
        let patience = self.link.is_none().then_some(&LOOK);
        loop {
            match poll(&mut fds, patience) {
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
                Ok(_) => break,
            }
        }
        let ready = fds.iter().position(|fd| !fd.revents().is_empty());
        Ok(ready.map_or(Next::Look, |at| all.swap_remove(at).1))
    }

    /// Take one message of the node; `false` when it asks for the end.
    fn listen(&mut self) -> bool {
        let Some(link) = &mut self.link else {
            return true;
        };
        let outcome = link.wire.receive().and_then(|packet| {
            // What is no message comes from no node.
            let said = serde_json::from_slice(&packet.bytes).map_err(|e| Broken::Io(e.into()))?;
            Ok((said, packet))
        });
        let (said, packet) = match outcome {
            Ok(heard) => heard,
            // The node was killed with answers unread. What it had said before is still to be heard.
            Err(Broken::Io(e)) if is_reset(&e) => return true,
            Err(_) => {
                self.link = None;
                return true;
            }
        };
        let answers = match said {
            ToKeeper::End => return false,
            ToKeeper::Hello { .. } => {
                link.greeted = true;
                self.give_all()
            }
            ToKeeper::Keep(parcel) => self.keep(*parcel, packet),
            ToKeeper::Forget { pod } => {
                self.pods.remove(&pod);
                self.say(&FromKeeper::Forgotten { pod }, &[])
            }
            // Who waits at the door shall not be turned away.
            ToKeeper::Publish { path } if self.is_at(&path) => self.say(&FromKeeper::Published, &[]),
            // The next node has found the keeper that was to be replaced, or will: that has all pods.
            ToKeeper::Publish { path } if self.is_alone() && is_served(&path) => return false,
            ToKeeper::Publish { path } => {
                let answer = match Door::open(&path) {
                    Ok(door) => {
                        self.door = Some(door);
                        FromKeeper::Published
                    }
                    Err(e) => FromKeeper::Refused {
                        pod: None,
                        why: format!("{} cannot be made: {e}", path.display()),
                    },
                };
                self.say(&answer, &[])
            }
        };
        if answers.is_err_and(|e| !is_reset(&e)) {
            self.link = None;
        }
        true
    }

    /// Whether this is the keeper of `path`.
    fn is_at(&self, path: &Path) -> bool {
        self.door.as_ref().is_some_and(|d| d.path == path && d.is_there())
    }

    /// Whether the node is gone, though not all that it said is read yet.
    fn is_alone(&self) -> bool {
        self.link.as_ref().is_none_or(|link| {
            let mut fds = [PollFd::new(&link.wire, PollFlags::IN)];
            poll(&mut fds, Some(&AT_ONCE)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
        })
    }

    fn give_all(&self) -> io::Result<()> {
        let hello = FromKeeper::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            node: self.node.clone(),
        };
        self.say(&hello, &[])?;
        for held in self.pods.values() {
            let parcel = FromKeeper::Pod(Box::new(Parcel {
                record: held.record.clone(),
                process: held.process.is_some(),
                lifeline: held.lifeline.is_some(),
            }));
            let fds = [Some(&held.tap), held.process.as_ref(), held.lifeline.as_ref()];
            let fds: Vec<_> = fds.into_iter().flatten().map(AsFd::as_fd).collect();
            self.say(&parcel, &fds)?;
        }
        self.say(&FromKeeper::All, &[])
    }

    fn keep(&mut self, parcel: Parcel, packet: Packet) -> io::Result<()> {
        let pod = parcel.record.pod.clone();
        let refuse = |why: &str| FromKeeper::Refused {
            pod: Some(pod.clone()),
            why: why.into(),
        };
        let answer = if packet.short {
            refuse("the keeper may open no more files (raise `ulimit -n` where the node is started)")
        } else if self.pods.len() >= MAX_PODS && !self.pods.contains_key(&pod) {
            refuse("the keeper has as many pods as there can be")
        } else if let Some(held) = parcel.open(packet.fds) {
            self.pods.insert(pod.clone(), held);
            FromKeeper::Kept { pod: pod.clone() }
        } else {
            refuse("its descriptors are not as announced")
        };
        self.say(&answer, &[])
    }

    fn say(&self, what: &FromKeeper, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let link = self.link.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let bytes = serde_json::to_vec(what)?;
        let mut sent = link.wire.send(&bytes, fds);
        // As many of the user's descriptors are under way as may be: other nodes' too, which take them soon.
        for _ in 0..RETRIES {
            match &sent {
                Err(e) if e.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                    std::thread::sleep(RETRY);
                    sent = link.wire.send(&bytes, fds);
                }
                _ => break,
            }
        }
        sent
    }

    /// Serve the newcomer, unless another node is served.
    fn let_in(&mut self) {
        let Some(door) = &self.door else {
            return;
        };
        let socket = match rustix::net::accept_with(&door.socket, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(_) => {
                // Out of descriptors, mostly: whoever waits at the door shall not keep the processor busy.
                std::thread::sleep(Duration::from_millis(10));
                return;
            }
        };
        let new = Link::new(socket);
        if new.wire.of_this_user().is_err() {
            return;
        }
        match &self.link {
            Some(old) if old.greeted => {
                let pid = old.wire.of_this_user().unwrap_or_default();
                // What is not read when a socket is closed takes the answer along.
                let short = sockopt::set_socket_timeout(&new.wire, sockopt::Timeout::Recv, Some(COURTESY));
                if short.is_err() || new.wire.receive().is_err() {
                    return;
                }
                if let Ok(busy) = serde_json::to_vec(&FromKeeper::Busy { pid }) {
                    let _ = new.wire.send(&busy, &[]);
                }
            }
            _ => self.link = Some(new),
        }
    }
}

/// Whether somebody listens at `path`.
fn is_served(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let connect = |socket| rustix::net::connect(socket, &SocketAddrUnix::new(path)?);
    // EAGAIN: many are at the door already.
    socket.is_ok_and(|socket| matches!(connect(socket), Ok(()) | Err(Errno::AGAIN)))
}

/// Whether nobody is at the other end any more: what came from there may be read still, then its end.
fn is_reset(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// The socket at which the next node finds the pods; removed at the end, unless somebody replaced it.
struct Door {
    socket: OwnedFd,
    path: PathBuf,
    id: (u64, u64),
}

impl Door {
    /// Listen at `path`, in place of whatever socket is there.
    fn open(path: &Path) -> io::Result<Door> {
        let new = newcomer(path);
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        // Left by one that was killed just here; there is one node at a time.
        match std::fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        rustix::net::bind(&socket, &SocketAddrUnix::new(&new)?)?;
        let placed = rustix::net::listen(&socket, 8)
            .map_err(io::Error::from)
            .and_then(|()| id(&new))
            .and_then(|id| std::fs::rename(&new, path).map(|()| id));
        match placed {
            Ok(id) => Ok(Door {
                socket,
                path: path.into(),
                id,
            }),
            Err(e) => {
                let _ = std::fs::remove_file(&new);
                Err(e)
            }
        }
    }

    fn is_there(&self) -> bool {
        id(&self.path).is_ok_and(|id| id == self.id)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}
