//! The admin socket of a node: made for its user alone, replaced when stale, removed at the end.

use rustix::fs::{FlockOperation, Mode, OFlags};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A bound admin socket; dropping it removes the file, unless somebody replaced it.
#[derive(Debug)]
pub struct Listener {
    path: PathBuf,
    id: (u64, u64),
    /// The listening socket, non-blocking.
    pub socket: UnixListener,
}

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another node answers there.
    #[error("node {node} already runs{} (stop it, or take another --name or --socket)", pid.map(|p| format!(", pid {p}")).unwrap_or_default())]
    Runs {
        /// The node's name.
        node: String,
        /// Its process, when it is in sight.
        pid: Option<i32>,
    },
    /// What is there is no socket.
    #[error("{} exists and is no socket (remove it, or set --socket)", .0.display())]
    Other(PathBuf),
    /// The kernel refused.
    #[error("the admin socket {} cannot be made: {source} (set --socket to a path in a writable directory)", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Listener {
    /// Listen at `path` for the node `node`. Call before threads are made: the process's umask is changed for
    /// a moment, so that the socket is never open to others.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: &Path, node: &str) -> Result<Listener, ListenError> {
        let failed = |source: io::Error| ListenError::Io {
            path: path.into(),
            source,
        };
        let dir = path
            .parent()
            .filter(|d| !d.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        // Two nodes that start at once must not both find the same socket stale. The lock leaves no file.
        let lock = rustix::fs::open(
            dir,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| failed(e.into()))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
        match std::fs::symlink_metadata(path) {
            Ok(meta) if !std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
                return Err(ListenError::Other(path.into()));
            }
            Ok(_) => match UnixStream::connect(path) {
                Ok(other) => {
                    let pid = rustix::net::sockopt::socket_peercred(&other).ok();
                    return Err(ListenError::Runs {
                        node: node.into(),
                        pid: pid.map(|c| c.pid.as_raw_pid()),
                    });
                }
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    log::info!(
                        "{} was left behind by a node that is gone: replaced",
                        path.display()
                    );
                    std::fs::remove_file(path).map_err(failed)?;
                }
                Err(e) => return Err(failed(e)),
            },
            Err(_) => {}
        }
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let socket = bound.map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let id = id(path).map_err(failed)?;
        Ok(Listener {
            path: path.into(),
            id,
            socket,
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if id(&self.path).ok() == Some(self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_socket_is_respected_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n1.sock");
        let first = Listener::bind(&path, "n1").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let e = Listener::bind(&path, "n1").unwrap_err().to_string();
        assert!(
            e.starts_with(&format!("node n1 already runs, pid {}", std::process::id())),
            "{e}"
        );
        drop(first);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = Listener::bind(&path, "n1").unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        drop(second);
        assert!(path.exists(), "somebody else's file stays");
        assert!(matches!(Listener::bind(&path, "n1"), Err(ListenError::Other(_))));
    }
}
