//! A lab's directory: one nobody else can look into, gone with the lab; what killed labs left is cleared by the
//! next one.
//!
//! A directory is held by a lock for as long as its lab lives. The kernel drops the lock of a killed process, so
//! what can be locked is nobody's any more, in whatever PID namespace its lab was.

use crate::cmd::complain;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat};
use rustix::process::geteuid;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Names are this, the process id of the lab, a dash and a number.
const PREFIX: &str = "podwire-lab-";

/// A new directory of mode 0700, removed with all that is in it when dropped.
pub struct PrivateDir {
    path: PathBuf,
    _held: OwnedFd,
}

impl PrivateDir {
    /// Make one where temporary files belong, and clear what killed labs of this user left there.
    ///
    /// # Errors
    /// When none can be made; leftovers that cannot be removed are no reason.
    pub fn make() -> io::Result<PrivateDir> {
        let temp = std::env::temp_dir();
        clear(&temp);
        PrivateDir::make_in(&temp)
    }

    fn make_in(temp: &Path) -> io::Result<PrivateDir> {
        let mut refused = io::ErrorKind::AlreadyExists.into();
        for n in 0..100 {
            let path = temp.join(format!("{PREFIX}{}-{n}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => match hold(&path) {
                    Some(held) => return Ok(PrivateDir { path, _held: held }),
                    // Another lab took it for a leftover in the moment before it was locked.
                    None => continue,
                },
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => refused = e,
                Err(e) => return Err(e),
            }
        }
        Err(refused)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        let gone = fs::remove_dir_all(&self.path);
        if let Err(e) = gone
            && self.path.exists()
        {
            complain(format_args!("{} could not be removed: {e}", self.path.display()));
        }
    }
}

/// Remove the directories in `temp` whose lab was killed.
fn clear(temp: &Path) {
    for entry in fs::read_dir(temp).into_iter().flatten().flatten() {
        let path = entry.path();
        let dead = lab(&entry.file_name().to_string_lossy()).is_some_and(|pid| !is_podwire(pid));
        // Held while it is removed, so that two labs do not clear the same.
        if let Some(_held) = dead.then(|| hold(&path)).flatten()
            && let Err(e) = fs::remove_dir_all(&path)
        {
            log::debug!("{} stays: {e}", path.display());
        }
    }
}

/// The process id in a directory's name, when it is the name of one.
fn lab(name: &str) -> Option<u32> {
    let (pid, n) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    (digits(pid) && digits(n)).then(|| pid.parse().ok()).flatten()
}

/// Whether a process may be a lab: what cannot be looked at might be.
fn is_podwire(pid: u32) -> bool {
    match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(program) => program.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with("podwire")
        }),
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    }
}

/// Lock the directory at `path`, when it is this user's own, private, no symbolic link, and held by nobody. The lock
/// is a file's in it: nodes lock the directory itself while they make their sockets.
fn hold(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(CWD, path, flags, Mode::empty()).ok()?;
    let own = fstat(&dir).ok()?;
    if own.st_uid != geteuid().as_raw() || own.st_mode & 0o7777 != 0o700 {
        return None;
    }
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = openat(&dir, "lock", flags, Mode::RUSR | Mode::WUSR).ok()?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
    // Who locked it before may have removed it.
    let there = fs::symlink_metadata(path).ok()?;
    ((own.st_dev, own.st_ino) == (there.dev(), there.ino())).then_some(lock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::process::Command;

    #[test]
    fn directories_are_private_and_do_not_stay() {
        let (one, two) = (PrivateDir::make().unwrap(), PrivateDir::make().unwrap());
        assert_ne!(one.path(), two.path());
        let mode = fs::metadata(one.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::write(one.join("file"), "x").unwrap();
        let path = one.path().to_path_buf();
        drop(one);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_lab_left_is_cleared_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let temp = temp.path();
        let mut child = Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let make = |name: &str, mode: u32| {
            let path = temp.join(name);
            DirBuilder::new().mode(mode).create(&path).unwrap();
            fs::write(path.join("n.sock"), "x").unwrap();
            path
        };
        let left = make(&format!("{PREFIX}{dead}-0"), 0o700);
        // A leftover may hold a link to what is none of its own.
        let precious = make("precious", 0o700);
        symlink(&precious, left.join("link")).unwrap();

        let alive = PrivateDir::make_in(temp).unwrap();
        let held = make(&format!("{PREFIX}{dead}-1"), 0o700);
        let lock = hold(&held).unwrap();
        let mut kept = vec![
            alive.path().to_path_buf(),
            held,
            precious,
            make(&format!("{PREFIX}{dead}-2"), 0o755),
            make(&format!("{PREFIX}{}-7", std::process::id()), 0o700),
            make(&format!("{PREFIX}{dead}"), 0o700),
            make(&format!("{PREFIX}{dead}-x"), 0o700),
            make(&format!("{PREFIX}+{dead}-0"), 0o700),
        ];
        let link = temp.join(format!("{PREFIX}{dead}-3"));
        symlink(temp.join("precious"), &link).unwrap();
        kept.push(link);
        let file = temp.join(format!("{PREFIX}{dead}-4"));
        fs::write(&file, "x").unwrap();
        kept.push(file);
        if geteuid().is_root() {
            let others = make(&format!("{PREFIX}{dead}-5"), 0o700);
            chown(&others, Some(65_534), Some(65_534)).unwrap();
            kept.push(others);
        }
        clear(temp);
        assert!(!left.exists());
        for path in &kept {
            assert!(path.symlink_metadata().is_ok(), "{} is gone", path.display());
        }
        assert!(temp.join("precious/n.sock").exists());
        drop(lock);
        clear(temp);
        assert!(!kept[1].exists(), "nobody holds it any more");
    }
}
