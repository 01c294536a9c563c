//! Namespaces: naming, opening, entering and making them.
//!
//! Entering a user namespace is allowed to single-threaded processes only and has no way back, so the
//! commands that do it are processes of their own (`podwire attach`, or the hidden ones of `pod`).
#![allow(unsafe_code)]

use super::rights::{self, Whose};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where `ip netns add` keeps names.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// A network namespace, as people name it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// The file that holds it.
    Path(PathBuf),
    /// A process that lives in it.
    Pid(u32),
}

/// Why a namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NsError {
    /// Nothing of that name.
    #[error("there is no network namespace {0} (`ip netns` lists named ones; a path or --pid names any)")]
    Missing(String),
    /// No such process.
    #[error("there is no process {0} (its pod has ended)")]
    NoProcess(u32),
    /// The file is something else.
    #[error(
        "{0} is not a network namespace (name a file like /run/netns/NAME or /proc/PID/ns/net; an empty file \
         there means that the namespace is gone)"
    )]
    NotNetns(String),
    /// It belongs to somebody else.
    #[error("entering {0} is not permitted (run this as the user who made it, or as root)")]
    Permission(String),
    /// Its programs are another user's, and would get what counts outside.
    #[error(
        "no command is run in {label}: the programs there are another user's, and would get {what} that you have \
         outside (run this as that user, or let the user namespace be made with `unshare --map-root-user`)"
    )]
    Rights {
        /// The namespaces.
        label: String,
        /// What cannot be left behind.
        what: &'static str,
    },
    /// A system call failed for another reason.
    #[error("entering {label} failed: {call}: {source}")]
    Call {
        /// The namespace.
        label: String,
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl FromStr for Target {
    type Err = NsError;

    /// A word with a slash is a path, another one a name that `ip netns add` made.
    fn from_str(s: &str) -> Result<Target, NsError> {
        if s.contains('/') {
            return Ok(Target::Path(s.into()));
        }
        let mut places = NAMED.iter().map(|dir| Path::new(dir).join(s));
        let found = places.find(|p| !s.is_empty() && s != "." && s != ".." && p.exists());
        found.map(Target::Path).ok_or_else(|| NsError::Missing(s.into()))
    }
}

impl Target {
    fn label(&self) -> String {
        match self {
            Target::Path(p) => p.display().to_string(),
            Target::Pid(p) => format!("the network namespace of process {p}"),
        }
    }
}

/// An open network namespace.
#[derive(Debug)]
pub struct NetNs {
    net: OwnedFd,
    holder: Option<OwnedFd>,
    label: String,
}

impl NetNs {
    /// Open the namespace that `target` names.
    ///
    /// # Errors
    /// [`NsError::Missing`], [`NsError::NoProcess`], [`NsError::NotNetns`] and [`NsError::Permission`].
    pub fn open(target: &Target) -> Result<NetNs, NsError> {
        let label = target.label();
        let holder = match target {
            Target::Path(_) => None,
            Target::Pid(pid) => Some(pidfd(*pid)?),
        };
        let path = match target {
            Target::Path(path) => path.clone(),
            Target::Pid(pid) => format!("/proc/{pid}/ns/net").into(),
        };
        let net = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let net = net.map_err(|e| match (e, target) {
            (rustix::io::Errno::NOENT, Target::Pid(pid)) => NsError::NoProcess(*pid),
            (rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR, _) => NsError::Missing(label.clone()),
            _ => call_error(&label, "open", e.into()),
        })?;
        // SAFETY: NS_GET_NSTYPE takes no argument; on anything but a namespace it fails with ENOTTY.
        let kind = unsafe { libc::ioctl(net.as_raw_fd(), libc::NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(NsError::NotNetns(label));
        }
        // The number may have passed to another process before the file was opened; the pidfd tells.
        if let (Some(holder), Target::Pid(pid)) = (&holder, target)
            && ended(holder.as_fd())
        {
            return Err(NsError::NoProcess(*pid));
        }
        Ok(NetNs { net, holder, label })
    }

    /// A new one with nothing in it, owned by the user namespace of the caller, who must be root there. It
    /// lives as long as this, or a process or socket in it.
    ///
    /// # Errors
    /// [`NsError::Permission`].
    pub fn make() -> Result<NetNs, NsError> {
        let label = "a new network namespace".to_string();
        let own = current(&label)?;
        // SAFETY: unshare is unsafe because of CLONE_FILES, which is not asked for.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(|e| call_error(&label, "unshare", e.into()))?;
        let net = current(&label);
        back_to(&own, &label)?;
        Ok(NetNs {
            net: net?,
            holder: None,
            label,
        })
    }

    /// Do `work` with the calling thread in it. Sockets and processes made there stay in it.
    ///
    /// # Errors
    /// [`NsError::Permission`] when the caller has no rights over it.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> Result<T, NsError> {
        let own = current(&self.label)?;
        self.enter()?;
        let result = work();
        back_to(&own, &self.label)?;
        Ok(result)
    }

    /// A pidfd of the process that was named, when one was.
    pub fn holder(&self) -> Option<BorrowedFd<'_>> {
        self.holder.as_ref().map(AsFd::as_fd)
    }

    /// Device and inode of its file, which tell it from others as long as it lives.
    pub fn id(&self) -> Option<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.net).ok()?;
        Some((stat.st_dev, stat.st_ino))
    }

    /// Its descriptor, for netlink.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }

    /// Move the calling thread into it, through the user namespace that owns it when that is needed.
    ///
    /// # Errors
    /// [`NsError::Permission`] when neither works.
    pub fn enter(&self) -> Result<(), NsError> {
        let into_net =
            || rustix::thread::move_into_link_name_space(self.net.as_fd(), Some(LinkNameSpaceType::Network));
        // Whoever has CAP_SYS_ADMIN here and over the owner (root, mostly) goes straight in.
        match into_net() {
            Err(rustix::io::Errno::PERM) => {}
            other => return other.map_err(|e| call_error(&self.label, "setns", e.into())),
        }
        let owner = self.owner()?;
        if same(owner.as_fd(), "user").unwrap_or(false) {
            return Err(NsError::Permission(self.label.clone()));
        }
        rustix::thread::move_into_link_name_space(owner.as_fd(), Some(LinkNameSpaceType::User))
            .map_err(|e| call_error(&self.label, "setns of its user namespace", e.into()))?;
        into_net().map_err(|e| call_error(&self.label, "setns", e.into()))
    }

    fn owner(&self) -> Result<OwnedFd, NsError> {
        // SAFETY: NS_GET_USERNS takes no argument and returns a new descriptor or -1.
        let raw = unsafe { libc::ioctl(self.net.as_raw_fd(), libc::NS_GET_USERNS) };
        if raw < 0 {
            // EPERM: the owner is outside of this user namespace.
            return Err(call_error(
                &self.label,
                "NS_GET_USERNS",
                io::Error::last_os_error(),
            ));
        }
        // SAFETY: the ioctl returned a descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(raw) })
    }
}

