//! Attachments that ended while their node was away: a file for each in `NODE.gone` beside the admin socket, which the
//! node's next start heeds and removes. They last as long as what keeps pods meanwhile, whose socket is there too.

use super::place::{claim, ours_alone};
use crate::model::{Attachment, MAX_IDENTIFIER};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Longest file that is read: three names of [`MAX_IDENTIFIER`] bytes, and what is between them.
const MAX_FILE: u64 = 4096;
/// Most files that are read: no node has more pods.
const MAX_FILES: usize = 1 << 16;

/// The directory of the node whose admin socket is at `socket`.
pub fn directory(socket: &Path) -> PathBuf {
    socket.with_extension("gone")
}

/// Leave word that an attachment is gone. When this returns it survives a crash of the machine, as far as the directory
/// does.
///
/// # Errors
/// When the directory cannot be made, or is not this user's alone; or what the disk says.
pub fn leave(socket: &Path, attachment: &Attachment) -> io::Result<PathBuf> {
    let dir = directory(socket);
    claim(&dir)?;
    let path = dir.join(file_name(attachment));
    let mut beside = path.clone().into_os_string();
    beside.push(format!(".{}", std::process::id()));
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(attachment)?)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(&dir)?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&beside)))?;
    Ok(path)
}

/// Take word back: the node knows.
pub fn take_back(path: &Path) {
    // It may have been heeded meanwhile.
    let _ = fs::remove_file(path);
}

/// What is left for the node at `socket`, with the files; none of an attachment where a file says nothing.
///
/// # Errors
/// When the directory is not this user's alone, or cannot be read. That it is not there is none.
pub fn all(socket: &Path) -> io::Result<Vec<(PathBuf, Option<Attachment>)>> {
    let dir = directory(socket);
    match ours_alone(&dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    }
    let entries = fs::read_dir(&dir)?.flatten().take(MAX_FILES);
    Ok(entries
        .map(|entry| {
            let path = entry.path();
            let attachment = read(&path);
            (path, attachment)
        })
        .collect())
}

fn read(path: &Path) -> Option<Attachment> {
    let meta = fs::symlink_metadata(path).ok()?;
    let mut bytes = Vec::new();
    let file = meta.is_file().then(|| File::open(path).ok()).flatten()?;
    file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok().filter(Attachment::is_valid)
}

/// One name for each attachment: 255 bytes at most, whatever its names are.
fn file_name(attachment: &Attachment) -> String {
    let network: String = attachment.network.chars().take(100).collect();
    let container: String = attachment.container.chars().take(MAX_IDENTIFIER).collect();
    format!("{network}@{container}@{}", attachment.ifname.replace('/', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_left_is_found_and_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("n1.sock");
        assert!(all(&socket).unwrap().is_empty());
        let attachment = Attachment {
            network: "cbr0".into(),
            container: "c".repeat(MAX_IDENTIFIER),
            ifname: "eth0".into(),
            namespace: Some((4, 4_026_532_000)),
        };
        let path = leave(&socket, &attachment).unwrap();
        assert_eq!(leave(&socket, &attachment).unwrap(), path, "once is enough");
        fs::write(directory(&socket).join("rubbish"), "rubbish").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory(&socket).join("link")).unwrap();
        let mut found = all(&socket).unwrap();
        found.sort_by_key(|(_, a)| a.is_none());
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], (path.clone(), Some(attachment)));
        assert!(found[1].1.is_none() && found[2].1.is_none());
        take_back(&path);
        take_back(&path);
        assert_eq!(all(&socket).unwrap().len(), 2);
        // Anybody could end pods there.
        fs::set_permissions(directory(&socket), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(all(&socket).is_err());
    }
}
