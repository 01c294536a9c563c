//! The keeper: a small process that keeps the pods while their node is away.
//!
//! A pod's interface lives as long as somebody has its TAP open. So that a node that is killed does not take its
//! pods along, a process of its own has a second descriptor of each TAP, of what tells the end of the process that
//! holds the pod's namespace, and of the pod's lifeline, together with the pod's [`Record`]. The next start of the
//! node gets them all, over the socket beside the admin socket, and goes on where the last one ended.
//!
//! ```text
//!  node                                  keeper (podwire __keeper NODE)
//!    | == spawn, a socket as stdin =====> |  a session of its own
//!    | -- Hello ------------------------> |
//!    | <----------------- Hello, All ---- |  no pods yet
//!    | -- Publish(path) ----------------> |  listens beside the admin socket
//!    | -- Keep(record) + descriptors ---> |  before the client is told that the pod is attached
//!    | -- Forget(pod) ------------------> |
//!    | <-------------------- Forgotten -- |  only then the node closes its TAP, as the last
//!    x  killed                            |
//!  next start                             |
//!    | == connect ======================> |
//!    | -- Hello ------------------------> |
//!    | <- Hello, Pod + descriptors, All - |
//! ```
//!
//! Each message is one packet of JSON, its descriptors beside it (SCM_RIGHTS), which works for any user: nothing is
//! left in the kernel that needs rights to be found again, as a persistent TAP would. Once a packet is sent the kernel
//! holds its descriptors, so that a node need not await the answer: it may be killed at once.
//!
//! Nothing is kept for nobody. A keeper serves one node at a time; it ends when its node does in good order, when it has neither
//! node nor pods, and when it has no node and its socket was removed. Without a node it lets go of pods whose process
//! has ended. The node kills one that does not answer, and starts another when it ends, which then gets all pods; so
//! it also replaces one of another version once it has the pods. Until it is published a new one is nobody's but its
//! node's: at each moment there is one at the socket that has all pods. When a new one comes to nothing, the one that was
//! to be replaced is told everything again, and to be at the socket; and one that outlives its node before it is published
//! leaves that place to whoever is there.

pub mod keeping;
pub mod link;
mod process;

pub use process::{VERB, main};

use crate::model::{Attachment, Labels, Mac, NamedPort, PodMtu, PodName, PodState, PortMapping, TapCaps};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Version of the conversation, raised when a message changes incompatibly. Fields may be added at any time.
pub const PROTOCOL: u32 = 1;

/// What outlives the node of a pod.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The pod's name.
    pub pod: PodName,
    /// Name of its interface, as it was made.
    pub ifname: String,
    /// Path of its namespace, when attached by path.
    pub netns: Option<PathBuf>,
    /// What was at that path, see [`super::watch::id`].
    pub netns_id: Option<(u64, u64)>,
    /// The process that holds its namespace, when known.
    pub holder: Option<u32>,
    /// Its IPv4 address, with the length of the node's subnet then.
    pub ip4: Option<Ipv4Net>,
    /// Its IPv6 address, with the length of the node's subnet then.
    pub ip6: Option<Ipv6Net>,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: PodMtu,
    /// What its TAP accepts.
    pub caps: TapCaps,
    /// When it was attached, in microseconds since the machine's boot.
    pub since_us: i64,
    /// What a container runtime calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// Its other names in its namespace, of DNS only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Its published ports; what is published for as long as a client is there is not among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<PortMapping>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Its ports that have names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NamedPort>,
    /// Whether it is there for others.
    #[serde(default)]
    pub state: PodState,
    /// When its port is removed, in microseconds since the machine's boot, when it drains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_until_us: Option<i64>,
}

/// A pod with its descriptors.
#[derive(Debug)]
pub struct Held {
    /// What is known of it.
    pub record: Record,
    /// Its TAP.
    pub tap: OwnedFd,
    /// A pidfd of the process that holds its namespace.
    pub process: Option<OwnedFd>,
    /// What keeps the pause process of a pod that podwire made.
    pub lifeline: Option<OwnedFd>,
}

/// A record on its way; the descriptors beside it are the TAP and, where it says so, the two others in this order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Parcel {
    record: Record,
    process: bool,
    lifeline: bool,
}

impl Parcel {
    /// The pod, when the descriptors are as announced.
    fn open(self, fds: Vec<OwnedFd>) -> Option<Held> {
        let mut fds = fds.into_iter();
        let tap = fds.next()?;
        let process = if self.process { Some(fds.next()?) } else { None };
        let lifeline = if self.lifeline { Some(fds.next()?) } else { None };
        let record = self.record;
        fds.next().is_none().then_some(Held {
            record,
            tap,
            process,
            lifeline,
        })
    }
}

/// What a node says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum ToKeeper {
    /// The first message of each connection. Answered by `Hello`, a `Pod` for each, and `All`; or by `Busy`.
    Hello {
        /// The node's [`PROTOCOL`].
        protocol: u32,
        /// Its name.
        node: String,
    },
    /// Keep this pod, instead of one of the same name. Answered by `Kept` or `Refused`.
    Keep(Box<Parcel>),
    /// Let go of this pod, if it is there. Answered by `Forgotten`.
    Forget {
        /// The pod.
        pod: PodName,
    },
    /// Be the keeper of this path. Answered by `Published` or `Refused`.
    Publish {
        /// The socket.
        path: PathBuf,
    },
    /// Let go of everything, and end.
    End,
}

/// What a keeper says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum FromKeeper {
    /// The answer to a node's hello.
    Hello {
        /// The keeper's [`PROTOCOL`].
        protocol: u32,
        /// Its version of podwire.
        version: String,
        /// The node it keeps the pods of.
        node: String,
    },
    /// A node is served already.
    Busy {
        /// Its process.
        pid: u32,
    },
    /// A pod that is kept.
    Pod(Box<Parcel>),
    /// That was the last.
    All,
    /// The pod is kept.
    Kept {
        /// The pod.
        pod: PodName,
    },
    /// The pod is not kept, and its descriptors are closed here.
    Forgotten {
        /// The pod.
        pod: PodName,
    },
    /// The socket is there.
    Published,
    /// What was asked is not done.
    Refused {
        /// The pod it was about.
        pod: Option<PodName>,
        /// Why.
        why: String,
    },
}

/// Where the keeper of the node whose admin socket is at `socket` listens: `n1.keep` beside `n1.sock`.
pub fn beside(socket: &Path) -> PathBuf {
    match socket.extension() {
        Some(e) if e == "sock" => socket.with_extension("keep"),
        _ => {
            let mut name = socket.as_os_str().to_os_string();
            name.push(".keep");
            name.into()
        }
    }
}

/// The longest path that this takes: that of a new keeper's socket, before it takes its place.
pub fn longest(socket: &Path) -> PathBuf {
    newcomer(&beside(socket))
}

fn newcomer(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push("~");
    name.into()
}

#[cfg(test)]
mod tests;