/// A descriptor for the process `pid`, which stays with it when the number is reused.
///
/// # Errors
/// [`NsError::NoProcess`].
pub fn pidfd(pid: u32) -> Result<OwnedFd, NsError> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid_t = raw.ok_or(NsError::NoProcess(pid))?;
    rustix::process::pidfd_open(pid_t, PidfdFlags::empty()).map_err(|e| match e {
        rustix::io::Errno::SRCH | rustix::io::Errno::INVAL => NsError::NoProcess(pid),
        _ => call_error(&format!("process {pid}"), "pidfd_open", e.into()),
    })
}

/// Whether the process of a pidfd has ended.
pub fn ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut polled = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec::default();
    matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(n) if n > 0)
}

/// Move the calling process into the user, mount, UTS, IPC and network namespaces of process `pid`, those
/// that differ from its own, and become root there if there is one. Whose programs are there.
///
/// In a pod of another user the process is that pod's root or this fails; its groups, session keyring and the
/// right to type into terminals stay behind, and its descriptors do so on exec. The environment is the
/// caller's to clear. The working directory is kept by its path, or is `/` when the pod has none of that name.
///
/// # Errors
/// [`NsError::NoProcess`] and [`NsError::Permission`], with nothing changed. After any other error the process
/// is of no more use, [`NsError::Rights`] above all.
pub fn join(pid: u32) -> Result<Whose, NsError> {
    let holder = pidfd(pid)?;
    let label = format!("the namespaces of process {pid}");
    let kinds = [
        ("user", ThreadNameSpaceType::USER),
        ("mnt", ThreadNameSpaceType::MOUNT),
        ("uts", ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
        ("ipc", ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
        ("net", ThreadNameSpaceType::NETWORK),
    ];
    let mut wanted = ThreadNameSpaceType::empty();
    for (file, kind) in kinds {
        let theirs = rustix::fs::stat(format!("/proc/{pid}/ns/{file}"));
        let theirs = theirs.map_err(|e| call_error(&label, "stat", e.into()))?;
        let ours = rustix::fs::stat(format!("/proc/self/ns/{file}"));
        let ours = ours.map_err(|e| call_error(&label, "stat", e.into()))?;
        // The kernel refuses to enter the user namespace one is in already.
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino) {
            wanted |= kind;
        }
    }
    if wanted.is_empty() {
        return Ok(Whose::Own);
    }
    let whose = match wanted.contains(ThreadNameSpaceType::USER) {
        true => whose(pid).map_err(|e| call_error(&label, "looking at its user namespace", e))?,
        false => Whose::Own,
    };
    if whose == Whose::Others {
        rights::keep_files().map_err(|e| call_error(&label, "open", e))?;
        // A user namespace may forbid it; whether it worked is seen in there.
        rights::leave_groups();
    }
    let cwd = std::env::current_dir();
    rustix::thread::move_into_thread_name_spaces(holder.as_fd(), wanted)
        .map_err(|e| call_error(&label, "setns", e.into()))?;
    match whose {
        Whose::Others => become_theirs().map_err(|what| NsError::Rights {
            label: label.clone(),
            what,
        })?,
        // Where there is no root, or groups cannot be left, they stay what they are.
        Whose::Own if wanted.contains(ThreadNameSpaceType::USER) => {
            rights::leave_groups();
            let _ = rights::become_root();
        }
        Whose::Own => {}
    }
    if wanted.contains(ThreadNameSpaceType::MOUNT) {
        let kept = cwd.and_then(std::env::set_current_dir);
        kept.or_else(|_| std::env::set_current_dir("/"))
            .map_err(|e| call_error(&label, "chdir", e))?;
    }
    Ok(whose)
}

/// Whose programs are in the user namespace of process `pid`.
fn whose(pid: u32) -> io::Result<Whose> {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/user"))?;
    let mut owner: libc::uid_t = 0;
    // SAFETY: NS_GET_OWNER_UID writes one uid_t through the pointer.
    let rc = unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_OWNER_UID, &raw mut owner) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    Ok(Whose::tell(&map, owner, rustix::process::geteuid().as_raw()))
}

