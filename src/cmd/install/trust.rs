//! Whether a program is root's alone: itself, and each folder on the way to it, by any of which another user could put
//! something else in its place.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What of the way to `program` somebody else than root may write; none when there is nothing, or no program.
pub fn opening(program: &Path) -> Option<PathBuf> {
    let program = std::fs::canonicalize(program).ok()?;
    let open = |path: &&Path| std::fs::metadata(path).is_ok_and(|meta| is_open(&meta));
    program.ancestors().find(open).map(Path::to_path_buf)
}

fn is_open(meta: &Metadata) -> bool {
    others_may_write(meta.is_dir(), meta.uid(), meta.mode())
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
