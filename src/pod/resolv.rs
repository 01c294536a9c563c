//! The resolv.conf of a pod that podwire makes: mounted over the host's, in the pod's own mount namespace.
//!
//! Files are the host's, so whoever replaces resolv.conf there (a network manager does at each change) takes away a
//! mount over it in every other namespace, and the pod would ask the host's loopback. So the pause watches the
//! directory and mounts it again. Where systemd-resolved keeps the file, its whole directory is covered instead, which
//! also keeps the C library from asking that by its socket, past the node; so it is with nscd.

use crate::sys::way::way;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where every program looks.
const PLACE: &str = "/etc/resolv.conf";
/// Where systemd-resolved has its socket and the files that [`PLACE`] is a link to.
const RESOLVED: &str = "/run/systemd/resolve";
/// Where nscd has its socket.
const NSCD: &str = "/run/nscd";
/// Directories one of which is there, to be covered for a moment.
const STAGES: [&str; 4] = ["/tmp", "/var/tmp", "/mnt", "/srv"];

/// A resolv.conf that stays in its place.
pub struct ResolvConf {
    text: String,
    /// Tells of changes around the file; none when the kernel gives no watch.
    watch: Option<OwnedFd>,
}

impl ResolvConf {
    /// Mount one with this text. The process must be root of its user namespace, in a mount namespace of its own.
    ///
    /// # Errors
    /// The step, and what the kernel said; the pod has the host's then.
    pub fn mount(text: String) -> Result<ResolvConf, (&'static str, io::Error)> {
        for dir in [RESOLVED, NSCD].iter().filter(|d| Path::new(d).is_dir()) {
            tmpfs(dir).map_err(|e| ("tmpfs", e))?;
        }
        for name in ["stub-resolv.conf", "resolv.conf"] {
            let file = Path::new(RESOLVED).join(name);
            if file.parent().is_some_and(Path::is_dir) {
                write(&file, &text).map_err(|e| ("write", e))?;
            }
        }
        let mut conf = ResolvConf { text, watch: None };
        conf.again()?;
        Ok(conf)
    }

    /// Keep it mounted until `lifeline` is cut.
    pub fn keep(mut self, lifeline: &mut (impl Read + AsFd)) {
        loop {
            let ready = {
                let mut fds = vec![PollFd::new(lifeline, PollFlags::IN)];
                fds.extend(self.watch.iter().map(|w| PollFd::new(w, PollFlags::IN)));
                match poll(&mut fds, None) {
                    Ok(_) | Err(Errno::INTR) => fds.iter().map(|f| !f.revents().is_empty()).collect(),
                    // There is no more to wait for than the lifeline.
                    Err(_) => vec![true],
                }
            };
            if ready.first() == Some(&true) {
                // Nobody writes; what comes all the same means nothing.
                match lifeline.read(&mut [0; 64]) {
                    Ok(0) => return,
                    Err(e) if e.kind() != io::ErrorKind::Interrupted => return,
                    _ => {}
                }
            }
            if ready.get(1) == Some(&true) {
                self.drain();
                // There may be none for a moment, while it is replaced: the next event is another chance.
                let _ = self.again();
            }
        }
    }

    /// Mount it where it is not.
    fn again(&mut self) -> Result<(), (&'static str, io::Error)> {
        // The watch comes first: what happens after the look is told.
        self.watch = watch().ok();
        if fs::read(PLACE).is_ok_and(|now| now == self.text.as_bytes()) {
            return Ok(());
        }
        let target = fs::canonicalize(PLACE).map_err(|e| ("find", e))?;
        let stage = stage(&target).ok_or(("stage", io::ErrorKind::NotFound.into()))?;
        tmpfs(stage).map_err(|e| ("tmpfs", e))?;
        let file = Path::new(stage).join("resolv.conf");
        let mounted = write(&file, &self.text)
            .map_err(|e| ("write", e))
            .and_then(|()| rustix::mount::mount_bind(&file, &target).map_err(|e| ("bind", e.into())));
        // The file lives on in its new place.
        let _ = rustix::mount::unmount(stage, UnmountFlags::DETACH);
        mounted
    }

    fn drain(&self) {
        let Some(watch) = &self.watch else {
            return;
        };
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(watch, &mut space);
        while matches!(reader.next(), Ok(_) | Err(Errno::INTR)) {}
    }
}

/// Watch the directories on the way to the file.
fn watch() -> io::Result<OwnedFd> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let what = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::ONLYDIR;
    for dir in way(Path::new(PLACE)).iter().filter(|p| p.is_dir()) {
        inotify::add_watch(&inotify, dir, what)?;
    }
    Ok(inotify)
}

/// A directory that may be covered while the file is made.
fn stage(target: &Path) -> Option<&'static str> {
    let free = |dir: &&&str| Path::new(**dir).is_dir() && !target.starts_with(**dir);
    STAGES.iter().find(free).copied()
}

fn tmpfs(at: &str) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", at, "tmpfs", flags, Some(c"mode=0755,size=256k")).map_err(Into::into)
}

fn write(file: &PathBuf, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o644).open(file)?;
    io::Write::write_all(&mut file, text.as_bytes())
}