/// Be root of a user namespace just entered, with nothing that counts outside; what cannot be left otherwise.
fn become_theirs() -> Result<(), &'static str> {
    let left = rights::leave_groups();
    rights::become_root()?;
    if !left {
        return Err("the supplementary groups");
    }
    rights::leave_keys().map_err(|_| "the session keyring")?;
    rights::leave_typing().map_err(|_| "the terminal")
}

/// Move the calling process into new user, network, mount, UTS and IPC namespaces.
///
/// # Errors
/// What the kernel says; EPERM or ENOSPC where user namespaces are forbidden or used up.
pub fn unshare_pod() -> io::Result<()> {
    let flags = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWIPC;
    // SAFETY: unshare is unsafe because of CLONE_FILES, which would split the descriptor table under other
    // owners of descriptors; it is not among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// Have the processes that the calling thread makes from now on be in a new PID namespace, for good. The first of them
/// is its init: the kernel kills all others when that one ends, whatever they did to get away.
///
/// # Errors
/// What the kernel says.
pub fn unshare_pids() -> io::Result<()> {
    // SAFETY: as in `unshare_pod`.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }.map_err(Into::into)
}

/// Give the calling process a /proc that shows the PID namespace it is in, in a mount namespace of its own.
///
/// # Errors
/// What the kernel says; EPERM where parts of the /proc that is there are covered, as containers have it.
pub fn own_proc() -> io::Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    // SAFETY: as in `unshare_pod`.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("proc", "/proc", "proc", flags, None)?)
}

/// Whether `fd` is the calling process's own namespace of that kind.
fn same(fd: BorrowedFd<'_>, kind: &str) -> io::Result<bool> {
    let theirs = rustix::fs::fstat(fd)?;
    let ours = rustix::fs::stat(format!("/proc/self/ns/{kind}"))?;
    Ok((theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino))
}

/// The network namespace of the calling thread.
fn current(label: &str) -> Result<OwnedFd, NsError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())
        .map_err(|e| call_error(label, "open", e.into()))
}

fn back_to(own: &OwnedFd, label: &str) -> Result<(), NsError> {
    rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|e| call_error(label, "setns back", e.into()))
}

fn call_error(label: &str, call: &'static str, source: io::Error) -> NsError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => NsError::Permission(label.into()),
        _ => NsError::Call {
            label: label.into(),
            call,
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_names_and_slashes_are_paths() {
        let path: Target = "/proc/self/ns/net".parse().unwrap();
        assert_eq!(path, Target::Path("/proc/self/ns/net".into()));
        let missing = "no-such-namespace".parse::<Target>().unwrap_err();
        assert!(missing.to_string().contains("ip netns"), "{missing}");
        for bad in ["", ".", ".."] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_network_namespaces_are_opened() {
        assert!(NetNs::open(&Target::Path("/proc/self/ns/net".into())).is_ok());
        let open = |p: &str| NetNs::open(&Target::Path(p.into())).unwrap_err();
        assert!(matches!(open("/proc/self/ns/uts"), NsError::NotNetns(_)));
        assert!(matches!(open("/dev/null"), NsError::NotNetns(_)));
        assert!(matches!(open("/nonexistent/x"), NsError::Missing(_)));
        let own = NetNs::open(&Target::Pid(std::process::id())).unwrap();
        assert!(own.holder().is_some_and(|h| !ended(h)));
        for gone in [0, 4_194_305, u32::MAX] {
            let e = NetNs::open(&Target::Pid(gone)).unwrap_err();
            assert!(matches!(e, NsError::NoProcess(_)), "{gone}: {e}");
        }
    }
}
