//! The peers file, watched: every change of it becomes [`Change`]s at once.
//!
//! The directory is watched, not the file, since editors and configuration management replace files by
//! renaming (Kubernetes renames a link beside it). What is read must be proof before peers are removed: a
//! file that is missing, unreadable, invalid or of zero length leaves the peers as they were.

use super::peers;
use crate::model::{Change, LocalNode, Snapshot};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A peers file and the state it last gave.
pub struct PeersFile {
    path: PathBuf,
    own: LocalNode,
    port: u16,
    state: Snapshot,
    watch: Option<OwnedFd>,
    /// The last complaint, so that each is made once.
    complaint: Option<String>,
}

impl PeersFile {
    /// Read `path` for the first time and watch it. A file that cannot be watched is still read again on
    /// [`PeersFile::reload`].
    ///
    /// # Errors
    /// The sentence for a file that is missing or wrong: at start a person is there to put it right.
    pub fn open(path: &Path, own: &LocalNode, port: u16) -> Result<PeersFile, String> {
        // Watch first: a change between the two steps must not be missed.
        let watch = watch(path)
            .inspect_err(|e| {
                log::warn!(
                    "{} cannot be watched: {e} (send SIGHUP after a change)",
                    path.display()
                );
            })
            .ok();
        let mut file = PeersFile {
            path: path.into(),
            own: own.clone(),
            port,
            state: Snapshot::default(),
            watch,
            complaint: None,
        };
        file.state = match read(path)? {
            Some(text) => peers::parse(path, &text, own, port).map_err(|e| e.to_string())?,
            None => Snapshot::default(),
        };
        Ok(file)
    }

    /// The descriptor that becomes readable when [`PeersFile::changes`] may have news.
    pub fn watch_fd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// The state in force.
    pub fn state(&self) -> &Snapshot {
        &self.state
    }

    /// Why the file is not the state in force, when it is not.
    pub fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    /// Take what the watch tells, and the changes that follow from it.
    pub fn changes(&mut self) -> Vec<Change> {
        if self.drain() { self.reload() } else { Vec::new() }
    }

    /// Read the file again, whatever the watch tells.
    pub fn reload(&mut self) -> Vec<Change> {
        let next = match read(&self.path) {
            Ok(Some(text)) => {
                peers::parse(&self.path, &text, &self.own, self.port).map_err(|e| e.to_string())
            }
            Ok(None) => Err(format!(
                "{} is empty (write `peer = []` to remove all peers)",
                self.path.display()
            )),
            Err(e) => Err(e),
        };
        match next {
            Ok(next) => {
                if self.complaint.take().is_some() {
                    log::info!("{} is in order again", self.path.display());
                }
                let changes = self.state.diff(&next);
                self.state = next;
                changes
            }
            Err(what) => {
                if self.complaint.as_ref() != Some(&what) {
                    log::warn!("{what}; the {} peers known stay", self.state.peers.len());
                    self.complaint = Some(what);
                }
                Vec::new()
            }
        }
    }

    /// Empty the watch; whether anything concerned the file.
    fn drain(&mut self) -> bool {
        let Some(watch) = &self.watch else { return false };
        let name = self.path.file_name().unwrap_or(OsStr::new(""));
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(watch, &mut space);
        let mut news = false;
        loop {
            match reader.next() {
                Ok(event) => {
                    let of = event.file_name().map(|n| OsStr::from_bytes(n.to_bytes()));
                    // A created plain file is empty still: its closing tells. A link is complete at once.
                    let link = || of.is_some_and(|n| dir.join(n).is_symlink());
                    news |= match event.events() {
                        e if e.contains(ReadFlags::CLOSE_WRITE) => of == Some(name),
                        e if e.contains(ReadFlags::CREATE) => link(),
                        _ => true,
                    };
                }
                Err(Errno::INTR) => {}
                Err(_) => return news,
            }
        }
    }
}

fn watch(path: &Path) -> rustix::io::Result<OwnedFd> {
    let dir = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let what = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::ONLYDIR;
    inotify::add_watch(&fd, dir, what)?;
    Ok(fd)
}

/// The text of the file; `None` for one without any.
fn read(path: &Path) -> Result<Option<String>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        format!(
            "{}: {e} (peers are read from there: write it, or name another file with --peers)",
            path.display()
        )
    })?;
    Ok(Some(text).filter(|t| !t.trim().is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::peers::tests::own;
    use std::fs;

    fn peer(n: u8) -> String {
        format!("[[peer]]\nname = \"n{n}\"\nunderlay = \"192.0.2.{n}\"\nsubnet = \"10.244.{n}.0/24\"\n")
    }

    #[test]
    fn every_way_to_replace_a_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.toml");
        fs::write(&path, peer(2)).unwrap();
        let mut file = PeersFile::open(&path, &own(), 8472).unwrap();
        assert_eq!(file.state().peers.len(), 1);
        assert!(file.changes().is_empty());

        fs::write(&path, peer(3)).unwrap();
        let names: Vec<_> = file.changes();
        assert!(matches!(&names[..], [Change::PeerGone(_), Change::PeerSet(p)] if p.name.as_str() == "n3"));

        fs::write(dir.path().join(".tmp"), peer(4)).unwrap();
        assert!(file.changes().is_empty(), "somebody else's file");
        fs::rename(dir.path().join(".tmp"), &path).unwrap();
        assert_eq!(file.changes().len(), 2);

        fs::write(dir.path().join("real"), peer(5)).unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("real", &path).unwrap();
        assert_eq!(file.changes().len(), 2);
    }

    #[test]
    fn what_is_no_proof_removes_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.toml");
        assert!(PeersFile::open(&path, &own(), 8472).is_err());
        fs::write(&path, peer(2)).unwrap();
        let mut file = PeersFile::open(&path, &own(), 8472).unwrap();
        for bad in ["", "  \n", "[[peer]]\nname = 3\n", "rubbish"] {
            fs::write(&path, bad).unwrap();
            assert!(file.changes().is_empty());
            assert!(file.complaint().is_some(), "{bad:?}");
            assert_eq!(file.state().peers.len(), 1);
        }
        fs::remove_file(&path).unwrap();
        assert!(file.reload().is_empty());
        fs::write(&path, "peer = []\n").unwrap();
        assert_eq!(file.changes().len(), 1);
        assert!(file.complaint().is_none());
    }
}
