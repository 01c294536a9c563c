//! Watches the paths of pods' namespaces, so that a pod whose namespace vanished is noticed.
//!
//! A node's open TAP keeps the namespace itself alive, so the kernel never tells of its end: what can be
//! watched is the path that holds it. The directory above is watched, as the path is a mount whose own
//! watch would see nothing.

use crate::model::PodName;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Device and inode of what is at a path: the identity of a namespace.
pub type Id = (u64, u64);

/// The namespace paths of all pods.
pub struct NetnsWatch {
    inotify: OwnedFd,
    pods: BTreeMap<PodName, Watched>,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// The watch of the directory above; one number per directory.
    wd: i32,
    id: Id,
}

impl NetnsWatch {
    /// Watch nothing yet.
    ///
    /// # Errors
    /// When the user has too many inotify instances.
    pub fn new() -> io::Result<NetnsWatch> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(NetnsWatch {
            inotify,
            pods: BTreeMap::new(),
        })
    }

    /// Watch `path`, which holds the namespace that [`id`] once told, for `pod`.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when the path holds another namespace, or none; also when it is not there for this
    /// process (another mount namespace). Anything else when it cannot be watched.
    pub fn add(&mut self, pod: &PodName, path: &Path, known: Id) -> io::Result<()> {
        let dir = path
            .parent()
            .filter(|d| !d.as_os_str().is_empty())
            .unwrap_or(Path::new("/"));
        let what = WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::CREATE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        // The watch comes first: what happens after the look is told.
        let wd = inotify::add_watch(&self.inotify, dir, what)?;
        let found = id(path).and_then(|id| {
            let known = (id == known).then_some(id);
            known.ok_or_else(|| io::ErrorKind::NotFound.into())
        });
        match found {
            Ok(id) => {
                let path = path.into();
                self.pods.insert(pod.clone(), Watched { path, wd, id });
                Ok(())
            }
            Err(e) => {
                self.forget(wd);
                Err(e)
            }
        }
    }

    /// Watch for `pod` no longer.
    pub fn remove(&mut self, pod: &PodName) {
        if let Some(watched) = self.pods.remove(pod) {
            self.forget(watched.wd);
        }
    }

    /// Take what the kernel tells; the pods whose namespace is gone. Each stays until it is removed.
    pub fn gone(&mut self) -> Vec<PodName> {
        let mut suspects: Vec<PodName> = Vec::new();
        let mut space = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(&self.inotify, &mut space);
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|n| OsStr::from_bytes(n.to_bytes()));
                    let all = event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                    let hit =
                        |w: &Watched| w.wd == event.wd() && (name.is_none() || w.path.file_name() == name);
                    suspects.extend(
                        self.pods
                            .iter()
                            .filter(|(_, w)| all || hit(w))
                            .map(|(p, _)| p.clone()),
                    );
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        suspects.sort();
        suspects.dedup();
        suspects.retain(|p| self.pods.get(p).is_some_and(|w| id(&w.path).ok() != Some(w.id)));
        suspects
    }

    fn forget(&self, wd: i32) {
        if !self.pods.values().any(|w| w.wd == wd) {
            // The directory may be gone, and its watch with it.
            let _ = inotify::remove_watch(&self.inotify, wd);
        }
    }
}

impl AsFd for NetnsWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// What is at `path` now.
///
/// # Errors
/// When nothing is, for this process.
pub fn id(path: &Path) -> io::Result<Id> {
    let meta = std::fs::metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_path_that_vanishes_or_changes_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = |n: &str| dir.path().join(n);
        let pod = |n: &str| n.parse::<PodName>().unwrap();
        let mut watch = NetnsWatch::new().unwrap();
        for n in ["a", "b", "c"] {
            fs::write(path(n), n).unwrap();
            watch.add(&pod(n), &path(n), id(&path(n)).unwrap()).unwrap();
        }
        let of_a = id(&path("a")).unwrap();
        for other in ["b", "d"] {
            let e = watch.add(&pod("d"), &path(other), of_a).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::NotFound, "{other}");
        }
        fs::write(path("other"), "").unwrap();
        assert!(watch.gone().is_empty());
        fs::remove_file(path("a")).unwrap();
        fs::rename(path("other"), path("b")).unwrap();
        assert_eq!(watch.gone(), [pod("a"), pod("b")]);
        watch.remove(&pod("a"));
        watch.remove(&pod("b"));
        assert!(watch.gone().is_empty());
        fs::remove_dir_all(dir.path()).unwrap();
        assert_eq!(watch.gone(), [pod("c")]);
        watch.remove(&pod("c"));
        watch.remove(&pod("c"));
    }
}
