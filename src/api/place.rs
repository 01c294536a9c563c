//! Where admin sockets live: `NODE.sock` in a directory of the user's own.
//!
//! Root uses `/run/podwire`, others `$XDG_RUNTIME_DIR/podwire`; where neither can be made (a user namespace
//! whose root is nobody, a session without a runtime directory) `/tmp/podwire-UID` serves. Anybody could have made
//! that one, and `XDG_RUNTIME_DIR` may be another user's: what is not this user's alone is passed over.

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a socket that nobody named is looked at.
const GLANCE: Duration = Duration::from_secs(1);
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
    /// What a node would keep its state in is not fit for it.
    #[error("{} cannot be this node's state directory: {source} (set --state-dir)", path.display())]
    State {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
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

/// Where the node `node`, whose admin socket is at `socket`, keeps what outlives it: the first of the user's state
/// directories that can be made. Beside the socket when none can, or when the socket is not where this node's usually
/// is: the same name means another node there.
///
/// # Errors
/// [`PlaceError::State`]: what is beside the socket is not this user's alone, who would believe whatever is in it.
pub fn state_for(node: &str, socket: &Path) -> Result<PathBuf, PlaceError> {
    let usual = directories()
        .iter()
        .any(|d| d.join(format!("{node}.sock")) == socket);
    let uid = rustix::process::geteuid();
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state"));
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state
        .filter(|d| d.is_absolute())
        .or_else(home)
        .filter(|d| d.is_absolute());
    let system = uid.is_root().then(|| PathBuf::from("/var/lib/podwire"));
    let own = state.map(|d| d.join("podwire"));
    let mut candidates = system.into_iter().chain(own).filter(|_| usual);
    let made = candidates.find(|dir| {
        let parent = dir.parent().unwrap_or(dir);
        let parents = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
        parents.and_then(|()| claim(dir)).is_ok()
    });
    if let Some(dir) = made {
        return Ok(dir.join(node));
    }
    let beside = socket.with_file_name(format!("{node}.state"));
    match ours_alone(&beside) {
        // Made when there is something to keep.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(beside),
        Err(source) => Err(PlaceError::State { path: beside, source }),
        Ok(()) => Ok(beside),
    }
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

/// An admin socket, as a client means it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Socket {
    /// Where it is.
    pub path: PathBuf,
    /// Whether somebody named it, and answers for who is there: otherwise it must be this user or root.
    pub named: bool,
}

impl From<&Path> for Socket {
    fn from(path: &Path) -> Socket {
        Socket {
            path: path.into(),
            named: true,
        }
    }
}

impl From<&PathBuf> for Socket {
    fn from(path: &PathBuf) -> Socket {
        path.as_path().into()
    }
}

impl From<&Socket> for Socket {
    fn from(socket: &Socket) -> Socket {
        socket.clone()
    }
}

/// The socket a client means: `named`, or `$PODWIRE_SOCKET`, or the only node of this user that answers.
///
/// # Errors
/// [`PlaceError::None`] and [`PlaceError::Several`].
pub fn for_client(named: Option<&Path>) -> Result<Socket, PlaceError> {
    if let Some(path) = named {
        return Ok(path.into());
    }
    if let Some(path) = std::env::var_os("PODWIRE_SOCKET").filter(|p| !p.is_empty()) {
        return Ok((&PathBuf::from(path)).into());
    }
    let path = only(&directories())?;
    Ok(Socket { path, named: false })
}

/// Whether this user or root listens at the other end; the other user when not.
///
/// # Errors
/// When it is another user, or the kernel does not tell.
pub(super) fn of_ours(stream: &UnixStream) -> Result<(), u32> {
    let theirs = rustix::net::sockopt::socket_peercred(stream.as_fd()).map_or(u32::MAX, |c| c.uid.as_raw());
    let ours = [0, rustix::process::geteuid().as_raw()];
    ours.contains(&theirs).then_some(()).ok_or(theirs)
}

impl PlaceError {
    /// Whether the remedy is to start a node.
    pub fn is_missing(&self) -> bool {
        matches!(self, PlaceError::None(_))
    }
}

fn only(dirs: &[PathBuf]) -> Result<PathBuf, PlaceError> {
    let mut alive = Vec::new();
    let mut looked = Vec::new();
    for dir in dirs {
        let mut seen = dir.display().to_string();
        match ours_alone(dir).and_then(|()| fs::read_dir(dir)) {
            Ok(entries) => alive.extend(entries.flatten().map(|e| e.path()).filter(|p| answers(p))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => seen += &format!(" ({e})"),
        }
        looked.push(seen);
    }
    alive.sort();
    match alive.len() {
        0 => Err(PlaceError::None(looked.join(", "))),
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

/// Whether a node of ours listens at `path`.
fn answers(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "sock")
        && dial(path, GLANCE).is_ok_and(|stream| of_ours(&stream).is_ok())
}

/// Whether nobody listens at `path`.
pub fn is_deserted(path: &Path) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let kind = dial(path, GLANCE).map_err(|e| e.kind());
    matches!(kind, Err(ConnectionRefused | NotFound))
}

/// Connect to the socket at `path`; who listens there and takes nobody is waited for as long as `patience`, which is what
/// later sends may take, too.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::WouldBlock`] when that took too long.
pub(super) fn dial(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    let address = SocketAddrUnix::new(path)?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(socket.into())
}

/// Make `dir` for this user alone, or accept it when it is that already.
pub(super) fn claim(dir: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    ours_alone(dir)?;
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK)?;
    Ok(())
}

/// Whether `dir` is a directory that this user alone fills.
///
/// # Errors
/// Why it is none, or what the kernel says.
pub fn ours_alone(dir: &Path) -> io::Result<()> {
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ApiError, Client};
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

    #[test]
    fn a_socket_elsewhere_has_its_state_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("n1.sock");
        let state = state_for("n1", &socket).unwrap();
        assert_eq!(state, dir.path().join("n1.state"));
        assert!(!state.exists(), "there is nothing to keep yet");
        claim(&state).unwrap();
        assert_eq!(state_for("n1", &socket).unwrap(), state);
        // In a directory of many, anybody may have been there first.
        fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = state_for("n1", &socket).unwrap_err().to_string();
        assert!(
            refused.contains("writable for other users (set --state-dir)"),
            "{refused}"
        );
        fs::remove_dir(&state).unwrap();
        std::os::unix::fs::symlink(dir.path(), &state).unwrap();
        assert!(matches!(state_for("n1", &socket), Err(PlaceError::State { .. })));
    }

    #[test]
    fn nodes_of_others_are_passed_over() {
        let top = tempfile::tempdir().unwrap();
        let (dir, other) = (top.path().join("p"), top.path().join("q"));
        claim(&dir).unwrap();
        let none = |dir: &Path, why: &str| {
            let e = only(&[dir.to_path_buf()]).unwrap_err();
            assert!(e.is_missing() && e.to_string().contains(why), "{e}");
        };
        let _ours = UnixListener::bind(dir.join("n1.sock")).unwrap();
        assert_eq!(only(std::slice::from_ref(&dir)).unwrap(), dir.join("n1.sock"));
        std::os::unix::fs::symlink(&dir, top.path().join("link")).unwrap();
        none(&top.path().join("link"), "link (not a directory)");
        for mode in [0o770, 0o702] {
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
            none(&dir, "p (writable for other users)");
        }
        if !rustix::process::geteuid().is_root() {
            return; // The rest takes another user.
        }
        // Ids are a thread's own, as far as the kernel is concerned.
        let nobody = 65_534;
        claim(&other).unwrap();
        let path = other.join("n1.sock");
        let bound = std::thread::scope(|s| {
            let bind = s.spawn(|| {
                std::os::unix::fs::chown(&other, Some(nobody), None).unwrap();
                fs::set_permissions(top.path(), fs::Permissions::from_mode(0o711)).unwrap();
                let nobody = rustix::process::Uid::from_raw(nobody);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
                UnixListener::bind(&path)
            });
            bind.join().unwrap()
        });
        let _theirs = bound.unwrap();
        none(&other, "q (belongs to another user)");
        // Whatever the directory is like, it is who listens that counts.
        std::os::unix::fs::chown(&other, Some(0), None).unwrap();
        none(&other, "q");
        assert_eq!(of_ours(&UnixStream::connect(&path).unwrap()), Err(nobody));
        let found = Socket {
            path: path.clone(),
            named: false,
        };
        let refused = Client::connect(&found).unwrap_err();
        assert!(
            matches!(refused, ApiError::Stranger { uid: 65_534, .. }),
            "{refused}"
        );
    }
}
