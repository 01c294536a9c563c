//! Where admin sockets live: `NODE.sock` in a directory of the user's own.
//!
//! Root uses `/run/podwire`, others `$XDG_RUNTIME_DIR/podwire`; where neither can be made (a user namespace
//! whose root is nobody, a session without a runtime directory) `/tmp/podwire-UID` serves.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Longest path the kernel takes for a Unix socket (sun_path with its final zero).
const MAX_PATH: usize = 107;

/// Why no socket could be settled on.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// No node of this user runs.
    #[error(
        "no podwire node runs here (looked in {0}; start one with `podwire node`, or name its socket with --socket)"
    )]
    None(String),
    /// More than one runs.
    #[error("several podwire nodes run here (name one: {0})")]
    Several(String),
    /// No directory could be made.
    #[error("no directory for the admin socket can be used: {0} (set --socket PATH)")]
    NoDirectory(String),
    /// The path does not fit a socket address.
    #[error("the socket path {0} is longer than {MAX_PATH} bytes (set a shorter one with --socket)")]
    Long(PathBuf),
}

/// The directories a node's socket may be in, best first.
pub fn directories() -> Vec<PathBuf> {
    let uid = rustix::process::geteuid();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| Path::new(d).is_absolute());
    let system = uid.is_root().then(|| PathBuf::from("/run/podwire"));
    let own = runtime.map(|d| Path::new(&d).join("podwire"));
    let last = PathBuf::from(format!("/tmp/podwire-{}", uid.as_raw()));
    system.into_iter().chain(own).chain([last]).collect()
}

/// The socket of a node that names none: in the first directory that can be made and belongs to this user.
///
/// # Errors
/// [`PlaceError::NoDirectory`] with the reason for each, [`PlaceError::Long`].
pub fn for_node(node: &str) -> Result<PathBuf, PlaceError> {
    let mut reasons = Vec::new();
    for dir in directories() {
        match claim(&dir) {
            Ok(()) => return fits(dir.join(format!("{node}.sock"))),
            Err(e) => reasons.push(format!("{}: {e}", dir.display())),
        }
    }
    Err(PlaceError::NoDirectory(reasons.join(", ")))
}

/// `path`, when it fits a socket address.
///
/// # Errors
/// [`PlaceError::Long`].
pub fn fits(path: PathBuf) -> Result<PathBuf, PlaceError> {
    if path.as_os_str().len() > MAX_PATH {
        Err(PlaceError::Long(path))
    } else {
        Ok(path)
    }
}

/// The socket a client means: `named`, or `$PODWIRE_SOCKET`, or the only node of this user that answers.
///
/// # Errors
/// [`PlaceError::None`] and [`PlaceError::Several`].
pub fn for_client(named: Option<&Path>) -> Result<PathBuf, PlaceError> {
    if let Some(path) = named {
        return Ok(path.into());
    }
    if let Some(path) = std::env::var_os("PODWIRE_SOCKET").filter(|p| !p.is_empty()) {
        return Ok(path.into());
    }
    only(&directories())
}

impl PlaceError {
    /// Whether the remedy is to start a node.
    pub fn is_missing(&self) -> bool {
        matches!(self, PlaceError::None(_))
    }
}

fn only(dirs: &[PathBuf]) -> Result<PathBuf, PlaceError> {
    let mut alive: Vec<PathBuf> = dirs
        .iter()
        .filter_map(|d| fs::read_dir(d).ok())
        .flatten()
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "sock"))
        .filter(|p| UnixStream::connect(p).is_ok())
        .collect();
    alive.sort();
    match alive.len() {
        0 => {
            let looked: Vec<_> = dirs.iter().map(|d| d.display().to_string()).collect();
            Err(PlaceError::None(looked.join(", ")))
        }
        1 => Ok(alive.remove(0)),
        _ => {
            let named: Vec<_> = alive
                .iter()
                .map(|p| format!("--socket {}", p.display()))
                .collect();
            Err(PlaceError::Several(named.join(", ")))
        }
    }
}

/// Make `dir` for this user alone, or accept it when it is that already: under /tmp anyone could have made it.
fn claim(dir: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let meta = fs::symlink_metadata(dir)?;
    let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    if !meta.is_dir() {
        return refuse("not a directory");
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return refuse("belongs to another user");
    }
    if meta.mode() & 0o022 != 0 {
        return refuse("writable for other users");
    }
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_only_live_socket_is_meant() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_path_buf(), "/nonexistent".into()];
        assert!(only(&dirs).unwrap_err().is_missing());
        drop(UnixListener::bind(dir.path().join("dead.sock")).unwrap());
        let _a = UnixListener::bind(dir.path().join("a.sock")).unwrap();
        assert_eq!(only(&dirs).unwrap(), dir.path().join("a.sock"));
        let _b = UnixListener::bind(dir.path().join("b.sock")).unwrap();
        let several = only(&dirs).unwrap_err().to_string();
        assert!(
            several.contains("--socket") && several.contains("b.sock"),
            "{several}"
        );
    }

    #[test]
    fn a_directory_others_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mine = dir.path().join("p");
        claim(&mine).unwrap();
        claim(&mine).unwrap();
        fs::set_permissions(&mine, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(claim(&mine).is_err());
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        assert!(claim(&dir.path().join("link")).is_err());
        assert!(fits("/x".repeat(60).into()).is_err());
    }
}
