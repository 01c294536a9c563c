//! Follows the host's resolv.conf: it is written, replaced, or led elsewhere by a link that is replaced; and a network
//! manager's directory may come later than the link into it.

use crate::dns::resolv::ResolvConf;
use crate::sys::way::way;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Longest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// The file at `path`; nothing when there is none.
pub fn read(path: &Path) -> ResolvConf {
    let mut text = Vec::new();
    let file = crate::control::durable::open(path).ok().flatten();
    if let Some(file) = file {
        // What was read of a file that cannot be read to its end is better than nothing.
        let _ = file.take(MAX_FILE).read_to_end(&mut text);
    }
    let index = |name: &str| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").ok()?;
        rustix::net::netdevice::name_to_index(&socket, name).ok()
    };
    ResolvConf::parse(&String::from_utf8_lossy(&text), index)
}

/// Watches each directory on the way to the file.
pub struct Follow {
    path: PathBuf,
    inotify: OwnedFd,
    watches: Vec<i32>,
}

impl Follow {
    /// Watch the file at `path`.
    ///
    /// # Errors
    /// When the user has too many inotify instances.
    pub fn new(path: PathBuf) -> io::Result<Follow> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let mut follow = Follow {
            path: std::path::absolute(&path).unwrap_or(path),
            inotify,
            watches: Vec::new(),
        };
        follow.watch();
        Ok(follow)
    }

    /// Take what the kernel tells; whether the file may be another one now.
    pub fn changed(&mut self) -> bool {
        let mut space = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(&self.inotify, &mut space);
        let mut any = false;
        loop {
            match reader.next() {
                // A watch that was taken away says so.
                Ok(event) => any |= !event.events().contains(ReadFlags::IGNORED),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        if any {
            self.watch();
        }
        any
    }

    /// What the file says.
    pub fn read(&self) -> ResolvConf {
        read(&self.path)
    }

    /// Watch the way as it is now: what happens after this is told.
    fn watch(&mut self) {
        let what = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::CLOSE_WRITE;
        let mut found = Vec::new();
        for place in way(&self.path) {
            // A file that is mounted over another is written through itself.
            let also = if place.is_dir() {
                WatchFlags::ONLYDIR
            } else {
                WatchFlags::MODIFY
            };
            if let Ok(wd) = inotify::add_watch(&self.inotify, &place, what | also) {
                found.push(wd);
            }
        }
        for old in self.watches.iter().filter(|w| !found.contains(w)) {
            // It may be gone with its directory.
            let _ = inotify::remove_watch(&self.inotify, *old);
        }
        self.watches = found;
    }
}

impl AsFd for Follow {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_way_to_change_the_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        let servers = |f: &Follow| {
            let conf = f.read();
            conf.servers
                .iter()
                .map(|s| s.ip().to_string())
                .collect::<Vec<_>>()
        };
        fs::create_dir(at("etc")).unwrap();
        symlink("../run/resolve/conf", at("etc/resolv.conf")).unwrap();
        let mut follow = Follow::new(at("etc/resolv.conf")).unwrap();
        assert!(!follow.changed() && servers(&follow).is_empty());
        // The directory comes late.
        fs::create_dir(at("run")).unwrap();
        assert!(follow.changed());
        fs::create_dir(at("run/resolve")).unwrap();
        assert!(follow.changed());
        fs::write(at("run/resolve/conf"), "nameserver 192.0.2.1\n").unwrap();
        assert!(follow.changed());
        assert_eq!(servers(&follow), ["192.0.2.1"]);
        // Replaced behind the link.
        fs::write(at("new"), "nameserver 192.0.2.2\n").unwrap();
        fs::rename(at("new"), at("run/resolve/conf")).unwrap();
        assert!(follow.changed());
        assert_eq!(servers(&follow), ["192.0.2.2"]);
        // Written in place.
        fs::write(at("run/resolve/conf"), "nameserver 192.0.2.3\n").unwrap();
        assert!(follow.changed());
        assert_eq!(servers(&follow), ["192.0.2.3"]);
        // The link is replaced.
        fs::write(at("vpn"), "nameserver 192.0.2.4\n").unwrap();
        symlink(at("vpn"), at("link")).unwrap();
        fs::rename(at("link"), at("etc/resolv.conf")).unwrap();
        assert!(follow.changed());
        assert_eq!(servers(&follow), ["192.0.2.4"]);
        // By a file.
        fs::write(at("file"), "nameserver 192.0.2.5\n").unwrap();
        fs::rename(at("file"), at("etc/resolv.conf")).unwrap();
        assert!(follow.changed());
        assert_eq!(servers(&follow), ["192.0.2.5"]);
        fs::remove_file(at("etc/resolv.conf")).unwrap();
        assert!(follow.changed());
        assert!(servers(&follow).is_empty());
    }

    #[test]
    fn links_that_go_round_end() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        let follow = Follow::new(dir.path().join("a")).unwrap();
        assert_eq!(follow.read(), ResolvConf::default());
        assert!(follow.watches.len() < 100);
    }
}
