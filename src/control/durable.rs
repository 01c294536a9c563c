//! Files that are replaced as a whole: whoever reads finds the old content or the new, after any crash.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Replace the file at `place` by one with these parts and this mode, as a whole or not at all: also when the machine
/// stops meanwhile. Its directory is made, for this user alone, when it is missing. Waits for the disk.
///
/// # Errors
/// The kernel's (a disk that is full or read-only, mostly); the old file is as it was, unless it was the directory that
/// could not be synced.
pub fn replace_file(place: &Path, parts: &[&[u8]], mode: u32) -> io::Result<()> {
    let beside = with_ending(place, NEW);
    let moved = stage(place, parts, mode).and_then(|()| fs::rename(&beside, place));
    if let Err(e) = moved {
        // A disk that is full gets its space back.
        let _ = fs::remove_file(&beside);
        return Err(e);
    }
    // The name is as durable as the bytes only then.
    sync_dir(place)
}

/// A file, and what it is to hold; none when it is to be gone.
pub type FileChange = (PathBuf, Option<Vec<u8>>);

/// Change several files, all or none: what can fail for want of space comes first, and what failed is undone. A machine
/// that stops between two renames leaves some of them changed, each as a whole. Waits for the disk.
///
/// # Errors
/// The file that failed, and the kernel's reason; all files are as they were, unless the disk refuses that too.
pub fn change_files(changes: &[FileChange], mode: u32) -> Result<(), (PathBuf, io::Error)> {
    let tidy = || {
        for (place, _) in changes {
            let _ = fs::remove_file(with_ending(place, NEW));
            let _ = fs::remove_file(with_ending(place, OLD));
        }
    };
    let failed = |place: &Path, e| {
        tidy();
        (place.to_path_buf(), e)
    };
    for (place, content) in changes {
        if let Some(content) = content {
            stage(place, &[content], mode).map_err(|e| failed(place, e))?;
        }
    }
    let mut undo: Vec<(&Path, bool)> = Vec::new();
    for (place, content) in changes {
        let done = keep_old(place).and_then(|there| {
            match content {
                Some(_) => fs::rename(with_ending(place, NEW), place)?,
                None if there => fs::remove_file(place)?,
                None => {}
            }
            Ok(there)
        });
        match done {
            Ok(there) => undo.push((place, there)),
            Err(e) => {
                for (place, there) in undo.into_iter().rev() {
                    let back = match there {
                        true => fs::rename(with_ending(place, OLD), place),
                        false => fs::remove_file(place),
                    };
                    if let Err(e) = back {
                        log::error!("{} is not as it was: {e}", place.display());
                    }
                }
                return Err(failed(place, e));
            }
        }
    }
    tidy();
    let dirs: BTreeSet<&Path> = changes.iter().map(|(place, _)| dir_of(place)).collect();
    for dir in dirs {
        if let Err(e) = File::open(dir).and_then(|dir| dir.sync_all()) {
            // All is done, and whoever reads finds it so: to say it failed would be wrong.
            log::warn!(
                "what was changed in {} may be as before if the machine stops now: {e}",
                dir.display()
            );
        }
    }
    Ok(())
}

/// What files are called while they are written, and those they replace.
const NEW: &str = ".new";
const OLD: &str = ".old";

fn with_ending(place: &Path, ending: &str) -> PathBuf {
    let mut beside = place.as_os_str().to_owned();
    beside.push(ending);
    beside.into()
}

fn dir_of(place: &Path) -> &Path {
    let dir = place.parent().filter(|d| !d.as_os_str().is_empty());
    dir.unwrap_or(Path::new("."))
}

fn sync_dir(place: &Path) -> io::Result<()> {
    File::open(dir_of(place))?.sync_all()
}

/// Write beside a place what is to be there.
fn stage(place: &Path, parts: &[&[u8]], mode: u32) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir_of(place))?;
    let beside = with_ending(place, NEW);
    remove_any(&beside)?;
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(beside)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()
}

