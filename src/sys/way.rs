//! The way to a file by its links, for those who watch it: whoever changes any of them changes what is found there.

use std::path::{Component, Path, PathBuf};

/// Most links that are followed, as the kernel has it.
const MAX_LINKS: usize = 40;

/// The directories that hold the file and each link on the way to it, and the file itself. Of a directory that is not
/// there, the nearest one above.
pub fn way(path: &Path) -> Vec<PathBuf> {
    let mut places = Vec::new();
    let mut at = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        let dir = at.parent().unwrap_or(Path::new("/"));
        let there = dir.ancestors().find(|d| d.is_dir()).unwrap_or(Path::new("/"));
        places.push(there.to_path_buf());
        match std::fs::read_link(&at) {
            Ok(to) => at = plain(&dir.join(to)),
            Err(_) => break,
        }
    }
    if at.is_file() {
        places.push(at);
    }
    places.dedup();
    places
}

/// A path without `..`, as far as text goes: the directories of such links are no links themselves.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}
