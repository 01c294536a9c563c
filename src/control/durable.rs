//! Files that are replaced as a whole: whoever reads finds the old content or the new, after any crash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Replace the file at `place` by one with these parts and this mode, as a whole or not at all: also when the machine
/// stops meanwhile. Its directory is made, for this user alone, when it is missing. Waits for the disk.
///
/// # Errors
/// The kernel's (a disk that is full or read-only, mostly); the old file is as it was.
pub fn replace_file(place: &Path, parts: &[&[u8]], mode: u32) -> io::Result<()> {
    let dir = place.parent().filter(|d| !d.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut beside = place.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    let write = || {
        // Another one's leftover, or a link somewhere else, is not written into.
        match fs::remove_file(beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode).open(beside)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()?;
        fs::rename(beside, place)
    };
    if let Err(e) = write() {
        // A disk that is full gets its space back.
        let _ = fs::remove_file(beside);
        return Err(e);
    }
    // The name is as durable as the bytes only then.
    File::open(dir)?.sync_all()
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
    let Some(file) = open(path)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("longer than {limit} bytes"),
        ));
    }
    Ok(Some(bytes))
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
}
