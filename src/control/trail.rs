//! The directories in which a change may change what a path leads to.
//!
//! Directories are watched, not files, since editors and configuration management replace files by renaming.
//! Where a path goes through links, the file may be edited in one place and a link be turned in another
//! (Kubernetes turns one beside the file): each link counts, and what the last one leads to.

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Most links on the way, as the kernel has it.
const MAX_LINKS: usize = 40;

/// A watched path.
pub(super) struct Trail {
    path: PathBuf,
    inotify: OwnedFd,
    places: Vec<Place>,
}

/// A link on the way, or the file at its end.
struct Place {
    dir: PathBuf,
    name: OsString,
    /// The watch of the directory; places in one directory share it.
    wd: i32,
}

impl Trail {
    /// Watch nothing yet; [`Trail::follow`] does.
    ///
    /// # Errors
    /// When the user has too many inotify instances.
    pub(super) fn new(path: &Path) -> io::Result<Trail> {
        Ok(Trail {
            path: path.into(),
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            places: Vec::new(),
        })
    }

    /// Watch where the path leads now. To be called before the file is read: what happens after is told.
    ///
    /// # Errors
    /// Why a directory cannot be watched; the others are.
    pub(super) fn follow(&mut self) -> io::Result<()> {
        let what = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let mut outcome = Ok(());
        let mut places = Vec::new();
        for (dir, name) in way(&self.path) {
            match inotify::add_watch(&self.inotify, &dir, what) {
                Ok(wd) => places.push(Place { dir, name, wd }),
                Err(e) => outcome = Err(e.into()),
            }
        }
        let left = std::mem::replace(&mut self.places, places);
        for Place { wd, .. } in left {
            if !self.places.iter().any(|p| p.wd == wd) {
                // The directory may be gone, and its watch with it.
                let _ = inotify::remove_watch(&self.inotify, wd);
            }
        }
        outcome
    }

    /// Take what the kernel tells; whether the path may lead to something else now.
    pub(super) fn news(&mut self) -> bool {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut space);
        let mut news = false;
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|n| OsStr::from_bytes(n.to_bytes()));
                    let mut hit = self.places.iter().filter(|p| p.wd == event.wd());
                    news |= match (name, event.events()) {
                        (_, e) if e.contains(ReadFlags::QUEUE_OVERFLOW) => true,
                        // Of the directory itself.
                        (None, _) => hit.next().is_some(),
                        // A created plain file is empty still: its closing tells. A link is complete at once.
                        (Some(name), e) if e.contains(ReadFlags::CREATE) => {
                            hit.any(|p| p.name == name && p.dir.join(name).is_symlink())
                        }
                        (Some(name), _) => hit.any(|p| p.name == name),
                    };
                }
                Err(Errno::INTR) => {}
                Err(_) => return news,
            }
        }
    }
}

impl AsFd for Trail {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// The links on the way that `path` goes, and what it ends at: directory and name of each.
fn way(path: &Path) -> Vec<(PathBuf, OsString)> {
    let parts = |path: &Path| -> Vec<OsString> {
        let parts = path.components().map(|c| c.as_os_str().to_owned());
        parts.rev().collect()
    };
    let mut places = Vec::new();
    let mut dir = PathBuf::from(".");
    let mut rest = parts(path);
    while let Some(name) = rest.pop() {
        // The root replaces what was there, `.` and `..` are no names.
        let here = dir.join(&name);
        match std::fs::read_link(&here) {
            Ok(_) if places.len() == MAX_LINKS => break,
            Ok(target) => {
                places.push((dir.clone(), name));
                rest.extend(parts(&target));
            }
            Err(_) if rest.is_empty() => places.push((dir.clone(), name)),
            Err(_) => dir = here,
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_way_goes_over_links() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let of = |path: &Path| -> Vec<String> {
            let shown = way(path).into_iter().map(|(dir, name)| dir.join(name));
            let shown = shown.map(|p| p.strip_prefix(&top).unwrap_or(&p).display().to_string());
            shown.collect()
        };
        assert_eq!(of(&top.join("file")), ["file"]);
        assert_eq!(of(Path::new("peers.toml")), ["./peers.toml"]);
        std::fs::create_dir(top.join("d")).unwrap();
        symlink("d/../d", top.join("l")).unwrap();
        symlink(top.join("file"), top.join("d/m")).unwrap();
        assert_eq!(of(&top.join("l/m")), ["l", "d/../d/m", "file"]);
        symlink("round", top.join("round")).unwrap();
        assert_eq!(of(&top.join("round")).len(), MAX_LINKS);
        assert_eq!(of(&top.join("no/where")), ["no/where"]);
    }
}
