//! The peers file, watched: every change of it becomes [`Change`]s at once.
//!
//! What is read must be proof before peers are removed: a file that is missing, unreadable, invalid or of zero
//! length leaves the peers as they were.

use super::peers;
use super::trail::Trail;
use crate::model::{Change, LocalNode, Snapshot};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// A peers file and the state it last gave.
pub struct PeersFile {
    path: PathBuf,
    own: LocalNode,
    port: u16,
    state: Snapshot,
    watch: Option<Trail>,
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
        let mut watch = None;
        // Watch first: a change between the two steps must not be missed.
        let followed = Trail::new(path).and_then(|trail| watch.insert(trail).follow());
        if let Err(e) = followed {
            log::warn!(
                "{} cannot be watched: {e} (send SIGHUP after a change)",
                path.display()
            );
        }
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
        match self.watch.as_mut().is_some_and(Trail::news) {
            true => self.reload(),
            false => Vec::new(),
        }
    }

    /// Read the file again, whatever the watch tells.
    pub fn reload(&mut self) -> Vec<Change> {
        if let Some(Err(e)) = self.watch.as_mut().map(Trail::follow) {
            log::debug!("{} is watched in part: {e}", self.path.display());
        }
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
    use std::os::unix::fs::symlink;

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

    #[test]
    fn a_file_that_goes_is_told_and_its_peers_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.toml");
        for away in [
            |path: &Path| fs::remove_file(path),
            |path: &Path| fs::rename(path, path.with_extension("old")),
        ] {
            fs::write(&path, peer(2)).unwrap();
            let mut file = PeersFile::open(&path, &own(), 8472).unwrap();
            away(&path).unwrap();
            assert!(file.changes().is_empty());
            assert!(
                file.complaint().is_some_and(|c| c.contains("No such file")),
                "{:?}",
                file.complaint()
            );
            assert_eq!(file.state().peers.len(), 1);
            fs::write(&path, peer(3)).unwrap();
            assert_eq!(file.changes().len(), 2);
            assert!(file.complaint().is_none());
        }
    }

    #[test]
    fn the_file_behind_links_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["etc", "a", "b", "one"] {
            fs::create_dir(at(name)).unwrap();
        }
        // peers.toml -> ../link/peers.toml -> (a|b)/peers.toml -> DIR/one/real
        let path = at("etc").join("peers.toml");
        symlink("../link/peers.toml", &path).unwrap();
        symlink("a", at("link")).unwrap();
        symlink(at("one/real"), at("a/peers.toml")).unwrap();
        fs::write(at("one/real"), peer(2)).unwrap();
        let mut file = PeersFile::open(&path, &own(), 8472).unwrap();
        let mut names = |what: &str, n: u8| {
            let changes = file.changes();
            let set = changes.iter().find_map(|c| match c {
                Change::PeerSet(p) => Some(p.name.to_string()),
                Change::PeerGone(_) => None,
            });
            assert_eq!(
                set,
                Some(format!("n{n}")),
                "{what}: {changes:?}, {:?}",
                file.complaint()
            );
        };
        fs::write(at("one/real"), peer(3)).unwrap();
        names("edited in place", 3);
        fs::write(at("one/new"), peer(4)).unwrap();
        fs::rename(at("one/new"), at("one/real")).unwrap();
        names("replaced", 4);
        fs::write(at("b/peers.toml"), peer(5)).unwrap();
        symlink("b", at("link.new")).unwrap();
        fs::rename(at("link.new"), at("link")).unwrap();
        names("a link on the way turned", 5);
        fs::write(at("b/peers.toml"), peer(6)).unwrap();
        names("edited at the new place", 6);
        fs::write(at("one/real"), peer(7)).unwrap();
        fs::write(at("etc/other"), peer(7)).unwrap();
        assert!(file.changes().is_empty(), "no longer its place, or never");
        fs::remove_file(at("b/peers.toml")).unwrap();
        assert!(file.changes().is_empty() && file.complaint().is_some());
        symlink("peers.toml", at("b/peers.toml")).unwrap();
        assert!(file.changes().is_empty() && file.complaint().is_some(), "a loop");
        assert_eq!(file.state().peers.len(), 1);
    }
}
