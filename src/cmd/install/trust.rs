//! Whether a program is root's alone: itself, and each folder on the way to it, by any of which another user could put
//! something else in its place.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Most links that are followed, as by the kernel.
const MAX_LINKS: usize = 40;

/// What of the way to `program` somebody else than root may write, links and their folders with it; none when there is
/// nothing, or no program.
pub fn opening(program: &Path) -> Option<PathBuf> {
    let mut at = PathBuf::new();
    let mut rest = parts(&std::path::absolute(program).ok()?);
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(part);
        let meta = std::fs::symlink_metadata(&next).ok()?;
        if is_open(&meta) {
            return Some(next);
        }
        if !meta.is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return None;
        }
        rest.extend(parts(&std::fs::read_link(&next).ok()?));
    }
    None
}

/// The parts of a path, last one first; the first one of an absolute path is the root, which joined to anything is the root.
fn parts(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev();
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

fn is_open(meta: &Metadata) -> bool {
    // The mode of a link means nothing: who may write its folder may replace it.
    let mode = if meta.is_symlink() { 0 } else { meta.mode() };
    others_may_write(meta.is_dir(), meta.uid(), mode)
}

fn others_may_write(dir: bool, owner: u32, mode: u32) -> bool {
    /// Who may write such a folder may replace only what is his own (inode(7)).
    const STICKY: u32 = 0o1000;
    let kept = dir && mode & STICKY != 0;
    owner != 0 || (mode & 0o022 != 0 && !kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_may_write_is_found() {
        for (dir, owner, mode, expected) in [
            (false, 0, 0o100_755, false),
            (false, 0, 0o100_775, true),
            (false, 0, 0o100_757, true),
            (false, 1000, 0o100_755, true),
            (true, 0, 0o40_755, false),
            (true, 0, 0o41_777, false),
            (true, 0, 0o40_777, true),
            (true, 1000, 0o41_777, true),
            (false, 0, 0o101_777, true),
        ] {
            assert_eq!(others_may_write(dir, owner, mode), expected, "{owner} {mode:o}");
        }
        assert_eq!(opening(Path::new("/no/such/program")), None);
    }
}