/// Have a second name for what is at a place; whether anything is.
fn keep_old(place: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(place) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
        Ok(there) if there.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        Ok(_) => {}
    }
    let old = with_ending(place, OLD);
    remove_any(&old)?;
    // Not all file systems have second names.
    fs::hard_link(place, &old).or_else(|_| fs::copy(place, &old).map(drop))?;
    Ok(true)
}

/// Another one's leftover, or a link somewhere else, is not written into.
fn remove_any(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The file at `path`, open for reading; none when nothing is there.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::InvalidData`] for what is no file: a pipe would be waited for.
pub fn open(path: &Path) -> io::Result<Option<File>> {
    // Opening a pipe waits for a writer otherwise.
    let options = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = match options {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no regular file"));
    }
    Ok(Some(file))
}

/// What is at `path`, at most `limit` bytes; none when nothing is there.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::InvalidData`] for more than `limit`, and for what is no file.
pub fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    open(path)?.map(|file| read_open(file, limit)).transpose()
}

/// What is in an open file, at most `limit` bytes.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::InvalidData`] for more than `limit`.
pub fn read_open(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("longer than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_is_no_file_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        for path in [&pipe, dir.path()] {
            assert_eq!(read(path, 10).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn the_old_or_the_new_but_nothing_between() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/state.json");
        assert_eq!(read(&path, 10).unwrap(), None);
        replace_file(&path, &[b"ol", b"d"], 0o600).unwrap();
        replace_file(&path, &[b"new"], 0o600).unwrap();
        assert_eq!(read(&path, 3).unwrap().unwrap(), b"new");
        assert_eq!(read(&path, 2).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        // Nothing can be written beside it: the same name is a directory that is not empty.
        let beside = path.with_file_name("state.json.new");
        fs::create_dir_all(beside.join("x")).unwrap();
        assert!(replace_file(&path, &[b"newer"], 0o600).is_err());
        assert_eq!(read(&path, 3).unwrap().unwrap(), b"new");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
        // A link that somebody put there leads nowhere.
        fs::remove_dir_all(&beside).unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &beside).unwrap();
        replace_file(&path, &[b"newer"], 0o600).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert_eq!(read(&path, 5).unwrap().unwrap(), b"newer");
    }

    #[test]
    fn several_files_are_changed_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join("d").join(name);
        let put = |name: &str, text: &str| (at(name), Some(text.as_bytes().to_vec()));
        let said = || {
            let mut all: Vec<String> = fs::read_dir(dir.path().join("d"))
                .unwrap()
                .map(|e| e.unwrap().path())
                .map(|p| {
                    let text = fs::read_to_string(&p).unwrap_or_else(|_| "a directory".into());
                    format!("{} {text}", p.file_name().unwrap().display())
                })
                .collect();
            all.sort();
            all
        };
        change_files(&[put("a", "1"), put("b", "2")], 0o600).unwrap();
        assert_eq!(said(), ["a 1", "b 2"]);
        assert_eq!(fs::metadata(at("a")).unwrap().mode() & 0o777, 0o600);
        change_files(&[put("a", "3"), (at("b"), None), put("c", "4")], 0o600).unwrap();
        assert_eq!(said(), ["a 3", "c 4"]);
        // The last one cannot be written, or not be put there: those before it are as they were.
        fs::create_dir_all(at("z/x")).unwrap();
        let refused = change_files(
            &[put("a", "5"), (at("c"), None), put("n", "6"), put("z", "7")],
            0o600,
        );
        assert_eq!(refused.unwrap_err().0, at("z"));
        assert_eq!(said(), ["a 3", "c 4", "z a directory"]);
        fs::create_dir_all(at("y.new/x")).unwrap();
        let refused = change_files(&[put("a", "5"), put("y", "7")], 0o600);
        assert_eq!(refused.unwrap_err().0, at("y"));
        assert_eq!(said(), ["a 3", "c 4", "y.new a directory", "z a directory"]);
        assert_eq!(
            change_files(&[(at("nobody"), None)], 0o600).map_err(|e| e.0),
            Ok(())
        );
    }
}
